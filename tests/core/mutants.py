"""Breaks the core in one place at a time and asks whether a program of this directory notices.

A test that cannot fail proves nothing. Each mutant below takes away one thing that the core's
comments call necessary - a recheck, a bound, a step of the repair - in a copy of its sources; the
program named beside it must then fail. Run by `make mutants`, and in the nightly job.

The exit status is 0 if every mutant was noticed. A mutant whose text is no longer found in the
sources is an error, so that this list follows the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORE = HERE.parent.parent / "shmcache" / "_core" / "src"
ENVIRONMENT = {"SEED": "1", "OPS": "12000", "SEGMENTS": "4", "SECONDS_EACH": "6"}
ENVIRONMENT |= {"FUZZ_SECONDS": "60"}  # a fuzzer ends at its first finding


@dataclass(frozen=True)
class Mutant:
    """One change of one source file, and the program that must notice it."""

    what: str
    program: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "a read is not rechecked",
        "stress_plain",
        "read.h",
        "    if (LIKELY(shm_same_word(now, hit->word)))\n        return true;",
        "    if (now || !now)\n        return true;",
    ),
    Mutant(
        "a mismatch counts without recheck (INV-MISMATCH)",
        "stress_plain",
        "read.h",
        "if (!shm_same_word(RD(slot), w)) { /* INV-MISMATCH */",
        "if (0) {",
    ),
    Mutant(
        "an entry that runs past the log is parsed",
        "fuzz",
        "read.h",
        "if (UNLIKELY(need > room || (flags & SHM_K_PAD)))",
        "if (UNLIKELY(flags & SHM_K_PAD))",
    ),
    Mutant(
        "a slot may name an offset beyond the log",
        "fuzz",
        "read.h",
        "    if (UNLIKELY(off >= log->units))\n        return false;",
        "",
    ),
    Mutant(
        "head and tail are not checked",
        "fuzz",
        "log.h",
        "    if (laps > 1)\n        return false;",
        "",
    ),
    Mutant(
        "repair trusts the noted slot",
        "fuzz",
        "log.h",
        "if (slot < v->slot_count) {",
        "if (slot + 1u) {",
    ),
    Mutant(
        "no gap is kept (INV-GAP)",
        "test_model",
        "log.h",
        "    if (v->policy == SHM_POLICY_KEEP || 2 * n <= least)\n        return 2 * n;",
        "    if (v->policy == SHM_POLICY_KEEP)\n        return 0;",
    ),
    Mutant(
        "repair does not take the tail back",
        "test_repair",
        "log.h",
        "                shm_take_back_tail(v, sh, word);",
        "                (void)word;",
    ),
    Mutant(
        "repair does not restore the counts",
        "test_repair",
        "log.h",
        "WRR(&sh->counts.entries, RD(&sh->note.counts.entries));",
        "",
    ),
    Mutant(
        "the slot is stored before the note is armed",
        "test_repair",
        "log.h",
        "    WR(&sh->note.slot, slot);",
        "    WRR(op->index + slot, word);\n    WR(&sh->note.slot, slot);",
    ),
    Mutant(
        "the head may pass an entry that a slot names (INV-REUSE)",
        "test_model",
        "room.h",
        "    if (slot == SHM_NO_SLOT) { /* dead */",
        "    if (slot == SHM_NO_SLOT || units > 7) {",
    ),
    Mutant(
        "the key being written may be evicted for it",
        "test_model",
        "room.h",
        "may_evict = v->policy == SHM_POLICY_EVICT && !lease && slot != op->protect &&",
        "may_evict = v->policy == SHM_POLICY_EVICT && !lease &&",
    ),
    Mutant(
        "the key is not looked up again after room was made",
        "test_model",
        "write.h",
        "    if (op->changed) {",
        "    if (0) {",
    ),
    Mutant(
        "a stale is rounded down",
        "test_pure",
        "view.h",
        "stale_ms = (stale_ms + 1) >> 1;",
        "stale_ms >>= 1;",
    ),
    Mutant(
        "probes do not wrap",
        "test_pure",
        "view.h",
        "return b < v->bucket_count ? b : b % v->bucket_count;",
        "return b;",
    ),
    Mutant(
        "a probation log may lie anywhere",
        "test_pure",
        "superblock.h",
        "sb->probation_off > sb->shard_stride ||",
        "",
    ),
    Mutant(
        "a lock is taken over from whoever holds it",
        "test_pure",
        "lock.h",
        "return shm_cas(holder, dead, me | SHM_L_CONTENDED);",
        "return dead && shm_cas(holder, RD(holder), me | SHM_L_CONTENDED);",
    ),
    Mutant(
        "min_expiry is not lowered by a write (INV-MIN-EXPIRY)",
        "test_model",
        "write.h",
        "if (at < RD(&sh->min_expiry))",
        "if (0)",
    ),
    Mutant(
        "a lease is taken beside a value (INV-LEASE)",
        "test_once",
        "lease.h",
        "    if (f.slot != SHM_NO_SLOT && !f.expired && f.hit.version != claim->unfit)\n"
        "        return SHM_HIT;",
        "",
    ),
    Mutant(
        "an expired value counts as one",
        "test_once",
        "lease.h",
        "f.slot != SHM_NO_SLOT && !f.expired && f.hit",
        "f.slot != SHM_NO_SLOT && f.hit",
    ),
    Mutant(
        "a value that cannot be decoded counts as one",
        "test_once",
        "lease.h",
        "!f.expired && f.hit.version != claim->unfit)",
        "!f.expired)",
    ),
    Mutant(
        "a lease is taken over from whoever has it (INV-LEASE)",
        "test_once",
        "lease.h",
        "if (hit.version != claim->dead) {",
        "if (hit.version != claim->dead && !claim->dead) {",
    ),
    Mutant(
        "a lease is taken by everybody (INV-LEASE)",
        "test_once",
        "lease.h",
        "if (hit.version != claim->dead) {",
        "if (0) {",
    ),
    Mutant(
        "leases are without number (INV-LEASE)",
        "test_once",
        "lease.h",
        "} else if (shm_lease_count(op->sh) >= shm_lease_most(op->v)) {",
        "} else if (0) {",
    ),
    Mutant(
        "leases under lost epochs pile up",
        "test_once",
        "lease.h",
        "        shm_sweep_round(op); /* those of",
        "        /* those of",
    ),
    Mutant(
        "a lease forgets the key's ghost",
        "test_once",
        "lease.h",
        "        lease.deadline |= SHM_LEASE_GHOST;\n",
        "",
    ),
    Mutant(
        "anybody gives up a lease (INV-LEASE)",
        "test_once",
        "lease.h",
        " || hit.version != version)\n        return SHM_MISS;",
        ")\n        return SHM_MISS;",
    ),
    Mutant(
        "those who wait for a lease are woken again and again",
        "test_once",
        "lease.h",
        "    WR(&sh->wake, wake & ~1u);\n",
        "",
    ),
    Mutant(
        "nobody who waits for a lease is woken",
        "test_once",
        "lease.h",
        "    return true;\n}\n\n/* Who has",
        "    return false;\n}\n\n/* Who has",
    ),
    Mutant(
        "who holds a lease is not rechecked (INV-REUSE)",
        "test_once",
        "lease.h",
        "        if (shm_hit_valid(v, &hit)) {",
        "        if (hit.version || v) {",
    ),
    Mutant(
        "a late value is stored (INV-LEASE)",
        "test_once",
        "write.h",
        "if (!shm_lease_read(op, f->lease, &hit, &lease) || hit.version != version)",
        "if (!shm_lease_read(op, f->lease, &hit, &lease))",
    ),
    Mutant(
        "a store leaves the lease (INV-LEASE)",
        "test_once",
        "write.h",
        "    if (f->lease != SHM_NO_SLOT) /* whoever",
        "    if (0) /* whoever",
    ),
    Mutant(
        "a remove leaves the lease (INV-LEASE)",
        "test_once",
        "write.h",
        "    if (f.lease != SHM_NO_SLOT)\n"
        "        shm_drop_lease(op, f.lease);\n"
        "    if (f.slot == SHM_NO_SLOT)",
        "    if (f.slot == SHM_NO_SLOT)",
    ),
    Mutant(
        "a lease goes without a word",
        "test_once",
        "room.h",
        "(RD(&op->sh->wake) + 2u) | 1u",
        "RD(&op->sh->wake) | 1u",
    ),
    Mutant(
        "an epoch is not rechecked (INV-REUSE)",
        "test_once",
        "epoch.h",
        "        if (shm_hit_valid(v, hit))\n            return SHM_HIT;",
        "        return SHM_HIT;",
    ),
    Mutant(
        "any bytes are an epoch",
        "test_once",
        "epoch.h",
        "if (hit->value_kind == SHM_V_INT && hit->value_len == sizeof *epoch)",
        "if (hit->value_len == sizeof *epoch)",
    ),
    Mutant(
        "a path may lead past its end",
        "test_once",
        "epoch.h",
        "        if (length > n - at - 2)\n            return SHM_CORRUPT;",
        "",
    ),
    Mutant(
        "half a length is one",
        "test_once",
        "epoch.h",
        "        if (n - at < 2)\n            return SHM_CORRUPT;",
        "",
    ),
    Mutant(
        "an epoch does not hang on the one above (INV-EPOCH)",
        "test_once",
        "epoch.h",
        "key = shm_epoch_key(v, room, path, at, *epoch);",
        "key = shm_epoch_key(v, room, path, at, 0);",
    ),
    Mutant(
        "what lies below a missing epoch is kept",
        "test_once",
        "epoch.h",
        "op->epoch_stale = r == SHM_MISS || (r",
        "op->epoch_stale = (r",
    ),
    Mutant(
        "what lies below a replaced epoch is kept",
        "test_once",
        "epoch.h",
        "(r == SHM_HIT && now != epoch);",
        "(r != SHM_HIT && r != SHM_MISS && now != epoch);",
    ),
    Mutant(
        "one epoch's answer is taken for another's",
        "test_once",
        "epoch.h",
        "if (epoch == op->epoch) /* entries",
        "if (op->epoch) /* entries",
    ),
    Mutant(
        "an inner epoch is taken for what lies below it",
        "test_once",
        "epoch.h",
        "if ((hit->key_kind & SHM_K_TYPE) == SHM_K_EPOCH) {",
        "if (0) {",
    ),
    Mutant(
        "a namespaced key may be shorter than its path",
        "test_once",
        "epoch.h",
        " || hit->key_len < 2u + n + 8u)\n        return false;",
        ")\n        return false;",
    ),
    Mutant(
        "a path may be longer than any",
        "fuzz",
        "epoch.h",
        "if (n > SHM_MAX_PATH || hit",
        "if (hit",
    ),
    Mutant(
        "an epoch that goes is not counted (INV-EPOCH)",
        "test_once",
        "room.h",
        "        shm_invalidated(op->v);",
        "",
    ),
    Mutant(
        "an epoch that is replaced is not counted (INV-EPOCH)",
        "test_once",
        "write.h",
        "        shm_invalidated(v); /* an epoch",
        "        (void)v; /* an epoch",
    ),
    Mutant(
        "repair does not count an epoch that may have gone (INV-EPOCH)",
        "test_repair",
        "log.h",
        "    shm_invalidated(v); /* the dead",
        "    /* the dead",
    ),
    Mutant(
        "a sweep forgets what was invalidated meanwhile",
        "test_once",
        "room.h",
        "WRR(&op->sh->swept_invalidation, RD(&op->sh->sweep_invalidation));",
        "WRR(&op->sh->swept_invalidation, RDA(shm_invalidations(v)));",
    ),
    Mutant(
        "a load is not rechecked (INV-SWAP-REUSE)",
        "swap_plain",
        "swap.h",
        "    return RD(&v->slot->word) == c->word;\n}\n\n/* Step three",
        "    return c->word != 0;\n}\n\n/* Step three",
    ),
    Mutant(
        "a store fills the current buffer (INV-SWAP-CURRENT)",
        "swap_plain",
        "swap.h",
        "uint8_t *to = shm_swap_bytes(v, next);",
        "uint8_t *to = shm_swap_bytes(v, next - 1);",
    ),
    Mutant(
        "a version is stored before its bytes (INV-SWAP-CURRENT)",
        "swap_plain",
        "swap.h",
        "    FAULT(swap_begin);\n",
        "    FAULT(swap_begin);\n    WRR(&v->slot->word, shm_sealed(next));\n",
    ),
    Mutant(
        "a second reason replaces the first (INV-TOKEN-REASON)",
        "swap_plain",
        "token.h",
        "    if (state & 1)\n        return SHM_EXISTS;",
        "",
    ),
    Mutant(
        "a reason is not rechecked (INV-TOKEN-REASON)",
        "swap_plain",
        "token.h",
        "        if (RD(&t->state) != state)\n            continue;",
        "",
    ),
    Mutant(
        "a name is given without looking again (INV-RECORD-SEAL)",
        "swap_plain",
        "directory.h",
        "    int found = shm_record_find(d, parent, name, at);\n    if (found != SHM_MISS)",
        "    int found = SHM_MISS;\n    if (found != SHM_MISS)",
    ),
    Mutant(
        "a record is sealed before its name is written (INV-RECORD-SEAL)",
        "swap_plain",
        "directory.h",
        "        WR(&r->parent, parent);\n",
        "        WR(&r->parent, parent);\n        WRR(&r->seal, shm_record_seal(parent, name));\n",
    ),
    Mutant(
        "the lap of a sample is not looked at (INV-SAMPLE-LAP)",
        "ring_plain",
        "ring.h",
        "return (w & SHM_S_LAP) >> SHM_S_LAP_SHIFT == shm_sample_lap(position, r->word_bits);",
        "return w || (position && !r);",
    ),
    Mutant(
        "a sample is taken without a swap (INV-SAMPLE-ONCE)",
        "ring_plain",
        "ring.h",
        "shm_cas(p, w, w | SHM_S_TAKEN)) {",
        "(WR(p, w | SHM_S_TAKEN), true)) {",
    ),
    Mutant(
        "a sample that is not written yet is passed for good",
        "ring_plain",
        "ring.h",
        "                missing = at; /* not written yet: to be taken later */",
        "                continue;",
    ),
    Mutant(
        "the sum is not added to atomically (INV-RING-TOTALS)",
        "ring_plain",
        "ring.h",
        "    __atomic_fetch_add(&ring->sum_ns, ns, __ATOMIC_RELAXED);",
        "    WR(&ring->sum_ns, RD(&ring->sum_ns) + ns);",
    ),
    Mutant(
        "a ring is named before its place is written (INV-RING-PLACE)",
        "ring_plain",
        "ring.h",
        "    shm_bytes_copy(ring->name, name, SHM_NAME_SIZE);\n",
        "    WRR(&ring->named, 1);\n    FAULT(ring_filled);\n"
        "    shm_bytes_copy(ring->name, name, SHM_NAME_SIZE);\n",
    ),
    Mutant(
        "a new ring begins where the last one does (INV-RING-PLACE)",
        "ring_plain",
        "ring.h",
        "            if (last > end)\n                end = last;",
        "            (void)last;",
    ),
]


def survives(mutant: Mutant) -> str | None:
    """What is wrong with this mutant, None if it was noticed."""
    with tempfile.TemporaryDirectory() as scratch:
        core, out = Path(scratch, "core"), Path(scratch, "out")
        shutil.copytree(CORE, core)
        source = core / mutant.file
        text = source.read_text()
        if mutant.old not in text:
            return f"{mutant.file} no longer has the text that this mutant changes"
        source.write_text(text.replace(mutant.old, mutant.new, 1))
        make = ["make", "-s", "-C", str(HERE), f"CORE={core}", f"OUT={out}", "WERROR="]
        built = subprocess.run([*make, str(out / mutant.program)], capture_output=True, text=True)
        if built.returncode:
            return f"does not compile:\n{built.stderr}"
        run = subprocess.run(
            [str(out / mutant.program)],
            capture_output=True,
            env=os.environ | ENVIRONMENT,
            timeout=600,
        )
        return None if run.returncode else f"{mutant.program} did not notice"


def main() -> int:
    """Tries every mutant whose description holds the words of the command line; 1 on a failure."""
    words = " ".join(sys.argv[1:])
    failed = passed = 0
    for mutant in MUTANTS:
        if words not in mutant.what:
            continue
        wrong = survives(mutant)
        print(f"  {mutant.what}: {wrong or f'noticed by {mutant.program}'}", flush=True)
        failed += wrong is not None
        passed += wrong is None
    print(f"mutants: {passed} passed, {failed} failed")
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main())
