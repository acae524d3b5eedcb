"""Values that carry their own proof: a reader can tell a right one from a torn or foreign one."""

from __future__ import annotations

import hashlib
import random
import struct

_HEAD = struct.Struct("<QII")
_DIGEST = 16
OVERHEAD = _HEAD.size + _DIGEST


def make(key: str, stamp: int, size: int) -> bytes:
    """A payload of ``size`` bytes (at least ``OVERHEAD``) for ``key``.

    ``stamp`` (64 bits) tells writes apart.
    The body differs from byte to byte and from stamp to stamp, so that any mixture of two payloads
    fails its digest.
    """
    body_size = max(size - OVERHEAD, 0)
    head = _HEAD.pack(stamp, body_size, len(key))
    body = random.Random(stamp).randbytes(min(body_size, 64))
    if body:
        body = (body * (body_size // len(body) + 1))[:body_size]
    return head + body + _digest(key, head, body)


def check(key: str, payload: object) -> int:
    """The stamp of a payload of ``key``; AssertionError if it is not one, whole."""
    assert isinstance(payload, bytes), f"{key}: {type(payload).__name__} is no payload"
    assert len(payload) >= OVERHEAD, f"{key}: {len(payload)} bytes are no payload"
    head, body, digest = payload[: _HEAD.size], payload[_HEAD.size : -_DIGEST], payload[-_DIGEST:]
    stamp, body_size, _ = _HEAD.unpack(head)
    assert body_size == len(body), f"{key}: body of {len(body)} bytes, header says {body_size}"
    assert digest == _digest(key, head, body), f"{key}: torn or foreign payload, stamp {stamp}"
    assert isinstance(stamp, int)
    return stamp


def _digest(key: str, head: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(head + body, digest_size=_DIGEST, key=key.encode()[:64]).digest()
