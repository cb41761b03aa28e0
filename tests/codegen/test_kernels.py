"""Generated kernels against the ELBO's definition and its central differences, on a law of x1 with finitely many
points; and the generated text as an artefact."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys

import numpy as np
import pytest

from elbotree.codegen import compile_psi, generate
from elbotree.derivation import derive
from elbotree.derivation.activations import definition
from elbotree.derivation.tree import NODE_NAMES
from elbotree.runtime import Bernoulli, Discrete, Encoder, Exponential, FeatureModel, Layer, Normal, Posterior, Problem
from elbotree.runtime.activations import set_compiler
from elbotree.runtime.errors import InputError

from .finite import Feature, FiniteExpectations, elbo

set_compiler(compile_psi, definition)

FAMILIES = ("bernoulli", "normal", "normal_scale", "exponential", "tilted")
POINTS, BASE, MASSES = np.array([-1.0, 0.0, 2.0]), np.array([0.3, 0.5, 0.2]), np.array([0.25, 0.45, 0.3])


def make_features(rng: np.random.Generator, families: tuple[str, ...], n2: int) -> list[Feature]:
    made = {
        "bernoulli": lambda C, b: Feature("bernoulli", C, b, {}, "bernoulli", {"p": 0.3}),
        "normal": lambda C, b: Feature("normal", C, b, {"std": 0.6}, "normal", {"mean": 0.2, "std": 1.3}),
        "normal_scale": lambda C, b: Feature("normal_scale", C, b, {}, "normal", {"mean": -0.1, "std": 0.9}),
        "exponential": lambda C, b: Feature("exponential", C, b, {}, "exponential", {"scale": 0.7}),
        "tilted": lambda C, b: Feature(
            "tilted", C, b, {"precision": 0.8}, "discrete", {"masses": MASSES}, (POINTS, BASE)
        ),
    }
    sizes = [2 if name == "normal_scale" else 1 for name in families]
    return [
        made[name](rng.normal(size=(t, n2)) / 2, rng.normal(size=t) / 2)
        for name, t in zip(families, sizes, strict=True)
    ]


def prior_of(feature: Feature) -> object:
    if feature.prior_kind == "bernoulli":
        return Bernoulli(feature.prior["p"])
    if feature.prior_kind == "discrete":
        return Discrete(POINTS, feature.prior["masses"])
    if feature.prior_kind == "exponential":
        return Exponential(feature.prior["scale"])
    return Normal(feature.prior["mean"], feature.prior["std"])


class Case:
    """A random problem, its finite law of x1, and the same thing for the oracle."""

    def __init__(self, families: tuple[str, ...], psi: str = "tanh", seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        n1, n2, m = 3, 2, len(families)
        self.psi, self.families = psi, families
        self.layer = Layer(
            rng.normal(size=(n2, n1)), rng.normal(size=n2), rng.normal(size=n2), psi, rng.normal(size=n2), threshold=0.3
        )
        self.x, self.weights = rng.normal(size=(4, n1)), np.array([0.1, 0.4, 0.3, 0.2])
        self.B, self.offset, self.noise_std = rng.normal(size=(n2, m)), rng.normal(size=n2), 0.7
        self.features = make_features(rng, families, n2)

    def problem(self) -> Problem:
        posteriors = []
        for feature in self.features:
            base = Discrete(*feature.base) if feature.base is not None else None
            posteriors.append(Posterior(feature.family, feature.C, feature.bias, base=base, **feature.own))
        p1 = FeatureModel(np.eye(3), [Normal(0.0, 1.0)] * 3, 0.1)
        model = FeatureModel(self.B, [prior_of(feature) for feature in self.features], self.noise_std, self.offset)
        return Problem(self.layer, p1, model, Encoder(posteriors))

    def engine(self, problem: Problem) -> FiniteExpectations:
        return FiniteExpectations(self.layer, problem.encoder, self.x, self.weights)

    def loss(self) -> float:
        return elbo(self.features, self.B, self.offset, self.noise_std, self.layer(self.x), self.weights)

    def slope(self, change, step: float = 1e-5) -> float:
        """Central difference of the oracle's ELBO, fourth order, in a change applied to a copy of this case."""

        def at(size: float) -> float:
            moved = copy.deepcopy(self)
            change(moved, size)
            return moved.loss()

        return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


@pytest.fixture(scope="module", params=[FAMILIES, ("normal", "bernoulli"), ("tilted",)], ids=["all", "two", "one"])
def case(request) -> Case:
    return Case(request.param)


def test_evaluate_is_the_elbo(case: Case) -> None:
    problem = case.problem()
    values = generate(case.psi, case.families).evaluate(case.engine(problem), problem)
    assert tuple(values) == NODE_NAMES
    assert values["L"].value == pytest.approx(case.loss(), rel=1e-12)


def test_each_node_is_its_definition(case: Case) -> None:
    """The nodes that have a meaning of their own, from samples of f and moments by quadrature."""
    problem = case.problem()
    values = generate(case.psi, case.families).evaluate(case.engine(problem), problem)
    f, p = case.layer(case.x), case.weights
    y = case.x @ case.layer.A.T + case.layer.offset
    psi = np.tanh(y @ case.layer.u + case.layer.threshold)
    s, V = np.zeros((len(f), len(case.features))), np.zeros((len(f), len(case.features)))
    for j, feature in enumerate(case.features):
        for a, point in enumerate(f):
            beta, q, _ = feature.nodes(feature.C @ point + feature.bias)
            s[a, j] = q @ beta
            V[a, j] = q @ (beta - s[a, j]) ** 2
    centred = f - case.offset
    expected = {
        "S1": p @ (V @ np.diag(case.B.T @ case.B)),
        "S2": p @ ((centred - s @ case.B.T) ** 2).sum(axis=1),
        "T1": p @ (centred**2).sum(axis=1),
        "T2": -2 * p @ (centred * (s @ case.B.T)).sum(axis=1),
        "T3": p @ ((s @ case.B.T) ** 2).sum(axis=1),
        "U1": p @ ((y - case.offset) ** 2).sum(axis=1),
        "U2": 2 * p @ (((y - case.offset) @ case.layer.w) * psi),
        "U3": case.layer.w @ case.layer.w * (p @ psi**2),
        "R2": np.log(2 * np.pi * case.noise_std**2),
    }
    for name, number in expected.items():
        assert values[name].value == pytest.approx(number, rel=1e-12, abs=1e-14), name


def test_gradient_is_the_elbos_central_difference(case: Case) -> None:
    problem = case.problem()
    gradient = generate(case.psi, case.families).gradient(case.engine(problem), problem)
    assert list(gradient) == ["C", "bias", "B", "offset", "noise_std", "parameters", "priors"]

    def check(estimate, place, change) -> None:
        assert estimate.value[place] == pytest.approx(case.slope(change), rel=1e-6, abs=1e-8)

    def move(array_of, place):
        def change(moved: Case, size: float) -> None:
            array_of(moved)[place] += size

        return change

    for place in np.ndindex(case.B.shape):
        check(gradient["B"], place, move(lambda moved: moved.B, place))
    for place in np.ndindex(case.offset.shape):
        check(gradient["offset"], place, move(lambda moved: moved.offset, place))
    check(gradient["noise_std"], (), lambda moved, size: setattr(moved, "noise_std", moved.noise_std + size))
    for j, feature in enumerate(case.features):
        assert gradient["C"][j].value.shape == feature.C.shape
        for place in np.ndindex(feature.C.shape):
            check(gradient["C"][j], place, move(lambda moved, j=j: moved.features[j].C, place))
        for place in np.ndindex(feature.bias.shape):
            check(gradient["bias"][j], place, move(lambda moved, j=j: moved.features[j].bias, place))
        assert set(gradient["parameters"][j]) == set(feature.own)
        for name in feature.own:
            check(gradient["parameters"][j][name], (), move(lambda moved, j=j: moved.features[j].own, name))
        assert set(gradient["priors"][j]) == set(feature.prior)
        for name, number in feature.prior.items():
            for place in np.ndindex(np.shape(number)):
                at = (lambda moved, j=j, name=name: moved.features[j].prior[name]) if place else None
                change = move(at, place) if place else move(lambda moved, j=j: moved.features[j].prior, name)
                check(gradient["priors"][j][name], place, change)


def test_gradient_takes_values_that_are_known() -> None:
    case = Case(("normal",))
    problem = case.problem()
    kernels = generate(case.psi, case.families)
    engine = case.engine(problem)
    values = kernels.evaluate(engine, problem)
    engine.calls.clear()
    kernels.gradient(engine, problem, values)
    assert "of_b" not in engine.calls  # U2 and U3 are not taken again
    assert "norm_y" not in engine.calls


def test_no_features_leave_the_loss_of_a_gaussian() -> None:
    case = Case(())
    problem = case.problem()
    kernels = generate(case.psi, "bernoulli")
    values = kernels.evaluate(case.engine(problem), problem)
    assert values["L"].value == pytest.approx(case.loss(), rel=1e-12)
    assert values["T3"].value == 0.0
    gradient = kernels.gradient(case.engine(problem), problem)
    assert gradient["B"].value.shape == (2, 0)
    assert gradient["C"] == []


def test_errors_are_carried_through() -> None:
    """An engine that reports an error of 1 on every expectation: the errors of sums must add up, weights included."""
    case = Case(("normal", "bernoulli"))
    problem = case.problem()

    class Doubtful(FiniteExpectations):
        def of_b(self, *args, **kwargs):
            estimate = super().of_b(*args, **kwargs)
            return type(estimate).of(estimate.value, 1.0)

    engine = Doubtful(case.layer, problem.encoder, case.x, case.weights)
    values = generate(case.psi, case.families).evaluate(engine, problem)
    assert values["T1"].error == pytest.approx(2.0)
    assert values["S2"].error == pytest.approx(2.0)
    assert values["R3"].error == pytest.approx(2.0 / (2 * 0.7**2))
    assert values["L"].error == pytest.approx(2.0 / (2 * 0.7**2))
    assert values["R1"].error == 0.0


def test_zero_psi_prunes_its_terms() -> None:
    case = Case(("normal",), psi="zero")
    problem = case.problem()
    engine = case.engine(problem)
    values = generate("zero", "normal").evaluate(engine, problem)
    assert "of_b" not in engine.calls
    assert values["U2"].value == 0.0
    assert values["L"].value == pytest.approx(case.loss(), rel=1e-12)


# ------------------------------------------------------------------------------------------------------- the artefact


def test_text_is_the_same_in_another_process() -> None:
    code = "import sys, elbotree.codegen as c; sys.stdout.write(c.generate('relu', ['normal', 'tilted']).source)"
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
        found.add(run.stdout.decode())
    assert found == {generate("relu", ["tilted", "normal"]).source}


def test_every_shipped_psi_and_family_prints_the_same_text_whatever_the_hash_seed() -> None:
    """Each psi's section, and whole modules with all families where psi changes the leaves: no set of symbols decides."""
    from elbotree.derivation.activations import activation_names

    code = (
        "import hashlib, elbotree.codegen.kernels as k; from elbotree.codegen.functions import psi_section\n"
        "from elbotree.derivation.activations import activation_names\n"
        "def show(name, text): print(name, hashlib.sha256(text.encode()).hexdigest())\n"
        "for psi in activation_names(): show(psi, psi_section(psi))\n"
        f"for psi in ('elu', 'identity'): show(psi, k.source_of(psi, {FAMILIES!r}))"
    )
    found = set()
    for seed in ("3", "1234"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "ELBOTREE_CACHE": "off"}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        found.add(run.stdout)
    assert len(found) == 1
    assert [line.split()[0] for line in found.pop().splitlines()] == [*activation_names(), "elu", "identity"]


def test_a_module_on_disk_needs_numpy_scipy_and_the_runtime_alone(tmp_path) -> None:
    """Loaded, evaluated and differentiated where nothing else of the project's requirements can be imported."""
    kernels = generate("relu", FAMILIES)
    kernels.write(tmp_path / "kernels_here.py")
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"sympy", "mpmath", "networkx", "numba", "safetensors", "click", "rich"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import kernels_here as k
import numpy as np
from elbotree.runtime import Bernoulli, Encoder, FeatureModel, Layer, Normal, Posterior, Problem, SamplingExpectations
model = FeatureModel([[1.0], [0.5]], [Normal(0, 1)], 0.4)
layer = Layer(np.eye(2), [1.0, 0.0], [0.0, 1.0], k.PSI)
problem = Problem(layer, model, model, Encoder([Posterior("normal", [[0.3, 0.1]], std=0.5)]))
law = SamplingExpectations(layer, model, problem.encoder, 1000)
print(sorted(k.evaluate(law, problem)) == sorted(k.NODES), k.sampler(problem.encoder[0])(0.5, 0.25))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True", "0.25"]


def test_header_names_what_it_was_made_of() -> None:
    source = generate("relu", "bernoulli").source
    assert source.startswith('"""The loss of a variational auto-encoder')
    assert f"sha256 {derive().sha256}" in source
    assert "psi       relu" in source
    assert "families  bernoulli" in source
    assert "sympy" not in source.split('"""')[2]


def test_a_comment_with_the_formula_stands_above_each_node() -> None:
    lines = generate("relu", "bernoulli").source.splitlines()
    for name in NODE_NAMES:
        at = next(n for n, line in enumerate(lines) if line.startswith(f"def {name}("))
        above = lines[at - 2] if not lines[at - 2].startswith("# E") else lines[at - 3]
        assert above.startswith(f"# {name} = "), above


def test_source_is_reachable_from_the_function() -> None:
    source = inspect.getsource(generate("relu", "bernoulli")["T2"])
    assert source.startswith("def T2(law")
    assert "along=B.T[j]" in source


def test_write_saves_the_text_and_a_plain_import_runs_it(tmp_path) -> None:
    kernels = generate("relu", "bernoulli")
    kernels.write(tmp_path / "relu_kernels.py")
    assert (tmp_path / "relu_kernels.py").read_text(encoding="utf-8") == kernels.source
    code = "import sys; import relu_kernels as k; print(k.PSI(k.np.array([-1.0, 2.0])), 'sympy' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == ["[0.", "2.]", "False"]


def test_write_into_a_missing_folder_says_so(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere.k\.py cannot be written: .*nowhere is no folder; make it"):
        generate("relu", "bernoulli").write(tmp_path / "nowhere" / "k.py")


def test_the_cache_gives_the_same_object_for_the_same_question() -> None:
    assert generate("relu", ["normal", "bernoulli"]) is generate("relu", ("bernoulli", "normal", "normal"))
    assert generate("relu", "normal") is not generate("tanh", "normal")


@pytest.mark.parametrize("name", ["T4", "evaluate", "np"])
def test_item_access_is_for_nodes_only(name: str) -> None:
    with pytest.raises(KeyError, match=rf"no node '{name}'; the nodes are L, R1"):
        generate("relu", "bernoulli")[name]


def test_unknown_family_and_psi_are_refused() -> None:
    with pytest.raises(InputError, match="bernouli"):
        generate("relu", "bernouli")
    with pytest.raises(InputError):
        generate("__import__('os')", "bernoulli")


def test_compile_psi_gives_numbers_and_breaks() -> None:
    psi = compile_psi("relu")
    assert psi.breaks == (0.0,)
    np.testing.assert_array_equal(psi(np.array([-1.0, 3.0])), [0.0, 3.0])
    assert compile_psi("relu") is psi


def test_text_that_could_end_a_docstring_is_refused() -> None:
    from elbotree.codegen.emit import module_source

    for text in ('b"""', "b\\", "b;b", "b'"):
        with pytest.raises(InputError):
            module_source(derive(), text, ("bernoulli",), "0")


def test_every_function_of_a_node_is_formatted() -> None:
    """No line of the leaves, inner nodes and gradient is longer than the project's limit, nor ends in a space."""
    source = generate("relu", FAMILIES).source
    tail = source[source.index("def features(gs)") :]
    assert max(map(len, tail.splitlines())) <= 120
    assert all(line == line.rstrip() for line in source.splitlines())


@pytest.mark.parametrize(
    "text", ["relu(b)\n- 0.1*b", "relu(b)\r\n- 0.1*b\r\n", "\trelu(b)\f-\v0.1*b", "relu(b)\u2028- 0.1*b"]
)
def test_a_psi_of_several_lines_is_one_line_of_the_module(text: str) -> None:
    layer = Layer([[1.0]], [1.0], [1.0], text)
    assert layer([[2.0], [-2.0]]).ravel().tolist() == [3.8, -1.8]
    assert generate(text).psi.text == "relu(b) - 0.1*b"
