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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.activations import Activation, compiler_of
from elbotree.runtime.characteristic import LinearLaw
from elbotree.runtime.errors import ElbotreeError, ExecutorError
from elbotree.runtime.fourier import Series
from elbotree.runtime.frames import Axis
from elbotree.runtime.pair_lattices import BLaw
from elbotree.runtime.pair_sets import LatticeSet, Need, Sum, lattices_of, made_for
from elbotree.runtime.psi_transform import PsiTransform

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
Pair = tuple[int, int]  # the numbers of two axes

KEPT_BYTES = 1 << 30  # lattices are kept for the next expectation on the same pair up to this much memory a process


# ------------------------------------------------------------------ what is asked


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
        self._lattices: dict[Pair, _Place] = {}
        self._sets: dict[int, tuple[int, int]] = {}  # by id: how many pairs of a set are kept, and its bytes
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory that the lattices take."""
        return self._bytes

    def work(self, block: Block, most: int = KEPT_BYTES) -> Answer:
        """All that the block asks; afterwards its lattices are kept where they fit into `most` bytes."""
        law = self.shared
        found = _Found(block, len(law.costs) + len(law.w) + 2)
        needs = {pair: needs for pair, needs, _ in block.pairs}
        asks = [_Ask(pair, place, asked) for pair, _, asks in block.pairs for place, asked in asks]
        known = [pair for pair, of in needs.items() if of]
        held = self._taken(known, needs)
        held |= self._made(block, [pair for pair in known if pair not in held], needs)
        unserved = found.fill([ask for ask in asks if needs[ask.pair]], held)
        # where a lattice leaves out too much, or there is none, it is made anew, also for what is asked now
        growing = sorted([*unserved, *(ask for ask in asks if not needs[ask.pair])], key=lambda ask: ask.place)
        if growing:
            for ask in growing:
                needs[ask.pair] = (*needs[ask.pair], ask.asked.need)
            held |= self._made(block, list(dict.fromkeys(ask.pair for ask in growing)), needs)
            found.fill(growing, held, whatever=True)
        if not block.once:
            self._keep(held, most)
        grew = np.zeros(block.asked, dtype=bool)
        grew[[ask.place for ask in growing]] = True
        return Answer(found.values, found.errors, grew, law.with_F(found.combined()))

    def _made(self, block: Block, pairs: Sequence[Pair], needs: Mapping[Pair, Sequence[Need]]) -> dict[Pair, _Place]:
        """Lattices of these pairs, made together."""
        if not pairs:
            return {}
        made = lattices_of(self.shared, [self._axes_of(block, p) for p in pairs], [needs[p] for p in pairs])
        return {pair: _Place(len(needs[pair]), made, at) for at, pair in enumerate(pairs)}

    def _axes_of(self, block: Block, pair: Pair) -> tuple[Axis, Axis]:
        a, b = (self._axes.setdefault(number, block.axes[number]) for number in pair)
        return a, b

    def forecast(self, block: Block, vectors: bool) -> tuple[float, float]:
        """Seconds on one core and bytes, on average, of pairs that were not asked for before."""
        seconds = memory = 0.0
        for pair, _, asks in block.pairs:
            lattice = made_for(self.shared, self._axes_of(block, pair), (asks[0][1].need,))
            seconds += lattice.seconds() / len(block.pairs)
            memory += lattice.memory(vectors) / len(block.pairs)
        return seconds, memory

    def _taken(self, pairs: Sequence[Pair], needs: Mapping[Pair, Sequence[Need]]) -> dict[Pair, _Place]:
        """The lattices of these pairs that are kept, those left out that were made for less than is needed."""
        with self._lock:
            found = {pair: self._lattices.pop(pair) for pair in pairs if pair in self._lattices}
            for place in found.values():
                count, size = self._sets[id(place.set)]
                self._sets[id(place.set)] = count - 1, size
                if count == 1:
                    del self._sets[id(place.set)]
                    self._bytes -= size
        return {pair: place for pair, place in found.items() if place.needs == len(needs[pair])}

    def _keep(self, held: Mapping[Pair, _Place], most: int) -> None:
        """The newest go first where memory is short, since who goes through all pairs again begins with the oldest."""
        by_set: dict[int, list[Pair]] = {}
        for pair, place in held.items():
            by_set.setdefault(id(place.set), []).append(pair)
        with self._lock:
            for key, pairs in by_set.items():
                count, known = self._sets.get(key, (0, 0))
                size = held[pairs[0]].set.bytes
                if self._bytes - known + size > most:
                    continue
                self._bytes += size - known
                self._sets[key] = count + len(pairs), size
                self._lattices.update((pair, held[pair]) for pair in pairs)


class _Ask(NamedTuple):
    """What is asked of a pair, and where its answer goes."""

    pair: Pair
    place: int
    asked: Asked


class _Place(NamedTuple):
    """The lattice of a pair: with how many needs it was made, and where it is."""

    needs: int
    set: LatticeSet
    at: int


class _Found:
    """What a block's lattices gave, in the order of the block whatever the order in which it was found.

    values, errors  (asked,), as in `Answer`
    parts           (asked, size) of those that ask for F, `BLaw.with_F`; 0 for the others
    """

    def __init__(self, block: Block, size: int) -> None:
        self._block, self._ahead = block, block.ahead
        self.values, self.errors = np.zeros(block.asked), np.zeros(block.asked)
        self.parts = np.zeros((block.asked if block.rows else 0, size))

    def fill(self, asks: Sequence[_Ask], held: Mapping[Pair, _Place], whatever: bool = False) -> list[_Ask]:
        """Answer those whose lattices leave out no more than is allowed, or `whatever` they leave out; the others are returned."""
        by_set: dict[int, list[_Ask]] = {}
        for ask in asks:
            by_set.setdefault(id(held[ask.pair].set), []).append(ask)
        others: list[_Ask] = []
        for of_set in by_set.values():
            lattices = held[of_set[0].pair].set
            sums = [Sum(held[ask.pair].at, ask.asked.s, ask.asked.r) for ask in of_set]
            served = [True] * len(sums)
            if not whatever:
                found = zip(of_set, lattices.errors(sums), strict=True)
                served = [error <= ask.asked.allowed for ask, error in found]
                others += [ask for ask, good in zip(of_set, served, strict=True) if not good]
            for with_F in (False, True):
                which = [i for i, ask in enumerate(of_set) if served[i] and (ask.asked.row is not None) == with_F]
                if not which:
                    continue
                places, these = [of_set[i].place for i in which], [sums[i] for i in which]
                if with_F:
                    self.parts[places], self.errors[places] = lattices.parts(these)
                else:
                    self.values[places], self.errors[places] = lattices.values(these, self._ahead)
        return others

    def combined(self) -> Array:
        """For each row of the block, the weighted sum of the parts that belong to it, (rows, size)."""
        weights = np.zeros((self._block.rows, len(self.parts)))
        for _, _, asks in self._block.pairs:
            for place, asked in asks:
                if asked.row is not None:
                    weights[asked.row, place] = asked.weight
        return weights @ self.parts
