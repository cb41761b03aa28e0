"""The numeric side of elbotree, and the names that generated kernels reach as `rt.Integrand`, `rt.Estimate` and so on.
Each is imported when first used; nothing in this folder imports sympy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elbotree.runtime.activations import Activation, compile_psi
    from elbotree.runtime.errors import ElbotreeError, InputError, ToleranceError, UnsupportedError
    from elbotree.runtime.estimates import Estimate
    from elbotree.runtime.expectations import Expectations
    from elbotree.runtime.grid import GridExpectations
    from elbotree.runtime.integrands import Integrand
    from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem
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
    from elbotree.runtime.sampling import SamplingExpectations
    from elbotree.runtime.spectral import SpectralExpectations
    from elbotree.runtime.values import Term, Values

#: module -> the public names that it defines
_NAMES = {
    "activations": ("Activation", "compile_psi"),
    "errors": ("ElbotreeError", "InputError", "ToleranceError", "UnsupportedError"),
    "estimates": ("Estimate",),
    "expectations": ("Expectations",),
    "grid": ("GridExpectations",),
    "integrands": ("Integrand",),
    "models": ("Encoder", "FeatureModel", "Layer", "Posterior", "Problem"),
    "priors": (
        "Bernoulli",
        "Discrete",
        "Exponential",
        "Gamma",
        "Laplace",
        "Mixture",
        "Normal",
        "Prior",
        "SpikeSlab",
        "Uniform",
    ),
    "sampling": ("SamplingExpectations",),
    "spectral": ("SpectralExpectations",),
    "values": ("Term", "Values"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [  # noqa: RUF022  (grouped by module)
    "Activation",
    "compile_psi",
    "ElbotreeError",
    "InputError",
    "ToleranceError",
    "UnsupportedError",
    "Estimate",
    "Expectations",
    "GridExpectations",
    "Integrand",
    "Encoder",
    "FeatureModel",
    "Layer",
    "Posterior",
    "Problem",
    "Bernoulli",
    "Discrete",
    "Exponential",
    "Gamma",
    "Laplace",
    "Mixture",
    "Normal",
    "Prior",
    "SpikeSlab",
    "Uniform",
    "SamplingExpectations",
    "SpectralExpectations",
    "Term",
    "Values",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOMES)
