"""Sources that hardly notice a pair of encoder parameters, merged into one polynomial.

On the lattice of a pair, source i meets the phases t_ik + delta, t_ik = k <b_step, r_i> from the frequencies of b and
delta = p A_i + q B_i from those of (c_j, c_k). An encoder picks out its own feature, so that A_i and B_i are small for
nearly all i, and

    log phi_i(t_ik + delta) = sum_m c_m[i, k] delta^m

needs few terms (at k = 0 these are the source's cumulants). The sum over all such sources is one polynomial in (p, q)
for each k, whatever their number: a lattice point then costs as much as one source.

Where features take finitely many values the coefficients come from those of phi itself, sum_a p_a (i a)^m e^{i a t} / m!, by the
recurrence for a logarithm; else from Cauchy's formula on a circle of radius rho around t_ik,
c_m = rho^-m FFT(log(phi / phi(t_ik)))_m: rounding leaves eps rho^-m, aliasing rho^N c_(m+N).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.characteristic import LinearLaw
from elbotree.runtime.float_range import vanishing
from elbotree.runtime.priors import Prior
from elbotree.runtime.psi_transform import waves

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

ORDERS = 12  # coefficients c_0 .. c_11
_NODES = 24
_RESOLVED = 1e-9  # the last coefficients on the circle, relative to the largest
_HALVINGS = 5  # of circles, from the inverse of a feature's scale on
_APART = 0.95  # of phi(t): by so much phi may differ from it on the circle


class WeakSources:
    """Taylor coefficients of the log characteristic functions of a law's sources along the frequencies of b.

    coefficients  (ORDERS, m, K): c_m[i, k] for the centred priors, k = -b_modes..b_modes, c_0 being log phi_i(t_ik)
    parts         (ORDERS, m, 2, K): their real and imaginary parts, for the compiled loops
    sizes         (ORDERS, m): the root mean square over k, in the weight that the walk gives to k, of |c_m[i, k]|; infinite
                  for a source whose phi_i comes too close to 0 to have a logarithm
    """

    def __init__(self, law: LinearLaw, b_step: Array, b_modes: int, over_k: Array) -> None:
        along = b_step @ law.loadings
        k = np.arange(b_modes + 1)
        m = len(law.priors)
        half = np.zeros((ORDERS, m, b_modes + 1), dtype=np.complex128)
        self.usable = np.zeros(m, dtype=bool)
        for prior, index in law.groups:
            t = np.multiply.outer(along[index], k).astype(np.float64)
            log_taylor = _log_taylor if prior.continuous_weight else _log_taylor_of_atoms
            made, fine = log_taylor(prior, t, over_k[b_modes:] > 1e-17 * over_k[b_modes])
            half[:, index] = made
            self.usable[index] = fine
        # phi(-t) is the conjugate of phi(t): c_m(-t) = (-1)^m conj(c_m(t))
        mirrored = half[:, :, :0:-1].conj() * ((-1.0) ** np.arange(ORDERS))[:, None, None]
        self.coefficients: ComplexArray = np.ascontiguousarray(np.concatenate([mirrored, half], axis=2))
        self.parts: Array = np.stack([self.coefficients.real, self.coefficients.imag], axis=2)
        weight = over_k**2 / np.sum(over_k**2)
        self.sizes: Array = np.sqrt((np.abs(self.coefficients) ** 2) @ weight)
        self.sizes[:, ~self.usable] = np.inf


def _scale(prior: Prior) -> float:
    return max(1e-150, float(abs(prior.moment(4)) ** 0.25), float(np.sqrt(prior.variance())))


@vanishing
def _log_taylor_of_atoms(prior: Prior, t: Array, needed: NDArray[np.bool_]) -> tuple[ComplexArray, NDArray[np.bool_]]:
    """`_log_taylor` of a prior without a continuous part."""
    points, masses = prior.atoms
    points = points - prior.mean()
    each = waves(np.multiply.outer(points, t)) * masses[:, None, None]
    center = each.sum(axis=0)
    # phi has no zero, and so does not change by all of itself, on the smallest circle that `_log_taylor` tries
    change = float(masses @ np.expm1(np.minimum(np.abs(points) * (0.5**_HALVINGS / _scale(prior)), 700.0)))
    fine = change < _APART * np.abs(center)
    phi, out = np.where(fine, center, 1.0), np.zeros((ORDERS, *t.shape), dtype=np.complex128)
    out[0] = np.log(phi)
    ratios: list[ComplexArray] = []
    for m in range(1, ORDERS):
        each = each * (1j / m * points)[:, None, None]
        ratios.append(each.sum(axis=0) / phi)
        # m c_m = m r_m - sum_j j c_j r_(m-j)
        out[m] = ratios[-1]
        for j in range(1, m):
            out[m] -= (j / m) * out[j] * ratios[m - j - 1]
    out[:, ~fine] = 0.0
    return out, np.asarray((fine | ~needed).all(axis=1))


@vanishing
def _log_taylor(prior: Prior, t: Array, needed: NDArray[np.bool_]) -> tuple[ComplexArray, NDArray[np.bool_]]:
    """c_m of log phi around each t (rows are sources), (ORDERS, *t.shape), and which sources have them where needed."""
    mean, scale = prior.mean(), _scale(prior)
    low, high = prior.mgf_domain
    largest = min(
        1.0 / scale, 0.4 * (high if np.isfinite(high) else np.inf), 0.4 * (-low if np.isfinite(low) else np.inf)
    )
    center = prior.cf(t, 0)
    out = np.zeros((ORDERS, *t.shape), dtype=np.complex128)
    fine = np.zeros(t.shape, dtype=bool)
    turn = np.exp(2j * np.pi * np.arange(_NODES) / _NODES)
    for halving in range(_HALVINGS + 1):
        radius = largest * 0.5**halving
        left = ~fine
        if not left.any():
            break
        circle = radius * turn
        with np.errstate(all="ignore"):
            ratio = prior.cf(t[left][:, None] + circle, 0) / center[left][:, None]
            single = (np.abs(ratio - 1).max(axis=1) < _APART) & (np.abs(center[left]) > 1e-200)
            raw = (
                np.fft.fft(np.where(single[:, None], np.log(np.where(single[:, None], ratio, 1.0)), 0.0), axis=1)
                / _NODES
            )
        size = np.abs(raw)
        last = size[:, ORDERS + 2 : _NODES - 2].max(axis=1)
        single &= last <= _RESOLVED * np.maximum(size.max(axis=1), 1e-300)
        made = raw[:, :ORDERS] * radius ** -np.arange(ORDERS)
        made[:, 0] = np.log(np.where(single, center[left], 1.0))
        made[:, 1] -= 1j * mean  # of the centred prior
        made[:, 0] -= 1j * mean * t[left]
        at = np.nonzero(left)
        chosen = tuple(a[single] for a in at)
        out[(slice(None), *chosen)] = made[single].T
        fine[chosen] = True
    return out, np.asarray((fine | ~needed).all(axis=1))
