"""The compiled loops of the search against scipy's logsumexp, mpmath, numpy's products and differences: random shapes, one feature,
one value, one point, no row, tilts far beyond where exp ends."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy.special import logsumexp

from elbotree.runtime.search_loops import combined, dots, tilted


@np.errstate(under="ignore")
def reference(
    t: np.ndarray,
    precision: np.ndarray,
    values: list[np.ndarray],
    logs: list[np.ndarray],
    masses: list[np.ndarray] | None,
) -> np.ndarray:
    """(3, m, N): s, V and K, with qbar from the same q where no masses are given."""
    out = []
    for j, (z, log_m) in enumerate(zip(values, logs, strict=True)):
        log_q = t[j][:, None] * z + log_m - 0.5 * precision[j] * z**2
        log_q = log_q - logsumexp(log_q, axis=1, keepdims=True)
        q = np.exp(log_q)
        mean = q.mean(axis=0) if masses is None else masses[j]
        s = q @ z
        V = (q * (z - s[:, None]) ** 2).sum(axis=1)
        K = np.where(q > 0, q * (log_q - np.log(np.maximum(mean, 1e-12))), 0.0).sum(axis=1)
        out.append((s, V, K))
    return np.array(out).transpose(1, 0, 2)


def laws(counts: list[int], seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Values, logs of their masses, and masses in place of qbar."""
    rng = np.random.default_rng(seed)
    values = [np.sort(rng.normal(size=count)) for count in counts]
    return (
        values,
        [np.log(rng.dirichlet(np.ones(count))) for count in counts],
        [rng.dirichlet(np.ones(count)) for count in counts],
    )


def loops(t: np.ndarray, precision: np.ndarray, values: list[np.ndarray], logs: list[np.ndarray]) -> np.ndarray:
    out = np.full((8, *t.shape), np.nan)
    first = np.cumsum([0, *(len(z) for z in values)])
    tilted(t, precision, first, np.concatenate(values), np.concatenate(logs), out)
    return out


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("counts", [[2], [1], [2, 25, 3], [1, 2, 2, 7, 1]])
@pytest.mark.parametrize("points", [1, 2, 7, 8, 129])
def test_posteriors_are_those_of_numpy(counts: list[int], points: int, size: float) -> None:
    rng = np.random.default_rng([points, len(counts)])
    values, logs, _ = laws(counts, points)
    t, precision = size * rng.standard_normal((len(counts), points)), 3 * rng.random(len(counts))
    found = loops(t, precision, values, logs)
    assert np.isfinite(found).all()
    expected = reference(t, precision, values, logs, None)
    rounding = 1e-12 + 5e-15 * size  # t x is off by 1e-16 of itself, and log q with it
    for got, want in zip(found[:3], expected, strict=True):
        assert np.allclose(got, want, rtol=0, atol=rounding)
    assert found[1].min() >= -1e-14


@pytest.mark.parametrize("counts", [[2], [3], [2, 25, 1]])
def test_slopes_are_those_of_differences(counts: list[int]) -> None:
    """With qbar held: it is at its best, and the loss takes no slope through it."""
    rng = np.random.default_rng(9)
    values, logs, _ = laws(counts, 3)
    t, precision = 2 * rng.standard_normal((len(counts), 40)), 0.5 + rng.random(len(counts))
    found, held = loops(t, precision, values, logs), []
    for j, (z, log_m) in enumerate(zip(values, logs, strict=True)):
        log_q = t[j][:, None] * z + log_m - 0.5 * precision[j] * z**2
        held.append(np.exp(log_q - logsumexp(log_q, axis=1, keepdims=True)).mean(axis=0))
    h = 1e-5
    in_t = (reference(t + h, precision, values, logs, held) - reference(t - h, precision, values, logs, held)) / (2 * h)
    in_precision = (
        reference(t, precision + h, values, logs, held) - reference(t, precision - h, values, logs, held)
    ) / (2 * h)
    assert np.allclose(found[1], in_t[0], atol=1e-9)
    assert np.allclose(found[3:5], in_t[1:], atol=1e-9)
    assert np.allclose(found[5:], in_precision, atol=1e-9)
    assert max(np.abs(found[3:5]).max(), np.abs(found[5:]).max()) > 1e-2


def test_rare_values_keep_their_digits() -> None:
    """Log odds of 40: the variance is 4e-18, and a divergence is its tail's log; 60 digits by mpmath."""
    t = np.array([[40.0, 40.0, 40.0, -40.0]])
    s, V, K = loops(t, np.zeros(1), [np.array([0.0, 1.0])], [np.zeros(2)])[:3, 0]
    with mpmath.workdps(60):
        q = [1 / (1 + mpmath.exp(-mpmath.mpf(float(v)))) for v in t[0]]
        mean = sum(q) / 4
        K_exact = [p * mpmath.log(p / mean) + (1 - p) * mpmath.log((1 - p) / (1 - mean)) for p in q]
        V_exact = [p * (1 - p) for p in q]
    assert np.allclose(s, [float(p) for p in q], rtol=1e-14, atol=0)
    assert np.allclose(K, [float(k) for k in K_exact], rtol=1e-12)
    assert np.allclose(V, [float(v) for v in V_exact], rtol=1e-6, atol=2e-16)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 17), (2, 0, 4), (0, 3, 4), (4, 4, 0), (1, 33, 1000)])
def test_products_are_those_of_numpy(shape: tuple[int, int, int]) -> None:
    J, K, N = shape
    rng = np.random.default_rng(J + K + N)
    left, right, weights = rng.standard_normal((J, N)), rng.standard_normal((K, N)), rng.standard_normal((J, K))
    assert dots(left, right).shape == (J, K)
    assert np.allclose(dots(left, right), left @ right.T, atol=1e-12)
    assert combined(weights, right).shape == (J, N)
    assert np.allclose(combined(weights, right), weights @ right, atol=1e-12)
    assert np.allclose(combined(np.asfortranarray(weights), right), weights @ right, atol=1e-12)


def test_no_feature_and_no_point_are_no_work() -> None:
    for m, N in ((0, 5), (3, 0)):
        values, logs, _ = laws([2] * m or [2], 0)
        out = np.empty((8, m, N))
        tilted(
            np.empty((m, N)), np.ones(m), np.arange(0, 2 * m + 1, 2), np.concatenate(values), np.concatenate(logs), out
        )
        assert out.size == 0
