"""The oracle against closed forms, other quadratures (scipy), plain sampling, and itself at finer resolution."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import gammaln

from tests.reference import oracle
from tests.reference.laws import (
    Array,
    Spec,
    discretise,
    exponential_cross_entropy,
    family,
    flatten,
    log_density,
    normal_cross_entropy,
    piece_log_density,
    softplus,
    tabulate,
)
from tests.reference.oracle import (
    PSI,
    TERMS,
    central_difference,
    expectation,
    plain,
    reference_terms,
    sample,
)
from tests.reference.problems import (
    BERNOULLI,
    EXPONENTIAL,
    GAMMA,
    LAPLACE,
    MIXTURE,
    NORMAL,
    PROBLEMS,
    SLAB,
    UNIFORM,
    problem,
)

SLOW = {"continuous-input", "continuous-mixed", "tilted-continuous"}


def close(found: float | Array, expected: float | Array, rel: float = 1e-11, absolute: float = 1e-13) -> None:
    np.testing.assert_allclose(found, expected, rtol=rel, atol=absolute)


# ---------------------------------------------------------------- one-dimensional laws


@pytest.mark.parametrize("spec", [EXPONENTIAL, GAMMA, LAPLACE, UNIFORM, {"kind": "gamma", "shape": 0.4, "scale": 1.5}])
def test_gauss_points_of_a_continuous_prior_integrate_its_characteristic_function(spec: Spec) -> None:
    (piece,) = flatten(spec)
    x, mass = discretise(piece, 1.0, 1.0)
    t = 1.3
    s, k = spec.get("scale", 0.0), spec.get("shape", 1.0)
    expected = {
        "exponential": 1 / (1 - 1j * t * s),
        "gamma": (1 - 1j * t * s) ** -k,
        "laplace": np.exp(1j * t * spec.get("mean", 0.0)) / (1 + (t * s) ** 2),
        "uniform": (np.exp(1.5j * t) - np.exp(-1j * t)) / (2.5j * t),
    }[spec["kind"]]
    close(np.sum(mass), 1.0)
    assert abs(np.sum(mass * np.exp(1j * t * x)) - expected) < 1e-13


@pytest.mark.parametrize(("kind", "values"), [("normal", (0.3, 0.7)), ("laplace", (0.2, 0.5)), ("gamma", (1.7, 0.6))])
def test_densities_agree_with_scipy(kind: str, values: tuple[float, ...]) -> None:
    x = np.array([0.1, 0.9, 3.0])
    frozen = {
        "normal": lambda: stats.norm(*values),
        "laplace": lambda: stats.laplace(*values),
        "gamma": lambda: stats.gamma(values[0], scale=values[1]),
    }[kind]()
    close(piece_log_density(kind, values, x), frozen.logpdf(x))


def test_flattening_multiplies_the_weights_through() -> None:
    nested = {"kind": "mixture", "weights": [0.25, 0.75], "components": [SLAB, {"kind": "bernoulli", "p": 0.4}]}
    assert flatten(nested) == [
        (0.25 * 0.65, "point", (0.0,)),
        (0.25 * 0.35, "normal", (0.4, 0.8)),
        (0.75 * 0.6, "point", (0.0,)),
        (0.75 * 0.4, "point", (1.0,)),
    ]


def test_a_table_follows_its_function_between_the_nodes() -> None:
    table = tabulate(np.tanh, -6.0, 5.0)
    x = np.linspace(-6.0, 5.0, 997)
    close(table(x), np.tanh(x), absolute=2e-13)
    with pytest.raises(ArithmeticError, match="no table"):
        tabulate(lambda x: np.sqrt(np.abs(x - 0.1234)), -1.0, 1.0)


@pytest.mark.parametrize("spec", [NORMAL, LAPLACE])
def test_normal_cross_entropy_closed_form_agrees_with_its_quadrature(spec: Spec) -> None:
    mean, std = np.array([-2.0, 0.1, 0.3, 4.0]), np.array([0.01, 0.5, 2.0, 0.3])
    close(normal_cross_entropy(spec, mean, std), normal_cross_entropy(spec, mean, std, closed=False))


@pytest.mark.parametrize("spec", [MIXTURE, {"kind": "spike_slab", "p": 0.3, "slab": LAPLACE}])
def test_normal_cross_entropy_agrees_with_scipy_quad(spec: Spec) -> None:
    q = stats.norm(0.4, 0.6)

    def integrand(beta: float) -> float:
        return -float(q.pdf(beta)) * float(log_density(flatten(spec), np.array(beta)))

    expected, _ = integrate.quad(integrand, -5.0, 6.0, points=[0.1], epsabs=1e-13, epsrel=1e-13, limit=400)
    close(normal_cross_entropy(spec, np.array(0.4), np.array(0.6)), expected, rel=1e-10)


def test_exponential_kl_closed_forms() -> None:
    c = np.array([-8.0, -1.0, 0.5, 6.0])
    mean = softplus(c)
    s = EXPONENTIAL["scale"]
    close(family({"family": "exponential"}, EXPONENTIAL).kl(c), mean / s - 1 - np.log(mean / s))
    k, s = GAMMA["shape"], GAMMA["scale"]
    cross = -(k - 1) * (np.log(mean) - np.euler_gamma) + mean / s + gammaln(k) + k * math.log(s)
    close(exponential_cross_entropy(GAMMA, mean), cross)
    m, s = LAPLACE["mean"], LAPLACE["scale"]
    short = m - mean * -np.expm1(-m / mean)  # E max(m - beta, 0)
    close(exponential_cross_entropy(LAPLACE, mean), math.log(2 * s) + (mean - m + 2 * short) / s)


def test_bernoulli_kl_at_zero_logit() -> None:
    law = family(BERNOULLI, {"kind": "bernoulli", "p": 0.2})
    close(law.kl(np.array(0.0)), 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8))
    close(law.mean(np.array([-50.0, 0.0, math.log(3)])), [math.exp(-50), 0.5, 0.75])


def test_tilted_by_a_normal_base_is_the_normal_posterior() -> None:
    base = {"kind": "normal", "mean": 0.4, "std": 0.7}
    prior = {"kind": "normal", "mean": -0.2, "std": 1.1}
    law = family({"family": "tilted", "precision": 2.0, "base": base}, prior, -9.0, 9.0)
    c = np.linspace(-9.0, 9.0, 7)
    variance = 1 / (2.0 + 0.7**-2)
    mean = variance * (c + 0.4 / 0.7**2)
    close(law.mean(c), mean)
    close(law.variance(c), np.full(7, variance))
    close(law.kl(c), math.log(1.1 / math.sqrt(variance)) + (variance + (mean + 0.2) ** 2) / (2 * 1.1**2) - 0.5)


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.3])
def test_tilted_by_a_gamma_base_without_precision_is_a_gamma(shape: float) -> None:
    base = {"kind": "gamma", "shape": shape, "scale": 0.8}
    law = family({"family": "tilted", "precision": 0.0, "base": base}, base, -20.0, 0.6)
    c = np.array([-20.0, -3.0, 0.0, 0.6])
    scale = 1 / (1 / 0.8 - c)
    close(law.mean(c), shape * scale)
    close(law.variance(c), shape * scale**2)
    close(law.kl(c), shape * (np.log(0.8 / scale) + scale / 0.8 - 1), absolute=1e-12)


def test_tilted_by_a_uniform_base_is_a_truncated_normal() -> None:
    law = family({"family": "tilted", "precision": 4.0, "base": UNIFORM}, UNIFORM, -6.0, 6.0)
    for c in (-6.0, 0.3, 6.0):
        q = stats.truncnorm((-1.0 - c / 4) * 2, (1.5 - c / 4) * 2, loc=c / 4, scale=0.5)
        close(law.mean(np.array(c)), q.mean(), rel=1e-10)
        close(law.variance(np.array(c)), q.var(), rel=1e-9)
        close(law.kl(np.array(c)), math.log(2.5) - q.entropy(), rel=1e-9)


@pytest.mark.parametrize("base", [LAPLACE, MIXTURE, GAMMA, SLAB, {"kind": "gamma", "shape": 0.5, "scale": 1.0}])
def test_tilted_agrees_with_scipy_quad(base: Spec) -> None:
    law = family({"family": "tilted", "precision": 1.3, "base": base}, base, -5.0, 5.0)
    pieces = flatten(base)
    mass = sum(weight for weight, kind, _ in pieces if kind == "point")
    low = 0.0 if base["kind"] == "gamma" else -9.0
    for c in (-4.0, 0.0, 3.5):

        def moment(k: int, c: float = c) -> float:
            def integrand(t: float) -> float:  # beta = t^2 on the half line: takes away a gamma's singularity
                beta, jacobian = (t * t, 2 * t) if low == 0.0 else (t, 1.0)
                log = float(log_density(pieces, np.array(beta)))
                return jacobian * beta**k * math.exp(c * beta - 0.65 * beta**2 + log) if math.isfinite(log) else 0.0

            value, _ = integrate.quad(integrand, low, 9.0, points=[0.1], epsabs=1e-14, epsrel=1e-13, limit=400)
            return value + (mass if k == 0 else 0.0)

        zero, first, second = moment(0), moment(1), moment(2)
        close(law.mean(np.array(c)), first / zero, rel=1e-9)
        close(law.variance(np.array(c)), second / zero - (first / zero) ** 2, rel=1e-9)
        close(law.kl(np.array(c)), (c * first - 0.65 * second) / zero - math.log(zero), rel=1e-9)


def test_a_posterior_that_its_prior_does_not_cover_is_refused() -> None:
    with pytest.raises(ValueError, match="exponential posterior: the KL divergence is not finite"):
        family({"family": "exponential"}, UNIFORM).kl(np.array([0.5]))
    with pytest.raises(ValueError, match="tilted posterior: the KL divergence is not finite"):
        family({"family": "tilted", "precision": 1.0, "base": LAPLACE}, GAMMA)
    with pytest.raises(ValueError, match="bernoulli posterior: the KL divergence is not finite"):
        family(BERNOULLI, NORMAL).kl(np.array([0.5]))


# ---------------------------------------------------------------- the terms


def gaussian_problem() -> Spec:
    """Everything normal and psi linear: f is normal and each term a polynomial in its two moments."""
    return {
        "format": "elbotree-problem/1",
        "layer": {
            "A": [[0.6, -0.3], [0.2, 0.9], [-0.5, 0.4]],
            "w": [0.5, -0.7, 0.2],
            "u": [0.3, 0.8, -0.4],
            "psi": "identity",
            "offset": [0.1, -0.2, 0.3],
            "threshold": 0.4,
        },
        "input": {
            "B": [[1.0, 0.3], [-0.4, 0.8]],
            "noise_std": 0.3,
            "offset": [0.2, -0.1],
            "priors": [{"kind": "normal", "mean": 0.5, "std": 0.7}, {"kind": "normal", "mean": -0.3, "std": 1.2}],
        },
        "model": {
            "B": [[0.9, 0.1], [-0.2, 0.7], [0.3, 0.5]],
            "noise_std": 0.6,
            "offset": [0.05, 0.15, -0.25],
            "priors": [NORMAL, {"kind": "normal", "mean": 0.2, "std": 1.4}],
        },
        "encoder": [
            {"family": "normal", "C": [[0.8, -0.2, 0.3]], "bias": [0.1], "std": 0.5},
            {"family": "normal", "C": [[0.1, 0.6, 0.4]], "bias": [-0.2], "std": 0.8},
        ],
    }


def gaussian_terms(q: Spec) -> dict[str, float]:
    """The closed form of `gaussian_problem`'s terms from the mean and covariance of y and f."""
    layer, first, second = q["layer"], q["input"], q["model"]
    A, w, u = (np.array(layer[key]) for key in ("A", "w", "u"))
    B1, B2, mu2 = np.array(first["B"]), np.array(second["B"]), np.array(second["offset"])
    spread = np.diag([prior["std"] ** 2 for prior in first["priors"]])
    mean1 = B1 @ [prior["mean"] for prior in first["priors"]] + first["offset"]
    mean_y = A @ mean1 + layer["offset"]
    cov_y = A @ (B1 @ spread @ B1.T + first["noise_std"] ** 2 * np.eye(2)) @ A.T
    mean_b, cov_yb, var_b = mean_y @ u + layer["threshold"], cov_y @ u, u @ cov_y @ u
    J = np.eye(3) + np.outer(w, u)
    mean_f, cov_f = mean_y + w * mean_b, J @ cov_y @ J.T
    C = np.array([p["C"][0] for p in q["encoder"]])
    std = np.array([p["std"] for p in q["encoder"]])
    prior_mean, prior_std = (np.array([p[key] for p in second["priors"]]) for key in ("mean", "std"))
    mean_s, cov_s = C @ mean_f + [p["bias"][0] for p in q["encoder"]], C @ cov_f @ C.T
    away = (mean_s - prior_mean) ** 2 + np.diag(cov_s)
    out = {
        "R1": np.sum(np.log(prior_std / std) + (std**2 + away) / (2 * prior_std**2) - 0.5),
        "R2": 1.5 * math.log(2 * math.pi * second["noise_std"] ** 2),
        "S1": np.sum(np.diag(B2.T @ B2) * std**2),
        "U1": np.sum((mean_y - mu2) ** 2) + np.trace(cov_y),
        "U2": 2 * ((mean_y - mu2) @ w * mean_b + cov_yb @ w),
        "U3": w @ w * (mean_b**2 + var_b),
        "T2": -2 * np.sum(B2 * (np.outer(mean_f - mu2, mean_s) + cov_f @ C.T)),
        "T3": np.sum(B2.T @ B2 * (np.outer(mean_s, mean_s) + cov_s)),
    }
    out["T1"] = out["U1"] + out["U2"] + out["U3"]
    out["S2"] = out["T1"] + out["T2"] + out["T3"]
    out["R3"] = (out["S1"] + out["S2"]) / (2 * second["noise_std"] ** 2)
    out["L"] = out["R1"] + out["R2"] + out["R3"]
    return {name: float(out[name]) for name in TERMS}


def test_gaussian_problem_has_its_closed_form() -> None:
    found, expected = reference_terms(gaussian_problem()), gaussian_terms(gaussian_problem())
    assert tuple(found) == TERMS
    for name in TERMS:
        close(found[name], expected[name])


def test_central_difference_of_the_gaussian_problem() -> None:
    start = gaussian_problem()
    paths: list[tuple[str | int, ...]] = [
        ("encoder", 0, "C", 0, 2),
        ("encoder", 1, "bias", 0),
        ("encoder", 1, "std"),
        ("layer", "A", 1, 0),
        ("layer", "threshold"),
        ("input", "noise_std"),
        ("model", "B", 2, 1),
        ("model", "noise_std"),
        ("model", "priors", 1, "std"),
    ]
    for path in paths:
        # The closed form's own derivative, at high accuracy: an 8th-order difference of exact values.
        total = 0.0
        for k, coefficient in enumerate((4 / 5, -1 / 5, 4 / 105, -1 / 280), start=1):
            for sign in (1, -1):
                total += sign * coefficient * gaussian_terms(_moved(start, path, sign * k * 0.01))["L"] / 0.01
        close(central_difference(start, path), total, rel=2e-9)


def _moved(start: Spec, path: tuple[str | int, ...], by: float) -> Spec:
    changed = json.loads(json.dumps(start))
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] += by
    return changed


def test_central_difference_of_the_decoder_is_its_closed_form() -> None:
    """dL/dmu2 = -(E f - mu2 - B2 E s) / sigma2^2 and dL/dsigma2 = n2/sigma2 - (S1 + S2)/sigma2^3."""
    name = "tanh-offsets"
    p, terms = plain(problem(name)), reference_terms(problem(name))
    decoded = _brute(name, lambda f, s, p: f - p.mu2 - s @ p.B2.T)
    for i in range(4):
        close(central_difference(problem(name), ("model", "offset", i)), -decoded[i] / p.sigma2**2, rel=1e-8)
    slope = 4 / p.sigma2 - (terms["S1"] + terms["S2"]) / p.sigma2**3
    close(central_difference(problem(name), ("model", "noise_std")), slope, rel=1e-9)


def _laws(name: str) -> list:  # type: ignore[type-arg]
    p = plain(problem(name))
    return [family(q, prior) for q, prior in zip(p.encoder, p.betas, strict=True)]


def _brute(name: str, g) -> Array:  # type: ignore[no-untyped-def]
    """E g(f, s, p) on the full lattice, s the (N, m2) posterior means."""
    p, laws = plain(problem(name)), _laws(name)

    def integrand(y: Array, b: Array, f: Array) -> Array:
        s = np.stack([law.mean(f @ C[0] + bias[0]) for law, C, bias in zip(laws, p.C, p.bias, strict=True)], axis=1)
        return g(f, s, p)

    return expectation(problem(name), integrand)


@pytest.mark.parametrize("name", ["relu", "narrow", "parallel", "coordinate", "one-dimension", "two-dimensions"])
def test_reconstruction_on_the_full_lattice_is_s2(name: str) -> None:
    """S2 = E|f - mu2 - B2 s|^2 without splitting it, and every T3 pair at once."""
    terms = reference_terms(problem(name))
    both = _brute(name, lambda f, s, p: np.stack([_norm(f - p.mu2 - s @ p.B2.T), _norm(s @ p.B2.T)], axis=1))
    close(both[0], terms["S2"])
    close(both[1], terms["T3"])


@pytest.mark.parametrize("name", ["normal-scale", "narrow"])
def test_kl_on_the_full_lattice_is_r1(name: str) -> None:
    """E K_j(c_j) from the pointwise divergence; the oracle integrates normal_scale's in one coordinate only."""
    p, laws = plain(problem(name)), _laws(name)

    def integrand(y: Array, b: Array, f: Array) -> Array:
        c = [f @ C.T + bias for C, bias in zip(p.C, p.bias, strict=True)]
        return sum((law.kl(*rows.T) for law, rows in zip(laws, c, strict=True)), start=np.zeros(b.size))

    terms = reference_terms(problem(name))
    # Laplace's kink, smoothed by small standard deviations only, asks for a finer lattice than a logistic function.
    close(expectation(problem(name), integrand, slope=2.0), terms["R1"], rel=1e-9)


def _norm(rows: Array) -> Array:
    return np.sum(rows**2, axis=1)


def test_loss_is_the_double_expectation_of_the_log_densities() -> None:
    """L = E_x1 E_beta[log q(beta | x2) - log p(beta) - log N(x2; B2 beta + mu2, sigma2^2)], two bits and a normal."""
    name = "flat"
    p = plain(problem(name))
    nodes, weights = np.polynomial.hermite_e.hermegauss(2)  # exact: everything is quadratic in the normal's deviate

    def integrand(y: Array, b: Array, f: Array) -> Array:
        c = [f @ C[0] + bias[0] for C, bias in zip(p.C, p.bias, strict=True)]
        total = np.zeros(b.size)
        for bits in itertools.product((0, 1), (0, 1)):
            q = [1 / (1 + np.exp(-c[j] if bits[j] else c[j])) for j in range(2)]
            prior = [p.betas[j]["p"] if bits[j] else 1 - p.betas[j]["p"] for j in range(2)]
            for t, weight in zip(nodes, weights / math.sqrt(2 * math.pi), strict=True):
                third = c[2] + p.encoder[2]["std"] * t
                x2 = np.stack([np.full(b.size, float(bits[0])), np.full(b.size, float(bits[1])), third], axis=1)
                away = _norm(f - x2 @ p.B2.T - p.mu2) / (2 * p.sigma2**2)
                likelihood = -away - 0.5 * f.shape[1] * math.log(2 * math.pi * p.sigma2**2)
                log_ratio = np.log(q[0] / prior[0]) + np.log(q[1] / prior[1])
                log_ratio += 0.5 * third**2 - 0.5 * t**2 - math.log(p.encoder[2]["std"])
                total += q[0] * q[1] * weight * (log_ratio - likelihood)
        return total

    close(expectation(problem(name), integrand), reference_terms(problem(name))["L"])


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_terms_agree_with_plain_sampling_to_five_standard_errors(name: str) -> None:
    q = problem(name)
    p, terms = plain(q), reference_terms(q)
    y, b, f = sample(q, 100_000, np.random.default_rng(7))
    H = p.B2.T @ p.B2
    kl, spread, means = np.zeros(b.size), np.zeros(b.size), np.zeros((b.size, len(p.encoder)))
    for j, (posterior, prior) in enumerate(zip(p.encoder, p.betas, strict=True)):
        c = f @ p.C[j].T + p.bias[j]
        low, high = float(c.min()), float(c.max())
        law = family(posterior, prior, low, high)
        columns = [c[:, 0], c[:, 1]] if law.scale_row else [c[:, 0]]
        kl += law.kl(*columns) if law.scale_row else tabulate(law.kl, low, high)(c[:, 0])
        variance = tabulate(law.variance, low, high) if law.costly_mean else law.variance
        spread += H[j, j] * variance(columns[-1])
        mean = tabulate(law.mean, low, high) if law.costly_mean else law.mean
        means[:, j] = mean(c[:, 0])
    value = np.asarray(p.psi[0](b), float)
    draws = {
        "R1": kl,
        "S1": spread,
        "S2": _norm(f - p.mu2 - means @ p.B2.T),
        "T1": _norm(f - p.mu2),
        "T2": -2 * np.sum((f - p.mu2) * (means @ p.B2.T), axis=1),
        "T3": _norm(means @ p.B2.T),
        "U1": _norm(y - p.mu2),
        "U2": 2 * (y - p.mu2) @ p.w * value,
        "U3": p.w @ p.w * value**2,
    }
    for term, samples in draws.items():
        error = float(np.std(samples)) / math.sqrt(samples.size)
        assert abs(float(np.mean(samples)) - terms[term]) <= 5 * error + 1e-9, term


@pytest.mark.parametrize("name", sorted(set(PROBLEMS) - SLOW))
def test_finer_resolution_changes_nothing(name: str) -> None:
    coarse, fine = reference_terms(problem(name)), reference_terms(problem(name), resolution=1.7)
    for term in TERMS:
        close(coarse[term], fine[term])


@pytest.mark.parametrize("name", ["relu", "tilted-bounded", "coordinate"])
def test_tables_of_smoothed_functions_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = reference_terms(problem(name))
    monkeypatch.setattr(oracle, "CHUNK", 64)  # many nodes in the oracle's eyes: everything goes through tables
    tabled = reference_terms(problem(name))
    for term in TERMS:
        close(tabled[term], direct[term])


def test_merging_a_normal_source_equals_enumerating_its_gauss_points() -> None:
    exact = problem("two-dimensions")
    exact["input"]["priors"][1] = {"kind": "normal", "mean": 0.3, "std": 0.2}
    exact["layer"]["psi"] = "sin"
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    enumerated = json.loads(json.dumps(exact))
    masses = weights / math.sqrt(2 * math.pi)
    enumerated["input"]["priors"][1] = {"kind": "discrete", "points": list(0.3 + 0.2 * points), "masses": list(masses)}
    first, second = reference_terms(exact), reference_terms(enumerated)
    for term in TERMS:
        close(first[term], second[term])


def test_a_passed_psi_stands_in_for_the_problems_own() -> None:
    q = problem("relu")
    named = reference_terms(q)
    q["layer"]["psi"] = "(b + abs(b))/2"
    passed = reference_terms(q, psi=(lambda b: (b + np.abs(b)) / 2, (0.0,)))
    for term in TERMS:
        close(passed[term], named[term], rel=1e-14)
    with pytest.raises(KeyError):
        reference_terms(q)


def test_b_that_does_not_vary_is_a_single_node() -> None:
    """u = 0: psi(theta) is a number and f a shifted y."""
    q = problem("relu")
    q["layer"] |= {"u": [0.0, 0.0, 0.0], "threshold": 0.7}
    shifted = json.loads(json.dumps(q))
    shifted["layer"] |= {"psi": "zero", "offset": [0.7 * v for v in q["layer"]["w"]]}
    for term in ("L", "R1", "S1", "T1", "T2", "T3"):
        close(reference_terms(q)[term], reference_terms(shifted)[term])


@pytest.mark.parametrize("psi", ["cube", "exp", "square", "sign", "softplus"])
def test_fast_and_rough_psi_converge_too(psi: str) -> None:
    q = problem("tanh-offsets")
    coarse, fine = reference_terms(q, psi), reference_terms(q, psi, resolution=1.5)
    for term in TERMS:
        close(coarse[term], fine[term])


def test_no_sources_and_no_features_leave_the_spread_of_f() -> None:
    q = problem("relu")
    q["input"] |= {"B": [[], [], []], "priors": []}
    q["model"] |= {"B": [[], [], []], "priors": []}
    q["encoder"] = []
    terms = reference_terms(q)
    assert terms["R1"] == terms["S1"] == terms["T2"] == terms["T3"] == 0.0
    close(terms["U1"], 0.09 * np.sum(np.square(q["layer"]["A"])))
    variance = 0.09 * np.sum((np.array(q["layer"]["A"]).T @ q["layer"]["u"]) ** 2)
    close(terms["U3"], np.sum(np.square(q["layer"]["w"])) * variance / 2)  # E relu(b)^2, b symmetric


def test_psi_table_at_known_points() -> None:
    x = np.array([-2.0, 0.5, 3.0])
    known = {
        "relu": [0, 0.5, 3],
        "heaviside": [0, 1, 1],
        "sign": [-1, 1, 1],
        "hardtanh": [-1, 0.5, 1],
        "leaky_relu": [-0.02, 0.5, 3],
        "abs": [2, 0.5, 3],
        "cube": [-8, 0.125, 27],
        "elu": [math.exp(-2) - 1, 0.5, 3],
        "gelu": [-2 * stats.norm.cdf(-2), 0.5 * stats.norm.cdf(0.5), 3 * stats.norm.cdf(3)],
        "silu": list(x / (1 + np.exp(-x))),
        "softplus": list(np.log(1 + np.exp(x))),
    }
    for name, values in known.items():
        close(PSI[name][0](x), np.array(values, float))


def test_problems_are_plain_json_and_fresh_copies() -> None:
    q = problem("relu")
    assert json.loads(json.dumps(PROBLEMS)) == PROBLEMS
    q["layer"]["w"][0] += 1.0
    assert q["layer"]["w"] != PROBLEMS["relu"]["layer"]["w"]
    families = {posterior["family"] for q in PROBLEMS.values() for posterior in q["encoder"]}
    assert families == {"bernoulli", "normal", "normal_scale", "exponential", "tilted"}
