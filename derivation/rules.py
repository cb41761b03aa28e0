"""Named rewrite rules, one function a rule, and the two ways to apply them.

Each rule takes one subexpression and returns its rewriting, or raises `RuleError` when its preconditions fail. Its
docstring opens with the arrow `lhs -> rhs`; preconditions follow. `everywhere` applies a rule wherever it fits and
raises when it fits nowhere: a step of the derivation that does nothing is a mistake in the derivation.

    kl_of_products               KL(prod_j Q_j || prod_j P_j) -> sum_j KL(Q_j || P_j)
    name_divergence              KL(Q'_j(.; c_j) || P_2j) -> K_j(c_j)
    log_normal_density           log N(x; m, sigma^2 I) -> -n2/2 log(2 pi sigma^2) - |x - m|^2 / (2 sigma^2)
    linearity                    E[sum_i a_i g_i] -> sum_i a_i E[g_i]
    mean_and_spread              E_z|a - g|^2 -> E_z|g - E_z g|^2 + |a - E_z g|^2
    columns                      B2 z2 -> sum_j beta_j b_j
    name_mean                    E_z[beta_j] -> s_j(c_j)
    spread_of_independent_sum    E_z|sum_j (beta_j - s_j) b_j|^2 -> sum_j |b_j|^2 V_j(c_j)
    expand_squared_norm          |a + v|^2 -> |a|^2 + 2 <a, v> + |v|^2
    bilinearity                  <a, sum_i c_i v_i> -> sum_i c_i <a, v_i>, |sum_i c_i v_i|^2 -> sum_ik c_i c_k <v_i,v_k>
    gram                         <b_j, b_k> -> H_jk
    layer                        f -> y + w psi(b)

and for derivatives (module `gradient` applies them)

    gram_of_columns              H_jk -> <b_j, b_k>
    sift                         sum_j delta_jl g_j -> g_l
    unit_vector                  <v, e_i> -> v_i
    linear_component             (sum_i c_i v_i)_k -> sum_i c_i (v_i)_k
    sums_apart                   sum_j (g_j + h_j) -> sum_j g_j + sum_j h_j
    numbers_out                  sum_j c g_j -> c sum_j g_j
    rename_index                 sum_j g_j -> sum_k g_k
"""

from __future__ import annotations

from collections.abc import Callable

import sympy

from elbotree.derivation import notation as nt
from elbotree.derivation.notation import Expr

Rule = Callable[[Expr], Expr]


class RuleError(RuntimeError):
    """A rule was asked to rewrite something that its preconditions exclude. It stops the derivation.

    The message is put together only when it is read: `everywhere` tries a rule on every subexpression, and printing
    each refused one would take most of the derivation's time.
    """

    def __str__(self) -> str:
        return "".join(str(part) for part in self.args)


def arrow(rule: Rule) -> str:
    """The `lhs -> rhs` line that opens the rule's docstring."""
    return (rule.__doc__ or "").strip().splitlines()[0].strip("`")


def everywhere(rule: Rule, expr: Expr) -> Expr:
    """Apply `rule` to every subexpression that it fits, the innermost first.

    Raises RuleError when it fits none.
    """
    applied = 0

    def visit(node: Expr) -> Expr:
        nonlocal applied
        try:
            result = rule(node)
        except RuleError:
            return node
        applied += 1
        return result

    result = nt.rebuild(expr, visit)
    if not applied:
        raise RuleError(f"rule {rule.__name__} ({arrow(rule)}) applies nowhere in {expr}")
    return result


def wherever(rule: Rule, expr: Expr) -> Expr:
    """Like `everywhere`, for clean-up rules that may find nothing to do."""
    try:
        return everywhere(rule, expr)
    except RuleError:
        return expr


def _refuse(rule: Rule, expr: Expr, expected: str) -> RuleError:
    return RuleError(f"rule {rule.__name__} expects {expected}; it got ", expr)


def split_scalar(term: Expr) -> tuple[Expr, Expr]:
    """(c, v) with term = c v, c the scalar factors and v the one vector factor (a bare Sum of vectors is one)."""
    if nt.rank(term) != 1:
        raise RuleError(f"{term} is not a vector")
    factors = sympy.Mul.make_args(term)
    return sympy.Mul(*(x for x in factors if nt.rank(x) == 0)), sympy.Mul(*(x for x in factors if nt.rank(x) == 1))


def kl_of_products(expr: Expr) -> Expr:
    """KL(prod_j Q_j || prod_j P_j) -> sum_j KL(Q_j || P_j)

    Precondition: both laws are products over the same index (assumptions 1 and 2).
    """
    if not (
        isinstance(expr, nt.KL)
        and all(isinstance(a, nt.ProductLaw) for a in expr.args)
        and len({a.args[1] for a in expr.args}) == 1
    ):
        raise _refuse(kl_of_products, expr, "KL of two product laws over one index")
    (q, index), (p, _) = expr.args[0].args, expr.args[1].args
    return nt.sum_over(nt.KL(q, p), index)


def name_divergence(expr: Expr) -> Expr:
    """KL(Q'_j(.; c_j) || P_2j) -> K_j(c_j)

    Precondition: the posterior factor and the prior factor of one and the same feature (assumption 4).
    """
    if not (
        isinstance(expr, nt.KL)
        and isinstance(expr.args[0], nt.PosteriorFactor)
        and isinstance(expr.args[1], nt.PriorFactor)
        and expr.args[0].args == expr.args[1].args
    ):
        raise _refuse(name_divergence, expr, "KL(Q'_j || P_2j) of one feature")
    return nt.Divergence(expr.args[0].args[0])


def log_normal_density(expr: Expr) -> Expr:
    """log N(x; m, sigma^2 I) -> -n2/2 log(2 pi sigma^2) - |x - m|^2 / (2 sigma^2)

    Precondition: the logarithm of an isotropic normal density on R^n2 (assumption 3; equation (5) with errata 2).
    """
    if not (isinstance(expr, sympy.log) and isinstance(expr.args[0], nt.NormalDensity)):
        raise _refuse(log_normal_density, expr, "log of an isotropic normal density")
    x, mean, sigma = expr.args[0].args
    return -nt.n2 / 2 * sympy.log(2 * sympy.pi * sigma**2) - nt.NormSquared(x - mean) / (2 * sigma**2)


def linearity(expr: Expr) -> Expr:
    """E[sum_i a_i g_i] -> sum_i a_i E[g_i]

    Precondition: the a_i do not vary under the law of E, and something can be taken out. E[a] -> a for such an a.
    """
    if not isinstance(expr, nt.Expectation):
        raise _refuse(linearity, expr, "an expectation")
    inside, law = expr.args
    result = _take_out(sympy.expand_mul(inside), law)
    if result == expr:
        raise _refuse(linearity, expr, "a sum or a constant factor inside the expectation")
    return result


def _take_out(inside: Expr, law: Expr) -> Expr:
    if not nt.is_random(inside, law):
        return inside
    if isinstance(inside, sympy.Add):
        return sympy.Add(*(_take_out(term, law) for term in inside.args))
    if isinstance(inside, sympy.Sum):
        return sympy.Sum(_take_out(inside.function, law), *inside.limits)
    if isinstance(inside, sympy.Mul):
        fixed = [x for x in inside.args if not nt.is_random(x, law)]
        varying = [x for x in inside.args if nt.is_random(x, law)]
        if fixed or len(varying) == 1:
            return sympy.Mul(*fixed, _take_out(sympy.Mul(*varying), law))
    return nt.Expectation(inside, law)


def mean_and_spread(expr: Expr) -> Expr:
    """E_z|a - g|^2 -> E_z|g - E_z g|^2 + |a - E_z g|^2

    Precondition: an expectation over z2 given x2 of a squared norm; a is what does not vary with z2, g what does.
    """
    if not (isinstance(expr, nt.Expectation) and expr.args[1] == nt.Z2 and isinstance(expr.args[0], nt.NormSquared)):
        raise _refuse(mean_and_spread, expr, "E over z2 given x2 of a squared norm")
    terms = sympy.Add.make_args(expr.args[0].args[0])
    fixed = sympy.Add(*(term for term in terms if not nt.is_random(term, nt.Z2)))
    varying = -sympy.Add(*(term for term in terms if nt.is_random(term, nt.Z2)))
    if varying == 0 or fixed == 0:
        raise _refuse(mean_and_spread, expr, "|a - g|^2 with a fixed and g varying with z2")
    average = nt.Expectation(varying, nt.Z2)
    spread = nt.Expectation(nt.NormSquared(varying - average), nt.Z2)
    return spread + nt.NormSquared(fixed - average)


def columns(expr: Expr) -> Expr:
    """B2 z2 -> sum_j beta_j b_j

    Precondition: the image of z2 under B2.
    """
    if not (isinstance(expr, nt.Image) and expr.args[0] == nt.z2):
        raise _refuse(columns, expr, "B2 z2")
    return nt.sum_over(nt.Latent(nt.j) * nt.Column(nt.j), nt.j)


def name_mean(expr: Expr) -> Expr:
    """E_z[beta_j] -> s_j(c_j)

    Precondition: the expectation over z2 given x2 of one latent coordinate.
    """
    if not (isinstance(expr, nt.Expectation) and expr.args[1] == nt.Z2 and isinstance(expr.args[0], nt.Latent)):
        raise _refuse(name_mean, expr, "E over z2 given x2 of beta_j")
    return nt.Mean(expr.args[0].args[0])


def spread_of_independent_sum(expr: Expr) -> Expr:
    """E_z|sum_j (beta_j - s_j) b_j|^2 -> sum_j |b_j|^2 V_j(c_j)

    Precondition: the sums run over one range with one vector b_j, and s_j is the mean of beta_j; the beta_j are
    independent given x2 (assumption 2), so cross terms vanish.
    """
    if isinstance(expr, nt.Expectation) and expr.args[1] == nt.Z2 and isinstance(expr.args[0], nt.NormSquared):
        sums = sympy.Add.make_args(expr.args[0].args[0])
        for sign in (1, -1):
            for varying in (sign * term for term in sums):
                if not isinstance(varying, sympy.Sum) or len(varying.limits) != 1:
                    continue
                index = varying.limits[0][0]
                scale, vector = split_scalar(varying.function)
                centred = varying - sympy.Sum(nt.Mean(index) * vector, *varying.limits)
                if scale == nt.Latent(index) and centred in (sympy.Add(*sums), -sympy.Add(*sums)):
                    return sympy.Sum(nt.NormSquared(vector) * nt.Spread(index), *varying.limits)
    raise _refuse(spread_of_independent_sum, expr, "E over z2 given x2 of |sum_j beta_j b_j - sum_j s_j b_j|^2")


def expand_squared_norm(expr: Expr) -> Expr:
    """|a + v|^2 -> |a|^2 + 2 <a, v> + |v|^2

    Precondition: a sum of vectors in which some are bare, +-x (they make up a and stay together), and some are
    scaled, c x or sum_i c_i x_i (they make up v).
    """
    if isinstance(expr, nt.NormSquared):
        terms = sympy.Add.make_args(expr.args[0])
        bare = sympy.Add(*(x for x in terms if isinstance(x, nt.Vector) or isinstance(-x, nt.Vector)))
        scaled = expr.args[0] - bare
        if bare != 0 and scaled != 0:
            return nt.NormSquared(bare) + 2 * nt.Inner(bare, scaled) + nt.NormSquared(scaled)
    raise _refuse(expand_squared_norm, expr, "the squared norm of bare plus scaled vectors")


def bilinearity(expr: Expr) -> Expr:
    """<a, sum_i c_i v_i> -> sum_i c_i <a, v_i>,   |sum_i c_i v_i|^2 -> sum_ik c_i c_k <v_i, v_k>

    Precondition: the second argument (the argument) is a scaled vector c v or a sum over one index of such.
    """
    if isinstance(expr, nt.Inner):
        anchor, other = expr.args
        scale, vector = split_scalar(other)
        if isinstance(vector, sympy.Sum) and anchor.free_symbols.isdisjoint(vector.variables):
            inner_scale, inner_vector = split_scalar(vector.function)
            return scale * sympy.Sum(inner_scale * nt.Inner(anchor, inner_vector), *vector.limits)
        if scale != 1:
            return scale * nt.Inner(anchor, vector)
    if isinstance(expr, nt.NormSquared) and not isinstance(expr.args[0], sympy.Add):
        scale, vector = split_scalar(expr.args[0])
        if isinstance(vector, sympy.Sum) and vector.variables == [nt.j]:
            body = vector.function
            left, right = split_scalar(body), split_scalar(body.xreplace({nt.j: nt.k}))
            double = left[0] * right[0] * nt.Inner(left[1], right[1])
            return scale**2 * nt.sum_over(double, nt.j, nt.k)
        if scale != 1:
            return scale**2 * nt.NormSquared(vector)
    raise _refuse(bilinearity, expr, "<a, c v>, <a, sum_i c_i v_i>, |c v|^2 or |sum_j c_j v_j|^2")


def gram(expr: Expr) -> Expr:
    """<b_j, b_k> -> H_jk

    Precondition: both arguments are columns of B2; |b_j|^2 counts as <b_j, b_j>.
    """
    if isinstance(expr, nt.NormSquared) and isinstance(expr.args[0], nt.Column):
        return nt.Gram(expr.args[0].args[0], expr.args[0].args[0])
    if isinstance(expr, nt.Inner) and all(isinstance(a, nt.Column) for a in expr.args):
        return nt.Gram(expr.args[0].args[0], expr.args[1].args[0])
    raise _refuse(gram, expr, "the inner product of two columns of B2")


def layer(expr: Expr) -> Expr:
    """f -> y + w psi(b)

    Precondition: the vector f. y = A x1 + d and b = <y, u> + theta (equation (1), and errata 1).
    """
    if expr != nt.f:
        raise _refuse(layer, expr, "f")
    return nt.y + nt.w * nt.Psi(nt.b)


def gram_of_columns(expr: Expr) -> Expr:
    """H_jk -> <b_j, b_k>

    Precondition: an entry of H = B2^T B2.
    """
    if not isinstance(expr, nt.Gram):
        raise _refuse(gram_of_columns, expr, "H_jk")
    return nt.Inner(nt.Column(expr.args[0]), nt.Column(expr.args[1]))


def sift(expr: Expr) -> Expr:
    """sum_j delta_jl g_j -> g_l

    Precondition: the sum runs over all features, its body a product with a Kronecker delta in an index of the sum.
    """
    if isinstance(expr, sympy.Sum):
        for factor in sympy.Mul.make_args(expr.function):
            if not isinstance(factor, sympy.KroneckerDelta):
                continue
            for index, other in (factor.args, factor.args[::-1]):
                if index in expr.variables and other not in expr.variables:
                    body = (expr.function / factor).xreplace({index: other})
                    limits = [limit for limit in expr.limits if limit[0] != index]
                    return sympy.Sum(body, *limits) if limits else body
    raise _refuse(sift, expr, "a sum over j of delta_jl times a term")


def unit_vector(expr: Expr) -> Expr:
    """<v, e_i> -> v_i

    Precondition: one argument is a unit vector.
    """
    if isinstance(expr, nt.Inner):
        for this, other in (expr.args, expr.args[::-1]):
            if isinstance(this, nt.Basis):
                return nt.Component(other, this.args[0])
    raise _refuse(unit_vector, expr, "an inner product with a unit vector")


def linear_component(expr: Expr) -> Expr:
    """(sum_i c_i v_i)_k -> sum_i c_i (v_i)_k

    Precondition: a component of a sum, of a scaled vector, or of a sum over an index.
    """
    if isinstance(expr, nt.Component):
        vector, index = expr.args
        if isinstance(vector, sympy.Add):
            return sympy.Add(*(wherever(linear_component, nt.Component(term, index)) for term in vector.args))
        scale, bare = split_scalar(vector)
        if isinstance(bare, sympy.Sum):
            inner_scale, inner = split_scalar(bare.function)
            return scale * sympy.Sum(inner_scale * nt.Component(inner, index), *bare.limits)
        if scale != 1:
            return scale * nt.Component(bare, index)
    raise _refuse(linear_component, expr, "a component of a sum of scaled vectors")


def sums_apart(expr: Expr) -> Expr:
    """sum_j (g_j + h_j) -> sum_j g_j + sum_j h_j

    Precondition: the body of the sum, multiplied out, is a sum.
    """
    if isinstance(expr, sympy.Sum):
        terms = sympy.expand_mul(expr.function).args
        if isinstance(sympy.expand_mul(expr.function), sympy.Add):
            return sympy.Add(*(sympy.Sum(term, *expr.limits) for term in terms))
    raise _refuse(sums_apart, expr, "a sum over an index of a sum of terms")


def numbers_out(expr: Expr) -> Expr:
    """sum_j c g_j -> c sum_j g_j

    Precondition: c is a number other than 1.
    """
    if isinstance(expr, sympy.Sum):
        number, rest = expr.function.as_coeff_Mul()
        if number != 1:
            return number * sympy.Sum(rest, *expr.limits)
    raise _refuse(numbers_out, expr, "a sum of a numeric multiple")


def rename_index(expr: Expr) -> Expr:
    """sum_j g_j -> sum_k g_k

    Precondition: a sum over j alone, in which k does not occur freely.
    """
    if isinstance(expr, sympy.Sum) and expr.variables == [nt.j] and nt.k not in expr.free_symbols:
        return expr.xreplace({nt.j: nt.k})
    raise _refuse(rename_index, expr, "a sum over j alone")
