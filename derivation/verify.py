"""Check the derivation exactly: in a small explicit world (two coordinates, two features, laws on finitely many points,
every number a symbol) an expectation is a finite sum, and both sides of an identity are polynomials and logarithms.

Nothing of the rules is used here: `instantiate` reads an expression by the definitions of its symbols alone. For the
gradient, s_j, V_j, K_j are arbitrary smooth functions, and the other side is sympy's derivative of the explicit L."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add, mul
from typing import TYPE_CHECKING, Any

import sympy

from elbotree.derivation import notation as nt
from elbotree.derivation.notation import Expr

if TYPE_CHECKING:
    from elbotree.derivation.gradient import Gradient, Parameter
    from elbotree.derivation.tree import LossTree

SIZE = 2
"""n2, m2, the atoms of x1, and the points of each latent coordinate."""


class VerificationError(ArithmeticError):
    """An identity of the derivation does not hold. It stops the build."""


@dataclass(frozen=True)
class Report:
    """What was checked: the names of the identities, each of which simplified to exactly 0."""

    checked: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.checked)} identities hold exactly:\n" + "\n".join(f"  {name}" for name in self.checked)


class Smooth(sympy.Function):  # type: ignore[misc]
    """Smooth(name, x, ...): an arbitrary smooth function; the name ends in the arguments differentiated by."""

    def fdiff(self, argindex: int = 1) -> Expr:
        name, *point = self.args
        stem, *orders = str(name).split("|")
        return Smooth(sympy.Symbol("|".join([stem, *sorted([*orders, str(argindex - 1)])])), *point)


@dataclass(frozen=True)
class World:
    """An explicit instance of the model, all numbers symbols.

    `smooth` says how s_j, V_j, K_j are read: as moments of a posterior on finitely many points (False), or as arbitrary
    smooth functions of c_j = C_j f + bias_j and of the family's and the prior's parameters (True; for derivatives).
    """

    smooth: bool = False
    t: int = 1
    values: Mapping[str, Expr] = field(default_factory=dict)

    def weight(self, atom: int) -> Expr:
        """P(x1 = atom); the last is what is left, so that the weights sum to 1."""
        first = [_positive(f"p{a}") for a in range(1, SIZE)]
        return first[atom - 1] if atom < SIZE else 1 - sum(first)

    def y(self, atom: int) -> Any:
        return _vector(f"y{atom}")

    def psi(self, atom: int) -> Expr:
        """psi(b) at the atom: some number."""
        return _real(f"psi{atom}")

    def f(self, atom: int) -> Any:
        return self.y(atom) + _vector("w") * self.psi(atom)

    def column(self, index: int) -> Any:
        return sympy.Matrix([_real(f"B{row}{index}") for row in range(1, SIZE + 1)])

    def point(self, index: int, place: int) -> Expr:
        """beta_index at its support's point `place`."""
        return _real(f"v{index}{place}")

    def posterior(self, index: int, atom: int, place: int) -> Expr:
        """Q'_index at a point, given x2 = f(atom); the last mass is what is left."""
        first = [_positive(f"q{index}{atom}{n}") for n in range(1, SIZE)]
        return first[place - 1] if place < SIZE else 1 - sum(first)

    def prior(self, index: int, place: int) -> Expr:
        return _positive(f"r{index}{place}")

    def feature(self, term: Expr, index: int, atom: int) -> Expr:
        """s_j, V_j, K_j at c_j(f(atom))."""
        if self.smooth:
            return self._smooth_feature(type(term).__name__, index, atom)
        masses = [self.posterior(index, atom, n) for n in range(1, SIZE + 1)]
        points = [self.point(index, n) for n in range(1, SIZE + 1)]
        mean = sum(q * v for q, v in zip(masses, points, strict=True))
        if isinstance(term, nt.Mean):
            return mean
        if isinstance(term, nt.Spread):
            return sum(q * (v - mean) ** 2 for q, v in zip(masses, points, strict=True))
        return sum(q * sympy.log(q / self.prior(index, n)) for n, q in enumerate(masses, start=1))

    def _smooth_feature(self, letter: str, index: int, atom: int) -> Expr:
        f = self.f(atom)
        c = [
            sum(_real(f"C{index}{row}{i}") * f[i - 1] for i in range(1, SIZE + 1)) + _real(f"bias{index}{row}")
            for row in range(1, self.t + 1)
        ]
        own = [_real(f"omega{index}"), *([_real(f"pi{index}")] if letter == "Divergence" else [])]
        return Smooth(sympy.Symbol(f"{letter}{index}"), *c, *own)


def _real(name: str) -> Expr:
    return sympy.Symbol(name, real=True)


def _positive(name: str) -> Expr:
    return sympy.Symbol(name, positive=True)


def _vector(name: str) -> Any:
    return sympy.Matrix([_real(f"{name}_{row}") for row in range(1, SIZE + 1)])


@dataclass(frozen=True)
class State:
    """What is fixed while an expression is read: the atom of x1, the point of each latent coordinate, index values."""

    atom: int | None = None
    places: tuple[int, ...] | None = None
    indices: tuple[tuple[Expr, int], ...] = ()

    def bind(self, **changes: Any) -> State:
        return State(**{**self.__dict__, **changes})

    def index(self, symbol: Expr) -> int:
        if symbol.is_Integer:
            return int(symbol)
        return int(dict(self.indices)[symbol])


def instantiate(expr: Expr, world: World, state: State | None = None) -> Any:
    """The explicit value of an expression in a world: a sympy scalar or column vector."""
    state = State() if state is None else state
    for head, reading in _READINGS.items():
        if isinstance(expr, head):
            return reading(expr, world, state)
    raise TypeError(f"no reading for {type(expr).__name__}: {expr}; add one to `verify._READINGS`")


def _all(expr: Expr, world: World, state: State) -> list[Any]:
    return [instantiate(part, world, state) for part in expr.args]


def _symbol(expr: Expr, world: World, state: State) -> Any:
    if expr in dict(state.indices):
        return sympy.Integer(state.index(expr))
    if expr in (nt.n2, nt.m2):
        return sympy.Integer(SIZE)
    return expr


def _vector_symbol(expr: Expr, world: World, state: State) -> Any:
    if expr in (nt.f, nt.y):
        if state.atom is None:
            raise VerificationError(f"{expr} stands outside an expectation over x1")
        return world.f(state.atom) if expr == nt.f else world.y(state.atom)
    return _vector(str(expr))


def _expectation(expr: Expr, world: World, state: State) -> Any:
    inside, law = expr.args
    if law == nt.X1:
        parts = [world.weight(a) * instantiate(inside, world, state.bind(atom=a)) for a in range(1, SIZE + 1)]
        return reduce(add, parts)
    return reduce(add, (_mass(world, state, z) * instantiate(inside, world, state.bind(places=z)) for z in _latents()))


def _latents() -> Iterator[tuple[int, ...]]:
    return itertools.product(range(1, SIZE + 1), repeat=SIZE)


def _mass(world: World, state: State, places: tuple[int, ...]) -> Expr:
    """Q2 at a point of the latent space, by independence (assumption 2)."""
    if state.atom is None:
        raise VerificationError("an expectation over z2 given x2 stands outside an expectation over x1")
    return sympy.Mul(*(world.posterior(j, state.atom, place) for j, place in enumerate(places, start=1)))


def _sum(expr: Expr, world: World, state: State) -> Any:
    total = []
    for numbers in itertools.product(range(1, SIZE + 1), repeat=len(expr.limits)):
        bound = tuple(zip(expr.variables, numbers, strict=True))
        kept = tuple(pair for pair in state.indices if pair[0] not in expr.variables)
        total.append(instantiate(expr.function, world, state.bind(indices=kept + bound)))
    return reduce(add, total)


def _kl(expr: Expr, world: World, state: State) -> Any:
    q, _ = expr.args
    if isinstance(q, nt.ProductLaw):
        total = sympy.Integer(0)
        for z in _latents():
            mass = _mass(world, state, z)
            total += mass * sympy.log(mass / sympy.Mul(*(world.prior(j, n) for j, n in enumerate(z, start=1))))
        return total
    return world.feature(nt.Divergence(q.args[0]), state.index(q.args[0]), state.atom or 0)


def _latent(expr: Expr, world: World, state: State) -> Any:
    if state.places is None:
        raise VerificationError(f"{expr} stands outside an expectation over z2 given x2")
    index = state.index(expr.args[0])
    return world.point(index, state.places[index - 1])


def _image(expr: Expr, world: World, state: State) -> Any:
    return reduce(
        add, (_latent(nt.Latent(sympy.Integer(j)), world, state) * world.column(j) for j in range(1, SIZE + 1))
    )


def _feature(expr: Expr, world: World, state: State) -> Any:
    if state.atom is None:
        raise VerificationError(f"{expr} stands outside an expectation over x1")
    return world.feature(expr, state.index(expr.args[0]), state.atom)


def _slope(expr: Expr, world: World, state: State) -> Any:
    term, direction = expr.args
    value = _feature(term, world, state)
    place = {nt.omega: world.t, nt.pi_prior: world.t + 1}.get(direction)
    return value.fdiff(2 + (state.index(direction) - 1 if place is None else place))


def _density(expr: Expr, world: World, state: State) -> Any:
    x, mean, sigma = _all(expr, world, state)
    distance = _dot(x - mean, x - mean)
    return (2 * sympy.pi * sigma**2) ** sympy.Rational(-SIZE, 2) * sympy.exp(-distance / (2 * sigma**2))


def _node_value(expr: Expr, world: World, state: State) -> Any:
    if str(expr) not in world.values:
        raise VerificationError(f"the value of node {expr} is not known here")
    return world.values[str(expr)]


def _dot(left: Any, right: Any) -> Expr:
    return (left.T * right)[0]


def _gram(expr: Expr, world: World, state: State) -> Any:
    return _dot(*(world.column(state.index(index)) for index in expr.args))


def _norm(expr: Expr, world: World, state: State) -> Any:
    value = instantiate(expr.args[0], world, state)
    return _dot(value, value)


Reading = Callable[[Expr, World, State], Any]

_READINGS: dict[type, Reading] = {
    nt.NodeValue: _node_value,
    nt.Vector: _vector_symbol,
    sympy.Symbol: _symbol,
    sympy.Number: lambda expr, world, state: expr,
    type(sympy.pi): lambda expr, world, state: expr,
    sympy.Sum: _sum,
    sympy.Add: lambda expr, world, state: reduce(add, _all(expr, world, state)),
    sympy.Mul: lambda expr, world, state: reduce(mul, _all(expr, world, state)),
    sympy.Pow: lambda expr, world, state: sympy.Pow(*_all(expr, world, state)),
    sympy.log: lambda expr, world, state: sympy.log(*_all(expr, world, state)),
    sympy.KroneckerDelta: lambda expr, world, state: sympy.KroneckerDelta(*_all(expr, world, state)),
    nt.Expectation: _expectation,
    nt.KL: _kl,
    nt.NormalDensity: _density,
    nt.Latent: _latent,
    nt.Image: _image,
    nt.FeatureTerm: _feature,
    nt.Slope: _slope,
    nt.Psi: lambda expr, world, state: world.psi(state.atom or 0),
    nt.Column: lambda expr, world, state: world.column(state.index(expr.args[0])),
    nt.Basis: lambda expr, world, state: sympy.eye(SIZE).col(state.index(expr.args[0]) - 1),
    nt.Gram: _gram,
    nt.Inner: lambda expr, world, state: _dot(*_all(expr, world, state)),
    nt.NormSquared: _norm,
    nt.Component: lambda expr, world, state: instantiate(expr.args[0], world, state)[state.index(expr.args[1]) - 1],
}


def require_zero(name: str, difference: Expr) -> None:
    """Raise VerificationError unless the difference simplifies to exactly 0."""
    difference = sympy.Add(difference)  # a Python 0 too
    if difference.has(sympy.log):
        difference = sympy.expand_log(difference, force=True)
    rest = sympy.expand(difference)
    if rest != 0 and not _refuted(rest):
        rest = sympy.simplify(rest)
    if rest != 0:
        text = str(rest)
        raise VerificationError(
            f"{name} does not hold: the two sides differ by {text[:300]}{'...' if len(text) > 300 else ''}"
        )


def _refuted(rest: Expr) -> bool:
    """Whether fixed rational numbers for all unknowns already show that an expression is not 0 (spares `simplify`)."""
    unknowns = [*sorted(rest.atoms(Smooth), key=sympy.default_sort_key), *sorted(rest.free_symbols, key=str)]
    numbers = {x: sympy.Rational(1, 2) + sympy.Rational(n, 5 * n + 7) for n, x in enumerate(unknowns)}
    return bool(abs(rest.xreplace(numbers).evalf(30)) > sympy.Rational(1, 10**15))


def verify_split(name: str, parent: Expr, factor: Expr, children: Mapping[str, Expr]) -> str:
    """Check parent = factor * (sum of children) in the explicit world; returns the identity's name."""
    world = World()
    identity = f"{name} = {factor} ({' + '.join(children)})" if factor != 1 else f"{name} = {' + '.join(children)}"
    total = sum(instantiate(child, world) for child in children.values())
    require_zero(identity, instantiate(parent, world) - instantiate(factor, world) * total)
    return identity


def verify_steps(tree: LossTree) -> Report:
    """Check every line of the proof: the expression before a rule equals the one after it."""
    world = World()
    checked = []
    for number, step in enumerate(tree.steps(), start=1):
        name = f"step {number}, {step.rule} in {step.node}"
        require_zero(name, instantiate(step.before, world) - instantiate(step.after, world))
        checked.append(name)
    for node in tree.gradient:
        # The first line is the derivative itself: `verify_gradient` checks that against sympy's.
        for number, step in enumerate(node.steps[1:], start=2):
            name = f"step {number}, {step.rule} in {step.node}"
            before, after = (instantiate(side, _SMOOTH, _ENTRY) for side in (step.before, step.after))
            require_zero(name, before - after)
            checked.append(name)
    return Report(tuple(checked))


_SMOOTH = World(smooth=True)
_ENTRY = State(indices=((nt.i, 1), (nt.j, 2), (nt.l, 2), (nt.r, 1)))
"""One entry of the gradient: row 1 of B2 or of the output, feature 2 (called l until the sums over j are gone)."""


def verify_tree(tree: LossTree) -> Report:
    """Check every split of the tree, and every derivative of the gradient.

    Returns a `Report`. Raises VerificationError naming the identity that fails and what is left of it.
    """
    checked = [
        verify_split(
            node.name, node.expression, node.factor, {child: tree[child].expression for child in node.children}
        )
        for node in tree
        if node.children
    ]
    return Report((*checked, *verify_gradient(tree, tree.gradient).checked))


def verify_gradient(tree: LossTree, gradient: Gradient, t: int = 2) -> Report:
    """Check each gradient node, entry by entry, against sympy's derivative of L written out through its leaves."""
    from elbotree.derivation.gradient import PARAMETERS, loss_from

    plain = World(smooth=True, t=t)
    values = {name: instantiate(loss_from(tree, name, ()), plain) for name in ("S1", "S2", "T1")}
    world = World(smooth=True, t=t, values=values)
    loss = instantiate(loss_from(tree, "L", ()), world)
    checked = []
    for by in PARAMETERS:
        node = gradient[f"dL/d{by.name}"]
        for entry, numbers in _entries(by, t):
            state = State(indices=tuple(zip(by.indices, numbers, strict=True)))
            name = f"{node.name} at {entry}"
            require_zero(name, sympy.diff(loss, entry) - instantiate(node.expression, world, state))
        checked.append(node.name)
    return Report(tuple(checked))


def _entries(by: Parameter, t: int) -> Iterator[tuple[Expr, tuple[int, ...]]]:
    """The symbols of an explicit world that a parameter stands for, with the values of its indices."""
    ranges = [range(1, (t if index == nt.r else SIZE) + 1) for index in by.indices]
    for numbers in itertools.product(*ranges):
        digits = "".join(str(n) for n in numbers)
        symbol = nt.sigma2 if by.name == "sigma2" else _real(f"mu2_{digits}" if by.name == "mu2" else by.name + digits)
        yield symbol, numbers
