"""The public names, lazily imported, and `evaluate`, `gradient`, `fit` and `load` through them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import trapezoid

import elbotree as et


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["elbotree", "elbotree.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    heavy = "('numpy', 'scipy', 'sympy', 'networkx', 'matplotlib', 'rich')"
    assert run_python(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_a_layer_is_made_without_sympy_and_its_psi_compiled_when_called() -> None:
    code = (
        "import sys, elbotree as et; layer = et.Layer([[1.0]], [1.0], [1.0], psi='tanh');"
        "print('sympy' in sys.modules, float(layer([[0.5]])[0, 0]))"
    )
    loaded, value = run_python(code).split()
    assert loaded == "False"
    assert float(value) == pytest.approx(0.5 + np.tanh(0.5))


@pytest.mark.parametrize("module", ["elbotree.evaluation", "elbotree.fitting", "elbotree.report"])
def test_modules_of_the_front_door_compile_psi_without_the_public_names(module: str) -> None:
    layer = "Layer([[1.0]], [1.0], [1.0], 'abs')"
    code = f"import {module}; from elbotree.runtime.models import Layer; print({layer}([[-2.0]])[0, 0])"
    assert run_python(code) == "0.0"


def test_every_public_name_is_there_and_an_unknown_one_is_refused() -> None:
    assert set(et.__all__) <= set(dir(et))
    assert all(getattr(et, name) is not None for name in et.__all__)
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        _ = et.evaluat


LAYER = et.Layer([[1.0]], [0.5], [0.5])
P1 = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: et.joint([LAYER], P1, [1.0]),
            r"`layer` is \[Layer.* must be an elbotree.Layer; of a network .*sampled_tails",
        ),
        (lambda: et.joint(LAYER, [[1.0]], [1.0]), r"`p1` is \[\[1.0\]\]; .* elbotree.fit_input makes one of data"),
        (lambda: et.fit([LAYER], P1), r"`layer` is .*; fit_network\(layers, p1\) models a list"),
        (lambda: et.fit(LAYER, None), r"`p1` is None; it must be an elbotree.FeatureModel"),
        (lambda: et.fit_network(LAYER, P1), r"`layers` is Layer.*a list of layers, which elbotree.compile_network"),
        (lambda: et.fit_network([LAYER], "x"), r"`p1` is 'x'; it must be an elbotree.FeatureModel; elbotree.fit_input"),
        (
            lambda: et.sampled_tails("x", P1, [1.0], 1.0, 200),
            r"`layers\[0\]` is 'x'; it must be an elbotree.Layer, which",
        ),
        (lambda: et.sampled_tails([LAYER], None, [1.0], 1.0, 200), r"`p1` is None"),
        (lambda: et.evaluate("problem.json"), r"`problem` is 'problem.json'; .*Problem.load\(path\) reads one"),
        (lambda: et.gradient(None), r"`problem` is None; it must be an elbotree.Problem"),
        (lambda: et.flat_objective(None), r"`problem` is None; it must be an elbotree.Problem"),
        (lambda: et.write_report("x.html", "fitted"), r"`content` is 'fitted'; it must be a problem, a fit, a chain"),
    ],
)
def test_an_object_of_the_wrong_kind_is_named_with_where_the_right_one_comes_from(call: Any, message: str) -> None:
    with pytest.raises(et.InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_samples_come_from_a_generator_or_a_seed() -> None:
    rows = P1.sample(5, 3)
    assert rows.tolist() == P1.sample(5, np.random.default_rng(3)).tolist() == P1.sample(5, np.int64(3)).tolist()
    assert P1.sample(5).tolist() != P1.sample(5).tolist()
    for wrong in (-1, True, "3", 0.5, np.random):
        with pytest.raises(et.InputError, match=r"`rng` is .*; it must be a numpy.random.Generator, a seed"):
            P1.sample(5, wrong)


@pytest.mark.parametrize("place", [".", "missing/report.html"])
def test_a_report_says_before_the_work_that_it_has_no_place(
    tmp_path: Path, form: dict[str, Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elbotree.report.evaluate", lambda *_, **__: pytest.fail("worked before it asked for a place"))
    with pytest.raises(et.InputError, match="choose another place"):
        et.write_report(tmp_path / place, et.Problem.from_dict(form))


def test_results_print_their_value_and_error_on_a_line() -> None:
    law = et.joint(LAYER, P1, [1.0])
    assert str(law.tail(2.0)).startswith("P = 0.0")
    assert len(str(law.tail([1.0, 2.0])).splitlines()) == 2
    value, error = str(law.mean()).split(" ± ")
    assert float(value.strip("[]")) == pytest.approx(float(law.mean().value[0]))
    assert float(error.strip("[]")) < 1e-9


def test_a_renamed_name_works_and_warns_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(et._RENAMED, "assess", "evaluate")
    with pytest.warns(DeprecationWarning, match="elbotree.assess is now elbotree.evaluate") as caught:
        assert et.assess is et.evaluate
    assert caught[0].filename == __file__


def test_evaluate_agrees_with_sampling(form: dict[str, Any]) -> None:
    values = et.evaluate(et.Problem.from_dict(form), tol=1e-7, check_samples=20_000)
    leaves = [values[name] for name in ("R1", "S1", "T2", "T3", "U1", "U2", "U3")]
    assert all(term.deviation is not None and abs(term.deviation) < 5 for term in leaves)
    assert all(term.error <= 1e-7 * max(1.0, abs(term.value)) for term in values.values())
    assert values.method == "spectral"
    assert values.tol == 1e-7


def test_the_grid_takes_its_accuracy_from_eps_and_is_held_to_a_tolerance_only_when_given(form: dict[str, Any]) -> None:
    form["layer"] = {"A": [[1.0]], "w": [0.5], "u": [1.0], "psi": "tanh"}
    form["input"] = {"B": [[1.0]], "noise_std": 0.5, "priors": [{"kind": "bernoulli", "p": 0.3}]}
    form["model"] = {"B": [[1.0]], "noise_std": 0.6, "priors": [{"kind": "bernoulli", "p": 0.4}]}
    form["encoder"] = [{"family": "bernoulli", "C": [[1.5]]}]
    problem = et.Problem.from_dict(form)
    grid, spectral = et.evaluate(problem, method="grid", eps=0.05), et.evaluate(problem, tol=1e-8)
    assert grid.tol is None
    assert all(abs(grid[name].value - spectral[name].value) <= grid[name].error + 1e-8 for name in grid)
    assert abs(grid["T3"].value - spectral["T3"].value) > 1e-9
    with pytest.raises(et.ToleranceError, match="a smaller eps"):
        et.evaluate(problem, tol=1e-9, method="grid", eps=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tol": 0.0}, "tol is 0.0; it must be a positive number"),
        ({"tol": float("nan")}, "`tol` is nan; it must be a finite number"),
        ({"method": "exact"}, "method is 'exact'; it must be one of spectral, grid"),
        ({"eps": 0.1}, "eps is the width of the grid's bins"),
        ({"method": "grid", "eps": -1.0}, "eps is -1.0; it must be a positive number"),
        ({"check_samples": 1}, r"`check_samples` is 1; it must be a whole number of at least 2"),
    ],
)
def test_wrong_arguments_are_named(form: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(et.InputError, match=message):
        et.evaluate(et.Problem.from_dict(form), **arguments)


def test_a_model_without_features_has_the_closed_form_loss(form: dict[str, Any]) -> None:
    form["model"] |= {"B": [[], []], "priors": []}
    form["encoder"] = []
    values = et.evaluate(et.Problem.from_dict(form), tol=1e-8)
    assert values["R1"].value == values["T3"].value == 0.0
    assert values["L"].value == pytest.approx(np.log(2 * np.pi * 0.36) + values["T1"].value / 0.72, abs=1e-7)


def test_gradient_is_the_slope_of_the_loss(form: dict[str, Any]) -> None:
    gradient = et.gradient(et.Problem.from_dict(form), tol=1e-9)
    step = 1e-4

    def loss(shift: float) -> float:
        changed = form | {"model": form["model"] | {"noise_std": 0.6 + shift}}
        return et.evaluate(et.Problem.from_dict(changed), tol=1e-9)["L"].value

    slope = (loss(step) - loss(-step)) / (2 * step)
    assert float(gradient["noise_std"].value) == pytest.approx(slope, abs=1e-5)
    assert gradient.values["L"].value == pytest.approx(loss(0.0), abs=1e-8)
    assert [estimate.value.shape for estimate in gradient["C"]] == [(1, 2), (1, 2)]
    with pytest.raises(KeyError, match="no part 'A'"):
        gradient["A"]


@pytest.fixture(scope="module")
def small_fit() -> et.Fit:
    """One Bernoulli feature in one dimension, f the identity: quick to train."""
    p1 = et.FeatureModel([[2.0]], [et.Bernoulli(0.3)], 0.5)
    layer = et.Layer([[1.0]], [0.0], [1.0], psi="zero")
    return et.fit(layer, p1, features=1, family="bernoulli", tol=1e-3)


def test_fit_reaches_the_entropy_and_not_below(small_fit: et.Fit) -> None:
    x = np.linspace(-6.0, 8.0, 20_001)
    density = sum(
        weight * np.exp(-((x - mean) ** 2) / 0.5) / np.sqrt(0.5 * np.pi) for weight, mean in ((0.7, 0.0), (0.3, 2.0))
    )
    entropy = float(-trapezoid(density * np.log(density), x))
    loss = small_fit.values["L"]
    assert entropy - loss.error <= loss.value <= entropy + 0.02
    assert small_fit.history[-1].loss <= small_fit.history[0].loss


def test_a_fit_is_read_back_as_it_was(small_fit: et.Fit, tmp_path: Path) -> None:
    small_fit.save(tmp_path / "fit")
    again = et.load(tmp_path / "fit")
    assert sorted(path.name for path in (tmp_path / "fit").iterdir()) == ["cfg.json", "model.safetensors"]
    assert again.problem.to_dict() == small_fit.problem.to_dict()
    assert again.history == small_fit.history
    assert again.values.to_dict() == small_fit.values.to_dict()


def test_a_damaged_fit_is_refused(small_fit: et.Fit, tmp_path: Path) -> None:
    small_fit.save(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(et.InputError, match="does not match"):
        et.load(tmp_path)


def test_fit_refuses_counts_and_families_that_do_not_fit() -> None:
    p1 = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.5)
    layer = et.Layer([[1.0]], [0.0], [1.0], psi="zero")
    with pytest.raises(et.InputError, match="`features` is -1"):
        et.fit(layer, p1, features=-1)
    with pytest.raises(et.InputError, match="lists 2 names; there are 1 features"):
        et.fit(layer, p1, features=1, family=["bernoulli", "normal"])


@pytest.mark.parametrize(
    ("lines", "printed"),
    [
        ("import elbotree", "take Layer from elbotree instead of its runtime, or `import elbotree.compiler` first"),
        ("import elbotree.compiler", "relu"),
        ("from elbotree import Problem", "relu"),
    ],
)
def test_a_runtime_that_cannot_compile_psi_says_what_to_import(lines: str, printed: str) -> None:
    program = (
        f"{lines}\nfrom elbotree.runtime.models import Layer\n"
        "try:\n    print(Layer([[1.0]], [1.0], [1.0], 'relu').activation.text)\nexcept Exception as error:\n    print(error)"
    )
    assert printed in run_python(program)
