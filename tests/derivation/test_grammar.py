"""The psi grammar: what it builds, what it refuses and how it says so. Values are checked against Python's math."""

from __future__ import annotations

import math

import pytest
import sympy as sp

from elbotree.derivation.grammar import MAX_DEPTH, MAX_LENGTH, B, parse_psi
from elbotree.derivation.special import elementary
from elbotree.runtime.errors import InputError


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("2*b + 1", lambda b: 2 * b + 1),
        ("-b**2", lambda b: -(b * b)),
        ("2**3**2 - b", lambda b: 512 - b),
        ("(1 - b)/(2 + b*b)", lambda b: (1 - b) / (2 + b * b)),
        ("1e-3*b - .5", lambda b: 1e-3 * b - 0.5),
        ("e**(2*b) + pi", lambda b: math.exp(2 * b) + math.pi),
        ("max(0, b, 3) - min(b, 2)", lambda b: max(0, b, 3) - min(b, 2)),
        (
            "relu(b - 1) + leaky_relu(b) + leaky_relu(b, 0.2)",
            lambda b: max(b - 1, 0) + (max(b, 0) * 2 + min(b, 0) * 0.21),
        ),
        ("elu(b) - elu(b, 2)", lambda b: 0.0 if b > 0 else -math.expm1(b)),
        ("softplus(b) * sigmoid(b)", lambda b: math.log1p(math.exp(b)) / (1 + math.exp(-b))),
        ("gelu(b)", lambda b: b * 0.5 * (1 + math.erf(b / math.sqrt(2)))),
        ("silu(b) + tanh(b)", lambda b: b / (1 + math.exp(-b)) + math.tanh(b)),
        ("abs(b)*sign(b) + heaviside(b)", lambda b: b + (b > 0)),
        (
            "sqrt(1 + b**2) + log(2 + sin(b)) - cos(b)",
            lambda b: math.hypot(1, b) + math.log(2 + math.sin(b)) - math.cos(b),
        ),
        ("hardtanh(b) + hardtanh(b, 0, 6)", lambda b: min(1, max(-1, b)) + min(6, max(0, b))),
        ("square(b) + cube(b) + reciprocal(b) + erf(b)", lambda b: b**2 + b**3 + 1 / b + math.erf(b)),
        ("where(b < 1, b, 2 - b)", lambda b: b if b < 1 else 2 - b),
        ("where(b >= -1, where(b > 1, 1, b), -1)", lambda b: min(1, max(-1, b))),
    ],
)
def test_text_means_what_python_means_by_it(text, function):
    expression = elementary(parse_psi(text))
    for b in (-2.3, -0.7, 0.4, 1.9, 7.5):
        assert float(expression.subs(B, sp.Float(b, 30))) == pytest.approx(function(b), rel=1e-12)


def test_decimals_stay_exact():
    assert parse_psi("0.1*b") == B / 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "psi is empty"),
        ("rely(b)", r"position 1: unknown function 'rely' \(did you mean 'relu'\?\)"),
        ("1 + x", r"position 5: unknown name 'x'.*the variable is b"),
        ("sin(b", r"position 6: expected '\)', got the end"),
        ("b b", "position 3: expected an operator or the end, got 'b'"),
        ("b^2", r"position 2: '\^' is not part of the grammar; write \*\* for a power"),
        ("b; import os", "position 2: ';' is not part of the grammar"),
        ("b.real", r"position 2: '\.' is not part"),
        ("__import__('os')", 'position 12: "\'" is not part'),
        ("b < 1", "a comparison stands only as the first argument of where"),
        ("where(b, 1, 2)", r"where needs a comparison \(<, <=, >, >=\) first, got ','"),
        ("where(b == 1, 1, 2)", "holds on single points only"),
        ("relu", r"unknown name|needs its argument, as in relu\(b\)"),
        ("relu(b, b)", r"relu takes 1 argument\(s\), got 2"),
        ("b**b", "an exponent must be an integer or a fraction"),
        ("b**65", "the exponent 65 exceeds the limit of 64"),
        ("(10**64)**64", "too large to write down"),
        ("1e999*b", "the number exceeds the limit"),
        ("1/0", "position 2: division by zero"),
        ("b/(b - b)", "division by zero"),
        ("0**-1", "division by zero"),
        ("log(0)*b", "nowhere a finite real number"),
        ("sqrt(-1)*b", "an imaginary number"),
        ("b" + "+b" * MAX_LENGTH, f"more than the limit of {MAX_LENGTH}"),
        ("(" * (MAX_DEPTH + 1) + "b" + ")" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH}"),
        ("-" * (MAX_DEPTH + 1) + "b", f"nested deeper than {MAX_DEPTH}"),
    ],
)
def test_what_it_refuses_and_how_it_says_so(text, message):
    with pytest.raises(InputError, match=message):
        parse_psi(text)


def test_only_text_is_parsed():
    with pytest.raises(InputError, match="psi must be text, got int"):
        parse_psi(3)  # type: ignore[arg-type]
