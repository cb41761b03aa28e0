"""How far a model of a layer is from samples of the true network there: moments, each coordinate's law, and what the
model's Gaussian moments cost in nats. The models, and where the samples come from, are `chain`'s."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.models import FeatureModel

Array = NDArray[np.float64]

#: The drift up to which a layer's model is trusted: mean in standard deviations, covariance relative in the Frobenius
#: norm, Wasserstein-1 of the worst coordinate in standard deviations.
TRUSTED = {"mean": 0.1, "covariance": 0.1, "wasserstein": 0.1}


@dataclass(frozen=True)
class Drift:
    """How far a layer's model is from samples of the true network.

    mean         the largest |difference of the means| of a coordinate, in its standard deviations
    covariance   Frobenius norm of the difference of the covariances, relative to that of the samples' covariance
    wasserstein  the largest Wasserstein-1 distance of a coordinate, in its standard deviations
    unit         the coordinate it belongs to
    units        that distance for every coordinate
    excess       nats a row: cross-entropy of the samples under the normal law of the model's mean and covariance, minus
                 that under the normal law of their own. 0 is best; None where one of the covariances is singular
    samples      how many rows were compared; all of it contains its sampling error, about 1 / sqrt(samples)
    """

    mean: float
    covariance: float
    wasserstein: float
    unit: int
    units: tuple[float, ...]
    excess: float | None
    samples: int

    @property
    def trust(self) -> bool:
        """Whether mean, covariance and every coordinate stay within `TRUSTED`."""
        return (
            self.mean <= TRUSTED["mean"]
            and self.covariance <= TRUSTED["covariance"]
            and self.wasserstein <= TRUSTED["wasserstein"]
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, with the verdict."""
        return {**asdict(self), "trust": self.trust}

    def __str__(self) -> str:
        excess = "" if self.excess is None else f", {self.excess:.3f} nats a row more than its own Gaussian moments"
        return (
            f"mean off by {self.mean:.3f} standard deviations, covariance by {self.covariance:.1%}, Wasserstein-1 "
            f"{np.mean(self.units):.3f} standard deviations on average and up to {self.wasserstein:.3f} (coordinate "
            f"{self.unit}){excess}: {'trusted' if self.trust else 'not trusted'}"
        )


def measure_drift(rows: Array, model: FeatureModel, rng: np.random.Generator) -> Drift:
    """The model against rows (N, n) of the true network; as many rows are drawn from the model."""
    mean, covariance = rows.mean(axis=0), np.atleast_2d(np.cov(rows.T))
    # a coordinate that hardly moves is measured against the layer's size: it has no scale of its own
    size = float(np.sqrt(np.trace(covariance) / len(mean)))
    std = np.maximum(np.sqrt(np.diag(covariance)), max(1e-6 * size, 1e-300))
    drawn = np.sort(model.sample(len(rows), rng), axis=0)
    units = np.abs(np.sort(rows, axis=0) - drawn).mean(axis=0) / std
    own = model.covariance()
    off = float(np.linalg.norm(own - covariance) / max(float(np.linalg.norm(covariance)), 1e-300))
    return Drift(
        mean=float((np.abs(model.mean() - mean) / std).max()),
        covariance=off,
        wasserstein=float(units.max()),
        unit=int(units.argmax()),
        units=tuple(units.tolist()),
        excess=_excess(mean, covariance, model.mean(), own),
        samples=len(rows),
    )


def _excess(mean: Array, covariance: Array, at: Array, own: Array) -> float | None:
    """KL(N(mean, covariance) || N(at, own)) in nats: what the samples' cross-entropy rises by."""
    if max(np.linalg.cond(covariance), np.linalg.cond(own)) > 1e12:
        return None
    ratio = np.linalg.solve(own, covariance)
    _, logdet = np.linalg.slogdet(ratio)
    off = mean - at
    return float(0.5 * (np.trace(ratio) - len(mean) - logdet + off @ np.linalg.solve(own, off)))
