"""The inner loops of a lattice walk, compiled by numba: what `characteristic.Lattice` does in numpy, without temporaries.

One mode n at a time; for it, arrays over k (the frequencies of b) of every source's factor stay in the first-level
cache. A loop over k vectorises where the compiler is willing to test the arrays that it writes against all others for
overlap, which it is for eight pairs: two arrays written and three more read, or one written and any number read.
Sources that are atoms, exponential or Laplace, or mixtures of these, are sums of rotations times rational functions, exact
to rounding; the others read quintic Hermite tables of phi. Modes are independent, so results do not depend on how they are divided
among threads. The numpy walk is the reference for these loops, and what small problems use (compiling takes seconds).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.priors import Prior

Array = NDArray[np.float64]

# What other loops call is compiled into each of them: linked instead, it may be another copy of it that runs where the
# loops were compiled just now than where they were read from numba's cache, and the last bits would differ.
_jit = numba.njit(forceinline=True, nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")
_entry = numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")


@lru_cache(maxsize=256)
def table(prior: Prior, reach: float) -> tuple[float, Array]:
    """Step and (L, 6) table of Re/Im of phi, phi', phi'' of the centred prior at t = 0, h, 2h, ... beyond `reach`.

    Quintic Hermite interpolation is off by at most h^6 max|phi^(6)| / 46080, and |phi^(6)| <= E|alpha - E alpha|^6, here
    bounded through 64 (E (alpha - mean)^4)^(3/2) plus the scale's own sixth power: h is chosen for 1e-16, so
    that the slope of the interpolant is good to about 1e-14 / h.
    """
    mean, std = prior.mean(), float(np.sqrt(prior.variance()))
    raw = [prior.moment(k) for k in range(1, 5)]
    fourth = raw[3] - 4 * mean * raw[2] + 6 * mean**2 * raw[1] - 3 * mean**4
    sixth = 8 * max(fourth, std**4) ** 1.5
    step = float((46080e-16 / max(sixth, 1e-300)) ** (1 / 6))
    t = step * np.arange(int(np.ceil(reach / step)) + 3)
    turn = np.exp(-1j * mean * t)
    phi, first, second = (prior.cf(t, order) for order in range(3))
    values = [turn * phi, turn * (first - 1j * mean * phi), turn * (second - 2j * mean * first - mean**2 * phi)]
    return step, np.stack([part for v in values for part in (v.real, v.imag)], axis=1)


@_jit
def _poles(t: float, total: float, product: float) -> Any:
    """Re and Im of R = 1 / ((1 - i s1 t)(1 - i s2 t)), s1 + s2 = total, s1 s2 = product."""
    re, im = 1.0 - product * t * t, total * t
    over = 1.0 / (re * re + im * im)
    return re * over, im * over


@_jit
def _from_table(
    t0: float, along: float, row: int, length: int, step: float, tables: Any, slope: bool, lo: Any, hi: Any, out: Any,
    e: Any, within: Any, place: Any,
) -> None:  # fmt: skip
    """phi, and phi' if `slope`, over k from a table of t >= 0 (phi(-t) is the conjugate), into out[e]; within and place (K,) are
    scratch."""
    first, over = t0 - along * (out.shape[2] // 2), 1.0 / step
    for k in range(lo, hi):
        at = abs(first + along * k) * over
        i: Any = min(np.int64(at), length - 2)
        within[k] = at - i
        place[k] = row + i
    # quintic Hermite basis, for the real part and the imaginary one, and its derivative
    for part in range(2):
        for k in range(lo, hi):
            x, i = within[k], np.uint64(place[k])
            j = i + np.uint64(1)
            x2 = x * x
            x3 = x2 * x
            a1 = x3 * (10 + x * (-15 + 6 * x))
            b0 = x - x3 * (6 + x * (-8 + 3 * x))
            b1 = x3 * (-4 + x * (7 - 3 * x))
            c0 = 0.5 * x2 * (1 + x * (-3 + x * (3 - x)))
            c1 = 0.5 * x3 * (1 + x * (-2 + x))
            value = tables[i, part] + a1 * (tables[j, part] - tables[i, part])
            value += step * (b0 * tables[i, 2 + part] + b1 * tables[j, 2 + part])
            out[e, part, k] = value + step * step * (c0 * tables[i, 4 + part] + c1 * tables[j, 4 + part])
    # phi is even in its real part and odd in its imaginary part; phi' the other way round
    for k in range(lo, hi):
        out[e, 1, k] = out[e, 1, k] if first + along * k >= 0 else -out[e, 1, k]
    if slope:
        for part in range(2):
            for k in range(lo, hi):
                x, i = within[k], np.uint64(place[k])
                j = i + np.uint64(1)
                x2 = x * x
                d1 = x2 * (30 + x * (-60 + 30 * x))
                e0 = 1 - x2 * (18 + x * (-32 + 15 * x))
                e1 = x2 * (-12 + x * (28 - 15 * x))
                f0 = x * (1 + x * (-4.5 + x * (6 - 2.5 * x)))
                f1 = x2 * (1.5 + x * (-4 + 2.5 * x))
                value = over * d1 * (tables[j, part] - tables[i, part])
                value += e0 * tables[i, 2 + part] + e1 * tables[j, 2 + part]
                out[e, 2 + part, k] = value + step * (f0 * tables[i, 4 + part] + f1 * tables[j, 4 + part])
        for k in range(lo, hi):
            out[e, 2, k] = out[e, 2, k] if first + along * k >= 0 else -out[e, 2, k]


@_jit
def _factor(
    i: int,
    t0: float,
    along: float,
    start: Any,
    atoms: Any,
    masses: Any,
    poles: Any,
    rotate: Any,
    table_row: Any,
    table_length: Any,
    table_step: Any,
    tables: Any,
    slope: bool,
    lo: Any,
    hi: Any,
    out: Any,
    e: Any,
    within: Any,
    place: Any,
) -> None:
    """Source i's factor over k in [lo, hi), lo >= 0: out[e, 0], out[e, 1] are Re and Im of phi, out[e, 2], out[e, 3] those of
    phi'. phi is a sum of mass e^(i x t) R(t) over atoms x, R = 1 but for the poles that it may have (`_poles`), or a table."""
    if table_row[i] >= 0:
        _from_table(
            t0, along, table_row[i], table_length[i], table_step[i], tables, slope, lo, hi, out, e, within, place
        )
        return
    first = t0 - along * (out.shape[2] // 2)
    for part in range(4 if slope else 2):
        for k in range(lo, hi):
            out[e, part, k] = 0.0
    for a in range(start[i], start[i + 1]):
        x, total, product = atoms[a], poles[a, 0], poles[a, 1]
        c, s = masses[a] * np.cos(x * t0), masses[a] * np.sin(x * t0)
        re, im, turn_re, turn_im = out[e, 0], out[e, 1], rotate[a, 0], rotate[a, 1]
        if total == 0.0 and product == 0.0:
            for k in range(lo, hi):
                re[k] += c * turn_re[k] - s * turn_im[k]
                im[k] += c * turn_im[k] + s * turn_re[k]
            if slope:
                c, s = x * c, x * s
                for k in range(lo, hi):
                    out[e, 2, k] -= c * rotate[a, 1, k] + s * rotate[a, 0, k]
                    out[e, 3, k] += c * rotate[a, 0, k] - s * rotate[a, 1, k]
            continue
        for k in range(lo, hi):
            r_re, r_im = _poles(first + along * k, total, product)
            wave_re, wave_im = c * turn_re[k] - s * turn_im[k], c * turn_im[k] + s * turn_re[k]
            re[k] += wave_re * r_re - wave_im * r_im
            im[k] += wave_re * r_im + wave_im * r_re
        if slope:
            # (e^(i x t) R)' = e^(i x t) R (i x + (2 product t + i total) R)
            re, im = out[e, 2], out[e, 3]
            for k in range(lo, hi):
                t = first + along * k
                r_re, r_im = _poles(t, total, product)
                wave_re, wave_im = c * turn_re[k] - s * turn_im[k], c * turn_im[k] + s * turn_re[k]
                v_re, v_im = wave_re * r_re - wave_im * r_im, wave_re * r_im + wave_im * r_re
                by_re = 2 * product * t * r_re - total * r_im
                by_im = x + 2 * product * t * r_im + total * r_re
                re[k] += v_re * by_re - v_im * by_im
                im[k] += v_re * by_im + v_im * by_re


@_jit
def times(prefix: Any, e: Any, factors: Any, lo: Any, hi: Any) -> None:
    """prefix[e + 1] = prefix[e] factors[e] over k in [lo, hi), Re and Im."""
    re, im, by_re, by_im, to_re, to_im = (
        prefix[e, 0], prefix[e, 1], factors[e, 0], factors[e, 1], prefix[e + 1, 0], prefix[e + 1, 1],
    )  # fmt: skip
    for k in range(lo, hi):
        to_re[k] = re[k] * by_re[k] - im[k] * by_im[k]
    for k in range(lo, hi):
        to_im[k] = re[k] * by_im[k] + im[k] * by_re[k]


@_jit
def times_back(after: Any, factors: Any, e: Any, lo: Any, hi: Any) -> None:
    """after *= factors[e] over k in [lo, hi), Re and Im."""
    for k in range(lo, hi):
        re = after[0, k] * factors[e, 0, k] - after[1, k] * factors[e, 1, k]
        after[1, k] = after[0, k] * factors[e, 1, k] + after[1, k] * factors[e, 0, k]
        after[0, k] = re


@_entry
def walk_values(
    t: Any,
    along: Any,
    over_n: Any,
    over_k: Any,
    limits: Any,
    sources: Any,
    base: Any,
    X: Any,
) -> None:
    """X[q, n] = sum_k base[q, n, k] over_n[n] over_k[k] prod_i phi_i(t[n, i] + k along[i]), |k| <= limits[n].

    sources: `LinearLaw.flat` without its first, the phases `along` a unit of k.
    """
    start, atoms, masses, poles, rotate, table_row, table_length, table_step, tables = sources
    N, m = t.shape
    K = over_k.shape[0]
    factors, prefix = np.empty((m, 4, K)), np.empty((m + 1, 2, K))
    within, place = np.empty(K), np.empty(K, dtype=np.int64)
    for n in range(N):
        # unsigned bounds: an index that cannot be negative needs no check, and the loops vectorise
        lo, hi = np.uint64(K // 2 - limits[n]), np.uint64(K // 2 + limits[n] + 1)
        for k in range(lo, hi):
            prefix[0, 0, k] = over_n[n] * over_k[k]
            prefix[0, 1, k] = 0.0
        for i in range(m):
            _factor(
                i, t[n, i], along[i], start, atoms, masses, poles, rotate, table_row, table_length, table_step, tables, False,
                lo, hi, factors, i, within, place,
            )  # fmt: skip
            times(prefix, i, factors, lo, hi)
        for q in range(base.shape[0]):
            total_re, total_im = 0.0, 0.0
            for k in range(lo, hi):
                b_re, b_im = base[q, n, k].real, base[q, n, k].imag
                total_re += b_re * prefix[m, 0, k] - b_im * prefix[m, 1, k]
                total_im += b_re * prefix[m, 1, k] + b_im * prefix[m, 0, k]
            X[q, n] = total_re + 1j * total_im


@_entry
def walk_moments(
    t: Any,
    along: Any,
    over_n: Any,
    over_k: Any,
    limits: Any,
    sources: Any,
    base: Any,
    X: Any,
    by_source: Any,
    by_k: Any,
) -> None:
    """X as in `walk_values`; for the first rows of base, by_source[q, n, i] = sum_k base phi_i' prod_{l != i} phi_l, and
    by_k[q, n] = sum_k k base prod_l phi_l (the Gaussian factor included in all of them)."""
    start, atoms, masses, poles, rotate, table_row, table_length, table_step, tables = sources
    N, m = t.shape
    K = over_k.shape[0]
    half = K // 2
    factors, within, place = np.empty((m, 4, K)), np.empty(K), np.empty(K, dtype=np.int64)
    prefix, after = np.empty((m + 1, 2, K)), np.empty((2, K))
    for n in range(N):
        # unsigned bounds: an index that cannot be negative needs no check, and the loops vectorise
        lo, hi = np.uint64(K // 2 - limits[n]), np.uint64(K // 2 + limits[n] + 1)
        for k in range(lo, hi):
            prefix[0, 0, k] = over_n[n] * over_k[k]
            prefix[0, 1, k] = 0.0
        after[0] = 1.0
        after[1] = 0.0
        for i in range(m):
            _factor(
                i, t[n, i], along[i], start, atoms, masses, poles, rotate, table_row, table_length, table_step, tables, True,
                lo, hi, factors, i, within, place,
            )  # fmt: skip
            times(prefix, i, factors, lo, hi)
        for q in range(base.shape[0]):
            total_re, total_im, k_re, k_im = 0.0, 0.0, 0.0, 0.0
            for k in range(lo, hi):
                b_re, b_im = base[q, n, k].real, base[q, n, k].imag
                term_re = b_re * prefix[m, 0, k] - b_im * prefix[m, 1, k]
                term_im = b_re * prefix[m, 1, k] + b_im * prefix[m, 0, k]
                total_re += term_re
                total_im += term_im
                k_re += (np.int64(k) - half) * term_re
                k_im += (np.int64(k) - half) * term_im
            X[q, n] = total_re + 1j * total_im
            if q < by_k.shape[0]:
                by_k[q, n] = k_re + 1j * k_im
        for i in range(m - 1, -1, -1):
            # phi_i' times everything else, left where the derivative stood
            for k in range(lo, hi):
                re, im = factors[i, 2, k], factors[i, 3, k]
                factors[i, 2, k] = re * after[0, k] - im * after[1, k]
                factors[i, 3, k] = re * after[1, k] + im * after[0, k]
            for k in range(lo, hi):
                re, im = factors[i, 2, k], factors[i, 3, k]
                factors[i, 2, k] = re * prefix[i, 0, k] - im * prefix[i, 1, k]
                factors[i, 3, k] = re * prefix[i, 1, k] + im * prefix[i, 0, k]
            times_back(after, factors, i, lo, hi)
            for q in range(by_k.shape[0]):
                total_re, total_im = 0.0, 0.0
                for k in range(lo, hi):
                    b_re, b_im = base[q, n, k].real, base[q, n, k].imag
                    total_re += b_re * factors[i, 2, k] - b_im * factors[i, 3, k]
                    total_im += b_re * factors[i, 3, k] + b_im * factors[i, 2, k]
                by_source[q, n, i] = total_re + 1j * total_im


@_jit
def _from_atoms(
    n: int, t: Any, start: Any, atoms: Any, masses: Any, rotate: Any, lo: Any, hi: Any, re: Any, im: Any, out: Any
) -> None:
    """phi, phi' and phi'' of all sources, which are atoms without poles, at mode n: out (3, m, K); re and im (3, K) are scratch."""
    for i in range(t.shape[1]):
        re[:] = 0.0
        im[:] = 0.0
        for a in range(start[i], start[i + 1]):
            x = atoms[a]
            c, s = masses[a] * np.cos(x * t[n, i]), masses[a] * np.sin(x * t[n, i])
            for k in range(lo, hi):
                wave = c * rotate[a, 0, k] - s * rotate[a, 1, k]
                re[0, k] += wave
                re[2, k] -= x * x * wave
                im[1, k] += x * wave
            for k in range(lo, hi):
                wave = c * rotate[a, 1, k] + s * rotate[a, 0, k]
                im[0, k] += wave
                im[2, k] -= x * x * wave
                re[1, k] -= x * wave
        for level in range(3):
            for k in range(lo, hi):
                out[level, i, k] = re[level, k] + 1j * im[level, k]


@_jit
def _second_moments(
    n: int, phi: Any, slope: Any, curve: Any, tau: Any, over_n: Any, over_n_dot: Any, over_k: Any, over_k_dot: Any, base: Any,
    lo: Any, hi: Any, before: Any, before_dot: Any, after: Any, after_dot: Any, by_source: Any, X: Any, X_dot: Any, by_k_dot: Any,
) -> None:  # fmt: skip
    """Mode n of `walk_second_moments`, from the factors (m, K) there; before (m + 1, K) and after (K,) with their dual parts are
    scratch."""
    m, K = phi.shape
    half = K // 2
    for k in range(lo, hi):
        before[0, k] = over_n[n] * over_k[k]
        before_dot[0, k] = -before[0, k] * (over_n_dot[n] + over_k_dot[k])
    for i in range(m):
        for k in range(lo, hi):
            before[i + 1, k] = before[i, k] * phi[i, k]
        for k in range(lo, hi):
            before_dot[i + 1, k] = before_dot[i, k] * phi[i, k] + before[i, k] * (tau[i] * slope[i, k])
    total, total_dot, total_k = 0j, 0j, 0j
    for k in range(lo, hi):
        after[k], after_dot[k] = base[n, k], 0.0
        total += base[n, k] * before[m, k]
        total_dot += base[n, k] * before_dot[m, k]
        total_k += (np.int64(k) - half) * base[n, k] * before_dot[m, k]
    X[n], X_dot[n], by_k_dot[n] = total, total_dot, total_k
    for i in range(m - 1, -1, -1):
        total = 0j
        for k in range(lo, hi):
            left = before[i, k] * slope[i, k]
            left_dot = before_dot[i, k] * slope[i, k] + before[i, k] * (tau[i] * curve[i, k])
            total += left_dot * after[k] + left * after_dot[k]
        by_source[n, i] = total
        for k in range(lo, hi):
            after_dot[k] = after_dot[k] * phi[i, k] + after[k] * (tau[i] * slope[i, k])
        for k in range(lo, hi):
            after[k] *= phi[i, k]


@_entry
def walk_second_moments(
    phi: Any, slope: Any, curve: Any, tau: Any, over_n: Any, over_n_dot: Any, over_k: Any, over_k_dot: Any, limits: Any,
    base: Any, by_source: Any, X: Any, X_dot: Any, by_k_dot: Any,
) -> None:  # fmt: skip
    """The sums of `Lattice.second_moments` from the sources' factors phi, phi' and phi'' (m, N, K), in dual numbers.

    The dual part of a factor is tau_i phi_i', that of the Gaussian one -(over_n_dot[n] + over_k_dot[k]) times it. base
    (N, K); by_source (N, m) = sum_k base (prod_{l != i} phi_l phi_i')_dot, X (N,) = sum_k base prod phi, X_dot (N,) and
    by_k_dot (N,) = sum_k base (prod phi)_dot, the latter times k.
    """
    m, N, K = phi.shape
    before, before_dot = np.empty((m + 1, K), dtype=np.complex128), np.empty((m + 1, K), dtype=np.complex128)
    after, after_dot = np.empty(K, dtype=np.complex128), np.empty(K, dtype=np.complex128)
    for n in range(N):
        lo, hi = np.uint64(K // 2 - limits[n]), np.uint64(K // 2 + limits[n] + 1)
        _second_moments(
            n, phi[:, n], slope[:, n], curve[:, n], tau, over_n, over_n_dot, over_k, over_k_dot, base, lo, hi, before,
            before_dot, after, after_dot, by_source, X, X_dot, by_k_dot,
        )  # fmt: skip


@_entry
def walk_second_moments_of_atoms(
    t: Any, sources: Any, tau: Any, over_n: Any, over_n_dot: Any, over_k: Any, over_k_dot: Any, limits: Any, base: Any,
    by_source: Any, X: Any, X_dot: Any, by_k_dot: Any,
) -> None:  # fmt: skip
    """The same for sources that are atoms without poles (t and sources as in `walk_values`): their factors stay in cache."""
    start, atoms, masses, _, rotate, _, _, _, _ = sources
    N, m = t.shape
    K = over_k.shape[0]
    factors, re, im = np.empty((3, m, K), dtype=np.complex128), np.empty((3, K)), np.empty((3, K))
    before, before_dot = np.empty((m + 1, K), dtype=np.complex128), np.empty((m + 1, K), dtype=np.complex128)
    after, after_dot = np.empty(K, dtype=np.complex128), np.empty(K, dtype=np.complex128)
    for n in range(N):
        lo, hi = np.uint64(K // 2 - limits[n]), np.uint64(K // 2 + limits[n] + 1)
        _from_atoms(n, t, start, atoms, masses, rotate, lo, hi, re, im, factors)
        _second_moments(
            n, factors[0], factors[1], factors[2], tau, over_n, over_n_dot, over_k, over_k_dot, base, lo, hi, before,
            before_dot, after, after_dot, by_source, X, X_dot, by_k_dot,
        )  # fmt: skip


@_entry
def linear_base(
    center: Any,
    theta: Any,
    alpha: Any,
    half: Any,
    mid: Any,
    slope: Any,
    p0: Any,
    step: float,
    length: float,
    limits: Any,
    out: Any,
) -> None:
    """`PsiTransform.rows` for psi linear on pieces, psi = p0 + slope (beta - mid) on |beta - mid| <= half, into (powers, N, K).

    The closed forms are those of `psi_transform`: spherical Bessel functions j0, j1, j2 of z = half (theta + alpha slope - k step).
    """
    powers, N, K = out.shape
    cos_y, sin_y, y = np.empty(K), np.empty(K), np.empty(K)
    turn_re, turn_im = np.empty(K), np.empty(K)
    out[:] = 0.0
    for piece in range(half.shape[0]):
        h, m, p1 = half[piece], mid[piece], slope[piece] * half[piece]
        for k in range(K):
            y[k] = h * step * (k - K // 2)
            cos_y[k], sin_y[k] = np.cos(y[k]), np.sin(y[k])
            angle = -step * m * (k - K // 2)
            turn_re[k], turn_im[k] = np.cos(angle), np.sin(angle)
        for n in range(N):
            turn = theta[n] + alpha[n] * slope[piece]
            x = h * turn
            cos_x, sin_x = np.cos(x), np.sin(x)
            angle = center[n] + alpha[n] * (p0[piece] - slope[piece] * m) + turn * m
            re_n, im_n = np.cos(angle) * h / length, np.sin(angle) * h / length
            for k in range(np.uint64(K // 2 - limits[n]), np.uint64(K // 2 + limits[n] + 1)):
                z = x - y[k]
                both_re = re_n * turn_re[k] - im_n * turn_im[k]
                both_im = re_n * turn_im[k] + im_n * turn_re[k]
                z2 = z * z
                if z2 < 0.09:
                    j0 = 1 + z2 * (-1 / 6 + z2 * (1 / 120 + z2 * (-1 / 5040 + z2 * (1 / 362880 - z2 / 39916800))))
                    j1 = z * (1 / 3 + z2 * (-1 / 30 + z2 * (1 / 840 + z2 * (-1 / 45360 + z2 / 3991680))))
                    j2 = z2 * (1 / 15 + z2 * (-1 / 210 + z2 * (1 / 7560 + z2 * (-1 / 498960 + z2 / 51891840))))
                else:
                    inverse = 1.0 / z
                    j0 = (sin_x * cos_y[k] - cos_x * sin_y[k]) * inverse
                    j1 = (j0 - (cos_x * cos_y[k] + sin_x * sin_y[k])) * inverse
                    j2 = 3 * j1 * inverse - j0
                both = both_re + 1j * both_im
                out[0, n, k] += both * (2 * j0)
                if powers > 1:
                    out[1, n, k] += both * (2 * p0[piece] * j0 + 2j * p1 * j1)
                if powers > 2:
                    real = 2 * p0[piece] ** 2 * j0 + p1**2 * (2 / 3) * (j0 - 2 * j2)
                    out[2, n, k] += both * (real + 4j * p0[piece] * p1 * j1)
