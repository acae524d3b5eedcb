"""The record of counted instructions: how a callgrind file is read, and what counts as more."""

from __future__ import annotations

import pytest

from bench import counting
from bench.counting import Counted, compare, ours, parse, part_of

CALLGRIND = """\
# callgrind format
events: Ir

ob=/x/_binding.cpython-311-x86_64-linux-gnu.so
fl=/x/build/binding.c
fn=__pyx_f_fetch_hit
10 5
fi=/x/shmcache/_core/src/read.h
20 7
fe=/x/build/binding.c
11 1
cob=/lib/libc.so.6
cfn=memcpy
calls=1 0
12 100

ob=/lib/libc.so.6
fl=memmove.S
fn=__memcpy_avx_unaligned
30 100
"""


def test_costs_are_summed_by_place_and_those_of_callees_are_theirs() -> None:
    binding = "_binding.cpython-311-x86_64-linux-gnu.so"
    assert parse(CALLGRIND.splitlines()) == {
        Counted(binding, "binding.c", "__pyx_f_fetch_hit"): 6,
        Counted(binding, "read.h", "__pyx_f_fetch_hit"): 7,
        Counted("libc.so.6", "memmove.S", "__memcpy_avx_unaligned"): 100,
    }


@pytest.mark.parametrize(
    ("place", "part"),
    [
        (("_binding.so", "hash.h", "__pyx_f_encode_key"), "hash"),
        (("_binding.so", "read.h", "shm_find"), "probe"),
        (("_binding.so", "read.h", "__pyx_f_Reads_fetch_hit"), "recheck"),
        (("_binding.so", "binding.c", "__pyx_pw_Reads_get"), "binding"),
        (("_binding.so", "lock.h", "shm_lock"), "lock"),
        (("_binding.so", "log.h", "shm_set"), "write"),
        (("libpython3.11.so.1.0", "ceval.c", "_PyEval_EvalFrameDefault"), "interpreter"),
        (("libpython3.11.so.1.0", "obmalloc.c", "_PyObject_Malloc"), "decode"),
        (("libc.so.6", "x.S", "__memcpy_avx_unaligned"), "copy"),
        (("libc.so.6", "x.S", "__memcmp_avx2_movbe"), "probe"),
        (("libc.so.6", "malloc.c", "_int_malloc"), "decode"),
    ],
)
def test_a_place_belongs_to_a_part(place: tuple[str, str, str], part: str) -> None:
    assert part_of(Counted(*place)) == part


def test_only_more_of_our_own_code_is_told() -> None:
    before = {"get": {"interpreter": 100.0, "probe": 200.0, "decode": 50.0}}
    assert ours(before["get"]) == 200
    assert list(compare(before, before)) == []
    assert list(compare(before, {"get": {"probe": 204.0}})) == []
    assert list(compare(before, {"get": {"probe": 200.0, "decode": 500.0}})) == []
    (told,) = compare(before, {"get": {"probe": 205.0}})
    assert told == "get: 200 instructions of our own became 205 (probe 200 -> 205)"
    assert list(compare(before, {"another": {"probe": 1e6}})) == []


def test_the_record_has_every_variant() -> None:
    record = counting.recorded()
    assert record is not None
    assert set(record["instructions"]) == set(counting.VARIANTS[1:])
    assert set(record["environment"]) == set(counting.environment())


@pytest.mark.nightly
def test_a_get_takes_no_more_instructions_than_recorded() -> None:
    record = counting.recorded()
    assert record is not None
    if record["environment"] != counting.environment():
        pytest.skip(f"the record is of {record['environment']}")
    try:
        counts = counting.count()
    except counting.Unavailable as error:
        pytest.skip(str(error))
    assert list(compare(record["instructions"], counts)) == []
