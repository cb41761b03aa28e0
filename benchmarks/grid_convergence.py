"""The paper's grid method against the spectral one: how each term's difference falls with the width of the bins.

    python -m benchmarks.grid_convergence --problem relu --eps 0.4,0.2,0.1,0.05

Problems are those of tests/reference/problems.py; the numbers compared with are `method="spectral"` at tol 1e-9. The
last line gives the order of convergence of each term between the two finest widths.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import elbotree as et
from tests.reference.problems import problem

SHOWN = ("L", "R1", "S1", "T2", "T3", "U2", "U3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="relu", help="name of a reference problem")
    parser.add_argument(
        "--eps", default="0.4,0.2,0.1,0.05", help="widths of the bins, relative to each coordinate's scale"
    )
    options = parser.parse_args()
    p = et.Problem.from_dict(problem(options.problem))
    exact = et.evaluate(p, tol=1e-9)
    print(f"{'eps':>6} " + " ".join(f"{name:>9}" for name in SHOWN) + f" {'seconds':>8}")
    rows: list[list[float]] = []
    widths = [float(text) for text in options.eps.split(",")]
    for eps in widths:
        begun = time.perf_counter()
        values = et.evaluate(p, method="grid", eps=eps)
        seconds = time.perf_counter() - begun
        rows.append([abs(float(values[name].value) - float(exact[name].value)) for name in SHOWN])
        print(f"{eps:6.3g} " + " ".join(f"{d:9.1e}" for d in rows[-1]) + f" {seconds:8.2f}", flush=True)
    if len(rows) > 1:
        step = np.log(widths[-2] / widths[-1])
        orders = [np.log(a / b) / step if a > 0 and b > 0 else np.nan for a, b in zip(rows[-2], rows[-1], strict=True)]
        print(f"{'order':>6} " + " ".join(f"{order:9.2f}" for order in orders))


if __name__ == "__main__":
    main()
