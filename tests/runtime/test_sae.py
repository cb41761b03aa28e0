"""Lemma 2.4 in numbers, on weights in SAELens' names: the two losses, each computed from its own definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

import elbotree as et
from elbotree.runtime import sae
from elbotree.runtime.errors import InputError, UnsupportedError

RNG = np.random.default_rng(5)
D_IN, D_SAE = 4, 7
W_ENC, B_ENC = RNG.normal(size=(D_IN, D_SAE)), RNG.normal(size=D_SAE)
W_DEC, B_DEC = RNG.normal(size=(D_SAE, D_IN)), RNG.normal(size=D_IN)
X = RNG.normal(size=(50, D_IN))
WEIGHTS = (W_ENC, B_ENC, W_DEC, B_DEC)


def features(x, centred):
    return np.array(
        [[max(0.0, float((row - centred * B_DEC) @ W_ENC[:, j] + B_ENC[j])) for j in range(D_SAE)] for row in x]
    )


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_l1_losses_are_the_definitions_and_affine_in_each_other(centred, scaled):
    lam, std = 0.8, 0.6
    vae = et.vae_from_sae(*WEIGHTS, lam, noise_std=std, apply_b_dec_to_input=centred, scale_by_decoder_norm=scaled)
    e = features(X, centred)
    np.testing.assert_allclose(vae.encode(X), e, rtol=1e-13, atol=1e-13)
    assert (e == 0).any()
    xhat = e @ W_DEC + B_DEC
    size = np.sqrt((W_DEC**2).sum(axis=1)) if scaled else np.ones(D_SAE)
    l_sae = ((X - xhat) ** 2).sum(axis=1) + lam * (e * size).sum(axis=1)
    np.testing.assert_allclose(vae.sae_loss(X), l_sae, rtol=1e-12)
    # the VAE's loss from scipy's laws: rates mu with 2 mu rho = lambda
    mu = lam * size / (2 * std**2)
    l_vae = -stats.expon(scale=1 / mu).logpdf(e).sum(axis=1) - stats.norm(xhat, std).logpdf(X).sum(axis=1)
    np.testing.assert_allclose(vae.loss_contribution(X), l_vae, rtol=1e-12)
    np.testing.assert_allclose(l_vae, vae.constant + l_sae / (2 * std**2), rtol=1e-12)
    constant = D_IN / 2 * math.log(2 * math.pi * std**2) - np.log(mu).sum()
    assert vae.constant == pytest.approx(constant, rel=1e-13)


def test_the_model_is_the_generative_half():
    vae = et.vae_from_sae(*WEIGHTS, 0.8, noise_std=0.6)
    model = vae.model
    np.testing.assert_array_equal(model.B, W_DEC.T)
    np.testing.assert_array_equal(model.offset, B_DEC)
    assert (model.noise_std, {prior.kind for prior in model.priors}) == (0.6, {"exponential"})
    assert model.priors[0].mean() == pytest.approx(2 * 0.36 / 0.8)
    e = vae.encode(X)
    log_prior = sum(prior.logpdf(e[:, j]) for j, prior in enumerate(model.priors))
    np.testing.assert_allclose(vae.log_prior(e), log_prior, rtol=1e-12)


@pytest.mark.parametrize("penalty", ["b**2", "sqrt(b)", "log(1 + b)", "b + 0.3*b**2", "max(b, 2*b - 1)"])
def test_any_normalisable_penalty_gives_its_prior(penalty):
    lam, std = 2.6, 0.9
    vae = et.vae_from_sae(*WEIGHTS, lam, noise_std=std, penalty=penalty)
    rate = lam / (2 * std**2)
    value = {
        "b**2": lambda e: e**2, "sqrt(b)": np.sqrt, "log(1 + b)": np.log1p, "b + 0.3*b**2": lambda e: e + 0.3 * e**2,
        "max(b, 2*b - 1)": lambda e: np.maximum(e, 2 * e - 1),
    }[penalty]  # fmt: skip
    z = integrate.quad(lambda e: math.exp(-rate * value(e)), 0, 1, epsabs=1e-13)[0]
    z += integrate.quad(lambda e: math.exp(-rate * value(e)), 1, np.inf, epsabs=1e-13)[0]
    e = features(X, False)
    np.testing.assert_allclose(vae.log_prior(e), -rate * value(e).sum(axis=1) - D_SAE * math.log(z), rtol=1e-7)
    identity = vae.constant + vae.sae_loss(X) / (2 * std**2)
    np.testing.assert_allclose(vae.loss_contribution(X), identity, rtol=1e-12)
    with pytest.raises(UnsupportedError, match="is none of the kinds of a feature model"):
        _ = vae.model


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        ("tanh(b)", "grows no faster than a constant"),
        ("heaviside(b)", "grows no faster than a constant"),
        ("-b", "grows no faster than a constant"),
        ("log(b)", "needs a rate above 1 for its tail and below 1 for its singularity at 0"),
        ("1/(b - 1)", "has a pole at e = 1"),
        ("log(1 + b)", "integrable for rates between 1 and oo only"),  # the rate here is 0.5
        ("banana(b)", "unknown function"),
    ],
)
def test_penalties_that_are_no_priors_are_refused_with_the_reason(penalty, message):
    with pytest.raises(InputError, match=message):
        et.vae_from_sae(*WEIGHTS, 1.0, noise_std=1.0, penalty=penalty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b_enc": np.zeros(3)}, r"`b_enc` has shape \(3,\).*must be \(7,\)"),
        ({"W_dec": W_DEC.T}, r"`W_dec` has shape \(4, 7\).*must be \(7, 4\)"),
        ({"b_dec": np.zeros(7)}, r"`b_dec` has shape \(7,\)"),
        ({"sparsity": 0.0}, "`sparsity` is 0.0; it must be greater than 0"),
        ({"noise_std": -1.0}, "`noise_std` is -1.0"),
        ({"activation": "gelu"}, '`activation` is .gelu.; it must be "relu" or a function'),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(zip(("W_enc", "b_enc", "W_dec", "b_dec"), WEIGHTS, strict=True)) | {
        "sparsity": 1.0,
        "noise_std": 1.0,
    }
    with pytest.raises(InputError, match=message):
        et.vae_from_sae(**(arguments | change))


def test_rows_and_features_are_checked():
    vae = et.vae_from_sae(*WEIGHTS, 1.0, noise_std=1.0)
    with pytest.raises(InputError, match=r"`x` has shape \(4,\); W_enc has d_in = 4 rows, so it must be \(N, 4\)"):
        vae.encode(X[0])
    shifted = et.vae_from_sae(*WEIGHTS, 1.0, noise_std=1.0, activation=lambda v: v)
    with pytest.raises(InputError, match="gave a negative feature"):
        shifted.encode(X)
    with pytest.raises(InputError, match="`weights` must be d_sae = 7 numbers > 0"):
        sae.build(*WEIGHTS, 1.0, noise_std=1.0, weights=np.zeros(D_SAE))
