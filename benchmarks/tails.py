"""Tail probabilities on random jobs: does every error stay within tol and within the reported bound, and how long does a
query take? A job is a read-out of 32 spike-and-slab features plus noise and a threshold between P = 0.5 and P = 1e-100.

The reference shares no code with what it checks: the moment generating function is written out here, its contour is found
by bisection and lies away from the saddle, and the plain trapezoidal rule with a step and an extent for errors below 1e-18
is summed in extended precision (long double, where the platform has one); for a few jobs it is itself checked by mpmath
with 40 digits. Two read-outs are checked against the exact sum over the components of fewer features.

Then curves of 10,000 points, the gradient, poles, tails through ReLU and GELU; and, where it is installed, OpenTURNS'
LinearCombinationDistribution, with scipy's quad on the unshifted contour (Gil-Pelaez), on the same jobs. Times are
processor time, the least of a few calls.

    python benchmarks/tails.py --jobs 1000 --seed 0 --tol 1e-10

Exit status 1 when an error passes tol or its bound.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import log_ndtr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import elbotree as et

Array = NDArray[np.float64]
FEATURES = 32
FLOOR = 3000 * float(np.finfo(np.longdouble).eps)  # rounding of the reference
NATS = 44.0  # e^-44 = 8e-20: what the reference's sum leaves out


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


def make_job(rng: np.random.Generator, deepest: float, exactly: bool = False) -> Job:
    """A random read-out, and a threshold at a log-uniform probability between 0.5 and 10^-deepest, or at the latter."""
    p = rng.uniform(0.02, 0.4, FEATURES)
    means, stds = rng.uniform(0.3, 1.5, FEATURES), rng.uniform(0.1, 0.6, FEATURES)
    if rng.random() < 0.1:  # a tenth of the jobs has a pole in the moment generating function
        stds[rng.random(FEATURES) < 0.25] = 0.0
    slabs = [et.Normal(m, s) if s else et.Exponential(m) for m, s in zip(means, stds, strict=True)]
    priors = [et.SpikeSlab(share, slab) for share, slab in zip(p, slabs, strict=True)]
    d = rng.normal(size=FEATURES) * rng.gamma(1.0, 1.0, FEATURES)
    sigma = 10 ** rng.uniform(-1.3, -0.3) * math.sqrt(float((d**2).sum()) / FEATURES)
    joint = et.FeatureModel(d[None, :], priors, sigma).marginal([1.0])
    least = deepest * math.log(10.0)
    log_p = -least if exactly else -rng.uniform(math.log(2.0), least)
    q = float(joint.isf(log_p=log_p, tol=1e-2).value)
    return Job(joint, q, p, means, stds, d, sigma)


def log_mgf(job: Job, c: float) -> float:
    """log E e^{c S}."""
    t = c * job.d
    slab = np.where(
        job.stds > 0, t * job.means + (t * job.stds) ** 2 / 2, -np.log1p(-np.where(job.stds > 0, 0.0, t * job.means))
    )
    return float(np.logaddexp(np.log1p(-job.p), np.log(job.p) + slab).sum() + 0.5 * (job.sigma * c) ** 2)


def contour(job: Job, off_saddle: float) -> tuple[float, float, int]:
    """(c, step, count) of a trapezoidal rule whose aliases and truncation stay below e^-NATS of the result. With the period
    P = 2 pi / step the rule sums e^{cmP} P(S > q + mP) over all m; m < 0 stays below e^{-cP} / P(S > q) of the result."""
    poles = job.d * job.means * (job.stds == 0)
    end = float(1 / poles.max()) if (poles > 0).any() else math.inf

    def bound(c: float) -> float:  # log of c times the Chernoff bound: least near the saddle
        return log_mgf(job, c) - c * job.q - math.log(c)

    low, high = 1e-6 / job.sigma, (0.999999 * end if end < math.inf else 1e4 / job.sigma)
    for _ in range(200):  # golden section: the bound is convex up to a slowly varying term
        a, b = low + 0.382 * (high - low), low + 0.618 * (high - low)
        low, high = (low, b) if bound(a) < bound(b) else (a, high)
    saddle = 0.5 * (low + high)
    c = min(off_saddle * saddle, 0.5 * (saddle + end))
    level = log_mgf(job, c) - c * job.q
    away = np.geomspace(0.01, 100.0, 60) * saddle
    away = np.concatenate([away[c + away < end], (end - c) * np.linspace(0.1, 0.9, 9) if end < math.inf else []])
    right = min((log_mgf(job, c + x) - (c + x) * job.q - level + NATS + 2.0) / x for x in away.tolist())
    step = 2 * math.pi / max((NATS + 8.0 - level) / c, right)
    return c, step, math.ceil(math.sqrt(2 * NATS) / job.sigma / step)


def reference(job: Job) -> float:
    """log P in extended precision."""
    c, step, count = contour(job, 1.07)
    real, imaginary = np.longdouble, np.clongdouble
    p, m, s, d = (x.astype(real)[:, None] for x in (job.p, job.means, job.stds, job.d))
    sigma, q, at, pi = real(job.sigma), real(job.q), real(c), np.arctan(real(1)) * 4

    def transform(z: NDArray[Any]) -> NDArray[Any]:
        t = d * z
        pole = s == 0
        return (
            1
            - p
            + p
            * np.where(pole, 1 / (1 - np.where(pole, t * m, 0)), np.exp(np.where(pole, 0, t * m + (t * s) ** 2 / 2)))
        )

    level = np.log(transform(np.full(1, at))).sum() + (sigma * at) ** 2 / 2 - at * q
    below, total = transform(np.full(1, at)), real(0)
    for start in range(0, count, 1024):
        y = real(step) * np.arange(start, min(start + 1024, count)).astype(real)
        z = at + imaginary(1j) * y
        gauss = np.exp(sigma**2 * (z**2 - at**2) / 2 - imaginary(1j) * y * q)
        terms = ((transform(z) / below).prod(axis=0) * gauss / z).real
        total += terms.sum() - (terms[0] / 2 if start == 0 else 0)
    return float(level + np.log(real(step) / pi * total))


def reference_by_mpmath(job: Job) -> float:
    """log P with 40 digits, on another contour."""
    c, step, count = contour(job, 0.9)
    with mpmath.workdps(40):
        parts = [[mpmath.mpf(float(x)) for x in column] for column in (job.p, job.means, job.stds, job.d)]
        sigma, q, c_, h = (mpmath.mpf(x) for x in (job.sigma, job.q, c, step))
        total = mpmath.mpf(0)
        for k in range(count):
            z = mpmath.mpc(c_, k * h)
            value = mpmath.exp(sigma**2 * z**2 / 2 - z * q) / z
            for p, m, s, d in zip(*parts, strict=True):
                t = d * z
                value *= 1 - p + p * (mpmath.exp(t * m + (t * s) ** 2 / 2) if s else 1 / (1 - t * m))
            total += value.real / (2 if k == 0 else 1)
        return float(mpmath.log(h / mpmath.pi * total))


def timed(call: Callable[[], Any], repeat: int = 3) -> tuple[Any, float]:
    """The result, and the least processor time of a few calls in seconds."""
    best, result = math.inf, None
    for _ in range(repeat):
        start = time.process_time()
        result = call()
        best = min(best, time.process_time() - start)
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
            found, took = timed(lambda job=job: job.joint.tail(job.q, tol), 10)
        except et.ToleranceError as error:
            refused += 1
            print("refused:", error)
            continue
        exact = reference(job)
        errors.append(abs(math.expm1(float(found.log_value) - exact)))
        bounds.append(float(found.relative_error) + FLOOR * (1 + abs(exact)))
        seconds.append(took)
        nodes.append(found.nodes)
    error, bound, took = np.array(errors), np.array(bounds), 1e3 * np.array(seconds)
    good, covered = error <= tol, error <= bound
    print(f"{len(jobs)} jobs, {FEATURES} spike-and-slab features, tol = {tol:g}")
    print(f"  error within tol         {good.sum()} of {len(jobs)}")
    print(f"  error within its bound   {covered.sum()} of {len(jobs)}")
    print(f"  refused                  {refused}")
    print(f"  error    median {np.median(error):.1e}   largest {error.max():.1e}")
    print(f"  bound    median {np.median(bound):.1e}   largest {bound.max():.1e}")
    print(f"  ms       median {np.median(took):.3f}   99 % {np.quantile(took, 0.99):.3f}   largest {took.max():.3f}")
    print(f"  nodes    median {np.median(nodes):.0f}   largest {max(nodes)}")
    return bool(good.all() and covered.all() and not refused)


def orthants(tol: float) -> bool:
    """P(S_1 > q_1, S_2 > q_2) of two read-outs of ten features against the sum over all 1,024 sets of slabs that are on, each
    a bivariate normal by Gauss-Legendre; False when an error passes tol or its bound."""
    rng = np.random.default_rng(11)
    count = 10
    p, m, s = rng.uniform(0.1, 0.4, count), rng.uniform(0.3, 1.5, count), rng.uniform(0.1, 0.6, count)
    D = rng.normal(size=(2, count))
    priors = [et.SpikeSlab(*each) for each in zip(p, (et.Normal(*law) for law in zip(m, s, strict=True)), strict=True)]
    pair = et.FeatureModel(D, priors, 0.4).marginal(np.eye(2))
    spread, mean = np.sqrt(np.diag(pair.law.covariance())), pair.mean().value
    ok = True
    for k in (0.0, 2.0, 4.0, 6.0):
        q = mean + k * spread
        logs = []
        for on in itertools.product((0.0, 1.0), repeat=count):
            z = np.array(on)
            weight = float(np.where(z > 0, np.log(p), np.log1p(-p)).sum())
            logs.append(weight + log_orthant(q - D @ (z * m), (D * (z * s**2)) @ D.T + 0.16 * np.eye(2)))
        exact = float(np.logaddexp.reduce(logs))
        found = pair.tail(q, tol)
        error = abs(math.expm1(float(found.log_value) - exact))
        ok &= error <= tol and error <= float(found.relative_error) + 1e-13
        print(
            f"orthant of ten features at +{k:g} sd: P = {float(found.value):.3g}, error {error:.0e} against 1,024 components"
        )
    return ok


def log_orthant(q: Array, covariance: Array) -> float:
    """log P(X > q) of N(0, covariance) in the plane: int_{q_1} phi(x) P(X_2 > q_2 | x) dx, around the integrand's peak."""
    a, b, c = covariance[0, 0], covariance[0, 1], covariance[1, 1]
    rest = math.sqrt(c - b * b / a)
    x = np.linspace(q[0], max(q[0], 0.0) + 40 * math.sqrt(a), 4001)

    def log_density(x: Array) -> Array:
        return -0.5 * x**2 / a - 0.5 * math.log(2 * math.pi * a) + log_ndtr((b / a * x - q[1]) / rest)

    near = x[log_density(x) > log_density(x).max() - 45.0]
    low, high = max(q[0], near[0] - (x[1] - x[0])), near[-1] + (x[1] - x[0])
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(low, high, 17)
    half = 0.5 * np.diff(edges)
    at = (0.5 * (edges[1:] + edges[:-1]))[:, None] + half[:, None] * nodes
    values = log_density(at.ravel()) + np.log(np.outer(half, weights).ravel())
    return float(np.logaddexp.reduce(values))


def poles(tol: float) -> bool:
    """Exponential slabs, which put a pole beside the contour: errors, nodes and times down to 1e-300."""
    rng = np.random.default_rng(5)
    p, means, d = rng.uniform(0.02, 0.4, FEATURES), rng.uniform(0.3, 1.5, FEATURES), rng.normal(size=FEATURES)
    priors = [et.SpikeSlab(share, et.Exponential(mean)) for share, mean in zip(p, means, strict=True)]
    joint = et.FeatureModel(d[None, :], priors, 0.1).marginal([1.0])
    ok = True
    for digits in (2, 10, 50, 100, 226, 300):
        q = float(joint.isf(log_p=-digits * math.log(10.0), tol=1e-2).value)
        job = Job(joint, q, p, means, np.zeros(FEATURES), d, 0.1)
        found, took = timed(lambda q=q: joint.tail(q, tol))
        error = abs(math.expm1(float(found.log_value) - reference(job)))
        ok &= error <= tol and error <= float(found.relative_error) + FLOOR * (1 + digits)
        print(f"poles, P = 1e-{digits}: error {error:.0e}, {found.nodes:,} nodes, {1e3 * took:.2f} ms")
    return ok


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
        print(
            f"orthant of two read-outs of {FEATURES} features at +{k:g} sd: P = {float(found.value):.3g}, {1e3 * took:.0f} ms, "
            f"{found.nodes:,} nodes"
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
    parser.add_argument("--mpmath", type=int, default=5, help="jobs whose reference is checked by mpmath")
    parser.add_argument("--deepest", type=float, default=100.0, help="thresholds down to P = 10^-DEEPEST")
    given = parser.parse_args(arguments)
    rng = np.random.default_rng(given.seed)
    jobs = [make_job(rng, given.deepest) for _ in range(given.jobs)]
    for job in jobs[: given.mpmath]:
        gap = abs(reference(job) - reference_by_mpmath(job))
        print(f"the reference against mpmath: {gap:.0e} in log P = {reference(job):.6g}")
    ok = coverage(jobs, given.tol)
    ok &= orthants(given.tol)
    ok &= poles(given.tol)
    others(jobs[0], given.tol)
    peers([make_job(rng, deepest, exactly=True) for deepest in (1.0, 4.0, 8.0, 14.0, 100.0)], given.tol)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
