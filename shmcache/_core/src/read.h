/* read.h - reads: no lock, no wait, no write but visited bits.
 *
 * The story.  A reader hashes its key, loads the slots of the key's bucket (RDA, pairs with the
 * WRR of the slot in room.h/write.h: whoever sees the word sees the entry's bytes), compares the
 * key, and hands the place of the value to its caller, who copies it out.  Meanwhile a writer
 * may have overwritten the key (the slot names another entry), evicted it (the slot is empty or
 * a ghost), moved it (same bytes elsewhere), and may even be writing something else over the
 * bytes being copied.  So nothing read counts before shm_hit_valid():
 *
 *   copy; FENCE_ACQ; the slot still holds the word (visited bits aside)        -> good
 *                    or the log's head has not passed the entry                -> good as well
 *
 * The second line bounds retries under constant overwriting: an entry keeps its bytes until the
 * head has passed it, whatever its slot says, and it was current when the slot was loaded.
 * Pairs with: WRR(head); FENCE_REL; first byte of reuse (write.h).  If the copy saw one reused
 * byte, the fences make this load of head see the head that has passed (INV-REUSE).
 *
 * A key that does not compare equal counts only after the same recheck (INV-MISMATCH): the bytes
 * may have been reused for another entry after the slot was loaded, while the slot already
 * names a new place of the very key looked for.  If the word changed, that slot is looked at
 * again; else the slot is somebody else's with the same tag.
 *
 * A key keeps its slot from insertion to removal (INV-ONE-SLOT), so a present key is never
 * missed by looking at each slot once.
 */
#ifndef SHMCACHE_READ_H
#define SHMCACHE_READ_H

#include "view.h"

#define SHM_READ_TRIES 4096 /* a reader that must look again more often than this has met flipped
                               bytes: each retry needs a whole lap of a log during one copy */

typedef struct shm_hit {
    const uint8_t *value;
    uint64_t *slot;
    uint64_t word;
    uint64_t version;
    uint64_t expiry; /* the expiry word, 0: never */
    uint32_t value_len;
    uint32_t shard;
    uint8_t value_kind;
    uint8_t key_kind;
    uint16_t key_len;
    const uint8_t *key;
} shm_hit;

/* The entry that word `w` of shard `sh` names: header loaded once, every length checked against
 * the log's end.  False if it cannot be an entry.  What it holds may be torn. */
static inline bool shm_parse_entry(const shm_view *v, shm_shard *sh, uint64_t w, shm_hit *hit)
{
    const shm_log_view *log = &v->log[shm_word_log(w)];
    uint64_t off = shm_word_pos(w) & log->off_mask, head, room, need;
    const uint8_t *p;
    uint8_t flags;

    if (UNLIKELY(off >= log->units))
        return false;
    room = (log->units - off) * SHM_UNIT;
    if (room > v->max_entry_bytes) /* nobody allocates for a torn length */
        room = v->max_entry_bytes;
    p = (const uint8_t *)sh + log->off + off * SHM_UNIT;
    head = RD((const uint64_t *)p); /* lengths and kinds in one load */
    hit->version = RD((const uint64_t *)p + 1);
    hit->value_len = (uint32_t)head;
    hit->key_len = (uint16_t)(head >> 32);
    flags = (uint8_t)(head >> 48);
    hit->value_kind = (uint8_t)(head >> 56);
    hit->key_kind = flags & (uint8_t)~SHM_K_EXPIRES;
    need = sizeof(shm_entry) + (uint64_t)hit->key_len + hit->value_len;
    hit->key = p + sizeof(shm_entry);
    hit->expiry = 0;
    if (flags & SHM_K_EXPIRES) {
        need += 8;
        if (UNLIKELY(need > room))
            return false;
        hit->expiry = RD((const uint64_t *)hit->key);
        hit->key += 8;
    }
    if (UNLIKELY(need > room || (flags & SHM_K_PAD)))
        return false;
    hit->value = hit->key + hit->key_len;
    hit->word = w;
    return true;
}

/* Is what was read through `hit` good?  Call after the last byte was copied. */
static inline bool shm_hit_valid(const shm_view *v, const shm_hit *hit)
{
    uint64_t now, head, pos;
    const shm_shard *sh;

    FENCE_ACQ();
    now = RD(hit->slot);
    if (LIKELY(shm_same_word(now, hit->word)))
        return true;
    sh = shm_shard_at(v, hit->shard);
    pos = shm_word_pos(hit->word);
    head = RD(&sh->head[shm_word_log(hit->word)]) & SHM_W_POS_MASK;
    return ((pos - head) & SHM_W_POS_MASK) < (1ull << (SHM_W_POS_BITS - 1));
}

/* Mark a hit: the saturating counter of the slot, by CAS and only if it is not full.  A failed
 * CAS is dropped: somebody else marked it or it changed. */
static inline void shm_hit_mark(const shm_hit *hit)
{
    uint64_t w = hit->word;
    if (UNLIKELY((w & SHM_W_VISITED) != SHM_W_VISITED))
        __atomic_compare_exchange_n(hit->slot, &w, w + 1, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED);
}

/* Does `slot` still hold `word` (visited bits aside)?  Then the entry that was read through it is
 * current: a word does not come back.  Marks the use, as a hit does.  Whoever kept a decoded value
 * asks this instead of reading the entry again (INV-LOCAL). */
static inline bool shm_word_current(uint64_t *slot, uint64_t word)
{
    uint64_t w = RDA(slot);
    if (UNLIKELY(!shm_same_word(w, word)))
        return false;
    if (UNLIKELY((w & SHM_W_VISITED) != SHM_W_VISITED))
        __atomic_compare_exchange_n(slot, &w, w + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return true;
}

/* Look `key` up.  SHM_HIT: *hit names the value, to be copied and then checked by
 * shm_hit_valid; SHM_MISS; SHM_CORRUPT after SHM_READ_TRIES.  Expiry is the caller's to check. */
static inline int shm_find(const shm_view *v, const shm_key *key, shm_hit *hit)
{
    uint32_t shard = shm_shard_of(v, key->hash), home = shm_home_bucket(v, key->hash);
    shm_shard *sh = shm_shard_at(v, shard);
    uint64_t *index = shm_index_of(v, sh);
    uint64_t want = SHM_KIND_LIVE | shm_hash_tag(key->hash);
    uint32_t first = (uint32_t)(key->hash >> SHM_H_TAG_SHIFT) & (SHM_BUCKET_SLOTS - 1);
    uint32_t tries = SHM_READ_TRIES;

    for (uint32_t n = 0;; n++) {
        uint64_t *bucket = index + (uint64_t)shm_probe_bucket(v, home, n) * SHM_BUCKET_SLOTS;
        for (uint32_t i = 0; i < SHM_BUCKET_SLOTS; i++) {
            uint64_t *slot = bucket + ((first + i) & (SHM_BUCKET_SLOTS - 1));
            uint64_t w;
        again:
            w = RDA(slot);
            if ((w & (SHM_W_KIND | SHM_W_TAG)) != want)
                continue;
            if (LIKELY(shm_parse_entry(v, sh, w, hit)) && hit->key_kind == key->kind &&
                hit->key_len == key->len && shm_bytes_equal(hit->key, key->data, key->len)) {
                hit->slot = slot;
                hit->shard = shard;
                return SHM_HIT;
            }
            FENCE_ACQ();
            if (!shm_same_word(RD(slot), w)) { /* INV-MISMATCH */
                if (--tries == 0)
                    return SHM_CORRUPT;
                goto again;
            }
        }
        if (n + 1 >= v->max_probe || n + 1 >= RD(&sh->probe_limit))
            return SHM_MISS;
    }
}

/* Two steps ahead of a batch of finds: the bucket, then the entry that its first matching tag
 * names, so that their cache misses overlap. */
static inline void shm_prefetch_bucket(const shm_view *v, uint64_t hash)
{
    shm_shard *sh = shm_shard_at(v, shm_shard_of(v, hash));
    __builtin_prefetch(shm_index_of(v, sh) + (uint64_t)shm_home_bucket(v, hash) * SHM_BUCKET_SLOTS);
}

/* Before taking the shard to write a key: its bucket, whose slot will be stored. */
static inline void shm_prefetch_bucket_own(const shm_view *v, uint64_t hash)
{
    shm_shard *sh = shm_shard_at(v, shm_shard_of(v, hash));
    shm_prefetch_own(shm_index_of(v, sh) + (uint64_t)shm_home_bucket(v, hash) * SHM_BUCKET_SLOTS);
}

static inline void shm_prefetch_entry(const shm_view *v, uint64_t hash)
{
    shm_shard *sh = shm_shard_at(v, shm_shard_of(v, hash));
    uint64_t *bucket = shm_index_of(v, sh) + (uint64_t)shm_home_bucket(v, hash) * SHM_BUCKET_SLOTS;
    uint64_t want = SHM_KIND_LIVE | shm_hash_tag(hash);
    for (uint32_t i = 0; i < SHM_BUCKET_SLOTS; i++) {
        uint64_t w = RD(bucket + i);
        if ((w & (SHM_W_KIND | SHM_W_TAG)) == want) {
            const shm_log_view *log = &v->log[shm_word_log(w)];
            uint64_t off = shm_word_pos(w) & log->off_mask;
            const uint8_t *p = (const uint8_t *)sh + log->off + off * SHM_UNIT;
            if (off < log->units) {
                __builtin_prefetch(p);
                __builtin_prefetch(p + SHM_LINE);
                __builtin_prefetch(p + 2 * SHM_LINE);
            }
            return;
        }
    }
}

/* One step of an iteration: slot `i` of shard `shard`.  SHM_HIT: *hit names key and value, to be
 * copied and then checked by shm_hit_valid (if that fails: call again for the same slot);
 * SHM_MISS: nothing there. */
static inline int shm_slot_entry(const shm_view *v, uint32_t shard, uint32_t i, shm_hit *hit)
{
    shm_shard *sh = shm_shard_at(v, shard);
    uint64_t *slot = shm_index_of(v, sh) + i;

    for (uint32_t tries = SHM_READ_TRIES; tries; tries--) {
        uint64_t w = RDA(slot);
        if (!shm_word_live(w))
            return SHM_MISS;
        hit->slot = slot;
        hit->shard = shard;
        if (shm_parse_entry(v, sh, w, hit))
            return SHM_HIT;
        FENCE_ACQ();
        if (shm_same_word(RD(slot), w))
            return SHM_MISS; /* flipped bytes: nothing that could be shown */
    }
    return SHM_CORRUPT;
}

#endif
