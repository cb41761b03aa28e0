"""A network as a list of scalar units, and that list as layers of the paper's form, each no wider than it must be.
Where units come from (torch, scikit-learn, ONNX, plain arrays, transformer blocks) is for the `network_*` files beside
this one.

A program computes from x in R^n0 the units v_i = psi_i(b_i), where b_i is an affine function of z_i = (x, v_1, ...,
v_{i-1}), and its outputs are affine functions of (x, v_1, ..., v_N). Every feed-forward network is one. Step i of the
compiled chain has the paper's form (1): y = A s_{i-1}, b_i = <y, u> + theta, s_i = y + w psi_i(b_i), with the state s_i
= V_i (x, v_1..v_i).

What V_i must hold. Let N_i be the span of all linear functionals of (x, v_1..v_i) that are still read after step i: the
parts in those coordinates of every later b and of every output. Backwards, with beta_i the linear part of b_i,

    N_N = span of the outputs,    N_{i-1} = span(N_i without its coordinate v_i, beta_i).

Then V_i is an orthonormal basis of N_i, and one row more exactly where beta_i is no combination of N_i's rows without
their coordinate v_i: step i reads b_i from y, so y must still hold it, and the next step's A drops it. Hence

    width_i = dim N_i + (1 if beta_i is not in the projection of N_i, else 0).

No chain that computes these units in this order has a narrower step. By induction its state after step i is an affine
image M_i (x, v_1..v_i); every later b and every output is affine in that state and in later units, so its part in (x,
v_1..v_i) lies in the row space of M_i, which therefore contains N_i; and y = M_i without the column of v_i determines
b_i, so the projected row space contains beta_i. A space with both properties has dimension at least width_i. (For units
that are linearly independent functions of x; a special relation among them, such as relu(b) - relu(-b) = b, could only
help.)

For a dense hidden layer of h units on k inputs with weights W, next weights W', after i units, this is
rank(W[i:]) + rank(W'[:, :i]), plus one: accumulators take the units' place as soon as fewer numbers than units are read
later.

Orthonormal rows matter beyond conditioning: an isotropic noise N(0, sigma^2 I) stays isotropic under A, so that a
feature model goes through the projections exactly. Coordinates (x_c, v_i) that lie in the span are kept as rows of
their own, so states stay readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.activations import Activation, compile_psi
from elbotree.runtime.errors import InputError
from elbotree.runtime.models import Layer

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

TOL = 1e-13  # directions of unit functionals below this are rounding
AMPLIFICATION = 1e3  # a read-out may not magnify rounding by more: one more coordinate is kept instead


@dataclass(frozen=True, eq=False)
class Affine:
    """k affine functions of (x, v_1, v_2, ...): rows (k, columns so far) and constants (k,)."""

    rows: Array
    constants: Array

    def __len__(self) -> int:
        return len(self.constants)

    def __getitem__(self, which: slice | Sequence[int]) -> Affine:
        return Affine(self.rows[which], self.constants[which])

    def __add__(self, other: Affine | ArrayLike) -> Affine:
        if not isinstance(other, Affine):
            return Affine(self.rows, self.constants + np.asarray(other, dtype=np.float64))
        columns = max(self.rows.shape[1], other.rows.shape[1])
        rows = widened(self.rows, columns) + widened(other.rows, columns)
        return Affine(rows, self.constants + other.constants)

    def __sub__(self, other: Affine) -> Affine:
        return self + other.scaled(-1.0)

    def scaled(self, factor: ArrayLike) -> Affine:
        """Each function times a number (one for all, or one each)."""
        numbers = np.broadcast_to(np.asarray(factor, dtype=np.float64), self.constants.shape)
        return Affine(self.rows * numbers[:, None], self.constants * numbers)

    def mapped(self, W: Array, bias: Array | float = 0.0) -> Affine:
        """W times the functions, plus a bias."""
        return Affine(W @ self.rows, W @ self.constants + bias)

    @classmethod
    def stacked(cls, parts: Sequence[Affine]) -> Affine:
        """All functions of all parts, one after the other."""
        columns = max(part.rows.shape[1] for part in parts)
        rows = np.concatenate([widened(part.rows, columns) for part in parts])
        return cls(rows, np.concatenate([part.constants for part in parts]))


def widened(rows: Array, columns: int) -> Array:
    """The rows with zeros for the units that came later."""
    return np.pad(rows, ((0, 0), (0, columns - rows.shape[1])))


@dataclass(frozen=True, eq=False)
class Unit:
    """v = psi(<row, (x, v_1, ...)> + constant), and the place in the source network that it stands for."""

    psi: str | Activation
    row: Array
    constant: float
    place: str


@dataclass(frozen=True)
class Step:
    """One layer of the compiled chain: the place it stands for ("" for a last affine map), psi, and its widths."""

    place: str
    psi: str
    n1: int
    n2: int


class Program:
    """Units in the order in which they were asked for. Equal units are one unit; constants and affine psi need none."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.units: list[Unit] = []
        self.notes: list[str] = []
        self._known: dict[tuple[str, bytes, float], int] = {}

    def input(self) -> Affine:
        """x itself."""
        return Affine(np.eye(self.inputs), np.zeros(self.inputs))

    def constant(self, value: ArrayLike) -> Affine:
        """Numbers, as functions that do not depend on anything."""
        numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return Affine(np.zeros((len(numbers), self.inputs)), numbers)

    def apply(self, psi: str | Activation, arguments: Affine, place: str) -> Affine:
        """psi of each function. Raises InputError for an unknown psi, and for a constant outside its domain."""
        activation = _activation(psi, place)
        if activation.affine is not None:
            slope, intercept = activation.affine
            return arguments.scaled(slope) + intercept
        parts = [self._unit(psi, activation, arguments[i : i + 1], f"{place}[{i}]") for i in range(len(arguments))]
        return Affine.stacked(parts)

    def _unit(self, psi: str | Activation, activation: Activation, argument: Affine, place: str) -> Affine:
        row, constant = np.trim_zeros(argument.rows[0], "b") + 0.0, float(argument.constants[0])  # no -0.0 in the key
        if not len(row):
            value = float(activation(np.array([constant]))[0])
            if not np.isfinite(value):
                raise InputError(f"{place}: {activation.text} of the constant {constant!r} is {value!r}, not finite")
            return self.constant(value)
        key = (activation.text, row.tobytes(), constant)
        if key not in self._known:
            self._known[key] = len(self.units)
            self.units.append(Unit(psi, row, constant, place))
        column = self.inputs + self._known[key]
        return Affine(np.eye(1, column + 1, column), np.zeros(1))

    def square(self, a: Affine, place: str) -> Affine:
        """a^2."""
        return self.apply("square", a, f"{place} square")

    def product(self, a: Affine, b: Affine, place: str) -> Affine:
        """a b = ((a + b)^2 - (a - b)^2) / 4: two units each."""
        return (self.square(a + b, place) - self.square(a - b, place)).scaled(0.25)

    def shared_product(self, a: Affine, b: Affine, place: str) -> Affine:
        """a b = ((a + b)^2 - a^2 - b^2) / 2: one unit each where the squares of a and b serve other products too."""
        return (self.square(a + b, place) - self.square(a, place) - self.square(b, place)).scaled(0.5)

    def log_sum_exp(self, a: Affine, place: str) -> Affine:
        """log sum_j e^(a_j) by log(e^p + e^q) = q + softplus(p - q): len(a) - 1 units, which never overflow."""
        total = a[:1]
        for j in range(1, len(a)):
            total = a[j : j + 1] + self.apply("softplus", total - a[j : j + 1], f"{place} softplus {j}")
        return total

    def softmax(self, a: Affine, place: str, how: str = "softplus") -> Affine:
        """e^(a_j) / sum_k e^(a_k).

        how    "softplus": e^(a_j - log sum e^a), and the last one as 1 minus the others: 2 len(a) - 2 units, all of
               them finite on the whole line, none large; "reciprocal": e^(a_j) times 1 / sum e^a: 3 len(a) + 1
               units, with a pole where the sum is 0 and with rounding that grows like the largest e^(2 a_j).
        """
        if how not in ("softplus", "reciprocal"):
            raise InputError(f"softmax is {how!r}; it must be 'softplus' or 'reciprocal'")
        if len(a) == 1:
            return self.constant(1.0)
        if how == "reciprocal":
            powers = self.apply("exp", a, f"{place} exp")
            sum_ = powers.mapped(np.ones((1, len(a))))
            inverse = self.apply("reciprocal", sum_, f"{place} reciprocal")
            return self.product(powers, inverse[[0] * len(a)], place)
        last = len(a) - 1
        total = self.log_sum_exp(a, place)
        first = self.apply("exp", a[:last] - total[[0] * last], f"{place} exp")
        return Affine.stacked([first, first.mapped(-np.ones((1, last)), 1.0)])

    def layer_norm(self, a: Affine, gain: ArrayLike, bias: ArrayLike, eps: float, place: str) -> Affine:
        """gain (a - mean a) / sqrt(var a + eps) + bias.

        In an orthonormal basis of the centred space (d - 1 coordinates t): var = |t|^2 / d, r = (var + eps)^(-1/2), and
        products t r whose squares t^2 are there already: 2 d units.
        """
        d = len(a)
        centred = _centred_basis(d)
        t = a.mapped(centred)
        variance = self.square(t, place).mapped(np.full((1, d - 1), 1 / d), eps)
        r = self.apply("b**(-1/2)", variance, f"{place} rsqrt")
        return self.shared_product(t, r[[0] * (d - 1)], place).mapped(centred.T).scaled(gain) + bias

    def lower(self, outputs: Affine) -> tuple[list[Layer], list[Step]]:
        """The chain of layers whose last output is `outputs`, and what each layer stands for."""
        return _Lowering(self, outputs).emit()


def _activation(psi: str | Activation, place: str) -> Activation:
    if isinstance(psi, Activation):
        return psi
    try:
        return compile_psi(psi)
    except InputError as error:
        raise type(error)(f"{place}: {error}") from None


def _centred_basis(d: int) -> Array:
    """(d - 1, d): Helmert's orthonormal rows, orthogonal to (1, ..., 1)."""
    rows = np.tril(np.ones((d, d)), -1)[1:] - np.diag(np.arange(d, dtype=np.float64))[1:]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


# -- from units to layers ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Placed:
    """A unit in its place: V after it, and u; `unit` is its index."""

    unit: int
    V: Array
    u: Array


class _Lowering:
    """The backward pass that finds N_i and an order, and the forward pass that writes layers."""

    def __init__(self, program: Program, outputs: Affine) -> None:
        self.program = program
        self.n0, self.columns = program.inputs, program.inputs + len(program.units)
        self.outputs = widened(outputs.rows, self.columns)
        self.offset = outputs.constants
        rows = [widened(unit.row[None], self.columns) for unit in program.units]
        self.betas = np.concatenate([np.zeros((0, self.columns)), *rows])

    def emit(self) -> tuple[list[Layer], list[Step]]:
        """Layers, first to last."""
        placed = self.schedule()
        V = np.eye(self.n0, self.columns)
        layers: list[Layer] = []
        steps: list[Step] = []
        for i, now in enumerate(placed):
            unit, column = self.program.units[now.unit], self.n0 + now.unit
            u = self.direct_read(now.unit) if i == len(placed) - 1 else None
            rows, reader, offset = (now.V, now.u, None) if u is None else (self.outputs, u, self.offset)
            A = _without(rows, column) @ V.T
            threshold = unit.constant - (0.0 if offset is None else float(reader @ offset))
            layers.append(Layer(A, rows[:, column], reader, unit.psi, offset, threshold))
            steps.append(Step(unit.place, layers[-1].activation.text, layers[-1].n1, layers[-1].n2))
            V = rows
            if u is not None:
                return layers, steps
        zero = np.zeros(len(self.offset))
        layers.append(Layer(self.outputs @ V.T, zero, zero, "zero", self.offset))
        return layers, [*steps, Step("", "zero", layers[-1].n1, layers[-1].n2)]

    def direct_read(self, unit: int) -> Array | None:
        """u with <outputs without v, u> = b, where the last step can write the outputs themselves; else None."""
        beta = self.betas[unit]
        u = np.linalg.lstsq(_without(self.outputs, self.n0 + unit).T, beta, rcond=None)[0]
        gap = np.linalg.norm(_without(self.outputs, self.n0 + unit).T @ u - beta)
        size = np.linalg.norm(beta)
        small = np.linalg.norm(u) * np.abs(self.outputs).max(initial=0.0) <= AMPLIFICATION * size
        return np.asarray(u) if gap <= 10 * TOL * size and small else None

    def schedule(self) -> list[_Placed]:
        """Units in the order of computation, found from the last to the first.

        Among the units that no later one reads, the next (going backwards) is one that leaves the smallest span; where
        several do, one whose b is not orthogonal to that span (blocks of units with inputs of their own are then
        computed
        one after the other), and of these the latest in the program's order.
        """
        scale = np.linalg.norm(self.outputs, axis=1, keepdims=True)
        Q = _basis(self.outputs[scale[:, 0] > 0] / scale[scale[:, 0] > 0])
        reads = self.betas[:, self.n0 :] != 0
        left = self.live()
        placed: list[_Placed] = []
        while left.any():
            ready = np.flatnonzero(left & ~reads[left].any(axis=0))
            dropped, readable, apart, c = self._effects(Q, ready)
            cost = 2 * (~readable * 1 - dropped * 1) + apart
            best = ready.size - 1 - int(np.argmin(cost[::-1]))
            unit = int(ready[best])
            beta, size = self.betas[unit], float(np.linalg.norm(self.betas[unit]))
            V = Q if readable[best] else np.concatenate([Q, _unit_residual(Q, beta / size)[None]])
            target = beta.copy()
            if readable[best]:
                target[self.n0 + unit] = c[best]
            placed.append(_Placed(unit, V, V @ target))
            Q = _basis(np.concatenate([_without(Q, self.n0 + unit), beta[None] / size]))
            left[unit] = False
        return placed[::-1]

    def live(self) -> Flags:
        """Units on which some output depends."""
        live = np.asarray((self.outputs[:, self.n0 :] != 0).any(axis=0))
        for i in range(len(live) - 1, -1, -1):
            if live[i]:
                live |= self.betas[i, self.n0 :] != 0
        return live

    def _effects(self, Q: Array, units: NDArray[np.intp]) -> tuple[Flags, Flags, Flags, Array]:
        """For each unit taken next: does the span lose a dimension with v, is b a combination of what remains, is it
        orthogonal to that, and the number c for which beta + c v lies in the span (the least squares one)."""
        columns = self.n0 + units
        beta = self.betas[units]
        size = np.linalg.norm(beta, axis=1)
        rest = beta - (beta @ Q.T) @ Q
        unit_rest = np.eye(self.columns)[columns] - Q[:, columns].T @ Q
        length = np.linalg.norm(unit_rest, axis=1)
        dropped = length <= 10 * TOL
        safe = length > 1 / AMPLIFICATION
        c = np.where(safe, -(rest * unit_rest).sum(axis=1) / np.where(safe, length**2, 1.0), 0.0)
        gap = np.linalg.norm(rest + c[:, None] * unit_rest, axis=1)
        readable = (gap <= 10 * TOL * size) & (np.abs(c) <= AMPLIFICATION * size)
        return dropped, readable, gap >= (1 - 1e-9) * size, c


def _without(rows: Array, column: int) -> Array:
    out = rows.copy()
    out[:, column] = 0.0
    return out


def _unit_residual(Q: Array, row: Array) -> Array:
    """The part of a row outside the span of Q's rows, with length one; projected twice, so that it is orthogonal."""
    rest = row - (row @ Q.T) @ Q
    rest = rest / np.linalg.norm(rest)
    rest = rest - (rest @ Q.T) @ Q
    return np.asarray(rest / np.linalg.norm(rest))


def _basis(rows: Array) -> Array:
    """Orthonormal rows that span `rows`: coordinates that lie in the span first, then a basis of what is left."""
    rows = np.where(np.abs(rows) > TOL / 100, rows, 0.0)
    single = (rows != 0).sum(axis=1) == 1
    kept = (np.abs(rows[single]) > TOL).any(axis=0)
    Q = _orthonormal(np.where(kept, 0.0, rows[~single]))
    near = np.flatnonzero((Q**2).sum(axis=0) > 1 - 1e-6)
    outside = np.linalg.norm(np.eye(rows.shape[1])[near] - Q[:, near].T @ Q, axis=1)
    inside = near[outside <= 10 * TOL]
    if inside.size:
        kept[inside] = True
        Q = _orthonormal(np.where(kept, 0.0, Q))
    return np.concatenate([np.eye(rows.shape[1])[kept], Q])


def _orthonormal(rows: Array) -> Array:
    """An orthonormal basis of the rows' span, with signs fixed so that equal input gives equal output."""
    active = (rows != 0).any(axis=0)
    out = np.zeros((0, rows.shape[1]))
    if not active.any():
        return out
    _, sizes, right = np.linalg.svd(rows[:, active], full_matrices=False)
    right = right[sizes > TOL]
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    out = np.zeros((len(right), rows.shape[1]))
    out[:, active] = right * signs[:, None]
    return out
