/* swap.h - a swap slot: one value that is replaced whole, read without a lock.
 *
 * The story.  A slot is a version and two buffers.  The version (`word`) counts the stores; its
 * lowest bit names the buffer that is current.  It is sealed (layout.h): a check in the same word
 * tells a version from flipped bytes.
 *
 * A writer holds the slot's lock (lock.h).  It fills the buffer that is not current, describes it
 * (length, kind, check), and then advances the version with one release store: the linearization
 * point.  Nothing else is ever changed, so there is nothing to undo and nothing to repair.
 *
 * A reader loads the version (acquire), copies description and bytes of the buffer that it names,
 * and loads the version again.  The same: the copy is whole (INV-SWAP-CURRENT: while a version is
 * current nobody writes its buffer).  Another: the copy is thrown away and it begins again; that
 * takes a store during the copy, and 4,096 of them in a row are no race but damage.  Only then is
 * the check verified: a mismatch under an unchanged version is not a race either, and is
 * SHM_CORRUPT.  The check covers the version too: a word that was flipped to another valid one,
 * or a buffer that was not filled by that very store, is never taken for a value.
 *
 * A reader of version n meets the writer of n + 1: they use different buffers; the reader finds
 * the version moved, or not, and begins again if it did.  It meets the writer of n + 2, which
 * fills the buffer being read: version n + 1 was stored before, and the release fence before
 * the writer's first byte, with the reader's acquire fence before its second look, makes whoever
 * has read one new byte see it (INV-SWAP-REUSE).
 *
 * A writer that dies before the advance has changed nothing that anybody looks at: the next one
 * fills the same buffer again, under the same number, which nobody has seen.  One that dies after
 * it has stored.  So versions never repeat and never go back (INV-SWAP-VERSION).
 *
 *   what                    ordering             partner
 *   word                    WRR                  RDA in shm_swap_read
 *   the word before reuse   WRR, FENCE_REL       FENCE_ACQ, RD of the word in shm_swap_read
 *   bytes, descriptions     plain, relaxed       the second look
 *   holder                  lock.h               lock.h
 */
#ifndef SHMCACHE_SWAP_H
#define SHMCACHE_SWAP_H

#include "directory.h"
#include "lock.h"

#define SHM_SWAP_TRIES 4096 /* copies thrown away in a row before a reader calls it damage */
#define SHM_SWAP_ANY (~0ull) /* store whatever the version is */

/* Where a slot lies: checked geometry, nothing that was read from the slot. */
typedef struct shm_swap_view {
    shm_swap *slot;
    uint64_t capacity; /* bytes of one buffer */
} shm_swap_view;

/* What a buffer is said to hold, as a reader copied it. */
typedef struct shm_swap_copy {
    uint64_t word;
    uint64_t check;
    const uint8_t *bytes; /* in shared memory: copy, then ask shm_swap_unchanged */
    uint32_t length;
    uint32_t kind;
} shm_swap_copy;

static inline uint8_t *shm_swap_bytes(const shm_swap_view *v, uint64_t version)
{
    return (uint8_t *)v->slot + SHM_SLOT_HEADER_SIZE + (version & 1) * v->capacity;
}

/* `digest` is the XXH64 of the bytes, seed 0. */
static inline uint64_t shm_swap_check(uint64_t digest, uint64_t version, uint32_t kind)
{
    const uint64_t words[3] = {digest, version, kind};
    return shm_xxh64(words, sizeof words, 0);
}

/* Step one of a load.  SHM_MISS: nothing was stored yet.  SHM_HIT: copy `length` bytes, then ask
 * shm_swap_unchanged.  SHM_CORRUPT: the word, or a length under an unchanged word, is damaged.
 * SHM_BUSY: it changed meanwhile, begin again. */
static inline int shm_swap_read_begin(const shm_swap_view *v, shm_swap_copy *c)
{
    const shm_swap_buffer *b;
    c->word = RDA(&v->slot->word);
    if (c->word == 0)
        return SHM_MISS;
    if (!shm_sealed_ok(c->word))
        return SHM_CORRUPT;
    b = &v->slot->buffer[c->word & 1];
    c->length = RD(&b->length);
    c->kind = RD(&b->kind);
    c->check = RD(&b->check);
    c->bytes = shm_swap_bytes(v, c->word);
    if (UNLIKELY(c->length > v->capacity)) {
        FENCE_ACQ();
        return RD(&v->slot->word) == c->word ? SHM_CORRUPT : SHM_BUSY;
    }
    return SHM_HIT;
}

/* Step two: was the version current all the time?  Only then does the copy count. */
static inline bool shm_swap_unchanged(const shm_swap_view *v, const shm_swap_copy *c)
{
    FENCE_ACQ(); /* INV-SWAP-REUSE: pairs with the fence in shm_swap_store_locked */
    return RD(&v->slot->word) == c->word;
}

/* Step three, on the private copy: are these the bytes that this version was stored with? */
static inline bool shm_swap_sound(const shm_swap_copy *c, const void *bytes)
{
    uint64_t digest = shm_xxh64(bytes, c->length, 0);
    return c->check == shm_swap_check(digest, shm_sealed_count(c->word), c->kind);
}

/* Replace the value.  Caller holds the slot's lock; `length` is at most the capacity; `digest` is
 * the XXH64 of the bytes; `expected` the version to replace, or SHM_SWAP_ANY.  SHM_HIT: *version
 * is the new one.  SHM_MISMATCH: another version is current.  SHM_CORRUPT: the version is damaged,
 * and a number of our own choosing might have been there before.  SHM_OVERFLOW: after 2^48 stores.
 */
static inline int shm_swap_store_locked(const shm_swap_view *v, const void *data, uint32_t length,
                                        uint32_t kind, uint64_t digest, uint64_t expected,
                                        uint64_t *version)
{
    uint64_t word = RD(&v->slot->word); /* nobody else stores while we hold the lock */
    uint64_t next = shm_sealed_count(word) + 1;
    shm_swap_buffer *b = &v->slot->buffer[next & 1];
    uint8_t *to = shm_swap_bytes(v, next);
    uint32_t half = length / 2;

    if (!shm_sealed_ok(word))
        return SHM_CORRUPT;
    if (expected != SHM_SWAP_ANY && expected != next - 1)
        return SHM_MISMATCH;
    if (next > SHM_SEAL_COUNT)
        return SHM_OVERFLOW;
    FAULT(swap_begin);
    FENCE_REL(); /* INV-SWAP-REUSE: the last advance, before the first byte of this store */
    shm_bytes_copy(to, data, half);
    FAULT(swap_half);
    shm_bytes_copy(to + half, (const uint8_t *)data + half, length - half);
    FAULT(swap_filled);
    WR(&b->length, length);
    WR(&b->kind, kind);
    WR(&b->check, shm_swap_check(digest, next, kind));
    FAULT(swap_described);
    WRR(&v->slot->word, shm_sealed(next)); /* INV-SWAP-CURRENT, INV-SWAP-VERSION */
    FAULT(swap_advanced);
    *version = next;
    return SHM_HIT;
}

#endif
