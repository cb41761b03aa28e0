"""What the tree looks like: text, LaTeX, Mermaid, dot, JSON, MathML."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
import sympy

from elbotree.derivation import derive, layout, render
from elbotree.derivation import notation as nt
from elbotree.derivation.tree import NODE_NAMES


def test_drawing() -> None:
    lines = str(derive()).splitlines()
    assert [line.split("=")[0].strip(" ├└─│") for line in lines[:12]] == [
        "L", "R1", "R2", "R3", "S1", "S2", "T1", "U1", "U2", "U3", "T2", "T3",
    ]  # fmt: skip
    assert lines[1] == "├─ R1           =  Σ_j E[K_j(c_j)]"
    assert lines[10] == "      ├─ T2     =  −2 Σ_j E[⟨f − μ₂, b_j⟩ s_j(c_j)]"
    assert lines[3].startswith("└─ R3           =  (S1 + S2)/(2 σ₂²)  =  ")
    assert lines[-1] == render.LEGEND


TEXTS = {
    "R2": "n₂/2 log(2 π σ₂²)",
    "S1": "Σ_j H_jj E[V_j(c_j)]",
    "S2": "E[|f − μ₂ − Σ_j s_j(c_j) b_j|²]",
    "T3": "Σ_jk H_jk E[s_j(c_j) s_k(c_k)]",
    "U2": "2 E[⟨y − μ₂, w⟩ ψ(b)]",
    "U3": "|w|² E[ψ(b)²]",
}


@pytest.mark.parametrize("name", list(TEXTS))
def test_formula(name: str) -> None:
    assert render.text(derive()[name].expression) == TEXTS[name]


def test_gradient_formula() -> None:
    assert render.text(derive().gradient["dL/dsigma2"].expression) == "n₂/σ₂ − S1/σ₂³ − S2/σ₂³"
    assert str(derive().gradient).startswith("dL/dB = B_ij/σ₂² E[V_j(c_j)] + ")


def test_describe_names_rule_place_law_and_cost() -> None:
    text = derive().describe("T2")
    assert text.splitlines()[0] == "T2 = −2 Σ_j E[⟨f − μ₂, b_j⟩ s_j(c_j)]"
    assert "rule       expand_squared_norm; bilinearity; gram; linearity" in text
    assert "paper      (8), second term" in text
    assert "joint law  of c_j with b, through which f is pushed forward: t + 1 dimensions" in text
    assert "on the paper's grid it is one more: t + 2" in text
    assert "cost       N^(t + 1) m1 m2, with N modes in each dimension" in text
    assert "N^(t + 2) log2(N) m1 m2 (t + 2), with N bins in each dimension of the paper's grid (Fact 3.3)" in text
    assert "none (moments of y at most)" in derive().describe("U1")
    assert "   = (S1 + S2)/(2 σ₂²)" in derive().describe("R3")


def test_proof_has_a_numbered_line_for_each_step() -> None:
    text = derive().proof_text()
    for number, step in enumerate(derive().steps(), start=1):
        assert f"{number:3}  {step.rule}:  {step.arrow}" in text
    assert "\n\nL = E[KL(∏_j Q′_j(·; c_j) ‖ ∏_j P_2,j) − E_z[" in text


def test_latex() -> None:
    tree = derive()
    expected = r"U_3 = \left\| \mathbf{w}\right\| ^{2}\, \mathbb{E}\left[\psi\left(b\right)^{2}\right]"
    assert tree.to_latex("U3") == expected
    whole = tree.to_latex()
    assert whole.startswith("\\begin{align*}\n\\mathcal{L} &= ")
    assert whole.count("&=") == 12
    assert whole.count("{") == whole.count("}")
    assert whole.count(r"\left") == whole.count(r"\right")


def test_mermaid_and_dot_have_all_edges() -> None:
    tree = derive()
    mermaid, dot = tree.to_mermaid(), tree.to_dot()
    assert mermaid.startswith("flowchart TD\n")
    assert '    R2["R2 = n₂/2 log(2 π σ₂²)"]' in mermaid
    for parent, child in tree.graph.edges:
        assert f"    {parent} --> {child}\n" in mermaid
        assert f"    {parent} -> {child};\n" in dot
    assert dot.startswith("digraph loss {")
    assert dot.endswith("}\n")


def test_json() -> None:
    form = json.loads(derive().to_json())
    assert form["format"] == "elbotree-tree/1"
    assert form["sha256"] == derive().sha256
    assert [node["name"] for node in form["nodes"]] == list(NODE_NAMES)
    node = form["nodes"][NODE_NAMES.index("R3")]
    assert node["children"] == ["S1", "S2"]
    assert node["factor"] == "1/(2*sigma2**2)"
    assert form["nodes"][8]["law"]["dimension"] == "2*t + 1"
    assert len(form["steps"]) == 19
    assert node["cost"] == str(derive()["R3"].cost)
    assert form["minimisers"][0]["name"] == "B2*"
    assert [part["name"] for part in form["gradient"]][:2] == ["dL/dB", "dL/dmu2"]


@pytest.mark.parametrize("name", NODE_NAMES)
def test_mathml_is_well_formed(name: str) -> None:
    root = ElementTree.fromstring(derive().to_mathml(name))
    assert root.tag.endswith("math")
    assert "".join(root.itertext()).strip()


def test_products_of_matrices_keep_their_order() -> None:
    from elbotree.derivation.gradient import best_decoder

    assert render.minimiser_text(best_decoder(derive())).startswith("B2* = M (D + G)⁻¹   where M = ")


def test_a_head_without_a_look_is_named() -> None:
    with pytest.raises(TypeError, match=r"no look for sin: sin\(sigma2\); add one to `layout._LOOKS`"):
        layout.boxes(sympy.sin(nt.sigma2))


def test_negative_factors_and_sums_are_bracketed() -> None:
    x, z = nt.sigma2, nt.n2
    assert render.text((x + z) ** 2) == "(n₂ + σ₂)²"
    assert render.text(nt.sum_over(nt.Mean(nt.j) + nt.Spread(nt.j), nt.j)) == "Σ_j (s_j(c_j) + V_j(c_j))"
    assert render.text(-nt.n2) == "−n₂"


def test_proof_names_lemmas_preconditions_and_errata() -> None:
    text = derive().proof_text()
    assert text.startswith("Lemma 2.1.  log P(x) ≥")
    assert "  gram:  <b_j, b_k> -> H_jk\n      Precondition: both arguments are columns of B2" in text
    assert "R3, (6), third term; (7): 1/(2 sigma2^2) where the paper has 1/(2 sigma2) (errata 2, 12)" in text
    assert max(map(len, text.split("Rules, and when they apply")[1].split("Where this")[0].splitlines())) <= 120


def test_the_page_is_well_formed_and_complete() -> None:
    from elbotree.derivation.gradient import minimisers

    tree = derive()
    page = tree.proof_html()
    assert page.startswith("<!DOCTYPE html>")
    assert "http" not in page.replace("http://www.w3.org/1998/Math/MathML", "")  # nothing is fetched
    document = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    sections = [part.get("id") for part in document.iter("section")]
    assert sections == ["lemmas", *tree.names, "gradient", "minimisers", "rules"]
    anchors = {link.get("href") for link in document.iter("a")}
    assert anchors == {f"#{name}" for name in sections}
    lines = list(tree.steps()) + [step for node in tree.gradient for step in node.steps]
    assert [line.text for line in document.iter("code")] == [step.rule for step in lines]
    formulae = [part for part in document.iter() if part.tag.endswith("}math")]
    best = minimisers(tree)
    statistics = sum(len(item.where) for item in best)
    assert len(formulae) == len(tree) + len(lines) + len(tree.gradient) + 2 * len(best) + statistics + 1
    assert all("".join(part.itertext()).strip() for part in formulae)
