/* token.h - a cancellation token: a word that says whether, and a reason beside it.
 *
 * The story.  A token's state counts cancels and resets, sealed as a swap slot's version is
 * (layout.h): odd means cancelled, 0 (never stored) and even not.  Whoever asks loads that word,
 * and its parents' up to the root: a child has no state of its parent's to be kept in step, so a
 * parent's cancel reaches its children in the very store that cancels it.
 *
 * Who cancels holds the token's lock (lock.h), writes the reason, and then stores the odd state
 * (release).  While the state is odd nobody writes the reason (INV-TOKEN-REASON), so a reader that
 * finds the same odd state before and after its copy has a whole one.  A reset stores the next
 * even state; the next cancel's reason comes after a release fence, so that a reader who copies
 * one byte of it sees the reset.  Whoever dies before the state was stored has changed nothing
 * that anybody looks at; after it, everything: there is nothing to repair.
 *
 * The bell.  Waiters sleep on one futex for all tokens of a segment (a child waits for several
 * words at once): a count in token 0 that every cancel advances after the state.  A waiter reads
 * the bell, then the states, then sleeps if the bell is still the same.  Who dies between state
 * and bell costs the sleepers the rest of their slice, which is bounded.
 *
 *   what      ordering             partner
 *   state     WRR                  RDA in shm_token_state
 *   reason    relaxed              the second look in shm_token_reason
 *   bell      fetch_add, release   RDA by the waiter, and the kernel's look at it
 */
#ifndef SHMCACHE_TOKEN_H
#define SHMCACHE_TOKEN_H

#include "directory.h"
#include "lock.h"

#define SHM_TOKEN_TRIES 4096 /* looks at a reason that keeps changing before it is called damage */

/* SHM_HIT: cancelled; SHM_MISS: not; SHM_CORRUPT: flipped bytes. */
static inline int shm_token_state(const shm_token *t)
{
    uint64_t state = RDA(&t->state);
    if (!shm_sealed_ok(state))
        return SHM_CORRUPT;
    return state & 1 ? SHM_HIT : SHM_MISS;
}

/* Copy the reason (at most SHM_REASON_SIZE bytes) of a cancelled token.  SHM_HIT: *length is its
 * bytes, SHM_NO_REASON: none was given.  SHM_MISS: not cancelled.  SHM_CORRUPT: damaged. */
static inline int shm_token_reason(const shm_token *t, char *out, uint32_t *length)
{
    for (int i = 0; i < SHM_TOKEN_TRIES; i++) {
        uint64_t state = RDA(&t->state), check;
        if (!shm_sealed_ok(state))
            return SHM_CORRUPT;
        if (!(state & 1))
            return SHM_MISS;
        *length = RD(&t->reason_length);
        check = RD(&t->reason_check);
        shm_bytes_copy(out, t->reason, SHM_REASON_SIZE);
        FENCE_ACQ(); /* INV-TOKEN-REASON */
        if (RD(&t->state) != state)
            continue;
        if (*length == SHM_NO_REASON)
            return check == shm_xxh64(out, 0, shm_sealed_count(state)) ? SHM_HIT : SHM_CORRUPT;
        if (*length > SHM_REASON_SIZE ||
            check != shm_xxh64(out, *length, ~shm_sealed_count(state)))
            return SHM_CORRUPT;
        return SHM_HIT;
    }
    return SHM_CORRUPT;
}

/* Cancel; caller holds the token's lock.  `reason` has `length` bytes, at most SHM_REASON_SIZE, or
 * `length` is SHM_NO_REASON.  SHM_HIT: done; SHM_EXISTS: it was cancelled already, the first
 * reason stays; SHM_CORRUPT. */
static inline int shm_token_cancel_locked(shm_token *t, const char *reason, uint32_t length)
{
    uint64_t state = RD(&t->state), next = shm_sealed_count(state) + 1, check;
    if (!shm_sealed_ok(state))
        return SHM_CORRUPT;
    if (state & 1)
        return SHM_EXISTS;
    FAULT(token_begin);
    FENCE_REL(); /* the reset before the first byte of a new reason */
    if (length == SHM_NO_REASON) {
        check = shm_xxh64(reason, 0, next);
    } else {
        check = shm_xxh64(reason, length, ~next);
        shm_bytes_copy(t->reason, reason, length);
    }
    WR(&t->reason_length, length);
    WR(&t->reason_check, check);
    FAULT(token_reason);
    WRR(&t->state, shm_sealed(next)); /* INV-TOKEN-REASON */
    FAULT(token_stored);
    return SHM_HIT;
}

/* Reset; caller holds the token's lock.  SHM_HIT: it is not cancelled any more; SHM_MISS: it was
 * not.  A damaged state is reset too: the count begins after what is left of it. */
static inline int shm_token_reset_locked(shm_token *t)
{
    uint64_t state = RD(&t->state), count = shm_sealed_count(state);
    if (shm_sealed_ok(state) && !(state & 1))
        return SHM_MISS;
    FAULT(token_begin);
    WRR(&t->state, shm_sealed((count | 1) + 1));
    FAULT(token_stored);
    return SHM_HIT;
}

/* What a waiter looks at before it looks at the states; `first` is token 0. */
static inline uint32_t shm_token_bell(const shm_token *first) { return RDA(&first->bell); }

/* Ring: `first` is token 0. */
static inline void shm_token_ring(shm_token *first)
{
    __atomic_fetch_add(&first->bell, 1, __ATOMIC_RELEASE);
    FAULT(token_rung);
}

#endif
