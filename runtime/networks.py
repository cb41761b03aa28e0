"""The way in for whole networks: `compile_network` turns a network into layers of the paper's form, `plan_network`
shows what they cost. Plain arrays and scikit-learn are read here, torch in `network_torch`, ONNX in `network_onnx`, a
transformer block in `network_blocks`; how units become layers, and why no layer could be narrower, is in
`network_program`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.activations import Activation
from elbotree.runtime.arguments import read_only_array, real_array, shortened
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.float_range import in_float64
from elbotree.runtime.models import Layer
from elbotree.runtime.network_blocks import TransformerBlock, build_block
from elbotree.runtime.network_program import Affine, Program, Step
from elbotree.runtime.text_table import columns

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Plan:
    """A compiled network: its layers, and what they stand for and cost. Callable on rows, (N, n0) -> (N, outputs).

    layers  the chain
    steps   what each layer stands for, its psi, and its widths before and after
    notes   what was left out of the source network, or read in a way worth knowing
    """

    layers: list[Layer]
    steps: list[Step]
    notes: tuple[str, ...] = ()

    @property
    def widths(self) -> list[int]:
        """The dimension of the input and of each layer's output."""
        return [self.layers[0].n1, *(layer.n2 for layer in self.layers)]

    @property
    def units(self) -> int:
        """Layers with a nonlinearity; one more is affine where the last unit cannot write the outputs themselves."""
        return sum(bool(layer.w.any()) for layer in self.layers)

    @property
    def multiplications(self) -> int:
        """Multiplications to send one row through the chain: A, u and w of each layer."""
        return sum(layer.n2 * (layer.n1 + 2) for layer in self.layers)

    @property
    def pairs(self) -> int:
        """Pairs of features over all layers with a nonlinearity, with one feature a coordinate and one for w: sum of
        (n2 + 1) (n2 + 2) / 2. Modelling the chain costs about this many joint laws (term T3) for each evaluation of the
        losses."""
        return sum((layer.n2 + 1) * (layer.n2 + 2) // 2 for layer in self.layers if layer.w.any())

    def __call__(self, x: ArrayLike) -> Array:
        rows = real_array(x, "x")
        for layer in self.layers:
            rows = layer(rows)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON data (without the arrays)."""
        steps = [{"place": s.place, "psi": s.psi, "n1": s.n1, "n2": s.n2} for s in self.steps]
        cost = {"multiplications": self.multiplications, "pairs": self.pairs}
        return {"widths": self.widths, "units": self.units, "steps": steps, "cost": cost, "notes": list(self.notes)}

    def __str__(self) -> str:
        """One line for each run of steps of the same place and psi, then the totals."""
        lines = [("part", "psi", "steps", "width")]
        for (place, psi), group in groupby(self.steps, key=lambda step: (step.place.partition("[")[0], step.psi)):
            widths = [step.n2 for step in group]
            low, high = min(widths), max(widths)
            span = str(low) if low == high else f"{low} to {high}"
            name, shown = (place, psi) if place else ("affine map to the outputs", "")
            lines.append((name, shown, str(len(widths)), span))
        total = (
            f"{len(self.layers)} layers ({self.units} units) from {self.widths[0]} to {self.widths[-1]} coordinates, "
            f"at most {max(self.widths[1:])} wide; {self.multiplications:,} multiplications a row, "
            f"{self.pairs:,} pairs of features to model"
        )
        return "\n".join([*columns(lines), total, *(f"note: {note}" for note in self.notes)])


def compile_network(model: object) -> list[Layer]:
    """A network as layers of the paper's form f(x) = y + w psi(<y, u> + theta), y = A x + d; their composition is the
    network.

    Argument
        model  one of
               - a list of (W, bias, activation), W of shape (out, in), bias (out,) or None, activation a name, an
                 expression in b, an `Activation`, or None for none
               - a `torch.nn.Module` in evaluation mode: Sequential, Linear, activations, Dropout, BatchNorm1d,
                 LayerNorm, Softmax, Flatten, Identity, and `Residual` and `Elementwise` of
                 `elbotree.runtime.network_torch`
               - a fitted scikit-learn MLPClassifier or MLPRegressor (a classifier's outputs are its logits)
               - the path of an ONNX file
               - a `TransformerBlock` of plain arrays, or what `network_torch.transformer_block(layer, tokens)` makes of
                 a `torch.nn.TransformerEncoderLayer`

    Returns the layers, first to last: n1 of the first is the network's input, n2 of the last its output, and they agree
    with the network in float64 up to rounding. `plan_network` gives the same with widths, steps and cost.
    Raises InputError for what is wrong in the description, and UnsupportedError that lists every operation that has no
    such form here, with its name and place. The paper: eq. (1), and section 4, point 2.

    >>> import numpy as np, elbotree as et
    >>> layers = et.compile_network([([[1.0, -1.0], [0.5, 2.0]], [0.0, 1.0], "relu"), ([[1.0, 1.0]], None, None)])
    >>> rows = np.array([[2.0, 1.0]])
    >>> for layer in layers:
    ...     rows = layer(rows)
    >>> rows
    array([[5.]])
    """
    return plan_network(model).layers


@in_float64("the network")
def plan_network(model: object) -> Plan:
    """What `compile_network` returns of a `model`, with widths, steps, estimated cost and notes; print it to see them.

    Returns a `Plan`, callable on rows. Raises what `compile_network` raises.

    >>> print(plan_network([([[1.0, -1.0], [0.5, 2.0]], None, "tanh"), ([[1.0, 1.0]], None, None)]))
    part                       psi   steps  width
    layer 0 tanh               tanh  2      2 to 3
    affine map to the outputs        1      1
    3 layers (2 units) from 2 to 1 coordinates, at most 3 wide; 26 multiplications a row, 16 pairs of features to model
    """
    program, outputs = _read(model)
    if not len(outputs):
        raise InputError("the network has no outputs; give one with at least one")
    layers, steps = program.lower(outputs)
    return Plan(layers, steps, tuple(program.notes))


def _read(model: object) -> tuple[Program, Affine]:
    """The program of whatever describes the network, and its outputs."""
    if isinstance(model, str | Path):
        from elbotree.runtime.network_onnx import read_onnx

        return read_onnx(model)
    if isinstance(model, TransformerBlock):
        program = Program(model.inputs)
        return program, build_block(program, program.input(), model)
    torch = sys.modules.get("torch")  # nobody can hold one of its modules without having imported it
    if torch is not None and isinstance(model, torch.nn.Module):
        from elbotree.runtime.network_torch import read_torch

        return read_torch(model)
    learned = sys.modules.get("sklearn.neural_network")
    if learned is not None and isinstance(model, learned.MLPClassifier | learned.MLPRegressor):
        return _read_sklearn(model)
    if isinstance(model, Sequence) and not isinstance(model, bytes):
        return _read_list(model)
    raise UnsupportedError(
        f"`model` is {shortened(model)} of type {type(model).__name__}; it must be a list of (W, bias, activation), "
        "a torch module, a scikit-learn MLPClassifier or MLPRegressor, the path of an ONNX file, or a TransformerBlock"
    )


def _read_list(model: Sequence[Any]) -> tuple[Program, Affine]:
    """A list of (W, bias, activation)."""
    if not model:
        raise InputError("`model` is an empty list; it must hold at least one (W, bias, activation)")
    layers = [_checked_entry(entry, i) for i, entry in enumerate(model)]
    program = Program(layers[0][0].shape[1])
    state = program.input()
    for i, (W, bias, psi) in enumerate(layers):
        if W.shape[1] != len(state):
            before = "the layer before it" if i else "the input"
            raise InputError(
                f"`model[{i}][0]` has shape {W.shape}; {before} has {len(state)} outputs, so W must be "
                f"({W.shape[0]}, {len(state)}): W is (out, in)"
            )
        shown = psi.text if isinstance(psi, Activation) else psi
        state = program.apply(psi, state.mapped(W, bias), f"layer {i} {shown}")
    return program, state


def _checked_entry(entry: object, i: int) -> tuple[Array, Array, str | Activation]:
    if not isinstance(entry, Sequence) or isinstance(entry, str | bytes) or len(entry) != 3:
        raise InputError(f"`model[{i}]` is {shortened(entry)}; it must be (W, bias, activation)")
    W = read_only_array(entry[0], f"model[{i}][0]", 2)
    if 0 in W.shape:
        raise InputError(f"`model[{i}][0]` has shape {W.shape}; it needs at least one row and one column")
    bias = read_only_array(np.zeros(len(W)) if entry[1] is None else entry[1], f"model[{i}][1]", 1)
    if bias.shape != (len(W),):
        raise InputError(
            f"`model[{i}][1]` has shape {bias.shape}; `model[{i}][0]` has {len(W)} rows, so the bias must be "
            f"({len(W)},)"
        )
    psi = "identity" if entry[2] is None else entry[2]
    if not isinstance(psi, str | Activation):
        raise InputError(
            f"`model[{i}][2]` is {shortened(psi)}; it must be a name, an expression in b, an Activation, or None"
        )
    return W, bias, psi


_SKLEARN = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu", "exp": "exp"}


def _read_sklearn(model: Any) -> tuple[Program, Affine]:
    """A fitted MLPClassifier (its logits) or MLPRegressor."""
    name = type(model).__name__
    if not hasattr(model, "coefs_"):
        raise InputError(f"this {name} is not fitted; call its fit method first")
    hidden, out = model.activation, model.out_activation_
    if hidden not in _SKLEARN:
        raise UnsupportedError(f"{name}.activation is {hidden!r}; it must be one of {', '.join(_SKLEARN)}")
    program = Program(model.coefs_[0].shape[0])
    state = program.input()
    last = len(model.coefs_) - 1
    for i, (W, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        state = state.mapped(np.asarray(W, dtype=np.float64).T, np.asarray(bias, dtype=np.float64))
        if i < last:
            state = program.apply(_SKLEARN[hidden], state, f"hidden layer {i} {hidden}")
    if out in ("softmax", "logistic") and hasattr(model, "classes_"):
        program.notes.append(f"the outputs are the {name}'s logits: its last {out} is left out")
    elif out in _SKLEARN:
        state = program.apply(_SKLEARN[out], state, f"output {out}")
    else:
        raise UnsupportedError(f"{name}.out_activation_ is {out!r}; it must be one of {', '.join(_SKLEARN)}")
    return program, state
