"""The way back from algebra to text: a sympy expression in b as the grammar of `parse_psi` spells it, so that what a program
builds is kept, printed and sent as the same plain text that a person would write."""

from __future__ import annotations

import sympy as sp
from sympy.core.relational import Relational

from elbotree.derivation.grammar import MAX_LENGTH, B, parse_psi
from elbotree.derivation.special import NormalCdf, Sigmoid, Softplus, elementary
from elbotree.runtime.errors import InputError

_NAMES: dict[type, str] = {
    sp.Max: "max",
    sp.Min: "min",
    sp.Abs: "abs",
    sp.sign: "sign",
    sp.exp: "exp",
    sp.log: "log",
    sp.sin: "sin",
    sp.cos: "cos",
    sp.tanh: "tanh",
    sp.erf: "erf",
    Sigmoid: "sigmoid",
    Softplus: "softplus",
}
_SIGNS: dict[type, str] = {
    sp.StrictLessThan: "<",
    sp.LessThan: "<=",
    sp.StrictGreaterThan: ">",
    sp.GreaterThan: ">=",
}
_SUM, _PRODUCT, _POWER, _ATOM = range(4)


def spell(expression: sp.Expr) -> str:
    """The text that `parse_psi` reads as `expression`, a sympy expression in one symbol named b.

    Raises InputError for other symbols, for functions that the grammar has no word for, and for text beyond its limit.

    >>> import sympy
    >>> b = sympy.Symbol("b")
    >>> spell(sympy.Piecewise((0, b < 0), (b**2, b < 1), (1, True)))
    'where(b < 0, 0, where(b < 1, b**2, 1))'
    """
    unknown = sorted(symbol.name for symbol in expression.free_symbols if symbol.name != "b")
    if unknown:
        raise InputError(f"psi {expression}: unknown symbol(s) {', '.join(unknown)}; a psi is an expression in b alone")
    own = expression.xreplace(dict.fromkeys(expression.free_symbols, B))
    own = own.xreplace({number: sp.Rational(str(number)) for number in own.atoms(sp.Float)})
    text = _text(own, _SUM)
    if len(text) > MAX_LENGTH:
        raise InputError(
            f"psi spelled out has {len(text)} characters, more than the limit of {MAX_LENGTH}; simplify it"
        )
    read = parse_psi(text)
    if read != own and not _agree(read, own):
        raise InputError(f"psi {expression} is not what its text {text!r} means; give the text yourself")
    return text


def _agree(read: sp.Expr, own: sp.Expr) -> bool:
    """Whether two expressions have the same values at some points: decimals become exact, orders of terms may change."""
    points = (sp.Rational(-317, 97), sp.Rational(-29, 73), sp.Rational(31, 113), sp.Rational(461, 101))
    return all(_value(read, point) == _value(own, point) for point in points)


def _value(expression: sp.Expr, at: sp.Expr) -> str:
    return str(elementary(expression).subs(B, at).evalf(12))


def _text(expression: sp.Expr, binding: int) -> str:
    own, text = _spelled(expression)
    return text if own >= binding else f"({text})"


def _spelled(expression: sp.Expr) -> tuple[int, str]:
    """(how tightly it binds, text)."""
    if isinstance(expression, sp.Rational):
        size = str(abs(expression.p)) + (f"/{expression.q}" if expression.q != 1 else "")
        plain = _ATOM if expression.q == 1 else _PRODUCT
        return (plain, size) if expression >= 0 else (_SUM, f"-{size}")
    if expression in (sp.pi, sp.E):
        return _ATOM, "pi" if expression == sp.pi else "e"
    if expression == B:
        return _ATOM, "b"
    if isinstance(expression, sp.Add):
        return _SUM, _sum(expression)
    if isinstance(expression, sp.Mul):
        return _product(expression)
    if isinstance(expression, sp.Piecewise):
        return _ATOM, _where(expression, list(expression.args))
    if isinstance(expression, sp.Heaviside):
        return _ATOM, f"heaviside({_text(expression.args[0], _SUM)})"
    if isinstance(expression, NormalCdf):
        return _PRODUCT, f"(1 + erf({_text(expression.args[0], _ATOM)}/sqrt(2)))/2"
    if isinstance(expression, sp.Pow) and not isinstance(expression, sp.exp):
        return _power(expression)
    names = [name for head, name in _NAMES.items() if isinstance(expression, head)]
    if names:
        return _ATOM, f"{names[0]}({', '.join(_text(part, _SUM) for part in expression.args)})"
    raise InputError(
        f"psi has {expression}, for which the grammar of psi has no word; its functions are {', '.join(_NAMES.values())}, "
        "heaviside, where and powers"
    )


def _sum(expression: sp.Expr) -> str:
    text = ""
    for term in expression.as_ordered_terms():
        negative = term.could_extract_minus_sign()
        part = _text(-term if negative else term, _PRODUCT)
        text += (" - " if negative else " + ") + part if text else ("-" if negative else "") + part
    return text


def _product(expression: sp.Expr) -> tuple[int, str]:
    if expression.could_extract_minus_sign():
        return _SUM, f"-{_text(-expression, _PRODUCT)}"
    above, below = sp.fraction(expression, exact=True)
    text = "*".join(_text(factor, _POWER) for factor in above.as_ordered_factors())
    return _PRODUCT, text if below == 1 else f"{text}/{_text(below, _POWER)}"


def _power(expression: sp.Expr) -> tuple[int, str]:
    base, exponent = expression.args
    if exponent == sp.Rational(1, 2):
        return _ATOM, f"sqrt({_text(base, _SUM)})"
    if exponent.is_Rational:
        if exponent < 0:
            return _PRODUCT, f"1/{_text(1 / expression, _POWER)}"
        return _POWER, f"{_text(base, _ATOM)}**{_text(exponent, _ATOM)}"
    if base == sp.E:
        return _ATOM, f"exp({_text(exponent, _SUM)})"
    return _ATOM, f"exp({_text(exponent * sp.log(base), _SUM)})"


def _where(expression: sp.Expr, cases: list[sp.Basic]) -> str:
    (value, condition), *rest = cases
    if condition == sp.true:
        return _text(value, _SUM)
    if not rest:
        raise InputError(f"psi {expression} has no value where none of its conditions holds; add one for True")
    return _choose(condition, _text(value, _SUM), _where(expression, rest))


def _choose(condition: sp.Basic, chosen: str, otherwise: str) -> str:
    """where(condition, chosen, otherwise), and / or / not spelled as nested choices."""
    if isinstance(condition, sp.And | sp.Or):
        text = chosen if isinstance(condition, sp.And) else otherwise
        for part in sorted(condition.args, key=sp.default_sort_key, reverse=True):
            text = _choose(part, text, otherwise) if isinstance(condition, sp.And) else _choose(part, chosen, text)
        return text
    if isinstance(condition, sp.Not):
        return _choose(condition.args[0], otherwise, chosen)
    if isinstance(condition, Relational) and type(condition) in _SIGNS:
        sign = _SIGNS[type(condition)]
        return f"where({_text(condition.lhs, _SUM)} {sign} {_text(condition.rhs, _SUM)}, {chosen}, {otherwise})"
    raise InputError(f"psi has the condition {condition}; compare with <, <=, > or >=")
