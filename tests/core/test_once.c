/* test_once.c - leases (lease.h) and namespaces (epoch.h), one promise a case, in one process.
 *
 * Proves: one client at a time has a key's lease, and whoever writes or removes the key takes it
 * away and wakes; a lease is taken over only from the very version that somebody asked about;
 * leases are few, are never evicted, and do not pile up under epochs that have gone; what lies
 * below an epoch that has gone is stale in every shard, for good, and is reclaimed, however the
 * epoch went and whoever died in between; damaged paths and epochs are nobody's; and a look-up
 * whose entry is overwritten while it is copied says nothing wrong: `between` runs in the middle
 * of a copy, as another process would.
 */
#include "atomics.h"

static void (*between)(void);
static inline void interrupted(void)
{
    void (*now)(void) = between;
    between = 0;
    if (now)
        now();
}
#define shm_bytes_copy(to, from, n) (interrupted(), (shm_bytes_copy)(to, from, n))

#include "support.h"

#define E .policy = SHM_POLICY_EVICT
#define K .policy = SHM_POLICY_KEEP
#define MAKE(...)                                                                                  \
    seg_make(&s, &(seg_options){__VA_ARGS__});                                                     \
    v = &s.view;                                                                                   \
    sh = shm_shard_at(v, 0)
#define ME (1ull << SHM_L_CLIENT_SHIFT | 1)
#define OTHER (2ull << SHM_L_CLIENT_SHIFT | 1)

static seg s;
static const shm_view *v;
static shm_shard *sh;
static uint8_t buf[1 << 16];
static seg_value got;

static int get(uint64_t id, uint32_t key_len, uint64_t now)
{
    tkey t;
    return seg_get(v, &make_key(v, &t, id, key_len)->k, now, buf, sizeof buf, &got);
}
static int set(uint64_t id, uint32_t len, uint64_t expiry, uint64_t now)
{
    tkey t;
    return seg_set(v, make_key(v, &t, id, 16), len, id, expiry, now);
}
static int del(uint64_t id, uint64_t now)
{
    tkey t;
    return seg_remove(v, make_key(v, &t, id, 16), now);
}
static int take(const tkey *t, shm_claim *claim)
{
    return LOCKED(v, shard_of(v, t), 0, shm_lease_take(op, &t->k, claim));
}

static void leases_stay_until_the_key_is_written(void)
{
    tkey t;
    shm_lease lease = {.holder = 1ull << SHM_L_CLIENT_SHIFT};
    shm_put put = {.value = &lease,
                   .value_len = sizeof lease,
                   .value_kind = SHM_V_LEASE,
                   .mode = SHM_PUT_ADD};
    MAKE(E, .buckets = 64, .main_units = 1000, .probation_units = 100);
    make_key(v, &t, 1, 16);
    t.k.kind |= SHM_K_LEASE;
    CHECK_EQ(LOCKED(v, 0, 0, shm_store(op, &t.k, &put)), SHM_HIT);
    CHECK_EQ(LOCKED(v, 0, 0, shm_store(op, &t.k, &put)), SHM_EXISTS);
    CHECK_EQ(sh->counts.leases, 1);
    CHECK_EQ(get(1, 16, 0), SHM_MISS); /* no value */
    for (uint64_t i = 2; i < 3000; i++)
        CHECK_EQ(set(i, 60, 0, 0), SHM_HIT);
    CHECK_EQ(sh->counts.leases, 1); /* laps later: never evicted */
    CHECK_EQ(seg_get(v, &t.k, 0, buf, sizeof buf, &got), SHM_HIT);
    CHECK_EQ(seg_verify(v, "with a lease"), 0);
    CHECK_EQ(set(1, 60, 0, 0), SHM_HIT);
    CHECK_EQ(sh->counts.leases, 0);
    CHECK_EQ(LOCKED(v, 0, 0, shm_store(op, &t.k, &put)), SHM_HIT);
    CHECK_EQ(del(1, 0), SHM_HIT);
    CHECK_EQ(sh->counts.leases, 0);
    CHECK_EQ(seg_verify(v, "without it"), 0);
    seg_free(&s);
}

static void one_at_a_time_has_the_lease(void)
{
    tkey t;
    shm_claim mine = {.me = 1ull << SHM_L_CLIENT_SHIFT | 1}, other = {.me = 2ull << 32 | 1};
    shm_put put = {.value = "value", .value_len = 5, .value_kind = SHM_V_BYTES};
    uint64_t holder, version, wake;
    MAKE(E, .buckets = 64, .main_units = 1000, .probation_units = 100);
    make_key(v, &t, 1, 16);
    CHECK_EQ(shm_lease_find(v, &t.k, &holder, &version), SHM_MISS);
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_take(op, &t.k, &mine)), SHM_MISS);
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_take(op, &t.k, &other)), SHM_EXISTS);
    CHECK_EQ(other.version, mine.version);
    CHECK_EQ(shm_lease_find(v, &t.k, &holder, &version), SHM_HIT);
    CHECK_EQ(holder, mine.me);
    CHECK_EQ(version, mine.version);
    CHECK_EQ(sh->sets, 0); /* nobody has set anything */

    other.dead = mine.version; /* the kernel says so */
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_take(op, &t.k, &other)), SHM_MISS);
    CHECK(other.version != mine.version);
    put.mode = SHM_PUT_PUBLISH;
    put.version = mine.version; /* it lives after all: too late */
    CHECK_EQ(LOCKED(v, 0, 0, shm_store(op, &t.k, &put)), SHM_MISMATCH);
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_release(op, &t.k, mine.version)), SHM_MISS);
    CHECK_EQ(sh->counts.leases, 1);
    CHECK_EQ(seg_verify(v, "with a lease"), 0);

    wake = sh->wake;
    put.version = other.version;
    CHECK_EQ(LOCKED(v, 0, 0, shm_store(op, &t.k, &put)), SHM_HIT);
    CHECK(sh->wake >> 1 != wake >> 1);
    CHECK(shm_wake_due(sh));
    CHECK(!shm_wake_due(sh));
    CHECK_EQ(sh->counts.leases, 0);
    CHECK_EQ(sh->sets, 1);
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_take(op, &t.k, &mine)), SHM_HIT);
    mine.unfit = put.version; /* what is there cannot be decoded */
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_take(op, &t.k, &mine)), SHM_MISS);
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_release(op, &t.k, mine.version)), SHM_HIT);
    CHECK_EQ(seg_verify(v, "without it"), 0);
    seg_free(&s);
}

static void leases_are_seen_without_a_lock_and_dropped_by_version(void)
{
    shm_lease_seen seen[4], old;
    uint64_t dead = 3ull << SHM_L_CLIENT_SHIFT | 7;
    shm_claim claim = {.me = dead};
    uint32_t at = 0, n = 0, calls = 0, wake;
    tkey t;
    MAKE(K, .buckets = 64, .main_units = 4000);
    for (uint64_t i = 1; i <= 6; i++) {
        CHECK_EQ(set(100 + i, 60, 0, 0), SHM_HIT); /* not to be mistaken for leases */
        make_key(v, &t, i, 16);
        CHECK_EQ(LOCKED(v, 0, 0, shm_lease_take(op, &t.k, &claim)), SHM_MISS);
    }
    wake = sh->wake;
    while (at < v->slot_count) { /* no more slots, and no more leases at once, than asked for */
        uint32_t before = at, found = shm_leases_see(v, 0, &at, 64, seen, 4);
        CHECK(found <= 4 && at > before && at - before <= 64);
        for (uint32_t i = 0; i < found; i++)
            CHECK(seen[i].holder == dead && seen[i].slot >= before && seen[i].slot < at);
        n += found;
        calls++;
    }
    CHECK_EQ(n, 6);
    CHECK(calls >= v->slot_count / 64);

    at = 0;
    CHECK_EQ(shm_leases_see(v, 0, &at, v->slot_count, seen, 4), 4);
    old = seen[0];
    seen[0].version--; /* another lease of the same holder, once */
    seen[1].holder++;
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_drop(op, &seen[0])), false);
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_drop(op, &seen[1])), false);
    seen[2].slot = v->slot_count;
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_drop(op, &seen[2])), false);
    CHECK_EQ(sh->counts.leases, 6);
    CHECK_EQ(sh->wake, wake);
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_drop(op, &old)), true);
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_drop(op, &old)), false); /* it is gone */
    CHECK_EQ(sh->counts.leases, 5);
    CHECK(shm_wake_due(sh) && sh->wake != wake);
    CHECK_EQ(seg_verify(v, "without one of the dead's leases"), 0);
    seg_free(&s);
}

static void leases_are_few(void)
{
    shm_claim claim = {.me = 1ull << SHM_L_CLIENT_SHIFT | 1};
    uint32_t taken = 0;
    MAKE(K, .buckets = 64, .main_units = 4000);
    for (uint64_t i = 1; i < 500; i++) {
        tkey t;
        make_key(v, &t, i, 16);
        if (LOCKED(v, 0, 0, shm_lease_take(op, &t.k, &claim)) == SHM_MISS)
            taken++;
    }
    CHECK_EQ(taken, shm_lease_most(v));
    CHECK_EQ(sh->counts.leases, taken);
    CHECK_EQ(sh->counts.entries, 0);
    CHECK_EQ(seg_verify(v, "all leases taken"), 0);
    seg_free(&s);
}

static void a_ghost_outlives_a_lease(void)
{
    shm_claim claim = {.me = 1ull << SHM_L_CLIENT_SHIFT | 1};
    shm_put put = {.value = "v", .value_len = 1, .value_kind = SHM_V_BYTES};
    shm_found f;
    shm_op o;
    tkey t;
    MAKE(E, .buckets = 64, .main_units = 1000, .probation_units = 100);
    for (uint64_t i = 1; i < 3000; i++)
        CHECK_EQ(set(i, 60, 0, 0), SHM_HIT);
    shm_op_begin(&o, v, 0, 0);
    for (uint64_t i = 2999;; i--) { /* the youngest that was evicted and left a ghost */
        CHECK(i > 0);
        make_key(v, &t, i, 16);
        CHECK_EQ(shm_lookup(&o, &t.k, &f), SHM_HIT);
        if (f.slot == SHM_NO_SLOT && f.ghost)
            break;
    }
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_take(op, &t.k, &claim)), SHM_MISS);
    put.mode = SHM_PUT_PUBLISH;
    put.version = claim.version;
    CHECK_EQ(LOCKED(v, 0, 0, shm_store(op, &t.k, &put)), SHM_HIT);
    CHECK_EQ(shm_lookup(&o, &t.k, &f), SHM_HIT);
    CHECK_EQ(shm_word_log(f.hit.word), SHM_MAIN);
    seg_free(&s);
}

static void a_lease_goes_only_to_who_may_have_it(void)
{
    tkey t;
    shm_claim mine = {.me = ME}, other = {.me = OTHER};
    uint64_t holder, version;
    uint32_t wake;
    MAKE(K, .buckets = 64, .main_units = 1000);
    make_key(v, &t, 1, 16);
    CHECK_EQ(set(1, 60, shm_expiry_word(50, 100), 0), SHM_HIT);
    CHECK_EQ(take(&t, &mine), SHM_HIT); /* it has a value */
    CHECK_EQ(LOCKED(v, 0, 50, shm_lease_take(op, &t.k, &mine)), SHM_MISS); /* which expired */
    other.dead = mine.version + 1;
    CHECK_EQ(LOCKED(v, 0, 50, shm_lease_take(op, &t.k, &other)), SHM_EXISTS); /* another one */
    CHECK_EQ(LOCKED(v, 0, 50, shm_lease_release(op, &t.k, mine.version + 1)), SHM_MISS);
    CHECK_EQ(sh->counts.leases, 1);
    CHECK_EQ(shm_lease_find(v, &t.k, &holder, &version), SHM_HIT);
    CHECK_EQ(version, mine.version);
    CHECK(!shm_wake_due(sh));
    wake = sh->wake;
    CHECK_EQ(LOCKED(v, 0, 50, shm_lease_release(op, &t.k, mine.version)), SHM_HIT);
    CHECK(sh->wake >> 1 != wake >> 1); /* who waits looks again */
    CHECK(shm_wake_due(sh));
    CHECK_EQ(sh->wake & 1u, 0);
    CHECK_EQ(LOCKED(v, 0, 50, shm_lease_take(op, &t.k, &mine)), SHM_MISS);
    wake = sh->wake;
    CHECK_EQ(LOCKED(v, 0, 50, (shm_clear_slots(op, 0, v->slot_count), 0)), 0);
    CHECK_EQ(sh->counts.leases, 0); /* whoever initialises meanwhile is overtaken */
    CHECK(sh->wake >> 1 != wake >> 1);
    seg_free(&s);
}

static tkey racing;
static void another_takes_the_lease_and_its_memory(void)
{
    uint64_t holder, version;
    shm_claim other = {.me = OTHER};
    CHECK_EQ(shm_lease_find(v, &racing.k, &holder, &version), SHM_HIT);
    CHECK_EQ(LOCKED(v, 0, 0, shm_lease_release(op, &racing.k, version)), SHM_HIT);
    for (uint64_t i = 2; i < 200; i++)
        set(i, 60, 0, 0);
    CHECK_EQ(take(&racing, &other), SHM_MISS);
}
static void a_lease_that_changes_is_read_again(void)
{
    shm_claim mine = {.me = ME};
    uint64_t holder = 0, version;
    MAKE(E, .buckets = 64, .main_units = 500);
    make_key(v, &racing, 1, 16);
    CHECK_EQ(take(&racing, &mine), SHM_MISS);
    between = another_takes_the_lease_and_its_memory;
    CHECK_EQ(shm_lease_find(v, &racing.k, &holder, &version), SHM_HIT);
    CHECK(between == NULL && holder == OTHER && version != mine.version);
    seg_free(&s);
}

/* ------------------------------------------------------------------------------ namespaces */
static const uint8_t path[] = "\2\0ab\3\0cde"; /* ab / cde */
#define OUTER 4u
#define INNER 9u

static shm_key epoch_key(uint32_t n, uint64_t above)
{
    static uint8_t room[SHM_MAX_PATH + 10];
    return shm_epoch_key(v, room, path, n, above);
}
static int set_epoch(uint32_t n, uint64_t above, uint64_t epoch)
{
    shm_key key = epoch_key(n, above);
    shm_put put = {.value = &epoch, .value_len = 8, .value_kind = SHM_V_INT};
    return LOCKED(v, shm_shard_of(v, key.hash), 0, shm_store(op, &key, &put));
}
static int drop_epoch(uint32_t n, uint64_t above)
{
    shm_key key = epoch_key(n, above);
    return LOCKED(v, shm_shard_of(v, key.hash), 0, shm_remove(op, &key, 0));
}
static const tkey *space_key(tkey *t, uint32_t n, uint64_t epoch, uint64_t id)
{
    uint16_t length = (uint16_t)n;
    t->id = id;
    memcpy(t->bytes, &length, 2);
    memcpy(t->bytes + 2, path, n);
    memcpy(t->bytes + 2 + n, &epoch, 8);
    memcpy(t->bytes + 10 + n, &id, 8);
    t->k = (shm_key){.data = t->bytes, .len = n + 18, .kind = SHM_K_NAMESPACED | SHM_K_BYTES};
    t->k.hash = shm_key_hash(v->seed, t->k.kind, t->bytes, t->k.len);
    return t;
}
static int set_in(uint32_t n, uint64_t epoch, uint64_t id)
{
    tkey t;
    return seg_set(v, space_key(&t, n, epoch, id), 60, id, 0, 0);
}
static int get_in(uint32_t n, uint64_t epoch, uint64_t id)
{
    tkey t;
    return seg_get(v, &space_key(&t, n, epoch, id)->k, 0, buf, sizeof buf, &got);
}
static void sweep_all(void)
{
    for (uint32_t i = 0; i < v->shard_count; i++)
        LOCKED(v, i, 0, (int)shm_sweep_round(op));
}
static uint32_t entries(void)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < v->shard_count; i++)
        n += shm_shard_at(v, i)->counts.entries;
    return n;
}
static uint32_t epochs(void)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < v->shard_count; i++)
        n += shm_shard_at(v, i)->counts.leases / SHM_C_EPOCH;
    return n;
}

static void an_epoch_is_found_level_by_level(void)
{
    uint64_t epoch;
    MAKE(K, .shards = 4, .buckets = 16, .main_units = 500);
    CHECK_EQ(shm_epoch_of_path(v, path, INNER, &epoch), SHM_MISS);
    CHECK_EQ(set_epoch(OUTER, 0, 11), SHM_HIT);
    CHECK_EQ(shm_epoch_of_path(v, path, INNER, &epoch), SHM_MISS);
    CHECK_EQ(set_epoch(INNER, 11, 13), SHM_HIT);
    CHECK_EQ(set_epoch(INNER, 12, 14), SHM_HIT); /* of another life of the outer one */
    CHECK_EQ(shm_epoch_of_path(v, path, OUTER, &epoch), SHM_HIT);
    CHECK_EQ(epoch, 11);
    CHECK_EQ(shm_epoch_of_path(v, path, INNER, &epoch), SHM_HIT);
    CHECK_EQ(epoch, 13);
    CHECK_EQ(epochs(), 3);
    CHECK_EQ(entries(), 0); /* nobody has stored anything */
    CHECK_EQ(drop_epoch(OUTER, 0), SHM_HIT);
    CHECK_EQ(shm_epoch_of_path(v, path, INNER, &epoch), SHM_MISS);
    CHECK_EQ(set_epoch(OUTER, 0, 12), SHM_HIT);
    CHECK_EQ(shm_epoch_of_path(v, path, INNER, &epoch), SHM_HIT);
    CHECK_EQ(epoch, 14);
    CHECK_EQ(seg_verify(v, "with epochs"), 0);
    seg_free(&s);
}

static void damaged_paths_and_epochs_are_nobodys(void)
{
    uint64_t epoch;
    shm_key key;
    shm_hit hit;
    shm_put put = {.value = "12345678", .value_len = 8, .value_kind = SHM_V_BYTES};
    MAKE(K, .shards = 1, .buckets = 16, .main_units = 500);
    CHECK_EQ(set_epoch(OUTER, 0, 11), SHM_HIT);
    for (uint32_t n = 1; n < INNER; n++) { /* lengths that lead past the end of the path */
        uint8_t *cut = malloc(n);
        memcpy(cut, path, n);
        CHECK_EQ(shm_epoch_of_path(v, cut, n, &epoch), n == OUTER ? SHM_HIT : SHM_CORRUPT);
        free(cut);
    }
    key = epoch_key(OUTER, 0);
    CHECK_EQ(LOCKED(v, 0, 0, shm_store(op, &key, &put)), SHM_HIT);
    CHECK_EQ(shm_epoch_find(v, &key, &hit, &epoch), SHM_HIT);
    CHECK_EQ(epoch, 0); /* its bytes are none */
    seg_free(&s);
}

static void a_key_that_is_shorter_than_its_path_is_kept(void)
{
    static const uint8_t bytes[10] = "\24\0\2\0ab\16\0xx"; /* a path of 20 bytes, it says */
    shm_key key = {.data = bytes, .len = sizeof bytes, .kind = SHM_K_NAMESPACED | SHM_K_BYTES};
    shm_put put = {.value = "would be the rest of it", .value_len = 23, .value_kind = SHM_V_BYTES};
    MAKE(K, .shards = 1, .buckets = 16, .main_units = 500);
    key.hash = shm_key_hash(v->seed, key.kind, key.data, key.len);
    CHECK_EQ(LOCKED(v, 0, 0, shm_store(op, &key, &put)), SHM_HIT);
    shm_invalidated(v);
    sweep_all();
    CHECK_EQ(entries(), 1);
    seg_free(&s);
}

static void what_lay_below_an_epoch_is_reclaimed(void)
{
    MAKE(K, .shards = 4, .buckets = 16, .main_units = 800);
    CHECK_EQ(set_epoch(OUTER, 0, 11) + set_epoch(INNER, 11, 13), 2 * SHM_HIT);
    for (uint64_t i = 0; i < 20; i++)
        CHECK_EQ(set_in(OUTER, 11, i) + set_in(INNER, 13, i) + set(i, 60, 0, 0), 3 * SHM_HIT);
    sweep_all();
    CHECK_EQ(entries(), 60);
    CHECK_EQ(epochs(), 2);
    CHECK_EQ(drop_epoch(INNER, 11), SHM_HIT);
    sweep_all();
    CHECK_EQ(entries(), 40);
    CHECK_EQ(set_epoch(INNER, 11, 15), SHM_HIT);
    for (uint64_t i = 0; i < 20; i++) {
        CHECK_EQ(get_in(INNER, 15, i), SHM_MISS); /* none comes back */
        CHECK_EQ(set_in(INNER, 15, i), SHM_HIT);
    }
    CHECK_EQ(set_epoch(OUTER, 0, 17), SHM_HIT); /* replaced, as one with damaged bytes is */
    sweep_all();
    CHECK_EQ(entries(), 20);
    CHECK_EQ(epochs(), 1); /* the inner one hung on it */
    for (uint64_t i = 0; i < 20; i++)
        CHECK_EQ(get(i, 16, 0), SHM_HIT);
    CHECK_EQ(seg_verify(v, "after two invalidations"), 0);
    seg_free(&s);
}

static void the_head_of_a_log_reclaims_as_well(void)
{
    MAKE(K, .shards = 1, .buckets = 32, .main_units = 800);
    CHECK_EQ(set_epoch(OUTER, 0, 11), SHM_HIT);
    for (uint64_t i = 0; i < 40; i++)
        CHECK_EQ(set_in(OUTER, 11, i), SHM_HIT);
    CHECK_EQ(set_epoch(INNER, 11, 13), SHM_HIT);
    CHECK_EQ(set_in(INNER, 13, 1), SHM_HIT);
    CHECK_EQ(drop_epoch(OUTER, 0), SHM_HIT);
    WR(&sh->swept_invalidation, RD(shm_invalidations(v))); /* no sweep would look */
    for (uint64_t i = 0; i < 2000; i++)
        CHECK_EQ(set(i % 40, 60, 0, 0), SHM_HIT);
    CHECK_EQ(sh->counts.entries, 40);
    CHECK_EQ(epochs(), 0);
    CHECK_EQ(seg_verify(v, "after laps"), 0);
    seg_free(&s);
}

/* Each way in which an epoch goes makes every shard sweep once more. */
static void an_epoch_that_goes_is_counted(void)
{
    uint64_t before;
    shm_view successor;
    MAKE(E, .shards = 1, .buckets = 32, .main_units = 400);
#define COUNTED(...)                                                                               \
    before = RD(shm_invalidations(v));                                                             \
    __VA_ARGS__;                                                                                   \
    CHECK(RD(shm_invalidations(v)) != before, "not counted: " #__VA_ARGS__)
    set_epoch(OUTER, 0, 11);
    COUNTED(CHECK_EQ(drop_epoch(OUTER, 0), SHM_HIT));
    set_epoch(OUTER, 0, 11);
    COUNTED(CHECK_EQ(set_epoch(OUTER, 0, 13), SHM_HIT));
    COUNTED(LOCKED(v, 0, 0, (int)shm_clear_slots(op, 0, v->slot_count)));
    CHECK_EQ(epochs(), 0);
    set_epoch(OUTER, 0, 11);
    COUNTED(for (uint64_t i = 0; epochs() && i < 1000; i++) set(i, 60, 0, 0)); /* evicted */
    CHECK_EQ(epochs(), 0);
    seg_view(&s, &successor, 1, 2);
    seg_mark_dead(v->me); /* who dies in the shard may have removed one without a word */
    CHECK(shm_lock_try(&sh->holder, v->me));
    COUNTED(seg_lock(&successor, 0));
    seg_unlock(&successor, 0);
    seg_free(&s);
}

static void a_sweep_under_way_begins_again(void)
{
    MAKE(K, .shards = 1, .buckets = 16, .main_units = 800);
    CHECK_EQ(set_epoch(OUTER, 0, 11), SHM_HIT);
    for (uint64_t i = 0; i < 40; i++)
        CHECK_EQ(set_in(OUTER, 11, i), SHM_HIT);
    CHECK_EQ(set_epoch(INNER, 11, 13), SHM_HIT);
    CHECK_EQ(drop_epoch(INNER, 11), SHM_HIT); /* something to sweep for */
    LOCKED(v, 0, 0, (int)shm_sweep(op, v->slot_count / 2));
    CHECK_EQ(drop_epoch(OUTER, 0), SHM_HIT);
    LOCKED(v, 0, 0, (int)shm_sweep(op, v->slot_count - v->slot_count / 2));
    CHECK(sh->counts.entries > 0, "the first half was looked at before");
    CHECK(LOCKED(v, 0, 0, shm_sweep_due(op)), "and nobody would look at it again");
    sweep_all();
    CHECK_EQ(sh->counts.entries, 0);
    CHECK(!LOCKED(v, 0, 0, shm_sweep_due(op)));
    seg_free(&s);
}

static void leases_below_a_lost_epoch_make_room(void)
{
    shm_claim claim = {.me = ME};
    tkey t;
    MAKE(K, .shards = 1, .buckets = 64, .main_units = 4000);
    CHECK_EQ(set_epoch(OUTER, 0, 11), SHM_HIT);
    for (uint64_t i = 0; i < shm_lease_most(v); i++)
        CHECK_EQ(take(space_key(&t, OUTER, 11, i), &claim), SHM_MISS);
    make_key(v, &t, 1, 16);
    CHECK_EQ(take(&t, &claim), SHM_FULL);
    CHECK_EQ(drop_epoch(OUTER, 0), SHM_HIT);
    CHECK_EQ(take(&t, &claim), SHM_MISS); /* what the dead have left there is in nobody's way */
    CHECK_EQ(sh->counts.leases, 1);
    CHECK_EQ(seg_verify(v, "with one lease"), 0);
    seg_free(&s);
}

static void another_replaces_the_epoch_and_its_memory(void)
{
    CHECK_EQ(drop_epoch(OUTER, 0), SHM_HIT);
    for (uint64_t i = 2; i < 200; i++)
        set(i, 60, 0, 0);
    CHECK_EQ(set_epoch(OUTER, 0, 13), SHM_HIT);
}
static void an_epoch_that_changes_is_read_again(void)
{
    uint64_t epoch;
    shm_hit hit;
    uint8_t room[SHM_MAX_PATH + 10];
    shm_key key;
    MAKE(E, .buckets = 64, .main_units = 500);
    key = shm_epoch_key(v, room, path, OUTER, 0);
    CHECK_EQ(set_epoch(OUTER, 0, 11), SHM_HIT);
    between = another_replaces_the_epoch_and_its_memory;
    CHECK_EQ(shm_epoch_find(v, &key, &hit, &epoch), SHM_HIT);
    CHECK(between == NULL);
    CHECK_EQ(epoch, 13);
    seg_free(&s);
}

int main(void)
{
    RUN(leases_stay_until_the_key_is_written);
    RUN(one_at_a_time_has_the_lease);
    RUN(a_lease_goes_only_to_who_may_have_it);
    RUN(a_lease_that_changes_is_read_again);
    RUN(leases_are_seen_without_a_lock_and_dropped_by_version);
    RUN(leases_are_few);
    RUN(a_ghost_outlives_a_lease);
    RUN(an_epoch_is_found_level_by_level);
    RUN(damaged_paths_and_epochs_are_nobodys);
    RUN(a_key_that_is_shorter_than_its_path_is_kept);
    RUN(what_lay_below_an_epoch_is_reclaimed);
    RUN(the_head_of_a_log_reclaims_as_well);
    RUN(an_epoch_that_goes_is_counted);
    RUN(a_sweep_under_way_begins_again);
    RUN(leases_below_a_lost_epoch_make_room);
    RUN(an_epoch_that_changes_is_read_again);
    return report("test_once");
}
