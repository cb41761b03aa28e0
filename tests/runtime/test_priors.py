"""Priors against quadrature (mpmath and scipy), enumeration and finite differences: nothing here calls the formula that
it checks."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import scipy.stats
from scipy.integrate import quad

from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.priors import (
    Bernoulli,
    Discrete,
    Exponential,
    Gamma,
    Laplace,
    Mixture,
    Normal,
    Prior,
    SpikeSlab,
    Uniform,
)

PRIORS = [
    Discrete([0.0, 1.0, 3.0], [0.2, 0.3, 0.5]),
    Bernoulli(0.3),
    Normal(0.7, 1.3),
    Exponential(0.6),
    Gamma(0.4, 1.5),
    Gamma(3.5, 0.4),
    Uniform(-0.5, 2.0),
    Laplace(0.3, 0.7),
    SpikeSlab(0.25, Gamma(2.0, 0.5)),
    Mixture([0.5, 0.2, 0.3], [Normal(-1.0, 0.5), Bernoulli(0.5), Exponential(1.2)]),
]
each_prior = pytest.mark.parametrize("prior", PRIORS, ids=repr)


def density(prior: Prior, x: float) -> float:
    """The continuous part's density, written out again from the textbook."""
    spec = prior.spec()
    if isinstance(prior, Normal):
        return math.exp(-0.5 * ((x - spec["mean"]) / spec["std"]) ** 2) / (spec["std"] * math.sqrt(2 * math.pi))
    if isinstance(prior, Exponential):
        return math.exp(-x / spec["scale"]) / spec["scale"] if x >= 0 else 0.0
    if isinstance(prior, Gamma):
        k, theta = spec["shape"], spec["scale"]
        return x ** (k - 1) * math.exp(-x / theta) / (math.gamma(k) * theta**k) if x > 0 else 0.0
    if isinstance(prior, Uniform):
        return 1 / (spec["high"] - spec["low"]) if spec["low"] <= x <= spec["high"] else 0.0
    if isinstance(prior, Laplace):
        return math.exp(-abs(x - spec["mean"]) / spec["scale"]) / (2 * spec["scale"])
    if isinstance(prior, SpikeSlab):
        return prior.p * density(prior.slab, x)
    if isinstance(prior, Mixture):
        return sum(w * density(part, x) for w, part in zip(prior.weights, prior.components, strict=True))
    return 0.0


def masses(prior: Prior) -> list[tuple[float, float]]:
    """The atoms, from the specification."""
    if isinstance(prior, Discrete):
        return list(zip(prior.points, prior.masses, strict=True))
    if isinstance(prior, Bernoulli):
        return [(0.0, 1 - prior.p), (1.0, prior.p)]
    if isinstance(prior, SpikeSlab):
        return [(0.0, 1 - prior.p)] + [(x, prior.p * mass) for x, mass in masses(prior.slab)]
    if isinstance(prior, Mixture):
        pairs = zip(prior.weights, prior.components, strict=True)
        return [(x, w * mass) for w, part in pairs for x, mass in masses(part)]
    return []


def integral(prior: Prior, g) -> float:  # type: ignore[no-untyped-def]
    """E g(alpha) by adaptive quadrature between the kinks, and a sum over atoms."""
    ends = [-400.0, -40.0, -8.0, -0.5, 0.0, 0.3, 2.0, 8.0, 60.0, 400.0]
    total = sum(mass * g(x) for x, mass in masses(prior))
    if prior.continuous_weight == 0:
        return total
    for low, high in pairwise(ends):
        if low == 0.0 and isinstance(prior, Gamma) and prior.shape < 1:  # x = v^4 takes the singularity away
            piece = quad(
                lambda v: 4 * v**3 * density(prior, v**4) * g(v**4), 1e-30, high**0.25, epsabs=1e-13, limit=400
            )
        else:
            piece = quad(lambda x: density(prior, x) * g(x), low, high, epsabs=1e-13, epsrel=1e-12, limit=400)
        total += piece[0]
    return total


@each_prior
def test_moments_are_integrals(prior: Prior) -> None:
    for k in range(5):
        assert prior.moment(k) == pytest.approx(integral(prior, lambda x, k=k: x**k), rel=1e-9)
    assert prior.mean() == pytest.approx(prior.moment(1), rel=1e-14)
    assert prior.variance() == pytest.approx(prior.moment(2) - prior.moment(1) ** 2, rel=1e-12)


@each_prior
@pytest.mark.parametrize("order", [0, 1, 2])
def test_cf_is_the_integral_of_its_definition(prior: Prior, order: int) -> None:
    t = np.array([-3.1, 0.0, 1e-9, 0.4, 2.2])
    found = prior.cf(t, order)
    assert found.shape == t.shape
    assert found.dtype == np.complex128
    for value, at in zip(found, t, strict=True):
        even = integral(prior, lambda x, at=at: x**order * math.cos(at * x))
        odd = integral(prior, lambda x, at=at: x**order * math.sin(at * x))
        assert value == pytest.approx((1j**order) * (even + 1j * odd), abs=2e-10)


def test_cf_of_a_uniform_law_keeps_its_digits_near_zero() -> None:
    prior = Uniform(-1.0, 3.0)
    with mpmath.workdps(40):
        for t in (1e-12, 1e-5, 0.3, 0.499, 0.501, 7.0, 1e4):

            def phi(s: mpmath.mpf) -> mpmath.mpc:
                return (mpmath.expj(3 * s) - mpmath.expj(-s)) / (4j * s)

            for order in (0, 1, 2):
                want = complex(mpmath.diff(phi, mpmath.mpf(t), order, h=mpmath.mpf(10) ** -16 * t))
                assert complex(prior.cf(t, order)) == pytest.approx(want, rel=1e-12, abs=1e-15)


@each_prior
def test_cf_continues_to_complex_arguments(prior: Prior) -> None:
    s, t = 0.3, 1.1
    found = complex(prior.cf(np.array([t - 1j * s]))[0])
    even = integral(prior, lambda x: math.exp(s * x) * math.cos(t * x))
    odd = integral(prior, lambda x: math.exp(s * x) * math.sin(t * x))
    assert found == pytest.approx(even + 1j * odd, abs=1e-9)


@each_prior
def test_log_mgf_and_its_domain(prior: Prior) -> None:
    low, high = prior.mgf_domain
    for s in (-0.9, -1e-7, 0.0, 1e-3, 0.5):
        if low < s < high:
            want = math.log(integral(prior, lambda x, s=s: math.exp(s * x)))
            assert float(prior.log_mgf(s)) == pytest.approx(want, abs=1e-10)
    if math.isfinite(high):
        assert float(prior.log_mgf(high * 1.0001)) == math.inf
        with pytest.raises(InputError, match="use a precision > 0"):
            prior.log_partition(np.array([high * 1.0001]), 0.0)


@each_prior
@pytest.mark.parametrize(("c", "precision"), [(-3.0, 0.7), (0.0, 1e-3), (0.4, 0.0), (2.5, 2.0)])
def test_log_partition_is_the_integral_and_its_derivatives_are_cumulants(
    prior: Prior, c: float, precision: float
) -> None:
    def moment(k: int, centre: float) -> float:
        return integral(prior, lambda x: (x - centre) ** k * math.exp(c * x - precision * x * x / 2))

    mass = moment(0, 0.0)
    mean = moment(1, 0.0) / mass
    second, third, fourth = (moment(k, mean) / mass for k in (2, 3, 4))
    want = [math.log(mass), mean, second, third, fourth - 3 * second**2]
    for order in range(5):
        assert float(prior.log_partition(c, precision, order)) == pytest.approx(want[order], rel=2e-8, abs=2e-9)


EXTREME = [
    (Exponential(0.5), "exponential"),
    (Gamma(0.4, 1.5), "gamma"),
    (Gamma(6.0, 0.2), "gamma"),
    (Uniform(-0.5, 2.0), "uniform"),
    (Laplace(0.3, 0.7), "laplace"),
]


@pytest.mark.parametrize(("prior", "kind"), EXTREME, ids=lambda item: item if isinstance(item, str) else repr(item))
@pytest.mark.parametrize(("c", "precision"), [(1e6, 1.0), (-1e6, 1.0), (-40.0, 1e-4), (3e3, 1e-2)])
def test_log_partition_at_extremes_against_mpmath(prior: Prior, kind: str, c: float, precision: float) -> None:
    """25 digits, split at the peak: value, mean and variance to 1e-9 relative however far the tilt reaches."""
    spec = prior.spec()
    with mpmath.workdps(25):
        low, high = {"uniform": (spec.get("low"), spec.get("high")), "laplace": (-mpmath.inf, mpmath.inf)}.get(
            kind, (mpmath.mpf(0), mpmath.inf)
        )
        rate = {"exponential": 1 / 0.5, "gamma": 1 / spec.get("scale", 1.0)}.get(kind, 0.0)

        def log_density(x: mpmath.mpf) -> mpmath.mpf:
            value = c * x - precision * x * x / 2
            if kind == "uniform":
                return value - mpmath.log(2.5)
            if kind == "laplace":
                return value - abs(x - spec["mean"]) / spec["scale"] - mpmath.log(2 * mpmath.mpf(spec["scale"]))
            k = mpmath.mpf(spec.get("shape", 1.0))
            return value - rate * x + (k - 1) * mpmath.log(x) - mpmath.log(mpmath.gamma(k)) + k * mpmath.log(rate)

        pull = math.copysign(1 / 0.7, c) if kind == "laplace" else rate
        free = (c - pull) / precision
        peak = min(max(mpmath.mpf(free), low), high)
        slope = abs(c - pull - precision * peak) if peak in (low, high) else 0
        width = 1 / (mpmath.sqrt(precision) + slope)
        inner = [peak + k * width for k in (-60, -10, -3, 0, 3, 10, 60)]
        inner += [spec["mean"]] if kind == "laplace" else []
        inner += [0, 1e-12 * width, 1e-6 * width, 1e-3 * width, 0.05 * width] if kind == "gamma" and peak == 0 else []
        ends = sorted({min(max(mpmath.mpf(x), low), high) for x in inner})
        reference = log_density(peak + width)

        def integrate(k: int, centre: mpmath.mpf) -> mpmath.mpf:
            return mpmath.quad(lambda x: (x - centre) ** k * mpmath.exp(log_density(x) - reference), ends)

        mass = integrate(0, mpmath.mpf(0))
        mean = integrate(1, mpmath.mpf(0)) / mass
        want = [reference + mpmath.log(mass), mean, integrate(2, mean) / mass]
        for order in range(3):
            found = float(prior.log_partition(np.array([c]), precision, order)[0])
            assert found == pytest.approx(float(want[order]), rel=1e-9, abs=1e-9 if order == 0 else 0.0)


def test_cumulants_of_a_half_normal_tail_keep_their_digits() -> None:
    """Far below the edge the tilted law is exponential of rate r, with corrections in precision / r^2."""
    rate = 1e6 + 1 / 0.5
    found = [float(Exponential(0.5).log_partition(-1e6, 1.0, order)) for order in (1, 2, 3, 4)]
    want = [1 / rate - 2 / rate**3, 1 / rate**2, 2 / rate**3, 6 / rate**4]
    assert found == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_log_partition_scales_with_its_units(scale: float) -> None:
    """beta = scale x turns (c, precision) into (c / scale, precision / scale^2): the value must not change."""
    pairs = [
        (Exponential(1.0), Exponential(scale)),
        (Gamma(0.3, 1.0), Gamma(0.3, scale)),
        (Uniform(-1.0, 2.0), Uniform(-scale, 2 * scale)),
        (Laplace(0.5, 1.0), Laplace(0.5 * scale, scale)),
        (Normal(0.5, 1.0), Normal(0.5 * scale, scale)),
    ]
    c = np.array([-30.0, -1.0, 0.0, 0.5, 30.0])
    for one, other in pairs:
        for order in range(3):
            want = one.log_partition(c, 1.5, order) * scale**order
            assert other.log_partition(c / scale, 1.5 / scale**2, order) == pytest.approx(want, rel=1e-9, abs=0)


@each_prior
def test_log_partition_keeps_shapes_and_long_arrays(prior: Prior) -> None:
    c = np.linspace(-4, 4, 9000).reshape(2, 4500)  # more than one chunk of the quadrature
    found = prior.log_partition(c, 1.0, 1)
    assert found.shape == c.shape
    assert found[1, 4499] == pytest.approx(float(prior.log_partition(4.0, 1.0, 1)), rel=1e-13)
    assert np.all(np.diff(found.ravel()) > 0)  # the mean of a tilted law grows with the tilt
    assert prior.log_partition(np.empty(0), 1.0).shape == (0,)


@each_prior
def test_cdf_and_sample(prior: Prior) -> None:
    for x in (-0.7, 0.0, 0.3, 1.0, 2.5):
        want = integral(prior, lambda y, x=x: float(y <= x))
        assert float(prior.cdf(x)) == pytest.approx(want, abs=2e-4)  # the reference's integrand jumps
    draws = prior.sample(np.random.default_rng(1), 40_000)
    assert draws.shape == (40_000,)
    se = math.sqrt(prior.variance() / 40_000)
    assert draws.mean() == pytest.approx(prior.mean(), abs=5 * se)
    x = np.array([0.2, 0.9, 1.5])
    empirical = (draws[:, None] <= x).mean(axis=0)
    assert empirical == pytest.approx(prior.cdf(x), abs=0.015)


@each_prior
def test_density_masses_support(prior: Prior) -> None:
    x = np.array([-1.7, -0.2, 0.11, 0.9, 4.0])
    with np.errstate(divide="ignore"):
        assert np.exp(prior.logpdf(x)) == pytest.approx([density(prior, v) for v in x], rel=1e-12)
    points, weights = prior.atoms
    assert dict(zip(points, weights, strict=True)) == pytest.approx(
        {x: sum(m for y, m in masses(prior) if y == x) for x, _ in masses(prior)}
    )
    assert np.exp(prior.log_mass(points)) == pytest.approx(weights, rel=1e-14)
    assert float(prior.log_mass(0.123456)) == -math.inf
    assert weights.sum() + prior.continuous_weight == pytest.approx(1.0, abs=1e-15)
    assert list(prior.breakpoints) == sorted(prior.breakpoints)
    low, high = prior.support
    assert all(low <= v <= high for v in prior.sample(np.random.default_rng(0), 200))


def shifted(spec: dict[str, object], name: str, step: float) -> dict[str, object]:
    """The specification with one scalar parameter moved; nested names as in `parameters`."""
    head, _, rest = name.partition(".")
    if not rest:
        return {**spec, head: spec[head] + step}  # type: ignore[operator]
    if head == "components":
        index, _, inner = rest.partition(".")
        parts = list(spec["components"])  # type: ignore[call-overload]
        parts[int(index)] = shifted(parts[int(index)], inner, step)
        return {**spec, "components": parts}
    return {**spec, head: shifted(spec[head], rest, step)}  # type: ignore[arg-type]


@each_prior
@pytest.mark.parametrize("atom", [False, True])
def test_score_is_the_derivative_of_log_density_and_log_mass(prior: Prior, atom: bool) -> None:
    points, _ = prior.atoms
    x = points if atom else np.array([0.21, 0.77, 1.61])
    scores = prior.score(x, atom)
    assert set(scores) == set(prior.parameters())

    def log(p: Prior) -> np.ndarray:
        return p.log_mass(x) if atom else p.logpdf(x)

    for name, value in prior.parameters().items():
        if isinstance(value, np.ndarray):
            continue
        h = 1e-6
        up, down = (Prior.from_spec(shifted(prior.spec(), name, sign * h)) for sign in (1, -1))
        if np.isfinite(log(prior)).all():
            assert scores[name] == pytest.approx((log(up) - log(down)) / (2 * h), rel=1e-7, abs=1e-8)
        else:
            assert np.all(scores[name] == 0)


def test_scores_of_masses_and_weights_are_free_derivatives() -> None:
    discrete = Discrete([0.0, 2.0], [0.25, 0.75])
    assert discrete.score(np.array([2.0, 0.0, 5.0]), True)["masses"].tolist() == [[0, 4, 0], [4 / 3, 0, 0]]
    mixture = Mixture([0.25, 0.75], [Normal(0.0, 1.0), Normal(1.0, 2.0)])
    x = np.array([0.3, -2.0])
    one, two = np.exp(Normal(0.0, 1.0).logpdf(x)), np.exp(Normal(1.0, 2.0).logpdf(x))
    total = 0.25 * one + 0.75 * two
    assert mixture.score(x, False)["weights"] == pytest.approx(np.stack([one / total, two / total]), rel=1e-13)


@each_prior
def test_spec_round_trip_equality_hash_pickle(prior: Prior) -> None:
    again = Prior.from_spec(prior.spec())
    assert again == prior
    assert hash(again) == hash(prior)
    assert pickle.loads(pickle.dumps(prior)) == prior
    assert prior.spec()["kind"] == prior.kind
    assert again != Normal(123.0, 4.0)


def test_masses_are_renormalised_and_their_sum_is_checked() -> None:
    assert sum(Discrete([0, 1, 2], [0.1, 0.2, 0.7 + 5e-10]).masses) == pytest.approx(1.0, abs=1e-15)
    with pytest.raises(InputError, match=r"`masses` sums to 1.00000000200*2?; probabilities must sum to 1"):
        Discrete([0, 1], [0.5, 0.500000002])
    with pytest.raises(InputError, match=r"`masses` sums to inf; probabilities must sum to 1"):
        Discrete([0, 1], [1e308, 1e308])


@pytest.mark.parametrize(
    ("frozen", "want"),
    [
        (scipy.stats.norm(1, 2), Normal(1, 2)),
        (scipy.stats.norm(loc=1, scale=2), Normal(1, 2)),
        (scipy.stats.expon(scale=3), Exponential(3)),
        (scipy.stats.gamma(2.5, scale=0.5), Gamma(2.5, 0.5)),
        (scipy.stats.uniform(-1, 4), Uniform(-1, 3)),
        (scipy.stats.laplace(0.5, 2), Laplace(0.5, 2)),
        (scipy.stats.bernoulli(0.3), Bernoulli(0.3)),
        (scipy.stats.bernoulli(0.25, loc=2), Discrete([2, 3], [0.75, 0.25])),
        (scipy.stats.rv_discrete(values=([1, 4], [0.5, 0.5])), Discrete([1, 4], [0.5, 0.5])),
    ],
)
def test_scipy_distributions_become_priors(frozen: object, want: Prior) -> None:
    assert Prior.of(frozen) == want


def test_scipy_distributions_without_a_counterpart_are_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedError, match=r"priors\[2\]: scipy's expon has loc = 1; .* `offset`"):
        Prior.of(scipy.stats.expon(loc=1), "priors[2]")
    with pytest.raises(UnsupportedError, match="scipy's 't' has no counterpart here; known: bernoulli"):
        Prior.of(scipy.stats.t(3))
    with pytest.raises(InputError, match=r"prior is 0.3; it must be an elbotree prior"):
        Prior.of(0.3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "Gamma", "p": 0.3}, r"x\.kind is 'Gamma', which is no prior; did you mean 'gamma'\?"),
        ({"kind": "bernouli", "p": 0.3}, r"x\.kind is 'bernouli', which is no prior; did you mean 'bernoulli'\?"),
        ({"kind": "bernoulli", "q": 0.3}, r"x: a bernoulli prior has no key 'q'; "),
        ({"kind": "bernoulli"}, r"x: a bernoulli prior needs the key 'p'"),
        ({"p": 0.3}, r"x has no `kind`"),
        ({"kind": "bernoulli", "p": 1.3}, r"x: bernoulli: `p` is 1.3; it must lie between 0 and 1"),
        ({"kind": "normal", "std": 0.0}, r"x: normal: `std` is 0.0; it must be greater than 0"),
        ({"kind": "normal", "std": True}, r"x: normal: `std` is True; it must be a number"),
        ({"kind": "gamma", "shape": math.nan}, r"x: gamma: `shape` is nan; it must be a finite number"),
        ({"kind": "gamma", "shape": 10**400}, r"it must be a finite number"),
        ({"kind": "uniform", "low": 2.0, "high": 1.0}, r"low must be less than high"),
        ({"kind": "discrete", "points": [0, 0], "masses": [0.5, 0.5]}, r"repeat a value"),
        ({"kind": "discrete", "points": [0], "masses": [0.5, 0.5]}, r"1 points came with 2 masses"),
        ({"kind": "discrete", "points": [0, 1], "masses": [-0.5, 1.5]}, r"`masses\[0\]` is -0.5"),
        ({"kind": "spike_slab", "p": 0.1, "slab": {"kind": "x"}}, r"x\.slab\.kind is 'x'"),
        ({"kind": "mixture", "weights": [1.0], "components": [3]}, r"x\.components\[0\] is 3; it must be an object"),
    ],
)
def test_bad_specifications_name_the_place_and_the_fix(spec: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prior.from_spec(spec, "x")


def test_gapped_supports_stay_apart_and_touching_ones_merge() -> None:
    gapped = Mixture([0.5, 0.5], [Uniform(0, 1), Uniform(2, 3)])
    assert gapped.continuous_support == ((0, 1), (2, 3))
    touching = Mixture([0.5, 0.5], [Uniform(0, 1), Uniform(1, 3)])
    assert touching.continuous_support == ((0, 3),)
    assert SpikeSlab(0.5, Uniform(1, 2)).support == (0, 2)
    assert SpikeSlab(0.0, Uniform(1, 2)).continuous_support == ()
