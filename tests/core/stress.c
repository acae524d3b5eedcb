/* stress.c - threads for processes, on logs so small that bytes are reused all the time.
 *
 * Built twice: under ThreadSanitizer (-DSHM_TSAN: entries are copied word by word, relaxed), where
 * any access to shared memory that is neither atomic nor under the lock is a data race; and
 * plainly with -O2, where copies are memcpy and tear for real.  gcc's ThreadSanitizer does not
 * model fences; it need not, as everything that the fences order is atomic there.
 *
 * Writers overwrite pinned keys (each has one writer, and its values count up), set, add, cas,
 * touch and delete loose keys, count counters, sweep; and now and then they die at a random fault
 * point inside a shard (longjmp), and are taken over and repaired.  Readers and iterators run
 * beside them.  Proves:
 *   - no value is ever torn, foreign, or older than one that was committed before the read began;
 *     a reader never sees a key go back
 *   - under `keep` a pinned key is never missed, by get or by iteration, and iteration never shows
 *     it twice
 *   - counters lose no increment but those of the dead
 *   - afterwards every invariant holds
 *
 * SECONDS_EACH (default 2) per geometry; SEED where random numbers start.
 */
#include <pthread.h>
#include <setjmp.h>

static void sometimes_yield(void);
#define SEG_BETWEEN() sometimes_yield()
#include "support.h"

#define PINNED 48u
#define LOOSE 96u
#define COUNTERS 4u
#define FIRST_LOOSE PINNED
#define FIRST_COUNTER (PINNED + LOOSE)
#define KEYS (PINNED + LOOSE + COUNTERS)
#define WRITERS 3u
#define READERS 2u
#define VALUE_MOST 1024u
#define NOW_MS 1000u

void (*shm_fault_hook)(int point);
static _Thread_local unsigned die_in; /* fault points from here; 0: lives on */
static _Thread_local jmp_buf death;

/* Two cores run seven threads: without this, interleavings within one operation would be rare. */
static void sometimes_yield(void)
{
    static _Thread_local uint32_t n;
    n = n * 1664525u + 1013904223u;
    if (n >> 25 == 0)
        sched_yield();
}

static void die_at_point(int point)
{
    (void)point;
    sometimes_yield();
    if (die_in && --die_in == 0)
        longjmp(death, 1);
}

typedef struct scene {
    seg s;
    bool keep;
    int stop;
    uint64_t committed[PINNED]; /* seq of the last set that returned */
    uint64_t counted[COUNTERS], maybe[COUNTERS];
    uint64_t reads, retries, writes, deaths, rounds, misses;
    tkey key[KEYS];
} scene;

typedef struct worker {
    scene *sc;
    uint32_t id;
    pthread_t thread;
} worker;

#define ADD(p, n) __atomic_fetch_add((p), (n), __ATOMIC_RELAXED)

static uint32_t some_len(rng *r)
{
    return 16 + 8 * rnd_below(r, (VALUE_MOST - 16) / 8 / (1 + rnd_below(r, 8)));
}

static void write_pinned(scene *sc, const shm_view *v, rng *r, uint32_t id, uint64_t *next)
{
    uint32_t k = id + WRITERS * rnd_below(r, (PINNED - id + WRITERS - 1) / WRITERS);
    int got;
    if (rnd_below(r, 8) == 0)
        got = LOCKED(v, shard_of(v, &sc->key[k]), NOW_MS, shm_touch(op, &sc->key[k].k, 0));
    else {
        uint64_t seq = ++next[k];
        got = seg_set(v, &sc->key[k], some_len(r), seq, 0, NOW_MS);
        if (got == SHM_HIT)
            WRR(&sc->committed[k], seq);
    }
    CHECK(got == SHM_HIT || got == SHM_FULL || (got == SHM_MISS && !sc->keep), "%d", got);
}

static void write_loose(scene *sc, const shm_view *v, rng *r)
{
    uint32_t what = rnd_below(r, 16), k = FIRST_LOOSE + rnd_below(r, LOOSE);
    const tkey *t = &sc->key[k];
    uint8_t buf[VALUE_MOST];
    uint32_t len = some_len(r);
    uint64_t version = rnd(r) & 0xff;
    int got;
    fill_value(buf, len, t->id, rnd(r) >> 1);
    if (what < 8)
        got = seg_set_mode(v, t, buf, len,
                           what & 1 ? shm_expiry_word(NOW_MS + rnd_below(r, 2), 0) : 0, NOW_MS,
                           SHM_PUT_SET, NULL);
    else if (what < 13)
        got = seg_remove(v, t, NOW_MS);
    else if (what == 13)
        got = seg_set_mode(v, t, buf, len, 0, NOW_MS, SHM_PUT_ADD, NULL);
    else if (what == 14)
        got = seg_set_mode(v, t, buf, len, 0, NOW_MS, SHM_PUT_CAS, &version);
    else
        got = LOCKED(v, shard_of(v, t), NOW_MS, (int)shm_sweep(op, 32));
    CHECK(got != SHM_CORRUPT, "operation %u", what);
}

static void count(scene *sc, const shm_view *v, rng *r, uint32_t *under_way)
{
    uint32_t c = rnd_below(r, COUNTERS);
    shm_put put = {0};
    int64_t result;
    *under_way = c;
    if (LOCKED(v, shard_of(v, &sc->key[FIRST_COUNTER + c]), NOW_MS,
               shm_incr(op, &sc->key[FIRST_COUNTER + c].k, 1, 0, &put, &result)) == SHM_HIT)
        ADD(&sc->counted[c], 1);
    *under_way = COUNTERS;
}

static void *writer(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    shm_view v;
    volatile uint32_t generation = 1;
    static _Thread_local uint64_t next[PINNED];
    static _Thread_local uint32_t under_way = COUNTERS; /* the counter being counted up */
    static _Thread_local rng r;
    r.s = env_number("SEED", 1) * 1000 + w->id;
    for (uint32_t k = 0; k < PINNED; k++)
        next[k] = RDA(&sc->committed[k]);
    seg_view(&sc->s, &v, w->id, generation);
    if (setjmp(death)) {
        seg_mark_dead(v.me); /* what the kernel does when a process is gone */
        ADD(&sc->deaths, 1);
        if (under_way != COUNTERS)
            ADD(&sc->maybe[under_way], 1);
        under_way = COUNTERS;
        generation++;
        seg_view(&sc->s, &v, w->id, generation);
    }
    while (!RDA(&sc->stop)) {
        uint32_t what = rnd_below(&r, 100);
        die_in = rnd_below(&r, 100) == 0 ? 1 + rnd_below(&r, 60) : 0;
        if (what < 40)
            write_pinned(sc, &v, &r, w->id, next);
        else if (what < 90)
            write_loose(sc, &v, &r);
        else
            count(sc, &v, &r, &under_way);
        die_in = 0;
        ADD(&sc->writes, 1);
    }
    return NULL;
}

static void *reader(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    rng r = {env_number("SEED", 1) * 7777 + w->id};
    static _Thread_local uint64_t seen[PINNED], count_seen[COUNTERS];
    _Alignas(8) uint8_t buf[VALUE_MOST];
    shm_view v;
    seg_view(&sc->s, &v, 32 + w->id, 1);
    while (!RDA(&sc->stop)) {
        uint32_t k = rnd_below(&r, KEYS);
        uint64_t committed = k < PINNED ? RDA(&sc->committed[k]) : 0, seq = 0;
        seg_value got;
        int what = seg_get(&v, &sc->key[k].k, NOW_MS, buf, sizeof buf, &got);
        CHECK(what == SHM_HIT || what == SHM_MISS, "key %u: %d", k, what);
        ADD(&sc->reads, 1);
        if (what == SHM_MISS) {
            CHECK(!sc->keep || (k >= PINNED && k < FIRST_COUNTER) ||
                      (k >= FIRST_COUNTER && count_seen[k - FIRST_COUNTER] == 0),
                  "key %u is missed", k);
            ADD(&sc->misses, 1);
            continue;
        }
        ADD(&sc->retries, got.retries);
        if (k >= FIRST_COUNTER) {
            uint64_t n;
            memcpy(&n, buf, 8);
            CHECK(got.len == 8 && got.kind == SHM_V_INT);
            CHECK(!sc->keep || n >= count_seen[k - FIRST_COUNTER], "a counter went back");
            count_seen[k - FIRST_COUNTER] = n;
            continue;
        }
        CHECK(got.len <= sizeof buf && check_value(buf, got.len, k, &seq), "key %u is torn", k);
        if (k < PINNED) {
            CHECK(seq >= committed, "key %u: %llu after %llu was committed", k,
                  (unsigned long long)seq, (unsigned long long)committed);
            CHECK(seq >= seen[k], "key %u went back", k);
            seen[k] = seq;
        }
    }
    return NULL;
}

static void *iterator(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    _Alignas(8) uint8_t buf[VALUE_MOST], key[KEY_MOST];
    shm_view v;
    seg_view(&sc->s, &v, 48 + w->id, 1);
    while (!RDA(&sc->stop)) {
        uint8_t times[KEYS] = {0};
        for (uint32_t i = 0; i < v.shard_count; i++)
            for (uint32_t s = 0; s < v.slot_count; s++) {
                shm_hit hit;
                uint64_t id, seq;
                uint32_t n;
            again:
                if (shm_slot_entry(&v, i, s, &hit) != SHM_HIT)
                    continue;
                n = hit.value_len < sizeof buf ? hit.value_len : (uint32_t)sizeof buf;
                shm_bytes_copy(key, hit.key, hit.key_len < KEY_MOST ? hit.key_len : KEY_MOST);
                shm_bytes_copy(buf, hit.value, n);
                if (!shm_hit_valid(&v, &hit))
                    goto again;
                memcpy(&id, key, 8);
                CHECK(id < KEYS && hit.key_len == sc->key[id].k.len, "a foreign key in slot %u", s);
                if (id >= KEYS)
                    continue;
                times[id]++;
                CHECK(id >= FIRST_COUNTER || check_value(buf, hit.value_len, id, &seq),
                      "key %llu is torn", (unsigned long long)id);
            }
        for (uint32_t k = 0; sc->keep && k < PINNED; k++)
            CHECK(times[k] == 1, "iteration shows pinned key %u %u times", k, times[k]);
        ADD(&sc->rounds, 1);
    }
    return NULL;
}

typedef struct totals {
    uint64_t moved, recoveries, evicted, laps;
} totals;

static totals total(const shm_view *v)
{
    totals t = {0};
    for (uint32_t i = 0; i < v->shard_count; i++) {
        shm_shard *sh = shm_shard_at(v, i);
        t.moved += RD(&sh->moved_units);
        t.recoveries += RD(&sh->recoveries);
        t.evicted += RD(&sh->evictions);
        t.laps += RD(&sh->tail[0]) >> v->log[0].off_bits;
    }
    return t;
}

static bool enough(scene *sc, const totals *t)
{
    return t->moved > 0 && t->recoveries > 2 && t->laps > 5 && (sc->keep || t->evicted > 0) &&
           RD(&sc->rounds) > 0 && RD(&sc->reads) > 1000;
}

static void play(const char *name, const seg_options *o, double seconds)
{
    scene *sc = calloc(1, sizeof *sc);
    worker all[WRITERS + READERS + 1];
    struct timespec slice = {0, 20000000};
    shm_view v;
    totals t;
    double began;

    case_begin(name);
    memset(seg_dead_up_to, 0, sizeof seg_dead_up_to);
    seg_make(&sc->s, o);
    seg_view(&sc->s, &v, 60, 1);
    sc->keep = o->policy == SHM_POLICY_KEEP;
    for (uint32_t k = 0; k < KEYS; k++) {
        make_key(&v, &sc->key[k], k, 16);
        if (k < PINNED) {
            sc->committed[k] = 1;
            CHECK_EQ(seg_set(&v, &sc->key[k], 64, 1, 0, NOW_MS), SHM_HIT);
        }
    }
    shm_fault_hook = die_at_point;
    for (uint32_t i = 0; i < WRITERS + READERS + 1; i++) {
        all[i] = (worker){sc, i < WRITERS ? i : i - WRITERS, 0};
        if (pthread_create(&all[i].thread, NULL,
                           i < WRITERS             ? writer
                           : i < WRITERS + READERS ? reader
                                                   : iterator,
                           &all[i]))
            exit(2);
    }
    began = seconds_now();
    do { /* for so long, and on a busy machine until there is something to judge by */
        nanosleep(&slice, NULL);
        t = total(&v);
    } while (seconds_now() - began < seconds ||
             (seconds_now() - began < 20 * seconds && !enough(sc, &t)));
    WRR(&sc->stop, 1);
    for (uint32_t i = 0; i < WRITERS + READERS + 1; i++)
        pthread_join(all[i].thread, NULL);
    shm_fault_hook = NULL;

    seg_verify(&v, "afterwards");
    for (uint32_t k = 0; k < KEYS; k++) {
        static uint8_t buf[VALUE_MOST];
        seg_value got;
        uint64_t seq = 0;
        int r = seg_get(&v, &sc->key[k].k, NOW_MS, buf, sizeof buf, &got);
        if (k < PINNED) {
            CHECK(r == SHM_HIT || !sc->keep, "pinned key %u is gone", k);
            CHECK(r != SHM_HIT || (check_value(buf, got.len, k, &seq) && seq >= sc->committed[k]));
        } else if (k >= FIRST_COUNTER && sc->keep) {
            uint32_t c = k - FIRST_COUNTER;
            memcpy(&seq, buf, 8);
            CHECK(r == SHM_HIT && seq >= sc->counted[c] && seq <= sc->counted[c] + sc->maybe[c],
                  "counter %u is %llu: %llu counted, %llu died at it", c, (unsigned long long)seq,
                  (unsigned long long)sc->counted[c], (unsigned long long)sc->maybe[c]);
        }
    }
    t = total(&v);
    CHECK(enough(sc, &t), "too little was tested in %g s", seconds_now() - began);
    printf("  %-22s %8llu writes %9llu reads %6llu retries %6llu misses %5llu deaths "
           "%5llu recoveries %6llu laps %7llu evicted\n",
           name, (unsigned long long)sc->writes, (unsigned long long)sc->reads,
           (unsigned long long)sc->retries, (unsigned long long)sc->misses,
           (unsigned long long)sc->deaths, (unsigned long long)t.recoveries,
           (unsigned long long)t.laps, (unsigned long long)t.evicted);
    seg_free(&sc->s);
    free(sc);
    case_end();
}

int main(void)
{
    double each = (double)env_number("SECONDS_EACH", 2);
    printf("%s: %g s each, SEED=%llu\n", PROGRAM, each, (unsigned long long)env_number("SEED", 1));
#define G(...) &(seg_options){__VA_ARGS__}
#define E .policy = SHM_POLICY_EVICT
#define K .policy = SHM_POLICY_KEEP
    play("keep", G(K, .buckets = 32, .main_units = 6000), each);
    play("keep, two shards", G(K, .shards = 2, .buckets = 24, .main_units = 4000), each);
    play("evict, two logs", G(E, .buckets = 32, .main_units = 1500, .probation_units = 600), each);
    play("evict, one log", G(E, .buckets = 32, .main_units = 1500), each);
    play("evict, two shards",
         G(E, .shards = 2, .buckets = 16, .main_units = 700, .probation_units = 100), each);
    return report(PROGRAM);
}
