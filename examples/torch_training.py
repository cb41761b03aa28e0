"""Train with torch: the loss is a module, its parameters are torch's, and the gradient behind it is exact. Needs the extra
`torch`.

    python examples/torch_training.py
"""

from __future__ import annotations

import numpy as np
import torch

import elbotree as et


def start() -> et.Problem:
    """A relu layer on two sparse features, a model to improve, and an encoder to start from."""
    layer = et.Layer(np.eye(2), [0.6, -0.4], [0.8, 0.5], "relu", threshold=-0.2)
    p1 = et.FeatureModel([[1.0, 0.3], [-0.2, 0.9]], [et.Bernoulli(0.2), et.Bernoulli(0.3)], 0.2)
    model = et.FeatureModel(np.eye(2), [et.Bernoulli(0.2), et.Bernoulli(0.3)], 0.4)
    encoder = et.Encoder([et.Posterior("bernoulli", row, [-2.0]) for row in 4 * np.eye(2)])
    return et.Problem(layer, p1, model, encoder)


def main(steps: int = 30) -> None:
    """Adam on encoder, decoder and priors together; no sample is drawn."""
    elbo = et.torch_module(start(), tol=1e-4, what="all")
    optimiser = torch.optim.Adam(elbo.parameters(), lr=0.1)
    for step in range(steps):
        optimiser.zero_grad()
        loss = elbo()
        loss.backward()
        optimiser.step()
        if step % 5 == 0:
            print(f"step {step:3}  L = {loss.item():.4f} nats, sigma2 = {elbo.log_noise_std.exp().item():.3f}")
    values = et.evaluate(elbo.problem(), tol=1e-4)
    print(f"step {steps:3}  L = {values['L'].value:.4f} nats, error at most {values['L'].error:.0e}")


if __name__ == "__main__":
    main()
