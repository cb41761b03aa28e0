"""What is found about psi: breaks, poles, domain, affinity, derivative, growth, Lipschitz constant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sympy as sp

from elbotree.derivation.activations import activation_names, analyse, register_psi
from elbotree.derivation.grammar import B
from elbotree.derivation.special import elementary
from elbotree.runtime.errors import InputError, UnsupportedError

oo = math.inf


@pytest.mark.parametrize(
    ("text", "kinks", "jumps", "poles"),
    [
        ("relu", [0], [], []),
        ("tanh", [], [], []),
        ("heaviside", [], [0], []),
        ("sign", [], [0], []),
        ("hardtanh", [-1, 1], [], []),
        ("reciprocal", [], [], [0]),
        ("elu", [0], [], []),
        ("where(b < 1, b, 2 - b)", [1], [], []),
        ("where(b < 1, b, 3)", [], [1], []),
        ("where(b < 1, gelu(b), b**3)", [], [1], []),
        ("where(b < 0, sigmoid(b), 1/2)", [0], [], []),
        ("abs(relu(b) - 1)", [0, 1], [], []),
        ("relu(b + relu(b - 1) - 2)", [1.5], [], []),
        ("max(b, b**3)", [-1, 0, 1], [], []),
        ("abs(b**2 - 2)", [-math.sqrt(2), math.sqrt(2)], [], []),
        ("abs(exp(b) - 2)", [math.log(2)], [], []),
        ("abs(b**5 - b - 1)", [1.1673039782614187], [], []),
        ("min(2, max(b, 0)) + sign(b - 5)", [0, 2], [5], []),
        ("1/(b**2 - 1)", [], [], [-1, 1]),
        ("log(abs(b))", [], [], [0]),
        ("sqrt(abs(b))", [0], [], []),
        ("sin(b)/b", [0], [], []),  # a removable gap: no node may fall on it
        ("where(b > 3, 1, 0) * where(b < 3, 1, 0)", [], [], []),  # cancels: 0 on both sides
        ("tanh(1/b)", [], [0], []),  # one formula, with different limits from the two sides
        ("max(sigmoid(b), b)", [0.6590460684074066], [], []),  # equations that have no closed form
        ("abs(tanh(b) - b**3)", [-0.89339457328982847, 0, 0.89339457328982847], [], []),
        ("max(exp(b) - 2*b, 3)", [-1.3733745453519444, 1.9239387503458796], [], []),
        ("relu(log(b) - 1/b)", [1.7632228343518967], [], []),
        ("abs((b - 1)*(b - 2)*exp(b) - b**3*exp(-b))", [0.892329325149166997, 2.12217568180373898], [], []),
        ("where(where(b < 0, 1, 0) < 0.5, b, -b)", [0], [], []),
        ("abs(abs(abs(b) - 1) - 0.5)", [-1.5, -1, -0.5, 0, 0.5, 1, 1.5], [], []),
        ("heaviside(b - 1)*heaviside(b + 1) - heaviside(b**2 - 4)", [], [-2, 1, 2], []),
    ],
)
def test_breaks_come_from_the_expression(text, kinks, jumps, poles):
    psi = analyse(text)
    found = [[float(x) for x in points] for points in (psi.kinks, psi.jumps, psi.poles)]
    for got, wanted in zip(found, (kinks, jumps, poles), strict=True):
        assert got == pytest.approx(wanted, abs=1e-14)
    assert [float(x) for x in psi.breaks] == pytest.approx(sorted([*kinks, *jumps, *poles]), abs=1e-14)


def test_breaks_without_closed_form_are_roots_to_many_digits():
    import mpmath

    with mpmath.workdps(25):
        for text, equation in {
            "max(sigmoid(b), b)": lambda x: 1 / (1 + mpmath.exp(-x)) - x,
            "max(exp(b) - 2*b, 3)": lambda x: mpmath.exp(x) - 2 * x - 3,
            "relu(log(b) + b)": lambda x: mpmath.log(x) + x,
        }.items():
            for at in analyse(text).kinks:
                root = mpmath.mpf(str(at))
                assert equation(root - mpmath.mpf(10) ** -18) * equation(root + mpmath.mpf(10) ** -18) < 0, text


SIDES = [
    ("heaviside(b)*sqrt(b)", lambda b: math.sqrt(b) if b > 0 else 0.0),
    ("heaviside(b)*log(1 + b)", lambda b: math.log(1 + b) if b > 0 else 0.0),
    ("relu(b)*log(b)", lambda b: b * math.log(b) if b > 0 else 0.0),
    ("relu(b)**(1/2)", lambda b: math.sqrt(max(b, 0.0))),
    ("max(b**2 - 1, 0)**(1/3)", lambda b: max(b * b - 1, 0.0) ** (1 / 3)),
    ("heaviside(b - 1)/(b - 1/2)", lambda b: 1 / (b - 0.5) if b > 1 else 0.0),
]


@pytest.mark.parametrize(("text", "value"), SIDES, ids=[text for text, _ in SIDES])
def test_what_is_not_real_beside_a_zero_does_not_spoil_it(text, value):
    """0 times the square root of a negative number is 0 to algebra, and nan to numpy."""
    from elbotree.codegen import compile_psi

    activation = compile_psi(text)
    points = [-3.1, -0.7, 0.5, 0.8, 1.9, 4.2]
    np.testing.assert_allclose(activation(np.array(points)), [value(b) for b in points], rtol=1e-14, atol=0)
    slopes = [(value(b + 1e-6) - value(b - 1e-6)) / 2e-6 for b in points]
    np.testing.assert_allclose(activation.derivative(np.array(points)), slopes, rtol=1e-7, atol=1e-9)


def test_a_break_has_the_value_of_the_side_that_has_one():
    from elbotree.codegen import compile_psi

    assert compile_psi("relu(b)*log(b)")(np.array([0.0]))[0] == 0.0
    assert compile_psi("relu(-b)*log(-b)")(np.array([0.0]))[0] == 0.0
    assert compile_psi("heaviside(b)*sqrt(b)")(np.array([0.0]))[0] == 0.0


@pytest.mark.parametrize("text", ["relu(b)", "heaviside(b)*b**2", "abs(b)**3", "where(b > 0, sqrt(b), 0)"])
def test_what_numpy_can_compute_as_it_stands_is_left_alone(text):
    psi = analyse(text)
    assert psi.value is psi.expression


@pytest.mark.parametrize(
    ("text", "affine"),
    [
        ("identity", (1, 0)),
        ("zero", (0, 0)),
        ("2*b + 1 - b/2", (1.5, 1)),
        ("relu(b) - relu(-b)", (1, 0)),  # b, though both terms break
        ("relu", None),
        ("square", None),
        ("tanh", None),
    ],
)
def test_affine_functions_are_recognised(text, affine):
    found = analyse(text).affine
    assert (None if found is None else tuple(map(float, found))) == affine


def test_domain():
    assert tuple(map(float, analyse("log(b)").domain)) == (0, oo)
    assert tuple(map(float, analyse("sqrt(1 - b**2)").domain)) == (-1, 1)
    assert tuple(map(float, analyse("where(b > 0, log(b), 0)").domain)) == (-oo, oo)


@pytest.mark.parametrize(
    "text", [n for n in activation_names() if n not in ("heaviside", "sign")] + ["abs(relu(b) - 1)"]
)
def test_derivative_is_the_slope_between_breaks(text):
    psi = analyse(text)
    value, slope = (
        sp.lambdify(B, elementary(e), [{"Heaviside": lambda x, half: float(x > 0)}, "mpmath"])
        for e in (psi.expression, psi.derivative)
    )
    for b in (-2.3, -0.4, 0.7, 1.6):
        step = 1e-5
        assert float(slope(b)) == pytest.approx(float((value(b + step) - value(b - step)) / (2 * step)), abs=1e-8)


def test_jumps_leave_no_point_mass_in_the_derivative():
    assert analyse("heaviside").derivative == 0
    assert analyse("sign(b) + b**2").derivative == 2 * B


@pytest.mark.parametrize(
    ("text", "growth", "lipschitz"),
    [
        ("relu", (0, 1), 1),
        ("tanh", (0, 0), 1),
        ("sigmoid", (0, 0), 0.25),
        ("cube", (3, 3), oo),
        ("exp", (0, oo), oo),
        ("heaviside", (0, 0), oo),
        ("gelu", (0, 1), 1.1289041452),
        ("relu(b + relu(b - 1) - 2)", (0, 1), 2),
        ("sqrt(abs(b))", (0.5, 0.5), oo),
        ("sigmoid(20*(b - 1/7))", (0, 0), 5),
    ],
)
def test_growth_and_lipschitz_constant(text, growth, lipschitz):
    psi = analyse(text)
    assert tuple(map(float, psi.growth)) == growth
    assert float(psi.lipschitz) == pytest.approx(lipschitz, rel=1e-9)


def test_unknown_is_said_not_guessed():
    assert analyse("sin(b)/b").lipschitz is None


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("Relu", InputError, r"psi 'Relu' is not a known name \(did you mean 'relu'\?\)"),
        ("TANH(b)", InputError, r"unknown function 'TANH' \(did you mean 'tanh'\?\)"),
        ("relo", InputError, r"psi 'relo' is not a known name \(did you mean 'relu'\?\); known: relu, "),
        ("relu(sin(b))", UnsupportedError, r"sin\(b\) = 0 could not be listed"),
        ("max(silu(b), gelu(b))", UnsupportedError, "breaks are unknown"),
        ("1e300*1e300*b", InputError, "a constant beyond 1e300"),
        ("sqrt(b**2 - 1)", UnsupportedError, "not real between b = -1 and b = 1"),
        ("log(-1 - b**2)", InputError, "real nowhere"),
    ],
)
def test_what_cannot_be_analysed_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        analyse(text)


@pytest.mark.usefixtures("registries")
def test_register_psi():
    psi = register_psi("shifted_relu", "relu(b - 2)")
    assert psi.text == "shifted_relu"
    assert analyse("shifted_relu").breaks == (2,)
    assert "shifted_relu" in activation_names()
    with pytest.raises(InputError, match="name 'relu' is taken"):
        register_psi("relu", "b**2")
    with pytest.raises(InputError, match="'erf' is a function of the grammar"):
        register_psi("erf", "b**2")
    with pytest.raises(InputError, match="not an identifier"):
        register_psi("my psi", "b")
    with pytest.raises(InputError, match="unknown name 'x'"):
        register_psi("wrong", "x + 1")
    assert "wrong" not in activation_names()


def test_shipped_names_are_those_of_the_design():
    smooth = "softplus sigmoid tanh gelu silu exp square cube sin reciprocal identity zero"
    broken = "relu leaky_relu elu abs heaviside sign hardtanh"
    assert set(activation_names()) >= {*smooth.split(), *broken.split()}
    assert np.all([analyse(name).text == name for name in activation_names()])
