"""Models of a network's input from data: independent features plus noise, from a matrix of rows or from a sparse
auto-encoder. Both come with a report of how far the features are from independent, since everything after rests on
that. The priors' one-dimensional fits, which know the noise's share of what they see, are in `prior_fits`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elbotree.runtime.arguments import check_seed, finite_number, read_only_array, shortened
from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.models import FeatureModel
from elbotree.runtime.prior_base import nearest
from elbotree.runtime.prior_fits import KINDS, FittedPrior, fit_prior, fit_slab
from elbotree.runtime.priors import Prior, SpikeSlab

Array = NDArray[np.float64]

PAIRED_ROWS = 400  # rows for distance correlations, whose cost is their square
PAIRED_FEATURES = 40  # features whose pairs are compared; more are sampled


@dataclass(frozen=True)
class Dependence:
    """How far columns are from independent, pair by pair.

    squares    |correlation| of the centred squares (0 when independent): mean over pairs, and the largest
    distance   distance correlation (0 exactly when independent, at most 1): mean over pairs, and the largest
    baseline   mean distance correlation of the same columns, each shuffled: what independent columns show
    pair       the two columns with the largest distance correlation
    rows, pairs  how many rows and pairs were compared
    """

    squares: tuple[float, float]
    distance: tuple[float, float]
    baseline: float
    pair: tuple[int, int] | None
    rows: int
    pairs: int

    def __str__(self) -> str:
        if self.pair is None:
            return "dependence: fewer than two features, nothing to compare"
        return (
            f"dependence over {self.pairs} pairs: correlation of squares {self.squares[0]:.3f} on average, at most "
            f"{self.squares[1]:.3f}; distance correlation {self.distance[0]:.3f}, at most {self.distance[1]:.3f} "
            f"(features {self.pair[0]} and {self.pair[1]}); independent columns would show {self.baseline:.3f}"
        )


@dataclass(frozen=True, eq=False)
class InputReport:
    """What an input model was fitted from, and how good it is. Print it.

    rows           of the data the model was fitted to
    noise_std      the model's noise
    explained      share of the data's variance that the features carry
    kinds          the prior's kind of each feature
    dependence     how far the features are from independent, on held-out rows where there are any
    held_out       nats a held-out row: log-likelihood under the features' priors, and under the normal law of the same
                   mean and covariance (None where it is not computed). The first takes the noise of different
                   features as uncorrelated in the features' coordinates
    features       columns of the data's features that are in the model (those of a sparse auto-encoder that ever fire)
    directions     (m, n) orthonormal rows that span the columns of B, for `fit_input`; else None
    reduced        the model of the coordinates directions (x - mean), with m instead of n numbers; else None
    """

    rows: int
    noise_std: float
    explained: float
    kinds: tuple[str, ...]
    dependence: Dependence
    held_out: tuple[float, float] | None
    features: tuple[int, ...]
    mean: Array
    directions: Array | None = None
    reduced: FeatureModel | None = None

    def __str__(self) -> str:
        counts = ", ".join(f"{self.kinds.count(kind)} {kind}" for kind in dict.fromkeys(self.kinds)) or "none"
        lines = [
            f"{len(self.kinds)} features from {self.rows} rows carry {self.explained:.1%} of the variance; "
            f"noise_std {self.noise_std:.4g}; priors: {counts}",
            str(self.dependence),
        ]
        if self.held_out is not None:
            own, normal = self.held_out
            lines.append(
                f"held-out rows: {own:.4f} nats a row, {own - normal:+.4f} against the normal law of the same "
                "covariance"
            )
        return "\n".join(lines)


# -- from a data matrix -----------------------------------------------------------------------------------------------
def fit_input(
    X: ArrayLike,
    features: int | None = None,
    *,
    noise_std: float | None = None,
    priors: Sequence[str] = KINDS,
    rotation: str = "ica",
    held_out: float = 0.2,
    seed: int = 0,
) -> tuple[FeatureModel, InputReport]:
    """Independent features plus noise, x = B z + mu + N(0, noise_std^2 I), from rows of data.

    Noise: probabilistic PCA. sigma^2 is the mean variance of the n - m discarded principal directions; the kept ones U,
    with variances Lambda, hold the same noise, so the features explain U (Lambda - sigma^2 I) U^T. Directions: FastICA
    of the whitened scores gives a rotation R, and B = U (Lambda - sigma^2 I)^(1/2) R. Priors: the coordinate j of B^+
    (x - mu) is z_j plus noise of the known variance v_j = sigma^2 (B^T B)^-1_jj; each kind of prior is fitted to it
    with that noise taken into account, the best by BIC is kept, and has mean 0 and variance 1 (a spike stands at 0; mu
    and B then hold the shift). So the model's covariance is the data's in the kept directions, exactly.

    Arguments
        X          (N, n), a row per sample
        features   m; left out, as many as carry 95% of the variance, and at most n - 1
        noise_std  sigma; needed for features = n, where no direction is left to estimate it from
        priors     kinds to choose among: "normal", "laplace", "mixture" (2 or 3 normals), "spike_slab" (normal slab)
        rotation   "ica" (needs scikit-learn), or "none" for the principal directions themselves
        held_out   share of the rows kept from the fit, to measure dependence and likelihood on
        seed       of the split, of FastICA, and of the shuffles

    Returns (model, report). Raises InputError for data that are not a finite matrix or are too few, and for arguments
    out of range. The paper: assumption 2.

    >>> rng = np.random.default_rng(0)
    >>> X = rng.laplace(size=(2000, 2)) @ rng.standard_normal((2, 5)) + 0.1 * rng.standard_normal((2000, 5))
    >>> model, report = fit_input(X, features=2, rotation="none")
    >>> model.B.shape, round(model.noise_std, 2)
    ((5, 2), 0.1)
    """
    check_seed(seed)
    rows = read_only_array(X, "X", 2)
    _check_arguments(priors, rotation, held_out)
    train, test = _split(rows, held_out, seed)
    mean = train.mean(axis=0)
    values, vectors = _principal(train - mean)
    m, sigma = _size_and_noise(values, features, noise_std)
    directions, kept = vectors[:m], values[:m]
    scores = (train - mean) @ directions.T
    R = np.eye(m) if rotation == "none" or m == 1 else _ica(scores / np.sqrt(kept), seed)
    B = np.sqrt(kept - sigma**2)[:, None] * R
    unmixing = np.asarray(np.linalg.inv(B), dtype=np.float64)
    noises = sigma**2 * (unmixing**2).sum(axis=1)
    fitted = [fit_prior(row, v, priors) for row, v in zip(unmixing @ scores.T, noises, strict=True)]
    shift = B @ np.array([part.shift for part in fitted])
    laws = [part.prior for part in fitted]
    model = FeatureModel(directions.T @ B, laws, sigma, mean + directions.T @ shift)
    checked = train if test is None else test
    coordinates = (checked - mean) @ directions.T @ unmixing.T
    report = InputReport(
        rows=len(train),
        noise_std=sigma,
        explained=float((kept - sigma**2).sum() / values.sum()),
        kinds=tuple(part.kind for part in fitted),
        dependence=measure_dependence(coordinates, seed),
        held_out=None if test is None else _likelihoods(test - mean, directions, kept, sigma, unmixing, fitted),
        features=tuple(range(m)),
        mean=mean,
        directions=directions,
        reduced=FeatureModel(B, laws, sigma, shift),
    )
    return model, report


def _check_arguments(priors: Sequence[str], rotation: str, held_out: float) -> None:
    if isinstance(priors, str) or not isinstance(priors, Sequence) or not priors:
        raise InputError(f"`priors` is {shortened(priors)}; it must be a list of kinds among {', '.join(KINDS)}")
    for i, kind in enumerate(priors):
        if kind not in KINDS:
            raise InputError(
                f"`priors[{i}]` is {shortened(kind)}, which is no kind to choose from{nearest(kind, KINDS)}"
            )
    if rotation not in ("ica", "none"):
        raise InputError(f"`rotation` is {shortened(rotation)}; it must be 'ica' or 'none'")
    if not 0 <= finite_number(held_out, "held_out") < 1:
        raise InputError(f"`held_out` is {held_out!r}; it must be a share of the rows in [0, 1), such as 0.2")


def _split(rows: Array, held_out: float, seed: int) -> tuple[Array, Array | None]:
    """Rows to fit to, and rows kept from the fit (None where there are fewer than two of them)."""
    N, n = rows.shape
    order = np.random.default_rng(seed).permutation(N)
    kept = round(held_out * N)
    train = rows[np.sort(order[kept:])]
    if n == 0 or len(train) < max(10, n + 1):
        raise InputError(
            f"`X` has {N} rows of {n} numbers, {len(train)} of them to fit to; the covariance of {n} numbers needs "
            f"at least {max(10, n + 1)} rows: give more rows, or a smaller `held_out`"
        )
    return train, rows[np.sort(order[:kept])] if kept > 1 else None


def _principal(centred: Array) -> tuple[Array, Array]:
    """Variances (descending) and directions (rows, signs fixed) of the data's covariance."""
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    values, rows = np.maximum(values[::-1], 0.0), vectors.T[::-1]
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
    if values[0] <= 0:
        raise InputError("every row of `X` is the same; there is nothing to model")
    return values, rows * signs[:, None]


def _size_and_noise(values: Array, features: int | None, noise_std: float | None) -> tuple[int, float]:
    """m and sigma, checked against the variances of the principal directions."""
    n = len(values)
    if features is None:
        m = max(1, min(int(np.searchsorted(np.cumsum(values) / values.sum(), 0.95)) + 1, n - 1))
    elif isinstance(features, bool) or not isinstance(features, int) or not 1 <= features <= n:
        raise InputError(f"`features` is {shortened(features)}; it must be a whole number from 1 to n = {n}")
    else:
        m = features
    if noise_std is not None:
        sigma = finite_number(noise_std, "noise_std")
    elif m == n:
        raise InputError(
            f"`features` is {m}, all n = {n} directions, so none is left to estimate the noise from: give "
            "`noise_std`, or fewer features"
        )
    else:
        sigma = float(np.sqrt(values[m:].mean()))
    if sigma < 0:
        raise InputError(f"`noise_std` is {sigma!r}; a standard deviation cannot be negative")
    floor = 1e-12 * values[0]
    if values[m - 1] - sigma**2 <= floor:
        most = int((values - sigma**2 > floor).sum())
        raise InputError(
            f"{m} features and noise_std {sigma:.4g} do not fit together: only {most} directions of `X` have more "
            f"variance than the noise; give `features` of at most {most}, or a smaller `noise_std`"
        )
    return m, sigma


def _ica(white: Array, seed: int) -> Array:
    """FastICA's rotation R (m, m): the columns are the directions of independent features in the whitened scores."""
    try:
        from sklearn.decomposition import FastICA
    except ImportError:
        raise UnsupportedError(
            "rotation='ica' needs scikit-learn: pip install 'elbotree[sklearn]', or give rotation='none'"
        ) from None
    import warnings

    with warnings.catch_warnings():
        # Whether it converged shows in the dependence that the report measures; a rotation it is in any case.
        warnings.simplefilter("ignore")
        ica = FastICA(white.shape[1], whiten=False, random_state=seed, max_iter=1000, tol=1e-6).fit(white)
    left, _, right = np.linalg.svd(ica.components_)  # exactly orthogonal, so that the model's covariance is the data's
    return np.asarray((left @ right).T)


def _likelihoods(
    centred: Array, directions: Array, kept: Array, sigma: float, unmixing: Array, fitted: Sequence[FittedPrior]
) -> tuple[float, float]:
    """Mean log-likelihood of held-out rows under the fitted priors, and under the normal law of the same covariance."""
    n, m = centred.shape[1], len(kept)
    scores = centred @ directions.T
    outside = (centred**2).sum(axis=1) - (scores**2).sum(axis=1)
    residual = np.zeros(len(centred))
    if n > m and sigma > 0:
        residual = -0.5 * outside / sigma**2 - (n - m) * math.log(sigma * math.sqrt(2 * math.pi))
    normal = -0.5 * (scores**2 / kept + np.log(2 * math.pi * kept)).sum(axis=1)
    coordinates = scores @ unmixing.T
    own = np.linalg.slogdet(unmixing)[1] + sum(part.logpdf(coordinates[:, j]) for j, part in enumerate(fitted))
    return float(np.mean(own + residual)), float(np.mean(normal + residual))


# -- from a sparse auto-encoder ---------------------------------------------------------------------------------------
def input_from_sae(
    W_dec: ArrayLike,
    activations: Any,
    b_dec: ArrayLike | None = None,
    *,
    X: ArrayLike | None = None,
    noise_std: float | None = None,
    slab: str = "auto",
    seed: int = 0,
) -> tuple[FeatureModel, InputReport]:
    """A sparse auto-encoder's features as an input model: x = W_dec^T z + b_dec + noise, each z_j spike-and-slab.

    p_j is the share of rows in which feature j fires; the slab is fitted to its values there by moments: gamma with
    shape mean^2 / variance, or exponential where that shape is 1 within two standard errors. Features that never fire
    are left out; `report.features` says which remain.

    Arguments
        W_dec        (m, n), a row per feature, as auto-encoders store it
        activations  (N, m), not negative; an array or a scipy.sparse matrix
        b_dec        (n,); zero when left out
        X            (N, n), the rows that were encoded: the noise is the root mean square of X - activations W_dec -
                     b_dec, after its mean (which goes to the offset)
        noise_std    instead of X, or to overrule it
        slab         "auto", "gamma" or "exponential"
        seed         of the sampled pairs and shuffles of the report

    Returns (model, report). Raises InputError for shapes that do not fit, negative activations, and where neither X nor
    noise_std is given.
    """
    W = read_only_array(W_dec, "W_dec", 2)
    Z = _sparse_columns(activations, W.shape)
    m, n = W.shape
    offset = read_only_array(np.zeros(n) if b_dec is None else b_dec, "b_dec", 1)
    if offset.shape != (n,):
        raise InputError(f"`b_dec` has shape {offset.shape}; `W_dec` has rows of n = {n}, so it must be ({n},)")
    if slab not in ("auto", "gamma", "exponential"):
        raise InputError(f"`slab` is {shortened(slab)}; it must be 'auto', 'gamma' or 'exponential'")
    data = None if X is None else read_only_array(X, "X", 2)
    offset, sigma, explained = _sae_noise(W, Z, offset, data, noise_std)
    laws: list[Prior] = []
    fires: list[int] = []
    for j in range(m):
        active = _column_values(Z, j)
        if len(active):
            p, law = len(active) / Z.shape[0], fit_slab(active, slab)
            laws.append(law if p == 1 else SpikeSlab(p, law))
            fires.append(j)
    if not fires:
        raise InputError("no feature ever fires: every entry of `activations` is 0")
    model = FeatureModel(W[fires].T, laws, sigma, offset)
    chosen = np.sort(np.random.default_rng(seed).permutation(fires)[:PAIRED_FEATURES])
    report = InputReport(
        rows=int(Z.shape[0]),
        noise_std=sigma,
        explained=explained,
        kinds=tuple(law.kind for law in laws),
        dependence=_renamed(measure_dependence(_dense(Z[:, chosen]), seed), chosen),
        held_out=None,
        features=tuple(fires),
        mean=model.mean(),
    )
    return model, report


def _sparse_columns(activations: Any, shape: tuple[int, ...]) -> Any:
    """The activations as a checked array, or as a checked sparse matrix in columns."""
    sparse = hasattr(activations, "tocsc")
    Z = activations.tocsc() if sparse else read_only_array(activations, "activations", 2)
    if len(Z.shape) != 2 or Z.shape[1] != shape[0] or Z.shape[0] < 2:
        turned = "; turn `W_dec` around" if len(Z.shape) == 2 and Z.shape[1] == shape[1] else ""
        raise InputError(
            f"`activations` has shape {tuple(Z.shape)}; `W_dec` has m = {shape[0]} rows, so it must be "
            f"(N, {shape[0]}) with at least two rows{turned}"
        )
    entries = np.asarray(Z.data) if sparse else Z
    if entries.dtype.kind not in "fiu" or not np.isfinite(entries).all():
        raise InputError("`activations` holds entries that are not finite numbers")
    if (entries < 0).any():
        raise InputError(f"`activations` holds {float(entries.min())!r}; a feature that fires does so above 0")
    return Z.astype(np.float64)


def _column_values(Z: Any, j: int) -> Array:
    """The entries of a column that are not 0."""
    column = Z.data[Z.indptr[j] : Z.indptr[j + 1]] if hasattr(Z, "indptr") else Z[:, j]
    return np.asarray(column[column > 0], dtype=np.float64)


def _dense(Z: Any) -> Array:
    return np.asarray(Z.toarray() if hasattr(Z, "toarray") else Z, dtype=np.float64)


def _sae_noise(
    W: Array, Z: Any, offset: Array, data: Array | None, noise_std: float | None
) -> tuple[Array, float, float]:
    """(offset, sigma, share of variance explained) from the residual, or from what was given."""
    if data is None:
        if noise_std is None:
            raise InputError("give `X`, the rows that were encoded, to estimate the noise from, or `noise_std`")
        sigma = finite_number(noise_std, "noise_std")
        signal = float((np.asarray(Z @ W)).var(axis=0).sum())
        return offset, _not_negative(sigma), signal / (signal + W.shape[1] * sigma**2) if signal else 0.0
    if data.shape != (Z.shape[0], W.shape[1]):
        raise InputError(f"`X` has shape {data.shape}; activations and W_dec make it ({Z.shape[0]}, {W.shape[1]})")
    residual = data - (np.asarray(Z @ W) + offset)
    drift = residual.mean(axis=0)
    spread = float(((residual - drift) ** 2).mean())
    total = float(data.var(axis=0).mean())
    sigma = math.sqrt(spread) if noise_std is None else finite_number(noise_std, "noise_std")
    return offset + drift, _not_negative(sigma), 1 - spread / total if total else 0.0


def _not_negative(sigma: float) -> float:
    if sigma < 0:
        raise InputError(f"`noise_std` is {sigma!r}; a standard deviation cannot be negative")
    return sigma


# -- dependence -------------------------------------------------------------------------------------------------------
def measure_dependence(Z: Array, seed: int = 0) -> Dependence:
    """Pairwise dependence of the columns of Z, (N, m), m at most some dozens (sample columns before)."""
    rng = np.random.default_rng(seed)
    m = min(Z.shape[1], PAIRED_FEATURES)
    columns = np.sort(rng.permutation(Z.shape[1])[:m])
    if m < 2 or len(Z) < 3:
        return Dependence((0.0, 0.0), (0.0, 0.0), 0.0, None, len(Z), 0)
    squares = (Z[:, columns] - Z[:, columns].mean(axis=0)) ** 2
    rows = rng.permutation(len(Z))[:PAIRED_ROWS]
    table = [_centred_distances(Z[rows, j]) for j in columns]
    shuffled = [_centred_distances(rng.permutation(Z[rows, j])) for j in columns]
    pairs = list(combinations(range(m), 2))
    of_squares = [abs(_correlation(squares[:, j], squares[:, k])) for j, k in pairs]
    distances = [_distance_correlation(table[j], table[k]) for j, k in pairs]
    baseline = [_distance_correlation(shuffled[j], shuffled[k]) for j, k in pairs]
    j, k = pairs[int(np.argmax(distances))]
    return Dependence(
        squares=(float(np.mean(of_squares)), float(np.max(of_squares))),
        distance=(float(np.mean(distances)), float(np.max(distances))),
        baseline=float(np.mean(baseline)),
        pair=(int(columns[j]), int(columns[k])),
        rows=len(Z),
        pairs=len(pairs),
    )


def _renamed(dependence: Dependence, names: NDArray[np.intp]) -> Dependence:
    if dependence.pair is None:
        return dependence
    j, k = dependence.pair
    return Dependence(**(dependence.__dict__ | {"pair": (int(names[j]), int(names[k]))}))


def _correlation(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0


def _centred_distances(column: Array) -> Array:
    """|x_i - x_j| with row and column means taken off (Szekely, Rizzo, Bakirov 2007)."""
    distances = np.abs(column[:, None] - column[None, :])
    return np.asarray(distances - distances.mean(axis=0) - distances.mean(axis=1)[:, None] + distances.mean())


def _distance_correlation(a: Array, b: Array) -> float:
    size = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return math.sqrt(max(float((a * b).sum()), 0.0) / size) if size > 0 else 0.0
