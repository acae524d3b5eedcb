/* test_ring.c - latency rings: threads for processes, on rings so small that they wrap all the time.
 *
 * Built twice, as stress.c is: under ThreadSanitizer, where an access to shared memory that is not
 * atomic is a data race, and plainly with -O2.
 *
 * Recorders record durations whose numbers they count, and now and then die at a fault point
 * (longjmp); drainers take samples out, readers read, and all of them name rings at once, dying in
 * that too.  Proves:
 *   - nothing is read that nobody recorded; nothing is taken out more often than it was recorded;
 *     and where the ring is large enough, everything is taken out exactly once
 *   - totals are exact but for the last samples of the dead
 *   - a name has one ring, rings lie apart, and all names fit, whoever died while naming
 *
 * SECONDS_EACH (default 2) is shared out among the rounds; SEED is where random numbers start.
 */
#include <pthread.h>
#include <setjmp.h>

#include "support.h"

#define RECORDERS 3u
#define DRAINERS 2u
#define THREADS (RECORDERS + DRAINERS + 1)
#define VALUES 512u /* nanoseconds: below 1,024 samples are exact */
#define EACH 20000u
#define RINGS 18u
#define REGION (256u << 10)
#define MOST 4096u

void (*shm_fault_hook)(int point);
static _Thread_local unsigned die_in;
static _Thread_local jmp_buf death;

static void die_at_point(int point)
{
    (void)point;
    if (die_in && --die_in == 0)
        longjmp(death, 1);
}

typedef struct scene {
    shm_rings_view rings;
    shm_ring_view ring;
    uint64_t recorded[VALUES], taken[VALUES], sum, cut, dead[THREADS * 64];
    uint32_t running, lapped;
    bool deadly;
} scene;

typedef struct worker {
    scene *sc;
    uint32_t id;
    pthread_t thread;
} worker;

#define ADD(p, n) __atomic_fetch_add((p), (n), __ATOMIC_RELAXED)

static void name_of(char name[SHM_NAME_SIZE], uint32_t i)
{
    memset(name, 0, SHM_NAME_SIZE);
    snprintf(name, SHM_NAME_SIZE, "ring %u", i);
}

/* Name ring i as client `id` of some generation, dying after `lives` fault points. */
static bool name_ring(scene *sc, uint32_t id, uint32_t generation, uint32_t i, unsigned lives)
{
    uint64_t me = (uint64_t)(id + 1) << SHM_L_CLIENT_SHIFT | generation, *holder, w;
    char name[SHM_NAME_SIZE];
    shm_ring_view r;
    int got;
    name_of(name, i);
    holder = shm_rings_holder(&sc->rings);
    if (setjmp(death)) {
        WRR(&sc->dead[id * 64 + generation], 1);
        return false;
    }
    die_in = lives;
    if (shm_ring_lookup(&sc->rings, name, &r) == SHM_HIT)
        return true;
    while (!shm_lock_try(holder, me)) {
        w = RD(holder);
        if (w && RDA(&sc->dead[shm_identity_client(w) * 64 + (uint32_t)w % 64]) &&
            shm_lock_take_over(holder, w, me))
            break;
        sched_yield();
    }
    got = shm_ring_lookup(&sc->rings, name, &r);
    if (got == SHM_MISS)
        got = shm_ring_name(&sc->rings, name, 64, &r);
    CHECK_EQ(got, SHM_HIT);
    shm_lock_release(holder);
    return true;
}

static void name_all(scene *sc, uint32_t id, rng *r)
{
    uint32_t generation = 1;
    for (uint32_t n = 0; n < RINGS - SHM_OWN_RINGS - 1; n++) {
        unsigned lives = sc->deadly && generation < 60 ? rnd_below(r, 8) : 0;
        if (!name_ring(sc, id, generation, (n + id * 3) % (RINGS - SHM_OWN_RINGS - 1), lives)) {
            generation++;
            n--;
        }
    }
    die_in = 0;
}

static void *record(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    rng r = {mix(w->id + 77)};
    name_all(sc, w->id, &r);
    for (uint32_t n = 0; n < EACH; n++) {
        uint32_t ns = rnd_below(&r, VALUES);
        ADD(&sc->recorded[ns], 1);
        ADD(&sc->sum, ns);
        if (setjmp(death)) {
            ADD(&sc->cut, 1);
            continue;
        }
        die_in = sc->deadly && n % 64 == 0 ? 1 + rnd_below(&r, 5) : 0;
        shm_ring_record(&sc->ring, ns, 1000 + n);
        die_in = 0;
    }
    __atomic_fetch_sub(&sc->running, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void *drain(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    uint64_t out[256];
    rng r = {mix(w->id + 99)};
    bool last;
    name_all(sc, w->id, &r);
    do {
        uint32_t n;
        last = RDA(&sc->running) == 0;
        while ((n = shm_ring_drain(&sc->ring, 1 + rnd_below(&r, 256), out)) != 0)
            for (uint32_t i = 0; i < n; i++) {
                CHECK(shm_sample_ns(out[i]) < VALUES, "taken: %llx", (long long)out[i]);
                ADD(&sc->taken[shm_sample_ns(out[i]) % VALUES], 1);
            }
    } while (!last);
    return NULL;
}

static void *look(void *arg)
{
    worker *w = arg;
    scene *sc = w->sc;
    static uint64_t out[MOST];
    rng r = {mix(w->id + 55)};
    name_all(sc, w->id, &r);
    while (RDA(&sc->running)) {
        uint32_t n = shm_ring_newest(&sc->ring, MOST, true, out);
        uint64_t claims = shm_ring_claims(&sc->ring);
        CHECK(claims <= RD(&sc->ring.ring->head), "%llu claimed", (long long)claims);
        CHECK(n <= sc->ring.capacity, "%u kept", n);
        for (uint32_t i = 0; i < n; i++)
            CHECK(shm_sample_ns(out[i]) < VALUES && RD(&sc->recorded[shm_sample_ns(out[i])]),
                  "nobody recorded %llx", (long long)out[i]);
    }
    return NULL;
}

static void play(uint32_t capacity, bool deadly)
{
    scene *sc = calloc(1, sizeof *sc);
    uint8_t *base = aligned_alloc(64, REGION * 8);
    shm_superblock sb = {.rings_size = REGION * 8, .ring_count = RINGS, .created_mono_ns = 5};
    char name[SHM_NAME_SIZE];
    worker workers[THREADS];
    uint64_t count = 0, recorded = 0, taken = 0;
    shm_ring_view a, b;

    memset(base, 0, REGION * 8);
    shm_rings_format(base, &sb);
    shm_rings_init(&sc->rings, base, &sb);
    name_of(name, RINGS);
    CHECK_EQ(shm_ring_name(&sc->rings, name, capacity, &sc->ring), SHM_HIT);
    CHECK_EQ(sc->ring.capacity, capacity);
    sc->deadly = deadly;
    sc->running = RECORDERS;
    shm_fault_hook = die_at_point;
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i] = (worker){.sc = sc, .id = i};
        pthread_create(&workers[i].thread, NULL,
                       i < RECORDERS ? record : i < RECORDERS + DRAINERS ? drain : look,
                       &workers[i]);
    }
    for (uint32_t i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    shm_fault_hook = NULL;

    for (uint32_t v = 0; v < VALUES; v++) {
        CHECK(sc->taken[v] <= sc->recorded[v], "%u ns: %llu of %llu", v, (long long)sc->taken[v],
              (long long)sc->recorded[v]);
        recorded += sc->recorded[v];
        taken += sc->taken[v];
    }
    for (uint32_t i = 0; i < sc->ring.buckets; i++)
        count += sc->ring.histogram[i];
    CHECK_EQ(sc->ring.ring->head, recorded);
    CHECK(count <= recorded && recorded - count <= sc->cut, "%llu counted", (long long)count);
    CHECK(sc->ring.ring->sum_ns <= sc->sum &&
              sc->sum - sc->ring.ring->sum_ns <= sc->cut * VALUES,
          "sum %llu of %llu", (long long)sc->ring.ring->sum_ns, (long long)sc->sum);
    CHECK(sc->ring.ring->max_ns < VALUES, "max");
    if (capacity >= RECORDERS * EACH)
        CHECK(taken <= recorded && recorded - taken <= sc->cut, "%llu taken", (long long)taken);
    if (!deadly)
        CHECK(count == recorded && sc->ring.ring->sum_ns == sc->sum &&
                  sc->ring.ring->max_ns == VALUES - 1,
              "totals");
    for (uint32_t i = 0; i < RINGS; i++) {
        CHECK_EQ(shm_ring_open(&sc->rings, i, &a), SHM_HIT);
        for (uint32_t j = 0; j < i; j++)
            CHECK(shm_ring_open(&sc->rings, j, &b) == SHM_HIT && shm_ring_apart(&a, &b),
                  "%u and %u overlap", i, j);
    }
    free(base);
    free(sc);
}

static void small_ring(void) { play(16, false); }
static void small_ring_with_deaths(void) { play(37, true); }
static void ring_for_all(void) { play(1u << 16, false); }
static void ring_for_all_with_deaths(void) { play(1u << 16, true); }

/* A recorder dies between its two steps in every lap: the word of an earlier lap is still there. */
static void a_missing_sample_is_left_out(void)
{
    uint8_t *base = aligned_alloc(64, REGION);
    shm_superblock sb = {.rings_size = REGION, .ring_count = RINGS};
    shm_rings_view v;
    shm_ring_view r;
    char name[SHM_NAME_SIZE];
    uint64_t out[16];

    memset(base, 0, REGION);
    shm_rings_init(&v, base, &sb);
    name_of(name, 0);
    CHECK_EQ(shm_ring_name(&v, name, 8, &r), SHM_HIT);
    shm_fault_hook = die_at_point;
    for (volatile uint32_t n = 0; n < 100; n++) {
        die_in = n % 5 == 3; /* at the first point that it passes: ring_placed */
        if (!setjmp(death))
            shm_ring_record(&r, n, 0);
        die_in = 0;
        for (uint32_t at = n + 1, i = 0; at-- > 0 && at + 8 > n;)
            if (at % 5 != 3) {
                CHECK(shm_ring_newest(&r, 16, false, out) > i, "%u is not kept after %u", at, n);
                CHECK_EQ(shm_sample_ns(out[i++]), at);
            }
        CHECK(shm_ring_newest(&r, 16, false, out) <= 7, "a missing sample is kept");
    }
    CHECK_EQ(shm_ring_drain(&r, 16, out), 6); /* of 92 to 99 those that are not 93 and 98 */
    for (uint32_t i = 0; i < 6; i++)
        CHECK_EQ(shm_sample_ns(out[i]), 92 + i + (i > 0) + (i > 4));
    shm_fault_hook = NULL;
    free(base);
}

static void steps_are_ordered_and_tight(void)
{
    for (uint32_t bits = 0; bits <= SHM_DURATION_STEP_BITS; bits++) {
        rng r = {bits};
        for (uint32_t n = 0; n < 20000; n++) {
            uint64_t x = rnd(&r) >> rnd_below(&r, 64);
            uint32_t step = shm_step_of(x, bits);
            uint64_t low = shm_step_low(step, bits), next = shm_step_low(step + 1, bits);
            CHECK(low <= x && x - low <= x >> bits, "%llx", (long long)x);
            CHECK(next > x || next == 0, "%llx ends at %llx", (long long)x, (long long)next);
            CHECK(step == 0 || shm_step_of(low - 1, bits) == step - 1, "%llx", (long long)low);
        }
    }
    for (uint32_t step = 0; step < 1u << SHM_S_DURATION_BITS; step++)
        (void)shm_sample_ns(step); /* of flipped bytes: no undefined shift */
}

int main(void)
{
    double end = seconds_now() + (double)env_number("SECONDS_EACH", 2);
    RUN(steps_are_ordered_and_tight);
    RUN(a_missing_sample_is_left_out);
    do {
        RUN(small_ring);
        RUN(small_ring_with_deaths);
        RUN(ring_for_all);
        RUN(ring_for_all_with_deaths);
    } while (seconds_now() < end);
    return report(PROGRAM);
}
