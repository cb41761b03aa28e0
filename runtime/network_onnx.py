"""Reading ONNX files: a graph of nodes on rows of numbers becomes a program of scalar units. The file is parsed as data
and nothing in it is run; external data files, control flow and custom operators are refused. Needs the package
`onnx`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.network_program import Affine, Program
from elbotree.runtime.storage import read_bytes

Array = NDArray[np.float64]

MODEL_LIMIT = 2**30  # bytes of one ONNX file
NODE_LIMIT = 4096  # of one graph: what is made of it grows with their square
INPUT_LIMIT = 8192  # numbers of one row of the input: units are functions of all of them


@dataclass(frozen=True, eq=False)
class _Rows:
    """A tensor (N, *shape) whose rows, flattened, are affine functions of the input's row and the units."""

    functions: Affine
    shape: tuple[int, ...]


_Value = _Rows | NDArray[Any]


@dataclass(eq=False)
class _Node:
    """One node: its place for messages, its inputs (None where left out), its attributes."""

    op: str
    place: str
    inputs: list[_Value | None]
    attributes: Mapping[str, Any]
    program: Program = field(repr=False)

    def rows(self, i: int = 0) -> _Rows:
        value = self.inputs[i] if i < len(self.inputs) else None
        if not isinstance(value, _Rows):
            raise UnsupportedError(f"{self.place}: input {i} must depend on the network's input, and is a constant")
        return value

    def constant(self, i: int, default: object = None) -> NDArray[Any]:
        value = self.inputs[i] if i < len(self.inputs) else None
        if value is None and default is not None:
            return np.asarray(default)
        if not isinstance(value, np.ndarray):
            raise UnsupportedError(f"{self.place}: input {i} must be a constant of the file")
        return value

    def number(self, name: str, default: float) -> float:
        return float(self.attributes.get(name, default))

    def vector(self) -> Affine:
        """The first input where it must have shape (N, k)."""
        value = self.rows()
        if len(value.shape) != 1:
            raise UnsupportedError(
                f"{self.place}: its input has shape (N, {', '.join(map(str, value.shape))}), not (N, k)"
            )
        return value.functions

    def fail(self, why: str) -> UnsupportedError:
        return UnsupportedError(f"{self.place}: {why}")


def read_onnx(path: str | Path) -> tuple[Program, Affine]:
    """The program of an ONNX file, and its outputs; see `compile_network`.

    Raises InputError for a file that is missing, too large or no ONNX model, and UnsupportedError that lists every node
    of a kind that is not read here.
    """
    graph, numpy_helper = _graph(path)
    if len(graph.node) > NODE_LIMIT:
        raise UnsupportedError(f"{path} has {len(graph.node):,} nodes; the limit is {NODE_LIMIT:,}")
    values: dict[str, _Value | None] = {"": None}
    for tensor in graph.initializer:
        values[tensor.name] = _tensor(tensor, numpy_helper, path)
    name, shape = _input(graph, path)
    program = Program(prod(shape))
    values[name] = _Rows(program.input(), shape)
    for i, proto in enumerate(graph.node):
        place = _name(proto, i)
        missing = [given for given in proto.input if given not in values]
        if missing:
            raise InputError(
                f"{path}, {place}: its input {missing[0]!r} is not computed before it; the file is damaged"
            )
        try:
            attributes = {a.name: _attribute(a, numpy_helper, place) for a in proto.attribute}
            node = _Node(proto.op_type, place, [values[given] for given in proto.input], attributes, program)
            values[proto.output[0]] = _run(node)
        except InputError as error:
            raise type(error)(f"{path}, {error}") from None
        except (TypeError, ValueError, IndexError) as error:  # attributes and constants of shapes that do not fit
            raise InputError(f"{path}, {place}: its inputs or attributes do not fit it ({error})") from error
    output = values.get(graph.output[0].name)
    if not isinstance(output, _Rows):
        raise InputError(f"{path}: the output {graph.output[0].name!r} does not depend on the input")
    return program, output.functions


def _graph(path: str | Path) -> tuple[Any, Any]:
    """The graph in a file, and the module that reads its tensors."""
    content = read_bytes(path, MODEL_LIMIT)
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError:
        raise UnsupportedError(f"{path} needs the package onnx to be read: pip install 'elbotree[onnx]'") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        # Before the checker, which would look for the other files that a model names.
        problems = _problems(model.graph)
        if problems:
            raise UnsupportedError(f"{path}: {len(problems)} part(s) cannot be compiled: " + "; ".join(problems))
        onnx.checker.check_model(model)
    except UnsupportedError:
        raise
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:  # ValueError: the checker's own parser
        reason = " ".join(str(error).split())[:200] or "it is damaged"
        raise InputError(f"{path} is not an ONNX model: {reason}") from None
    if len(model.graph.output) != 1:
        names = ", ".join(output.name for output in model.graph.output)
        raise InputError(f"{path} has {len(model.graph.output)} outputs ({names}); export the network with one")
    return model.graph, numpy_helper


def _problems(graph: Any) -> list[str]:
    """Every node of a kind that cannot be read, and weights that are not in the file itself."""
    out = [f"sparse weights {tensor.values.name!r}" for tensor in graph.sparse_initializer]
    held = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute)]
    out += [
        f"weights {tensor.name!r} lie in another file (export the model with its weights inside)"
        for tensor in held
        if tensor.data_location == 1 or tensor.external_data
    ]
    for i, node in enumerate(graph.node):
        if node.domain not in ("", "ai.onnx"):
            out.append(f"{_name(node, i)} is of the domain {node.domain!r}")
        elif node.op_type not in _OPERATIONS:
            out.append(_name(node, i))
    return out


def _name(node: Any, i: int) -> str:
    return f"{node.op_type} (node {i}{f', {node.name!r}' if node.name else ''})"


def _tensor(tensor: Any, numpy_helper: Any, place: object) -> NDArray[Any]:
    """A tensor of the file as float64 (or integers)."""
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise InputError(f"{place}: {tensor.name!r} cannot be read: {' '.join(str(error).split())}") from None
    if array.dtype.kind in "iub":
        return array
    try:
        array = array.astype(np.float64)
    except (ValueError, TypeError):
        raise InputError(f"{place}: {tensor.name!r} holds {array.dtype}; it must hold numbers") from None
    if not np.isfinite(array).all():
        raise InputError(f"{place}: {tensor.name!r} holds a number that is not finite; every weight must be")
    return array


def _attribute(attribute: Any, numpy_helper: Any, place: str) -> Any:
    """An attribute as a Python value; graphs never get here, as no operation below takes one."""
    kinds = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}
    if attribute.type == 4:
        return _tensor(attribute.t, numpy_helper, place)
    if attribute.type not in kinds:
        raise UnsupportedError(f"{place}: the attribute {attribute.name!r} is of a kind that is not read")
    value = getattr(attribute, kinds[attribute.type])
    return value.decode() if isinstance(value, bytes) else value if attribute.type < 6 else list(value)


def _input(graph: Any, path: object) -> tuple[str, tuple[int, ...]]:
    """The one input that is no weight, and the shape of one of its rows."""
    weights = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in weights]
    if len(given) != 1:
        raise InputError(f"{path} has {len(given)} inputs ({', '.join(v.name for v in given)}); it must have one")
    sizes = [int(d.dim_value) for d in given[0].type.tensor_type.shape.dim]
    if len(sizes) < 2 or any(size < 1 for size in sizes[1:]):
        shown = ", ".join(str(size) if size > 0 else "?" for size in sizes)
        raise InputError(
            f"{path}: the input {given[0].name!r} has shape ({shown}); it must be (rows, numbers, ...) with all "
            "sizes but the first fixed"
        )
    if (size := prod(sizes[1:])) > INPUT_LIMIT:
        raise UnsupportedError(f"{path}: a row of the input has {size:,} numbers; the limit is {INPUT_LIMIT:,}")
    return given[0].name, tuple(sizes[1:])


# -- operations: from a node to its value -----------------------------------------------------------------------------
def _run(node: _Node) -> _Value:
    """The node's value: numpy's where all inputs are constants, else functions of the input."""
    known = [value for value in node.inputs if value is not None]
    if node.op == "Constant":
        return _constant(node)
    if known and all(isinstance(value, np.ndarray) for value in known):
        return _fold(node, [np.asarray(value) for value in known])
    rule = _OPERATIONS[node.op]
    if isinstance(rule, str):
        value = node.rows()
        return _Rows(node.program.apply(rule, value.functions, node.place), value.shape)
    return rule(node)


def _constant(node: _Node) -> NDArray[Any]:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in node.attributes:
            return np.asarray(node.attributes[name])
    raise node.fail("it holds no numbers")


_FOLDS: dict[str, Callable[..., NDArray[Any]]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "MatMul": np.matmul,
    "Neg": np.negative,
    "Identity": np.asarray,
    "Cast": np.asarray,
}


def _fold(node: _Node, values: list[NDArray[Any]]) -> NDArray[Any]:
    """Arithmetic on constants, as exporters leave it in the file."""
    try:
        if node.op == "Transpose":
            return np.transpose(values[0], node.attributes.get("perm"))
        if node.op == "Reshape":
            return np.reshape(values[0], [int(size) for size in values[1]])
        if node.op in _FOLDS:
            return np.asarray(_FOLDS[node.op](*values))
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{node.place}: {error}") from None
    raise node.fail("all its inputs are constants, and only plain arithmetic on constants is read")


def _gemm(node: _Node) -> _Rows:
    if node.attributes.get("transA"):
        raise node.fail("transA would mix rows")
    W = node.constant(1).T if not node.attributes.get("transB") else node.constant(1)
    bias = node.constant(2, 0.0)
    return _linear(node, W * node.number("alpha", 1.0), bias * node.number("beta", 1.0))


def _matmul(node: _Node) -> _Rows:
    return _linear(node, node.constant(1).T, np.zeros(()))


def _linear(node: _Node, W: NDArray[Any], bias: NDArray[Any]) -> _Rows:
    x = node.vector()
    if W.ndim != 2 or W.shape[1] != len(x):
        raise InputError(f"{node.place}: its matrix takes {W.shape[1:]} numbers and {len(x)} come")
    return _Rows(x.mapped(W, _stretched(node, bias, (len(W),))), (len(W),))


def _stretched(node: _Node, constant: NDArray[Any], shape: tuple[int, ...]) -> Array:
    """A constant as one row of numbers for (N, *shape), by broadcasting; a first axis of size 1 may be the rows'."""
    if constant.ndim == len(shape) + 1 and constant.shape[0] == 1:
        constant = constant[0]
    try:
        return np.asarray(np.broadcast_to(constant, shape), dtype=np.float64).ravel()
    except ValueError:
        raise node.fail(f"a constant of shape {constant.shape} does not stretch to (N, {shape})") from None


def _sum(sign: float) -> Callable[[_Node], _Rows]:
    def rule(node: _Node) -> _Rows:
        parts = node.inputs[:2]
        shape = next(value.shape for value in parts if isinstance(value, _Rows))
        total = node.program.constant(np.zeros(prod(shape)))
        for value, factor in zip(parts, (1.0, sign), strict=True):
            total = total + _spread(node, value, shape).scaled(factor)
        return _Rows(total, shape)

    return rule


def _spread(node: _Node, value: _Value | None, shape: tuple[int, ...]) -> Affine:
    """An operand as functions, of the shape of the other one."""
    if isinstance(value, _Rows):
        if value.shape != shape:
            raise node.fail(f"operands of shapes (N, {value.shape}) and (N, {shape}) would have to be stretched")
        return value.functions
    assert value is not None  # the checker counted the inputs
    return node.program.constant(_stretched(node, value, shape))


def _times(node: _Node) -> _Rows:
    """Mul: by a constant, or ((a + b)^2 - (a - b)^2) / 4 of two computed values."""
    a, b = node.inputs[:2]
    if isinstance(a, _Rows) and isinstance(b, _Rows):
        return _Rows(node.program.product(a.functions, _spread(node, b, a.shape), node.place), a.shape)
    value, constant = (a, b) if isinstance(a, _Rows) else (b, a)
    assert isinstance(value, _Rows)
    assert isinstance(constant, np.ndarray)
    return _Rows(value.functions.scaled(_stretched(node, constant, value.shape)), value.shape)


def _divided(node: _Node) -> _Rows:
    """Div: by a constant, or times the reciprocal."""
    a, b = node.inputs[:2]
    if isinstance(b, np.ndarray):
        if not b.all():
            raise InputError(f"{node.place}: it divides by the constant 0")
        return _times(_Node("Mul", node.place, [a, np.asarray(1 / b.astype(np.float64))], {}, node.program))
    assert isinstance(b, _Rows)
    inverse = _Rows(node.program.apply("reciprocal", b.functions, f"{node.place} reciprocal"), b.shape)
    return _times(_Node("Mul", node.place, [a, inverse], {}, node.program))


def _step(psi: str, sign: float) -> Callable[[_Node], _Rows]:
    """A comparison or a connective of conditions, 1 where it holds and 0 elsewhere: psi of one operand plus sign times the
    other."""
    combine = _sum(sign)

    def rule(node: _Node) -> _Rows:
        both = combine(node)
        return _Rows(node.program.apply(psi, both.functions, node.place), both.shape)

    return rule


def _not(node: _Node) -> _Rows:
    value = node.rows()
    return _Rows(value.functions.scaled(-1.0) + 1.0, value.shape)


def _where(node: _Node) -> _Rows:
    """b + condition (a - b), with a condition that is 1 or 0."""
    condition = node.rows()
    a, b = (_spread(node, value, condition.shape) for value in node.inputs[1:3])
    off = a - b
    if not off.rows.any():
        return _Rows(b + condition.functions.scaled(off.constants), condition.shape)
    return _Rows(b + node.program.product(condition.functions, off, node.place), condition.shape)


def _power(node: _Node) -> _Rows:
    exponent = node.constant(1)
    share = Fraction(float(exponent.ravel()[0])).limit_denominator(64) if exponent.size == 1 else None
    if share is None or float(share) != float(exponent.ravel()[0]) or abs(share.numerator) > 64:
        raise node.fail("its exponent must be one whole number or simple fraction")
    return _by(node, f"b**({share})")


def _by(node: _Node, psi: str) -> _Rows:
    value = node.rows()
    return _Rows(node.program.apply(psi, value.functions, node.place), value.shape)


def _text(value: float) -> str:
    return f"({float(value)!r})"


def _with(template: str, **defaults: float) -> Callable[[_Node], _Rows]:
    """An activation with attributes: their numbers go into the template's braces."""

    def rule(node: _Node) -> _Rows:
        return _by(node, template.format(**{name: _text(node.number(name, value)) for name, value in defaults.items()}))

    return rule


def _clip(node: _Node) -> _Rows:
    low, high = (
        node.constant(i, node.attributes.get(name, sign * np.inf)) for i, name, sign in ((1, "min", -1), (2, "max", 1))
    )
    psi = "b"
    if np.isfinite(low):
        psi = f"max({psi}, {_text(float(low))})"
    if np.isfinite(high):
        psi = f"min({psi}, {_text(float(high))})"
    return _by(node, psi)


def _gelu(node: _Node) -> _Rows:
    if node.attributes.get("approximate", "none") == "tanh":
        return _by(node, "b*(1 + tanh((2/pi)**(1/2)*(b + 0.044715*b**3)))/2")
    return _by(node, "gelu")


def _prelu(node: _Node) -> _Rows:
    value = node.rows()
    slopes = _stretched(node, node.constant(1), value.shape)
    parts = [
        node.program.apply(f"leaky_relu(b, {_text(slope)})", value.functions[i : i + 1], f"{node.place}[{i}]")
        for i, slope in enumerate(slopes)
    ]
    return _Rows(Affine.stacked(parts), value.shape)


def _batch_norm(node: _Node) -> _Rows:
    x = node.vector()
    if node.attributes.get("training_mode"):
        raise node.fail("it is in training mode; export the model for inference")
    gain, bias, mean, var = (_stretched(node, node.constant(i), (len(x),)) for i in range(1, 5))
    factor = gain / np.sqrt(var + node.number("epsilon", 1e-5))
    return _Rows(x.scaled(factor) + (bias - mean * factor), (len(x),))


def _layer_norm(node: _Node) -> _Rows:
    x = node.vector()
    if node.attributes.get("axis", -1) not in (-1, 1):
        raise node.fail("it must go along the last axis")
    gain, bias = (_stretched(node, node.constant(i, default), (len(x),)) for i, default in ((1, 1.0), (2, 0.0)))
    return _Rows(node.program.layer_norm(x, gain, bias, node.number("epsilon", 1e-5), node.place), (len(x),))


def _softmax(node: _Node) -> _Rows:
    x = node.vector()
    if node.attributes.get("axis", -1) not in (-1, 1):
        raise node.fail("it must go along the last axis")
    if node.op == "Softmax":
        return _Rows(node.program.softmax(x, node.place), (len(x),))
    total = node.program.log_sum_exp(x, node.place)
    return _Rows(x - total[[0] * len(x)], (len(x),))


def _flatten(node: _Node) -> _Rows:
    value = node.rows()
    if node.attributes.get("axis", 1) != 1:
        raise node.fail("it must keep the first axis, axis=1")
    return _Rows(value.functions, (prod(value.shape),))


def _reshape(node: _Node) -> _Rows:
    """A new shape for each row: the first axis stays (0, -1 or 1), and the numbers keep their order."""
    value, target = node.rows(), [int(size) for size in node.constant(1).ravel()]
    size = prod(value.shape)
    inner = tuple(target[1:])
    if inner.count(-1) == 1 and size % (known := -prod(inner) or 1) == 0:
        inner = tuple(size // known if s == -1 else s for s in inner)
    if not target or target[0] not in (0, -1, 1) or prod(inner) != size or any(s < 1 for s in inner):
        raise node.fail(f"from (N, {value.shape}) to {tuple(target)} it would move numbers between rows")
    return _Rows(value.functions, inner)


def _passed(node: _Node) -> _Rows:
    return node.rows()


def _dropout(node: _Node) -> _Rows:
    if len(node.inputs) > 2 and node.inputs[2] is not None and bool(node.constant(2).any()):
        raise node.fail("it is in training mode; export the model for inference")
    return node.rows()


def _cast(node: _Node) -> _Rows:
    if node.attributes.get("to") not in (1, 10, 11, 16):
        raise node.fail("only casts between floating-point types are read (and then left out)")
    return node.rows()


def _only_constants(node: _Node) -> _Rows:
    raise node.fail("it is read for constants of the file only")


#: Operation -> psi as text, or a rule.
_OPERATIONS: dict[str, str | Callable[[_Node], _Rows]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _sum(1.0),
    "Sub": _sum(-1.0),
    "Mul": _times,
    "Div": _divided,
    "Pow": _power,
    "Neg": "-b",
    "Greater": _step("where(b > 0, 1, 0)", -1.0),
    "GreaterOrEqual": _step("where(b >= 0, 1, 0)", -1.0),
    "Less": _step("where(b < 0, 1, 0)", -1.0),
    "LessOrEqual": _step("where(b <= 0, 1, 0)", -1.0),
    "And": _step("where(b > 3/2, 1, 0)", 1.0),
    "Or": _step("where(b > 1/2, 1, 0)", 1.0),
    "Not": _not,
    "Where": _where,
    "Relu": "relu",
    "LeakyRelu": _with("leaky_relu(b, {alpha})", alpha=0.01),
    "PRelu": _prelu,
    "ThresholdedRelu": _with("where(b > {alpha}, b, 0)", alpha=1.0),
    "Elu": _with("elu(b, {alpha})", alpha=1.0),
    "Celu": _with("{alpha}*elu(b/{alpha})", alpha=1.0),
    "Selu": _with("{gamma}*elu(b, {alpha})", gamma=1.0507009873554805, alpha=1.6732632423543772),
    "Softplus": "softplus",
    "Softsign": "b/(1 + abs(b))",
    "Sigmoid": "sigmoid",
    "HardSigmoid": _with("hardtanh({alpha}*b + {beta}, 0, 1)", alpha=0.2, beta=0.5),
    "HardSwish": "b*hardtanh(b/6 + 1/2, 0, 1)",
    "Mish": "b*tanh(softplus(b))",
    "Tanh": "tanh",
    "Gelu": _gelu,
    "Erf": "erf(b)",
    "Exp": "exp",
    "Log": "log(b)",
    "Sqrt": "sqrt(b)",
    "Reciprocal": "reciprocal",
    "Abs": "abs",
    "Sign": "sign",
    "Sin": "sin",
    "Cos": "cos(b)",
    "Clip": _clip,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Identity": _passed,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _only_constants,
    "Constant": _only_constants,
}
