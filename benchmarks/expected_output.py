"""The expected output of wide random MLPs, the question that cumulant propagation was made for: a chain of models here, and
cumulants of first and second order, beside sampling.

    python -m benchmarks.expected_output --widths 8 16 32 --hidden 2

relu networks of the given width with He's random weights and standard normal inputs. `cumulants` propagates the mean and the
covariance K of the layers' values as "Estimating the expected output of wide random MLPs more efficiently than sampling" does at
its least order, k_max = 2: with Z_i normal, E relu(Z_i) and E relu(Z_i)^2 are exact, and to first order in K,
Cov(relu(Z_i), relu(Z_j)) = P(Z_i > 0) P(Z_j > 0) K_ij. It is written anew here; where the paper's own package can be imported, it
runs beside it, in float64, at k_max = 2, which must give the same, 3 and 4. It is on no index (Python 3.12 or newer):

    pip install git+https://github.com/alignment-research-center/mlp_cumulant_propagation

The error is the root mean square over outputs and networks, in standard deviations of the output, against samples, whose own error
(at most: they are antithetic) and time stand beside it. Seconds are the least over the networks, so that what is prepared once for
all networks of a width does not count.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

import elbotree as et

Array = NDArray[np.float64]


def network(width: int, hidden: int, rng: np.random.Generator) -> list[Array]:
    """Weights of a random network: of variance 1/width into the first hidden layer, 2/width into the others."""
    scales = [1.0] + [2.0] * hidden
    return [rng.standard_normal((width, width)) * np.sqrt(scale / width) for scale in scales]


def cumulants(weights: list[Array]) -> Array:
    """The mean of the outputs by cumulants of first and second order."""
    n = weights[0].shape[1]
    mean, covariance = np.zeros(n), np.eye(n)
    for W in weights[:-1]:
        mean, covariance = W @ mean, W @ covariance @ W.T
        std = np.sqrt(np.diag(covariance))
        on, density = norm.cdf(mean / std), std * norm.pdf(mean / std)
        second = (mean**2 + std**2) * on + mean * density
        mean = mean * on + density
        covariance = covariance * np.outer(on, on)
        np.fill_diagonal(covariance, second - mean**2)
    return np.asarray(weights[-1] @ mean)


def package(weights: list[Array], k_max: int) -> Array:
    """The mean of the outputs by the package mlp_cumulant_propagation, whose module is mlp_kprop."""
    import torch

    n = weights[0].shape[1]
    network = importlib.import_module("mlp_kprop.mlp").MLP(hidden_dim=n, num_layers=len(weights)).double()
    with torch.no_grad():
        for layer, W in zip(network.Ws, weights, strict=True):
            layer.weight.copy_(torch.from_numpy(W))
        normal = {1: torch.zeros(n, dtype=torch.float64), 2: torch.eye(n, dtype=torch.float64)}
        propagate = importlib.import_module("mlp_kprop.kprop_harmonic").mlp_kprop
        return np.asarray(propagate(network, normal, k_max=k_max, output_d_max=1)[1].to_tensor())


def chain(weights: list[Array], method: str) -> Array:
    """The mean of the outputs by a chain of models."""
    n = weights[0].shape[1]
    layers = et.compile_network([(W, None, "relu") for W in weights[:-1]] + [(weights[-1], None, None)])
    return et.fit_network(layers, et.FeatureModel(np.zeros((n, 0)), [], 1.0), method=method).models[-1].mean()


def sampled(weights: list[Array], samples: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """The mean and the standard deviation of the outputs, by antithetic samples."""
    total, squares, batch = np.zeros(len(weights[-1])), np.zeros(len(weights[-1])), 100_000
    for _ in range(samples // (2 * batch)):
        half = rng.standard_normal((weights[0].shape[1], batch))
        x = np.concatenate([half, -half], axis=1)
        for W in weights[:-1]:
            x = np.maximum(W @ x, 0.0)
        x = weights[-1] @ x
        total, squares = total + x.sum(axis=1), squares + (x**2).sum(axis=1)
    mean = total / samples
    return mean, np.sqrt(squares / samples - mean**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--hidden", type=int, default=2, help="hidden layers")
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4_000_000, help="of the reference, for each network")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {options.hidden} hidden layers"
    )
    ways: dict[str, Callable[[list[Array]], Array]] = {
        "cumulants, k_max = 2": cumulants,
        "elbotree, fit": partial(chain, method="fit"),
        "elbotree, cov-prop": partial(chain, method="cov-prop"),
    }
    if importlib.util.find_spec("mlp_kprop"):
        ways |= {f"mlp_kprop, k_max = {k_max}": partial(package, k_max=k_max) for k_max in (2, 3, 4)}
    else:
        print("mlp_cumulant_propagation: not installed (see --help)")
    for width in options.widths:
        errors: dict[str, list[Array]] = {name: [] for name in ways}
        seconds, sampling = dict.fromkeys(ways, np.inf), np.inf
        for seed in range(options.networks):
            rng = np.random.default_rng([width, seed])
            weights = network(width, options.hidden, rng)
            begun = time.perf_counter()
            mean, std = sampled(weights, options.samples, rng)
            sampling = min(sampling, time.perf_counter() - begun)
            for name, way in ways.items():
                begun = time.perf_counter()
                errors[name].append((way(weights) - mean) / std)
                seconds[name] = min(seconds[name], time.perf_counter() - begun)
        for name, off in errors.items():
            print(f"width {width}  {name:22} off by {np.sqrt(np.mean(np.square(off))):.5f}  {seconds[name]:.4f} s")
        print(
            f"width {width}  {f'{options.samples:.0e} samples':22} off by {options.samples**-0.5:.5f}  {sampling:.1f} s"
        )


if __name__ == "__main__":
    main()
