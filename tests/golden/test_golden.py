"""The values of `values.json`, to 1e-10, whatever the versions, the number of threads, and the treatment of denormal numbers."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import pytest

from tests.golden.make import TARGET, VALUES
from tests.reference.problems import problem

WITHIN = 1e-10  # absolute, or relative to a value above 1
QUICK = ("terms of two-dimensions", "terms of denormal", "log-tails")
GOLDEN: dict[str, list[float]] = json.loads(TARGET.read_text(encoding="utf-8"))


def same(found: dict[str, list[float]]) -> None:
    """Each value is where it was."""
    for name, numbers in found.items():
        assert numbers == pytest.approx(GOLDEN[name], rel=WITHIN, abs=WITHIN), name


def test_nothing_is_left_out() -> None:
    assert set(GOLDEN) == set(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_values_stay_where_they_are(name: str) -> None:
    same({name: VALUES[name]()})


def test_an_independent_oracle_is_behind_some() -> None:
    """The oracle's numbers are good to about 1e-11, the golden ones to their tolerance."""
    references = json.loads(files("elbotree").joinpath("selfcheck.json").read_text(encoding="utf-8"))
    seen = 0
    for entry in references:
        if (name := f"terms of {entry['name']}") in GOLDEN:
            assert entry["problem"] == problem(entry["name"])
            expected = [
                entry["terms"][term] for term in ("L", "R1", "R2", "R3", "S1", "S2", "T1", "T2", "T3", "U1", "U2", "U3")
            ]
            assert GOLDEN[name] == pytest.approx(expected, rel=2e-10, abs=2e-10)
            seen += 1
    assert seen >= 4


@pytest.mark.parametrize("threads", ["1", "3"])
def test_values_do_not_depend_on_threads(threads: str) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "ELBOTREE_THREADS")
    call = [sys.executable, "-m", "tests.golden.make", "--print", "--only", *QUICK]
    env = {**os.environ, **dict.fromkeys(names, threads)}
    same(json.loads(subprocess.run(call, env=env, capture_output=True, text=True, check=True).stdout))


@contextmanager
def denormals_are_zero() -> Iterator[None]:
    """Flush-to-zero and denormals-are-zero in this thread's MXCSR register, by eight bytes of x86-64 machine code."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\x0f\xae\x1f\xc3" + b"\x0f\xae\x17\xc3")  # stmxcsr [rdi]; ret; ldmxcsr [rdi]; ret
    start = ctypes.addressof(view := ctypes.c_char.from_buffer(page))
    read, write = (ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))(start + at) for at in (0, 4))
    before, flushed = ctypes.c_uint32(), ctypes.c_uint32()
    read(ctypes.byref(before))
    flushed.value = before.value | 0x8040
    write(ctypes.byref(flushed))
    try:
        yield
    finally:
        write(ctypes.byref(before))
        del view
        page.close()


@pytest.mark.skipif(platform.machine() != "x86_64" or os.name != "posix", reason="sets a register of x86-64")
@pytest.mark.parametrize("name", QUICK)
def test_values_do_not_depend_on_denormal_numbers(name: str) -> None:
    with denormals_are_zero():
        assert 5e-324 * 1.0 == 0.0  # it took
        found = VALUES[name]()
    same({name: found})


def test_a_value_that_moves_is_seen() -> None:
    moved: Any = {"slope": [x + 1e-9 for x in GOLDEN["slope"]]}
    with pytest.raises(AssertionError, match="slope"):
        same(moved)
