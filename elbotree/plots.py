"""Pictures of a fitted model by matplotlib (the extra `plots`): its features and their priors. The report draws its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from elbotree.runtime.errors import InputError, UnsupportedError
from elbotree.runtime.models import FeatureModel
from elbotree.runtime.priors import Prior

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ENDINGS = (".png", ".svg", ".pdf")


def features(model: FeatureModel, path: str | Path | None = None) -> Figure:
    """One row a feature: its column of B times its prior's deviation, as bars over the coordinates of x, and its prior.

    Returns the figure, made without a window, and writes it to `path` where one is given. Raises InputError for a model
    without features or an ending other than .png, .svg, .pdf, and UnsupportedError where matplotlib is not installed.
    """
    if model.m == 0:
        raise InputError("the model has no features, so there is nothing to draw")
    if path is not None and Path(path).suffix.lower() not in _ENDINGS:
        raise InputError(f"{path}: the ending must be one of {', '.join(_ENDINGS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError(
            "drawing needs matplotlib, which is not installed; install it with: pip install 'elbotree[plots]'"
        ) from None
    figure = Figure(figsize=(8.0, 0.4 + 1.1 * model.m), layout="constrained")
    axes = figure.subplots(model.m, 2, squeeze=False, width_ratios=[2, 1])
    reach = 1.05 * max(float(np.abs(model.B[:, j]).max()) * p.variance() ** 0.5 for j, p in enumerate(model.priors))
    for j, (prior, (column, law)) in enumerate(zip(model.priors, axes, strict=True)):
        column.bar(range(model.n), model.B[:, j] * prior.variance() ** 0.5, width=0.8)
        column.axhline(0.0, color="black", linewidth=0.5)
        column.set_ylim(-(reach or 1.0), reach or 1.0)
        column.set_ylabel(f"$b_{{{j}}}$", rotation=0, labelpad=12)
        _draw(law, prior)
        if j + 1 < model.m:
            column.set_xticklabels([])
    axes[0, 0].set_title("columns of B2, times the deviation of the prior")
    axes[0, 1].set_title("priors")
    axes[-1, 0].set_xlabel("coordinate of x2")
    if path is not None:
        try:
            figure.savefig(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}; choose another place") from None
    return figure


def _draw(axes: Axes, prior: Prior) -> None:
    """Atoms as stems of their masses, the rest as its distribution's increments over a grid, both to height 1 at most."""
    points, masses = prior.atoms
    if len(points):
        axes.vlines(points, 0, masses, linewidth=2)
        axes.plot(points, masses, "o", markersize=3)
    if prior.continuous_weight > 0:
        spread = max(prior.variance() ** 0.5, 1e-12)
        x = prior.mean() + spread * np.linspace(-5, 5, 401)
        density = np.diff(prior.cdf(x)) / np.diff(x)
        for point in points:  # an atom's jump is no density
            density[np.searchsorted(x, point) - 1] = np.nan
        axes.plot(0.5 * (x[1:] + x[:-1]), density * spread)
    axes.set_ylim(bottom=0)
