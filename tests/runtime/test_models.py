"""Layers, feature models, posteriors and problems: what they compute, what they refuse, and their JSON form."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from elbotree.runtime.activations import Activation
from elbotree.runtime.errors import InputError
from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem, register_family_rule
from elbotree.runtime.priors import (
    Bernoulli,
    Discrete,
    Exponential,
    Gamma,
    Laplace,
    Mixture,
    Normal,
    Prior,
    SpikeSlab,
    Uniform,
)

SQUARE = Activation("square", lambda b: b**2, lambda b: 2 * b)


def example() -> dict[str, object]:
    """A problem with one posterior of every family."""
    rows = [[1.0, 0.0, 0.5], [0.0, 2.0, -1.0]]
    slab = {"kind": "spike_slab", "p": 0.2, "slab": {"kind": "exponential", "scale": 1.0}}
    return {
        "format": "elbotree-problem/1",
        "layer": {
            "A": rows,
            "w": [1.0, -1.0],
            "u": [0.5, 0.25],
            "psi": "relu",
            "offset": [0.1, 0.2],
            "threshold": -0.3,
        },
        "input": {
            "B": [[1.0], [0.0], [2.0]],
            "noise_std": 0.2,
            "offset": [0.0, 1.0, 0.0],
            "priors": [{"kind": "bernoulli", "p": 0.3}],
        },
        "model": {
            "B": [[1.0, 0, 0, 0, 1], [0, 1, 1, 1, 1]],
            "noise_std": 0.4,
            "offset": [0.0, 0.0],
            "priors": [
                {"kind": "bernoulli", "p": 0.3},
                {"kind": "normal", "mean": 0.0, "std": 1.0},
                {"kind": "laplace", "mean": 0.0, "scale": 1.0},
                {"kind": "exponential", "scale": 2.0},
                slab,
            ],
        },
        "encoder": [
            {"family": "bernoulli", "C": [[1.0, 0.0]], "bias": [0.1]},
            {"family": "normal", "C": [[0.0, 1.0]], "bias": [0.0], "std": 0.5},
            {"family": "normal_scale", "C": [[0.0, 1.0], [1.0, 0.0]], "bias": [0.0, 0.5]},
            {"family": "exponential", "C": [[0.0, 1.0]], "bias": [0.0]},
            {"family": "tilted", "C": [[1.0, 1.0]], "bias": [0.0], "precision": 2.0, "base": slab},
        ],
    }


def edited(path: str, value: object) -> dict[str, object]:
    """The example with one entry replaced; `path` is written with dots, "encoder.1.std"."""
    data = copy.deepcopy(example())
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]  # type: ignore[assignment]
    place[int(last) if isinstance(place, list) else last] = value  # type: ignore[index,call-overload]
    return data


def test_a_layer_is_its_formula_on_rows() -> None:
    layer = Layer([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]], [1.0, 0, -2.0], [0.5, 0, 0], SQUARE, [1.0, 1.0, 1.0], 0.25)
    assert (layer.n1, layer.n2) == (2, 3)
    # x = (1, -1): y = (-1, -1, -1) + 1 = (0, 0, 0); b = 0.25; f = w / 16
    # x = (1, 1): y = (4, 8, 2); b = 2.25; f = y + 5.0625 w
    got = layer(np.array([[1.0, -1.0], [1.0, 1.0]]))
    assert got.tolist() == [[0.0625, 0.0, -0.125], [9.0625, 8.0, -8.125]]
    with pytest.raises(InputError, match=r"`x` has shape \(2,\); the layer takes rows of n1 = 2, shape \(N, 2\)"):
        layer(np.zeros(2))


def test_arrays_are_private_read_only_copies() -> None:
    A = np.eye(2)
    layer = Layer(A, [1, 0], [0, 1], SQUARE)
    A[0, 0] = 9.0
    assert layer.A[0, 0] == 1.0
    assert layer.A.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        layer.A[0, 0] = 2.0


def test_a_layer_named_by_text_pickles_after_use() -> None:
    layer = Layer(np.eye(2), [1, 0], [0, 1], "mine")
    layer.__dict__["activation"] = Activation("mine", lambda b: b, lambda b: b)  # such functions do not pickle
    again = pickle.loads(pickle.dumps(layer))
    assert again.psi == "mine"
    assert "activation" not in again.__dict__


def test_feature_model_moments_match_enumeration_and_samples() -> None:
    model = FeatureModel([[1.0, 2.0], [0.0, -1.0]], [Bernoulli(0.25), Exponential(2.0)], 0.5, [3.0, 0.0])
    assert model.mean() == pytest.approx([3 + 0.25 + 4, -2])
    assert model.covariance() == pytest.approx(np.array([[0.1875 + 16 + 0.25, -8], [-8, 4 + 0.25]]))
    x = model.sample(200_000, np.random.default_rng(0))
    assert x.shape == (200_000, 2)
    assert x.mean(axis=0) == pytest.approx(model.mean(), abs=0.05)
    assert np.cov(x.T) == pytest.approx(model.covariance(), rel=0.03, abs=0.03)


def test_a_feature_model_without_features() -> None:
    model = FeatureModel(np.zeros((2, 0)), [], 0.5)
    assert model.m == 0
    assert model.mean().tolist() == [0, 0]
    assert model.covariance() == pytest.approx(0.25 * np.eye(2))
    problem = Problem(Layer(np.eye(2), [1, 0], [0, 1], SQUARE), model, model, [])
    assert Problem.from_dict(problem.to_dict()).model.B.shape == (2, 0)


def test_posteriors_take_flat_rows_and_single_biases() -> None:
    q = Posterior("normal", [1.0, 2.0], 0.5, std=0.25)
    assert q.C.tolist() == [[1.0, 2.0]]
    assert q.bias.tolist() == [0.5]
    assert (q.t, q.std, q.parameters) == (1, 0.25, {"std": 0.25})
    assert Posterior("normal", [[1.0, 2.0]], parameters={"std": 0.25}).std == 0.25
    assert Posterior("tilted", [[1.0]], precision=0.0, base=Bernoulli(0.5)).precision == 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layer([[1, 2], [3]], [1, 1], [1, 1]), r"`layer\.A\[1\]` has length 1; the rows before it have 2"),
        (lambda: Layer([[1, "x"]], [1], [1]), r"`layer\.A\[0\]\[1\]` is 'x'; it must be a number"),
        (lambda: Layer([[1, np.nan]], [1], [1]), r"`layer\.A\[0\]\[1\]` is nan; every entry must be a finite number"),
        (lambda: Layer([1.0], [1], [1]), r"`layer\.A\[0\]` is 1.0; it must be a list of numbers"),
        (lambda: Layer(np.ones(3), [1], [1]), r"`layer\.A` has shape \(3,\); it must have shape \(rows, columns\)"),
        (lambda: Layer(np.eye(2) * 1j, [1], [1]), r"`layer\.A` has type complex128; it must be an array of real"),
        (lambda: Layer(np.eye(2), [1], [1, 1]), r"`layer\.w` has shape \(1,\); .* n2 = 2 rows, so it must be \(2,\)"),
        (lambda: Layer(np.eye(1), [1], [1], 3), r"`layer\.psi` is 3; it must be a name"),  # type: ignore[arg-type]
        (lambda: Layer(np.eye(1), [1], [1], threshold=np.inf), r"`layer\.threshold` is inf"),
        (lambda: FeatureModel(np.eye(2), [Normal()], 1.0), r"`priors` has 1 entries; `B` has m = 2 columns"),
        (lambda: FeatureModel(np.eye(1), [Normal()], -1.0), r"`noise_std` is -1.0; a standard deviation cannot be"),
        (lambda: FeatureModel(np.eye(1), [0.5], 1.0), r"`priors\[0\]` is 0.5; it must be an elbotree prior"),
        (lambda: Posterior("bernouli", [[1.0]]), r"`family` is 'bernouli', .* did you mean 'bernoulli'\?"),
        (lambda: Posterior("normal_scale", [[1.0]]), r"`C` has shape \(1, 1\); .* t = 2 parameters, so it must have 2"),
        (lambda: Posterior("normal", [[1.0]]), r"`std` is missing; the family 'normal' needs it"),
        (lambda: Posterior("normal", [[1.0]], std=0.0), r"`std` is 0.0; it must be greater than 0"),
        (lambda: Posterior("bernoulli", [[1.0]], std=1.0), r"`std` is no parameter of the family 'bernoulli'"),
        (lambda: Posterior("tilted", [[1.0]], precision=1.0), r"`base` is missing; the family 'tilted' tilts"),
        (lambda: Posterior("normal", [[1.0]], std=1.0, base=Normal()), r"`base` is given, and the family 'normal'"),
        (
            lambda: Posterior("tilted", [[1.0]], precision=0.0, base=Exponential(0.5)),
            r"`precision` is 0, and a tilted exponential law then exists only for c between -inf and 2; give a",
        ),
        (lambda: Posterior("bernoulli", [[1.0]], [0.0, 1.0]), r"`bias` has shape \(2,\)"),
        (lambda: Encoder([3]), r"`encoder\[0\]` is 3; it must be an elbotree.Posterior"),  # type: ignore[list-item]
    ],
)
def test_constructors_name_the_argument_and_the_fix(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        make()


HALF = Mixture([0.5, 0.5], [Exponential(1.0), Discrete([0.0], [1.0])])


@pytest.mark.parametrize(
    ("q", "prior", "reason"),
    [
        (Posterior("bernoulli", [1.0]), Normal(), r"the prior has none at 0"),
        (Posterior("bernoulli", [1.0]), Bernoulli(1.0), r"the prior has none at 0"),
        (Posterior("bernoulli", [1.0]), Discrete([0, 2], [0.5, 0.5]), r"the prior has none at 1"),
        (Posterior("normal", [1.0], std=1), Exponential(1.0), r"covers the whole line"),
        (Posterior("normal_scale", [[1.0], [0.0]]), Bernoulli(0.5), r"covers the whole line"),
        (Posterior("exponential", [1.0]), Uniform(0.0, 9.0), r"covers \(0, inf\)"),
        (Posterior("tilted", [1.0], precision=1, base=HALF), Exponential(1.0), r"its base has an atom at 0"),
        (Posterior("tilted", [1.0], precision=1, base=HALF), Bernoulli(0.5), r"its base has a density on \(0, inf\)"),
        (Posterior("tilted", [1.0], precision=1, base=Uniform(0, 9)), Uniform(0, 2), r"has a density on \(0, 9\)"),
        (
            Posterior("tilted", [1.0], precision=1, base=Normal()),
            Gamma(2.0),
            r"its base has a density on \(-inf, inf\)",
        ),
    ],
)
def test_infinite_divergences_are_refused(q: Posterior, prior: Prior, reason: str) -> None:
    model = FeatureModel(np.eye(1), [prior], 1.0)
    layer = Layer(np.eye(1), [1.0], [1.0], SQUARE)
    with pytest.raises(
        InputError, match=r"`encoder\[0\]` \(\w+\) and `model\.priors\[0\]` \(\w+\) have an infinite KL "
    ):
        Problem(layer, model, model, [q])
    with pytest.raises(InputError, match=reason):
        Problem(layer, model, model, [q])


@pytest.mark.parametrize(
    ("q", "prior"),
    [
        (Posterior("bernoulli", [1.0]), Discrete([0, 1, 2], [0.5, 0.25, 0.25])),
        (Posterior("normal", [1.0], std=1), SpikeSlab(0.5, Laplace())),
        (Posterior("exponential", [1.0]), HALF),
        (Posterior("exponential", [1.0]), Normal()),
        (Posterior("tilted", [1.0], precision=1, base=HALF), HALF),
        (Posterior("tilted", [1.0], precision=1, base=Uniform(1, 2)), HALF),
        (Posterior("tilted", [1.0], precision=1, base=Bernoulli(0.5)), Discrete([0, 1, 2], [0.5, 0.25, 0.25])),
    ],
)
def test_finite_divergences_are_accepted(q: Posterior, prior: Prior) -> None:
    model = FeatureModel(np.eye(1), [prior], 1.0)
    assert Problem(Layer(np.eye(1), [1.0], [1.0], SQUARE), model, model, [q]).encoder[0] is q


def test_shapes_must_fit_together() -> None:
    layer = Layer(np.ones((2, 3)), [1, 0], [0, 1], SQUARE)
    x1, x2 = FeatureModel(np.eye(3), [Normal()] * 3, 1.0), FeatureModel(np.eye(2), [Bernoulli(0.5)] * 2, 1.0)
    q = Posterior("bernoulli", [1.0, 0.0])
    with pytest.raises(InputError, match=r"`input\.B` has 2 rows; the layer's input has n1 = 3 coordinates"):
        Problem(layer, x2, x2, [q, q])
    with pytest.raises(InputError, match=r"`model\.B` has 3 rows; the layer's output has n2 = 2 coordinates"):
        Problem(layer, x1, x1, [q, q])
    with pytest.raises(InputError, match=r"`encoder` has 1 posteriors; `model\.B` has m2 = 2 columns"):
        Problem(layer, x1, x2, [q])
    message = r"`encoder\[1\]\.C` has shape \(1, 3\); the layer's output has n2 = 2 coordinates, so it must be \(1, 2\)"
    with pytest.raises(InputError, match=message):
        Problem(layer, x1, x2, [q, Posterior("bernoulli", [1.0, 0.0, 0.0])])
    with pytest.raises(InputError, match=r"`model\.noise_std` is 0.0; it must be greater than 0"):
        Problem(layer, x1, FeatureModel(np.eye(2), [Bernoulli(0.5)] * 2, 0.0), [q, q])


@pytest.mark.usefixtures("registries")
def test_a_registered_family_is_checked_by_its_own_rule() -> None:
    register_family_rule("poisson_test", 1, lambda q, prior: "never", parameters=("shift",))
    q = Posterior("poisson_test", [1.0], parameters={"shift": 2.0})
    assert q.parameters == {"shift": 2.0}
    model = FeatureModel(np.eye(1), [Normal()], 1.0)
    with pytest.raises(InputError, match="infinite KL divergence: never"):
        Problem(Layer(np.eye(1), [1.0], [1.0], SQUARE), model, model, [q])
    with pytest.raises(InputError, match="`shift` is missing; the family 'poisson_test' needs it"):
        Posterior("poisson_test", [1.0])


def test_json_round_trip(tmp_path: Path) -> None:
    problem = Problem.from_dict(example())
    assert problem.to_dict() == example()
    problem.save(tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text()) == example()
    assert Problem.load(tmp_path / "p.json").to_dict() == example()
    assert pickle.loads(pickle.dumps(problem)).to_dict() == example()


def test_offset_threshold_and_bias_may_be_left_out() -> None:
    data = example()
    for part, key in (("layer", "offset"), ("layer", "threshold"), ("input", "offset"), ("model", "offset")):
        del data[part][key]  # type: ignore[attr-defined]
    del data["encoder"][0]["bias"]  # type: ignore[index]
    problem = Problem.from_dict(data)
    assert problem.layer.offset.tolist() == [0, 0]
    assert problem.layer.threshold == 0
    assert problem.encoder[0].bias.tolist() == [0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"the problem is a list; it must be an object with the keys format, layer, input, model, encoder"),
        (
            edited("format", "elbotree-problem/2"),
            r"`format` is 'elbotree-problem/2'; this version reads 'elbotree-prob",
        ),
        (edited("layers", 1), r"the problem has the unknown key 'layers'; did you mean 'layer'\?"),
        (edited("layer.tresh", 1), r"`layer` has the unknown key 'tresh'; did you mean 'threshold'\?"),
        (edited("layer.psi", 1), r"`layer\.psi` is 1; it must be text"),
        (edited("layer.A.1", [1.0]), r"`layer\.A\[1\]` has length 1; the rows before it have 3"),
        (edited("layer.A.1.2", None), r"`layer\.A\[1\]\[2\]` is None; it must be a number"),
        (edited("layer.A.1.2", True), r"`layer\.A\[1\]\[2\]` is True; it must be a number"),
        (edited("layer.offset", None), r"`layer\.offset` is null; give a value or leave the key out"),
        (edited("input.B", 3), r"`input\.B` is 3; it must be a list of rows"),
        (edited("input.noise_std", "1"), r"`input\.noise_std` is '1'; it must be a number"),
        (edited("input.priors", []), r"`input\.priors` has 0 entries"),
        (edited("model.priors.0.kind", "bernouli"), r"`model\.priors\[0\]`\.kind is 'bernouli'.* mean 'bernoulli'"),
        (edited("encoder", {}), r"`encoder` must be a list"),
        (edited("encoder.1.stdev", 1.0), r"`encoder\[1\]` has the unknown key 'stdev'; did you mean 'std'\?"),
        (edited("encoder.1.C", [[1.0, "a"]]), r"`encoder\[1\]\.C\[0\]\[1\]` is 'a'; it must be a number"),
        (edited("encoder.1.std", -1), r"`encoder\[1\]\.std` is -1.0; it must be greater than 0"),
        (
            edited("encoder.1.family", "gauss"),
            r"`encoder\[1\]\.family` is 'gauss', which is no posterior family; known",
        ),
        (edited("encoder.1.C", [[1.0, 2.0, 3.0]]), r"`encoder\[1\]\.C` has shape \(1, 3\).* must be \(1, 2\)"),
        (
            edited("layer.A", {"file": "a", "key": "A"}),
            r"`layer\.A` refers to a file, and the problem was not read from",
        ),
    ],
)
def test_from_dict_names_the_path_of_a_mistake(data: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Problem.from_dict(data)
    assert "\n" not in str(caught.value)


def test_missing_keys_are_named() -> None:
    for part in ("layer", "input", "model"):
        for key in ("B", "noise_std", "A", "psi"):
            data = example()
            if key in data[part]:  # type: ignore[operator]
                del data[part][key]  # type: ignore[attr-defined]
                with pytest.raises(InputError, match=f"`{part}` lacks the key '{key}'"):
                    Problem.from_dict(data)


def test_arrays_come_from_a_file_beside_the_problem(tmp_path: Path) -> None:
    A = np.array([[1.0, 0.0, 0.5], [0.0, 2.0, -1.0]], dtype=np.float32)
    save_file({"A": A}, tmp_path / "weights.safetensors")
    data = edited("layer.A", {"file": "weights.safetensors", "key": "A"})
    (tmp_path / "p.json").write_text(json.dumps(data))
    problem = Problem.load(tmp_path / "p.json")
    assert problem.layer.A.dtype == np.float64
    assert problem.layer.A.tolist() == A.tolist()


def test_load_puts_the_file_in_front(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(edited("encoder.1.std", -1)))
    with pytest.raises(InputError, match=r"p\.json: `encoder\[1\]\.std` is -1.0"):
        Problem.load(path)
