/* directory.h - names of swap slots and of tokens: who has which record.
 *
 * The story.  A directory is a row of records (shm_record), each inside what it names.  A record
 * is free while its seal is 0.  Whoever uses a name looks for it without a lock; where it is not
 * there, takes the directory's lock (a holder word as a shard's, see lock.h), looks again, writes
 * name and parent into the first free record, and seals it with one release store
 * (INV-RECORD-SEAL).  From then on nobody writes the record, and nobody frees it.  So who sees
 * the seal sees the name, two processes never give one name two records, and whoever dies in
 * between leaves a record that is still free: there is nothing to repair.
 *
 * The seal is a hash of what it seals.  A record whose seal does not match was damaged: it is
 * nobody's, and a name that is found nowhere else may have been that one, so it is CORRUPT rather
 * than taken anew.
 *
 * Cost: one load a record; a comparison of 64 bytes where a seal matches; a hash of 64 bytes for
 * each record of another name, to know that it is whole.
 */
#ifndef SHMCACHE_DIRECTORY_H
#define SHMCACHE_DIRECTORY_H

#include "view.h"

/* `first` is the record of the first slot or token, `stride` the bytes from one to the next. */
typedef struct shm_directory {
    uint8_t *first;
    uint64_t stride;
    uint32_t count;
} shm_directory;

static inline shm_record *shm_record_at(const shm_directory *d, uint32_t i)
{
    return (shm_record *)(d->first + (uint64_t)i * d->stride);
}

/* `name` is NUL padded. */
static inline uint64_t shm_record_seal(uint32_t parent, const char name[SHM_NAME_SIZE])
{
    return shm_xxh64(name, SHM_NAME_SIZE, parent) | 1u;
}

/* Is a record free, or whole?  What seals it, if it is neither, goes to *wanted. */
static inline bool shm_record_ok(const shm_record *r, uint64_t *wanted)
{
    uint64_t seal = RDA(&r->seal);
    char name[SHM_NAME_SIZE];
    shm_bytes_copy(name, r->name, SHM_NAME_SIZE);
    *wanted = shm_record_seal(RD(&r->parent), name);
    return seal == 0 || seal == *wanted;
}

/* Look for a name.  SHM_HIT: it is record *at.  SHM_MISS: it is not there.  SHM_CORRUPT: it is
 * not found, and record *at is damaged. */
static inline int shm_record_find(const shm_directory *d, uint32_t parent,
                                  const char name[SHM_NAME_SIZE], uint32_t *at)
{
    const uint64_t wanted = shm_record_seal(parent, name);
    shm_record copy;
    int found = SHM_MISS;

    for (uint32_t i = 0; i < d->count; i++) {
        const shm_record *r = shm_record_at(d, i);
        uint64_t seal = RDA(&r->seal); /* pairs with shm_record_claim's release */
        if (seal == 0)
            continue;
        shm_bytes_copy(copy.name, r->name, SHM_NAME_SIZE);
        copy.parent = RD(&r->parent);
        if (seal == wanted && copy.parent == parent &&
            memcmp(copy.name, name, SHM_NAME_SIZE) == 0) {
            *at = i;
            return SHM_HIT;
        }
        if (found == SHM_MISS && seal != shm_record_seal(copy.parent, copy.name)) {
            found = SHM_CORRUPT;
            *at = i;
        }
    }
    return found;
}

/* Give a name the first free record.  Caller holds the directory's lock.  As shm_record_find,
 * but SHM_FULL instead of SHM_MISS: no record is free. */
static inline int shm_record_claim_locked(const shm_directory *d, uint32_t parent,
                                          const char name[SHM_NAME_SIZE], uint32_t *at)
{
    int found = shm_record_find(d, parent, name, at);
    if (found != SHM_MISS)
        return found;
    for (uint32_t i = 0; i < d->count; i++) {
        shm_record *r = shm_record_at(d, i);
        if (RD(&r->seal) != 0)
            continue;
        WR(&r->parent, parent);
        shm_bytes_copy(r->name, name, SHM_NAME_SIZE);
        FAULT(record_named);
        WRR(&r->seal, shm_record_seal(parent, name)); /* INV-RECORD-SEAL */
        FAULT(record_sealed);
        *at = i;
        return SHM_HIT;
    }
    return SHM_FULL;
}

/* ---------------------------------------------------------------------- sealed words */

static inline uint64_t shm_sealed(uint64_t count)
{
    uint64_t check = (count ^ count >> 16 ^ count >> 32 ^ SHM_SEAL_CHECK) & 0xffffu;
    return (count & SHM_SEAL_COUNT) | check << 48;
}

static inline uint64_t shm_sealed_count(uint64_t word) { return word & SHM_SEAL_COUNT; }

/* Whether a word is one that shm_sealed makes, or was never stored (0). */
static inline bool shm_sealed_ok(uint64_t word)
{
    return word == 0 || word == shm_sealed(shm_sealed_count(word));
}

#endif
