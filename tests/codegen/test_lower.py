"""Lowering: which engine call each shape of expression becomes, whatever its node is called; and what has no call."""

from __future__ import annotations

import pytest
import sympy

from elbotree.codegen.lower import LoweringError, lower
from elbotree.derivation import derive
from elbotree.derivation import notation as nt
from elbotree.derivation.notation import b, f, i, j, k, mu2, n2, sigma2, w, y

s, V, K, psi = nt.Mean, nt.Spread, nt.Divergence, nt.Psi


def E(inside):
    return nt.Expectation(inside, nt.X1)


def only(expression):
    (call,) = lower("X", expression).calls
    return call


def test_norm() -> None:
    call = only(3 * E(nt.NormSquared(y - mu2)))
    assert (call.norm, call.weight, call.of_b, call.features) == ((y, mu2), 3, None, ())


def test_function_of_b() -> None:
    call = only(sigma2 * E(psi(b) ** 2 * b))
    assert (call.of_b, call.weight, call.along) == (psi(b) ** 2 * b, sigma2, None)


def test_function_of_b_along_a_direction() -> None:
    call = only(E(nt.Inner(y - mu2, w) * psi(b)))
    assert (call.of_b, call.along) == (psi(b), (y, mu2, w))


def test_one_feature_with_weight_from_inside_and_outside_the_sum() -> None:
    call = only(-2 * nt.sum_over(nt.Gram(j, j) * E(nt.Inner(f, nt.Column(j)) * s(j)), j))
    assert call.weight == -2 * nt.Gram(j, j)
    assert call.bound == (j,)
    assert call.features == (s(j),)
    assert call.along == (f, 0, nt.Column(j))


def test_two_features_free_before_bound() -> None:
    slope = nt.Slope(s(k), nt.r)
    call = only(nt.sum_over(nt.Gram(j, k) * E(slope * s(j) * nt.Component(f, i)), j))
    assert call.features == (slope, s(j))
    assert call.indices == (k, j)
    assert call.component == (0, i)


def test_constants_are_kept_apart() -> None:
    plan = lower("X", n2 * sigma2 + E(psi(b)))
    assert plan.constant == n2 * sigma2
    assert len(plan.calls) == 1
    assert "X = n2*sigma2" in str(plan)


def test_the_trees_leaves_and_gradient_all_lower() -> None:
    tree = derive()
    counts = {name: len(lower(name, tree[name].expression).calls) for name in tree.leaves}
    assert counts == {"R1": 1, "R2": 0, "S1": 1, "T2": 1, "T3": 1, "U1": 1, "U2": 1, "U3": 1}
    counts = {node.name: len(lower(node.name, node.expression).calls) for node in tree.gradient}
    assert list(counts.values()) == [3, 2, 0, 4, 4, 4, 1]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (E(nt.NormSquared(f - mu2)), "must be opened into y and psi"),
        (E(psi(b) * s(j)), "mixes"),
        (E(s(i) * s(j) * s(k)), "couples more than two features"),
        (E(s(j) * V(j)), "one feature with itself"),
        (E(s(j)) * E(s(k)), "a product of expectations has no call"),
        (E(nt.Inner(y, w) * s(j)), "pairs <y, a> with c"),
        (E(nt.Inner(f, w) * psi(b)), "pairs <y, a> with c, or <f, a> with b"),
        (E(nt.Component(y, i) * s(j)), "only components of f have a call"),
        (E(nt.Component(f, i) * psi(b)), "couples a component of f with b"),
        (E(nt.Inner(f, y) * s(j)), "expected an inner product with a fixed direction"),
        (E(nt.NormSquared(2 * y)), "expected f or y minus a fixed centre"),
        (E(sympy.sin(s(j))), "no call takes the factor sin"),
        (nt.Expectation(nt.Latent(j), nt.Z2), "expected a sum or an expectation over x1"),
    ],
)
def test_what_has_no_call_is_refused(expression, reason: str) -> None:
    with pytest.raises(LoweringError, match=reason):
        lower("X", expression)


def test_a_constant_and_a_linear_function_of_b_are_functions_of_b() -> None:
    (call,) = lower("X", 2 * E(3 * nt.Inner(y - mu2, w))).calls
    assert (call.of_b, call.along) == (3, (y, mu2, w))
    (call,) = lower("X", E((2 * b + 1) ** 2)).calls
    assert call.of_b == (2 * b + 1) ** 2
    (call,) = lower("X", E(nt.Inner(y - mu2, w))).calls
    assert call.of_b == 1
