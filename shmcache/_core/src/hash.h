/* hash.h - XXH64, written from its specification.
 *
 * Source: "xxHash fast digest algorithm", specification 0.1.1 by Yann Collet, section XXH64.
 * Why an implementation of our own: calling the xxhash package costs three quarters of a whole
 * get; inline it costs a few nanoseconds.  The package is the oracle in the tests.
 * Input is read as little-endian words; result is the 64-bit digest.
 */
#ifndef SHMCACHE_HASH_H
#define SHMCACHE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define XXH_P1 0x9E3779B185EBCA87ull
#define XXH_P2 0xC2B2AE3D27D4EB4Full
#define XXH_P3 0x165667B19E3779F9ull
#define XXH_P4 0x85EBCA77C2B2AE63ull
#define XXH_P5 0x27D4EB2F165667C5ull

static inline uint64_t shm_rotl(uint64_t x, int r) { return (x << r) | (x >> (64 - r)); }

static inline uint64_t shm_xxh_read8(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}

static inline uint64_t shm_xxh_round(uint64_t acc, uint64_t lane)
{
    return shm_rotl(acc + lane * XXH_P2, 31) * XXH_P1;
}

/* Everything after the stripes: the last 0 to 31 bytes, and the avalanche. */
static inline __attribute__((always_inline)) uint64_t shm_xxh_tail(uint64_t h, const uint8_t *p,
                                                                   size_t left)
{
    for (; left >= 8; p += 8, left -= 8)
        h = shm_rotl(h ^ shm_xxh_round(0, shm_xxh_read8(p)), 27) * XXH_P1 + XXH_P4;
    if (left >= 4) {
        uint32_t x;
        memcpy(&x, p, 4);
        h = shm_rotl(h ^ x * XXH_P1, 23) * XXH_P2 + XXH_P3;
        p += 4;
        left -= 4;
    }
    for (; left; p++, left--)
        h = shm_rotl(h ^ *p * XXH_P5, 11) * XXH_P1;
    h = (h ^ (h >> 33)) * XXH_P2;
    h = (h ^ (h >> 29)) * XXH_P3;
    return h ^ (h >> 32);
}

static __attribute__((noinline, unused)) uint64_t shm_xxh64_long(const uint8_t *p, size_t len,
                                                                 uint64_t seed)
{
    uint64_t a = seed + XXH_P1 + XXH_P2, b = seed + XXH_P2, c = seed, d = seed - XXH_P1, h;
    size_t left = len;

    for (; left >= 32; p += 32, left -= 32) {
        a = shm_xxh_round(a, shm_xxh_read8(p));
        b = shm_xxh_round(b, shm_xxh_read8(p + 8));
        c = shm_xxh_round(c, shm_xxh_read8(p + 16));
        d = shm_xxh_round(d, shm_xxh_read8(p + 24));
    }
    h = shm_rotl(a, 1) + shm_rotl(b, 7) + shm_rotl(c, 12) + shm_rotl(d, 18);
    h = (h ^ shm_xxh_round(0, a)) * XXH_P1 + XXH_P4;
    h = (h ^ shm_xxh_round(0, b)) * XXH_P1 + XXH_P4;
    h = (h ^ shm_xxh_round(0, c)) * XXH_P1 + XXH_P4;
    h = (h ^ shm_xxh_round(0, d)) * XXH_P1 + XXH_P4;
    return shm_xxh_tail(h + (uint64_t)len, p, left);
}

/* Keys are short: up to 31 bytes are hashed where they are asked for, without a call. */
static inline __attribute__((always_inline)) uint64_t shm_xxh64(const void *data, size_t len,
                                                                uint64_t seed)
{
    if (len >= 32)
        return shm_xxh64_long(data, len, seed);
    return shm_xxh_tail(seed + XXH_P5 + (uint64_t)len, data, len);
}

#endif
