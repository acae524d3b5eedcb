/* superblock.h - making a segment, and the checks before one is trusted.
 *
 * shm_format fills a zeroed segment; shm_open_view checks the superblock of a foreign one against
 * the file's size and against itself, and takes the private picture (view.h).
 */
#ifndef SHMCACHE_SUPERBLOCK_H
#define SHMCACHE_SUPERBLOCK_H

#include "ring.h"

/* Every struct and field whose place matters: the signature is a hash of this table, so two
 * builds that disagree about one byte cannot share a segment. */
#define SHM_LAYOUT_FIELDS(S, F)                                                                  \
    S(shm_superblock)                                                                            \
    F(shm_superblock, magic) F(shm_superblock, layout_version) F(shm_superblock, client_count)   \
    F(shm_superblock, signature) F(shm_superblock, total_size) F(shm_superblock, nonce)          \
    F(shm_superblock, hash_seed) F(shm_superblock, inode) F(shm_superblock, device)              \
    F(shm_superblock, created_wall_ns) F(shm_superblock, created_mono_ns)                        \
    F(shm_superblock, owner_uid) F(shm_superblock, owner_gid) F(shm_superblock, mode)            \
    F(shm_superblock, policy) F(shm_superblock, codec) F(shm_superblock, clients_off)            \
    F(shm_superblock, tokens_off) F(shm_superblock, slots_off) F(shm_superblock, slot_stride)    \
    F(shm_superblock, slot_capacity) F(shm_superblock, rings_off) F(shm_superblock, rings_size)  \
    F(shm_superblock, shards_off) F(shm_superblock, shard_stride) F(shm_superblock, index_off)   \
    F(shm_superblock, main_off) F(shm_superblock, probation_off) F(shm_superblock, token_count)  \
    F(shm_superblock, slot_count) F(shm_superblock, ring_count) F(shm_superblock, shard_count)   \
    F(shm_superblock, bucket_count) F(shm_superblock, main_units)                                \
    F(shm_superblock, probation_units) F(shm_superblock, budget_units)                           \
    F(shm_superblock, max_entry_units) F(shm_superblock, avg_entry_size)                         \
    F(shm_superblock, max_probe_buckets) F(shm_superblock, checksum) F(shm_superblock, dead)     \
    F(shm_superblock, persist) F(shm_superblock, owner) F(shm_superblock, owner_pid) \
    F(shm_superblock, invalidations)                                                             \
    S(shm_client)                                                                                \
    F(shm_client, generation) F(shm_client, in_use) F(shm_client, pid) F(shm_client, uid)        \
    F(shm_client, attached_mono_ns) F(shm_client, hits) F(shm_client, misses)                    \
    F(shm_client, read_retries) F(shm_client, try_attempts) F(shm_client, try_blocked)           \
    F(shm_client, store_failures) F(shm_client, lock_timeouts)                                   \
    S(shm_shard)                                                                                 \
    F(shm_shard, holder) F(shm_shard, probe_limit) F(shm_shard, note) F(shm_shard, counts)       \
    F(shm_shard, version) F(shm_shard, ghost_seq) F(shm_shard, head) F(shm_shard, tail)          \
    F(shm_shard, largest) F(shm_shard, moves_in_a_row) F(shm_shard, main_filled)                 \
    F(shm_shard, min_expiry) F(shm_shard, sweep_min) F(shm_shard, swept_ms)                      \
    F(shm_shard, sweep_slot) F(shm_shard, sweep_invalidation) F(shm_shard, swept_invalidation)   \
    F(shm_shard, wake)                                                                           \
    F(shm_shard, sets) F(shm_shard, deletes) F(shm_shard, evictions) F(shm_shard, expirations)   \
    F(shm_shard, recoveries) F(shm_shard, lock_acquisitions) F(shm_shard, lock_contended)        \
    F(shm_shard, lock_wait_ns) F(shm_shard, moved_units) F(shm_shard, written_units)             \
    F(shm_shard, ghost_hits) F(shm_shard, promotions) F(shm_shard, worst_write_units)            \
    F(shm_shard, wait_histogram)                                                                 \
    S(shm_entry)                                                                                 \
    F(shm_entry, value_len) F(shm_entry, key_len) F(shm_entry, key_kind)                         \
    F(shm_entry, value_kind) F(shm_entry, version)                                               \
    S(shm_note)                                                                                  \
    F(shm_note, armed) F(shm_note, slot) F(shm_note, word) F(shm_note, counts)                   \
    S(shm_counts)                                                                                \
    F(shm_counts, entries) F(shm_counts, leases) F(shm_counts, live_units)                       \
    S(shm_record)                                                                                \
    F(shm_record, seal) F(shm_record, parent) F(shm_record, name)                                \
    S(shm_swap_buffer)                                                                           \
    F(shm_swap_buffer, length) F(shm_swap_buffer, kind) F(shm_swap_buffer, check)                \
    S(shm_swap)                                                                                  \
    F(shm_swap, word) F(shm_swap, buffer) F(shm_swap, holder) F(shm_swap, directory)             \
    F(shm_swap, recoveries) F(shm_swap, record)                                                  \
    S(shm_token)                                                                                 \
    F(shm_token, state) F(shm_token, holder) F(shm_token, directory)                             \
    F(shm_token, reason_check) F(shm_token, reason_length) F(shm_token, bell)                    \
    F(shm_token, record) F(shm_token, reason)                                                    \
    S(shm_rings) F(shm_rings, holder)                                                            \
    S(shm_ring)                                                                                  \
    F(shm_ring, name) F(shm_ring, named) F(shm_ring, samples_off) F(shm_ring, histogram_off)     \
    F(shm_ring, capacity) F(shm_ring, word_bits) F(shm_ring, bucket_bits)                        \
    F(shm_ring, head) F(shm_ring, sum_ns) F(shm_ring, max_ns) F(shm_ring, tail)                  \
    F(shm_ring, cleared)                                                                         \
    S(shm_lease)                                                                                 \
    F(shm_lease, holder) F(shm_lease, deadline)

typedef struct shm_layout_row {
    const char *name;
    uint64_t value;
} shm_layout_row;

#define SHM_ROW_S(s) {"sizeof." #s, sizeof(s)},
#define SHM_ROW_F(s, f) {#s "." #f, offsetof(s, f)},
static const shm_layout_row shm_layout_rows[] = {SHM_LAYOUT_FIELDS(SHM_ROW_S, SHM_ROW_F){0, 0}};

static uint64_t shm_layout_signature(void)
{
    uint64_t h = SHM_LAYOUT_VERSION;
    for (const shm_layout_row *r = shm_layout_rows; r->name; r++)
        h = shm_xxh64(r->name, strlen(r->name), h ^ r->value);
    return h;
}

static uint64_t shm_superblock_checksum(const shm_superblock *sb)
{
    return shm_xxh64(sb, offsetof(shm_superblock, checksum), 0);
}

/* Complete a superblock whose fields are set (all but magic, version, signature, checksum) and
 * initialise the shards and the cache's own rings of a zeroed segment. */
static void shm_format(uint8_t *base, shm_superblock *sb)
{
    sb->magic = SHM_MAGIC;
    sb->layout_version = SHM_LAYOUT_VERSION;
    sb->signature = shm_layout_signature();
    sb->checksum = shm_superblock_checksum(sb);
    for (uint32_t i = 0; i < sb->shard_count; i++) {
        shm_shard *sh = (shm_shard *)(base + sb->shards_off + i * sb->shard_stride);
        sh->probe_limit = 1;
        sh->min_expiry = ~0ull;
        sh->sweep_min = ~0ull;
    }
    shm_rings_format(base, sb);
    memcpy(base, sb, sizeof *sb);
}

/* What is wrong with a superblock, in the order in which it is looked at. */
enum {
    SHM_SB_OK,
    SHM_SB_SIZE,      /* shorter than a superblock */
    SHM_SB_MAGIC,     /* not a segment */
    SHM_SB_VERSION,   /* another layout version */
    SHM_SB_SIGNATURE, /* the same version, another build's layout */
    SHM_SB_CHECKSUM,  /* flipped bytes */
    SHM_SB_TOTAL,     /* the file is not as long as it says: truncated */
    SHM_SB_GEOMETRY   /* regions that do not fit */
};

static bool shm_region_ok(uint64_t off, uint64_t size, uint64_t total)
{
    return off % SHM_LINE == 0 && off <= total && size <= total - off;
}

static int shm_check_superblock(const shm_superblock *sb, uint64_t file_size)
{
    uint64_t index, logs;

    if (file_size < sizeof *sb)
        return SHM_SB_SIZE;
    if (sb->magic != SHM_MAGIC)
        return SHM_SB_MAGIC;
    if (sb->layout_version != SHM_LAYOUT_VERSION)
        return SHM_SB_VERSION;
    if (sb->signature != shm_layout_signature())
        return SHM_SB_SIGNATURE;
    if (sb->checksum != shm_superblock_checksum(sb))
        return SHM_SB_CHECKSUM;
    if (sb->total_size != file_size)
        return SHM_SB_TOTAL;
    index = (uint64_t)sb->bucket_count * SHM_LINE;
    logs = ((uint64_t)sb->main_units + sb->probation_units) * SHM_UNIT;
    if (sb->policy > SHM_POLICY_KEEP || sb->shard_count == 0 ||
        sb->shard_count > SHM_MAX_SHARDS || (sb->shard_count & (sb->shard_count - 1)) ||
        sb->bucket_count < 2 || sb->bucket_count % 2 || sb->bucket_count > (1u << 28) ||
        sb->main_units < 8 || sb->main_units > SHM_MAX_LOG_UNITS ||
        sb->probation_units > SHM_MAX_LOG_UNITS || sb->max_entry_units < 2 ||
        (uint64_t)sb->max_entry_units * 4 > sb->main_units || sb->max_probe_buckets < 1 ||
        sb->max_probe_buckets > sb->bucket_count || sb->client_count == 0 ||
        sb->client_count > 65535 || sb->shard_stride % SHM_LINE || sb->slot_stride % SHM_LINE ||
        sb->clients_off < sizeof *sb ||
        !shm_region_ok(sb->clients_off, sb->client_count * sizeof(shm_client), file_size) ||
        !shm_region_ok(sb->tokens_off, (uint64_t)sb->token_count * SHM_TOKEN_SIZE, file_size) ||
        sb->slot_stride > file_size || sb->slot_count > 65535 ||
        !shm_region_ok(sb->slots_off, sb->slot_count * sb->slot_stride, file_size) ||
        !shm_region_ok(sb->rings_off, sb->rings_size, file_size) ||
        sb->shard_stride > file_size ||
        !shm_region_ok(sb->shards_off, sb->shard_count * sb->shard_stride, file_size) ||
        sb->index_off < sizeof(shm_shard) ||
        !shm_region_ok(sb->index_off, index, sb->shard_stride) ||
        sb->main_off < sb->index_off + index || sb->main_off % SHM_LINE ||
        sb->probation_off < sb->main_off + (uint64_t)sb->main_units * SHM_UNIT ||
        sb->probation_off % SHM_UNIT || sb->probation_off > sb->shard_stride ||
        (sb->slot_count && (sb->slot_stride < SHM_SLOT_HEADER_SIZE ||
                            sb->slot_capacity > (sb->slot_stride - SHM_SLOT_HEADER_SIZE) / 2 ||
                            sb->slot_capacity > 0xffffffffu)) ||
        (sb->ring_count && sizeof(shm_rings) + (uint64_t)sb->ring_count * sizeof(shm_ring) >
                               sb->rings_size) ||
        !shm_region_ok(sb->main_off, logs, sb->shard_stride) ||
        sb->probation_off + (uint64_t)sb->probation_units * SHM_UNIT > sb->shard_stride)
        return SHM_SB_GEOMETRY;
    return SHM_SB_OK;
}

static void shm_log_view_init(shm_log_view *log, uint64_t off, uint32_t units)
{
    log->off = off;
    log->units = units;
    log->off_bits = 1;
    while ((1ull << log->off_bits) < units)
        log->off_bits++;
    log->off_mask = (1ull << log->off_bits) - 1;
}

/* The private picture, from a superblock that shm_check_superblock has passed; `sb` is the
 * caller's own copy of it.  `generation` and `client` are this process's. */
static void shm_view_init(shm_view *v, uint8_t *base, const shm_superblock *sb, uint32_t client,
                          uint32_t generation)
{
    v->base = base;
    v->total_size = sb->total_size;
    v->shards = base + sb->shards_off;
    v->shard_stride = sb->shard_stride;
    v->shard_count = sb->shard_count;
    v->shard_mask = sb->shard_count - 1;
    v->index_off = sb->index_off;
    v->seed = sb->hash_seed;
    v->bucket_count = sb->bucket_count;
    v->slot_count = sb->bucket_count * SHM_BUCKET_SLOTS;
    v->max_probe = sb->max_probe_buckets;
    v->budget_units = sb->budget_units;
    v->max_entry_units = sb->max_entry_units;
    v->max_entry_bytes = (uint64_t)sb->max_entry_units * SHM_UNIT;
    v->client_count = sb->client_count;
    v->policy = sb->policy;
    shm_log_view_init(&v->log[0], sb->main_off, sb->main_units);
    shm_log_view_init(&v->log[1], sb->probation_off, sb->probation_units);
    v->me = ((uint64_t)(client + 1) << SHM_L_CLIENT_SHIFT) | generation;
    v->client = (shm_client *)(base + sb->clients_off) + client;
}

#endif
