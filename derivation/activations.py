"""The nonlinearity psi as algebra: the registry of names, and what quadrature must know of an expression in b: its
breaks, poles and domain, whether it is affine, its derivative, growth and Lipschitz constant. All of it is found from
the expression; no property of a shipped name is typed in. How psi is printed as numpy is `elbotree.codegen`'s work.

The method: the nodes that can break (Max, Min, Abs, sign, Heaviside, Piecewise) switch where an argument of theirs
changes sign. Innermost first, the roots of those arguments cut the line; between two cuts psi is one smooth branch.
Roots of polynomials, and whatever else sympy lists, come from sympy; those of sums of polynomials times exponentials
(tanh, sigmoid, exp) always, and others where it ends, from Rolle's theorem: between two neighbouring roots of the
derivative, found in the same way, there is at most one.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from typing import TypeVar

import mpmath  # type: ignore[import-untyped]
import sympy as sp
from sympy.core.relational import Relational

from elbotree.derivation.deadline import within
from elbotree.derivation.grammar import FUNCTIONS, WORDS, B, nearest, parse_psi
from elbotree.derivation.special import elementary, value_at
from elbotree.derivation.spelling import spell
from elbotree.runtime.errors import InputError, UnsupportedError

_SHIPPED = {
    **{
        name: f"{name}(b)"
        for name in (
            "relu",
            "leaky_relu",
            "elu",
            "softplus",
            "sigmoid",
            "tanh",
            "gelu",
            "silu",
            "exp",
            "square",
            "cube",
            "abs",
            "sin",
            "heaviside",
            "sign",
            "reciprocal",
            "hardtanh",
        )
    },
    "identity": "b",
    "zero": "0",
}
_registry: dict[str, str] = dict(_SHIPPED)
SECONDS = 3.0
"""How long sympy may look for a limit, for the roots of one equation, or for a Lipschitz constant."""

PATIENCE = 10.0
"""How many seconds the whole of one psi may take."""

_DERIVATIVES = 3  # how often an equation is differentiated in search of one that sympy can solve
_LEAST = 3000  # decimal places of a constant
_DIGITS = 40  # of a root found by bisection
_GIVE_UP = (NotImplementedError, ValueError, TypeError, RecursionError)  # sympy's ways of saying that it does not know
Result = TypeVar("Result")
_SWITCHING = (sp.Max, sp.Min, sp.Abs, sp.sign, sp.Heaviside, sp.Piecewise)


@dataclass(frozen=True)
class Branch:
    """psi on one open interval between neighbouring cuts: a smooth expression in b."""

    low: sp.Expr
    high: sp.Expr
    expression: sp.Expr


@dataclass(frozen=True)
class Psi:
    """A nonlinearity with what was found about it.

    text        the name or the expression it came from
    expression  sympy, in the real symbol b
    branches    its smooth pieces, from left to right, on the part of the line where it is real
    kinks       where psi is continuous and some derivative of it jumps, or a removable gap of the expression
    jumps       where psi itself jumps
    poles       where psi is not finite
    domain      the open interval on which it is real
    cuts        where some part of the expression switches, blows up or stops being real, ascending: the breaks among them
    """

    text: str
    expression: sp.Expr
    branches: tuple[Branch, ...]
    kinks: tuple[sp.Expr, ...]
    jumps: tuple[sp.Expr, ...]
    poles: tuple[sp.Expr, ...]
    domain: tuple[sp.Expr, sp.Expr]
    cuts: tuple[sp.Expr, ...] = ()

    @property
    def breaks(self) -> tuple[sp.Expr, ...]:
        """Kinks, jumps and poles, ascending: quadrature splits there."""
        return tuple(sorted({*self.kinks, *self.jumps, *self.poles}, key=float))

    @cached_property
    def value(self) -> sp.Expr:
        """psi(b) in a form whose every part is a finite real number wherever psi is: the expression itself where it is
        so, else branch by branch. (heaviside(b) sqrt(b) is 0 for b < 0, but its second factor is not real there.)"""
        return self._computable(self.expression, lambda branch: branch)

    @cached_property
    def derivative(self) -> sp.Expr:
        """psi'(b) away from the breaks (the point masses that jumps would contribute are left out), in such a form."""
        plain = sp.diff(self.expression, B).replace(sp.DiracDelta, lambda *_: sp.Integer(0)).doit()
        # psi and all of its parts are real where it is: |x|' would be written with real and imaginary parts of x
        plain = plain.replace(sp.re, lambda x: x).replace(sp.im, lambda _: sp.Integer(0))
        return self._computable(plain, lambda branch: sp.diff(branch, B))

    def _computable(self, plain: sp.Expr, of: Callable[[sp.Expr], sp.Expr]) -> sp.Expr:
        points = [cut for cut in self.cuts if cut not in self.breaks]
        points += [_inside(low, high) for low, high in _gaps(self.cuts)]
        if all(_sound(plain, at) for at in points if self.domain[0] < at < self.domain[1]):
            return plain
        cases = []
        for left, right in pairwise(self.branches):
            # The break itself goes to the side that has a value there: b log(b) has none at 0.
            after = _sound(of(right.expression), left.high)
            cases.append((of(left.expression), left.high > B if after else left.high >= B))
        return sp.Piecewise(*cases, (of(self.branches[-1].expression), True))

    @property
    def affine(self) -> tuple[sp.Expr, sp.Expr] | None:
        """(slope, intercept) when psi(b) = slope b + intercept on the whole line, otherwise None."""
        if self.breaks or self.domain != (-sp.oo, sp.oo) or len(self.branches) != 1:
            return None
        expression = sp.expand(self.branches[0].expression)
        if not expression.is_polynomial(B) or sp.degree(expression, B) > 1:
            return None
        return expression.coeff(B, 1), expression.coeff(B, 0)

    @cached_property
    def linear_pieces(self) -> tuple[tuple[sp.Expr, sp.Expr], ...] | None:
        """(slope, intercept) on each interval between the breaks, when psi is linear there on the whole line, otherwise
        None: integrals of exp(i alpha psi) against a frequency then have a closed form."""
        if self.poles or self.domain != (-sp.oo, sp.oo):
            return None
        found = []
        for low, high in pairwise((-sp.oo, *self.breaks, sp.oo)):
            (branch,) = [b for b in self.branches if b.low <= low and high <= b.high]
            expression = sp.expand(branch.expression)
            if not expression.is_polynomial(B) or sp.degree(expression, B) > 1:
                return None
            found.append((expression.coeff(B, 1), expression.coeff(B, 0)))
        return tuple(found)

    @cached_property
    def growth(self) -> tuple[sp.Expr | None, sp.Expr | None]:
        """The least k with psi = O(|b|^(k + eps)) towards -inf and towards +inf; oo when no power bounds it (exp), None
        when sympy cannot say."""
        return _order(self.branches[0].expression, -1), _order(self.branches[-1].expression, +1)

    @cached_property
    def lipschitz(self) -> sp.Expr | None:
        """sup |psi'| over the branches: oo across jumps, poles and unbounded slopes, None when sympy cannot say."""
        if self.jumps or self.poles or self.domain != (-sp.oo, sp.oo):
            return sp.oo
        bounds = [_patiently(partial(_slope, branch)) for branch in self.branches]
        known = [bound for bound in bounds if bound is not None]
        return max(known, key=float) if len(known) == len(bounds) else None

    def __str__(self) -> str:
        kinks, jumps, poles = (list(points) for points in (self.kinks, self.jumps, self.poles))
        return f"{self.text}: {self.expression}; kinks {kinks}, jumps {jumps}, poles {poles}"


def activation_names() -> tuple[str, ...]:
    """The registered names, in the order of registration."""
    return tuple(_registry)


def is_registered_by_user(name: str) -> bool:
    """Whether the name is one that `register_psi` added to the shipped ones."""
    return name.strip() in _registry and name.strip() not in _SHIPPED


def definition(text: str) -> str:
    """A name that was registered as the expression that it stands for, other text as it is: text that another process reads
    as the same psi."""
    return _registry[text.strip()] if is_registered_by_user(text) else text


def register_psi(name: str, text: str | sp.Expr) -> Psi:
    """Give an expression in b, as text of the grammar of `parse_psi` or in sympy, a name; return what was found about it.

    Raises InputError for a name that is not an identifier or already taken, and whatever `analyse` raises for the text.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z_0-9]{0,63}", name):
        raise InputError(f"psi's name {name!r} is not an identifier of at most 64 letters, digits and underscores")
    spelled = text if isinstance(text, str) else spell(text)
    if (name in _registry and _registry[name] != spelled) or name in ("b", "e", "pi", "where"):
        raise InputError(f"psi's name {name!r} is taken; choose another")
    if name not in _registry and name in FUNCTIONS:
        raise InputError(f"psi's name {name!r} is a function of the grammar; choose another")
    psi = _analyse(name, spelled)
    _registry[name] = spelled
    return psi


def psi_expression(text: str) -> sp.Expr:
    """The expression that a registered name or a text of the grammar stands for."""
    if isinstance(text, str) and text.strip() in _registry:
        return parse_psi(_registry[text.strip()])
    if isinstance(text, str) and re.fullmatch(r"\s*[A-Za-z_]\w*\s*", text) and text.strip() not in ("b", "e", "pi"):
        hint = nearest(text.strip(), (*_registry, *WORDS))
        raise InputError(
            f"psi {text.strip()!r} is not a known name{hint}; known: {', '.join(_registry)}; or an expression in b"
        )
    return parse_psi(text)


def analyse(text: str) -> Psi:
    """Parse a name or an expression in b and find its branches, kinks, jumps, poles and domain.

    Raises InputError for text outside the grammar and UnsupportedError where the breaks cannot be found (the message
    names the equation that sympy could not solve, or that has infinitely many roots).
    """
    return _analyse(text, _registry.get(text.strip(), text) if isinstance(text, str) else text)


@lru_cache(maxsize=256)
def _analyse(name: str, text: str) -> Psi:
    try:
        found = within(PATIENCE, lambda: _found(name, psi_expression(text)))
    except (RecursionError, OverflowError, MemoryError, ValueError) as error:
        long = "for integer string conversion" in str(error)  # Python writes no whole numbers of more than 4,300 digits
        if isinstance(error, ValueError) and not long:
            raise
        raise UnsupportedError(
            f"psi {name!r} is too involved for its breaks to be found ({'numbers of thousands of digits' if long else error}); "
            "simplify it"
        ) from None
    if found is None:
        raise UnsupportedError(
            f"psi {name!r}: its breaks were not found within {PATIENCE:g} seconds; write it in fewer or simpler functions"
        )
    return found


def _found(name: str, expression: sp.Expr) -> Psi:
    _check_constants(expression, name)
    cuts = _cuts(expression, name)
    branches = []
    for low, high in _gaps(cuts):
        branch = _branch(expression, _inside(low, high))
        if _real_on(branch, low, high):
            branches.append(Branch(low, high, branch))
    if not branches:
        raise InputError(f"psi {name!r} is real nowhere; mend the expression")
    _check_contiguous(branches, name)
    found = _classify(name, expression, _merge(branches), tuple(cuts))
    for printed in (found.value, found.derivative):  # 1e300 erf'(1e300 b) is written with 1e600
        _check_constants(printed, name)
    return found


def _patiently(work: Callable[[], Result | None], seconds: float = SECONDS) -> Result | None:
    """What sympy finds, or None: it says that it does not know, or is not done in time."""
    try:
        return within(seconds, work)
    except _GIVE_UP:
        return None


def _classify(
    name: str, expression: sp.Expr, pieces: tuple[list[Branch], list[sp.Expr]], cuts: tuple[sp.Expr, ...]
) -> Psi:
    """Sort the cuts that separate different branches into kinks, jumps and poles."""
    branches, gaps = pieces
    kinks, jumps, poles = list(gaps), [], []
    domain = (branches[0].low, branches[-1].high)
    for left, right in pairwise(branches):
        at = left.high
        below, above = (_limit(left.expression, at, "-"), _limit(right.expression, at, "+"))
        if not (below.is_finite and above.is_finite):
            poles.append(at)
        elif abs(sp.N(below - above)) < 1e-14:
            kinks.append(at)
        else:
            jumps.append(at)
    return Psi(
        name,
        expression,
        tuple(branches),
        tuple(sorted(set(kinks), key=float)),
        tuple(jumps),
        tuple(poles),
        domain,
        cuts,
    )


def _merge(branches: Sequence[Branch]) -> tuple[list[Branch], list[sp.Expr]]:
    """Join neighbours that are the same smooth function across their cut; a cut where the expression itself has no
    value (sin(b)/b at 0) stays as a gap, so that no quadrature node falls on it."""
    merged, gaps = [branches[0]], []
    for branch in branches[1:]:
        last = merged[-1]
        same = _same(last.expression, branch.expression)
        value = branch.expression.subs(B, branch.low)
        below, above = (value, value) if value.is_finite else _sides(branch.expression, branch.low)
        smooth = above.is_finite and below == above and not _fractional(branch.expression, branch.low)
        if same and smooth:
            merged[-1] = Branch(last.low, branch.high, last.expression)
            if not value.is_finite:
                gaps.append(branch.low)
        else:
            merged.append(branch)
    return merged, gaps


def _same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two smooth expressions are one function. Numbers refute it first: `simplify` takes a second to load."""
    if left == right:
        return True
    points = (sp.Rational(-23, 17), sp.Rational(5, 13), sp.Rational(31, 19))
    values = [value_at(left - right, B, point).evalf(30) for point in points]
    if any(value.is_comparable and abs(value) > sp.Float("1e-15") for value in values):
        return False
    return bool(sp.expand(left - right) == 0 or _patiently(lambda: sp.simplify(left - right)) == 0)


def _fractional(expression: sp.Expr, at: sp.Expr) -> bool:
    """Whether a root or logarithm of zero stands in the expression at this point, so that it is not smooth there."""
    powers = [p for p in expression.atoms(sp.Pow) if not p.exp.is_integer and p.base.has(B)]
    return any(_vanishes(p.base, at) for p in powers) or any(_vanishes(g.args[0], at) for g in expression.atoms(sp.log))


def _vanishes(expression: sp.Expr, at: sp.Expr) -> bool:
    value = value_at(expression, B, at)
    return bool(value.is_zero) or (value.is_number and abs(sp.N(value)) < 1e-14)


def _check_constants(expression: sp.Expr, name: str) -> None:
    """Refuse constants that overflow double precision, before they become inf in a kernel."""
    for node in sp.preorder_traversal(expression):
        if (node.is_number and not node.is_Number) or node.is_Rational:
            exact = value_at(node, B, sp.Integer(0))
            size = sp.log(abs(exact), 10).evalf(8) if node.is_Rational and node != 0 else abs(exact).evalf(8)
            limit = 300 if node.is_Rational else sp.Float("1e300")
            if node != 0 and (not size.is_comparable or size > limit):
                raise InputError(f"psi {name!r} holds a constant beyond 1e300; rescale the expression")
            if node.is_Rational and node != 0 and size < -_LEAST:
                raise InputError(f"psi {name!r} holds a constant below 1e-{_LEAST}; rescale the expression")


def _cuts(expression: sp.Expr, name: str) -> list[sp.Expr]:
    """All candidates: the roots of what decides a switch, of denominators, and of arguments of roots and logarithms."""
    deciders = []
    for node in sp.postorder_traversal(expression):
        deciders += _deciders(node)
    cuts: list[sp.Expr] = []
    for decider in dict.fromkeys(deciders):  # innermost first: a decider is smooth between the cuts found before it
        roots: set[sp.Expr] = set()
        for low, high in _gaps(cuts):
            branch = _branch(decider, _inside(low, high))
            if _real_on(branch, low, high):
                roots |= _roots(branch, name, low, high)
        rounded = {sp.Float(root, 20) if root.is_Float else root for root in roots}
        cuts = sorted({*cuts, *rounded}, key=float)
    return cuts


def _deciders(node: sp.Basic) -> list[sp.Expr]:
    """Expressions whose zeros are where this node may switch, blow up or stop being real."""
    if isinstance(node, sp.Max | sp.Min):
        pairs = [(x, y) for i, x in enumerate(node.args) for y in node.args[:i]]
        return [x - y for x, y in pairs if (x - y).has(B)]
    if isinstance(node, sp.Abs | sp.sign | sp.Heaviside):
        return [node.args[0]] if node.args[0].has(B) else []
    if isinstance(node, sp.Piecewise):
        conditions = [c for _, condition in node.args for c in condition.atoms(Relational)]
        return sorted((c.lhs - c.rhs for c in conditions if c.has(B)), key=sp.default_sort_key)
    if isinstance(node, sp.Pow) and node.base.has(B) and (node.exp.is_negative or not node.exp.is_integer):
        return [node.base]
    if isinstance(node, sp.log) and node.args[0].has(B):
        return [node.args[0]]
    return []


def _roots(expression: sp.Expr, name: str, low: sp.Expr, high: sp.Expr, derivatives: int = 0) -> set[sp.Expr]:
    """The real roots in [low, high] of an expression that is smooth between; none for one that is identically zero."""
    expression = sp.expand(elementary(expression))
    if expression == 0 or not expression.has(B):
        return set()
    terms = _exponential_terms(expression)
    if terms is not None:
        return {root for root in _roots_of_exponentials(terms) if _lies(low, root, high)}
    listed = _patiently(lambda: sp.solveset(expression, B, sp.S.Reals), SECONDS / (1 + 2 * derivatives))
    if listed is sp.S.EmptySet:
        return set()
    if isinstance(listed, sp.FiniteSet):
        return {root for root in listed if (root.is_real or root.is_comparable) and _lies(low, root, high)}
    if derivatives == _DERIVATIVES:
        raise UnsupportedError("out of reach")
    try:
        return _between_extremes(expression, name, low, high, derivatives)
    except UnsupportedError:
        raise UnsupportedError(
            f"psi {name!r}: the points where {expression} = 0 could not be listed (infinitely many, or no closed form), so "
            "its breaks are unknown; write it with where(), max, min or abs of simpler arguments"
        ) from None


def _lies(low: sp.Expr, root: sp.Expr, high: sp.Expr) -> bool:
    """Whether low <= root <= high, to the digits that places are known to: sympy has more of exact numbers, but not all."""
    return bool(low.evalf(_DIGITS) <= root.evalf(_DIGITS) <= high.evalf(_DIGITS))


def _polynomial_roots(polynomial: sp.Poly) -> set[sp.Expr]:
    if polynomial.degree() <= 2:
        return {root for root in sp.roots(polynomial) if root.is_real}
    if all(coefficient.is_Rational for coefficient in polynomial.all_coeffs()):
        every = sp.real_roots(polynomial)
        return {root if isinstance(root, sp.Rational) else sp.Float(root.evalf(_DIGITS), _DIGITS) for root in every}
    near = polynomial.nroots(n=_DIGITS, maxsteps=500)
    return {sp.Float(sp.re(root), _DIGITS) for root in near if abs(sp.im(root)) < sp.Float("1e-25") * (1 + abs(root))}


def _exponential_terms(expression: sp.Expr) -> dict[sp.Expr, sp.Poly] | None:
    """{r: p} with the roots of expression being those of sum_r p(b) e^(r b), p polynomials; None for anything else."""
    plain = expression.replace(sp.tanh, lambda x: (sp.exp(2 * x) - 1) / (sp.exp(2 * x) + 1))
    above = sp.expand(sp.together(plain).as_numer_denom()[0], power_exp=True) if plain.has(sp.exp) else plain
    found: dict[sp.Expr, sp.Expr] = {}
    for term in sp.Add.make_args(above):
        powers = [x for x in sp.Mul.make_args(term) if x.has(B) and (isinstance(x, sp.exp) or x.func == sp.exp)]
        rest = term / sp.Mul(*powers)
        exponent = sp.expand(sp.Add(*(power.args[0] for power in powers)))
        rate = exponent.coeff(B, 1)
        if not (rest.is_polynomial(B) and (exponent - rate * B).is_zero and rate.is_Rational):
            return None
        found[rate] = found.get(rate, sp.Integer(0)) + rest
    polynomials = {rate: sp.Poly(sp.expand(part), B) for rate, part in found.items()}
    return {rate: part for rate, part in polynomials.items() if not part.is_zero}


def _roots_of_exponentials(terms: dict[sp.Expr, sp.Poly]) -> set[sp.Expr]:
    """All real roots of sum_r p_r(b) e^(r b).

    Times e^(-r b), which has no root, the term of least degree is a polynomial, and each derivative lowers its degree:
    after finitely many a single term is left. Back from there, signs at neighbouring extremes (and at the ends of the
    line, where the leading term decides) say where the roots are.
    """
    if not terms:
        return set()
    if len(terms) == 1:
        ((_, polynomial),) = terms.items()
        return _polynomial_roots(polynomial)
    lowest = min(terms, key=lambda rate: (terms[rate].degree(), abs(rate), rate))
    scaled = {rate - lowest: part for rate, part in terms.items()}
    slopes = {rate: part.diff(B) + part * rate for rate, part in scaled.items()}
    turning = _roots_of_exponentials({rate: part for rate, part in slopes.items() if not part.is_zero})
    first, last = min(scaled), max(scaled)
    ends = (_sign(scaled[first].LC()) * (-1) ** scaled[first].degree(), _sign(scaled[last].LC()))
    expression = sp.Add(*(part.as_expr() * sp.exp(rate * B) for rate, part in scaled.items()))
    inner = sorted(turning, key=float)
    signs = [ends[0], *(_sign(value_at(expression, B, at)) for at in inner), ends[1]]
    return _crossings(expression, [-sp.oo, *inner, sp.oo], signs)


def _sign(value: sp.Expr) -> int:
    """The sign of a number; 0 for what is 0 to the digits that places are known to."""
    number = value.evalf(_DIGITS)
    return 0 if abs(number) < sp.Float("1e-30") else (1 if number > 0 else -1)


def _between_extremes(expression: sp.Expr, name: str, low: sp.Expr, high: sp.Expr, derivatives: int) -> set[sp.Expr]:
    """The roots in (low, high), by Rolle's theorem: one where the signs at two neighbouring extremes differ."""
    turning = _roots(sp.diff(expression, B), name, low, high, derivatives + 1)
    edges = [low, *sorted({x for x in turning if _lies(low, x, high) and x not in (low, high)}, key=float), high]
    sides = "+" * (len(edges) - 1) + "-"
    return _crossings(
        expression, edges, [_sign_at(expression, at, side) for at, side in zip(edges, sides, strict=True)]
    )


def _crossings(expression: sp.Expr, edges: Sequence[sp.Expr], signs: Sequence[int]) -> set[sp.Expr]:
    """The roots of what is monotone between `edges` and has these signs there."""
    with mpmath.workdps(_DIGITS + 10):
        value = sp.lambdify(B, expression, [{"exp": _exp}, "mpmath"])
        found = {at for at, sign in zip(edges[1:-1], signs[1:-1], strict=True) if sign == 0}
        for (left, right), (before, after) in zip(pairwise(edges), pairwise(signs), strict=True):
            if before * after < 0:
                root = _bisected(value, *_bracket(value, left, right, before, after))
                simple = sp.nsimplify(root, rational=True, tolerance=sp.Float("1e-30"))
                found.add(simple if expression.subs(B, simple) == 0 else root)
    return found


def _exp(x: mpmath.mpf) -> mpmath.mpf:
    """e^x; infinite or 0 where mpmath would take for ever."""
    return mpmath.inf if x > 1e8 else mpmath.mpf(0) if x < -1e8 else mpmath.exp(x)


def _sign_at(expression: sp.Expr, at: sp.Expr, side: str) -> int:
    """The sign of the limit at a point or an end of the line; 0 for a root."""
    limit = value_at(expression, B, at) if at.is_finite else sp.nan
    if not limit.is_finite:
        limit = _patiently(lambda: sp.limit(expression, B, at, side))
    if limit is None or not (limit.is_comparable or limit in (sp.oo, -sp.oo)):
        raise UnsupportedError(f"the limit of {expression} at b = {at} could not be found")
    return _sign(limit) if limit.is_finite else (1 if limit > 0 else -1)


def _bracket(
    value: Callable[[mpmath.mpf], mpmath.mpf], low: sp.Expr, high: sp.Expr, before: int, after: int
) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Finite points with the signs that the ends have in the limit."""

    def nearing(end: sp.Expr, other: sp.Expr, sign: int) -> mpmath.mpf:
        for point in _approaching(end, other):
            with contextlib.suppress(
                ZeroDivisionError, ValueError, OverflowError
            ):  # at the end itself it may be infinite
                if sign * mpmath.re(value(point)) > 0:
                    return point
        raise UnsupportedError(f"a root between b = {low} and b = {high} lies beyond reach; rescale psi")

    return nearing(low, high, before), nearing(high, low, after)


def _approaching(end: sp.Expr, other: sp.Expr) -> Iterator[mpmath.mpf]:
    """Points ever nearer to an end, coming from the other one."""
    if end.is_finite:
        at = mpmath.mpf(str(end.evalf(_DIGITS)))
        yield at
        reach = mpmath.mpf(str(other.evalf(_DIGITS))) - at if other.is_finite else mpmath.sign(float(other)) * 1
        yield from (at + reach * mpmath.mpf(2) ** -k for k in range(1, 120))
    else:
        start = mpmath.mpf(str(other.evalf(_DIGITS))) if other.is_finite else mpmath.mpf(0)
        yield from (start + mpmath.sign(float(end)) * mpmath.mpf(2) ** k for k in range(-8, 60))


def _bisected(value: Callable[[mpmath.mpf], mpmath.mpf], low: mpmath.mpf, high: mpmath.mpf) -> sp.Expr:
    positive = mpmath.re(value(low)) > 0
    while abs(high - low) > mpmath.mpf(10) ** -_DIGITS * max(abs(low), abs(high), 1):
        middle = (low + high) / 2
        low, high = (middle, high) if (mpmath.re(value(middle)) > 0) == positive else (low, middle)
    return sp.Float(mpmath.nstr((low + high) / 2, _DIGITS), _DIGITS)


def _gaps(cuts: Sequence[sp.Expr]) -> list[tuple[sp.Expr, sp.Expr]]:
    edges = [-sp.oo, *cuts, sp.oo]
    return list(pairwise(edges))


def _inside(low: sp.Expr, high: sp.Expr) -> sp.Rational:
    """A point well inside an interval, as an exact rational without special meaning."""
    if low == -sp.oo and high == sp.oo:
        return sp.Rational(37, 64)
    if low == -sp.oo:
        return sp.Rational(float(high)) - sp.Rational(37, 64) * (1 + abs(sp.Rational(float(high))))
    if high == sp.oo:
        return sp.Rational(float(low)) + sp.Rational(37, 64) * (1 + abs(sp.Rational(float(low))))
    a, z = sp.Rational(float(low)), sp.Rational(float(high))
    return a + (z - a) * sp.Rational(37, 64)


def _branch(expression: sp.Expr, at: sp.Expr) -> sp.Expr:
    """The smooth expression that a switching one equals around the point `at`: each switch set as it stands there."""
    if not expression.has(*_SWITCHING):
        return expression
    if isinstance(expression, sp.Piecewise):
        for value, condition in expression.args:
            if _holds(condition, at):
                return _branch(value, at)
        raise UnsupportedError(f"no case of {expression} holds at b = {at}; give where() cases that cover the line")
    arguments = [_branch(argument, at) for argument in expression.args]
    if isinstance(expression, sp.Max | sp.Min):
        choose = max if isinstance(expression, sp.Max) else min
        return choose(arguments, key=lambda argument: _number(argument, at))
    if isinstance(expression, sp.Abs | sp.sign | sp.Heaviside):
        positive = _number(arguments[0], at) > 0
        if isinstance(expression, sp.Abs):
            return arguments[0] if positive else -arguments[0]
        if isinstance(expression, sp.sign):
            return sp.Integer(1 if positive else -1)
        return sp.Integer(1 if positive else 0)
    return expression.func(*arguments)


def _holds(condition: sp.Basic, at: sp.Expr) -> bool:
    if isinstance(condition, Relational):
        difference = _number(_branch(condition.lhs, at), at) - _number(_branch(condition.rhs, at), at)
        if math.isnan(difference):
            raise UnsupportedError(f"{condition} compares what is not a real number at b = {at}; use where() around it")
        return bool(condition.func(sp.Float(difference), 0))
    if isinstance(condition, sp.And | sp.Or):
        return (all if isinstance(condition, sp.And) else any)(_holds(part, at) for part in condition.args)
    if isinstance(condition, sp.Not):
        return not _holds(condition.args[0], at)
    return bool(condition == sp.true)


def _number(expression: sp.Expr, at: sp.Expr) -> float:
    """The value at a point, for comparing; nan where it is not real."""
    value = value_at(expression, B, at).evalf(30)
    return float(value) if value.is_comparable else math.nan


def _real_on(branch: sp.Expr, low: sp.Expr, high: sp.Expr) -> bool:
    """Whether a smooth branch is real on an interval between cuts (roots and logarithms change sign at cuts only)."""
    return not math.isnan(_number(branch, _inside(low, high)))


def _check_contiguous(branches: Sequence[Branch], name: str) -> None:
    for left, right in pairwise(branches):
        if left.high != right.low:
            raise UnsupportedError(
                f"psi {name!r} is not real between b = {left.high} and b = {right.low}; use where() there"
            )


def _sound(expression: sp.Expr, at: sp.Expr) -> bool:
    """Whether every part that a kernel would compute is a finite real number at a point."""
    if not expression.has(B):
        return True
    if isinstance(expression, sp.Piecewise):  # computed case by case, without complaint
        return all(_sound(value, at) for value, condition in expression.args if _holds(condition, at))
    if not all(_sound(part, at) for part in expression.args if isinstance(part, sp.Expr)):
        return False
    if not isinstance(expression, sp.Pow | sp.log):
        return True
    value = value_at(_branch(expression, at), B, at).evalf(15)
    return bool(value.is_comparable and value.is_finite)


def _limit(expression: sp.Expr, at: sp.Expr, side: str = "+") -> sp.Expr:
    value = value_at(expression, B, at)
    if value.is_finite and not _fractional(expression, at):
        return value
    found = _patiently(lambda: sp.limit(elementary(expression), B, at, side))
    if found is None:
        raise UnsupportedError(
            f"the limit of {expression} at b = {at} could not be found; write psi in simpler functions"
        )
    return found


def _sides(expression: sp.Expr, at: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    return _limit(expression, at, "-"), _limit(expression, at, "+")


def _order(expression: sp.Expr, direction: int) -> sp.Expr | None:
    """The least power that bounds a smooth expression towards direction * oo, by the limit of b psi' / psi."""
    plain = elementary(expression)
    if plain.is_polynomial(B):
        return sp.Integer(max(sp.degree(plain, B), 0)) if plain != 0 else sp.Integer(0)
    if plain.has(sp.sin, sp.cos):
        outer = sp.diff(plain, B, 2)
        return sp.Integer(0) if isinstance(plain, sp.sin | sp.cos) and outer is not None else None
    end = _patiently(lambda: sp.limit(plain, B, direction * sp.oo))
    if end is not None and end.is_finite:
        return sp.Integer(0)
    order = _patiently(lambda: sp.limit(B * sp.diff(plain, B) / plain, B, direction * sp.oo))
    return order if order is not None and (order.is_comparable or order == sp.oo) else None


def _slope(branch: Branch) -> sp.Expr | None:
    """sup |psi'| on one branch where its slope is monotone or its extremes can be listed."""
    slope = elementary(sp.diff(branch.expression, B))
    try:
        ends = [abs(sp.limit(slope, B, end, side)) for end, side in ((branch.low, "+"), (branch.high, "-"))]
        inner = _roots(sp.together(sp.diff(slope, B)), "slope", branch.low, branch.high)
    except (*_GIVE_UP, UnsupportedError):
        return sp.Integer(1) if slope == sp.cos(B) else None
    extremes = [abs(slope.subs(B, x)) for x in inner if branch.low < x < branch.high]
    return max([*ends, *extremes], key=float) if all(x.is_comparable or x == sp.oo for x in ends) else None
