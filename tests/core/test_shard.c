/* test_shard.c - what a shard promises, one promise a case, in one process.
 *
 * Proves: entries and pads that meet the end of the log exactly; full buckets spill (keep) or
 * evict (evict) and are found again; CacheFull leaves everything as it was; 80% of a log can be
 * live under `keep` whatever is overwritten; overwriting and deleting evict nobody while what is
 * live fits the budget (INV-BUDGET); expiry, stale and the sweep; ghosts, visited bits, counters,
 * touch; and that a segment means the same at every address.
 */
#include <fcntl.h>

#include "support.h"

#define E .policy = SHM_POLICY_EVICT
#define K .policy = SHM_POLICY_KEEP
#define MAKE(...)                                                                                  \
    seg_make(&s, &(seg_options){__VA_ARGS__});                                                     \
    v = &s.view;                                                                                   \
    sh = shm_shard_at(v, 0)

static seg s;
static const shm_view *v;
static shm_shard *sh;
static uint8_t buf[1 << 16];
static seg_value got;

static int get(uint64_t id, uint32_t key_len, uint64_t now)
{
    tkey t;
    uint64_t seq = 0;
    int r = seg_get(v, &make_key(v, &t, id, key_len)->k, now, buf, sizeof buf, &got);
    if (r == SHM_HIT && got.kind == SHM_V_BYTES)
        CHECK(check_value(buf, got.len, id, &seq), "key %llu: a wrong value",
              (unsigned long long)id);
    return r;
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
static uint32_t live(void)
{
    return sh->counts.live_units[0] + sh->counts.live_units[1];
}
static uint32_t len_of(uint32_t units)
{
    return units * SHM_UNIT - sizeof(shm_entry) - 16;
}

/* The id of a key of 16 bytes whose home is bucket b, from `from` on. */
static uint64_t id_at_home(uint32_t b, uint64_t from)
{
    tkey t;
    while (shm_home_bucket(v, make_key(v, &t, from, 16)->k.hash) != b)
        from++;
    return from;
}

static void entries_meet_the_end_of_the_log(void)
{
    for (uint32_t l = 0; l < 2; l++)
        for (uint32_t rest = 1; rest <= 20; rest++)
            for (uint32_t n = 3; n <= 20; n++) {
                uint64_t lap, tail;
                MAKE(E, .buckets = 4, .main_units = 160, .probation_units = 161);
                lap = 5ull << v->log[l].off_bits;
                sh->head[l] = sh->tail[l] = lap | (v->log[l].units - rest);
                if (l == SHM_MAIN) { /* its ghost sends a key straight to main */
                    tkey t;
                    make_key(v, &t, 1, 16);
                    shm_index_of(v, sh)[shm_home_bucket(v, t.k.hash) * 8] =
                        SHM_KIND_GHOST | shm_hash_tag(t.k.hash);
                }
                CHECK_EQ(set(1, len_of(n), 0, 0), SHM_HIT);
                tail = n < rest    ? lap | (v->log[l].units - rest + n)
                       : n == rest ? lap + (1ull << v->log[l].off_bits)
                                   : (lap + (1ull << v->log[l].off_bits)) | n;
                CHECK(sh->tail[l] == tail, "log %u, %u units with %u left: tail %#llx", l, n, rest,
                      (unsigned long long)sh->tail[l]);
                CHECK_EQ(get(1, 16, 0), SHM_HIT);
                CHECK_EQ(shm_word_log(got.word), l);
                CHECK_EQ(got.len, len_of(n));
                CHECK_EQ(seg_verify(v, "at the end of the log"), 0);
                CHECK_EQ(set(1, 40, 0, 0), SHM_HIT); /* and on over the boundary */
                CHECK_EQ(set(2, 40, 0, 0), SHM_HIT);
                CHECK_EQ(get(1, 16, 0) + get(2, 16, 0), 2 * SHM_HIT);
                CHECK_EQ(seg_verify(v, "after the end of the log"), 0);
                seg_free(&s);
            }
}

static void full_buckets_spill_under_keep(void)
{
    uint64_t ids[129], from = 1;
    MAKE(K, .buckets = 32, .main_units = 4000);
    for (int i = 0; i < 129; i++, from++)
        ids[i] = from = id_at_home(5, from);
    for (int i = 0; i < 128; i++)
        CHECK_EQ(set(ids[i], 20, 0, 0), SHM_HIT);
    CHECK_EQ(sh->probe_limit, 16);
    CHECK_EQ(set(ids[128], 20, 0, 0), SHM_FULL); /* sixteen buckets are full */
    for (int i = 0; i < 128; i++)
        CHECK_EQ(get(ids[i], 16, 0), SHM_HIT);
    CHECK_EQ(get(ids[128], 16, 0), SHM_MISS);
    CHECK_EQ(seg_verify(v, "crowded"), 0);
    CHECK_EQ(del(ids[70], 0), SHM_HIT);
    CHECK_EQ(set(ids[128], 20, 0, 0), SHM_HIT);
    CHECK_EQ(get(ids[128], 16, 0), SHM_HIT);
    CHECK_EQ(LOCKED(v, 0, 0, (int)shm_clear_slots(op, 0, v->slot_count)), 128);
    CHECK_EQ(sh->probe_limit, 1); /* back to one bucket a miss */
    CHECK_EQ(seg_verify(v, "cleared"), 0);
    seg_free(&s);
}

static void full_buckets_evict_under_evict(void)
{
    uint64_t ids[60], from = 1;
    MAKE(E, .buckets = 32, .main_units = 4000, .probation_units = 400);
    for (int i = 0; i < 60; i++, from++)
        ids[i] = from = id_at_home(31, from); /* its probe sequence wraps to bucket 0 */
    for (int i = 0; i < 60; i++) {
        CHECK_EQ(set(ids[i], 20, 0, 0), SHM_HIT);
        CHECK_EQ(get(ids[i], 16, 0), SHM_HIT); /* the newest is always there */
    }
    CHECK_EQ(sh->counts.entries, 4 * 8);
    CHECK_EQ(sh->evictions, 60 - 4 * 8);
    CHECK_EQ(seg_verify(v, "crowded"), 0);
    seg_free(&s);
}

static void cache_full_leaves_everything(void)
{
    uint64_t n = 0;
    MAKE(K, .buckets = 128, .main_units = 2000);
    while (set(n, 60, 0, 0) == SHM_HIT)
        n++;
    CHECK(live() >= 0.80 * 2000, "full at %u of 2000 units", live());
    for (int again = 0; again < 50; again++) {
        CHECK_EQ(set(1000 + (uint64_t)again, 60, 0, 0), SHM_FULL);
        CHECK_EQ(set((uint64_t)again, 900, 0, 0), SHM_FULL); /* grows: the old value stays */
    }
    for (uint64_t i = 0; i < n; i++) {
        CHECK_EQ(get(i, 16, 0), SHM_HIT);
        CHECK_EQ(got.len, 60);
    }
    CHECK_EQ(set(3, 60, 0, 0), SHM_HIT); /* overwriting in place of itself needs no room */
    for (uint64_t i = 0; i < n; i += 2)
        CHECK_EQ(del(i, 0), SHM_HIT);
    for (uint64_t i = 0; i < n / 2; i++)
        CHECK_EQ(set(2000 + i, 60, 0, 0), SHM_HIT);
    CHECK_EQ(sh->evictions, 0);
    CHECK_EQ(seg_verify(v, "full"), 0);
    seg_free(&s);
}

static void keep_fills_eighty_percent(void)
{
    for (uint32_t units = 4; units <= 64; units *= 2) { /* the largest: a 64th of the log */
        rng r = {units};
        uint64_t n = 0;
        MAKE(K, .buckets = 512, .main_units = 4096);
        while (live() + units <= 4096 * 8 / 10) {
            CHECK_EQ(set(n, len_of(units), 0, 0), SHM_HIT);
            n++;
        }
        for (int i = 0; i < 20000; i++) { /* five laps and more, at that load */
            uint64_t id = rnd(&r) % n;
            CHECK_EQ(set(id, len_of(3 + rnd_below(&r, units - 2)), 0, 0), SHM_HIT);
            if (rnd_below(&r, 4) == 0) {
                CHECK_EQ(del(id, 0), SHM_HIT);
                CHECK_EQ(set(id, len_of(units), 0, 0), SHM_HIT);
            }
        }
        for (uint64_t i = 0; i < n; i++)
            CHECK_EQ(get(i, 16, 0), SHM_HIT);
        CHECK(sh->worst_write_units <= 4096, "a write walked %llu of 4096 units",
              (unsigned long long)sh->worst_write_units);
        CHECK_EQ(seg_verify(v, "at 80%"), 0);
        seg_free(&s);
    }
}

/* Entries that fill `percent` of the budget; then a hot key is overwritten, and keys
 * come and go. */
static void nobody_is_evicted(uint32_t probation, uint32_t percent, uint32_t units, uint32_t hot)
{
    uint64_t n = 0;
    MAKE(E, .buckets = 512, .main_units = 4000 - probation, .probation_units = probation);
    while (live() + units + hot <= v->budget_units * percent / 100) {
        CHECK_EQ(set(n, len_of(units), 0, 0), SHM_HIT);
        n++;
    }
    for (int i = 0; i < 100000; i++)
        set(1 << 20, len_of(hot), 0, 0);
    for (uint64_t i = 0; i < 5000; i++) {
        set((2 << 20) + i, len_of(hot), 0, 0);
        del((2 << 20) + i, 0);
    }
    CHECK(sh->evictions == 0, "%llu evictions at %u%% of the budget, %u log(s), %u units, hot %u",
          (unsigned long long)sh->evictions, percent, probation ? 2 : 1, units, hot);
    CHECK_EQ(seg_verify(v, "after a hot key"), 0);
    for (uint64_t i = 0; i < n && sh->evictions == 0; i++)
        CHECK_EQ(get(i, 16, 0), SHM_HIT);
    seg_free(&s);
}
static void a_hot_key_evicts_nobody(void)
{
    for (uint32_t probation = 0; probation <= 400; probation += 400) {
        nobody_is_evicted(probation, 25, 8, 8);
        nobody_is_evicted(probation, 60, 8, 8);
        nobody_is_evicted(probation, 95, 8, 8);
        nobody_is_evicted(probation, 95, 4, 40); /* larger than what the head meets */
        nobody_is_evicted(probation, 95, 40, 4);
    }
}

static uint64_t fill(uint64_t from, uint64_t n, uint32_t units)
{
    uint64_t evicted = sh->evictions, i;
    for (i = 0; i < n && sh->evictions == evicted; i++)
        CHECK_EQ(set(from + i, len_of(units), 0, 0), SHM_HIT);
    return i;
}
/* What fits in a new log fits in one that was full of entries of `past` units and then cleared;
 * and all but what a pad and the gap take, where its keys were deleted one by one. */
static void what_fitted_fits_again(uint32_t probation, uint32_t units, uint32_t past)
{
    uint64_t n;
    MAKE(E, .buckets = 512, .main_units = 4000 - probation, .probation_units = probation);
    n = fill(0, 4000, units) - 1;
    CHECK(n * units > v->budget_units, "only %llu entries", (unsigned long long)n);
    for (uint32_t i = 0; i < 12000 / past; i++)
        CHECK_EQ(set(8000 + i, len_of(past), 0, 0), SHM_HIT);
    for (uint32_t round = 0; round < 10; round++) {
        for (uint32_t cleared = 1; cleared + 1; cleared--) {
            uint64_t m = cleared ? n : n - 3;
            if (cleared)
                CHECK(LOCKED(v, 0, 0, (int)shm_clear_slots(op, 0, v->slot_count)) > 0);
            else
                for (uint64_t i = 0; i < n; i++)
                    CHECK_EQ(del(i, 0), SHM_HIT);
            CHECK_EQ(live(), 0);
            CHECK_EQ(seg_verify(v, "emptied"), 0);
            fill(0, m, units);
            CHECK(sh->counts.entries == m, "round %u.%u, %u log(s): %u of %llu entries of %u units",
                  round, cleared, probation ? 2 : 1, sh->counts.entries, (unsigned long long)m,
                  units);
            CHECK_EQ(seg_verify(v, "filled again"), 0);
        }
    }
    seg_free(&s);
}
static void a_cleared_log_is_as_good_as_new(void)
{
    for (uint32_t probation = 0; probation <= 400; probation += 400)
        for (uint32_t past = 4; past <= 256; past *= 4) {
            what_fitted_fits_again(probation, 4, past);
            what_fitted_fits_again(probation, 7, past);
            what_fitted_fits_again(probation, 40, past);
            what_fitted_fits_again(probation, 150, past);
        }
}

/* Counts flipped low make a full shard look as if everything could be moved. */
static void flipped_counts_make_no_write_long(void)
{
    const uint32_t lies[] = {1, 5, 100, 2000, 0x7fffffffu, 0xffffffffu};
    for (uint32_t a = 0; a < 6; a++)
        for (uint32_t b = 0; b < 6; b++) {
            tkey t;
            uint64_t walked = 0;
            MAKE(E, .buckets = 512, .main_units = 4000, .probation_units = 400);
            for (uint64_t i = 0; sh->evictions < 500; i++) {
                set(i, 16, 0, 0);
                get(i, 16, 0);
            }
            for (uint64_t i = 0; i < 20; i++) {
                shm_put put = {.value = buf, .value_len = len_of(40), .value_kind = SHM_V_BYTES};
                make_key(v, &t, (1 << 20) + i, 16);
                sh->counts.live_units[0] = lies[a];
                sh->counts.live_units[1] = lies[b];
                LOCKED(v, 0, 0,
                       (shm_store(op, &t.k, &put), walked = op->walked[0] + op->walked[1], 0));
                CHECK(walked <= 8 * 4400,
                      "a write walked %llu of 4400 units, live flipped to %u, %u",
                      (unsigned long long)walked, lies[a], lies[b]);
            }
            seg_free(&s);
        }
}

static void expiry_is_exact_and_memory_comes_back(void)
{
    uint64_t n = 0;
    MAKE(K, .buckets = 128, .main_units = 1000);
    CHECK(sh->min_expiry == ~0ull);
    CHECK_EQ(set(900, 60, shm_expiry_word(500, 100), 0), SHM_HIT); /* 100 ms stale */
    CHECK_EQ(sh->min_expiry, 600);
    while (set(n, 60, shm_expiry_word(400 + n, 0), 0) == SHM_HIT)
        n++;
    CHECK_EQ(sh->min_expiry, 400);
    CHECK_EQ(get(0, 16, 399), SHM_HIT);
    CHECK_EQ(get(0, 16, 400), SHM_MISS); /* gone for readers, swept or not */
    CHECK_EQ(get(900, 16, 499), SHM_HIT);
    CHECK_EQ(get(900, 16, 500), SHM_MISS);
    CHECK_EQ(set(2000, 60, shm_expiry_word(2000, 0), 399), SHM_FULL);
    CHECK_EQ(set(2000, 60, shm_expiry_word(2000, 0), 410),
             SHM_HIT); /* eleven have expired: swept before CacheFull */
    CHECK_EQ(sh->expirations, 11);
    CHECK_EQ(sh->min_expiry, 411); /* exact after a round */
    CHECK_EQ(LOCKED(v, 0, 599, (int)shm_sweep_round(op)), (int)n - 11);
    CHECK_EQ(sh->counts.entries, 2); /* 2000, and the stale one */
    CHECK_EQ(LOCKED(v, 0, 600, (int)shm_sweep_round(op)), 1);
    CHECK_EQ(sh->counts.entries, 1);
    CHECK_EQ(sh->min_expiry, 2000);
    CHECK_EQ(LOCKED(v, 0, 1000, (int)shm_sweep_round(op)), 0);
    CHECK_EQ(seg_verify(v, "swept"), 0);
    seg_free(&s);
}

static void ghosts_remember_what_was_evicted(void)
{
    for (uint32_t probation = 0; probation <= 100; probation += 100) {
        uint64_t i, hits;
        shm_found f = {0};
        MAKE(E, .buckets = 64, .main_units = 900, .probation_units = probation);
        for (i = 0; sh->evictions < 30; i++)
            CHECK_EQ(set(i, 60, 0, 0), SHM_HIT);
        while (i-- && !f.ghost) {
            tkey t;
            make_key(v, &t, i, 16);
            CHECK_EQ(LOCKED(v, 0, 0, shm_lookup(op, &t.k, &f)), SHM_HIT);
        }
        i++;
        CHECK(f.ghost, "thirty evictions left no ghost");
        CHECK_EQ(get(i, 16, 0), SHM_MISS);
        hits = sh->ghost_hits;
        CHECK_EQ(set(i, 60, 0, 0), SHM_HIT); /* it went not long ago */
        CHECK_EQ(sh->ghost_hits, hits + 1);
        CHECK_EQ(get(i, 16, 0), SHM_HIT);
        if (probation)
            CHECK_EQ(shm_word_log(got.word), SHM_MAIN); /* past probation at once */
        else
            CHECK_EQ(got.word & SHM_W_VISITED, 3);
        CHECK_EQ(seg_verify(v, "with ghosts"), 0);
        seg_free(&s);
    }
}

static void reads_count_to_three_in_the_slot(void)
{
    MAKE(E, .buckets = 4, .main_units = 500);
    set(1, 60, 0, 0);
    for (int i = 0; i < 6; i++) {
        get(1, 16, 0);
        CHECK_EQ(got.word & SHM_W_VISITED, i < 3 ? i : 3);
    }
    set(1, 80, 0, 0); /* overwriting tells nothing about reading */
    get(1, 16, 0);
    CHECK_EQ(got.word & SHM_W_VISITED, 3);
    seg_free(&s);
}

static int incr(uint64_t id, int64_t delta, int64_t initial, uint64_t expiry, uint64_t now,
                int64_t *n)
{
    tkey t;
    shm_put put = {.expiry = expiry};
    make_key(v, &t, id, 16);
    return LOCKED(v, 0, now, shm_incr(op, &t.k, delta, initial, &put, n));
}
static void counters(void)
{
    int64_t n = 0;
    tkey t;
    shm_put put = {.value = "0123456789", .value_len = 10, .value_kind = SHM_V_BIGINT};
    MAKE(E, .buckets = 4, .main_units = 500);
    CHECK(incr(1, 5, 100, shm_expiry_word(50, 0), 0, &n) == SHM_HIT && n == 105);
    CHECK(incr(1, -6, 0, shm_expiry_word(9999, 0), 10, &n) == SHM_HIT && n == 99);
    get(1, 16, 10);
    CHECK_EQ(shm_expiry_at(got.expiry), 50);              /* keeps its expiry */
    CHECK(incr(1, 1, 7, 0, 50, &n) == SHM_HIT && n == 8); /* expired: begins anew, without one */
    get(1, 16, 60);
    CHECK_EQ(got.expiry, 0);
    CHECK(incr(1, INT64_MAX - 8, 0, 0, 60, &n) == SHM_HIT && n == INT64_MAX);
    CHECK_EQ(incr(1, 1, 0, 0, 60, &n), SHM_OVERFLOW);
    CHECK_EQ(incr(2, INT64_MIN, -1, 0, 60, &n), SHM_OVERFLOW);
    CHECK_EQ(get(2, 16, 60), SHM_MISS);
    set(3, 16, 0, 0);
    CHECK_EQ(incr(3, 1, 0, 0, 0, &n), SHM_NOT_INT);
    make_key(v, &t, 4, 16);
    CHECK_EQ(LOCKED(v, 0, 0, shm_store(op, &t.k, &put)), SHM_HIT);
    CHECK_EQ(incr(4, 1, 0, 0, 0, &n), SHM_OVERFLOW);
    seg_free(&s);
}

static void touch_publishes_a_copy(void)
{
    tkey t;
    uint64_t version;
    MAKE(E, .buckets = 4, .main_units = 500, .probation_units = 50);
    make_key(v, &t, 1, 16);
    set(1, 60, 0, 0);
    get(1, 16, 0);
    version = got.version;
    CHECK_EQ(LOCKED(v, 0, 0, shm_touch(op, &t.k, shm_expiry_word(30, 0))), SHM_HIT);
    CHECK_EQ(get(1, 16, 29), SHM_HIT);
    CHECK(got.version > version && got.len == 60);
    CHECK_EQ(get(1, 16, 30), SHM_MISS);
    CHECK_EQ(LOCKED(v, 0, 29, shm_touch(op, &t.k, 0)), SHM_HIT);
    CHECK_EQ(get(1, 16, 1000), SHM_HIT);
    CHECK_EQ(got.expiry, 0);
    make_key(v, &t, 2, 16);
    CHECK_EQ(LOCKED(v, 0, 0, shm_touch(op, &t.k, 0)), SHM_MISS);
    seg_free(&s);
}

static void a_sweep_for_its_own_sake_ends(void)
{
    uint32_t cleared = 0, slices = 0;
    bool done;
    MAKE(K, .buckets = 64, .main_units = 4000);
    for (uint64_t i = 1; i <= 100; i++) /* at 3000 half of them are gone */
        CHECK_EQ(set(i, 60, shm_expiry_word(i % 2 ? 2900 + i : 3001 + i, 0), 2000), SHM_HIT);
    CHECK_EQ(LOCKED(v, 0, 2900, (int)shm_sweep_slice(op, 64, &done)), 0);
    CHECK(done); /* nothing has expired yet: not a slot was looked at */
    CHECK_EQ(sh->sweep_slot, 0);
    do {
        cleared += (uint32_t)LOCKED(v, 0, 3000, (int)shm_sweep_slice(op, 60, &done));
        slices++;
        CHECK(done == (sh->sweep_slot == 0));
    } while (!done);
    CHECK_EQ(cleared, 50);
    CHECK_EQ(slices, (v->slot_count + 59) / 60);
    CHECK_EQ(sh->counts.entries, 50);
    /* what expires right after a round waits: there would be no end to it */
    CHECK_EQ(LOCKED(v, 0, 3500, (int)shm_sweep_slice(op, v->slot_count, &done)), 0);
    CHECK(done);
    CHECK_EQ(sh->counts.entries, 50);
    CHECK_EQ(LOCKED(v, 0, 4000, (int)shm_sweep_slice(op, v->slot_count, &done)), 50);
    CHECK(done);
    CHECK_EQ(sh->min_expiry, ~0ull);
    sh->sweep_slot = ~0u; /* flipped bytes */
    CHECK_EQ(set(1, 60, shm_expiry_word(4001, 0), 4000), SHM_HIT);
    CHECK_EQ(LOCKED(v, 0, 6000, (int)shm_sweep_slice(op, v->slot_count, &done)), 1);
    CHECK(done);
    CHECK_EQ(seg_verify(v, "swept in slices"), 0);
    seg_free(&s);
}

static void a_segment_means_the_same_at_every_address(void)
{
    size_t size;
    int fd = memfd_create("shmcache-test", MFD_CLOEXEC);
    uint8_t *at[2];
    shm_view view[2];
    MAKE(K, .shards = 4, .buckets = 8, .main_units = 500);
    size = s.sb.total_size;
    CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0 && write(fd, s.base, size) == (ssize_t)size);
    for (int i = 0; i < 2; i++) {
        shm_superblock sb;
        at[i] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        memcpy(&sb, at[i], sizeof sb);
        CHECK_EQ(shm_check_superblock(&sb, size), SHM_SB_OK);
        shm_view_init(&view[i], at[i], &sb, (uint32_t)i, 1);
    }
    CHECK(at[0] != at[1]);
    for (uint64_t i = 0; i < 2000; i++) {
        v = &view[i & 1];
        CHECK_EQ(set(i % 40, 60, 0, 0), SHM_HIT);
        v = &view[~i & 1];
        CHECK_EQ(get(i % 40, 16, 0), SHM_HIT);
    }
    CHECK_EQ(seg_verify(v, "through two mappings"), 0);
    munmap(at[0], size);
    munmap(at[1], size);
    close(fd);
    seg_free(&s);
}

int main(void)
{
    RUN(entries_meet_the_end_of_the_log);
    RUN(full_buckets_spill_under_keep);
    RUN(full_buckets_evict_under_evict);
    RUN(cache_full_leaves_everything);
    RUN(keep_fills_eighty_percent);
    RUN(a_hot_key_evicts_nobody);
    RUN(a_cleared_log_is_as_good_as_new);
    RUN(flipped_counts_make_no_write_long);
    RUN(expiry_is_exact_and_memory_comes_back);
    RUN(ghosts_remember_what_was_evicted);
    RUN(reads_count_to_three_in_the_slot);
    RUN(counters);
    RUN(touch_publishes_a_copy);
    RUN(a_sweep_for_its_own_sake_ends);
    RUN(a_segment_means_the_same_at_every_address);
    return report("test_shard");
}
