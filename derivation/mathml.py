"""The derivation's expressions as presentation MathML, for pages. One function a head, chosen by class; a head without
one is an error that names it. What is printed elsewhere (plain text, LaTeX, graphs) lives in `render`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from html import escape

import sympy

from elbotree.derivation import notation as nt
from elbotree.derivation.notation import Expr

NAMESPACE = "http://www.w3.org/1998/Math/MathML"

# How loosely an expression holds together.
_SUM, _PRODUCT, _ATOM = 1, 2, 3


def to_mathml(expr: Expr, name: str | None = None) -> str:
    """A whole <math> element: the expression, or `name = expression` when a name is given."""
    body = math(expr) if name is None else _row(_term_name(name), _operator("="), math(expr))
    return f'<math xmlns="{NAMESPACE}" display="block">{body}</math>'


@singledispatch
def math(expr: Expr) -> str:
    """The MathML of one expression, without the <math> around it."""
    raise TypeError(f"no MathML for {type(expr).__name__} ({expr}): register a function for it in derivation/mathml.py")


def _tag(name: str, *content: str) -> str:
    return f"<{name}>{''.join(content)}</{name}>"


def _row(*content: str) -> str:
    return _tag("mrow", *content)


def _operator(text: str, stretchy: bool = True) -> str:
    fixed = "" if stretchy else ' stretchy="false"'
    return f"<mo{fixed}>{escape(text)}</mo>"


def _identifier(text: str, upright: bool = False, bold: bool = False) -> str:
    variant = ' mathvariant="normal"' if upright else ""
    style = ' style="font-weight:bold"' if bold else ""
    return f"<mi{variant}{style}>{escape(text)}</mi>"


def _sub(base: str, *index: str) -> str:
    return _tag("msub", base, _row(*index))


def _fence(content: str, left: str = "(", right: str = ")") -> str:
    # Brackets grow around tall content only: many fonts stretch them around any index otherwise.
    tall = any(f"<{element}>" in content for element in ("mfrac", "munderover", "munder"))
    return _row(_operator(left, tall), content, _operator(right, tall))


def _call(head: str, *arguments: str) -> str:
    inside = _operator(",").join(arguments)
    return _row(head, "<mo>&#x2061;</mo>", _fence(inside))


def _binding(expr: Expr) -> int:
    """How loosely an expression holds together: 1 a sum, 2 a product or a big sum, 3 an atom."""
    if isinstance(expr, sympy.Add):
        return _SUM
    if isinstance(expr, (sympy.Mul, sympy.Sum)) or expr.could_extract_minus_sign():
        return _PRODUCT
    return _ATOM


def _at_least(expr: Expr, binding: int) -> str:
    return math(expr) if _binding(expr) >= binding else _fence(math(expr))


def _term_name(name: str) -> str:
    """L, R1, T2: a calligraphic or indexed letter."""
    return _identifier("ℒ", upright=True) if name == "L" else _sub(_identifier(name[0]), _tag("mn", name[1:]))


def _parameters_of(index: Expr) -> str:
    """c_j, the encoder parameters of feature j."""
    return _sub(_identifier("c"), math(index))


_SYMBOLS = {
    "sigma1": _sub(_identifier("σ"), "<mn>1</mn>"),
    "sigma2": _sub(_identifier("σ"), "<mn>2</mn>"),
    "omega": _identifier("ω"),
    "pi_": _identifier("π"),
    "x1": _sub(_identifier("x", bold=True), "<mn>1</mn>"),
    "z2|x2": _row(
        _sub(_identifier("z", bold=True), "<mn>2</mn>"), _operator("|"), _sub(_identifier("x", bold=True), "<mn>2</mn>")
    ),
}


@math.register
def _(expr: sympy.Symbol) -> str:
    if expr.name in _SYMBOLS:
        return _SYMBOLS[expr.name]
    letters = expr.name.rstrip("0123456789")
    bold = isinstance(expr, nt.Vector)
    head = _identifier("μ" if letters == "mu" else letters, bold=bold)
    return head if letters == expr.name else _sub(head, _tag("mn", expr.name[len(letters) :]))


@math.register
def _(expr: sympy.MatrixSymbol) -> str:
    letters = expr.name.rstrip("0123456789")
    head = _identifier(letters, bold=True)
    return head if letters == expr.name else _sub(head, _tag("mn", expr.name[len(letters) :]))


@math.register
def _(expr: sympy.MatMul) -> str:
    return _row(*(_fence(math(x)) if isinstance(x, sympy.MatAdd) else math(x) for x in expr.args))


@math.register
def _(expr: sympy.MatAdd) -> str:
    return _row(math(expr.args[0]), *(part for x in expr.args[1:] for part in (_operator("+"), math(x))))


@math.register
def _(expr: sympy.MatPow) -> str:
    return _tag("msup", _fence(math(expr.base)), math(expr.exp))


@math.register
def _(expr: sympy.Transpose) -> str:
    return _tag("msup", math(expr.arg), "<mo>⊤</mo>")


@math.register
def _(expr: sympy.Trace) -> str:
    return _call(_identifier("tr", upright=True), math(expr.arg))


@math.register
def _(expr: nt.NodeValue) -> str:
    return _term_name(expr.name)


@math.register
def _(expr: sympy.Integer) -> str:
    return _tag("mn", str(expr)) if expr >= 0 else _row(_operator("−"), _tag("mn", str(-expr)))


@math.register
def _(expr: sympy.Rational) -> str:
    fraction = _tag("mfrac", _tag("mn", str(abs(expr.p))), _tag("mn", str(expr.q)))
    return fraction if expr > 0 else _row(_operator("−"), fraction)


@math.register
def _(expr: sympy.core.numbers.Pi) -> str:
    return _identifier("π")


@math.register
def _(expr: sympy.Add) -> str:
    parts: list[str] = []
    for term in _ordered(expr.args):
        negative = term.could_extract_minus_sign()
        if negative or parts:
            parts.append(_operator("−" if negative else "+"))
        parts.append(_at_least(-term if negative else term, _PRODUCT))
    return _row(*parts)


def _ordered(terms: Iterable[Expr]) -> list[Expr]:
    """Positive terms first, so that a sum does not open with a minus where it need not; else sympy's own order."""
    return sorted(terms, key=lambda term: (term.could_extract_minus_sign(), term.sort_key()))


@math.register
def _(expr: sympy.Mul) -> str:
    if expr.could_extract_minus_sign():
        return _row(_operator("−"), _at_least(-expr, _PRODUCT))
    above, below = expr.as_numer_denom()
    if below != 1:
        light = [x for x in sympy.Mul.make_args(above) if x.is_Atom and nt.rank(x) == 0]
        heavy = sympy.Mul(*(x for x in sympy.Mul.make_args(above) if x not in light))
        if light and heavy != 1:
            return _row(_tag("mfrac", math(sympy.Mul(*light)), math(below)), _at_least(heavy, _PRODUCT))
        return _tag("mfrac", math(above), math(below))
    # Scalars stand before vectors and before what varies; big sums come last, so that nothing falls under them.
    factors = sorted(
        expr.args, key=lambda x: (not x.is_number, isinstance(x, sympy.Sum), nt.rank(x), nt.contains(x, nt.Expectation))
    )
    last = len(factors) - 1
    binding = [_PRODUCT if at == last and isinstance(x, sympy.Sum) else _ATOM for at, x in enumerate(factors)]
    return _row(*(_at_least(x, need) for x, need in zip(factors, binding, strict=True)))


@math.register
def _(expr: sympy.Pow) -> str:
    base, exponent = expr.args
    if exponent.could_extract_minus_sign():
        return _tag("mfrac", "<mn>1</mn>", math(base**-exponent))
    if exponent == sympy.Rational(1, 2):
        return _tag("msqrt", math(base))
    plain = isinstance(base, (sympy.Symbol, sympy.Integer, nt.Psi, nt.FeatureTerm))
    inner = math(base) if plain else _fence(math(base))
    if isinstance(base, sympy.Symbol) and inner.startswith("<msub>"):
        return _tag("msubsup", inner.removeprefix("<msub>").removesuffix("</msub>"), math(exponent))
    return _tag("msup", inner, math(exponent))


@math.register
def _(expr: sympy.log) -> str:
    return _call(_identifier("log"), math(expr.args[0]))


@math.register
def _(expr: sympy.exp) -> str:
    return _tag("msup", _identifier("e"), math(expr.args[0]))


@math.register
def _(expr: sympy.Sum) -> str:
    low = _operator(",").join(math(index) for index, _, _ in expr.limits)
    bottom = _row(low, _operator("="), math(expr.limits[0][1]))
    big = _tag("munderover", '<mo movablelimits="false">∑</mo>', bottom, math(expr.limits[0][2]))
    return _row(big, _at_least(expr.function, _PRODUCT))


@math.register
def _(expr: sympy.KroneckerDelta) -> str:
    return _sub(_identifier("δ"), *(math(index) for index in expr.args))


@math.register
def _(expr: nt.Column) -> str:
    return _sub(_identifier("b", bold=True), math(expr.args[0]))


@math.register
def _(expr: nt.Basis) -> str:
    return _sub(_identifier("e", bold=True), math(expr.args[0]))


@math.register
def _(expr: nt.Image) -> str:
    return _row(_sub(_identifier("B", bold=True), "<mn>2</mn>"), math(expr.args[0]))


@math.register
def _(expr: nt.Latent) -> str:
    return _sub(_identifier("β"), math(expr.args[0]))


@math.register
def _(expr: nt.Inner) -> str:
    return _fence(_operator(",").join(math(argument) for argument in expr.args), "⟨", "⟩")


@math.register
def _(expr: nt.NormSquared) -> str:
    return _tag("msup", _fence(math(expr.args[0]), "‖", "‖"), "<mn>2</mn>")


@math.register
def _(expr: nt.Component) -> str:
    vector, index = expr.args
    return _sub(_at_least(vector, _ATOM), math(index))


@math.register
def _(expr: nt.Gram) -> str:
    return _sub(_identifier("H"), *(math(index) for index in expr.args))


@math.register
def _(expr: nt.Psi) -> str:
    return _call(_identifier("ψ"), math(expr.args[0]))


_FEATURE_LETTERS: dict[type, str] = {nt.Mean: "s", nt.Spread: "V", nt.Divergence: "K"}


@math.register
def _(expr: nt.FeatureTerm) -> str:
    index = expr.args[0]
    letter = _identifier(_FEATURE_LETTERS[type(expr)])
    return _call(_sub(letter, math(index)), _parameters_of(index))


@math.register
def _(expr: nt.Slope) -> str:
    term, variable = expr.args
    below = _sub(_identifier("c"), math(term.args[0]), math(variable)) if variable == nt.r else math(variable)
    return _tag("mfrac", _row(_operator("∂"), math(term)), _row(_operator("∂"), below))


@math.register
def _(expr: nt.PosteriorFactor) -> str:
    index = expr.args[0]
    return _call(_sub(_identifier("Q′"), math(index)), _row(_operator("·"), _operator(";"), _parameters_of(index)))


@math.register
def _(expr: nt.PriorFactor) -> str:
    return _sub(_identifier("P"), "<mn>2</mn>", _operator(","), math(expr.args[0]))


@math.register
def _(expr: nt.ProductLaw) -> str:
    factor, index = expr.args
    return _row(_tag("munder", "<mo>∏</mo>", math(index)), math(factor))


@math.register
def _(expr: nt.KL) -> str:
    inside = _row(math(expr.args[0]), _operator("‖"), math(expr.args[1]))
    return _row(_sub(_identifier("D"), _identifier("KL", upright=True)), _fence(inside))


@math.register
def _(expr: nt.NormalDensity) -> str:
    point, mean, sigma = (math(argument) for argument in expr.args)
    inside = _row(
        point, _operator(";"), mean, _operator(","), _tag("msup", sigma, "<mn>2</mn>"), _identifier("I", bold=True)
    )
    return _row(_identifier("𝒩", upright=True), _fence(inside))


@math.register
def _(expr: nt.Expectation) -> str:
    inside, law = expr.args
    # The expectation over x1 is the one meant where nothing is said; only the inner one names its law.
    head = _identifier("𝔼", upright=True)
    return _row(head if law == nt.X1 else _sub(head, math(law)), _fence(math(inside), "[", "]"))
