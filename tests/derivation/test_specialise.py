"""What a psi and families make of the tree: rules, the account of them, and the numbers of the specialised kernels."""

from __future__ import annotations

import pytest
import sympy
from sympy import Rational

from elbotree.derivation import derive, families
from elbotree.derivation import notation as nt
from elbotree.derivation.activations import analyse
from elbotree.derivation.specialise import Specialisation, put_in, specialise

TREE = derive()


def test_affine_psi_structure() -> None:
    u2 = put_in(TREE["U2"].expression, analyse("2*b + 1/3"))
    assert u2 == 2 * nt.Expectation(nt.Inner(nt.y - nt.mu2, nt.w) * (2 * nt.b + Rational(1, 3)), nt.X1)
    u3 = put_in(TREE["U3"].expression, analyse("identity"))
    assert u3 == nt.NormSquared(nt.w) * nt.Expectation(nt.b**2, nt.X1)


def test_zero_psi_prunes_its_terms_and_nothing_else() -> None:
    zero = analyse("zero")
    assert put_in(TREE["U2"].expression, zero) == put_in(TREE["U3"].expression, zero) == 0
    assert put_in(TREE["U1"].expression, zero) == TREE["U1"].expression


@pytest.mark.parametrize("psi", ["relu", "tanh", "abs", "hardtanh"])
def test_any_other_psi_leaves_the_tree_alone(psi: str) -> None:
    for name in TREE.leaves:
        assert put_in(TREE[name].expression, analyse(psi)) == TREE[name].expression


# psi, families -> dimensions of the largest lattice of (R1, S1, T2, T3, U2, U3), after
DIMENSIONS = {
    ("relu", "bernoulli"): (2, 2, 2, 3, 1, 1),
    ("relu", "normal"): (2, 0, 1, 1, 1, 1),
    ("relu", "normal_scale"): (3, 2, 1, 1, 1, 1),
    ("relu", "tilted"): (2, 2, 2, 3, 1, 1),
    ("identity", "normal"): (1, 0, 0, 0, 0, 0),
    ("identity", "tilted"): (1, 1, 1, 2, 0, 0),
    ("zero", "exponential"): (1, 1, 1, 2, 0, 0),
}


@pytest.mark.parametrize(("psi", "family"), sorted(DIMENSIONS))
def test_dimensions_after(psi: str, family: str) -> None:
    found = specialise(TREE, psi, family)
    after = tuple(int(found[name].dimensions[1]) for name in ("R1", "S1", "T2", "T3", "U2", "U3"))
    assert after == DIMENSIONS[psi, family]
    assert all(change.dimensions[1] <= change.dimensions[0] for change in found.changes)


def test_dimensions_before_are_the_papers() -> None:
    two = specialise(TREE, "relu", "normal_scale")
    assert [int(two[name].dimensions[0]) for name in ("R1", "T2", "T3", "U2")] == [3, 3, 5, 1]  # t + 1, t + 1, 2t + 1


m1, m2, n2, N = nt.m1, nt.m2, nt.n2, nt.modes
# psi, family, leaf -> operations before and after
OPERATIONS = {
    ("relu", "normal", "T3"): (m1 * m2**2 * N**3, m1 * m2**2 * N),
    ("relu", "normal", "S1"): (m1 * m2 * N**2, m2),
    ("relu", "normal", "T2"): (m1 * m2 * N**2, m1 * m2 * N),
    ("relu", "normal", "U1"): (m1 * n2, m1 * n2),
    ("relu", "normal", "U3"): (m1 * N, m1 * N),
    ("relu", "normal", "R2"): (0, 0),
    ("relu", "tilted", "T3"): (m1 * m2**2 * N**3, m1 * m2**2 * N**3),
    ("identity", "normal", "T3"): (m1 * m2**2 * N**3, m1 * m2**2 * n2),
    ("identity", "normal", "U2"): (m1 * N, m1 * n2),
    ("identity", "normal", "U3"): (m1 * N, m1 * n2),
    ("identity", "bernoulli", "T3"): (m1 * m2**2 * N**3, m1 * m2**2 * N**2),
    ("relu", "normal_scale", "T3"): (m1 * m2**2 * N**5, m1 * m2**2 * N),
    ("relu", "normal_scale", "S1"): (m1 * m2 * N**3, m1 * m2 * N**2),
    ("zero", "normal", "U2"): (m1 * N, 0),
    ("zero", "normal", "U3"): (m1 * N, 0),
}


@pytest.mark.parametrize(("psi", "family", "leaf"), sorted(OPERATIONS))
def test_operations_before_and_after(psi: str, family: str, leaf: str) -> None:
    assert specialise(TREE, psi, family)[leaf].operations == OPERATIONS[psi, family, leaf]


def test_all_leaves_together() -> None:
    found = specialise(TREE, "relu", "normal")
    assert found.dimensions == (3, 2)  # R1 against a prior without a closed form
    assert found.operations[0] == 2 * N * m1 + 3 * N**2 * m1 * m2 + N**3 * m1 * m2**2 + m1 * n2
    for psi, family in DIMENSIONS:
        before, after = (
            formula.subs({m1: 16, m2: 16, n2: 16, N: 32}) for formula in specialise(TREE, psi, family).operations
        )
        assert after <= before
    assert "all leaves\n  dimensions 3 -> 2\n" in str(found)
    assert "for m1 = 16, m2 = 16, n2 = 16, N = 32: 1.4e+08 -> 4" in str(found)


def test_the_account_is_printed() -> None:
    text = str(specialise(TREE, "where(b < 0, 0, b + 1)", ["normal", "bernoulli"]))
    assert "jumps at 0" in text
    assert "growth |b|^k: k = 0 towards -oo, 1 towards +oo; Lipschitz constant none" in text
    assert "normal: K against a normal prior: closed form, moments of f, no lattice of c" in text
    assert "normal: K against any other prior: by quadrature over beta" in text
    assert "bernoulli: K against every prior: closed form" in text
    assert "w = 0 (seen when the kernel runs): 0" in text
    assert "dimensions 3 -> 3" in text
    identity = str(specialise(TREE, "identity", "normal"))
    assert "U3 = |w|² E[ψ(b)²]\n  -> |w|² E[b²]\n  psi is affine: moments of y, in closed form" in identity
    assert "normal: s(c) = c0, linear: moments of f" in identity
    assert "psi = 0: pruned" in str(specialise(TREE, "zero", "normal"))


@pytest.mark.usefixtures("registries")
def test_what_a_family_has_in_closed_form_is_said() -> None:
    c, beta = families.C[0], families.BETA
    log_density = -(beta - c) - sympy.exp(-(beta - c))
    known = {"mean": None, "variance": None, "entropy": None, "centre": c, "spread": sympy.Integer(1)}
    families.add_family(families.describe_density("gumbel", log_density, t=1, law="Gumbel's", **known))
    text = str(specialise(TREE, "relu", ["gumbel", "normal", "tilted"]))
    assert (
        "family gumbel: t = 1, Gumbel's\n  in closed form: nothing\n  by quadrature over beta: mean, variance, entropy, draws"
        in text
    )
    assert "family normal: t = 1, N(c, std^2)\n  in closed form: mean, variance, entropy, draws\n\n" in text
    assert "mean, variance, draws: the base's own" in text


def test_unknown_leaf_is_an_error() -> None:
    found = specialise(TREE, "relu", "normal")
    assert isinstance(found, Specialisation)
    with pytest.raises(KeyError, match="no leaf 'L'; the leaves are R1"):
        found["L"]


def test_a_constant_psi_is_affine() -> None:
    u2 = put_in(TREE["U2"].expression, analyse("3"))
    assert u2 == 2 * nt.Expectation(3 * nt.Inner(nt.y - nt.mu2, nt.w), nt.X1)
    assert isinstance(u2, sympy.Expr)


@pytest.mark.usefixtures("registries")
def test_a_quadratic_mean_is_a_moment_alone_but_not_in_a_product() -> None:
    c, beta = families.C[0], families.BETA
    log_density = -((beta - c**2) ** 2) / 2 - sympy.log(2 * sympy.pi) / 2
    known = {"mean": c**2, "variance": sympy.Integer(1), "entropy": sympy.log(2 * sympy.pi * sympy.E) / 2}
    families.add_family(families.describe_density("bent", log_density, t=1, law="N(c^2, 1)", **known))
    found = specialise(TREE, "relu", "bent")
    assert [int(found[name].dimensions[1]) for name in ("S1", "T2", "T3")] == [0, 2, 3]
    assert "bent: s(c) = c0**2, quadratic" in found["T3"].said
