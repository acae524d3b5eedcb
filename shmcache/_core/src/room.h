/* room.h - making room in a shard: what is dropped, what is moved, and in what order.
 *
 * The head of a log advances over its oldest entry.  That entry is
 *   dead       no slot names it                                     -> passed
 *   expired    its slot is cleared                                  -> passed
 *   evictable  its slot is cleared or becomes a ghost               -> passed
 *   to be kept appended at a tail, its slot swung to the copy       -> passed
 * Only then may its bytes be overwritten (INV-REUSE, the fence is in shm_log_reserve).
 *
 * What is kept (policy evict; two logs, S3-FIFO's shape: Yang et al., SOSP 2023; figures in
 * docs/eviction.md): a new key enters the probation log.  At its head an entry that was read
 * moves to the main log, one that was not is evicted and leaves a ghost: its tag, in its slot.
 * A key whose ghost is still there enters the main log at once.  At the head of the main log an
 * entry that was read is appended again with one visit less.  With probation_units == 0 there is
 * one log: a two-bit CLOCK with ghosts.
 *
 * INV-BUDGET: while the shard's live units are below budget_units nothing live is evicted: what
 * the head meets is moved.  So overwriting and deleting evict nobody.  (Where single entries are
 * larger than a 32nd of a log its gap may leave less than the budget: then the main log's own
 * 15/16 count.)  A main log that is filled for the first time, or again after all of it was
 * removed, is filled to its end before anything is evicted: main_filled.  Under `keep` nothing live is ever evicted, and a write that would take live
 * units past the budget is refused.
 *
 * What has expired goes before anything live: a write that is about to evict sweeps the index, up
 * to SHM_SWEEP_MOST slots, until the live units are below the budget; on as long as that finds
 * something, else one round a second, so that a cache in which a little expires all the time does
 * not look at every slot for every write.  min_expiry says when there is nothing to find.
 *
 * Pacing: cleaning is paid for in small change.  A write of n units walks up to
 * SHM_PACE * n * capacity / reclaimable units while less than half of what is reclaimable is
 * free, so that a long run of live entries is moved over many writes, not by one.  What pacing
 * leaves is bounded: making room gives up after one revolution of the log, and under `evict` after
 * a second one that evicts whatever it may.  (Measured, tests/core: a write walked at most 0.64
 * revolutions where entries are up to a 64th of the log, 2.4 with entries of the largest size.)
 */
#ifndef SHMCACHE_ROOM_H
#define SHMCACHE_ROOM_H

#include "epoch.h"
#include "log.h"
#include "read.h"

#define SHM_PACE 2u
#define SHM_SECOND_CHANCES 16u /* re-appends in a row before an eviction is forced (k of
                                  docs/eviction.md: 16 costs at most 1 % of the hits, 4 up to 5 %) */
#define SHM_AHEAD_SIZE (4u << 20) /* bytes of segment from which on shm_prefetch_next pays */
#define SHM_AHEAD_KEY 64u      /* bytes: longer keys are not hashed twice, shm_prefetch_next */
#define SHM_SWEEP_STEP 32u     /* slots: four cache lines, and about 16 entry headers */
#define SHM_SWEEP_MOST 4096u   /* slots that one write sweeps at most: about 100 us */
#define SHM_SWEEP_AGAIN_MS 1000u /* a round that finds little is made once in this time */

static inline void shm_count(uint64_t *counter, uint64_t n) { WR(counter, RD(counter) + n); }

static inline uint64_t shm_live_units(const shm_op *op)
{
    return (uint64_t)RD(&op->sh->counts.live_units[0]) + RD(&op->sh->counts.live_units[1]);
}

/* May something live be evicted to make room (policy evict)? */
static inline bool shm_over_budget(const shm_op *op)
{
    uint32_t main_live = RD(&op->sh->counts.live_units[SHM_MAIN]);
    uint32_t usable;
    shm_log_state st;

    if (shm_live_units(op) >= op->v->budget_units)
        return true;
    if (main_live < op->v->log[SHM_MAIN].units / 2 || !shm_log_load(op, SHM_MAIN, &st))
        return false;
    usable = op->v->log[SHM_MAIN].units - st.gap;
    return main_live >= usable - usable / 16;
}

/* The slot that names the entry at `pos` of log `l`, or SHM_NO_SLOT: then the entry is dead. */
static inline uint32_t shm_slot_of_entry(const shm_op *op, uint64_t hash, uint32_t l, uint64_t pos)
{
    uint64_t want = shm_make_word(shm_hash_tag(hash), l, pos, 0);
    uint32_t home = shm_home_bucket(op->v, hash), limit = RD(&op->sh->probe_limit);

    for (uint32_t n = 0; n < op->v->max_probe && (n == 0 || n < limit); n++) {
        uint32_t b = shm_probe_bucket(op->v, home, n) * SHM_BUCKET_SLOTS;
        for (uint32_t i = 0; i < SHM_BUCKET_SLOTS; i++)
            if (shm_same_word(RD(op->index + b + i), want))
                return b + i;
    }
    return SHM_NO_SLOT;
}

/* What an entry of that key kind adds to counts.leases; 0: it counts as an entry. */
static inline uint32_t shm_hidden_count(uint8_t key_kind)
{
    if (key_kind & SHM_K_LEASE)
        return 1;
    return (key_kind & (SHM_K_NAMESPACED | SHM_K_TYPE)) == (SHM_K_NAMESPACED | SHM_K_EPOCH)
               ? SHM_C_EPOCH
               : 0;
}

/* Clear the slot of a live entry, `units` long, whose key is of that kind; `ghost`: leave its
 * fingerprint. */
static inline void shm_drop_kind(shm_op *op, uint32_t slot, uint64_t word, uint32_t units,
                                 uint8_t key_kind, bool ghost)
{
    shm_counts c = shm_counts_load(op);
    uint32_t hidden = shm_hidden_count(key_kind);
    bool lease = (key_kind & SHM_K_LEASE) != 0;
    uint64_t left = 0;

    c.live_units[shm_word_log(word)] -= units;
    if (hidden)
        c.leases -= hidden;
    else
        c.entries -= 1;
    if (ghost) {
        uint64_t seq = RD(&op->sh->ghost_seq) + 1;
        WR(&op->sh->ghost_seq, seq);
        left = SHM_KIND_GHOST | (word & SHM_W_TAG) | (seq & SHM_W_POS_MASK) << SHM_W_POS_SHIFT;
    }
    shm_note_arm(op, slot, left, &c);
    shm_note_commit(op, slot, left, &c);
    op->changed++;
    if (lease) { /* after the slot: who reads the new word finds no lease; who found it waits for
                    the old word.  Bit 0 stays until somebody has released the shard and woken */
        WRR(&op->sh->wake, (RD(&op->sh->wake) + 2u) | 1u);
        FAULT(lease_dropped);
    }
    if (hidden == SHM_C_EPOCH) { /* whoever removes it, and after the slot: a sweep that began
                                    before it may have met entries that were not stale yet */
        FAULT(epoch_dropped);
        shm_invalidated(op->v);
    }
}

static inline void shm_drop(shm_op *op, uint32_t slot, uint64_t word, uint32_t units, bool lease,
                            bool ghost)
{
    shm_drop_kind(op, slot, word, units, lease ? SHM_K_LEASE : 0, ghost);
}

/* Is the memory of the entry behind `hit` free already?  Expired, its stale time included, or of
 * a namespace that was invalidated. */
static inline bool shm_reclaimable(shm_op *op, const shm_hit *hit)
{
    if (!(hit->key_kind & SHM_K_LEASE) && hit->expiry &&
        shm_expiry_reclaim_at(hit->expiry) <= op->now_ms)
        return true;
    return shm_epoch_stale(op, hit);
}

/* Could a sweep find anything? */
static inline bool shm_sweep_due(const shm_op *op)
{
    return op->now_ms >= RD(&op->sh->min_expiry) ||
           RDA(shm_invalidations(op->v)) != RD(&op->sh->swept_invalidation);
}

static inline void shm_count_reclaimed(shm_op *op, const shm_hit *hit)
{
    if (hit->expiry && shm_expiry_reclaim_at(hit->expiry) <= op->now_ms)
        shm_count(&op->sh->expirations, 1);
    else if (!shm_hidden_count(hit->key_kind))
        shm_count(&op->sh->deletes, 1);
}

/* Append a copy of the entry behind `hit` (units long, at the head of log `from`) to log `to` and
 * swing its slot.  The caller has checked that there is room for units at the tail of `to`. */
static inline void shm_move(shm_op *op, uint32_t slot, const shm_hit *hit, uint64_t hash,
                            uint32_t from, uint32_t to, uint32_t units, uint64_t visited,
                            const shm_log_state *dest)
{
    shm_counts c = shm_counts_load(op);
    uint64_t pos = shm_log_reserve(op, to, dest, units);
    uint8_t *p = shm_log_base(op->v, op->sh, to) +
                 (uint64_t)shm_pos_off(&op->v->log[to], pos) * SHM_UNIT;
    uint64_t off = shm_word_pos(hit->word) & op->v->log[from].off_mask, word;

    shm_bytes_move(p, shm_log_base(op->v, op->sh, from) + off * SHM_UNIT, (size_t)units * SHM_UNIT);
    FAULT(move_copied);
    c.live_units[from] -= units;
    c.live_units[to] += units;
    word = shm_make_word(shm_hash_tag(hash), to, pos, visited);
    shm_note_arm(op, slot, word, &c);
    shm_log_advance_tail(op, to, pos, units);
    FAULT(move_tail);
    shm_note_commit(op, slot, word, &c);
    FAULT(move_swung);
    shm_count(&op->sh->moved_units, units);
    op->changed++;
}

/* The next step of the head will wait for its entry, and then for the bucket of that entry's key:
 * ask for that bucket while this entry of `units` is dealt with, and for the entry that comes third
 * if all have one size.  Mostly it is the first step of a later write that gains: with 64 MiB and
 * 100,000 keys, or new ones, a set takes a tenth less.  In a segment that the CPU's caches hold it
 * would only cost (7 ns). */
static inline void shm_prefetch_next(const shm_op *op, uint32_t l, const shm_log_state *st,
                                     uint32_t units)
{
    const shm_log_view *g = &op->v->log[l];
    uint64_t off = (uint64_t)shm_pos_off(g, st->head) + units;
    const uint8_t *p = shm_log_base(op->v, op->sh, l) + off * SHM_UNIT;
    uint64_t first, hash;
    uint16_t key_len;
    uint8_t flags;

    if (op->v->total_size < SHM_AHEAD_SIZE)
        return;
    __builtin_prefetch(p + 2ull * units * SHM_UNIT);
    if (units >= st->used || off + (sizeof(shm_entry) + 8 + SHM_AHEAD_KEY) / SHM_UNIT >= g->units)
        return; /* nothing follows, or not in one piece */
    first = RD((const uint64_t *)p);
    key_len = (uint16_t)(first >> 32);
    flags = (uint8_t)(first >> 48);
    if (key_len > SHM_AHEAD_KEY || (flags & SHM_K_PAD))
        return;
    hash = shm_key_hash(op->v->seed, flags & (uint8_t)~SHM_K_EXPIRES,
                        p + sizeof(shm_entry) + (flags & SHM_K_EXPIRES ? 8 : 0), key_len);
    __builtin_prefetch(op->index + (uint64_t)shm_home_bucket(op->v, hash) * SHM_BUCKET_SLOTS);
}

static int shm_make_room(shm_op *op, uint32_t l, uint32_t n);

/* Advance the head of log `l` over one entry.  `force`: evict it if the policy ever may.
 * SHM_HIT: advanced; SHM_MISS: the log is empty; SHM_FULL: it must be kept and cannot be moved;
 * SHM_CORRUPT. */
static int shm_head_step(shm_op *op, uint32_t l, bool force)
{
    const shm_view *v = op->v;
    const shm_log_view *g = &v->log[l];
    shm_log_state st, dest;
    shm_hit hit;
    uint64_t hash, word, units;
    uint32_t slot, to;
    bool lease, may_evict;

    if (!shm_log_load(op, l, &st))
        return SHM_CORRUPT;
    if (st.used == 0)
        return SHM_MISS;
    {
        uint32_t off = shm_pos_off(g, st.head);
        const uint8_t *p = shm_log_base(v, op->sh, l) + (uint64_t)off * SHM_UNIT;
        uint64_t first = RD((const uint64_t *)p);
        if ((uint8_t)(first >> 48) & SHM_K_PAD) {
            if ((uint32_t)first != g->units - off || (uint32_t)first > st.used)
                return SHM_CORRUPT;
            shm_log_advance_head(op, l, st.head, (uint32_t)first);
            return SHM_HIT;
        }
    }
    if (!shm_parse_entry(v, op->sh, shm_make_word(0, l, st.head, 0), &hit))
        return SHM_CORRUPT;
    units = shm_entry_units(hit.key_len, hit.value_len, hit.expiry != 0);
    if (units > st.used || units > v->max_entry_units)
        return SHM_CORRUPT;
    FAULT(head_examined);
    shm_prefetch_next(op, l, &st, (uint32_t)units);
    hash = shm_key_hash(v->seed, hit.key_kind, hit.key, hit.key_len);
    slot = shm_slot_of_entry(op, hash, l, st.head);
    if (slot == SHM_NO_SLOT) { /* dead */
        shm_log_advance_head(op, l, st.head, (uint32_t)units);
        return SHM_HIT;
    }
    word = RD(op->index + slot);
    lease = (hit.key_kind & SHM_K_LEASE) != 0;
    if (slot != op->protect && shm_reclaimable(op, &hit)) {
        shm_drop_kind(op, slot, word, (uint32_t)units, hit.key_kind, false);
        FAULT(expire_noted);
        shm_count_reclaimed(op, &hit);
        shm_log_advance_head(op, l, st.head, (uint32_t)units);
        return SHM_HIT;
    }

    may_evict = v->policy == SHM_POLICY_EVICT && !lease && slot != op->protect &&
                (force || shm_over_budget(op));
    to = SHM_MAIN;
    if (may_evict) {
        uint64_t visited = word & SHM_W_VISITED;
        bool evict;
        if (l == SHM_PROBATION) { /* while main has room, all that leaves enters it */
            evict = force || (visited == 0 && RD(&op->sh->main_filled));
            word &= ~SHM_W_VISITED;
        } else {
            evict = force || visited == 0 || RD(&op->sh->moves_in_a_row) >= SHM_SECOND_CHANCES;
            if (!evict) {
                WR(&op->sh->moves_in_a_row, RD(&op->sh->moves_in_a_row) + 1);
                word -= 1;
            }
        }
        if (evict) {
            shm_drop_kind(op, slot, word, (uint32_t)units, hit.key_kind,
                     l == SHM_PROBATION || v->log[1].units == 0);
            FAULT(evict_noted);
            shm_count(&op->sh->evictions, 1);
            WR(&op->sh->moves_in_a_row, 0u);
            shm_log_advance_head(op, l, st.head, (uint32_t)units);
            return SHM_HIT;
        }
    }
    if (l == SHM_PROBATION) {
        /* Two revolutions of main are enough for one write, also where flipped counts would have
         * it walk that far for each entry of probation. */
        if (op->walked[SHM_MAIN] > 2ull * v->log[SHM_MAIN].units ||
            shm_make_room(op, SHM_MAIN, (uint32_t)units) != SHM_HIT)
            to = SHM_PROBATION; /* goes round once more */
        else
            shm_count(&op->sh->promotions, 1);
    }
    if (!shm_log_load(op, to, &dest))
        return SHM_CORRUPT;
    if (!shm_log_can_move(op, to, &dest, (uint32_t)units,
                          to == l && slot != op->protect && !lease &&
                              v->policy == SHM_POLICY_EVICT))
        return SHM_FULL; /* see shm_gap; where INV-GAP holds, what must be kept never gets here */
    hit.word = shm_make_word(0, l, st.head, 0);
    shm_move(op, slot, &hit, hash, l, to, (uint32_t)units, word & SHM_W_VISITED, &dest);
    shm_log_advance_head(op, l, st.head, (uint32_t)units);
    return SHM_HIT;
}

/* Clear expired slots among the next `slots` ones.  Returns how many.  When a round is complete,
 * min_expiry is exact again. */
static inline uint32_t shm_sweep(shm_op *op, uint32_t slots)
{
    const shm_view *v = op->v;
    uint32_t cleared = 0, at = RD(&op->sh->sweep_slot);
    bool stale = RDA(shm_invalidations(v)) != RD(&op->sh->swept_invalidation);

    if (at >= v->slot_count)
        at = 0;
    if (at == 0) /* what is invalidated from here on, this round may miss */
        WR(&op->sh->sweep_invalidation, RDA(shm_invalidations(v)));
    while (slots--) {
        uint64_t w = RD(op->index + at);
        shm_hit hit;
        if (shm_word_live(w) && shm_parse_entry(v, op->sh, w, &hit) &&
            ((hit.expiry && !(hit.key_kind & SHM_K_LEASE)) ||
             (stale && (hit.key_kind & SHM_K_NAMESPACED)))) {
            if (at != op->protect && shm_reclaimable(op, &hit)) {
                shm_drop_kind(op, at, w,
                              (uint32_t)shm_entry_units(hit.key_len, hit.value_len,
                                                        hit.expiry != 0),
                              hit.key_kind, false);
                FAULT(sweep_step);
                shm_count_reclaimed(op, &hit);
                cleared += shm_hidden_count(hit.key_kind) == 0;
            } else if (hit.expiry && !(hit.key_kind & SHM_K_LEASE) &&
                       shm_expiry_reclaim_at(hit.expiry) < RD(&op->sh->sweep_min)) {
                WR(&op->sh->sweep_min, shm_expiry_reclaim_at(hit.expiry));
            }
        }
        if (++at == v->slot_count) {
            at = 0; /* in this order: dying in between leaves bounds too low, never too high */
            WRR(&op->sh->sweep_slot, 0u);
            WRR(&op->sh->min_expiry, RD(&op->sh->sweep_min));
            WRR(&op->sh->sweep_min, ~0ull);
            WRR(&op->sh->swept_invalidation, RD(&op->sh->sweep_invalidation));
            WRR(&op->sh->sweep_invalidation, RDA(shm_invalidations(v)));
            WR(&op->sh->swept_ms, op->now_ms);
            stale = RDA(shm_invalidations(v)) != RD(&op->sh->swept_invalidation);
            if (!shm_sweep_due(op))
                break; /* nothing more to find */
        }
    }
    WRR(&op->sh->sweep_slot, at);
    return cleared;
}

/* Is a sweep worth its while where nobody needs the room?  Not again right after a round: in a
 * cache in which a little expires all the time there would be no end to it. */
static inline bool shm_sweep_worth(const shm_op *op)
{
    return shm_sweep_due(op) && (RD(&op->sh->sweep_slot) != 0 ||
                                 op->now_ms - RD(&op->sh->swept_ms) >= SHM_SWEEP_AGAIN_MS);
}

/* A slice of a sweep for its own sake: up to `slots` slots, and no further than the round's end.
 * Returns how many entries were cleared; *done: nothing more is worth looking for now. */
static inline uint32_t shm_sweep_slice(shm_op *op, uint32_t slots, bool *done)
{
    uint32_t at = RD(&op->sh->sweep_slot), left, cleared;

    *done = !shm_sweep_worth(op);
    if (*done)
        return 0;
    left = op->v->slot_count - (at < op->v->slot_count ? at : 0);
    cleared = shm_sweep(op, slots < left ? slots : left);
    *done = slots >= left;
    return cleared;
}

/* One whole round from the first slot: afterwards nothing expired is left in the shard. */
static inline uint32_t shm_sweep_round(shm_op *op)
{
    if (!shm_sweep_due(op))
        return 0;
    WRR(&op->sh->sweep_slot, 0u);
    WRR(&op->sh->sweep_min, ~0ull);
    return shm_sweep(op, op->v->slot_count);
}

/* Nothing in log `l` is live: all of it is free at once. */
static inline void shm_log_empty(shm_op *op, uint32_t l)
{
    WRR(&op->sh->head[l], RD(&op->sh->tail[l]));
    if (l == SHM_MAIN)
        WR(&op->sh->main_filled, 0u);
    FAULT(head_advanced);
}

/* The same, and begin at the log's first unit again, where it takes as much as when it was new:
 * no pad half way, no gap for what has gone.  Each call takes a lap of positions (INV-REUSE counts
 * on their number), so this is for clear() only. */
static inline void shm_log_restart(shm_op *op, uint32_t l)
{
    const shm_log_view *g = &op->v->log[l];
    shm_log_state st;

    if (g->units == 0 || RD(&op->sh->counts.live_units[l]) != 0)
        return;
    shm_log_empty(op, l);
    if (!shm_log_load(op, l, &st))
        return; /* flipped bytes: the next write says so */
    if (shm_pos_off(g, st.tail) != 0) {
        shm_log_pad(op, l, st.tail);
        shm_log_empty(op, l);
    }
    WR(&op->sh->largest[l][0], 0u);
    WR(&op->sh->largest[l][1], 0u);
}

/* Advance the head of log `l` until n units can be appended with the gap kept.  Gives up after
 * one revolution, and under `evict` after a second one that evicts all it may.
 * SHM_HIT, SHM_FULL or SHM_CORRUPT. */
static int shm_make_room(shm_op *op, uint32_t l, uint32_t n)
{
    const shm_log_view *g = &op->v->log[l];
    shm_log_state st;
    uint64_t begun = op->walked[l];
    bool force = false;

    if (RD(&op->sh->counts.live_units[l]) == 0)
        shm_log_empty(op, l);
    for (;;) {
        int r;
        if (!shm_log_load(op, l, &st))
            return SHM_CORRUPT;
        if (shm_log_has_room(op, l, &st, n))
            return SHM_HIT;
        if (l == SHM_MAIN && !RD(&op->sh->main_filled) && shm_over_budget(op))
            WR(&op->sh->main_filled, 1u);
        if (op->v->policy == SHM_POLICY_KEEP &&
            (uint64_t)RD(&op->sh->counts.live_units[l]) + n > g->units)
            return SHM_FULL;
        if (op->walked[l] - begun > g->units) {
            if (force || op->v->policy == SHM_POLICY_KEEP)
                return SHM_FULL;
            force = true;
            begun = op->walked[l];
        }
        FAULT(room_begin);
        r = shm_head_step(op, l, force);
        if (r == SHM_FULL && !force && op->v->policy == SHM_POLICY_EVICT)
            r = shm_head_step(op, l, true); /* this one cannot be moved: see shm_gap */
        if (r == SHM_MISS)
            return SHM_FULL;
        if (r != SHM_HIT)
            return r;
    }
}

/* Sweep and clean a little ahead of need; see "Pacing" above. */
static inline int shm_pace(shm_op *op, uint32_t l, uint32_t n)
{
    const shm_view *v = op->v;
    const shm_log_view *g = &v->log[l];
    shm_log_state st;
    uint64_t live, reclaimable, walk, start;

    if (!shm_log_load(op, l, &st))
        return SHM_CORRUPT;
    if (st.free < g->units / 8 && shm_sweep_due(op)) {
        for (uint32_t swept = 0; swept < SHM_SWEEP_MOST; swept += SHM_SWEEP_STEP) {
            uint32_t cleared = shm_sweep(op, SHM_SWEEP_STEP);
            bool due = op->now_ms >= RD(&op->sh->swept_ms) + SHM_SWEEP_AGAIN_MS;
            if (!shm_over_budget(op) || (cleared == 0 && !due))
                break; /* nothing live would go, or looking further does not pay */
        }
    }
    if (v->policy == SHM_POLICY_EVICT && shm_over_budget(op))
        return SHM_HIT; /* room is made by evicting, one for one */
    live = (uint64_t)RD(&op->sh->counts.live_units[l]) + st.gap;
    if (live >= g->units)
        return SHM_HIT;
    reclaimable = g->units - live;
    if ((uint64_t)st.free * 2 >= reclaimable + 2ull * st.gap)
        return SHM_HIT;
    walk = SHM_PACE * (uint64_t)n * g->units / reclaimable;
    if (walk > g->units)
        walk = g->units;
    start = op->walked[l];
    while (op->walked[l] - start < walk) {
        int r = shm_head_step(op, l, false);
        if (r == SHM_CORRUPT)
            return r;
        if (r != SHM_HIT)
            break;
    }
    return SHM_HIT;
}

#endif
