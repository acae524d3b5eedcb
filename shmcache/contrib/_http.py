"""What HTTP says of a shared cache (RFC 9111), as functions over ASGI's scopes and headers.

Place: level 6, beneath `asgi.py`. Knows requests and responses; knows no cache, no event loop.
Section numbers are RFC 9111's where no other document is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgpack

from shmcache import errors

__all__ = [
    "PASS",
    "SAFE",
    "Lives",
    "Page",
    "Varies",
    "directives",
    "joined",
    "lifetime",
    "may_look_up",
    "not_modified",
    "unpack",
    "url_of",
    "vary_of",
    "wants_more",
]

Scope = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]

STORABLE: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""Statuses that may be kept without being told to (RFC 9110, 15.1), but 206."""

IF_TOLD: Final = frozenset({302, 303, 307})
"""Statuses that are kept where the response says for how long."""

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing (RFC 9110, 9.2.1)."""

_BY_PASS: Final = frozenset(
    {b"authorization", b"cookie", b"range", b"if-match", b"if-unmodified-since"}
)
"""Request headers that a cache has no answer to, or that make the answer somebody's own."""

_HOP_BY_HOP: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info"),
        *(b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding"),
        b"upgrade",
    }
)
"""Headers of one connection, not of the response (3.1)."""

_ON_304: Final = frozenset(
    {b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary"}
)
"""What a 304 repeats of the response (RFC 9110, 15.4.5)."""

_DIRECTIVE: Final = re.compile(r'([^\s=,;"]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]*)))?')


def joined(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    """All fields of a lower-case name, joined by commas as RFC 9110, 5.3 allows; "" for none."""
    return ", ".join(value.decode("latin-1") for key, value in headers if key.lower() == name)


def directives(field: str) -> dict[str, str]:
    """The directives of a Cache-Control field by lower-case name, the first of each.

    >>> directives('max-age=5, private="a, b", no-store')
    {'max-age': '5', 'private': 'a, b', 'no-store': ''}
    """
    found: dict[str, str] = {}
    for match in _DIRECTIVE.finditer(field):
        found.setdefault(match[1].lower(), match[2] or match[3] or "")
    return found


def _seconds(text: str) -> int:
    """delta-seconds; what is none counts as 0: "stale" (4.2.1)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0


# -------------------------------------------------------------------------------- requests


def may_look_up(scope: Scope) -> bool:
    """Whether a request can be answered from a cache, or its response kept."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    headers = scope["headers"]
    for name, value in headers:
        name = name.lower()
        if name in _BY_PASS or name == b"transfer-encoding":
            return False
        if name == b"content-length" and value.strip() != b"0":
            return False  # a GET with a body: what it asks for is not in its URL
    return "no-store" not in directives(joined(headers, b"cache-control"))


def url_of(scope: Scope) -> str:
    """What tells responses apart: scheme, host, path and query."""
    headers = scope["headers"]
    host = joined(headers, b"host").lower()
    if not host:
        server = scope.get("server") or ("", None)
        host = f"{server[0]}:{server[1]}"
    raw = scope.get("raw_path")
    path = raw.decode("latin-1") if raw else quote(scope["path"])
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{scope.get('scheme', 'http')}://{host}{path}{'?' if query else ''}{query}"


def wants_more(wants: dict[str, str], age: float, lives: float | None) -> bool:
    """Whether a request's directives (5.2.1) ask for a fresher response than one of that age."""
    if "no-cache" in wants:
        return True
    if "max-age" in wants and age > _seconds(wants["max-age"]):
        return True
    fresh = _seconds(wants.get("min-fresh", ""))
    return bool(fresh) and lives is not None and lives - age < fresh


def not_modified(request: Headers, page: Page) -> bool:
    """Whether a conditional request is answered by 304 (4.3.2)."""
    if page.status != 200:
        return False
    tags = joined(request, b"if-none-match")
    if tags:
        mine = joined(page.headers, b"etag").strip().removeprefix("W/")
        return tags.strip() == "*" or (
            bool(mine) and mine in re.findall(r'(?:W/)?("[^"]*")', tags)  # weakly
        )
    since, modified = (
        _date(joined(request, b"if-modified-since")),
        _date(joined(page.headers, b"last-modified")),
    )
    return since is not None and modified is not None and modified <= since


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text) if text else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


# ------------------------------------------------------------------------------- responses


class Lives(NamedTuple):
    """For how long a response is kept."""

    ttl: float | None
    """Seconds; None: for ever."""
    stale: float
    """Seconds after that for which it may be served while it is refreshed."""


def lifetime(status: int, headers: Headers, ttl: float | None, stale: float) -> Lives | None:
    """How long a response to GET is kept (3, 4.2), with `ttl` and `stale` where it does not say;
    None where it must not be."""
    says = directives(joined(headers, b"cache-control"))
    if says.keys() & {"no-store", "private", "no-cache"} or joined(headers, b"set-cookie"):
        return None
    if vary_of(headers) is None:
        return None
    if joined(headers, b"content-type").lower().startswith("text/event-stream"):
        return None  # never ends
    told = _told(says, headers)
    if status not in STORABLE and (told is None or status not in IF_TOLD):
        return None
    if told is not None:
        ttl = told - _seconds(joined(headers, b"age").strip())
        if ttl <= 0:
            return None
    if says.keys() & {"must-revalidate", "proxy-revalidate", "s-maxage"}:
        stale = 0.0
    elif "stale-while-revalidate" in says:
        stale = float(_seconds(says["stale-while-revalidate"]))
    return Lives(ttl, stale)


def _told(says: dict[str, str], headers: Headers) -> float | None:
    """The lifetime that a response states (4.2.1), in seconds."""
    for directive in ("s-maxage", "max-age"):
        if directive in says:
            return float(_seconds(says[directive]))
    expires = joined(headers, b"expires")
    if not expires:
        return None
    at = _date(expires)
    date = _date(joined(headers, b"date")) or datetime.now(at.tzinfo if at else None)
    return 0.0 if at is None else (at - date).total_seconds()


def vary_of(headers: Headers) -> tuple[str, ...] | None:
    """The request headers that a response depends on, sorted; None for ``*``."""
    names = {name.strip().lower() for name in joined(headers, b"vary").split(",")} - {""}
    return None if "*" in names else tuple(sorted(names))


# -------------------------------------------------------------------------- what is stored


@dataclass(frozen=True, slots=True)
class Page:
    """A response.

    Attributes:
        status: its status.
        headers: those that outlive the connection; without Age.
        body: all of it.
        made_at: when its age was 0, Unix time.
        lives: seconds that it is fresh from then on; None: for ever.
    """

    status: int
    headers: Headers
    body: bytes
    made_at: float
    lives: float | None

    @classmethod
    def of(cls, status: int, headers: Headers, body: bytes, ttl: float | None, now: float) -> Page:
        """The response as it is stored `now`, to be fresh for `ttl` seconds."""
        age = _seconds(joined(headers, b"age").strip())
        gone = _HOP_BY_HOP | {b"age"}
        gone |= {
            name.strip().lower().encode("latin-1")
            for name in joined(headers, b"connection").split(",")
        }
        kept = [(name, value) for name, value in headers if name.lower() not in gone]
        if status not in (204, 304) and not joined(kept, b"content-length"):
            kept.append((b"content-length", str(len(body)).encode()))
        return cls(status, kept, body, now - age, None if ttl is None else ttl + age)

    def age(self, now: float) -> int:
        """Whole seconds since it was made."""
        return max(0, int(now - self.made_at))

    def pack(self) -> bytes:
        """As bytes, for a cache of whatever codec."""
        fields = (self.status, self.headers, self.body, self.made_at, self.lives)
        return bytes(msgpack.packb(fields))

    def on_304(self) -> Headers:
        """The headers of a 304 that stands for it."""
        return [(name, value) for name, value in self.headers if name.lower() in _ON_304]


@dataclass(frozen=True, slots=True)
class Varies:
    """In place of a response: it depends on request headers, and is under their values.

    Attributes:
        nonce: drawn when this was found out. It is part of the responses' keys, so that removing
            this one entry removes all of them.
        names: of the headers, sorted.
    """

    nonce: str
    names: tuple[str, ...]

    def pack(self) -> bytes:
        """As bytes."""
        return bytes(msgpack.packb((self.nonce, self.names)))

    def key(self, url: str, headers: Headers) -> tuple[str, ...]:
        """Where the response to a request is."""
        values = (joined(headers, name.encode("latin-1")).strip() for name in self.names)
        return (url, self.nonce, *values)


PASS: Final = b""
"""In place of a response: it is not to be kept, so nobody waits for it."""


def unpack(packed: object) -> Page | Varies | None:
    """What `pack` made; None for PASS. DecodeError for anything else."""
    if packed == PASS:
        return None
    try:
        if not isinstance(packed, bytes):
            raise TypeError(f"is {type(packed).__name__}, not bytes")
        fields = msgpack.unpackb(packed)
        if len(fields) == 2:
            nonce, names = fields
            return Varies(str(nonce), tuple(str(name) for name in names))
        status, headers, body, made_at, lives = fields
        pairs = [(bytes(name), bytes(value)) for name, value in headers]
        return Page(int(status), pairs, bytes(body), float(made_at), lives)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise errors.DecodeError(
            f"an entry of the response cache is no response ({error}): somebody else wrote it; "
            "give the middleware a namespace of its own (name=...)"
        ) from error
