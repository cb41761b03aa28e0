"""The inverse of the loss's curvature as points of f(x1) have it, for the first matrix H_0 of L-BFGS.

The exact loss costs a hundred times what the same loss costs on some thousand points (see `search`), and the two bend alike. So
H_0 q is what the loss P on points makes of a gradient q at x: minus the step d that minimises

    P(x + d) - P(x) + <q - grad P(x), d> + mu / 2 |d|_D^2

(the additive correction of a model whose gradient is made right at x: Alexandrov, Lewis, Gumbert, Green and Newman 2001), found by
L-BFGS on points. D is 1 / gains_j^2 for the row and the bias of feature j, as in the ridge of `search`, and 1e-3 for logs of
precisions; mu keeps the step from where no point tells anything. What L-BFGS remembers of the exact loss corrects the rest.
Points are the same at every call, so that a search that is resumed goes on to the same bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.lbfgs import Inverse, Search, advance
from elbotree.runtime.models import Encoder, FeatureModel, Layer
from elbotree.runtime.profile import EncoderCoordinates
from elbotree.runtime.search import PointLoss, gains, sampled_outputs

__all__ = ["PointModel"]

Array = NDArray[np.float64]

_POINTS = 8192
_DAMPING = 0.1  # mu
_LOGS = 0.1  # of D, for logs of precisions
_ITERATIONS = 100
_LEAST = 1e-3  # of what the step has gained: what an iteration must add


class PointModel:
    """What 8,192 points of f(x1), x1 ~ p1, know of the loss: its curvature, and differences of its values. floor: the least
    sigma2."""

    def __init__(self, layer: Layer, p1: FeatureModel, floor: float) -> None:
        self.layer, self.p1, self.floor = layer, p1, floor
        self.f = sampled_outputs(layer, p1, _POINTS)

    def loss(self, encoder: Encoder, coordinates: EncoderCoordinates) -> float:
        """The profile loss on the points, nats."""
        return PointLoss(self.f, coordinates, self.floor)(coordinates.pack(encoder))[0]

    def inverse(self, coordinates: EncoderCoordinates) -> Inverse:
        """x, q -> H_0 q in these coordinates."""
        alone = gains(self.layer, self.p1, coordinates)
        loss = PointLoss(self.f, coordinates, self.floor, alone)
        damping = _DAMPING * np.concatenate(
            [
                np.concatenate([np.full(q.C.size + len(q.C), gain**-2), np.full(len(names), _LOGS)])
                for q, gain, names in zip(coordinates.template, alone, coordinates.moving, strict=True)
            ]
        )
        return lambda x, q: -_step(loss, damping, x, q)


def _step(loss: PointLoss, damping: Array, x: Array, q: Array) -> Array:
    """The d that minimises the model, or nearly."""
    value, gradient = loss(x)
    tilt = q - gradient

    def model(d: Array) -> tuple[float, Array]:
        there, slope = loss(x + d)
        pull = damping * d
        return there - value + float(tilt @ d) + 0.5 * float(d @ pull), slope + tilt + pull

    search, quiet = Search(np.zeros_like(x), 0.0, q), 0
    for _ in range(_ITERATIONS):
        found = advance(search, model)
        if found is None:
            break
        quiet = quiet + 1 if search.loss - found.loss < -_LEAST * found.loss else 0
        search = found
        if quiet == 2:
            break
    return search.x
