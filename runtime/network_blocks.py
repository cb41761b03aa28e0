"""A transformer block as a program of scalar units: attention through squares, softplus and exp (or exp and
reciprocal), then the MLP, residuals around both, layer norms where they are. Its numbers are plain arrays here;
`network_torch` reads them from torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.activations import Activation
from elbotree.runtime.arguments import finite_number, read_only_array, shortened
from elbotree.runtime.errors import InputError
from elbotree.runtime.network_program import Affine, Program

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm: gain (x - mean) / sqrt(var + eps) + bias over the d coordinates of a token."""

    gain: Array
    bias: Array
    eps: float


@dataclass(frozen=True, eq=False)
class TransformerBlock:
    """Self-attention and an MLP with residuals on `tokens` rows of d coordinates; the network's input is those rows,
    one after the other (tokens d numbers), and so is its output.

        a = x + sum over heads of softmax(q k^T / sqrt(dh)) v O,   q = x Q^T + .., k = x K^T + .., v = x V^T + ..
        y = a + W2 psi(W1 a + b1) + b2

    Arguments
        tokens     how many
        query, key, value  (W, bias): W of shape (h dh, d), bias (h dh,) or None; heads take dh rows each, in turn
        out        (W, bias): (d, h dh)
        up, down   (W, bias): the MLP's (hidden, d) and (d, hidden); both None for no MLP
        psi        the MLP's nonlinearity
        heads      h
        norms      two (gain, bias, eps) of the layer norms before (pre_norm) or after attention and MLP; None for none
        pre_norm   x + attention(norm(x)) instead of norm(x + attention(x)), and the same for the MLP
        causal     token i attends to tokens 0..i only
        softmax    "softplus" or "reciprocal", as in `Program.softmax`

    Raises InputError for shapes that do not fit.
    """

    tokens: int
    query: tuple[Array, Array]
    key: tuple[Array, Array]
    value: tuple[Array, Array]
    out: tuple[Array, Array]
    up: tuple[Array, Array] | None
    down: tuple[Array, Array] | None
    psi: str | Activation
    heads: int
    norms: tuple[Norm, Norm] | None
    pre_norm: bool
    causal: bool
    softmax: str

    def __init__(
        self,
        tokens: int,
        query: Sequence[ArrayLike | None],
        key: Sequence[ArrayLike | None],
        value: Sequence[ArrayLike | None],
        out: Sequence[ArrayLike | None],
        up: Sequence[ArrayLike | None] | None = None,
        down: Sequence[ArrayLike | None] | None = None,
        psi: str | Activation = "relu",
        *,
        heads: int = 1,
        norms: Sequence[tuple[ArrayLike, ArrayLike, float]] | None = None,
        pre_norm: bool = False,
        causal: bool = False,
        softmax: str = "softplus",
    ) -> None:
        for name, count in {"tokens": tokens, "heads": heads}.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise InputError(f"`{name}` is {shortened(count)}; it must be a whole number >= 1")
        if softmax not in ("softplus", "reciprocal"):
            raise InputError(f"`softmax` is {softmax!r}; it must be 'softplus' or 'reciprocal'")
        if (up is None) != (down is None):
            raise InputError("`up` and `down` make the MLP together; give both, or neither")
        maps = {"query": query, "key": key, "value": value, "out": out, "up": up, "down": down}
        for name, pair in maps.items():
            object.__setattr__(self, name, None if pair is None else _affine_map(pair, name))
        rest = {
            "tokens": tokens,
            "psi": psi,
            "heads": heads,
            "pre_norm": pre_norm,
            "causal": causal,
            "softmax": softmax,
        }
        for key_, value_ in rest.items():
            object.__setattr__(self, key_, value_)
        self._check_shapes()
        object.__setattr__(self, "norms", None if norms is None else _norms(norms, self.d))

    @property
    def d(self) -> int:
        """Coordinates of a token."""
        return int(self.query[0].shape[1])

    @property
    def inputs(self) -> int:
        """Numbers that the block takes and gives: tokens d."""
        return self.tokens * self.d

    def _check_shapes(self) -> None:
        inner, d = self.query[0].shape
        if inner % self.heads:
            raise InputError(f"`query` has {inner} rows, which {self.heads} heads cannot share evenly; mend `heads`")
        values = self.value[0].shape[0]
        if values % self.heads:
            raise InputError(f"`value` has {values} rows, which {self.heads} heads cannot share evenly; mend `heads`")
        expected = {"key": (inner, d), "value": (values, d), "out": (d, values)}
        if self.up is not None:
            expected |= {"up": (self.up[0].shape[0], d), "down": (d, self.up[0].shape[0])}
        for name, shape in expected.items():
            got = getattr(self, name)[0].shape
            if got != shape:
                raise InputError(
                    f"`{name}[0]` has shape {got}; with `query[0]` of shape {(inner, d)} it must be {shape}"
                )


def _affine_map(pair: Sequence[ArrayLike | None], name: str) -> tuple[Array, Array]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise InputError(f"`{name}` is {shortened(pair)}; it must be (W, bias), bias None for none")
    W = read_only_array(pair[0], f"{name}[0]", 2)
    if 0 in W.shape:
        raise InputError(f"`{name}[0]` has shape {W.shape}; it needs at least one row and one column")
    bias = read_only_array(np.zeros(len(W)) if pair[1] is None else pair[1], f"{name}[1]", 1)
    if bias.shape != (len(W),):
        raise InputError(
            f"`{name}[1]` has shape {bias.shape}; `{name}[0]` has {len(W)} rows, so it must be ({len(W)},)"
        )
    return W, bias


def _norms(norms: Sequence[tuple[ArrayLike, ArrayLike, float]], d: int) -> tuple[Norm, Norm]:
    if len(norms) != 2 or any(len(entry) != 3 for entry in norms):
        raise InputError("`norms` must hold two (gain, bias, eps): one for the attention and one for the MLP")
    out = []
    for i, (gain, bias, eps) in enumerate(norms):
        vectors = [read_only_array(value, f"norms[{i}][{k}]", 1) for k, value in enumerate((gain, bias))]
        for k, vector in enumerate(vectors):
            if vector.shape != (d,):
                raise InputError(
                    f"`norms[{i}][{k}]` has shape {vector.shape}; a token has d = {d}, so it must be ({d},)"
                )
        number = finite_number(eps, f"norms[{i}][2]")
        if number <= 0:
            raise InputError(
                f"`norms[{i}][2]` is {number!r}; eps must be positive, or a constant token divides by zero"
            )
        out.append(Norm(vectors[0], vectors[1], number))
    return out[0], out[1]


def build_block(program: Program, x: Affine, block: TransformerBlock, place: str = "") -> Affine:
    """The block's outputs, units appended to the program as they are needed."""
    d = block.d
    state = [x[i * d : (i + 1) * d] for i in range(block.tokens)]
    state = _residual(program, state, block, 0, f"{place}attention")
    if block.up is not None:
        state = _residual(program, state, block, 1, f"{place}MLP")
    return Affine.stacked(state)


def _residual(program: Program, x: list[Affine], block: TransformerBlock, half: int, place: str) -> list[Affine]:
    """x + g(norm x), norm(x + g(x)) or x + g(x), g the attention (half 0) or the MLP (half 1)."""
    inner = _attention if half == 0 else _mlp
    norm = None if block.norms is None else block.norms[half]

    def normed(tokens: list[Affine]) -> list[Affine]:
        if norm is None:
            return tokens
        where = f"{place} norm"
        return [program.layer_norm(t, norm.gain, norm.bias, norm.eps, f"{where}[{i}]") for i, t in enumerate(tokens)]

    if block.pre_norm:
        return [a + b for a, b in zip(x, inner(program, normed(x), block, place), strict=True)]
    return normed([a + b for a, b in zip(x, inner(program, x, block, place), strict=True)])


def _attention(program: Program, x: list[Affine], block: TransformerBlock, place: str) -> list[Affine]:
    """sum over heads of softmax(q k^T / sqrt(dh)) v, through `out`, for each token."""
    q, k, v = ([t.mapped(*pair) for t in x] for pair in (block.query, block.key, block.value))
    dh, dv = len(q[0]) // block.heads, len(v[0]) // block.heads
    W, bias = block.out
    results = []
    for i in range(block.tokens):
        seen = range(i + 1 if block.causal else block.tokens)
        parts = []
        for head in range(block.heads):
            of_head = slice(head * dh, (head + 1) * dh)
            where = f"{place}[token {i}, head {head}]"
            scores = [_dot(program, q[i][of_head], k[j][of_head], f"{where} score") for j in seen]
            shares = program.softmax(
                Affine.stacked(scores).scaled(1 / math.sqrt(dh)), f"{where} softmax", block.softmax
            )
            mixed = program.constant(np.zeros(dv))
            for j in seen:
                values = v[j][head * dv : (head + 1) * dv]
                mixed = mixed + _times(program, shares[j : j + 1], values, f"{where} mix")
            parts.append(mixed)
        results.append(Affine.stacked(parts).mapped(W, bias))
    return results


def _dot(program: Program, a: Affine, b: Affine, place: str) -> Affine:
    """<a, b>; the squares of a and b serve every pair of tokens."""
    return program.shared_product(a, b, place).mapped(np.ones((1, len(a))))


def _times(program: Program, share: Affine, values: Affine, place: str) -> Affine:
    """share times each of values; no unit where the share is a constant (a token that sees itself alone)."""
    if not share.rows.any():
        return values.scaled(share.constants[0])
    return program.shared_product(share[[0] * len(values)], values, place)


def _mlp(program: Program, x: list[Affine], block: TransformerBlock, place: str) -> list[Affine]:
    """W2 psi(W1 x + b1) + b2 for each token."""
    assert block.up is not None
    assert block.down is not None
    hidden = [program.apply(block.psi, t.mapped(*block.up), f"{place}[token {i}]") for i, t in enumerate(x)]
    return [h.mapped(*block.down) for h in hidden]
