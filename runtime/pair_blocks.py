"""Blocks of pairs of features: what is handed to a thread or to another process, and what it does with one.

A block is plain data: the axes of some features, and for each pair of them what is asked and the `Need`s that its lattice was
made for so far. The law that all pairs share travels by itself, once, and is known by its key. A `Workbench` holds the
lattices that it has made, up to a bound on memory; one that it does not hold (another process made it, or it was
forgotten) is made anew from the needs, to the same bits. So what a block gives depends on nothing but the block, and it does not
matter who takes it, or when.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.activations import Activation, compiler_of
from elbotree.runtime.characteristic import LinearLaw
from elbotree.runtime.errors import ElbotreeError, ExecutorError, UnsupportedError
from elbotree.runtime.fourier import Series
from elbotree.runtime.frames import Axis
from elbotree.runtime.pair_lattices import BLaw, PairLattice, PairSum, folded, sums_of
from elbotree.runtime.psi_transform import PsiTransform

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
Pair = tuple[int, int]  # the numbers of two axes

MAX_MODES = 8e6  # of the series of a pair; beyond it the engine says so instead of making the plan
KEPT_BYTES = 1 << 30  # lattices are kept for the next expectation on the same pair up to this much memory a process


# ------------------------------------------------------------------ what is asked


@dataclass(frozen=True)
class Need:
    """What a lattice was made for: the product of two series, with what is left out adding at most tol."""

    s: Series
    r: Series
    tol: float


@dataclass(frozen=True)
class Asked:
    """E[r_g r_h], or with `row` E[r_g r_h F], from the series s and r of the two: a lattice whose error is above `allowed` is
    made anew, also for `need`. F is added to the block's row `row`, times `weight`."""

    s: Series
    r: Series
    allowed: float
    need: Need
    row: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Block:
    """Pairs with what their lattices were made for so far, and what is asked of each: (place in the answer, what).

    axes   by number, all that the pairs name
    asked  how many there are
    rows   of sums with F
    ahead  whether lattices are walked for F at once, because that will be asked next
    once   whether nothing more will be asked of these pairs, so that their lattices need not be kept
    """

    axes: Mapping[int, Axis]
    pairs: Sequence[tuple[Pair, tuple[Need, ...], tuple[tuple[int, Asked], ...]]]
    asked: int
    rows: int
    ahead: bool
    once: bool


@dataclass(frozen=True)
class Answer:
    """What a block gave.

    values  E[r_g r_h] of each asked, 0 where F was asked
    errors  what its lattice leaves out
    grew    whether its lattice was made anew for it, so that its need joins those of the pair
    rows    sums with F, (rows, n2 + 1)
    """

    values: Array
    errors: Array
    grew: NDArray[np.bool_]
    rows: Array


# ------------------------------------------------------------------ the law that all pairs share


@dataclass(frozen=True)
class PsiData:
    """psi as text, with what it must come out as where it is compiled again."""

    text: str
    compiler: Callable[[str], Activation]  # travels by its name
    breaks: tuple[float, ...]
    pieces: tuple[tuple[float, float], ...] | None
    at: Array
    values: Array

    @staticmethod
    def of(transform: PsiTransform) -> PsiData:
        psi = transform.psi
        text, compiler = compiler_of(psi)
        at = transform.bbar + np.linspace(transform.lo, transform.hi, 33)[1:-1]
        return PsiData(text, compiler, psi.breaks, psi.pieces, at, np.array(psi.value(at), dtype=np.float64))

    def compiled(self) -> Activation:
        """The same psi in this process. Raises ExecutorError where the text means something else here."""
        try:
            psi = self.compiler(self.text)
            values = np.broadcast_to(psi.value(self.at), self.at.shape)
            same = psi.breaks == self.breaks and psi.pieces == self.pieces
            same = same and bool(np.allclose(values, self.values, rtol=1e-9, atol=1e-9 * np.abs(self.values).max()))
            reason = "it has other values or breaks there"
        except ElbotreeError as error:
            same, reason = False, str(error)
        if not same:
            raise ExecutorError(
                f"psi {self.text!r} does not mean the same in the executor's processes ({reason}); give the layer its psi as an "
                "expression in b, and the same version of elbotree to all processes"
            )
        return psi


@dataclass(frozen=True)
class LawData:
    """A `BLaw` as plain data: what it is made from."""

    mean: Array
    loadings: Array
    noise: Array
    priors: tuple[object, ...]
    u: Array
    w: Array
    psi: PsiData | None
    bbar: float
    lo: float
    hi: float
    modes: int
    tol: float
    compiled: bool

    @staticmethod
    def of(law: LinearLaw, transform: PsiTransform | None, u: Array, w: Array, compiled: bool) -> LawData:
        arrays = law.mean, law.loadings, law.noise, law.priors, u, w
        if transform is None:
            return LawData(*arrays, None, 0.0, 0.0, 0.0, 0, 0.0, compiled)
        t = transform
        return LawData(*arrays, PsiData.of(t), t.bbar, t.lo, t.hi, t.modes, t.tol, compiled)

    @cached_property
    def key(self) -> str:
        """The same for equal content, in every process."""
        found = hashlib.sha256()
        for array in (self.mean, self.loadings, self.noise, self.u, self.w):
            found.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        psi = None if self.psi is None else (self.psi.text, self.psi.breaks, self.psi.values.tobytes())
        range_ = self.bbar, self.lo, self.hi, self.modes, self.tol
        found.update(repr((self.priors, psi, range_, self.compiled)).encode())
        return found.hexdigest()

    def built(self) -> BuiltLaw:
        """The law itself, to the same bits as where the data came from."""
        law = LinearLaw(self.mean, self.loadings, self.priors, self.noise)  # type: ignore[arg-type]
        transform = None
        if self.psi is not None:
            transform = PsiTransform(self.psi.compiled(), self.bbar, self.lo, self.hi, self.modes, self.tol)
        return BuiltLaw(self, law, transform)


@dataclass(frozen=True)
class BuiltLaw:
    """A law that came as data: for single features, and for pairs, which is made when first asked for."""

    data: LawData
    linear: LinearLaw
    transform: PsiTransform | None

    @cached_property
    def pairs(self) -> BLaw:
        """What all pairs share."""
        return BLaw(self.linear, self.transform, self.data.u, self.data.w, self.data.compiled)


# ------------------------------------------------------------------ doing it


class Workbench:
    """The lattices of pairs under one law, each made when first asked for and kept while memory allows.

    Several threads may work at one, as long as no two have the same pair. Of a law that outlives it a workbench takes a copy,
    since a law remembers the axes that it has met.
    """

    def __init__(self, shared: BLaw) -> None:
        self.shared = copy.copy(shared)
        self.shared._sides = {}
        self._axes: dict[int, Axis] = {}
        self._lattices: dict[Pair, tuple[int, PairLattice]] = {}  # with how many needs each was made for
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory that the lattices take."""
        return self._bytes

    def work(self, block: Block, most: int = KEPT_BYTES) -> Answer:
        """All that the block asks; afterwards its lattices are kept where they fit into `most` bytes."""
        values, errors, grew = np.zeros(block.asked), np.zeros(block.asked), np.zeros(block.asked, dtype=bool)
        rows = np.zeros((block.rows, len(self.shared.w) + 1))
        for pair, needs, asks in self._but_once(block, values, errors):
            a, b = self._axes_of(block, pair)
            count, lattice = self._lattices.pop(pair, (0, None))
            known = 0 if lattice is None else lattice.bytes
            if count != len(needs):
                lattice = None
            if lattice is None and needs:
                lattice = made_for(self.shared, a, b, needs)
            for place, asked in asks:
                found = None if lattice is None else _served(lattice, asked)
                if lattice is None or found is None:
                    grew[place], needs = True, (*needs, asked.need)
                    lattice = made_for(self.shared, a, b, needs)
                    product = _product(asked.s, asked.r, lattice.box)
                    found = product, lattice.error(product)
                product, errors[place] = found
                lattice.make(block.ahead or asked.row is not None)
                if asked.row is None:
                    values[place] = lattice.value(product)
                else:
                    F = np.append(lattice.vector(product), lattice.value(product))
                    rows[asked.row] += asked.weight * F
            assert lattice is not None
            self._keep(pair, len(needs), lattice, known, most)
        return Answer(values, errors, grew, rows)

    def _but_once(
        self, block: Block, values: Array, errors: Array
    ) -> Sequence[tuple[Pair, tuple[Need, ...], tuple[tuple[int, Asked], ...]]]:
        """Pairs that one sum is all that is ever asked of are done in one go; the others are returned."""
        if not (block.once and self.shared.at_once):
            return block.pairs
        places, sums, others = [], [], []
        for pair, needs, asks in block.pairs:
            if needs or len(asks) > 1:
                others.append((pair, needs, asks))
                continue
            place, asked = asks[0]
            s, r = asked.need.s, asked.need.r
            places.append(place)
            sums.append(PairSum(self._axes_of(block, pair), s.coefficients, r.coefficients[r.P :], asked.need.tol))
        if sums:
            values[places], errors[places] = sums_of(self.shared, sums)
        return others

    def _axes_of(self, block: Block, pair: Pair) -> tuple[Axis, Axis]:
        a, b = (self._axes.setdefault(number, block.axes[number]) for number in pair)
        return a, b

    def forecast(self, block: Block, vectors: bool) -> tuple[float, float]:
        """Seconds on one core and bytes, on average, of pairs that were not asked for before."""
        seconds = memory = 0.0
        for pair, _, asks in block.pairs:
            a, b = self._axes_of(block, pair)
            need = asks[0][1].need
            lattice = made_for(self.shared, a, b, (need,))
            seconds += lattice.seconds() / len(block.pairs)
            memory += lattice.memory(vectors) / len(block.pairs)
        return seconds, memory

    def _keep(self, pair: Pair, count: int, lattice: PairLattice, known: int, most: int) -> None:
        """The newest go first where memory is short, since who goes through all pairs again begins with the oldest."""
        size = lattice.bytes
        with self._lock:
            self._bytes -= known
            if self._bytes + size <= most:
                self._lattices[pair] = count, lattice
                self._bytes += size


def made_for(shared: BLaw, a: Axis, b: Axis, needs: Sequence[Need]) -> PairLattice:
    """A lattice that serves all of these: a function of the needs, not of who made it before.

    Raises UnsupportedError where their series have too many modes together.
    """
    box = max(need.s.P for need in needs), max(need.r.P for need in needs)
    check_modes(box)
    weights = np.maximum.reduce([np.abs(_product(need.s, need.r, box)) for need in needs])
    return PairLattice(shared, a, b, weights, min(need.tol for need in needs))


def check_modes(box: tuple[int, int]) -> None:
    """Raises UnsupportedError where two series, cut at these modes, have too many together."""
    if (2.0 * box[0] + 1) * (box[1] + 1) > MAX_MODES:
        raise UnsupportedError(
            f"the series of a pair of encoder parameters would need {2 * box[0] + 1:,} x {box[1] + 1:,} modes: a posterior mean "
            "changes too fast on the range of its parameter; loosen tol, raise input.noise_std, or make the encoder's rows smaller"
        )


def _served(lattice: PairLattice, asked: Asked) -> tuple[ComplexArray, float] | None:
    """The coefficients on the lattice's box, and what it leaves out of their sum; None where that is too much."""
    if lattice.box[0] < asked.s.P or lattice.box[1] < asked.r.P:
        return None
    product = _product(asked.s, asked.r, lattice.box)
    error = lattice.error(product)
    return (product, error) if error <= asked.allowed else None


def _product(s: Series, r: Series, box: tuple[int, int]) -> ComplexArray:
    """The product of two series, on a box of modes with one of each (n, -n)."""
    return folded(s.grown(box[0]), r.grown(box[1])[box[1] :])
