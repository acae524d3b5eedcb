/* verify.h - is a shard sound?  Walks index and log and compares them.  Caller holds the shard.
 *
 * Every invariant that the comments name is checked here: by name, so that a finding can be
 * looked up.  Costs O(slots + entries); changes nothing.
 */
#ifndef SHMCACHE_VERIFY_H
#define SHMCACHE_VERIFY_H

#include "lease.h"
#include "lock.h"

#define SHM_INVARIANTS(X)                                                                        \
    X(INV_LOG_CHAIN, "INV-LOG-CHAIN", "from head to tail a log is a chain of whole entries")     \
    X(INV_SLOT_ENTRY, "INV-SLOT-ENTRY", "a live slot names an entry between head and tail")      \
    X(INV_HOME, "INV-HOME", "a key lies within the probe limit of its home, under its tag")      \
    X(INV_ONE_SLOT, "INV-ONE-SLOT", "a key has exactly one slot")                                \
    X(INV_COUNTS, "INV-COUNTS", "entries, leases and live units are what the index says")        \
    X(INV_NOTE, "INV-NOTE", "outside a change the note is clear")                                \
    X(INV_GAP, "INV-GAP", "the free room takes a move of the largest entry")                     \
    X(INV_MIN_EXPIRY, "INV-MIN-EXPIRY", "no live entry expires before min_expiry")               \
    X(INV_LEASE, "INV-LEASE", "a lease names a client, and there are few of them")               \
    X(INV_GEOMETRY, "INV-GEOMETRY", "positions and limits lie within the geometry")

#define SHM_INV_ENUM(id, name, text) SHM_##id,
enum { SHM_INVARIANTS(SHM_INV_ENUM) SHM_INV_COUNT };

#define SHM_FINDINGS 32

typedef struct shm_finding {
    uint32_t invariant;
    uint32_t slot; /* SHM_NO_SLOT: not about a slot */
    uint64_t expected, found;
} shm_finding;

typedef struct shm_findings {
    uint32_t count; /* of all, also of those that did not fit */
    shm_finding at[SHM_FINDINGS];
} shm_findings;

static void shm_found_broken(shm_findings *out, uint32_t invariant, uint32_t slot,
                             uint64_t expected, uint64_t found)
{
    if (out->count < SHM_FINDINGS) {
        shm_finding *f = &out->at[out->count];
        f->invariant = invariant;
        f->slot = slot;
        f->expected = expected;
        f->found = found;
    }
    out->count++;
}

/* Walk log `l` from head to tail; count the entries that a slot names. */
static uint32_t shm_verify_log(shm_op *op, uint32_t l, shm_findings *out)
{
    const shm_view *v = op->v;
    const shm_log_view *g = &v->log[l];
    shm_log_state st;
    uint64_t pos;
    uint32_t left, named = 0, spare = 0;

    if (g->units == 0)
        return 0;
    if (!shm_log_load(op, l, &st)) {
        shm_found_broken(out, SHM_INV_GEOMETRY, SHM_NO_SLOT, l, RD(&op->sh->head[l]));
        return 0;
    }
    pos = st.head;
    left = st.used;
    while (left > 0) {
        uint32_t off = shm_pos_off(g, pos);
        const uint8_t *p = shm_log_base(v, op->sh, l) + (uint64_t)off * SHM_UNIT;
        uint64_t first = RD((const uint64_t *)p), units;
        shm_hit hit;
        if ((uint8_t)(first >> 48) & SHM_K_PAD) {
            units = (uint32_t)first;
            if (units != g->units - off || units > left) {
                shm_found_broken(out, SHM_INV_LOG_CHAIN, SHM_NO_SLOT, g->units - off, units);
                return named;
            }
            spare += (uint32_t)units; /* the lap's pad is paid */
        } else {
            if (!shm_parse_entry(v, op->sh, shm_make_word(0, l, pos, 0), &hit)) {
                shm_found_broken(out, SHM_INV_LOG_CHAIN, SHM_NO_SLOT, pos, first);
                return named;
            }
            units = shm_entry_units(hit.key_len, hit.value_len, hit.expiry != 0);
            if (units > left) {
                shm_found_broken(out, SHM_INV_LOG_CHAIN, SHM_NO_SLOT, left, units);
                return named;
            }
            if (shm_slot_of_entry(op, shm_key_hash(v->seed, hit.key_kind, hit.key, hit.key_len), l,
                                  pos) != SHM_NO_SLOT)
                named++;
            else if (named == 0)
                spare += (uint32_t)units; /* dead at the head: free as soon as it is passed */
        }
        pos = shm_pos_advance(g, pos, (uint32_t)units);
        left -= (uint32_t)units;
    }
    if ((v->policy == SHM_POLICY_KEEP ? st.gap : st.largest) > st.free + spare)
        shm_found_broken(out, SHM_INV_GAP, SHM_NO_SLOT, st.gap, st.free);
    return named;
}

static void shm_verify_slot(shm_op *op, uint32_t s, uint64_t w, shm_counts *sum, shm_findings *out)
{
    const shm_view *v = op->v;
    uint32_t l = shm_word_log(w), n, limit = RD(&op->sh->probe_limit);
    shm_log_state st;
    shm_hit hit;
    shm_key key;
    shm_found f;
    uint64_t units, age;

    if (v->log[l].units == 0 || !shm_log_load(op, l, &st) ||
        !shm_parse_entry(v, op->sh, w, &hit)) {
        shm_found_broken(out, SHM_INV_SLOT_ENTRY, s, 0, w);
        return;
    }
    units = shm_entry_units(hit.key_len, hit.value_len, hit.expiry != 0);
    age = (shm_word_pos(w) - (st.head & SHM_W_POS_MASK)) & SHM_W_POS_MASK;
    if (age >= ((st.tail - st.head) & SHM_W_POS_MASK)) {
        shm_found_broken(out, SHM_INV_SLOT_ENTRY, s, st.head, w);
        return;
    }
    key.data = hit.key;
    key.len = hit.key_len;
    key.kind = hit.key_kind;
    key.hash = shm_key_hash(v->seed, hit.key_kind, hit.key, hit.key_len);
    for (n = 0; n < v->max_probe && n < limit; n++)
        if (shm_probe_bucket(v, shm_home_bucket(v, key.hash), n) == s / SHM_BUCKET_SLOTS)
            break;
    if (n >= limit || n >= v->max_probe || shm_hash_tag(key.hash) != (w & SHM_W_TAG)) {
        shm_found_broken(out, SHM_INV_HOME, s, key.hash, w);
        return;
    }
    if (shm_lookup(op, &key, &f) != SHM_HIT || f.slot != s)
        shm_found_broken(out, SHM_INV_ONE_SLOT, s, s, f.slot);
    if (hit.expiry && !(hit.key_kind & SHM_K_LEASE) &&
        shm_expiry_reclaim_at(hit.expiry) < RD(&op->sh->min_expiry))
        shm_found_broken(out, SHM_INV_MIN_EXPIRY, s, RD(&op->sh->min_expiry),
                         shm_expiry_reclaim_at(hit.expiry));
    sum->live_units[l] += (uint32_t)units;
    if (hit.key_kind & SHM_K_LEASE) {
        shm_lease lease;
        if (!shm_lease_read(op, s, &hit, &lease) ||
            !shm_lock_word_ok(lease.holder, v->client_count))
            shm_found_broken(out, SHM_INV_LEASE, s, v->client_count, lease.holder);
        sum->leases++;
    } else if (shm_hidden_count(hit.key_kind)) {
        sum->leases += SHM_C_EPOCH;
    } else {
        sum->entries++;
    }
}

static void shm_verify_shard(shm_op *op, shm_findings *out)
{
    const shm_view *v = op->v;
    shm_counts sum = {0}, c = shm_counts_load(op);
    uint32_t named, live;

    if (RD(&op->sh->note.armed))
        shm_found_broken(out, SHM_INV_NOTE, RD(&op->sh->note.slot), 0, 1);
    if (RD(&op->sh->probe_limit) < 1 || RD(&op->sh->probe_limit) > v->max_probe)
        shm_found_broken(out, SHM_INV_GEOMETRY, SHM_NO_SLOT, v->max_probe,
                         RD(&op->sh->probe_limit));
    for (uint32_t s = 0; s < v->slot_count; s++) {
        uint64_t w = RD(op->index + s);
        if (shm_word_live(w))
            shm_verify_slot(op, s, w, &sum, out);
    }
    named = shm_verify_log(op, SHM_MAIN, out) + shm_verify_log(op, SHM_PROBATION, out);
    live = sum.entries + (sum.leases & SHM_C_LEASES) + sum.leases / SHM_C_EPOCH;
    if (named != live)
        shm_found_broken(out, SHM_INV_LOG_CHAIN, SHM_NO_SLOT, live, named);
    if (sum.entries != c.entries)
        shm_found_broken(out, SHM_INV_COUNTS, SHM_NO_SLOT, sum.entries, c.entries);
    if ((sum.leases & SHM_C_LEASES) > shm_lease_most(v))
        shm_found_broken(out, SHM_INV_LEASE, SHM_NO_SLOT, shm_lease_most(v),
                         sum.leases & SHM_C_LEASES);
    if (sum.leases != c.leases)
        shm_found_broken(out, SHM_INV_COUNTS, SHM_NO_SLOT, sum.leases, c.leases);
    for (uint32_t l = 0; l < 2; l++)
        if (sum.live_units[l] != c.live_units[l])
            shm_found_broken(out, SHM_INV_COUNTS, SHM_NO_SLOT, sum.live_units[l], c.live_units[l]);
}

#endif
