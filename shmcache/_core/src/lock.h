/* lock.h - the lock of a shard: one word that says whether it is held and by whom.
 *
 * The story.  Taking is one compare-and-swap from 0 to the taker's identity word; so at no
 * instant is the lock held by somebody unnamed.  Who finds it taken spins briefly, sets the
 * contended bit, and waits, for a bounded slice, on the shard's POSIX semaphore (the binding's
 * business: this file makes no system call).  A token in the semaphore is a hint to look again,
 * never ownership.  Whoever has waited takes the lock with the contended bit set, because others
 * may wait as well and their bit went with the last release.  The releaser swaps in 0 and, if the
 * bit was set, posts.  A waiter whose slice ran out asks the kernel whether the holder lives; if
 * not, exactly one waiter can swap its own word in for exactly the dead one's (INV-TAKEOVER),
 * and repairs before anything else.  A generation is never used twice for a client slot, so the
 * dead one's word cannot come back between the question and the swap.
 *
 * Orderings: the CAS that takes is an acquire, the exchange that releases a release; they pair
 * with each other.  The takeover's CAS is an acquire; it pairs with whatever the dead holder
 * stored before it was killed: the kernel's teardown of a process orders that.
 */
#ifndef SHMCACHE_LOCK_H
#define SHMCACHE_LOCK_H

#include "view.h"

#define SHM_SPINS 128 /* about 2 to 5 us: ten holds of a shard; longer only burns a core */

static inline bool shm_lock_try(uint64_t *holder, uint64_t me)
{
    if (RD(holder) != 0 || !shm_cas(holder, 0, me))
        return false;
    FAULT(locked);
    return true;
}

static inline bool shm_lock_spin(uint64_t *holder, uint64_t me)
{
    for (int i = 0; i < SHM_SPINS; i++) {
        if (shm_lock_try(holder, me))
            return true;
        shm_pause();
    }
    return false;
}

/* One look by a waiter.  Returns 0 if the lock is now the caller's (contended bit set if
 * `waited`), SHM_L_UNDECIDED if it changed hands all the time, else the holder word, its contended
 * bit set in shared memory. */
#define SHM_L_UNDECIDED (~0ull)

static inline uint64_t shm_lock_or_contend(uint64_t *holder, uint64_t me, bool waited)
{
    for (int i = 0; i < SHM_SPINS; i++) {
        uint64_t w = RD(holder);
        if (w == 0) {
            if (shm_cas(holder, 0, waited ? me | SHM_L_CONTENDED : me)) {
                FAULT(locked);
                return 0;
            }
        } else if ((w & SHM_L_CONTENDED) || shm_cas(holder, w, w | SHM_L_CONTENDED)) {
            return w | SHM_L_CONTENDED;
        }
    }
    return SHM_L_UNDECIDED;
}

/* Could this word be somebody's?  Flipped bytes may make it nobody's: then it is taken over from
 * as from the dead. */
static inline bool shm_lock_word_ok(uint64_t w, uint32_t client_count)
{
    uint64_t client = (w & SHM_L_IDENTITY) >> SHM_L_CLIENT_SHIFT;
    return (w & ~(SHM_L_IDENTITY | SHM_L_CONTENDED)) == 0 && client != 0 && client <= client_count;
}

/* Take over from a holder that the kernel says is dead: only from exactly its word, as
 * shm_lock_or_contend returned it. */
static inline bool shm_lock_take_over(uint64_t *holder, uint64_t dead, uint64_t me)
{
    return shm_cas(holder, dead, me | SHM_L_CONTENDED);
}

/* Release.  True: somebody may wait, post the semaphore. */
static inline bool shm_lock_release(uint64_t *holder)
{
    FAULT(unlocking);
    return (__atomic_exchange_n(holder, 0, __ATOMIC_RELEASE) & SHM_L_CONTENDED) != 0;
}

static inline uint32_t shm_identity_client(uint64_t word)
{
    return (uint32_t)((word & SHM_L_IDENTITY) >> SHM_L_CLIENT_SHIFT) - 1u;
}

#endif
