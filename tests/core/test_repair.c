/* test_repair.c - death at every step of every write, in one process: longjmp out of the hook.
 *
 * For each of many random segments and each kind of write: run it once undisturbed, then again
 * and again from the same bytes, dying at its 1st, 2nd, 3rd ... fault point until it gets
 * through.  After each death another client takes the shard over and repairs it (and sometimes
 * dies in that, too).  Proves, for every passage through every fault point:
 *   - every invariant holds after the repair
 *   - the key being written is as it was or as the write would have left it
 *   - every other key is untouched, or gone if the undisturbed write lets go of it as well
 *   - what the write could do, a survivor can do: at once, and also after ten deaths in a row at
 *     that very step (dying does not eat up room)
 *   - every fault point of a shard's writes is died at (else this test has a hole)
 *
 * SEGMENTS (environment) of each geometry, SEED where they start.
 */
#include <setjmp.h>

#include "support.h"

#define KEYS 64u
#define TARGET 0u  /* the key that is written */
#define COUNTER 1u /* holds an int */
#define LEASED 2u  /* present, and a lease beside it */
#define ABSENT 3u  /* never there before */
#define EPOCH 4u   /* of a namespace; KEYS up to OTHERS are not among those of its past */
#define OTHERS 5u
#define EXPIRED_AT 2000u
#define DEATHS_IN_A_ROW 10

void (*shm_fault_hook)(int point);
static unsigned die_in, deaths_at[SHM_FAULT_COUNT];
static jmp_buf death;

static void die_at_point(int point)
{
    if (die_in && --die_in == 0) {
        deaths_at[point]++;
        longjmp(death, 1);
    }
}

typedef struct state { /* what a reader sees of a key */
    bool present;
    uint64_t version, expiry, checksum;
    uint32_t len;
} state;

static seg s;
static tkey keys[KEYS], lease;
static uint64_t now;
static uint32_t large; /* bytes of a value that makes about the largest entry */

static state look(const shm_view *v, uint32_t k)
{
    static uint8_t buf[1 << 16];
    state st = {0};
    seg_value got;
    int r = seg_get(v, &keys[k].k, now, buf, sizeof buf, &got);
    CHECK(r == SHM_HIT || r == SHM_MISS, "key %u: %d", k, r);
    if (r == SHM_HIT)
        st = (state){true, got.version, got.expiry, shm_xxh64(buf, got.len, 0), got.len};
    return st;
}
static bool equal(const state *a, const state *b)
{
    return a->present == b->present && a->version == b->version && a->expiry == b->expiry &&
           a->checksum == b->checksum && a->len == b->len;
}

/* The epoch of namespace `a`, which is keys[EPOCH], or of another one. */
static int draw_epoch(const shm_view *v, char prefix)
{
    static tkey t;
    const uint8_t path[] = {1, 0, (uint8_t)prefix};
    uint64_t epoch = 0x123456789abcdef1u;
    shm_put put = {.value = &epoch,
                   .value_len = sizeof epoch,
                   .value_kind = SHM_V_INT,
                   .mode = SHM_PUT_ADD};
    tkey *to = prefix == 'a' ? &keys[EPOCH] : &t;
    to->k = shm_epoch_key(v, to->bytes, path, sizeof path, 0);
    return LOCKED(v, shard_of(v, to), now, shm_store(op, &to->k, &put));
}

static int store_lease(const shm_view *v, uint32_t k)
{
    shm_lease token = {.holder = v->me};
    shm_put put = {.value = &token,
                   .value_len = sizeof token,
                   .value_kind = SHM_V_LEASE,
                   .mode = SHM_PUT_ADD,
                   .expiry = shm_expiry_word(now + 1000, 0)};
    lease = keys[k];
    lease.k.data = lease.bytes;
    lease.k.kind |= SHM_K_LEASE;
    return LOCKED(v, shard_of(v, &lease), now, shm_store(op, &lease.k, &put));
}

#define WRITE_LIST(X)                                                                              \
    X(SET_NEW, ABSENT, "set of a new key")                                                         \
    X(GROW, TARGET, "overwrite by a large value")                                                  \
    X(SHRINK, TARGET, "overwrite by a small value")                                                \
    X(FILL, ABSENT, "set of a new large value")                                                    \
    X(ADD, ABSENT, "add")                                                                          \
    X(REPLACE, TARGET, "replace")                                                                  \
    X(CAS, TARGET, "cas")                                                                          \
    X(INCR, COUNTER, "incr")                                                                       \
    X(TOUCH, TARGET, "touch")                                                                      \
    X(REMOVE, TARGET, "remove")                                                                    \
    X(REMOVE_LEASED, LEASED, "remove with a lease")                                                \
    X(SET_LEASED, LEASED, "set with a lease")                                                      \
    X(DRAW_EPOCH, ABSENT, "epoch")                                                                 \
    X(DROP_EPOCH, EPOCH, "removal of an epoch")                                                    \
    X(LEASE, ABSENT, "lease")                                                                      \
    X(SWEEP, ABSENT, "sweep")                                                                      \
    X(CLEAR, ABSENT, "clear")
#define WRITE_ENUM(id, key, name) id,
#define WRITE_KEY(id, key, name) key,
#define WRITE_NAME(id, key, name) name,
enum { WRITE_LIST(WRITE_ENUM) WRITES };
static const uint32_t write_key[] = {WRITE_LIST(WRITE_KEY)};
static const char *const write_names[] = {WRITE_LIST(WRITE_NAME)};

static int do_write(const shm_view *v, int what)
{
    static uint8_t buf[1 << 16];
    const tkey *t = &keys[write_key[what]];
    uint32_t shard = shard_of(v, t);
    shm_put put = {0};
    int64_t n;
    uint64_t version;
    fill_value(buf, large, t->id, 77);
    switch (what) {
    case SET_NEW: return seg_set(v, t, 40, 77, 0, now);
    case FILL: return seg_set(v, t, large, 77, 0, now);
    case GROW: return seg_set(v, t, large, 77, shm_expiry_word(now + 500, 0), now);
    case SHRINK: return seg_set(v, t, 20, 77, 0, now);
    case ADD: return seg_set_mode(v, t, buf, 60, 0, now, SHM_PUT_ADD, NULL);
    case REPLACE: return seg_set_mode(v, t, buf, 60, 0, now, SHM_PUT_REPLACE, NULL);
    case CAS:
        version = look(v, TARGET).version;
        return seg_set_mode(v, t, buf, 90, 0, now, SHM_PUT_CAS, &version);
    case INCR: return LOCKED(v, shard, now, shm_incr(op, &t->k, 5, 0, &put, &n));
    case TOUCH: return LOCKED(v, shard, now, shm_touch(op, &t->k, shm_expiry_word(now + 900, 100)));
    case REMOVE:
    case REMOVE_LEASED: return seg_remove(v, t, now);
    case SET_LEASED: return seg_set(v, t, 40, 77, 0, now);
    case DRAW_EPOCH: return draw_epoch(v, 'b');
    case DROP_EPOCH: return seg_remove(v, &keys[EPOCH], now);
    case LEASE: return store_lease(v, ABSENT);
    case SWEEP: return LOCKED(v, 0, now, (int)shm_sweep_round(op));
    default: return LOCKED(v, 0, now, (int)shm_clear_slots(op, 0, v->slot_count));
    }
}

/* Crowd one bucket until a new key, which becomes ABSENT, would raise the probe limit. */
static void crowd(void)
{
    for (uint64_t id = 1000; id < 4000; id++) {
        shm_found f;
        shm_op op;
        make_key(&s.view, &keys[ABSENT], id, 8);
        if (shm_home_bucket(&s.view, keys[ABSENT].k.hash) != 0)
            continue;
        shm_op_begin(&op, &s.view, 0, now);
        if (shm_lookup(&op, &keys[ABSENT].k, &f) == SHM_HIT && f.free != SHM_NO_SLOT &&
            f.free_bucket >= op.sh->probe_limit)
            return;
        seg_set(&s.view, &keys[ABSENT], 16, 1, 0, now);
    }
}

/* A segment with a past: the logs have wrapped, some keys expire, some were removed. */
static bool make_past(const seg_options *o, uint64_t seed, bool crowded)
{
    rng r = {seed};
    shm_put put = {0};
    int64_t n;
    bool good;
    seg_make(&s, o);
    now = 1000;
    large = (s.view.max_entry_units - 5) * SHM_UNIT;
    for (uint32_t k = 0; k < KEYS; k++)
        make_key(&s.view, &keys[k], k, 8 + k % 24);
    for (int i = 0; i < 400; i++) {
        uint32_t k = OTHERS + rnd_below(&r, KEYS - OTHERS);
        uint32_t len =
            rnd_below(&r, 12) ? 16 + rnd_below(&r, large / 12) : 16 + rnd_below(&r, large - 15);
        if (rnd_below(&r, 6) == 0)
            seg_remove(&s.view, &keys[k], now);
        else
            seg_set(&s.view, &keys[k], len, (uint64_t)i,
                    rnd_below(&r, 5) ? 0 : shm_expiry_word(EXPIRED_AT - 5 + rnd_below(&r, 10), 0),
                    now);
        if (rnd_below(&r, 3) == 0)
            look(&s.view, k);
    }
    good = seg_set(&s.view, &keys[TARGET], 100, 1, 0, now) == SHM_HIT;
    good &= LOCKED(&s.view, 0, now, shm_incr(op, &keys[COUNTER].k, 3, 0, &put, &n)) == SHM_HIT;
    good &= seg_set(&s.view, &keys[LEASED], 50, 1, 0, now) == SHM_HIT;
    good &= store_lease(&s.view, LEASED) == SHM_HIT;
    good &= draw_epoch(&s.view, 'a') == SHM_HIT;
    if (crowded)
        crowd();
    now = EXPIRED_AT;
    return good; /* under keep it may be full already: then there is nothing to interrupt */
}

/* Attempt `what` as a client of its own generation; true: it died at its `point`-th fault point. */
static bool attempt(int what, unsigned point, uint32_t generation, volatile int *result)
{
    shm_view v;
    seg_view(&s, &v, 1, generation);
    if (setjmp(death)) {
        seg_mark_dead(v.me);
        return true;
    }
    die_in = point;
    *result = do_write(&v, what);
    die_in = 0;
    return false;
}

static void take_over(unsigned die_in_repair, uint32_t *generation)
{
    shm_view v;
    seg_view(&s, &v, 2, ++*generation);
    if (setjmp(death) == 0) {
        die_in = die_in_repair;
        seg_lock(&v, 0);
        die_in = 0;
        seg_unlock(&v, 0);
    } else {
        seg_mark_dead(v.me);
    }
    seg_verify(&s.view, "after the repair");
}

static void die_everywhere(int what)
{
    static state before[KEYS], after[KEYS];
    size_t size = s.sb.total_size;
    uint8_t *past = malloc(size);
    uint32_t generation = 0, k, target = write_key[what];
    volatile int undisturbed = 0, result = 0;
    uint64_t invalidations = RD(shm_invalidations(&s.view));
    bool died = true, may_refuse, alone = what < SWEEP;

    memset(seg_dead_up_to, 0, sizeof seg_dead_up_to);
    memcpy(past, s.base, size);
    for (k = 0; k < KEYS; k++)
        before[k] = look(&s.view, k);
    memcpy(s.base, past, size);
    attempt(what, 0, ++generation, &undisturbed);
    for (k = 0; k < KEYS; k++)
        after[k] = look(&s.view, k);
    for (unsigned point = 1; died && case_failures == 0; point++) {
        CHECK(point < 100000, "a write without end");
        for (unsigned again = 0; again < 3 && case_failures == 0; again++) {
            memcpy(s.base, past, size);
            died = attempt(what, point, ++generation, &result);
            if (!died)
                break;
            if (again)
                take_over(again, &generation); /* dies in the repair, before or after its work */
            take_over(0, &generation);
            for (k = 0; k < KEYS; k++) {
                state st = look(&s.view, k);
                bool as_before = equal(&st, &before[k]), as_after = equal(&st, &after[k]);
                CHECK(as_before || as_after || (k != target && !after[k].present && !st.present),
                      "%s: key %u after death at passage %u", write_names[what], k, point);
            }
            CHECK(!before[EPOCH].present || look(&s.view, EPOCH).present ||
                      RD(shm_invalidations(&s.view)) != invalidations,
                  "%s: an epoch went uncounted at passage %u", write_names[what], point);
        }
        if (!died)
            break;
        for (int i = 0; i < DEATHS_IN_A_ROW && died; i++) {
            died = attempt(what, point, ++generation, &result);
            if (died)
                take_over(0, &generation);
        }
        died = true;
        attempt(what, 0, ++generation, &result);
        seg_verify(&s.view, "after the survivor's write");
        may_refuse = seg_may_refuse(&s.view, 0, s.view.max_entry_units, 0);
        CHECK(result != SHM_CORRUPT && (result != SHM_FULL || may_refuse),
              "%s: %d instead of %d after deaths at passage %u", write_names[what], result,
              undisturbed, point);
        if (alone && what != REMOVE && what != REMOVE_LEASED && what < DRAW_EPOCH &&
            result == SHM_HIT)
            CHECK(look(&s.view, target).present, "%s: not there in the end", write_names[what]);
    }
    if (case_failures)
        fprintf(stderr, "  in %s\n", write_names[what]);
    memcpy(s.base, past, size);
    free(past);
}

static void geometry(const char *name, bool crowded, const seg_options *o)
{
    uint64_t n = env_number("SEGMENTS", 4), seed = env_number("SEED", 1), made = 0;
    unsigned before = 0, after = 0;
    for (unsigned i = 0; i < SHM_FAULT_COUNT; i++)
        before += deaths_at[i];
    case_begin(name);
    for (uint64_t i = 0; i < n && case_failures == 0; i++) {
        if (make_past(o, seed + i, crowded)) {
            made++;
            for (int what = 0; what < WRITES && case_failures == 0; what++)
                die_everywhere(what);
        }
        if (case_failures)
            fprintf(stderr, "  SEED=%llu SEGMENTS=1 repeats it\n", (unsigned long long)(seed + i));
        seg_free(&s);
    }
    CHECK(made > 0, "no segment had room for the test");
    for (unsigned i = 0; i < SHM_FAULT_COUNT; i++)
        after += deaths_at[i];
    printf("  %-26s %llu segments, %u deaths\n", name, (unsigned long long)made, after - before);
    case_end();
}

/* Rings, swap slots, tokens and their names die in test_ring.c and test_swap.c. */
static bool of_a_shard(const char *point)
{
    static const char *const elsewhere[] = {"ring_", "swap_", "token_", "record_"};
    for (unsigned i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        if (strncmp(point, elsewhere[i], strlen(elsewhere[i])) == 0)
            return false;
    return true;
}

static void every_point_was_died_at(void)
{
#define NAME(name) #name,
    static const char *const names[] = {SHM_FAULT_LIST(NAME)};
    for (unsigned i = 0; i < SHM_FAULT_COUNT; i++)
        CHECK(deaths_at[i] > 0 || !of_a_shard(names[i]), "nobody died at %s", names[i]);
}

int main(void)
{
    shm_fault_hook = die_at_point;
#define G(...) &(seg_options){__VA_ARGS__}
#define E .policy = SHM_POLICY_EVICT
#define K .policy = SHM_POLICY_KEEP
    printf("test_repair: SEED=%llu\n", (unsigned long long)env_number("SEED", 1));
    geometry("evict, two logs", false,
             G(E, .buckets = 16, .main_units = 900, .probation_units = 120));
    geometry("evict, one log", false, G(E, .buckets = 16, .main_units = 900));
    geometry("evict, full buckets", false,
             G(E, .buckets = 4, .main_units = 1200, .probation_units = 120));
    geometry("keep", false, G(K, .buckets = 16, .main_units = 1500));
    geometry("keep, larger than needed", false, G(K, .buckets = 16, .main_units = 3000));
    geometry("keep, small entries", false,
             G(K, .buckets = 16, .main_units = 700, .max_entry_units = 14));
    geometry("keep, spilling buckets", true, G(K, .buckets = 10, .main_units = 2000));
    RUN(every_point_was_died_at);
    return report("test_repair");
}
