"""Mutations: one wrong sign, factor or condition a time, in each rule, derivative, family, lowering and check of the
symbolic half. Every one must make a test fail; one that survives is a rule that nothing tests.

    python -m tests.mutations                 all of them (make mutate)
    python -m tests.mutations gram families   those whose name contains a word

Each runs in a temporary copy of the tree, so that a mutated file never lies where somebody works, and the cache of
generated text is off."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("derivation", "codegen", "runtime")


@dataclass(frozen=True)
class Mutation:
    """`before`, which stands exactly once in `file`, becomes `after`; `tests` must then fail."""

    name: str
    file: str
    before: str
    after: str
    tests: str


RING_TESTS = "tests/runtime/test_rings.py"
RULES, RULE_TESTS = "derivation/rules.py", "tests/derivation/test_rules.py"
GRADIENT, GRADIENT_TESTS = "derivation/gradient.py", "tests/derivation/test_gradient.py tests/derivation/test_verify.py"
FAMILIES, FAMILY_TESTS = "derivation/families.py", "tests/derivation/test_families.py"
SPECIAL, PRINTED_TESTS = "derivation/special.py", "tests/codegen/test_functions.py"
LOWER, EMIT, KERNEL_TESTS = "codegen/lower.py", "codegen/emit.py", "tests/codegen/test_kernels.py"
ACTIVATIONS, ACTIVATION_TESTS = "derivation/activations.py", "tests/derivation/test_activations.py"
SPECIALISE, SPECIALISE_TESTS = "derivation/specialise.py", "tests/derivation/test_specialise.py"
REGISTRATION, REGISTRATION_TESTS = "derivation/registration.py", "tests/derivation/test_registration.py"
CACHE, CACHE_TESTS = "codegen/cache.py", "tests/codegen/test_cache.py"
STYLE, STYLE_TESTS = "codegen/style.py", "tests/codegen/test_style.py"
TREE, TREE_TESTS = "derivation/tree.py", "tests/derivation/test_tree.py"
SAMPLERS, SAMPLER_TESTS = "runtime/samplers.py", "tests/runtime/test_samplers.py"
PAIRS, LOOPS, WEAK = "runtime/pair_lattices.py", "runtime/pair_loops.py", "runtime/weak_sources.py"
SETS, BLOCKS, OUTPUT = "runtime/pair_sets.py", "runtime/pair_blocks.py", "runtime/output_law.py"
FRAMES, SPECTRAL_TESTS = "runtime/frames.py", "tests/runtime/test_spectral.py"
PAIR_TESTS = "tests/runtime/test_pair_lattices.py"
SET_TESTS = "tests/runtime/test_pair_sets.py"
SEARCH_TESTS = "tests/runtime/test_search.py"
POINT_MODEL_TESTS, LBFGS_TESTS = "tests/runtime/test_point_model.py", "tests/runtime/test_lbfgs.py"
RESIDUAL_TESTS = "tests/runtime/test_residual_features.py"
DOOR_TESTS, SAE_TESTS = "tests/elbotree/test_open_door.py", "tests/runtime/test_sae.py"


def _rule(name: str, before: str, after: str) -> Mutation:
    return Mutation(f"rules.{name}", RULES, before, after, RULE_TESTS)


MUTATIONS = (
    # -- one a rule
    _rule("kl_of_products", "return nt.sum_over(nt.KL(q, p), index)", "return nt.sum_over(nt.KL(p, q), index)"),
    _rule("name_divergence", "and expr.args[0].args == expr.args[1].args", ""),
    _rule("log_normal_density", "return -nt.n2 / 2 * sympy.log(2", "return -nt.n2 * sympy.log(2"),
    _rule(
        "linearity",
        "return sympy.Mul(*fixed, _take_out(sympy.Mul(*varying), law))",
        "return sympy.Mul(*fixed, *varying)",
    ),
    _rule(
        "mean_and_spread", "return spread + nt.NormSquared(fixed - average)", "return spread + nt.NormSquared(fixed)"
    ),
    _rule(
        "columns",
        "nt.sum_over(nt.Latent(nt.j) * nt.Column(nt.j), nt.j)",
        "nt.sum_over(nt.Latent(nt.j) * nt.Column(nt.k), nt.j)",
    ),
    _rule("name_mean", "return nt.Mean(expr.args[0].args[0])", "return nt.Spread(expr.args[0].args[0])"),
    _rule("spread", "nt.NormSquared(vector) * nt.Spread(index)", "nt.NormSquared(vector) * nt.Mean(index)"),
    _rule("expand_squared_norm", "+ 2 * nt.Inner(bare, scaled)", "+ nt.Inner(bare, scaled)"),
    _rule(
        "bilinearity.inner",
        "return scale * sympy.Sum(inner_scale * nt.Inner(anchor",
        "return sympy.Sum(inner_scale * nt.Inner(anchor",
    ),
    _rule("bilinearity.norm", "return scale**2 * nt.sum_over(double", "return scale * nt.sum_over(double"),
    _rule(
        "gram",
        "return nt.Gram(expr.args[0].args[0], expr.args[1].args[0])",
        "return nt.Gram(expr.args[0].args[0], expr.args[0].args[0])",
    ),
    _rule("layer", "return nt.y + nt.w * nt.Psi(nt.b)", "return nt.y - nt.w * nt.Psi(nt.b)"),
    _rule(
        "gram_of_columns",
        "nt.Inner(nt.Column(expr.args[0]), nt.Column(expr.args[1]))",
        "nt.Inner(nt.Column(expr.args[0]), nt.Column(expr.args[0]))",
    ),
    _rule("sift", "body = (expr.function / factor).xreplace({index: other})", "body = expr.function / factor"),
    _rule("unit_vector", "return nt.Component(other, this.args[0])", "return nt.Component(this, this.args[0])"),
    _rule(
        "linear_component",
        "return scale * sympy.Sum(inner_scale * nt.Component(inner",
        "return sympy.Sum(inner_scale * nt.Component(inner",
    ),
    _rule(
        "sums_apart",
        "sympy.Add(*(sympy.Sum(term, *expr.limits) for term in terms))",
        "sympy.Add(*(sympy.Sum(term, *expr.limits) for term in terms[1:]))",
    ),
    _rule("numbers_out", "return number * sympy.Sum(rest, *expr.limits)", "return sympy.Sum(rest, *expr.limits)"),
    _rule("rename_index", "and nt.k not in expr.free_symbols:", "and True:"),
    # -- the gradient
    Mutation("gradient.norm", GRADIENT, "return 2 * inner(expr.args[0]", "return inner(expr.args[0]", GRADIENT_TESTS),
    Mutation(
        "gradient.product",
        GRADIENT,
        "for n, x in enumerate(expr.args)))",
        "for n, x in enumerate(expr.args[:1])))",
        GRADIENT_TESTS,
    ),
    Mutation(
        "gradient.power",
        GRADIENT,
        "return expr.exp * expr.base ** (expr.exp - 1)",
        "return expr.base ** (expr.exp - 1)",
        GRADIENT_TESTS,
    ),
    Mutation("gradient.log", GRADIENT, "by) / expr.args[0]", "by)", GRADIENT_TESTS),
    Mutation(
        "gradient.encoder",
        GRADIENT,
        "nt.Slope(part, nt.r) * nt.Component(nt.f, nt.i)",
        "nt.Slope(part, nt.r) * nt.Component(nt.y, nt.i)",
        GRADIENT_TESTS,
    ),
    Mutation(
        "gradient.prior",
        GRADIENT,
        "return sympy.KroneckerDelta(part.args[0], nt.l) * nt.Slope(part, nt.pi_prior)",
        "return nt.Slope(part, nt.pi_prior)",
        GRADIENT_TESTS,
    ),
    Mutation("gradient.quadratic", GRADIENT, "- 2 * sympy.Trace(B.T * M)", "- sympy.Trace(B.T * M)", GRADIENT_TESTS),
    Mutation(
        "gradient.moments",
        GRADIENT,
        "nt.Expectation(V, nt.X1) + nt.Expectation(s**2, nt.X1)",
        "nt.Expectation(s**2, nt.X1)",
        GRADIENT_TESTS,
    ),
    # -- costs and laws
    Mutation("tree.laws", TREE, "nt.m2 ** len(_feature_indices(term))", "nt.m2", TREE_TESTS),
    Mutation("tree.grid", TREE, "size, size + beside)", "size, size)", TREE_TESTS),
    Mutation(
        "tree.convolution",
        TREE,
        "bins**dimension * dimension *",
        "bins**dimension *",
        "tests/derivation/test_lemmas.py",
    ),
    Mutation("gradient.decoder", GRADIENT, "M * (G + D) ** -1", "M * (G - D) ** -1", "tests/derivation/test_lemmas.py"),
    # -- families
    Mutation(
        "families.masses.mean",
        FAMILIES,
        "mean = sp.Add(*(mass * point for",
        "mean = sp.Add(*(mass * point**2 / 2 for",
        FAMILY_TESTS,
    ),
    Mutation("families.masses.kl", FAMILIES, "mass * (own - other)", "mass * (other - own)", FAMILY_TESTS),
    Mutation("families.masses.entropy", FAMILIES, "entropy=-sp.Add(", "entropy=sp.Add(", REGISTRATION_TESTS),
    Mutation(
        "families.bernoulli.variance",
        FAMILIES,
        "variance=Sigmoid(c) * Sigmoid(-c)",
        "variance=Sigmoid(c) * Sigmoid(c)",
        FAMILY_TESTS,
    ),
    Mutation(
        "families.normal.density",
        FAMILIES,
        "/ (2 * std**2) - log_std - sp.log(2 * sp.pi) / 2",
        "/ std**2 - log_std - sp.log(2 * sp.pi) / 2",
        FAMILY_TESTS,
    ),
    Mutation(
        "families.normal.entropy",
        FAMILIES,
        "entropy=log_std + sp.log(2 * sp.pi) / 2 + sp.Rational(1, 2)",
        "entropy=log_std + sp.log(2 * sp.pi) / 2",
        FAMILY_TESTS,
    ),
    Mutation(
        "families.normal.against",
        FAMILIES,
        "spread = variance + (mean - prior_mean) ** 2",
        "spread = variance + mean**2",
        FAMILY_TESTS,
    ),
    Mutation(
        "families.laplace",
        FAMILIES,
        "mean_distance(centre) / scale + sp.log(2 * scale)",
        "mean_distance(centre) / scale + sp.log(scale)",
        FAMILY_TESTS,
    ),
    Mutation("families.exponential.variance", FAMILIES, "variance=s**2", "variance=s", FAMILY_TESTS),
    Mutation(
        "families.exponential.prior",
        FAMILIES,
        "sp.log(scale) + mean / scale - entropy",
        "sp.log(scale) + mean - entropy",
        FAMILY_TESTS,
    ),
    Mutation("families.gamma", FAMILIES, "-(shape - 1) * mean_log", "-shape * mean_log", FAMILY_TESTS),
    Mutation(
        "families.tilted",
        FAMILIES,
        "from_base = c * s - PRECISION / 2 * (v + s**2) - log_z",
        "from_base = c * s - PRECISION / 2 * v - log_z",
        f"{FAMILY_TESTS} {PRINTED_TESTS}",
    ),
    Mutation("families.pieces", FAMILIES, "groups[home] += constants", "pass", FAMILY_TESTS),
    # -- special functions
    Mutation(
        "special.sigmoid",
        SPECIAL,
        "return Sigmoid(x) * Sigmoid(-x)",
        "return Sigmoid(x) * Sigmoid(x)",
        f"{FAMILY_TESTS} {PRINTED_TESTS}",
    ),
    Mutation(
        "special.heat", SPECIAL, "+ LogPartition(x, r, 1) ** 2) / 2", "+ LogPartition(x, r, 1)) / 2", PRINTED_TESTS
    ),
    Mutation(
        "special.normal_cdf",
        SPECIAL,
        "return sp.exp(-(self.args[0] ** 2) / 2) / sp.sqrt(2 * sp.pi)",
        "return sp.exp(-(self.args[0] ** 2)) / sp.sqrt(2 * sp.pi)",
        PRINTED_TESTS,
    ),
    Mutation(
        "special.stable",
        SPECIAL,
        "Sigmoid(-exponent) ** -node.exp",
        "Sigmoid(exponent) ** -node.exp",
        REGISTRATION_TESTS,
    ),
    # -- psi
    Mutation("activations.kink", ACTIVATIONS, "elif abs(sp.N(below - above)) < 1e-14:", "elif True:", ACTIVATION_TESTS),
    Mutation(
        "activations.delta",
        ACTIVATIONS,
        "positive = _number(arguments[0], at) > 0",
        "positive = True",
        ACTIVATION_TESTS,
    ),
    Mutation(
        "activations.affine",
        ACTIVATIONS,
        "return expression.coeff(B, 1), expression.coeff(B, 0)\n\n    @cached",
        "return expression.coeff(B, 1), sp.Integer(0)\n\n    @cached",
        ACTIVATION_TESTS,
    ),
    Mutation(
        "activations.same",
        ACTIVATIONS,
        "if left == right:\n        return True",
        "if left == right:\n        return False",
        ACTIVATION_TESTS,
    ),
    Mutation("activations.rolle", ACTIVATIONS, "if before * after < 0:", "if before * after < -1:", ACTIVATION_TESTS),
    Mutation(
        "activations.exponentials",
        ACTIVATIONS,
        "part.diff(B) + part * rate",
        "part.diff(B) - part * rate",
        ACTIVATION_TESTS,
    ),
    Mutation(
        "activations.sound",
        ACTIVATIONS,
        "if all(_sound(plain, at)",
        "if True or all(_sound(plain, at)",
        ACTIVATION_TESTS,
    ),
    Mutation("activations.sides", ACTIVATIONS, "and below == above and", "and", ACTIVATION_TESTS),
    # -- lowering and printing
    Mutation(
        "lower.weight",
        LOWER,
        "weight *= sympy.Mul(*(x for x in factors if x not in carriers))",
        "pass",
        f"{KERNEL_TESTS} tests/codegen/test_lower.py",
    ),
    Mutation(
        "lower.order",
        LOWER,
        "features.sort(key=lambda g: (feature_index(g) in bound, str(feature_index(g))))",
        "pass",
        f"{KERNEL_TESTS} tests/codegen/test_lower.py",
    ),
    Mutation(
        "lower.centre",
        LOWER,
        "centre = base - vector",
        "centre = vector - base",
        f"{KERNEL_TESTS} tests/codegen/test_lower.py",
    ),
    Mutation(
        "emit.factor",
        EMIT,
        'body = [f"return ({total}){_times(node.factor)}"]',
        'body = [f"return ({total})"]',
        KERNEL_TESTS,
    ),
    Mutation(
        "emit.columns",
        EMIT,
        'return f"H[{first}[:, None], {second}]" if matrix',
        'return f"H[{first}, {first}[:, None]] * 2" if matrix',
        KERNEL_TESTS,
    ),
    Mutation(
        "emit.coefficients",
        EMIT,
        "for c in reversed(polynomial.all_coeffs()))",
        "for c in polynomial.all_coeffs())",
        DOOR_TESTS,
    ),
    Mutation(
        "emit.w",
        EMIT,
        'lines += ["if not w.any():", "    return rt.Estimate.of(0.0)"]',
        'lines += ["if w.any():", "    return rt.Estimate.of(0.0)"]',
        KERNEL_TESTS,
    ),
    Mutation(
        "style.power",
        STYLE,
        "return text if _binding(node) >= least",
        "return text if _binding(node) >= least - 1",
        STYLE_TESTS,
    ),
    Mutation(
        "style.sign",
        STYLE,
        'yield ("+" if isinstance(node.op, ast.Add) else "-"), node.right',
        'yield "+", node.right',
        STYLE_TESTS,
    ),
    # -- specialisation
    Mutation(
        "specialise.affine",
        SPECIALISE,
        "return slope * part.args[0] + intercept",
        "return slope * part.args[0]",
        SPECIALISE_TESTS,
    ),
    Mutation(
        "specialise.linear",
        SPECIALISE,
        'most = 2 if heads == {"Spread"} else 1',
        "most = 2",
        f"{SPECIALISE_TESTS} tests/derivation/test_specialise.py",
    ),
    Mutation("specialise.axis", SPECIALISE, "dimension -= 1", "dimension -= 0", SPECIALISE_TESTS),
    Mutation(
        "specialise.known",
        SPECIALISE,
        "nt.m2**indices if known else cost(after, dimension)",
        "cost(after, dimension)",
        SPECIALISE_TESTS,
    ),
    # -- draws
    Mutation("samplers.exponential", FAMILIES, "-s * sp.log(1 - U)", "-s * sp.log(U)", SAMPLER_TESTS),
    Mutation(
        "samplers.normal",
        FAMILIES,
        "sp.sqrt(moments[1]) * NormalQuantile(U)",
        "moments[1] * NormalQuantile(U)",
        SAMPLER_TESTS,
    ),
    Mutation("samplers.table", SAMPLERS, "(uniform >= below)", "(uniform <= below)", SAMPLER_TESTS),
    Mutation("samplers.panel", SAMPLERS, "wanted[live] -= masses[panel[live]]", "pass", SAMPLER_TESTS),
    Mutation("samplers.component", SAMPLERS, "left = left - mass", "pass", SAMPLER_TESTS),
    # -- registration
    Mutation(
        "registration.mass",
        REGISTRATION,
        "probe, total(lambda x: mpmath.mpf(1)), 1)",
        "probe, 1, 1)",
        REGISTRATION_TESTS,
    ),
    Mutation(
        "registration.negative", REGISTRATION, "if mpmath.im(value) != 0 or value < 0:", "if False:", REGISTRATION_TESTS
    ),
    Mutation("registration.reach", REGISTRATION, "if 1 - inside > 1e-9:", "if False:", REGISTRATION_TESTS),
    Mutation("registration.unknown", REGISTRATION, "    if unknown:\n", "    if False:\n", REGISTRATION_TESTS),
    Mutation(
        "registration.deadline",
        "derivation/deadline.py",
        "bound if now > bound.end else late",
        "bound if now > bound.end + 10 else late",
        f"{REGISTRATION_TESTS}::test_a_search_that_takes_too_long_ends",
    ),
    Mutation(
        "registration.sampler",
        REGISTRATION,
        "probe, found, float(u)",
        "probe, float(u), float(u)",
        REGISTRATION_TESTS,
    ),
    Mutation(
        "quadrature.variance",
        "runtime/posteriors.py",
        "by = first if score is None else 2 * self",
        "by = first if score is None else self",
        PRINTED_TESTS,
    ),
    Mutation(
        "quadrature.entropy",
        "runtime/posteriors.py",
        "np.asarray(found - np.log(self.spread(*c)))",
        "np.asarray(found)",
        PRINTED_TESTS,
    ),
    Mutation(
        "quadrature.support",
        "codegen/functions.py",
        "return family.support != REAL_LINE and (",
        "return False and (",
        PRINTED_TESTS,
    ),
    # -- moments and sparse autoencoders
    Mutation("moments.square", "runtime/moments.py", "g2 * float(u @ covariance @ u)", "g2 * 0.0", DOOR_TESTS),
    Mutation("moments.cross", "runtime/moments.py", "g1 * float(along @ covariance @ u)", "g1 * 0.0", DOOR_TESTS),
    Mutation(
        "sae.rate",
        "runtime/sae.py",
        "self.sparsity * self.weights / (2 * self.rho)",
        "self.sparsity * self.weights / self.rho",
        SAE_TESTS,
    ),
    Mutation(
        "sae.constant",
        "runtime/sae.py",
        "n = self.W_dec.shape[1]",
        "n = self.W_dec.shape[0]",
        SAE_TESTS,
    ),
    Mutation("sae.centre", "runtime/sae.py", "seen = rows - self.b_dec if", "seen = rows + self.b_dec if", SAE_TESTS),
    Mutation("sae.tail", "derivation/sae.py", "    if tail <= 0:\n", "    if False:\n", SAE_TESTS),
    Mutation("sae.range", "derivation/sae.py", "if not self.lowest < rate < self.highest:", "if False:", SAE_TESTS),
    # -- lattices of pairs, and their compiled loops
    Mutation("pairs.noise", PAIRS, "out[1, 1] = -noise[0, 1]", "out[1, 1] = noise[0, 1]", PAIR_TESTS),
    Mutation("pairs.shear", PAIRS, "v, theta, shift = rows[1], 0.0,", "v, theta, shift = rows[1], theta,", PAIR_TESTS),
    Mutation("pairs.remainder", PAIRS, "left = beyond[3", "left = 0.0 * beyond[3", PAIR_TESTS),
    Mutation("pairs.zeros", PAIRS, "by_degree[:, ~self.weak.usable] = np.inf", "pass", PAIR_TESTS),
    Mutation("pairs.rounding", PAIRS, "costs[1:][self.unit * rounding[1:] > 0.2 * budget] = np.inf", "", PAIR_TESTS),
    Mutation("pairs.center", PAIRS, "limits + off_center, shared", "limits, shared", PAIR_TESTS),
    Mutation("pairs.slope", PAIRS, "slopes = (m + 1) * weak", "slopes = m * weak", PAIR_TESTS),
    Mutation("pairs.derivative", PAIRS, "np.sum(c * X[1]).real", "np.sum(c * X[0]).real", PAIR_TESTS),
    Mutation("weak.mean", WEAK, "made[:, 1] -= 1j * mean", "made[:, 1] += 1j * mean", PAIR_TESTS),
    Mutation("weak.radius", WEAK, "radius ** -np.arange(ORDERS)", "radius ** np.arange(ORDERS)", PAIR_TESTS),
    Mutation("loops.twice", LOOPS, "(2.0 if q > 0 or p > 0 else 1.0)", "(2.0 if q > 0 or p >= 0 else 1.0)", SET_TESTS),
    Mutation("loops.of_b", LOOPS, "= -across[two, last] * (k", "= across[two, last] * (k", SET_TESTS),
    Mutation("loops.at_once", LOOPS, "return float(min(plainly", "return float(max(plainly", SET_TESTS),
    Mutation("loops.needs", LOOPS, "weights[row, q] = max(weights[row, q], size)", "weights[row, q] = size", SET_TESTS),
    Mutation("loops.box", LOOPS, "boxes[n, 0] < P or boxes[n, 1] < Q", "boxes[n, 0] < P", SET_TESTS),
    Mutation("loops.of_psi", LOOPS, "X[x + size + at_mode]).real", "X[x + at_mode]).real", SET_TESTS),
    Mutation("loops.apart", LOOPS, "by_source[e + apart * size + at_mode]", "by_source[e + at_mode]", SET_TESTS),
    Mutation("sets.moved", SETS, "shares[:, 1, None] * self._steps[pairs[:, 1]]", "0.0", SET_TESTS),
    Mutation("pairs.too_far", PAIRS, "return missed > 2.0 * tol", "return missed > np.inf * tol", SPECTRAL_TESTS),
    Mutation("output.of_square", OUTPUT, "rings.mean(beyond[1]) + inside * transform.largest", "0.0", SPECTRAL_TESTS),
    Mutation("output.of_y_psi", OUTPUT, "mixed + mixed.T +", "", SPECTRAL_TESTS),
    Mutation("sets.sheared", SETS, "if len(far):", "if False:", SET_TESTS),
    Mutation("sets.points", SETS, "if len(large):", "if False:", SET_TESTS),
    Mutation("blocks.served", BLOCKS, "[error <= ask.asked.allowed for", "[error <= np.inf for", SET_TESTS),
    Mutation("blocks.bytes", BLOCKS, "self._bytes -= size", "pass", SET_TESTS),
    Mutation("loops.budget", LOOPS, "0.2 * budget", "20.0 * budget", PAIR_TESTS),
    Mutation("loops.fitting", LOOPS, "by_degree[trial + 1] + last", "by_degree[trial + 2] + last", PAIR_TESTS),
    Mutation("loops.tail", LOOPS, "if tail[middle] <= allowed:", "if tail[middle] < 0.1 * allowed:", PAIR_TESTS),
    Mutation(
        "loops.generator", LOOPS, "+= of_p[a, i] * S[i, b, k].imag", "-= of_p[a, i] * S[i, b, k].imag", PAIR_TESTS
    ),
    Mutation("loops.slopes", LOOPS, "binomial = m + 1.0", "binomial = 1.0", PAIR_TESTS),
    Mutation("loops.taylor", LOOPS, "z * (1 / 3 + z2", "z * (1 / 2 + z2", PAIR_TESTS),
    Mutation(
        "loops.dual",
        "runtime/lattice_loops.py",
        "total += left_dot * after[k] + left * after_dot[k]",
        "total += left_dot * after[k]",
        "tests/runtime/test_lattice_loops.py",
    ),
    # -- the cache
    Mutation("cache.owner", CACHE, "and found.st_uid == os.geteuid() ", "", CACHE_TESTS),
    Mutation("cache.mode", CACHE, "and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)", "", CACHE_TESTS),
    Mutation("cache.link", CACHE, "os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK", "os.O_RDONLY", CACHE_TESTS),
    Mutation("cache.sum", CACHE, "or head != _head(name, body):", "or not head:", CACHE_TESTS),
    Mutation(
        "cache.registered",
        "codegen/kernels.py",
        "source = make() if _registered(text) else cache",
        "source = cache",
        CACHE_TESTS,
    ),
    # -- errors and ranges
    Mutation("frames.edge_safety", FRAMES, "_EDGE_SAFETY = 3.0", "_EDGE_SAFETY = 0.0", SPECTRAL_TESTS),
    Mutation(
        "frames.of_b_travels",
        FRAMES,
        "        return False\n",
        "        return True\n",
        "tests/runtime/test_executors.py",
    ),
    Mutation(
        "characteristic.tilted_density",
        "runtime/characteristic.py",
        "gained = -np.log(",
        "gained = -3 * np.log(",
        "tests/runtime/test_characteristic.py",
    ),
    Mutation(
        "output_law.functions_of_b",
        "runtime/output_law.py",
        "<= 1e-13 * size:",
        "<= -1.0:",
        SPECTRAL_TESTS,
    ),
    Mutation(
        "psi_transform.integrals",
        "runtime/psi_transform.py",
        "values * nodes.psi, values * nodes.psi**2",
        "values, values * nodes.psi**2",
        "tests/runtime/test_psi_transform.py",
    ),
    # -- what functions are outside their ranges
    Mutation("rings.mean", "runtime/rings.py", "float(_MASSES @ M)", "float(M[0])", RING_TESTS),
    Mutation("rings.inside", "runtime/rings.py", "np.maximum.accumulate(", "np.asarray(", RING_TESTS),
    Mutation("rings.pairs", "runtime/pairs.py", "max(beyond, spectrum.largest)", "spectrum.largest", RING_TESTS),
    Mutation("rings.b", "runtime/spectral.py", "max(s.largest, self._beyond(g, 0))", "s.largest", RING_TESTS),
    Mutation(
        "rings.shift",
        "runtime/output_law.py",
        "np.maximum.reduceat(shift, starts)",
        "shift[:1] + 0 * starts",
        RING_TESTS,
    ),
    Mutation(
        "rings.reaches",
        "runtime/output_law.py",
        "np.asarray(np.maximum(likely, most))",
        "np.asarray(likely)",
        RING_TESTS,
    ),
    Mutation(
        "characteristic.reaches",
        "runtime/characteristic.py",
        "(K - log_epsilon + 1.0) / s",
        "(K + 1.0) / s",
        RING_TESTS,
    ),
    Mutation("blas.one_thread", "runtime/blas.py", "limits=1", "limits=2", "tests/runtime/test_blas.py"),
    Mutation(
        "units.columns", "runtime/units.py", "parts[name] / unit", "parts[name] * unit", "tests/elbotree/test_units.py"
    ),
    # -- the search on points
    Mutation("search.spread", "runtime/search.py", "float((spread * H).sum())", "0.0", SEARCH_TESTS),
    Mutation("search.third", "runtime/search_loops.py", "-3.0 * s * V", "-2.0 * s * V", SEARCH_TESTS),
    Mutation("search.anew", "runtime/search.py", "loss < there + _HOPEFUL", "loss < there - 9.0", SEARCH_TESTS),
    Mutation("search.ridge", "runtime/search.py", "2 * self.ridge[:, None] * rows", "0.0 * rows", SEARCH_TESTS),
    Mutation(
        "search.spare",
        "runtime/training.py",
        "state.at = spare[0]",
        "state.at = spare[-1] + 1",
        "tests/runtime/test_training.py",
    ),
    Mutation(
        "search.ranking", "runtime/search.py", "key=_loss)[:_SECOND_ROUND]", "key=_loss)[-_SECOND_ROUND:]", SEARCH_TESTS
    ),
    Mutation("search.stand-in", "runtime/search.py", "if others and rng", "if not others and rng", RESIDUAL_TESTS),
    Mutation(
        "residual.cost", "runtime/residual_features.py", "(more / left) - self.K", "(more / left)", RESIDUAL_TESTS
    ),
    Mutation("residual.step", "runtime/residual_features.py", "q * (1 - q)", "q", RESIDUAL_TESTS),
    Mutation("point_model.floor", "runtime/point_model.py", "self.floor, alone)", "1e-9, alone)", POINT_MODEL_TESTS),
    Mutation("point_model.tilt", "runtime/point_model.py", "tilt = q - gradient", "tilt = q", POINT_MODEL_TESTS),
    Mutation(
        "point_model.damping", "runtime/point_model.py", "pull = damping * d", "pull = 0.0 * d", POINT_MODEL_TESTS
    ),
    Mutation(
        "point_model.bases", "runtime/training.py", "return there < here", "return there > here", POINT_MODEL_TESTS
    ),
    Mutation(
        "lbfgs.model",
        "runtime/lbfgs.py",
        "d = -inverse(self.x, -d)",
        "d = -inverse(self.x, self.gradient)",
        LBFGS_TESTS,
    ),
    Mutation(
        "training.trusted",
        "runtime/training.py",
        "loss + max(0.0, float",
        "loss + 0.0 * max(0.0, float",
        "tests/runtime/test_training.py",
    ),
    Mutation("training.finer", "runtime/training.py", "_FINER = 0.1", "_FINER = 1.0", "tests/runtime/test_training.py"),
    Mutation(
        "training.overflow",
        "runtime/training.py",
        "ToleranceError, ArithmeticError) as",
        "ToleranceError) as",
        "tests/runtime/test_training.py",
    ),
)


def copied(place: Path) -> None:
    """The tree as an installed package would have it: elbotree/ with its three folders inside, and the tests."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "elbotree", place / "elbotree", ignore=skip)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, place / "elbotree" / package, ignore=skip)
    shutil.copytree(ROOT / "tests", place / "tests", ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", place)


def tested(tests: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    """Run tests on the copy, up to the first that fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(place), "ELBOTREE_CACHE": "off", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=900)


def outcome(mutation: Mutation, place: Path) -> str:
    """ "killed", or how the mutation escaped."""
    inside = mutation.file.split("/")[0] in PACKAGES
    path = place / "elbotree" / mutation.file if inside else place / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.before) != 1:
        return f"stale: its text stands {text.count(mutation.before)} times in {mutation.file}"
    path.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
    try:
        run = tested(mutation.tests.split(), place)
    except subprocess.TimeoutExpired:
        return "killed"  # a loop without end is noticed
    finally:
        path.write_text(text, encoding="utf-8")
    if run.returncode == 1:
        return "killed"
    return (
        "SURVIVED" if run.returncode == 0 else f"broken: the tests did not run:\n{run.stdout[-800:]}{run.stderr[-800:]}"
    )


def main(words: list[str]) -> int:
    """Run the mutations whose name contains one of the words (all for none); 1 when one is not killed."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    escaped = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        copied(place)
        for tests in sorted(
            {m.tests for m in chosen}
        ):  # as they run below: tests may pass thanks to others beside them
            whole = tested(tests.split(), place)
            if whole.returncode != 0:
                said = f"{whole.stdout[-2000:]}{whole.stderr[-500:]}"
                print(f"{tests} fails without any mutation; mend that first:\n{said}")
                return 1
        for mutation in chosen:
            start = time.monotonic()
            found = outcome(mutation, place)
            escaped += found != "killed"
            print(f"{mutation.name:<32} {found}  ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{len(chosen) - escaped} of {len(chosen)} mutations are noticed")
    return 1 if escaped or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
