"""From the weights of a sparse autoencoder to the variational autoencoder that it is (Lemma 2.4). The algebra of a penalty
and the numbers of a batch live in `derivation.sae` and `runtime.sae`; here they are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from elbotree.runtime import sae
from elbotree.runtime.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from elbotree.runtime.sae import Array, Penalty, SparseAutoencoder


def vae_from_sae(
    W_enc: ArrayLike,
    b_enc: ArrayLike,
    W_dec: ArrayLike,
    b_dec: ArrayLike,
    sparsity: float,
    *,
    noise_std: float,
    apply_b_dec_to_input: bool = False,
    scale_by_decoder_norm: bool = False,
    penalty: str = "l1",
    activation: str | Callable[[Array], Array] = "relu",
) -> SparseAutoencoder:
    """The VAE that an SAE's loss is the loss of (Lemma 2.4), from weights in the names and orientation of SAELens.

    Arguments
        W_enc, b_enc    (d_in, d_sae), (d_sae,): e(x) = activation(x W_enc + b_enc)
        W_dec, b_dec    (d_sae, d_in), (d_in,): xhat = e W_dec + b_dec
        sparsity        lambda of |x - xhat|^2 + lambda S(e), > 0 (the squared error summed over coordinates)
        noise_std       sqrt(rho) of the decoder, > 0: free, since it only sets the scale of the VAE's loss
        apply_b_dec_to_input     the encoder sees x - b_dec
        scale_by_decoder_norm    feature j is penalised by |W_dec[j]| S(e_j)
        penalty         "l1", or a separable penalty's S_1 as an expression in b >= 0, such as "log(1 + b)"
        activation      "relu", or a function on arrays with values >= 0

    Returns a `SparseAutoencoder`: `.model` (the generative half, exponential priors), `.encode`, `.decode`, `.sae_loss`,
    `.loss_contribution` and `.constant`, with loss_contribution(x) = constant + sae_loss(x) / (2 noise_std^2).
    Raises InputError for shapes that do not fit, and with the reason for a penalty that is no prior.

    >>> import numpy as np, elbotree as et
    >>> vae = et.vae_from_sae(np.eye(2), np.zeros(2), np.eye(2), np.zeros(2), 0.5, noise_std=0.5)
    >>> x = np.array([[1.0, -2.0]])
    >>> bool(abs(vae.loss_contribution(x)[0] - vae.constant - vae.sae_loss(x)[0] / (2 * 0.25)) < 1e-12)
    True
    """
    if isinstance(activation, str) and activation != "relu":
        raise InputError(f'`activation` is {activation!r}; it must be "relu" or a function on arrays with values >= 0')
    weights = np.linalg.norm(np.asarray(W_dec, dtype=np.float64), axis=1) if scale_by_decoder_norm else None
    return sae.build(
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        sparsity,
        noise_std=noise_std,
        apply_b_dec_to_input=apply_b_dec_to_input,
        weights=weights,
        penalty=_penalty(penalty),
        activation=None if isinstance(activation, str) else activation,
    )


def _penalty(text: str) -> Penalty:
    """The penalty with its normaliser; L1 needs no algebra."""
    if text.strip().lower() in ("l1", "b", "abs"):
        return sae.L1
    from elbotree.codegen import compile_psi
    from elbotree.derivation.sae import prior_from_penalty

    prior = prior_from_penalty(text)
    return sae.Penalty(text, compile_psi(text).value, prior.log_normaliser)
