/* ring.h - latency rings: bounded samples, totals and a histogram that any process adds to.
 *
 * The story.  A ring is 2^word_bits words, of which readers take the newest `capacity` into
 * account, and beside them lifetime totals.  Every sample is one word: duration, time, the lap
 * that it was recorded in, and whether it was taken (layout.h).  One word is stored by one
 * instruction, so a sample is there as a whole or not at all (INV-SAMPLE-WHOLE); nothing else has
 * to be ordered against it, and every access here is relaxed but where it says otherwise.
 *
 * A recorder adds 1 to `head`; what it was before is the sample's position, and nobody else's.
 * It stores the word at position mod 2^word_bits, then adds 1 to the duration's bucket, then the
 * duration to the sum, then raises the maximum.  No step waits for anybody.  (The maximum is
 * raised by compare-and-swap, which fails only where another recorder has raised it meanwhile;
 * whoever finds it as large as its own duration is done.)
 *
 * A reader loads `head` and walks back from it.  A word belongs to a position only if it holds
 * that position's lap (INV-SAMPLE-LAP): where a recorder has its position but has not stored yet,
 * or was killed in between, the word of an earlier lap (or 0) is still there, and is passed over.
 * Readers never wait for the missing one.  Where recorders have lapped the reader meanwhile, the
 * word is of a later lap, and is passed over too.  A recorder that was stopped between its two
 * steps for a whole lap stores over the newer sample of its word: that one is then missing, and the
 * old one passed over; totals have both.  Laps are told apart modulo 2,047: to be taken
 * for another one, a recorder must be stopped between its two steps for a multiple of 2,047 laps
 * exactly, and even then what is read is a sample that was recorded.
 *
 * Taking (drain) is setting the `taken` bit by compare-and-swap: of all that see the word, one
 * succeeds (INV-SAMPLE-ONCE); a recorder that overwrote it meanwhile makes it fail.  A position
 * that is not written yet stays to be taken later.  `tail` only saves the walk over what was
 * taken: it stops at the first position that was missing.
 *
 * Clearing remembers the head in `cleared`, before which nothing counts, and zeroes the totals.
 * A sample that is being recorded at that moment may be counted in some of them.
 *
 * A crash.  Killed after `head`: one position stays missing for a lap.  Killed after the word:
 * recent() shows the sample, the totals do not have it.  Killed after the bucket: the count has
 * it, the sum does not.  Everything else is as it was; there is nothing to repair.
 *
 * Naming is rare and takes the directory's lock.  A record is filled in, then `named` is stored
 * (release; pairs with the acquire in shm_ring_lookup); what is free in the arena follows from
 * the records that are named (INV-RING-PLACE), so whoever dies before that has changed nothing.
 * Names are never given back.
 *
 * INV-RING-PLACE: samples and histogram of a ring lie in the arena and overlap no other ring's.
 * INV-RING-TOTALS: but for samples that deaths or clears have cut, the histogram's counts add up
 * to `head`, and `sum_ns` and `max_ns` are those of all samples.  So nothing is counted, taken or
 * cleared that had no position.
 *
 * Flipped bytes: places and sizes are checked once, when a process opens the ring, and private
 * from then on (INV-GEOMETRY); any head, tail or word leads to wrong samples or none, never out of
 * the ring and never into a longer walk than one lap.
 */
#ifndef SHMCACHE_RING_H
#define SHMCACHE_RING_H

#include "view.h"

#define SHM_OWN_RINGS 2u         /* records 0 and 1: the cache's own gets and sets */
#define SHM_RING_OWN_GET "shmcache.get"
#define SHM_RING_OWN_SET "shmcache.set"
#define SHM_DURATION_STEP_BITS 10 /* of a sample's duration: 2^10 steps for a power of two */
#define SHM_MAX_DURATION_NS (1ull << 53) /* 104 days: sums have room for 2,048 of the longest */
#define SHM_MAX_BUCKET_BITS 4     /* 16 buckets for a power of two: 3.2% off at most */
#define SHM_MIN_RING_WORDS 8u

/* The rings region of a segment, private and checked. */
typedef struct shm_rings_view {
    uint8_t *base; /* of the region */
    uint64_t size;
    uint64_t arena_off; /* bytes from the region's start */
    uint64_t created_ms; /* what samples count their time from */
    uint32_t count; /* records of the directory */
} shm_rings_view;

/* One ring, private and checked. */
typedef struct shm_ring_view {
    shm_ring *ring; /* NULL: there is none */
    uint64_t *samples;
    uint64_t *histogram;
    uint64_t mask;       /* 2^word_bits - 1 */
    uint64_t created_ms;
    uint32_t word_bits;
    uint32_t capacity;
    uint32_t bucket_bits;
    uint32_t buckets;
} shm_ring_view;

/* ------------------------------------------------------------------------- log-linear steps
 * Numbers below 2^bits are their own step; above, each power of two has 2^bits steps of one
 * width.  Steps of one number of bits are ordered as their numbers are. */
static inline uint32_t shm_step_of(uint64_t x, uint32_t bits)
{
    uint32_t e;
    if (x < (1ull << bits))
        return (uint32_t)x;
    e = 63u - (uint32_t)__builtin_clzll(x) - bits;
    return (e << bits) + (uint32_t)(x >> e);
}

/* The least number of a step; of the step after the last one: 2^64 mod 2^64. */
static inline uint64_t shm_step_low(uint32_t step, uint32_t bits)
{
    uint32_t e = step >> bits;
    if (e <= 1)
        return step;
    e--;
    return e > 63u - bits ? 0 : ((1ull << bits) + (step & ((1u << bits) - 1))) << e;
}

static inline uint32_t shm_bucket_count(uint32_t bits) /* that durations may fall into */
{
    return shm_step_of(SHM_MAX_DURATION_NS, bits) + 1;
}

/* ------------------------------------------------------------------------------- a sample */
static inline uint64_t shm_sample_lap(uint64_t position, uint32_t word_bits)
{
    return (position >> word_bits) % SHM_S_LAPS + 1;
}

static inline uint64_t shm_sample_word(uint64_t ns, uint64_t since_ms, uint64_t lap)
{
    return shm_step_of(ns, SHM_DURATION_STEP_BITS) |
           (since_ms & SHM_S_TIME_MASK) << SHM_S_TIME_SHIFT | lap << SHM_S_LAP_SHIFT;
}

/* The duration that a sample stands for: the roundest decimal of its step, of several the one
 * nearest to the middle; a step off at most.  No step holds two numbers of three digits, so such
 * a duration (250 us, 1.5 s) comes back exactly. */
static inline uint64_t shm_sample_ns(uint64_t w)
{
    uint32_t step = (uint32_t)(w & SHM_S_DURATION);
    uint64_t low = shm_step_low(step, SHM_DURATION_STEP_BITS);
    uint64_t last = shm_step_low(step + 1, SHM_DURATION_STEP_BITS) - 1, unit = 1, ns;
    if (low < 1ull << SHM_DURATION_STEP_BITS || last < low) /* exact, or a flipped byte's */
        return low;
    while (last / (unit * 10) * (unit * 10) >= low)
        unit *= 10;
    ns = (low + (last - low) / 2 + unit / 2) / unit * unit;
    return ns < low ? ns + unit : ns > last ? ns - unit : ns;
}

/* Milliseconds between a sample's recording and now, as far as 36 bits can tell; 0 for one that
 * another CPU's clock has put into the future. */
static inline uint64_t shm_sample_age_ms(const shm_ring_view *r, uint64_t w, uint64_t now_ms)
{
    uint64_t at = (w & SHM_S_TIME) >> SHM_S_TIME_SHIFT;
    uint64_t age = (now_ms - r->created_ms - at) & SHM_S_TIME_MASK;
    return age > SHM_S_TIME_MASK - 60000 ? 0 : age;
}

/* ----------------------------------------------------------------------------- recording
 * Wait-free; ns is at most SHM_MAX_DURATION_NS. */
static inline void shm_ring_record(const shm_ring_view *r, uint64_t ns, uint64_t now_ms)
{
    shm_ring *ring = r->ring;
    uint64_t since = now_ms > r->created_ms ? now_ms - r->created_ms : 0, max;
    uint64_t at = __atomic_fetch_add(&ring->head, 1, __ATOMIC_RELAXED);
    FAULT(ring_placed);
    WR(&r->samples[at & r->mask], shm_sample_word(ns, since, shm_sample_lap(at, r->word_bits)));
    FAULT(ring_stored);
    __atomic_fetch_add(&r->histogram[shm_step_of(ns, r->bucket_bits)], 1, __ATOMIC_RELAXED);
    FAULT(ring_counted);
    __atomic_fetch_add(&ring->sum_ns, ns, __ATOMIC_RELAXED);
    FAULT(ring_summed);
    while (UNLIKELY((max = RD(&ring->max_ns)) < ns))
        if (shm_cas(&ring->max_ns, max, ns))
            break;
    FAULT(ring_done);
}

/* ------------------------------------------------------------------------------- reading */
/* The first position that is kept: the newest `capacity`, but none from before the last clear. */
static inline uint64_t shm_ring_first(const shm_ring_view *r, uint64_t head)
{
    uint64_t first = head > r->capacity ? head - r->capacity : 0, cleared = RD(&r->ring->cleared);
    return cleared > first && cleared <= head ? cleared : first;
}

static inline bool shm_ring_holds(const shm_ring_view *r, uint64_t position, uint64_t w)
{
    return (w & SHM_S_LAP) >> SHM_S_LAP_SHIFT == shm_sample_lap(position, r->word_bits);
}

/* Copy the newest n samples that are kept to `out`, newest first; taken ones too if `taken`.
 * Returns how many there are. */
static uint32_t shm_ring_newest(const shm_ring_view *r, uint32_t n, bool taken, uint64_t *out)
{
    uint64_t at = RD(&r->ring->head), first = shm_ring_first(r, at);
    uint32_t found = 0;
    while (at > first && found < n) {
        uint64_t w = RD(&r->samples[--at & r->mask]);
        if (shm_ring_holds(r, at, w) && (taken || !(w & SHM_S_TAKEN)))
            out[found++] = w;
    }
    return found;
}

/* Raise tail or cleared to `to`, unless it is there already.  What lies past the head was flipped,
 * and is put right. */
static void shm_ring_raise(shm_ring *ring, uint64_t *word, uint64_t to)
{
    for (int i = 0; i < 64; i++) { /* who fails that often has been overtaken by others' calls */
        uint64_t now = RDA(word);  /* acquire: the head below is not older than what it was */
        if ((now >= to && now <= RD(&ring->head)) || shm_cas(word, now, to))
            return;
    }
}

/* Take the oldest n samples, oldest first.  Returns how many were the caller's. */
static uint32_t shm_ring_drain(const shm_ring_view *r, uint32_t n, uint64_t *out)
{
    uint64_t head = RD(&r->ring->head), at = shm_ring_first(r, head), tail = RD(&r->ring->tail);
    uint64_t missing = head;
    uint32_t found = 0;
    if (tail > at && tail <= head)
        at = tail;
    for (; at < head && found < n; at++) {
        uint64_t *p = &r->samples[at & r->mask], w = RD(p);
        if (!shm_ring_holds(r, at, w)) {
            if (at < missing)
                missing = at; /* not written yet: to be taken later */
        } else if (!(w & SHM_S_TAKEN) && shm_cas(p, w, w | SHM_S_TAKEN)) {
            out[found++] = w;
            FAULT(ring_taken);
        }
    }
    shm_ring_raise(r->ring, &r->ring->tail, at < missing ? at : missing);
    return found;
}

/* Forget all samples and totals. */
static void shm_ring_clear(const shm_ring_view *r)
{
    shm_ring_raise(r->ring, &r->ring->cleared, RD(&r->ring->head));
    FAULT(ring_cleared);
    for (uint32_t b = 0; b < r->buckets; b++)
        if (RD(&r->histogram[b]))
            WR(&r->histogram[b], 0);
    FAULT(ring_emptied);
    WR(&r->ring->sum_ns, 0);
    WR(&r->ring->max_ns, 0);
}

/* ---------------------------------------------------------------------- naming and placing */
static inline shm_ring *shm_ring_at(const shm_rings_view *v, uint32_t i)
{
    return (shm_ring *)(v->base + sizeof(shm_rings)) + i;
}

/* The private picture of the region, from a superblock that was checked. */
static void shm_rings_init(shm_rings_view *v, uint8_t *base, const shm_superblock *sb)
{
    v->base = base + sb->rings_off;
    v->size = sb->rings_size;
    v->count = sb->ring_count;
    v->arena_off = sizeof(shm_rings) + (uint64_t)sb->ring_count * sizeof(shm_ring);
    v->created_ms = sb->created_mono_ns / 1000000u;
}

static inline uint64_t *shm_rings_holder(const shm_rings_view *v)
{
    return &((shm_rings *)v->base)->holder;
}

/* Bytes of a ring in the arena. */
static inline uint64_t shm_ring_bytes(uint32_t word_bits, uint32_t bucket_bits)
{
    uint64_t n = ((1ull << word_bits) + shm_bucket_count(bucket_bits)) * 8;
    return (n + SHM_LINE - 1) / SHM_LINE * SHM_LINE;
}

/* How the arena is shared: each record's equal share, the buckets that it pays for (two thirds of
 * it at most, so that a small segment has coarser histograms and not only histograms), and the
 * words that are left.  False: not even the least ring fits. */
static bool shm_rings_share(const shm_rings_view *v, uint32_t *word_bits, uint32_t *bucket_bits)
{
    uint64_t share;
    if (v->count == 0 || v->size < v->arena_off)
        return false;
    share = (v->size - v->arena_off) / v->count / SHM_LINE * SHM_LINE;
    *bucket_bits = SHM_MAX_BUCKET_BITS;
    while (*bucket_bits > 0 && (uint64_t)shm_bucket_count(*bucket_bits) * 8 > share / 3 * 2)
        --*bucket_bits;
    *word_bits = 3;
    if (shm_ring_bytes(*word_bits, *bucket_bits) > share)
        return false;
    while (*word_bits < 31 && shm_ring_bytes(*word_bits + 1, *bucket_bits) <= share)
        ++*word_bits;
    return true;
}

/* Check record i and take its picture.  SHM_HIT; SHM_MISS: not named; SHM_CORRUPT
 * (INV-RING-PLACE). */
static int shm_ring_open(const shm_rings_view *v, uint32_t i, shm_ring_view *r)
{
    shm_ring *ring;
    uint64_t samples, histogram, named;
    r->ring = 0;
    if (i >= v->count)
        return SHM_MISS;
    ring = shm_ring_at(v, i);
    named = RDA(&ring->named);
    if (named == 0)
        return SHM_MISS;
    samples = RD(&ring->samples_off);
    histogram = RD(&ring->histogram_off);
    r->word_bits = RD(&ring->word_bits);
    r->bucket_bits = RD(&ring->bucket_bits);
    r->capacity = RD(&ring->capacity);
    if (named != 1 || r->word_bits > 31 || r->bucket_bits > SHM_MAX_BUCKET_BITS ||
        r->capacity == 0 || r->capacity > 1ull << r->word_bits || samples < v->arena_off ||
        samples > v->size || samples % 8 || histogram < v->arena_off || histogram > v->size ||
        histogram % 8)
        return SHM_CORRUPT;
    r->buckets = shm_bucket_count(r->bucket_bits);
    if (8ull << r->word_bits > v->size - samples || (uint64_t)r->buckets * 8 > v->size - histogram)
        return SHM_CORRUPT;
    r->samples = (uint64_t *)(v->base + samples);
    r->histogram = (uint64_t *)(v->base + histogram);
    r->mask = (1ull << r->word_bits) - 1;
    r->created_ms = v->created_ms;
    r->ring = ring;
    return SHM_HIT;
}

/* For verify(): do two rings lie apart in the arena? */
static bool shm_ring_apart(const shm_ring_view *a, const shm_ring_view *b)
{
    const uint64_t *from[4] = {a->samples, a->histogram, b->samples, b->histogram};
    const uint64_t *to[4] = {a->samples + a->mask + 1, a->histogram + a->buckets,
                             b->samples + b->mask + 1, b->histogram + b->buckets};
    for (int i = 0; i < 2; i++)
        for (int j = 2; j < 4; j++)
            if (from[i] < to[j] && from[j] < to[i])
                return false;
    return true;
}

/* For verify(): the furthest position that anything claims to be of.  More than `head`, loaded
 * afterwards (hence the fence): INV-RING-TOTALS does not hold. */
static uint64_t shm_ring_claims(const shm_ring_view *r)
{
    uint64_t count = 0, tail = RDA(&r->ring->tail), cleared = RDA(&r->ring->cleared);
    for (uint32_t b = 0; b < r->buckets; b++)
        count += RD(&r->histogram[b]);
    FENCE_ACQ();
    if (count < tail)
        count = tail;
    return count > cleared ? count : cleared;
}

/* Look a name up (SHM_NAME_SIZE bytes, NUL padded); no lock.  As shm_ring_open. */
static int shm_ring_lookup(const shm_rings_view *v, const char *name, shm_ring_view *r)
{
    r->ring = 0;
    for (uint32_t i = 0; i < v->count; i++)
        if (RDA(&shm_ring_at(v, i)->named) != 0 &&
            shm_bytes_equal(shm_ring_at(v, i)->name, name, SHM_NAME_SIZE))
            return shm_ring_open(v, i, r);
    return SHM_MISS;
}

/* Fill record i in and publish it. */
static void shm_ring_publish(const shm_rings_view *v, uint32_t i, const char *name, uint64_t off,
                             uint32_t capacity, uint32_t word_bits, uint32_t bucket_bits)
{
    shm_ring *ring = shm_ring_at(v, i);
    shm_bytes_copy(ring->name, name, SHM_NAME_SIZE);
    WR(&ring->samples_off, off);
    WR(&ring->histogram_off, off + (8ull << word_bits));
    WR(&ring->capacity, capacity);
    WR(&ring->word_bits, word_bits);
    WR(&ring->bucket_bits, bucket_bits);
    FAULT(ring_filled);
    WRR(&ring->named, 1);
    FAULT(ring_named);
}

/* Give a name a ring of `capacity` samples, or as many as can be spared: every record that is
 * still free keeps room for a quarter of its equal share.  Caller holds the directory's lock and
 * has looked the name up under it.  SHM_HIT, SHM_FULL (no record is left), SHM_CORRUPT. */
static int shm_ring_name(const shm_rings_view *v, const char *name, uint32_t capacity,
                         shm_ring_view *r)
{
    uint64_t end = v->arena_off, kept, room;
    uint32_t word_bits, bucket_bits, least, bits = 3, mine = v->count, unnamed = 0;

    if (!shm_rings_share(v, &word_bits, &bucket_bits))
        return SHM_FULL;
    for (uint32_t i = 0; i < v->count; i++) {
        shm_ring_view other;
        int got = shm_ring_open(v, i, &other);
        if (got == SHM_CORRUPT)
            return SHM_CORRUPT;
        if (got == SHM_HIT) {
            uint64_t last = (uint64_t)((uint8_t *)(other.histogram + other.buckets) - v->base);
            if (last > end)
                end = last;
        } else {
            unnamed++;
            if (i < mine)
                mine = i;
        }
    }
    if (unnamed == 0)
        return SHM_FULL;
    end = (end + SHM_LINE - 1) / SHM_LINE * SHM_LINE;
    least = word_bits > 5 ? word_bits - 2 : 3;
    kept = (unnamed - 1) * shm_ring_bytes(least, bucket_bits);
    if (end > v->size || kept > v->size - end)
        return SHM_CORRUPT; /* every naming before has left that much */
    room = v->size - end - kept;
    if (shm_ring_bytes(bits, bucket_bits) > room)
        return SHM_CORRUPT;
    while (bits < 31 && 1ull << bits < capacity && shm_ring_bytes(bits + 1, bucket_bits) <= room)
        bits++;
    if (capacity > 1ull << bits)
        capacity = 1u << bits;
    shm_ring_publish(v, mine, name, end, capacity, bits, bucket_bits);
    return shm_ring_open(v, mine, r);
}

/* Place the cache's own rings in a zeroed region, where they fit. */
static void shm_rings_format(uint8_t *base, const shm_superblock *sb)
{
    static const char names[SHM_OWN_RINGS][SHM_NAME_SIZE] = {SHM_RING_OWN_GET, SHM_RING_OWN_SET};
    shm_rings_view v;
    uint32_t word_bits, bucket_bits;
    uint64_t bytes;

    shm_rings_init(&v, base, sb);
    if (v.count <= SHM_OWN_RINGS || !shm_rings_share(&v, &word_bits, &bucket_bits))
        return;
    bytes = shm_ring_bytes(word_bits, bucket_bits);
    for (uint32_t i = 0; i < SHM_OWN_RINGS; i++)
        shm_ring_publish(&v, i, names[i], v.arena_off + i * bytes, 1u << word_bits, word_bits,
                         bucket_bits);
}

#endif
