/* layout.h - the one source of truth for every byte of a shmcache segment.
 *
 * Purpose: names, sizes and offsets of all that lives in shared memory.  Python, the documents
 * and the tests are checked against the offsets compiled from this file (see SIGNATURE below).
 * Place: level 2 of the house, below everything; knows no Python, makes no system call.
 *
 * Everything is little endian, naturally aligned, and made of fixed-width integers.  A struct
 * that two processes write is cut at cache lines (64 bytes) by who writes it.
 *
 *   region        offset                 holds
 *   superblock    0                      identity, geometry (immutable), then a few mutable words
 *   clients       clients_off            client_count x shm_client
 *   tokens        tokens_off             token_count x SHM_TOKEN_SIZE     (cancellation tokens)
 *   swap slots    slots_off              slot_count x slot_stride         (header, two buffers)
 *   rings         rings_off              shm_rings, ring directory, arena (latency rings)
 *   shards        shards_off             shard_count x shard_stride:
 *                                        shm_shard, index (buckets), main log, probation log
 *
 * A change to any struct below bumps SHM_LAYOUT_VERSION and edits docs/layout.md.
 */
#ifndef SHMCACHE_LAYOUT_H
#define SHMCACHE_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define SHM_MAGIC 0x65686361636d6873ull /* "shmcache" read as little-endian bytes */
#define SHM_LAYOUT_VERSION 2u

#define SHM_LINE 64u      /* bytes in a cache line */
#define SHM_UNIT 16u      /* bytes in a log unit: every entry and pad is a whole number of them */
#define SHM_BUCKET_SLOTS 8u
#define SHM_MAX_SHARDS 1024u
#define SHM_MAX_KEY 65535u
#define SHM_MAX_PATH 1024u /* bytes of a namespace's path, epoch.h */
#define SHM_MAX_LOG_UNITS (1u << 30) /* 16 GiB: what 30 bits of in-log offset can say */
#define SHM_SUPERBLOCK_SIZE 4096u
#define SHM_NAME_SIZE 64u
#define SHM_CODEC_SIZE 32u
#define SHM_TOKEN_SIZE 256u
#define SHM_SLOT_HEADER_SIZE 256u
#define SHM_REASON_SIZE 128u /* bytes of a token's reason; longer ones are cut */
#define SHM_NO_REASON 0xffffffffu
#define SHM_RING_HEADER_SIZE 256u
#define SHM_WAIT_BUCKETS 16u /* lock waits: bucket i counts waits below 2^i microseconds */

/* ------------------------------------------------------------------ a slot word of the index
 * One 64-bit word is all that a reader has to trust.
 *
 *   bits    field     meaning
 *   0-1     visited   0..3, set by readers with CAS (saturating); the only bits a reader writes
 *   2-3     kind      0 empty, 1 live, 2 ghost (fingerprint of an evicted entry), 3 unused
 *   4       log       0 main, 1 probation
 *   5-19    tag       15 bits of the key's hash
 *   20-63   position  44 bits: lap << off_bits | offset in units; a ghost: eviction sequence
 */
#define SHM_W_VISITED 0x3ull
#define SHM_W_KIND_SHIFT 2
#define SHM_W_KIND (0x3ull << SHM_W_KIND_SHIFT)
#define SHM_W_LOG_SHIFT 4
#define SHM_W_LOG (0x1ull << SHM_W_LOG_SHIFT)
#define SHM_W_TAG_SHIFT 5
#define SHM_W_TAG_BITS 15
#define SHM_W_TAG (((1ull << SHM_W_TAG_BITS) - 1) << SHM_W_TAG_SHIFT)
#define SHM_W_POS_SHIFT 20
#define SHM_W_POS_BITS 44
#define SHM_W_POS_MASK ((1ull << SHM_W_POS_BITS) - 1)
#define SHM_W_POS (SHM_W_POS_MASK << SHM_W_POS_SHIFT)
_Static_assert((SHM_W_VISITED ^ SHM_W_KIND ^ SHM_W_LOG ^ SHM_W_TAG ^ SHM_W_POS) == ~0ull,
               "the fields of a slot word tile it");

#define SHM_KIND_EMPTY (0ull << SHM_W_KIND_SHIFT)
#define SHM_KIND_LIVE (1ull << SHM_W_KIND_SHIFT)
#define SHM_KIND_GHOST (2ull << SHM_W_KIND_SHIFT)

/* -------------------------------------------------------------------- the hash of a key
 * XXH64(key bytes, seed ^ key type).  Its bits are shared out without overlap:
 *   0-31 bucket (multiply-shift)   32-46 tag   48-63 shard
 */
#define SHM_H_TAG_SHIFT 32
#define SHM_H_SHARD_SHIFT 48

/* -------------------------------------------------------------- the holder word of a lock
 *   bits 0-31 generation   32-47 client + 1   48 contended   49-63 zero.   0: free.
 * Holding and saying who holds are one store, so no instant exists at which a dead holder
 * could not be named.
 */
#define SHM_L_CLIENT_SHIFT 32
#define SHM_L_CONTENDED (1ull << 48)
#define SHM_L_IDENTITY ((1ull << 48) - 1)

/* ------------------------------------------------------------------------ an entry of a log
 *   offset size field
 *   0      4    value_len   bytes; of a pad: units, this header included
 *   4      2    key_len     bytes
 *   6      1    key_kind    type of the key and flags (SHM_K_*)
 *   7      1    value_kind  how the value is encoded (SHM_V_*)
 *   8      8    version     the shard's version at the write; kept when the entry is moved
 *  (16     8    expiry      only with SHM_K_EXPIRES: bits 0-43 CLOCK_MONOTONIC milliseconds,
 *                           bits 44-63 seconds of `stale` after it, as a small float)
 *   then key_len bytes of key, value_len bytes of value, zero to fifteen bytes of nothing.
 * Written once, before the slot names it; immutable afterwards (INV-LOG-PUBLISH).
 */
typedef struct shm_entry {
    uint32_t value_len;
    uint16_t key_len;
    uint8_t key_kind;
    uint8_t value_kind;
    uint64_t version;
} shm_entry;
_Static_assert(sizeof(shm_entry) == SHM_UNIT, "an entry header is one unit, and so fits a pad");

#define SHM_K_TYPE 0x0fu    /* the key's Python type: */
#define SHM_K_STR 1u        /* UTF-8 (surrogates passed) */
#define SHM_K_BYTES 2u
#define SHM_K_INT 3u        /* 8 bytes, signed little endian */
#define SHM_K_FLOAT 4u      /* 8 bytes, IEEE 754 little endian */
#define SHM_K_BOOL 5u       /* 1 byte */
#define SHM_K_NONE 6u       /* no bytes */
#define SHM_K_UUID 7u       /* 16 bytes */
#define SHM_K_TUPLE 8u      /* canonical encoding, see keys.py */
#define SHM_K_EPOCH 15u     /* of a namespace, see epoch.h; never without SHM_K_NAMESPACED */
#define SHM_K_NAMESPACED 0x10u /* the key belongs to a namespace: shown only through it */
#define SHM_K_LEASE 0x20u      /* not a value but the lease of its key's initialiser */
#define SHM_K_EXPIRES 0x40u    /* an expiry word follows the header */
#define SHM_K_PAD 0x80u        /* no entry: filler up to the end of the log */

#define SHM_V_BYTES 1u
#define SHM_V_INT 2u      /* 8 bytes, signed little endian: what incr counts */
#define SHM_V_STR 3u      /* UTF-8 (surrogates passed) */
#define SHM_V_FLOAT 4u    /* 8 bytes, IEEE 754 little endian */
#define SHM_V_NONE 5u
#define SHM_V_FALSE 6u
#define SHM_V_TRUE 7u
#define SHM_V_BIGINT 8u   /* two's complement, little endian, shortest */
#define SHM_V_CODEC 9u    /* as the segment's codec encoded it */
#define SHM_V_LEASE 10u
#define SHM_V_ASCII 11u   /* a str of ASCII characters, one byte each */

#define SHM_E_EXPIRY_BITS 44
#define SHM_E_EXPIRY_MASK ((1ull << SHM_E_EXPIRY_BITS) - 1)

/* --------------------------------------------------------------------------- superblock
 * Bytes 0..checksum-1 never change after publication and are covered by `checksum`.
 */
typedef struct shm_superblock {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t client_count;
    uint64_t signature;   /* shm_layout_signature() of the build that made it */
    uint64_t total_size;  /* bytes of the segment */
    uint64_t nonce;       /* random; part of the semaphores' names */
    uint64_t hash_seed;   /* random; keys every hash of the segment */
    uint64_t inode;       /* of the liveness file, which is the segment's own file */
    uint64_t device;
    uint64_t created_wall_ns; /* CLOCK_REALTIME */
    uint64_t created_mono_ns; /* CLOCK_MONOTONIC */
    uint32_t owner_uid;
    uint32_t owner_gid;
    uint32_t mode;        /* permission bits */
    uint32_t policy;      /* SHM_POLICY_* */
    char codec[SHM_CODEC_SIZE]; /* name, NUL padded */
    /* geometry: offsets are bytes from the segment's start unless they say otherwise */
    uint64_t clients_off;
    uint64_t tokens_off;
    uint64_t slots_off;
    uint64_t slot_stride;     /* bytes: header and two buffers */
    uint64_t slot_capacity;   /* bytes of one buffer */
    uint64_t rings_off;
    uint64_t rings_size;      /* bytes of directory and arena */
    uint64_t shards_off;
    uint64_t shard_stride;    /* bytes */
    uint64_t index_off;       /* from the shard's start */
    uint64_t main_off;        /* from the shard's start: log 0 */
    uint64_t probation_off;   /* from the shard's start: log 1 */
    uint32_t token_count;
    uint32_t slot_count;
    uint32_t ring_count;      /* entries of the ring directory */
    uint32_t shard_count;     /* a power of two */
    uint32_t bucket_count;    /* in each shard; even */
    uint32_t main_units;      /* capacity of log 0 */
    uint32_t probation_units; /* capacity of log 1; 0: there is none */
    uint32_t budget_units;    /* live units below which nothing live is evicted (evict), or
                                 above which a write is refused (keep) */
    uint32_t max_entry_units; /* the largest entry that a shard takes */
    uint32_t avg_entry_size;  /* bytes, as asked for */
    uint32_t max_probe_buckets; /* a key lies within this many buckets of its home */
    uint32_t reserved0;
    uint64_t checksum;        /* XXH64, seed 0, of the bytes before it */

    /* mutable words, each on a line of its own kind */
    uint8_t pad0[2048 - 280];
    uint32_t dead;            /* 1: unlinked; set under the gate, read by every call */
    uint32_t persist;         /* 1: stays after its last client; set at creation or by an owner */
    uint8_t pad1[56];
    uint64_t owner;           /* identity word of the owner daemon's client, 0: none */
    uint32_t owner_pid;       /* as its own namespace sees it: for people to read, nothing else */
    uint32_t reserved1;
    uint8_t pad2[48];
    uint64_t invalidations;   /* times that a namespace's epoch was replaced; a line of its own */
    uint8_t pad3[SHM_SUPERBLOCK_SIZE - 2048 - 136];
} shm_superblock;
_Static_assert(offsetof(shm_superblock, checksum) == 272, "immutable part");
_Static_assert(offsetof(shm_superblock, dead) == 2048, "mutable part");
_Static_assert(sizeof(shm_superblock) == SHM_SUPERBLOCK_SIZE, "superblock size");

#define SHM_POLICY_EVICT 0u
#define SHM_POLICY_KEEP 1u

/* ------------------------------------------------------------------------ a client slot
 * Line 0 is written under the gate; line 1 by the client's own process, under its GIL, and is
 * never reset: who takes the slot next adds on, so totals survive their processes.
 */
typedef struct shm_client {
    uint32_t generation; /* +1 each time the slot is taken; 0 only before the first time */
    uint32_t in_use;     /* from attach to detach 1, of an observer 2; the kernel's lock counts */
    uint32_t pid;        /* for people to read */
    uint32_t uid;
    uint64_t attached_mono_ns;
    uint8_t pad0[40];
    uint64_t hits;
    uint64_t misses;
    uint64_t read_retries;
    uint64_t try_attempts;
    uint64_t try_blocked;
    uint64_t store_failures;
    uint64_t lock_timeouts;
    uint64_t reserved;
} shm_client;
_Static_assert(sizeof(shm_client) == 128, "client slot size");
_Static_assert(offsetof(shm_client, hits) == 64, "counters on a line of their own");

/* ------------------------------------------------------------------------------- a shard
 * All fields but `holder` are written only by the holder of the shard.  Readers load the
 * index; on a miss probe_limit; and head only when a slot changed while they copied.
 */
typedef struct shm_counts { /* exact at every instant: see the note */
    uint32_t entries;       /* live slots that are not leases, expired ones included */
    uint32_t leases;        /* bits 0-11: leases; 12-31: epochs of namespaces.  `len` counts neither */
    uint32_t live_units[2]; /* units of live entries in log 0 and 1 */
} shm_counts;
_Static_assert(sizeof(shm_counts) == 16, "counts are two words");
#define SHM_C_EPOCH (1u << 12)          /* one epoch, in shm_counts.leases */
#define SHM_C_LEASES (SHM_C_EPOCH - 1u) /* the leases in it */
#define SHM_C_EPOCHS_MOST ((1u << 20) - 1u)

typedef struct shm_note { /* what the holder is about to do to one slot (INV-NOTE) */
    uint32_t armed;       /* 1 while slot and counts may disagree */
    uint32_t slot;        /* index of the slot in the shard */
    uint64_t word;        /* what the slot will hold */
    shm_counts counts;    /* what the counts will be once it does */
} shm_note;
_Static_assert(sizeof(shm_note) == 32, "note size");

typedef struct shm_shard {
    /* line 0: the lock, and what every write counts: whoever takes the lock owns this line, and
     * each further line that a write dirties is a transfer between cores */
    uint64_t holder;
    uint64_t sets;
    uint64_t written_units;
    uint64_t lock_acquisitions;
    uint8_t pad0[32];
    /* line 1: what readers look at, almost never written */
    uint32_t probe_limit; /* buckets to look at; raised before a key is put further out */
    uint8_t pad1[60];
    /* line 2: the note and the exact counts */
    shm_note note;
    shm_counts counts;
    uint64_t version;     /* advanced by every write */
    uint64_t ghost_seq;   /* advanced by every eviction that leaves a ghost */
    /* line 3: the logs; readers load head when a slot changed under them */
    uint64_t head[2];     /* lap << off_bits | offset, of log 0 and 1: the oldest entry */
    uint64_t tail[2];     /* where the next entry goes */
    uint32_t largest[2][2]; /* [log][lap & 1]: units of the largest entry appended in that lap */
    uint32_t moves_in_a_row; /* second chances given since the last eviction */
    uint32_t main_filled; /* 1: log 0 has been full, over the budget, since it was last empty */
    uint64_t reserved0;
    /* line 4: expiry */
    uint64_t min_expiry;  /* no live entry expires before this (milliseconds); ~0: none expires */
    uint64_t sweep_min;   /* the same, for what the sweep has passed in its present round */
    uint64_t swept_ms;    /* when the sweep last completed a round */
    uint32_t sweep_slot;  /* where the sweep goes on */
    uint32_t wake;        /* futex word: advanced by 2 when a lease goes; bit 0: wake who waits */
    uint64_t sweep_invalidation; /* `invalidations` when the sweep began its present round */
    uint64_t swept_invalidation; /* the same of the last round that was completed */
    uint64_t reserved2[2];
    /* lines 5 and 6: statistics, written by the holder, read by anybody */
    uint64_t deletes;
    uint64_t evictions;
    uint64_t expirations;
    uint64_t recoveries;
    uint64_t lock_contended;
    uint64_t lock_wait_ns;
    uint64_t moved_units;
    uint64_t ghost_hits;
    uint64_t promotions;
    uint64_t worst_write_units; /* most units walked by one write to make room */
    uint64_t reserved3[6];
    /* line 7: lock waits that took a slice at least, by log2 of microseconds */
    uint32_t wait_histogram[SHM_WAIT_BUCKETS];
} shm_shard;
_Static_assert(offsetof(shm_shard, probe_limit) == 64, "readers' line");
_Static_assert(offsetof(shm_shard, note) == 128, "note line");
_Static_assert(offsetof(shm_shard, head) == 192, "log line");
_Static_assert(offsetof(shm_shard, min_expiry) == 256, "expiry line");
_Static_assert(offsetof(shm_shard, deletes) == 320, "statistics lines");
_Static_assert(offsetof(shm_shard, wait_histogram) == 448, "histogram line");
_Static_assert(sizeof(shm_shard) == 512, "shard header size");

/* ------------------------------------------------------------------------------- a lease
 * The value of a SHM_V_LEASE entry: who is initialising the key.  An entry of its own beside the
 * key's value, under the same content and type with SHM_K_LEASE; its version is its token.
 */
typedef struct shm_lease {
    uint64_t holder;   /* identity word of the initialiser's client */
    uint64_t deadline; /* bits 0-62: CLOCK_MONOTONIC milliseconds until which its caller expects to
                          be done, for people to read; bit 63: the key's ghost was there */
} shm_lease;
_Static_assert(sizeof(shm_lease) == 16, "lease size");
#define SHM_LEASE_GHOST (1ull << 63)

/* ------------------------------------------------ names of swap slots and of tokens
 * `seal` is stored last: 0 means that the record is free, whatever else is in it.  A record that
 * was sealed never changes again, and is never freed.
 */
typedef struct shm_record {
    uint64_t seal;      /* XXH64 of parent and name, lowest bit set; 0: free */
    uint32_t parent;    /* of a token: its parent's number + 1; 0: it has none */
    uint32_t reserved;
    char name[SHM_NAME_SIZE]; /* UTF-8, NUL padded */
} shm_record;
_Static_assert(sizeof(shm_record) == 80, "a record of a directory");

/* ------------------------------------------------------------------- a sealed word
 * Version of a swap slot, state of a token: a count that only grows, and a check of it, in one
 * word, so that flipped bytes are noticed and a single store moves both.
 *
 *   bits 0-47 count   48-63 check: the exclusive or of the three 16-bit parts of the count and
 *   SHM_SEAL_CHECK.   All zero: never stored.
 */
#define SHM_SEAL_COUNT ((1ull << 48) - 1)
#define SHM_SEAL_CHECK 0x5357ull

/* -------------------------------------------------------------------- a swap slot
 * A header of SHM_SLOT_HEADER_SIZE bytes, then two buffers of slot_capacity bytes each.  See
 * swap.h for the protocol.
 */
typedef struct shm_swap_buffer { /* what is in one of the two buffers */
    uint32_t length; /* bytes */
    uint32_t kind;   /* SHM_V_* */
    uint64_t check;  /* XXH64 of the bytes, then of that, the version and the kind */
} shm_swap_buffer;
_Static_assert(sizeof(shm_swap_buffer) == 16, "a buffer's description is two words");

typedef struct shm_swap {
    /* line 0: what readers load; also the futex (its low half) that waiters sleep on */
    uint64_t word;             /* sealed version; its bit 0 names the current buffer */
    shm_swap_buffer buffer[2]; /* written by the holder; read between two loads of `word` */
    uint8_t pad0[24];
    /* line 1: the locks */
    uint64_t holder;    /* of this slot: who may store */
    uint64_t directory; /* in slot 0 only: who may name a slot */
    uint64_t recoveries; /* takeovers of `holder` from the dead */
    uint8_t pad1[40];
    /* lines 2 and 3: the name */
    shm_record record;
    uint8_t pad2[48];
} shm_swap;
_Static_assert(offsetof(shm_swap, holder) == 64, "writers' line");
_Static_assert(offsetof(shm_swap, record) == 128, "name lines");
_Static_assert(sizeof(shm_swap) == SHM_SLOT_HEADER_SIZE, "swap slot header size");

/* ----------------------------------------------------------------- a cancellation token
 * See token.h for the protocol.
 */
typedef struct shm_token {
    uint64_t state;     /* sealed count of cancels and resets: odd while cancelled */
    uint64_t holder;    /* who may cancel or reset */
    uint64_t directory; /* in token 0 only: who may name a token */
    uint64_t reason_check;  /* XXH64 of the reason's bytes, seed: the state's count */
    uint32_t reason_length; /* bytes; SHM_NO_REASON: None.  Immutable while cancelled */
    uint32_t bell;      /* in token 0 only: rung by every cancel; the futex of all waiters */
    shm_record record;
    char reason[SHM_REASON_SIZE]; /* UTF-8 */
    uint8_t pad0[8];
} shm_token;
_Static_assert(offsetof(shm_token, record) == 40, "name of a token");
_Static_assert(sizeof(shm_token) == SHM_TOKEN_SIZE, "token size");

/* -------------------------------------------------------------------------- latency rings
 * The region: one shm_rings, then the directory (ring_count x shm_ring), then the arena, from
 * which each named ring has its samples and its histogram.  See ring.h.
 *
 * A sample is one 64-bit word; 0: never written.
 *
 *   bits    field     meaning
 *   0-15    duration  nanoseconds, log-linear: 1,024 steps for each power of two (error 0.1%)
 *   16-51   time      milliseconds since the segment was created, modulo 2^36 (2.2 years)
 *   52-62   lap       1 + the position's lap modulo 2,047: never 0
 *   63      taken     handed out by drain; the only bit that is ever set later
 */
#define SHM_S_DURATION_BITS 16
#define SHM_S_DURATION ((1ull << SHM_S_DURATION_BITS) - 1)
#define SHM_S_TIME_SHIFT 16
#define SHM_S_TIME_BITS 36
#define SHM_S_TIME_MASK ((1ull << SHM_S_TIME_BITS) - 1)
#define SHM_S_TIME (SHM_S_TIME_MASK << SHM_S_TIME_SHIFT)
#define SHM_S_LAP_SHIFT 52
#define SHM_S_LAPS 2047u
#define SHM_S_LAP (0x7ffull << SHM_S_LAP_SHIFT)
#define SHM_S_TAKEN (1ull << 63)
_Static_assert((SHM_S_DURATION ^ SHM_S_TIME ^ SHM_S_LAP ^ SHM_S_TAKEN) == ~0ull,
               "the fields of a sample tile it");

typedef struct shm_rings {
    uint64_t holder; /* the directory's lock: who names a ring; a holder word as a shard's */
    uint8_t pad0[56];
} shm_rings;
_Static_assert(sizeof(shm_rings) == SHM_LINE, "the lock has a line of its own");

typedef struct shm_ring {
    /* lines 0 and 1: stored under the directory's lock, `named` last; then immutable */
    char name[SHM_NAME_SIZE]; /* UTF-8, NUL padded */
    uint64_t named;           /* 1: this record is a ring; never taken back */
    uint64_t samples_off;     /* bytes from the region's start; 2^word_bits words */
    uint64_t histogram_off;   /* bytes from the region's start; counts of 8 bytes */
    uint32_t capacity;        /* samples kept, at most 2^word_bits */
    uint32_t word_bits;
    uint32_t bucket_bits;     /* 2^bucket_bits buckets for each power of two of nanoseconds */
    uint32_t reserved0;
    uint64_t reserved1[3];
    /* line 2: recorders add, clear() sets to 0 (but head, which only grows) */
    uint64_t head;            /* positions given out so far */
    uint64_t sum_ns;
    uint64_t max_ns;
    uint64_t reserved2[5];
    /* line 3: drain and clear */
    uint64_t tail;            /* a hint: no position before it has anything left to take */
    uint64_t cleared;         /* head when clear() was last called: nothing before it counts */
    uint64_t reserved3[6];
} shm_ring;
_Static_assert(offsetof(shm_ring, named) == 64, "the end of a name");
_Static_assert(offsetof(shm_ring, head) == 128, "recorders' line");
_Static_assert(offsetof(shm_ring, tail) == 192, "drainers' line");
_Static_assert(sizeof(shm_ring) == SHM_RING_HEADER_SIZE, "ring record size");



#endif
