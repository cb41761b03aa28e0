"""The derived tree: its shape, its formulae as a reader of the paper would write them, and what each node knows."""

from __future__ import annotations

import dataclasses

import pytest
import sympy

from elbotree.derivation import derive
from elbotree.derivation import notation as nt
from elbotree.derivation.notation import b, f, j, k, m1, m2, modes, mu2, n2, sigma2, t, w, y
from elbotree.derivation.rules import RuleError
from elbotree.derivation.tree import NODE_NAMES, SPLITS, Split, cost, elbo, joint_law, open_node

E, s = nt.Expectation, nt.Mean
X1 = nt.X1

# typed from the paper with the errata's corrections; the tree derives them
PAPER = {
    "R1": nt.sum_over(E(nt.Divergence(j), X1), j),
    "R2": n2 * sympy.log(2 * sympy.pi * sigma2**2) / 2,
    "S1": nt.sum_over(nt.Gram(j, j) * E(nt.Spread(j), X1), j),
    "S2": E(nt.NormSquared(f - mu2 - nt.sum_over(s(j) * nt.Column(j), j)), X1),
    "T1": E(nt.NormSquared(f - mu2), X1),
    "T2": -2 * nt.sum_over(E(nt.Inner(f - mu2, nt.Column(j)) * s(j), X1), j),
    "T3": nt.sum_over(nt.Gram(j, k) * E(s(j) * s(k), X1), j, k),
    "U1": E(nt.NormSquared(y - mu2), X1),
    "U2": 2 * E(nt.Inner(y - mu2, w) * nt.Psi(b), X1),
    "U3": nt.NormSquared(w) * E(nt.Psi(b) ** 2, X1),
}


def test_names_edges_and_leaves() -> None:
    tree = derive()
    assert tree.names == NODE_NAMES == ("L", "R1", "R2", "R3", "S1", "S2", "T1", "T2", "T3", "U1", "U2", "U3")
    assert set(tree.graph.edges) == {
        ("L", "R1"), ("L", "R2"), ("L", "R3"), ("R3", "S1"), ("R3", "S2"), ("S2", "T1"), ("S2", "T2"), ("S2", "T3"),
        ("T1", "U1"), ("T1", "U2"), ("T1", "U3"),
    }  # fmt: skip
    assert tree.leaves == ("R1", "R2", "S1", "T2", "T3", "U1", "U2", "U3")
    assert len(tree) == 12


@pytest.mark.parametrize("name", list(PAPER))
def test_expression_is_the_papers(name: str) -> None:
    assert derive()[name].expression == PAPER[name]


def test_only_r3_has_a_factor() -> None:
    assert {node.name: node.factor for node in derive() if node.factor != 1} == {"R3": 1 / (2 * sigma2**2)}


@pytest.mark.parametrize(
    ("name", "dimension", "grid"),
    [
        ("R1", t + 1, t + 1),
        ("S1", t + 1, t + 1),
        ("T2", t + 1, t + 2),
        ("T3", 2 * t + 1, 2 * t + 1),
        ("U1", 0, 0),
        ("U2", 1, 2),
        ("U3", 1, 1),
        ("R2", 0, 0),
        ("L", 2 * t + 1, 2 * t + 1),
        ("T1", 1, 2),
    ],
)
def test_joint_law(name: str, dimension, grid) -> None:
    law = derive()[name].law
    assert (law.dimension, law.grid_dimension) == (dimension, grid)


def test_cost_counts_laws_sources_and_modes() -> None:
    tree = derive()
    assert tree["T3"].cost == m1 * m2**2 * modes ** (2 * t + 1)
    assert tree["T2"].cost == m1 * m2 * modes ** (t + 1)
    assert tree["U1"].cost == m1 * n2
    assert tree["S2"].cost == tree["T1"].cost + tree["T2"].cost + tree["T3"].cost
    assert cost(sympy.Integer(3)) == 0


def test_graph_carries_every_field() -> None:
    tree = derive()
    attributes = tree.graph.nodes["T2"]
    assert attributes["expression"] == tree["T2"].expression
    assert attributes["place"] == "(8), second term"
    assert set(attributes) == {field.name for field in dataclasses.fields(tree["T2"])}


def test_errata_are_named_where_the_tree_differs() -> None:
    notes = " ".join(node.erratum for node in derive())
    for number in (1, 2, 3, 9, 10, 11, 12):
        assert f"{number}" in notes
    assert "errata 10" in derive()["T3"].erratum


def test_the_graph_is_a_copy_and_the_tree_is_frozen() -> None:
    tree = derive()
    tree.graph.remove_node("T2")
    assert "T2" in tree.graph
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree["T2"].name = "X"
    assert derive() is tree


def test_unknown_node_names_the_nodes() -> None:
    with pytest.raises(KeyError, match="no node 'T4'; the nodes are L, R1, R2"):
        derive()["T4"]


def test_steps_link_up() -> None:
    """Within a node each step starts where the last one ended, and the first at the node's expression."""
    tree = derive()
    last = {}
    for step in tree.steps():
        assert step.before == last.get(step.node, tree[step.node].expression)
        assert step.before != step.after
        last[step.node] = step.after
    assert list(last) == ["L", "R3", "S2", "T1"]
    assert tree.steps()[0].before == elbo()


def test_a_split_that_finds_no_child_stops() -> None:
    wrong = Split(SPLITS["T1"].rules, (("U1", lambda e: False), *SPLITS["T1"].children[1:]))
    with pytest.raises(RuleError, match="T1 should open into one term U1; 0 terms fit"):
        open_node("T1", derive()["T1"].expression, wrong)


def test_a_split_that_leaves_a_term_over_stops() -> None:
    wrong = Split(SPLITS["T1"].rules, SPLITS["T1"].children[:2])
    with pytest.raises(RuleError, match="T1 opened into 3 terms; 2 were expected"):
        open_node("T1", derive()["T1"].expression, wrong)


def test_a_missing_rule_stops() -> None:
    wrong = Split(SPLITS["S2"].rules[:1], SPLITS["S2"].children)
    with pytest.raises(RuleError):
        open_node("S2", derive()["S2"].expression, wrong)


def test_joint_law_of_two_features_counts_both() -> None:
    law = joint_law(E(s(j) * s(k) * nt.Psi(b), X1))
    assert law.dimension == 2 * t + 1
    assert nt.b in law.projections


def test_sizes_stay_small() -> None:
    tree = derive()
    assert len(tree.steps()) <= 20
    assert max(sympy.count_ops(node.expression) for node in tree) <= 20
