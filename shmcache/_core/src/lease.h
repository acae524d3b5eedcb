/* lease.h - once per key: who may initialise a missing key, among all processes.
 *
 * The story.  A process that misses a key takes the key's lease: an entry of its own in the key's
 * shard that says who it is.  Others find it, and wait for the shard's wake word to change
 * (`wake`, a futex; the binding's business: this file makes no system call).  The initialiser
 * computes the value, holding no lock, and publishes it: SHM_PUT_PUBLISH stores only if the very
 * lease, told by its version, is still there, and takes it away in the same hold of the shard.
 * Whoever sets, adds or deletes the key meanwhile takes the lease away as well (write.h), and so
 * wins: the late value finds no lease (INV-LEASE).
 *
 * An initialiser that fails gives the lease up.  One that dies leaves it: a waiter asks the kernel
 * whether the holder lives, and if not takes over, but only from the version that it asked about.
 * A version is never used twice and an identity word neither, so between question and takeover
 * nobody else's lease can be taken for the dead one's.  No clock ends a lease.
 *
 * Leases are never evicted, expired or shown; they are few (shm_lease_most), so they cannot crowd
 * values out.  One that does not fit is refused with SHM_FULL: its caller then initialises alone.
 * Those of a namespace that was invalidated are stale like all its entries: their initialisers give
 * them up under the old epoch, and what the dead have left there goes in a sweep.
 *
 * A dead one's lease on a key that nobody asks for again would stay for ever.  So an owner daemon
 * looks through the index as a reader does, asks the kernel, and drops what it saw, by version
 * (shm_leases_see, shm_lease_drop).
 */
#ifndef SHMCACHE_LEASE_H
#define SHMCACHE_LEASE_H

#include "write.h"

/* Leases that a shard takes at most: one for 16 slots of its index, and 64. */
static inline uint32_t shm_lease_most(const shm_view *v)
{
    uint32_t n = v->slot_count / 16 + 64;
    return n < SHM_C_LEASES ? n : SHM_C_LEASES; /* what counts.leases has bits for */
}

static inline uint32_t shm_lease_count(const shm_shard *sh)
{
    return RD(&sh->counts.leases) & SHM_C_LEASES;
}

static inline shm_key shm_lease_key(const shm_key *key)
{
    shm_key of = *key;
    of.kind |= SHM_K_LEASE; /* the hash is the key's: shm_key_hash leaves the flag out */
    return of;
}

typedef struct shm_claim {
    uint64_t me;       /* in: identity word of the taker */
    uint64_t deadline; /* in: milliseconds, see shm_lease */
    uint64_t dead;     /* in: version of a lease whose holder is dead, 0: none */
    uint64_t unfit;    /* in: version of a value that counts as missing, 0: none */
    uint64_t version;  /* out: of the lease that is there now */
} shm_claim;

/* Take the lease of a missing key, or take it over.
 * SHM_MISS: it is the caller's now; SHM_HIT: the key has a value; SHM_EXISTS: somebody else has
 * the lease; SHM_FULL: there is no room for it; SHM_CORRUPT. */
static int shm_lease_take(shm_op *op, const shm_key *key, shm_claim *claim)
{
    shm_key of = shm_lease_key(key);
    shm_lease lease = {claim->me, claim->deadline & ~SHM_LEASE_GHOST};
    shm_put put = {0};
    shm_found f;
    shm_hit hit;
    int r = shm_lookup(op, key, &f);

    if (r != SHM_HIT)
        return r;
    if (f.slot != SHM_NO_SLOT && !f.expired && f.hit.version != claim->unfit)
        return SHM_HIT;
    if (f.lease != SHM_NO_SLOT) {
        shm_lease old;
        if (!shm_lease_read(op, f.lease, &hit, &old))
            return SHM_CORRUPT;
        if (hit.version != claim->dead) {
            claim->version = hit.version;
            return SHM_EXISTS;
        }
        lease.deadline |= old.deadline & SHM_LEASE_GHOST;
        shm_drop_lease(op, f.lease);
    } else if (shm_lease_count(op->sh) >= shm_lease_most(op->v)) {
        shm_sweep_round(op); /* those of a namespace that was invalidated */
        if (shm_lease_count(op->sh) >= shm_lease_most(op->v))
            return SHM_FULL;
    }
    r = shm_lookup(op, &of, &f);
    if (r != SHM_HIT)
        return r;
    if (f.ghost) { /* the lease may take its slot; what it says about the key is kept */
        lease.deadline |= SHM_LEASE_GHOST;
        f.ghost = false;
    }
    put.value = &lease;
    put.value_len = sizeof lease;
    put.value_kind = SHM_V_LEASE;
    put.mode = SHM_PUT_SET;
    r = shm_store_found(op, &of, &f, &put);
    if (r != SHM_HIT)
        return r;
    claim->version = put.version;
    return SHM_MISS;
}

/* Give up the lease with that version.  SHM_HIT; SHM_MISS: it was gone; SHM_CORRUPT. */
static int shm_lease_release(shm_op *op, const shm_key *key, uint64_t version)
{
    shm_found f;
    shm_hit hit;
    shm_lease lease;
    int r = shm_lookup(op, key, &f);

    if (r != SHM_HIT)
        return r;
    if (!shm_lease_read(op, f.lease, &hit, &lease) || hit.version != version)
        return SHM_MISS;
    shm_drop_lease(op, f.lease);
    return SHM_HIT;
}

typedef struct shm_lease_seen {
    uint64_t holder;
    uint64_t version;
    uint32_t slot;
} shm_lease_seen;

/* The leases among `slots` slots of a shard from *at on, `most` at most.  Takes no lock: whoever
 * asks for their holders afterwards holds nothing.  *at: where to go on; slot_count: all were
 * looked at. */
static uint32_t shm_leases_see(const shm_view *v, uint32_t shard, uint32_t *at, uint32_t slots,
                               shm_lease_seen *out, uint32_t most)
{
    uint32_t n = 0;

    for (; *at < v->slot_count && slots && n < most; slots--, (*at)++) {
        for (uint32_t tries = SHM_READ_TRIES; tries; tries--) {
            shm_lease lease = {0, 0};
            shm_hit hit;
            if (shm_slot_entry(v, shard, *at, &hit) != SHM_HIT)
                break;
            if ((hit.key_kind & SHM_K_LEASE) && hit.value_kind == SHM_V_LEASE &&
                hit.value_len == sizeof lease)
                shm_bytes_copy(&lease, hit.value, sizeof lease);
            if (!shm_hit_valid(v, &hit))
                continue; /* what was read is no entry */
            if (hit.key_kind & SHM_K_LEASE) {
                out[n].holder = lease.holder; /* 0: its bytes say nothing */
                out[n].version = hit.version;
                out[n++].slot = *at;
            }
            break;
        }
    }
    return n;
}

/* Drop a lease that was seen, if it is still the same one. */
static bool shm_lease_drop(shm_op *op, const shm_lease_seen *seen)
{
    shm_lease lease;
    shm_hit hit;

    if (seen->slot >= op->v->slot_count || !shm_lease_read(op, seen->slot, &hit, &lease) ||
        !(hit.key_kind & SHM_K_LEASE) || hit.version != seen->version ||
        lease.holder != seen->holder)
        return false;
    shm_drop_lease(op, seen->slot);
    return true;
}

/* The holder of a shard is about to let go of it: has it to wake who waits for leases? */
static inline bool shm_wake_due(shm_shard *sh)
{
    uint32_t wake = RD(&sh->wake);
    if (LIKELY((wake & 1u) == 0))
        return false;
    WR(&sh->wake, wake & ~1u);
    return true;
}

/* Who has the key's lease?  Takes no lock.  SHM_HIT with holder and version; SHM_MISS;
 * SHM_CORRUPT. */
static int shm_lease_find(const shm_view *v, const shm_key *key, uint64_t *holder,
                          uint64_t *version)
{
    shm_key of = shm_lease_key(key);
    for (int tries = SHM_READ_TRIES; tries; tries--) {
        shm_lease lease = {0, 0};
        shm_hit hit;
        int r = shm_find(v, &of, &hit);
        if (r != SHM_HIT)
            return r;
        if (hit.value_kind == SHM_V_LEASE && hit.value_len == sizeof lease)
            shm_bytes_copy(&lease, hit.value, sizeof lease);
        if (shm_hit_valid(v, &hit)) {
            *holder = lease.holder;
            *version = hit.version;
            return SHM_HIT;
        }
    }
    return SHM_CORRUPT;
}

#endif
