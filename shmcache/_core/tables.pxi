# What the levels above need of the layout, and the calls that walk whole shards.

cdef int _fill_superblock(shm_superblock *sb, object fields) except -1:
    cdef bytes codec = fields["codec"]
    memset(sb, 0, sizeof(shm_superblock))
    sb.magic = SHM_MAGIC
    sb.layout_version = SHM_LAYOUT_VERSION
    sb.client_count = fields["client_count"]
    sb.total_size = fields["total_size"]
    sb.nonce = fields["nonce"]
    sb.hash_seed = fields["hash_seed"]
    sb.inode = fields["inode"]
    sb.device = fields["device"]
    sb.created_wall_ns = fields["created_wall_ns"]
    sb.created_mono_ns = fields["created_mono_ns"]
    sb.owner_uid = fields["owner_uid"]
    sb.owner_gid = fields["owner_gid"]
    sb.mode = fields["mode"]
    sb.policy = fields["policy"]
    if len(codec) >= SHM_CODEC_SIZE:
        raise ValueError(f"the codec's name {codec!r} is longer than {SHM_CODEC_SIZE - 1} bytes")
    memcpy(sb.codec, PyBytes_AS_STRING(codec), len(codec))
    sb.clients_off = fields["clients_off"]
    sb.tokens_off = fields["tokens_off"]
    sb.slots_off = fields["slots_off"]
    sb.slot_stride = fields["slot_stride"]
    sb.slot_capacity = fields["slot_capacity"]
    sb.rings_off = fields["rings_off"]
    sb.rings_size = fields["rings_size"]
    sb.shards_off = fields["shards_off"]
    sb.shard_stride = fields["shard_stride"]
    sb.index_off = fields["index_off"]
    sb.main_off = fields["main_off"]
    sb.probation_off = fields["probation_off"]
    sb.token_count = fields["token_count"]
    sb.slot_count = fields["slot_count"]
    sb.ring_count = fields["ring_count"]
    sb.shard_count = fields["shard_count"]
    sb.bucket_count = fields["bucket_count"]
    sb.main_units = fields["main_units"]
    sb.probation_units = fields["probation_units"]
    sb.budget_units = fields["budget_units"]
    sb.max_entry_units = fields["max_entry_units"]
    sb.avg_entry_size = fields["avg_entry_size"]
    sb.max_probe_buckets = fields["max_probe_buckets"]
    sb.persist = fields.get("persist", 0)
    return 0


def format_segment(buffer, fields):
    """Make a zeroed writable buffer a segment: superblock with signature and checksum, shards.

    `fields` holds every immutable field of shm_superblock but magic, layout_version, signature
    and checksum, and optionally `persist`.  ValueError if the result would not pass the checks
    of parse_superblock.
    """
    cdef Py_buffer buf
    cdef shm_superblock sb
    cdef int wrong
    _fill_superblock(&sb, fields)
    PyObject_GetBuffer(buffer, &buf, PyBUF_WRITABLE)
    try:
        if <uint64_t>buf.len < sizeof(sb) or sb.total_size != <uint64_t>buf.len:
            raise ValueError(f"a buffer of {buf.len} bytes for a segment of {sb.total_size}")
        # checked before a shard is touched: a wrong offset must not be written through
        sb.signature = shm_layout_signature()
        sb.checksum = shm_xxh64(&sb, _LAYOUT["shm_superblock.checksum"], 0)
        wrong = shm_check_superblock(&sb, buf.len)
        if wrong != SHM_SB_OK:
            raise ValueError(f"this geometry makes no segment (check {wrong}): {fields}")
        shm_format(<uint8_t *>buf.buf, &sb)
    finally:
        PyBuffer_Release(&buf)


def parse_superblock(buffer, size=None):
    """The immutable fields of a segment's superblock, checked, as a dict (codec as bytes).

    `buffer` holds the segment, or its first SHM_SUPERBLOCK_SIZE bytes with `size` saying how
    long the file is.  LayoutMismatch: another version or build; CorruptSegment: anything else
    that is not a whole, sound superblock.
    """
    cdef const uint8_t[::1] view
    cdef shm_superblock sb
    cdef uint64_t total
    cdef int wrong
    cdef bytes raw = bytes(memoryview(buffer)[:sizeof(sb)])
    total = len(memoryview(buffer)) if size is None else size
    memset(&sb, 0, sizeof(sb))
    memcpy(&sb, PyBytes_AS_STRING(raw), len(raw))
    if len(raw) < <Py_ssize_t>sizeof(sb):
        total = len(raw)
    wrong = shm_check_superblock(&sb, total)
    if wrong == SHM_SB_VERSION:
        raise _errors.LayoutMismatch(
            f"the segment has layout version {sb.layout_version}, this build of shmcache reads "
            f"version {SHM_LAYOUT_VERSION}; use the same release everywhere, or unlink the cache")
    if wrong == SHM_SB_SIGNATURE:
        raise _errors.LayoutMismatch(
            f"the segment has layout version {sb.layout_version} but signature "
            f"{sb.signature:016x}, this build {shm_layout_signature():016x}; use the same build "
            "everywhere, or unlink the cache")
    if wrong != SHM_SB_OK:
        raise _errors.CorruptSegment("the superblock is damaged: " + {
            SHM_SB_SIZE: f"the file has {total} bytes, a superblock {sizeof(sb)}",
            SHM_SB_MAGIC: f"its magic is {sb.magic:016x}, not {SHM_MAGIC:016x}",
            SHM_SB_CHECKSUM: "its checksum does not match its bytes",
            SHM_SB_TOTAL: f"it says {sb.total_size} bytes, the file has {total}",
            SHM_SB_GEOMETRY: "its regions do not fit the segment",
        }[wrong] + " (INV-GEOMETRY); unlink the cache and let it be made anew")
    return {
        "client_count": sb.client_count, "total_size": sb.total_size, "nonce": sb.nonce,
        "hash_seed": sb.hash_seed, "inode": sb.inode, "device": sb.device,
        "created_wall_ns": sb.created_wall_ns, "created_mono_ns": sb.created_mono_ns,
        "owner_uid": sb.owner_uid, "owner_gid": sb.owner_gid, "mode": sb.mode,
        "policy": sb.policy, "codec": raw[_LAYOUT["shm_superblock.codec"]:][:SHM_CODEC_SIZE]
        .rstrip(b"\0"),
        "clients_off": sb.clients_off, "tokens_off": sb.tokens_off, "slots_off": sb.slots_off,
        "slot_stride": sb.slot_stride, "slot_capacity": sb.slot_capacity,
        "rings_off": sb.rings_off, "rings_size": sb.rings_size, "shards_off": sb.shards_off,
        "shard_stride": sb.shard_stride, "index_off": sb.index_off, "main_off": sb.main_off,
        "probation_off": sb.probation_off, "token_count": sb.token_count,
        "slot_count": sb.slot_count, "ring_count": sb.ring_count, "shard_count": sb.shard_count,
        "bucket_count": sb.bucket_count, "main_units": sb.main_units,
        "probation_units": sb.probation_units, "budget_units": sb.budget_units,
        "max_entry_units": sb.max_entry_units, "avg_entry_size": sb.avg_entry_size,
        "max_probe_buckets": sb.max_probe_buckets,
    }


cdef dict _layout():
    cdef dict table = {
        "SHM_LAYOUT_VERSION": SHM_LAYOUT_VERSION, "SHM_UNIT": SHM_UNIT, "SHM_LINE": SHM_LINE,
        "SHM_BUCKET_SLOTS": SHM_BUCKET_SLOTS, "SHM_MAX_SHARDS": SHM_MAX_SHARDS,
        "SHM_MAX_KEY": SHM_MAX_KEY, "SHM_MAX_LOG_UNITS": SHM_MAX_LOG_UNITS,
        "SHM_MAGIC": SHM_MAGIC,
        "SHM_SUPERBLOCK_SIZE": SHM_SUPERBLOCK_SIZE, "SHM_NAME_SIZE": SHM_NAME_SIZE,
        "SHM_CODEC_SIZE": SHM_CODEC_SIZE, "SHM_TOKEN_SIZE": SHM_TOKEN_SIZE,
        "SHM_SLOT_HEADER_SIZE": SHM_SLOT_HEADER_SIZE, "SHM_REASON_SIZE": SHM_REASON_SIZE,
        "SHM_RING_HEADER_SIZE": SHM_RING_HEADER_SIZE, "SHM_WAIT_BUCKETS": SHM_WAIT_BUCKETS,
        "SHM_POLICY_EVICT": SHM_POLICY_EVICT, "SHM_POLICY_KEEP": SHM_POLICY_KEEP,
        "SHM_K_STR": SHM_K_STR, "SHM_K_BYTES": SHM_K_BYTES, "SHM_K_INT": SHM_K_INT,
        "SHM_K_FLOAT": SHM_K_FLOAT, "SHM_K_BOOL": SHM_K_BOOL, "SHM_K_NONE": SHM_K_NONE,
        "SHM_K_UUID": SHM_K_UUID, "SHM_K_TUPLE": SHM_K_TUPLE, "SHM_K_EPOCH": SHM_K_EPOCH,
        "signature": shm_layout_signature(),
    }
    cdef const shm_layout_row *row = shm_layout_rows
    while row.name != NULL:
        table[row.name.decode()] = row.value
        row += 1
    return table


_LAYOUT = _layout()
LAYOUT = _LAYOUT
FAULT_POINTS = {shm_fault_names[i].decode(): i for i in range(SHM_FAULT_COUNT)} \
    if SHM_HAS_FAULTS else {}


def set_fault(int point, int countdown=1, str action="kill"):
    """Test builds only: at the `countdown`-th passage of fault point `point` this process sends
    itself SIGKILL (`action` "kill") or SIGSTOP ("stop").  A point below 0 disarms."""
    if not SHM_HAS_FAULTS:
        raise RuntimeError("this build has no fault points; build one with `make fault-build`")
    shm_fault_set(point, countdown, {"kill": 9, "stop": 19}[action])


def xxh64(data, uint64_t seed=0):
    """XXH64 of a bytes-like object as an int: the core's own implementation."""
    cdef Py_buffer buf
    cdef uint64_t h
    PyObject_GetBuffer(data, &buf, PyBUF_SIMPLE)
    h = shm_xxh64(buf.buf, buf.len, seed)
    PyBuffer_Release(&buf)
    return h


def now_ms():
    """The clock that expiry is counted on, in milliseconds."""
    return shm_now_ms()


def entry_count(Handle h):
    """Entries of all shards, expired ones included until they are swept.  O(shards), no lock."""
    cdef uint64_t n = 0
    cdef uint32_t i
    h.ready()
    for i in range(h.view.shard_count):
        n += shm_shard_at(&h.view, i).counts.entries
    return n


def shard_stats(Handle h, uint32_t i):
    """Counters of one shard as a dict; a snapshot without the lock, each number whole."""
    cdef shm_shard *s
    h.ready()
    if i >= h.view.shard_count:
        raise IndexError(f"shard {i} of {h.view.shard_count}")
    s = shm_shard_at(&h.view, i)
    return {
        "entries": s.counts.entries, "leases": s.counts.leases & SHM_C_LEASES,
        "bytes_used": (<uint64_t>s.counts.live_units[0] + s.counts.live_units[1]) * SHM_UNIT,
        "sets": s.sets, "deletes": s.deletes, "evictions": s.evictions,
        "expirations": s.expirations, "recoveries": s.recoveries,
        "lock_acquisitions": s.lock_acquisitions, "lock_contended": s.lock_contended,
        "lock_wait_ns": s.lock_wait_ns, "moved_bytes": s.moved_units * SHM_UNIT,
        "written_bytes": s.written_units * SHM_UNIT, "ghost_hits": s.ghost_hits,
        "promotions": s.promotions, "worst_write_bytes": s.worst_write_units * SHM_UNIT,
        "probe_limit": s.probe_limit,
        "wait_histogram": tuple([s.wait_histogram[b] for b in range(SHM_WAIT_BUCKETS)]),
    }


def client_totals(Handle h):
    """Counters of all clients that ever were, summed: counts stay with their slots."""
    cdef shm_client *c
    cdef uint64_t hits = 0, misses = 0, retries = 0, attempts = 0, blocked = 0, failures = 0
    cdef uint64_t timeouts = 0
    cdef uint32_t i
    cdef object geometry
    h.ready()
    geometry = h.held().superblock.geometry
    h.ready()
    c = <shm_client *>(h.view.base + <uint64_t>geometry.clients_off)
    for i in range(<uint32_t>geometry.client_count):
        hits += c[i].hits
        misses += c[i].misses
        retries += c[i].read_retries
        attempts += c[i].try_attempts
        blocked += c[i].try_blocked
        failures += c[i].store_failures
        timeouts += c[i].lock_timeouts
    return {"hits": hits, "misses": misses, "read_retries": retries, "try_attempts": attempts,
            "try_blocked": blocked, "store_failures": failures, "lock_timeouts": timeouts}


def shard_of(Handle h, key):
    """The number of the shard that `key` lies in."""
    cdef CKey k
    cdef object keep
    h.ready()
    keep = _encode_key(h, key, &k)
    return shm_shard_of(&h.view, k.k.hash)


cdef enum:
    CLEAR_STEP = 2048  # slots cleared or swept under one lock: about 100 us


def clear_shard(Handle h, uint32_t i):
    """Remove every entry of shard `i`, a slice of its index under the lock at a time.  Returns
    how many were removed."""
    cdef shm_op op
    cdef uint32_t at = 0
    cdef uint64_t removed = 0
    h.ready()
    if i >= h.view.shard_count:
        raise IndexError(f"shard {i} of {h.view.shard_count}")
    while at < h.view.slot_count:
        h.acquire(i, h.timeout_s)
        shm_op_begin(&op, &h.view, i, shm_now_ms())
        removed += shm_clear_slots(&op, at, CLEAR_STEP)
        h.release(i)
        at += CLEAR_STEP
        h.ready()
    return removed


def expire_shard(Handle h, uint32_t i):
    """Remove what has expired in shard `i`, a slice at a time.  Returns how many."""
    cdef shm_op op
    cdef uint32_t at = 0
    cdef uint64_t removed = 0, now = shm_now_ms()
    cdef shm_shard *sh
    h.ready()
    if i >= h.view.shard_count:
        raise IndexError(f"shard {i} of {h.view.shard_count}")
    sh = shm_shard_at(&h.view, i)
    # two rounds from wherever the sweep stands: the first to its end, the second a whole one, so
    # that every slot is seen, whatever writers sweep meanwhile
    shm_op_begin(&op, &h.view, i, now)
    while at < 2 * h.view.slot_count and shm_sweep_due(&op):
        h.acquire(i, h.timeout_s)
        shm_op_begin(&op, &h.view, i, now)
        removed += shm_sweep(&op, CLEAR_STEP)
        h.release(i)
        at += CLEAR_STEP
        h.ready()
    return removed


def verify_shard(Handle h, uint32_t i):
    """Check every invariant of shard `i` under its lock.  Returns (count, findings): each finding
    (invariant, what it says, slot or None, expected, found); at most SHM_FINDINGS of them."""
    cdef shm_op op
    cdef shm_findings out
    cdef list rows = []
    cdef uint32_t n
    cdef shm_finding *f
    cdef object mapping
    cdef bint contended
    cdef shm_view view
    h.ready()
    if i >= h.view.shard_count:
        raise IndexError(f"shard {i} of {h.view.shard_count}")
    memset(&out, 0, sizeof(out))
    h.acquire(i, h.timeout_s)
    mapping = h.mapping  # and a view of its own: other threads may close or reopen the handle
    view = h.view
    with nogil:
        shm_op_begin(&op, &view, i, shm_now_ms())
        shm_verify_shard(&op, &out)
        contended = shm_lock_release(&shm_shard_at(&view, i).holder)
    if contended and h._attachment is not None:
        h.held().post(i)
    for n in range(min(out.count, <uint32_t>SHM_FINDINGS)):
        f = &out.at[n]
        rows.append((shm_invariant_names[f.invariant].decode(),
                     shm_invariant_texts[f.invariant].decode(),
                     None if f.slot == SHM_NO_SLOT else f.slot, f.expected, f.found))
    return out.count, rows
