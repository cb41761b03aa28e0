"""The lemmas verify, print, and notice when they are wrong."""

from __future__ import annotations

import dataclasses

import pytest
import sympy

from elbotree.derivation import lemmas
from elbotree.derivation import notation as nt
from elbotree.derivation.tree import convolution_cost
from elbotree.derivation.verify import VerificationError


@pytest.mark.parametrize("lemma", lemmas.LEMMAS, ids=lambda lemma: lemma.name)
def test_verifies(lemma: lemmas.Lemma) -> None:
    assert all(name.startswith(lemma.name) for name in lemma.verify().checked)


def test_prints_statement_and_erratum() -> None:
    assert str(lemmas.lemma("Lemma 2.4")).startswith("Lemma 2.4.  L_x = n/2 log(2πρ) − M log μ")
    assert "errata: " in str(lemmas.lemma("Lemma 2.2"))
    assert "errata" not in str(lemmas.lemma("Fact 3.3"))


def test_unknown_lemma() -> None:
    with pytest.raises(KeyError, match=r"no lemma 'Lemma 9'; there are Lemma 2\.1, "):
        lemmas.lemma("Lemma 9")


def test_the_papers_constant_fails(monkeypatch) -> None:
    """The paper has M/2 log(2 pi rho / mu^2): wrong wherever n differs from M (errata 6)."""
    monkeypatch.setattr(lemmas, "sae_constant", lambda n, M, mu, rho: M / 2 * sympy.log(2 * sympy.pi * rho / mu**2))
    with pytest.raises(VerificationError, match=r"Lemma 2.4, L_x = .* does not hold"):
        lemmas.lemma("Lemma 2.4").verify()


def test_the_papers_missing_expectation_fails(monkeypatch) -> None:
    broken = lemmas.closed_form() - nt.NodeValue("R1")
    monkeypatch.setattr(lemmas, "closed_form", lambda: broken)
    with pytest.raises(VerificationError, match="R1"):
        lemmas.lemma("Theorem 3.1").verify()


def test_a_lemma_that_checks_nothing_is_refused() -> None:
    empty = dataclasses.replace(lemmas.lemma("Lemma 2.1"), check=dict)
    with pytest.raises(VerificationError, match=r"Lemma 2\.1 checks nothing"):
        empty.verify()


def test_wrong_minimiser_is_caught(monkeypatch) -> None:
    from elbotree.derivation import gradient as gr

    right = gr.best_decoder
    monkeypatch.setattr(gr, "best_decoder", lambda tree: dataclasses.replace(right(tree), solution=gr.M * gr.G**-1))
    with pytest.raises(VerificationError, match=r"dL/dB2 = 0 at B2\*, entry 11 does not hold"):
        lemmas.lemma("Minimisers").verify()


def test_costs() -> None:
    m, t, N = nt.m1, nt.t, nt.modes
    assert convolution_cost() == m * t * N**t * sympy.log(N) / sympy.log(2)
    assert convolution_cost(sympy.Integer(3), sympy.Integer(2), sympy.Integer(8)).doit().equals(3 * 64 * 6)


def test_a_wrong_cost_fails(monkeypatch) -> None:
    monkeypatch.setattr(lemmas, "convolution_cost", lambda m, t, N: m * N**t * sympy.log(N))
    with pytest.raises(VerificationError, match=r"Fact 3\.3, the cost of one axis .* does not hold"):
        lemmas.lemma("Fact 3.3").verify()
