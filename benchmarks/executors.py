"""Executors: what two processes gain, and a model of many, fed by what is measured here.

    python -m benchmarks.executors                    one thread, threads, and two processes on n = 32
    python -m benchmarks.executors --model 16,32,64   block times and bytes at these sizes, and what follows for a cluster

`one thread` runs the same blocks one after the other in this process. Of two processes the first evaluation carries the law and
compiles nothing that is cached; the repeated one finds the law where it is. Each time is the least of `--repeats`.

The model takes from each measured size the seconds of a pair in a worker, the seconds that this process spends on a pair
(cutting series, making blocks, taking in answers) and on a feature (sums over single features), and the bytes of a feature, of an
answer and of the law. These follow power laws in n through the two largest sizes. On c cores an evaluation takes the longest
of three things that go on at once, and then the single features:

    workers     seconds of all pairs / c, and one block more, the last one
    this side   seconds a pair here x pairs, and seconds a task x blocks
    network     bytes of blocks and answers / bandwidth
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

import elbotree as et
from benchmarks.speed import best_time
from benchmarks.workload import problem

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
    """Of one size: seconds a pair in a worker, a pair here, a feature here; bytes a feature, a pair's answer, the law."""

    n: int
    pair: float
    here: float
    single: float
    feature_bytes: float
    answer_bytes: float
    law_bytes: float


def measure(n: int, tol: float, repeats: int) -> Measured:
    """One evaluation of the benchmark problem, block by block, in seconds of this process, so that others matter less."""
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
    pairs = sum(job.block.asked for job in worker.jobs)
    plain = [len(pickle.dumps(job.__class__(**{**vars(job), "law": None}))) for job in worker.jobs]
    axes = sum(len(job.block.axes) for job in worker.jobs)
    answers = sum(len(pickle.dumps(answer)) for answer in worker.answers)
    law = max((len(pickle.dumps(job.law)) for job in worker.jobs if job.law is not None), default=0)
    inside = sum(worker.seconds)
    return Measured(
        n,
        inside / pairs,
        (pairs_lap - inside) / pairs,
        (whole - pairs_lap) / n,
        sum(plain) / axes,
        answers / pairs,
        law,
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
    travelling = blocks * 2 * side * at("feature_bytes") + pairs * at("answer_bytes")
    parts = {
        "workers": pairs * at("pair") / cores + side**2 * at("pair"),
        "this side": pairs * at("here") + blocks * task,
        "network": travelling / BANDWIDTH,
    }
    serial = pairs * (at("pair") + at("here")) + n * at("single")
    return {
        **parts,
        "singles": n * at("single"),
        "whole": max(parts.values()) + n * at("single"),
        "serial": serial,
        "law once": cores * at("law_bytes") / BANDWIDTH,
    }


def two_processes(n: int, tol: float, repeats: int) -> None:
    """Print what one thread, the threads of this process, and two processes take."""
    p = problem(n)
    values = {}

    def run(name: str, executor: Executor | None) -> Callable[[], None]:
        def once() -> None:
            values[name] = et.evaluate(p, tol=tol, executor=executor)["L"].value

        return once

    run("warm", None)()
    one = best_time(run("one thread", OneThread()), repeats)
    print(f"n = {n}, tol {tol:g}, load {os.getloadavg()[0]:.1f}")
    print(f"{'one thread':<28} {one:8.3f} s")
    threads = best_time(run("threads", None), repeats)
    print(f"{'threads of this process':<28} {threads:8.3f} s {one / threads:6.2f}x")
    with ProcessPoolExecutor(2) as pool:
        first = best_time(run("first", pool), 1)
        again = best_time(run("again", pool), repeats)
    print(f"{'two processes, first':<28} {first:8.3f} s {one / first:6.2f}x")
    print(f"{'two processes, repeated':<28} {again:8.3f} s {one / again:6.2f}x")
    print(f"the same bits: {len(set(values.values())) == 1}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="n = m1 = m2 of the comparison")
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--model", metavar="SIZES", help="measure these sizes, separated by commas, and print the model"
    )
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    if options.model is None:
        two_processes(options.size, options.tol, options.repeats)
        return
    found = [measure(int(n), options.tol, options.repeats) for n in options.model.split(",")]
    task = task_seconds()
    print(f"tol {options.tol:g}; a task costs {1e6 * task:.0f} us here; bandwidth {BANDWIDTH:.0e} B/s")
    print(
        f"{'n':>5} {'pair, us':>9} {'here, us':>9} {'single, ms':>11} {'B a feature':>12} {'B an answer':>12} {'law, B':>10}"
    )
    for m in found:
        print(
            f"{m.n:5d} {1e6 * m.pair:9.0f} {1e6 * m.here:9.0f} {1e3 * m.single:11.2f} {m.feature_bytes:12.0f} "
            f"{m.answer_bytes:12.0f} {m.law_bytes:10.0f}"
        )
    print(f"{'n':>5} {'cores':>6} {'serial, s':>10} {'whole, s':>9} {'gain':>7} {'limited by':>12} ", end="")
    print(f"{'workers':>8} {'this side':>10} {'network':>8} {'singles':>8} {'law once, s':>12}")
    for n in (32, 128, 512, 1024):
        for cores in (2, 10, 100, 1000):
            parts = model(found, task, n, cores)
            limits = {name: parts[name] for name in ("workers", "this side", "network")}
            worst = max(limits, key=lambda name: limits[name])
            if parts["singles"] > limits[worst]:
                worst = "singles"
            print(
                f"{n:5d} {cores:6d} {parts['serial']:10.1f} {parts['whole']:9.2f} {parts['serial'] / parts['whole']:7.1f} "
                f"{worst:>12} {parts['workers']:8.2f} {parts['this side']:10.2f} {parts['network']:8.2f} "
                f"{parts['singles']:8.2f} {parts['law once']:12.2f}"
            )


if __name__ == "__main__":
    main()
