"""Peers that keep a file: an embedded database in /dev/shm, given up on durability."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from bench.adapters.base import Absent, Adapter, encode_objects

SHM = "/dev/shm"


class _Stored(Adapter):
    """A folder of its own in /dev/shm, gone at the end."""

    prefix: ClassVar[str]

    def open(self, room: int, *, objects: bool = False) -> None:
        """See `Peer`."""
        self._room, self._objects = room, objects
        self._folder = tempfile.mkdtemp(prefix=f"shmcache-bench-{self.prefix}-", dir=SHM)
        try:
            self._connect(create=True)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def attach(self) -> None:
        """See `Peer`."""
        self._connect(create=False)

    def footprint(self) -> int:
        """What the files take, by their blocks."""
        return sum(p.stat().st_blocks * 512 for p in Path(self._folder).rglob("*") if p.is_file())

    def close(self) -> None:
        """See `Peer`."""
        self._disconnect()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self, *, create: bool) -> None:
        raise NotImplementedError

    def _disconnect(self) -> None:
        raise NotImplementedError


class Lmdb(_Stored):
    """py-lmdb: a B+tree in a memory map, a transaction a call."""

    name = "py-lmdb"
    about = "lmdb in /dev/shm, sync=False, metasync=False, writemap=True; a transaction a call"
    prefix = "lmdb"

    def _connect(self, *, create: bool) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise Absent(str(error)) from error

        if not create:
            self._environment.close()  # the parent's, inherited; the library opens it once only
        environment = self._environment = lmdb.open(
            self._folder,
            map_size=max(1 << 30, 8 * self._room),  # sparse; a reader off its CPU pins pages
            sync=False,
            metasync=False,
            writemap=True,
            max_readers=256,
        )
        begin = environment.begin

        def get(key: str) -> bytes | None:
            with begin() as transaction:
                found: bytes | None = transaction.get(key.encode())
            return found

        def contains(key: str) -> bool:
            with begin(buffers=True) as transaction:
                return transaction.get(key.encode()) is not None

        def put(key: str, value: bytes) -> None:
            with begin(write=True) as transaction:
                transaction.put(key.encode(), value)

        def delete(key: str) -> None:
            with begin(write=True) as transaction:
                transaction.delete(key.encode())

        def incr(key: str) -> int:
            name = key.encode()
            with begin(write=True) as transaction:
                count = int.from_bytes(transaction.get(name), "little") + 1
                transaction.put(name, count.to_bytes(8, "little"))
            return count

        def get_many(keys: Sequence[str]) -> dict[str, bytes]:
            with begin() as transaction:
                find = transaction.get
                return {key: find(key.encode()) for key in keys}

        def set_many(pairs: Mapping[str, bytes]) -> None:
            with begin(write=True) as transaction:
                put_one = transaction.put
                for key, value in pairs.items():
                    put_one(key.encode(), value)

        self.get = self.get_miss = get
        self.contains, self.set, self.delete, self.incr = contains, put, delete, incr
        self.get_many, self.set_many = get_many, set_many
        if self._objects:
            encode_objects(self)

    def start_counter(self, key: str) -> None:
        """See `Peer`."""
        with self._environment.begin(write=True) as transaction:
            transaction.put(key.encode(), bytes(8))

    def _disconnect(self) -> None:
        self._environment.close()


class Sqlite(_Stored):
    """The standard library's sqlite3 as a key-value store."""

    name = "sqlite3"
    about = (
        "sqlite3 in /dev/shm, WAL, synchronous=OFF, one table WITHOUT ROWID; "
        "a transaction a call, busy timeout 5 s"
    )
    prefix = "sqlite"

    def _connect(self, *, create: bool) -> None:
        connection = self._connection = sqlite3.connect(
            f"{self._folder}/cache.db", timeout=5.0, isolation_level=None, cached_statements=256
        )
        run = connection.execute
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=OFF")
        if create:
            run("CREATE TABLE cache (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
        select = "SELECT value FROM cache WHERE key = ?"
        upsert = "INSERT OR REPLACE INTO cache VALUES (?, ?)"

        def get(key: str) -> Any:
            row = run(select, (key,)).fetchone()
            return None if row is None else row[0]

        def contains(key: str) -> bool:
            found = run("SELECT 1 FROM cache WHERE key = ?", (key,)).fetchone()
            return found is not None

        def put(key: str, value: bytes) -> None:
            run(upsert, (key, value))

        def delete(key: str) -> None:
            run("DELETE FROM cache WHERE key = ?", (key,))

        def incr(key: str) -> int:
            count: int = run(
                "UPDATE cache SET value = value + 1 WHERE key = ? RETURNING value", (key,)
            ).fetchone()[0]
            return count

        def get_many(keys: Sequence[str]) -> dict[str, bytes]:
            marks = ",".join("?" * len(keys))
            rows = run(f"SELECT key, value FROM cache WHERE key IN ({marks})", keys)
            return dict(rows.fetchall())

        def set_many(pairs: Mapping[str, bytes]) -> None:
            run("BEGIN IMMEDIATE")
            try:
                connection.executemany(upsert, pairs.items())
            except BaseException:
                run("ROLLBACK")
                raise
            run("COMMIT")

        self.get = self.get_miss = get
        self.contains, self.set, self.delete, self.incr = contains, put, delete, incr
        self.get_many, self.set_many = get_many, set_many
        if self._objects:
            encode_objects(self)

    def start_counter(self, key: str) -> None:
        """See `Peer`."""
        self._connection.execute("INSERT OR REPLACE INTO cache VALUES (?, 0)", (key,))

    def _disconnect(self) -> None:
        self._connection.close()


class DiskCache(_Stored):
    """diskcache: sqlite3 with eviction, and files for large values."""

    name = "diskcache"
    about = "diskcache.Cache in /dev/shm, its defaults but a size limit with room for all"
    prefix = "diskcache"

    def _connect(self, *, create: bool) -> None:
        try:
            import diskcache
        except ImportError as error:
            raise Absent(str(error)) from error

        cache = self._cache = diskcache.Cache(
            self._folder, size_limit=8 * self._room + (64 << 20), timeout=5.0
        )

        def set_many(pairs: Mapping[str, Any]) -> None:
            put = cache.set
            with cache.transact(retry=True):
                for key, value in pairs.items():
                    put(key, value)

        self.get = self.get_miss = cache.get
        self.contains = cache.__contains__
        self.set, self.delete, self.incr = cache.set, cache.delete, cache.incr
        self.set_many = set_many

    def _disconnect(self) -> None:
        self._cache.close()
