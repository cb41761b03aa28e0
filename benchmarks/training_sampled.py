"""A fit without samples against sampled training in torch, on a relu layer. Needs the extra `torch`.

python -m benchmarks.training_sampled [--n 12] [--runs 10] [--first 0] [--steps 10000] [--batch 256] [--tol 1e-4]

f(x) = x + w relu(<x, u>), u and w Gaussian / sqrt(n); x1 = B1 z1 + N(0, 0.1^2 I), B1 orthogonal, z1 Bernoulli(0.15), m1 = n.
Both sides train the same families: n Bernoulli posteriors with Bernoulli priors and one tilted posterior on 25 points with
a prior of free masses, n + 1 features in all.

sampled  every parameter (C, bias, precision, base masses, B2, mu2, sigma2, priors) as torch parameters, minibatches of x1
         drawn anew at each step, the exact KL and the exact spread of the posteriors (no draw of z2, so that the gradient's only
         noise is that of the batch), Adam at one of three rates, falling to 0 along a cosine; half of the runs begin at random
         encoders, half at our own first encoder. L of the end of each is that of elbotree.evaluate, not of a batch
fit      elbotree.fit(family=[...]) from its own start
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from numpy.typing import NDArray

import elbotree as et
from benchmarks.training_machine import machine
from elbotree.runtime.profile import output_moments
from elbotree.runtime.starts import first_encoder, propagated

Array = NDArray[np.float64]
SIGMA = 0.1
RATES = (1e-2, 3e-3, 3e-2)


def problem(n: int, seed: int = 0) -> tuple[et.Layer, et.FeatureModel]:
    """The layer and its input."""
    rng = np.random.default_rng(seed)
    B1 = np.linalg.qr(rng.standard_normal((n, n)))[0]
    w, u = rng.standard_normal(n) / np.sqrt(n), rng.standard_normal(n) / np.sqrt(n)
    return et.Layer(np.eye(n), w, u, "relu"), et.FeatureModel(B1, [et.Bernoulli(0.15)] * n, SIGMA)


def families(n: int) -> list[str]:
    """Bernoulli for the n features of x1, tilted for the one along w."""
    return ["bernoulli"] * n + ["tilted"]


class Sampled(torch.nn.Module):
    """The negative ELBO of a batch: Bernoulli features 0 .. n - 1, the tilted one last."""

    def __init__(self, layer: et.Layer, p1: et.FeatureModel, encoder: et.Encoder, noise_std: float, seed: int) -> None:
        super().__init__()
        n, m = layer.n2, len(encoder)
        generator = np.random.default_rng(seed)

        def free(value: object) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.tensor(np.asarray(value, dtype=np.float32)))

        self.A, self.w, self.u = (torch.tensor(v, dtype=torch.float32) for v in (layer.A, layer.w, layer.u))
        self.B1 = torch.tensor(p1.B, dtype=torch.float32)
        base = encoder[m - 1].base
        assert base is not None
        points, masses = base.atoms
        self.C = free(np.concatenate([q.C for q in encoder]))
        self.bias = free(np.concatenate([q.bias for q in encoder]))
        self.log_precision = free(np.log(encoder[m - 1].precision))
        self.points = torch.tensor(points, dtype=torch.float32)
        self.base_logits, self.prior_logits = free(np.log(masses)), free(np.log(masses))
        self.logit_p = free(np.full(m - 1, np.log(0.15 / 0.85)))
        self.B = free(0.3 * generator.standard_normal((n, m)))
        self.offset, self.log_std = free(np.zeros(n)), free(np.log(noise_std))
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, batch: int) -> torch.Tensor:
        """Minus the mean ELBO of a new batch."""
        z = (torch.rand((batch, self.B1.shape[1]), generator=self.generator) < 0.15).float()
        x1 = z @ self.B1.T + SIGMA * torch.randn((batch, self.B1.shape[0]), generator=self.generator)
        y = x1 @ self.A.T
        x2 = y + torch.relu(y @ self.u)[:, None] * self.w
        c = x2 @ self.C.T + self.bias
        on = torch.nn.functional.logsigmoid(c[:, :-1])
        off = torch.nn.functional.logsigmoid(-c[:, :-1])
        s, prior = on.exp(), torch.nn.functional.logsigmoid(self.logit_p)
        prior_off = torch.nn.functional.logsigmoid(-self.logit_p)
        divergence = (s * (on - prior) + (1 - s) * (off - prior_off)).sum(dim=1)
        tilt = c[:, -1:] * self.points - 0.5 * self.log_precision.exp() * self.points**2
        log_q = torch.log_softmax(torch.log_softmax(self.base_logits, 0) + tilt, dim=1)
        q = log_q.exp()
        divergence = divergence + (q * (log_q - torch.log_softmax(self.prior_logits, 0))).sum(dim=1)
        mean = q @ self.points
        means = torch.cat([s, mean[:, None]], dim=1)
        spread = torch.cat([s * (1 - s), (q @ self.points**2 - mean**2)[:, None]], dim=1)
        variance = (2 * self.log_std).exp()
        left = ((x2 - self.offset - means @ self.B.T) ** 2).sum(dim=1) + spread @ (self.B**2).sum(dim=0)
        n = x2.shape[1]
        return (divergence + 0.5 * n * torch.log(2 * torch.pi * variance) + left / (2 * variance)).mean()

    def problem(self, layer: et.Layer, p1: et.FeatureModel) -> et.Problem:
        """The problem at the parameters."""
        v = {name: p.detach().double().numpy() for name, p in self.named_parameters()}
        points = self.points.double().numpy()

        def law(logits: np.ndarray) -> et.Discrete:
            masses = np.maximum(np.exp(logits - logits.max()), 1e-300)
            return et.Discrete(tuple(points), tuple(masses / masses.sum()))

        posteriors = [et.Posterior("bernoulli", row, [b]) for row, b in zip(v["C"][:-1], v["bias"][:-1], strict=True)]
        precision = float(np.exp(v["log_precision"]))
        posteriors.append(
            et.Posterior("tilted", v["C"][-1], [v["bias"][-1]], precision=precision, base=law(v["base_logits"]))
        )
        priors = [et.Bernoulli(float(1 / (1 + np.exp(-x)))) for x in v["logit_p"]] + [law(v["prior_logits"])]
        return et.Problem(
            layer, p1, et.FeatureModel(v["B"], priors, float(np.exp(v["log_std"])), v["offset"]), posteriors
        )


def clocks() -> Array:
    """Seconds on the wall, and seconds of processors in this process."""
    return np.array([time.perf_counter(), time.process_time()])


def random_encoder(start: et.Encoder, x2: np.ndarray, seed: int) -> et.Encoder:
    """Random rows: c_j of deviation 4 about -2."""
    rng = np.random.default_rng([seed, 7])
    out = []
    for q in start:
        row = rng.standard_normal(x2.shape[1])
        gain = 4 / float(np.std(x2 @ row))
        bias = [-2 - gain * float(np.mean(x2 @ row))]
        out.append(et.Posterior(q.family, gain * row, bias, parameters=q.parameters, base=q.base))
    return et.Encoder(out)


def train(module: Sampled, steps: int, batch: int, rate: float) -> Array:
    """Adam with a falling rate; returns seconds, and seconds of processors."""
    optimiser = torch.optim.Adam(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    started = clocks()
    for _ in range(steps):
        optimiser.zero_grad()
        loss = module(batch)
        loss.backward()
        optimiser.step()
        schedule.step()
    return clocks() - started


def main() -> None:
    """Ours, then theirs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=12)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tol", type=float, default=1e-4)
    options = parser.parse_args()
    layer, p1 = problem(options.n)
    print(f"{machine()}, torch {torch.__version__} on {torch.get_num_threads()} threads")
    print(
        f"relu layer, n = {options.n}, {options.n + 1} features, Bernoulli(0.15), sigma {SIGMA}; batches of {options.batch}"
    )
    et.generate("relu", families(options.n))  # text of the kernels is made once and kept on disk
    warm = problem(2)
    et.fit(*warm, 3, families(2), tol=1e-2, iterations=1)  # so are the compiled loops
    started = clocks()
    fit = et.fit(layer, p1, options.n + 1, families(options.n), tol=options.tol)
    ours = clocks() - started
    loss = fit.values["L"]
    print(
        f"fit                L {loss.value:.5f} +- {loss.error:.0e}  {ours[0]:.1f} s ({ours[1]:.1f} of processors), "
        f"{len(fit.history)} iterations",
        flush=True,
    )
    print(f"                   {fit.message}", flush=True)
    mean, covariance = output_moments(layer, p1, 1e-4)
    start = first_encoder(propagated(layer, p1, options.n + 1), mean, covariance, families(options.n))
    x2 = layer(p1.sample(5000, np.random.default_rng(3)))
    losses, seconds = [], []
    for run in range(options.first, options.first + options.runs):
        known = run % 2 == 1
        rate = RATES[(run // 2) % len(RATES)]
        encoder = start if known else random_encoder(start, x2, run)
        module = Sampled(layer, p1, encoder, 0.3, run)
        seconds.append(train(module, options.steps, options.batch, rate))
        losses.append(float(et.evaluate(module.problem(layer, p1), 1e-3)["L"].value))
        print(
            f"sampled {run + 1:>2}         L {losses[-1]:.5f}         {seconds[-1][0]:.1f} s ({seconds[-1][1]:.1f} of processors), "
            f"rate {rate:g}, "
            f"{'our first encoder' if known else 'random encoder'}",
            flush=True,
        )
    theirs = np.sum(seconds, axis=0)
    print(f"best sampled {min(losses):.5f}, fit minus best {fit.values['L'].value - min(losses):+.5f} nats")
    print(
        f"fit took {ours[0] / theirs[0]:.3f} of the {theirs[0]:.0f} s of all runs; of processors {ours[1] / theirs[1]:.3f} of "
        f"{theirs[1]:.0f} s"
    )


if __name__ == "__main__":
    main()
