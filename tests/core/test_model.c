/* test_model.c - one process, random operations, beside a sequential model; verified after each.
 *
 * Proves, for both policies, one log and two, entries from tiny to the largest, logs that wrap
 * hundreds of times and positions that pass 2^44: every get returns exactly what was last stored
 * (bytes, version, expiry) or, under `evict` only, misses because something was evicted, and
 * then never more keys than the shard counted evictions; conditional writes, counters, touch,
 * expiry, sweeps and clears do what the model does; a refusal leaves everything as it was;
 * `keep` refuses nothing below 80% live while entries are a 64th of the log or less; every
 * invariant of verify.h holds after every single operation; and no write walks further than
 * WALK_BOUND revolutions of the shard's logs (the worst one is printed).
 *
 * OPS (environment) is how many operations each geometry gets, SEED where they start.
 */
#include "support.h"

#define KEYS 160u
#define COUNTERS 16u   /* the first keys are counters */
#define WALK_BOUND 3.0 /* revolutions; where entries are a 64th of the log or less: 1 */

typedef struct model_key {
    tkey t;
    bool present;
    uint64_t seq, expiry, version;
    uint32_t len;
    int64_t count;
} model_key;

typedef struct world {
    seg s;
    const shm_view *v;
    rng r;
    uint64_t now, seq;
    uint32_t max_len; /* of ordinary values */
    uint32_t largest; /* what the gap was for before the write */
    bool small;       /* every entry is a 64th of the log or less */
    uint64_t evictions_seen, refusals;
    model_key key[KEYS];
} world;

static bool lives(const world *w, const model_key *m)
{
    return m->present && !(m->expiry && shm_expiry_at(m->expiry) <= w->now);
}

static uint64_t evictions(const world *w)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < w->v->shard_count; i++)
        n += shm_shard_at(w->v, i)->evictions;
    return n;
}

/* Does the cache hold what the model says?  `may_miss`: what was evicted meanwhile. */
static bool same(world *w, const model_key *m, bool may_miss)
{
    static uint8_t buf[1 << 17];
    seg_value got;
    uint64_t seq = 0;
    int r = seg_get(w->v, &m->t.k, w->now, buf, sizeof buf, &got);
    if (!lives(w, m)) {
        CHECK(r == SHM_MISS, "key %llu is back: %d", (unsigned long long)m->t.id, r);
        return true;
    }
    if (r == SHM_MISS && may_miss)
        return false;
    CHECK_EQ(r, SHM_HIT);
    if (r != SHM_HIT)
        return true;
    CHECK_EQ(got.version, m->version);
    CHECK_EQ(got.expiry, m->expiry);
    if (m->t.id < COUNTERS) {
        int64_t n;
        memcpy(&n, buf, 8);
        CHECK(got.len == 8 && got.kind == SHM_V_INT && n == m->count);
    } else {
        CHECK(got.len == m->len && got.kind == SHM_V_BYTES);
        CHECK(check_value(buf, got.len, m->t.id, &seq) && seq == m->seq);
    }
    return true;
}

static void compare_all(world *w)
{
    bool evict = w->v->policy == SHM_POLICY_EVICT;
    uint64_t gone = 0, evicted = evictions(w);
    for (uint32_t i = 0; i < KEYS; i++)
        if (!same(w, &w->key[i], evict)) {
            w->key[i].present = false;
            gone++;
        }
    CHECK(gone <= evicted - w->evictions_seen, "%llu keys are gone after %llu evictions",
          (unsigned long long)gone, (unsigned long long)(evicted - w->evictions_seen));
    w->evictions_seen = evicted;
}

/* One key's own state before an operation on it, evictions since then taken into account. */
static void refresh(world *w, model_key *m)
{
    w->largest = seg_largest(w->v, shard_of(w->v, &m->t));
    if (!same(w, m, w->v->policy == SHM_POLICY_EVICT))
        m->present = false;
}

static uint64_t random_expiry(world *w)
{
    uint32_t ttl = rnd_below(&w->r, 4) == 0 ? 1 + rnd_below(&w->r, 500) : 0;
    return ttl ? shm_expiry_word(w->now + ttl, rnd_below(&w->r, 3) == 0 ? 200 : 0) : 0;
}

static uint32_t random_len(world *w)
{
    return 16 + (uint32_t)(rnd(&w->r) % (rnd(&w->r) % 4 ? w->max_len / 4 + 1 : w->max_len - 15));
}

/* Was it right to refuse a write of `units`? */
static void refused(world *w, const model_key *m, uint64_t units)
{
    uint32_t shard = shard_of(w->v, &m->t);
    const shm_counts *c = &shm_shard_at(w->v, shard)->counts;
    uint64_t live = (uint64_t)c->live_units[0] + c->live_units[1];
    CHECK(seg_may_refuse(w->v, shard, units, w->largest),
          "%llu units are refused with %llu of %u live", (unsigned long long)units,
          (unsigned long long)live, w->v->log[0].units);
    CHECK(!w->small || live + units > w->v->log[0].units * 0.80,
          "keep refuses %llu units with %llu of %u live", (unsigned long long)units,
          (unsigned long long)live, w->v->log[0].units);
    w->refusals++;
}

static void write_one(world *w, model_key *m, uint8_t mode)
{
    static uint8_t buf[1 << 17];
    uint64_t expiry = random_expiry(w), version = m->version, seq = ++w->seq;
    uint32_t len = random_len(w);
    bool alive, wrong = mode == SHM_PUT_CAS && rnd_below(&w->r, 2);
    int r, expect = SHM_HIT;

    refresh(w, m);
    alive = lives(w, m);
    if (wrong)
        version = m->version + 1;
    if ((mode == SHM_PUT_ADD && alive))
        expect = SHM_EXISTS;
    if ((mode == SHM_PUT_REPLACE || mode == SHM_PUT_CAS) && !alive)
        expect = SHM_MISS;
    if (mode == SHM_PUT_CAS && alive && wrong)
        expect = SHM_MISMATCH;
    fill_value(buf, len, m->t.id, seq);
    r = seg_set_mode(w->v, &m->t, buf, len, expiry, w->now, mode, &version);
    if (r == SHM_FULL && expect == SHM_HIT) {
        refused(w, m, shm_entry_units(m->t.k.len, len, expiry != 0));
        return;
    }
    CHECK_EQ(r, expect);
    if (r == SHM_HIT) {
        CHECK(version > m->version, "versions only grow");
        m->present = true;
        m->seq = seq;
        m->len = len;
        m->expiry = expiry;
        m->version = version;
        same(w, m, false); /* what was just written is there, whatever it pushed out */
    }
}

static void count_one(world *w, model_key *m)
{
    int64_t delta = (int64_t)(rnd(&w->r) >> (rnd_below(&w->r, 4) ? 50 : 1)), result = 0, sum;
    int64_t initial = 100;
    uint64_t expiry = random_expiry(w);
    shm_put put = {.expiry = expiry};
    bool alive, over;
    int r;
    refresh(w, m);
    alive = lives(w, m);
    over = __builtin_add_overflow(alive ? m->count : initial, delta, &sum);
    r = LOCKED(w->v, shard_of(w->v, &m->t), w->now,
               shm_incr(op, &m->t.k, delta, initial, &put, &result));
    if (r == SHM_FULL) {
        refused(w, m, 4);
        return;
    }
    CHECK_EQ(r, over ? SHM_OVERFLOW : SHM_HIT);
    if (r == SHM_HIT) {
        CHECK_EQ(result, sum);
        if (!alive)
            m->expiry = expiry;
        m->present = true;
        m->count = sum;
        m->version = put.version;
        same(w, m, false);
    }
}

static void touch_one(world *w, model_key *m)
{
    uint64_t expiry = random_expiry(w);
    uint32_t shard = shard_of(w->v, &m->t);
    bool alive;
    int r;
    refresh(w, m);
    alive = lives(w, m);
    r = LOCKED(w->v, shard, w->now, shm_touch(op, &m->t.k, expiry));
    if (r == SHM_FULL) {
        refused(w, m, shm_entry_units(m->t.k.len, m->len, expiry != 0));
        return;
    }
    CHECK_EQ(r, alive ? SHM_HIT : SHM_MISS);
    if (r == SHM_HIT) {
        m->expiry = expiry;
        m->version = shm_shard_at(w->v, shard)->version;
        same(w, m, false);
    }
}

static void remove_one(world *w, model_key *m)
{
    bool alive, versioned = rnd_below(&w->r, 3) == 0, wrong = rnd_below(&w->r, 2);
    uint64_t version;
    int r;
    refresh(w, m);
    alive = lives(w, m);
    version = versioned ? m->version + wrong : 0;
    r = LOCKED(w->v, shard_of(w->v, &m->t), w->now, shm_remove(op, &m->t.k, version));
    CHECK_EQ(r, !alive ? SHM_MISS : versioned && wrong ? SHM_MISMATCH : SHM_HIT);
    if (r == SHM_HIT)
        m->present = false;
    same(w, m, false);
}

static void sweep_or_clear(world *w)
{
    for (uint32_t i = 0; i < w->v->shard_count; i++) {
        if (rnd_below(&w->r, 40) == 0) {
            for (uint32_t from = 0; from < w->v->slot_count; from += 24)
                LOCKED(w->v, i, w->now, (int)shm_clear_slots(op, from, 24));
            for (uint32_t k = 0; k < KEYS; k++)
                if (shard_of(w->v, &w->key[k].t) == i)
                    w->key[k].present = false;
            CHECK_EQ(shm_shard_at(w->v, i)->counts.entries, 0);
        } else {
            LOCKED(w->v, i, w->now, (int)shm_sweep_round(op));
        }
    }
}

static void step(world *w)
{
    uint32_t what = rnd_below(&w->r, 100);
    model_key *m = &w->key[COUNTERS + rnd_below(&w->r, KEYS - COUNTERS)];
    if (what < 50)
        write_one(w, m, SHM_PUT_SET);
    else if (what < 56)
        write_one(w, m, SHM_PUT_ADD);
    else if (what < 60)
        write_one(w, m, SHM_PUT_REPLACE);
    else if (what < 65)
        write_one(w, m, SHM_PUT_CAS);
    else if (what < 72)
        count_one(w, &w->key[rnd_below(&w->r, COUNTERS)]);
    else if (what < 78)
        touch_one(w, m);
    else if (what < 84)
        remove_one(w, m);
    else if (what < 97)
        refresh(w, m);
    else if (what < 99)
        w->now += rnd_below(&w->r, 60);
    else
        sweep_or_clear(w);
}

static double drive(const char *name, const seg_options *o, uint32_t max_len, uint64_t lap)
{
    world *w = calloc(1, sizeof *w);
    uint64_t ops = env_number("OPS", 12000), seed = env_number("SEED", 1), n;
    uint64_t worst = 0, laps = ~0ull;
    double units;

    case_begin(name);
    seg_make(&w->s, o);
    w->v = &w->s.view;
    if (lap)
        seg_start_at_lap(&w->s, (1ull << (SHM_W_POS_BITS - w->v->log[0].off_bits)) - lap);
    w->r.s = seed;
    w->now = 1000;
    w->max_len = max_len;
    w->small = shm_entry_units(40, max_len, true) <= w->v->log[0].units / 64;
    for (uint32_t i = 0; i < KEYS; i++)
        make_key(w->v, &w->key[i].t, i, 8 + i % 33);
    for (n = 0; n < ops && case_failures == 0; n++) {
        step(w);
        if (seg_verify(w->v, "after an operation"))
            fprintf(stderr, "  at operation %llu of SEED=%llu\n", (unsigned long long)n,
                    (unsigned long long)seed);
        if (n % 32 == 0)
            compare_all(w);
    }
    compare_all(w);
    for (uint32_t i = 0; i < w->v->shard_count; i++) {
        const shm_shard *sh = shm_shard_at(w->v, i);
        uint64_t l = sh->tail[0] >> w->v->log[0].off_bits;
        l -= lap ? (1ull << (SHM_W_POS_BITS - w->v->log[0].off_bits)) - lap : 0;
        if (l < laps)
            laps = l;
        if (sh->worst_write_units > worst)
            worst = sh->worst_write_units;
    }
    units = w->v->log[0].units + w->v->log[1].units;
    CHECK(worst <= (w->small ? 1.0 : WALK_BOUND) * units, "a write walked %llu units of %g",
          (unsigned long long)worst, units);
    CHECK(laps >= 5 || ops < 12000, "the logs wrapped %llu times: too little is tested",
          (unsigned long long)laps);
    printf("  %-34s %6llu operations, %5llu laps, %5llu refused, %6llu evicted, worst write %.2f "
           "revolutions\n",
           name, (unsigned long long)n, (unsigned long long)laps, (unsigned long long)w->refusals,
           (unsigned long long)evictions(w), (double)worst / units);
    seg_free(&w->s);
    free(w);
    case_end();
    return (double)worst / units;
}

int main(void)
{
    printf("test_model: SEED=%llu\n", (unsigned long long)env_number("SEED", 1));
#define G(...) &(seg_options){__VA_ARGS__}
#define E .policy = SHM_POLICY_EVICT
#define K .policy = SHM_POLICY_KEEP
    /* evict */
    drive("evict, two logs, small entries",
          G(E, .buckets = 64, .main_units = 1000, .probation_units = 110), 300, 0);
    drive("evict, one log, small entries", G(E, .buckets = 64, .main_units = 1000), 400, 0);
    drive("evict, two logs, it fits",
          G(E, .buckets = 64, .main_units = 3000, .probation_units = 300), 300, 0);
    drive("evict, two logs, large entries",
          G(E, .buckets = 64, .main_units = 1800, .probation_units = 200), 4600, 0);
    drive("evict, one log, large entries", G(E, .buckets = 64, .main_units = 2000), 5200, 0);
    drive("evict, four shards",
          G(E, .shards = 4, .buckets = 16, .main_units = 300, .probation_units = 40), 200, 0);
    drive("evict, full buckets", G(E, .buckets = 4, .main_units = 600, .probation_units = 60), 200,
          0);
    drive("evict, a power of two", G(E, .buckets = 32, .main_units = 1024, .probation_units = 128),
          200, 0);
    drive("evict, positions pass 2^44",
          G(E, .buckets = 32, .main_units = 1000, .probation_units = 100), 200, 3);
    drive("evict, tiny logs", G(E, .buckets = 16, .main_units = 64, .probation_units = 8), 80, 0);
    /* keep */
    drive("keep, small entries", G(K, .buckets = 64, .main_units = 1000), 400, 0);
    drive("keep, entries of a 64th", G(K, .buckets = 64, .main_units = 2000), 2000 / 64 * 16 - 64,
          0);
    drive("keep, it fits", G(K, .buckets = 64, .main_units = 4000), 300, 0);
    drive("keep, large entries", G(K, .buckets = 64, .main_units = 2000), 5200, 0);
    drive("keep, spilling buckets", G(K, .buckets = 26, .main_units = 1800), 200, 0);
    drive("keep, positions pass 2^44", G(K, .buckets = 64, .main_units = 1000), 200, 3);
    drive("keep, tiny logs", G(K, .buckets = 16, .main_units = 64), 80, 0);
    return report("test_model");
}
