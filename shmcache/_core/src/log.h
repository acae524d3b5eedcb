/* log.h - the circular log of a shard: positions, room, appending.  Caller holds the shard.
 *
 * A position is lap << off_bits | offset (units), 64 bits, compared modularly; head is the oldest
 * entry, tail where the next one goes.  head == tail: empty.  Entries lie in one piece: what does
 * not fit before the end of the log is preceded by a pad up to the end.
 *
 *   INV-LOG-CHAIN    from head to tail the log is a chain of whole entries and pads
 *   INV-LOG-PUBLISH  an entry's bytes are complete before tail passes it, tail has passed it
 *                    before a slot names it
 *   INV-REUSE        no slot names an entry, and head has passed it, before its bytes are reused
 *   INV-GAP          after every append a gap stays free that takes a move of the largest entry
 *                    of the last two laps: so a move of the entry at the head never overwrites
 *                    its own source (shm_gap)
 *
 * head, tail and largest are loaded from shared memory once for a decision and checked against
 * the private geometry: whatever was flipped in them, nothing outside the log is touched.
 */
#ifndef SHMCACHE_LOG_H
#define SHMCACHE_LOG_H

#include "view.h"

#define SHM_MAIN 0u
#define SHM_PROBATION 1u
#define SHM_NO_SLOT 0xffffffffu

/* One operation inside a shard's lock: who, where, when, and what it must spare. */
typedef struct shm_op {
    const shm_view *v;
    shm_shard *sh;
    uint64_t *index;
    uint64_t now_ms;  /* the clock expiry is counted on */
    uint32_t protect; /* the slot of the key being written: never evicted to make room for it */
    uint32_t spare;   /* units of its entry */
    uint64_t walked[2]; /* units that the head of log 0 and 1 has advanced in this operation */
    uint32_t changed; /* slots cleared or moved by making room: look the key up again */
    uint64_t epoch;   /* of a namespace, the last one that was asked about; 0: none */
    bool epoch_stale; /* and the answer */
} shm_op;

static inline void shm_op_begin(shm_op *op, const shm_view *v, uint32_t shard, uint64_t now_ms)
{
    op->v = v;
    op->sh = shm_shard_at(v, shard);
    op->index = shm_index_of(v, op->sh);
    op->now_ms = now_ms;
    op->protect = SHM_NO_SLOT;
    op->spare = 0;
    op->walked[0] = op->walked[1] = 0;
    op->changed = 0;
    op->epoch = 0;
    op->epoch_stale = false;
}

/* Units that must stay free in log `l`, its tail at offset `off`, its largest entry n units long.
 * Twice that entry: itself, and the pad of a lap, which is as large at worst.  Under `evict`,
 * where entries are larger than a 32nd of the log, that would leave too much always empty: there
 * it is what moving the largest entry takes from just here, after every append.  Moves may use it
 * up; an entry that cannot be moved then is evicted, but never the key being written: room for its
 * move is spared by every move before (op->spare). */
static inline uint32_t shm_gap(const shm_view *v, uint32_t l, uint32_t off, uint32_t n)
{
    uint32_t units = v->log[l].units, least = units / 16, exact;

    if (v->policy == SHM_POLICY_KEEP || 2 * n <= least)
        return 2 * n;
    exact = off + n > units ? units - off + n : n;
    return exact > least ? exact : least;
}

typedef struct shm_log_state { /* loaded once, checked */
    uint64_t head, tail;
    uint32_t used; /* units from head to tail */
    uint32_t free;
    uint32_t largest; /* entry of the last two laps, units */
    uint32_t gap;     /* what must stay free for moves */
} shm_log_state;

static inline uint32_t shm_pos_off(const shm_log_view *g, uint64_t pos)
{
    return (uint32_t)(pos & g->off_mask);
}

/* pos + n units, n not going past the end of the log */
static inline uint64_t shm_pos_advance(const shm_log_view *g, uint64_t pos, uint32_t n)
{
    uint64_t off = (pos & g->off_mask) + n;
    if (off >= g->units)
        return ((pos >> g->off_bits) + 1) << g->off_bits;
    return (pos & ~g->off_mask) | off;
}

static inline bool shm_log_load(const shm_op *op, uint32_t l, shm_log_state *st)
{
    const shm_log_view *g = &op->v->log[l];
    uint64_t laps, used;
    uint32_t a, b;

    st->head = RD(&op->sh->head[l]);
    st->tail = RD(&op->sh->tail[l]);
    if (shm_pos_off(g, st->head) >= g->units || shm_pos_off(g, st->tail) >= g->units)
        return false;
    laps = (st->tail >> g->off_bits) - (st->head >> g->off_bits);
    if (laps > 1)
        return false;
    used = laps * g->units + shm_pos_off(g, st->tail) - shm_pos_off(g, st->head);
    if (used > g->units) /* also when tail is behind head: the difference wraps */
        return false;
    st->used = (uint32_t)used;
    st->free = g->units - st->used;
    a = RD(&op->sh->largest[l][0]);
    b = RD(&op->sh->largest[l][1]);
    a = a > b ? a : b;
    if (a > op->v->max_entry_units)
        a = op->v->max_entry_units;
    st->largest = a;
    st->gap = shm_gap(op->v, l, shm_pos_off(g, st->tail), a);
    return true;
}

/* Units that appending n takes: with the pad, where it does not fit before the end. */
static inline uint32_t shm_log_need(const shm_op *op, uint32_t l, const shm_log_state *st,
                                    uint32_t n)
{
    const shm_log_view *g = &op->v->log[l];
    uint32_t off = shm_pos_off(g, st->tail);
    return off + n > g->units ? g->units - off + n : n;
}

/* The tail's offset after n units were appended. */
static inline uint32_t shm_off_after(const shm_log_view *g, uint32_t off, uint32_t n)
{
    return off + n > g->units ? n : off + n == g->units ? 0 : off + n;
}

/* Is there room to append n units and leave the gap? */
static inline bool shm_log_has_room(const shm_op *op, uint32_t l, const shm_log_state *st,
                                    uint32_t n)
{
    uint32_t off = shm_off_after(&op->v->log[l], shm_pos_off(&op->v->log[l], st->tail), n);
    uint32_t largest = st->largest > n ? st->largest : n;
    return (uint64_t)shm_log_need(op, l, st, n) + shm_gap(op->v, l, off, largest) <= st->free;
}

/* Can n units at the head be moved to the tail, the key being written still after them? */
static inline bool shm_log_can_move(const shm_op *op, uint32_t l, const shm_log_state *st,
                                    uint32_t n, bool spare)
{
    const shm_log_view *g = &op->v->log[l];
    uint32_t need = shm_log_need(op, l, st, n), off;

    if (need > st->free)
        return false;
    if (!spare || op->spare == 0)
        return true;
    off = shm_off_after(g, shm_pos_off(g, st->tail), n);
    need -= n; /* the head passes what the tail takes, but for a pad */
    return need + op->spare + (off + op->spare > g->units ? g->units - off : 0) <= st->free;
}

/* Fill log `l` from `pos`, its tail, to its end.  Returns the position after that: the next lap's
 * first. */
static inline uint64_t shm_log_pad(shm_op *op, uint32_t l, uint64_t pos)
{
    const shm_log_view *g = &op->v->log[l];
    uint32_t off = shm_pos_off(g, pos);
    uint64_t *p = (uint64_t *)(shm_log_base(op->v, op->sh, l) + (uint64_t)off * SHM_UNIT);

    FENCE_REL(); /* INV-REUSE; pairs with FENCE_ACQ of shm_hit_valid */
    WR(p, (uint64_t)(g->units - off) | (uint64_t)SHM_K_PAD << 48);
    FAULT(pad_written);
    pos = shm_pos_advance(g, pos, g->units - off);
    WRR(&op->sh->tail[l], pos);
    FAULT(pad_tail);
    return pos;
}

/* First thing in the lock, of whoever is going to append: the lines that a write needs come from
 * other cores and from memory while the key is looked up, not one after the other.  These are the
 * note's and the log's header lines, three lines at each tail (an entry of the usual size), and
 * the entry at each head, which is examined next.  Addresses come from positions that nobody has
 * checked yet; masked, they lie near the log, and a prefetch never faults. */
static inline void shm_prefetch_logs(const shm_op *op)
{
    shm_prefetch_own(&op->sh->note);
    shm_prefetch_own(&op->sh->head);
    for (uint32_t l = 0; l < 2; l++) {
        const shm_log_view *g = &op->v->log[l];
        const uint8_t *base = shm_log_base(op->v, op->sh, l), *head, *tail;
        if (g->units == 0)
            continue;
        tail = base + (RD(&op->sh->tail[l]) & g->off_mask) * SHM_UNIT;
        shm_prefetch_own(tail);
        shm_prefetch_own(tail + SHM_LINE);
        shm_prefetch_own(tail + 2 * SHM_LINE);
        head = base + (RD(&op->sh->head[l]) & g->off_mask) * SHM_UNIT;
        __builtin_prefetch(head);
        __builtin_prefetch(head + SHM_LINE);
    }
}

/* Where the next n units go, a pad written first where they do not fit before the end.  The
 * caller made sure of the room.  Returns the position; the tail has not passed it yet. */
static inline uint64_t shm_log_reserve(shm_op *op, uint32_t l, const shm_log_state *st, uint32_t n)
{
    const shm_log_view *g = &op->v->log[l];
    uint64_t pos = st->tail;
    uint32_t *largest;

    FENCE_REL(); /* INV-REUSE; pairs with FENCE_ACQ of shm_hit_valid */
    if (shm_pos_off(g, pos) + n > g->units)
        pos = shm_log_pad(op, l, pos);
    largest = &op->sh->largest[l][(pos >> g->off_bits) & 1];
    if (shm_pos_off(g, pos) == 0 || RD(largest) < n) /* a lap begins: its place is taken over */
        WR(largest, n); /* the same again if a writer dies here and the next one starts the lap */
    return pos;
}

static inline void shm_log_advance_tail(shm_op *op, uint32_t l, uint64_t pos, uint32_t n)
{
    WRR(&op->sh->tail[l], shm_pos_advance(&op->v->log[l], pos, n)); /* INV-LOG-PUBLISH */
    FAULT(tail_advanced);
}

static inline void shm_log_advance_head(shm_op *op, uint32_t l, uint64_t head, uint32_t n)
{
    WRR(&op->sh->head[l], shm_pos_advance(&op->v->log[l], head, n));
    op->walked[l] += n;
    FAULT(head_advanced);
}

static inline uint64_t shm_make_word(uint64_t tag, uint32_t l, uint64_t pos, uint64_t visited)
{
    return SHM_KIND_LIVE | tag | (uint64_t)l << SHM_W_LOG_SHIFT |
           (pos & SHM_W_POS_MASK) << SHM_W_POS_SHIFT | visited;
}

/* ------------------------------------------------------------------------- the note
 * Every change of a slot goes through here.  INV-NOTE: while note.armed is 1, slot, counts and
 * tail may disagree, and the note says what the slot will hold and what the counts will be; else
 * they agree.  Whoever repairs looks at that one slot (shm_repair).  A note of a new entry is
 * armed before the tail passes it: so that an entry that was never published is taken back, and
 * dying in a move again and again does not eat up the gap (found by models/publish.pml).  The
 * stores are releases so that neither compiler nor CPU reorders them.
 */
static inline void shm_note_arm(shm_op *op, uint32_t slot, uint64_t word, const shm_counts *counts)
{
    shm_shard *sh = op->sh;
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* not before the last note was cleared */
    WR(&sh->note.slot, slot);
    WR(&sh->note.word, word);
    WR(&sh->note.counts.entries, counts->entries);
    WR(&sh->note.counts.leases, counts->leases);
    WR(&sh->note.counts.live_units[0], counts->live_units[0]);
    WR(&sh->note.counts.live_units[1], counts->live_units[1]);
    FAULT(note_filled);
    WRR(&sh->note.armed, 1u);
    FAULT(note_armed);
}

static inline void shm_note_commit(shm_op *op, uint32_t slot, uint64_t word,
                                   const shm_counts *counts)
{
    shm_shard *sh = op->sh;
    WRR(op->index + slot, word); /* the linearization point; pairs with RDA in shm_find */
    FAULT(slot_stored);
    WRR(&sh->counts.entries, counts->entries);
    WRR(&sh->counts.leases, counts->leases);
    WRR(&sh->counts.live_units[0], counts->live_units[0]);
    WRR(&sh->counts.live_units[1], counts->live_units[1]);
    FAULT(counts_stored);
    WRR(&sh->note.armed, 0u);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    FAULT(note_cleared);
}

static inline shm_counts shm_counts_load(const shm_op *op)
{
    shm_counts c;
    c.entries = RD(&op->sh->counts.entries);
    c.leases = RD(&op->sh->counts.leases);
    c.live_units[0] = RD(&op->sh->counts.live_units[0]);
    c.live_units[1] = RD(&op->sh->counts.live_units[1]);
    return c;
}

/* The log that `word` of an unpublished entry lies in, back to where it was before: nobody has
 * ever read there.  Idempotent; a pad before the entry stays. */
static inline void shm_take_back_tail(const shm_view *v, shm_shard *sh, uint64_t word)
{
    uint32_t l = shm_word_log(word);
    uint64_t tail = RD(&sh->tail[l]), back = (tail - shm_word_pos(word)) & SHM_W_POS_MASK;

    if (v->log[l].units != 0 && back <= v->log[l].off_mask + 1)
        WRR(&sh->tail[l], tail - back);
}

/* `invalidations` of the superblock: times that the epoch of a namespace has gone (epoch.h). */
static inline uint64_t *shm_invalidations(const shm_view *v)
{
    return (uint64_t *)(v->base + offsetof(shm_superblock, invalidations));
}

/* Say that entries may have become stale: pairs with RDA in shm_sweep. */
static inline void shm_invalidated(const shm_view *v)
{
    __atomic_fetch_add(shm_invalidations(v), 1, __ATOMIC_RELEASE);
}

/* After a takeover, before anything else: look at the one noted slot.  Constant time, whatever
 * the size of the shard.  The mark is cleared last, so dying in here is harmless too: whoever
 * comes next does all of it again. */
static inline void shm_repair(const shm_view *v, shm_shard *sh)
{
    FAULT(taken_over);
    if (RDA(&sh->note.armed)) {
        uint32_t slot = RD(&sh->note.slot);
        uint64_t word = RD(&sh->note.word);
        if (slot < v->slot_count) {
            if (shm_same_word(RDA(shm_index_of(v, sh) + slot), word)) {
                WRR(&sh->counts.entries, RD(&sh->note.counts.entries));
                WRR(&sh->counts.leases, RD(&sh->note.counts.leases));
                WRR(&sh->counts.live_units[0], RD(&sh->note.counts.live_units[0]));
                WRR(&sh->counts.live_units[1], RD(&sh->note.counts.live_units[1]));
            } else if (shm_word_live(word)) {
                shm_take_back_tail(v, sh, word);
            }
        }
        WRR(&sh->note.armed, 0u);
    }
    shm_invalidated(v); /* the dead one may have removed an epoch, and died before it said so */
    FAULT(repaired);
    WR(&sh->recoveries, RD(&sh->recoveries) + 1);
}

#endif
