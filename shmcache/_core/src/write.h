/* write.h - what a holder of a shard does to a key: store, remove, count, touch, clear.
 *
 * The story of a write (policy and room: room.h; log and note: log.h).  The caller holds the
 * shard.
 *   1. look the key up: its slot, whether what is there has expired, who may go
 *   2. make room at the tail; the key's own entry is never evicted for it, only moved
 *   3. look the key up again if making room cleared or moved anything
 *   4. advance the shard's version; write the entry past the tail, header complete
 *   5. note the slot, its new word and the counts as they will be; release-store the tail;
 *      publish by one release store of the slot; store the counts; clear the note
 * Killed before the slot's store: nothing changed; the next holder takes the tail back.
 * Killed after it: the write is done, and the note says what the counts are.
 */
#ifndef SHMCACHE_WRITE_H
#define SHMCACHE_WRITE_H

#include "room.h"

enum {
    SHM_PUT_SET,
    SHM_PUT_ADD,
    SHM_PUT_REPLACE,
    SHM_PUT_CAS,
    SHM_PUT_PUBLISH /* an initialiser's value: only if its lease is still there (lease.h) */
};

typedef struct shm_put {
    const void *value;
    uint64_t expiry;      /* expiry word, 0: never */
    uint64_t version;     /* in: what SHM_PUT_CAS (the value's) or SHM_PUT_PUBLISH (the lease's)
                             expects; out: the version written */
    uint64_t stale_ms;    /* the binding's, until it has made `expiry` of it */
    uint32_t value_len;
    uint8_t value_kind;
    uint8_t mode;         /* SHM_PUT_* */
    bool keep_expiry;     /* take the present entry's expiry word instead, where there is one */
} shm_put;

typedef struct shm_found { /* a key as the holder of its shard sees it */
    uint32_t slot;  /* SHM_NO_SLOT: absent */
    uint32_t lease; /* the slot of its lease, SHM_NO_SLOT: none */
    uint32_t free;  /* a slot that may take it, SHM_NO_SLOT: none */
    uint32_t free_bucket; /* how far out in the probe sequence `free` is */
    bool ghost;     /* its fingerprint was there: it was evicted not long ago */
    bool expired;
    shm_hit hit;    /* its entry, where slot is one */
} shm_found;

static inline bool shm_ghost_recent(const shm_op *op, uint64_t w)
{
    /* as many ghosts as there are entries: the sequence of evictions is their clock */
    uint64_t age = (RD(&op->sh->ghost_seq) - shm_word_pos(w)) & SHM_W_POS_MASK;
    return age <= RD(&op->sh->counts.entries);
}

static int shm_lookup(const shm_op *op, const shm_key *key, shm_found *f)
{
    const shm_view *v = op->v;
    uint64_t tag = shm_hash_tag(key->hash), oldest = 0;
    uint32_t home = shm_home_bucket(v, key->hash), limit = RD(&op->sh->probe_limit);
    uint32_t first = (uint32_t)(key->hash >> SHM_H_TAG_SHIFT) & (SHM_BUCKET_SLOTS - 1);
    uint32_t ghost_slot;

    f->slot = f->lease = f->free = SHM_NO_SLOT;
    f->free_bucket = 0;
    f->ghost = f->expired = false;
    if (limit < 1)
        limit = 1;
    for (uint32_t n = 0; n < v->max_probe; n++) {
        uint32_t b = shm_probe_bucket(v, home, n) * SHM_BUCKET_SLOTS;
        bool had_free = f->free != SHM_NO_SLOT;
        if (n >= limit && (had_free || f->slot != SHM_NO_SLOT))
            break; /* beyond the limit there are no keys, only room */
        ghost_slot = SHM_NO_SLOT;
        for (uint32_t i = 0; i < SHM_BUCKET_SLOTS; i++) {
            uint32_t s = b + ((first + i) & (SHM_BUCKET_SLOTS - 1));
            uint64_t w = RD(op->index + s), kind = w & SHM_W_KIND;
            shm_hit hit;
            if (kind == SHM_KIND_LIVE) {
                if ((w & SHM_W_TAG) != tag || n >= limit)
                    continue;
                if (!shm_parse_entry(v, op->sh, w, &hit))
                    return SHM_CORRUPT;
                if (hit.key_len != key->len || !shm_bytes_equal(hit.key, key->data, key->len))
                    continue;
                if (hit.key_kind == key->kind) {
                    f->slot = s;
                    f->hit = hit;
                    f->hit.slot = op->index + s;
                    f->expired = hit.expiry && shm_expiry_at(hit.expiry) <= op->now_ms;
                } else if (hit.key_kind == (key->kind | SHM_K_LEASE)) {
                    f->lease = s;
                }
            } else if (kind == SHM_KIND_GHOST) {
                if ((w & SHM_W_TAG) == tag && shm_ghost_recent(op, w)) {
                    f->ghost = true;
                    f->free = s; /* its own ghost's slot comes first */
                    f->free_bucket = n;
                    had_free = true;
                } else if (ghost_slot == SHM_NO_SLOT ||
                           ((oldest - shm_word_pos(w)) & SHM_W_POS_MASK) <
                               (1ull << (SHM_W_POS_BITS - 1))) {
                    ghost_slot = s;
                    oldest = shm_word_pos(w);
                }
            } else if (!had_free && f->free == SHM_NO_SLOT) {
                f->free = s;
                f->free_bucket = n;
            }
        }
        if (f->free == SHM_NO_SLOT && ghost_slot != SHM_NO_SLOT) {
            f->free = ghost_slot;
            f->free_bucket = n;
        }
    }
    return SHM_HIT;
}

/* The index is full where `key` would go: clear what has expired there, else (evict) what was
 * read least in its home bucket.  The slot that is free now, or SHM_NO_SLOT. */
static uint32_t shm_free_a_slot(shm_op *op, const shm_key *key, uint32_t *bucket)
{
    const shm_view *v = op->v;
    uint32_t home = shm_home_bucket(v, key->hash), victim = SHM_NO_SLOT, least = 4;
    shm_hit hit, victim_hit = {0};

    for (uint32_t n = 0; n < v->max_probe; n++) {
        uint32_t b = shm_probe_bucket(v, home, n) * SHM_BUCKET_SLOTS;
        for (uint32_t s = b; s < b + SHM_BUCKET_SLOTS; s++) {
            uint64_t w = RD(op->index + s);
            if (!shm_word_live(w) || s == op->protect || !shm_parse_entry(v, op->sh, w, &hit))
                continue;
            if (shm_reclaimable(op, &hit)) {
                shm_drop_kind(op, s, w,
                              (uint32_t)shm_entry_units(hit.key_len, hit.value_len,
                                                        hit.expiry != 0),
                              hit.key_kind, false);
                shm_count_reclaimed(op, &hit);
                *bucket = n;
                return s;
            }
            if (hit.key_kind & SHM_K_LEASE)
                continue;
            if (n == 0 && (w & SHM_W_VISITED) < least) {
                least = (uint32_t)(w & SHM_W_VISITED);
                victim = s;
                victim_hit = hit;
            }
        }
    }
    if (v->policy != SHM_POLICY_EVICT || victim == SHM_NO_SLOT)
        return SHM_NO_SLOT;
    shm_drop_kind(op, victim, victim_hit.word,
                  (uint32_t)shm_entry_units(victim_hit.key_len, victim_hit.value_len,
                                            victim_hit.expiry != 0),
                  victim_hit.key_kind, false);
    FAULT(evict_noted);
    shm_count(&op->sh->evictions, 1);
    *bucket = 0;
    return victim;
}

/* Which log a key of n units enters. */
static inline uint32_t shm_choose_log(const shm_op *op, const shm_found *f, uint32_t n)
{
    const shm_log_view *p = &op->v->log[SHM_PROBATION];
    if (p->units == 0 || n > p->units / 8)
        return SHM_MAIN;
    if (f->slot != SHM_NO_SLOT) /* overwriting tells nothing about reading: it stays where it is */
        return shm_word_log(f->hit.word);
    return f->ghost ? SHM_MAIN : SHM_PROBATION;
}

static inline void shm_write_entry(shm_op *op, uint8_t *p, const shm_key *key, const shm_put *put,
                                   uint64_t expiry, uint64_t version)
{
    uint64_t flags = key->kind | (expiry ? SHM_K_EXPIRES : 0u);
    WR((uint64_t *)p, (uint64_t)put->value_len | (uint64_t)key->len << 32 | flags << 48 |
                          (uint64_t)put->value_kind << 56);
    WR((uint64_t *)p + 1, version);
    p += sizeof(shm_entry);
    if (expiry) {
        WR((uint64_t *)p, expiry);
        p += 8;
    }
    shm_bytes_copy(p, key->data, key->len);
    FAULT(entry_half);
    shm_bytes_move(p + key->len, put->value, put->value_len);
    FAULT(entry_written);
    (void)op;
}

/* The entry of the lease that shm_lookup found, and what it says; `lease` is zero where flipped
 * bytes say nothing.  False: there is no such entry. */
static inline bool shm_lease_read(const shm_op *op, uint32_t slot, shm_hit *hit, shm_lease *lease)
{
    uint64_t w = slot == SHM_NO_SLOT ? 0 : RD(op->index + slot);

    memset(lease, 0, sizeof *lease);
    if (!shm_word_live(w) || !shm_parse_entry(op->v, op->sh, w, hit))
        return false;
    if (hit->value_kind == SHM_V_LEASE && hit->value_len == sizeof *lease)
        shm_bytes_copy(lease, hit->value, sizeof *lease);
    return true;
}

/* Is the lease of the key looked up still the one with that version?  If so, and the key's ghost
 * was there when it was taken, the value is treated as the ghost's. */
static inline bool shm_lease_is(const shm_op *op, shm_found *f, uint64_t version)
{
    shm_hit hit;
    shm_lease lease;

    if (!shm_lease_read(op, f->lease, &hit, &lease) || hit.version != version)
        return false;
    if (lease.deadline & SHM_LEASE_GHOST)
        f->ghost = true;
    return true;
}

static inline void shm_drop_lease(shm_op *op, uint32_t slot)
{
    uint64_t w = RD(op->index + slot);
    shm_hit hit;

    if (shm_word_live(w) && shm_parse_entry(op->v, op->sh, w, &hit))
        shm_drop(op, slot, w,
                 (uint32_t)shm_entry_units(hit.key_len, hit.value_len, hit.expiry != 0), true,
                 false);
}

/* Store a value.  `f` is what shm_lookup found just now.  put->value may point into the log at
 * f->hit.value (touch): it is found again if making room moves it.
 * SHM_HIT: stored; SHM_EXISTS, SHM_MISS, SHM_MISMATCH: the mode's condition does not hold;
 * SHM_FULL; SHM_CORRUPT.  Refusals leave the old value in place. */
static int shm_store_found(shm_op *op, const shm_key *key, shm_found *f, shm_put *put)
{
    const shm_view *v = op->v;
    shm_shard *sh = op->sh;
    bool present = f->slot != SHM_NO_SLOT && !f->expired, had_ghost = f->ghost;
    bool in_place = present && put->value == f->hit.value;
    uint64_t expiry = put->keep_expiry && present ? f->hit.expiry : put->expiry;
    uint64_t units = shm_entry_units(key->len, put->value_len, expiry != 0), pos, visited;
    uint64_t old_units = 0, version, word;
    shm_log_state st;
    shm_counts c;
    uint32_t l, n;
    uint8_t *p;
    int r;

    if (put->mode == SHM_PUT_ADD && present)
        return SHM_EXISTS;
    if ((put->mode == SHM_PUT_REPLACE || put->mode == SHM_PUT_CAS) && !present)
        return SHM_MISS;
    if (put->mode == SHM_PUT_CAS && f->hit.version != put->version)
        return SHM_MISMATCH;
    if (put->mode == SHM_PUT_PUBLISH && !shm_lease_is(op, f, put->version))
        return SHM_MISMATCH; /* INV-LEASE: somebody has written or removed the key since */
    if (units > v->max_entry_units)
        return SHM_FULL;
    if (shm_hidden_count(key->kind) == SHM_C_EPOCH &&
        RD(&sh->counts.leases) / SHM_C_EPOCH >= SHM_C_EPOCHS_MOST)
        return SHM_FULL; /* a million namespaces in one shard */
    if (shm_live_units(op) > (uint64_t)v->log[0].units + v->log[1].units)
        return SHM_CORRUPT; /* INV-COUNTS */
    n = (uint32_t)units;

    if (f->slot != SHM_NO_SLOT)
        old_units = shm_entry_units(f->hit.key_len, f->hit.value_len, f->hit.expiry != 0);
    op->protect = f->slot;
    op->spare = (uint32_t)old_units;
    if (v->policy == SHM_POLICY_KEEP &&
        shm_live_units(op) - old_units + units > v->budget_units) {
        shm_sweep_round(op);
        if (shm_live_units(op) - old_units + units > v->budget_units)
            return SHM_FULL;
    }
    l = shm_choose_log(op, f, n);
    r = shm_pace(op, l, n);
    if (r == SHM_HIT && l == SHM_PROBATION) /* what leaves probation enters main */
        r = shm_pace(op, SHM_MAIN, n);
    if (r == SHM_HIT)
        r = shm_make_room(op, l, n);
    if (r != SHM_HIT)
        return r;
    if (op->walked[0] + op->walked[1] > RD(&sh->worst_write_units))
        WR(&sh->worst_write_units, op->walked[0] + op->walked[1]);
    if (op->changed) {
        r = shm_lookup(op, key, f);
        if (r != SHM_HIT)
            return r;
        if (in_place) {
            if (f->slot == SHM_NO_SLOT || f->hit.value_len != put->value_len)
                return SHM_CORRUPT; /* its entry is protected: only flipped bytes do that */
            put->value = f->hit.value;
        }
    }
    if (f->slot == SHM_NO_SLOT && f->free == SHM_NO_SLOT) {
        f->free = shm_free_a_slot(op, key, &f->free_bucket);
        if (f->free == SHM_NO_SLOT)
            return SHM_FULL;
    }

    version = RD(&sh->version) + 1;
    WRR(&sh->version, version);
    FAULT(version_advanced);
    if (expiry) { /* before the slot: the bound may be too low, never too high */
        uint64_t at = shm_expiry_reclaim_at(expiry);
        if (at < RD(&sh->min_expiry))
            WR(&sh->min_expiry, at);
        if (at < RD(&sh->sweep_min))
            WR(&sh->sweep_min, at);
    }
    if (!shm_log_load(op, l, &st) || shm_log_need(op, l, &st, n) > st.free)
        return SHM_CORRUPT;
    pos = shm_log_reserve(op, l, &st, n);
    p = shm_log_base(v, sh, l) + (uint64_t)shm_pos_off(&v->log[l], pos) * SHM_UNIT;
    shm_write_entry(op, p, key, put, expiry, version);

    if (f->lease != SHM_NO_SLOT) /* whoever was initialising the key is overtaken: before the
                                    value is published, so that dying here revives no old one */
        shm_drop_lease(op, f->lease);
    c = shm_counts_load(op);
    c.live_units[l] += n;
    if (f->slot != SHM_NO_SLOT) {
        uint64_t old = RD(op->index + f->slot);
        c.live_units[shm_word_log(old)] -=
            (uint32_t)shm_entry_units(f->hit.key_len, f->hit.value_len, f->hit.expiry != 0);
        visited = old & SHM_W_VISITED;
    } else {
        uint32_t hidden = shm_hidden_count(key->kind);
        if (hidden)
            c.leases += hidden;
        else
            c.entries += 1;
        /* one log: its ghost gives a key the full count (docs/eviction.md, "start 3") */
        visited = had_ghost && v->log[SHM_PROBATION].units == 0 ? SHM_W_VISITED : 0;
        f->slot = f->free;
        if (f->free_bucket >= RD(&sh->probe_limit)) {
            WRR(&sh->probe_limit, f->free_bucket + 1);
            FAULT(probe_raised);
        }
        if (had_ghost)
            shm_count(&sh->ghost_hits, 1);
    }
    word = shm_make_word(shm_hash_tag(key->hash), l, pos, visited);
    shm_note_arm(op, f->slot, word, &c);
    shm_log_advance_tail(op, l, pos, n);
    shm_note_commit(op, f->slot, word, &c);
    if (!shm_hidden_count(key->kind))
        shm_count(&sh->sets, 1);
    else if (old_units && !(key->kind & SHM_K_LEASE))
        shm_invalidated(v); /* an epoch was replaced */
    shm_count(&sh->written_units, n);
    FAULT(stats_stored);
    put->version = version;
    return SHM_HIT;
}

static int shm_store(shm_op *op, const shm_key *key, shm_put *put)
{
    shm_found f;
    int r;

    shm_prefetch_logs(op);
    r = shm_lookup(op, key, &f);
    return r == SHM_HIT ? shm_store_found(op, key, &f, put) : r;
}

/* Remove a key; with `version` not 0 only if that is its version.
 * SHM_HIT: removed; SHM_MISS: it was absent (or expired); SHM_MISMATCH; SHM_CORRUPT. */
static int shm_remove(shm_op *op, const shm_key *key, uint64_t version)
{
    shm_found f;
    uint32_t units;
    int r = shm_lookup(op, key, &f);

    if (r != SHM_HIT)
        return r;
    FAULT(remove_begin);
    if (f.lease != SHM_NO_SLOT)
        shm_drop_lease(op, f.lease);
    if (f.slot == SHM_NO_SLOT)
        return SHM_MISS;
    units = (uint32_t)shm_entry_units(f.hit.key_len, f.hit.value_len, f.hit.expiry != 0);
    if (f.expired) {
        if (shm_expiry_reclaim_at(f.hit.expiry) <= op->now_ms || version == 0) {
            shm_drop_kind(op, f.slot, f.hit.word, units, f.hit.key_kind, false);
            shm_count(&op->sh->expirations, 1);
        }
        return SHM_MISS;
    }
    if (version && version != f.hit.version)
        return SHM_MISMATCH;
    shm_drop_kind(op, f.slot, f.hit.word, units, f.hit.key_kind, false);
    if (!shm_hidden_count(key->kind))
        shm_count(&op->sh->deletes, 1);
    FAULT(stats_stored);
    return SHM_HIT;
}

/* Add `delta` to a counter, or take it off (`down`: the lowest int64_t has no negative); where
 * absent, store initial +- delta with put->expiry.  put->value is not looked at.  *result: the new
 * value.  SHM_HIT, SHM_NOT_INT, SHM_OVERFLOW, SHM_FULL, SHM_CORRUPT. */
static int shm_count_by(shm_op *op, const shm_key *key, int64_t delta, bool down, int64_t initial,
                        shm_put *put, int64_t *result)
{
    shm_found f;
    int64_t old = initial;
    int r;

    shm_prefetch_logs(op);
    r = shm_lookup(op, key, &f);
    if (r != SHM_HIT)
        return r;
    if (f.slot != SHM_NO_SLOT && !f.expired) {
        if (f.hit.value_kind == SHM_V_BIGINT)
            return SHM_OVERFLOW;
        if (f.hit.value_kind != SHM_V_INT || f.hit.value_len != 8)
            return SHM_NOT_INT;
        shm_bytes_copy(&old, f.hit.value, 8);
    }
    if (down ? __builtin_sub_overflow(old, delta, result)
             : __builtin_add_overflow(old, delta, result))
        return SHM_OVERFLOW;
    put->value = result;
    put->value_len = 8;
    put->value_kind = SHM_V_INT;
    put->mode = SHM_PUT_SET;
    put->keep_expiry = true;
    return shm_store_found(op, key, &f, put);
}

/* shm_count_by, upwards. */
static inline int shm_incr(shm_op *op, const shm_key *key, int64_t delta, int64_t initial,
                           shm_put *put, int64_t *result)
{
    return shm_count_by(op, key, delta, false, initial, put, result);
}

/* Give a present key another expiry, by publishing a copy of its entry.  SHM_HIT, SHM_MISS,
 * SHM_FULL, SHM_CORRUPT. */
static int shm_touch(shm_op *op, const shm_key *key, uint64_t expiry)
{
    shm_found f;
    shm_put put = {0};
    int r = shm_lookup(op, key, &f);

    if (r != SHM_HIT)
        return r;
    if (f.slot == SHM_NO_SLOT || f.expired)
        return SHM_MISS;
    put.value = f.hit.value;
    put.value_len = f.hit.value_len;
    put.value_kind = f.hit.value_kind;
    put.expiry = expiry;
    put.mode = SHM_PUT_REPLACE;
    return shm_store_found(op, key, &f, &put);
}

/* Clear `n` slots from `from` on (leases too, so that initialisers under way are overtaken).
 * Returns the entries removed. */
static uint32_t shm_clear_slots(shm_op *op, uint32_t from, uint32_t n)
{
    const shm_view *v = op->v;
    uint32_t removed = 0;

    for (uint32_t s = from; s < v->slot_count && s - from < n; s++) {
        uint64_t w = RD(op->index + s);
        shm_hit hit;
        if (w == 0)
            continue;
        if (shm_word_live(w) && shm_parse_entry(v, op->sh, w, &hit)) {
            shm_drop_kind(op, s, w,
                          (uint32_t)shm_entry_units(hit.key_len, hit.value_len, hit.expiry != 0),
                          hit.key_kind, false);
            FAULT(clear_step);
            if (!shm_hidden_count(hit.key_kind)) {
                removed++;
                shm_count(&op->sh->deletes, 1);
            }
        } else {
            WRR(op->index + s, 0); /* a ghost, or flipped bytes */
        }
    }
    if (RD(&op->sh->counts.entries) == 0 && RD(&op->sh->counts.leases) == 0) {
        shm_log_restart(op, SHM_MAIN);
        shm_log_restart(op, SHM_PROBATION);
        WRR(&op->sh->probe_limit, 1u); /* nothing is out there any more */
        WR(&op->sh->min_expiry, ~0ull);
        WR(&op->sh->sweep_min, ~0ull);
    }
    return removed;
}

#endif
