/* fuzz.c - a hostile segment: bytes are flipped anywhere, then everything is called on it.
 *
 * The segment lies between two pages without access; under AddressSanitizer everything else that
 * the core must not look at after attaching is poisoned besides: the superblock but for its count
 * of invalidations, all regions but the clients', and all shards but the one that is operated on.
 * Only while an epoch is looked up, which may lie in any shard, all of them may be read, and none
 * may change.  Proves, by trying: whatever was flipped, no call reads or writes outside of that,
 * divides by zero, overflows a signed number, or runs for long.  Every loop is watched twice: by
 * the units and slots it can have walked (the longest call is printed), and by an alarm.
 *
 * A round starts from a sound segment with a past, flips a few bytes - at random, or at the
 * fields that steer loops and copies: slot words, entry headers, heads, tails, largest, counts,
 * the note, limits, the sweep's place, the holder - and calls reads, iteration, writes, counters,
 * touch, sweeps, clears, repair and verify in random order, flipping more in between.
 *
 * FUZZ_SECONDS (default 5), SEED (default: the time; always printed).  ROUND=n repeats one round.
 */
#include <signal.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sys/wait.h>
#define POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

#include "epoch.h"

static bool watched_epoch_stale(shm_op *op, const shm_hit *hit);
#define shm_epoch_stale watched_epoch_stale /* for all that is above epoch.h */

#include "support.h"

#define KEYS 48u
#define SPACED 32u /* keys from here on belong to a namespace */
#define MOST_REVOLUTIONS 8.0 /* pacing, making room, and by force; in two logs, one in the other */
#define STUCK_SECONDS 10u    /* for one call; a sound one takes microseconds */

static uint64_t seed, round_number, calls, flips, corrupt, longest_ns;
static double furthest; /* a call walked, in revolutions of its shard's logs */
static const char *call_name = "none", *longest_call = "none";

static void stuck(int signal_number)
{
    static char line[200];
    int n = snprintf(line, sizeof line, "fuzz: %s does not end: SEED=%llu ROUND=%llu repeats it\n",
                     call_name, (unsigned long long)seed, (unsigned long long)round_number);
    (void)signal_number;
    if (write(2, line, (size_t)n) < 0)
        _exit(4);
    _exit(3);
}

typedef struct target {
    seg s;
    uint8_t *sound; /* the segment's bytes before anything was flipped */
    tkey key[KEYS];
    uint64_t now;
} target;

static target *under_test; /* and the shard that is operated on */
static uint32_t own_shard;
static uint64_t epochs_asked;

static void shut_others(void)
{
    const shm_view *v = &under_test->s.view;
    for (uint32_t n = 0; n < v->shard_count; n++)
        if (n != own_shard)
            POISON((uint8_t *)shm_shard_at(v, n), under_test->s.sb.shard_stride);
}

static uint64_t sum_of_shards(void)
{
    return shm_xxh64((uint8_t *)shm_shard_at(&under_test->s.view, 0),
                     under_test->s.sb.shard_stride * under_test->s.sb.shard_count, 0);
}

/* An epoch is looked up: every shard may be read, and none may change. */
#undef shm_epoch_stale
static bool watched_epoch_stale(shm_op *op, const shm_hit *hit)
{
    uint64_t before;
    bool stale;
    if (!under_test || !(hit->key_kind & SHM_K_NAMESPACED))
        return shm_epoch_stale(op, hit);
    epochs_asked++;
    UNPOISON((uint8_t *)shm_shard_at(&under_test->s.view, 0),
             under_test->s.sb.shard_stride * under_test->s.sb.shard_count);
    before = sum_of_shards();
    stale = shm_epoch_stale(op, hit);
    CHECK(sum_of_shards() == before, "a look-up of an epoch has changed something");
    shut_others();
    return stale;
}

/* Nothing but the clients and shard i may be touched; SHM_NO_SLOT: everything may. */
static void allow(target *t, uint32_t i)
{
    seg *s = &t->s;
    under_test = i == SHM_NO_SLOT ? NULL : t;
    own_shard = i;
    if (i == SHM_NO_SLOT) {
        UNPOISON(s->base, s->sb.total_size);
        return;
    }
    POISON(s->base, s->sb.total_size);
    UNPOISON(s->base + s->sb.clients_off, SEG_CLIENTS * sizeof(shm_client));
    UNPOISON((uint8_t *)shm_shard_at(&s->view, i), s->sb.shard_stride);
    UNPOISON(s->base + offsetof(shm_superblock, invalidations), 8);
}

static uint64_t edge(rng *r)
{
    static const uint64_t edges[] = {0,
                                     1,
                                     2,
                                     7,
                                     8,
                                     15,
                                     16,
                                     0x7fff,
                                     0xffff,
                                     0x10000,
                                     0x7fffffff,
                                     0x80000000,
                                     0xfffffffe,
                                     0xffffffff,
                                     0x100000000,
                                     0x7fffffffffffffff,
                                     0x8000000000000000,
                                     ~0ull,
                                     ~1ull};
    return edges[rnd_below(r, sizeof edges / sizeof *edges)];
}

/* Another value for `size` bytes at `p`: one bit, an edge, a small step, or anything. */
static void twist(rng *r, void *p, size_t size)
{
    uint64_t x = 0;
    memcpy(&x, p, size);
    switch (rnd_below(r, 5)) {
    case 0: x ^= 1ull << rnd_below(r, (uint32_t)size * 8); break;
    case 1: x = edge(r); break;
    case 2: x += rnd_below(r, 33) - 16ull; break;
    case 3: x = rnd(r); break;
    default: x = (x & ~0xffffull) | (rnd(r) & 0xffff);
    }
    memcpy(p, &x, size);
    flips++;
}

static void flip(target *t, rng *r)
{
    const shm_view *v = &t->s.view;
    uint32_t i = rnd_below(r, v->shard_count), l = rnd_below(r, v->log[1].units ? 2 : 1), n;
    shm_shard *sh = shm_shard_at(v, i);
    uint64_t *index = shm_index_of(v, sh), w, *header;
    static const struct {
        size_t off, size;
    } field[] = {
#define F(f) {offsetof(shm_shard, f), sizeof(((shm_shard *)0)->f)}
        F(holder),
        F(probe_limit),
        F(note.armed),
        F(note.slot),
        F(note.word),
        F(note.counts.entries),
        F(note.counts.leases),
        F(note.counts.live_units[0]),
        F(note.counts.live_units[1]),
        F(counts.entries),
        F(counts.leases),
        F(counts.live_units[0]),
        F(counts.live_units[1]),
        F(version),
        F(ghost_seq),
        F(head[0]),
        F(head[1]),
        F(tail[0]),
        F(tail[1]),
        F(largest[0][0]),
        F(largest[0][1]),
        F(largest[1][0]),
        F(largest[1][1]),
        F(moves_in_a_row),
        F(main_filled),
        F(min_expiry),
        F(sweep_min),
        F(sweep_slot),
        F(worst_write_units)};
#undef F
    allow(t, SHM_NO_SLOT);
    switch (rnd_below(r, 8)) {
    case 0: /* any byte of the segment */
        t->s.base[rnd(r) % t->s.sb.total_size] = (uint8_t)rnd(r);
        flips++;
        break;
    case 1: /* the superblock, after the attach */
        twist(r, t->s.base + 8 * rnd_below(r, sizeof(shm_superblock) / 8), 8);
        break;
    case 2: /* a slot */ twist(r, index + rnd_below(r, v->slot_count), 8); break;
    case 3: /* one slot becomes another's twin, or names the log's other places */
        w = index[rnd_below(r, v->slot_count)];
        n = rnd_below(r, v->slot_count);
        index[n] = rnd_below(r, 2)
                       ? w
                       : (w & (SHM_W_TAG | SHM_W_VISITED)) |
                             shm_make_word(0, l, sh->head[l] + rnd_below(r, v->log[l].units), 0);
        flips++;
        break;
    case 4: /* the header of an entry that a slot names */
        w = index[rnd_below(r, v->slot_count)];
        l = shm_word_log(w);
        if (!shm_word_live(w) || (shm_word_pos(w) & v->log[l].off_mask) >= v->log[l].units)
            break;
        header = (uint64_t *)(shm_log_base(v, sh, l) +
                              (shm_word_pos(w) & v->log[l].off_mask) * SHM_UNIT);
        if (rnd_below(r, 2))
            twist(r, header, 4); /* value_len */
        else
            twist(r, (uint8_t *)header + 4 + rnd_below(r, 20), 1);
        break;
    case 5: /* what the head meets next */
        n = shm_pos_off(&v->log[l], sh->head[l]);
        if (n < v->log[l].units)
            twist(r, shm_log_base(v, sh, l) + (uint64_t)n * SHM_UNIT + rnd_below(r, 2) * 4, 4);
        break;
    default:
        n = rnd_below(r, sizeof field / sizeof *field);
        twist(r, (uint8_t *)sh + field[n].off, field[n].size);
    }
}

static void hold(target *t, uint32_t i) /* the lock's word may have been flipped: that is the */
{                                       /* binding's business (LockTimeout), not this test's */
    WR(&shm_shard_at(&t->s.view, i)->holder, t->s.view.me);
}

static int call(target *t, rng *r, shm_op *op)
{
    static uint8_t buf[1 << 20];
    const shm_view *v = &t->s.view;
    const tkey *k = &t->key[rnd_below(r, KEYS)];
    uint32_t i = shard_of(v, k), s;
    shm_put put = {.value = buf, .value_kind = SHM_V_BYTES, .mode = (uint8_t)rnd_below(r, 5)};
    shm_findings found = {0};
    shm_hit hit;
    shm_key key = k->k;
    seg_value got;
    int64_t n;
    shm_claim claim = {.me = v->me, .deadline = rnd(r), .unfit = rnd_below(r, 1000)};
    uint64_t whose;

    allow(t, i);
    if (rnd_below(r, 2))
        shm_lease_find(v, &key, &whose, &claim.dead);
    if (rnd_below(r, 8) == 0)
        key.kind |= SHM_K_LEASE;
    shm_op_begin(op, v, i, t->now);
    put.value_len = rnd_below(r, 4) ? rnd_below(r, 200) : rnd_below(r, v->max_entry_units * 16);
    put.expiry = rnd_below(r, 3)
                     ? 0
                     : shm_expiry_word(t->now + rnd_below(r, 100), rnd(r) >> rnd_below(r, 64));
    switch (rnd_below(r, 13)) {
    case 0:
    case 1: call_name = "get"; return seg_get(v, &key, t->now, buf, sizeof buf, &got);
    case 2:
        call_name = "iteration";
        for (s = 0; s < v->slot_count; s++)
            if (shm_slot_entry(v, i, s, &hit) == SHM_HIT) {
                shm_bytes_copy(buf, hit.key, hit.key_len);
                shm_bytes_copy(buf, hit.value,
                               hit.value_len < sizeof buf ? hit.value_len : sizeof buf);
                shm_hit_valid(v, &hit);
            }
        return SHM_HIT;
    case 3:
        call_name = "prefetch";
        shm_prefetch_bucket(v, key.hash);
        shm_prefetch_entry(v, key.hash);
        return SHM_HIT;
    case 4:
        call_name = "touch";
        hold(t, i);
        return shm_touch(op, &key, put.expiry);
    case 5:
        call_name = "incr";
        hold(t, i);
        return shm_incr(op, &key, (int64_t)edge(r), (int64_t)edge(r), &put, &n);
    case 6:
        call_name = "remove";
        hold(t, i);
        return shm_remove(op, &key, rnd_below(r, 2) * 7);
    case 7:
        call_name = "sweep";
        hold(t, i);
        return (int)(rnd_below(r, 2) ? shm_sweep_round(op) : shm_sweep(op, rnd_below(r, 64))) >= 0;
    case 8:
        if (rnd_below(r, 4)) {
            call_name = "verify";
            hold(t, i);
            shm_verify_shard(op, &found);
        } else if (rnd_below(r, 4)) {
            call_name = "repair";
            hold(t, i);
            shm_repair(v, op->sh);
        } else {
            call_name = "clear";
            hold(t, i);
            shm_clear_slots(op, rnd_below(r, 2) * (uint32_t)rnd(r), (uint32_t)rnd(r));
        }
        return SHM_HIT;
    case 9:
        call_name = "lease";
        hold(t, i);
        if (rnd_below(r, 3) == 0)
            return shm_lease_release(op, &key, rnd_below(r, 2) ? claim.dead : rnd_below(r, 1000));
        return shm_lease_take(op, &key, &claim);
    default:
        call_name = "set";
        put.keep_expiry = rnd_below(r, 2);
        hold(t, i);
        return shm_store(op, &key, &put);
    }
}

/* `ab`, or `cd` in it; their epochs are 7 and 9 but for one key in four, whose own is gone. */
static void into_namespace(target *t, tkey *k)
{
    static const uint8_t path[] = "\2\0ab\2\0cd";
    const shm_view *v = &t->s.view;
    uint8_t room[SHM_MAX_PATH + 10];
    uint16_t n = k->id % 2 ? 4 : 8;
    uint64_t epoch = k->id % 4 == 3 ? 5 : n == 4 ? 7 : 9, id = k->id;
    for (uint32_t level = 4; level <= 8; level += 4) {
        shm_key key = shm_epoch_key(v, room, path, level, level == 4 ? 0 : 7);
        uint64_t drawn = level == 4 ? 7 : 9;
        shm_put put = {.value = &drawn, .value_len = 8, .value_kind = SHM_V_INT,
                       .mode = SHM_PUT_ADD};
        LOCKED(v, shm_shard_of(v, key.hash), t->now, shm_store(op, &key, &put));
    }
    memcpy(k->bytes, &n, 2);
    memcpy(k->bytes + 2, path, n);
    memcpy(k->bytes + 2 + n, &epoch, 8);
    memcpy(k->bytes + 10 + n, &id, 8);
    k->k.len = n + 18u;
    k->k.kind |= SHM_K_NAMESPACED;
    k->k.hash = shm_key_hash(v->seed, k->k.kind, k->bytes, k->k.len);
}

static void make_target(target *t, const seg_options *o, rng *r)
{
    int64_t n;
    seg_make(&t->s, o);
    POISON(t->s.map + 4096, (size_t)(t->s.base - t->s.map) - 4096); /* up to the page before it */
    t->now = 1000;
    for (uint32_t k = 0; k < KEYS; k++)
        make_key(&t->s.view, &t->key[k], k, 8 + k % 40);
    for (uint32_t k = SPACED; k < KEYS; k++)
        into_namespace(t, &t->key[k]);
    for (int i = 0; i < 600; i++) {
        const tkey *k = &t->key[rnd_below(r, KEYS)];
        shm_put put = {0};
        if (k->id < 4)
            LOCKED(&t->s.view, shard_of(&t->s.view, k), t->now,
                   shm_incr(op, &k->k, 1, 0, &put, &n));
        else if (rnd_below(r, 6) == 0)
            seg_remove(&t->s.view, k, t->now);
        else
            seg_set(&t->s.view, k,
                    rnd_below(r, 10) ? rnd_below(r, 150)
                                     : rnd_below(r, t->s.view.max_entry_units * 12),
                    7, rnd_below(r, 4) ? 0 : shm_expiry_word(1050, 30), t->now);
    }
    t->sound = malloc(t->s.sb.total_size);
    memcpy(t->sound, t->s.base, t->s.sb.total_size);
}

static void one_round(target *t, rng *r)
{
    uint32_t n = 1 + rnd_below(r, 30), i;
    memcpy(t->s.base, t->sound, t->s.sb.total_size);
    t->now = 1000 + rnd_below(r, 100);
    for (i = 1 + rnd_below(r, 4); i; i--)
        flip(t, r);
    alarm(STUCK_SECONDS);
    for (i = 0; i < n; i++) {
        const shm_log_view *logs = t->s.view.log;
        struct timespec a, b;
        shm_op op = {0};
        double revolutions;
        uint64_t ns;
        int what;
        clock_gettime(CLOCK_MONOTONIC, &a);
        what = call(t, r, &op);
        clock_gettime(CLOCK_MONOTONIC, &b);
        corrupt += what == SHM_CORRUPT;
        CHECK(what >= SHM_BUSY && what <= SHM_HIT, "%s returned %d", call_name, what);
        calls++;
        revolutions = ((double)op.walked[0] + op.walked[1]) / (logs[0].units + logs[1].units);
        CHECK(revolutions <= MOST_REVOLUTIONS, "%s walked %llu and %llu units", call_name,
              (unsigned long long)op.walked[0], (unsigned long long)op.walked[1]);
        if (revolutions > furthest)
            furthest = revolutions;
        ns = (uint64_t)(b.tv_sec - a.tv_sec) * 1000000000u + (uint64_t)b.tv_nsec -
             (uint64_t)a.tv_nsec;
        if (ns > longest_ns) {
            longest_ns = ns;
            longest_call = call_name;
        }
        if (rnd_below(r, 6) == 0)
            flip(t, r);
    }
    alarm(0);
    allow(t, SHM_NO_SLOT);
}

/* Is what this program relies on there?  A step outside must be seen, in both directions. */
static void the_fences_hold(target *t)
{
#if defined(__SANITIZE_ADDRESS__)
    uint8_t *shard = (uint8_t *)shm_shard_at(&t->s.view, 0); /* behind it: the next one */
    uint8_t *outside[] = {t->s.base, shard - 8, shard + t->s.sb.shard_stride, t->s.base - 8};
    for (int i = 0; i < 4; i++) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) {
            if (!freopen("/dev/null", "w", stderr))
                _exit(0);
            allow(t, 0);
            RD((uint64_t *)outside[i]);
            _exit(0);
        }
        waitpid(child, &status, 0);
        CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != 0, "a load at %d was not seen", i);
    }
#endif
    (void)t;
}

int main(void)
{
    static const seg_options shapes[] = {
        {.policy = SHM_POLICY_EVICT,
         .shards = 2,
         .buckets = 8,
         .main_units = 500,
         .probation_units = 100},
        {.policy = SHM_POLICY_EVICT, .buckets = 16, .main_units = 1024},
        {.policy = SHM_POLICY_KEEP, .shards = 2, .buckets = 8, .main_units = 900},
        {.policy = SHM_POLICY_EVICT,
         .buckets = 2,
         .main_units = 33,
         .probation_units = 9,
         .max_entry_units = 8},
        {.policy = SHM_POLICY_KEEP, .buckets = 4, .main_units = 1 << 15}};
    enum { SHAPES = sizeof shapes / sizeof *shapes };
    static target t[SHAPES];
    double until = seconds_now() + (double)env_number("FUZZ_SECONDS", 5);
    uint64_t only = env_number("ROUND", 0);
    rng r;

    seed = env_number("SEED", (uint64_t)time(NULL));
    printf("fuzz: SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    signal(SIGALRM, stuck);
    case_begin("fuzz");
    for (int i = 0; i < SHAPES; i++) {
        r.s = (uint64_t)i;
        make_target(&t[i], &shapes[i], &r);
    }
    for (int i = 0; i < SHAPES; i++)
        the_fences_hold(&t[i]);
    for (round_number = only ? only : 1;
         (only ? round_number == only : seconds_now() < until) && case_failures == 0;
         round_number++) {
        r.s = mix(seed) + mix(round_number);
        one_round(&t[round_number % SHAPES], &r);
    }
    CHECK(only || corrupt > 0, "nothing was ever found corrupt: too little is flipped");
    CHECK(only || epochs_asked > 0, "no epoch was ever looked up");
    if (case_failures)
        fprintf(stderr, "  SEED=%llu ROUND=%llu repeats it\n", (unsigned long long)seed,
                (unsigned long long)(round_number - 1));
    printf("  %llu rounds, %llu flips, %llu calls, %llu found corrupt, the longest (%s) %.2f ms, "
           "the furthest walk %.2f revolutions\n",
           (unsigned long long)round_number - 1, (unsigned long long)flips,
           (unsigned long long)calls, (unsigned long long)corrupt, longest_call,
           (double)longest_ns / 1e6, furthest);
    case_end();
    return report("fuzz");
}
