"""BLAS has one thread while ours work, and what it had before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import elbotree as et
from elbotree.runtime.blas import one_thread
from elbotree.runtime.pair_blocks import Workbench
from tests.reference.problems import problem


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    np.linalg.norm(np.eye(2) @ np.eye(2))  # loads it
    with threadpool_limits(2, user_api="blas"):
        if "openblas" not in np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]:
            pytest.skip("numpy has a BLAS of its own, not the OpenBLAS of its wheels")
        assert threads() == {2}  # or nothing here could fail
        yield


def test_contexts_that_overlap() -> None:
    first, second = ExitStack(), ExitStack()
    first.enter_context(one_thread())
    second.enter_context(one_thread())
    first.close()
    assert threads() == {1}
    second.close()
    assert threads() == {2}


def test_an_error_inside() -> None:
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert threads() == {2}


def test_pairs_are_walked_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    work = Workbench.work

    def watched(self: Workbench, *given: object) -> object:
        seen.append(threads())
        return work(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Workbench, "work", watched)
    et.evaluate(et.Problem.from_dict(problem("relu")), tol=1e-4)
    assert seen
    assert all(found == {1} for found in seen)
    assert threads() == {2}
