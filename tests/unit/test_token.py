"""Cancellation tokens in one process: what each call returns and refuses, waiting, damage."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.forks import FORKS, in_child
from support.names import unique_name

from shmcache import (
    Cache,
    CacheClosed,
    CacheNotFound,
    CancellationToken,
    Cancelled,
    CorruptSegment,
    LimitReached,
    _core,
)

LAYOUT = _core.LAYOUT


def test_a_new_token_is_not_cancelled(cache: Cache) -> None:
    token = cache.token("shutdown")
    assert isinstance(token, CancellationToken)
    assert token.name == "shutdown"
    assert token.cancelled is False
    assert token.reason is None
    assert token.wait(0) is False
    token.raise_if_cancelled()
    token.reset()
    assert not token.cancelled


def test_the_first_reason_stays(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    token, other = cache.token("t"), open_cache(cache.name).token("t")
    assert token.cancel("deploy") is True
    assert other.cancelled is True
    assert other.cancel("too late") is False
    assert token.reason == other.reason == "deploy"
    assert other.wait() is True
    with pytest.raises(Cancelled, match=r"'t'.*deploy"):
        other.raise_if_cancelled()


def test_without_a_reason(cache: Cache) -> None:
    token = cache.token("t")
    token.cancel()
    assert token.cancelled
    assert token.reason is None
    token.cancel("late")
    assert token.reason is None
    with pytest.raises(Cancelled, match="'t'"):
        token.raise_if_cancelled()


@pytest.mark.parametrize("reason", ["", "x", "é" * 64, "x" * 128])
def test_reasons_come_back(cache: Cache, reason: str) -> None:
    token = cache.token("t")
    token.cancel(reason)
    assert token.reason == reason


def test_long_reasons_are_cut_between_characters(cache: Cache) -> None:
    one, other = cache.token("one"), cache.token("other")
    one.cancel("x" * 1000)
    assert one.reason == "x" * 128
    other.cancel("x" + "é" * 100)
    assert other.reason == "x" + "é" * 63


def test_a_reason_of_another_type(cache: Cache) -> None:
    with pytest.raises(TypeError, match="int"):
        cache.token("t").cancel(5)  # type: ignore[arg-type]
    assert not cache.token("t").cancelled


def test_reset_and_cancel_again(cache: Cache) -> None:
    token = cache.token("t")
    for turn in range(5):
        assert token.cancel(f"turn {turn}")
        assert token.reason == f"turn {turn}"
        token.reset()
        assert not token.cancelled
        assert token.reason is None


def test_children_are_cancelled_with_their_parents(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    root = cache.token("root")
    child = root.child("child")
    grandchild = child.child("grandchild")
    sibling = open_cache(cache.name).token("root").child("sibling")
    assert child.name == "child"
    assert child.cancel("only here")
    assert (root.cancelled, sibling.cancelled) == (False, False)
    assert grandchild.cancelled
    assert grandchild.reason == "only here"
    assert root.cancel("all")
    assert sibling.cancelled
    assert sibling.reason == "all"
    assert child.reason == "only here", "the first reason stays"
    assert sibling.cancel("own") is False, "it was cancelled with its parent"
    root.reset()
    assert not sibling.cancelled
    assert grandchild.cancelled
    child.reset()
    assert not grandchild.cancelled


def test_a_child_is_the_same_for_everybody_and_no_other(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    cache.token("a").child("x").cancel("of a")
    assert open_cache(cache.name).token("a").child("x").reason == "of a"
    assert not cache.token("b").child("x").cancelled
    assert not cache.token("x").cancelled


def test_sixty_four_names(cache: Cache) -> None:
    tokens = [cache.token(f"token {n}") for n in range(60)]
    tokens += [tokens[0].child(f"child {n}") for n in range(4)]
    with pytest.raises(LimitReached, match=r"'one more'.* has 64"):
        cache.token("one more")
    with pytest.raises(LimitReached):
        tokens[0].child("one more")
    tokens[7].cancel()
    assert [n for n, token in enumerate(tokens) if token.cancelled] == [7]
    assert cache.token("token 7").cancelled


def test_a_chain_as_deep_as_there_are_tokens(cache: Cache) -> None:
    token = root = cache.token("0")
    for n in range(1, 64):
        token = token.child(str(n))
    assert not token.cancelled
    root.cancel("deep")
    assert token.reason == "deep"
    with pytest.raises(LimitReached):
        token.child("64")


@pytest.mark.parametrize("name", ["", "x" * 64, "a\0b"])
def test_names_that_are_none(cache: Cache, name: str) -> None:
    with pytest.raises(ValueError, match="token"):
        cache.token(name)
    with pytest.raises(ValueError, match="token"):
        cache.token("parent").child(name)


def test_a_token_is_no_slot(cache: Cache) -> None:
    cache.token("config").cancel()
    assert cache.slot("config").load() is None
    assert len(cache) == 0


def test_after_close_unlink_and_reopen(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    child = cache.token("t").child("c")
    child.cancel("old")
    cache.close()
    calls: list[Callable[[], object]] = [
        lambda: child.cancelled,
        lambda: child.reason,
        child.cancel,
        child.reset,
        child.wait,
        lambda: asyncio.run(child.wait_async()),
    ]
    for call in calls:
        with pytest.raises(CacheClosed):
            call()
    cache.reopen()
    assert not child.cancelled, "the token of that name in the new segment"
    cache.unlink()
    for call in calls:
        with pytest.raises(CacheNotFound):
            call()


@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_in_a_forked_child(cache: Cache, fork: Callable[[], int]) -> None:
    token = cache.token("t").child("c")
    assert in_child(fork, lambda: not token.cancelled and token.cancel("by the child"))
    assert token.reason == "by the child"


def test_pickles_to_the_token_of_that_name(cache: Cache) -> None:
    token = cache.token("t").child("c")
    token.cancel("why")
    copy = pickle.loads(pickle.dumps(token))
    try:
        assert copy.reason == "why"
        assert "t/c" in repr(copy)
    finally:
        copy._cache.close()


# ------------------------------------------------------------------------------- waiting


def test_wait_is_woken_through_a_parent(cache: Cache) -> None:
    root = cache.token("root")
    found = []
    thread = threading.Thread(target=lambda: found.append(root.child("a").child("b").wait(60)))
    thread.start()
    root.cancel()
    thread.join(30)
    assert found == [True]


def test_wait_times_out_and_costs_next_to_nothing(cache: Cache) -> None:
    before = time.thread_time()
    began = time.monotonic()
    assert cache.token("t").wait(1.0) is False
    assert 1.0 <= time.monotonic() - began < 30
    assert time.thread_time() - before < 0.02  # 0.1% of a core as measured
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            cache.token("t").wait(bad)


def test_a_signal_handler_may_cancel_what_is_waited_for(cache: Cache) -> None:
    token = cache.token("t")
    before = signal.signal(signal.SIGUSR1, lambda number, frame: token.cancel("signal"))
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        assert token.wait(30)
        assert token.reason == "signal"
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_waiting_ends_by_an_exception_of_a_signal_handler(cache: Cache) -> None:
    # Not what was inherited: a shell that starts a run in the background ignores SIGINT in it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            cache.token("t").wait(30)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_whoever_waits_notices_that_the_handle_is_closed(open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    token = cache.token("t")
    found: list[BaseException] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        try:
            token.wait()
        except CacheClosed as closed:
            found.append(closed)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait(30)
    cache.close()
    thread.join(30)
    assert len(found) == 1


def test_wait_async_never_blocks_the_loop(cache: Cache) -> None:
    token = cache.token("t")

    async def main() -> int:
        turns = 0
        waiting = [asyncio.create_task(token.child(str(n)).wait_async()) for n in range(3)]
        while turns < 20:
            await asyncio.sleep(0)
            turns += 1
        assert not any(task.done() for task in waiting)
        waiting[0].cancel()
        token.cancel()
        await asyncio.wait_for(asyncio.gather(*waiting[1:]), 30)
        assert waiting[0].cancelled()
        await token.wait_async()
        return turns

    assert asyncio.run(main()) == 20


# -------------------------------------------------------------------------------- damage


@contextlib.contextmanager
def token_bytes(cache: Cache, number: int = 0) -> Iterator[memoryview]:
    attachment: Any = cache._attachment
    geometry = attachment.superblock.geometry
    size = LAYOUT["sizeof.shm_token"]
    start = geometry.tokens_off + number * size
    with memoryview(attachment.mapping) as all_bytes:
        yield all_bytes[start : start + size]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_flipped_byte_neither_cancels_nor_invents_a_reason(
    open_cache: Callable[..., Cache], cancelled: bool
) -> None:
    cache = open_cache()
    cache.token("t").cancel("the reason")
    if not cancelled:
        cache.token("t").reset()
    expected = (cancelled, "the reason" if cancelled else None)
    with token_bytes(cache) as data:
        for at in range(len(data)):
            for flip in (0x01, 0xFF):
                data[at] ^= flip
                try:
                    token = cache.token("t")
                    assert (token.cancelled, token.reason) == expected, f"byte {at} ^ {flip:#x}"
                except CorruptSegment as error:
                    assert "token" in str(error)
                data[at] ^= flip


def test_a_damaged_state_is_healed_by_a_reset(cache: Cache) -> None:
    token = cache.token("t")
    for _ in range(2):
        token.cancel("x")
        with token_bytes(cache) as data:
            data[LAYOUT["shm_token.state"] + 1] ^= 1
        for call in (lambda: token.cancelled, lambda: token.reason, token.cancel):
            with pytest.raises(CorruptSegment, match=r"token 't'.*reset"):
                call()
        token.reset()
        assert not token.cancelled


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("shm_token.state", "INV-TOKEN-REASON"),
        ("shm_token.reason", "INV-TOKEN-REASON"),
        ("shm_token.record", "INV-RECORD-SEAL"),
    ],
)
def test_verify_finds_the_damage(cache: Cache, field: str, name: str) -> None:
    cache.token("whole").cancel("whole")
    cache.token("t").cancel("reason")
    assert cache.verify() == []
    with token_bytes(cache, 1) as data:
        data[LAYOUT[field] + 1] ^= 1
    (finding,) = cache.verify()
    assert (finding.invariant, finding.token, finding.shard) == (name, 1, None)
    assert str(finding).startswith(f"{name} does not hold in token 1: ")


# --------------------------------------------------------------------- against a model


class TokenMachine(RuleBasedStateMachine):
    """Two handles, a tree of tokens, against a dict of reasons."""

    paths = st.sampled_from([("a",), ("b",), ("a", "x"), ("a", "y"), ("a", "x", "z"), ("b", "x")])

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[Cache] = []
        self.reasons: dict[tuple[str, ...], str | None] = {}

    @initialize()
    def begin(self) -> None:
        name = unique_name("token-model")
        self.handles = [Cache(name, size="1MiB"), Cache(name)]

    def teardown(self) -> None:
        for handle in self.handles:
            handle.close()

    def token(self, path: tuple[str, ...], handle: int) -> CancellationToken:
        token = self.handles[handle].token(path[0])
        for name in path[1:]:
            token = token.child(name)
        return token

    def nearest(self, path: tuple[str, ...]) -> tuple[str, ...] | None:
        chain = (path[:n] for n in range(len(path), 0, -1))
        return next((part for part in chain if part in self.reasons), None)

    @rule(path=paths, handle=st.integers(0, 1), reason=st.one_of(st.none(), st.text(max_size=30)))
    def cancel(self, path: tuple[str, ...], handle: int, reason: str | None) -> None:
        first = self.nearest(path) is None
        assert self.token(path, handle).cancel(reason) is first
        if first:
            self.reasons[path] = reason

    @rule(path=paths, handle=st.integers(0, 1))
    def reset(self, path: tuple[str, ...], handle: int) -> None:
        self.token(path, handle).reset()
        self.reasons.pop(path, None)

    @rule(path=paths, handle=st.integers(0, 1))
    def look(self, path: tuple[str, ...], handle: int) -> None:
        token, nearest = self.token(path, handle), self.nearest(path)
        assert token.wait(0) is (nearest is not None)

    @invariant()
    def every_token_is_as_the_model_says(self) -> None:
        for path in list(self.reasons):
            nearest = self.nearest(path)
            assert nearest is not None
            for handle in range(len(self.handles)):
                token = self.token(path, handle)
                assert token.cancelled
                assert token.reason == self.reasons[nearest]


TestTokenMachine = TokenMachine.TestCase
TestTokenMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
