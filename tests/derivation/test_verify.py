"""The checker: what is right passes, and each deliberately wrong identity is caught."""

from __future__ import annotations

import dataclasses

import pytest
import sympy

from elbotree.derivation import derive
from elbotree.derivation import notation as nt
from elbotree.derivation.gradient import Gradient
from elbotree.derivation.tree import LossTree
from elbotree.derivation.verify import (
    VerificationError,
    World,
    instantiate,
    require_zero,
    verify_gradient,
    verify_split,
    verify_steps,
)


def test_tree_verifies_and_says_what_was_checked() -> None:
    report = derive().verify()
    assert report.checked == (
        "L = R1 + R2 + R3",
        "R3 = 1/(2*sigma2**2) (S1 + S2)",
        "S2 = T1 + T2 + T3",
        "T1 = U1 + U2 + U3",
        "dL/dB",
        "dL/dmu2",
        "dL/dsigma2",
        "dL/dC",
        "dL/dbias",
        "dL/domega",
        "dL/dpi",
    )
    assert str(report).startswith("11 identities hold exactly:")


def test_every_line_of_the_proof_verifies() -> None:
    checked = verify_steps(derive()).checked
    assert len(derive().steps()) == 19
    assert len(checked) == 19 + sum(len(node.steps) - 1 for node in derive().gradient)
    assert len(set(checked)) == len(checked)


def test_a_wrong_line_of_the_gradient_is_caught() -> None:
    tree = derive()
    node = tree.gradient["dL/dB"]
    wrong = dataclasses.replace(node.steps[3], after=2 * node.steps[3].after)
    altered_node = dataclasses.replace(node, steps=(*node.steps[:3], wrong))
    altered_tree = Altered(tree.nodes, ())
    object.__setattr__(altered_tree, "_gradient", Gradient((altered_node,)))
    with pytest.raises(VerificationError, match="step 4, sums_apart in dL/dB does not hold"):
        verify_steps(altered_tree)


class Altered(LossTree):
    """A tree whose gradient is another than its own."""

    @property
    def gradient(self) -> Gradient:
        return self._gradient


def altered(name: str, change) -> LossTree:
    """The tree with one node's expression replaced."""
    tree = derive()
    nodes = [dataclasses.replace(n, expression=change(n.expression)) if n.name == name else n for n in tree]
    return LossTree(tuple(nodes), tree.proof)


MUTATIONS = {
    "T2": ("S2", lambda e: -e),
    "T3": ("S2", lambda e: e.xreplace({nt.Gram(nt.j, nt.k): nt.Gram(nt.j, nt.j)})),
    "S1": ("R3", lambda e: e.xreplace({nt.Gram(nt.j, nt.j): sympy.Integer(1)})),
    "U2": ("T1", lambda e: e / 2),
    "U3": ("T1", lambda e: e.xreplace({nt.w: nt.mu2})),
    "R2": ("L", lambda e: e.xreplace({nt.sigma2**2: nt.sigma2})),
    "R1": ("L", lambda e: 2 * e),
    "U1": ("T1", lambda e: e.xreplace({nt.mu2: 2 * nt.mu2})),
}


@pytest.mark.parametrize("leaf", list(MUTATIONS))
def test_a_wrong_leaf_is_caught(leaf: str) -> None:
    parent, change = MUTATIONS[leaf]
    with pytest.raises(VerificationError, match=rf"^{parent} = .* does not hold: the two sides differ by"):
        altered(leaf, change).verify()


def test_the_papers_own_factor_is_caught() -> None:
    """Figure 2's caption has R3 = (S1 + S2)/(2 sigma2) (errata 12)."""
    tree = derive()
    children = {name: tree[name].expression for name in ("S1", "S2")}
    with pytest.raises(VerificationError, match="R3"):
        verify_split("R3", tree["R3"].expression, 1 / (2 * nt.sigma2), children)


@pytest.mark.parametrize("name", ["dL/dB", "dL/dC", "dL/dsigma2", "dL/domega"])
def test_a_wrong_derivative_is_caught(name: str) -> None:
    tree = derive()
    nodes = [dataclasses.replace(n, expression=2 * n.expression) if n.name == name else n for n in tree.gradient]
    with pytest.raises(VerificationError, match=rf"{name} at \w+ does not hold"):
        verify_gradient(tree, Gradient(tuple(nodes)), t=1)


def test_zero_is_exact() -> None:
    x = sympy.Symbol("x", positive=True)
    require_zero("log", sympy.log(x**2) - 2 * sympy.log(x))
    with pytest.raises(VerificationError, match=r"tiny does not hold: the two sides differ by x/1000000"):
        require_zero("tiny", x / 1000000)


def test_symbols_out_of_place_are_refused() -> None:
    with pytest.raises(VerificationError, match="f stands outside an expectation over x1"):
        instantiate(nt.NormSquared(nt.f), World())
    with pytest.raises(TypeError, match="no reading for"):
        instantiate(sympy.sin(nt.sigma2), World())
