"""Whole networks as chains of layers: equal to their source, as narrow as ranks allow, and clear about what they
refuse.

Expected outputs come from torch, scikit-learn and plain numpy; expected widths from ranks of the weight matrices.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import erf

import elbotree as et
from elbotree.runtime.activations import Activation
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.models import Layer
from elbotree.runtime.network_blocks import TransformerBlock
from elbotree.runtime.network_program import Program
from elbotree.runtime.networks import Plan, compile_network, plan_network

Array = NDArray[np.float64]

_ = et.Layer  # the first public name hands the runtime its compiler of psi


def dense(rng: np.random.Generator, sizes: list[int], psi: str = "tanh") -> list[tuple[Array, Array, str | None]]:
    """A random network with `psi` between its layers and a linear last one."""
    maps = [(rng.standard_normal((b, a)), rng.standard_normal(b)) for a, b in pairwise(sizes)]
    return [(W, b, psi if i < len(maps) - 1 else None) for i, (W, b) in enumerate(maps)]


def run_numpy(network: list[tuple[Array, Array, Any]], x: Array, psi: Any) -> Array:
    for W, b, name in network:
        x = x @ W.T + b
        x = x if name is None else psi(x)
    return x


def rows_through(layers: list[Layer], x: Array) -> Array:
    for layer in layers:
        x = layer(x)
    return x


# -- plain arrays -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sizes", [[3, 5, 2], [6, 2, 4, 3], [1, 1, 1], [4, 7, 7, 1], [5, 3]])
def test_lists_of_arrays_equal_numpy(sizes: list[int]) -> None:
    rng = np.random.default_rng(len(sizes))
    network = dense(rng, sizes)
    x = rng.standard_normal((40, sizes[0]))
    layers = compile_network(network)
    assert all(isinstance(layer, Layer) for layer in layers)
    assert layers[0].n1 == sizes[0]
    assert layers[-1].n2 == sizes[-1]
    np.testing.assert_allclose(rows_through(layers, x), run_numpy(network, x, np.tanh), rtol=1e-12, atol=1e-12)


def test_a_network_that_ends_in_an_activation() -> None:
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((3, 4)), rng.standard_normal(3)
    x = rng.standard_normal((20, 4))
    layers = compile_network([(W, b, "relu")])
    np.testing.assert_allclose(rows_through(layers, x), np.maximum(x @ W.T + b, 0), atol=1e-13)


def test_dense_widths_are_the_ranks_of_what_is_still_read() -> None:
    """After i units of a layer: rank(W[i:]) + rank(W'[:, :i]), and one for b, which random rows never span without."""
    rng = np.random.default_rng(1)
    W1, W2 = rng.standard_normal((9, 4)), rng.standard_normal((3, 9))
    layers = compile_network([(W1, None, "tanh"), (W2, None, None)])
    rank = np.linalg.matrix_rank
    ideal = [int(rank(W1[i:]) if i < 9 else 0) + int(rank(W2[:, :i])) for i in range(1, 10)]
    # b is one of the spanned directions while at least k units are left, and needs a coordinate of its own after that.
    own = [0 if i <= 9 - 4 else 1 for i in range(1, 10)]
    assert [layer.n2 for layer in layers] == [a + b for a, b in zip(ideal, own, strict=True)] + [3]


def test_low_rank_weights_make_narrow_layers() -> None:
    """Twelve inputs, of which two directions matter: no layer is as wide as the input."""
    rng = np.random.default_rng(2)
    W = rng.standard_normal((6, 2)) @ rng.standard_normal((2, 12))
    network = [(W, None, "tanh"), (rng.standard_normal((1, 6)), None, None)]
    plan = plan_network(network)
    assert max(plan.widths[1:]) == 3  # two directions and one accumulator
    x = rng.standard_normal((30, 12))
    expected = np.tanh(x @ W.T) @ np.asarray(network[1][0]).T
    np.testing.assert_allclose(plan(x), expected, atol=1e-12)


def test_block_diagonal_weights_are_taken_block_by_block() -> None:
    """Units come interleaved; one block after the other is narrower: while the first lasts, 2 + rank left + 1, ..."""
    rng = np.random.default_rng(3)
    W = np.zeros((8, 4))
    W[::2, :2], W[1::2, 2:] = rng.standard_normal((4, 2)), rng.standard_normal((4, 2))
    plan = plan_network([(W, None, "tanh"), (np.ones((1, 8)), None, None)])
    assert plan.widths == [4, 5, 5, 5, 4, 3, 3, 3, 2, 1]
    x = rng.standard_normal((10, 4))
    np.testing.assert_allclose(plan(x)[:, 0], np.tanh(x @ W.T).sum(axis=1), atol=1e-12)


def test_no_chain_is_narrower_than_the_necessary_space() -> None:
    """The lower bound of the module's docstring, recomputed from the order that was chosen, by plain ranks."""
    rng = np.random.default_rng(4)
    program = Program(3)
    x = program.input()
    hidden = program.apply("tanh", x.mapped(rng.standard_normal((4, 3))), "first")
    second = program.apply("sigmoid", (x + hidden[:3]).mapped(rng.standard_normal((3, 3))), "second")
    outputs = second + x
    layers, steps = program.lower(outputs)
    places = {unit.place: i for i, unit in enumerate(program.units)}
    order = [places[step.place] for step in steps if step.place]
    columns = 3 + len(program.units)
    full = [np.pad(unit.row, (0, columns - len(unit.row))) for unit in program.units]
    for i, unit in enumerate(order[:-1]):
        known = [0, 1, 2, *(3 + j for j in order[: i + 1])]
        later = np.stack([full[j] for j in order[i + 1 :]] + list(outputs.rows))[:, known]
        dimension = np.linalg.matrix_rank(later)
        without = later[:, :-1]
        spanned = np.linalg.matrix_rank(np.vstack([without, full[unit][known[:-1]]])) == np.linalg.matrix_rank(without)
        assert layers[i].n2 == dimension + (not spanned)


def test_states_are_orthonormal_images_so_that_isotropic_noise_stays_isotropic() -> None:
    """A A^T + w w^T = I on steps whose state is V_i: the next layer's noise is what came in."""
    layers = compile_network(dense(np.random.default_rng(5), [6, 4, 2]))
    for layer in layers[:-1]:
        gram = layer.A @ layer.A.T + np.outer(layer.w, layer.w)
        np.testing.assert_allclose(gram, np.eye(layer.n2), atol=1e-12)


def test_affine_parts_cost_no_layer() -> None:
    """Linear maps without activation, affine expressions and the identity merge: one unit, and the outputs' map."""
    W = np.array([[1.0, 2.0], [0.5, -1.0]])
    network = [(W, [1.0, 0.0], None), (W, None, "2*b + 1"), ([[1.0, 1.0]], [0.5], "relu"), ([[3.0]], [1.0], "identity")]
    plan = plan_network(network)
    assert plan.units == 1
    x = np.array([[0.3, -2.0], [1.0, 4.0]])
    y = 2 * ((x @ W.T + [1.0, 0.0]) @ W.T) + 1
    np.testing.assert_allclose(plan(x), 3 * np.maximum(y.sum(axis=1, keepdims=True) + 0.5, 0) + 1, atol=1e-12)


def test_only_affine_maps_make_one_layer_without_psi() -> None:
    layers = compile_network([([[1.0, 2.0]], [3.0], None), ([[2.0], [1.0]], None, None)])
    assert len(layers) == 1
    assert not layers[0].w.any()
    np.testing.assert_allclose(layers[0](np.array([[1.0, 1.0]])), [[12.0, 6.0]])


def test_units_that_repeat_or_are_not_read_or_do_not_vary_are_left_out() -> None:
    W1 = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    W2 = np.array([[1.0, 2.0, 5.0, 0.0]])  # rows 0 and 1 are one unit, row 2 a constant, row 3 is never read
    plan = plan_network([(W1, [0.1, 0.1, 0.7, 0.0], "tanh"), (W2, None, None)])
    assert plan.units == 1
    x = np.array([[0.4, 9.0]])
    np.testing.assert_allclose(plan(x), [[3 * np.tanh(0.5) + 5 * np.tanh(0.7)]], atol=1e-13)


def test_the_last_unit_writes_the_outputs_where_it_can_read_its_argument_there() -> None:
    """x -> (x, relu(<v, x>)): one layer, no affine map after it."""
    program = Program(2)
    x = program.input()
    unit = program.apply("relu", x.mapped(np.array([[1.0, -2.0]]), 0.25), "unit")
    outputs = type(x).stacked([x + 0.5, unit.scaled(3.0) + 1.0])
    layers, _ = program.lower(outputs)
    assert len(layers) == 1
    rows = np.array([[1.0, 0.2], [0.0, 3.0]])
    expected = np.column_stack([rows + 0.5, 3 * np.maximum(rows @ [1.0, -2.0] + 0.25, 0) + 1])
    np.testing.assert_allclose(layers[0](rows), expected, atol=1e-14)


def test_an_activation_object_is_carried_into_the_layers() -> None:
    square = Activation("square", lambda b: b**2, lambda b: 2 * b)
    layers = compile_network([([[1.0, 1.0]], None, square)])
    assert layers[0].psi is square


def test_equal_on_real_inputs() -> None:
    """scikit-learn's digits through a (24, 16) network: the width stays at one more than the hidden layers."""
    sklearn = pytest.importorskip("sklearn.neural_network")
    datasets = pytest.importorskip("sklearn.datasets")
    X, labels = datasets.load_digits(return_X_y=True)
    X = X / 16.0
    model = sklearn.MLPClassifier((24, 16), max_iter=15, random_state=0)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.fit(X, labels)
    plan = plan_network(model)
    logits = X
    for i, (W, b) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        logits = logits @ W + b
        logits = np.maximum(logits, 0) if i < 2 else logits
    assert np.abs(plan(X) - logits).max() < 1e-9
    powers = np.exp(plan(X) - plan(X).max(axis=1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), model.predict_proba(X), atol=1e-9)
    assert plan.units == 40
    assert max(plan.widths[1:]) == 25
    assert plan.notes == ("the outputs are the MLPClassifier's logits: its last softmax is left out",)
    assert "softmax is left out" in str(plan)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_scikit_learn_regressors(activation: str) -> None:
    sklearn = pytest.importorskip("sklearn.neural_network")
    rng = np.random.default_rng(6)
    X = rng.standard_normal((60, 3))
    model = sklearn.MLPRegressor(hidden_layer_sizes=(4,), activation=activation, solver="lbfgs", random_state=0)
    model.fit(X, X[:, 0] * X[:, 1])
    plan = plan_network(model)
    np.testing.assert_allclose(plan(X)[:, 0], model.predict(X), atol=1e-10)
    assert plan.notes == ()


def test_a_scikit_learn_model_must_be_fitted() -> None:
    sklearn = pytest.importorskip("sklearn.neural_network")
    with pytest.raises(InputError, match=r"this MLPRegressor is not fitted; call its fit method first"):
        compile_network(sklearn.MLPRegressor())


# -- refusals ---------------------------------------------------------------------------------------------------------
GOOD = [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ([], r"`model` is an empty list"),
        ([(GOOD, None)], r"`model\[0\]` is .*; it must be \(W, bias, activation\)"),
        ([([[1.0, 2.0], [1.0]], None, None)], r"`model\[0\]\[0\]\[1\]` has length 1; the rows before it have 2"),
        ([(GOOD, [1.0, 2.0], None)], r"`model\[0\]\[1\]` has shape \(2,\); .* the bias must be \(1,\)"),
        ([(GOOD, None, "rleu")], r"layer 0 rleu: psi 'rleu' .*did you mean 'relu'"),
        ([(GOOD, None, 3)], r"`model\[0\]\[2\]` is 3; it must be a name"),
        ([([[1.0, np.nan]], None, None)], r"`model\[0\]\[0\]\[0\]\[1\]` is nan"),
        ([(GOOD, None, None), (GOOD, None, None)], r"`model\[1\]\[0\]` has shape \(1, 2\); the layer before it has"),
        ([(np.zeros((0, 2)), None, None)], r"`model\[0\]\[0\]` has shape \(0, 2\); it needs at least one row"),
        ([([[0.0]], None, "reciprocal")], r"layer 0 reciprocal\[0\]: reciprocal of the constant 0.0 is inf"),
        (3.0, r"`model` is 3.0 of type float; it must be a list of"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_bad_lists_are_refused_by_place(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compile_network(model)


# -- plans ------------------------------------------------------------------------------------------------------------
def test_a_plan_counts_and_prints() -> None:
    plan = plan_network([([[1.0, -1.0], [0.5, 2.0]], None, "tanh"), ([[1.0, 1.0]], None, None)])
    assert plan.widths == [2, 3, 2, 1]
    assert plan.multiplications == 3 * 4 + 2 * 5 + 1 * 4
    assert plan.pairs == 10 + 6
    assert str(plan).splitlines()[1].split() == ["layer", "0", "tanh", "tanh", "2", "2", "to", "3"]
    assert plan.to_dict()["steps"][2] == {"place": "", "psi": "zero", "n1": 2, "n2": 1}
    assert isinstance(plan, Plan)


# -- torch ------------------------------------------------------------------------------------------------------------
def torch_gap(module: Any, inputs: int, scale: float = 1.0) -> float:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(7).standard_normal((30, inputs)) * scale
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    return float(np.abs(plan_network(module)(x) - expected).max())


def test_every_torch_activation() -> None:
    torch = pytest.importorskip("torch")
    from elbotree.runtime.network_torch import _PSI, Elementwise

    nn = torch.nn
    torch.manual_seed(0)
    made = {
        nn.LeakyReLU: nn.LeakyReLU(0.2),
        nn.PReLU: nn.PReLU(3, 0.3),
        nn.ELU: nn.ELU(0.7),
        nn.CELU: nn.CELU(1.7),
        nn.Softplus: nn.Softplus(2.0),
        nn.GELU: nn.GELU("tanh"),
        nn.Hardtanh: nn.Hardtanh(-0.5, 2.0),
        nn.Hardshrink: nn.Hardshrink(0.3),
        nn.Softshrink: nn.Softshrink(0.3),
        nn.Threshold: nn.Threshold(0.2, -1.5),
        Elementwise: Elementwise("sin(b)*exp(-b**2)"),
    }
    others = [nn.PReLU(1), nn.Softplus(), nn.GELU()]
    for activation in [made[kind] if kind in made else kind() for kind in _PSI] + others:
        network = nn.Sequential(nn.Linear(4, 3), activation, nn.Linear(3, 2)).double().eval()
        assert torch_gap(network, 4, 3.0) < 1e-9, activation


@pytest.mark.parametrize("psi", ["square", "cube", "abs", "exp", "sin", "heaviside", "sign", "reciprocal", "zero"])
def test_shipped_names_that_torch_lacks_come_as_elementwise(psi: str) -> None:
    torch = pytest.importorskip("torch")
    from elbotree.runtime.network_torch import Elementwise

    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), Elementwise(psi), torch.nn.Linear(2, 1)).double().eval()
    assert torch_gap(network, 3) < 1e-9


def test_a_deep_torch_network_with_everything_in_it() -> None:
    torch = pytest.importorskip("torch")
    from elbotree.runtime.network_torch import Residual

    nn = torch.nn
    torch.manual_seed(2)
    norm = nn.BatchNorm1d(6)
    norm.running_mean.copy_(torch.randn(6))
    norm.running_var.copy_(torch.rand(6) + 0.5)
    nn.init.normal_(norm.weight)
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(5, 6, bias=False),
        norm,
        nn.GELU(),
        nn.Dropout(0.5),
        Residual(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 6)),
        nn.Identity(),
        nn.LayerNorm(6),
        nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(1)),
    )
    assert torch_gap(network.double().eval(), 5) < 1e-9


def test_torch_modules_that_cannot_be_read_are_listed_all_at_once() -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Sequential(nn.GLU(), nn.Conv1d(1, 1, 1)), nn.RReLU())
    with pytest.raises(UnsupportedError) as caught:
        compile_network(network)
    for part in (
        "4 part(s)",
        "model.1 (Dropout) is in training mode: call model.eval()",
        "model.2.0 (GLU) has no such form",
        "model.2.1 (Conv1d)",
        "model.3 (RReLU)",
    ):
        assert part in str(caught.value)


def test_torch_sizes_that_do_not_chain() -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    with pytest.raises(InputError, match=r"model\.1 \(Linear\) meets 3 numbers where 4 were expected"):
        compile_network(nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1)))
    with pytest.raises(InputError, match=r"no part of the network says how many inputs"):
        compile_network(nn.Sequential(nn.ReLU()))
    with pytest.raises(UnsupportedError, match=r"model \(BatchNorm1d\) is in training mode"):
        compile_network(nn.BatchNorm1d(3))


def test_torch_weights_must_be_finite() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, float("nan"))
    with pytest.raises(InputError, match=r"model\.0\.weight holds a number that is not finite"):
        compile_network(torch.nn.Sequential(layer))


# -- transformer blocks -----------------------------------------------------------------------------------------------
def attention_numpy(x: Array, block: dict[str, Any], heads: int, causal: bool) -> Array:
    """x + softmax(q k^T / sqrt(dh)) v O^T on (tokens, d), written out."""
    q, k, v = (x @ block[name][0].T + block[name][1] for name in ("query", "key", "value"))
    dh = q.shape[1] // heads
    parts = []
    for h in range(heads):
        s = q[:, h * dh : (h + 1) * dh] @ k[:, h * dh : (h + 1) * dh].T / np.sqrt(dh)
        s = np.where(np.tril(np.ones_like(s)) > 0, s, -np.inf) if causal else s
        p = np.exp(s - s.max(axis=1, keepdims=True))
        parts.append(p / p.sum(axis=1, keepdims=True) @ v[:, h * dh : (h + 1) * dh])
    return x + np.concatenate(parts, axis=1) @ block["out"][0].T + block["out"][1]


@pytest.mark.parametrize("softmax", ["softplus", "reciprocal"])
@pytest.mark.parametrize(("heads", "causal"), [(1, False), (2, True)])
def test_attention_of_plain_arrays(heads: int, causal: bool, softmax: str) -> None:
    rng = np.random.default_rng(8)
    names = ("query", "key", "value", "out")
    maps = {name: (rng.standard_normal((4, 4)) / 2, rng.standard_normal(4)) for name in names}
    plan = plan_network(TransformerBlock(3, **maps, heads=heads, causal=causal, softmax=softmax))
    x = rng.standard_normal((10, 3, 4))
    expected = np.stack([attention_numpy(row, maps, heads, causal) for row in x]).reshape(10, 12)
    np.testing.assert_allclose(plan(x.reshape(10, 12)), expected, atol=1e-9)


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_torch_encoder_layer(norm_first: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Attention, MLP, residuals and both layer norms of torch's own block, on two tokens of three coordinates."""
    torch = pytest.importorskip("torch")
    from elbotree.runtime.network_torch import transformer_block

    torch.manual_seed(3)
    layer = torch.nn.TransformerEncoderLayer(3, 1, 5, activation="gelu", norm_first=norm_first, batch_first=True)
    layer = layer.double().eval()
    plan = plan_network(transformer_block(layer, tokens=2))
    x = np.random.default_rng(9).standard_normal((20, 6))
    with torch.no_grad():
        expected = layer(torch.from_numpy(x).reshape(20, 2, 3)).numpy().reshape(20, 6)
    assert np.abs(plan(x) - expected).max() < 1e-8
    print(plan)
    assert f"{len(plan.layers)} layers ({plan.units} units)" in capsys.readouterr().out


def test_steps_of_a_block_stay_within_their_count() -> None:
    """One head on T tokens of d: |k|^2, (q + k)^2, softmax, p^2, v^2 and (p + v)^2; |q|^2 cancels in the softmax."""
    T, d = 3, 2
    rng = np.random.default_rng(10)
    maps = [(rng.standard_normal((d, d)), rng.standard_normal(d)) for _ in range(4)]
    plan = plan_network(TransformerBlock(T, *maps))
    squares = T * d + T * T * d + T * T + T * d + T * T * d
    assert plan.units == squares + T * (2 * T - 2)


def test_large_scores_do_not_overflow() -> None:
    """Scores of +-800: e^score is not a float64, the softmax is."""
    program = Program(2)
    x = program.input()
    layers, _ = program.lower(program.softmax(x, "softmax"))
    out = rows_through(layers, np.array([[800.0, -800.0], [0.0, np.log(3.0)]]))
    np.testing.assert_allclose(out, [[1.0, 0.0], [0.25, 0.75]], atol=1e-12)


PAIR = (np.eye(2), None)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, PAIR, PAIR, PAIR, PAIR), {}, r"`tokens` is 0; it must be a whole number >= 1"),
        ((2, PAIR, PAIR, PAIR, PAIR), {"heads": 3}, r"`query` has 2 rows, which 3 heads cannot share evenly"),
        ((2, PAIR, (np.eye(3), None), PAIR, PAIR), {}, r"`key\[0\]` has shape \(3, 3\); .* it must be \(2, 2\)"),
        ((2, PAIR, PAIR, PAIR, PAIR, PAIR), {}, r"`up` and `down` make the MLP together"),
        ((2, PAIR, PAIR, PAIR, PAIR), {"softmax": "hard"}, r"`softmax` is 'hard'; it must be 'softplus' or"),
        ((2, [3.0], PAIR, PAIR, PAIR), {}, r"`query` is .*; it must be \(W, bias\)"),
        ((2, (np.eye(2), [1.0]), PAIR, PAIR, PAIR), {}, r"`query\[1\]` has shape \(1,\); .* it must be \(2,\)"),
        ((2, PAIR, PAIR, PAIR, PAIR), {"norms": [([1, 1], [0, 0], 0.0)] * 2}, r"`norms\[0\]\[2\]` is 0.0; eps must be"),
    ],
)
def test_blocks_that_do_not_fit(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransformerBlock(*arguments, **options)


# -- ONNX -------------------------------------------------------------------------------------------------------------
def onnx_file(path: Path, nodes: list[Any], weights: dict[str, Any], shape: list[Any], output: str = "y") -> Path:
    """An ONNX file of the nodes, with float64 weights (integers stay integers)."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name: str, value: Any) -> Any:
        array = np.asarray(value)
        return numpy_helper.from_array(array.astype(np.float64 if array.dtype.kind == "f" else np.int64), name)

    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "network",
        [info("x", TensorProto.DOUBLE, shape)],
        [info(output, TensorProto.DOUBLE, ["M", "K"])],
        [tensor(name, value) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    helper = pytest.importorskip("onnx").helper
    return helper.make_node(op, inputs.split(), [output], **attributes)


def test_an_onnx_chain_with_gelu_as_exporters_spell_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    W1, b1, W2, c = (rng.standard_normal(s) for s in ((6, 4), 6, (6, 3), 3))
    nodes = [
        node("Reshape", "x shape", "flat"),
        node("Gemm", "flat W1 b1", "a", transB=1),
        node("Relu", "a", "r"),
        node("MatMul", "r W2", "m"),
        node("Add", "m c", "s"),
        node("Div", "s root2", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "e1"),
        node("Mul", "s e1", "p"),
        node("Mul", "p half", "g"),
        node("Softmax", "g", "y"),
    ]
    weights = {"W1": W1, "b1": b1, "W2": W2, "c": c, "root2": np.sqrt(2.0), "one": 1.0, "half": 0.5, "shape": [0, -1]}
    plan = plan_network(onnx_file(tmp_path / "net.onnx", nodes, weights, ["N", 2, 2]))
    x = rng.standard_normal((25, 4))
    s = np.maximum(x @ W1.T + b1, 0) @ W2 + c
    g = s * (1 + erf(s / np.sqrt(2))) / 2
    expected = np.exp(g) / np.exp(g).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(plan(x), expected, atol=1e-9)
    assert "Relu (node 2)" in str(plan)


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [
        ("Tanh", {}, np.tanh),
        ("Sigmoid", {}, lambda b: 1 / (1 + np.exp(-b))),
        ("Exp", {}, np.exp),
        ("Neg", {}, np.negative),
        ("Abs", {}, np.abs),
        ("Softplus", {}, lambda b: np.log1p(np.exp(b))),
        ("LeakyRelu", {"alpha": 0.25}, lambda b: np.where(b > 0, b, 0.25 * b)),
        ("Elu", {"alpha": 0.5}, lambda b: np.where(b > 0, b, 0.5 * np.expm1(b))),
        ("HardSigmoid", {"alpha": 0.25, "beta": 0.5}, lambda b: np.clip(0.25 * b + 0.5, 0, 1)),
        ("Softsign", {}, lambda b: b / (1 + np.abs(b))),
        ("ThresholdedRelu", {"alpha": 0.5}, lambda b: np.where(b > 0.5, b, 0)),
        ("Sin", {}, np.sin),
        ("Identity", {}, lambda b: b),
    ],
)
def test_onnx_activations(tmp_path: Path, op: str, attributes: dict[str, float], expected: Any) -> None:
    W = np.random.default_rng(12).standard_normal((2, 3))
    nodes = [node("MatMul", "x W", "a"), node(op, "a", "y", **attributes)]
    plan = plan_network(str(onnx_file(tmp_path / "net.onnx", nodes, {"W": W}, ["N", 2])))
    x = np.random.default_rng(13).standard_normal((20, 2))
    np.testing.assert_allclose(plan(x), expected(x @ W), atol=1e-12)


def test_onnx_arithmetic_norms_and_constants(tmp_path: Path) -> None:
    rng = np.random.default_rng(14)
    W, g, b, mean, var = (rng.standard_normal((3, 2)), *rng.random((4, 3)))
    nodes = [
        node("Transpose", "W", "WT"),
        node("MatMul", "x WT", "a"),
        node("BatchNormalization", "a g b mean var", "n", epsilon=0.0),
        node("Clip", "n low high", "k"),
        node("Pow", "k two", "s"),
        node("Sub", "one s", "t"),
        node("PRelu", "t g", "r"),
        node("Div", "r e", "q"),
        node("Exp", "n", "e"),
        node("Dropout", "q", "o"),
        node("Cast", "o", "c", to=11),
        node("Flatten", "c", "y"),
    ]
    nodes[7], nodes[8] = nodes[8], nodes[7]
    weights = {"W": W, "g": g, "b": b, "mean": mean, "var": var + 0.5, "low": -0.5, "high": 1.0, "two": 2.0, "one": 1.0}
    plan = plan_network(onnx_file(tmp_path / "net.onnx", nodes, weights, ["N", 2]))
    x = rng.standard_normal((20, 2))
    n = (x @ W.T - mean) / np.sqrt(var + 0.5) * g + b
    t = 1 - np.clip(n, -0.5, 1.0) ** 2
    np.testing.assert_allclose(plan(x), np.where(t > 0, t, g * t) / np.exp(n), atol=1e-9)


def test_onnx_conditions(tmp_path: Path) -> None:
    """Softplus as current exporters spell it, and a condition of conditions."""
    W = np.random.default_rng(15).standard_normal((2, 3)) * 8
    nodes = [
        node("MatMul", "x W", "a"),
        node("Greater", "a limit", "far"),
        node("Softplus", "a", "soft"),
        node("Where", "far a soft", "p"),
        node("Less", "a low", "l"),
        node("GreaterOrEqual", "a zero", "g"),
        node("Or", "l g", "either"),
        node("LessOrEqual", "a limit", "near"),
        node("And", "either near", "in"),
        node("Not", "in", "out"),
        node("Where", "out one p", "y"),
    ]
    weights = {"W": W, "limit": 5.0, "low": -2.0, "zero": 0.0, "one": 1.0}
    plan = plan_network(onnx_file(tmp_path / "net.onnx", nodes, weights, ["N", 2]))
    x = np.random.default_rng(16).standard_normal((200, 2))
    a = x @ W
    p = np.where(a > 5, a, np.logaddexp(0, a))
    inside = ((a < -2) | (a >= 0)) & (a <= 5)
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_allclose(plan(x), np.where(inside, p, 1.0), atol=1e-11)


def test_onnx_nodes_that_cannot_be_read_are_listed_all_at_once(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x W", "a", name="stem"),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=[1]),
        node("GlobalAveragePool", "c", "y"),
    ]
    path = onnx_file(tmp_path / "net.onnx", nodes, {"W": np.ones((1, 1, 1))}, ["N", 1, 4])
    message = r"net.onnx: 3 part\(s\) .*: Conv \(node 0, 'stem'\); MaxPool \(node 2\); GlobalAveragePool \(node 3\)"
    with pytest.raises(UnsupportedError, match=message):
        compile_network(path)


def test_onnx_files_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match=r"there is no such file"):
        compile_network(tmp_path / "missing.onnx")
    unfinished = b"\x13\x01\x00\x00\x00\x00\x00\x00\xff\xff\x14"  # some parsers take it, the checker's does not
    for content in (b"", b"\x80\x04not a model", b"{}" * 50, unfinished):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(InputError, match=r"bad.onnx is not an ONNX model: "):
            compile_network(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("nodes", "weights", "shape", "message"),
    [
        ([("Relu", "x", "y", {})], {}, ["N", "K"], r"the input 'x' has shape \(\?, \?\); it must be \(rows, numbers"),
        ([("MatMul", "x W", "y", {})], {"W": np.ones((3, 1))}, ["N", 2], r"MatMul \(node 0\): its matrix takes \(3,\)"),
        ([("MatMul", "x W", "y", {})], {"W": np.full((2, 1), np.nan)}, ["N", 2], r"'W' holds a number that is not"),
        ([("Softmax", "x", "y", {"axis": 0})], {}, ["N", 2], r"Softmax \(node 0\): it must go along the last axis"),
        ([("Reshape", "x s", "y", {})], {"s": [-1, 1]}, ["N", 2], r"Reshape \(node 0\): .* move numbers between rows"),
        ([("Add", "x c", "y", {})], {"c": np.ones(3)}, ["N", 2], r"Add \(node 0\): a constant of shape \(3,\) does"),
        ([("Pow", "x e", "y", {})], {"e": 0.123}, ["N", 2], r"Pow \(node 0\): its exponent must be one whole number"),
        ([("Gemm", "x W", "y", {"transA": 1})], {"W": np.ones((2, 2))}, [2, 2], r"Gemm \(node 0\): transA would mix"),
    ],
)
def test_onnx_graphs_that_cannot_be_rows(
    tmp_path: Path, nodes: list[Any], weights: dict[str, Any], shape: list[Any], message: str
) -> None:
    made = [node(op, inputs, output, **attributes) for op, inputs, output, attributes in nodes]
    with pytest.raises(InputError, match=message):
        compile_network(onnx_file(tmp_path / "net.onnx", made, weights, shape))


def test_onnx_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = onnx_file(tmp_path / "net.onnx", [node("MatMul", "x W", "y")], {"W": np.ones((2, 2))}, ["N", 2])
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, size_threshold=0, location="weights.bin")
    with pytest.raises(InputError, match=r"1 part\(s\) .*: weights 'W' lie in another file \(export"):
        compile_network(path)
