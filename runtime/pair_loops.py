"""The inner loops of a pair's lattice, compiled by numba: what `pair_lattices.PairLattice` does in numpy, point by point.

One row of modes (p fixed, q = 0, 1, ..) at a time, as arrays over k, the frequencies of b, in the first-level cache. The
merged sources are exp(T(p, q; k)), T a polynomial of degree R in (p, q): with the exponentials of its differences at
hand, a step to the next q costs R complex multiplications and no exponential. Sources that are not merged are rotations
or tables, as in `lattice_loops`; psi linear on pieces enters in closed form. Each loop over k writes one array only, and
bounds are unsigned, so that all of them vectorise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from elbotree.runtime.lattice_loops import _factor, _jit


@_jit
def _times(re: Any, im: Any, by_re: Any, by_im: Any, held: Any, lo: Any, hi: Any) -> None:
    """(re, im) times (by_re, by_im), in place."""
    for k in range(lo, hi):
        held[k] = re[k] * by_re[k] - im[k] * by_im[k]
    for k in range(lo, hi):
        im[k] = re[k] * by_im[k] + im[k] * by_re[k]
    for k in range(lo, hi):
        re[k] = held[k]


@_jit
def _piece_waves(half: Any, mid: Any, step: float, K: int) -> Any:
    """For each linear piece of psi, arrays over k: y = h k step, cos y, sin y, cos(k step mid), -sin(k step mid)."""
    waves = np.empty((half.shape[0], 5, K))
    for piece in range(half.shape[0]):
        for k in range(K):
            y = half[piece] * step * (k - K // 2)
            angle = -step * mid[piece] * (k - K // 2)
            waves[piece, 0, k], waves[piece, 1, k], waves[piece, 2, k] = y, np.cos(y), np.sin(y)
            waves[piece, 3, k], waves[piece, 4, k] = np.cos(angle), np.sin(angle)
    return waves


@_jit
def _linear_base(
    center: float,
    theta: float,
    alpha: float,
    pieces: Any,
    waves: Any,
    step: float,
    length: float,
    powers: int,
    lo: Any,
    hi: Any,
    j: Any,
    out: Any,
) -> None:
    """`PsiTransform.rows` of one mode for psi linear on pieces (half, mid, slope, p0): out[2 l], out[2 l + 1] are Re and Im
    for psi^l, l < powers <= 2. j (3, K) is scratch for 1/z, j0 and j1."""
    for part in range(2 * powers):
        for k in range(lo, hi):
            out[part, k] = 0.0
    K = out.shape[1]
    for piece in range(pieces.shape[0]):
        h, m, slope, p0 = pieces[piece, 0], pieces[piece, 1], pieces[piece, 2], pieces[piece, 3]
        p1 = slope * h
        turn = theta + alpha * slope
        x = h * turn
        cos_x, sin_x = np.cos(x), np.sin(x)
        angle = center + alpha * (p0 - slope * m) + turn * m
        re_n, im_n = 2 * np.cos(angle) * h / length, 2 * np.sin(angle) * h / length
        y, cos_y, sin_y, turn_re, turn_im = (
            waves[piece, 0], waves[piece, 1], waves[piece, 2], waves[piece, 3], waves[piece, 4],
        )  # fmt: skip
        inverse, j0, j1 = j[0], j[1], j[2]
        for k in range(lo, hi):
            z = x - y[k]
            inverse[k] = 1.0 / (z if abs(z) > 1e-9 else 1.0)
        for k in range(lo, hi):
            j0[k] = (sin_x * cos_y[k] - cos_x * sin_y[k]) * inverse[k]
        if powers > 1:
            for k in range(lo, hi):
                j1[k] = (j0[k] - (cos_x * cos_y[k] + sin_x * sin_y[k])) * inverse[k]
        # near z = 0 the differences cancel: Taylor series there, for the few k that are
        nearest, reach = x / (h * step) + K // 2, 0.3 / (h * step)
        first, last = max(np.int64(lo), np.int64(nearest - reach)), min(np.int64(hi) - 1, np.int64(nearest + reach) + 1)
        for k in range(first, last + 1):
            z = x - y[k]
            z2 = z * z
            if z2 < 0.09:
                j0[k] = 1 + z2 * (-1 / 6 + z2 * (1 / 120 + z2 * (-1 / 5040 + z2 * (1 / 362880 - z2 / 39916800))))
                j1[k] = z * (1 / 3 + z2 * (-1 / 30 + z2 * (1 / 840 + z2 * (-1 / 45360 + z2 / 3991680))))
        for k in range(lo, hi):
            out[0, k] += (re_n * turn_re[k] - im_n * turn_im[k]) * j0[k]
        for k in range(lo, hi):
            out[1, k] += (re_n * turn_im[k] + im_n * turn_re[k]) * j0[k]
        if powers > 1:
            for k in range(lo, hi):
                real, imag = re_n * turn_re[k] - im_n * turn_im[k], re_n * turn_im[k] + im_n * turn_re[k]
                out[2, k] += real * (p0 * j0[k]) - imag * (p1 * j1[k])
            for k in range(lo, hi):
                real, imag = re_n * turn_re[k] - im_n * turn_im[k], re_n * turn_im[k] + im_n * turn_re[k]
                out[3, k] += imag * (p0 * j0[k]) + real * (p1 * j1[k])


@_jit
def walk_pair(
    generators: Any,
    first: int,
    origin: int,
    sign: int,
    count: int,
    limits: Any,
    walked: Any,
    chosen: Any,
    across: Any,
    along: Any,
    start: Any,
    atoms: Any,
    masses: Any,
    rotate: Any,
    table_row: Any,
    table_length: Any,
    table_step: Any,
    tables: Any,
    phases: Any,
    pieces: Any,
    step: float,
    length: float,
    base: Any,
    X: Any,
    terms: Any,
    by_source: Any,
    by_k: Any,
) -> None:
    """The sums of a pair over k, for `count` rows of its box of modes (p, q): row `origin` first, its |p| being `first`, then on
    with |p| growing, in the direction of `sign`. All that is given a unit of p is given for a step in that direction.

    generators (2, R+1, R+1, K): Re and Im of exp(difference of order (a, b) of T at (first, 0)), the noise in it too.
    limits (rows, Q+1): how far |k| goes, not growing with q, -1 for modes that are left out; walked (rows, Q+1): 1 for
    modes that are wanted, else 0. chosen (E,): the sources that are not merged; across (2, E) their phases a unit of p and
    q, along (m,) a unit of k. phases (3, 2): center, theta, alpha of `PsiTransform.rows` a unit of p and q; pieces (.., 4)
    of psi, or base (powers, rows, Q+1, K) where psi is not linear on pieces.
    X (powers, rows, Q+1): sum_k base_l phi. If terms is not empty also terms (rows, Q+1, K) = base_0 phi, by_source (E,
    rows, Q+1) = sum_k base_0 phi_e' prod of the others, by_k (rows, Q+1) = sum_k k base_0 phi.
    """
    order, K = generators.shape[1] - 1, generators.shape[3]
    half, E, powers = K // 2, chosen.shape[0], X.shape[0]
    Q = limits.shape[1] - 1
    vectors = terms.shape[0] > 0
    moving = generators.copy()
    g = np.empty((2, order + 1, K))
    factors, scratch = np.empty((E, 4, K)), np.empty(4)
    prefix = np.empty((E + 1, 2, K))
    after_re, after_im, x, y, held = np.empty(K), np.empty(K), np.empty(K), np.empty(K), np.empty(K)
    b, j = np.empty((2 * powers, K)), np.empty((3, K))
    closed = base.shape[0] == 0
    waves = _piece_waves(pieces[:, 0], pieces[:, 1], step, K)
    for turn in range(count):
        p, row = first + turn, origin + sign * turn
        g[:, :, :] = moving[:, 0, :, :]
        for q in range(Q + 1):
            if limits[row, q] < 0:
                break
            lo, hi = np.uint64(half - limits[row, q]), np.uint64(half + limits[row, q] + 1)
            if walked[row, q] > 0.0:
                for k in range(lo, hi):
                    prefix[0, 0, k] = g[0, 0, k]
                for k in range(lo, hi):
                    prefix[0, 1, k] = g[1, 0, k]
                for e in range(E):
                    i = chosen[e]
                    out = factors[e]
                    _factor(
                        i, p * across[0, e] + q * across[1, e], along[i], start, atoms, masses, rotate, table_row,
                        table_length, table_step, tables, vectors, lo, hi, out, scratch,
                    )  # fmt: skip
                    for k in range(lo, hi):
                        prefix[e + 1, 0, k] = prefix[e, 0, k] * out[0, k] - prefix[e, 1, k] * out[1, k]
                    for k in range(lo, hi):
                        prefix[e + 1, 1, k] = prefix[e, 0, k] * out[1, k] + prefix[e, 1, k] * out[0, k]
                if closed:
                    _linear_base(
                        p * phases[0, 0] + q * phases[0, 1], p * phases[1, 0] + q * phases[1, 1],
                        p * phases[2, 0] + q * phases[2, 1], pieces, waves, step, length, powers, lo, hi, j, b,
                    )  # fmt: skip
                else:
                    for l in range(powers):
                        for k in range(lo, hi):
                            b[2 * l, k] = base[l, row, q, k].real
                        for k in range(lo, hi):
                            b[2 * l + 1, k] = base[l, row, q, k].imag
                re, im = prefix[E, 0], prefix[E, 1]
                for l in range(powers):
                    total_re, total_im = 0.0, 0.0
                    for k in range(lo, hi):
                        total_re += b[2 * l, k] * re[k] - b[2 * l + 1, k] * im[k]
                    for k in range(lo, hi):
                        total_im += b[2 * l, k] * im[k] + b[2 * l + 1, k] * re[k]
                    X[l, row, q] = total_re + 1j * total_im
                if vectors:
                    k_re, k_im = 0.0, 0.0
                    for k in range(lo, hi):
                        term_re, term_im = b[0, k] * re[k] - b[1, k] * im[k], b[0, k] * im[k] + b[1, k] * re[k]
                        k_re += (np.int64(k) - half) * term_re
                        k_im += (np.int64(k) - half) * term_im
                        terms[row, q, k] = term_re + 1j * term_im
                    by_k[row, q] = k_re + 1j * k_im
                    for k in range(lo, hi):
                        after_re[k] = b[0, k]
                    for k in range(lo, hi):
                        after_im[k] = b[1, k]
                    for e in range(E - 1, -1, -1):
                        out = factors[e]
                        # phi_e' times everything else
                        for k in range(lo, hi):
                            x[k] = out[2, k] * after_re[k] - out[3, k] * after_im[k]
                        for k in range(lo, hi):
                            y[k] = out[2, k] * after_im[k] + out[3, k] * after_re[k]
                        total_re, total_im = 0.0, 0.0
                        for k in range(lo, hi):
                            total_re += prefix[e, 0, k] * x[k] - prefix[e, 1, k] * y[k]
                        for k in range(lo, hi):
                            total_im += prefix[e, 0, k] * y[k] + prefix[e, 1, k] * x[k]
                        by_source[e, row, q] = total_re + 1j * total_im
                        _times(after_re, after_im, out[0], out[1], held, lo, hi)
            for d in range(order):
                _times(g[0, d], g[1, d], g[0, d + 1], g[1, d + 1], held, lo, hi)
        for d in range(order + 1):
            for a in range(order - d):
                _times(
                    moving[0, a, d], moving[1, a, d], moving[0, a + 1, d], moving[1, a + 1, d], held,
                    np.uint64(0), np.uint64(K),
                )  # fmt: skip
