"""The compiled loops against the numpy walk of the same lattice, which is their reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from elbotree.runtime import lattice_loops
from elbotree.runtime.characteristic import ComplexArray, Lattice, LinearLaw
from elbotree.runtime.priors import (
    Bernoulli,
    Discrete,
    Exponential,
    Gamma,
    Laplace,
    Mixture,
    Normal,
    Prior,
    SpikeSlab,
    Uniform,
)
from elbotree.runtime.psi_transform import PsiTransform

PRIORS: tuple[Prior, ...] = (
    Bernoulli(0.3),
    Discrete((-1.0, 0.0, 2.0), (0.3, 0.3, 0.4)),
    Exponential(0.5),
    Laplace(0.2, 0.7),
    Mixture((0.5, 0.5), (Normal(0.0, 0.3), Normal(1.0, 0.1))),
    Uniform(-1.0, 2.0),
    SpikeSlab(0.2, Gamma(2.0, 0.5)),
    SpikeSlab(0.4, Exponential(0.8)),
    Mixture((0.5, 0.3, 0.2), (Laplace(-1.0, 0.3), Discrete((0.5,), (1.0,)), Exponential(0.2))),
    Bernoulli(0.3),
)


def lattice(priors: tuple[Prior, ...]) -> Lattice:
    rng = np.random.default_rng(0)
    n = 4
    root = rng.standard_normal((n, n)) * 0.15
    law = LinearLaw(rng.standard_normal(n), rng.standard_normal((n, len(priors))) * 0.5, priors, root @ root.T)
    modes = np.stack(np.meshgrid(np.arange(-5, 6), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    return Lattice(law, rng.standard_normal((2, n)) * 0.5, modes, rng.standard_normal(n) * 0.1, 12)


def random_base(made: Lattice) -> tuple[ComplexArray, ComplexArray]:
    """Weights, and the same with zeros outside each row's limits, which the compiled loops do not visit."""
    rng = np.random.default_rng(1)
    shape = (3, len(made.modes), made.columns)
    base = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    k = np.abs(np.arange(made.columns) - made.b_modes)
    return base, np.where(k <= made.limits[:, None], base, 0.0)


@pytest.mark.parametrize("priors", [PRIORS, PRIORS[:1], PRIORS[:2], ()])
def test_compiled_walk_equals_the_numpy_walk(priors: tuple[Prior, ...]) -> None:
    made = lattice(priors)
    full, inside = random_base(made)
    fast = replace(made, compiled=True)
    X, Y = made.moments(lambda rows, powers: inside[:powers, rows], 3, 2)
    X_fast, Y_fast = fast.moments(lambda rows, powers: full[:powers, rows], 3, 2)
    scale = np.abs(X).max()
    np.testing.assert_allclose(X_fast, X, atol=1e-12 * scale, rtol=0)
    np.testing.assert_allclose(Y_fast, Y, atol=1e-11 * np.abs(Y).max(), rtol=0)
    only = fast.values(lambda rows, powers: full[:powers, rows], 2)
    np.testing.assert_allclose(only, X[:2], atol=1e-12 * scale, rtol=0)
    direction = np.random.default_rng(2).standard_normal(len(made.law.mean))
    Z = made.second_moments(lambda rows, powers: inside[:powers, rows], direction)
    Z_fast = fast.second_moments(lambda rows, powers: full[:powers, rows], direction)
    np.testing.assert_allclose(Z_fast, Z, atol=1e-12 * np.abs(Z).max(), rtol=0)


def test_limits_leave_out_only_what_the_gaussian_factor_makes_small() -> None:
    made = lattice(PRIORS)
    over_n, over_k = made._gaussian(slice(None))
    k = np.abs(np.arange(made.columns) - made.b_modes)
    outside = np.where(k > made.limits[:, None], np.multiply.outer(over_n, over_k), 0.0)
    assert np.any(made.limits < made.b_modes)
    assert outside.max() <= over_k[0] * 1.3  # a mode more than the corner of the box on the axis


@pytest.mark.parametrize("text", ["relu", "hardtanh", "abs", "heaviside"])
def test_linear_pieces_compiled_and_not(text: str) -> None:
    from elbotree.codegen import compile_psi

    transform = PsiTransform(compile_psi(text), 0.2, -2.0, 3.0, 15, 1e-10)
    rng = np.random.default_rng(2)
    center, theta, alpha = rng.standard_normal((3, 40)) * np.array([[1.0], [3.0], [8.0]])
    theta[0] = alpha[0] = 0.0
    limits = np.full(40, 15, dtype=np.int64)
    plain, fast = transform.rows(center, theta, alpha, 3), transform.rows(center, theta, alpha, 3, limits)
    np.testing.assert_allclose(fast, plain, atol=1e-13 * np.abs(plain).max(), rtol=0)


@pytest.mark.parametrize("prior", PRIORS[2:7])
def test_tables_interpolate_the_characteristic_function(prior: Prior) -> None:
    step, table = lattice_loops.table(prior, 20.0)
    K = 201
    out, within, place = np.zeros((1, 4, K)), np.empty(K), np.empty(K, dtype=np.int64)
    lattice_loops._from_table(0.3, 0.19, 0, len(table), step, table, True, 0, K, out, 0, within, place)
    t = 0.3 + 0.19 * (np.arange(K) - K // 2)
    turn = np.exp(-1j * prior.mean() * t)
    slope = turn * (prior.cf(t, 1) - 1j * prior.mean() * prior.cf(t))
    assert np.abs(out[0, 0] + 1j * out[0, 1] - turn * prior.cf(t)).max() < 2e-14
    assert np.abs(out[0, 2] + 1j * out[0, 3] - slope).max() < 2e-12
