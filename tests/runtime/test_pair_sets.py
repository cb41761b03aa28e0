"""Lattices of many pairs together against one lattice each, and what a workbench makes, keeps and makes anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import elbotree as et
from elbotree.runtime import pair_lattices
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.fourier import Period, Series
from elbotree.runtime.frames import Axis, Frame
from elbotree.runtime.output_law import OutputLaw
from elbotree.runtime.pair_blocks import Asked, Block, Workbench
from elbotree.runtime.pair_lattices import BLaw, PairLattice
from elbotree.runtime.pair_sets import Need, OneByOne, Sum, Together, lattices_of
from elbotree.runtime.priors import Bernoulli, Prior
from tests.runtime.sources import MIXED, SPARSE

CASES = [(SPARSE, "relu"), (MIXED, "relu"), (MIXED, "hardtanh")]
PAIRS = ((0, 1), (2, 0), (1, 2))  # axis 0 is sheared


def output(priors: tuple[Prior, ...], psi: str) -> OutputLaw:
    rng = np.random.default_rng(3)
    n = len(priors)
    B = np.eye(n) + 0.15 * rng.standard_normal((n, n))
    u, w = rng.standard_normal(n) / np.sqrt(n), rng.standard_normal(n) / np.sqrt(n)
    return OutputLaw(et.Layer(np.eye(n), w, u, psi), et.FeatureModel(B, list(priors), 0.15), 1e-8)


def shared(law: OutputLaw, compiled: bool) -> BLaw:
    return BLaw(law.lattice_law, law.transform, law.u, law.w, compiled)


def axes(law: OutputLaw) -> list[Axis]:
    rng = np.random.default_rng(6)
    n = len(law.w)
    found = []
    for j in range(3):
        c = law.coordinate(6.0 * np.eye(n)[j] + 0.3 * rng.standard_normal(n), 0.3)
        found.append(Axis(c, Period(*c.ranges(np.log(1e-10)).first, 0.0)))
    return found


def series(P: int, seed: int) -> Series:
    """Coefficients of a real function that fall off."""
    rng = np.random.default_rng(seed)
    s = np.exp(-0.3 * np.arange(P + 1)) * (rng.standard_normal(P + 1) + 1j * rng.standard_normal(P + 1))
    s[0] = s[0].real
    return Series(np.append(s[:0:-1].conj(), s), 0.0, 0.0, 1.0)


def product(s: Series, r: Series, P: int, Q: int) -> np.ndarray:
    """Of each (n, -n) one, from the definition: twice the coefficient where the other is left out."""
    out = np.zeros((2 * P + 1, Q + 1), dtype=complex)
    for p in range(-s.P, s.P + 1):
        for q in range(r.P + 1):
            if q > 0 or p >= 0:
                both = 1.0 if p == q == 0 else 2.0
                out[p + P, q] = both * s.coefficients[p + s.P] * r.coefficients[q + r.P]
    return out


NEEDS = [
    [Need(series(9, 1), series(12, 2), 1e-7)],
    [Need(series(7, 3), series(7, 4), 1e-7), Need(series(5, 5), series(9, 6), 1e-6)],
    [Need(series(14, 7), series(3, 8), 1e-5)],
]


def sums() -> list[Sum]:
    """Each pair's first need, a sum of fewer modes, and one of the second pair again."""
    first = [Sum(n, of[0].s, of[0].r) for n, of in enumerate(NEEDS)]
    fewer = [Sum(n, series(3, 10 + n), series(2, 20 + n)) for n in range(3)]
    return [*first, *fewer, Sum(1, NEEDS[1][1].s, NEEDS[1][1].r)]


@pytest.mark.parametrize(("priors", "psi"), CASES)
def test_many_pairs_together_are_those_of_one_lattice_each(priors: tuple[Prior, ...], psi: str) -> None:
    law = output(priors, psi)
    of = axes(law)
    met = [(of[a], of[b]) for a, b in PAIRS]
    together = lattices_of(shared(law, True), met, NEEDS)
    assert isinstance(together, Together)
    values, errors = together.values(sums(), False)
    with_F = shared(law, True).with_F(together.parts(sums())[0])
    np.testing.assert_array_equal(with_F[:, -1], values)
    plain = shared(law, False)
    for at, one in enumerate(sums()):
        needs = NEEDS[one.pair]
        P, Q = max(need.s.P for need in needs), max(need.r.P for need in needs)
        weights = np.maximum.reduce([np.abs(product(need.s, need.r, P, Q)) for need in needs])
        alone = PairLattice(plain, *met[one.pair], weights, min(need.tol for need in needs))
        coefficients = product(one.s, one.r, P, Q)
        assert values[at] == pytest.approx(alone.value(coefficients), abs=1e-12)
        assert errors[at] == pytest.approx(alone.error(coefficients), rel=1e-9)
        np.testing.assert_allclose(with_F[at, :-1], alone.vector(coefficients), atol=1e-12)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_sum_of_more_modes_than_a_lattice_has_has_no_error_bound(compiled: bool) -> None:
    law = output(SPARSE, "relu")
    of = axes(law)
    made = lattices_of(shared(law, compiled), [(of[0], of[1])], [NEEDS[0]])
    asked = [Sum(0, series(P, 1), series(Q, 2)) for P, Q in ((9, 12), (10, 12), (9, 13))]
    np.testing.assert_array_equal(np.isinf(made.errors(asked)), [False, True, True])


@pytest.mark.parametrize("compiled", [True, False])
def test_a_sum_of_too_many_points_is_refused_among_others(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    law = output(SPARSE, "relu")
    of = axes(law)
    monkeypatch.setattr(pair_lattices, "MAX_POINTS", 1e3)
    with pytest.raises(UnsupportedError, match="lattice points for"):
        lattices_of(shared(law, compiled), [(of[a], of[b]) for a, b in PAIRS], NEEDS)


@pytest.mark.parametrize("compiled", [True, False])
def test_pairs_sheared_further_than_there_are_frequencies_are_made_without(compiled: bool) -> None:
    """Rows along single features shear both axes: 30 and 25 modes move the center of b by 44 of its 33 frequencies, and what was
    left out was 31 times tol; few modes stay as they are."""
    u = np.array([1.0, 0.8, 0.3, 0.3, 0.3])
    law = OutputLaw(
        et.Layer(np.eye(5), [0.1] * 5, u, "relu"), et.FeatureModel(np.eye(5), [Bernoulli(0.3)] * 5, 0.2), 1e-6
    )
    of = []
    for j in (0, 1):
        c = law.coordinate(8.0 * np.eye(5)[j], 0.3)
        of.append(Axis(c, Period(*c.ranges(np.log(1e-8)).first, 0.0)))
    many, few = Need(series(30, 1), series(25, 2), 1e-7), Need(series(5, 3), series(4, 4), 1e-7)
    common = shared(law, compiled)
    assert all(common.side(axis).shift > 0.7 for axis in of)
    made = lattices_of(common, [(of[0], of[1]), (of[0], of[1])], [[many], [few]])
    asked = [Sum(0, many.s, many.r), Sum(1, few.s, few.r)]
    values, errors = made.values(asked, False)
    assert np.all(errors <= 1e-7)
    for value, error, need in zip(values, errors, (many, few), strict=True):
        P, Q = need.s.P, need.r.P
        modes = np.array([(p, q) for p in range(-P, P + 1) for q in range(Q + 1) if q > 0 or p >= 0])
        frame = Frame(law.lattice_law, law.transform, law.u, law.w, of, modes)
        exact = product(need.s, need.r, P, Q)[modes[:, 0] + P, modes[:, 1]] @ frame.X
        assert abs(value - exact.real) <= error


def test_a_smooth_psi_is_walked_pair_by_pair() -> None:
    law = output(SPARSE, "tanh")
    of = axes(law)
    assert isinstance(lattices_of(shared(law, True), [(of[0], of[1])], [NEEDS[0]]), OneByOne)


# ---------------------------------------------------------------------------------------------- a workbench


def block(
    law: OutputLaw, needs: Sequence[tuple[Need, ...]], asks: Sequence[Sequence[Asked]], once: bool = False
) -> Block:
    """The three pairs, with what their lattices were made for and what is asked of each now."""
    place = iter(range(100))
    pairs = tuple(
        (pair, tuple(of), tuple((next(place), asked) for asked in these))
        for pair, of, these in zip(PAIRS, needs, asks, strict=True)
    )
    return Block(dict(enumerate(axes(law))), pairs, sum(map(len, asks)), 2, False, once)


def asked(need: Need, allowed: float, row: int | None = None) -> Asked:
    return Asked(need.s, need.r, allowed, need, row, 1.5)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_lattice_that_leaves_out_too_much_is_made_anew_for_both(compiled: bool) -> None:
    """The second block asks pair 0 for what it has, pair 1 for more modes, and pair 2 to a tighter tolerance."""
    law = output(SPARSE, "relu")
    bench = Workbench(shared(law, compiled))
    first = [need[0] for need in NEEDS]
    bench.work(block(law, [()] * 3, [[asked(need, need.tol)] for need in first]))
    kept = bench.bytes
    assert kept > 0
    more = Need(series(11, 30), series(8, 31), 1e-7)
    sharper = Need(first[2].s, first[2].r, 1e-9)
    asks = [[asked(first[0], 1e-7, 0)], [asked(more, 1e-7, 1), asked(first[1], 1e-7, 0)], [asked(sharper, 1e-9, 1)]]
    second = block(law, [(need,) for need in first], asks)
    answer = bench.work(second)
    np.testing.assert_array_equal(answer.grew, [False, True, False, True])
    assert np.all(answer.errors <= [1e-7, 1e-7, 1e-7, 1e-9])
    # what comes out is what one lattice each gives, whoever made what before
    expected = np.zeros((2, len(law.w) + 1))
    of, plain = axes(law), shared(law, False)
    for pair, needs, one, row in (
        (0, [first[0]], first[0], 0),
        (1, [first[1], more], more, 1),
        (1, [first[1]], first[1], 0),
        (2, [first[2], sharper], sharper, 1),
    ):
        alone = OneByOne(plain, [(of[PAIRS[pair][0]], of[PAIRS[pair][1]])], [needs])
        expected[row] += 1.5 * plain.with_F(alone.parts([Sum(0, one.s, one.r)])[0])[0]
    np.testing.assert_allclose(answer.rows, expected, atol=1e-11)
    np.testing.assert_array_equal(Workbench(shared(law, compiled)).work(second).rows, answer.rows)


def test_memory_is_counted_while_lattices_come_and_go() -> None:
    law = output(SPARSE, "relu")
    bench = Workbench(shared(law, True))
    asks = [[asked(need[0], need[0].tol)] for need in NEEDS]
    bench.work(block(law, [()] * 3, asks))
    kept = bench.bytes
    needs = [(need[0],) for need in NEEDS]
    for _ in range(3):
        bench.work(block(law, needs, asks))
        assert bench.bytes == kept
    bench.work(block(law, needs, asks, once=True))  # nothing is asked of them again
    assert bench.bytes == 0
