"""The loss as a torch module: parameters that any torch optimiser can move, with the runtime's exact gradient behind them.
Importing this file imports torch (the extra `torch`); nothing else in elbotree does so on its account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from elbotree.runtime.coordinates import Coordinates, GradientKernels
from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.estimates import Estimate
from elbotree.runtime.models import Problem

try:
    import torch
    from torch import nn
except ImportError as error:
    raise UnsupportedError(
        "elbotree.runtime.torch needs torch, which is not installed; install it with: pip install 'elbotree[torch]'"
    ) from error


class _Loss(torch.autograd.Function):  # type: ignore[misc]
    """Forward: L from the kernels, with its gradient kept; backward: that gradient times what arrives."""

    @staticmethod
    def forward(ctx: Any, module: AnalyticELBO, wanted: bool, *parameters: torch.Tensor) -> torch.Tensor:
        """L; `wanted` says whether anyone will ask for the gradient."""
        values = {name: _array(p) for name, p in zip(module.names, parameters, strict=True)}
        module.terms, slopes = module.coordinates.loss(module.kernels, values, module.tol, wanted)
        if wanted:
            ctx.slopes = [
                torch.from_numpy(np.array(slopes[name])).to(p) for name, p in zip(module.names, parameters, strict=True)
            ]
        return torch.tensor(float(module.terms["L"].value), dtype=torch.float64)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, above: torch.Tensor) -> tuple[Any, ...]:
        return None, None, *(above.to(slope) * slope for slope in ctx.slopes)


class AnalyticELBO(nn.Module):  # type: ignore[misc]
    """L of a problem, minus the ELBO in expectation, in nats: a scalar float64 tensor, exact to `tol` and without samples.

        elbo = AnalyticELBO(problem, kernels, tol=1e-6)
        optimiser = torch.optim.Adam(elbo.parameters(), lr=0.05)
        loss = elbo(); loss.backward(); optimiser.step()
        elbo.problem()                                       # the problem with the numbers as they are now

    Arguments
        problem  layer, input, model and encoder: where the parameters start
        kernels  generated kernels for the layer's psi and the encoder's families
        tol      tolerance of each term and of the gradient, relative to max(1, |value|)
        what     parts that move: "encoder", "decoder", "priors"

    Parameters (float64): C_j, bias_j, log_precision_j or log_std_j, B, offset, log_noise_std, and for each prior its own as
    logs (std, scale, shape), logits (p, masses, weights) or themselves (mean). `terms` holds the twelve terms of the last
    forward, each with its error. Second derivatives are not given. The paper: Theorem 3.1.
    """

    def __init__(
        self,
        problem: Problem,
        kernels: GradientKernels,
        tol: float = 1e-6,
        what: Sequence[str] = ("encoder", "decoder"),
    ) -> None:
        super().__init__()
        self.coordinates, self.kernels, self.tol = Coordinates(problem, tuple(what)), kernels, tol
        self.names = list(self.coordinates.start)
        for name, value in self.coordinates.start.items():
            self.register_parameter(name, nn.Parameter(torch.from_numpy(np.array(value))))
        self.terms: dict[str, Estimate] = {}

    def forward(self) -> torch.Tensor:
        """L at the parameters."""
        return self.loss_of(*(getattr(self, name) for name in self.names))

    def loss_of(self, *parameters: torch.Tensor) -> torch.Tensor:
        """L at other tensors in place of the parameters, in the order of `names`."""
        wanted = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
        return _Loss.apply(self, wanted, *parameters)

    def problem(self) -> Problem:
        """The problem at the parameters."""
        return self.coordinates.problem_at({name: _array(getattr(self, name)) for name in self.names})


def _array(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().double().numpy()
