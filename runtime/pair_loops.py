"""The inner loops of a pair's lattice, compiled by numba: what `pair_lattices` does in numpy, point by point. `plan_pair` says
which points there are, `walk_pair` sums over them; `plan_pairs`, `walk_pairs` and `read_pairs` do so for many pairs in one call,
which holds no lock.

One row of modes (p fixed, q = 0, 1, ..) at a time, as arrays over k, the frequencies of b, in the first-level cache. The
merged sources are exp(T(p, q; k)), T a polynomial of degree R in (p, q): with the exponentials of its differences at
hand, a step to the next q costs R complex multiplications and no exponential. Sources that are not merged are rotations,
rational functions or tables, as in `lattice_loops`; psi linear on pieces enters in closed form. Loops over k vectorise as
they do there.

Arrays are filled element by element: an array that is assigned to a slice brings along the text of the error for shapes that
differ, which takes numba several seconds to compile wherever that happens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from elbotree.runtime.lattice_loops import _entry, _factor, _jit, times, times_back


@_jit
def _moments(weight: Any, first: int, orders: int) -> Any:
    """sum over modes of (weight |p|^c |q|^d)^2, (orders, orders), p from `first` on."""
    out = np.zeros((orders, orders))
    of_q = np.empty(orders)
    for row in range(weight.shape[0]):
        of_q[:] = 0.0
        for q in range(weight.shape[1]):
            term, squared = weight[row, q] ** 2, float(q) ** 2
            for d in range(orders):
                of_q[d] += term
                term *= squared
        power, squared = 1.0, float(first + row) ** 2
        for c in range(orders):
            for d in range(orders - c):
                out[c, d] += power * of_q[d]
            power *= squared
    return out


@_jit
def _merged(
    A: Any, B: Any, weight: Any, first: int, budget: float, tables: Any, usable: Any, costs: Any, steps: Any,
    norm: float, unit: float, spread: float, each: float,
) -> Any:  # fmt: skip
    """`BLaw.merge`: the degree, which sources are merged, and the remainder's exponent for each mode."""
    orders, m = tables.shape[0], len(A)
    highest = steps.shape[0] + 1
    rows, columns = weight.shape
    moments = _moments(weight, first, orders)
    parts = np.zeros((orders, orders, m))
    by_degree = np.zeros((orders, m))
    A_powers, B_powers = np.ones((orders, m)), np.ones((orders, m))
    for c in range(1, orders):
        for i in range(m):
            A_powers[c, i] = A_powers[c - 1, i] * abs(A[i])
            B_powers[c, i] = B_powers[c - 1, i] * abs(B[i])
    for c in range(orders):
        for d in range(orders - c):
            met = norm * spread * np.sqrt(moments[c, d])
            for i in range(m):
                parts[c, d, i] = tables[c, d, i] * A_powers[c, i] * B_powers[d, i]
            for i in range(m):
                by_degree[c + d, i] += parts[c, d, i] * met
    for i in range(m):
        if not usable[i]:
            by_degree[:, i] = np.inf
    last = by_degree[orders - 1].copy()
    for degree in range(orders - 2, -1, -1):
        for i in range(m):
            by_degree[degree, i] += by_degree[degree + 1, i]
    degree, least = 2, np.inf
    merged = np.zeros(m, dtype=np.bool_)
    for trial in range(2, highest + 1):
        cost = each * trial
        if trial > 2:
            rounding = 0.0
            for row in range(rows):
                for q in range(columns):
                    amplified = 1.0 + (steps[trial - 2, abs(first + row)] + steps[trial - 2, q]) / 8
                    rounding += (amplified * weight[row, q]) ** 2
            if unit * np.sqrt(rounding) > 0.2 * budget:
                continue
        left = by_degree[trial + 1] + last
        order = np.argsort(left)
        total, fitting = 0.0, 0
        while fitting < m and total + left[order[fitting]] <= budget:
            total += left[order[fitting]]
            fitting += 1
        for i in order[fitting:]:
            cost += costs[i]
        if cost < least:
            degree, least = trial, cost
            merged[:] = False
            for i in order[:fitting]:
                merged[i] = True
    remainder = np.zeros((rows, columns))
    table = np.zeros((orders, orders))
    for c in range(orders):
        for d in range(max(0, degree + 1 - c), orders - c):
            for i in range(m):
                if merged[i]:
                    table[c, d] += parts[c, d, i]
    of_q = np.empty(orders)
    for row in range(rows):
        p = float(abs(first + row))
        for d in range(orders):
            of_q[d] = 0.0
            for c in range(orders - 1 - d, -1, -1):
                of_q[d] = of_q[d] * p + table[c, d]
        for q in range(columns):
            value = 0.0
            for d in range(orders - 1, -1, -1):
                value = value * q + of_q[d]
            remainder[row, q] = value
    return degree, merged, remainder


def _plan_pair(
    weights: Any, noise: Any, shifts: Any, tol: float, tail: Any, A: Any, B: Any, tables: Any, usable: Any, costs: Any,
    steps: Any, norm: float, unit: float, spread: float, each: float,
) -> Any:  # fmt: skip
    """`pair_lattices._plan`, mode by mode: the first row and how many rows and columns are walked, limits, walked, degree,
    merged, slack.

    noise (2, 2) and shifts (2,): of the two sides' steps; tables (ORDERS, ORDERS, m): `BLaw.by_monomial`; steps (.., N):
    `_steps` for each degree; each: cost of a degree.
    """
    height, width = weights.shape
    P = height // 2
    gauss = np.zeros((height, width))
    for row in range(height):
        p = row - P
        for q in range(0 if p >= 0 else 1, width):
            gauss[row, q] = np.exp(-0.5 * (noise[0, 0] * p * p + noise[1, 1] * q * q + 2 * noise[0, 1] * p * q))
    size = weights * gauss
    flat = np.sort(size.ravel())
    total, i = 0.0, 0
    while i < len(flat):
        total += flat[i] ** 2
        if spread * np.sqrt(total) >= 0.25 * tol:
            break
        i += 1
    least = flat[min(i, len(flat) - 1)]
    limits = np.full((height, width), -1, dtype=np.int64)
    count = 0
    for row in range(height):
        for q in range(width):
            if size[row, q] >= least and gauss[row, q] > 0.0:
                count += 1
    for row in range(height):
        for q in range(width - 1, -1, -1):
            if size[row, q] >= least and gauss[row, q] > 0.0:
                allowed = 0.25 * tol / (spread * np.sqrt(count) * max(size[row, q], 1e-300))
                off_center = int(np.ceil(abs((row - P) * shifts[0] + q * shifts[1])))
                # the tail falls: the first place where it is at most what is allowed
                lo, hi = 0, len(tail) - 1
                while lo < hi:
                    middle = (lo + hi) // 2
                    if tail[middle] <= allowed:
                        hi = middle
                    else:
                        lo = middle + 1
                limits[row, q] = min(lo + off_center, len(tail) - 1)
            if q < width - 1:
                limits[row, q] = max(limits[row, q], limits[row, q + 1])
    first, last, columns = height, -1, 1
    for row in range(height):
        if limits[row, 0] >= 0:
            first, last = min(first, row), row
            for q in range(columns, width):
                if limits[row, q] >= 0:
                    columns = q + 1
    if last < 0:
        first, last = P, P
    inner = limits[first : last + 1, :columns].copy()
    walked = np.zeros(inner.shape)
    whole = np.zeros(inner.shape)
    for row in range(inner.shape[0]):
        for q in range(columns):
            if inner[row, q] >= 0:
                whole[row, q] = size[first + row, q]
                walked[row, q] = 1.0 if gauss[first + row, q] > 0.0 else 0.0
    for _ in range(61):
        degree, merged, remainder = _merged(
            A, B, whole, first - P, 0.25 * tol, tables, usable, costs, steps, norm, unit, spread, each
        )
        largest = 0.0
        for row in range(inner.shape[0]):
            for q in range(columns):
                if inner[row, q] >= 0:
                    largest = max(largest, remainder[row, q])
        if largest <= 1.0:
            break
        tol *= 0.1  # far from the origin, where weights are small, the series must not run away either
    slack = gauss
    for row in range(inner.shape[0]):
        for q in range(columns):
            if inner[row, q] >= 0:
                p = first + row - P
                off_center = int(np.ceil(abs(p * shifts[0] + q * shifts[1])))
                left = tail[max(inner[row, q] - off_center, 0)] + norm * np.expm1(min(remainder[row, q], 1.0))
                amplified = 1.0 + (steps[degree - 2, abs(p)] + steps[degree - 2, q]) / 8
                slack[first + row, q] *= left + unit * amplified
    return first, inner, walked, degree, merged, slack


plan_pair = _entry(_plan_pair)
_planned = _jit(_plan_pair)  # for `plan_pairs`: loops are inlined into what the cache holds


@_jit
def _polynomial(chosen: Any, A: Any, B: Any, coefficients: Any, begin: int, noise: Any) -> Any:
    """S[a, b, k], (R+1, R+1, K): the coefficient of p^a q^b in the exponent of the sources `chosen`, added to that of the noise.
    coefficients (ORDERS, m, 2, ..) of `WeakSources`, the first of the K frequencies standing at `begin`."""
    S = noise.copy()
    R, K = S.shape[0] - 1, S.shape[2]
    for m in range(R + 1):
        for i in chosen:
            c = coefficients[m, i]
            binomial = 1.0
            for a in range(m + 1):
                load = binomial * A[i] ** a * B[i] ** (m - a)
                to = S[a, m - a]
                for k in range(K):
                    to[k] += load * (c[0, begin + k] + 1j * c[1, begin + k])
                binomial *= (m - a) / (a + 1.0)
    return S


@_jit
def _differences(degree: int, start: float, sign: float) -> Any:
    """Row a: the a-th forward difference at x = start of the powers 0..degree of sign x, (degree + 1, degree + 1)."""
    out = np.zeros((degree + 1, degree + 1))
    for i in range(degree + 1):
        for x in range(degree + 1):
            out[x, i] = (sign * (start + x)) ** i
        for a in range(1, degree + 1):
            for x in range(degree, a - 1, -1):
                out[x, i] -= out[x - 1, i]
    return out


@_jit
def _generators(S: Any, of_p: Any, of_q: Any) -> Any:
    """Re and Im of exp(difference of order (a, b)), a + b <= R, of the polynomial with coefficients S, (2, R+1, R+1, K); of_p and
    of_q (R+1, R+1): the differences of the powers 0..R in p and q, by rows."""
    R, K = S.shape[0] - 1, S.shape[2]
    out = np.zeros((2, R + 1, R + 1, K))
    over_p = np.empty((2, R + 1, K))
    for a in range(R + 1):
        over_p[:] = 0.0
        for i in range(a, R + 1):
            for b in range(R + 1 - i):
                for k in range(K):
                    over_p[0, b, k] += of_p[a, i] * S[i, b, k].real
                for k in range(K):
                    over_p[1, b, k] += of_p[a, i] * S[i, b, k].imag
        for b in range(R + 1 - a):
            for part in range(2):
                for i in range(b, R + 1 - a):
                    for k in range(K):
                        out[part, a, b, k] += of_q[b, i] * over_p[part, i, k]
            for k in range(K):
                size, angle = np.exp(out[0, a, b, k]), out[1, a, b, k]
                out[0, a, b, k], out[1, a, b, k] = size * np.cos(angle), size * np.sin(angle)
    return out


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
        for k in range(lo, hi):
            z = x - waves[piece, 0, k]
            j[0, k] = 1.0 / (z if abs(z) > 1e-9 else 1.0)
            j[1, k] = (sin_x * waves[piece, 1, k] - cos_x * waves[piece, 2, k]) * j[0, k]
        if powers > 1:
            for k in range(lo, hi):
                j[2, k] = (j[1, k] - (cos_x * waves[piece, 1, k] + sin_x * waves[piece, 2, k])) * j[0, k]
        # near z = 0 the differences cancel: Taylor series there, for the few k that are
        nearest, reach = x / (h * step) + K // 2, 0.3 / (h * step)
        first, last = max(np.int64(lo), np.int64(nearest - reach)), min(np.int64(hi) - 1, np.int64(nearest + reach) + 1)
        for k in range(first, last + 1):
            z = x - waves[piece, 0, k]
            z2 = z * z
            if z2 < 0.09:
                j[1, k] = 1 + z2 * (-1 / 6 + z2 * (1 / 120 + z2 * (-1 / 5040 + z2 * (1 / 362880 - z2 / 39916800))))
                j[2, k] = z * (1 / 3 + z2 * (-1 / 30 + z2 * (1 / 840 + z2 * (-1 / 45360 + z2 / 3991680))))
        for k in range(lo, hi):
            real = re_n * waves[piece, 3, k] - im_n * waves[piece, 4, k]
            imag = re_n * waves[piece, 4, k] + im_n * waves[piece, 3, k]
            out[0, k] += real * j[1, k]
            out[1, k] += imag * j[1, k]
        if powers > 1:
            for k in range(lo, hi):
                real = re_n * waves[piece, 3, k] - im_n * waves[piece, 4, k]
                imag = re_n * waves[piece, 4, k] + im_n * waves[piece, 3, k]
                out[2, k] += real * (p0 * j[1, k]) - imag * (p1 * j[2, k])
            for k in range(lo, hi):
                real = re_n * waves[piece, 3, k] - im_n * waves[piece, 4, k]
                imag = re_n * waves[piece, 4, k] + im_n * waves[piece, 3, k]
                out[3, k] += imag * (p0 * j[1, k]) + real * (p1 * j[2, k])


@_jit
def step_by(re: Any, im: Any, by_re: Any, by_im: Any, lo: Any, hi: Any) -> None:
    """(re, im) times (by_re, by_im) over k in [lo, hi), in place."""
    for k in range(lo, hi):
        product = re[k] * by_re[k] - im[k] * by_im[k]
        im[k] = re[k] * by_im[k] + im[k] * by_re[k]
        re[k] = product


@_jit
def _walk_away(
    moving: Any,
    first: int,
    origin: int,
    sign: int,
    count: int,
    limits: Any,
    walked: Any,
    chosen: Any,
    A: Any,
    B: Any,
    along: Any,
    sources: Any,
    psi: Any,
    sums: Any,
) -> None:
    """`walk_pair` for `count` rows: row `origin` first, its |p| being `first`, then on with |p| growing, in the direction of
    `sign`, in which A is taken too. `moving`: the generators at (first, 0), which step from row to row."""
    start, atoms, masses, poles, rotate, table_row, table_length, table_step, tables = sources
    phases, pieces, step, length, base = psi
    X, terms, starts, by_source, by_k = sums
    order, K = moving.shape[1] - 1, moving.shape[3]
    half, E, powers = K // 2, chosen.shape[0], X.shape[0]
    Q = limits.shape[1] - 1
    vectors = terms.shape[1] > 0
    g = np.empty((2, order + 1, K))
    factors, within, place = np.empty((E, 4, K)), np.empty(K), np.empty(K, dtype=np.int64)
    prefix, after = np.empty((E + 1, 2, K)), np.empty((2, K))
    b, j = np.empty((2 * powers, K)), np.empty((3, K))
    frequency = np.arange(-half, half + 1.0)
    closed = base.shape[0] == 0
    waves = _piece_waves(pieces[:, 0], pieces[:, 1], step, K)
    for turn in range(count):
        p, row = first + turn, origin + sign * turn
        for part in range(2):
            for d in range(order + 1):
                for k in range(K):
                    g[part, d, k] = moving[part, 0, d, k]
        for q in range(Q + 1):
            if limits[row, q] < 0:
                break
            lo, hi = np.uint64(half - limits[row, q]), np.uint64(half + limits[row, q] + 1)
            if walked[row, q] > 0.0:
                for k in range(lo, hi):
                    prefix[0, 0, k] = g[0, 0, k]
                    prefix[0, 1, k] = g[1, 0, k]
                for e in range(E):
                    i = chosen[e]
                    _factor(
                        i, p * A[i] + q * B[i], along[i], start, atoms, masses, poles, rotate, table_row,
                        table_length, table_step, tables, vectors, lo, hi, factors, e, within, place,
                    )  # fmt: skip
                    times(prefix, e, factors, lo, hi)
                if closed:
                    _linear_base(
                        sign * p * phases[0, 0] + q * phases[0, 1], sign * p * phases[1, 0] + q * phases[1, 1],
                        sign * p * phases[2, 0] + q * phases[2, 1], pieces, waves, step, length, powers, lo, hi, j, b,
                    )  # fmt: skip
                else:
                    for l in range(powers):
                        for k in range(lo, hi):
                            b[2 * l, k] = base[l, row, q, k].real
                            b[2 * l + 1, k] = base[l, row, q, k].imag
                for l in range(powers):
                    total_re, total_im = 0.0, 0.0
                    for k in range(lo, hi):
                        total_re += b[2 * l, k] * prefix[E, 0, k] - b[2 * l + 1, k] * prefix[E, 1, k]
                        total_im += b[2 * l, k] * prefix[E, 1, k] + b[2 * l + 1, k] * prefix[E, 0, k]
                    X[l, row, q] = total_re + 1j * total_im
                if vectors:
                    k_re, k_im, start_at = 0.0, 0.0, np.uint64(starts[row, q])
                    for k in range(lo, hi):
                        term_re = b[0, k] * prefix[E, 0, k] - b[1, k] * prefix[E, 1, k]
                        term_im = b[0, k] * prefix[E, 1, k] + b[1, k] * prefix[E, 0, k]
                        k_re += frequency[k] * term_re
                        k_im += frequency[k] * term_im
                        terms[0, start_at + (k - lo)] = term_re
                        terms[1, start_at + (k - lo)] = term_im
                    by_k[row, q] = k_re + 1j * k_im
                    for k in range(lo, hi):
                        after[0, k] = b[0, k]
                        after[1, k] = b[1, k]
                    for e in range(E - 1, -1, -1):
                        # phi_e' times everything else
                        total_re, total_im = 0.0, 0.0
                        for k in range(lo, hi):
                            re = factors[e, 2, k] * after[0, k] - factors[e, 3, k] * after[1, k]
                            im = factors[e, 2, k] * after[1, k] + factors[e, 3, k] * after[0, k]
                            total_re += prefix[e, 0, k] * re - prefix[e, 1, k] * im
                            total_im += prefix[e, 0, k] * im + prefix[e, 1, k] * re
                        by_source[e, row, q] = total_re + 1j * total_im
                        times_back(after, factors, e, lo, hi)
            for d in range(order):
                step_by(g[0, d], g[1, d], g[0, d + 1], g[1, d + 1], lo, hi)
        for d in range(order + 1):
            for a in range(order - d):
                step_by(
                    moving[0, a, d],
                    moving[1, a, d],
                    moving[0, a + 1, d],
                    moving[1, a + 1, d],
                    np.uint64(0),
                    np.uint64(K),
                )


def _walk_pair(
    noise: Any,
    merged: Any,
    A: Any,
    B: Any,
    coefficients: Any,
    begin: int,
    first: int,
    limits: Any,
    walked: Any,
    chosen: Any,
    along: Any,
    sources: Any,
    psi: Any,
    sums: Any,
) -> None:
    """The sums of a pair over k, for its box of modes (p, q), p from `first` on, q = 0, 1, ..

    noise (R+1, R+1, K): coefficients of p^a q^b in the exponent of the noise. A, B, along (m,): the sources' phases a unit of p, q
    and k; merged: those that are one polynomial, from coefficients (ORDERS, m, 2, ..) of `WeakSources`, the first of the K
    frequencies standing at `begin`; chosen (E,): the others.
    limits (rows, Q+1): how far |k| goes, not growing with q, -1 for modes that are left out; walked (rows, Q+1): 1 for
    modes that are wanted, else 0. sources: those of `LinearLaw.flat`.
    psi = phases, pieces, step, length, base. phases (3, 2): center, theta, alpha of `PsiTransform.rows` a unit of p and q;
    pieces (.., 4) of psi, or base (powers, rows, Q+1, K) where psi is not linear on pieces.
    sums = X, terms, starts, by_source, by_k. X (powers, rows, Q+1): sum_k base_l phi. If terms is not empty also terms (2, ..), Re
    and Im of base_0 phi, those of a mode from starts[p, q] on, by_source (E, rows, Q+1) = sum_k base_0 phi_e' prod of the others,
    by_k (rows, Q+1) = sum_k k base_0 phi.
    """
    S = _polynomial(merged, A, B, coefficients, begin, noise)
    R, rows = noise.shape[0] - 1, limits.shape[0]
    of_q = _differences(R, 0.0, 1.0)
    # away from p = 0 in both directions: rounding grows with the steps that are taken
    middle = min(max(-first, 0), rows)
    for sign in (1, -1):
        origin, count = (middle, rows - middle) if sign > 0 else (middle - 1, middle)
        if count > 0:
            begun = abs(first + origin)
            generators = _generators(S, _differences(R, float(begun), float(sign)), of_q)
            _walk_away(
                generators, begun, origin, sign, count, limits, walked, chosen, sign * A, B, along, sources, psi, sums
            )


walk_pair = _entry(_walk_pair)
_walked = _jit(_walk_pair)


@_jit
def _add_four(weights: Any, of: Any, to: Any, lo: Any, hi: Any) -> None:
    """to += sum of weights[i] of[i] over four arrays (2, K), k in [lo, hi): `to` is loaded and stored once for all."""
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for part in range(2):
        for k in range(lo, hi):
            to[part, k] += w0 * of[0, part, k] + w1 * of[1, part, k] + w2 * of[2, part, k] + w3 * of[3, part, k]


def _merged_slopes_of(
    c: Any, terms: Any, starts: Any, limits: Any, first: int, degree: int, chosen: Any, A: Any, B: Any, coefficients: Any,
    begin: int, out: Any,
) -> None:  # fmt: skip
    """out[i] = Im of the sum over modes of c[p, q] sum_k terms[p, q, k] T_i'(p A_i + q B_i; k) for the sources i in `chosen`,
    T_i their parts of the polynomial: sum_m coefficients[m, i] delta^m, m <= degree + 1, the first of the K frequencies at
    `begin`. limits[p, q]: how far |k| goes, which along a row of modes never grows; terms and starts as in `walk_pair`.

    By way of met[a, b] = sum c p^a q^b terms, a + b <= degree: four modes of a row, and then four rows, at a time."""
    rows, columns = limits.shape
    R, half = degree, max(limits.max(), 0)
    K = 2 * half + 1
    met = np.zeros((R + 1, R + 1, 2, K))
    over_q, term = np.empty((R + 1, 4, 2, K)), np.empty((4, 2, K))
    of_q, of_p = np.empty((R + 1, 4)), np.empty((R + 1, 4))
    for top in range(0, rows, 4):
        widest = np.int64(-1)
        for row in range(top, min(top + 4, rows)):
            widest = max(widest, limits[row, 0])
        if widest < 0:
            continue
        # unsigned bounds: an index that cannot be negative needs no check, and the loops vectorise
        least, most = np.uint64(half - widest), np.uint64(half + widest + 1)
        for i in range(4):
            row = top + i
            power = 1.0 if row < rows else 0.0
            for a in range(R + 1):
                of_p[a, i] = power
                power *= first + row
            for b in range(R + 1):
                for k in range(least, most):
                    over_q[b, i, 0, k] = 0.0
                    over_q[b, i, 1, k] = 0.0
            for left in range(0, columns, 4):
                if row >= rows or limits[row, left] < 0:
                    break
                lo, hi = np.uint64(half - limits[row, left]), np.uint64(half + limits[row, left] + 1)
                for j in range(4):
                    q = left + j
                    for k in range(lo, hi):
                        term[j, 0, k] = 0.0
                        term[j, 1, k] = 0.0
                    if q < columns and limits[row, q] >= 0:
                        re, im, start = c[row, q].real, c[row, q].imag, np.uint64(starts[row, q])
                        own, end = np.uint64(half - limits[row, q]), np.uint64(half + limits[row, q] + 1)
                        for k in range(own, end):
                            at = start + (k - own)
                            term[j, 0, k] = re * terms[0, at] - im * terms[1, at]
                            term[j, 1, k] = re * terms[1, at] + im * terms[0, at]
                    power = 1.0
                    for b in range(R + 1):
                        of_q[b, j] = power
                        power *= q
                for b in range(R + 1):
                    _add_four(of_q[b], term, over_q[b, i], lo, hi)
        for b in range(R + 1):
            for a in range(R + 1 - b):
                _add_four(of_p[a], over_q[b], met[a, b], least, most)
    slope = np.empty((2, K))
    for i in chosen:
        total = 0.0
        for m in range(R + 1):
            for k in range(K):
                slope[0, k] = 0.0
                slope[1, k] = 0.0
            binomial = m + 1.0
            for a in range(m + 1):
                load = binomial * A[i] ** a * B[i] ** (m - a)
                for k in range(K):
                    slope[0, k] += load * met[a, m - a, 0, k]
                    slope[1, k] += load * met[a, m - a, 1, k]
                binomial *= (m - a) / (a + 1.0)
            for k in range(K):
                total += coefficients[m + 1, i, 0, begin + k] * slope[1, k]
            for k in range(K):
                total += coefficients[m + 1, i, 1, begin + k] * slope[0, k]
        out[i] = total


merged_slopes = _entry(_merged_slopes_of)
_merged_slopes = _jit(_merged_slopes_of)


@_jit
def _coefficient(series: Any, s_at: int, P: int, r_at: int, Q: int, p: int, q: int) -> Any:
    """What mode (p, q) has in the product of s, of -P..P, and r, of 0..Q, which begin at s_at and r_at of `series`, their
    coefficients or the absolute ones; of each (n, -n) one stands for both: those with q > 0, and of q = 0 those with p >= 0."""
    if abs(p) > P or q > Q or (q == 0 and p < 0):
        return 0.0 * series[0]
    return (2.0 if q > 0 or p > 0 else 1.0) * series[s_at + P + p] * series[r_at + q]


@_entry
def plan_pairs(
    which: Any, pairs: Any, boxes: Any, needs: Any, sizes: Any, tols: Any, plain: Any, shifts: Any, loads: Any, shared: Any,
    at: Any, limits: Any, walked: Any, slack: Any, merged: Any, plans: Any, missed: Any,
) -> None:  # fmt: skip
    """`plan_pair` for those pairs whose numbers stand in `which`, one after the other, each for the largest coefficients of its
    needs.

    pairs (N, 2): their axes; boxes (N, 2): P and Q; needs (.., 5): which pair, and then s_at, P, r_at, Q of `_coefficient`, the
    needs of a pair one after the other; sizes: the absolute series; tols (N,). plain (axes, axes): covariance of the noise along
    `_Side.plain`; shifts (axes,), loads (axes, m); shared: those arguments of `plan_pair` that all pairs share.
    What comes out, of pair n from at[n] on: limits, walked (rows times columns) and slack (the whole box), merged (N, m),
    plans (N, 6): first, rows, columns, degree, the largest limit and the number of lattice points, and missed (N,): what is left
    out with the largest coefficients.
    """
    tail, tables, usable, costs, steps, norm, unit, spread, each = shared
    noise, pair_shifts = np.empty((2, 2)), np.empty(2)
    of = 0
    for n in which:
        one, two = pairs[n, 0], pairs[n, 1]
        P, Q = boxes[n, 0], boxes[n, 1]
        weights = np.zeros((2 * P + 1, Q + 1))
        while needs[of, 0] < n:
            of += 1
        while of < needs.shape[0] and needs[of, 0] == n:
            for row in range(2 * P + 1):
                for q in range(Q + 1):
                    size = _coefficient(sizes, needs[of, 1], needs[of, 2], needs[of, 3], needs[of, 4], row - P, q)
                    weights[row, q] = max(weights[row, q], size)
            of += 1
        noise[0, 0], noise[1, 1] = plain[one, one], plain[two, two]
        noise[0, 1] = noise[1, 0] = plain[one, two]
        pair_shifts[0], pair_shifts[1] = shifts[one], shifts[two]
        first, inner, wanted, degree, joined, left = _planned(
            weights, noise, pair_shifts, tols[n], tail, loads[one], loads[two], tables, usable, costs, steps, norm, unit,
            spread, each,
        )  # fmt: skip
        rows, columns = inner.shape
        reach, points = 0, 0
        for row in range(rows):
            for q in range(columns):
                limits[at[n] + row * columns + q] = inner[row, q]
                walked[at[n] + row * columns + q] = wanted[row, q]
                reach = max(reach, inner[row, q])
                points += max(2 * inner[row, q] + 1, 0)
        plainly, squared = 0.0, 0.0
        for row in range(2 * P + 1):
            for q in range(Q + 1):
                slack[at[n] + row * (Q + 1) + q] = left[row, q]
                plainly += weights[row, q] * left[row, q]
                squared += (weights[row, q] * left[row, q]) ** 2
        missed[n] = min(plainly, spread * np.sqrt(squared))
        for i in range(len(joined)):
            merged[n, i] = joined[i]
        plans[n, 0], plans[n, 1], plans[n, 2], plans[n, 3] = first - P, rows, columns, degree
        plans[n, 4], plans[n, 5] = reach, points


@_entry
def walk_pairs(
    pairs: Any, plans: Any, at: Any, limits: Any, walked: Any, merged: Any, axes: Any, shared: Any, psi: Any, sources: Any,
    places: Any, starts: Any, sums: Any,
) -> None:  # fmt: skip
    """`walk_pair` for pairs that `plan_pairs` planned, one after the other, of a psi that is linear on pieces.

    axes = steps, loads, phases. steps (axes + 1, axes + 1): covariance of the noise along `_Side.step` and, last, a step of b;
    loads (axes, m); phases (axes, 3). shared = along, coefficients, b_modes; psi = pieces, step, length, and sources, as in
    `walk_pair`. sums = X, terms, by_source, by_k, flat, those of pair n from places[n] (4) on, and starts, where the terms of each
    mode begin among the pair's own, from at[n] on; for X alone the others are empty.
    """
    across, loads, all_phases = axes
    along, coefficients, b_modes = shared
    pieces, step, length = psi
    start, atoms, masses, poles, rotate, table_row, table_length, table_step, source_tables = sources
    X, terms, by_source, by_k = sums
    vectors = by_k.shape[0] > 0
    powers = 2 if vectors else 1
    phases, base = np.empty((3, 2)), np.zeros((0, 0, 0, 0), dtype=np.complex128)
    last = across.shape[0] - 1
    for n in range(pairs.shape[0]):
        one, two = pairs[n, 0], pairs[n, 1]
        first, rows, columns, degree, reach, points = plans[n]
        size = rows * columns
        K, begin = 2 * reach + 1, b_modes - reach
        gaussian = np.zeros((degree + 1, degree + 1, K), dtype=np.complex128)
        for k in range(K):
            gaussian[0, 0, k] = -0.5 * across[last, last] * (k - reach) ** 2
            gaussian[1, 0, k] = -across[one, last] * (k - reach)
            gaussian[0, 1, k] = -across[two, last] * (k - reach)
        gaussian[2, 0, :] = -0.5 * across[one, one]
        gaussian[1, 1, :] = -across[one, two]
        gaussian[0, 2, :] = -0.5 * across[two, two]
        for part in range(3):
            phases[part, 0], phases[part, 1] = all_phases[one, part], all_phases[two, part]
        chosen = np.nonzero(~merged[n])[0]
        own_limits = limits[at[n] : at[n] + size].reshape((rows, columns))
        own_starts = starts[at[n] : at[n] + size].reshape((rows, columns))
        x, t, e, k_at = places[n]
        walks = points if vectors else 0
        own_terms = terms[t : t + 2 * walks].reshape((2, walks))
        E = len(chosen) if vectors else 0
        count = 0
        for row in range(rows):
            for q in range(columns):
                own_starts[row, q] = count
                count += max(2 * own_limits[row, q] + 1, 0)
        _walked(
            gaussian, np.nonzero(merged[n])[0], loads[one], loads[two], coefficients, begin, first, own_limits,
            walked[at[n] : at[n] + size].reshape((rows, columns)), chosen, along,
            (
                start, atoms, masses, poles, rotate[:, :, begin : begin + K].copy(), table_row, table_length, table_step,
                source_tables,
            ),
            (phases, pieces, step, length, base),
            (
                X[x : x + powers * size].reshape((powers, rows, columns)), own_terms, own_starts,
                by_source[e : e + E * size].reshape((E, rows, columns)),
                by_k[k_at : k_at + (size if vectors else 0)].reshape((rows if vectors else 0, columns)),
            ),
        )  # fmt: skip


@_jit
def _error(
    n: int, s_at: int, P: int, r_at: int, Q: int, sizes: Any, boxes: Any, at: Any, slack: Any, spread: float
) -> float:
    """`PairLattice.error` of a sum on the lattice of pair n, as in `errors_of_sums`."""
    if boxes[n, 0] < P or boxes[n, 1] < Q:
        return np.inf
    width = boxes[n, 1] + 1
    plainly, squared = 0.0, 0.0
    for p in range(-P, P + 1):
        for q in range(Q + 1):
            left = _coefficient(sizes, s_at, P, r_at, Q, p, q) * slack[at[n] + (p + boxes[n, 0]) * width + q]
            plainly += left
            squared += left * left
    return float(min(plainly, spread * np.sqrt(squared)))


@_entry
def errors_of_sums(asked: Any, sizes: Any, boxes: Any, at: Any, slack: Any, spread: float, errors: Any) -> None:
    """`PairLattice.error` for each asked (.., 5), as `needs` of `plan_pairs`; infinite where the lattice's box is too small."""
    for i in range(asked.shape[0]):
        n, s_at, P, r_at, Q = asked[i]
        errors[i] = _error(n, s_at, P, r_at, Q, sizes, boxes, at, slack, spread)


@_entry
def read_pairs(
    asked: Any, series: Any, sizes: Any, pairs: Any, boxes: Any, plans: Any, at: Any, limits: Any, slack: Any, spread: float,
    merged: Any, loads: Any, coefficients: Any, b_modes: int, places: Any, starts: Any, sums: Any, values: Any, errors: Any,
    slopes: Any, shares: Any,
) -> None:  # fmt: skip
    """What `PairLattice.value`, and `PairLattice.vector` where `slopes` is not empty, take from the lattices for each asked
    (A, 5), as `needs` of `plan_pairs`: Re sum c X_0 as values (A,), what `errors_of_sums` says, Im of the sources' derivatives as
    slopes (A, m), and as shares (A, 4) Im of the sums of c X_0 p, c X_0 q and c times those with k, and Re sum c X_1. The rest
    as in `walk_pairs`."""
    X, terms, by_source, by_k = sums
    vectors = slopes.shape[0] > 0
    for i in range(asked.shape[0]):
        n, s_at, P, r_at, Q = asked[i]
        first, rows, columns, degree, reach, points = plans[n]
        size = rows * columns
        x, t, e, k_at = places[n]
        c = np.empty((rows, columns), dtype=np.complex128)
        total = 0.0
        for row in range(rows):
            for q in range(columns):
                c[row, q] = _coefficient(series, s_at, P, r_at, Q, first + row, q)
                total += (c[row, q] * X[x + row * columns + q]).real
        values[i] = total
        errors[i] = _error(n, s_at, P, r_at, Q, sizes, boxes, at, slack, spread)
        if not vectors:
            continue
        of_p, of_q, of_k, of_psi = 0.0, 0.0, 0.0, 0.0
        for row in range(rows):
            for q in range(columns):
                at_mode = row * columns + q
                turned = (c[row, q] * X[x + at_mode]).imag
                of_p += turned * (first + row)
                of_q += turned * q
                of_k += (c[row, q] * by_k[k_at + at_mode]).imag
                of_psi += (c[row, q] * X[x + size + at_mode]).real
        shares[i, 0], shares[i, 1], shares[i, 2], shares[i, 3] = of_p, of_q, of_k, of_psi
        chosen = np.nonzero(~merged[n])[0]
        for apart in range(len(chosen)):
            total = 0.0
            for at_mode in range(size):
                total += (c[at_mode // columns, at_mode % columns] * by_source[e + apart * size + at_mode]).imag
            slopes[i, chosen[apart]] = total
        _merged_slopes(
            c, terms[t : t + 2 * points].reshape((2, points)), starts[at[n] : at[n] + size].reshape((rows, columns)),
            limits[at[n] : at[n] + size].reshape((rows, columns)), first, degree, np.nonzero(merged[n])[0],
            loads[pairs[n, 0]], loads[pairs[n, 1]], coefficients, b_modes - reach, slopes[i],
        )  # fmt: skip
