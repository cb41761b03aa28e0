"""Train with scipy.optimize: the loss as a function of one flat vector, first of the encoder alone, then of everything.

python examples/scipy_training.py
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

import elbotree as et


def start() -> et.Problem:
    """A relu layer on two sparse features, a model to improve, and an encoder to start from."""
    layer = et.Layer(np.eye(2), [0.6, -0.4], [0.8, 0.5], "relu", threshold=-0.2)
    p1 = et.FeatureModel([[1.0, 0.3], [-0.2, 0.9]], [et.Bernoulli(0.2), et.Bernoulli(0.3)], 0.2)
    model = et.FeatureModel(np.eye(2), [et.Bernoulli(0.2), et.Bernoulli(0.3)], 0.4)
    encoder = et.Encoder([et.Posterior("bernoulli", row, [-2.0]) for row in 4 * np.eye(2)])
    return et.Problem(layer, p1, model, encoder)


def main() -> None:
    """Minimise the profile loss (the best decoder in closed form), then L itself in every parameter from there."""
    problem = start()
    print(f"start              L = {et.evaluate(problem, 1e-4)['L'].value:.4f} nats")

    profile = et.profile_objective(problem.layer, problem.input, problem.encoder, tol=1e-4)
    found = minimize(profile.fun_and_jac, profile.x0, jac=True, method="L-BFGS-B", options={"maxiter": 15})
    problem = profile.problem(found.x)
    print(f"encoder, profile   L = {found.fun:.4f} nats, {found.nfev} evaluations")

    flat = et.flat_objective(problem, tol=1e-4, what="all")
    found = minimize(flat.fun_and_jac, flat.x0, jac=True, method="L-BFGS-B", options={"maxiter": 3})
    print(f"all {len(flat.x0)} parameters  L = {found.fun:.4f} nats: {', '.join(flat.names[:4])}, ...")
    for prior in flat.problem(found.x).model.priors:
        print(f"  {prior}")


if __name__ == "__main__":
    main()
