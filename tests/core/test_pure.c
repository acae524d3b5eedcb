/* test_pure.c - arithmetic that touches no segment, or only its superblock.
 *
 * Proves: XXH64 agrees with the reference package; positions advance, wrap at 44 and 64 bits and
 * stay in the log at every offset, for logs from 8 to 2^30 units; slot words tile; an entry's
 * units; a `stale` is never rounded down; probe sequences stay in range and never repeat; the
 * lock's word; and that no superblock passes the checks whose regions leave the segment, however
 * it was forged (its checksum can be computed by anybody).
 */
#include "support.h"
#include "xxh64_vectors.h"

static void hash_vectors(void)
{
    static uint8_t aligned[2367 + 8];
    for (unsigned shift = 0; shift < 8; shift += 3) { /* unaligned input as well */
        uint8_t *buf = aligned + shift;
        uint64_t state = 2654435761u;
        for (unsigned i = 0; i < 2367; i++, state *= 11400714785074694797ull)
            buf[i] = (uint8_t)(state >> 56);
        for (unsigned i = 0; i < sizeof xxh64_vectors / sizeof *xxh64_vectors; i++) {
            uint64_t h = shm_xxh64(buf, xxh64_vectors[i].len, xxh64_vectors[i].seed);
            CHECK(h == xxh64_vectors[i].digest, "length %u seed %#llx: %#llx", xxh64_vectors[i].len,
                  xxh64_vectors[i].seed, (unsigned long long)h);
        }
    }
    /* two published ones, so that the table itself is not taken on trust */
    CHECK(shm_xxh64("", 0, 0) == 0xEF46DB3751D8E999ull);
    CHECK(shm_xxh64("abc", 3, 0) == 0x44BC2CF5AD770999ull);
}

static void hash_is_keyed_by_type_not_by_lease(void)
{
    CHECK(shm_key_hash(7, SHM_K_STR, "1", 1) != shm_key_hash(7, SHM_K_BYTES, "1", 1));
    CHECK(shm_key_hash(7, SHM_K_STR, "1", 1) !=
          shm_key_hash(7, SHM_K_STR | SHM_K_NAMESPACED, "1", 1));
    CHECK(shm_key_hash(7, SHM_K_STR, "1", 1) == shm_key_hash(7, SHM_K_STR | SHM_K_LEASE, "1", 1));
    CHECK(shm_key_hash(7, SHM_K_STR, "1", 1) != shm_key_hash(8, SHM_K_STR, "1", 1));
}

static const uint32_t log_sizes[] = {
    8, 9, 15, 16, 17, 1000, 1024, 1025, 65535, 65536, (1u << 30) - 1, 1u << 30};
#define LOG_SIZES (sizeof log_sizes / sizeof *log_sizes)

static void positions_advance_and_wrap(void)
{
    rng r = {1};
    for (unsigned i = 0; i < LOG_SIZES; i++) {
        shm_log_view g;
        uint64_t laps[] = {0, 1, 2, 0, 0, 0};
        shm_log_view_init(&g, 512, log_sizes[i]);
        CHECK(g.units == log_sizes[i] && (1ull << g.off_bits) >= g.units);
        CHECK(g.off_bits == 1 || (1ull << (g.off_bits - 1)) < g.units);
        laps[3] = (1ull << (SHM_W_POS_BITS - g.off_bits)) - 1; /* the last lap in 44 bits */
        laps[4] = laps[3] + 1;
        laps[5] = (~0ull >> g.off_bits); /* and in 64 */
        for (unsigned k = 0; k < 6; k++)
            for (int n = 0; n < 200; n++) {
                uint32_t off = n == 0 ? 0 : n == 1 ? g.units - 1 : rnd_below(&r, g.units);
                uint32_t rest = g.units - off;
                uint32_t step = n % 3 == 0 ? rest : 1 + rnd_below(&r, rest);
                uint64_t pos = laps[k] << g.off_bits | off, to = shm_pos_advance(&g, pos, step);
                CHECK_EQ(shm_pos_off(&g, pos), off);
                if (step == rest) {
                    CHECK(to == (laps[k] + 1) << g.off_bits, "a whole lap on, offset 0");
                } else {
                    CHECK_EQ(shm_pos_off(&g, to), off + step);
                    CHECK(to >> g.off_bits == laps[k]);
                }
                CHECK(shm_pos_off(&g, to) < g.units);
                /* as a reader sees it: 44 bits, compared modularly */
                CHECK(((to - pos) & SHM_W_POS_MASK) > 0);
                CHECK(((to - pos) & SHM_W_POS_MASK) < 1ull << (SHM_W_POS_BITS - 1));
                CHECK(((pos - to) & SHM_W_POS_MASK) >= 1ull << (SHM_W_POS_BITS - 1));
            }
    }
}

static void log_state_is_checked(void)
{
    seg s;
    shm_op op;
    shm_log_state st;
    seg_make(&s, &(seg_options){.buckets = 4, .main_units = 1000, .probation_units = 100});
    shm_op_begin(&op, &s.view, 0, 0);
    for (uint32_t l = 0; l < 2; l++) {
        const shm_log_view *g = &s.view.log[l];
        uint64_t lap = 1ull << g->off_bits;
        struct {
            uint64_t head, tail;
            int64_t used; /* -1: refused */
        } t[] = {{0, 0, 0},
                 {5, 5, 0},
                 {5, 7, 2},
                 {5, lap | 5, g->units},
                 {5, lap | 6, -1},
                 {7, lap | 5, g->units - 2},
                 {7, 5, -1},
                 {lap, 5, -1},
                 {0, 2 * lap, -1},
                 {g->units, lap, -1},
                 {0, g->units, -1},
                 {~0ull, 0, -1},
                 {0, ~0ull, -1},
                 {(SHM_W_POS_MASK & ~g->off_mask) | 3, SHM_W_POS_MASK + 1 + 2, g->units - 1}};
        for (unsigned i = 0; i < sizeof t / sizeof *t; i++) {
            bool good;
            op.sh->head[l] = t[i].head;
            op.sh->tail[l] = t[i].tail;
            good = shm_log_load(&op, l, &st);
            CHECK(good == (t[i].used >= 0), "log %u row %u", l, i);
            if (good) {
                CHECK_EQ(st.used, t[i].used);
                CHECK_EQ(st.free, g->units - t[i].used);
            }
        }
        op.sh->head[l] = op.sh->tail[l] = 0;
        op.sh->largest[l][1] = 0xffffffffu; /* flipped: what it holds up stays bounded */
        CHECK(shm_log_load(&op, l, &st) && st.gap <= 2 * s.view.max_entry_units);
    }
    seg_free(&s);
}

static void slot_words_tile(void)
{
    rng r = {2};
    for (int i = 0; i < 10000; i++) {
        uint64_t h = rnd(&r), pos = rnd(&r), w;
        uint32_t l = (uint32_t)(h & 1), visited = (uint32_t)(h >> 1) & 3;
        w = shm_make_word(shm_hash_tag(h), l, pos, visited);
        CHECK(shm_word_live(w) && shm_word_log(w) == l && (w & SHM_W_VISITED) == visited);
        CHECK(shm_word_pos(w) == (pos & SHM_W_POS_MASK));
        CHECK((w & SHM_W_TAG) >> SHM_W_TAG_SHIFT == (h >> SHM_H_TAG_SHIFT & 0x7fff));
        CHECK(shm_same_word(w, w ^ 3) && !shm_same_word(w, w ^ 4));
    }
}

static void units_round_up_at_every_length(void)
{
    for (uint64_t key = 0; key <= SHM_MAX_KEY; key = key * 3 + 1)
        for (uint64_t value = 0; value < 64; value++)
            for (int e = 0; e < 2; e++) {
                uint64_t bytes = 16 + (e ? 8 : 0) + key + value, u = shm_entry_units(key, value, e);
                CHECK(u * SHM_UNIT >= bytes && u * SHM_UNIT < bytes + SHM_UNIT);
            }
    /* the largest that headers can say: no 32-bit wrap */
    CHECK(shm_entry_units(SHM_MAX_KEY, 0xffffffffu, true) ==
          (16 + 8 + 65535ull + 0xffffffffull + 15) / 16);
    CHECK((uint64_t)SHM_MAX_LOG_UNITS * SHM_UNIT == 16ull << 30);
}

static void stale_is_never_too_small(void)
{
    rng r = {3};
    const uint64_t most = 0x7fffull << 31; /* 2^46 ms: what 20 bits can say */
    for (int i = 0; i < 300000; i++) {
        uint64_t stale = i < 70000 ? (uint64_t)i : rnd(&r) >> (18 + rnd(&r) % 46);
        uint64_t at = rnd(&r) & SHM_E_EXPIRY_MASK, w, got;
        if (stale > most)
            stale = most;
        w = shm_expiry_word(at, stale);
        got = shm_expiry_reclaim_at(w) - at;
        CHECK(shm_expiry_at(w) == at);
        CHECK(got >= stale, "stale %llu became %llu", (unsigned long long)stale,
              (unsigned long long)got);
        CHECK(stale < 0x8000 ? got == stale : got - stale <= stale / 8192,
              "stale %llu became %llu: too large", (unsigned long long)stale,
              (unsigned long long)got);
    }
    CHECK(shm_expiry_reclaim_at(shm_expiry_word(0, ~0ull >> 1)) == most); /* saturates */
}

static void probes_stay_in_range_and_differ(void)
{
    rng r = {4};
    static uint8_t seen[256];
    uint32_t sizes[] = {2, 4, 6, 18, 250, 1u << 28};
    for (unsigned i = 0; i < 6; i++) {
        shm_view v = {.bucket_count = sizes[i]};
        uint32_t probes = sizes[i] < 16 ? sizes[i] : 16;
        for (int n = 0; n < 2000; n++) {
            uint64_t hash = n == 0 ? ~0ull : n == 1 ? 0 : rnd(&r);
            uint32_t home = shm_home_bucket(&v, hash);
            CHECK(home < v.bucket_count);
            memset(seen, 0, sizeof seen);
            for (uint32_t k = 0; k < probes; k++) {
                uint32_t b = shm_probe_bucket(&v, home, k);
                CHECK(b < v.bucket_count, "probe %u of home %u of %u", k, home, v.bucket_count);
                if (v.bucket_count > 250) {
                    CHECK(k < 2 || b != home);
                    continue;
                }
                CHECK(!seen[b], "bucket %u twice", b);
                seen[b] = 1;
            }
            CHECK((shm_probe_bucket(&v, home, 1) ^ home) == 1, "the neighbour in the pair");
        }
    }
}

static void lock_word(void)
{
    uint64_t word = 0, a = (3ull + 1) << SHM_L_CLIENT_SHIFT | 9, b = 1ull << SHM_L_CLIENT_SHIFT | 1;
    CHECK(shm_identity_client(a) == 3 && (uint32_t)a == 9);
    CHECK(shm_lock_try(&word, a) && word == a);
    CHECK(!shm_lock_try(&word, b) && !shm_lock_spin(&word, b));
    CHECK(shm_lock_or_contend(&word, b, false) == (a | SHM_L_CONTENDED));
    CHECK(word == (a | SHM_L_CONTENDED), "the holder will post");
    CHECK(shm_lock_or_contend(&word, b, true) == (a | SHM_L_CONTENDED));
    CHECK(shm_lock_release(&word) && word == 0, "a waiter is to be posted");
    CHECK(shm_lock_or_contend(&word, b, true) == 0 && word == (b | SHM_L_CONTENDED),
          "who waited keeps the bit set for others");
    CHECK(!shm_lock_take_over(&word, a | SHM_L_CONTENDED, a), "only from exactly that word");
    CHECK(!shm_lock_take_over(&word, b, a), "only from exactly that word");
    CHECK(shm_lock_take_over(&word, b | SHM_L_CONTENDED, a) && word == (a | SHM_L_CONTENDED));
    CHECK(!shm_lock_take_over(&word, b | SHM_L_CONTENDED, b), "one waiter only");
    CHECK(shm_lock_release(&word));
    CHECK(shm_lock_word_ok(a, 4) && shm_lock_word_ok(a | SHM_L_CONTENDED, 4));
    CHECK(!shm_lock_word_ok(a, 3) && !shm_lock_word_ok(0, 4) && !shm_lock_word_ok(9, 4) &&
              !shm_lock_word_ok(a | 1ull << 49, 4) && !shm_lock_word_ok(~0ull, 65535),
          "nobody's word");
    CHECK(shm_lock_try(&word, a) && !shm_lock_release(&word), "nobody waited");
}

static void superblock_is_refused(void)
{
    seg s;
    shm_superblock sb;
    seg_make(&s,
             &(seg_options){.shards = 2, .buckets = 4, .main_units = 512, .probation_units = 64});
#define REFUSED(change, seal, why)                                                                 \
    do {                                                                                           \
        sb = s.sb;                                                                                 \
        change;                                                                                    \
        if (seal)                                                                                  \
            sb.checksum = shm_superblock_checksum(&sb);                                            \
        CHECK_EQ(shm_check_superblock(&sb, s.sb.total_size), why);                                 \
    } while (0)
    REFUSED((void)0, 1, SHM_SB_OK);
    CHECK_EQ(shm_check_superblock(&s.sb, sizeof sb - 1), SHM_SB_SIZE);
    CHECK_EQ(shm_check_superblock(&s.sb, s.sb.total_size + 4096), SHM_SB_TOTAL);
    REFUSED(sb.magic ^= 1, 1, SHM_SB_MAGIC);
    REFUSED(sb.layout_version++, 1, SHM_SB_VERSION);
    REFUSED(sb.signature ^= 1ull << 63, 1, SHM_SB_SIGNATURE);
    REFUSED(sb.mode ^= 1, 0, SHM_SB_CHECKSUM);
    REFUSED(sb.shard_count = 3, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.shard_count = 0, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.bucket_count = 3, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.main_units = 0xffffffffu, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.main_off = 0ull - 64, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.index_off = 0ull - 64, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.shards_off = 0ull - 64, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.shard_stride = 1ull << 63, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.probation_off = 0ull - 64, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.probation_off += 64, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.max_entry_units = sb.main_units / 4 + 1, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.max_probe_buckets = sb.bucket_count + 1, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.client_count = 0xffffffffu, 1, SHM_SB_GEOMETRY);
    REFUSED(sb.policy = 2, 1, SHM_SB_GEOMETRY);
    seg_free(&s);
}

/* Random and boundary values in every field: whatever passes keeps every region inside. */
static void no_forged_geometry_leaves_the_segment(void)
{
    static const uint64_t edges[] = {0,       1,           2,          16,         63,
                                     64,      128,         4096,       1ull << 31, 1ull << 32,
                                     1 << 16, 0xffffffffu, 1ull << 62, 1ull << 63, ~0ull};
    seg s;
    rng r = {5};
    unsigned passed = 0;
    seg_make(&s,
             &(seg_options){.shards = 2, .buckets = 4, .main_units = 512, .probation_units = 64});
    for (int i = 0; i < 1000000; i++) {
        shm_superblock sb = s.sb;
        const size_t first = offsetof(shm_superblock, clients_off);
        for (uint32_t n = 1 + rnd_below(&r, 3); n; n--) {
            bool wide = rnd(&r) & 1;
            size_t from = wide ? first : offsetof(shm_superblock, token_count);
            size_t to =
                wide ? offsetof(shm_superblock, token_count) : offsetof(shm_superblock, checksum);
            size_t size = wide ? 8 : 4;
            uint8_t *at =
                (uint8_t *)&sb + from + rnd_below(&r, (uint32_t)((to - from) / size)) * size;
            uint64_t was = 0, now;
            memcpy(&was, at, size);
            switch (rnd(&r) % 4) {
            case 0: now = edges[rnd_below(&r, 15)]; break;
            case 1: now = was + (rnd(&r) & 1 ? 1 : -1) * 16 * (int64_t)rnd_below(&r, 100); break;
            case 2: now = 0ull - 16 * (uint64_t)rnd_below(&r, 8192); break;
            default: now = was ^ 1ull << rnd_below(&r, 64);
            }
            memcpy(at, &now, size);
        }
        sb.checksum = shm_superblock_checksum(&sb);
        if (shm_check_superblock(&sb, s.sb.total_size) != SHM_SB_OK)
            continue;
        passed++;
        {
            unsigned __int128 total = s.sb.total_size, stride = sb.shard_stride;
            CHECK(sb.shards_off + stride * sb.shard_count <= total);
            CHECK(sb.clients_off + (unsigned __int128)sb.client_count * sizeof(shm_client) <=
                  total);
            CHECK(sb.tokens_off + (unsigned __int128)sb.token_count * SHM_TOKEN_SIZE <= total);
            CHECK(sb.slots_off + (unsigned __int128)sb.slot_count * sb.slot_stride <= total);
            CHECK(SHM_SLOT_HEADER_SIZE + 2 * (unsigned __int128)sb.slot_capacity <=
                          sb.slot_stride ||
                      sb.slot_count == 0,
                  "slot_capacity %#llx, slot_stride %#llx", (unsigned long long)sb.slot_capacity,
                  (unsigned long long)sb.slot_stride);
            CHECK(sb.rings_off + (unsigned __int128)sb.rings_size <= total);
            CHECK((unsigned __int128)sb.ring_count * SHM_RING_HEADER_SIZE <= sb.rings_size,
                  "%u rings in %llu bytes", sb.ring_count, (unsigned long long)sb.rings_size);
            CHECK(sb.index_off >= sizeof(shm_shard) && sb.index_off % SHM_LINE == 0);
            CHECK(sb.index_off + (unsigned __int128)sb.bucket_count * SHM_LINE <= sb.main_off);
            CHECK(sb.main_off + (unsigned __int128)sb.main_units * SHM_UNIT <= sb.probation_off ||
                  sb.probation_units == 0);
            CHECK(sb.main_off + (unsigned __int128)sb.main_units * SHM_UNIT <= stride);
            CHECK(sb.probation_units == 0 ||
                      sb.probation_off + (unsigned __int128)sb.probation_units * SHM_UNIT <= stride,
                  "probation log at %#llx", (unsigned long long)sb.probation_off);
        }
    }
    CHECK(passed > 1000, "only %u forgeries passed: the test tests little", passed);
    seg_free(&s);
}

int main(void)
{
    RUN(hash_vectors);
    RUN(hash_is_keyed_by_type_not_by_lease);
    RUN(positions_advance_and_wrap);
    RUN(log_state_is_checked);
    RUN(slot_words_tile);
    RUN(units_round_up_at_every_length);
    RUN(stale_is_never_too_small);
    RUN(probes_stay_in_range_and_differ);
    RUN(lock_word);
    RUN(superblock_is_refused);
    RUN(no_forged_geometry_leaves_the_segment);
    return report("test_pure");
}
