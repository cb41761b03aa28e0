"""L-BFGS by single iterations: where it arrives, what it never does, and what it does where the loss cannot be told."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize, rosen, rosen_der

from elbotree.runtime.lbfgs import Search, advance

Array = NDArray[np.float64]


def run(objective, x: Array, iterations: int = 400, stop: float = 1e-9) -> tuple[Search, list[float]]:  # type: ignore[no-untyped-def]
    search, losses = Search(x, *objective(x)), []
    for _ in range(iterations):
        if np.abs(search.gradient).max() < stop:
            break
        found = advance(search, objective)
        if found is None:
            break
        search = found
        losses.append(search.loss)
    return search, losses


def rosenbrock(x: Array) -> tuple[float, Array]:
    return float(rosen(x)), np.asarray(rosen_der(x))


def test_it_arrives_at_the_minimum_and_never_goes_up() -> None:
    x = np.array([1.3, 0.7, 0.8, 1.9, 1.2])
    search, losses = run(rosenbrock, x)
    theirs = minimize(rosen, x, jac=rosen_der, method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(search.x, theirs.x, atol=1e-6)
    assert all(after < before for before, after in zip([rosen(x), *losses], losses, strict=False))
    assert len(losses) < 3 * theirs.nit


def quadratic(scales: Array) -> tuple[object, Array]:
    return (lambda x: (0.5 * float(scales @ x**2), scales * x)), scales


def test_the_expected_gain_of_a_quadratic_is_exact_once_it_is_known() -> None:
    objective, scales = quadratic(np.array([1.0, 10.0, 100.0]))
    search = Search(np.array([1.0, -2.0, 0.5]), *objective(np.array([1.0, -2.0, 0.5])))  # type: ignore[operator]
    for axis in np.eye(3):  # steps along the axes teach it the Hessian
        search.steps.append(axis)
        search.changes.append(scales * axis)
    # the diagonal is known exactly, whatever H_0 is: <g, H g> / 2 is the whole loss
    assert search.expected_gain(search.direction()) == pytest.approx(search.loss, rel=1e-12)


def test_a_model_that_is_right_leads_to_the_minimum_at_once_and_one_that_is_not_is_put_aside() -> None:
    objective, scales = quadratic(np.array([1.0, 1e3, 1e6]))
    x = np.array([1.0, -2.0, 0.5])
    search = Search(x, *objective(x))  # type: ignore[operator]
    newton = search.direction(lambda at, q: q / scales)
    assert search.expected_gain(newton) == pytest.approx(search.loss, rel=1e-12)
    found = advance(search, objective, led=newton)  # type: ignore[arg-type]
    assert found is not None
    assert found.loss < 1e-20 * search.loss
    uphill = advance(search, objective, led=-newton)  # type: ignore[arg-type]
    alone = advance(search, objective)  # type: ignore[arg-type]
    assert uphill is not None
    assert alone is not None
    assert np.array_equal(uphill.x, alone.x)


def test_what_is_remembered_corrects_a_model() -> None:
    """Along the steps that it has taken H is right whatever the model says of them."""
    objective, scales = quadratic(np.array([1.0, 10.0, 100.0]))
    search = Search(np.array([1.0, -2.0, 0.5]), *objective(np.array([1.0, -2.0, 0.5])))  # type: ignore[operator]
    search.steps.append(np.eye(3)[1])
    search.changes.append(scales * np.eye(3)[1])
    model = np.array([[1.0, 0.3, 0.0], [0.3, 7.0, 0.0], [0.0, 0.0, 0.01]])
    d = search.direction(lambda at, q: model @ q)
    np.testing.assert_allclose(d, -search.x, rtol=1e-12)


def test_a_step_into_a_region_that_cannot_be_evaluated_is_shortened() -> None:
    asked: list[float] = []

    def walled(x: Array) -> tuple[float, Array] | None:
        asked.append(float(x[0]))
        return None if x[0] >= 1.0 else (float(-2 * x[0] - np.log(1 - x[0])), -2 + 1 / (1 - x))

    start = walled(np.array([-50.0]))
    assert start is not None
    search = Search(np.array([-50.0]), *start)
    for _ in range(30):
        found = advance(search, walled)
        if found is None:
            break
        search = found
    assert max(asked) > 1.0  # the wall was met
    assert search.x[0] == pytest.approx(0.5, abs=1e-6)


def test_no_step_is_tried_that_promises_too_little() -> None:
    asked: list[Array] = []

    def flat(x: Array) -> tuple[float, Array]:
        asked.append(x)
        return float(1e-9 * x @ x), 2e-9 * x

    search = Search(np.ones(2), *flat(np.ones(2)), [np.ones(2)] * 2, [2e-9 * np.ones(2)] * 2)
    asked.clear()
    assert advance(search, flat, least=1e-6) is None
    assert asked == []
    assert advance(search, flat, least=1e-10) is not None
    assert asked


def test_noise_that_refuses_every_step_ends_it_soon() -> None:
    """The gradient points down and the loss never falls: both directions are tried, neither for long."""
    asked: list[Array] = []

    def contradictory(x: Array) -> tuple[float, Array]:
        asked.append(x)
        return 1.0 + 1e-3 * len(asked), np.ones(3)

    search = Search(np.zeros(3), 1.0, np.ones(3), [np.ones(3)] * 2, [np.ones(3)] * 2)
    assert advance(search, contradictory) is None
    assert len(asked) == 4


def test_only_so_many_pairs_are_kept_and_none_of_negative_curvature() -> None:
    search, _ = run(rosenbrock, np.linspace(-1.0, 1.0, 12), iterations=60)
    assert len(search.steps) == len(search.changes) == 20
    assert all(float(s @ y) > 0 for s, y in zip(search.steps, search.changes, strict=True))


def test_a_narrow_valley_is_not_taken_for_noise() -> None:
    """While more is promised than the loss can tell from noise, steps that raise it are shortened, more than three times even."""
    width = 1e-3

    def valley(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float(np.log1p((x / width) @ (x / width))), 2 * x / (width**2 + x @ x)

    start = Search(np.array([width]), *valley(np.array([width])))
    assert advance(start, valley) is None
    found = advance(start, valley, told=1e-3)
    assert found is not None
    assert found.loss < start.loss
