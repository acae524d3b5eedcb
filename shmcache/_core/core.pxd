# The C core as the binding sees it: declarations only, no logic (sources: src/*.h).
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "stdbool.h":
    ctypedef bint cbool "bool"


cdef extern from "core.h" nogil:
    const int SHM_MISS, SHM_HIT, SHM_FULL, SHM_CORRUPT, SHM_EXISTS, SHM_MISMATCH
    const int SHM_NOT_INT, SHM_OVERFLOW, SHM_BUSY
    const int SHM_PUT_SET, SHM_PUT_ADD, SHM_PUT_REPLACE, SHM_PUT_CAS, SHM_PUT_PUBLISH
    const int SHM_K_TYPE, SHM_K_STR, SHM_K_BYTES, SHM_K_INT, SHM_K_FLOAT, SHM_K_BOOL, SHM_K_NONE
    const int SHM_K_UUID, SHM_K_TUPLE, SHM_K_NAMESPACED, SHM_K_EPOCH, SHM_K_LEASE, SHM_K_EXPIRES, SHM_K_PAD
    const int SHM_V_BYTES, SHM_V_INT, SHM_V_STR, SHM_V_FLOAT, SHM_V_NONE, SHM_V_FALSE, SHM_V_TRUE
    const int SHM_V_BIGINT, SHM_V_CODEC, SHM_V_LEASE, SHM_V_ASCII
    const int SHM_MAX_PATH
    const uint32_t SHM_C_LEASES
    const int SHM_MAX_KEY, SHM_LAYOUT_VERSION, SHM_UNIT, SHM_BUCKET_SLOTS, SHM_MAX_SHARDS
    const int SHM_SUPERBLOCK_SIZE, SHM_NAME_SIZE, SHM_CODEC_SIZE, SHM_TOKEN_SIZE
    const int SHM_SLOT_HEADER_SIZE, SHM_RING_HEADER_SIZE, SHM_WAIT_BUCKETS, SHM_LINE
    const int SHM_POLICY_EVICT, SHM_POLICY_KEEP, SHM_READ_TRIES
    const uint32_t SHM_MAX_LOG_UNITS, SHM_NO_SLOT
    const uint64_t SHM_L_IDENTITY, SHM_L_CONTENDED, SHM_L_UNDECIDED, SHM_MAGIC
    const int SHM_SB_OK, SHM_SB_SIZE, SHM_SB_MAGIC, SHM_SB_VERSION, SHM_SB_SIGNATURE
    const int SHM_SB_CHECKSUM, SHM_SB_TOTAL, SHM_SB_GEOMETRY
    const int SHM_FINDINGS, SHM_INV_COUNT, SHM_FAULT_COUNT
    const int SHM_REASON_SIZE, SHM_SWAP_TRIES
    const uint32_t SHM_NO_REASON
    const uint64_t SHM_SWAP_ANY, SHM_SEAL_COUNT
    const int SHM_OWN_RINGS
    const char *SHM_RING_OWN_GET
    const char *SHM_RING_OWN_SET
    const uint64_t SHM_MAX_DURATION_NS, SHM_S_TIME_MASK

    ctypedef struct shm_superblock:
        uint64_t magic, signature, total_size, nonce, hash_seed, inode, device
        uint64_t created_wall_ns, created_mono_ns
        uint32_t layout_version, client_count, owner_uid, owner_gid, mode, policy
        char codec[32]
        uint64_t clients_off, tokens_off, slots_off, slot_stride, slot_capacity
        uint64_t rings_off, rings_size, shards_off, shard_stride, index_off, main_off
        uint64_t probation_off
        uint32_t token_count, slot_count, ring_count, shard_count, bucket_count, main_units
        uint32_t probation_units, budget_units, max_entry_units, avg_entry_size
        uint32_t max_probe_buckets
        uint64_t checksum
        uint32_t dead, persist, owner_pid
        uint64_t owner

    ctypedef struct shm_client:
        uint32_t generation, in_use, pid, uid
        uint64_t attached_mono_ns
        uint64_t hits, misses, read_retries, try_attempts, try_blocked, store_failures
        uint64_t lock_timeouts

    ctypedef struct shm_counts:
        uint32_t entries, leases
        uint32_t live_units[2]

    ctypedef struct shm_shard:
        uint64_t holder
        uint32_t probe_limit
        shm_counts counts
        uint64_t version, ghost_seq
        uint64_t head[2]
        uint64_t tail[2]
        uint64_t min_expiry
        uint32_t wake
        uint64_t sets, deletes, evictions, expirations, recoveries, lock_acquisitions
        uint64_t lock_contended, lock_wait_ns, moved_units, written_units, ghost_hits, promotions
        uint64_t worst_write_units
        uint32_t wait_histogram[16]

    ctypedef struct shm_view:
        uint8_t *base
        uint64_t seed, me
        shm_client *client
        uint32_t shard_mask, shard_count, bucket_count, slot_count, max_probe
        uint32_t budget_units, max_entry_units, policy, client_count

    ctypedef struct shm_key:
        const uint8_t *data
        uint64_t hash
        uint32_t len
        uint8_t kind

    ctypedef struct shm_hit:
        const uint8_t *value
        const uint8_t *key
        uint64_t *slot
        uint64_t word, version, expiry
        uint32_t value_len, shard
        uint16_t key_len
        uint8_t value_kind, key_kind

    ctypedef struct shm_op:
        shm_shard *sh
        uint64_t now_ms

    ctypedef struct shm_put:
        const void *value
        uint64_t expiry, version, stale_ms
        uint32_t value_len
        uint8_t value_kind, mode
        cbool keep_expiry

    ctypedef struct shm_claim:
        uint64_t me, deadline, dead, unfit, version

    ctypedef struct shm_lease_seen:
        uint64_t holder, version
        uint32_t slot

    ctypedef struct shm_finding:
        uint32_t invariant, slot
        uint64_t expected, found

    ctypedef struct shm_findings:
        uint32_t count
        shm_finding at[32]

    ctypedef struct shm_directory:
        uint8_t *first
        uint64_t stride
        uint32_t count

    ctypedef struct shm_record:
        uint64_t seal
        char name[64]

    ctypedef struct shm_swap:
        uint64_t word, holder, directory, recoveries
        shm_record record

    ctypedef struct shm_swap_view:
        shm_swap *slot
        uint64_t capacity

    ctypedef struct shm_swap_copy:
        uint64_t word, check
        const uint8_t *bytes
        uint32_t length, kind

    ctypedef struct shm_token:
        uint64_t state, holder, directory
        uint32_t bell
        shm_record record

    ctypedef struct shm_layout_row:
        const char *name
        uint64_t value

    ctypedef struct shm_ring:
        char *name  # SHM_NAME_SIZE bytes in place
        uint64_t head, sum_ns, max_ns

    ctypedef struct shm_rings_view:
        uint32_t count

    ctypedef struct shm_ring_view:
        shm_ring *ring
        uint64_t *histogram
        uint32_t capacity, bucket_bits, buckets

    const shm_layout_row *shm_layout_rows
    uint64_t shm_xxh64(const void *data, size_t n, uint64_t seed)
    uint64_t shm_layout_signature()
    void shm_format(uint8_t *base, shm_superblock *sb)
    int shm_check_superblock(const shm_superblock *sb, uint64_t file_size)
    void shm_view_init(shm_view *v, uint8_t *base, const shm_superblock *sb, uint32_t client,
                       uint32_t generation)
    uint64_t shm_key_hash(uint64_t seed, uint8_t kind, const void *data, size_t n)
    shm_shard *shm_shard_at(const shm_view *v, uint32_t i)
    uint32_t shm_shard_of(const shm_view *v, uint64_t hash)
    uint64_t shm_expiry_at(uint64_t word)
    uint64_t shm_expiry_reclaim_at(uint64_t word)
    uint64_t shm_expiry_word(uint64_t at_ms, uint64_t stale_ms)
    uint64_t shm_entry_units(uint64_t key_len, uint64_t value_len, cbool expires)

    int shm_find(const shm_view *v, const shm_key *key, shm_hit *hit)
    int shm_epoch_find(const shm_view *v, const shm_key *key, shm_hit *hit, uint64_t *epoch)
    shm_key shm_epoch_key(const shm_view *v, uint8_t *room, const uint8_t *path, uint32_t n,
                          uint64_t above)
    int shm_epoch_of_path(const shm_view *v, const uint8_t *path, uint32_t n, uint64_t *epoch)
    cbool shm_sweep_due(const shm_op *op)
    cbool shm_hit_valid(const shm_view *v, const shm_hit *hit)
    void shm_hit_mark(const shm_hit *hit)
    cbool shm_word_current(uint64_t *slot, uint64_t word)
    int shm_slot_entry(const shm_view *v, uint32_t shard, uint32_t i, shm_hit *hit)
    void shm_prefetch_bucket(const shm_view *v, uint64_t hash)
    void shm_prefetch_bucket_own(const shm_view *v, uint64_t hash)
    void shm_prefetch_entry(const shm_view *v, uint64_t hash)
    void shm_bytes_copy(void *to, const void *frm, size_t n)

    cbool shm_lock_try(uint64_t *holder, uint64_t me)
    cbool shm_lock_spin(uint64_t *holder, uint64_t me)
    uint64_t shm_lock_or_contend(uint64_t *holder, uint64_t me, cbool waited)
    cbool shm_lock_take_over(uint64_t *holder, uint64_t dead, uint64_t me)
    cbool shm_lock_release(uint64_t *holder)
    uint32_t shm_identity_client(uint64_t word)
    cbool shm_lock_word_ok(uint64_t w, uint32_t client_count)
    void shm_repair(const shm_view *v, shm_shard *sh)

    void shm_op_begin(shm_op *op, const shm_view *v, uint32_t shard, uint64_t now_ms)
    int shm_store(shm_op *op, const shm_key *key, shm_put *put)
    int shm_remove(shm_op *op, const shm_key *key, uint64_t version)
    int shm_count_by(shm_op *op, const shm_key *key, int64_t delta, cbool down, int64_t initial,
                     shm_put *put, int64_t *result)
    int shm_touch(shm_op *op, const shm_key *key, uint64_t expiry)
    int shm_lease_take(shm_op *op, const shm_key *key, shm_claim *claim)
    int shm_lease_release(shm_op *op, const shm_key *key, uint64_t version)
    int shm_lease_find(const shm_view *v, const shm_key *key, uint64_t *holder, uint64_t *version)
    uint32_t shm_leases_see(const shm_view *v, uint32_t shard, uint32_t *at, uint32_t slots,
                            shm_lease_seen *out, uint32_t most)
    cbool shm_lease_drop(shm_op *op, const shm_lease_seen *seen)
    cbool shm_wake_due(shm_shard *sh)
    uint32_t shm_clear_slots(shm_op *op, uint32_t first, uint32_t n)
    uint32_t shm_sweep(shm_op *op, uint32_t slots)
    cbool shm_sweep_worth(const shm_op *op)
    uint32_t shm_sweep_slice(shm_op *op, uint32_t slots, cbool *done)
    void shm_verify_shard(shm_op *op, shm_findings *out)
    void shm_rings_init(shm_rings_view *v, uint8_t *base, const shm_superblock *sb)
    uint64_t *shm_rings_holder(const shm_rings_view *v)
    int shm_ring_open(const shm_rings_view *v, uint32_t i, shm_ring_view *r)
    int shm_ring_lookup(const shm_rings_view *v, const char *name, shm_ring_view *r)
    int shm_ring_name(const shm_rings_view *v, const char *name, uint32_t capacity,
                      shm_ring_view *r)
    cbool shm_ring_apart(const shm_ring_view *a, const shm_ring_view *b)
    uint64_t shm_ring_claims(const shm_ring_view *r)
    void shm_ring_record(const shm_ring_view *r, uint64_t ns, uint64_t now_ms)
    uint32_t shm_ring_newest(const shm_ring_view *r, uint32_t n, cbool taken, uint64_t *out)
    uint32_t shm_ring_drain(const shm_ring_view *r, uint32_t n, uint64_t *out)
    void shm_ring_clear(const shm_ring_view *r)
    uint64_t shm_sample_ns(uint64_t w)
    uint64_t shm_sample_age_ms(const shm_ring_view *r, uint64_t w, uint64_t now_ms)
    uint64_t shm_step_low(uint32_t step, uint32_t bits)

    cbool shm_record_ok(const shm_record *r, uint64_t *wanted)
    int shm_record_find(const shm_directory *d, uint32_t parent, const char *name, uint32_t *at)
    int shm_record_claim_locked(const shm_directory *d, uint32_t parent, const char *name,
                                uint32_t *at)
    uint64_t shm_sealed(uint64_t count)
    uint64_t shm_sealed_count(uint64_t word)
    cbool shm_sealed_ok(uint64_t word)
    int shm_swap_read_begin(const shm_swap_view *v, shm_swap_copy *c)
    cbool shm_swap_unchanged(const shm_swap_view *v, const shm_swap_copy *c)
    cbool shm_swap_sound(const shm_swap_copy *c, const void *data)
    int shm_swap_store_locked(const shm_swap_view *v, const void *data, uint32_t length,
                              uint32_t kind, uint64_t digest, uint64_t expected,
                              uint64_t *version)
    int shm_token_state(const shm_token *t)
    int shm_token_reason(const shm_token *t, char *out, uint32_t *length)
    int shm_token_cancel_locked(shm_token *t, const char *reason, uint32_t length)
    int shm_token_reset_locked(shm_token *t)
    void shm_token_ring(shm_token *first)
    uint32_t shm_token_bell(const shm_token *first)
    uint64_t RD(const uint64_t *p)
    uint64_t RDA(const uint64_t *p)
    uint32_t shm_load_wake "RDA"(const uint32_t *p)
    void WR(uint64_t *p, uint64_t x)
    void shm_count(uint64_t *p, uint64_t n)
