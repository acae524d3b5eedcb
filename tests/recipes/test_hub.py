"""ClientHub: one object per process, one set-up for all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.processes import Channel, release

from shmcache import Cache, CacheFull, InitTimeout, ReentrantInit
from shmcache.recipes import ClientHub
from shmcache.recipes import hub as module


class Client:
    """A client that counts how often it is built in this process."""

    built = 0

    def __init__(self, config: Any = None) -> None:
        type(self).built += 1
        self.config = config
        self.pid = os.getpid()


@pytest.fixture(autouse=True)
def nothing_built() -> None:
    Client.built = 0


@pytest.fixture
def keep(open_cache: Callable[..., Cache]) -> Cache:
    return open_cache(policy="keep")


@pytest.fixture
def hub(keep: Cache) -> ClientHub:
    return ClientHub(keep, "clients")


def test_it_is_the_very_same_object(keep: Cache, hub: ClientHub) -> None:
    client = hub.get("db", Client)
    assert hub.get("db", Client) is client
    assert ClientHub(keep, "clients").get("db", Client) is client, "of another handle, too"
    assert hub.get("broker", Client) is not client
    assert ClientHub(keep, "others").get("db", Client) is not client
    assert Client.built == 3


def test_a_client_that_is_there_outlives_the_cache(open_cache: Any) -> None:
    cache = open_cache()
    hub = ClientHub(cache, "clients")
    client = hub.get("db", Client, setup=lambda: 1)
    cache.close()
    assert hub.get("db", Client, setup=lambda: 1) is client


def test_hubs_of_different_caches_do_not_meet(open_cache: Any) -> None:
    one, other = (ClientHub(open_cache(), "clients") for _ in range(2))
    assert one.get("db", Client) is not other.get("db", Client)


def test_threads_build_it_once(hub: ClientHub) -> None:
    go = threading.Barrier(8)
    got = []

    def ask() -> None:
        go.wait()
        got.append(hub.get("db", Client, setup=lambda: {"n": 1}))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8 and len({id(client) for client in got}) == 1 and Client.built == 1


def test_a_factory_that_raises_is_tried_again(hub: ClientHub) -> None:
    def fail() -> Client:
        raise ConnectionError

    for _ in range(2):
        with pytest.raises(ConnectionError):
            hub.get("db", fail)
    assert isinstance(hub.get("db", Client), Client)


def test_a_set_up_that_raises_is_tried_again(hub: ClientHub) -> None:
    def fail() -> int:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        hub.get("db", Client, setup=fail)
    assert Client.built == 0 and hub.configured("db") is None
    assert hub.get("db", Client, setup=lambda: 5).config == 5
    assert hub.configured("db") == 5


def test_none_is_a_set_up_like_any_other(keep: Cache, hub: ClientHub) -> None:
    calls = []
    assert hub.get("db", Client, setup=lambda: calls.append(1)).config is None
    module._here.clients.clear()  # as in another process
    hub.get("db", Client, setup=lambda: calls.append(1))
    assert calls == [1] and Client.built == 2


def test_a_factory_may_use_other_clients_and_not_its_own(hub: ClientHub) -> None:
    assert hub.get("a", lambda: (hub.get("b", Client), 1))[1] == 1
    with pytest.raises(ReentrantInit, match="'c' of hub 'clients' asks for that very client"):
        hub.get("c", lambda: hub.get("c", Client))
    assert hub.get("c", Client)


def test_forgetting_builds_anew(hub: ClientHub) -> None:
    client = hub.get("db", Client, setup=lambda: 1)
    assert hub.forget("db") and not hub.forget("db")
    again = hub.get("db", Client, setup=lambda: 2)
    assert again is not client and again.config == 2


def test_a_set_up_that_cannot_be_remembered_is_told(
    open_cache: Any,
) -> None:
    cache = open_cache(policy="keep", size="1MiB")
    hub = ClientHub(cache, "clients")
    with pytest.raises(CacheFull, match="no room to remember it"):
        hub.get("db", Client, setup=lambda: bytes(2 << 20))
    with pytest.raises(TypeError):
        hub.get("db", Client, setup=object)
    with pytest.raises(TypeError, match="name of a client"):
        hub.get(7, Client)  # type: ignore[call-overload]


# ------------------------------------------------------------------------------- many processes


def build(channel: Channel, name: str) -> tuple[Any, int]:
    with Cache(name, create=False) as cache:
        hub = ClientHub(cache, "clients")
        channel.sync()

        def set_up() -> dict[str, int]:
            return {"by": cache.incr("set up")}

        clients = {id(hub.get("db", Client, setup=set_up)) for _ in range(3)}
        assert len(clients) == 1
        return hub.get("db", Client, setup=set_up).config, Client.built


def test_each_process_builds_one_and_one_sets_up(keep: Cache, start: Any) -> None:
    workers = [start(build, keep.name) for _ in range(4)]
    release(workers)
    assert [worker.result() for worker in workers] == [({"by": 1}, 1)] * 4
    assert keep["set up"] == 1


def test_a_forked_child_builds_its_own(hub: ClientHub, start: Any) -> None:
    mine = hub.get("db", Client, setup=lambda: "shared")

    def in_child(channel: Channel) -> tuple[bool, Any]:
        theirs = hub.get("db", Client, setup=lambda: "again")
        return theirs.pid == os.getpid() != mine.pid, theirs.config

    assert start(in_child).result() == (True, "shared")
    assert hub.get("db", Client) is mine


def test_a_fork_in_the_middle_of_a_factory_locks_no_child(hub: ClientHub, start: Any) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> Client:
        inside.set()
        assert go_on.wait(30)
        return Client()

    thread = threading.Thread(target=hub.get, args=("db", slow))
    thread.start()
    assert inside.wait(30)

    def in_child(channel: Channel) -> int:
        return hub.get("db", Client).pid

    worker = start(in_child)
    assert worker.result() == worker.pid
    go_on.set()
    thread.join()
    assert hub.get("db", Client).pid == os.getpid()


def set_up_for_ever(channel: Channel, name: str) -> None:
    with Cache(name, create=False) as cache:

        def hang() -> None:
            channel.send("setting up")
            channel.recv()

        ClientHub(cache, "clients").get("db", Client, setup=hang)


def test_a_set_up_whose_process_dies_is_taken_over(keep: Cache, hub: ClientHub, start: Any) -> None:
    victim = start(set_up_for_ever, keep.name)
    assert victim.recv() == "setting up"
    with pytest.raises(InitTimeout):
        hub.get("db", Client, setup=lambda: 1, timeout=0.05)
    timer = threading.Timer(0.05, victim.kill)
    timer.start()
    assert hub.get("db", Client, setup=lambda: 1).config == 1
    timer.join()
