"""`shmcache bench`: figures in seconds, nothing left behind."""

from __future__ import annotations

import json

import pytest
from support import names
from support.cli import invoke

from shmcache import measure
from shmcache.cli.bench import BLIND_SPOTS


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch, cache_name: str) -> None:
    """The measured cache under a name that the tests look after."""
    monkeypatch.setattr(measure, "_own_name", lambda: cache_name)


def test_it_prints_a_table_and_what_it_cannot_see(cache_name: str) -> None:
    done = invoke("bench", "--seconds", "0.1")
    for word in ("get", "set", "incr", "shmcache", "dict", "lru_cache", "x dict"):
        assert word in done.stdout
    for spot in BLIND_SPOTS:
        assert spot in done.stdout
    assert not names.leftovers(cache_name)


def test_its_ratios_are_those_of_its_times() -> None:
    report = json.loads(invoke("bench", "--seconds", "0.1", "--json").stdout)
    figures = {(f["operation"], f["contestant"]): f for f in report["figures"]}
    assert len(figures) == len(report["figures"]) == 7
    for (operation, _), figure in figures.items():
        assert figure["nanoseconds"] > 0
        plain = figures[operation, "dict"]
        assert figure["ratio"] == pytest.approx(figure["nanoseconds"] / plain["nanoseconds"])
    assert report["rounds"] >= 5


def test_progress_goes_from_0_to_1() -> None:
    seen: list[float] = []
    measured = measure.measure(0.05, on_progress=seen.append)
    assert len(seen) == measured.rounds
    assert seen == sorted(seen)
    assert 0 < seen[0] <= seen[-1] <= 1


def test_a_cache_that_is_in_the_way_is_left_alone(cache_name: str, open_cache: object) -> None:
    assert callable(open_cache)
    cache = open_cache(cache_name, size="1MiB")
    cache["a"] = 1
    assert cache_name in invoke("bench", "--seconds", "0", status=1).stderr
    assert cache["a"] == 1
