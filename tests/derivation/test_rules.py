"""Each rule's three tests: its structure, its number in an explicit world, and something that it leaves alone."""

from __future__ import annotations

import pytest
import sympy

from elbotree.derivation import notation as nt
from elbotree.derivation import rules
from elbotree.derivation.notation import i, j, k, l, m2, mu2, n2, sigma2, w, y, z2
from elbotree.derivation.rules import RuleError
from elbotree.derivation.verify import State, World, instantiate, require_zero

E, f, s, V, b = nt.Expectation, nt.f, nt.Mean, nt.Spread, nt.Column
delta = sympy.KroneckerDelta


def over(body, *indices):
    return sympy.Sum(body, *((index, 1, m2) for index in indices))


Q, P = nt.PosteriorFactor(j), nt.PriorFactor(j)
BETA_SUM, MEAN_SUM = over(nt.Latent(j) * b(j), j), over(s(j) * b(j), j)

# rule, what it rewrites, what that becomes, what it leaves alone
CASES = [
    (rules.kl_of_products, nt.KL(nt.ProductLaw(Q, j), nt.ProductLaw(P, j)), over(nt.KL(Q, P), j), nt.KL(Q, P)),
    (rules.name_divergence, nt.KL(Q, P), nt.Divergence(j), nt.KL(Q, nt.PriorFactor(k))),
    (
        rules.log_normal_density,
        sympy.log(nt.NormalDensity(f, mu2, sigma2)),
        -n2 * sympy.log(2 * sympy.pi * sigma2**2) / 2 - nt.NormSquared(f - mu2) / (2 * sigma2**2),
        sympy.log(sigma2),
    ),
    (
        rules.linearity,
        E(2 * sigma2 * s(j) + over(nt.Gram(j, k) * V(k), k) + 3, nt.X1),
        2 * sigma2 * E(s(j), nt.X1) + over(nt.Gram(j, k) * E(V(k), nt.X1), k) + 3,
        E(s(j) * V(k), nt.X1),
    ),
    (
        rules.mean_and_spread,
        E(nt.NormSquared(f - nt.Image(z2)), nt.Z2),
        E(nt.NormSquared(nt.Image(z2) - E(nt.Image(z2), nt.Z2)), nt.Z2) + nt.NormSquared(f - E(nt.Image(z2), nt.Z2)),
        E(nt.NormSquared(f - y), nt.X1),
    ),
    (rules.columns, nt.Image(z2), BETA_SUM, z2),
    (rules.name_mean, E(nt.Latent(k), nt.Z2), s(k), E(nt.Latent(k), nt.X1)),
    (
        rules.spread_of_independent_sum,
        E(nt.NormSquared(BETA_SUM - MEAN_SUM), nt.Z2),
        over(nt.NormSquared(b(j)) * V(j), j),
        E(nt.NormSquared(BETA_SUM - mu2), nt.Z2),
    ),
    (
        rules.expand_squared_norm,
        nt.NormSquared(f - mu2 - MEAN_SUM),
        nt.NormSquared(f - mu2) + 2 * nt.Inner(f - mu2, -MEAN_SUM) + nt.NormSquared(-MEAN_SUM),
        nt.NormSquared(f - mu2),
    ),
    (rules.bilinearity, nt.Inner(f, -MEAN_SUM), -over(s(j) * nt.Inner(f, b(j)), j), nt.Inner(f, w)),
    (
        rules.bilinearity,
        nt.NormSquared(-MEAN_SUM),
        over(s(j) * s(k) * nt.Inner(b(j), b(k)), j, k),
        nt.NormSquared(f - MEAN_SUM),
    ),
    (rules.bilinearity, nt.NormSquared(nt.Psi(nt.b) * w), nt.Psi(nt.b) ** 2 * nt.NormSquared(w), nt.NormSquared(w)),
    (rules.gram, nt.Inner(b(k), b(j)), nt.Gram(j, k), nt.Inner(b(j), w)),
    (rules.gram, nt.NormSquared(b(j)), nt.Gram(j, j), nt.NormSquared(w)),
    (rules.layer, f, y + w * nt.Psi(nt.b), y),
    (rules.gram_of_columns, nt.Gram(j, k), nt.Inner(b(j), b(k)), nt.Inner(b(j), w)),
    (rules.sift, over(delta(j, l) * s(j) * V(j), j), s(l) * V(l), over(s(j) * delta(k, l), j)),
    (rules.sift, over(delta(k, l) * s(j) * V(k), j, k), over(s(j) * V(l), j), over(s(j), j)),
    (rules.unit_vector, nt.Inner(f - mu2, nt.Basis(i)), nt.Component(f - mu2, i), nt.Inner(f, w)),
    (
        rules.linear_component,
        nt.Component(f - 2 * MEAN_SUM, i),
        nt.Component(f, i) - 2 * over(s(j) * nt.Component(b(j), i), j),
        nt.Component(f, i),
    ),
    (
        rules.sums_apart,
        over(s(j) * (V(j) + 1), j),
        over(s(j) * V(j), j) + over(s(j), j),
        over(s(j) * V(j), j),
    ),
    (rules.numbers_out, over(-2 * s(j), j), -2 * over(s(j), j), over(s(j), j)),
    (rules.rename_index, over(s(j), j), over(s(k), k), over(s(k), k)),
]
IDS = [f"{case[0].__name__}-{n}" for n, case in enumerate(CASES)]


@pytest.mark.parametrize(("rule", "before", "after", "alone"), CASES, ids=IDS)
def test_structure(rule, before, after, alone) -> None:
    assert rule(before) == after


@pytest.mark.parametrize(("rule", "before", "after", "alone"), CASES, ids=IDS)
def test_number(rule, before, after, alone) -> None:
    """Both sides agree in an explicit world in which nothing is known of the rules."""
    result = rule(before)
    if nt.rank(before) == 1:
        before, result = nt.Inner(before, w), nt.Inner(result, w)
    state = State(atom=1, places=(2, 1), indices=((i, 1), (j, 1), (k, 2), (l, 2)))
    difference = instantiate(before, World(), state) - instantiate(result, World(), state)
    require_zero(rule.__name__, difference)


@pytest.mark.parametrize(("rule", "before", "after", "alone"), CASES, ids=IDS)
def test_leaves_alone(rule, before, after, alone) -> None:
    with pytest.raises(RuleError, match=rf"rule {rule.__name__} expects .*it got"):
        rule(alone)


def test_a_rule_that_applies_nowhere_stops() -> None:
    with pytest.raises(RuleError, match=r"rule columns \(B2 z2 -> sum_j beta_j b_j\) applies nowhere in "):
        rules.everywhere(rules.columns, nt.NormSquared(f))


def test_wherever_leaves_what_it_does_not_fit() -> None:
    assert rules.wherever(rules.columns, nt.NormSquared(f)) == nt.NormSquared(f)


def test_every_rule_states_its_arrow_and_precondition() -> None:
    for rule in {case[0] for case in CASES}:
        assert " -> " in rules.arrow(rule)
        assert "Precondition:" in rule.__doc__
        assert rule.__name__ in rules.__doc__


def test_expectation_of_a_constant_is_the_constant() -> None:
    assert rules.linearity(E(n2 * sigma2, nt.X1)) == n2 * sigma2


def test_rank_refuses_nonsense() -> None:
    with pytest.raises(TypeError, match="adds a vector to a scalar"):
        nt.rank(f + sigma2)
    with pytest.raises(TypeError, match="multiplies two vectors"):
        nt.rank(f * w)
    with pytest.raises(TypeError, match="Inner wants vectors"):
        nt.rank(nt.Inner(f, sigma2))


def test_gram_is_symmetric_and_rebuild_is_stable() -> None:
    assert nt.Gram(k, j) == nt.Gram(j, k)
    expression = E(over(nt.Gram(j, k) * s(j) * s(k), j, k), nt.X1)
    assert nt.rebuild(expression, lambda part: part) == expression


def test_randomness() -> None:
    assert nt.is_random(s(j), nt.X1)
    assert not nt.is_random(s(j), nt.Z2)
    assert not nt.is_random(E(nt.Latent(j), nt.Z2), nt.Z2)
    assert not nt.is_random(E(s(j), nt.X1), nt.X1)
    assert not nt.is_random(nt.Gram(j, k) * sigma2, nt.X1)


def test_renaming_never_captures_a_free_index() -> None:
    with pytest.raises(RuleError, match="a sum over j alone"):
        rules.rename_index(over(nt.Gram(j, k) * s(j), j))
