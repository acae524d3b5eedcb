/* test_swap.c - swap slots, tokens and their names, with threads for processes.
 *
 * Built twice, as stress.c is: under ThreadSanitizer (any access to shared memory that is neither
 * atomic nor under a lock is a data race), and plainly with -O2, where copies tear for real.
 *
 * Writers replace the value of one slot, each value saying which version it is; they die at random
 * fault points inside the lock (longjmp), and are taken over from.  Readers beside them prove:
 *   - no value is torn, and none is another version's (INV-SWAP-CURRENT, INV-SWAP-REUSE)
 *   - versions never go back, and none is given twice (INV-SWAP-VERSION)
 * Others cancel and reset a token, with reasons that tell when they are torn (INV-TOKEN-REASON),
 * and give names, of which each gets one record (INV-RECORD-SEAL).
 *
 * SECONDS_EACH (default 2); SEED where random numbers start.
 */
#include <pthread.h>
#include <setjmp.h>

static void sometimes_yield(void);
#define SEG_BETWEEN() sometimes_yield()
#include "support.h"

#define WRITERS 3u
#define CANCELLERS 2u
#define READERS 2u
#define CAPACITY 64u /* of a slot, as support.h plans them */
#define NAMES 4u     /* as many as support.h plans tokens */

void (*shm_fault_hook)(int point);
static _Thread_local unsigned die_in;
static _Thread_local jmp_buf death;

static void sometimes_yield(void)
{
    static _Thread_local uint32_t n;
    n = n * 1664525u + 1013904223u;
    if (n >> 26 == 0)
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
    int stop;
    uint64_t stored[WRITERS]; /* stores of each writer that returned */
    uint64_t loads, retries, versions, deaths, recoveries, cancels, reasons;
} scene;

typedef struct worker {
    scene *sc;
    uint32_t id;
    pthread_t thread;
} worker;

#define ADD(p, n) __atomic_fetch_add((p), (n), __ATOMIC_RELAXED)

static shm_swap_view slot_of(const seg *s)
{
    return (shm_swap_view){(shm_swap *)(s->base + s->sb.slots_off), s->sb.slot_capacity};
}
static shm_token *token_of(const seg *s, uint32_t i)
{
    return (shm_token *)(s->base + s->sb.tokens_off + (uint64_t)i * SHM_TOKEN_SIZE);
}

/* Take a lock as the binding does; true: from the dead. */
static bool take(const shm_view *v, uint64_t *word)
{
    bool waited = false;
    if (shm_lock_spin(word, v->me))
        return false;
    for (;;) {
        uint64_t holder = shm_lock_or_contend(word, v->me, waited);
        if (holder == 0)
            return false;
        sched_yield();
        waited = true;
        if (holder != SHM_L_UNDECIDED && seg_is_dead(holder) &&
            shm_lock_take_over(word, holder, v->me))
            return true;
    }
}

/* A value of `length` bytes that says which version it is, and whether it is whole. */
static void fill(uint8_t *p, uint32_t length, uint64_t version)
{
    fill_value(p, length, 7, version);
}

static int store(scene *sc, const shm_view *v, rng *r, uint64_t *version)
{
    shm_swap_view at = slot_of(&sc->s);
    uint8_t value[CAPACITY];
    uint32_t length = 16 + 8 * rnd_below(r, (CAPACITY - 16) / 8 + 1);
    uint64_t next;
    int got;
    if (take(v, &at.slot->holder))
        ADD(&sc->recoveries, 1);
    next = shm_sealed_count(RD(&at.slot->word)) + 1;
    fill(value, length, next);
    got = shm_swap_store_locked(&at, value, length, SHM_V_BYTES, shm_xxh64(value, length, 0),
                                rnd_below(r, 2) ? SHM_SWAP_ANY : next - 1, version);
    CHECK(got != SHM_HIT || *version == next, "the version of a store");
    shm_lock_release(&at.slot->holder);
    return got;
}

static void *writer(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    rng r = {env_number("SEED", 1) * 1000 + w->id};
    volatile uint32_t generation = 1;
    volatile uint64_t last = 0;
    shm_view v;
    seg_view(&sc->s, &v, 1 + w->id, generation);
    while (!RDA(&sc->stop)) {
        uint64_t version = 0;
        if (setjmp(death)) {
            seg_mark_dead(v.me);
            generation++;
            seg_view(&sc->s, &v, 1 + w->id, generation);
            ADD(&sc->deaths, 1);
            continue;
        }
        die_in = rnd_below(&r, 64) == 0 ? 1 + rnd_below(&r, 8) : 0;
        CHECK_EQ(store(sc, &v, &r, &version), SHM_HIT);
        die_in = 0;
        CHECK(version > last, "version %llu after %llu", (unsigned long long)version,
              (unsigned long long)last);
        last = version;
        ADD(&sc->stored[w->id], 1);
    }
    return NULL;
}

static void *canceller(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    rng r = {env_number("SEED", 1) * 2000 + w->id};
    shm_token *t = token_of(&sc->s, 0);
    volatile uint32_t generation = 1;
    shm_view v;
    seg_view(&sc->s, &v, 20 + w->id, generation);
    while (!RDA(&sc->stop)) {
        char reason[SHM_REASON_SIZE];
        uint32_t length = 16 + 8 * rnd_below(&r, (SHM_REASON_SIZE - 16) / 8 + 1);
        if (setjmp(death)) {
            seg_mark_dead(v.me);
            generation++;
            seg_view(&sc->s, &v, 20 + w->id, generation);
            ADD(&sc->deaths, 1);
            continue;
        }
        fill_value((uint8_t *)reason, length, 9, rnd(&r));
        die_in = rnd_below(&r, 64) == 0 ? 1 + rnd_below(&r, 6) : 0;
        take(&v, &t->holder);
        if (rnd_below(&r, 2)) {
            if (shm_token_cancel_locked(t, reason, rnd_below(&r, 4) ? length : SHM_NO_REASON) ==
                SHM_HIT)
                ADD(&sc->cancels, 1);
        } else {
            shm_token_reset_locked(t);
        }
        shm_lock_release(&t->holder);
        die_in = 0;
    }
    return NULL;
}

static void *reader(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    shm_swap_view at = slot_of(&sc->s);
    uint64_t last = 0;
    while (!RDA(&sc->stop)) {
        _Alignas(8) uint8_t copy[CAPACITY];
        _Alignas(8) char reason[SHM_REASON_SIZE];
        shm_swap_copy c;
        uint64_t version, seq = 0;
        uint32_t length = 0;
        int got;

        got = shm_swap_read_begin(&at, &c);
        CHECK(got != SHM_CORRUPT, "the word or a length");
        if (got == SHM_HIT) {
            shm_bytes_copy(copy, c.bytes, c.length / 16 * 8);
            SEG_BETWEEN();
            shm_bytes_copy(copy + c.length / 16 * 8, c.bytes + c.length / 16 * 8,
                           c.length - c.length / 16 * 8);
            SEG_BETWEEN();
            if (shm_swap_unchanged(&at, &c)) {
                version = shm_sealed_count(c.word);
                CHECK(shm_swap_sound(&c, copy), "the check of version %llu",
                      (unsigned long long)version);
                CHECK(check_value(copy, c.length, 7, &seq) && seq == version,
                      "version %llu holds %llu", (unsigned long long)version,
                      (unsigned long long)seq);
                CHECK(version >= last, "versions go back");
                ADD(&sc->versions, version != last);
                last = version;
            } else {
                ADD(&sc->retries, 1);
            }
            ADD(&sc->loads, 1);
        }
        got = shm_token_reason(token_of(&sc->s, 0), reason, &length);
        CHECK(got != SHM_CORRUPT, "the reason");
        if (got == SHM_HIT && length != SHM_NO_REASON) {
            CHECK(check_value((uint8_t *)reason, length, 9, &seq), "a torn reason");
            ADD(&sc->reasons, 1);
        }
    }
    return NULL;
}

static void replacing_and_cancelling(void)
{
    scene *sc = calloc(1, sizeof *sc);
    worker all[WRITERS + CANCELLERS + READERS];
    struct timespec slice = {0, 20000000};
    double seconds = (double)env_number("SECONDS_EACH", 2), began;
    uint64_t stored = 0, word;

    memset(seg_dead_up_to, 0, sizeof seg_dead_up_to);
    seg_make(&sc->s, &(seg_options){.buckets = 32, .main_units = 1500});
    shm_fault_hook = die_at_point;
    for (uint32_t i = 0; i < WRITERS + CANCELLERS + READERS; i++) {
        void *(*f)(void *) = i < WRITERS ? writer : i < WRITERS + CANCELLERS ? canceller : reader;
        all[i] = (worker){sc, i < WRITERS ? i : i - WRITERS, 0};
        if (pthread_create(&all[i].thread, NULL, f, &all[i]))
            exit(2);
    }
    began = seconds_now();
    do {
        nanosleep(&slice, NULL);
    } while (seconds_now() - began < seconds ||
             (seconds_now() - began < 20 * seconds &&
              (RD(&sc->versions) < 100 || RD(&sc->recoveries) < 3 || RD(&sc->retries) < 3)));
    WRR(&sc->stop, 1);
    for (uint32_t i = 0; i < WRITERS + CANCELLERS + READERS; i++)
        pthread_join(all[i].thread, NULL);
    shm_fault_hook = NULL;

    for (uint32_t i = 0; i < WRITERS; i++)
        stored += sc->stored[i];
    word = slot_of(&sc->s).slot->word;
    CHECK(shm_sealed_ok(word));
    CHECK(shm_sealed_count(word) >= stored && shm_sealed_count(word) <= stored + sc->deaths,
          "%llu stores and %llu deaths led to version %llu", (unsigned long long)stored,
          (unsigned long long)sc->deaths, (unsigned long long)shm_sealed_count(word));
    CHECK(sc->versions >= 100 && sc->recoveries >= 3 && sc->retries >= 3 && sc->reasons > 0 &&
              sc->cancels > 0,
          "too little was tested in %g s", seconds_now() - began);
    printf("  %8llu stores %9llu loads %7llu versions seen %6llu retries %5llu deaths "
           "%5llu recoveries %7llu cancels %7llu reasons\n",
           (unsigned long long)stored, (unsigned long long)sc->loads,
           (unsigned long long)sc->versions, (unsigned long long)sc->retries,
           (unsigned long long)sc->deaths, (unsigned long long)sc->recoveries,
           (unsigned long long)sc->cancels, (unsigned long long)sc->reasons);
    seg_free(&sc->s);
    free(sc);
}

/* ------------------------------------------------------------------------------- names */

static void *namer(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    rng r = {env_number("SEED", 1) * 3000 + w->id};
    shm_token *first = token_of(&sc->s, 0);
    shm_directory d = {(uint8_t *)&first->record, SHM_TOKEN_SIZE, sc->s.sb.token_count};
    volatile uint32_t generation = seg_dead_up_to[30 + w->id] + 1;
    shm_view v;
    seg_view(&sc->s, &v, 30 + w->id, generation);
    for (volatile int i = 0; i < 3 * (int)NAMES; i++) {
        char name[SHM_NAME_SIZE] = "name";
        uint32_t at = 0, again = 0;
        int got;
        name[4] = (char)('a' + rnd_below(&r, NAMES));
        if (setjmp(death)) {
            seg_mark_dead(v.me);
            generation++;
            seg_view(&sc->s, &v, 30 + w->id, generation);
            ADD(&sc->deaths, 1);
            continue;
        }
        die_in = rnd_below(&r, 3) == 0 ? 1 + rnd_below(&r, 4) : 0;
        got = shm_record_find(&d, 0, name, &at);
        CHECK(got == SHM_HIT || got == SHM_MISS, "%d", got);
        if (got == SHM_MISS) {
            take(&v, &first->directory);
            got = shm_record_claim_locked(&d, 0, name, &at);
            shm_lock_release(&first->directory);
            CHECK_EQ(got, SHM_HIT);
        }
        die_in = 0;
        CHECK_EQ(shm_record_find(&d, 0, name, &again), SHM_HIT);
        CHECK_EQ(again, at);
    }
    return NULL;
}

static void naming(void)
{
    double seconds = (double)env_number("SECONDS_EACH", 2) / 2, began = seconds_now();
    uint64_t rounds = 0, deaths = 0;
    do {
        scene *sc = calloc(1, sizeof *sc);
        worker all[4];
        memset(seg_dead_up_to, 0, sizeof seg_dead_up_to);
        seg_make(&sc->s, &(seg_options){.buckets = 32, .main_units = 1500});
        shm_fault_hook = die_at_point;
        for (uint32_t i = 0; i < 4; i++) {
            all[i] = (worker){sc, i, 0};
            if (pthread_create(&all[i].thread, NULL, namer, &all[i]))
                exit(2);
        }
        for (uint32_t i = 0; i < 4; i++)
            pthread_join(all[i].thread, NULL);
        shm_fault_hook = NULL;
        for (uint32_t i = 0; i < sc->s.sb.token_count; i++) {
            const shm_record *r = &token_of(&sc->s, i)->record;
            CHECK(r->seal == 0 || r->seal == shm_record_seal(0, r->name), "record %u", i);
            for (uint32_t j = 0; j < i; j++)
                CHECK(r->seal == 0 || r->seal != token_of(&sc->s, j)->record.seal,
                      "one name, two records");
        }
        deaths += sc->deaths;
        rounds++;
        seg_free(&sc->s);
        free(sc);
    } while (seconds_now() - began < seconds);
    CHECK(deaths > 0, "nobody died");
    printf("  %8llu rounds of naming %5llu deaths\n", (unsigned long long)rounds,
           (unsigned long long)deaths);
}

int main(void)
{
    printf("%s: SEED=%llu\n", PROGRAM, (unsigned long long)env_number("SEED", 1));
    RUN(replacing_and_cancelling);
    RUN(naming);
    return report(PROGRAM);
}
