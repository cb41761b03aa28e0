"""Functions that sympy has no stable name for: softplus, the logistic function, the normal distribution function, and
the log partition function of a tilted law. Each knows its derivative, and how to be rewritten in elementary functions;
how it is printed as numpy is `elbotree.codegen`'s work."""

from __future__ import annotations

import sympy as sp

from elbotree.runtime.errors import UnsupportedError


class _Named(sp.Function):  # type: ignore[misc]
    """A function whose numbers are those of its elementary form."""

    def elementary(self) -> sp.Expr:
        raise NotImplementedError

    def _eval_evalf(self, prec: int) -> sp.Expr:
        return self.elementary()._eval_evalf(prec)


class Sigmoid(_Named):
    """sigmoid(x) = 1 / (1 + e^-x); its derivative is kept as sigmoid(x) sigmoid(-x), which loses no digits."""

    nargs = 1
    is_real = True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        (x,) = self.args
        return Sigmoid(x) * Sigmoid(-x)

    def elementary(self) -> sp.Expr:
        return 1 / (1 + sp.exp(-self.args[0]))


class Softplus(_Named):
    """softplus(x) = log(1 + e^x), with derivative sigmoid(x)."""

    nargs = 1
    is_real = True
    is_positive = True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return Sigmoid(self.args[0])

    def elementary(self) -> sp.Expr:
        return sp.log(1 + sp.exp(self.args[0]))


class LogSoftplus(_Named):
    """log softplus(x), which tends to x (not to log 0) as x -> -inf."""

    nargs = 1
    is_real = True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return SoftplusLogSlope(self.args[0])

    def elementary(self) -> sp.Expr:
        return sp.log(Softplus(self.args[0]).elementary())


class SoftplusLogSlope(_Named):
    """sigmoid(x) / softplus(x), the slope of log softplus; tends to 1 as x -> -inf where both factors vanish."""

    nargs = 1
    is_real = True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        (x,) = self.args
        return SoftplusLogSlope(x) * (Sigmoid(-x) - SoftplusLogSlope(x))

    def elementary(self) -> sp.Expr:
        x = self.args[0]
        return Sigmoid(x).elementary() / Softplus(x).elementary()


class NormalCdf(_Named):
    """Phi(x), the standard normal distribution function, to relative accuracy in the lower tail too."""

    nargs = 1
    is_real = True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.exp(-(self.args[0] ** 2) / 2) / sp.sqrt(2 * sp.pi)

    def elementary(self) -> sp.Expr:
        return (1 + sp.erf(self.args[0] / sp.sqrt(2))) / 2


class NormalQuantile(_Named):
    """The point below which a standard normal law has the mass x, the inverse of Phi."""

    nargs = 1
    is_real = True

    def elementary(self) -> sp.Expr:
        return sp.sqrt(2) * sp.erfinv(2 * self.args[0] - 1)


class FoldedMean(_Named):
    """E|x + s Z| for a standard normal Z: the mean of a folded normal law. FoldedMean(x, s)."""

    nargs = 2
    is_real = True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return (FoldedSlope, FoldedSpread)[argindex - 1](*self.args)

    def elementary(self) -> sp.Expr:
        x, s = self.args
        return s * FoldedSpread(x, s).elementary() + x * FoldedSlope(x, s).elementary()


class FoldedSlope(_Named):
    """d/dx E|x + s Z| = 2 Phi(x / s) - 1."""

    nargs = 2
    is_real = True

    def elementary(self) -> sp.Expr:
        x, s = self.args
        return sp.erf(x / s / sp.sqrt(2))


class FoldedSpread(_Named):
    """d/ds E|x + s Z| = 2 phi(x / s), phi the standard normal density."""

    nargs = 2
    is_real = True

    def elementary(self) -> sp.Expr:
        x, s = self.args
        return sp.sqrt(2 / sp.pi) * sp.exp(-((x / s) ** 2) / 2)


class Expm1(_Named):
    """e^x - 1 without cancellation near x = 0."""

    nargs = 1
    is_real = True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.exp(self.args[0])

    def elementary(self) -> sp.Expr:
        return sp.exp(self.args[0]) - 1


class LogPartition(sp.Function):  # type: ignore[misc]
    """Lambda(c, r) = log int e^{c beta - r beta^2 / 2} dP(beta) of the base P, differentiated `order` times in c.

    LogPartition(c, r, order). Differentiating under the integral sign gives the heat-type equation
    d Lambda / d r = -(Lambda'' + Lambda'^2) / 2 (primes are d/dc), which `fdiff` carries to every order.
    """

    nargs = 3
    is_real = True

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        c, r, order = self.args
        if argindex == 1:
            return LogPartition(c, r, order + 1)
        if argindex == 2:
            x = sp.Dummy("c", real=True)
            heat = -(LogPartition(x, r, 2) + LogPartition(x, r, 1) ** 2) / 2
            return sp.expand(sp.diff(heat, x, int(order)) if order else heat).subs(x, c)
        raise sp.ArgumentIndexError(self, argindex)


ELEMENTARY = (
    Sigmoid,
    Softplus,
    LogSoftplus,
    SoftplusLogSlope,
    NormalCdf,
    NormalQuantile,
    FoldedMean,
    FoldedSlope,
    FoldedSpread,
    Expm1,
)


def elementary(expression: sp.Expr) -> sp.Expr:
    """The expression with the functions of this module written through exp, log and erf (for limits and solving)."""
    return expression.replace(lambda node: isinstance(node, ELEMENTARY), lambda node: node.elementary())


_REACH = sp.Float("1e20000")  # a function of a larger number than this needs as many digits, and may take for ever


def value_at(expression: sp.Expr, symbol: sp.Symbol, at: sp.Expr) -> sp.Expr:
    """The expression at a point, in elementary functions, still symbolic: `evalf` of it ends.

    Raises UnsupportedError where a function in it would be taken of a number beyond 1e20000, as in exp(exp(b)) at 10^5.
    """
    exact = sp.Rational(at) if isinstance(at, sp.Float) else at
    value = elementary(expression).subs(symbol, exact)
    for node in sp.postorder_traversal(value):
        if isinstance(node, sp.Function) and node.is_number and node.has(sp.exp):
            for argument in node.args:
                size = argument.evalf(5) if argument.has(sp.exp) else sp.Integer(0)
                if size.is_comparable and abs(size) > _REACH:
                    raise UnsupportedError(
                        f"{expression} at {symbol} = {sp.N(exact, 6)} is a function of a number beyond 1e20000; rescale it"
                    )
    return value


def stable(expression: sp.Expr) -> sp.Expr:
    """log(1 + e^x) -> softplus(x), log softplus(x) by its own name, 1 / (1 + e^x) -> sigmoid(-x)

    The right-hand sides keep their digits where e^x is below rounding; as written, log(log(1 + e^-40)) is log(0).
    """

    def logarithm(node: sp.Expr) -> sp.Expr:
        (inside,) = node.args
        exponent = _one_plus_exp(inside)
        if exponent is not None:
            return Softplus(exponent)
        return LogSoftplus(*inside.args) if isinstance(inside, Softplus) else node

    def power(node: sp.Expr) -> sp.Expr:
        exponent = _one_plus_exp(node.base) if node.exp.is_negative else None
        return node if exponent is None else Sigmoid(-exponent) ** -node.exp

    found = expression.replace(lambda node: isinstance(node, sp.log), logarithm)
    return found.replace(lambda node: isinstance(node, sp.Pow) and not isinstance(node, sp.exp), power)


def _one_plus_exp(expression: sp.Expr) -> sp.Expr | None:
    """x of 1 + e^x."""
    if isinstance(expression, sp.Add) and len(expression.args) == 2 and sp.S.One in expression.args:
        (other,) = (term for term in expression.args if term != 1)
        return other.args[0] if isinstance(other, sp.exp) else None
    return None
