"""Print plans as the source of a kernel module: leaf functions, inner nodes, gradient functions, and their assembly
with the sections of `functions`. The text depends on the tree, psi and the families: no date, no path, no hash order.

A function's body is chosen by the shape of its calls (which engine primitive, which indices are summed and which are
free), never by the node's name."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import sympy

from elbotree.codegen.functions import KernelPrinter, family_section, psi_section
from elbotree.codegen.lower import Call, LoweringError, Plan, lower
from elbotree.derivation import notation as nt
from elbotree.derivation import render
from elbotree.derivation.activations import Psi, analyse
from elbotree.derivation.specialise import put_in
from elbotree.runtime.errors import InputError

if TYPE_CHECKING:
    from elbotree.derivation.gradient import GradientNode
    from elbotree.derivation.notation import Expr
    from elbotree.derivation.tree import LossTree, Node

_LAW_AND_PROBLEM = "law: rt.Expectations, p: rt.Problem"

_NUMBERS = {
    "n2": "p.layer.n2",
    "w": "p.layer.w",
    "mu2": "p.model.offset",
    "sigma2": "p.model.noise_std",
    "H": "p.model.B.T @ p.model.B",
    "B": "p.model.B",
}
"""The model's numbers by the names that bodies use; a function defines those that it mentions."""

_BUILDERS = {"Mean": "mean", "Spread": "variance", "Divergence": "kl"}
"""What builds the integrands of s_j, V_j, K_j (the family section defines these)."""


class WeightPrinter(KernelPrinter):
    """Numpy text of what multiplies an expectation: indices are integer arrays, H and B matrices, w a vector."""

    def __init__(self, columns: bool = False) -> None:
        super().__init__()
        self._columns = columns

    def _print_Gram(self, expr: Expr) -> str:
        first, second = expr.args
        # Two different indices span a matrix: the first runs down the rows.
        matrix = self._columns and first != second
        return f"H[{first}[:, None], {second}]" if matrix else f"H[{first}, {second}]"

    def _print_NormSquared(self, expr: Expr) -> str:
        return f"({expr.args[0]} @ {expr.args[0]})"

    def _print_Psi(self, expr: Expr) -> str:
        return f"psi({expr.args[0]})"

    def _print_NodeValue(self, expr: Expr) -> str:
        return str(expr)


def _weight(expr: Expr, *, columns: bool = False) -> str:
    """Numpy text of a weight, as one fraction, operators spaced as formatters want them."""
    above, below = (_spaced(WeightPrinter(columns).doprint(part)) for part in sympy.fraction(expr))
    return above if below == "1" else f"{above} / {_bracketed(below)}"


def _spaced(text: str) -> str:
    # A power of a call is spaced, a power of a name is not: so ruff and black have it.
    return re.sub(r"(?<!\*)\*(?!\*)|/|(?<=\))\*\*", lambda sign: f" {sign.group()} ", text)


def _bracketed(text: str) -> str:
    return f"({text})" if re.search(r" [-+*/@] ", text) and not text.startswith("(") else text


def _direction(expr: Expr) -> str:
    """Numpy text of a direction: w, or the rows b_j of an index array j."""
    return f"B.T[{expr.args[0]}]" if isinstance(expr, nt.Column) else str(expr)


def _centre(expr: Expr) -> str:
    return "" if expr == 0 else f", centre={expr}"


def _head(g: Expr) -> str:
    """s, V or K with its slope, for comments and for choosing a builder."""
    return type(g.args[0] if isinstance(g, nt.Slope) else g).__name__


def _arguments(g: Expr) -> str:
    """What the builder of g takes after (j, q): the prior for K."""
    return ", p.model.priors[j]" if _head(g) == "Divergence" else ""


def _integrands(g: Expr) -> str:
    """A list of the integrands of g over all features, flat: V and K come in pieces, s in one."""
    builder = f"{_BUILDERS[_head(g)]}(j, q{_arguments(g)})"
    if _head(g) == "Mean":
        return f"[{builder} for j, q in enumerate(p.encoder)]"
    return f"[g for j, q in enumerate(p.encoder) for g in {builder}]"


_PLURALS = {"Mean": "means", "Spread": "variances", "Divergence": "divergences"}


def _lists(g: Expr) -> str:
    """A list with one entry a feature: the integrand of s_j, or the tuple of pieces of V_j or K_j."""
    return f"[{_BUILDERS[_head(g)]}(j, q{_arguments(g)}) for j, q in enumerate(p.encoder)]"


def _sized(weight: Expr) -> str:
    """Weights as an array over `gs`: a weight without an index is repeated."""
    if weight.free_symbols & {nt.j, nt.k}:
        return _weight(weight)
    return f"np.full(len(gs), {_weight(sympy.Float(weight) if weight.is_number else weight)})"


# ---------------------------------------------------------------------------------------------- scalar leaf functions


def _leaf_call(call: Call) -> list[str]:
    """Lines that end in an assignment to `value`: one term of a leaf."""
    if call.norm is not None:
        return [f"value = law.norm_y({call.norm[1]})" + _times(call.weight)]
    if call.of_b is not None:
        along = "" if call.along is None else f", along={_direction(call.along[2])}{_centre(call.along[1])}"
        if not nt.contains(call.of_b, nt.Psi):
            return [f"value = rt.moments.of_polynomial(law, {_coefficients(call)}{along}){_times(call.weight)}"]
        # The weight goes inside, so that the engine sees the size of what it is asked for.
        return [f"value = law.of_b(lambda b: {_weight(call.weight * call.of_b)}{along})"]
    if set(call.indices) != set(call.bound):
        raise LoweringError(f"a leaf sums over every index of its integrand; {call} does not")
    if len(call.features) == 1:
        return [f"gs = {_integrands(call.features[0])}", *_index_lines(call), f"value = law.of_c(gs, {_summed(call)})"]
    g, h = call.features
    if _head(g) != "Mean" or _head(h) != "Mean":
        raise LoweringError(f"a product of features needs integrands in one piece, such as s_j s_k; got {g} * {h}")
    lines = [f"gs = {_integrands(g)}", "j = k = features(gs)"]
    return [*lines, f"value = law.of_cc(gs, gs, weights={_weight(call.weight, columns=True)})"]


def _coefficients(call: Call) -> str:
    """The coefficients of a polynomial of b, lowest first: moments of y carry it up to a quadratic."""
    polynomial = sympy.Poly(call.of_b, nt.b)
    if polynomial.degree() > (2 if call.along is None else 1):
        raise LoweringError(f"moments of y carry {call.of_b} no further than a quadratic in all")
    numbers = ", ".join(repr(float(c)) for c in reversed(polynomial.all_coeffs()))
    return f"({numbers},)" if polynomial.degree() == 0 else f"({numbers})"


def _index_lines(call: Call) -> list[str]:
    named = call.weight.free_symbols | (call.along[2].free_symbols if call.along is not None else set())
    return ["j = features(gs)"] if nt.j in named else []


def _summed(call: Call) -> str:
    along = "" if call.along is None else f", along={_direction(call.along[2])}{_centre(call.along[1])}"
    return f"weights={_sized(call.weight)}{along}"


def _times(weight: Expr, after: str = "") -> str:
    """Source that multiplies what stands before it by `weight`; `after` follows the weight's arrays."""
    above, below = sympy.fraction(weight)
    if weight.is_Integer and weight > 1:
        return f" * {weight}"
    if above.is_number and above != 1:
        return f" * ({_weight(weight)})"
    by = "" if above == 1 else f" * {_bracketed(_weight(above))}{after}"
    return by + ("" if below == 1 else f" / {_bracketed(_weight(below))}")


def _leaf_body(plan: Plan) -> list[str]:
    if not plan.calls:
        return [f"return rt.Estimate.of({_weight(sympy.Float(0) if plan.constant == 0 else plan.constant)})"]
    lines: list[str] = []
    if all(_vanishes_with_w(call) for call in plan.calls) and plan.constant == 0:
        lines += ["if not w.any():", "    return rt.Estimate.of(0.0)"]
    for number, call in enumerate(plan.calls):
        part = _leaf_call(call)
        lines += part if number == 0 else [line.replace("value =", "value +=") for line in part]
    if plan.constant != 0:
        lines.append(f"value += {_weight(plan.constant)}")
    if len(plan.calls) == 1 and plan.constant == 0:
        return [*lines[:-1], lines[-1].replace("value =", "return", 1)]
    return [*lines, "return value"]


def _vanishes_with_w(call: Call) -> bool:
    """Whether w = 0 makes the term 0: its direction is w, or its weight has |w|^2 for a factor."""
    direction = call.along is not None and call.along[2] == nt.w
    return direction or nt.NormSquared(nt.w) in sympy.Mul.make_args(call.weight)


def leaf_function(node: Node, psi: Psi) -> str:
    """Source of a leaf's function, lowered from its expression with psi put in where that makes it simpler."""
    expression = put_in(node.expression, psi)
    plan = lower(node.name, expression)
    comment = _node_comment(node)
    if expression != node.expression:
        comment += f"\nwith psi(b) = {psi.expression}: {render.text(expression)}"
    return _function(node.name, _LAW_AND_PROBLEM, "rt.Estimate", _leaf_body(plan), comment)


def inner_function(node: Node) -> str:
    """Source of an inner node's function: its factor times the sum of its children."""
    total = " + ".join(node.children)
    signature = ", ".join(f"{child}: rt.Estimate" for child in node.children)
    body = [f"return {total}"]
    if node.factor != 1:
        signature += ", p: rt.Problem"
        body = [f"return ({total}){_times(node.factor)}"]
    return _function(node.name, signature, "rt.Estimate", body, _node_comment(node))


def _node_comment(node: Node) -> str:
    made = f"{render.combination_text(node)} = " if node.children else ""
    return f"{node.name} = {made}{render.text(node.expression)}\n{node.place}"


# -------------------------------------------------------------------------------------------------- gradient functions


def _array_function(node: GradientNode, plan: Plan, name: str) -> str:
    """A gradient node with free indices i, j: each statistic an array, contracted with the model's tensors."""
    out = "".join(str(index) for index in node.indices)
    lines: list[str] = []
    terms: list[str] = []
    for call in plan.calls:
        statistic, labels = _statistic(call)
        terms.append(_contraction(call.weight, statistic, labels, out))
        lines += [f"{_PLURALS[_head(g)]} = {_lists(g)}" for g in call.features]
    lines = list(dict.fromkeys(lines))
    if plan.constant != 0:
        terms.append(_tensor_constant(plan.constant, out))
    lines += [f"value = {terms[0]}", *(f"value += {term}" for term in terms[1:]), "return value"]
    return _function(name, _LAW_AND_PROBLEM, "rt.Estimate", lines, _gradient_comment(node))


def _statistic(call: Call) -> tuple[str, str]:
    """(source of an array of expectations, the indices of its axes)."""
    indices = "".join(str(index) for index in call.indices)
    plain = call.along is None and all(not isinstance(g, nt.Slope) for g in call.features)
    means = all(isinstance(g, nt.Mean) for g in call.features)
    if plain and call.component is not None:
        centre, axis = call.component
        if not call.features and centre == 0:
            return "law.mean_f()", str(axis)
        if len(call.features) == 1 and means:
            return f"law.moments_fs(means{_centre(centre)})", f"{axis}{indices}"
    elif plain and len(call.features) == 1:
        name = _PLURALS[_head(call.features[0])]
        return (f"law.of_c_each({name})" if means else f"each(law, {name})"), indices
    elif plain and len(call.features) == 2 and means:
        return "law.moments_ss(means, means)", indices
    raise LoweringError(f"no array of expectations for {call}")


def _tensors(weight: Expr) -> tuple[list[tuple[str, str]], Expr]:
    """(arrays with their indices, scalar) of a weight such as B_ik / sigma2^2."""
    arrays, scalar = [], sympy.Integer(1)
    for factor in sympy.Mul.make_args(weight):
        if isinstance(factor, nt.Component) and isinstance(factor.args[0], nt.Column):
            arrays.append(("B", f"{factor.args[1]}{factor.args[0].args[0]}"))
        elif isinstance(factor, nt.Component) and isinstance(factor.args[0], nt.Vector):
            arrays.append((str(factor.args[0]), str(factor.args[1])))
        elif isinstance(factor, nt.Gram):
            arrays.append(("H", f"{factor.args[0]}{factor.args[1]}"))
        else:
            scalar *= factor
    return arrays, scalar


def _contraction(weight: Expr, statistic: str, labels: str, out: str) -> str:
    arrays, scalar = _tensors(weight)
    if not arrays:
        if labels != out:
            raise LoweringError(f"a statistic over {labels} cannot give an array over {out} without a tensor")
        return statistic + _times(scalar)
    names = ", ".join(name for name, _ in arrays)
    axes = ",".join(axis for _, axis in arrays)
    return f'contract("{axes},{labels}->{out}", {names}, {statistic})' + _times(scalar)


def _tensor_constant(constant: Expr, out: str) -> str:
    parts = []
    for term in sympy.Add.make_args(constant):
        arrays, scalar = _tensors(term)
        if [axis for _, axis in arrays] != [out]:
            raise LoweringError(f"the constant {term} is not an array over {out}")
        parts.append(arrays[0][0] + _times(scalar))
    return " + ".join(parts)


def _value_function(node: GradientNode, plan: Plan, name: str) -> str:
    """A gradient node in terms of other nodes' values: no expectation of its own."""
    values = sorted((x for x in plan.constant.free_symbols if isinstance(x, nt.NodeValue)), key=str)
    signature = ", ".join([*(f"{value}: rt.Estimate" for value in values), "p: rt.Problem"])
    terms = []
    rest = plan.constant
    for value in values:
        coefficient = rest.coeff(value)
        rest = sympy.expand(rest - coefficient * value)
        terms.append(str(value) + _times(coefficient))
    if any(isinstance(x, nt.NodeValue) for x in rest.free_symbols):
        raise LoweringError(f"{node.name} is not linear in the values of other nodes: {plan.constant}")
    terms.append(_weight(rest))
    return _function(name, signature, "rt.Estimate", [f"return {' + '.join(terms)}"], _gradient_comment(node))


def _row_calls(plan: Plan, kind: str) -> list[str]:
    """Lines that add each call of a plan to `total`, row by row; every row is one entry of the free indices."""
    lines: list[str] = []
    for call in plan.calls:
        g = call.features[0]
        weight = call.weight
        builder = f"{_BUILDERS[_head(g)]}_{kind}"
        lines += ["", f"# {render.text(_term(call))}"]
        lines += [f"gs, row = gather({builder}{_ROW_ARGUMENTS[kind].format(prior=_arguments(g))})"]
        if nt.j in weight.free_symbols or (call.along is not None and nt.j in call.along[2].free_symbols):
            lines.append("j = features(gs)")
        along = "" if call.along is None else f", along={_direction(call.along[2])}{_centre(call.along[1])}"
        if len(call.features) == 2:
            # An integrand in pieces is a row each: the weights' first index runs over the pieces.
            if call.features[1] != nt.Mean(nt.k) or call.bound != (nt.k,):
                raise LoweringError(f"a row sums over s_k; got {call}")
            weights = f"weights={_weight(weight, columns=True)}"
            lines.append("k = features(means)")
            value = (
                f"law.of_cc_F(gs, means, {weights})"
                if kind == "derivative"
                else f"rows_of_cc(law, gs, means, {weights})"
            )
        elif kind == "derivative":
            value = f"law.of_c_F(gs{along})" + _times(weight, "[:, None]" if nt.j in weight.free_symbols else "")
        elif along:
            value = f"rows_of_c(law, gs, weights={_sized(weight)}{along})"
        else:
            value = f"law.of_c_each(gs){_times(weight)}"
        lines += [f"value = {value}", "total += scatter(row, value, len(rows))"]
    return lines


_ROW_ARGUMENTS = {
    "derivative": "(j, p.encoder[j]{prior}, r) for j, r in rows",
    "parameters": "(j, p.encoder[j]{prior}).get(name, ()) for j, name in rows",
}


def _term(call: Call) -> Expr:
    """The term that a call stands for, for the comment above it."""
    inside = sympy.Mul(*call.features)
    if call.along is not None:
        base, centre, direction = call.along
        inside *= nt.Inner(base - centre, direction)
    if call.component is not None:
        inside *= nt.Component(nt.f - call.component[0], call.component[1])
    body = nt.Expectation(inside, nt.X1)
    indexed = sympy.Mul(
        *(x for x in sympy.Mul.make_args(call.weight) if call.bound and call.bound[0] in x.free_symbols)
    )
    outside = call.weight / indexed
    return outside * (nt.sum_over(indexed * body, *call.bound) if call.bound else indexed * body)


def _encoder_function(matrix: GradientNode, bias: GradientNode) -> str:
    """dL/dC_j and dL/dbias_j in one: the same expectations, of f and of 1, the entries of F = (f, 1)."""
    plan = lower(matrix.name, matrix.expression)
    if _with_one_for_f(plan) != _keys(lower(bias.name, bias.expression)):
        raise LoweringError("dL/dbias should be dL/dC with 1 in place of f_i; the two lower to different calls")
    body = [
        "rows = [(j, r) for j, q in enumerate(p.encoder) for r in range(len(q.bias))]",
        f"means = {_integrands(nt.Mean(nt.j))}",
        "total = rt.Estimate.of(np.zeros((len(rows), n2 + 1)))",
        *_row_calls(plan, "derivative"),
        "",
        "return by_feature(rows, total, len(p.encoder))",
    ]
    together = "Both at once, with F = (f, 1) for f_i: per feature (t, n2 + 1), the last column being dL/dbias_j"
    comment = f"{_gradient_comment(matrix)}\n{_gradient_comment(bias)}\n{together}"
    return _function("dL_dC", _LAW_AND_PROBLEM, "list[rt.Estimate]", body, comment)


def _keys(plan: Plan) -> list[tuple[object, ...]]:
    return sorted(((c.weight, c.bound, c.features, c.along) for c in plan.calls), key=str)


def _with_one_for_f(plan: Plan) -> list[tuple[object, ...]]:
    if any(call.component != (sympy.Integer(0), nt.i) for call in plan.calls):
        raise LoweringError("every term of dL/dC should carry f_i")
    return _keys(plan)


def _parameter_function(node: GradientNode) -> str:
    """The derivative in every parameter of the posterior families: a dictionary for each feature."""
    plan = lower(node.name, node.expression)
    body = [
        "rows = [(j, name) for j, q in enumerate(p.encoder) for name in q.parameters]",
        f"means = {_integrands(nt.Mean(nt.j))}",
        "total = rt.Estimate.of(np.zeros(len(rows)))",
        *_row_calls(plan, "parameters"),
        "",
        "return by_name(rows, total, len(p.encoder))",
    ]
    return _function("dL_domega", _LAW_AND_PROBLEM, "list[dict[str, rt.Estimate]]", body, _gradient_comment(node))


def _prior_function(node: GradientNode) -> str:
    """The derivative in every parameter of the priors: a dictionary for each feature."""
    plan = lower(node.name, node.expression)
    if [(c.features, c.weight, c.along) for c in plan.calls] != [
        ((nt.Slope(nt.Divergence(nt.j), nt.pi_prior),), 1, None)
    ]:
        raise LoweringError(f"dL/dpi should be E of the slope of K_j alone; got {plan}")
    body = [
        "slopes = [kl_prior(j, q, p.model.priors[j]) for j, q in enumerate(p.encoder)]",
        "return [{name: of_slope(law, slope) for name, slope in named.items()} for named in slopes]",
    ]
    return _function("dL_dpi", _LAW_AND_PROBLEM, "list[dict[str, rt.Estimate]]", body, _gradient_comment(node))


def gradient_functions(tree: LossTree) -> list[str]:
    """Source of all gradient functions, lowered from the derived gradient nodes."""
    nodes = tree.gradient
    return [
        *(_array_function(nodes[n], lower(n, nodes[n].expression), _identifier(n)) for n in ("dL/dB", "dL/dmu2")),
        _value_function(nodes["dL/dsigma2"], lower("dL/dsigma2", nodes["dL/dsigma2"].expression), "dL_dsigma2"),
        _encoder_function(nodes["dL/dC"], nodes["dL/dbias"]),
        _parameter_function(nodes["dL/domega"]),
        _prior_function(nodes["dL/dpi"]),
    ]


def _identifier(name: str) -> str:
    return name.replace("/", "_")


def _gradient_comment(node: GradientNode) -> str:
    return f"{node.name} = {render.text(node.expression)}"


# ------------------------------------------------------------------------------------------------------ module assembly

_HELPERS = """
# ---------------------------------------------------------------- arrays of expectations


# the feature of each integrand, an index array
def features(gs):
    return np.array([g.feature for g in gs], dtype=np.intp)


# integrands in pieces, flat, and for each piece the row that it adds to
def gather(pieces):
    found = [(row, g) for row, gs in enumerate(pieces) for g in gs]
    return [g for _, g in found], np.array([row for row, _ in found], dtype=np.intp)


# row i of the result is the sum of the pieces of row i
def scatter(row, pieces, count):
    value, error = (np.zeros((count, *pieces.value.shape[1:])) for _ in range(2))
    np.add.at(value, row, pieces.value)
    np.add.at(error, row, pieces.error)
    return rt.Estimate(value, error)


# the expectation of each sum of pieces
def each(law, pieces):
    gs, row = gather(pieces)
    return scatter(row, law.of_c_each(gs), len(pieces))


# weights[i] E[<f - centre, along[i]> g_i(c)] for each i
def rows_of_c(law, gs, *, weights, along, centre):
    one = [slice(i, i + 1) for i in range(len(gs))]
    return stack([law.of_c(gs[i], weights=weights[i], along=along[i], centre=centre) for i in one])


# sum_k weights[i, k] E[g_i(c) h_k(c)] for each i
def rows_of_cc(law, gs, hs, *, weights):
    rows = law.of_cc_F(gs, hs, weights=weights)  # on the lattices that the gradient in C has made
    return rt.Estimate(rows.value[:, -1], rows.error[:, -1])


# estimates side by side
def stack(parts):
    value, error = ([getattr(part, name) for part in parts] for name in ("value", "error"))
    return rt.Estimate(np.array(value, dtype=np.float64), np.array(error, dtype=np.float64))


# einsum of exact arrays with one estimate; its errors are carried through the absolute values
def contract(axes, *operands):
    *arrays, estimate = operands
    sizes = [np.abs(array) for array in arrays]
    return rt.Estimate(np.einsum(axes, *arrays, estimate.value), np.einsum(axes, *sizes, estimate.error))


# the expectation of a prior's slope: a scalar for a tuple of pieces, a vector for a list of tuples
def of_slope(law, slope):
    return each(law, slope) if isinstance(slope, list) else each(law, [slope]).sum()


# rows (j, r) as one array for each feature
def by_feature(rows, total, count):
    mine = [[n for n, (j, _) in enumerate(rows) if j == feature] for feature in range(count)]
    return [rt.Estimate(total.value[n], total.error[n]) for n in mine]


# rows (j, name) as one dictionary for each feature
def by_name(rows, total, count):
    return [
        {name: rt.Estimate(total.value[n], total.error[n]) for n, (j, name) in enumerate(rows) if j == feature}
        for feature in range(count)
    ]
"""

_GRADIENT = """
# the gradient of L in everything that training moves; `values` spares the terms a second evaluation
def gradient(law: rt.Expectations, p: rt.Problem, values: dict[str, rt.Estimate] | None = None) -> dict[str, object]:
    values = evaluate(law, p) if values is None else values
    encoder = dL_dC(law, p)
    return {
        "C": [rt.Estimate(part.value[:, :-1], part.error[:, :-1]) for part in encoder],
        "bias": [rt.Estimate(part.value[:, -1], part.error[:, -1]) for part in encoder],
        "B": dL_dB(law, p),
        "offset": dL_dmu2(law, p),
        "noise_std": dL_dsigma2(values["S1"], values["S2"], p),
        "parameters": dL_domega(law, p),
        "priors": dL_dpi(law, p),
    }
"""


def module_source(tree: LossTree, psi: str, families: Sequence[str], version: str) -> str:
    """The whole kernel module as text.

    Arguments: the tree; psi's text; the posterior families' names; the version to print in the header.
    Raises what the parsers of psi and of the families raise, and LoweringError where a node has no lowering.
    """
    found = analyse(psi)
    leaves = [leaf_function(tree[name], found) for name in tree.leaves]
    inner = [inner_function(node) for node in reversed(tuple(tree)) if node.children]
    names = ", ".join(f'"{name}"' for name in tree.names)
    sections = [
        psi_section(psi).strip("\n"),
        family_section(families).strip("\n"),
        f"NODES = ({names})",
        _HELPERS.strip("\n"),
        _title("leaves of the loss tree"),
        *leaves,
        _title("inner nodes: sums of their children"),
        *inner,
        evaluate_function(tree),
        _title("gradient of L"),
        *gradient_functions(tree),
        _GRADIENT.strip("\n"),
    ]
    body = "\n\n\n".join(section for section in sections if section)
    return f"{_header(tree, psi, families, version, body)}\n\n\n{body}\n"


def _title(text: str) -> str:
    return f"# ---------------------------------------------------------------- {text}"


def _header(tree: LossTree, psi: str, families: Sequence[str], version: str, body: str) -> str:
    """The docstring that says what the module was made of, and the imports that `body` needs."""
    lines = [
        '"""The loss of a variational auto-encoder for x2 = f(x1), as numpy kernels. Generated by elbotree.',
        "",
        *(line for label, value in _facts(tree, psi, families, version) for line in _fact(label, value)),
        "",
        "One function a node of the loss tree. `law` takes the expectations (an engine of elbotree.runtime), `p` is",
        "the problem. evaluate(law, p) gives all nodes with their errors, gradient(law, p) the gradient of L.",
        '"""',
        # Which imports come first depends on whose project the module is in, so linters are told to leave their order.
        "# ruff: noqa: I001",
        "",
        "from __future__ import annotations",
        "",
        *_imports(body),
    ]
    return "\n".join(lines)


def _fact(label: str, value: str) -> list[str]:
    return textwrap.wrap(f"{label:<9} {value}", 116, subsequent_indent=" " * 10, break_on_hyphens=False)


def _imports(body: str) -> list[str]:
    """The imports that the module's body needs, sorted as linters want them in a user's project."""
    needed = [
        f"import elbotree.runtime.{name}" for name in ("moments", "posteriors", "samplers") if f"rt.{name}." in body
    ]
    # Both bind the name elbotree; linters complain once that it is not used, at the last.
    lines = [*needed[:-1], *(f"{line}  # noqa: F401" for line in needed[-1:])]
    lines += ["import numpy as np", "from elbotree import runtime as rt"]
    return lines + (["from scipy import special"] if "special." in body else [])


def _facts(tree: LossTree, psi: str, families: Sequence[str], version: str) -> list[tuple[str, str]]:
    # psi's text goes into a docstring, so it may hold nothing that could end one, whatever its grammar allows.
    if re.search(r"[^\w\s+\-*/().,<>=]", psi):
        raise InputError(f"psi {psi!r} has a character that an expression in b does not need; leave it out")
    return [
        ("psi", " ".join(psi.split())),
        ("families", ", ".join(families)),
        ("version", version),
        ("tree", f"sha256 {tree.sha256}"),
    ]


def evaluate_function(tree: LossTree) -> str:
    """Source of evaluate(law, p): the leaves first, then the inner nodes from the deepest up."""
    lines = ["value = {}"]
    for name in tree.leaves:
        lines += [f'value["{name}"] = {name}(law, p)', f'done("{name}")']
    for node in reversed(tuple(tree)):
        if node.children:
            given = ", ".join(f'value["{child}"]' for child in node.children)
            lines.append(f'value["{node.name}"] = {node.name}({given}{", p" if node.factor != 1 else ""})')
    order = ", ".join(f'"{name}"' for name in tree.names)
    lines.append(f"return {{name: value[name] for name in ({order})}}")
    signature = f"{_LAW_AND_PROBLEM}, done=lambda leaf: None"
    comment = "all nodes of the tree; done(name) is called after each leaf, for whoever wants to know how long it took"
    return _function("evaluate", signature, "dict[str, rt.Estimate]", lines, comment)


def _function(name: str, signature: str, returns: str, body: Sequence[str], comment: str) -> str:
    """One function: comment above, definitions of the numbers that the body mentions, the body."""
    text = "\n".join(body)
    used = [number for number in _NUMBERS if re.search(rf"(?<![\w.]){number}\b(?!=)", text)]
    definitions = [f"{number} = {_NUMBERS[number]}" for number in used]
    comments = [
        f"# {line}" for part in comment.splitlines() for line in textwrap.wrap(part, 116, break_long_words=False)
    ]
    lines = ["    " + line if line else "" for line in (*definitions, *body)]
    return "\n".join([*comments, f"def {name}({signature}) -> {returns}:", *lines])
