"""Random small problems with extremes of numbers in them, each right or refused: whatever `evaluate` returns must lie within its
error of the oracle of tests/reference, where that can tell.

    python -m tests.stress.extremes --seconds 600 --seed 1        --only 17: the seventeenth alone

Extremes: single numbers replaced by (or multiplied with) 1e-300, 1e300, 1e6, 1e-8 beside 1e8, standard deviations of 1e-12 and
1e12, denormals and -0.0; dimensions of 1 and 0; masses whose sum is 1 but for rounding; a steep or a narrow psi; features twice.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import elbotree as et
from tests.reference import oracle
from tests.stress.outcomes import Overtime, at_most, bounded_memory, command_line, own_error_or_fine

Form = dict[str, Any]
Rng = np.random.Generator
Array = NDArray[np.float64]

PSI: dict[str, tuple[Callable[[Array], Array], tuple[float, ...]]] = {
    **{name: oracle.PSI[name] for name in ("relu", "tanh", "sign", "hardtanh", "gelu", "identity", "abs", "square", "zero")},
    # panels of the oracle end where something happens
    "tanh(1e3*b)": (lambda b: np.tanh(1e3 * b), tuple(k * 1e-3 for k in range(-20, 21))),
    "exp(-(1e3*(b - 0.3))**2)": (lambda b: np.exp(-((1e3 * (b - 0.3)) ** 2)), tuple(0.3 + k * 5e-4 for k in range(-16, 17))),
    "max(b, 0) + 1/(1 + (100*(b + 0.2))**2)": (
        lambda b: np.maximum(b, 0) + 1 / (1 + (100 * (b + 0.2)) ** 2),
        (0.0, *(-0.2 + s * 0.004 * 1.6**k for k in range(12) for s in (-1, 1)), -0.2),
    ),
}  # fmt: skip
NUMBERS = 0.0, -0.0, 5e-324, 1e-300, 1e-12, 1e-8, 1e-3, 1e3, 1e6, 1e8, 1e12, 1e300
SECONDS, BYTES = 20.0, 2**31  # of one evaluation; what would take more is refused
POSITIVE = "noise_std", "std", "scale", "p", "precision"  # negative ones are refused and tell no more
ORACLE_SECONDS, ORACLE_BYTES, ORACLE_RELATIVE = 3.0, 2 * 2**30, 1e-10


# -- drawing ----------------------------------------------------------------------------------------------------------
def law(rng: Rng, line: bool = False) -> Form:
    """A prior; on the whole line where a posterior is."""
    x, s = float(rng.normal()), float(np.exp(rng.normal()))
    kinds: list[Form] = [{"kind": "normal", "mean": x, "std": s}, {"kind": "laplace", "mean": x, "scale": s}]
    if line:
        return kinds[rng.integers(2)]
    masses = rng.dirichlet(np.ones(3))
    masses[0] += rng.choice([0.0, 1e-16, -1e-16, 1e-10, -1e-10])  # 1 but for rounding, or within 1e-9
    kinds += [{"kind": "discrete", "points": np.sort(rng.normal(size=3)).tolist(), "masses": np.abs(masses).tolist()}]
    kinds += [{"kind": "bernoulli", "p": float(rng.choice([0.3, 0.5, 1e-300, 5e-324, 1 - 2**-53, 1e-8]))}]
    kinds += [{"kind": "spike_slab", "p": 0.3, "slab": kinds[0]}, {"kind": "uniform", "low": x, "high": x + s}]
    return kinds[rng.integers(len(kinds))]


def feature(rng: Rng) -> tuple[Form, Form]:
    """A posterior without its numbers, and a prior that covers it."""
    family = str(rng.choice(["bernoulli", "normal", "normal_scale", "exponential", "tilted"]))
    if family == "bernoulli":
        return {"family": family}, {"kind": "bernoulli", "p": float(rng.uniform(0.05, 0.95))}
    if family == "exponential":
        return {"family": family}, {"kind": "exponential", "scale": float(np.exp(rng.normal()))}
    if family == "tilted":
        base = law(rng)
        return {"family": family, "precision": float(np.exp(rng.normal())), "base": base}, base
    return {"family": family, **({"std": 0.7} if family == "normal" else {})}, law(rng, line=True)


def places(form: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all numbers."""
    items = form.items() if isinstance(form, dict) else enumerate(form) if isinstance(form, list) else ()
    for key, item in items:
        if isinstance(item, float) and "masses" not in path:
            yield (*path, key)
        else:
            yield from places(item, (*path, key))


def draw(rng: Rng) -> tuple[Form, float]:
    """A problem and a tolerance."""
    n1, n2, m1, m2 = (int(rng.choice(of)) for of in ([1, 2], [1, 2, 3], [0, 1, 2], [0, 1, 2]))
    picked = [feature(rng) for _ in range(m2)]
    encoder = []
    for posterior, _ in picked:
        t = 2 if posterior["family"] == "normal_scale" else 1
        encoder.append({**posterior, "C": rng.normal(size=(t, n2)).tolist(), "bias": rng.normal(size=t).tolist()})
    form: Form = {
        "format": "elbotree-problem/1",
        "layer": {
            "A": rng.normal(size=(n2, n1)).tolist(), "w": rng.normal(size=n2).tolist(), "u": rng.normal(size=n2).tolist(),
            "psi": str(rng.choice(list(PSI))), "offset": rng.normal(size=n2).tolist(), "threshold": float(rng.normal()),
        },
        "input": {
            "B": rng.normal(size=(n1, m1)).tolist(), "noise_std": float(rng.choice([0.3, 0.05, 1.0])),
            "priors": [law(rng) for _ in range(m1)],
        },
        "model": {
            "B": rng.normal(size=(n2, m2)).tolist(), "noise_std": 0.5, "priors": [prior for _, prior in picked],
        },
        "encoder": encoder,
    }  # fmt: skip
    if m2 == 2 and rng.random() < 0.15:  # a feature twice
        form["encoder"][1], form["model"]["priors"][1] = form["encoder"][0], form["model"]["priors"][0]
        form = copy.deepcopy(form)
    every = list(places(form))
    for _ in range(rng.integers(4)):
        path = every[rng.integers(len(every))]
        holder: Any = form
        for step in path[:-1]:
            holder = holder[step]
        value = float(rng.choice(NUMBERS)) * (1.0 if path[-1] in POSITIVE else float(rng.choice([1.0, -1.0])))
        with np.errstate(all="ignore"):
            holder[path[-1]] = float(value if rng.random() < 0.5 else np.float64(holder[path[-1]]) * value)
    if rng.random() < 0.15:  # units
        unit = float(rng.choice([1e-8, 1e-4, 1e4, 1e8]))
        for part in ("input", "model"):
            form[part]["B"] = [[unit * x for x in row] for row in form[part]["B"]]
            form[part]["noise_std"] *= unit
        for q in form["encoder"]:
            q["C"] = [[x / unit for x in row] for row in q["C"]]
    return form, float(rng.choice([1e-3, 1e-6]))


# -- deciding ---------------------------------------------------------------------------------------------------------
def truth(form: Form, resolutions: tuple[float, ...]) -> tuple[dict[str, float], dict[str, float]] | None:
    """The terms, and by how much they are known: what resolutions differ by; None where the oracle cannot tell."""
    try:
        with at_most(ORACLE_SECONDS), bounded_memory(ORACLE_BYTES), np.errstate(all="ignore"):
            psi = PSI[form["layer"]["psi"]]
            found = [oracle.reference_terms(form, psi, resolution) for resolution in resolutions]
    except (Overtime, ArithmeticError, ValueError, MemoryError, IndexError):
        return None
    finest = found[-1]
    if not all(math.isfinite(value) and abs(value) < 1e290 for value in finest.values()):
        return None
    apart = {name: max(abs(value - other[name]) for other in found) for name, value in finest.items()}
    return finest, {name: 2 * apart[name] + ORACLE_RELATIVE * max(1.0, abs(value)) for name, value in finest.items()}


def decided(form: Form, tol: float) -> str:
    """What came of a problem: refused, right, or undecided where the oracle has nothing to say. AssertionError for a number that is
    wrong, or that misses its tolerance."""
    found: list[Any] = []
    with np.errstate(all="ignore"):
        fine = own_error_or_fine(
            lambda: found.append(et.evaluate(et.Problem.from_dict(form), tol, max_seconds=SECONDS, max_memory=BYTES))
        )
    if not fine:
        return "refused"
    (values,) = found
    for name, term in values.items():
        assert math.isfinite(term.value), (name, term)
        assert 0 <= term.error <= tol * max(1.0, abs(term.value)), (name, term)
    misses: list[Any] = []
    # where they differ the oracle may be the one that is wrong (a Laplace law of scale 1e-12): it is asked again, finer
    for resolutions in ((1.0, 1.5), (1.0, 1.5, 2.2, 3.0)):
        known = truth(form, resolutions)
        if known is None:
            return "undecided"
        misses = [
            (name, term, known[0][name])
            for name, term in values.items()
            if abs(term.value - known[0][name]) > term.error + known[1][name]
        ]
        if not misses:
            return "right"
    raise AssertionError(misses)


def one(seed: Any) -> str:
    """Draw a problem and decide it; one in five by the command line too, which must come to the same."""
    rng = np.random.default_rng(seed)
    form, tol = draw(rng)
    outcome = decided(form, tol)
    if rng.random() < 0.2:
        words = ["evaluate", "P", "--tol", str(tol), "--max-seconds", str(SECONDS), "--max-memory", str(BYTES >> 20)]
        with np.errstate(all="ignore"):
            status = command_line([*words, "--format", "json"], form)
        assert (status == 0) == (outcome != "refused"), (status, outcome)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="left out: another one each time, which is printed")
    parser.add_argument("--only", type=int, help="the number of one problem")
    given = parser.parse_args()
    given.seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    end, found, slowest = time.monotonic() + given.seconds, Counter[str](), (0.0, -1)
    for number in [given.only] if given.only is not None else itertools.count():
        begun = time.process_time()
        try:
            outcome = one([given.seed, number])
        except Exception as error:
            outcome = "WRONG" if isinstance(error, AssertionError) else "CRASH"
            print(f"{outcome} {number}: {type(error).__name__}: {str(error)[:400]}", flush=True)
        found[outcome] += 1
        slowest = max(slowest, (time.process_time() - begun, number))
        if time.monotonic() > end:
            break
    print(f"seed {given.seed}, {sum(found.values())} problems: {dict(found)}")
    print(f"the slowest, number {slowest[1]}, took {slowest[0]:.1f} s")
    raise SystemExit(bool(found["WRONG"] or found["CRASH"]))


if __name__ == "__main__":
    main()
