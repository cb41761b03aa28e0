"""Chains: what a closed-form step keeps exactly, the baselines, measured drift, training, files, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

import elbotree as et
from elbotree.runtime.chain_checkpoints import Loss, read_loss
from elbotree.runtime.characteristic import LinearLaw
from elbotree.runtime.drift import measure_drift
from elbotree.runtime.propagation import Propagation, gaussian, propagate, to_model
from elbotree.runtime.storage import load_folder, save_folder
from elbotree.runtime.values import NAMES

rng0 = np.random.default_rng(7)


def mixed_input(n: int = 3, noise: float = 0.3) -> et.FeatureModel:
    """Four features of four kinds in n coordinates."""
    priors = [et.Bernoulli(0.3), et.SpikeSlab(0.2, et.Normal(0.5, 1.0)), et.Exponential(0.6), et.Normal(0.2, 0.7)]
    B = np.random.default_rng(1).standard_normal((n, 4))
    return et.FeatureModel(B, priors, noise, np.arange(n) / 4)


def unit_layer(n: int, psi: str, seed: int = 2) -> et.Layer:
    """x -> (x, psi(<v, x> - 0.2))."""
    v = np.random.default_rng(seed).standard_normal(n)
    return et.Layer(np.eye(n + 1, n), np.eye(n + 1)[n], np.append(v, 0.0), psi, threshold=-0.2)


def cumulants(model: et.FeatureModel, v: np.ndarray) -> np.ndarray:
    """The first four cumulants of <v, x>, from the raw moments of the priors: cumulants of independent parts add up."""
    total = np.array([v @ model.offset, model.noise_std**2 * (v @ v), 0.0, 0.0])
    for a, prior in zip(v @ model.B, model.priors, strict=True):
        m1, m2, m3, m4 = (prior.moment(k) for k in (1, 2, 3, 4))
        third = m3 - 3 * m1 * m2 + 2 * m1**3
        fourth = m4 - 4 * m1 * m3 - 3 * m2**2 + 12 * m1**2 * m2 - 6 * m1**4
        total += np.array([a * m1, a**2 * (m2 - m1**2), a**3 * third, a**4 * fourth])
    return total


@pytest.mark.parametrize(("n2", "psi"), [(2, "identity"), (3, "identity"), (5, "identity"), (3, "relu")])
def test_affine_steps_are_exact_in_all_four_cumulants(n2: int, psi: str) -> None:
    p1 = mixed_input()
    A, w, u = (rng0.standard_normal(shape) for shape in ((n2, 3), (n2,), (n2,)))
    if psi == "relu":
        w = np.zeros(n2)  # then psi plays no part
    layer = et.Layer(A, w, u, psi, offset=np.ones(n2), threshold=0.4)
    T = np.eye(n2) + (np.outer(w, u) if psi == "identity" else 0.0)
    shift = T @ np.ones(n2) + 0.4 * w
    model = et.fit_network([layer], p1).models[0]
    for v in rng0.standard_normal((4, n2)):
        back = A.T @ T.T @ v
        expected = cumulants(p1, back)
        expected[0] += v @ shift
        np.testing.assert_allclose(cumulants(model, v), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("psi", ["relu", "tanh", "square"])
def test_a_unit_keeps_mean_and_covariance_of_the_network(psi: str) -> None:
    p1, layer = mixed_input(), unit_layer(3, psi)
    N = 200_000
    rows = layer(p1.sample(N, np.random.default_rng(3)))
    model = et.fit_network([layer], p1).models[0]
    centred = rows - rows.mean(axis=0)
    assert np.all(np.abs(model.mean() - rows.mean(axis=0)) <= 5 * rows.std(axis=0) / np.sqrt(N))
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(axis=0) / np.sqrt(N)
    assert np.all(np.abs(model.covariance() - products.mean(axis=0)) <= 5 * error)


def test_a_feature_that_the_unit_does_not_read_keeps_its_column_and_prior() -> None:
    p1 = et.FeatureModel(np.eye(3)[:, :2], [et.Bernoulli(0.3), et.Exponential(1.0)], 0.3)
    layer = et.Layer(np.eye(4, 3), np.eye(4)[3], [1.0, 0.0, 0.0, 0.0], "relu")
    model = propagate(layer, p1).model
    at = model.priors.index(et.Exponential(1.0))
    np.testing.assert_allclose(model.B[:, at], [0.0, 1.0, 0.0, 0.0], atol=1e-9)


def test_cov_prop_has_the_known_moments_of_a_rectified_normal() -> None:
    mean, std = 0.4, 1.3
    p1 = et.FeatureModel(np.zeros((1, 0)), [], std, [mean])
    layer = et.Layer(np.eye(2, 1), [0.0, 1.0], [1.0, 0.0], "relu")
    model = et.fit_network([layer], p1, method="cov-prop").models[0]
    z = mean / std
    first = mean * norm.cdf(z) + std * norm.pdf(z)
    second = (mean**2 + std**2) * norm.cdf(z) + mean * std * norm.pdf(z)
    cross = std**2 * norm.cdf(z)  # Stein: Cov(x, relu(x)) = Var x P(x > 0)
    np.testing.assert_allclose(model.mean(), [mean, first], atol=1e-6)
    np.testing.assert_allclose(model.covariance(), [[std**2, cross], [cross, second - first**2]], atol=1e-5)
    assert all(isinstance(prior, et.Normal) for prior in model.priors)


def dense(W: np.ndarray, bias: np.ndarray, psi: str) -> list[et.Layer]:
    """x -> (x, psi(W x + bias)), one unit a layer, all of x kept."""
    n, out = W.shape[1], []
    for i, (row, shift) in enumerate(zip(W, bias, strict=True)):
        width = n + i + 1
        out.append(
            et.Layer(np.eye(width, width - 1), np.eye(width)[-1], np.append(row, np.zeros(i + 1)), psi, None, shift)
        )
    return out


def test_two_rectified_normals_have_the_known_covariance() -> None:
    """E relu(a) relu(b) = (sin t + (pi - t) cos t) / 2 pi for standard normals of correlation cos t."""
    for t in (0.3, 1.2, 2.5):
        W = np.array([[1.0, 0.0], [np.cos(t), np.sin(t)]])
        p1 = et.FeatureModel(np.zeros((2, 0)), [], 1.0)
        for method in ("fit", "cov-prop"):
            model = et.fit_network(dense(W, np.zeros(2), "relu"), p1, method=method).models[-1]
            product = (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi)
            assert model.covariance()[2, 3] + model.mean()[2] * model.mean()[3] == pytest.approx(product, abs=3e-6)


@pytest.mark.parametrize("psi", ["relu", "tanh", "square"])
def test_all_units_of_a_hidden_layer_keep_mean_and_covariance_of_the_network(psi: str) -> None:
    """Also where two units read the same direction, or opposite ones."""
    rng = np.random.default_rng(11)
    W = rng.standard_normal((5, 3))
    W[3], W[4] = W[0], -W[1]
    p1, layers, N = mixed_input(), dense(W, rng.standard_normal(5), psi), 200_000
    rows = p1.sample(N, np.random.default_rng(3))
    for layer in layers:
        rows = layer(rows)
    model = et.fit_network(layers, p1).models[-1]
    centred = rows - rows.mean(axis=0)
    assert np.all(np.abs(model.mean() - rows.mean(axis=0)) <= 5 * rows.std(axis=0) / np.sqrt(N))
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(axis=0) / np.sqrt(N)
    assert np.all(np.abs(model.covariance() - products.mean(axis=0)) <= 5 * error)


def test_a_unit_that_reads_another_begins_a_new_block() -> None:
    p1 = mixed_input()
    first, second = dense(np.eye(3)[:2], np.zeros(2), "relu")
    reading = et.Layer(np.eye(6, 5), np.eye(6)[5], [0.0, 0.0, 0.0, 1.0, 1.0, 0.0], "relu")
    state = Propagation(p1)
    state.through(first)
    state.through(second)
    assert len(state.units) == 2
    before = state.model
    made = state.through(reading)
    assert len(state.units) == 1
    assert np.array_equal(made.model.covariance(), propagate(reading, before).model.covariance())


def test_no_features_is_cov_prop_and_a_bound_keeps_the_covariance() -> None:
    p1, layer = mixed_input(), unit_layer(3, "relu")
    whole, two = propagate(layer, p1), propagate(layer, p1, features=2)
    assert sum(not isinstance(p, et.Normal) for p in whole.model.priors) == 4
    assert sum(not isinstance(p, et.Normal) for p in two.model.priors) == 2
    assert two.made_normal > 0 == whole.made_normal
    np.testing.assert_allclose(two.model.covariance(), whole.model.covariance(), atol=1e-12)
    np.testing.assert_allclose(
        propagate(layer, gaussian(p1), features=0).model.covariance(),
        et.fit_network([layer], p1, method="cov-prop").models[0].covariance(),
        atol=1e-12,
    )


def test_anisotropic_noise_becomes_normal_features() -> None:
    p1 = et.FeatureModel(np.zeros((2, 0)), [], 0.5)
    model = et.fit_network([et.Layer(np.diag([1.0, 3.0]), [0, 0], [1, 0])], p1).models[0]
    assert model.noise_std == pytest.approx(0.5)
    assert model.m == 1
    np.testing.assert_allclose(model.covariance(), np.diag([0.25, 2.25]), atol=1e-12)


def test_input_without_noise_gets_the_floor_along_b_and_a_note() -> None:
    p1 = et.FeatureModel(np.eye(2), [et.Bernoulli(0.5)] * 2, 0.0)
    layer = et.Layer(np.eye(3, 2), np.eye(3)[2], [1.0, -2.0, 0.0], "relu", threshold=0.3)
    chain = et.fit_network([layer], p1, noise_floor=0.05)
    assert any("0.05 of its standard deviation was added" in note for note in chain.notes)
    exact = np.array([0.3, 1.3, 0.0, 0.0])  # relu(x0 - 2 x1 + 0.3) on the four corners
    assert chain.models[0].mean()[2] == pytest.approx(exact.mean(), abs=5e-3)


def test_mean_prop_follows_the_mean_and_sampling_the_samples() -> None:
    p1, layers = mixed_input(), [unit_layer(3, "relu"), unit_layer(4, "tanh")]
    point = et.fit_network(layers, p1, method="mean-prop").models[-1]
    np.testing.assert_allclose(point.mean(), layers[1](layers[0](p1.mean()[None]))[0], atol=1e-14)
    assert not point.covariance().any()
    chain = et.fit_network(layers, p1, method="sampling", samples=20_000, check_samples=20_000)
    assert chain.drift[1] is not None
    assert chain.drift[1].mean < 0.05
    assert chain.drift[1].covariance < 0.1


def test_drift_sees_a_wrong_model() -> None:
    rng = np.random.default_rng(0)
    p1 = et.FeatureModel(np.zeros((2, 0)), [], 1.0)
    shifted = et.FeatureModel(np.zeros((2, 0)), [], 1.0, [0.5, 0.0])
    rows = p1.sample(40_000, rng)
    found = measure_drift(rows, shifted, rng)
    assert found.mean == pytest.approx(0.5, abs=0.03)
    assert found.wasserstein == pytest.approx(0.5, abs=0.03)
    assert found.unit == 0
    assert found.units[1] < 0.03
    assert not found.trust
    right = measure_drift(rows, p1, rng)
    assert right.trust


def test_the_excess_is_the_divergence_of_the_gaussian_moments() -> None:
    """KL(N(m, S) || N(0, I)) of two coordinates, from the rows themselves: the difference of mean log densities."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((500, 2)) @ np.array([[1.0, 0.4], [0.0, 1.5]]) + [0.3, -0.2]
    model = et.FeatureModel(np.zeros((2, 0)), [], 0.9)
    covariance = np.cov(rows.T)
    off = rows - rows.mean(axis=0)
    own = -0.5 * np.log(2 * np.pi) * 2 - 0.5 * np.log(np.linalg.det(covariance))
    own = own - 0.5 * np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off)
    theirs = norm.logpdf(rows, scale=0.9).sum(axis=1)
    correction = (len(rows) - 1) / len(rows)  # the sample covariance divides by N - 1
    found = measure_drift(rows, model, rng).excess
    exact = own.mean() - theirs.mean()
    bias = (1 - correction) * 0.5 * (np.trace(covariance) / 0.81 - 2)
    assert found == pytest.approx(exact + bias, abs=1e-12)
    flat = et.FeatureModel(np.array([[1.0], [0.0]]), [et.Normal(0.0, 1.0)], 0.0)
    assert measure_drift(rows, flat, rng).excess is None


def test_the_table_says_where_trust_ends() -> None:
    chain = et.fit_network([unit_layer(3, "relu")], mixed_input(), method="mean-prop", check_samples=2000)
    assert chain.trusted == 0
    assert "trusted up to layer 0" in str(chain)
    assert " no" in str(chain)
    assert "not measured" in str(et.fit_network([unit_layer(3, "relu")], mixed_input()))


def test_training_reports_its_loss_beside_the_gaussian_entropy() -> None:
    p1 = et.FeatureModel(np.eye(2), [et.Bernoulli(0.4)] * 2, 0.25)
    layer = et.Layer(np.eye(3, 2), np.eye(3)[2], [1.0, 1.0, 0.0], "relu", threshold=-0.5)
    chain = et.fit_network([layer], p1, iterations=4, features=3, tol=1e-2)
    loss = chain.losses[0]
    assert loss is not None, chain.notes
    assert loss.iterations > 0
    assert loss.gap is not None
    rows = layer(p1.sample(50_000, np.random.default_rng(0)))
    gauss = 0.5 * (3 * np.log(2 * np.pi * np.e) + np.linalg.slogdet(np.cov(rows.T))[1])
    assert loss.value - loss.gap == pytest.approx(gauss, abs=0.02)


def test_a_saved_chain_loads_to_the_same_models(tmp_path: Path) -> None:
    p1, layers = mixed_input(), [unit_layer(3, "relu"), unit_layer(4, "tanh")]
    chain = et.fit_network(layers, p1, check_samples=1000)
    terms = {name: 1.25 + k for k, name in enumerate(NAMES)}
    loss = Loss(terms, dict.fromkeys(NAMES, 1e-4), -0.5, 1.5, 7)
    chain = replace(chain, losses=(loss, None))  # as if the first layer had been trained
    chain.save(tmp_path / "chain")
    again = et.load(tmp_path / "chain")
    assert isinstance(again, et.Chain)
    assert str(again) == str(chain)
    assert again.losses == chain.losses
    assert again.drift == chain.drift
    for one, two in zip(chain.models, again.models, strict=True):
        assert np.array_equal(one.B, two.B)
        assert one.priors == two.priors
        assert (one.noise_std, *one.offset) == (two.noise_std, *two.offset)
    x = p1.sample(5, np.random.default_rng(0))
    assert np.array_equal(again.layers[0](x), layers[0](x))


def test_a_stored_loss_without_a_term_is_an_error() -> None:
    form = {"values": {"L": 1.0}, "errors": {"L": 0.0}, "gap": None, "cross_entropy": None, "iterations": 3}
    with pytest.raises(et.InputError, match=r"`losses\[0\].values` must hold the terms L, R1"):
        read_loss(form, "losses[0]")


def test_tail_of_an_affine_chain_is_exact_and_carries_the_drift() -> None:
    p1 = et.FeatureModel(np.zeros((2, 0)), [], 1.0)
    layer = et.Layer(np.array([[1.0, 1.0]]), [0.0], [1.0])
    chain = et.fit_network([layer], p1, check_samples=1000)
    tail = chain.tail([1.0], 5.0)
    assert float(tail.value) == pytest.approx(norm.sf(5 / np.sqrt(2)), rel=1e-9)
    assert tail.drift is chain.drift[0]
    assert "drift not measured" in str(et.fit_network([layer], p1).tail([1.0], 5.0))
    with pytest.raises(et.InputError, match=r"`v` has shape \(2,\); the last layer has 1 outputs"):
        chain.tail([1.0, 2.0], 5.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "`layers` is .*one or more layers"),
        ({"layers": [unit_layer(3, "relu"), unit_layer(3, "relu")]}, r"`layers\[1\]` takes n1 = 3 inputs.*returns 4"),
        ({"p1": mixed_input(2)}, r"`layers\[0\]` takes n1 = 3 inputs; `p1` models 2"),
        ({"method": "covprop"}, "`method` is 'covprop'.*did you mean 'cov-prop'"),
        ({"tol": 2.0}, "`tol` is 2.0"),
        ({"features": -1}, "`features` is -1"),
        ({"iterations": 1.5}, "`iterations` is 1.5"),
        ({"check_samples": 3}, "`check_samples` is 3; .*at least 100"),
        ({"noise_floor": 0.0}, "`noise_floor` is 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"layers": [unit_layer(3, "relu")], "p1": mixed_input()} | change
    with pytest.raises(et.InputError, match=message):
        et.fit_network(arguments.pop("layers"), arguments.pop("p1"), **arguments)


def test_a_law_survives_to_model() -> None:
    p1 = mixed_input()
    layer = et.Layer(np.eye(3), np.zeros(3), np.zeros(3))
    for v in np.eye(3):
        np.testing.assert_allclose(cumulants(to_model(LinearLaw.of(layer, p1)), v), cumulants(p1, v), atol=1e-12)


def test_a_damaged_chain_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "chain"
    et.fit_network([unit_layer(3, "relu")], mixed_input()).save(folder)
    cfg, arrays = load_folder(folder)
    save_folder(folder, {name: value for name, value in cfg.items() if name != "models"}, arrays)
    with pytest.raises(et.InputError, match=r"is not the cfg.json of a chain: KeyError at 'models'"):
        et.load(folder)
