"""The paper's lemmas as objects that print themselves and verify: 2.1, 2.2, 2.4, Fact 3.3, Lemma 3.4, Theorem 3.1, and
the closed-form minimisers. Each states a corrected identity; `verify` checks it exactly on small explicit dimensions
with symbolic parameters, without the rules. The tree itself is `tree`'s; checking its splits is `verify`'s."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import sympy

from elbotree.derivation import notation as nt
from elbotree.derivation.notation import Expr
from elbotree.derivation.tree import LossTree, convolution_cost, derive
from elbotree.derivation.verify import (
    SIZE,
    Report,
    Smooth,
    State,
    VerificationError,
    World,
    instantiate,
    require_zero,
    verify_steps,
    verify_tree,
)


@dataclass(frozen=True)
class Lemma:
    """A statement of the paper, corrected.

    name       "Lemma 2.1" and so on
    statement  one line of Unicode
    erratum    how it differs from what the paper prints; "" where it does not
    check      yields the differences that must vanish, by name
    """

    name: str
    statement: str
    erratum: str
    check: Callable[[], dict[str, Expr]]

    def verify(self) -> Report:
        """Check the lemma exactly. Raises VerificationError naming the identity that fails."""
        differences = self.check()
        if not differences:
            raise VerificationError(f"{self.name} checks nothing")
        for name, difference in differences.items():
            require_zero(f"{self.name}, {name}", difference)
        return Report(tuple(f"{self.name}, {name}" for name in differences))

    def __str__(self) -> str:
        note = f"\n    errata: {self.erratum}" if self.erratum else ""
        return f"{self.name}.  {self.statement}{note}"


def _masses(letter: str, count: int) -> list[Expr]:
    """Probabilities on `count` points, the last being what is left."""
    first = [sympy.Symbol(f"{letter}{n}", positive=True) for n in range(1, count)]
    return [*first, 1 - sum(first)]


def _positives(letter: str, count: int) -> list[Expr]:
    return [sympy.Symbol(f"{letter}{n}", positive=True) for n in range(1, count + 1)]


def kl(q: list[Expr], p: list[Expr]) -> Expr:
    """KL(q || p) on finitely many points."""
    return sum(a * sympy.log(a / b) for a, b in zip(q, p, strict=True))


class _Posterior:
    """One x, a latent on three points: prior P(z), likelihood P(x|z), encoder Q(z), and what Bayes makes of them."""

    def __init__(self, tag: str = "") -> None:
        # P(x) is a symbol of its own, so that logarithms of it stay whole: the last likelihood follows from it.
        self.q, self.prior = _positives(f"q{tag}", 3), _positives("p", 3)
        self.evidence = sympy.Symbol(f"P{tag}", positive=True)
        self.likelihood = _positives(f"l{tag}", 3)
        self.posterior = [p * x / self.evidence for p, x in zip(self.prior, self.likelihood, strict=True)]
        self.loss = kl(self.q, self.prior) - sum(a * sympy.log(x) for a, x in zip(self.q, self.likelihood, strict=True))
        self.gap = kl(self.q, self.posterior)


def _normalised(expr: Expr, masses: list[Expr]) -> Expr:
    """`expr` with the last of `masses` replaced by what is left of 1, logarithms of it being kept as one symbol."""
    expanded = sympy.expand(sympy.expand_log(expr, force=True))
    whole = sympy.Symbol("log_last", real=True)
    hidden = expanded.subs(sympy.log(masses[-1]), whole)
    return sympy.expand(hidden.subs(masses[-1], 1 - sum(masses[:-1])))


def _check_elbo() -> dict[str, Expr]:
    one = _Posterior()
    identity = sympy.log(one.evidence) - (one.gap - one.loss)
    exact = one.gap.subs(dict(zip(one.q, one.posterior, strict=True)), simultaneous=True)
    return {
        "log P(x) = KL(Q || P(.|x)) - KL(Q || P) + E_Q log P(x|z)": _normalised(identity, one.q),
        "the gap is 0 when Q is the posterior": exact,
        "Gibbs: KL >= sum_z Q (1 - P/Q) = 0": sum(
            a * (1 - b / a) for a, b in zip(_masses("a", 3), _masses("b", 3), strict=True)
        ),
    }


def _check_bound() -> dict[str, Expr]:
    total: Expr = sympy.Integer(0)
    for tag, weight in zip(("1", "2"), _masses("w", 2), strict=True):
        one = _Posterior(tag)
        total += weight * _normalised(one.loss - one.gap + sympy.log(one.evidence), one.q)
    return {"L - E KL(Q2 || P2(.|f)) = -E log P2(f(x1))": total}


def _check_sae() -> dict[str, Expr]:
    """n = 2, M = 3: L_x with a point encoder, an exponential prior of rate mu and a decoder of variance rho."""
    n, count = 2, 3
    mu, rho = sympy.symbols("mu rho", positive=True)
    features = _positives("e", count)
    residual = sympy.symbols(f"d1:{n + 1}", real=True)
    squared = sum(d**2 for d in residual)
    density = (2 * sympy.pi * rho) ** sympy.Rational(-n, 2) * sympy.exp(-squared / (2 * rho))
    prior = sympy.Mul(*(mu * sympy.exp(-mu * e) for e in features))
    vae = -sympy.log(prior) - sympy.log(density)
    sae = squared + 2 * mu * rho * sum(features)
    constant = sae_constant(sympy.Integer(n), sympy.Integer(count), mu, rho)
    return {"L_x = n/2 log(2 pi rho) - M log mu + L_SAE/(2 rho), lambda = 2 mu rho": vae - constant - sae / (2 * rho)}


def sae_constant(n: Expr, count: Expr, mu: Expr, rho: Expr) -> Expr:
    """The constant of Lemma 2.4: n/2 log(2 pi rho) - M log mu, n the dimension of x and M the number of features."""
    return n / 2 * sympy.log(2 * sympy.pi * rho) - count * sympy.log(mu)


def _check_convolution() -> dict[str, Expr]:
    """Two sources on two points each: alpha_1 d_1 + alpha_2 d_2 has the product of their characteristic functions. And
    the cost: halving N points into two transforms and N operations, along each axis in turn, once a source."""
    omega = sympy.Symbol("omega", real=True)
    directions = sympy.symbols("d1 d2", real=True)
    points = [sympy.symbols(f"a{s}1 a{s}2", real=True) for s in (1, 2)]
    masses = [_masses(f"p{s}", 2) for s in (1, 2)]
    wave = [
        sum(p * sympy.exp(sympy.I * omega * d * a) for p, a in zip(masses[s], points[s], strict=True))
        for s, d in enumerate(directions)
    ]
    joint = sum(
        masses[0][n]
        * masses[1][k]
        * sympy.exp(sympy.I * omega * (directions[0] * points[0][n] + directions[1] * points[1][k]))
        for n, k in itertools.product(range(2), repeat=2)
    )
    bins, axes, sources = (sympy.Symbol(name, positive=True) for name in ("N", "t", "m"))
    line = convolution_cost(sympy.Integer(1), sympy.Integer(1), bins)
    halved = line - (2 * line.subs(bins, bins / 2) + bins)
    along_axes = sources * axes * bins ** (axes - 1) * line
    return {
        "E exp(i omega x) is the product over sources": sympy.expand(wave[0] * wave[1]) - sympy.expand(joint),
        "the cost of one axis solves C(N) = 2 C(N/2) + N": sympy.expand(sympy.expand_log(halved)),
        "C(1) = 0": line.subs(bins, 1),
        "m sources along t axes of N^t points": sympy.powsimp(convolution_cost(sources, axes, bins) - along_axes),
    }


def _check_push_forward() -> dict[str, Expr]:
    """<f, v> = a + <w, v> psi(b) with (a, b) = W y + (0, theta), W's rows v and u (errata 1), on each atom of x1."""
    world = World()
    v = sympy.Matrix(sympy.symbols(f"v1:{SIZE + 1}", real=True))
    w = instantiate(nt.w, world)
    differences = {}
    for atom in range(1, SIZE + 1):
        pushed = (world.y(atom).T * v)[0] + (w.T * v)[0] * world.psi(atom)
        differences[f"<f, v> at atom {atom}"] = (instantiate(nt.f, world, State(atom=atom)).T * v)[0] - pushed
    return differences


def closed_form(tree: LossTree | None = None) -> Expr:
    """Theorem 3.1: L through its leaves alone, each a finite number of expectations over few projections of f(x1)."""
    from elbotree.derivation.gradient import loss_from

    return loss_from(derive() if tree is None else tree, "L", ())


def _check_closed_form() -> dict[str, Expr]:
    world = World()
    return {
        "L is the sum of its leaves": instantiate(derive()["L"].expression, world) - instantiate(closed_form(), world)
    }


def _check_minimisers() -> dict[str, Expr]:
    """At the closed forms the derived derivatives vanish. Function values are rationals, so the arithmetic is exact."""
    from elbotree.derivation import gradient as gr

    tree, world = derive(), World(smooth=True)
    decoder = gr.best_decoder(tree)
    statistics = {symbol: _matrix(meaning, world, symbol) for symbol, meaning in decoder.where}
    terms = {name: instantiate(gr.loss_from(tree, name, ()), world) for name in ("S1", "S2", "T1")}
    equations = _matrix(decoder.equation, world, gr.M)
    columns = {
        entry: place for place, entry in _entries(sympy.Matrix.hstack(*(world.column(j) for j in range(1, SIZE + 1))))
    }
    numbers = _rationals(sympy.Tuple(*terms.values(), equations), set(columns))
    values = {symbol: matrix.xreplace(numbers) for symbol, matrix in statistics.items()}
    best = decoder.solution.xreplace(values).doit()

    def at_best(expr: Expr) -> Expr:
        return expr.xreplace(numbers).xreplace({entry: best[place] for entry, place in columns.items()})

    noise = gr.best_noise_of_best_decoder(tree).solution.xreplace(
        {nt.NodeValue("T1"): at_best(terms["T1"]), nt.n2: sympy.Integer(SIZE), gr.B: best, **values}
    )
    total = sympy.Symbol("S", positive=True)
    spent = {nt.NodeValue("S1"): total - nt.NodeValue("S2")}
    deviation = sympy.sqrt(gr.best_noise(tree).solution.subs(spent))
    offset, prior = gr.best_offset(tree), gr.best_prior()
    first = State(indices=((nt.i, 1),))
    mean = prior.where[0][0]
    return {
        **{f"dL/dB2 = 0 at B2*, entry {r + 1}{c + 1}": at_best(entry) for (r, c), entry in _entries(equations)},
        "sigma2*^2 at B2* is (S1 + S2)/n2": noise.doit() - at_best(terms["S1"] + terms["S2"]) / SIZE,
        "dL/dsigma2 = 0 at sigma2*": tree.gradient["dL/dsigma2"].expression.subs(nt.sigma2, deviation).subs(spent),
        "dL/dmu2 = 0 at mu2*": instantiate(offset.equation, world, first).subs(
            instantiate(nt.mu2, world)[0], instantiate(offset.solution, world, first)
        ),
        "the prior's equation at the aggregate posterior": prior.equation.subs(
            {sympy.Symbol("p_1", positive=True): mean, sympy.Symbol("lambda", real=True): 1}
        ),
    }


def _entries(matrix: Expr) -> list[tuple[tuple[int, int], Expr]]:
    return [((row, column), matrix[row, column]) for row in range(matrix.rows) for column in range(matrix.cols)]


def _matrix(meaning: Expr, world: World, symbol: Expr) -> Expr:
    """The explicit matrix of a statistic given by its entry: M_ij, G_jk, and D_j on the diagonal."""
    free = sorted(meaning.free_symbols & {nt.i, nt.j, nt.k}, key=str)

    def entry(row: int, column: int) -> Expr:
        if len(free) == 1 and row != column:
            return sympy.Integer(0)
        numbers = (row + 1, column + 1)[: len(free)]
        return instantiate(meaning, world, State(indices=tuple(zip(free, numbers, strict=True))))

    return sympy.Matrix(SIZE, SIZE, entry)


def _rationals(expr: Expr, kept: set[Expr]) -> dict[Expr, Expr]:
    """A rational number for each function value and each symbol that is not `kept`, distinct and fixed."""
    functions = sorted(expr.atoms(Smooth), key=sympy.default_sort_key)
    symbols = sorted(expr.free_symbols - kept, key=str)
    values = (sympy.Rational(sympy.prime(n + 3), sympy.prime(2 * n + 8)) for n in itertools.count())
    return dict(zip([*functions, *symbols], values, strict=False))


LEMMAS: tuple[Lemma, ...] = (
    Lemma(
        "Lemma 2.1",
        "log P(x) ≥ −KL(Q(z) ‖ P(z)) + E_Q[log P(x|z)], with equality if and only if Q(z) = P(z|x)",
        "the paper says 'the decoder Q(z)' after it; Q is the encoder (errata 5)",
        _check_elbo,
    ),
    Lemma(
        "Lemma 2.2",
        "−E_x1[log P₂(f(x₁))] ≤ E_x1[KL(Q₂(z₂|f(x₁)) ‖ P₂(z₂))] − E_x1 E_z2[log P₂(f(x₁)|z₂)] = L",
        "the second term's expectation over x1 and z2 ~ Q2 is missing in the paper (errata 3)",
        _check_bound,
    ),
    Lemma(
        "Lemma 2.4",
        "L_x = n/2 log(2πρ) − M log μ + L_SAE(x)/(2ρ), L_SAE = |x − x̂(e(x))|² + λ|e(x)|₁, λ = 2μρ",
        "exponent n/2 with n the dimension of x; rho is a variance, mu a rate (errata 6)",
        _check_sae,
    ),
    Lemma(
        "Fact 3.3",
        "the law of Σ_j α_j d_j on N^t points costs m N^t log₂(N^t): one FFT convolution a source",
        "",
        _check_convolution,
    ),
    Lemma(
        "Lemma 3.4",
        "⟨f, v_i⟩ = a_i + ⟨w, v_i⟩ ψ(b), a_i = ⟨y, v_i⟩, b = ⟨y, u⟩ + θ: push the t+1 dimensional law of (a, b) on",
        "the last row of the matrix W is u, not w (errata 1)",
        _check_push_forward,
    ),
    Lemma(
        "Theorem 3.1",
        "L = R1 + R2 + (S1 + T2 + T3 + U1 + U2 + U3)/(2σ₂²), each a sum of expectations over at most 2t + 1 dimensions",
        "1/(2 sigma2^2), sigma2 a standard deviation (errata 2, 12)",
        _check_closed_form,
    ),
    Lemma(
        "Minimisers",
        "B₂* = M (G + D)⁻¹, σ₂*² = (T1 − tr(B₂*ᵀ M))/n₂, μ₂* = E f − B₂ E s, P₂ⱼ* = E Q′_j(·; c_j)",
        "not in the paper",
        _check_minimisers,
    ),
)


def lemma(name: str) -> Lemma:
    """The lemma of that name. Raises KeyError naming those there are."""
    for item in LEMMAS:
        if item.name == name:
            return item
    raise KeyError(f"no lemma {name!r}; there are {', '.join(item.name for item in LEMMAS)}")


def verify_all() -> Report:
    """Every lemma, every split and every derivative, and every line of the proof."""
    reports = [item.verify() for item in LEMMAS] + [verify_tree(derive()), verify_steps(derive())]
    return Report(tuple(name for report in reports for name in report.checked))
