"""What an ELBO to a given error costs elsewhere: the benchmark problem of n sparse features as a model and a guide of Pyro
and of NumPyro, and with normal features as a VAE of pythae, beside their evaluation here.

    pip install pyro-ppl numpyro pythae
    python -m benchmarks.peers --n 32 --tol 1e-6

All draw rows x2 of the layer's output and one z of the encoder's posterior for each, and average: log densities in Pyro and
NumPyro, pythae's own loss. A batch is timed, the least of a few, after one that compiles; the spread of batch means gives the
standard deviation of one row. Their time is that of as many rows as bring the standard error down to tol max(1, |L|). Means
must agree within five standard errors: exit status 1 where they do not. torch gets one thread, which is best at these sizes. What
is not installed is left out.

pythae's VAE has normal features N(0, 1), normal posteriors, and output noise of std 1: its loss of x2 / sigma2 under the
decoder B2 / sigma2 is minus the ELBO less R2 = n/2 log(2 pi sigma2^2).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import elbotree as et
from benchmarks.speed import best_time
from benchmarks.workload import problem

Array = NDArray[np.float64]
Batch = Callable[[Array, int], float]  # rows of x2 and a seed -> the mean of minus the ELBO over them


def parts(p: et.Problem) -> dict[str, Array]:
    """The numbers of a problem with Bernoulli posteriors."""
    return {
        "B": p.model.B,
        "offset": p.model.offset,
        "prior": np.array([prior.mean() for prior in p.model.priors]),
        "C": np.concatenate([q.C for q in p.encoder]),
        "bias": np.concatenate([q.bias for q in p.encoder]),
    }


def pyro_batch(p: et.Problem) -> Batch:
    """Pyro's Trace_ELBO in float64, all rows in one plate."""
    import torch

    pyro, infer, dist = (importlib.import_module(name) for name in ("pyro", "pyro.infer", "pyro.distributions"))
    pyro.enable_validation(False)
    known = {name: torch.tensor(value) for name, value in parts(p).items()}

    def model(rows: torch.Tensor) -> None:
        with pyro.plate("rows", len(rows)):
            z = pyro.sample("z", dist.Bernoulli(known["prior"].expand(len(rows), -1)).to_event(1))
            pyro.sample("x", dist.Normal(z @ known["B"].T + known["offset"], p.model.noise_std).to_event(1), obs=rows)

    def guide(rows: torch.Tensor) -> None:
        with pyro.plate("rows", len(rows)):
            pyro.sample("z", dist.Bernoulli(logits=rows @ known["C"].T + known["bias"]).to_event(1))

    elbo = infer.Trace_ELBO()

    def batch(rows: Array, seed: int) -> float:
        pyro.set_rng_seed(seed)
        with torch.no_grad():
            return float(elbo.loss(model, guide, torch.tensor(rows))) / len(rows)

    return batch


def numpyro_batch(p: et.Problem) -> Batch:
    """NumPyro's Trace_ELBO in float64, compiled by jax."""
    jax, numpyro, infer, dist = (
        importlib.import_module(name) for name in ("jax", "numpyro", "numpyro.infer", "numpyro.distributions")
    )
    jax.config.update("jax_enable_x64", True)
    known = {name: jax.numpy.asarray(value) for name, value in parts(p).items()}

    def model(rows: Array) -> None:
        with numpyro.plate("rows", len(rows)):
            z = numpyro.sample("z", dist.Bernoulli(known["prior"]).expand((len(rows), p.model.m)).to_event(1))
            mean = z @ known["B"].T + known["offset"]
            numpyro.sample("x", dist.Normal(mean, p.model.noise_std).to_event(1), obs=rows)

    def guide(rows: Array) -> None:
        with numpyro.plate("rows", len(rows)):
            numpyro.sample("z", dist.Bernoulli(logits=rows @ known["C"].T + known["bias"]).to_event(1))

    elbo = infer.Trace_ELBO()
    compiled = jax.jit(lambda key, rows: elbo.loss(key, {}, model, guide, rows))

    def batch(rows: Array, seed: int) -> float:
        return float(compiled(jax.random.PRNGKey(seed), rows)) / len(rows)

    return batch


def normal_problem(n: int) -> et.Problem:
    """The benchmark problem with N(0, 1) features in the model of x2, and normal posteriors at the linear estimate of them."""
    p = problem(n)
    B, noise = 0.3 * p.model.B, p.model.noise_std
    precision = B.T @ B / noise**2 + np.eye(n)
    rows = np.linalg.solve(precision, B.T / noise**2)
    stds = np.sqrt(np.diag(np.linalg.inv(precision)))
    offset = p.model.B.sum(axis=1) * 0.1
    encoder = [
        et.Posterior("normal", row[None, :], [-float(row @ offset)], std=std)
        for row, std in zip(rows, stds, strict=True)
    ]
    return et.Problem(
        p.layer, p.input, et.FeatureModel(B, [et.Normal(0.0, 1.0)] * n, noise, offset), et.Encoder(encoder)
    )


def pythae_batch(p: et.Problem) -> Batch:
    """pythae's VAE in float64 with a linear encoder and decoder, its loss in training mode."""
    import torch

    models, nn = importlib.import_module("pythae.models"), importlib.import_module("pythae.models.nn")
    output = importlib.import_module("pythae.models.base.base_utils").ModelOutput
    noise, normal = p.model.noise_std, p.encoder
    B, offset = (torch.tensor(value / noise) for value in (p.model.B, p.model.offset))
    C = torch.tensor(np.concatenate([q.C for q in normal]) * noise)
    bias = torch.tensor(np.concatenate([q.bias for q in normal]))
    log_variance = torch.tensor([2 * math.log(float(q.std)) for q in normal])

    class Encoder(nn.BaseEncoder):
        def forward(self, x: torch.Tensor) -> object:
            return output(embedding=x @ C.T + bias, log_covariance=log_variance.expand(len(x), -1))

    class Decoder(nn.BaseDecoder):
        def forward(self, z: torch.Tensor) -> object:
            return output(reconstruction=z @ B.T + offset)

    config = models.VAEConfig(input_dim=(p.model.n,), latent_dim=p.model.m)
    vae = models.VAE(config, encoder=Encoder(), decoder=Decoder())
    constant = 0.5 * p.model.n * math.log(2 * math.pi * noise**2)

    def batch(rows: Array, seed: int) -> float:
        torch.manual_seed(seed)
        with torch.no_grad():
            return float(vae({"data": torch.tensor(rows / noise)}).loss) + constant

    return batch


PEERS = (("pyro", pyro_batch, problem), ("numpyro", numpyro_batch, problem), ("pythae", pythae_batch, normal_problem))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of a batch")
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; n = {options.n}")
    losses = {}
    for kind in (problem, normal_problem):
        p = kind(options.n)
        loss = losses[kind] = et.evaluate(p, tol=options.tol)["L"]
        here = best_time(lambda p=p: et.evaluate(p, tol=options.tol), 3)
        families = p.encoder[0].family
        print(
            f"elbotree, {families} posteriors  L = {float(loss.value):.8f}, error {float(loss.error):.1e}: {here:.2f} s"
        )
    agree = True
    if importlib.util.find_spec("torch"):
        importlib.import_module("torch").set_num_threads(1)
    for name, make, kind in PEERS:
        try:
            version = importlib.metadata.version({"pyro": "pyro-ppl"}.get(name, name))
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed")
            continue
        p, loss = kind(options.n), losses[kind]
        target = options.tol * max(1.0, abs(float(loss.value)))
        batch, rng = make(p), np.random.default_rng(0)
        times, means = [], []
        for k in range(options.batches + 1):
            begun = time.perf_counter()
            mean = batch(p.layer(p.input.sample(options.rows, rng)), k)
            if k:
                times.append(time.perf_counter() - begun)
                means.append(mean)
        spread = float(np.std(means, ddof=1)) * math.sqrt(options.rows)
        middle, error = float(np.mean(means)), float(np.std(means, ddof=1)) / math.sqrt(len(means))
        seconds = min(times) / options.rows * (spread / target) ** 2
        agree &= abs(middle - float(loss.value)) <= 5 * error
        print(
            f"{name} {version}  L = {middle:.4f} +- {error:.4f}, {1e6 * min(times) / options.rows:.2f} us a row: "
            f"{seconds:.1e} s for a standard error of {target:.1e}"
        )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
