"""Function sections of a generated kernel module: psi, and the integrands of the posterior families. Sympy expressions
go in, numpy source comes out, through sympy's own printers, with common subexpressions shared. The leaf functions of
the tree and the assembly of the module are not here. The text depends on nothing but the arguments.

The sections expect ``import numpy as np``, ``from scipy import special`` and ``from elbotree import runtime as rt``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import sympy as sp
from sympy.printing.numpy import SciPyPrinter
from sympy.printing.precedence import PRECEDENCE

from elbotree.codegen import style
from elbotree.derivation.activations import Psi, analyse
from elbotree.derivation.families import (
    CROSS_ENTROPY,
    LOG_RATIO,
    PRIOR_PARAMETERS,
    REAL_LINE,
    RELATIVE_ENTROPY,
    Divergence,
    Family,
    U,
    Z,
    get_family,
    pieces,
    polynomial,
)
from elbotree.derivation.grammar import B
from elbotree.derivation.special import LogPartition, Softplus

_INDENT = "    "
_WIDTH = 118
_LONG = 80  # operations: longer derivatives are not multiplied out in search of a shorter form


class KernelPrinter(SciPyPrinter):  # type: ignore[misc]
    """Sympy's numpy/scipy printer with the kernel module's short names, and the functions that it has no word for.

    What differs from SciPyPrinter is stated method by method; everything else is sympy's own.
    """

    _calls: ClassVar[dict[str, str]] = {
        "Sigmoid": "special.expit({0})",
        "Softplus": "np.logaddexp(0.0, {0})",
        "LogSoftplus": "rt.posteriors.log_softplus({0})",
        "SoftplusLogSlope": "rt.posteriors.softplus_log_slope({0})",
        "NormalCdf": "special.ndtr({0})",
        "FoldedMean": "rt.posteriors.folded_mean({0}, {1})",
        "FoldedSlope": "rt.posteriors.folded_slope({0}, {1})",
        "FoldedSpread": "rt.posteriors.folded_spread({0}, {1})",
        "Expm1": "np.expm1({0})",
        "Heaviside": "np.heaviside({0}, 0.5)",
        "Abs": "np.abs({0})",
        "sign": "np.sign({0})",
        "NormalQuantile": "special.ndtri({0})",
        "erf": "special.erf({0})",
        "erfinv": "special.erfinv({0})",
        "erfcinv": "special.erfcinv({0})",
        "loggamma": "special.gammaln({0})",
    }

    def __init__(self) -> None:
        super().__init__({"fully_qualified_modules": True, "precision": 17, "allow_unknown_functions": False})

    def _module_format(self, fqn: str, register: bool = True) -> str:
        name = super()._module_format(fqn, register)
        return str(name).replace("numpy.", "np.").replace("scipy.special.", "special.")

    def _call(self, expr: sp.Expr) -> str:
        return self._calls[type(expr).__name__].format(*(self._print(argument) for argument in expr.args))

    _print_Sigmoid = _print_Softplus = _print_LogSoftplus = _print_SoftplusLogSlope = _print_NormalCdf = _call
    _print_FoldedMean = _print_FoldedSlope = _print_FoldedSpread = _print_NormalQuantile = _call
    _print_erfinv = _print_erfcinv = _call
    _print_Expm1 = _print_Heaviside = _print_Abs = _print_sign = _print_erf = _print_loggamma = _call

    def _print_LogPartition(self, expr: sp.Expr) -> str:
        c, precision, order = (self._print(argument) for argument in expr.args)
        return f"base.log_partition({c}, {precision}, {order})"

    def _print_polygamma(self, expr: sp.Expr) -> str:
        order, x = expr.args
        return f"special.digamma({self._print(x)})" if order == 0 else f"special.polygamma({order}, {self._print(x)})"

    def _print_Integer(self, expr: sp.Expr) -> str:
        return str(expr.p) if abs(expr.p) < 2**53 else repr(float(expr.p))  # numpy has no functions of larger ints

    def _print_Rational(self, expr: sp.Expr) -> str:
        """The nearest double, correctly rounded."""
        return repr(int(expr.p) / int(expr.q))

    def _print_Half(self, expr: sp.Expr) -> str:
        return "0.5"

    def _print_Float(self, expr: sp.Expr) -> str:
        return repr(float(expr))

    def _print_NumberSymbol(self, expr: sp.Expr) -> str:
        return (
            f"np.{ {'pi': 'pi', 'E': 'e', 'EulerGamma': 'euler_gamma'}[str(expr) if str(expr) != 'exp(1)' else 'E'] }"
        )

    _print_Pi = _print_Exp1 = _print_EulerGamma = _print_NumberSymbol

    def _print_Pow(self, expr: sp.Expr, rational: bool = False) -> str:
        """Reciprocals as divisions: an array of integers refuses b**(-2)."""
        if expr.exp.is_Integer and expr.exp.is_negative:
            return f"(1.0/{self.parenthesize(1 / expr, PRECEDENCE['Mul'], strict=False)})"
        return str(super()._print_Pow(expr, rational=rational))

    def _nest(self, name: str, expr: sp.Expr) -> str:
        """np.maximum and its like take two arguments; sympy would reach for functools.reduce or np.logical_or.reduce, which hides
        its arguments from classes that are no arrays (`runtime.enclosures`)."""
        first, *rest = (str(self._print(argument)) for argument in sorted(expr.args, key=sp.default_sort_key))
        for argument in rest:
            first = f"np.{name}({first}, {argument})"
        return first

    def _print_Max(self, expr: sp.Expr) -> str:
        return self._nest("maximum", expr)

    def _print_Min(self, expr: sp.Expr) -> str:
        return self._nest("minimum", expr)

    def _print_And(self, expr: sp.Expr) -> str:
        return self._nest("logical_and", expr)

    def _print_Or(self, expr: sp.Expr) -> str:
        return self._nest("logical_or", expr)

    def _print_Piecewise(self, expr: sp.Expr) -> str:
        text = self._branch(expr.args[-1].expr)
        if expr.args[-1].cond != sp.true:
            text = f"np.where({self._print(expr.args[-1].cond)}, {text}, np.nan)"
        for case in reversed(expr.args[:-1]):
            text = f"np.where({self._print(case.cond)}, {self._branch(case.expr)}, {text})"
        return text

    def _branch(self, expr: sp.Expr) -> str:
        """A branch; numpy would make integers of branches that all are."""
        return repr(float(expr)) if isinstance(expr, sp.Integer) else str(self._print(expr))


def print_expression(expression: sp.Expr) -> str:
    """One numpy expression."""
    return style.expression(str(KernelPrinter().doprint(expression)))


def print_function(
    name: str,
    arguments: Sequence[sp.Symbol],
    result: sp.Expr | Sequence[sp.Expr],
    comment: str,
    quiet: bool = False,
) -> str:
    """Source of one function: `arguments` positional, all other symbols keyword-only, subexpressions shared.

    result: an expression, or a sequence of them (the function then returns a tuple). comment: stands above, wrapped.
    quiet: compute under np.errstate(all="ignore"), for expressions that evaluate a branch where it is not taken.
    """
    results = [result] if isinstance(result, sp.Basic) else list(result)
    free = sorted({s.name for r in results for s in r.free_symbols} - {s.name for s in arguments})
    free += ["base"] if any(r.has(LogPartition) for r in results) else []
    shared, reduced = sp.cse(results, symbols=sp.numbered_symbols("x"), order="canonical")
    texts = [print_expression(r) for r in reduced]
    if isinstance(result, sp.Basic) and arguments and not result.free_symbols & set(arguments):
        texts = [f"np.full(np.shape({arguments[0].name}), {texts[0]}, dtype=np.float64)"]
    indent = _INDENT * 2 if quiet else _INDENT
    lines = [f'{_INDENT}with np.errstate(all="ignore"):'] if quiet else []
    for symbol, value in shared:
        lines += style.assignment(symbol.name, print_expression(value), indent)
    lines += style.returned(texts if isinstance(result, sp.Basic) or len(texts) > 1 else [f"({texts[0]},)"], indent)
    signature = ", ".join([s.name for s in arguments] + (["*", *free] if free else []))
    return "\n".join([*_comment(comment), *fold(f"def {name}({signature}):"), *lines])


def fold(line: str) -> list[str]:
    """A line of source, broken at its outermost bracket (else at its outermost sums) when it is too long."""
    if len(line) <= _WIDTH:
        return [line]
    margin = line[: len(line) - len(line.lstrip())]
    depths, depth = [], 0
    for character in line:
        depth += character in "([{"
        depths.append(depth)
        depth -= character in ")]}"
    stem = line.rstrip(",")
    opening = next((i for i, (d, ch) in enumerate(zip(depths, line, strict=True)) if d == 1 and ch in "([{"), None)
    closing = next((i for i in range(opening or 0, len(line)) if depths[i] == 1 and line[i] in ")]}"), None)
    is_sum = opening is not None and (" + " in line[:opening] or " - " in line[:opening])
    if opening is not None and closing == len(stem) - 1 and not is_sum:
        inner = _split_at(line[opening + 1 : closing], [d - 1 for d in depths[opening + 1 : closing]], ", ")
        parts = [part for text in inner for part in fold(f"{margin}{_INDENT}{text.rstrip(',')},")]
        return [line[: opening + 1], *parts, margin + line[closing:]]
    head, _, sums = line.partition("return ") if "return " in line else line.partition(" = ")
    start = len(line) - len(sums)
    terms = _split_at(sums, depths[start:], " + ", " - ")
    word = "return (" if "return " in line else " = ("
    return [head + word, *(f"{margin}{_INDENT}{term.strip()}" for term in terms), f"{margin})"]


def _split_at(text: str, depths: Sequence[int], *marks: str) -> list[str]:
    """Split text before each mark that stands outside all brackets (a comma stays with what it follows)."""
    cuts = [0]
    for i, depth in enumerate(depths):
        if depth == 0 and i and any(text.startswith(mark, i) for mark in marks):
            cuts.append(i + 2 if text.startswith(", ", i) else i)
    return [text[a:z].strip() for a, z in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _comment(text: str) -> list[str]:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, _WIDTH - 2, break_long_words=False)]
    return [f"# {line}" for line in lines]


def psi_section(psi_text: str) -> str:
    """Source that defines psi(b), psi_derivative(b) and PSI (rt.Activation), for a name or an expression in b.

    Raises what `elbotree.derivation.activations.analyse` raises.
    """
    psi = analyse(psi_text)
    quiet = bool(psi.poles) or any(e.has(sp.Piecewise) for e in (psi.value, psi.derivative))
    value = print_function("psi", (B,), psi.value, f"psi(b) = {psi.expression}", quiet)
    slope = print_function(
        "psi_derivative", (B,), psi.derivative, f"psi'(b) = {psi.derivative}   away from psi's breaks", quiet
    )
    return f"{value}\n\n\n{slope}\n\n\n{_activation(psi)}\n"


def _activation(psi: Psi) -> str:
    affine = None if psi.affine is None else tuple(float(x) for x in psi.affine)
    fields = {
        "text": _string(psi.text),
        "value": "psi",
        "derivative": "psi_derivative",
        "breaks": _floats(psi.breaks),
        "affine": repr(affine),
        "domain": _floats(psi.domain),
        "poles": _floats(psi.poles),
        "pieces": _pieces(psi),
    }
    listed = "\n".join(f"{_INDENT}{name}={text}," for name, text in fields.items())
    found = (("kinks", psi.kinks), ("jumps", psi.jumps), ("poles", psi.poles))
    said = ", ".join(f"{name} at b = {', '.join(map(str, at))}" for name, at in found if at) or "smooth everywhere"
    return f"# what quadrature must know of psi: {said}\nPSI = rt.Activation(\n{listed}\n)"


def _string(text: str) -> str:
    """A string literal; a long one in parts, for lines have an end."""
    if len(text) <= style.WIDTH - len('    text="",'):
        return f'"{text}"'
    rows = textwrap.wrap(text, style.WIDTH - 20, break_on_hyphens=False, drop_whitespace=False)
    return "\n".join(["(", *(f'{_INDENT * 2}"{row}"' for row in rows), f"{_INDENT})"])


def _pieces(psi: Psi) -> str:
    pieces = psi.linear_pieces
    if pieces is None:
        return "None"
    listed = ", ".join(f"({float(slope)!r}, {float(intercept)!r})" for slope, intercept in pieces)
    return f"({listed}{',' if len(pieces) == 1 else ''})"


def _floats(values: Iterable[sp.Expr]) -> str:
    texts = [repr(float(v)) if v.is_finite else f"{'-' if v == -sp.oo else ''}np.inf" for v in values]
    return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"


def family_section(names: str | Sequence[str]) -> str:
    """Source that defines the public builders (mean, variance, kl, their derivatives) for the chosen families.

    Each builder dispatches on q.family; a family that is not in `names` is refused with a message. Defines FAMILIES,
    mean, variance, kl, mean_derivative, variance_derivative, kl_derivative, mean_parameters, variance_parameters,
    kl_parameters, kl_prior and sampler. Zero derivatives are empty tuples. Raises InputError for unknown names.
    """
    chosen = [names] if isinstance(names, str) else sorted(set(names))
    families = [get_family(name) for name in chosen]
    writers = [_FamilyWriter(family) for family in families]
    parts = [f"FAMILIES = {_strings(chosen)}"]
    parts += [text for writer in writers for text in writer.functions()]
    parts += [_builder(quantity, writers) for quantity in _BUILDERS]
    return "\n\n\n".join(parts) + "\n"


#: public builder -> (arguments, label of its integrands, docstring)
_BUILDERS: dict[str, tuple[str, str, str]] = {
    "mean": ("j, q", "s[{j}]", "s_j(c_j), the mean of Q'_j given c_j."),
    "variance": ("j, q", "V[{j}]", "V_j(c_j), the variance of Q'_j given c_j: a sum of pieces."),
    "kl": ("j, q, prior", "K[{j}]", "K_j(c_j) = KL(Q'_j(c_j) || P_{2,j}): a sum of pieces."),
    "mean_derivative": ("j, q, r", "ds[{j}]/dc{r}", "d s_j / d c_r: a sum of pieces, none when it vanishes."),
    "variance_derivative": ("j, q, r", "dV[{j}]/dc{r}", "d V_j / d c_r: a sum of pieces, none when it vanishes."),
    "kl_derivative": ("j, q, prior, r", "dK[{j}]/dc{r}", "d K_j / d c_r: a sum of pieces, none when it vanishes."),
    "mean_parameters": ("j, q", "ds[{j}]/dparameter", "d s_j by each parameter of the posterior: name -> pieces."),
    "variance_parameters": ("j, q", "dV[{j}]/dparameter", "d V_j by each parameter of the posterior: name -> pieces."),
    "kl_parameters": ("j, q, prior", "dK[{j}]/dparameter", "d K_j by each parameter of the posterior: name -> pieces."),
    "kl_prior": (
        "j, q, prior",
        "dK[{j}]/dprior",
        "d K_j by each parameter of the prior, -E_Q[score]: name -> pieces, or a list of them for an array.",
    ),
    "sampler": ("q", "", "A function (u, *c): draws of beta ~ Q'( . ; c) for u uniform on (0, 1)."),
}


def _strings(names: Sequence[str]) -> str:
    return _join([f'"{name}"' for name in names])


def _builder(quantity: str, writers: Sequence[_FamilyWriter]) -> str:
    arguments, label, summary = _BUILDERS[quantity]
    cases = [
        line
        for writer in writers
        for line in (
            f'{_INDENT * 2}case "{writer.family.name}":',
            *(_INDENT * 3 + line for line in writer.cases[quantity]),
        )
    ]
    lines = [f"def {quantity}({arguments}):", f'{_INDENT}"""{summary}"""']
    lines += [f'{_INDENT}label = f"{label}"'] if any(re.search(r"\blabel\b", case) for case in cases) else []
    lines += [f"{_INDENT}match q.family:", *cases]
    lines.append(f"{_INDENT}raise rt.posteriors.unknown_family(q.family, FAMILIES)")
    return "\n".join(part for line in lines for part in fold(line))


class _FamilyWriter:
    """Writes what one family contributes: its functions, and its case in every public builder.

    The cases are written first (each asks for the functions that it needs by `_pieces`), then `functions` lists them
    in the order of the builders.
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._functions: dict[str, str] = {}
        self.cases: dict[str, list[str]] = {quantity: getattr(self, quantity)() for quantity in _BUILDERS}

    def functions(self) -> list[str]:
        """All functions that the cases refer to."""
        return [*self._law(), *self._functions.values()]

    # -- the public builders' cases ------------------------------------------------------------------------------

    def mean(self) -> list[str]:
        if self.family.mean is None:
            return [f"return {self._by_law('mean')}"]
        return self._by_base("mean", "s", self.family.mean, whole=True)

    def variance(self) -> list[str]:
        if self.family.variance is None:
            return _tuple([self._by_law("variance")])
        return self._by_base("variance", "V", self.family.variance)

    def mean_derivative(self) -> list[str]:
        return self._by_coordinate("mean", "s", self.family.mean)

    def variance_derivative(self) -> list[str]:
        return self._by_coordinate("variance", "V", self.family.variance)

    def mean_parameters(self) -> list[str]:
        return self._by_parameter("mean", "s", self.family.mean)

    def variance_parameters(self) -> list[str]:
        return self._by_parameter("variance", "V", self.family.variance)

    def _by_law(self, quantity: str, score: str = "") -> str:
        """The integrand of a moment without a closed form, by quadrature over the law."""
        return f"rt.posteriors.law_{quantity}(j, {self.family.name}_law(q), label{score})"

    def kl(self) -> list[str]:
        return self._by_prior(lambda form: _tuple(self._divergence(form, "", form.closed)))

    def kl_derivative(self) -> list[str]:
        def each(form: Divergence) -> list[str]:
            return self._over_r(
                lambda r: _tuple(
                    self._divergence(form, f"_c{r}", _slope(form.closed, self.family.c[r]), f"d/dc{r} ", f", score={r}")
                )
            )

        return self._by_prior(each)

    def kl_parameters(self) -> list[str]:
        if not self.family.parameters:
            return ["return {}"]

        def each(form: Divergence) -> list[str]:
            found = {}
            for p in self.family.parameters:
                slope, prefix = _slope(form.closed, p), f"d/d{p.name} "
                found[p.name] = _join(self._divergence(form, f"_{p.name}", slope, prefix, f', score="{p.name}"'))
            return _mapping(found)

        return self._by_prior(each)

    def kl_prior(self) -> list[str]:
        return self._by_prior(self._prior_slopes)

    def sampler(self) -> list[str]:
        family = self.family
        lines: list[str] = []
        for kind, draw in family.samplers.items():
            name = f"{family.name}_draw" + ("" if kind == "*" else f"_on_{kind}")
            said = f"{family.name}: a draw = {draw}   for u uniform on (0, 1)"
            self._functions[name] = print_function(name, (U, *family.c), draw, said)
            bound = self._bound(draw)
            text = f"return rt.posteriors.bind({name}{bound})" if bound else f"return {name}"
            lines += [text] if kind == "*" else [f'if q.base.kind == "{kind}":', _INDENT + text]
        if "*" in family.samplers:
            return lines
        if family.points:
            return [*lines, *self._table()]
        maker = "of_tilted" if family.tilted else "of_law"
        return [*lines, f"return rt.samplers.{maker}({family.name}_law(q))"]

    def _table(self) -> list[str]:
        """The case of a law on finitely many points: its masses as a function of c."""
        family = self.family
        masses = sp.Tuple(*(sp.exp(log_q) for log_q in family.log_masses))
        name, bound = f"{family.name}_masses", self._bound(masses)
        said = f"{family.name}: masses of {', '.join(map(str, family.points))} = {', '.join(map(str, masses))}"
        self._functions[name] = print_function(name, family.c, list(masses), said)
        function = f"rt.posteriors.bind({name}{bound})" if bound else name
        return [f"return rt.samplers.of_masses({_floats(family.points)}, {function})"]

    # -- how a case is written -----------------------------------------------------------------------------------

    def _by_base(self, quantity: str, letter: str, expression: sp.Expr, whole: bool = False) -> list[str]:
        lines: list[str] = []
        for kind in self.family.bases:
            inner = self._return(f"{quantity}_on_{kind}", letter, self.family.on_base(expression, kind), whole)
            lines += [f'if q.base.kind == "{kind}":', *(_INDENT + line for line in inner)]
        return lines + self._return(quantity, letter, expression, whole)

    def _return(self, quantity: str, letter: str, expression: sp.Expr, whole: bool = False) -> list[str]:
        texts = self._pieces(quantity, f"{letter}(c) = ", expression, whole)
        return [f"return {texts[0]}"] if whole else _tuple(texts)

    def _by_coordinate(self, quantity: str, letter: str, expression: sp.Expr | None) -> list[str]:
        if expression is None:
            return self._over_r(lambda r: _tuple([self._by_law(quantity, f", score={r}")]))
        return self._over_r(
            lambda r: self._by_base(f"{quantity}_c{r}", f"d/dc{r} {letter}", _slope(expression, self.family.c[r]))
        )

    def _over_r(self, case: Any) -> list[str]:
        lines: list[str] = []
        for r in range(self.family.t - 1):
            lines += [f"if r == {r}:", *(_INDENT + line for line in case(r))]
        return lines + list(case(self.family.t - 1))

    def _by_parameter(self, quantity: str, letter: str, expression: sp.Expr | None) -> list[str]:
        lines: list[str] = []
        if not self.family.parameters:
            return ["return {}"]
        if expression is None:
            names = [p.name for p in self.family.parameters]
            return _mapping({name: _join([self._by_law(quantity, f', score="{name}"')]) for name in names})
        for kind in (*self.family.bases, ""):
            found = {}
            for p in self.family.parameters:
                name = f"{quantity}_{p.name}" + (f"_on_{kind}" if kind else "")
                slope = _slope(self.family.on_base(expression, kind) if kind else expression, p)
                found[p.name] = _join(self._pieces(name, f"d/d{p.name} {letter}(c) = ", slope))
            inner = _mapping(found)
            lines += [f'if q.base.kind == "{kind}":', *(_INDENT + line for line in inner)] if kind else inner
        return lines

    def _by_prior(self, case: Any) -> list[str]:
        lines: list[str] = []
        for form in self.family.divergences:
            tests = [f'q.base.kind == "{form.base}"'] if form.base != "*" else []
            tests += {"same": ["q.base == prior"], "*": []}.get(form.prior, [f'prior.kind == "{form.prior}"'])
            inner = case(form)
            lines += [f"if {' and '.join(tests)}:", *(_INDENT + line for line in inner)] if tests else inner
        return lines

    def _suffix(self, form: Divergence) -> str:
        prior = {"*": "", "same": "_on_same"}.get(form.prior, f"_{form.prior}")
        return prior + (f"_on_{form.base}" if form.base != "*" else "")

    def _divergence(
        self, form: Divergence, suffix: str, expression: sp.Expr, prefix: str = "", score: str = ""
    ) -> list[str]:
        name = f"kl{self._suffix(form)}{suffix}"
        more = _REMAINDERS[form.remainder]
        texts = self._pieces(name, f"{prefix}K(c){' less quadrature:' + more if more else ''} = ", expression)
        if form.remainder:
            texts.append(f"rt.posteriors.{form.remainder}(j, {self.family.name}_law(q), prior, label{score})")
        return texts

    def _prior_slopes(self, form: Divergence) -> list[str]:
        family = self.family
        if form.prior in PRIOR_PARAMETERS and not form.remainder:
            found = {}
            for symbol in PRIOR_PARAMETERS[form.prior]:
                key = symbol.name.removeprefix("prior_")
                slope = _slope(form.closed, symbol)
                name = f"kl{self._suffix(form)}_{symbol.name}"
                found[key] = _join(self._pieces(name, f"d/d{symbol.name} K(c) = ", slope))
            return _mapping(found)
        if family.points:
            slopes = {}
            for i, point in enumerate(family.points):
                name = f"{family.name}_kl_log_p{i}"
                slope = sp.diff(form.closed, sp.Symbol(f"log_p{i}", real=True))
                text = f"{family.name}: d/dlog p({point}) K(c) = {slope}"
                self._functions[name] = print_function(name, family.c, slope, text)
                slopes[point] = name
            listed = ", ".join(f"{float(point)}: {name}" for point, name in slopes.items())
            return [f"return rt.posteriors.through_masses(j, {family.t}, {{{listed}}}, prior, label)"]
        return [f"return rt.posteriors.prior_scores(j, {family.name}_law(q), prior, label)"]

    # -- functions -----------------------------------------------------------------------------------------------

    def _pieces(self, quantity: str, formula: str, expression: sp.Expr, whole: bool = False) -> list[str]:
        """Print the pieces of an expression as functions; return the texts that make their integrands."""
        family = self.family
        found = pieces(expression, family.c)
        if whole and len(found) > 1:
            uses = tuple(i for i, c in enumerate(family.c) if expression.has(c))
            found = [(uses, expression)]
        texts = []
        for uses, part in found:
            name = f"{family.name}_{quantity}" + (f"_{''.join(map(str, uses))}" if len(found) > 1 else "")
            said = f"{family.name}: {formula}{part}" + (f"   (the part in c{uses[0]})" if len(found) > 1 else "")
            coefficients = polynomial(part, uses, family.c)
            if coefficients is None:
                arguments, text = [family.c[i] for i in uses], part
                texts.append(f"rt.posteriors.piece(j, {uses}, {name}, label{self._bound(part)})")
            elif uses:
                name, arguments, text = f"{name}_coefficients", [], coefficients
                bound = self._bound(sp.Tuple(*coefficients)).removeprefix(", ")
                texts.append(f"rt.posteriors.polynomial(j, {uses[0]}, {name}({bound}), label)")
                said += ", by its coefficients"
            else:
                arguments, text = [], part
                texts.append(f"rt.Integrand.constant(j, {name}({self._bound(part).removeprefix(', ')}), label)")
            self._functions[name] = print_function(name, arguments, text, said)
        return texts

    def _bound(self, expression: sp.Basic) -> str:
        """', std=q.parameters["std"], ...' for every symbol that is neither an encoder parameter nor z."""
        symbols = sorted(s.name for s in expression.free_symbols - {Z, U, *self.family.c})
        sources = [f"{name}={self._source(name)}" for name in symbols]
        sources += ["base=q.base"] if expression.has(LogPartition) else []
        return "".join(f", {source}" for source in sources)

    def _source(self, name: str) -> str:
        if name.startswith("prior_"):
            return f'prior.parameters()["{name.removeprefix("prior_")}"]'
        if name.startswith("base_"):
            return f'q.base.parameters()["{name.removeprefix("base_")}"]'
        if name.startswith("log_p"):
            return f"prior.log_mass({float(self.family.points[int(name.removeprefix('log_p'))])})"
        return f'q.parameters["{name}"]'

    def _law(self) -> list[str]:
        """The law of beta given c for quadrature, where some form of K needs one."""
        family = self.family
        if family.tilted:
            body = 'return rt.posteriors.TiltedLaw(q.base, q.parameters["precision"])'
            return [f"# the law of beta given c, {family.law}\ndef {family.name}_law(q):\n{_INDENT}{body}"]
        if family.log_density is None:
            return []
        names = {"centre": family.centre, "spread": family.spread}
        texts = [
            print_function(f"{family.name}_{name}", family.c, value, f"{family.name}: {name}(c) = {value}")
            for name, value in names.items()
        ]
        density = {"log_density": family.standard_log_density()}
        density |= {f"score_c{r}": score for r, score in enumerate(family.scores())}
        density |= {f"score_{name}": score for name, score in family.parameter_scores().items()}
        for name, value in density.items():
            said = "log density of z" if name == "log_density" else f"d log q / d {name.removeprefix('score_')}"
            said = f"{family.name}: {said} = {value}   where beta = centre + spread z"
            texts.append(print_function(f"{family.name}_{name}", (Z, *family.c), value, said))
        return [*texts, self._law_maker(names | density)]

    @property
    def _clipped(self) -> bool:
        """Whether the reach goes beyond the support, which quadrature must then end at."""
        family = self.family
        return family.support != REAL_LINE and (family.centre != 0 or family.reach[0] < 0)

    def _law_maker(self, values: dict[str, sp.Expr]) -> str:
        family = self.family

        def bind(name: str) -> str:
            bound = self._bound(values[name])
            function = f"{family.name}_{name}"
            return f"rt.posteriors.bind({function}{bound})" if bound else function

        scores = _join([bind(f"score_c{r}") for r in range(family.t)])
        parameters = ", ".join(f'"{p.name}": {bind(f"score_{p.name}")}' for p in family.parameters)
        fields = [f"{name}={bind(name)}" for name in ("centre", "spread", "log_density")]
        fields += [f"scores={scores}", f"parameter_scores={{{parameters}}}", f"reach={family.reach!r}"]
        fields += [f"support={_floats(family.support)}"] if self._clipped else []
        listed = "\n".join(f"{_INDENT * 2}{text}," for text in fields)
        head = f"# the law of beta given c, {family.law}\ndef {family.name}_law(q):"
        return f"{head}\n{_INDENT}return rt.posteriors.Law(\n{listed}\n{_INDENT})"


#: what quadrature adds to the closed part of K, for comments
_REMAINDERS = {
    "": "",
    CROSS_ENTROPY: " - E_Q[log prior]",
    LOG_RATIO: " + E_Q[log dbase/dprior]",
    RELATIVE_ENTROPY: " E_Q[log q - log prior]",
}


def _slope(expression: sp.Expr, symbol: sp.Symbol) -> sp.Expr:
    """The derivative, in the shortest of three forms: as it comes, multiplied out, and that with softplus(-x) written
    as softplus(x) - x where this removes softplus altogether."""
    plain = sp.diff(expression, symbol)
    if plain.count_ops() > _LONG:
        return plain
    wide = sp.expand(plain)
    odd = sp.expand(
        wide.replace(Softplus, lambda x: Softplus(-x) - (-x) if x.could_extract_minus_sign() else Softplus(x))
    )
    return min((plain, wide) if odd.has(Softplus) else (plain, wide, odd), key=lambda form: form.count_ops())


def _join(texts: Sequence[str]) -> str:
    return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"


def _tuple(texts: Sequence[str]) -> list[str]:
    return [f"return {_join(texts)}"]


def _mapping(found: dict[str, str]) -> list[str]:
    """A return statement of a dictionary, one line an entry."""
    return ["return {", *(f'{_INDENT}"{name}": {text},' for name, text in found.items()), "}"]
