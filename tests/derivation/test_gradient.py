"""The derived gradient against the product rule done by hand, and the closed-form minimisers."""

from __future__ import annotations

import pytest
import sympy

from elbotree.derivation import derive
from elbotree.derivation import gradient as gr
from elbotree.derivation import notation as nt
from elbotree.derivation.notation import i, j, k, mu2, n2, omega, pi_prior, r, sigma2
from elbotree.derivation.rules import RuleError

f, s, V, K = nt.f, nt.Mean, nt.Spread, nt.Divergence


def E(inside):
    return nt.Expectation(inside, nt.X1)


def B(row, column):
    return nt.Component(nt.Column(column), row)


def chain(factor, direction):
    """The three slopes together: how L moves with a coordinate of c_j, or with a parameter of the family."""
    ds, dV, dK = (nt.Slope(g(j), direction) for g in (s, V, K))
    linear = nt.Inner(f - mu2, nt.Column(j))
    pairs = nt.sum_over(nt.Gram(j, k) * E(ds * s(k) * factor), k)
    bracket = nt.Gram(j, j) * E(dV * factor) - 2 * E(linear * ds * factor) + 2 * pairs
    return E(dK * factor) + bracket / (2 * sigma2**2)


BY_HAND = {
    "dL/dB": (
        nt.sum_over(B(i, k) * E(s(j) * s(k)), k) + B(i, j) * E(V(j)) - E(nt.Component(f - mu2, i) * s(j))
    ) / sigma2**2,
    "dL/dmu2": -(E(nt.Component(f, i)) - nt.Component(mu2, i) - nt.sum_over(B(i, k) * E(s(k)), k)) / sigma2**2,
    "dL/dsigma2": n2 / sigma2 - (nt.NodeValue("S1") + nt.NodeValue("S2")) / sigma2**3,
    "dL/dC": chain(nt.Component(f, i), r),
    "dL/dbias": chain(1, r),
    "dL/domega": chain(1, omega),
    "dL/dpi": E(nt.Slope(K(j), pi_prior)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BY_HAND))
def test_derivative_is_the_one_by_hand(name: str) -> None:
    assert sympy.expand(derive().gradient[name].expression - BY_HAND[name]) == 0


def test_order_and_lookup() -> None:
    gradient = derive().gradient
    assert [node.name for node in gradient] == list(BY_HAND)
    assert derive().gradient is gradient
    with pytest.raises(KeyError, match="no gradient node 'dL/dA'; the nodes are dL/dB"):
        gradient["dL/dA"]


def test_steps_name_the_rules_used() -> None:
    steps = derive().gradient["dL/dC"].steps
    assert steps[:2] == ("product and chain rule", gr.by_encoder_matrix.__doc__)
    assert "sift" in steps


def test_a_head_without_a_derivative_rule_stops() -> None:
    with pytest.raises(RuleError, match="no derivative rule for Image"):
        gr.differentiate(nt.NormSquared(nt.Image(nt.z2)), gr.PARAMETERS[0])


def test_what_does_not_depend_has_derivative_zero() -> None:
    by = {parameter.name: parameter for parameter in gr.PARAMETERS}
    tree = derive()
    assert gr.differentiate(tree["U3"].expression, by["B"]) == 0
    assert gr.differentiate(tree["T3"].expression, by["pi"]) == 0
    assert gr.differentiate(tree["R1"].expression, by["mu2"]) == 0


def test_log_and_power() -> None:
    by = next(parameter for parameter in gr.PARAMETERS if parameter.name == "sigma2")
    assert gr.differentiate(sympy.log(3 * sigma2**2), by) == 2 / sigma2


def test_best_decoder() -> None:
    best = gr.best_decoder(derive())
    assert best.solution == gr.M * (gr.G + gr.D) ** -1
    assert dict(best.where) == {gr.M: E(nt.Component(f - mu2, i) * s(j)), gr.G: E(s(j) * s(k)), gr.D: E(V(j))}


def test_linear_system_refuses_what_is_not_linear() -> None:
    with pytest.raises(RuleError, match="rule linear_system expects terms linear in row i of B2"):
        gr.linear_system(B(i, j) * B(i, k) * E(V(j)))


def test_other_minimisers() -> None:
    tree = derive()
    S1, S2, T1 = (nt.NodeValue(name) for name in ("S1", "S2", "T1"))
    assert gr.best_noise(tree).solution == (S1 + S2) / n2
    assert sympy.expand(gr.best_noise_of_best_decoder(tree).solution - (T1 - sympy.Trace(gr.B.T * gr.M)) / n2) == 0
    expected = E(nt.Component(f, i)) - nt.sum_over(B(i, k) * E(s(k)), k)
    assert gr.best_offset(tree).solution == expected
    assert gr.best_prior().solution == nt.Expectation(nt.PosteriorFactor(j), nt.X1)
    assert [item.name for item in gr.minimisers(tree)] == ["B2*", "sigma2*^2", "sigma2*^2 at B2*", "mu2*", "P2j*"]


def test_profile_loss() -> None:
    R1, S1, S2 = (nt.NodeValue(name) for name in ("R1", "S1", "S2"))
    expected = R1 + n2 / 2 * sympy.log(2 * sympy.pi * (S1 + S2) / n2) + n2 / 2
    numbers = {R1: 0.7, S1: 1.3, S2: 2.9, n2: 4}
    assert float((gr.profile_loss(derive()) - expected).subs(numbers)) == pytest.approx(0, abs=1e-14)
