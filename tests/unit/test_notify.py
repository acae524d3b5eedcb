"""sd_notify's datagrams, at a real socket: a path, an abstract name, and all that can be wrong."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from support.daemons import NotifySocket

from shmcache.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "path":
        return str(tmp_path / "notify")
    return f"@shmcache-test/{os.getpid()}/{time.monotonic_ns()}"


def test_each_word_is_one_datagram(address: str) -> None:
    with NotifySocket(address) as manager:
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"})
        assert notifier.enabled
        assert notifier.ready("all\nis well")
        assert manager.next() == {"READY": "1", "STATUS": "all is well"}
        before = time.monotonic_ns() // 1000
        assert notifier.reloading()
        said = manager.next()
        assert said.keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert before <= int(said["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert notifier.watchdog()
        assert manager.next() == {"WATCHDOG": "1"}
        assert notifier.status("a = b")
        assert manager.next() == {"STATUS": "a = b"}
        assert notifier.extend_timeout(1.5)
        assert manager.next() == {"EXTEND_TIMEOUT_USEC": "1500000"}
        assert notifier.patience(600)
        assert manager.next() == {"WATCHDOG_USEC": "600000000"}
        assert notifier.stopping("bye")
        assert manager.next() == {"STOPPING": "1", "STATUS": "bye"}


def test_without_a_service_manager_it_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({})
    assert not notifier.enabled
    assert not notifier.ready("x")
    assert not notifier.watchdog()
    assert not notifier.patience(1)
    assert caplog.text == ""


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative/path", "@"])
def test_other_addresses_are_left_alone(address: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier({"NOTIFY_SOCKET": address}).ready()
    assert address in caplog.text


def test_a_manager_that_is_gone_breaks_nothing_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = str(tmp_path / "nobody")
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    assert not notifier.ready()
    assert not notifier.watchdog()
    assert caplog.text.count(address) == 1
    with NotifySocket(address) as manager:  # it was restarted
        assert notifier.watchdog()
        assert manager.next() == {"WATCHDOG": "1"}


def test_a_manager_that_does_not_read_holds_nobody_up_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shmcache.notify.SEND_TIMEOUT_S", 0.05)
    address = str(tmp_path / "deaf")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(address)
        notifier = Notifier({"NOTIFY_SOCKET": address})
        assert not all(notifier.status("x" * 1000) for _ in range(10_000))  # the queue is full
        began = time.monotonic()
        assert not notifier.ready()
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("500", "mine", 0.0005),
        ("30000000", "1", None),
        ("", None, None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog_is_ours_where_the_pid_is(
    usec: str, pid: str | None, seconds: float | None
) -> None:
    variables = {"WATCHDOG_USEC": usec}
    if pid is not None:
        variables["WATCHDOG_PID"] = str(os.getpid()) if pid == "mine" else pid
    assert Notifier(variables).watchdog_s == seconds
