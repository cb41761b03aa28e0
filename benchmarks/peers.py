"""What an ELBO to a given error costs elsewhere: the benchmark problem of n sparse features as a model and a guide of Pyro
and of NumPyro, beside its evaluation here.

    pip install pyro-ppl numpyro
    python -m benchmarks.peers --n 32 --tol 1e-6

Both draw rows x2 of the layer's output and one z of the encoder's posterior for each, and average log densities. A batch is
timed, the least of a few, after one that compiles; the spread of batch means gives the standard deviation of one row. Their
time is that of as many rows as bring the standard error down to tol max(1, |L|). Means must agree within five standard errors:
exit status 1 where they do not. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import platform
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import elbotree as et
from benchmarks.speed import best_time
from benchmarks.workload import problem

Array = NDArray[np.float64]
Batch = Callable[[Array, int], float]  # rows of x2 and a seed -> the mean of minus the ELBO over them


def parts(p: et.Problem) -> dict[str, Array]:
    """The numbers of a problem with Bernoulli posteriors."""
    return {
        "B": p.model.B,
        "offset": p.model.offset,
        "prior": np.array([prior.mean() for prior in p.model.priors]),
        "C": np.concatenate([q.C for q in p.encoder]),
        "bias": np.concatenate([q.bias for q in p.encoder]),
    }


def pyro_batch(p: et.Problem) -> Batch:
    """Pyro's Trace_ELBO in float64, all rows in one plate."""
    import torch

    pyro, infer, dist = (importlib.import_module(name) for name in ("pyro", "pyro.infer", "pyro.distributions"))
    pyro.enable_validation(False)
    known = {name: torch.tensor(value) for name, value in parts(p).items()}

    def model(rows: torch.Tensor) -> None:
        with pyro.plate("rows", len(rows)):
            z = pyro.sample("z", dist.Bernoulli(known["prior"].expand(len(rows), -1)).to_event(1))
            pyro.sample("x", dist.Normal(z @ known["B"].T + known["offset"], p.model.noise_std).to_event(1), obs=rows)

    def guide(rows: torch.Tensor) -> None:
        with pyro.plate("rows", len(rows)):
            pyro.sample("z", dist.Bernoulli(logits=rows @ known["C"].T + known["bias"]).to_event(1))

    elbo = infer.Trace_ELBO()

    def batch(rows: Array, seed: int) -> float:
        pyro.set_rng_seed(seed)
        with torch.no_grad():
            return float(elbo.loss(model, guide, torch.tensor(rows))) / len(rows)

    return batch


def numpyro_batch(p: et.Problem) -> Batch:
    """NumPyro's Trace_ELBO in float64, compiled by jax."""
    jax, numpyro, infer, dist = (
        importlib.import_module(name) for name in ("jax", "numpyro", "numpyro.infer", "numpyro.distributions")
    )
    jax.config.update("jax_enable_x64", True)
    known = {name: jax.numpy.asarray(value) for name, value in parts(p).items()}

    def model(rows: Array) -> None:
        with numpyro.plate("rows", len(rows)):
            z = numpyro.sample("z", dist.Bernoulli(known["prior"]).expand((len(rows), p.model.m)).to_event(1))
            mean = z @ known["B"].T + known["offset"]
            numpyro.sample("x", dist.Normal(mean, p.model.noise_std).to_event(1), obs=rows)

    def guide(rows: Array) -> None:
        with numpyro.plate("rows", len(rows)):
            numpyro.sample("z", dist.Bernoulli(logits=rows @ known["C"].T + known["bias"]).to_event(1))

    elbo = infer.Trace_ELBO()
    compiled = jax.jit(lambda key, rows: elbo.loss(key, {}, model, guide, rows))

    def batch(rows: Array, seed: int) -> float:
        return float(compiled(jax.random.PRNGKey(seed), rows)) / len(rows)

    return batch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of a batch")
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    p = problem(options.n)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; n = {options.n}")
    loss = et.evaluate(p, tol=options.tol)["L"]
    target = options.tol * max(1.0, abs(float(loss.value)))
    here = best_time(lambda: et.evaluate(p, tol=options.tol), 3)
    print(f"elbotree  L = {float(loss.value):.8f}, error {float(loss.error):.1e}: {here:.2f} s")
    agree = True
    for name, make in (("pyro", pyro_batch), ("numpyro", numpyro_batch)):
        try:
            version = importlib.import_module(name).__version__
        except ImportError:
            print(f"{name}: not installed")
            continue
        batch, rng = make(p), np.random.default_rng(0)
        times, means = [], []
        for k in range(options.batches + 1):
            begun = time.perf_counter()
            mean = batch(p.layer(p.input.sample(options.rows, rng)), k)
            if k:
                times.append(time.perf_counter() - begun)
                means.append(mean)
        spread = float(np.std(means, ddof=1)) * math.sqrt(options.rows)
        middle, error = float(np.mean(means)), float(np.std(means, ddof=1)) / math.sqrt(len(means))
        seconds = min(times) / options.rows * (spread / target) ** 2
        agree &= abs(middle - float(loss.value)) <= 5 * error
        print(
            f"{name} {version}  L = {middle:.4f} +- {error:.4f}, {1e6 * min(times) / options.rows:.2f} us a row: "
            f"{seconds:.1e} s for a standard error of {target:.1e}"
        )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
