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
    assert (steps[0].rule, steps[0].arrow) == ("product and chain rule", gr.by_encoder_matrix.__doc__)
    assert steps[0].before == gr.loss_from(derive(), "L", ("T1",))
    assert "sift" in [step.rule for step in steps]


@pytest.mark.parametrize("name", list(BY_HAND))
def test_steps_link_up_and_end_at_the_node(name: str) -> None:
    node = derive().gradient[name]
    for one, following in zip(node.steps, node.steps[1:], strict=False):
        assert following.before == one.after != following.after
    assert node.steps[-1].after == node.expression


def test_laws_and_costs_of_derivatives() -> None:
    gradient = derive().gradient
    N, t, m1, m2 = nt.modes, nt.t, nt.m1, nt.m2
    C, mu = gradient["dL/dC"], gradient["dL/dmu2"]
    assert (C.law.dimension, C.law.grid_dimension) == (2 * t + 1, 2 * t + 2)  # f_i is one coordinate more on the grid
    assert C.cost == 3 * m1 * m2 * N ** (t + 1) + m1 * m2**2 * N ** (2 * t + 1)
    assert mu.cost == m1 * N + m1 * m2 * N ** (t + 1)  # E f asks for the law of b
    assert gradient["dL/dsigma2"].cost == gradient["dL/dsigma2"].law.dimension == 0


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
    assert [item.name for item in gr.minimisers(tree)] == [
        "B2*", "sigma2*^2", "sigma2*^2 at B2*", "mu2*", "P2j*", "normal mean*", "normal variance*", "exponential scale*",
    ]  # fmt: skip


def test_best_parameters_of_priors_match_moments() -> None:
    mean, variance = (item.solution for item in gr.best_prior_of("normal"))
    assert mean == E(s(j))
    assert sympy.expand(variance - (E(V(j)) + E(s(j) ** 2) - E(s(j)) ** 2)) == 0
    (scale,) = gr.best_prior_of("exponential")
    assert scale.solution == E(s(j))
    with pytest.raises(RuleError, match=r"E\[log\(beta\)\] is no moment that s_j and V_j give"):
        gr.best_prior_of("gamma")  # its equations have no closed form either


def test_best_parameters_of_priors_are_minima_of_the_families_divergence() -> None:
    """Against K of the normal family, which `families` knows in closed form: two values of c, by finite differences."""
    from elbotree.derivation.families import PRIOR_PARAMETERS, C, get_family

    family = get_family("normal")
    (closed,) = [form.closed for form in family.divergences if form.prior == "normal"]
    mean, std = PRIOR_PARAMETERS["normal"]
    points, own = (-0.4, 1.7), 0.8
    loss = sum(closed.subs({C[0]: point, family.parameters[0]: own}) for point in points) / 2
    first, second = sum(points) / 2, sum(point**2 for point in points) / 2
    best = {mean: first, std: (own**2 + second - first**2) ** 0.5}
    for symbol in (mean, std):
        assert abs(float(sympy.diff(loss, symbol).subs(best))) < 1e-12


def test_the_quadratic_from_its_gradient() -> None:
    total = gr.from_its_gradient(derive())
    trace = sympy.Trace
    assert total == nt.NodeValue("T1") - 2 * trace(gr.B.T * gr.M) + trace(gr.B.T * gr.B * (gr.G + gr.D))


def test_the_quadratic_is_refused_where_something_is_left_at_zero(monkeypatch) -> None:
    real = gr.loss_from
    monkeypatch.setattr(gr, "loss_from", lambda tree, name, stop: real(tree, name, stop) + nt.sigma2)
    with pytest.raises(RuleError, match=r"rule from_its_gradient expects S1 \+ S2 to be T1 where B2 = 0"):
        gr.from_its_gradient(derive())


def test_profile_loss() -> None:
    R1, S1, S2 = (nt.NodeValue(name) for name in ("R1", "S1", "S2"))
    expected = R1 + n2 / 2 * sympy.log(2 * sympy.pi * (S1 + S2) / n2) + n2 / 2
    numbers = {R1: 0.7, S1: 1.3, S2: 2.9, n2: 4}
    assert float((gr.profile_loss(derive()).expression - expected).subs(numbers)) == pytest.approx(0, abs=1e-14)
