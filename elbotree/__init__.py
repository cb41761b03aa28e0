"""elbotree: learn variational auto-encoders for a network's activations analytically, without drawing one sample.

    import elbotree as et
    tree = et.derive()                                    # the loss, derived: a tree of sympy expressions
    kernels = et.generate(psi="relu", family="tilted")    # numpy kernels, printed from that tree
    values = et.evaluate(problem, tol=1e-6)               # the twelve terms with their errors
    fit = et.fit(layer, p1, features=8)                   # a feature model and its encoder for a layer's output

This module holds the public names and nothing else. Each is imported when first used, so that `import elbotree`
costs milliseconds and loads neither numpy nor sympy.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elbotree.codegen import Kernels, generate
    from elbotree.derivation import LossTree, derive
    from elbotree.evaluation import Gradient, evaluate, gradient
    from elbotree.fitting import Fit, fit
    from elbotree.networks import Chain, fit_network, load, sampled_tails
    from elbotree.objectives import flat_objective, profile_objective, torch_module
    from elbotree.report import write_report
    from elbotree.runtime.activations import Activation
    from elbotree.runtime.errors import (
        CostError,
        ElbotreeError,
        ExecutorError,
        InputError,
        ToleranceError,
        UnsupportedError,
    )
    from elbotree.runtime.estimates import Estimate
    from elbotree.runtime.input_models import fit_input, input_from_sae
    from elbotree.runtime.joint import Joint, joint
    from elbotree.runtime.models import Encoder, FeatureModel, Layer, Posterior, Problem
    from elbotree.runtime.networks import Plan, compile_network, plan_network
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
    from elbotree.runtime.tails import TailProbability
    from elbotree.runtime.values import Term, Values

__version__ = "0.1.0"

#: public name -> the module that defines it
_HOMES = {
    "Activation": "elbotree.runtime.activations",
    "Bernoulli": "elbotree.runtime.priors",
    "Chain": "elbotree.networks",
    "Discrete": "elbotree.runtime.priors",
    "CostError": "elbotree.runtime.errors",
    "ElbotreeError": "elbotree.runtime.errors",
    "Encoder": "elbotree.runtime.models",
    "Estimate": "elbotree.runtime.estimates",
    "ExecutorError": "elbotree.runtime.errors",
    "Exponential": "elbotree.runtime.priors",
    "FeatureModel": "elbotree.runtime.models",
    "Fit": "elbotree.fitting",
    "Gamma": "elbotree.runtime.priors",
    "Gradient": "elbotree.evaluation",
    "InputError": "elbotree.runtime.errors",
    "Joint": "elbotree.runtime.joint",
    "Kernels": "elbotree.codegen",
    "Laplace": "elbotree.runtime.priors",
    "Layer": "elbotree.runtime.models",
    "LossTree": "elbotree.derivation",
    "Mixture": "elbotree.runtime.priors",
    "Normal": "elbotree.runtime.priors",
    "Plan": "elbotree.runtime.networks",
    "Posterior": "elbotree.runtime.models",
    "Prior": "elbotree.runtime.priors",
    "Problem": "elbotree.runtime.models",
    "SpikeSlab": "elbotree.runtime.priors",
    "TailProbability": "elbotree.runtime.tails",
    "Term": "elbotree.runtime.values",
    "ToleranceError": "elbotree.runtime.errors",
    "Uniform": "elbotree.runtime.priors",
    "UnsupportedError": "elbotree.runtime.errors",
    "Values": "elbotree.runtime.values",
    "compile_network": "elbotree.runtime.networks",
    "derive": "elbotree.derivation",
    "evaluate": "elbotree.evaluation",
    "fit": "elbotree.fitting",
    "fit_input": "elbotree.runtime.input_models",
    "flat_objective": "elbotree.objectives",
    "fit_network": "elbotree.networks",
    "generate": "elbotree.codegen",
    "gradient": "elbotree.evaluation",
    "input_from_sae": "elbotree.runtime.input_models",
    "joint": "elbotree.runtime.joint",
    "load": "elbotree.networks",
    "plan_network": "elbotree.runtime.networks",
    "profile_objective": "elbotree.objectives",
    "register_family": "elbotree.registration",
    "register_psi": "elbotree.registration",
    "sampled_tails": "elbotree.networks",
    "torch_module": "elbotree.objectives",
    "vae_from_sae": "elbotree.sae",
    "write_report": "elbotree.report",
}

#: old public name -> new one. The old name goes on working for one minor version, with a DeprecationWarning.
_RENAMED: dict[str, str] = {}

__all__ = [  # noqa: RUF022  (the order in which people meet them)
    "derive",
    "generate",
    "Layer",
    "FeatureModel",
    "Posterior",
    "Encoder",
    "Problem",
    "Prior",
    "evaluate",
    "gradient",
    "fit",
    "joint",
    "load",
    "fit_input",
    "input_from_sae",
    "compile_network",
    "plan_network",
    "fit_network",
    "sampled_tails",
    "register_family",
    "register_psi",
    "vae_from_sae",
    "flat_objective",
    "profile_objective",
    "torch_module",
    "write_report",
    "Bernoulli",
    "Discrete",
    "Exponential",
    "Gamma",
    "Laplace",
    "Mixture",
    "Normal",
    "SpikeSlab",
    "Uniform",
    "Activation",
    "Chain",
    "Estimate",
    "Fit",
    "Gradient",
    "Joint",
    "Kernels",
    "LossTree",
    "TailProbability",
    "Term",
    "Values",
    "Plan",
    "ElbotreeError",
    "InputError",
    "CostError",
    "ExecutorError",
    "ToleranceError",
    "UnsupportedError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the module behind a public name, and keep the name for the next time."""
    if name in _RENAMED:
        message = f"elbotree.{name} is now elbotree.{_RENAMED[name]}; the old name goes with the next minor version"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'elbotree' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    home = _HOMES[name]
    if not home.startswith(("elbotree.derivation", "elbotree.codegen")):
        import_module("elbotree.compiler")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
