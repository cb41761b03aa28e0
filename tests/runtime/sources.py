"""Priors of five features that tests of pairs share: sparse ones, and one of every kind."""

from __future__ import annotations

from elbotree.runtime.priors import Bernoulli, Discrete, Exponential, Laplace, Mixture, Normal, Prior

SPARSE: tuple[Prior, ...] = (Bernoulli(0.1),) * 5
MIXED: tuple[Prior, ...] = (
    Bernoulli(0.5),
    Exponential(0.4),
    Discrete((-1.0, 0.0, 2.0), (0.2, 0.6, 0.2)),
    Laplace(0.1, 0.3),
    Mixture((0.5, 0.5), (Normal(-0.3, 0.2), Normal(0.4, 0.1))),
)
