"""Time of the whole loss tree against Monte Carlo at the same error, by size and tolerance.

    python -m benchmarks.speed --sizes 8,16,32 --tols 1e-4,1e-6 --gradient

Monte Carlo's time is its measured time per sample times the samples whose standard error on L equals the tolerance
(relative to max(1, |L|), as ours is); both are measured in the same run, one thread each unless OMP_NUM_THREADS says
otherwise. Seconds are the best of `--repeats` runs, after one that is not counted (compilation and caches).

With --gradient, loss and full gradient together are timed too, and beside them stochastic gradients by torch where it is
installed: their measured time per sample times the samples whose root mean square error over the entries of dL/dC equals
the largest error that ours reports there. `python -m benchmarks.grid_convergence` measures the grid method, whose errors
are too large for this table.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

import elbotree as et
from benchmarks.workload import KINDS, problem, sampled_losses, torch_gradient
from elbotree.evaluation import kernels_for
from elbotree.runtime.sampling import SamplingExpectations


def best_time(run: object, repeats: int) -> float:
    """The least of several wall times of calling `run`, in seconds."""
    assert callable(run)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)


def monte_carlo(p: et.Problem, kind: str, samples: int = 20_000) -> tuple[float, float]:
    """Seconds per sample, and the standard deviation of one sample of L: by numpy written for Bernoulli posteriors, by the
    generated kernels on averages over samples for the other families."""
    if kind == "bernoulli":
        rng = np.random.default_rng(1)
        losses = sampled_losses(p, samples, rng)
        return best_time(lambda: sampled_losses(p, samples, rng), 5) / samples, float(losses.std())
    kernels = kernels_for(p.layer, p.encoder)
    law = SamplingExpectations(p.layer, p.input, p.encoder, samples=samples, seed=1)
    spread = float(kernels.evaluate(law, p)["L"].error) * samples**0.5
    return best_time(lambda: kernels.evaluate(law, p), 3) / samples, spread


def stochastic_gradient(p: et.Problem, samples: int = 4096, batches: int = 40) -> tuple[float, float]:
    """Seconds per sample of dL/dC in torch, and the root mean square over its entries of one sample's standard deviation."""
    try:
        step = torch_gradient(p, samples, seed=1)
    except ModuleNotFoundError:
        return np.nan, np.nan
    spread = np.std([step() for _ in range(batches)], axis=0, ddof=1) * samples**0.5
    return best_time(step, 5) / samples, float(np.sqrt(np.mean(spread**2)))


def cold_start(tol: float) -> float:
    """Seconds from the import to the first value of n = 8 in a new process, every cache empty."""
    code = (
        "import time; begun = time.perf_counter(); import elbotree as et; from benchmarks.workload import problem; "
        f"et.evaluate(problem(8), tol={tol}); print(time.perf_counter() - begun)"
    )
    with tempfile.TemporaryDirectory() as empty:
        env = {**os.environ, "ELBOTREE_CACHE": "off", "NUMBA_CACHE_DIR": empty}
        return float(
            subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="8,16,32", help="n = m1 = m2, separated by commas")
    parser.add_argument("--tols", default="1e-4,1e-6", help="tolerances, separated by commas")
    parser.add_argument("--kind", default="bernoulli", choices=KINDS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gradient", action="store_true", help="time loss and full gradient together too")
    parser.add_argument("--cold", action="store_true", help="time the first value of n = 8 in a new process and stop")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    if options.cold:
        for tol in (float(text) for text in options.tols.split(",")):
            print(f"from the import to the first value, n = 8, tol {tol:g}, caches empty: {cold_start(tol):.2f} s")
        return
    print(f"features of x1: {options.kind}")
    print(
        f"{'n':>4} {'tol':>7} {'L':>12} {'error':>8} {'seconds':>9} {'sampling s':>11} {'ratio':>9} {'gradient s':>10} "
        f"{'torch s':>9} {'ratio':>9} {'MiB':>6}"
    )
    for n in (int(text) for text in options.sizes.split(",")):
        p = problem(n, options.kind)
        bernoulli = options.kind == "bernoulli"
        per_sample, spread = monte_carlo(p, options.kind)
        per_gradient, gradient_spread = stochastic_gradient(p) if bernoulli and options.gradient else (np.nan, np.nan)
        for tol in (float(text) for text in options.tols.split(",")):
            loss = et.evaluate(p, tol=tol)["L"]
            seconds = best_time(lambda p=p, tol=tol: et.evaluate(p, tol=tol), options.repeats)
            both = torch_seconds = np.nan
            if options.gradient:
                error = max(float(part.error.max()) for part in et.gradient(p, tol=tol)["C"])
                both = best_time(lambda p=p, tol=tol: et.gradient(p, tol=tol), options.repeats)
                torch_seconds = per_gradient * (gradient_spread / error) ** 2
            target = tol * max(1.0, abs(float(loss.value)))
            sampling = per_sample * (spread / target) ** 2
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                f"{n:4d} {tol:7.0e} {float(loss.value):12.6f} {float(loss.error):8.1e} {seconds:9.3f} {sampling:11.3g} "
                f"{sampling / seconds:9.2g} {both:10.3f} {torch_seconds:9.3g} {torch_seconds / both:9.2g} {peak:6d}",
                flush=True,
            )


if __name__ == "__main__":
    main()
