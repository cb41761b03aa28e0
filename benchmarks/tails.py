"""Tail probabilities on random jobs: does every error stay within tol and within the reported bound, and how long does a
query take? A job is a read-out of 32 spike-and-slab features plus noise and a threshold between P = 0.5 and P = 1e-100;
its reference is the plain trapezoidal rule on another contour, far finer, written out here. Then curves of 10,000
points, the orthant of two read-outs, the gradient, tails through ReLU and GELU; and, where it is installed, OpenTURNS'
LinearCombinationDistribution, with scipy's quad on the unshifted contour (Gil-Pelaez), on the same jobs.

    python benchmarks/tails.py --jobs 1000 --seed 0 --tol 1e-10

Exit status 1 when an error passes tol or its bound.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import elbotree as et
from elbotree.runtime.tails import Line

Array = NDArray[np.float64]
FEATURES = 32
FLOOR = 5e-13  # rounding of the reference


@dataclass(frozen=True)
class Job:
    """S = sum_i d_i alpha_i + N(0, sigma^2), alpha_i = 0 or, with probability p_i, a slab; P(S > q) is wanted."""

    joint: et.Joint
    q: float
    p: Array
    means: Array
    stds: Array  # normal slabs; 0 where the slab is exponential with the mean given
    d: Array
    sigma: float


def make_job(rng: np.random.Generator, deepest: float) -> Job:
    """A random read-out, and a threshold at a log-uniform probability between 0.5 and 10^-deepest."""
    p = rng.uniform(0.02, 0.4, FEATURES)
    means, stds = rng.uniform(0.3, 1.5, FEATURES), rng.uniform(0.1, 0.6, FEATURES)
    if rng.random() < 0.1:  # a tenth of the jobs has a pole in the moment generating function
        stds[rng.random(FEATURES) < 0.25] = 0.0
    slabs = [et.Normal(m, s) if s else et.Exponential(m) for m, s in zip(means, stds, strict=True)]
    priors = [et.SpikeSlab(share, slab) for share, slab in zip(p, slabs, strict=True)]
    d = rng.normal(size=FEATURES) * rng.gamma(1.0, 1.0, FEATURES)
    sigma = 10 ** rng.uniform(-1.3, -0.3) * math.sqrt(float((d**2).sum()) / FEATURES)
    joint = et.FeatureModel(d[None, :], priors, sigma).marginal([1.0])
    log_p = -rng.uniform(math.log(2.0), deepest * math.log(10.0))
    q = float(joint.isf(log_p=log_p, tol=1e-2).value)
    return Job(joint, q, p, means, stds, d, sigma)


def reference(job: Job) -> float:
    """log P by the plain trapezoidal rule away from the saddle, with a step and an extent for errors below 1e-18."""
    p, m, s, d = (x[:, None] for x in (job.p, job.means, job.stds, job.d))
    line = Line.of(job.joint.law)
    c0, K2 = line._saddle(job.q - line.shift, 1)
    end = line.domain[1]
    c = c0 * 1.07 if c0 * 1.07 < 0.5 * (c0 + end) else 0.7 * c0 + 0.3 * end

    def M(z: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """The moment generating function over the one at c, in closed form."""
        parts = []
        for t in (d * z, d * c):
            slab = np.where(
                s == 0, 1 / (1 - np.where(s == 0, t * m, 0)), np.exp(np.where(s == 0, 0, t * m + (t * s) ** 2 / 2))
            )
            parts.append(1 - p + p * slab)
        return np.asarray((parts[0] / parts[1]).prod(axis=0) * np.exp(0.5 * job.sigma**2 * (z**2 - c**2)))

    def log_mgf(x: float) -> float:
        return float(line._K(np.array([x]))[0])

    level = log_mgf(c) - c * (job.q - line.shift)
    above = min(c + 3 / math.sqrt(K2), 0.5 * (c + end))
    nats = 42.0
    period = max(nats / c, (log_mgf(above) - above * (job.q - line.shift) - level + nats) / (above - c))
    h = 2 * math.pi / period
    count = math.ceil(math.sqrt(2 * nats) / job.sigma / h)
    total = 0.0
    for start in range(0, count, 1024):
        k = np.arange(start, min(start + 1024, count))
        z = c + 1j * h * k
        terms = (M(z) * np.exp(-1j * h * k * job.q) / z).real
        terms[0] *= 0.5 if start == 0 else 1.0
        total += float(terms.sum())
    return level + math.log(h / math.pi * total)


def timed(call: Callable[[], Any], repeat: int = 3) -> tuple[Any, float]:
    """The result, and the least seconds of a few calls."""
    best, result = math.inf, None
    for _ in range(repeat):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return result, best


def gil_pelaez(job: Job) -> float:
    """P(S > q) = 1/2 + (1/pi) int Im(phi(y) e^{-i y q}) / y dy by scipy's quad."""

    def integrand(y: float) -> float:
        t = y * job.d
        slab = np.where(
            job.stds > 0, np.exp(1j * t * job.means - 0.5 * (t * job.stds) ** 2), 1 / (1 - 1j * t * job.means)
        )
        phi = np.prod(1 - job.p + job.p * slab) * np.exp(-0.5 * (job.sigma * y) ** 2 - 1j * y * job.q)
        return float(phi.imag) / y

    value, _ = quad(integrand, 0.0, 9.0 / job.sigma, limit=500, epsabs=1e-14, epsrel=1e-13)
    return 0.5 + value / math.pi


def openturns_law(job: Job) -> Any:
    """The same law in OpenTURNS; None where it is not installed."""
    try:
        ot = importlib.import_module("openturns")
    except ImportError:
        return None
    parts = []
    for p, m, s in zip(job.p.tolist(), job.means.tolist(), job.stds.tolist(), strict=True):
        slab = ot.Normal(m, s) if s else ot.Exponential(1 / m)
        parts.append(ot.Mixture([ot.Dirac(0.0), slab], [1 - p, p]))
    parts.append(ot.Normal(0.0, job.sigma))
    kind = getattr(ot, "LinearCombinationDistribution", None) or ot.RandomMixture
    return kind(parts, [*job.d.tolist(), 1.0])


def coverage(jobs: Sequence[Job], tol: float) -> bool:
    """Errors against the reference, bounds and times of all jobs; False when something passed tol or its bound."""
    errors, bounds, seconds, nodes, refused = [], [], [], [], 0
    for job in jobs:
        try:
            found, took = timed(lambda job=job: job.joint.tail(job.q, tol))
        except et.ToleranceError as error:
            refused += 1
            print("refused:", error)
            continue
        exact = reference(job)
        errors.append(abs(math.expm1(float(found.log_value) - exact)))
        bounds.append(float(found.relative_error) + FLOOR + 4e-16 * abs(exact))
        seconds.append(took)
        nodes.append(found.nodes)
    error, bound, took = np.array(errors), np.array(bounds), 1e3 * np.array(seconds)
    good, covered = error <= tol + FLOOR, error <= bound
    print(f"{len(jobs)} jobs, {FEATURES} spike-and-slab features, tol = {tol:g}")
    print(f"  error within tol         {good.sum()} of {len(jobs)}")
    print(f"  error within its bound   {covered.sum()} of {len(jobs)}")
    print(f"  refused                  {refused}")
    print(f"  error    median {np.median(error):.1e}   largest {error.max():.1e}")
    print(f"  bound    median {np.median(bound):.1e}   largest {bound.max():.1e}")
    print(f"  ms       median {np.median(took):.3f}   90 % {np.quantile(took, 0.9):.3f}   largest {took.max():.2f}")
    print(f"  nodes    median {np.median(nodes):.0f}   largest {max(nodes)}")
    return bool(good.all() and covered.all() and not refused)


def others(job: Job, tol: float) -> None:
    """The curve, the gradient, two read-outs, and ReLU, with one job's features."""
    mean, std = (float(job.joint.mean().value[0]), math.sqrt(float(job.joint.law.covariance()[0, 0])))
    grid = np.linspace(mean - 8 * std, mean + 10 * std, 10_000)
    for name, call in (("tail", job.joint.tail), ("density", job.joint.pdf)):
        _, took = timed(lambda call=call: call(grid, tol), 5)
        print(f"{name} of 10,000 points from -8 to +10 standard deviations: {1e3 * took:.1f} ms")
    _, forward = timed(lambda: job.joint.tail(job.q, tol), 20)
    _, took = timed(lambda: job.joint.tail_gradient(job.q), 20)
    print(f"gradient of log P in the weights: {1e3 * took:.2f} ms, {took / forward:.2f} times the tail itself")
    rng = np.random.default_rng(7)
    priors = job.joint.p1.priors
    model = et.FeatureModel(rng.normal(size=(FEATURES, FEATURES)) / 6, priors, 0.25)
    V = rng.normal(size=(2, FEATURES)) / 6
    pair = model.marginal(V)
    spread = np.sqrt(np.diag(pair.law.covariance()))
    for k in (0.0, 2.0, 6.0):
        q = pair.mean().value + k * spread
        found, took = timed(lambda q=q: pair.tail(q, tol))
        one = model.marginal(V[0]).tail(q[0], 1e-12)
        rest = pair.probability([(q[0], math.inf), (-math.inf, q[1])], tol)
        gap = abs((float(found.value) + float(rest.value)) / float(one.value) - 1)
        print(
            f"orthant of two read-outs at +{k:g} sd: P = {float(found.value):.3g}, {1e3 * took:.0f} ms, {found.nodes:,} nodes, "
            f"quadrants add up to {gap:.1e}"
        )
    n = 8
    A, w, u = rng.normal(size=(n, FEATURES)) / 6, rng.normal(size=n) / 2, rng.normal(size=n) / 2
    for psi in ("relu", "gelu"):
        joint = et.joint(et.Layer(A, w, u, psi), model, rng.normal(size=n))
        mean, second = float(joint.moment(1, 1e-4).value), float(joint.moment(2, 1e-4).value)
        q = mean + 6 * math.sqrt(second - mean**2)
        found, took = timed(lambda joint=joint, q=q: joint.tail(q, tol), 2)
        print(
            f"tail through {psi} at +6 sd: P = {float(found.value):.3g} +- {float(found.error):.1e}, {1e3 * took:.0f} ms"
        )


def peers(jobs: Sequence[Job], tol: float) -> None:
    """Everyone's relative error and time on the same few jobs."""
    for job in jobs:
        exact = reference(job)
        found, own = timed(lambda job=job: job.joint.tail(job.q, tol))
        error = abs(math.expm1(float(found.log_value) - exact))
        line = f"P = {math.exp(exact):8.1e}: elbotree {error:.0e} {1e3 * own:.2f} ms"
        value, took = timed(lambda job=job: gil_pelaez(job), 1)
        line += f"; scipy quad {abs(value / math.exp(exact) - 1):.0e} {1e3 * took:.0f} ms"
        law = openturns_law(job)
        if law is not None:
            value, took = timed(lambda law=law, job=job: law.computeComplementaryCDF(job.q), 1)  # it remembers answers
            line += f"; OpenTURNS {abs(value / math.exp(exact) - 1):.0e} {1e3 * took:.2f} ms (value {value:.3g})"
        print(line)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tail probabilities on random jobs: coverage, times, peers.")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tol", type=float, default=1e-10)
    parser.add_argument("--deepest", type=float, default=100.0, help="thresholds down to P = 10^-DEEPEST")
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(given.seed)
    jobs = [make_job(rng, given.deepest) for _ in range(given.jobs)]
    ok = coverage(jobs, given.tol)
    others(jobs[0], given.tol)
    peers([make_job(rng, deepest) for deepest in (1.0, 4.0, 10.0, 20.0, 100.0)], given.tol)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
