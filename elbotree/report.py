"""The report: one self-contained HTML page about a problem, a fit or a chain. Of a problem or a fit it shows the loss
tree with every term's formula, rule, place, kernel, value, error and cost, the training curve, the learned features, and
the laws of read-outs; of a chain the drift over its layers. Charts are `elbotree.charts`'s, laws `elbotree.report_laws`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elbotree import report_laws
from elbotree.charts import Line, chart, signed_picture
from elbotree.codegen import Kernels, generate
from elbotree.derivation import LossTree, derive
from elbotree.derivation.render import combination_text, cost_text, law_text
from elbotree.evaluation import evaluate, kernels_for
from elbotree.fitting import Fit
from elbotree.html import Markup, join, page, table, tag
from elbotree.report_laws import ReadOut
from elbotree.runtime.arguments import MOST_ROWS, check_count, shortened
from elbotree.runtime.chain import Chain
from elbotree.runtime.chain_checkpoints import Loss
from elbotree.runtime.drift import TRUSTED
from elbotree.runtime.errors import InputError
from elbotree.runtime.models import FeatureModel, Layer, Problem
from elbotree.runtime.prior_base import Prior
from elbotree.runtime.storage import check_place, write_atomic
from elbotree.runtime.training import Step
from elbotree.runtime.values import Term, Values, seconds_text
from elbotree.sources import read_source


@dataclass(frozen=True)
class Page:
    """What the report of a problem or a fit shows.

    title      the page's heading
    problem    layer, input, model, encoder
    values     the twelve terms at it, with a check by sampling beside them or not
    history    the steps of training, if there was any
    start      the twelve terms before training, if known
    intro      paragraphs under the heading
    pictures   one small picture a feature of the model (from `elbotree.charts`); left out, the columns of B2
    sections   further (heading, content) pairs, shown after the features
    read_outs  laws of read-outs (from `elbotree.report_laws`)
    """

    title: str
    problem: Problem
    values: Values
    history: Sequence[Step] = ()
    start: Values | None = None
    intro: Sequence[str] = ()
    pictures: Sequence[Markup] = ()
    sections: Sequence[tuple[str, Markup]] = field(default=())
    read_outs: Sequence[ReadOut] = ()

    def render(self) -> str:
        """The page as HTML text."""
        tree, kernels = derive(), kernels_for(self.problem.layer, self.problem.encoder)
        sections = [
            ("The loss tree", [_tree(tree, kernels, self.values)]),
            ("All twelve terms", [_numbers(self.values, self.start)]),
        ]
        if self.history:
            sections.append(("Training", _training(self.history)))
        families = [posterior.family for posterior in self.problem.encoder]
        sections.append(("Learned features", _features(self.problem.model, families, self.pictures)))
        if self.read_outs:
            sections.append(("Laws and tails of read-outs", report_laws.section(self.read_outs)))
        sections += [(heading, [content]) for heading, content in self.sections]
        return _document(self.title, self.intro, _summary(self.problem, self.values), sections)


@dataclass(frozen=True)
class ChainPage:
    """What the report of a chain shows: a title, the chain, paragraphs under the heading, laws of read-outs."""

    title: str
    chain: Chain
    intro: Sequence[str] = ()
    read_outs: Sequence[ReadOut] = ()

    def render(self) -> str:
        """The page as HTML text."""
        chain = self.chain
        sections = [("Drift over the layers", _drift(chain)), ("Layers", _layers(chain))]
        if any(chain.losses):
            sections.insert(1, ("Loss of each layer", _losses(chain)))
        if self.read_outs:
            sections.append(("Laws and tails of the last layer", report_laws.section(self.read_outs)))
        sections.append(("The loss of one layer", [_tree(derive(), _chain_kernels(chain), None)]))
        facts = {
            "network": f"{len(chain.layers)} layers from {chain.layers[0].n1} to {chain.layers[-1].n2} coordinates",
            "input": f"{chain.p1.m} features, noise {chain.p1.noise_std:.4g}",
            "method": chain.method,
            "trusted": "drift not measured"
            if chain.trusted is None
            else f"up to layer {chain.trusted} of {len(chain.layers)}",
            "time": seconds_text(chain.seconds),
        }
        return _document(self.title, [*self.intro, *chain.notes], _facts(facts), sections)


def write_report(
    path: str | Path,
    content: Page | ChainPage | Problem | Fit | Chain,
    title: str | None = None,
    *,
    check_samples: int | None = None,
    seed: int = 0,
    read_outs: int = report_laws.READ_OUTS,
) -> Path:
    """Write one self-contained HTML page, whole or not at all.

    Arguments
        path           the file to write
        content        a problem, which is evaluated; a fit; a chain; or a `Page` or `ChainPage` of your own
        title          the heading, where it is not a page of your own
        check_samples  likewise: set samples beside values and laws, as a check
        seed           of those samples
        read_outs      likewise: how many read-outs to draw the laws of (through psi, and with many features, one
                       may take a minute)

    Returns the path. Raises InputError where it cannot be written.
    """
    check_count("check_samples", check_samples, 2, MOST_ROWS)
    check_place(path)
    if isinstance(content, Fit):
        content = _page_of_fit(content, title or "A fitted layer", content.values.tol, check_samples, seed, read_outs)
    elif isinstance(content, Chain):
        laws = report_laws.of_chain(content, check_samples, seed, read_outs)
        content = ChainPage(title or "A chain of layers", content, read_outs=laws)
    elif isinstance(content, Problem):
        content = _page_of_problem(content, title or "A problem", None, check_samples, seed, read_outs)
    elif not isinstance(content, Page | ChainPage):
        raise InputError(
            f"`content` is {shortened(content)}; it must be a problem, a fit, a chain, a Page or a ChainPage"
        )
    write_atomic(path, content.render().encode("utf-8"))
    return Path(path)


def report_on(
    source: Path,
    out: Path | None,
    *,
    tol: float | None = None,
    check_samples: int | None = None,
    seed: int = 0,
    read_outs: int = report_laws.READ_OUTS,
) -> Path:
    """The page about a problem's JSON file or the folder of a fit or a chain, as the command line asks for it."""
    check_count("check_samples", check_samples, 2, MOST_ROWS)
    found, name = read_source(source), source.resolve().name
    target = out or (source / "report.html" if source.is_dir() else source.with_suffix(".html"))
    check_place(target)
    if isinstance(found, Chain):
        return write_report(
            target, found, f"A chain of layers: {name}", check_samples=check_samples, seed=seed, read_outs=read_outs
        )
    if isinstance(found, Fit):
        return write_report(
            target,
            _page_of_fit(found, f"A fitted layer: {name}", tol or found.values.tol, check_samples, seed, read_outs),
        )
    return write_report(target, _page_of_problem(found, f"A problem: {name}", tol, check_samples, seed, read_outs))


def _page_of_problem(
    problem: Problem, title: str, tol: float | None, check_samples: int | None, seed: int, read_outs: int
) -> Page:
    values = evaluate(problem, tol, check_samples=check_samples, seed=seed)
    return Page(title, problem, values, read_outs=report_laws.of_problem(problem, check_samples, seed, read_outs))


def _page_of_fit(fit: Fit, title: str, tol: float | None, check_samples: int | None, seed: int, read_outs: int) -> Page:
    values = evaluate(fit.problem, tol, check_samples=check_samples, seed=seed)
    laws = report_laws.of_problem(fit.problem, check_samples, seed, read_outs)
    return Page(title, fit.problem, values, fit.history, intro=[fit.message], read_outs=laws)


def _document(
    title: str, intro: Sequence[str], summary: Markup, sections: Sequence[tuple[str, Sequence[Markup]]]
) -> str:
    """Heading, summary, a list of the sections to jump to, the sections."""
    places = [f"section-{number}" for number in range(1, len(sections) + 1)]
    links = [
        tag("li", tag("a", heading, href=f"#{place}")) for place, (heading, _) in zip(places, sections, strict=True)
    ]
    header = tag("header", tag("h1", title), *(tag("p", text) for text in intro if text), summary)
    body = [
        tag("section", tag("h2", heading, id=place), *content, aria_labelledby=place)
        for place, (heading, content) in zip(places, sections, strict=True)
    ]
    return page(title, header, tag("nav", tag("ul", *links), aria_label="Sections"), *body)


def _facts(facts: Mapping[str, str]) -> Markup:
    """A list of names and what they are, without the empty ones."""
    return tag("dl", *(item for key, text in facts.items() if text for item in (tag("dt", key), tag("dd", text))))


def _summary(problem: Problem, values: Values) -> Markup:
    layer, loss = problem.layer, values["L"]
    families = ", ".join(dict.fromkeys(q.family for q in problem.encoder)) or "none"
    facts = {
        "layer": f"f(x) = y + w ψ(⟨y, u⟩ + θ), y = A x + d, ψ = {_psi(layer)}, from {layer.n1} to {layer.n2} coordinates",
        "input": f"{problem.input.m} features, noise {problem.input.noise_std:.4g}",
        "model": f"{problem.model.m} features, noise {problem.model.noise_std:.4g}",
        "posteriors": families,
        "numbers": values.caption(),
    }
    return join(
        [
            tag("p", f"L = {loss.value:.8g} ± {loss.error:.1e} nats", class_="big"),
            _facts(facts),
        ]
    )


def _tree(tree: LossTree, kernels: Kernels, values: Values | None) -> Markup:
    """A nested list, one <details> a node: the list shows the tree's shape, and browsers open and close <details> by
    keyboard and screen reader without any script. Without values it shows what each term is."""

    def node(name: str) -> Markup:
        part = tree[name]
        cost, grid_cost = cost_text(part.cost), cost_text(part.grid_cost)
        figures = [tag("span", f" {part.place}", class_="number soft")]
        if values is not None:
            figures = _figures(values[name], values.share(name))
        head = tag("summary", tag("span", name, class_="name"), *figures)
        formula = tag("div", Markup(tree.to_mathml(name)), class_="formula")
        facts = {
            "made of": combination_text(part) if part.children else "",
            "rule": part.rule,
            "paper": part.place,
            "errata": part.erratum,
            "joint law": law_text(part.law),
            "cost": f"{cost}, N modes in each dimension" if "N" in cost else cost,
            "on the grid": f"{grid_cost}, N of the paper's bins in each dimension" if "N" in grid_cost else "",
            "time": "" if values is None else seconds_text(values[name].seconds),
        }
        kernel = tag("code", inspect.getsource(kernels[name]).rstrip())
        source = tag(
            "details",
            tag("summary", "generated kernel"),
            tag("pre", kernel, tabindex=0, aria_label=f"kernel of {name}"),
            class_="inner",
        )
        opened = tag("details", head, formula, _facts(facts), source, id=f"term-{name}")
        children = tag("ul", *(node(child) for child in part.children)) if part.children else None
        return tag("li", opened, children)

    hint = "Each term opens to its formula, rule, place in the paper, kernel and cost."
    more = "" if values is None else " Bars and percentages are shares of L."
    return join([tag("p", hint + more, class_="soft"), tag("ul", node(tree.names[0]), class_="tree")])


def _figures(term: Term, share: float | None) -> list[Markup]:
    """A bar and a number for the share, value, error, and the check's z score, for a node's summary line."""
    part = 0.0 if share is None else share
    bar = tag("span", class_=f"bar {'less' if part < 0 else 'more'}", style=f"width: {min(abs(part), 1.5) * 4:.2f}rem")
    figures = [
        tag("span", bar, class_="bars", aria_hidden="true"),
        *([] if share is None else [tag("span", f"{share:.1%}", class_="number share")]),
        tag("span", f" {term.value:.8g}", class_="number"),
        tag("span", f"± {term.error:.1e}", class_="number soft"),
    ]
    if term.check is not None:
        z = term.deviation
        shown = "equal" if z is None else f"{z:+.1f} s.e."
        warn = z is not None and abs(z) > 4
        figures.append(
            tag("span", f"sampled {term.check:.5g} ({shown})", class_="number warn" if warn else "number soft")
        )
    return figures


def _numbers(values: Values, start: Values | None) -> Markup:
    head, *rows = values.cells()
    if start is None:
        return table(head, rows, values.caption())
    before = [f"{term.value:.6g}" for _, term in start.rows()]
    merged = [(row[0], value, *row[1:]) for row, value in zip(rows, before, strict=True)]
    return table((head[0], "before training", *head[1:]), merged, values.caption())


def _training(history: Sequence[Step]) -> list[Markup]:
    iterations = [float(step.iteration) for step in history]
    losses, norms = [step.loss for step in history], [step.gradient_norm for step in history]
    noise = [step.noise_std for step in history]
    first, last = history[0], history[-1]
    fell = f"From {first.loss:.6g} to {last.loss:.6g} nats in {len(history)} iterations, {last.seconds:.1f} s."
    curves = [
        chart([Line(label, iterations, y)], title=title, x_label="iteration", y_label=axis, said=said, log_y=log_y)
        for label, y, title, axis, said, log_y in (
            ("L", losses, "Loss", "L in nats", fell, False),
            (
                "gradient",
                norms,
                "Gradient",
                "largest entry, log scale",
                f"From {norms[0]:.2g} to {norms[-1]:.2g}.",
                True,
            ),
            ("sigma2", noise, "Noise of the decoder", "σ₂", f"From {noise[0]:.4g} to {noise[-1]:.4g}.", False),
        )
    ]
    return [tag("div", *curves, class_="charts")]


def _features(model: FeatureModel, families: Sequence[str], pictures: Sequence[Markup] = ()) -> list[Markup]:
    """A picture and the prior of every feature, and the table of their lengths, priors and posteriors."""
    if not model.m:
        return [tag("p", "The model has no features: it is Gaussian noise about its offset.")]
    top = float(np.abs(model.B).max())
    drawn = pictures or [
        signed_picture(column[None], alt=f"column {j + 1} of B: {_numbers_text(column)}", scale=top)
        for j, column in enumerate(model.B.T)
    ]
    figures = [
        tag("figure", picture, tag("figcaption", f"feature {j + 1}: {prior_text(model.priors[j])}"))
        for j, picture in enumerate(drawn)
    ]
    head = ["feature", "|b_j|", "mean", "std", "|b_j| std", "prior", *(["posterior"] if families else [])]
    rows = []
    for j, prior in enumerate(model.priors):
        length, spread = float(np.linalg.norm(model.B[:, j])), prior.variance() ** 0.5
        rows.append(
            [str(j + 1), f"{length:.4g}", f"{prior.mean():.4g}", f"{spread:.4g}", f"{length * spread:.4g}", prior.kind]
        )
        rows[-1] += families[j : j + 1]
    legend = "Columns of B: blue below zero, white at zero, red above." if not pictures else ""
    return [
        tag("p", legend, class_="soft") if legend else Markup(""),
        tag("div", *figures, class_="gallery"),
        table(head, rows, "The features: columns b_j, their priors" + (" and posteriors" if families else "")),
    ]


def _numbers_text(numbers: NDArray[np.float64]) -> str:
    """The first numbers of an array, for a text alternative."""
    shown = ", ".join(f"{number:.3g}" for number in list(numbers)[:12])
    return f"{shown}, and {len(numbers) - 12} more" if len(numbers) > 12 else shown


def prior_text(prior: Prior) -> str:
    """A prior in a few words: its kind and its numbers, or its kind and its moments where it has many numbers."""
    spec = prior.spec()
    points = spec.get("points")
    if isinstance(points, list | tuple):
        if len(points) > 4:
            return f"discrete on {len(points)} points, mean {prior.mean():.3g}, std {prior.variance() ** 0.5:.3g}"
        pairs = zip(points, spec["masses"], strict=True)
        return "discrete, " + ", ".join(f"P({x:.3g}) = {p:.3g}" for x, p in pairs)
    numbers = [f"{key} {value:.3g}" for key, value in spec.items() if isinstance(value, int | float)]
    return " ".join([str(spec["kind"]), ", ".join(numbers)]).strip()


# ------------------------------------------------------------------ chains


def _chain_kernels(chain: Chain) -> Kernels:
    """The kernels of the chain's first nonlinearity, with the posteriors that its training uses."""
    bent = [layer for layer in chain.layers if layer.w.any()]
    return generate(bent[0].psi if bent else "identity", "tilted")


def _drift(chain: Chain) -> list[Markup]:
    """The three measures of drift over the layers, and the limits up to which a layer's model is trusted."""
    measured = [(i + 1.0, drift) for i, drift in enumerate(chain.drift) if drift is not None]
    if not measured:
        return [tag("p", "Drift was not measured: give check_samples to fit_network.")]
    layers = [layer for layer, _ in measured]
    series = [
        Line("Wasserstein-1 of the worst coordinate", layers, [d.wasserstein for _, d in measured]),
        Line("its average over coordinates", layers, [sum(d.units) / len(d.units) for _, d in measured], 1),
        Line("mean", layers, [d.mean for _, d in measured], 2),
        Line("covariance, relative", layers, [d.covariance for _, d in measured], 3),
        Line("limit of trust", layers, [TRUSTED["wasserstein"]] * len(layers), 4),
    ]
    last = measured[-1][1]
    drawn = chart(
        series,
        title="Drift",
        x_label="layer",
        y_label="standard deviations, or relative",
        said=f"Against {last.samples} samples of the network. At the last layer: {last}.",
    )
    known = [(layer, d.excess) for layer, d in measured if d.excess is not None]
    excess = chart(
        [Line("excess", [layer for layer, _ in known], [nats for _, nats in known])],
        title="Excess",
        x_label="layer",
        y_label="nats a row",
        said="Cross-entropy of the samples under a normal law with the model's mean and covariance, above their own.",
    )
    return [tag("div", drawn, excess, class_="charts")]


def _losses(chain: Chain) -> list[Markup]:
    known = [(i + 1.0, loss) for i, loss in enumerate(chain.losses) if loss is not None]
    layers = [layer for layer, _ in known]
    seen = [(layer, loss.cross_entropy) for layer, loss in known if loss.cross_entropy is not None]
    against = Line("against samples of the network", [layer for layer, _ in seen], [nats for _, nats in seen], 1)
    drawn = chart(
        [Line("L", layers, [loss.value for _, loss in known]), *([against] if seen else [])],
        title="Loss",
        x_label="layer",
        y_label="L in nats",
        said=f"L of the {len(known)} layers whose model was trained, each against the model before it.",
    )
    head = ["layer", "L", "error", "gap to the best Gaussian", "against samples", "iterations"]
    rows = [
        [
            f"{at:.0f}",
            f"{loss.value:.6g}",
            f"{loss.error:.1e}",
            "" if loss.gap is None else f"{loss.gap:+.4g}",
            "" if loss.cross_entropy is None else f"{loss.cross_entropy:.6g}",
            str(loss.iterations),
        ]
        for at, loss in known
    ]
    return [drawn, table(head, rows, "Loss of each trained layer, in nats")]


def _layers(chain: Chain) -> list[Markup]:
    """One <details> a layer: what it does, its model's features, its drift."""
    parts = []
    for i, (layer, model, drift) in enumerate(zip(chain.layers, chain.models, chain.drift, strict=True)):
        trust = "" if drift is None else "trusted" if drift.trust else "not trusted"
        head = tag(
            "summary",
            tag("span", str(i + 1), class_="name"),
            tag("span", f" {_psi(layer)}, {layer.n1} to {layer.n2} coordinates", class_="number"),
            tag("span", trust, class_="number warn" if trust == "not trusted" else "number soft") if trust else None,
        )
        facts = {
            "drift": "" if drift is None else str(drift),
            "model": f"{model.m} features, noise {model.noise_std:.4g}",
            "offset": _numbers_text(model.offset),
        }
        terms = _terms_of_layer(chain.losses[i]) if layer.w.any() else []
        parts.append(tag("details", head, _facts(facts), *terms, *_features(model, ()), id=f"layer-{i + 1}"))
    return parts


def _terms_of_layer(loss: Loss | None) -> list[Markup]:
    """The twelve terms of a trained layer; their formulas, which all layers share, stand once at the end of the page."""
    if loss is None:
        return [tag("p", "Made in closed form, without training: no encoder, and so no loss.", class_="soft")]
    head, *rows = loss.terms.cells()
    formulas = tag("a", "the loss of one layer", href="#term-L")
    steps = f"{loss.iterations} iteration{'' if loss.iterations == 1 else 's'}"
    return [
        tag("p", "Formulas, rules and kernels: ", formulas, ".", class_="soft"),
        table(head, rows, f"The twelve terms after {steps}: R and L in nats, the others in squared units of f"),
    ]


def _psi(layer: Layer) -> str:
    if not layer.w.any():
        return "affine"
    return layer.psi if isinstance(layer.psi, str) else layer.psi.text
