"""Bad input, made by hypothesis: whatever a stranger writes, the outcome is a result or one of elbotree's own errors, never a
traceback, a hang, memory without bound, or a file that nobody named.

`make fuzz` runs the same properties on thousands of examples each, and the ways in of `outcomes` under a fuzzer that is guided by
coverage (`fuzz.py`). ELBOTREE_EXAMPLES multiplies the numbers of examples.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from safetensors.numpy import save

import elbotree as et
from elbotree.cli import main
from elbotree.derivation.grammar import FUNCTIONS, MAX_LENGTH, parse_psi
from elbotree.runtime.storage import load_folder
from tests.stress import outcomes
from tests.stress.outcomes import SMALL

MORE = int(os.environ.get("ELBOTREE_EXAMPLES", "1"))
HANG = 120  # seconds for one example; the slowest takes some ten
MEMORY = 4 * 2**30  # bytes beyond what the process has


def quick(examples: int) -> settings:
    """Settings for so many examples, or ELBOTREE_EXAMPLES times as many; the same ones at each run.

    Without the phase that explains failures: it keeps the lines that each example went through, a megabyte for one of psi.
    """
    return settings(
        max_examples=examples * MORE,
        deadline=None,
        derandomize=MORE == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """No example hangs, none takes memory without bound."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"the test hung for {HANG * MORE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG * MORE)
    try:
        with outcomes.bounded_memory(MEMORY):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# -- psi --------------------------------------------------------------------------------------------------------------
CONSTANTS = ("0", "1", "2", "0.5", "3", "1/3", "64", "1e-300", "1e300", "1e16", "pi", "e")


POWERS = ("2", "3", "-1", "(1/2)", "(2/3)", "64", "-64", "(63/64)")


def expressions(constants: Sequence[str] = CONSTANTS, exponents: Sequence[str] = POWERS) -> SearchStrategy[str]:
    """Text that the grammar spells, however odd."""

    def wider(inner: SearchStrategy[str]) -> SearchStrategy[str]:
        @st.composite
        def call(draw: DrawFn) -> str:
            name = draw(st.sampled_from(sorted(FUNCTIONS)))
            word = FUNCTIONS[name]
            count = draw(st.integers(word.fewest, min(word.most, 3)))
            return f"{name}({','.join(draw(inner) for _ in range(count))})"

        return st.one_of(
            st.builds("({}{}{})".format, inner, st.sampled_from("+-*/"), inner),
            st.builds("({})**{}".format, inner, st.sampled_from(exponents)),
            st.builds("where({}<{},{},{})".format, inner, inner, inner, inner),
            call(),
        )

    leaves = st.one_of(st.just("b"), st.just("b"), st.sampled_from(constants))
    return st.recursive(leaves, wider, max_leaves=8).filter(lambda text: len(text) <= MAX_LENGTH)


@quick(25)
@given(expressions())
def test_psi_of_the_grammar(text: str) -> None:
    event("fine" if outcomes.psi(text) else "refused")


@quick(300)
@given(st.text(alphabet="b0123456789.eE+-*/()<>=, axminsqrtlogpw\n\t^_é", max_size=60))
def test_psi_of_any_text(text: str) -> None:
    outcomes.own_error_or_fine(lambda: parse_psi(text))


@pytest.mark.parametrize(
    "text",
    [
        "*".join(f"(b+{i})**64" for i in range(70)),  # degree 4480
        "((b**64)**64)**64",
        "(exp(b)+sin(b)+b+cos(b)+tanh(b))**64",  # 800,000 terms
        "exp(exp(exp(exp(10))))",  # a number of more digits than there is room for
        "sin(exp(exp(exp(3))))",
        "(where(b<b,b,where(b<e,1e16,1e300)))**-64",  # a number of 19,200 digits, more than Python writes
        "abs((1e-300*b+1)**64-sin(b))",
        "erf(1e300*b)",  # its slope is 1e300 exp(-1e600 b^2)
        "e**e**e**e**e",
        "exp(" * 10 + "b" + ")" * 10,
        "max(b-10**6,0)*exp(exp(b))",
        "cos(1e300)*b",
        "exp(-1000)*b",
        "(relu((where(pi<log(0),(64+1),(0.5)**(1/2))+((64*2)/b)))-sqrt(0.5))",
        "where((1*(((e+b)+erf(-1)))**(1/2))<sign(hardtanh(((b+b)+heaviside(64)))),b,0.5)",
    ],
)
def test_psi_that_would_take_for_ever_is_refused(text: str) -> None:
    assert not outcomes.psi(text)


@pytest.mark.parametrize(
    "text", ["e*b", "exp(2)*b + sin(1)", "sigmoid(2)*b", "gelu(2) + b", "tanh(3)*relu(b)", "log(1e-300)*b"]
)
def test_psi_with_constants_of_any_kind_is_fine(text: str) -> None:
    assert outcomes.psi(text)
    value = {"e*b": math.e, "sigmoid(2)*b": 1 / (1 + math.exp(-2)), "log(1e-300)*b": math.log(1e-300)}.get(text)
    if value is not None:
        assert float(et.generate(text, "tilted").PSI.value(np.array([1.0]))[0]) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(("text", "value"), [
    ("max(sigmoid(1e16), b)", 1.0),
    ("where(tanh(1e300) < b, 7, b)", 0.5),
    ("sign(tanh(1e16) - 1)*b", 0.0),
    ("hardtanh(erf(1000), where(b < 1, b, 2))", 1.0),  # min(1, max(erf(1000), ...))
    ("where(erf(1e3) < b, where(b < 1, 0.1, b), 3)", 3.0),
    ("hardtanh(cos(1e-300), where(b < 1, b, 2))", 1.0),
    ("max(elu(-1e300), b)", 0.5),
    ("max(silu(1e16), b)", 1e16),
    ("where(b < sqrt(1 + 1e-300), where(b < 1, 2, b), 3)", 2.0),
])  # fmt: skip
def test_numbers_that_only_infinitely_many_digits_tell_apart(text: str, value: float) -> None:
    """sympy looked for them: by a TypeError, a minute, or a hundred megabytes."""
    assert outcomes.psi(text)
    assert float(et.generate(text, "tilted").PSI.value(np.array([0.5]))[0]) == value


# -- problems ---------------------------------------------------------------------------------------------------------
NUMBERS: list[Any] = [
    0,
    1,
    -1,
    0.5,
    -0.0,
    1e-300,
    -1e-300,
    5e-324,
    1e300,
    -1e300,
    1e308,
    1e12,
    1e-12,
    1e8,
    1e-8,
    1e6,
    -1e6,
]
NUMBERS += [2**63, 2**1100, 1e3]
PRIORS: list[Any] = [
    {"kind": "normal"},
    {"kind": "normal", "std": 1e-12},
    {"kind": "normal", "mean": 1e12, "std": 1e12},
    {"kind": "gamma", "shape": 1e-8},
    {"kind": "gamma", "shape": 0.5, "scale": 1e8},
    {"kind": "exponential", "scale": 1e-300},
    {"kind": "exponential"},
    {"kind": "laplace", "scale": 1e-9},
    {"kind": "uniform", "low": -1e308, "high": 1e308},
    {"kind": "bernoulli", "p": 0},
    {"kind": "bernoulli", "p": 5e-324},
    {"kind": "discrete", "points": [0, 1, 5], "masses": [1e-300, 0.5, 0.5]},
    {"kind": "discrete", "points": [0, 1e300], "masses": [0.5, 0.5]},
    {"kind": "discrete", "points": [], "masses": []},
    {"kind": "spike_slab", "p": 1e-300, "slab": {"kind": "laplace"}},
    {"kind": "mixture", "weights": [], "components": []},
    {"kind": "mixture", "weights": [0.5, 0.5], "components": [{"kind": "normal"}, {"kind": "bernoulli", "p": 0.5}]},
]
ODD: list[Any] = [
    None,
    True,
    "",
    "x",
    "relu",
    "exp(b)",
    "1/b",
    "\x00",
    [],
    [[]],
    [[[]]],
    {},
    {"a": 1},
    [1],
    [[1]],
    [[1, 2], [3]],
]
FILES: list[Any] = [
    {"file": name, "key": "A"} for name in ("../secret", "/etc/passwd", "/dev/zero", "p.json", "..", "")
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON data."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


@st.composite
def changed(draw: DrawFn, form: Any, values: list[Any], most: int = 3) -> Any:
    """JSON data with one place or a few changed."""
    form = copy.deepcopy(form)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(sorted(places(form), key=str)))
        holder = form
        for key in path[:-1]:
            holder = holder[key]
        how = draw(st.integers(0, 9))
        if how == 0 and isinstance(holder, dict):
            del holder[path[-1]]
        elif how == 1 and isinstance(holder, dict):
            name = draw(st.sampled_from(["zzz", "A", "std", "precision", "base", "parameters", "bias"]))
            holder[name] = copy.deepcopy(draw(st.sampled_from(values)))
        elif how == 2 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[0]))
        elif how < 8 and isinstance(holder[path[-1]], int | float):
            holder[path[-1]] = draw(st.sampled_from(NUMBERS))
        elif how < 8 and isinstance(holder[path[-1]], dict) and "kind" in holder[path[-1]]:
            holder[path[-1]] = copy.deepcopy(draw(st.sampled_from(PRIORS)))
        else:
            holder[path[-1]] = copy.deepcopy(draw(st.sampled_from(values)))
        if not list(places(form)):
            break
    return form


@quick(120)
@given(changed(SMALL, [*NUMBERS, *PRIORS, *ODD, *FILES]))
def test_problem_files(form: Any) -> None:
    outcomes.problem_file(json.dumps(form).encode())


@quick(40)
@given(changed(SMALL, [*NUMBERS, *PRIORS], most=2))
def test_problems_are_evaluated_or_refused(form: Any) -> None:
    event("fine" if outcomes.evaluated(form) else "refused")


@quick(150)
@given(st.data())
def test_problem_files_with_damaged_bytes(data: st.DataObject) -> None:
    content = bytearray(json.dumps(SMALL).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    outcomes.problem_file(bytes(content))


@quick(100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=3), lambda s: st.lists(s, max_size=3), max_leaves=9
    )
)
def test_anything_in_place_of_a_matrix(value: Any) -> None:
    form = {**SMALL, "layer": {**SMALL["layer"], "A": value}}
    rows = value if isinstance(value, list) and all(isinstance(row, list) for row in value) else []
    entries = [x for row in rows for x in row]
    matrix = [len(row) for row in rows] == [2, 2] and all(type(x) is float and math.isfinite(x) for x in entries)
    assert outcomes.own_error_or_fine(lambda: et.Problem.from_dict(form)) == matrix


@pytest.mark.parametrize(
    "name", ["../secret", "../../etc/passwd", "/etc/passwd", "/dev/zero", "/proc/self/mem", "link"]
)
def test_no_file_is_read_outside_the_folder(name: str, tmp_path: Path) -> None:
    """And what is refused is refused before it is opened: /dev/zero never ends."""
    (tmp_path / "secret").write_text(outcomes.SECRET)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "secret")
    form = {**SMALL, "layer": {**SMALL["layer"], "A": {"file": name, "key": "A"}}}
    with pytest.raises(
        et.InputError, match=r"it must be the name of a file beside the problem file, no path|is a link"
    ):
        et.Problem.from_dict(form, tmp_path / "inside")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nests too deeply"),
        (b'{"a": ' * 100_000, "nests too deeply"),
        (b"[" + b"[]," * 4_000_000 + b"[]]", "opening brackets; the limit is 4,000,000"),
        (b"[" + b"9" * 100_000 + b"]", "a number is too long"),
        (b"[1e400]", "beyond the range of float64"),
    ],
)
def test_sizes_of_json_are_bounded(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(et.InputError, match=message):
        et.Problem.load(tmp_path / "p.json")


def test_an_error_quotes_no_more_than_fits_a_line() -> None:
    long = "a" * 1_000_000
    for form in (
        {**SMALL, long: 1},
        {**SMALL, "input": {**SMALL["input"], "priors": [{"kind": long}] * 2}},
        {**SMALL, "input": {**SMALL["input"], "priors": [{"kind": "bernoulli", "p": 0.5, long: 1}] * 2}},
    ):
        with pytest.raises(et.InputError) as caught:
            et.Problem.from_dict(form)
        assert len(str(caught.value)) < 300


# -- arrays and folders -----------------------------------------------------------------------------------------------
ARRAYS = save({"A": np.eye(2), "B": np.zeros((2, 0))})


@quick(200)
@given(st.data())
def test_damaged_safetensors(data: st.DataObject) -> None:
    content = bytearray(ARRAYS)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    outcomes.arrays_beside(bytes(content))


def test_a_header_that_claims_too_much_is_refused() -> None:
    """Sizes that the file does not have, or offsets outside of it."""
    for header in (
        {"A": {"dtype": "F64", "shape": [2**31, 2**31], "data_offsets": [0, 32]}},
        {"A": {"dtype": "F64", "shape": [2, 2], "data_offsets": [0, 2**62]}},
        {"A": {"dtype": "F64", "shape": [2, 2], "data_offsets": [-8, 24]}},
        {"A": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}},
    ):
        text = json.dumps(header).encode()
        assert not outcomes.arrays_beside(len(text).to_bytes(8, "little") + text + bytes(32))
    assert not outcomes.arrays_beside((2**63).to_bytes(8, "little") + ARRAYS[8:])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """What is in the folders of a fit and of a chain."""
    place = tmp_path_factory.mktemp("saved")
    layer = et.Layer([[1.0]], [0.5], [0.8], "relu", threshold=0.1)
    p1 = et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4)
    et.fit(layer, p1, 1, tol=1e-2, iterations=1, rounds=1).save(place / "fit")
    et.fit_network([layer], p1, check_samples=100).save(place / "chain")
    return {name: load_folder(place / name) for name in ("fit", "chain")}


@quick(80)
@given(st.data())
def test_folders_whose_content_is_anything(saved: Any, data: st.DataObject) -> None:
    cfg, arrays = saved[data.draw(st.sampled_from(["fit", "chain"]))]
    cfg = data.draw(changed(cfg, [*NUMBERS[:-2], *PRIORS, *ODD, *FILES]))
    arrays = dict(arrays)
    if data.draw(st.integers(0, 2)) == 0:
        name = data.draw(st.sampled_from(sorted(arrays)))
        shapes = [np.zeros((2, 2)), np.zeros(0), np.full((1, 1), np.nan), np.full((1, 1), 1e300), np.zeros((1, 1, 1))]
        arrays[name] = data.draw(st.sampled_from(shapes))
    if isinstance(cfg, dict):
        outcomes.model_folder(cfg, arrays)


@quick(60)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_folders_of_any_bytes(cfg: bytes, model: bytes) -> None:
    assert not outcomes.raw_folder(cfg, model)


# -- networks ---------------------------------------------------------------------------------------------------------
@quick(100)
@given(changed([[[[1.0, 2.0], [0.5, -1.0]], [0.1, 0.2], "relu"], [[[1.0, 1.0]], None, None]], [*NUMBERS, *ODD]))
def test_networks_of_lists(description: Any) -> None:
    outcomes.network(description)


def onnx_network() -> bytes:
    """A network of two layers as an ONNX file."""
    from onnx import TensorProto, helper, numpy_helper

    initial = [
        numpy_helper.from_array(np.eye(2, dtype=np.float32), "W"),
        numpy_helper.from_array(np.ones(2, np.float32), "c"),
    ]
    nodes = [helper.make_node("Gemm", ["x", "W", "c"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xz")
    return bytes(helper.make_model(helper.make_graph(nodes, "g", [x], [z], initial)).SerializeToString())


@quick(150)
@given(st.data())
def test_damaged_onnx_files(data: st.DataObject) -> None:
    pytest.importorskip("onnx")
    content = bytearray(onnx_network())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    outcomes.onnx_file(bytes(content))


def test_a_graph_of_nodes_without_bound_is_refused() -> None:
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Relu", [f"y{i}" if i else "x"], [f"y{i + 1}"]) for i in range(5000)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", "y5000"))
    content = helper.make_model(helper.make_graph(nodes, "g", [x], [y])).SerializeToString()
    with outcomes.folder() as place:
        (place / "n.onnx").write_bytes(content)
        with pytest.raises(et.UnsupportedError, match="has 5,000 nodes; the limit is 4,096"):
            et.compile_network(place / "n.onnx")


OPERATIONS = [
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "Div",
    "Pow",
    "Clip",
    "PRelu",
    "Elu",
    "Where",
    "Reshape",
    "Softmax",
    "Flatten",
]
OPERATIONS += [
    "Relu",
    "Log",
    "Transpose",
    "BatchNormalization",
    "LayerNormalization",
    "Greater",
    "And",
    "Cast",
    "Dropout",
]


@st.composite
def onnx_graphs(draw: DrawFn) -> bytes:
    """A graph of operations that are known, on operands that need not fit them."""
    from onnx import TensorProto, helper, numpy_helper

    shapes: list[tuple[int, ...]] = [(2,), (2, 2), (), (1, 2), (3,), (0,), (2, 2, 2)]
    values = st.sampled_from([0.0, 1.0, -1.0, 1e30, -0.5])
    constants = {f"c{i}": np.full(draw(st.sampled_from(shapes)), draw(values), np.float32) for i in range(3)}
    constants["i"] = np.array(draw(st.lists(st.sampled_from([-1, 0, 1, 2, 2**40]), max_size=3)), np.int64)  # type: ignore[assignment]
    known, nodes = ["x", *constants], []
    for k in range(draw(st.integers(1, 4))):
        operands = draw(st.lists(st.sampled_from([*known, "x"]), min_size=1, max_size=5))
        odd = {"axis": 5, "alpha": 2.0, "to": 1, "transA": 1, "perm": [1, 0], "epsilon": -3.0}
        chosen = draw(st.lists(st.sampled_from(sorted(odd)), max_size=1))
        node = helper.make_node(
            draw(st.sampled_from(OPERATIONS)), operands, [f"y{k}"], **{name: odd[name] for name in chosen}
        )
        nodes.append(node)
        known.append(f"y{k}")
    size = draw(st.sampled_from([2, 2, 2, 0, 2**40]))
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name in ("x", known[-1]))
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return bytes(helper.make_model(helper.make_graph(nodes, "g", [x], [z], initial)).SerializeToString())


@quick(150)
@given(st.data())
def test_onnx_graphs_whose_parts_do_not_fit(data: st.DataObject) -> None:
    pytest.importorskip("onnx")
    event("fine" if outcomes.onnx_file(data.draw(onnx_graphs())) else "refused")


# -- what is written --------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    """As root, a report written to /dev/null would leave a file in place of the device."""
    place = tmp_path / "pipe"
    os.mkfifo(place)
    with pytest.raises(et.InputError, match=r"pipe is there and is no regular file"):
        et.generate("relu", "bernoulli").write(place)
    with pytest.raises(et.InputError, match=r"pipe is there and is no regular file"):
        et.Problem.from_dict(SMALL).save(place)
    assert place.is_fifo()


def test_a_number_of_features_without_bound_is_refused() -> None:
    layer, p1 = et.Layer([[1.0]], [0.5], [0.5]), et.FeatureModel([[1.0]], [et.Bernoulli(0.3)], 0.4)
    with pytest.raises(et.InputError, match=r"`features` is 99,999,999; the limit is 65,536"):
        et.fit(layer, p1, 99_999_999)


ENDLESS = "100000000000"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evaluate", "{}", "--check-samples", ENDLESS],
            "`check_samples` is 100,000,000,000; the limit is 1,000,000,000",
        ),
        (["fit", "{}", "--starts", ENDLESS], "`starts` is 100,000,000,000; the limit is 1,000"),
        (["sample", "{}", "-n", ENDLESS], "`rows` is 100,000,000,000; the limit is 10,000,000"),
        (["report", "{}", "--check-samples", ENDLESS], "`check_samples` is 100,000,000,000; the limit is 10,000,000"),
        (
            ["tail", "{}", "--row", "1,0", "--above", "1", "--check-samples", ENDLESS],
            "`samples` is 100,000,000,000; the limit is 1,000,000,000",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_work_without_bound_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    et.Problem.from_dict(SMALL).save(file)
    result = CliRunner().invoke(main, [word.replace("{}", str(file)) for word in words])
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["{}"],
        ["evaluate", "{}"],
        ["evaluate", "--{}"],
        ["fit", ".", "--family", "{}"],
        ["kernels", "--psi", "{}"],
        ["derive", "--node", "{}"],
    ],
    ids=" ".join,
)
def test_long_words_are_cut_in_errors(words: list[str]) -> None:
    result = CliRunner().invoke(main, [word.replace("{}", "x" * 5000) for word in words])
    assert result.exit_code in (1, 2)
    assert len(result.stderr) < 800


# -- command lines ----------------------------------------------------------------------------------------------------
WORDS = [
    "0",
    "1",
    "-1",
    "0.1",
    "nan",
    "inf",
    "-inf",
    "1e300",
    "1e-300",
    "",
    "x",
    "1,0",
    "0,0",
    "nan,1",
    "1e300,1",
    ",",
    "P",
    "OUT",
]
OPTIONS = {
    "evaluate": ["--tol", "--eps", "--check-samples", "--seed", "--max-seconds", "--max-memory"],
    "tail": ["--tol", "--of", "--check-samples", "--seed"],
    "sample": ["--rows", "--of", "--seed"],
    "kernels": ["--psi", "--family"],
    "derive": ["--node"],
}


@st.composite
def commands(draw: DrawFn) -> list[str]:
    """A verb, its arguments, and options with values that fit or do not."""
    verb = draw(st.sampled_from(sorted(OPTIONS)))
    words = [verb] + (["P"] if verb in ("evaluate", "tail", "sample") else [])
    if verb == "tail":
        words += [
            "--row",
            draw(st.sampled_from(["1,0", "1,0", *WORDS])),
            "--above",
            draw(st.sampled_from(["2.5", "2.5", *WORDS])),
        ]
    for option in draw(st.lists(st.sampled_from(OPTIONS[verb]), max_size=2, unique=True)):
        words += [option, draw(st.sampled_from(["100", "output", *WORDS]))]
    return words + draw(st.sampled_from([[], ["--format", "json"], ["--format", "plain"], ["--zzz"]]))


@quick(60)
@given(commands(), st.one_of(st.just(SMALL), changed(SMALL, [*NUMBERS, *PRIORS, *ODD, *FILES], most=1)))
def test_command_lines(words: list[str], form: Any) -> None:
    event(f"status {outcomes.command_line(words, form)}")
