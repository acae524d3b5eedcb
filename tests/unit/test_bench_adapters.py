"""Every peer of the bench stores what it is given; those that are not installed are skipped."""

from __future__ import annotations

import pytest

from bench.adapters import OPERATIONS, PEERS, Absent, Peer, opened

DOCUMENT = {"id": 7, "name": "Ada", "tags": ["a", "b"]}


@pytest.fixture(params=PEERS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Peer]:
    return request.param


@pytest.mark.parametrize(
    "value", [b"x" * 100, b"y" * 65_536, DOCUMENT], ids=["100B", "64K", "dict"]
)
def test_a_peer_returns_what_was_stored(kind: type[Peer], value: object) -> None:
    skipped: list[str] = []
    with opened([kind], 4 << 20, skipped, objects=isinstance(value, dict)) as peers:
        if not peers:
            pytest.skip(skipped[0])
        (peer,) = peers
        pairs = {f"user:profile:{n:07d}": value for n in range(5)}
        peer.fill(pairs)
        assert peer.get is not None
        assert [peer.get(key) for key in pairs] == [value] * 5
        if peer.get_miss is not None:
            assert peer.get_miss("user:profile:9999999") is None
        if peer.set is not None:
            peer.set("user:profile:0000005", value)
            assert peer.get("user:profile:0000005") == value
        if peer.contains is not None:
            assert peer.contains("user:profile:0000001")
            assert not peer.contains("user:profile:9999999")
        if peer.delete is not None and peer.get_miss is not None:
            peer.delete("user:profile:0000001")
            assert peer.get_miss("user:profile:0000001") is None
        if peer.set_many is not None:
            peer.set_many(pairs)
        if peer.get_many is not None:
            found = peer.get_many(list(pairs))
            assert (list(found.values()) if isinstance(found, dict) else found) == [value] * 5
        if peer.incr is not None:
            peer.start_counter("counter:0000000000")
            assert [peer.incr("counter:0000000000") for _ in range(3)] == [1, 2, 3]
        footprint = peer.footprint()
        assert footprint is None or footprint > 0


def test_an_absent_peer_is_skipped_with_its_reason() -> None:
    class Missing:
        name = "missing"

        def open(self, room: int, *, objects: bool = False) -> None:
            raise Absent("not installed")

    skipped: list[str] = []
    with opened([Missing], 1, skipped) as peers:  # type: ignore[list-item]
        assert peers == []
    assert skipped == ["missing: not installed"]


def test_every_peer_declares_its_operations() -> None:
    assert len({kind.name for kind in PEERS}) == len(PEERS)
    for kind in PEERS:
        assert kind.about
        assert all(hasattr(kind, operation) for operation in OPERATIONS)
