"""The inner loops of the loss on points, compiled by numba: the tilted posteriors of all points, and the sums of products over
points. What they are for is in `search`.

Points stand last everywhere and each sum runs over them in one order, so that results do not depend on the number of threads
(those of BLAS may).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from elbotree.runtime.lattice_loops import _entry, _jit

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


@_jit
def _exp(x: Any, power: Any) -> None:
    """exp of each x <= 0 in place, as 2^k exp(r), |r| <= log(2) / 2, to 1e-14 relative; less than e^-700
    is that. It vectorises, which calls of exp do not. `power` is room for as many int64."""
    two = power.view(np.float64)
    for i in range(len(x)):
        v = max(x[i], -700.0)
        k = np.floor(v * _LOG2_E + 0.5)
        r = v - k * _LN2_HIGH - k * _LN2_LOW
        term = 1.0 + r / 12.0
        term = 1.0 + term * r / 11.0
        term = 1.0 + term * r / 10.0
        term = 1.0 + term * r / 9.0
        term = 1.0 + term * r / 8.0
        term = 1.0 + term * r / 7.0
        term = 1.0 + term * r / 6.0
        term = 1.0 + term * r / 5.0
        term = 1.0 + term * r / 4.0
        term = 1.0 + term * r / 3.0
        term = 1.0 + term * r / 2.0
        x[i] = 1.0 + term * r
        power[i] = (np.int64(np.int32(k)) + 1023) << 52
    for i in range(len(x)):
        x[i] *= two[i]


@_entry
def tilted(t: Any, precision: Any, first: Any, z: Any, log_masses: Any, out: Any) -> None:
    """Of each feature's posteriors q_k = m_k exp(t z_k - precision z_k^2 / 2) / Z, t (m, N), with qbar_k the mean of q_k over
    points and K = sum_k q_k log(q_k / qbar_k): into `out`, (8, m, N), the means s, the variances V, K, the slopes of V and K in
    t (that of s is V), and those of s, V and K in the precision. Feature j lives on z[first[j]:first[j + 1]]."""
    m, N = t.shape
    most = 0
    for j in range(m):
        most = max(most, first[j + 1] - first[j])
    q, log_z, total, power = np.empty((most, N)), np.empty(N), np.empty(N), np.empty(N, np.int64)
    for j in range(m):
        values, logs = z[first[j] : first[j + 1]], log_masses[first[j] : first[j + 1]]
        count = len(values)
        log_z[:] = -np.inf
        for k in range(count):
            at = logs[k] - 0.5 * precision[j] * values[k] ** 2
            for i in range(N):
                q[k, i] = t[j, i] * values[k] + at
                log_z[i] = max(log_z[i], q[k, i])
        total[:] = 0.0
        for k in range(count):
            for i in range(N):
                q[k, i] -= log_z[i]
            _exp(q[k], power)
            for i in range(N):
                total[i] += q[k, i]
        for i in range(N):
            log_z[i] += np.log(total[i])
            total[i] = 1.0 / total[i]
        for k in range(count):
            for i in range(N):
                q[k, i] *= total[i]
        out[:, j] = 0.0
        m1, m2, K, m3, d1, d2, m4, K_l = (
            out[0, j],
            out[1, j],
            out[2, j],
            out[3, j],
            out[4, j],
            out[5, j],
            out[6, j],
            out[7, j],
        )
        for k in range(count):
            mass = 0.0
            for i in range(N):
                mass += q[k, i]
            at = logs[k] - 0.5 * precision[j] * values[k] ** 2 - np.log(max(mass / N, 1e-12))
            x, xx = values[k], values[k] ** 2
            for i in range(N):
                p = q[k, i]
                d = p * (t[j, i] * x + at - log_z[i])
                m1[i] += p * x
                m2[i] += p * xx
                m3[i] += p * xx * x
                m4[i] += p * xx * xx
                K[i] += d
                d1[i] += d * x
                d2[i] += d * xx
        for i in range(N):  # from moments to s, V, K, V_t, K_t, s_l, V_l, K_l
            s, V = m1[i], m2[i] - m1[i] ** 2
            s_l = -0.5 * (m3[i] - s * m2[i])
            K_l[i] = -0.5 * (d2[i] - m2[i] * K[i])
            m4[i] = -0.5 * (m4[i] - m2[i] ** 2) - 2.0 * s * s_l
            m3[i] += -3.0 * s * V - s**3
            m2[i], d1[i], d2[i] = V, d1[i] - s * K[i], s_l


@_entry
def dots(left: Any, right: Any) -> Any:
    """sum_i left[j, i] right[k, i], (J, K)."""
    out = np.empty((len(left), len(right)))
    for j in range(len(left)):
        for k in range(len(right)):
            total = 0.0
            for i in range(left.shape[1]):
                total += left[j, i] * right[k, i]
            out[j, k] = total
    return out


@_entry
def combined(weights: Any, rows: Any) -> Any:
    """sum_a weights[j, a] rows[a, i], (J, N)."""
    out = np.zeros((len(weights), rows.shape[1]))
    for j in range(len(weights)):
        for a in range(len(rows)):
            weight = weights[j, a]
            for i in range(rows.shape[1]):
                out[j, i] += weight * rows[a, i]
    return out
