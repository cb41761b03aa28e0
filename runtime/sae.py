"""A sparse autoencoder read as a variational autoencoder with a point encoder (Lemma 2.4), in numbers: encode, decode,
its own loss, the VAE's loss contribution, and the constant and factor between the two. Which penalties have a prior at
all is algebra, and `elbotree.derivation.sae`'s business."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.arguments import finite_number, read_only_array, real_array
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.models import FeatureModel
from elbotree.runtime.priors import Exponential

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Penalty:
    """A separable penalty S(e) = sum_j weights_j S_1(e_j) on e >= 0, with the integral that makes exp(-rate S_1) a law.

    text            S_1 as an expression in b; "b" is the L1 norm
    value           S_1, elementwise
    log_normaliser  rate -> log of the integral of exp(-rate S_1(e)) over e > 0
    """

    text: str
    value: Callable[[Array], Array]
    log_normaliser: Callable[[float], float]


#: |e|_1 on e >= 0: the integral of exp(-rate e) is 1 / rate
L1 = Penalty("b", lambda e: e, lambda rate: -math.log(rate))


def _relu(values: Array) -> Array:
    return np.maximum(values, 0.0)


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """The VAE of Lemma 2.4 (errata 6): encoder a point mass at e(x), decoder N(B z + b_dec, rho I), independent priors
    P_j(e) = exp(-rate_j S_1(e)) / Z(rate_j), where 2 rho rate_j = lambda weights_j.

    For every x the loss contribution is affine in the SAE's loss, L_x = `constant` + L_SAE(x) / (2 rho), with
    L_SAE(x) = |x - xhat|^2 + lambda sum_j weights_j S_1(e_j).

    W_enc, b_enc    (d_in, d_sae), (d_sae,)      e(x) = activation(x W_enc + b_enc), >= 0
    W_dec, b_dec    (d_sae, d_in), (d_in,)       xhat(e) = e W_dec + b_dec
    sparsity        lambda > 0
    noise_std       sqrt(rho) > 0
    apply_b_dec_to_input   whether the encoder sees x - b_dec
    weights         (d_sae,), of the features in the penalty
    """

    W_enc: Array
    b_enc: Array
    W_dec: Array
    b_dec: Array
    sparsity: float
    noise_std: float
    apply_b_dec_to_input: bool
    weights: Array
    penalty: Penalty = L1
    activation: Callable[[Array], Array] = _relu

    @property
    def rho(self) -> float:
        """The decoder's variance."""
        return self.noise_std**2

    @property
    def rates(self) -> Array:
        """The rate of each feature's prior, lambda weights_j / (2 rho): mu of the lemma."""
        return np.asarray(self.sparsity * self.weights / (2 * self.rho))

    @property
    def constant(self) -> float:
        """n/2 log(2 pi rho) + sum_j log Z(rate_j); for L1 n/2 log(2 pi rho) - sum_j log mu_j."""
        n = self.W_dec.shape[1]
        return float(0.5 * n * math.log(2 * math.pi * self.rho) + self._log_normalisers)

    @property
    def _log_normalisers(self) -> float:
        # Weights are often all 1, and a normaliser may be an integral.
        rates, counts = np.unique(self.rates, return_counts=True)
        logs = [self.penalty.log_normaliser(float(rate)) for rate in rates]
        return float(np.dot(counts, logs))

    @property
    def model(self) -> FeatureModel:
        """The generative half: x = W_dec^T z + b_dec + noise. Raises UnsupportedError where the penalty's prior is none
        of the kinds that a feature model knows (only L1's is: exponential)."""
        if self.penalty is not L1:
            raise UnsupportedError(
                f"the prior exp(-rate S) of the penalty {self.penalty.text!r} is none of the kinds of a feature model; "
                "`encode`, `log_prior` and `loss_contribution` work without one"
            )
        priors = [Exponential(1.0 / float(rate)) for rate in self.rates]
        return FeatureModel(self.W_dec.T, priors, self.noise_std, self.b_dec)

    def encode(self, x: ArrayLike) -> Array:
        """e(x), rows (N, d_in) -> (N, d_sae)."""
        rows = self._rows(x)
        seen = rows - self.b_dec if self.apply_b_dec_to_input else rows
        features = np.asarray(self.activation(seen @ self.W_enc + self.b_enc), dtype=np.float64)
        if np.any(features < 0):
            raise InputError("`activation` gave a negative feature; the priors of Lemma 2.4 live on e >= 0")
        return features

    def decode(self, features: ArrayLike) -> Array:
        """xhat(e), rows (N, d_sae) -> (N, d_in)."""
        return np.asarray(np.asarray(features, dtype=np.float64) @ self.W_dec + self.b_dec)

    def sae_loss(self, x: ArrayLike) -> Array:
        """L_SAE of each row: squared error and penalty, (N,)."""
        rows = self._rows(x)
        features = self.encode(rows)
        error = np.sum((rows - self.decode(features)) ** 2, axis=1)
        return np.asarray(error + self.sparsity * (self.penalty.value(features) @ self.weights))

    def log_prior(self, features: ArrayLike) -> Array:
        """log P(z) of each row of features, (N,)."""
        values = self.penalty.value(np.asarray(features, dtype=np.float64))
        return np.asarray(-values @ self.rates - self._log_normalisers)

    def loss_contribution(self, x: ArrayLike) -> Array:
        """L_x of each row (Definition 2.3): -log P(e(x)) - log N(x; xhat(e(x)), rho I), (N,).

        The KL divergence of a point mass from P is read as -log P of the point, as the paper does.
        """
        rows = self._rows(x)
        features = self.encode(rows)
        scaled = (rows - self.decode(features)) / self.noise_std
        log_likelihood = -0.5 * np.sum(scaled**2 + math.log(2 * math.pi * self.rho), axis=1)
        return np.asarray(-self.log_prior(features) - log_likelihood)

    def _rows(self, x: ArrayLike) -> Array:
        rows = real_array(x, "x")
        if rows.ndim != 2 or rows.shape[1] != self.W_enc.shape[0]:
            raise InputError(
                f"`x` has shape {rows.shape}; W_enc has d_in = {self.W_enc.shape[0]} rows, so it must be "
                f"(N, {self.W_enc.shape[0]})"
            )
        return rows


def build(
    W_enc: ArrayLike,
    b_enc: ArrayLike,
    W_dec: ArrayLike,
    b_dec: ArrayLike,
    sparsity: float,
    *,
    noise_std: float,
    apply_b_dec_to_input: bool = False,
    weights: ArrayLike | None = None,
    penalty: Penalty = L1,
    activation: Callable[[Array], Array] | None = None,
) -> SparseAutoencoder:
    """The VAE of SAE weights; shapes, signs and sizes checked. Raises InputError naming the argument."""
    arrays = {
        "W_enc": read_only_array(W_enc, "W_enc", 2),
        "b_enc": read_only_array(b_enc, "b_enc", 1),
        "W_dec": read_only_array(W_dec, "W_dec", 2),
        "b_dec": read_only_array(b_dec, "b_dec", 1),
    }
    d_in, d_sae = arrays["W_enc"].shape
    wanted = {"b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise InputError(
                f"`{name}` has shape {arrays[name].shape}; W_enc is (d_in, d_sae) = {(d_in, d_sae)}, so it must be {shape}"
            )
    sizes = np.ones(d_sae) if weights is None else read_only_array(weights, "weights", 1)
    if sizes.shape != (d_sae,) or not np.all(sizes > 0):
        raise InputError(f"`weights` must be d_sae = {d_sae} numbers > 0: a feature without penalty has no prior")
    numbers = {"sparsity": finite_number(sparsity, "sparsity"), "noise_std": finite_number(noise_std, "noise_std")}
    for name, number in numbers.items():
        if not number > 0:
            raise InputError(f"`{name}` is {number!r}; it must be greater than 0")
    made = SparseAutoencoder(
        arrays["W_enc"],
        arrays["b_enc"],
        arrays["W_dec"],
        arrays["b_dec"],
        numbers["sparsity"],
        numbers["noise_std"],
        bool(apply_b_dec_to_input),
        sizes,
        penalty,
        _relu if activation is None else activation,
    )
    made.constant  # noqa: B018  (refuses a rate at which the penalty has no prior now, not at the first batch)
    return made
