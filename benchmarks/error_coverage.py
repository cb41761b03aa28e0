"""Does `error` cover the truth? Random problems, each evaluated by the spectral engine and by the slow independent
oracle of tests/reference. Printed per term: how often the reported error covers the true one, the median overestimate,
the smallest one; then every miss, crash and slow problem, each reproducible by its number. Exit status 1 when there is
one.

    python benchmarks/error_coverage.py --problems 200 --seed 1 --tol 1e-6
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import elbotree as et
from elbotree.codegen import generate
from elbotree.runtime.errors import ElbotreeError, ToleranceError
from elbotree.runtime.spectral import SpectralExpectations
from elbotree.runtime.values import NAMES, Values
from tests.reference import oracle
from tests.stress.outcomes import Overtime, at_most

Spec = dict[str, Any]
Rng = np.random.Generator

FAMILIES = ("bernoulli", "normal", "normal_scale", "exponential", "tilted")
PSI = (
    *("relu", "tanh", "heaviside", "hardtanh", "softplus", "sigmoid", "abs", "gelu", "sign", "identity", "square"),
    *("b*tanh(b)/(1 + b**2)", "max(b, 0) - max(b - 1, 0)/2", "sin(3*b) + abs(b)", "max(b, 0)**2", "tanh(5*b)"),
)

_ORACLE_POINTS = 5e7  # a problem for which the oracle needs more is drawn again
_ROUNDING = 1e-13  # of the oracle, relative to max(1, |value|)


# ---------------------------------------------------------------- drawing


def log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _slab(rng: Rng) -> Spec:
    """A continuous law on the whole line."""
    kind = rng.choice(["normal", "laplace", "mixture"])
    if kind == "normal":
        return {"kind": "normal", "mean": rng.normal(), "std": log_uniform(rng, 0.2, 2)}
    if kind == "laplace":
        return {"kind": "laplace", "mean": rng.normal(), "scale": log_uniform(rng, 0.2, 1.5)}
    weight = rng.uniform(0.05, 0.95)
    parts = [{"kind": "normal", "mean": rng.normal(), "std": log_uniform(rng, 0.1, 2)} for _ in range(2)]
    return {"kind": "mixture", "weights": [weight, 1 - weight], "components": parts}


def _positive(rng: Rng) -> Spec:
    """A continuous law on the positive half line."""
    if rng.random() < 0.5:
        return {"kind": "exponential", "scale": log_uniform(rng, 0.2, 2)}
    return {"kind": "gamma", "shape": log_uniform(rng, 0.4, 5), "scale": log_uniform(rng, 0.2, 1.5)}


def _points(rng: Rng) -> Spec:
    count = int(rng.integers(2, 4))
    masses = rng.dirichlet(np.full(count, 0.7)) + 1e-3
    points = np.sort(rng.normal(size=count)) * log_uniform(rng, 0.3, 5)
    return {"kind": "discrete", "points": points.tolist(), "masses": (masses / masses.sum()).tolist()}


def input_prior(rng: Rng, continuous: bool) -> Spec:
    """A prior of a coordinate of z1: sparse, dense, skewed or, if allowed, continuous and not normal."""
    if continuous:
        pick = rng.integers(4)
        if pick == 0:
            low = rng.normal()
            return {"kind": "uniform", "low": low, "high": low + log_uniform(rng, 0.3, 3)}
        if pick == 1:
            return {"kind": "laplace", "mean": rng.normal(), "scale": log_uniform(rng, 0.1, 1)}
        if pick == 2:
            return {"kind": "spike_slab", "p": rng.uniform(0.05, 0.9), "slab": _positive(rng)}
        return _positive(rng)
    pick = rng.integers(6)
    if pick == 0:
        return {"kind": "normal", "mean": rng.normal(), "std": log_uniform(rng, 0.05, 2)}
    if pick == 1:
        return _points(rng)
    if pick == 2:
        slab = {"kind": "normal", "mean": rng.normal(), "std": log_uniform(rng, 0.1, 2)}
        return {"kind": "spike_slab", "p": rng.uniform(0.02, 0.95), "slab": slab}
    if pick == 3:  # rare and large
        p = log_uniform(rng, 1e-4, 0.05)
        return {"kind": "discrete", "points": [0.0, rng.uniform(3, 10)], "masses": [1 - p, p]}
    return {"kind": "bernoulli", "p": log_uniform(rng, 0.01, 0.5) if rng.random() < 0.7 else rng.uniform(0.5, 0.99)}


def feature(rng: Rng, family: str) -> tuple[Spec, Spec]:
    """A posterior (without C and bias) and a prior that covers it."""
    if family == "bernoulli":
        return {"family": family}, {"kind": "bernoulli", "p": rng.uniform(0.02, 0.98)}
    if family == "normal":
        return {"family": family, "std": log_uniform(rng, 0.1, 2)}, _slab(rng)
    if family == "normal_scale":
        return {"family": family}, _slab(rng) if rng.random() < 0.5 else {"kind": "normal", "mean": 0.0, "std": 1.0}
    if family == "exponential":
        return {"family": family}, _positive(rng)
    base = [_points, _positive, _slab, _spike][int(rng.integers(4))](rng)
    return {"family": family, "precision": log_uniform(rng, 0.3, 5), "base": base}, base


def _spike(rng: Rng) -> Spec:
    slab = {"kind": "normal", "mean": rng.normal(), "std": log_uniform(rng, 0.3, 2)}
    return {"kind": "spike_slab", "p": rng.uniform(0.05, 0.9), "slab": slab}


def _row(rng: Rng, u: np.ndarray, sharp: float) -> list[float]:
    """A row of C: usually any direction; now and then zero, along u, or a coordinate."""
    pick = rng.random()
    if pick < 0.04:
        return [0.0] * len(u)
    row = rng.normal(size=len(u)) if pick > 0.2 else u + 1e-300 if pick < 0.12 else np.eye(len(u))[0]
    return [float(v) for v in sharp * row / max(1e-12, float(np.linalg.norm(row)))]


def draw(rng: Rng) -> tuple[Spec, str]:
    """A random problem that the oracle can do in seconds, and the name of its psi."""
    while True:
        spec, psi = _draw(rng)
        if oracle_cost(spec, psi) <= _ORACLE_POINTS:
            return spec, psi


def _draw(rng: Rng) -> tuple[Spec, str]:
    n1, n2, m1, m2 = (int(v) for v in rng.integers(1, 5, size=4))
    psi = str(rng.choice(PSI))
    A = rng.normal(size=(n2, n1)) * log_uniform(rng, 0.3, 1.5) / np.sqrt(n1)
    if rng.random() < 0.2 and min(n1, n2) > 1:
        A = np.outer(rng.normal(size=n2), rng.normal(size=n1)) / np.sqrt(n1)
    u = rng.normal(size=n2) * log_uniform(rng, 0.2, 2)
    w = rng.normal(size=n2) * log_uniform(rng, 0.1, 1.5)
    noise = log_uniform(rng, 0.01, 1.0)
    continuous = rng.integers(m1) if noise > 0.1 and rng.random() < 0.35 else -1
    sharp = log_uniform(rng, 0.1, 30)
    picked = [feature(rng, str(rng.choice(FAMILIES))) for _ in range(m2)]
    encoder = []
    for posterior, _ in picked:
        # exponents of a density grow like c^2: posteriors on the line stay at slopes where the loss is not astronomic
        slope = sharp if posterior["family"] == "bernoulli" else min(sharp, 4.0)
        t = 2 if posterior["family"] == "normal_scale" else 1
        C = [_row(rng, u, slope if r == 0 else min(slope, 1.0)) for r in range(t)]
        bias = (rng.normal(size=t) * (slope if rng.random() < 0.3 else 1.0)).tolist()
        encoder.append({**posterior, "C": C, "bias": bias})
    layer: Spec = {"A": A.tolist(), "w": w.tolist(), "u": u.tolist(), "psi": psi}
    B1 = rng.normal(size=(n1, m1)) * log_uniform(rng, 0.3, 1.5)
    first: Spec = {
        "B": B1.tolist(),
        "noise_std": noise,
        "priors": [input_prior(rng, i == continuous) for i in range(m1)],
    }
    second: Spec = {
        "B": rng.normal(size=(n2, m2)).tolist(),
        "noise_std": log_uniform(rng, 0.1, 1.5),
        "priors": [prior for _, prior in picked],
    }
    if rng.random() < 0.5:
        layer |= {"offset": rng.normal(size=n2).tolist(), "threshold": float(rng.normal())}
        first["offset"] = rng.normal(size=n1).tolist()
        second["offset"] = rng.normal(size=n2).tolist()
    spec = {"format": "elbotree-problem/1", "layer": layer, "input": first, "model": second, "encoder": encoder}
    return json.loads(json.dumps(spec)), psi


def oracle_cost(spec: Spec, psi: str) -> float:
    """How many points the oracle would visit, roughly: components, panels in b, a lattice across them for each pair."""
    p = oracle.plain(spec)
    total = 0.0
    for mixture in oracle.mixtures(p):
        spread = float(np.linalg.norm(mixture.R.T @ p.u))
        e = mixture.R @ (mixture.R.T @ p.u) / max(spread, 1e-300)
        along = max(float(np.linalg.norm(C @ e) + np.linalg.norm(C @ p.w) * spread) for C in p.C)
        across = max(float(np.linalg.norm(C @ mixture.R)) for C in p.C)
        panels = 20 / 0.85 * max(1.0, 0.5 * oracle._steepness(p) * along, spread) + 2
        total += mixture.weight.size * 16 * panels * 36 * max(1.0, across) * len(p.C) ** 2 / 2
    return total


# ---------------------------------------------------------------- running


@dataclass
class Outcome:
    """What one problem gave: ratios error / truth per term, or what went wrong."""

    number: int
    seconds: float = 0.0
    oracle_seconds: float = 0.0
    overestimates: dict[str, float] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)
    refused: str = ""
    crashed: str = ""
    skipped: str = ""


def evaluate(spec: Spec, psi: str, tol: float) -> Values:
    """As `et.evaluate`, but a missed tolerance is the caller's to look at."""
    problem = et.Problem.from_dict(spec)
    kernels = generate(psi, FAMILIES)
    start = time.process_time()
    estimates = kernels.evaluate(SpectralExpectations.for_problem(problem, tol), problem)
    return Values.of(estimates, tol=tol, seconds=time.process_time() - start)


def run(number: int, seed: int, tol: float, limit: float) -> Outcome:
    """Draw problem `number`, evaluate it, and compare every term with the oracle."""
    spec, psi = draw(np.random.default_rng([seed, number]))
    outcome = Outcome(number)
    generate(psi, FAMILIES)
    try:
        with at_most(limit):
            values = evaluate(spec, psi, tol)
    except ElbotreeError as error:
        outcome.refused = f"{type(error).__name__}: {error}"
        return outcome
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome.crashed = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        return outcome
    outcome.seconds = float(values.seconds or 0.0)
    try:
        values.require(tol)
    except ToleranceError as error:
        outcome.refused = f"ToleranceError: {error}"
    start = time.process_time()
    try:
        with at_most(limit):
            truth = oracle.reference_terms(spec)
            compare(outcome, values, truth)
            if outcome.misses:  # the oracle may be the one that is wrong: ask it again, finer
                finer = oracle.reference_terms(spec, resolution=1.6)
                outcome.misses.clear()
                compare(outcome, values, finer, truth)
    except (Overtime, ArithmeticError, ValueError, MemoryError) as error:
        undecided = f" (undecided: {'; '.join(outcome.misses)})" if outcome.misses else ""
        outcome.skipped = f"the oracle: {type(error).__name__}: {error}{undecided}"
        outcome.misses.clear()
        outcome.overestimates.clear()
    outcome.oracle_seconds = time.process_time() - start
    return outcome


def compare(outcome: Outcome, values: Values, truth: dict[str, float], other: dict[str, float] | None = None) -> None:
    """Note each term's overestimate, and a miss where the error is smaller than the true one (or the oracle's)."""
    for name in NAMES:
        term, scale = values[name], max(1.0, abs(truth[name]))
        own = _ROUNDING * scale + (0.0 if other is None else 2 * abs(truth[name] - other[name]))
        off = abs(term.value - truth[name])
        outcome.overestimates[name] = max(term.error, own) / max(off, own)
        if not off <= term.error + own:
            outcome.misses.append(f"{name} = {term.value:.12g} is off by {off:.1e}, error {term.error:.1e}")


# ---------------------------------------------------------------- reporting


def table(outcomes: list[Outcome]) -> str:
    """Per term: coverage, median overestimate, and the smallest ratio of error to truth."""
    done = [o for o in outcomes if o.overestimates]
    lines = [f"{'term':5s} {'covered':>9s} {'median overestimate':>20s} {'smallest':>10s}"]
    for name in NAMES:
        ratios = np.array([o.overestimates[name] for o in done])
        missed = sum(any(m.startswith(f"{name} ") for m in o.misses) for o in done)
        if len(ratios):
            lines.append(
                f"{name:5s} {100 * (1 - missed / len(done)):8.2f}% {np.median(ratios):20.3g} {ratios.min():10.2g}"
            )
    every = np.array([ratio for o in done for ratio in o.overestimates.values()])
    if len(every):
        lines.append(f"{'all':5s} {'':>9s} {np.median(every):20.3g} {every.min():10.2g}")
    return "\n".join(lines)


def report(outcomes: list[Outcome], slow: float, say: Callable[[str], None]) -> bool:
    """Print everything; whether there was a miss, a crash or a slow problem."""
    seconds = np.array([o.seconds for o in outcomes if o.seconds > 0])
    kinds = [(o.misses, o.crashed, o.skipped) for o in outcomes]
    refused = Counter(o.refused.split(":")[0] for o in outcomes if o.refused)
    say(table(outcomes))
    missed, crashed, skipped = (sum(bool(x) for x in column) for column in zip(*kinds, strict=True))
    say(f"{len(outcomes)} problems: {missed} with a miss, {crashed} crashed, {skipped} without an oracle")
    say(f"refused: {dict(refused)}")
    if len(seconds):
        checking = sum(o.oracle_seconds for o in outcomes)
        say(
            f"processor seconds: median {np.median(seconds):.2f}, 90 % {np.quantile(seconds, 0.9):.2f}, worst {seconds.max():.1f}"
        )
        say(f"the oracle took {checking:.0f} in all")
    for o in outcomes:
        for kind, text in (("MISS", "; ".join(o.misses)), ("CRASH", o.crashed), ("refused", o.refused)):
            if text:
                say(f"{kind} {o.number}: {text[:300]}")
        if o.skipped:
            say(f"skipped {o.number}: {o.skipped[:300]}")
        if o.seconds > slow:
            say(f"SLOW {o.number}: {o.seconds:.1f} s")
    return any(o.misses or o.crashed or o.seconds > slow for o in outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=100, metavar="N", help="how many to draw (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the drawing (default: 0)")
    parser.add_argument("--tol", type=float, default=1e-6, metavar="T", help="tolerance of the terms (default: 1e-6)")
    parser.add_argument("--only", type=int, metavar="K", help="the problem of this number alone")
    parser.add_argument("--show", action="store_true", help="print the problem as JSON (with --only)")
    parser.add_argument("--slow", type=float, default=20.0, help="processor seconds that make a failure (default: 20)")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="processor seconds after which one is stopped (default: 60)"
    )
    parser.add_argument("--memory", type=float, default=8.0, metavar="GiB", help="that may be taken (default: 8)")
    arguments = parser.parse_args()
    # an oracle that asks for more is told so, and the problem counts as one without; the machine would end the program
    resource.setrlimit(resource.RLIMIT_AS, (int(arguments.memory * 2**30), resource.RLIM_INFINITY))
    numbers = range(arguments.problems) if arguments.only is None else [arguments.only]
    if arguments.show and arguments.only is not None:
        print(json.dumps(draw(np.random.default_rng([arguments.seed, arguments.only]))[0]))
        return 0
    outcomes = []
    for number in numbers:
        outcomes.append(run(number, arguments.seed, arguments.tol, arguments.limit))
        for text in (*outcomes[-1].misses, outcomes[-1].crashed):
            if text:
                print(f"\r{number}: {text[:160]}", file=sys.stderr)
        print(f"\r{len(outcomes)}/{len(numbers)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return int(report(outcomes, arguments.slow, print))


if __name__ == "__main__":
    sys.exit(main())
