"""float64 at every way in: arrays and numbers of other real types are converted, all others refused, NaN and infinity too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import elbotree as et
from tests.stress.outcomes import SMALL

A = [[1.0, 0.25], [0.0, 0.5]]
W, U = [0.5, -0.5], [0.75, 0.5]


def layer() -> et.Layer:
    return et.Layer(A, W, U)


def model() -> et.FeatureModel:
    return et.FeatureModel(A, [et.Bernoulli(0.3), et.Normal(0.0, 1.0)], 0.5)


def fitted() -> et.Fit:
    return et.fit(
        et.Layer([[1.0]], [0.5], [0.5]), et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4), 1, tol=1e-2, iterations=1
    )


#: A way in, and what it makes of a matrix of two rows and two columns.
ARRAYS: dict[str, Callable[[Any], Any]] = {
    "Layer": lambda M: et.Layer(M, W, U).A,
    "Layer.w": lambda M: et.Layer(A, M[1], U).w,
    "FeatureModel": lambda M: et.FeatureModel(M, [et.Bernoulli(0.3)] * 2, 0.5).B,
    "Posterior": lambda M: et.Posterior("normal_scale", M).C,
    "Discrete": lambda M: np.array(et.Discrete(M[0], [0.5, 0.5]).points),
    "a layer's rows": lambda M: layer()(M),
    "a plan's rows": lambda M: et.plan_network([(A, None, "relu")])(M),
    "compile_network": lambda M: et.compile_network([(M, None, "relu")])[-1].A,
    "marginal": lambda M: model().marginal(M[0]).V,
    "joint": lambda M: et.joint(layer(), model(), M).V,
    "tail": lambda M: et.joint(layer(), model(), [1.0, 0.0]).tail(M[0]).value,
    "pdf": lambda M: et.joint(layer(), model(), [1.0, 0.0]).pdf(M[0]).value,
    "sampled_tails": lambda M: np.array([t.value for t in et.sampled_tails([layer()], model(), [1.0, 0.0], M[0], 200)]),
    "fit_input": lambda M: et.fit_input(np.tile(M, (60, 1)), features=1, rotation="none")[0].offset,
    "encode": lambda M: fitted().encode(M[:, :1])[0],
}


@pytest.mark.parametrize("way", ARRAYS)
def test_arrays_of_real_numbers_become_float64(way: str) -> None:
    expected = ARRAYS[way](np.array(A))
    for given in (np.array(A, dtype=np.float32), np.array(A, dtype=np.longdouble), np.array(A, order="F")):
        found = ARRAYS[way](given)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("way", ARRAYS)
def test_arrays_of_integers_become_float64(way: str) -> None:
    whole = np.array([[1, 0], [2, 3]])
    expected = ARRAYS[way](whole.astype(np.float64))
    for dtype in (np.int64, np.int8, np.uint16):
        found = ARRAYS[way](whole.astype(dtype))
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)


class Frame:
    """What a data frame or another library's tensor looks like: it has rows, and offers itself as an array."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.values, dtype=dtype)

    def __getitem__(self, i: int) -> Any:
        return Frame(self.values[i])


@pytest.mark.parametrize("way", sorted(ARRAYS.keys() - {"fit_input", "encode"}))  # whose lambdas make arrays first
def test_what_offers_itself_as_an_array_is_taken_as_one(way: str) -> None:
    np.testing.assert_array_equal(ARRAYS[way](Frame(np.array(A))), ARRAYS[way](np.array(A)))
    with pytest.raises(et.InputError):
        ARRAYS[way](Frame(np.array(A, dtype=complex)))


@pytest.mark.parametrize("way", ARRAYS)
@pytest.mark.parametrize("dtype", ["complex128", "str", "bool", "datetime64[s]"])
def test_other_arrays_are_refused(way: str, dtype: str) -> None:
    given = np.ones((2, 2)).astype(int).astype(dtype)
    with pytest.raises(et.InputError):
        ARRAYS[way](given)


@pytest.mark.parametrize("way", ARRAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(way: str, value: float) -> None:
    with pytest.raises(et.InputError, match=r"nan|inf|finite"):
        ARRAYS[way](np.full((2, 2), value))


#: A way in for one number, and what it makes of it.
NUMBERS: dict[str, Callable[[Any], Any]] = {
    "noise_std": lambda x: et.FeatureModel(A, [et.Bernoulli(0.3)] * 2, x).noise_std,
    "threshold": lambda x: et.Layer(A, W, U, threshold=x).threshold,
    "a prior's parameter": lambda x: et.Bernoulli(x).p,
    "a posterior's parameter": lambda x: et.Posterior("normal", [[1.0, 0.0]], std=x).std,
    "a point": lambda x: float(et.joint(layer(), model(), [1.0, 0.0]).tail(x).value),
    "a tail's tol": lambda x: float(et.joint(layer(), model(), [1.0, 0.0]).tail(1.0, tol=x).value),
    "evaluate's tol": lambda x: et.evaluate(small(), x)["L"].value,
    "evaluate's eps": lambda x: et.evaluate(small(), None, "grid", eps=x)["L"].value,
    "fit's tol": lambda x: et.fit(layer(), model(), 0, tol=x).values["L"].value,
    "fit_network's tol": lambda x: et.fit_network([layer()], model(), tol=x).models[0].noise_std,
}


def small() -> et.Problem:
    """A problem without features, which takes no time."""
    return et.Problem(layer(), model(), et.FeatureModel(np.zeros((2, 0)), [], 1.0), et.Encoder([]))


@pytest.mark.parametrize("way", NUMBERS)
def test_numbers_of_other_real_types_are_converted(way: str) -> None:
    expected = NUMBERS[way](0.5)
    for given in (np.float32(0.5), np.float16(0.5), np.float64(0.5)):
        found = NUMBERS[way](given)
        assert type(found) is float
        assert found == expected


@pytest.mark.parametrize("way", NUMBERS)
@pytest.mark.parametrize("value", [0.5 + 0j, "0.5", np.nan, np.inf, np.array([0.5, 0.5], dtype=complex), [0.5j]])
def test_other_numbers_are_refused(way: str, value: Any) -> None:
    with pytest.raises(et.InputError):
        NUMBERS[way](value)


#: What people call, on problems whose weights underflow.
CALLS: dict[str, Callable[[], Any]] = {
    "evaluate": lambda: [term.value for term in et.evaluate(example(), 1e-6).values()],
    "gradient": lambda: np.concatenate([np.ravel(part.value) for part in et.gradient(example(), 1e-4)["C"]]),
    "grid": lambda: [term.value for term in et.evaluate(example(), method="grid", eps=0.5).values()],
    "fit": lambda: fitted().model.B,
    "fit_network": lambda: et.fit_network([layer()], model(), tol=1e-2, iterations=1, check_samples=100).models[-1].B,
    "tail": lambda: et.joint(layer(), model(), [1.0, 0.0]).tail([1.0, 30.0]).value,
    "pdf": lambda: et.joint(layer(), model(), [1.0, 0.0]).pdf([0.0, 60.0]).value,
    "marginal": lambda: model().marginal([1.0, 0.0]).tail([1.0, 60.0]).value,
    "sample": lambda: model().sample(4, np.random.default_rng(0)),
}


def example() -> et.Problem:
    return et.Problem.from_dict(SMALL)


@pytest.mark.parametrize("name", CALLS)
def test_underflow_is_no_error_whatever_the_caller_told_numpy(name: str) -> None:
    with np.errstate(under="ignore"):
        expected = CALLS[name]()
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(CALLS[name](), expected)
