"""Executors: what one and two workers gain, and a model of many, fed by what is measured here.

    python -m benchmarks.executors                    one thread, threads, and processes on n = 32
    python -m benchmarks.executors --gradient         the same for loss and gradient together
    python -m benchmarks.executors --model 16,32,64   block times and bytes at these sizes, and what follows for a cluster

`one thread` is this process alone, everything in order, without an executor. `one worker` is an executor with one process: this
one works too, so that there are two processes; with `two workers` there are three. The first evaluation with workers carries the
law and compiles nothing that is cached; the repeated ones find the law where it is. The ways take turns, so that what else
the machine does meets all alike; of each the least and the median of `--repeats` are printed.

The model takes from each measured size the seconds of a pair and of a single feature's lattice in a worker, the seconds that
this process spends on a pair (cutting series, making blocks, taking in answers) and on a feature (its range, its series), and
the bytes of a feature in a block, of a pair's answer, of a single feature's sums and of the law. These follow power laws in n
through the two largest sizes. On c cores an evaluation takes the longest of three things that go on at once:

    workers     seconds of all pairs and lattices / c, and one block more, the last one
    this side   seconds a pair here x pairs, seconds a feature here x features, and seconds a task x tasks
    network     bytes of blocks, sums and answers / bandwidth
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

import elbotree as et
from benchmarks.workload import problem
from elbotree.runtime import spectral
from elbotree.runtime.pair_blocks import Block
from elbotree.runtime.single_blocks import Single

BANDWIDTH = 1e9  # bytes a second out of one machine: a network of 10 Gbit/s


class OneThread(Executor):
    """Runs each job when it is submitted, and remembers what it took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.jobs: list[Any] = []
        self.answers: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        begun = time.process_time()
        answer = fn(*args, **kwargs)
        self.seconds.append(time.process_time() - begun)
        self.jobs.append(args[0])
        self.answers.append(answer)
        future.set_result(answer)
        return future


@dataclass(frozen=True)
class Measured:
    """Of one size: seconds of a pair and of a single feature, in a worker and here; bytes of a feature in a block, of a pair's
    answer, of a single feature's sums, of the law."""

    n: int
    pair: float
    pair_here: float
    single: float
    single_here: float
    feature_bytes: float
    answer_bytes: float
    sums_bytes: float
    law_bytes: float


def measure(n: int, tol: float, repeats: int) -> Measured:
    """One evaluation of the benchmark problem, job by job, in seconds of this process, so that others matter less."""
    p = problem(n)
    tried = []
    for _ in range(repeats + 1):  # the first one fills caches
        worker = OneThread()
        begun = time.process_time()
        values = et.evaluate(p, tol=tol, executor=worker)
        whole = time.process_time() - begun
        share = (values["T3"].seconds or 0.0) / (values.seconds or 1.0)
        tried.append((whole, whole * share, worker))
    whole, pairs_lap, worker = min(tried[1:], key=lambda one: one[0])
    done = list(zip(worker.jobs, worker.answers, worker.seconds, strict=True))
    of_pairs = [one for one in done if isinstance(one[0].block, Block)]
    of_single = [one for one in done if isinstance(one[0].block, Single)]
    pairs = sum(job.block.asked for job, _, _ in of_pairs)
    in_pairs, in_single = (sum(seconds for _, _, seconds in some) for some in (of_pairs, of_single))
    plain = sum(len(pickle.dumps(dataclasses.replace(job, law=None))) for job, _, _ in of_pairs)
    axes = sum(len(job.block.axes) for job, _, _ in of_pairs)
    answers, sums = (sum(len(pickle.dumps(answer)) for _, answer, _ in some) for some in (of_pairs, of_single))
    return Measured(
        n,
        in_pairs / pairs,
        (pairs_lap - in_pairs) / pairs,
        in_single / n,
        (whole - pairs_lap - in_single) / n,
        plain / axes,
        answers / pairs,
        sums / n,
        max((len(pickle.dumps(job.law)) for job in worker.jobs if job.law is not None), default=0),
    )


def power_law(sizes: Sequence[int], values: Sequence[float], n: int) -> float:
    """The power law through the last two of the values, at n."""
    (n0, n1), (y0, y1) = sizes[-2:], values[-2:]
    slope = np.log(y1 / y0) / np.log(n1 / n0)
    return float(y1 * (n / n1) ** slope)


def task_seconds(workers: int = 2, tasks: int = 500) -> float:
    """What this process spends on a task that does nothing, with two processes."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(abs, range(workers)))
        begun = time.process_time()
        for future in [pool.submit(abs, i) for i in range(tasks)]:
            future.result()
        return (time.process_time() - begun) / tasks


def blocks_of(n: int) -> tuple[int, int]:
    """How many features a side a block has, and how many blocks there are, as `Pairs.tiles` cuts them."""
    side = min(12, max(2, -(-n // 12)))
    tiles = -(-n // side)
    return side, tiles * (tiles + 1) // 2


def model(found: Sequence[Measured], task: float, n: int, cores: int) -> dict[str, float]:
    """Seconds of the parts of one evaluation on `cores` cores, and what the law takes to reach them once."""
    sizes = [m.n for m in found]

    def at(name: str) -> float:
        return power_law(sizes, [getattr(m, name) for m in found], n)

    side, blocks = blocks_of(n)
    pairs = n * (n + 1) / 2
    travelling = blocks * 2 * side * at("feature_bytes") + pairs * at("answer_bytes") + n * at("sums_bytes")
    away, here = pairs * at("pair") + n * at("single"), pairs * at("pair_here") + n * at("single_here")
    tasks = (blocks + 2 * n) * task  # each feature's sums go out twice: without f, and with it
    parts = {
        "workers": away / cores + side**2 * at("pair"),
        "this side": here + tasks,
        "network": travelling / BANDWIDTH,
    }
    return {
        **parts,
        "pairs here": pairs * at("pair_here"),
        "singles here": n * at("single_here"),
        "whole": max(parts.values()),
        "serial": away + here,
        "law once": cores * at("law_bytes") / BANDWIDTH,
    }


def compared(n: int, tol: float, repeats: int, gradient: bool) -> None:
    """Print what one thread, the threads of this process, and this process with one worker and with two take."""
    p = problem(n)
    values, times = set(), dict[str, list[float]]()

    def run(name: str, executor: Executor | None, threads: int | None = None) -> None:
        # how many threads there are is not for callers of `evaluate` to say
        with mock.patch("os.cpu_count", return_value=threads or os.cpu_count()):
            begun = time.perf_counter()
            found = (
                et.gradient(p, tol=tol, executor=executor) if gradient else et.evaluate(p, tol=tol, executor=executor)
            )
            times.setdefault(name, []).append(time.perf_counter() - begun)
        values.add((found.values if gradient else found)["L"].value)

    run("not counted: caches fill", None)
    with ProcessPoolExecutor(1) as one_worker, ProcessPoolExecutor(2) as two_workers:
        run("one worker, first", one_worker)
        run("two workers, first", two_workers)
        for _ in range(repeats):
            run("one thread", None, 1)
            run("two threads", None, 2)
            run("one worker", one_worker)
            run("two workers", two_workers)
    one = times["one thread"]
    print(f"n = {n}, tol {tol:g}{', with gradient' if gradient else ''}, load {os.getloadavg()[0]:.1f}")
    print(f"{'seconds':<28} {'least':>8} {'median':>8} {'gain of least':>14} {'of median':>10}")
    for name in ("one thread", "two threads", "one worker, first", "one worker", "two workers, first", "two workers"):
        least, middle = min(times[name]), median(times[name])
        print(f"{name:<28} {least:8.3f} {middle:8.3f} {min(one) / least:14.2f} {median(one) / middle:10.2f}")
    print(f"the same bits: {len(values) == 1}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="n = m1 = m2 of the comparison")
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gradient", action="store_true", help="compare loss and gradient together")
    parser.add_argument(
        "--model", metavar="SIZES", help="measure these sizes, separated by commas, and print the model"
    )
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    if options.model is None:
        compared(options.size, options.tol, options.repeats, options.gradient)
        return
    spectral._WORTH = 0.0  # so that lattices of single features are seen apart
    found = [measure(int(n), options.tol, options.repeats) for n in options.model.split(",")]
    task = task_seconds()
    print(f"tol {options.tol:g}; a task costs {1e6 * task:.0f} us here; bandwidth {BANDWIDTH:.0e} B/s")
    columns = (
        ("pair", 1e6, "us"),
        ("pair_here", 1e6, "us"),
        ("single", 1e3, "ms"),
        ("single_here", 1e3, "ms"),
        *((name, 1.0, "") for name in ("feature_bytes", "answer_bytes", "sums_bytes", "law_bytes")),
    )
    print("    n" + "".join(f" {name + (', ' + unit if unit else ''):>15}" for name, _, unit in columns))
    for m in found:
        print(f"{m.n:5d}" + "".join(f" {scale * getattr(m, name):15.4g}" for name, scale, _ in columns))
    shown = "serial", "whole", "workers", "this side", "pairs here", "singles here", "network", "law once"
    print("    n  cores" + "".join(f" {name:>12}" for name in shown) + "    gain  limited by")
    for n in (32, 128, 512, 1024):
        for cores in (2, 10, 100, 1000):
            parts = model(found, task, n, cores)
            worst = max(("workers", "this side", "network"), key=lambda name: parts[name])
            gain = parts["serial"] / parts["whole"]
            print(f"{n:5d} {cores:6d}" + "".join(f" {parts[name]:12.2f}" for name in shown) + f" {gain:7.1f}  {worst}")


if __name__ == "__main__":
    main()
