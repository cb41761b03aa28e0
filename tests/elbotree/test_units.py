"""Evaluating in any unit of x2: the same problem in other units has the same R1 and R3, L that differs by n2 log(unit),
terms that differ by unit^2, and the chain rule's gradient. Nothing of `units` makes what is compared."""

from __future__ import annotations

import numpy as np
import pytest

import elbotree as et


def problem(s: float) -> et.Problem:
    """A relu layer with x2 measured in 1 / s."""
    layer = et.Layer(
        s * np.array([[1.0, 0.2], [-0.3, 0.8]]), [0.5 * s, -0.3 * s], [0.4 / s, 0.6 / s], "relu", [0.1 * s, 0.0]
    )
    p1 = et.FeatureModel([[1.0, 0.3], [0.0, 0.9]], [et.Bernoulli(0.3), et.Normal(0.1, 0.5)], 0.2)
    model = et.FeatureModel(
        s * np.array([[0.9, 0.2], [-0.2, 0.7]]), [et.Bernoulli(0.4), et.Bernoulli(0.2)], 0.4 * s, [0.2 * s, -0.1 * s]
    )
    rows = [et.Posterior("bernoulli", np.array([[2.0, 1.0], [-1.0, 1.5]])[[j]] / s, [0.3 * j - 0.5]) for j in range(2)]
    return et.Problem(layer, p1, model, et.Encoder(rows))


@pytest.mark.parametrize("s", [2.0**-20, 1e-5, 1e5, 2.0**20])
def test_values_and_gradient_do_not_depend_on_the_unit_of_x2(s: float) -> None:
    one, moved = et.gradient(problem(1.0), tol=1e-6), et.gradient(problem(s), tol=1e-6)
    for name, value in et.evaluate(problem(s), tol=1e-6).items():
        by = 1.0 if name in ("L", "R1", "R2", "R3") else s**2
        shift = 2 * np.log(s) if name in ("L", "R2") else 0.0
        expected = by * float(one.values[name].value) + shift
        assert float(value.value) == pytest.approx(expected, abs=5e-8 * max(1.0, abs(expected)))
        assert float(moved.values[name].value) == pytest.approx(expected, abs=5e-8 * max(1.0, abs(expected)))
        assert value.error <= 1e-6 * max(1.0, abs(float(value.value)))
    for j in range(2):
        np.testing.assert_allclose(moved["C"][j].value / s, one["C"][j].value, atol=1e-6)
        np.testing.assert_allclose(moved["bias"][j].value, one["bias"][j].value, atol=1e-6)
    for name in ("B", "offset", "noise_std"):
        np.testing.assert_allclose(s * moved[name].value, one[name].value, atol=1e-6)
        assert np.abs(one[name].value).max() > 1e-2
