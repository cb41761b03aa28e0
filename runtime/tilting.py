"""Exponentially tilted laws: log partition functions and cumulants of exp(c beta - precision beta^2 / 2) times a base
density, without cancellation. Only the numerical method lives here; `priors` says which base goes with which kind.

Every law below is unimodal, so one rule serves all: put the origin at the mode, keep the window outside which the
density has fallen by exp(-DROP), and integrate there with composite Gauss-Legendre panels. Offsets from the mode, not
positions, are what moments are made of, so that cumulants keep their digits when the mode is a million widths away.
Closed forms in erfc lose them (the fourth cumulant of a half-normal tail is a difference of terms z^6 times its size).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp, roots_jacobi

from elbotree.runtime.float_range import vanishing

Array = NDArray[np.float64]

DROP = 50.0  # exp(-50) = 2e-22: fourth moments of what is cut away stay below 1e-17
PANELS = 6
ORDER = 16
CHUNK = 4096  # tilts at a time: bounds the work array at CHUNK x PANELS x ORDER numbers


def _composite_rule() -> tuple[Array, Array]:
    """Nodes and weights of PANELS Gauss-Legendre panels on [0, 1]."""
    x, weight = np.polynomial.legendre.leggauss(ORDER)
    starts = np.arange(PANELS)[:, None]
    return ((starts + (x + 1) / 2) / PANELS).ravel(), np.tile(weight / (2 * PANELS), PANELS)


_NODES, _WEIGHTS = _composite_rule()


@lru_cache(maxsize=256)
def _jacobi_rule(shape: float) -> tuple[Array, Array]:
    """Nodes and log weights for the integral over [0, 1] of u^(shape - 1) F(u) du, F analytic."""
    x, weight = roots_jacobi(ORDER, 0.0, shape - 1.0)
    return (x + 1) / 2, np.log(weight) - shape * np.log(2.0)


def cumulants_of_nodes(offsets: Array, weights: Array, top: int) -> list[Array]:
    """[log mass, mean, variance, third, fourth cumulant][: top + 1] of weights at offsets (last axis: the nodes)."""
    mass = weights.sum(-1)
    out = [np.log(mass)]
    if top >= 1:
        p = weights / mass[..., None]
        mean = (p * offsets).sum(-1)
        out.append(mean)
    if top >= 2:
        d = offsets - mean[..., None]
        out.append((p * d**2).sum(-1))
    if top >= 3:
        out.append((p * d**3).sum(-1))
    if top >= 4:
        out.append((p * d**4).sum(-1) - 3 * out[2] ** 2)
    return out


def interval_cumulants(a: Array, precision: float, low: float, high: float, top: int) -> list[Array]:
    """Log integral and cumulants of exp(a beta - precision beta^2 / 2) on [low, high] (either end may be infinite).

    a is flat; the caller makes sure that the integral exists (precision > 0, or a pulls away from an infinite end).
    """
    pieces = [_interval_chunk(a[i : i + CHUNK], precision, low, high, top) for i in range(0, max(a.size, 1), CHUNK)]
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


def _interval_chunk(a: Array, precision: float, low: float, high: float, top: int) -> list[Array]:
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        free = a / precision if precision > 0 else np.where(a > 0, np.inf, -np.inf)
        mode = np.clip(free, low, high)
        slope = np.where(mode == free, 0.0, a - precision * mode)
        reach = 2 * DROP / (np.abs(slope) + np.sqrt(slope**2 + 2 * DROP * precision))
    left = np.minimum(mode - low, reach)
    width = left + np.minimum(high - mode, reach)
    offsets = width[:, None] * _NODES - left[:, None]
    weights = np.exp(slope[:, None] * offsets - 0.5 * precision * offsets**2) * _WEIGHTS
    out = cumulants_of_nodes(offsets, weights, top)
    out[0] = out[0] + np.log(width) + mode * (a - 0.5 * precision * mode)
    if top >= 1:
        out[1] = mode + out[1]
    return out


def gamma_cumulants(a: Array, precision: float, shape: float, top: int) -> list[Array]:
    """Log integral and cumulants of beta^(shape - 1) exp(a beta - precision beta^2 / 2) / Gamma(shape) on (0, inf).

    a is flat; precision > 0. With m the mode of the law of log beta (the positive root of precision m^2 - a m = shape)
    and beta = m t, the density is t^(shape - 1) exp(-shape (t - 1) - q (t - 1)^2 / 2), q = precision m^2.
    """
    pieces = [_gamma_chunk(a[i : i + CHUNK], precision, shape, top) for i in range(0, max(a.size, 1), CHUNK)]
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


def _gamma_chunk(a: Array, precision: float, shape: float, top: int) -> list[Array]:
    root = np.hypot(a, 2 * np.sqrt(precision * shape))
    with np.errstate(divide="ignore", invalid="ignore"):
        mode = np.where(a > 0, (a + root) / (2 * precision), 2 * shape / (root - a))
    q = precision * mode**2
    ratio = DROP / shape
    with np.errstate(divide="ignore"):
        right = np.minimum(np.sqrt(2 * DROP / q), ratio + np.sqrt(ratio**2 + 2 * ratio))
    start = np.maximum(1 - np.sqrt(2 * DROP / (shape + q)), 0.0)
    start = np.where(start < 0.1 * (1 + right), 0.0, start)  # too near the branch point at 0: begin there
    width = (1 + right - start)[:, None]

    r = (start[:, None] - 1) + width * _NODES
    with np.errstate(divide="ignore"):
        log_weights = (shape - 1) * np.log1p(r) + np.log(width * _WEIGHTS)
    touching = start == 0.0
    if touching.any():  # t^(shape - 1) is the weight of a Gauss-Jacobi rule on the first panel
        nodes, log_rule = _jacobi_rule(shape)
        first = width[touching] / PANELS
        r[touching, :ORDER] = first * nodes - 1
        log_weights[touching, :ORDER] = shape * np.log(first) + log_rule
    weights = np.exp(log_weights - shape * r - 0.5 * q[:, None] * r**2)

    out = cumulants_of_nodes(r, weights, top)
    out[0] = out[0] + shape * np.log(mode) - gammaln(shape) + mode * (a - 0.5 * precision * mode)
    for order in range(1, top + 1):
        out[order] = ((1 + out[1]) if order == 1 else out[order]) * mode**order
    return out


@vanishing
def mixture_cumulants(parts: Sequence[list[Array]], top: int) -> list[Array]:
    """Log partition and cumulants of a sum of positive measures, from those of each (parts[j][0] holds its weight).

    With p_j the responsibilities and d_j = mean_j - mean, the central moments are sum_j p_j (kappa3_j + 3 v_j d_j +
    d_j^3) and sum_j p_j (kappa4_j + 3 v_j^2 + 6 v_j d_j^2 + 4 kappa3_j d_j + d_j^4).
    """
    columns = [np.stack(column) for column in zip(*parts, strict=True)]
    total = np.asarray(logsumexp(columns[0], axis=0))
    out = [total]
    if top >= 1:
        p = np.exp(columns[0] - total)
        out.append((p * columns[1]).sum(0))
        d = columns[1] - out[1]
    if top >= 2:
        out.append((p * (columns[2] + d**2)).sum(0))
    if top >= 3:
        out.append((p * (columns[3] + 3 * columns[2] * d + d**3)).sum(0))
    if top >= 4:
        v, third, fourth = columns[2], columns[3], columns[4]
        moment = (p * (fourth + 3 * v**2 + 6 * v * d**2 + 4 * third * d + d**4)).sum(0)
        out.append(moment - 3 * out[2] ** 2)
    return out
