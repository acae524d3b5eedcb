/* atomics.h - loads, stores and copies of shared memory, and the fault points between them.
 *
 * Every word of the segment is read and written through these, so that each access states its
 * ordering.  Partners are named where they are used ("pairs with ...").
 *
 *   RD, WR      relaxed load and store: ordering comes from a fence or from the shard's lock
 *   RDA         acquire load: what the storer did before its WRR is visible after it
 *   WRR         release store: everything before it is visible before it
 *   FENCE_ACQ   later loads of a seqlock-style reader may not move before it ... its recheck
 *   FENCE_REL   later stores (bytes being reused) may not move before earlier ones (head, slot)
 *
 * Bytes of entries are copied with memcpy: a copy may race with a writer that reuses the bytes,
 * and is thrown away by the recheck if it did.  Under ThreadSanitizer, which would rightly call
 * that a data race, SHM_TSAN turns these copies into relaxed word copies.
 */
#ifndef SHMCACHE_ATOMICS_H
#define SHMCACHE_ATOMICS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "shmcache's segment is little endian; this machine is not supported"
#endif

#define RD(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define WR(p, x) __atomic_store_n((p), (x), __ATOMIC_RELAXED)
#define RDA(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define WRR(p, x) __atomic_store_n((p), (x), __ATOMIC_RELEASE)
#define FENCE_ACQ() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define FENCE_REL() __atomic_thread_fence(__ATOMIC_RELEASE)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

static inline bool shm_cas(uint64_t *p, uint64_t expected, uint64_t desired)
{
    /* acquire for a lock's taker; release is not needed: whoever swaps publishes nothing */
    return __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_ACQUIRE,
                                       __ATOMIC_RELAXED);
}

static inline void shm_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Fetch the line of `p` as its only owner: it is about to be written, or read and then written,
 * and a line that was fetched to be read costs a second transfer between the cores when it is.
 * The builtin with its `write` argument makes a plain prefetch of it unless the compiler is told
 * that the CPU has prefetchw; every x86-64 CPU decodes that (those without it do nothing). */
static inline void shm_prefetch_own(const void *p)
{
#ifdef __x86_64__
    __asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1);
#endif
}

#ifdef SHM_TSAN
static inline void shm_bytes_copy(void *to, const void *from, size_t n)
{
    uint8_t *d = to;
    const uint8_t *s = from;
    size_t i = 0;
    if ((((uintptr_t)d | (uintptr_t)s) & 7) == 0)
        for (; i + 8 <= n; i += 8)
            WR((uint64_t *)(d + i), RD((const uint64_t *)(s + i)));
    for (; i < n; i++)
        WR(d + i, RD(s + i));
}
static inline void shm_bytes_move(void *to, const void *from, size_t n)
{
    shm_bytes_copy(to, from, n);
}
static inline bool shm_bytes_equal(const void *shared, const void *own, size_t n)
{
    const uint8_t *a = shared, *b = own;
    uint8_t diff = 0;
    for (size_t i = 0; i < n; i++)
        diff |= RD(a + i) ^ b[i];
    return diff == 0;
}
#else
static inline void shm_bytes_copy(void *to, const void *from, size_t n) { memcpy(to, from, n); }
/* From one place of a log to another: apart in a sound segment, but flipped bytes may make them
 * overlap, which memcpy does not allow. */
static inline void shm_bytes_move(void *to, const void *from, size_t n) { memmove(to, from, n); }

static inline uint64_t shm_word8(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}
static inline uint32_t shm_word4(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}
/* Keys are short: 8 bytes at a time with an overlapping tail beats a call of memcmp. */
static inline bool shm_bytes_equal(const void *shared, const void *own, size_t n)
{
    const uint8_t *a = shared, *b = own;
    if (n >= 8) {
        size_t i = 0;
        for (; i + 8 <= n; i += 8)
            if (shm_word8(a + i) != shm_word8(b + i))
                return false;
        return shm_word8(a + n - 8) == shm_word8(b + n - 8);
    }
    if (n >= 4)
        return shm_word4(a) == shm_word4(b) && shm_word4(a + n - 4) == shm_word4(b + n - 4);
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i])
            return false;
    return true;
}
#endif

/* Fault points: between any two steps of a write path a test build can be made to die or to
 * stop.  The hook makes the system call; the core itself never makes one. */
#define SHM_FAULT_LIST(X)                                                                        \
    X(locked) X(taken_over) X(repaired)                                                          \
    X(room_begin) X(head_examined) X(move_copied) X(move_tail) X(move_swung) X(head_advanced)    \
    X(evict_noted) X(expire_noted)                                                               \
    X(probe_raised) X(version_advanced) X(pad_written) X(pad_tail) X(entry_half) X(entry_written) \
    X(tail_advanced) X(note_filled) X(note_armed) X(slot_stored) X(counts_stored)                \
    X(note_cleared) X(stats_stored) X(remove_begin) X(sweep_step) X(clear_step)                   \
    X(lease_dropped) X(epoch_dropped) X(unlocking)                                                \
    X(record_named) X(record_sealed)                                                             \
    X(swap_begin) X(swap_half) X(swap_filled) X(swap_described) X(swap_advanced)                 \
    X(token_begin) X(token_reason) X(token_stored) X(token_rung)                           \
    X(ring_filled) X(ring_named) X(ring_placed) X(ring_stored) X(ring_counted) X(ring_summed)    \
    X(ring_done) X(ring_taken) X(ring_cleared) X(ring_emptied)

#define SHM_FAULT_ENUM(name) SHM_FAULT_##name,
enum { SHM_FAULT_LIST(SHM_FAULT_ENUM) SHM_FAULT_COUNT };
#ifdef SHM_FAULTS
extern void (*shm_fault_hook)(int point);
#define FAULT(name)                                                                              \
    do {                                                                                         \
        if (shm_fault_hook)                                                                      \
            shm_fault_hook(SHM_FAULT_##name);                                                    \
    } while (0)
#else
#define FAULT(name) ((void)0)
#endif

#endif
