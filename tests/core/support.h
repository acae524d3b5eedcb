/* support.h - a segment made by C alone, and what every program of tests/core shares.
 *
 * A `seg` is a real segment (superblock, checksum and all) in anonymous memory.  Its last byte
 * touches a page without access and its first byte lies behind another, so that a step outside
 * faults even where no sanitizer looks.  Logs are small, so that they wrap all the time.
 *
 * "Processes" are views: each client has an identity of its own, and who is dead is what
 * seg_mark_dead() said, in place of the kernel.
 */
#ifndef SHMCACHE_TESTS_SUPPORT_H
#define SHMCACHE_TESTS_SUPPORT_H

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "atomics.h"
#ifdef SEG_BETWEEN /* what a reader does between two of its steps: the stress lets others run */
#undef RDA
#define RDA(p)                                                                                     \
    ({                                                                                             \
        __typeof__(*(p)) loaded_ = __atomic_load_n((p), __ATOMIC_ACQUIRE);                         \
        SEG_BETWEEN();                                                                             \
        loaded_;                                                                                   \
    })
#else
#define SEG_BETWEEN() ((void)0)
#endif
#include "core.h"

/* ------------------------------------------------------------------------------ reporting */
static unsigned cases_passed, cases_failed, case_failures;
static const char *case_name = "";

__attribute__((format(printf, 4, 5))) static void
fail_at(const char *file, int line, const char *condition, const char *format, ...)
{
    va_list args;
    if (__atomic_fetch_add(&case_failures, 1, __ATOMIC_RELAXED) >= 10)
        return;
    flockfile(stderr);
    fprintf(stderr, "%s:%d: %s: %s: ", file, line, case_name, condition);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    funlockfile(stderr);
}
#define FAIL(...) fail_at(__FILE__, __LINE__, "found", __VA_ARGS__)
#define CHECK(cond, ...)                                                                           \
    do {                                                                                           \
        if (!(cond))                                                                               \
            fail_at(__FILE__, __LINE__, #cond, " " __VA_ARGS__);                                   \
    } while (0)
#define CHECK_EQ(a, b)                                                                             \
    do {                                                                                           \
        long long a_ = (long long)(a), b_ = (long long)(b);                                        \
        if (a_ != b_)                                                                              \
            fail_at(__FILE__, __LINE__, #a, "is %lld, expected " #b " = %lld", a_, b_);            \
    } while (0)

static inline void case_begin(const char *name)
{
    case_name = name;
    case_failures = 0;
}
static inline void case_end(void)
{
    if (case_failures)
        fprintf(stderr, "FAILED %s: %u checks\n", case_name, case_failures);
    *(case_failures ? &cases_failed : &cases_passed) += 1;
}
#define RUN(f)                                                                                     \
    do {                                                                                           \
        case_begin(#f);                                                                            \
        f();                                                                                       \
        case_end();                                                                                \
    } while (0)

static inline int report(const char *program)
{
    printf("%s: %u passed, %u failed\n", program, cases_passed, cases_failed);
    return cases_failed != 0;
}

/* ------------------------------------------------------------------------------ numbers */
static inline uint64_t mix(uint64_t x) /* splitmix64's finaliser */
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}
typedef struct rng {
    uint64_t s;
} rng;
static inline uint64_t rnd(rng *r)
{
    return mix(r->s += 0x9e3779b97f4a7c15ull);
}
static inline uint32_t rnd_below(rng *r, uint32_t n)
{
    return (uint32_t)(rnd(r) % n);
}

static inline double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
/* SEED and SECONDS_EACH of the environment, printed by whoever uses them. */
static inline uint64_t env_number(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);
    return s && *s ? strtoull(s, NULL, 0) : otherwise;
}

/* ------------------------------------------------------------------------------ segments */
typedef struct seg_options { /* 0 means the default of the planner in geometry.py */
    uint32_t policy, shards, buckets, main_units, probation_units;
    uint32_t max_entry_units, budget_units, max_probe;
    uint64_t seed;
} seg_options;

typedef struct seg {
    uint8_t *map;
    size_t map_size;
    uint8_t *base;
    shm_superblock sb;
    shm_view view; /* of client 0, generation 1 */
} seg;

#define SEG_CLIENTS 64u

static void seg_plan(shm_superblock *sb, const seg_options *o)
{
    uint64_t index, end;
    memset(sb, 0, sizeof *sb);
    sb->client_count = SEG_CLIENTS;
    sb->nonce = 0x1234;
    sb->hash_seed = o->seed ? o->seed : 0x5eed;
    sb->policy = o->policy;
    memcpy(sb->codec, "raw", 3);
    sb->clients_off = sizeof *sb;
    sb->tokens_off = sb->clients_off + SEG_CLIENTS * sizeof(shm_client);
    sb->token_count = 4;
    sb->slots_off = sb->tokens_off + 4 * SHM_TOKEN_SIZE;
    sb->slot_count = 2;
    sb->slot_capacity = 64;
    sb->slot_stride = SHM_SLOT_HEADER_SIZE + 2 * 64;
    sb->rings_off = sb->slots_off + 2 * sb->slot_stride;
    sb->ring_count = 2;
    sb->rings_size = 2 * SHM_RING_HEADER_SIZE + 1024;
    sb->shards_off = (sb->rings_off + sb->rings_size + 127) / 128 * 128;
    sb->shard_count = o->shards ? o->shards : 1;
    sb->bucket_count = o->buckets;
    sb->main_units = o->main_units;
    sb->probation_units = o->probation_units;
    index = (uint64_t)o->buckets * SHM_LINE;
    sb->index_off = sizeof(shm_shard);
    sb->main_off = sb->index_off + index;
    sb->probation_off = sb->main_off + (uint64_t)o->main_units * SHM_UNIT;
    end = sb->probation_off + (uint64_t)o->probation_units * SHM_UNIT;
    sb->shard_stride = (end + SHM_LINE - 1) / SHM_LINE * SHM_LINE;
    sb->max_entry_units = o->max_entry_units ? o->max_entry_units : o->main_units / 6;
    sb->budget_units = o->budget_units ? o->budget_units
                       : o->policy == SHM_POLICY_KEEP
                           ? (uint32_t)(o->main_units * 0.86)
                           : (uint32_t)((o->main_units + o->probation_units) * 0.80);
    sb->max_probe_buckets = o->max_probe ? o->max_probe : o->policy == SHM_POLICY_KEEP ? 16 : 4;
    if (sb->max_probe_buckets > sb->bucket_count)
        sb->max_probe_buckets = sb->bucket_count;
    sb->total_size = sb->shards_off + sb->shard_count * sb->shard_stride;
}

/* A zeroed region of `size` bytes that ends where a page without access begins. */
static uint8_t *guarded(size_t size, uint8_t **map, size_t *map_size)
{
    size_t page = 4096, body = (size + page - 1) / page * page;
    uint8_t *m = mmap(NULL, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED || mprotect(m + page, body, PROT_READ | PROT_WRITE)) {
        perror("mmap");
        exit(2);
    }
    *map = m;
    *map_size = body + 2 * page;
    return m + page + (body - size);
}

static inline void seg_view(const seg *s, shm_view *v, uint32_t client, uint32_t generation)
{
    shm_view_init(v, s->base, &s->sb, client, generation);
}

static void seg_make(seg *s, const seg_options *o)
{
    int wrong;
    seg_plan(&s->sb, o);
    s->base = guarded(s->sb.total_size, &s->map, &s->map_size);
    shm_format(s->base, &s->sb);
    wrong = shm_check_superblock(&s->sb, s->sb.total_size);
    if (wrong != SHM_SB_OK) {
        fprintf(stderr, "the test's own geometry is refused: %d\n", wrong);
        exit(2);
    }
    seg_view(s, &s->view, 0, 1);
}
static void seg_free(seg *s)
{
    munmap(s->map, s->map_size);
}

/* Start the logs of every shard `laps` laps on: near the end of 44 bits, say. */
static void seg_start_at_lap(seg *s, uint64_t laps)
{
    for (uint32_t i = 0; i < s->sb.shard_count; i++)
        for (uint32_t l = 0; l < 2; l++) {
            shm_shard *sh = shm_shard_at(&s->view, i);
            sh->head[l] = sh->tail[l] = laps << s->view.log[l].off_bits;
        }
}

/* ------------------------------------------------------- the lock, and who is dead */
static uint32_t seg_dead_up_to[SEG_CLIENTS]; /* generations of a client that have died */

static inline void seg_mark_dead(uint64_t identity)
{
    WRR(&seg_dead_up_to[shm_identity_client(identity)], (uint32_t)identity);
}
static inline bool seg_is_dead(uint64_t identity)
{
    return (uint32_t)identity <= RDA(&seg_dead_up_to[shm_identity_client(identity)]);
}

/* Take a shard as the binding does, sched_yield() standing in for the semaphore. */
static inline void seg_lock(const shm_view *v, uint32_t shard)
{
    shm_shard *sh = shm_shard_at(v, shard);
    bool waited = false;
    if (shm_lock_spin(&sh->holder, v->me))
        return;
    for (;;) {
        uint64_t holder = shm_lock_or_contend(&sh->holder, v->me, waited);
        if (holder == 0)
            return;
        sched_yield();
        waited = true;
        if (holder != SHM_L_UNDECIDED && seg_is_dead(holder) &&
            shm_lock_take_over(&sh->holder, holder, v->me)) {
            shm_repair(v, sh);
            return;
        }
    }
}
static inline void seg_unlock(const shm_view *v, uint32_t shard)
{
    shm_lock_release(&shm_shard_at(v, shard)->holder);
}

/* Run `expression` (which uses `op`) inside the shard; its int is the result. */
#define LOCKED(v, shard, now, expression)                                                          \
    ({                                                                                             \
        shm_op op_, *op = &op_;                                                                    \
        int result_;                                                                               \
        seg_lock(v, shard);                                                                        \
        shm_op_begin(op, v, shard, now);                                                           \
        result_ = (int)(expression);                                                               \
        seg_unlock(v, shard);                                                                      \
        result_;                                                                                   \
    })

/* ------------------------------------------------------------------ keys and values */
#define KEY_MOST 96u

typedef struct tkey {
    shm_key k;
    uint64_t id;
    uint8_t bytes[KEY_MOST];
} tkey;

/* The key `id`, `len` bytes long (8 at least: the id is in it). */
static inline tkey *make_key(const shm_view *v, tkey *t, uint64_t id, uint32_t len)
{
    t->id = id;
    memset(t->bytes, (int)(id % 251), sizeof t->bytes);
    memcpy(t->bytes, &id, 8);
    t->k.data = t->bytes;
    t->k.len = len < 8 ? 8 : len > KEY_MOST ? KEY_MOST : len;
    t->k.kind = SHM_K_BYTES;
    t->k.hash = shm_key_hash(v->seed, t->k.kind, t->bytes, t->k.len);
    return t;
}
static inline uint32_t shard_of(const shm_view *v, const tkey *t)
{
    return shm_shard_of(v, t->k.hash);
}

/* A value says which key it belongs to and which write it is, and every further byte follows
 * from that and from its length: torn, foreign and stale ones tell themselves. */
static inline void fill_value(uint8_t *p, uint32_t len, uint64_t id, uint64_t seq)
{
    uint64_t head[2] = {id, seq}, x = mix(id * 31 + seq * 17 + len);
    memcpy(p, head, len < 16 ? len : 16);
    for (uint32_t i = 16; i < len; i += 8, x = mix(x))
        memcpy(p + i, &x, len - i < 8 ? len - i : 8);
}
static inline bool check_value(const uint8_t *p, uint32_t len, uint64_t id, uint64_t *seq)
{
    uint64_t head[2], x;
    if (len < 16)
        return false;
    memcpy(head, p, 16);
    *seq = head[1];
    x = mix(id * 31 + head[1] * 17 + len);
    for (uint32_t i = 16; i < len; i += 8, x = mix(x))
        if (memcmp(p + i, &x, len - i < 8 ? len - i : 8))
            return false;
    return head[0] == id;
}

typedef struct seg_value {
    uint64_t version, expiry, word;
    uint32_t len;
    uint8_t kind;
    uint32_t retries;
} seg_value;

/* A get as the binding's fetch(): copy, then recheck.  At most `cap` bytes are copied. */
static inline int seg_get(const shm_view *v, const shm_key *key, uint64_t now, uint8_t *buf,
                          size_t cap, seg_value *out)
{
    shm_hit hit = {0};
    *out = (seg_value){0};
    for (uint32_t tries = 0; tries < SHM_READ_TRIES; tries++) {
        int r = shm_find(v, key, &hit);
        size_t n = hit.value_len < cap ? hit.value_len : cap, half = n / 16 * 8;
        if (r != SHM_HIT)
            return r;
        SEG_BETWEEN();
        shm_bytes_copy(buf, hit.value, half);
        SEG_BETWEEN();
        shm_bytes_copy(buf + half, hit.value + half, n - half);
        SEG_BETWEEN();
        if (!shm_hit_valid(v, &hit))
            continue;
        if (hit.expiry && shm_expiry_at(hit.expiry) <= now)
            return SHM_MISS;
        shm_hit_mark(&hit);
        *out = (seg_value){hit.version, hit.expiry, hit.word, hit.value_len, hit.value_kind, tries};
        return SHM_HIT;
    }
    return SHM_CORRUPT;
}

static inline int seg_set_mode(const shm_view *v, const tkey *t, const void *value, uint32_t len,
                               uint64_t expiry, uint64_t now, uint8_t mode, uint64_t *version)
{
    shm_put put = {.value = value,
                   .value_len = len,
                   .value_kind = SHM_V_BYTES,
                   .expiry = expiry,
                   .mode = mode,
                   .version = version ? *version : 0};
    int r = LOCKED(v, shard_of(v, t), now, shm_store(op, &t->k, &put));
    if (version)
        *version = put.version;
    return r;
}
/* Store the self-checking value `seq` of `len` bytes. */
static inline int seg_set(const shm_view *v, const tkey *t, uint32_t len, uint64_t seq,
                          uint64_t expiry, uint64_t now)
{
    static _Thread_local uint8_t buf[1 << 17];
    fill_value(buf, len, t->id, seq);
    return seg_set_mode(v, t, buf, len, expiry, now, SHM_PUT_SET, NULL);
}
static inline int seg_remove(const shm_view *v, const tkey *t, uint64_t now)
{
    return LOCKED(v, shard_of(v, t), now, shm_remove(op, &t->k, 0));
}

static const char *const invariant_names[] = {
#define SUPPORT_NAME(id, name, text) name,
    SHM_INVARIANTS(SUPPORT_NAME)
#undef SUPPORT_NAME
};

static inline uint32_t seg_largest(const shm_view *v, uint32_t shard) /* that main's gap is for */
{
    const shm_shard *sh = shm_shard_at(v, shard);
    return sh->largest[0][0] > sh->largest[0][1] ? sh->largest[0][0] : sh->largest[0][1];
}

/* May a write of n units into the main log be refused, `largest` being what the gap was for before
 * it?  Under `evict` never.  Under `keep` past the budget, or where what is live, the gap, the pad
 * of this lap and the entry with its own do not fit together: one revolution reclaims all else. */
static inline bool seg_may_refuse(const shm_view *v, uint32_t shard, uint64_t n, uint64_t largest)
{
    const shm_counts *c = &shm_shard_at(v, shard)->counts;
    uint64_t live = (uint64_t)c->live_units[0] + c->live_units[1];
    if (v->policy == SHM_POLICY_EVICT)
        return n > v->max_entry_units;
    return live + n > v->budget_units ||
           live + 3 * (largest > n ? largest : n) + 2 * n > v->log[0].units;
}

/* How many invariants are broken in all shards; the first ones go to stderr. */
static inline uint32_t seg_verify(const shm_view *v, const char *after)
{
    uint32_t all = 0;
    for (uint32_t i = 0; i < v->shard_count; i++) {
        shm_findings found = {0};
        LOCKED(v, i, 0, (shm_verify_shard(op, &found), 0));
        all += found.count;
        for (uint32_t n = 0; n < found.count && n < 3; n++)
            FAIL("%s: shard %u: %s does not hold: slot %u, expected %llu, found %llu", after, i,
                 invariant_names[found.at[n].invariant], found.at[n].slot,
                 (unsigned long long)found.at[n].expected, (unsigned long long)found.at[n].found);
    }
    return all;
}

#endif
