"""The problems that the benchmarks run on: n = m1 = m2 sparse features, a relu layer, a sharp encoder without exact zeros.

Features of probability 0.1 on B1 = orthogonal + 0.2 Gaussian / sqrt(n), sigma1 = 0.1; u and w random of norm about 1;
decoder A B1, sigma2 = 0.25; Bernoulli encoders of slope 20 along the rows of (B^T B + I / 10)^-1 B^T, B = A B1, bias -10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import elbotree as et

Array = NDArray[np.float64]

KINDS = ("bernoulli", "exponential", "tilted", "dense")


def problem(n: int, kind: str = "bernoulli", seed: int = 0) -> et.Problem:
    """The benchmark problem of size n; `kind` chooses the priors of x1 and the posterior family."""
    rng = np.random.default_rng(seed)
    orthogonal = np.linalg.qr(rng.standard_normal((n, n)))[0]
    B1 = orthogonal + 0.2 * rng.standard_normal((n, n)) / np.sqrt(n)
    A = np.linalg.qr(rng.standard_normal((n, n)))[0]
    w, u = rng.standard_normal(n) / np.sqrt(n), rng.standard_normal(n) / np.sqrt(n)
    B = A @ B1
    rows = np.linalg.solve(B.T @ B + 0.1 * np.eye(n), B.T)
    on = et.Bernoulli(0.1)
    if kind == "bernoulli":
        source: et.Prior = on
        priors: list[et.Prior] = [on] * n
        posteriors = [et.Posterior("bernoulli", 20 * row[None, :], [-10.0]) for row in rows]
    elif kind == "exponential":
        source = et.Exponential(0.3)
        priors = [source] * n
        posteriors = [et.Posterior("exponential", 4 * row[None, :], [0.0]) for row in rows]
    elif kind == "tilted":
        source = on
        priors = [on] * n
        posteriors = [et.Posterior("tilted", 20 * row[None, :], [0.0], precision=20.0, base=on) for row in rows]
    elif kind == "dense":
        source = et.Mixture((0.5, 0.3, 0.2), (et.Normal(-0.3, 0.1), et.Normal(0.2, 0.2), et.Normal(0.6, 0.1)))
        priors = [et.Normal(0.0, 0.4)] * n
        posteriors = [
            et.Posterior("tilted", 16 * row[None, :], [0.0], precision=16.0, base=et.Normal(0.0, 0.4)) for row in rows
        ]
    else:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    return et.Problem(
        et.Layer(A, w, u, "relu"),
        et.FeatureModel(B1, [source] * n, 0.1),
        et.FeatureModel(B, priors, 0.25),
        et.Encoder(posteriors),
    )


def sampled_losses(problem: et.Problem, samples: int, rng: np.random.Generator) -> Array:
    """The loss of each of `samples` draws of x1, vectorised: what one would write in numpy instead (Bernoulli posteriors)."""
    x2 = problem.layer(problem.input.sample(samples, rng))
    C = np.concatenate([q.C for q in problem.encoder])
    bias = np.concatenate([q.bias for q in problem.encoder])
    s = 1 / (1 + np.exp(-(x2 @ C.T + bias)))
    model = problem.model
    p = np.array([prior.mean() for prior in model.priors])
    tiny = 1e-300
    divergence = s * np.log((s + tiny) / p) + (1 - s) * np.log((1 - s + tiny) / (1 - p))
    left = x2 - model.offset - s @ model.B.T
    spread = (s * (1 - s)) @ np.sum(model.B**2, axis=0)
    variance = model.noise_std**2
    constant = 0.5 * model.n * np.log(2 * np.pi * variance)
    return np.asarray(divergence.sum(axis=1) + constant + (np.sum(left**2, axis=1) + spread) / (2 * variance))


def torch_gradient(problem: et.Problem, samples: int, seed: int) -> Any:
    """A function that draws `samples` of x1 and returns dL/dC by automatic differentiation in torch, (m2, n2): the stochastic
    gradient that one would train with instead (Bernoulli posteriors, their expectation taken in closed form)."""
    import torch

    rng = np.random.default_rng(seed)
    model = problem.model
    C = torch.tensor(np.concatenate([q.C for q in problem.encoder]), requires_grad=True)
    bias = torch.tensor(np.concatenate([q.bias for q in problem.encoder]), requires_grad=True)
    B = torch.tensor(model.B, requires_grad=True)
    offset = torch.tensor(model.offset)
    log_odds = [torch.tensor([np.log(x) for x in (p.mean(), 1 - p.mean())]) for p in model.priors]
    on, off = (torch.stack([pair[i] for pair in log_odds]) for i in (0, 1))

    def step() -> Array:
        x2 = torch.tensor(problem.layer(problem.input.sample(samples, rng)))
        logits = x2 @ C.T + bias
        s = torch.sigmoid(logits)
        log_s, log_r = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
        divergence = (s * (log_s - on) + (1 - s) * (log_r - off)).sum(dim=1)
        left = x2 - offset - s @ B.T
        square = (left**2).sum(dim=1) + (s * (1 - s)) @ (B**2).sum(dim=0)
        loss = (divergence + square / (2 * model.noise_std**2)).mean()
        found = torch.autograd.grad(loss, (C, bias, B))
        return np.asarray(found[0].numpy())

    return step
