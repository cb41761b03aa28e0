"""Text that a user gives as psi becomes a sympy expression in the real symbol b, by recursive descent over a closed
list of words. Nothing is ever evaluated: no eval, no exec, no sympify. What psi means is `activations`' work.

    comparison := sum (('<' | '<=' | '>' | '>=') sum)          only as the first argument of where(...)
    sum        := product (('+' | '-') product)*
    product    := unary (('*' | '/') unary)*
    unary      := ('+' | '-') unary | power
    power      := atom ('**' unary)?                            right-associative; the exponent is a bounded rational
    atom       := number | 'b' | 'pi' | 'e' | name '(' sum (',' sum)* ')' | '(' sum ')'
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import sympy as sp

from elbotree.derivation.special import Expm1, NormalCdf, Sigmoid, Softplus, elementary
from elbotree.runtime.errors import InputError

B = sp.Symbol("b", real=True)

MAX_LENGTH = 1000  # characters of text
MAX_DEPTH = 50  # nested parentheses, calls, signs and powers
MAX_EXPONENT = 64  # |p| and q of an exponent p/q
MAX_DECIMALS = 300  # the decimal exponent of a number, and its digits
MAX_ANGLE = 10**15  # of a number that sin or cos is taken of: beyond, float64 has no digits of it
MAX_TOWER = 3  # exponentials inside one another
MAX_DEGREE = 256  # of a polynomial in b
MAX_TERMS = 5000  # of a sum, after all of its products and powers are multiplied out

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<mark>\*\*|<=|>=|==|!=|[-+*/(),<>]))"
)


def relu(x: sp.Expr) -> sp.Expr:
    """max(0, x)."""
    return sp.Max(0, x)


_ONE = sp.Integer(1)
_LEAK = sp.Rational(1, 100)


def leaky_relu(x: sp.Expr, slope: sp.Expr = _LEAK) -> sp.Expr:
    """max(0, x) + slope min(0, x)."""
    return sp.Max(0, x) + slope * sp.Min(0, x)


def elu(x: sp.Expr, alpha: sp.Expr = _ONE) -> sp.Expr:
    """x for x > 0, alpha (e^x - 1) below, written so that no branch overflows where it is not taken."""
    return sp.Max(0, x) + alpha * Expm1(sp.Min(0, x))


def gelu(x: sp.Expr) -> sp.Expr:
    """x Phi(x), the exact form."""
    return x * NormalCdf(x)


def silu(x: sp.Expr) -> sp.Expr:
    """x sigmoid(x)."""
    return x * Sigmoid(x)


def hardtanh(x: sp.Expr, low: sp.Expr = -_ONE, high: sp.Expr = _ONE) -> sp.Expr:
    """x clipped to [low, high]."""
    return sp.Min(high, sp.Max(low, x))


# Sizes of arguments between which functions of numbers stay as they are, and digits of the others
_LEAST, _MOST, _MOST_OF_ERF = sp.Float("1e-9"), 30, 8
_DIGITS = 40


def _settled(value: sp.Expr) -> sp.Expr:
    """A number, to 40 digits where a function in it is so near to its limit, as in tanh(1e16) or cos(1e-300), that sympy could not
    tell the two apart, or would compute 10^15 digits in order to."""
    for node in elementary(value).atoms(sp.Function):
        size = abs(node.args[0].evalf(15))
        if size != 0 and not _LEAST <= size <= (_MOST_OF_ERF if isinstance(node, sp.erf) else _MOST):
            number = value.evalf(_DIGITS)
            known = number.is_Float and number._prec > 3 * _DIGITS  # in bits; fewer where digits cancelled
            return sp.Rational(number) if known else value
    return value


@dataclass(frozen=True)
class _Word:
    """A function of the grammar: how it is built and how many arguments it takes."""

    build: Callable[..., sp.Expr]
    fewest: int = 1
    most: int = 1


FUNCTIONS: dict[str, _Word] = {
    "relu": _Word(relu),
    "leaky_relu": _Word(leaky_relu, 1, 2),
    "elu": _Word(elu, 1, 2),
    "softplus": _Word(Softplus),
    "sigmoid": _Word(Sigmoid),
    "tanh": _Word(sp.tanh),
    "gelu": _Word(gelu),
    "silu": _Word(silu),
    "exp": _Word(sp.exp),
    "log": _Word(sp.log),
    "sin": _Word(sp.sin),
    "cos": _Word(sp.cos),
    "abs": _Word(sp.Abs),
    "sign": _Word(sp.sign),
    "heaviside": _Word(sp.Heaviside),
    "max": _Word(sp.Max, 1, 16),
    "min": _Word(sp.Min, 1, 16),
    "sqrt": _Word(sp.sqrt),
    "erf": _Word(sp.erf),
    "hardtanh": _Word(hardtanh, 1, 3),
    "square": _Word(lambda x: x**2),
    "cube": _Word(lambda x: x**3),
    "reciprocal": _Word(lambda x: 1 / x),
}
CONSTANTS: dict[str, sp.Expr] = {"pi": sp.pi, "e": sp.E}
WORDS: tuple[str, ...] = (*FUNCTIONS, *CONSTANTS, "b", "where")
_COMPARISONS = {"<": sp.Lt, "<=": sp.Le, ">": sp.Gt, ">=": sp.Ge}


def nearest(name: str, known: tuple[str, ...]) -> str:
    """' (did you mean ...?)' for the nearest known name, or nothing when none is near."""
    close = [word for word in known if word.lower() == name.lower()] or difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse_psi(text: str) -> sp.Expr:
    """The sympy expression in the real symbol b that `text` spells, for example ``"max(0, b) - 0.1*b**2"``.

    Decimal numbers become exact rationals. Raises InputError, naming the position (counted from 1), for anything that
    the grammar above does not spell, for text over the stated limits, and for expressions that are not finite.

    >>> parse_psi("2*relu(b - 1)")
    2*Max(0, b - 1)
    """
    if not isinstance(text, str):
        raise InputError(f"psi must be text, got {type(text).__name__}; write a name like 'relu' or an expression in b")
    if len(text) > MAX_LENGTH:
        raise InputError(f"psi has {len(text)} characters, more than the limit of {MAX_LENGTH}; shorten it")
    if not text.strip():
        raise InputError("psi is empty; write a name like 'relu' or an expression in b")
    expression = _Parser(text).parse()
    if _tower(expression) > MAX_TOWER:
        raise InputError(f"psi {text!r} has exp inside exp, more than {MAX_TOWER} deep; no float64 holds its values")
    if (degree := max((_degree(node) or 0 for node in sp.preorder_traversal(expression)), default=0)) > MAX_DEGREE:
        raise InputError(f"psi {text!r} has degree {degree} in b; the limit is {MAX_DEGREE}, so use lower powers")
    if (count := _terms(expression)) > MAX_TERMS:
        raise InputError(
            f"psi {text!r} has up to {count:.3g} terms when multiplied out; the limit is {MAX_TERMS}, so use lower powers"
        )
    if expression.has(sp.nan, sp.zoo, sp.oo, -sp.oo) or expression.has(sp.I):
        raise InputError(f"psi {text!r} is nowhere a finite real number (it holds {_culprit(expression)}); mend it")
    return expression


def _tower(expression: sp.Expr) -> int:
    """How deep exponentials stand in one another."""
    inside = max((_tower(argument) for argument in expression.args), default=0)
    return inside + isinstance(expression, sp.exp)


def _terms(expression: sp.Expr) -> float:
    """No fewer than the terms of the sums in an expression after multiplying out; a polynomial in b has degree + 1."""
    counts = [_terms(argument) for argument in expression.args]
    if expression.is_Add:
        count = sum(counts)
    elif expression.is_Mul:
        count = math.prod(counts)
    elif expression.is_Pow and expression.exp.is_Rational and not isinstance(expression, sp.exp):
        power = math.ceil(abs(expression.exp))
        count = (
            counts[0] if power == 1 else math.comb(int(counts[0]) + power - 1, power) if counts[0] < 1e6 else math.inf
        )
    else:
        return max(counts, default=1.0) if max(counts, default=1.0) > MAX_TERMS else 1.0
    degree = _degree(expression)
    return float(min(count, math.inf if degree is None else degree + 1, 1e300))


def _degree(expression: sp.Expr) -> int | None:
    """No less than the degree of a polynomial in b with nonnegative powers; None for anything else."""
    if not expression.has(B):
        return 0
    if expression == B:
        return 1
    if expression.is_Pow and expression.exp.is_Integer and expression.exp > 0:
        inner = _degree(expression.base)
        return None if inner is None else inner * int(expression.exp)
    if expression.is_Add or expression.is_Mul:
        parts = [_degree(argument) for argument in expression.args]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            return max(known) if expression.is_Add else sum(known)
    return None


def _culprit(expression: sp.Expr) -> str:
    return "a division by zero or log(0)" if expression.has(sp.nan, sp.zoo, sp.oo, -sp.oo) else "an imaginary number"


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


class _Parser:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokenise()
        self.index = 0
        self.depth = 0

    def _tokenise(self) -> list[_Token]:
        tokens, at, end = [], 0, len(self.text.rstrip())
        while at < end:
            match = _TOKEN.match(self.text, at)
            if match is None:
                at += len(self.text[at:]) - len(self.text[at:].lstrip())
                hint = "; write ** for a power" if self.text[at] == "^" else ""
                self.fail(at, f"{self.text[at]!r} is not part of the grammar{hint}")
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        return [*tokens, _Token("end", "", end)]

    def fail(self, at: int, what: str) -> NoReturn:
        raise InputError(f"psi {self.text!r}, position {at + 1}: {what}")

    @property
    def token(self) -> _Token:
        return self.tokens[self.index]

    def take(self) -> _Token:
        token = self.token
        self.index += 1
        return token

    def expect(self, mark: str) -> None:
        token = self.take()
        if token.text != mark:
            self.fail(token.start, f"expected {mark!r}, got {self.show(token)}")

    @staticmethod
    def show(token: _Token) -> str:
        return "the end of the text" if token.kind == "end" else repr(token.text)

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(self.token.start, f"nested deeper than {MAX_DEPTH} levels; simplify")

    def parse(self) -> sp.Expr:
        expression = self.sum()
        token = self.token
        if token.text in (*_COMPARISONS, "==", "!="):
            self.fail(
                token.start, "a comparison stands only as the first argument of where(condition, then, otherwise)"
            )
        if token.kind != "end":
            self.fail(token.start, f"expected an operator or the end, got {self.show(token)}")
        return expression

    def sum(self) -> sp.Expr:
        value = self.product()
        while self.token.text in ("+", "-"):
            sign = self.take().text
            term = self.product()
            value = value + term if sign == "+" else value - term
        return value

    def product(self) -> sp.Expr:
        value = self.unary()
        while self.token.text in ("*", "/"):
            operator = self.take()
            factor = self.unary()
            if operator.text == "/" and factor == 0:
                self.fail(operator.start, "division by zero")
            value = value * factor if operator.text == "*" else value / factor
        return value

    def unary(self) -> sp.Expr:
        if self.token.text not in ("+", "-"):
            return self.power()
        self.deeper()
        sign = self.take().text
        value = self.unary()
        self.depth -= 1
        return -value if sign == "-" else value

    def power(self) -> sp.Expr:
        base = self.atom()
        if self.token.text != "**":
            return base
        self.deeper()
        at = self.take().start
        exponent = self.unary()
        self.depth -= 1
        if base == sp.E:
            return self.constant(at, sp.exp(exponent))
        if not exponent.is_Rational:
            self.fail(
                at, f"an exponent must be an integer or a fraction of integers, got {exponent}; use exp(... * log(...))"
            )
        if abs(exponent.p) > MAX_EXPONENT or exponent.q > MAX_EXPONENT:
            self.fail(at, f"the exponent {exponent} exceeds the limit of {MAX_EXPONENT} in numerator or denominator")
        if base == 0 and exponent <= 0:
            self.fail(at, "division by zero")
        if base.is_Rational and max(abs(base.p), base.q).bit_length() * abs(exponent.p) > 4096:
            self.fail(at, "this power of a number is too large to write down; use a smaller number")
        return self.constant(at, base**exponent)

    def constant(self, at: int, value: sp.Expr) -> sp.Expr:
        """A value just made; refused where it is a number that is not real, or beyond float64."""
        if value.has(sp.nan, sp.zoo, sp.oo, -sp.oo) or (value.is_number and value.is_real is False):
            self.fail(at, f"this is nowhere a finite real number (it holds {_culprit(value)}); mend it")
        if value.is_number and not value.is_Rational and value != 0:
            size = abs(elementary(value).evalf(15))
            if size.is_comparable and size.is_finite and not sp.Float("1e-300") < size < sp.Float("1e300"):
                self.fail(at, "this number is not between 1e-300 and 1e300 in size; rescale psi")
            return _settled(value)
        return value

    def atom(self) -> sp.Expr:
        token = self.take()
        if token.kind == "number":
            return self.number(token)
        if token.text == "(":
            self.deeper()
            value = self.sum()
            self.expect(")")
            self.depth -= 1
            return value
        if token.kind != "name":
            self.fail(token.start, f"expected a number, b, a function or '(', got {self.show(token)}")
        if self.token.text == "(":
            return self.call(token)
        if token.text == "b":
            return B
        if token.text in CONSTANTS:
            return CONSTANTS[token.text]
        if token.text in FUNCTIONS or token.text == "where":
            self.fail(token.start, f"the function {token.text!r} needs its argument, as in {token.text}(b)")
        self.fail(token.start, f"unknown name {token.text!r}{nearest(token.text, WORDS)}; the variable is b")

    def number(self, token: _Token) -> sp.Expr:
        mantissa, _, exponent = token.text.lower().partition("e")
        if len(mantissa) > MAX_DECIMALS or len(exponent) > 5 or abs(int(exponent or "0")) > MAX_DECIMALS:
            self.fail(token.start, f"the number exceeds the limit of {MAX_DECIMALS} digits or decimal places")
        return sp.Rational(token.text)

    def call(self, name: _Token) -> sp.Expr:
        self.deeper()
        self.expect("(")
        if name.text == "where":
            value = self.where()
        elif name.text in FUNCTIONS:
            value = self.apply(name)
        else:
            self.fail(name.start, f"unknown function {name.text!r}{nearest(name.text, WORDS)}")
        self.depth -= 1
        return value

    def apply(self, name: _Token) -> sp.Expr:
        word, arguments = FUNCTIONS[name.text], [self.sum()]
        while self.token.text == ",":
            self.take()
            arguments.append(self.sum())
        self.expect(")")
        if not word.fewest <= len(arguments) <= word.most:
            count = str(word.fewest) if word.fewest == word.most else f"{word.fewest} to {word.most}"
            self.fail(name.start, f"{name.text} takes {count} argument(s), got {len(arguments)}")
        if name.text in ("sin", "cos") and arguments[0].is_number and not abs(arguments[0].evalf(15)) <= MAX_ANGLE:
            self.fail(name.start, f"{name.text} of a number beyond {MAX_ANGLE:.0e}, of which float64 has no digits")
        try:
            value = word.build(*arguments)
        except (TypeError, ValueError) as error:  # sympy's Max and Min refuse arguments that are not real
            self.fail(name.start, f"{name.text} cannot take {arguments}: {error}")
        return self.constant(name.start, value)

    def where(self) -> sp.Expr:
        left = self.sum()
        comparison = self.take()
        if comparison.text in ("==", "!="):
            self.fail(comparison.start, f"{comparison.text!r} holds on single points only; compare with <, <=, > or >=")
        if comparison.text not in _COMPARISONS:
            self.fail(comparison.start, f"where needs a comparison (<, <=, >, >=) first, got {self.show(comparison)}")
        right = self.sum()
        self.expect(",")
        chosen = self.sum()
        self.expect(",")
        otherwise = self.sum()
        self.expect(")")
        condition = _COMPARISONS[comparison.text](left, right)
        return sp.Piecewise((chosen, condition), (otherwise, True))
