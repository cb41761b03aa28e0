"""The part of a report about laws of read-outs: densities against histograms of samples with their bands, and tails on a
logarithmic axis. Probabilities come from `elbotree.joint` and `FeatureModel.marginal`; samples are a check beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from elbotree.charts import Band, Dots, Line, chart
from elbotree.html import Markup, tag
from elbotree.runtime.chain import Chain
from elbotree.runtime.errors import ElbotreeError
from elbotree.runtime.joint import Joint, joint
from elbotree.runtime.models import Problem
from elbotree.runtime.output_law import OutputLaw

Array = NDArray[np.float64]

#: Bins and points of a tail where psi plays no part in the read-out, and where it does, which costs far more a point.
BINS, TAIL_POINTS = (40, 24), (25, 13)
#: The outermost bins end where this much of the law is left; tails go on down to `DEEPEST`.
OUTSIDE, DEEPEST = 1e-4, 1e-15
#: How many read-outs a report shows unless told otherwise.
READ_OUTS = 2
_TOL = 1e-5
_ROUGH = 0.05  # tolerance of where a drawing ends
_SAMPLES = 2  # how samples look; laws take 0 and 1


@dataclass(frozen=True)
class ReadOut:
    """What is drawn of one read-out <v, x>.

    name       what it is
    edges      of the bins
    densities  label -> P(bin) / width under each law, the first one the law that the samples are drawn from
    x, tails   label -> P(read-out > x)
    samples    the read-out of each sample; None where no check was asked for
    note       why there is nothing to draw; "" otherwise
    """

    name: str
    edges: Array = field(default_factory=lambda: np.zeros(0))
    densities: Mapping[str, Array] = field(default_factory=dict)
    x: Array = field(default_factory=lambda: np.zeros(0))
    tails: Mapping[str, Array] = field(default_factory=dict)
    samples: Array | None = None
    note: str = ""


def of_problem(problem: Problem, check_samples: int | None, seed: int, count: int = READ_OUTS) -> list[ReadOut]:
    """f(x1) along w and along its widest coordinates, `count` read-outs in all: the exact law (Lemma 3.4), the model's, and
    samples if asked for."""
    first, second, _ = OutputLaw(problem.layer, problem.input, 1e-6).f_moments
    variances = np.diag(second) - first**2
    rows = dict(_widest(variances, count))
    length = float(np.linalg.norm(problem.layer.w))
    if length:
        along = problem.layer.w / length
        rows = {"⟨w/|w|, f⟩, the direction that ψ writes to": along} | {
            name: v for name, v in rows.items() if not np.allclose(np.abs(v), np.abs(along))
        }
    drawn = None
    if check_samples is not None:
        drawn = problem.layer(problem.input.sample(check_samples, np.random.default_rng(seed)))
    found = []
    for name, v in list(rows.items())[:count]:
        laws = {"exact law of f": joint(problem.layer, problem.input, v), "model": problem.model.marginal(v)}
        found.append(read_out(name, laws, None if drawn is None else drawn @ v))
    return found


def of_chain(chain: Chain, check_samples: int | None, seed: int, count: int = READ_OUTS) -> list[ReadOut]:
    """The last layer's coordinate that drifted most and its widest ones, `count` in all: the model's law, and samples of the
    network."""
    last, drift = chain.models[-1], chain.drift[-1]
    rows = dict(_widest(np.diag(last.covariance()), count))
    if drift is not None:
        rows = {_coordinate(drift.unit): np.eye(last.n)[drift.unit]} | rows
    drawn = None
    if check_samples is not None:
        drawn = chain.p1.sample(check_samples, np.random.default_rng(seed))
        for layer in chain.layers:
            drawn = layer(drawn)
    return [
        read_out(name, {"last model": last.marginal(v)}, None if drawn is None else drawn @ v)
        for name, v in list(rows.items())[:count]
    ]


def _widest(variances: Array, count: int) -> list[tuple[str, Array]]:
    order = np.argsort(-variances, kind="stable")[:count]
    return [(_coordinate(int(i)), np.eye(len(variances))[i]) for i in order]


def _coordinate(i: int) -> str:
    return f"coordinate {i}, counted from 0"


def read_out(name: str, laws: Mapping[str, Joint], samples: Array | None) -> ReadOut:
    """Bins, densities and tails of one read-out under each law. Where a law cannot be had (no Gaussian noise, say), the
    note says why."""
    main = next(iter(laws.values()))
    through_psi = main.law is None
    try:
        low, high = _point(main, 1 - OUTSIDE), _point(main, OUTSIDE)
        room = 1e-9 * (high - low)  # an atom may stand at either end, and belongs inside a bin
        edges = np.linspace(low - room, high + room, BINS[through_psi] + 1)
        upper = {label: law.tail(edges, _TOL).value for label, law in laws.items()}
        middle = float(np.interp(-0.5, -next(iter(upper.values())), edges))
        x = np.linspace(middle, _point(main, DEEPEST), TAIL_POINTS[through_psi])
        densities = {label: -np.diff(values) / np.diff(edges) for label, values in upper.items()}
        tails = {label: law.tail(x, 1e-3).value for label, law in laws.items()}
    except ElbotreeError as error:
        return ReadOut(name, note=str(error))
    return ReadOut(name, edges, densities, x, tails, samples)


def _point(law: Joint, p: float) -> float:
    """x with P(S > x) = p, roughly; where the law has an atom there (a relu that no noise is added to), a point just below
    the atom, found by bisection: P(S > x) is above p at it, and not above at the atom itself."""
    try:
        found = law.isf(p, _ROUGH) if p <= 0.5 else law.quantile(1 - p, _ROUGH)
        return float(found.value)
    except ElbotreeError:
        mean = float(law.moment(1, 1e-6).value)
        std = float(law.moment(2, 1e-6).value - mean**2) ** 0.5
    low, high = mean - std, mean + std
    while law.tail(low, 1e-3).value <= p:
        low -= 2 * (high - low)
    while law.tail(high, 1e-3).value > p:
        high += 2 * (high - low)
    while high - low > 0.01 * std:
        middle = (low + high) / 2
        low, high = (middle, high) if law.tail(middle, 1e-3).value > p else (low, middle)
    return float(low)


def interval(counts: Array, total: int, z: float = 2.0) -> tuple[Array, Array]:
    """Wilson's interval of a probability of which `counts` out of `total` were seen, z standard errors wide."""
    p = counts / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return np.clip(middle - half, 0.0, 1.0), middle + half


def section(found: Sequence[ReadOut]) -> list[Markup]:
    """The charts: for every read-out its densities and its tail."""
    parts: list[Markup] = []
    for one in found:
        parts.append(tag("h3", one.name))
        if one.note:
            parts.append(tag("p", f"Not drawn: {one.note}"))
        else:
            parts.append(tag("div", _marginal(one), _tail(one), class_="charts"))
    return parts


def _marginal(one: ReadOut) -> Markup:
    centres = ((one.edges[:-1] + one.edges[1:]) / 2).tolist()
    first, *others = one.densities
    said = [f"Densities in {len(centres)} bins."]
    series: list[Line | Band] = []
    widths = np.diff(one.edges)
    if one.samples is not None:
        total = len(one.samples)
        counts = np.histogram(one.samples, one.edges)[0]
        low, high = interval(counts, total)
        series.append(
            Band(
                f"{total} samples, ± 2 standard errors",
                one.edges.tolist(),
                (counts / total / widths).tolist(),
                (low / widths).tolist(),
                (high / widths).tolist(),
                _SAMPLES,
            )
        )
        inside = int(((one.densities[first] * widths >= low) & (one.densities[first] * widths <= high)).sum())
        said.append(f"The {first} lies within the samples' band in {inside} of {len(centres)} bins.")
    for label in others:
        apart = 0.5 * float((np.abs(one.densities[label] - one.densities[first]) * widths).sum())
        said.append(f"The {label}'s differs from it by {apart:.3f} in total variation.")
    series += [
        Line(label, centres, density.tolist(), look) for look, (label, density) in enumerate(one.densities.items())
    ]
    return chart(series, title="Marginal", x_label="value", y_label="density", said=" ".join(said))


def _tail(one: ReadOut) -> Markup:
    x, first = one.x.tolist(), next(iter(one.tails))
    said = [f"P(read-out > {x[-1]:.4g}) is {one.tails[first][-1]:.2g} under the {first}."]
    series: list[Line | Dots] = [
        Line(label, x, tail.tolist(), look) for look, (label, tail) in enumerate(one.tails.items())
    ]
    if one.samples is not None:
        total = len(one.samples)
        counts = np.array([(one.samples > point).sum() for point in one.x])
        low, high = interval(counts, total)
        seen = counts > 0
        series.append(
            Dots(
                f"{total} samples, ± 2 standard errors",
                one.x[seen].tolist(),
                (counts[seen] / total).tolist(),
                low[seen].tolist(),
                high[seen].tolist(),
                _SAMPLES,
            )
        )
        said.append(f"The largest of the samples is {one.samples.max():.4g}.")
    return chart(
        series, title="Tail", x_label="x", y_label="P(read-out > x), log scale", said=" ".join(said), log_y=True
    )
