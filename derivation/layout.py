"""Formulae as boxes, and two ways to write boxes down: one line of Unicode text, and LaTeX.

`boxes` knows how the derivation's symbols look; the writers know nothing of the mathematics. MathML is `mathml`'s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sympy

from elbotree.derivation import notation as nt

if TYPE_CHECKING:
    from elbotree.derivation.notation import Expr


@dataclass(frozen=True)
class Word:
    """An atom: its Unicode text, its LaTeX, and whether it is a number, an operator sign or an identifier."""

    text: str
    latex: str
    kind: str = "identifier"


@dataclass(frozen=True)
class Row:
    """Boxes side by side."""

    parts: tuple[Box, ...]


@dataclass(frozen=True)
class Script:
    """A base with a subscript and a superscript, either of which may be missing."""

    base: Box
    sub: Box | None = None
    sup: Box | None = None


@dataclass(frozen=True)
class Fraction:
    """One box over another."""

    above: Box
    below: Box


@dataclass(frozen=True)
class Fence:
    """A box between brackets."""

    left: Word
    body: Box
    right: Word


@dataclass(frozen=True)
class Total:
    """The sum sign over the indices below it."""

    below: Box


Box = Word | Row | Script | Fraction | Fence | Total


def _sign(text: str, latex: str = "") -> Word:
    return Word(text, latex or text, "sign")


PLUS, MINUS, COMMA, EQUALS = _sign(" + ", " + "), _sign(" − ", " - "), _sign(", ", ", "), _sign(" = ", " = ")
NEGATIVE = _sign("−", "-")
SPACE = _sign(" ", r"\, ")
ROUND = (_sign("(", r"\left("), _sign(")", r"\right)"))
SQUARE = (_sign("[", r"\left["), _sign("]", r"\right]"))
ANGLE = (_sign("⟨", r"\left\langle "), _sign("⟩", r"\right\rangle "))
BARS = (_sign("|", r"\left\| "), _sign("|", r"\right\| "))
GREEK = {"mu": "μ", "sigma": "σ", "psi": "ψ", "pi": "π", "beta": "β", "omega": "ω", "theta": "θ", "lambda": "λ"}


def word(name: str, *, vector: bool = False) -> Box:
    """The box of a name such as n2, mu2, s, H: letters, then digits as a subscript."""
    letters = name.rstrip("0123456789").rstrip("_")
    digits = name[len(name.rstrip("0123456789")) :]
    greek = GREEK.get(letters)
    latex = f"\\{letters}" if greek else letters
    if vector:
        latex = rf"\boldsymbol{{{latex}}}" if greek else rf"\mathbf{{{latex}}}"
    base = Word(greek or letters, latex)
    return Script(base, Word(digits, digits, "number")) if digits else base


def row(*parts: Box) -> Box:
    """Boxes side by side, nested rows flattened."""
    flat: list[Box] = []
    for part in parts:
        flat += part.parts if isinstance(part, Row) else [part]
    return flat[0] if len(flat) == 1 else Row(tuple(flat))


def fence(brackets: tuple[Word, Word], body: Box) -> Box:
    """A box between a pair of brackets."""
    return Fence(brackets[0], body, brackets[1])


def _joined(sign: Word, parts: list[Box]) -> Box:
    spaced: list[Box] = []
    for part in parts:
        spaced += [sign, part] if spaced else [part]
    return row(*spaced)


def _commas(*parts: Box) -> Box:
    return _joined(COMMA, list(parts))


def boxes(expr: Expr) -> Box:
    """The boxes of an expression. Raises TypeError on a head that has no look; add it to `_LOOKS`."""
    for head, look in _LOOKS.items():
        if isinstance(expr, head):
            return look(expr)
    if expr.is_number:  # a slope or an intercept of psi, such as e or sin(1)
        return Word(str(expr), sympy.latex(expr), "number")
    raise TypeError(f"no look for {type(expr).__name__}: {expr}; add one to `layout._LOOKS`")


def _symbol(expr: Expr) -> Box:
    if expr == nt.pi_prior:
        return word("pi")
    if expr.name.startswith("prior_"):
        return Word(expr.name, rf"\mathrm{{{expr.name.replace('_', chr(92) + '_')}}}")
    return word(str(expr), vector=isinstance(expr, nt.Vector))


def _number(expr: Expr) -> Box:
    if isinstance(expr, sympy.Integer):
        sign = (NEGATIVE,) if expr < 0 else ()
        return row(*sign, Word(str(abs(expr)), str(abs(expr)), "number"))
    return Fraction(_number(sympy.Integer(expr.p)), _number(sympy.Integer(expr.q)))


def term_order(term: Expr) -> tuple[object, ...]:
    """Terms of a sum read: f and y before what is taken from them, averages before what is subtracted, then by name."""
    coefficient, rest = term.as_coeff_Mul()
    latents = isinstance(rest, (sympy.Sum, nt.Image)) and nt.contains(rest, nt.Latent, nt.Image)
    lead = 0 if rest in (nt.f, nt.y) or latents else 1 if isinstance(rest, nt.Vector) else 2
    return (lead, bool(coefficient < 0), not nt.contains(rest, nt.Divergence), str(term))


def _add(expr: Expr) -> Box:
    parts: list[Box] = []
    for term in sorted(expr.args, key=term_order):
        coefficient, _ = term.as_coeff_Mul()
        negative = bool(coefficient < 0)
        if parts:
            parts.append(MINUS if negative else PLUS)
        elif negative:
            parts.append(NEGATIVE)
        parts.append(boxes(-term if negative else term))
    return row(*parts)


_FACTOR_ORDER: tuple[type, ...] = (
    sympy.Number,
    type(sympy.pi),
    sympy.Symbol,
    sympy.Pow,
    sympy.log,
    nt.Component,
    nt.Gram,
    sympy.Sum,
    nt.Expectation,
    nt.NormSquared,
    nt.Inner,
    nt.Slope,
    nt.FeatureTerm,
    nt.Latent,
    nt.Psi,
    nt.Column,
)


def _factor_order(factor: Expr) -> tuple[object, ...]:
    # A sum or an expectation swallows what stands to its right, so fixed factors come before it.
    if isinstance(factor, nt.Component) and nt.is_random(factor, nt.X1):
        return (len(_FACTOR_ORDER), str(factor))
    base = factor.base if isinstance(factor, sympy.Pow) and isinstance(factor.base, nt.Operator) else factor
    place = next((n for n, head in enumerate(_FACTOR_ORDER) if isinstance(base, head)), len(_FACTOR_ORDER))
    if isinstance(base, nt.NormSquared) and not nt.is_random(base, nt.X1):
        place = _FACTOR_ORDER.index(nt.Gram)
    if isinstance(base, nt.Vector):
        place = _FACTOR_ORDER.index(nt.Column)
    return (place, str(factor))


_STANDS_BESIDE = (nt.Expectation, nt.NormSquared, sympy.log)
"""Heads that are written beside a fraction, not above its bar."""


def _mul(expr: Expr) -> Box:
    above, below = sympy.fraction(expr)
    if below != 1:
        averages = [x for x in sympy.Mul.make_args(above) if nt.contains(x, *_STANDS_BESIDE)]
        fixed = sympy.Mul(*(x for x in sympy.Mul.make_args(above) if x not in averages))
        sign: tuple[Box, ...] = (NEGATIVE,) if fixed.as_coeff_Mul()[0] < 0 else ()
        ratio = Fraction(boxes(abs(fixed) if fixed.is_number else (-fixed if sign else fixed)), boxes(below))
        return row(*sign, ratio, *((SPACE, _product(averages)) if averages else ()))
    coefficient, rest = expr.as_coeff_Mul()
    if coefficient == -1:
        return row(NEGATIVE, boxes(rest))
    return _product(list(expr.args))


def _product(factors: list[Expr]) -> Box:
    parts: list[Box] = []
    for factor in sorted(factors, key=_factor_order):
        box = boxes(factor)
        if isinstance(factor, sympy.Add) or (isinstance(factor, sympy.Number) and factor < 0 and parts):
            box = fence(ROUND, box)
        parts += [SPACE, box] if parts else [box]
    return row(*parts)


def _pow(expr: Expr) -> Box:
    if expr.exp == -1:
        return Fraction(_number(sympy.Integer(1)), boxes(expr.base))
    if expr.exp.is_negative:
        return Fraction(_number(sympy.Integer(1)), boxes(expr.base**-expr.exp))
    base = boxes(expr.base)
    if isinstance(base, Script) and base.sup is None:
        return Script(base.base, base.sub, boxes(expr.exp))
    if isinstance(base, Row) and not isinstance(expr.base, nt.Operator):
        base = fence(ROUND, base)
    return Script(base, None, boxes(expr.exp))


def _sum(expr: Expr) -> Box:
    body = boxes(expr.function)
    if isinstance(expr.function, sympy.Add):
        body = fence(ROUND, body)
    return row(Total(row(*(boxes(index) for index in expr.variables))), SPACE, body)


def _expectation(expr: Expr) -> Box:
    letter = Word("E", r"\mathbb{E}")
    over = letter if expr.args[1] == nt.X1 else Script(letter, Word("z", r"\mathbf{z}"))
    return row(over, fence(SQUARE, boxes(expr.args[0])))


def _of_parameters(letter: str) -> Callable[[Expr], Box]:
    def look(expr: Expr) -> Box:
        index = boxes(expr.args[0])
        return row(Script(word(letter), index), fence(ROUND, Script(Word("c", r"\mathbf{c}"), index)))

    return look


def _slope(expr: Expr) -> Box:
    return row(Script(Word("∂", r"\partial "), boxes(expr.args[1])), boxes(expr.args[0]))


def _component(expr: Expr) -> Box:
    vector, index = expr.args
    if isinstance(vector, nt.Column):
        return Script(word("B"), row(boxes(index), boxes(vector.args[0])))
    if isinstance(vector, nt.Vector):
        base = word(str(vector))
        if isinstance(base, Script):
            return Script(base.base, row(base.sub or Word("", ""), COMMA, boxes(index)))
        return Script(base, boxes(index))
    return Script(fence(ROUND, boxes(vector)), boxes(index))


def _function(name: str, latex: str) -> Callable[[Expr], Box]:
    return lambda expr: row(Word(name, latex), fence(ROUND, _commas(*(boxes(x) for x in expr.args))))


def _indexed(name: str, *, vector: bool = False) -> Callable[[Expr], Box]:
    return lambda expr: Script(word(name, vector=vector), row(*(boxes(x) for x in expr.args)))


def _prior(expr: Expr) -> Box:
    return Script(Word("P", "P"), row(Word("2", "2", "number"), COMMA, boxes(expr.args[0])))


def _posterior(expr: Expr) -> Box:
    index = boxes(expr.args[0])
    parameters = Script(Word("c", r"\mathbf{c}"), index)
    return row(Script(Word("Q′", "Q'"), index), fence(ROUND, row(Word("·", r"\cdot"), _sign("; ", "; "), parameters)))


def _kl(expr: Expr) -> Box:
    return row(
        Word("KL", r"\mathrm{KL}"),
        fence(ROUND, row(boxes(expr.args[0]), _sign(" ‖ ", r" \,\|\, "), boxes(expr.args[1]))),
    )


def _product_law(expr: Expr) -> Box:
    return row(Script(Word("∏", r"\prod"), boxes(expr.args[1])), SPACE, boxes(expr.args[0]))


def _normal(expr: Expr) -> Box:
    x, mean, sigma = expr.args
    identity = row(boxes(sigma**2), SPACE, Word("I", r"\mathbf{I}"))
    return row(Word("N", r"\mathcal{N}"), fence(ROUND, row(boxes(x), _sign("; ", "; "), boxes(mean), COMMA, identity)))


_LOOKS: dict[type, Callable[[Expr], Box]] = {
    # Matrix heads first: sympy's MatMul is a Mul, but its factors do not commute.
    sympy.MatrixSymbol: lambda expr: word(expr.name),
    sympy.Trace: lambda expr: row(Word("tr", r"\operatorname{tr}"), fence(ROUND, boxes(expr.arg))),
    sympy.Transpose: lambda expr: Script(boxes(expr.arg), None, Word("T", "T")),
    sympy.MatMul: lambda expr: _joined(SPACE, [boxes(x) for x in expr.args]),
    sympy.MatAdd: lambda expr: _joined(PLUS, [boxes(x) for x in expr.args]),
    sympy.MatPow: lambda expr: Script(fence(ROUND, boxes(expr.base)), None, boxes(expr.exp)),
    nt.NodeValue: lambda expr: Word(str(expr), f"{str(expr)[0]}_{str(expr)[1:]}"),
    sympy.Symbol: _symbol,
    sympy.Number: _number,
    type(sympy.pi): lambda expr: Word("π", r"\pi"),
    sympy.Add: _add,
    sympy.Mul: _mul,
    sympy.Pow: _pow,
    sympy.Sum: _sum,
    sympy.log: _function("log", r"\log"),
    nt.Expectation: _expectation,
    nt.Inner: lambda expr: fence(ANGLE, _commas(*(boxes(x) for x in expr.args))),
    nt.NormSquared: lambda expr: Script(fence(BARS, boxes(expr.args[0])), None, Word("2", "2", "number")),
    nt.Mean: _of_parameters("s"),
    nt.Spread: _of_parameters("V"),
    nt.Divergence: _of_parameters("K"),
    nt.Slope: _slope,
    nt.Component: _component,
    nt.Gram: _indexed("H"),
    nt.Column: _indexed("b", vector=True),
    nt.Basis: _indexed("e", vector=True),
    nt.Latent: _indexed("beta"),
    nt.Psi: _function("ψ", r"\psi"),
    nt.Image: lambda expr: row(word("B2", vector=True), SPACE, boxes(expr.args[0])),
    nt.KL: _kl,
    nt.ProductLaw: _product_law,
    nt.PosteriorFactor: _posterior,
    nt.PriorFactor: _prior,
    nt.NormalDensity: _normal,
    sympy.KroneckerDelta: _indexed("δ"),
}


# ------------------------------------------------------------------------------------------------------------ writers

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_SUPERSCRIPTS = str.maketrans("0123456789-−T", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻ᵀ")


def text(box: Box) -> str:
    """One line of Unicode: Σ_j E[⟨f − μ₂, b_j⟩ s_j(c_j)]."""
    match box:
        case Word():
            return box.text
        case Row():
            return "".join(text(part) for part in box.parts)
        case Fence():
            return text(box.left) + text(box.body) + text(box.right)
        case Fraction():
            return f"{_grouped(box.above)}/{_grouped(box.below)}"
        case Total():
            return f"Σ_{text(box.below)}"
        case Script():
            return text(box.base) + _script_text(box.sub, "_", _SUBSCRIPTS) + _script_text(box.sup, "^", _SUPERSCRIPTS)


def _script_text(box: Box | None, mark: str, table: dict[int, int]) -> str:
    if box is None:
        return ""
    inside = text(box)
    if all(ord(letter) in table for letter in inside):
        return inside.translate(table)
    inside = inside.replace(", ", ",")
    return f"{mark}{inside}" if " " not in inside else f"{mark}({inside})"


def _grouped(box: Box) -> str:
    inside = text(box)
    return f"({inside})" if " " in inside else inside


def latex(box: Box) -> str:
    """LaTeX, for a maths environment."""
    match box:
        case Word():
            return box.latex
        case Row():
            return "".join(latex(part) for part in box.parts)
        case Fence():
            return latex(box.left) + latex(box.body) + latex(box.right)
        case Fraction():
            return rf"\frac{{{latex(box.above)}}}{{{latex(box.below)}}}"
        case Total():
            return rf"\sum_{{{latex(box.below)}}}"
        case Script():
            sub = "" if box.sub is None else f"_{{{latex(box.sub)}}}"
            sup = "" if box.sup is None else f"^{{{latex(box.sup)}}}"
            return f"{latex(box.base)}{sub}{sup}"
