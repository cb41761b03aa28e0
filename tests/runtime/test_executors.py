"""Sums over pairs by executors: the same bits as in this process, whoever makes them, and a clear error where nobody can.
`tests/elbotree/test_cluster.py` does the same on Dask and MPI."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import elbotree as et
from elbotree.runtime import executors, pair_blocks, pair_lattices, spectral
from elbotree.runtime.executors import Job
from elbotree.runtime.pair_blocks import LawData, Workbench
from elbotree.runtime.single_blocks import Single
from elbotree.runtime.spectral import SpectralExpectations
from tests.reference.problems import problem as reference

Answering = Callable[[Job], object]


def problem(psi: str = "relu", n: int = 6) -> et.Problem:
    """Features of several families, two of which see nearly the same: their pair has little noise of its own."""
    rng = np.random.default_rng(1)
    B = np.eye(n) + 0.3 * rng.standard_normal((n, n))
    rows = 5.0 * np.linalg.inv(B)
    rows[1] = rows[0] + 0.05 * rng.standard_normal(n)
    on = et.Bernoulli(0.2)
    posteriors = [et.Posterior("bernoulli", row[None, :], [-2.0]) for row in rows]
    posteriors[2] = et.Posterior("tilted", rows[2][None, :], [0.0], precision=3.0, base=on)
    posteriors[3] = et.Posterior("exponential", 0.3 * rows[3][None, :], [0.0])
    priors: list[et.Prior] = [on] * n
    priors[3] = et.Exponential(0.3)
    return et.Problem(
        et.Layer(np.eye(n), rng.standard_normal(n), rng.standard_normal(n) / np.sqrt(n), psi),
        et.FeatureModel(B, [on, et.Laplace(0.0, 0.3), *[on] * (n - 2)], 0.2),
        et.FeatureModel(B, priors, 0.3),
        et.Encoder(posteriors),
    )


def training(features: int = 3, **more: Any) -> et.Fit:
    """A short fit of an affine layer."""
    B = np.eye(3) + 0.3 * np.random.default_rng(3).standard_normal((3, 3))
    layer, p1 = (
        et.Layer(np.eye(3), np.zeros(3), np.zeros(3), "identity"),
        et.FeatureModel(B, [et.Bernoulli(0.3)] * 3, 0.3),
    )
    return et.fit(layer, p1, features, "bernoulli", tol=1e-3, iterations=3, rounds=1, **more)


def bits(given: et.Problem, executor: Executor | None = None, tol: float = 1e-5) -> bytes:
    """Values, errors and the gradient, to the last bit."""
    found = et.gradient(given, tol=tol, executor=executor)
    parts = [number for term in found.values.values() for number in (term.value, term.error)]
    arrays = [array for part in (*found["C"], *found["bias"], found["B"]) for array in (part.value, part.error)]
    arrays += [np.asarray(own[name].value) for own in found["parameters"] for name in sorted(own)]
    return np.concatenate([np.array(parts, dtype=float), *(array.ravel() for array in arrays)]).tobytes()


@cache
def here(psi: str = "relu", n: int = 6) -> bytes:
    """The bits of a problem where nobody but this process works."""
    return bits(problem(psi, n))


@cache
def trained() -> et.Fit:
    """The short fit where nobody but this process works."""
    return training()


class Inline(Executor):
    """Runs each job at once, through a function of the test's."""

    def __init__(self, answer: Answering = executors.work) -> None:
        self.answer, self.jobs = answer, list[Job]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append(args[0])
        try:
            future.set_result(self.answer(args[0]))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def all_is_worth_a_journey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single features are handed out however little work they are."""
    monkeypatch.setattr(spectral, "_WORTH", 0.0)


travelling = pytest.mark.usefixtures("all_is_worth_a_journey")


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Two processes that have inherited nothing."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


# ------------------------------------------------------------------ the same bits


@travelling
@pytest.mark.parametrize("psi", ["relu", "tanh", "identity"])
def test_processes_give_the_same_bits(psi: str, processes: Executor) -> None:
    expected = here(psi)
    assert bits(problem(psi), processes) == expected
    assert bits(problem(psi), processes) == expected  # by workers that know the law


@travelling
def test_compiled_loops_give_the_same_bits(processes: Executor) -> None:
    """At a size where they are taken, with pairs that need a second lattice."""
    given = problem(n=12)
    assert SpectralExpectations.for_problem(given, 1e-5, 1e-5)._compiled
    expected = here(n=12)  # before the others work: what is not compiled yet is compiled once
    assert bits(given, processes) == expected
    with ThreadPoolExecutor(3) as threads:
        assert bits(given, threads) == expected


@travelling
@pytest.mark.parametrize("name", ["hardtanh-mixed", "parallel"])
def test_other_families_priors_and_parallel_rows_give_the_same_bits(name: str, processes: Executor) -> None:
    given = et.Problem.from_dict(reference(name))
    assert bits(given, processes) == bits(given)


@travelling
@pytest.mark.usefixtures("registries")
def test_a_psi_that_was_registered_here_travels_as_its_expression(processes: Executor) -> None:
    et.register_psi("known_here_only", "min(max(b, 0), 1)**2 + tanh(b)/5")
    assert bits(problem("known_here_only"), processes) == bits(problem("known_here_only"))


@travelling
def test_training_gives_the_same_bytes(processes: Executor) -> None:
    one, other = trained(), training(executor=processes)
    assert one.problem.to_dict() == other.problem.to_dict()
    assert [(step.loss, step.error) for step in one.history] == [(step.loss, step.error) for step in other.history]
    assert one.message == other.message


def test_a_network_is_trained_with_an_executor() -> None:
    B = np.eye(3) + 0.3 * np.random.default_rng(3).standard_normal((3, 3))
    layer = et.Layer(np.eye(3), [0.5, -0.5, 0.3], [1.0, 0.5, -0.5], "abs")
    p1, jobs = et.FeatureModel(B, [et.Bernoulli(0.3)] * 3, 0.4), Inline()
    one, two = (et.fit_network([layer], p1, tol=1e-2, iterations=1, executor=executor) for executor in (None, jobs))
    np.testing.assert_array_equal(one.models[0].B, two.models[0].B)
    assert jobs.jobs


_COLD = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.runtime.test_executors import bits, problem
print(bits(problem(n=12)).hex())
"""


def test_loops_give_the_same_bits_compiled_now_and_read_from_the_cache(tmp_path: Path) -> None:
    """A worker reads what another process compiled."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _COLD, str(Path(__file__).parents[2])]
    cold, warm = (
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout for _ in range(2)
    )
    assert cold == warm


# ------------------------------------------------------------------ whoever makes them


@travelling
def test_workers_that_keep_nothing_make_everything_anew() -> None:
    """As one that was started again, or joined late, for each block: neither law nor lattices."""

    def forgetful(job: Job) -> object:
        answer = executors.work(job)
        if not isinstance(answer, executors.Unknown):
            executors._benches.clear()
            executors._laws.clear()
        return answer

    executors._laws.clear()
    executors._benches.clear()
    assert bits(problem(), Inline(forgetful)) == here()


def test_lattices_that_are_not_kept_are_made_anew_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, made = here(), list[object]()
    original = pair_blocks.lattices_of

    def counting(shared: Any, axes: Any, needs: Any) -> Any:
        made.extend(axes)
        return original(shared, axes, needs)

    monkeypatch.setattr(pair_blocks, "lattices_of", counting)
    assert bits(problem()) == expected
    kept = len(made)
    monkeypatch.setattr(Workbench, "_keep", lambda *args: None)
    assert bits(problem()) == expected
    assert len(made) - kept > kept > 0  # otherwise nothing was forgotten


def test_a_workbench_keeps_no_more_than_it_may() -> None:
    jobs = Inline()
    et.gradient(problem(), tol=1e-4, executor=jobs)
    blocks = [job.block for job in jobs.jobs if job.law is not None]
    law = next(job.law for job in jobs.jobs if job.law is not None)
    bench = Workbench(law.built().pairs)
    answers = [bench.work(block) for block in blocks]
    whole = bench.bytes
    small = Workbench(law.built().pairs)
    for block, answer in zip(blocks, answers, strict=True):
        again = small.work(block, whole // 3)
        np.testing.assert_array_equal(again.values, answer.values)
        assert small.bytes <= whole // 3
    assert 0 < small.bytes < whole


def test_a_worker_remembers_a_bounded_number_of_laws() -> None:
    for seed in range(6):
        p = problem()
        p1 = et.FeatureModel(p.input.B, p.input.priors, 0.2 + 0.01 * seed)
        et.evaluate(et.Problem(p.layer, p1, p.model, p.encoder), tol=1e-3, executor=Inline())
    assert len(executors._laws) <= 4
    assert len(executors._benches) <= 4


def test_the_law_travels_with_the_first_blocks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_CARRYING", 2)  # of six blocks
    jobs = Inline()
    et.evaluate(problem(), tol=1e-2, executor=jobs)
    assert [job.law is not None for job in jobs.jobs] == [True, True, False, False, False, False]
    jobs.jobs.clear()
    et.evaluate(problem(), tol=1e-2, executor=jobs)
    assert not any(job.law is not None for job in jobs.jobs)


def test_a_law_is_sent_once_to_a_worker_that_asks() -> None:
    """However many of its blocks come back before the one that carries it."""
    asking = [True]

    def late(job: Job) -> object:
        if job.law is None and asking[0]:
            return executors.Unknown("late")
        asking[0] = False
        return executors.work(job)

    jobs = Inline(late)
    jobs.answer = executors.work
    et.evaluate(problem(), tol=1e-3, executor=jobs)  # so that the law counts as sent
    jobs.answer = late
    jobs.jobs.clear()
    assert et.evaluate(problem(), tol=1e-3, executor=jobs)["L"].value == et.evaluate(problem(), tol=1e-3)["L"].value
    assert sum(job.law is not None for job in jobs.jobs) == 1


def test_blocks_do_not_depend_on_who_walks_them() -> None:
    two = [Inline(), Inline()]
    for jobs in two:
        et.evaluate(problem(), tol=1e-4, executor=jobs)
    shapes = [[[pair for pair, _, _ in job.block.pairs] for job in jobs.jobs] for jobs in two]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 6  # six features, two a side


def apart(jobs: Inline) -> list[Single]:
    return [job.block for job in jobs.jobs if isinstance(job.block, Single)]


@travelling
def test_single_features_are_handed_out_once_each() -> None:
    jobs, given = Inline(), problem()
    et.evaluate(given, tol=1e-4, executor=jobs)
    singles = apart(jobs)
    features = {single.axes[0].coordinate.v.tobytes() for single in singles}
    assert len(features) == 6
    assert {single.order for single in singles} == {0, 1}
    assert len({(single.axes[0].period, single.order, len(single.modes)) for single in singles}) == len(singles)
    et.gradient(given, tol=1e-4, executor=jobs)
    assert 2 in {single.order for single in apart(jobs)}


def test_single_features_that_are_little_work_stay_here() -> None:
    jobs = Inline()
    et.gradient(problem(), tol=1e-4, executor=jobs)
    assert jobs.jobs
    assert not apart(jobs)


@travelling
@pytest.mark.parametrize(("begun", "ahead"), [(0, 2), (1, 4096), (3, 4096)])
def test_single_features_that_nobody_takes_up_are_made_here(
    begun: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many of each batch are taken up, at the front of the queue; the others are taken back from its end."""
    monkeypatch.setattr(executors, "_AHEAD", ahead)  # that are out at once

    class Busy(Inline):
        def __init__(self) -> None:
            super().__init__()
            self.left = list[Future[Any]]()
            self.waiting = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if not isinstance(args[0].block, Single):
                self.waiting = 0
                return super().submit(fn, *args, **kwargs)
            future: Future[Any] = Future()
            self.waiting += 1
            if self.waiting <= begun:
                future.set_running_or_notify_cancel()
                threading.Timer(0.05, lambda: future.set_result(executors.work(args[0]))).start()
            else:
                self.left.append(future)
            return future

    busy = Busy()
    assert bits(problem(), busy) == here()
    assert busy.left
    assert all(future.cancelled() for future in busy.left)


@pytest.mark.parametrize("work", [lambda executor: et.evaluate(problem(), tol=1e-3, executor=executor), training])
def test_pairs_are_out_before_this_process_turns_to_single_features(
    work: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, out_by_then = Inline(), list[int]()
    original = SpectralExpectations._term

    def counting(self: Any, *args: Any) -> Any:
        out_by_then.append(len(jobs.jobs))
        return original(self, *args)

    monkeypatch.setattr(SpectralExpectations, "_term", counting)
    work(executor=jobs)
    assert out_by_then
    assert min(out_by_then) > 0


# ------------------------------------------------------------------ what goes wrong


def test_a_task_that_fails_is_tried_again() -> None:
    failed: set[int] = set()

    def failing_once(job: Job) -> object:
        first = min(pair for pair, _, _ in job.block.pairs)[1]
        if first not in failed:
            failed.add(first)
            raise MemoryError("no memory here")
        return executors.work(job)

    assert bits(problem(), Inline(failing_once)) == here()
    assert failed


def test_a_task_that_fails_again_and_again_ends_with_an_error_that_says_so() -> None:
    def failing(job: Job) -> object:
        raise MemoryError("no memory here")

    with pytest.raises(
        et.ExecutorError, match=r"executor Inline stopped working after 0 blocks .*MemoryError: no memory here"
    ):
        et.evaluate(problem(), tol=1e-4, executor=Inline(failing))


def test_an_error_of_the_problem_is_the_same_as_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_lattices, "MAX_POINTS", 10.0)
    for executor in (None, Inline()):
        with pytest.raises(et.UnsupportedError, match=r"would need .* lattice points"):
            et.evaluate(problem(), tol=1e-4, executor=executor)


def test_what_would_be_too_dear_is_refused_before_the_work(processes: Executor) -> None:
    with pytest.raises(et.CostError, match="more than max_seconds"):
        et.evaluate(problem(), tol=1e-4, max_seconds=1e-7, executor=processes)
    assert et.evaluate(problem(), tol=1e-4, max_seconds=3600, max_memory=2**30, executor=processes)


def test_a_killed_process_ends_the_work_with_an_error() -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        victim = pool.submit(os.getpid).result()
        walk = et.evaluate(problem(), tol=1e-2, executor=pool)
        assert walk
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(et.ExecutorError, match=r"ProcessPoolExecutor stopped working .* make a new executor"):
            et.evaluate(problem(), tol=1e-4, executor=pool)


class Killing(ProcessPoolExecutor):
    """Its processes are killed before the job that `left` counts down to."""

    left = 0

    def __init__(self) -> None:
        super().__init__(2, mp_context=multiprocessing.get_context("spawn"))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.left -= 1
        if self.left == 0:
            for process in list(self._processes.values()):
                os.kill(process.pid, signal.SIGKILL)
        return super().submit(fn, *args, **kwargs)


def test_a_fit_whose_workers_are_killed_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path: Path) -> None:
    with Killing() as pool, pytest.raises(et.ExecutorError, match="checkpoint"):
        training(executor=pool, checkpoint=tmp_path, progress=lambda step: setattr(pool, "left", 2))
    assert list(tmp_path.rglob("cfg.json"))
    whole, resumed = trained(), training(executor=Inline(), checkpoint=tmp_path, resume=True)
    assert resumed.problem.to_dict() == whole.problem.to_dict()
    assert [step.loss for step in resumed.history] == [step.loss for step in whole.history]


def test_an_executor_that_was_shut_down_is_an_error() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(et.ExecutorError, match="ThreadPoolExecutor stopped working"):
        et.evaluate(problem(), tol=1e-3, executor=pool)


def test_work_that_is_interrupted_leaves_no_jobs_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Holding(Executor):
        def __init__(self) -> None:
            self.held = list[Future[Any]]()

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.held.append(Future())
            return self.held[-1]

    def interrupted(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    for name in ("_meet", "of_c"):  # once pairs are asked for, and while they are under way ahead of that
        monkeypatch.setattr(SpectralExpectations, name, interrupted)
        holding = Holding()
        with pytest.raises(KeyboardInterrupt):
            et.evaluate(problem(), tol=1e-3, executor=holding)
        assert len(holding.held) == 6
        assert all(future.cancelled() for future in holding.held)


def test_an_executor_that_is_silent_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executors, "_QUIET", 0.05)

    class Slow(Inline):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_running_or_notify_cancel()  # begun, so that nobody takes it back
            threading.Thread(target=late, args=(future, args[0])).start()
            return future

    def late(future: Future[Any], job: Job) -> None:
        """Answers once somebody has complained, however slow the machine is."""
        given_up = time.monotonic() + 60.0
        while "no answer" not in caplog.text and time.monotonic() < given_up:
            time.sleep(0.01)
        future.set_result(executors.work(job))

    with caplog.at_level(logging.WARNING, logger="elbotree"):
        et.evaluate(problem(), tol=1e-2, executor=Slow())
    assert "no answer from Slow for 0." in caplog.text
    assert "; 6 are out, 0 are done" in caplog.text


def test_blocks_that_nobody_begins_are_made_here_to_the_same_bits() -> None:
    class Idle(Executor):
        def __init__(self) -> None:
            self.held = list[Future[Any]]()

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.held.append(Future())
            if len(self.held) == 1:
                self.held[0].set_running_or_notify_cancel()
                threading.Timer(0.5, lambda: self.held[0].set_result(executors.work(args[0]))).start()
            return self.held[-1]

    idle = Idle()
    assert et.evaluate(problem(), tol=1e-3, executor=idle)["L"].value == et.evaluate(problem(), tol=1e-3)["L"].value
    assert [future.cancelled() for future in idle.held] == [False, *[True] * (len(idle.held) - 1)]


def test_what_workers_of_dask_may_have_begun_is_left_to_them() -> None:
    class Busy(Inline):
        """Five threads, and futures that do not say that they are begun."""

        def __init__(self) -> None:
            super().__init__()
            self._client = Client(5)
            self.held = list[Future[Any]]()

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.held.append(future := Future[Any]())
            threading.Timer(0.5, lambda: future.cancelled() or future.set_result(executors.work(args[0]))).start()
            return future

    busy = Busy()
    assert et.evaluate(problem(), tol=1e-3, executor=busy)["L"].value == et.evaluate(problem(), tol=1e-3)["L"].value
    assert [future.cancelled() for future in busy.held] == [*[False] * 5, True]


class Client:
    """As much of Dask's client as is asked for: how many threads each worker has."""

    def __init__(self, *counts: int) -> None:
        self.counts = list(counts)

    def nthreads(self, **how: Any) -> dict[str, int]:
        workers = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        return {f"tcp://worker{i}": 1 for i in range(workers)}


class Deserted(Executor):
    """Jobs wait for workers, of which there are so many, one number after the other."""

    def __init__(self, *counts: int) -> None:
        self._client = Client(*counts) if counts else None
        self.held = list[tuple[Future[Any], Job]]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.held.append((Future(), args[0]))
        return self.held[-1][0]


def test_work_that_has_no_worker_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(executors, "_LOOK", 0.01)
    monkeypatch.setenv("ELBOTREE_WORKER_TIMEOUT", "0.2")
    deserted = Deserted(0)
    with pytest.raises(et.ExecutorError, match=r"no worker for 0\.2 s; ELBOTREE_WORKER_TIMEOUT sets .* checkpoint"):
        et.evaluate(problem(), tol=1e-3, executor=deserted)
    assert all(future.cancelled() for future, _ in deserted.held)


class Unreachable(Client):
    """The client of a scheduler that is gone."""

    def nthreads(self, **how: Any) -> dict[str, int]:
        raise OSError("timed out trying to connect")


@pytest.mark.parametrize("limits", [{}, {"max_seconds": 3600}])
def test_work_whose_scheduler_cannot_be_asked_is_given_up_and_not_made_here(
    limits: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it waited for without end where its cost is to be found first."""
    monkeypatch.setattr(executors, "_LOOK", 0.01)
    monkeypatch.setenv("ELBOTREE_WORKER_TIMEOUT", "0.2")
    gone = Deserted()
    gone._client = Unreachable()
    with pytest.raises(et.ExecutorError, match=r"Deserted stopped working after 0 blocks .*no worker for 0\.2 s"):
        et.evaluate(problem(), tol=1e-3, executor=gone, **limits)  # type: ignore[arg-type]
    assert len(gone.held) == (1 if limits else 6)


def test_what_a_lost_connection_cancelled_is_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late the connection is lost: just before this process would take back what nobody has begun."""
    lost = Deserted()

    class Losing(Client):
        def nthreads(self, **how: Any) -> dict[str, int]:
            for future, _ in lost.held:
                future.cancel()
                future.set_running_or_notify_cancel()
            return super().nthreads()

    lost._client = Losing(1)
    here = list[object]()
    monkeypatch.setattr(Workbench, "work", lambda bench, block: here.append(block))
    with pytest.raises(et.ExecutorError, match=r"Deserted stopped working after 0 blocks .*CancelledError"):
        et.evaluate(problem(), tol=1e-3, executor=lost)
    assert len(lost.held) == 6
    assert not here


def test_workers_that_come_back_in_time_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_LOOK", 0.01)
    monkeypatch.setenv("ELBOTREE_WORKER_TIMEOUT", "0.3")
    deserted = Deserted(*[0] * 10, 1, *[0] * 10, 1)  # never long enough without one

    def work() -> None:
        for future, job in deserted.held:
            future.set_result(executors.work(job))

    threading.Timer(0.6, work).start()
    assert et.evaluate(problem(), tol=1e-3, executor=deserted)["L"].value == et.evaluate(problem(), tol=1e-3)["L"].value


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_timeout_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELBOTREE_WORKER_TIMEOUT", text)
    with pytest.raises(et.InputError, match=f"ELBOTREE_WORKER_TIMEOUT is '{text}'; it must be a positive number"):
        et.evaluate(problem(), tol=1e-3, executor=Inline())


# ------------------------------------------------------------------ what would be a wrong number


def carried(given: et.Problem) -> LawData:
    jobs = Inline()
    et.evaluate(given, tol=1e-3, executor=jobs)
    return next(job.law for job in jobs.jobs if job.law is not None)


def test_a_psi_that_means_something_else_there_is_refused() -> None:
    law = carried(problem("tanh"))
    assert law.psi is not None
    assert law.built()
    other = dataclasses.replace(law, psi=dataclasses.replace(law.psi, text="sigmoid"))
    with pytest.raises(et.ExecutorError, match=r"psi 'sigmoid' does not mean the same .* other values"):
        other.built()
    unknown = dataclasses.replace(law, psi=dataclasses.replace(law.psi, text="unknown_there"))
    with pytest.raises(et.ExecutorError, match=r"'unknown_there' does not mean the same .* not a known name"):
        unknown.built()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Inline()
    et.evaluate(problem(), tol=1e-3, executor=jobs)
    old = dataclasses.replace(jobs.jobs[0], version="0.0.1")
    with pytest.raises(et.ExecutorError, match=r"a worker has elbotree .*, and this process 0\.0\.1"):
        executors.work(old)


def test_the_key_of_a_law_is_its_content() -> None:
    assert carried(problem()).key == carried(problem()).key
    assert carried(problem()).key != carried(problem("tanh")).key
    law = carried(problem())
    assert dataclasses.replace(law, noise=law.noise * (1 + 1e-15)).key != law.key


@pytest.mark.parametrize("what", [4, "tcp://host:8786", [], ThreadPoolExecutor])
def test_what_is_no_executor_is_refused(what: Any) -> None:
    with pytest.raises(et.InputError, match=r"`executor` is a .*; it must be a concurrent\.futures executor"):
        et.evaluate(problem(), tol=1e-3, executor=what)


def test_the_grid_takes_no_executor() -> None:
    with pytest.raises(et.InputError, match="executor makes sums over pairs"):
        et.evaluate(problem(), method="grid", executor=Inline())
