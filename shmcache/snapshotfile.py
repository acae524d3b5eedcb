"""The file of a snapshot: how it is written so that it is whole or not there, and how it is read
so that every damaged byte is seen.

Place: level 5, below `snapshot.py`, which knows what is in the blocks. Here is what holds them
together; docs/snapshots.md has the format in tables. All numbers are little endian.

    prelude   magic (8), format version (u32), bytes of the header (u32)
    header    JSON: where the snapshot comes from, and what a cache for it takes
    seal      XXH3-64 (seed 0) of prelude and header
    blocks    kind (u32), records (u32), bytes of the payload (u64), XXH3-64; then the payload
    trailer   a block: entries, slots, blocks, its own offset (u64 each), XXH3-128 of all before it

The checksum of a block has the block's offset as its seed and covers kind, records, bytes and
payload, so that no block passes for another one's. The trailer ends the file, so that one cut
off anywhere has none.

Writing: into a file beside the target, which a lock of the kernel's marks as somebody's; then
fsync, rename, fsync of the directory. A process that dies leaves such a file without the lock:
the next save removes it. Reading trusts nothing: a length is compared with the file's size before
it is believed, and no more than a block's limit is in memory at once, however long it says it is.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import xxhash

from shmcache.errors import DecodeError

__all__ = [
    "BLOCK_BYTES",
    "ENTRIES",
    "SLOT",
    "Block",
    "Reader",
    "Totals",
    "Writer",
]

MAGIC: Final = b"\x93SHMSNP\n"
"""A first byte that is no text, and a newline that a conversion of line ends would change."""

VERSION: Final = 1

BLOCK_BYTES: Final = 1 << 20
"""Bytes of payload that several records take together at most; a larger record is alone."""

HEADER_MOST: Final = 1 << 16
"""Bytes of a header: it has ten short fields."""

ENTRIES: Final = 1
SLOT: Final = 2
_TRAILER: Final = 3

_PRELUDE: Final = struct.Struct("<8sII")
_BLOCK: Final = struct.Struct("<IIQ")
_DIGEST: Final = struct.Struct("<Q")
_TOTALS: Final = struct.Struct("<QQQQ16s")
_BLOCK_HEAD: Final = _BLOCK.size + _DIGEST.size
_TRAILER_BYTES: Final = _BLOCK_HEAD + _TOTALS.size
_NO_FSYNC: Final = (errno.EINVAL, errno.ENOTSUP)


@dataclass(frozen=True, slots=True)
class Totals:
    """What the trailer says: how many entries, swap slots and blocks there are, and the bytes of
    the whole file."""

    entries: int
    slots: int
    blocks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block: where its payload is, and what its head says of it."""

    kind: int
    records: int
    length: int
    digest: int
    offset: int
    """Of the block's head in the file; the payload follows `_BLOCK_HEAD` bytes later."""

    @property
    def payload_offset(self) -> int:
        """Where the payload begins."""
        return self.offset + _BLOCK_HEAD

    @property
    def hasher(self) -> Any:
        """The block's checksum, as it is before the payload."""
        hasher = xxhash.xxh3_64(seed=self.offset)
        hasher.update(_BLOCK.pack(self.kind, self.records, self.length))
        return hasher


class Writer:
    """A snapshot that is being written beside `path`, and is there once `commit` has returned.

    A context manager: leaving it without `commit` removes what was written. The old file, if
    there is one, stays as it is until then.

    Args:
        path: of the snapshot; a symbolic link is followed, and what is there must be a file.
        mode: permission bits of the file, whatever the umask.
        gid: the group it is to belong to. Where this process may not give it to that group, it
            gets none of the mode's bits for groups and others.
        header: anything that JSON takes.

    Raises OSError (the directory cannot be written, the disk is full), ValueError (`path` names
    something else than a file).
    """

    def __init__(
        self, path: str | os.PathLike[str], *, mode: int, gid: int, header: dict[str, Any]
    ) -> None:
        self.path = os.path.realpath(os.fsdecode(path))
        self._directory, self._name = os.path.split(self.path)
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise ValueError(f"{self.path} is no regular file: save the snapshot elsewhere")
        _sweep(self._directory, self._name)
        self._fd, self._temporary = self._create()
        try:
            try:
                if os.fstat(self._fd).st_gid != gid:
                    os.fchown(self._fd, -1, gid)
            except PermissionError:
                mode &= 0o700
            os.fchmod(self._fd, mode & 0o666)
            self._offset = 0
            self._blocks = 0
            self._whole = xxhash.xxh3_128()
            encoded = json.dumps(header, separators=(",", ":")).encode()
            head = _PRELUDE.pack(MAGIC, VERSION, len(encoded)) + encoded
            self._write(head + _DIGEST.pack(xxhash.xxh3_64_intdigest(head)))
        except BaseException:
            self._abandon()
            raise

    def _create(self) -> tuple[int, str]:
        while True:
            path = os.path.join(self._directory, f".{self._name}.{secrets.token_hex(8)}.saving")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(path, flags, 0o600)
            swept = False
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another save takes it for a leftover, and removes it
                swept = True
            except OSError:  # a file system without locks: nobody sweeps there either
                pass
            if not swept and os.fstat(fd).st_nlink:
                return fd, path
            os.close(fd)

    def add(self, kind: int, records: int, payload: bytes | bytearray | memoryview) -> None:
        """Append a block. Blocks while the disk does."""
        block = Block(kind, records, len(payload), 0, self._offset)
        hasher = block.hasher
        hasher.update(payload)
        self._write(_BLOCK.pack(kind, records, len(payload)) + _DIGEST.pack(hasher.intdigest()))
        self._write(payload)
        self._blocks += 1

    def commit(self, *, entries: int, slots: int) -> int:
        """Write the trailer, and let the file take the place of the old one for good: both the
        file and its name are on the disk when this returns. Returns its size in bytes."""
        totals = (entries, slots, self._blocks, self._offset, self._whole.digest())
        self.add(_TRAILER, 1, _TOTALS.pack(*totals))
        _fsync(self._fd)
        os.replace(self._temporary, self.path)
        self._temporary = ""
        os.close(self._fd)
        self._fd = -1
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _fsync(directory)
        finally:
            os.close(directory)
        return self._offset

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        self._whole.update(data)
        self._offset += len(data)
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except OSError as error:
                error.filename = self.path
                raise

    def _abandon(self) -> None:
        if self._temporary:
            with suppress(OSError):
                os.unlink(self._temporary)
            self._temporary = ""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._abandon()


def _sweep(directory: str, name: str) -> None:
    """Remove what killed saves of that file have left: files that no living process locks."""
    leftover = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.saving")
    for found in os.listdir(directory):
        if not leftover.fullmatch(found):
            continue
        path = os.path.join(directory, found)
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(fd)


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FSYNC:  # some file systems have nothing to synchronise
            raise


class Reader:
    """A snapshot's file, open. `header` and `totals` are checked; blocks as they are read.

    Args:
        path: of the snapshot.

    Raises OSError (it cannot be opened), DecodeError (it is no snapshot, cut off, damaged, or of
    a later format version).
    """

    header: dict[str, Any]
    totals: Totals

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        # not blocking: the path may name a pipe
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self._fd)
            self.uid, self.mode = status.st_uid, stat.S_IMODE(status.st_mode)
            if not stat.S_ISREG(status.st_mode):
                raise DecodeError(f"{self.path} is no regular file, and so no snapshot")
            self._size = status.st_size
            self._room = bytearray(BLOCK_BYTES)
            self.header, self._first = self._read_header()
            self.totals, self._whole = self._read_trailer()
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fail(self, offset: int, what: str) -> NoReturn:
        """Raise the DecodeError that says what is wrong at which byte."""
        raise DecodeError(
            f"snapshot {self.path} is damaged at byte {offset}: {what}; nothing of it can be "
            "trusted: take another copy, or save the cache anew"
        )

    def _read(self, offset: int, length: int) -> bytes:
        into = bytearray(length)
        self.read_into(offset, memoryview(into))
        return bytes(into)

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill a buffer from that place of the file; DecodeError where the file ends before."""
        done = 0
        while done < len(into):
            got = os.preadv(self._fd, [into[done:]], offset + done)
            if not got:
                self.fail(offset + done, "the file ends here, in the middle of what it says")
            done += got

    def _read_header(self) -> tuple[dict[str, Any], int]:
        if self._size < _PRELUDE.size:
            self.fail(self._size, "the file ends here, within its first 16 bytes")
        prelude = self._read(0, _PRELUDE.size)
        magic, version, length = _PRELUDE.unpack(prelude)
        if magic != MAGIC:
            raise DecodeError(f"{self.path} is no snapshot of a shmcache (its first bytes differ)")
        if version != VERSION:
            raise DecodeError(
                f"snapshot {self.path} has format version {version} at byte 8, and this release "
                f"reads version {VERSION}: load it with the release that saved it"
            )
        end = _PRELUDE.size + length
        if length > HEADER_MOST or end + _DIGEST.size > self._size:
            self.fail(12, f"a header of {length} bytes does not fit a file of {self._size}")
        head = prelude + self._read(_PRELUDE.size, length)
        (digest,) = _DIGEST.unpack(self._read(end, _DIGEST.size))
        if digest != xxhash.xxh3_64_intdigest(head):
            self.fail(0, f"the checksum of its first {end} bytes does not match")
        try:
            header = json.loads(head[_PRELUDE.size :])
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            self.fail(_PRELUDE.size, "the header is no JSON object")
        return header, end + _DIGEST.size

    def _read_trailer(self) -> tuple[Totals, bytes]:
        offset = self._size - _TRAILER_BYTES
        if offset < self._first:
            self.fail(self._size, "the file ends here, before its trailer: it was cut off")
        block = self._read_head(offset)
        payload = self._read(block.payload_offset, _TOTALS.size)
        hasher = block.hasher
        hasher.update(payload)
        if (block.kind, block.records, block.length) != (_TRAILER, 1, _TOTALS.size) or (
            hasher.intdigest() != block.digest
        ):
            self.fail(offset, "there is no trailer at the end: it was cut off, or overwritten")
        entries, slots, blocks, own, whole = _TOTALS.unpack(payload)
        if own != offset:
            self.fail(offset, f"the trailer belongs at byte {own}: bytes are missing or too many")
        return Totals(entries, slots, blocks, self._size), whole

    def _read_head(self, offset: int) -> Block:
        head = self._read(offset, _BLOCK_HEAD)
        kind, records, length = _BLOCK.unpack_from(head)
        (digest,) = _DIGEST.unpack_from(head, _BLOCK.size)
        return Block(kind, records, length, digest, offset)

    def blocks(self) -> Iterator[Block]:
        """Iterate over the heads of all blocks but the trailer: each one fits the file, and has
        the kind of a block, and one record where it is longer than `BLOCK_BYTES`."""
        end = self._size - _TRAILER_BYTES
        offset = self._first
        while offset < end:
            if end - offset < _BLOCK_HEAD:
                self.fail(offset, f"{end - offset} bytes are no block")
            block = self._read_head(offset)
            if block.kind not in (ENTRIES, SLOT):
                self.fail(offset, f"there is no block of kind {block.kind}")
            if block.length > end - block.payload_offset:
                self.fail(offset, f"a block of {block.length} bytes goes past the trailer")
            if block.length > BLOCK_BYTES and block.records != 1:
                self.fail(offset, f"{block.records} records in a block of {block.length} bytes")
            yield block
            offset = block.payload_offset + block.length

    def payload(self, block: Block) -> memoryview:
        """Read and check a payload: all of it, in memory until the next one is read."""
        if len(self._room) < block.length:
            self._room = bytearray(block.length)
        elif len(self._room) > BLOCK_BYTES >= block.length:
            self._room = bytearray(BLOCK_BYTES)  # a large one is not kept
        view = memoryview(self._room)[: block.length]
        self.read_into(block.payload_offset, view)
        hasher = block.hasher
        hasher.update(view)
        self._check_digest(block, hasher)
        return view

    def verify(self) -> Iterator[tuple[Block, memoryview]]:
        """Check everything: each block's checksum and, at the end, the whole file's.

        Yields each block and its payload, at most the first `BLOCK_BYTES` of it: memory is
        bounded, whatever the file says. It is all good only once the iteration has ended.
        """
        whole = xxhash.xxh3_128()
        whole.update(self._read(0, self._first))
        count = 0
        for block in self.blocks():
            count += 1
            head = _BLOCK.pack(block.kind, block.records, block.length)
            whole.update(head + _DIGEST.pack(block.digest))
            hasher = block.hasher
            first = memoryview(self._room)[: min(block.length, BLOCK_BYTES)]
            self.read_into(block.payload_offset, first)
            hasher.update(first)
            whole.update(first)
            if block.length > BLOCK_BYTES:
                rest = memoryview(bytearray(BLOCK_BYTES))
                for at in range(BLOCK_BYTES, block.length, BLOCK_BYTES):
                    part = rest[: block.length - at]
                    self.read_into(block.payload_offset + at, part)
                    hasher.update(part)
                    whole.update(part)
            self._check_digest(block, hasher)
            yield block, first
        if count != self.totals.blocks:
            self.fail(self._size, f"{count} blocks, where the trailer says {self.totals.blocks}")
        if whole.digest() != self._whole:
            self.fail(self._size - 16, "the checksum of the whole file does not match")

    def _check_digest(self, block: Block, hasher: Any) -> None:
        if hasher.intdigest() != block.digest:
            self.fail(
                block.offset, f"the checksum of a block of {block.length} bytes does not match"
            )
