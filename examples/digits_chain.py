"""A digits network modelled layer by layer, and an honest table of how far the models drift from it.

    python examples/digits_chain.py
    python examples/digits_chain.py --components 4 --hidden 4 3 --layers 2 --features 5 --iterations 2 --tol 0.02

Steps: an input model of independent features plus noise from scikit-learn's images; a classifier with hidden layers
(24, 16) on the same inputs, compiled into layers that each bend one direction; a feature model for each of them by the
closed form, by Gaussian moments, by the mean alone, and by samples; and each compared with samples of the true network.

The first hidden layer keeps mean and covariance exactly, what is seen there is sampling error; the second one reads features
that are uncorrelated and not independent, and drifts. A rectified coordinate on its own never passes for trusted: a model
that has its covariance with the other coordinates and is linear in independent features cannot be zero half of the time.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import elbotree as et


def main() -> None:
    """Run the four methods and print their drift."""
    parser = argparse.ArgumentParser(description="Model every layer of a small digits network.")
    parser.add_argument("--components", type=int, default=8, help="features of the input model")
    parser.add_argument("--hidden", type=int, nargs="+", default=[24, 16], help="hidden widths")
    parser.add_argument("--features", type=int, default=24, help="most features a model may have that are not normal")
    parser.add_argument("--iterations", type=int, default=0, help="iterations of the optimiser a layer; 0: closed form")
    parser.add_argument("--tol", type=float, default=1e-3, help="tolerance of the training, where there is any")
    parser.add_argument("--check-samples", type=int, default=20_000, help="rows of the true network to compare with")
    parser.add_argument("--layers", type=int, help="stop after so many layers of the compiled network")
    parser.add_argument("--table", action="store_true", help="print every layer of every method")
    options = parser.parse_args()

    images = load_digits().data / 16.0
    model, report = et.fit_input(images, features=options.components)
    print(f"input model: {model.m} features in {model.n} coordinates\n{report}\n")
    p1 = report.reduced  # of the coordinates along `directions`, which the network reads
    assert p1 is not None
    assert report.directions is not None
    inputs = (images - report.mean) @ report.directions.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before it has converged
        network = MLPClassifier(tuple(options.hidden), random_state=0, max_iter=200).fit(inputs, load_digits().target)
    plan = et.plan_network(network)
    layers = plan.layers[: options.layers]
    print(f"{network.score(inputs, load_digits().target):.1%} of the images right\n{plan}\n")
    if len(layers) < len(plan.layers):
        print(f"only the first {len(layers)} of {len(plan.layers)} layers are modelled\n")

    for method in ("fit", "cov-prop", "mean-prop", "sampling"):
        begun = time.perf_counter()
        chain = et.fit_network(
            layers,
            p1,
            method=method,
            features=options.features,
            tol=options.tol,
            iterations=options.iterations,
            check_samples=options.check_samples,
        )
        print(f"{method}: {time.perf_counter() - begun:.1f} s, trusted up to layer {chain.trusted} of {len(layers)}")
        if options.table:
            print(chain)
        else:
            at = sorted({1, len(layers) // 4, len(layers) // 2, 3 * len(layers) // 4, len(layers)} - {0})
            for i in at:
                print(f"  layer {i:2}: {chain.drift[i - 1]}")
            for note in chain.notes:
                print(f"  note: {note}")
        if method == "fit":
            last = chain.models[-1]
            v = np.eye(last.n)[0]
            x = float(last.mean()[0] + 3 * np.sqrt(last.covariance()[0, 0]))
            print(f"  first output above {x:.2f}: {chain.tail(v, x, check_samples=options.check_samples)}")


if __name__ == "__main__":
    main()
