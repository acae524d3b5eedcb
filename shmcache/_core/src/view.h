/* view.h - one process's private picture of a segment: checked geometry, never re-read.
 *
 * INV-GEOMETRY: every offset, size and count used to reach into the segment comes from here.
 * The superblock is parsed and checked once, at attach; whatever is flipped in it later changes
 * nothing about where this process reads and writes.  Values loaded from shared memory
 * afterwards (slot words, heads, lengths) are checked against this picture before use.
 */
#ifndef SHMCACHE_VIEW_H
#define SHMCACHE_VIEW_H

#include "atomics.h"
#include "hash.h"
#include "layout.h"

typedef struct shm_log_view { /* one of a shard's logs */
    uint64_t off;      /* bytes from the shard's start */
    uint64_t off_mask; /* of a position: the offset in units */
    uint32_t off_bits;
    uint32_t units; /* capacity; 0: this shard has no such log */
} shm_log_view;

typedef struct shm_view {
    uint8_t *shards; /* the first shard's header */
    uint64_t shard_stride;
    uint64_t index_off;
    uint64_t seed;
    uint64_t me; /* identity word: (client + 1) << 32 | generation */
    shm_client *client;
    uint8_t *base;
    uint64_t total_size;
    uint32_t shard_mask;
    uint32_t shard_count;
    uint32_t bucket_count;
    uint32_t slot_count; /* of a shard's index */
    uint32_t max_probe;
    uint32_t budget_units;
    uint32_t max_entry_units;
    uint32_t client_count;
    uint64_t max_entry_bytes;
    uint32_t policy;
    shm_log_view log[2];
} shm_view;

/* A key as every operation takes it: content, type and hash.  `kind` holds the type and the
 * NAMESPACED and LEASE flags, never EXPIRES or PAD. */
typedef struct shm_key {
    const uint8_t *data;
    uint64_t hash;
    uint32_t len;
    uint8_t kind;
} shm_key;

/* Outcomes of core calls.  Negative ones are refusals that changed nothing. */
enum {
    SHM_MISS = 0,
    SHM_HIT = 1,
    SHM_FULL = -1,      /* no room (policy keep, or an entry that cannot be placed) */
    SHM_CORRUPT = -2,   /* a value in shared memory contradicts an invariant */
    SHM_EXISTS = -3,    /* add: already there */
    SHM_MISMATCH = -4,  /* cas: another version */
    SHM_NOT_INT = -5,   /* incr: no counter */
    SHM_OVERFLOW = -6,  /* incr: past 64 bits */
    SHM_BUSY = -7       /* the shard is held by somebody else */
};

static inline uint64_t shm_key_hash(uint64_t seed, uint8_t kind, const void *data, size_t len)
{
    /* the type is part of the seed, so that "1", b"1" and 1 hash apart; a lease is not, so that
     * it lies in its key's own buckets */
    return shm_xxh64(data, len, seed ^ (uint64_t)(kind & (SHM_K_TYPE | SHM_K_NAMESPACED)));
}

static inline shm_shard *shm_shard_at(const shm_view *v, uint32_t i)
{
    return (shm_shard *)(v->shards + (uint64_t)i * v->shard_stride);
}

static inline uint32_t shm_shard_of(const shm_view *v, uint64_t hash)
{
    return (uint32_t)(hash >> SHM_H_SHARD_SHIFT) & v->shard_mask;
}

static inline uint64_t *shm_index_of(const shm_view *v, shm_shard *sh)
{
    return (uint64_t *)((uint8_t *)sh + v->index_off);
}

static inline uint32_t shm_home_bucket(const shm_view *v, uint64_t hash)
{
    return (uint32_t)(((hash & 0xffffffffu) * (uint64_t)v->bucket_count) >> 32);
}

static inline uint64_t shm_hash_tag(uint64_t hash) /* in its place in a slot word */
{
    return (hash >> SHM_H_TAG_SHIFT << SHM_W_TAG_SHIFT) & SHM_W_TAG;
}

/* Where the i-th bucket of a key's probe sequence is: its home, the home's neighbour in the same
 * pair of cache lines, then onwards.  bucket_count is even, so the neighbour exists. */
static inline uint32_t shm_probe_bucket(const shm_view *v, uint32_t home, uint32_t i)
{
    uint32_t b;
    if (i == 0)
        return home;
    if (i == 1)
        return home ^ 1u;
    b = (home & ~1u) + i;
    return b < v->bucket_count ? b : b % v->bucket_count;
}

static inline uint8_t *shm_log_base(const shm_view *v, shm_shard *sh, uint32_t log)
{
    return (uint8_t *)sh + v->log[log].off;
}

static inline uint64_t shm_word_pos(uint64_t w) { return w >> SHM_W_POS_SHIFT; }
static inline uint32_t shm_word_log(uint64_t w) { return (uint32_t)(w >> SHM_W_LOG_SHIFT) & 1u; }
static inline bool shm_word_live(uint64_t w) { return (w & SHM_W_KIND) == SHM_KIND_LIVE; }
static inline bool shm_same_word(uint64_t a, uint64_t b) { return ((a ^ b) & ~SHM_W_VISITED) == 0; }

/* An entry's size in units, header, key, value and padding included. */
static inline uint64_t shm_entry_units(uint64_t key_len, uint64_t value_len, bool expires)
{
    return (sizeof(shm_entry) + (expires ? 8u : 0u) + key_len + value_len + SHM_UNIT - 1) / SHM_UNIT;
}

/* ---------------------------------------------------------------- expiry words
 * bits 0-43: milliseconds; bits 44-63: `stale`, an upper bound of its milliseconds as a small
 * float: 5 bits of exponent e, 15 bits of mantissa m, value m << e. */
static inline uint64_t shm_expiry_at(uint64_t word) { return word & SHM_E_EXPIRY_MASK; }

static inline uint64_t shm_expiry_reclaim_at(uint64_t word) /* when its memory is free */
{
    uint64_t stale = word >> SHM_E_EXPIRY_BITS;
    return shm_expiry_at(word) + ((stale & 0x7fffu) << (stale >> 15));
}

static inline uint64_t shm_expiry_word(uint64_t at_ms, uint64_t stale_ms)
{
    uint64_t e = 0;
    while (stale_ms > 0x7fffu && e < 31) {
        stale_ms = (stale_ms + 1) >> 1; /* rounded up: memory is never freed too early */
        e++;
    }
    if (stale_ms > 0x7fffu)
        stale_ms = 0x7fffu;
    return (at_ms & SHM_E_EXPIRY_MASK) | (((e << 15) | stale_ms) << SHM_E_EXPIRY_BITS);
}

#endif
