"""From sympy back to the grammar's text: what is read again is what was written."""

from __future__ import annotations

import pytest
import sympy as sp

from elbotree.derivation import activations
from elbotree.derivation.activations import activation_names, register_psi
from elbotree.derivation.grammar import B, parse_psi
from elbotree.derivation.special import elementary
from elbotree.derivation.spelling import spell
from elbotree.runtime.errors import InputError

b = sp.Symbol("b")  # a user's, without assumptions
CASES = {
    2 * b - 1: "2*b - 1",
    -(b**2) / 3: "-b**2/3",
    b / (1 + sp.Abs(b)): "b/(abs(b) + 1)",
    sp.Max(0, b, 2 * b - 1): "max(0, b, 2*b - 1)",
    sp.exp(-b) - sp.exp(2): "-exp(2) + exp(-b)",
    sp.Piecewise((0, b < 0), (b**2, b <= 1), (1, True)): "where(b < 0, 0, where(b <= 1, b**2, 1))",
    sp.Piecewise((1 - b, (b > 0) & (b < 1)), (0, True)): "where(b > 0, where(b < 1, 1 - b, 0), 0)",
    sp.Piecewise((1, (b < -1) | (b > 1)), (b, True)): "where(b > 1, 1, where(b < -1, 1, b))",
    sp.sqrt(1 + b**2): "sqrt(b**2 + 1)",
    (1 + b**2) ** sp.Rational(-3, 2): "1/(b**2 + 1)**(3/2)",
    sp.Heaviside(b) * sp.sign(b - 1): "heaviside(b)*sign(b - 1)",
    sp.Float("0.25") * sp.tanh(b): "tanh(b)/4",
    sp.pi * sp.sin(b) + sp.E * sp.cos(b): None,
    sp.log(2 + sp.erf(b)) / (b - sp.Rational(7, 3)): None,
    (-b) ** 3 * (b - 1) ** 2: None,
    sp.Piecewise((sp.Max(b, 2), sp.Not(sp.And(b > 0, b < 3))), (b, True)): None,
    2**b: None,
    -2 * (b + 1) / (3 * (b**2 + 1)): None,
}


@pytest.mark.parametrize("expression", list(CASES), ids=str)
def test_text_means_the_expression(expression) -> None:
    text = spell(expression)
    if CASES[expression] is not None:
        assert text == CASES[expression]
    read = elementary(parse_psi(text))
    for x in (sp.Rational(-23, 10), sp.Rational(-3, 7), sp.Rational(2, 9), sp.Rational(17, 4)):
        assert abs(read.subs(B, x).evalf(20) - expression.subs(b, x).evalf(20)) < 1e-15


@pytest.mark.parametrize("name", activation_names())
def test_shipped_expressions_come_back(name: str) -> None:
    expression = parse_psi(activations._registry[name])
    if name == "elu":  # its e^x - 1 without cancellation has no word of its own
        with pytest.raises(InputError, match="no word"):
            spell(expression)
    else:
        assert elementary(parse_psi(spell(expression)) - expression).equals(0)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (b + sp.Symbol("x"), "unknown symbol.s. x; a psi is an expression in b alone"),
        (sp.gamma(b), r"psi has gamma\(b\), for which the grammar of psi has no word"),
        (sp.Piecewise((b, b > 0)), "no value where none of its conditions holds"),
        (sp.Piecewise((b, sp.Eq(b, 1)), (0, True)), r"the condition Eq\(b, 1\); compare with <"),
        (sp.Add(*(sp.Abs(b - k) for k in range(200))), "more than the limit of 1000"),
    ],
    ids=["symbol", "function", "no default", "equality", "long"],
)
def test_what_cannot_be_spelled_is_refused(expression, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spell(expression)


@pytest.mark.usefixtures("registries")
def test_registering_sympy_is_registering_its_text() -> None:
    psi = register_psi("soft_sign", b / (1 + sp.Abs(b)))
    assert psi.kinks == (0,)
    assert activations._registry["soft_sign"] == "b/(abs(b) + 1)"
    assert register_psi("soft_sign", "b/(abs(b) + 1)").expression == psi.expression  # the same again is no conflict
