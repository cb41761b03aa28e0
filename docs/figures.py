"""Make the figures of the documentation and the README, as SVG beside this file's pages.

    python docs/figures.py            all of them, into docs/figures (needs the extra `plots`; about half a minute)
    python docs/figures.py tree gap   some

Each function makes one figure and prints the numbers in it. References come from tests/reference, which shares no code with
the package.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import elbotree as et  # noqa: E402
from elbotree.runtime.values import CHILDREN  # noqa: E402
from tests.reference.oracle import reference_terms  # noqa: E402
from tests.reference.problems import problem as reference_problem  # noqa: E402

OUT = ROOT / "docs" / "figures"

WORDS = {
    "L": "the loss, in nats",
    "R1": "encoder against priors",
    "R2": "normalisation of the noise",
    "R3": "reconstruction over 2σ₂²",
    "S1": "spread of the features",
    "S2": "error of their means",
    "T1": "E|f|²",
    "T2": "−2 E⟨f, B₂ s⟩",
    "T3": "E|B₂ s|²",
    "U1": "linear part",
    "U2": "its product with ψ",
    "U3": "ψ's part",
}


def tree() -> None:
    """The loss tree of the example problem, a value and an error at every node: drawn from left to right."""
    import json

    text = files("elbotree").joinpath("example.json").read_text(encoding="utf-8")
    values = et.evaluate(et.Problem.from_dict(json.loads(text)), tol=1e-6)
    rows: dict[str, float] = {}
    depth: dict[str, int] = {}

    def place(name: str, level: int) -> float:
        depth[name] = level
        below = [place(child, level + 1) for child in CHILDREN.get(name, ())]
        rows[name] = sum((below[0], below[-1])) / 2 if below else float(sum(n not in CHILDREN for n in rows))
        return rows[name]

    place("L", 0)
    width, height, across, down = 178, 50, 206, 62
    parts = []
    for name in rows:
        x, y = 8 + depth[name] * across, 8 + rows[name] * down
        for child in CHILDREN.get(name, ()):
            cx, cy = 8 + depth[child] * across, 8 + rows[child] * down + height / 2
            mid, y0 = (x + width + cx) / 2, y + height / 2
            parts.append(f'<path d="M{x + width} {y0:.1f} C{mid} {y0:.1f} {mid} {cy:.1f} {cx} {cy:.1f}"/>')
    for name in rows:
        x, y, term = 8 + depth[name] * across, 8 + rows[name] * down, values[name]
        error = f"± {term.error:.0e}" if term.error else "exact"
        parts += [
            f'<rect x="{x}" y="{y:.1f}" width="{width}" height="{height}" rx="6"/>',
            f'<text x="{x + 10}" y="{y + 21:.1f}"><tspan class="n">{name}</tspan>'
            f'<tspan dx="8">{term.value:.6f}</tspan><tspan class="e" dx="5">{error}</tspan></text>',
            f'<text class="w" x="{x + 10}" y="{y + 40:.1f}">{escape(WORDS[name])}</text>',
        ]
    size = (16 + 4 * across + width, int(16 + 7 * down + height))
    style = (
        "svg{background:#fdfdfc}rect{fill:#f2f4f5;stroke:#b9c2ca}path{fill:none;stroke:#8b97a2;stroke-width:1.5}"
        "text{font:14px ui-monospace,Menlo,Consolas,monospace;fill:#1d2328}.n{font-weight:700;fill:#0b62a8}.e{fill:#56616b;"
        "font-size:11px}.w{font:11.5px system-ui,sans-serif;fill:#56616b}"
    )
    title = "The loss tree of the example problem, with a value and an error at each of its twelve terms"
    (OUT / "tree.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" height="{size[1]}" '
        f'role="img" aria-label="{title}"><title>{title}</title><style>{style}</style>{"".join(parts)}</svg>\n',
        encoding="utf-8",
    )
    print(values)


def tolerance() -> None:
    """Error asked for, error reported, true error: the worst of the twelve terms of four reference problems."""
    names = ("relu", "hardtanh-mixed", "normal-scale", "two-dimensions")
    tols = 10.0 ** -np.arange(2, 9)
    figure, axes = _axes("tolerance asked for", "worst relative error of the twelve terms")
    print(f"{'problem':<16} {'tol':>6} {'reported':>9} {'true':>9}")
    for colour, name in enumerate(names):
        known = reference_terms(reference_problem(name), resolution=2.0)
        reported, true = [], []
        for tol in tols:
            values = et.evaluate(et.Problem.from_dict(reference_problem(name)), tol=float(tol))
            scale = {n: max(1.0, abs(known[n])) for n in known}
            reported.append(max(values[n].error / scale[n] for n in known))
            true.append(max(abs(values[n].value - known[n]) / scale[n] for n in known))
            print(f"{name:<16} {tol:6.0e} {reported[-1]:9.1e} {true[-1]:9.1e}")
        axes.loglog(tols, reported, "-", color=f"C{colour}", label=f"{name}: reported")
        axes.loglog(tols, true, "o:", color=f"C{colour}", markersize=4, label=f"{name}: true")
    axes.loglog(tols, tols, color="0.6", linewidth=1, label="the tolerance")
    axes.invert_xaxis()
    axes.legend(fontsize=7, ncols=2)
    _save(figure, "tolerance")


def grid() -> None:
    """The paper's bins against the spectral method: difference of each term by the width of the bins."""
    p = et.Problem.from_dict(reference_problem("two-dimensions"))
    exact = et.evaluate(p, tol=1e-9)
    widths = (0.8, 0.4, 0.2, 0.1)
    figure, axes = _axes("width of the bins", "difference from the spectral value")
    found = [et.evaluate(p, method="grid", eps=eps) for eps in widths]
    for name in ("R1", "S1", "T2", "T3", "U2", "U3"):
        off = [abs(values[name].value - exact[name].value) for values in found]
        axes.loglog(widths, off, "o-", markersize=4, label=name)
        print(name, " ".join(f"{x:.1e}" for x in off))
    axes.loglog(widths, 0.05 * np.array(widths), "--", color="0.6", label="first order")
    axes.legend(fontsize=8)
    _save(figure, "grid")


def tails() -> None:
    """Why tails are summed on a shifted contour: the same sum with c = 0 stops at the rounding of doubles."""
    p = 32
    rng = np.random.default_rng(0)
    B = rng.uniform(0.2, 1.0, (1, p))
    model = et.FeatureModel(B, [et.Bernoulli(0.1)] * p, 0.3)
    law = model.marginal([1.0])
    x = np.linspace(2.0, 20.0, 40)
    shifted = law.tail(x, tol=1e-10)
    # Gil-Pelaez on the unshifted contour, 4,000 nodes
    t = (np.arange(4000) + 0.5) * 0.01
    cf = np.exp(-0.5 * (0.3 * t) ** 2) * np.prod([0.9 + 0.1 * np.exp(1j * t * b) for b in B[0]], axis=0)
    plain = np.array([0.5 + 0.01 / np.pi * np.sum(np.imag(np.exp(-1j * t * q) * cf) / t) for q in x])
    figure, axes = _axes("x", "P(S > x), sum of 32 rare features and noise")
    axes.semilogy(x, shifted.value, label="shifted contour, error bars 1e-10 relative")
    axes.semilogy(x, np.abs(plain), ":", label="unshifted contour, absolute value")
    axes.legend(fontsize=8)
    print(
        "\n".join(
            f"x = {a:5.2f}   {b:.3e}   {c:.3e}" for a, b, c in zip(x[::8], shifted.value[::8], plain[::8], strict=True)
        )
    )
    _save(figure, "tails")


def gap() -> None:
    """The paper's discussion, point 3: L above the entropy for two Bernoulli features at an angle, f the identity."""
    noise, angles = 0.3, (90, 75, 60, 45, 30, 15)
    gaps = []
    for degrees in angles:
        angle = np.deg2rad(degrees)
        B = np.array([[1.0, np.cos(angle)], [0.0, np.sin(angle)]])
        p1 = et.FeatureModel(B, [et.Bernoulli(0.5)] * 2, noise)
        layer = et.Layer(np.eye(2), [0.0, 0.0], [1.0, 0.0], psi="zero")
        fit = et.fit(layer, p1, features=2, family="tilted", tol=1e-3, iterations=25, rounds=1)
        x = np.linspace(-2.0, 3.5, 441)
        points = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
        humps = [np.exp(-((points - B @ z) ** 2).sum(-1) / (2 * noise**2)) for z in np.ndindex(2, 2)]
        density = sum(humps) / (8 * np.pi * noise**2)
        entropy = -float((density * np.log(np.maximum(density, 1e-300))).sum()) * (x[1] - x[0]) ** 2
        gaps.append(fit.values["L"].value - entropy)
        print(f"{degrees:3} degrees: L - entropy = {gaps[-1]:.4f} nats")
    figure, axes = _axes("angle between the features, degrees", "L − entropy of f(x₁), nats")
    axes.plot(angles, gaps, "o-")
    axes.set_ylim(0)
    _save(figure, "gap")


def _axes(x: str, y: str):  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "elbotree"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    axes.set_xlabel(x)
    axes.set_ylabel(y, fontsize=9)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure, name: str) -> None:  # type: ignore[no-untyped-def]
    figure.savefig(OUT / f"{name}.svg", metadata={"Date": None})


FIGURES = {"tree": tree, "tolerance": tolerance, "grid": grid, "tails": tails, "gap": gap}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FIGURES)}; all where none is named")
    names = parser.parse_args().names or list(FIGURES)
    if unknown := [name for name in names if name not in FIGURES]:
        parser.error(f"no figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
    OUT.mkdir(exist_ok=True)
    for name in names:
        print(f"--- {name}")
        FIGURES[name]()


if __name__ == "__main__":
    main()
