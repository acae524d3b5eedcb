/* epoch.h - namespaces: keys that one store makes unreachable, all of them at once.
 *
 * A namespaced key's content is
 *
 *   u16 n | path, n bytes | u64 epoch | the key's own content           (kind: NAMESPACED | type)
 *
 * The path is one element for each level, outermost first: u16 length, then the prefix in UTF-8.
 * The epoch is that of the innermost level, a random number never 0.  It lives in an entry of its
 * own, whose value is the number:
 *
 *   u16 n | path, n bytes | u64 epoch of the level above, 0: none      (kind: NAMESPACED | EPOCH)
 *
 * So replacing the value of that one entry hides every key below it, nested levels included:
 * nobody can name them any more (INV-EPOCH).  An epoch that is missing, because it was evicted or
 * cleared, is drawn anew at random and never reset to a constant, else the keys would come back.
 *
 * What cannot be named any more is reclaimed like what has expired: by the head of a log that
 * meets it, and by a sweep where room is short.  `invalidations` of the superblock counts the
 * times that an epoch has gone, for whatever reason (shm_drop_kind); a shard whose last complete
 * sweep began before the latest of them has something to look for.  Who dies between the epoch's
 * removal and the count leaves the epoch's shard held: repairing a shard counts as well.
 *
 * An epoch is looked up without a lock, also by the holder of another shard: reads take none.
 * An entry whose epoch is not the one found is stale for good: it was written before its shard
 * was taken, so its epoch was drawn before, and a replaced epoch never comes back.
 */
#ifndef SHMCACHE_EPOCH_H
#define SHMCACHE_EPOCH_H

#include "log.h"
#include "read.h"

/* An epoch, as `hit` found it: 0 where its bytes are none. */
static inline int shm_epoch_find(const shm_view *v, const shm_key *key, shm_hit *hit,
                                 uint64_t *epoch)
{
    for (uint32_t tries = SHM_READ_TRIES; tries; tries--) {
        int r = shm_find(v, key, hit);
        *epoch = 0;
        if (r != SHM_HIT)
            return r;
        if (hit->value_kind == SHM_V_INT && hit->value_len == sizeof *epoch)
            shm_bytes_copy(epoch, hit->value, sizeof *epoch);
        if (shm_hit_valid(v, hit))
            return SHM_HIT;
    }
    return SHM_CORRUPT;
}

/* The key of the epoch of the level whose path is the first `n` bytes of `path`, under the epoch
 * `above`.  `room` is SHM_MAX_PATH + 10 bytes, and holds the content. */
static inline shm_key shm_epoch_key(const shm_view *v, uint8_t *room, const uint8_t *path,
                                    uint32_t n, uint64_t above)
{
    uint16_t length = (uint16_t)n;
    shm_key key;

    memcpy(room, &length, 2);
    memmove(room + 2, path, n);
    memcpy(room + 2 + n, &above, 8);
    key.data = room;
    key.len = 2 + n + 8;
    key.kind = SHM_K_NAMESPACED | SHM_K_EPOCH;
    key.hash = shm_key_hash(v->seed, key.kind, room, key.len);
    return key;
}

/* The present epoch of a path: SHM_HIT; SHM_MISS: it, or one above it, is gone; SHM_CORRUPT. */
static int shm_epoch_of_path(const shm_view *v, const uint8_t *path, uint32_t n, uint64_t *epoch)
{
    uint8_t room[SHM_MAX_PATH + 10];
    uint32_t at = 0;

    *epoch = 0;
    while (at < n) { /* at least two bytes further each time */
        uint16_t length;
        shm_key key;
        shm_hit hit;
        int r;
        if (n - at < 2)
            return SHM_CORRUPT;
        memcpy(&length, path + at, 2);
        if (length > n - at - 2)
            return SHM_CORRUPT;
        at += 2u + length;
        key = shm_epoch_key(v, room, path, at, *epoch);
        r = shm_epoch_find(v, &key, &hit, epoch);
        if (r != SHM_HIT)
            return r;
    }
    return SHM_HIT;
}

/* Can nobody name the entry behind `hit` any more?  The caller holds its shard. */
static bool shm_epoch_stale(shm_op *op, const shm_hit *hit)
{
    uint8_t path[SHM_MAX_PATH];
    uint64_t epoch, now;
    uint16_t n;
    int r;

    if (LIKELY(!(hit->key_kind & SHM_K_NAMESPACED)) || hit->key_len < 10)
        return false;
    shm_bytes_copy(&n, hit->key, 2);
    if (n > SHM_MAX_PATH || hit->key_len < 2u + n + 8u)
        return false; /* flipped bytes */
    shm_bytes_copy(&epoch, hit->key + 2 + n, 8);
    shm_bytes_copy(path, hit->key + 2, n);
    if ((hit->key_kind & SHM_K_TYPE) == SHM_K_EPOCH) { /* it hangs on the level above */
        uint32_t at = 0, last = 0;
        uint16_t length;
        while (n - at >= 2) {
            memcpy(&length, path + at, 2);
            last = at;
            at += 2u + length;
            if (at > n)
                return false;
        }
        if (last == 0)
            return false; /* an outermost level stays */
        n = (uint16_t)last;
    }
    if (epoch == op->epoch) /* entries of one namespace come in rows */
        return op->epoch_stale;
    r = shm_epoch_of_path(op->v, path, n, &now);
    op->epoch = epoch;
    op->epoch_stale = r == SHM_MISS || (r == SHM_HIT && now != epoch);
    return op->epoch_stale;
}

#endif
