"""Real engines beyond one process: Dask (skipped where `distributed` is missing) and MPI (where mpi4py or mpiexec is)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import elbotree as et
from elbotree import cluster as clusters
from elbotree.cli import main
from tests.runtime.test_executors import training

dask = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs the extra `cluster`")


def problem(n: int = 6) -> et.Problem:
    rng = np.random.default_rng(2)
    B = np.eye(n) + 0.2 * rng.standard_normal((n, n))
    priors = [et.Bernoulli(0.2)] * n
    return et.Problem(
        et.Layer(np.eye(n), rng.standard_normal(n), rng.standard_normal(n) / np.sqrt(n), "relu"),
        et.FeatureModel(B, priors, 0.2),
        et.FeatureModel(B, priors, 0.3),
        et.Encoder([et.Posterior("bernoulli", 5 * row[None, :], [-2.5]) for row in np.linalg.inv(B)]),
    )


def bits(executor: Executor | None = None) -> str:
    """A hash of values, errors and the gradient, to the last bit."""
    found = et.gradient(problem(), tol=1e-5, executor=executor)
    parts = [number for term in found.values.values() for number in (term.value, term.error)]
    arrays = [part.value.ravel() for part in (*found["C"], *found["bias"])]
    return hashlib.sha256(np.concatenate([np.array(parts, dtype=float), *arrays]).tobytes()).hexdigest()


class Meanwhile(Executor):
    """Another executor, and something that happens to it before its n-th job."""

    def __init__(self, executor: Executor, n: int, happens: Callable[[], Any]) -> None:
        self.executor, self.left, self.happens = executor, n, happens
        self._client = executor._client  # type: ignore[attr-defined]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.left -= 1
        if self.left == 0:
            self.happens()
        return self.executor.submit(fn, *args, **kwargs)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes with a thread each."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    from distributed import Client

    with Client(cluster, set_as_default=False) as made:
        yield made


@dask
def test_dask_gives_the_same_bits(client: Any) -> None:
    executor = client.get_executor()
    assert bits(executor) == bits()
    assert bits(executor) == bits()


@dask
def test_a_worker_that_is_killed_changes_no_bit(client: Any) -> None:
    pids = list(client.run(os.getpid).values())
    killing = Meanwhile(client.get_executor(), 5, lambda: os.kill(pids[0], signal.SIGKILL))
    assert bits(killing) == bits()
    assert killing.left <= 0


@dask
def test_a_worker_that_joins_late_changes_no_bit(cluster: Any, client: Any) -> None:
    before = set(client.run(os.getpid).values())

    def grow() -> None:
        cluster.scale(3)
        client.wait_for_workers(3)

    assert bits(Meanwhile(client.get_executor(), 4, grow)) == bits()
    known = client.run(lambda: (os.getpid(), len(sys.modules["elbotree.runtime.executors"]._laws)))  # type: ignore[attr-defined]
    late = [laws for pid, laws in known.values() if pid not in before]
    assert late
    assert all(late)  # it did take part
    cluster.scale(2)


def _dask(folder: Path, kind: str, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "distributed.cli.dask_" + kind, "--scheduler-file", str(folder / "scheduler.json")]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def _one_worker(folder: Path) -> Iterator[tuple[Any, subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """A client of a scheduler with one worker, and these two as processes, to be killed."""
    from distributed import Client

    scheduler = _dask(folder, "scheduler", "--port", "0", "--no-dashboard")
    worker = _dask(folder, "worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "60")
    try:
        client = Client(scheduler_file=str(folder / "scheduler.json"), timeout=30, set_as_default=False)
        client.wait_for_workers(1, timeout=60)
        yield client, scheduler, worker
        client.close(timeout=1)
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


@dask
@pytest.mark.parametrize("seen", [False, True])
def test_a_fit_whose_scheduler_is_killed_goes_on_elsewhere_to_the_same_bytes(tmp_path: Path, seen: bool) -> None:
    """Whether the client sees that the connection is lost after the next jobs are submitted, or before."""
    with _one_worker(tmp_path) as (client, scheduler, _):

        def kill() -> None:
            scheduler.kill()
            scheduler.wait()
            while seen and client.status == "running":
                time.sleep(0.01)

        dying = Meanwhile(client.get_executor(), 0, kill)
        with pytest.raises(et.ExecutorError, match="Meanwhile stopped working"):
            training(executor=dying, checkpoint=tmp_path / "state", progress=lambda step: setattr(dying, "left", 2))
    assert list((tmp_path / "state").rglob("cfg.json"))
    whole, resumed = training(), training(checkpoint=tmp_path / "state", resume=True)
    assert resumed.problem.to_dict() == whole.problem.to_dict()
    assert [step.loss for step in resumed.history] == [step.loss for step in whole.history]


@dask
def test_a_fit_that_loses_all_its_workers_for_good_ends_and_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELBOTREE_WORKER_TIMEOUT", "2")
    with _one_worker(tmp_path) as (client, _, worker):
        dying = Meanwhile(client.get_executor(), 0, worker.kill)
        with pytest.raises(et.ExecutorError, match=r"it had no worker for 2 s; ELBOTREE_WORKER_TIMEOUT"):
            training(executor=dying, checkpoint=tmp_path / "state", progress=lambda step: setattr(dying, "left", 2))
    whole, resumed = training(), training(checkpoint=tmp_path / "state", resume=True)
    assert resumed.problem.to_dict() == whole.problem.to_dict()


# ------------------------------------------------------------------ the command line


@dask
def test_the_command_line_takes_a_scheduler(cluster: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    problem().save(file)
    plain = ["evaluate", str(file), "--tol", "1e-4", "--format", "json"]
    here, there = (
        CliRunner().invoke(main, [*plain, *more]) for more in ([], ["--scheduler", cluster.scheduler_address])
    )
    assert here.exit_code == there.exit_code == 0, there.output
    assert json.loads(here.stdout)["terms"] == json.loads(there.stdout)["terms"]
    fit = ["fit", str(file), "--features", "3", "--family", "bernoulli", "--tol", "1e-2", "--iterations", "1"]
    done = CliRunner().invoke(main, [*fit, "--scheduler", cluster.scheduler_address, "--out", str(tmp_path / "fit")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "fit" / "cfg.json").exists()


@dask
def test_a_scheduler_that_does_not_answer_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    problem(2).save(file)
    monkeypatch.setattr(clusters, "SECONDS", 1.0)
    for address, said in (
        ("tcp://127.0.0.1:9", "no Dask scheduler at 'tcp://127.0.0.1:9' (Timed out"),
        ("nonsense://x:1", "no Dask scheduler at 'nonsense://x:1'"),
        ("http://[::1", "no Dask scheduler at 'http://[::1' (Invalid IPv6 URL)"),
        ("tcp://host:99999999", "no Dask scheduler at 'tcp://host:99999999' (Port out of range"),
        ("x", "no Dask scheduler at 'x' (no address of the form protocol://host:port)"),
    ):
        result = CliRunner().invoke(main, ["evaluate", str(file), "--scheduler", address])
        assert result.exit_code == 1
        assert said in result.stderr
        assert "dask scheduler" in result.stderr


@dask
def test_a_scheduler_without_workers_is_a_clear_error() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=0, dashboard_address=":0") as empty,
        pytest.raises(et.InputError, match="has no worker; start some with `dask worker"),
        clusters.scheduler(empty.scheduler_address, 1.0),
    ):
        pass


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    problem(2).save(file)
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = CliRunner().invoke(main, ["evaluate", str(file), "--scheduler", "tcp://localhost:8786"])
    assert result.exit_code == 1
    assert "pip install 'elbotree[cluster]'" in result.stderr


# ------------------------------------------------------------------ MPI

_MPI = """
from mpi4py.futures import MPIPoolExecutor
from tests.elbotree.test_cluster import bits

if __name__ == "__main__":
    with MPIPoolExecutor() as executor:
        print(executor.num_workers, bits(executor), bits(executor))
"""


# the extra mpi-test puts one beside Python, which is the one that its mpi4py knows
_MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py, of the extra `mpi-test`")
@pytest.mark.skipif(_MPIEXEC is None, reason="needs mpiexec for mpi4py, of the extra `mpi-test`")
def test_mpi_gives_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "with_mpi.py"
    script.write_text(_MPI, encoding="utf-8")
    root = Path(__file__).parents[2]
    command = [str(_MPIEXEC), "-n", "3", sys.executable, "-m", "mpi4py.futures", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    workers, *found = done.stdout.split()
    assert workers == "2"
    assert found == [bits(), bits()]
