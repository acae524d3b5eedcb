/* glue.h - what the binding needs from C that is neither the core's nor Python's business:
 * the clock that expiry is counted on, and (test builds) what a fault point does. */
#ifndef SHMCACHE_GLUE_H
#define SHMCACHE_GLUE_H

#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

/* CLOCK_MONOTONIC_COARSE costs 5 ns instead of 20, where it ticks every 4 ms or better (expiry is
 * promised to 10 ms); else CLOCK_MONOTONIC.  Chosen once, at import. */
static clockid_t shm_clock = CLOCK_MONOTONIC;

static void shm_choose_clock(void)
{
    struct timespec r;
    if (clock_getres(CLOCK_MONOTONIC_COARSE, &r) == 0 && r.tv_sec == 0 && r.tv_nsec <= 4000000)
        shm_clock = CLOCK_MONOTONIC_COARSE;
}

static inline uint64_t shm_now_ms(void)
{
    struct timespec t;
    clock_gettime(shm_clock, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static inline uint64_t shm_now_ns(void) /* precise: deadlines of waits, lock wait times */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Wait until `*word` is not `expected`, somebody wakes, or `ns` are over.  The word is in memory
 * that processes share, so these are not the PRIVATE kind.  A hint to look again, nothing more. */
static inline void shm_wake_wait(uint32_t *word, uint32_t expected, uint64_t ns)
{
    struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    syscall(SYS_futex, word, FUTEX_WAIT, expected, &t, (void *)0, 0);
}

static inline void shm_wake_all(uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, (void *)0, (void *)0, 0);
}

static inline bool shm_is_ascii(const uint8_t *p, size_t n)
{
    size_t i = 0;
    uint64_t seen = 0, w;
    for (; i + 8 <= n; i += 8) {
        memcpy(&w, p + i, 8);
        seen |= w;
    }
    for (; i < n; i++)
        seen |= p[i];
    return (seen & 0x8080808080808080ull) == 0;
}

#define SHM_FAULT_NAME(name) #name,
static const char *const shm_fault_names[] = {SHM_FAULT_LIST(SHM_FAULT_NAME) 0};
#define SHM_INV_NAME(id, name, text) name,
#define SHM_INV_TEXT(id, name, text) text,
static const char *const shm_invariant_names[] = {SHM_INVARIANTS(SHM_INV_NAME) 0};
static const char *const shm_invariant_texts[] = {SHM_INVARIANTS(SHM_INV_TEXT) 0};

#ifdef SHM_FAULTS
#define SHM_HAS_FAULTS 1
void (*shm_fault_hook)(int point) = 0;
static int shm_fault_armed = -1, shm_fault_countdown, shm_fault_signal;
static void shm_fault_fire(int point)
{
    if (point == shm_fault_armed && --shm_fault_countdown == 0) {
        shm_fault_armed = -1;
        kill(getpid(), shm_fault_signal);
        if (shm_fault_signal == SIGKILL)
            for (;;)
                pause();
    }
}
static void shm_fault_set(int point, int countdown, int sig)
{
    shm_fault_armed = point;
    shm_fault_countdown = countdown;
    shm_fault_signal = sig;
    shm_fault_hook = shm_fault_fire;
}
#else
#define SHM_HAS_FAULTS 0
static void shm_fault_set(int point, int countdown, int sig)
{
    (void)point;
    (void)countdown;
    (void)sig;
}
#endif

#endif
