"""The report: one self-contained HTML page about a problem or a fit, with the loss tree, every term's formula, rule,
place, value and error, the training curve, and the learned features. Pictures and charts are drawn by `elbotree.html`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elbotree.codegen import Kernels
from elbotree.derivation import LossTree, derive
from elbotree.derivation.render import combination_text, law_text
from elbotree.evaluation import evaluate, kernels_for
from elbotree.fitting import Fit, load, load_problem
from elbotree.html import Markup, join, line_chart, page, table, tag
from elbotree.runtime.models import Problem
from elbotree.runtime.storage import write_atomic
from elbotree.runtime.training import Step
from elbotree.runtime.values import Term, Values


@dataclass(frozen=True)
class Page:
    """What a report shows.

    title     the page's heading
    problem   layer, input, model, encoder
    values    the twelve terms at it, with a check by sampling beside them or not
    history   the steps of training, if there was any
    start     the twelve terms before training, if known
    intro     paragraphs under the heading
    pictures  one small picture a feature of the model (from `elbotree.html`), if features can be drawn
    sections  further (heading, content) pairs, shown after the features
    """

    title: str
    problem: Problem
    values: Values
    history: Sequence[Step] = ()
    start: Values | None = None
    intro: Sequence[str] = ()
    pictures: Sequence[Markup] = ()
    sections: Sequence[tuple[str, Markup]] = field(default=())

    def render(self) -> str:
        """The page as HTML text."""
        tree, kernels = derive(), kernels_for(self.problem.layer, self.problem.encoder)
        body = [
            tag(
                "header",
                tag("h1", self.title),
                *(tag("p", text) for text in self.intro),
                _summary(self.problem, self.values),
            ),
            tag("section", tag("h2", "The loss tree"), _tree(tree, kernels, self.values), class_="tree"),
            tag("section", tag("h2", "All twelve terms"), _numbers(self.values, self.start)),
        ]
        if self.history:
            body.append(tag("section", tag("h2", "Training"), *_training(self.history)))
        body.append(tag("section", tag("h2", "Learned features"), *_features(self.problem, self.pictures)))
        body += [tag("section", tag("h2", heading), content) for heading, content in self.sections]
        return page(self.title, *body)


def write_report(path: str | Path, content: Page | Fit, title: str | None = None) -> Path:
    """Write the page about a fit (or a `Page` of your own) to `path`, whole or not at all; returns the path."""
    if isinstance(content, Fit):
        content = Page(title or "A fitted layer", content.problem, content.values, content.history)
    write_atomic(path, content.render().encode("utf-8"))
    return Path(path)


def report_on(
    source: Path, out: Path | None, *, tol: float | None = None, check_samples: int | None = None, seed: int = 0
) -> Path:
    """The page about a fit's folder or a problem's JSON file, as the command line asks for it."""
    if source.is_dir():
        fit = load(source)
        values = evaluate(fit.problem, tol or fit.values.tol, check_samples=check_samples, seed=seed)
        content = Page(
            f"A fitted layer: {source.resolve().name}", fit.problem, values, fit.history, intro=[fit.message]
        )
        target = out or source / "report.html"
    else:
        problem = load_problem(source)
        values = evaluate(problem, tol, check_samples=check_samples, seed=seed)
        content, target = Page(f"A problem: {source.name}", problem, values), out or source.with_suffix(".html")
    return write_report(target, content)


def _summary(problem: Problem, values: Values) -> Markup:
    layer, loss = problem.layer, values["L"]
    families = ", ".join(dict.fromkeys(q.family for q in problem.encoder)) or "none"
    psi = layer.psi if isinstance(layer.psi, str) else layer.psi.text
    facts = {
        "layer": f"f(x) = y + w ψ(⟨y, u⟩ + θ), y = A x + d, ψ = {psi}, from {layer.n1} to {layer.n2} coordinates",
        "input": f"{problem.input.m} features, noise {problem.input.noise_std:.4g}",
        "model": f"{problem.model.m} features, noise {problem.model.noise_std:.4g}",
        "posteriors": families,
        "numbers": values.caption(),
    }
    return join(
        [
            tag("p", f"L = {loss.value:.8g} ± {loss.error:.1e} nats", class_="big"),
            tag("dl", *(part for key, text in facts.items() for part in (tag("dt", key), tag("dd", text)))),
        ]
    )


def _tree(tree: LossTree, kernels: Kernels, values: Values) -> Markup:
    """Nested <details>, one a node: browsers open and close them by keyboard and screen reader without any script."""

    def node(name: str) -> Markup:
        part, term = tree[name], values[name]
        head = tag("summary", tag("span", name, class_="name"), *_figures(term))
        formula = tag("div", Markup(tree.to_mathml(name)), class_="formula")
        facts = {
            "made of": combination_text(part) if part.children else "",
            "rule": part.rule,
            "paper": part.place,
            "errata": part.erratum,
            "joint law": law_text(part.law),
        }
        listed = tag("dl", *(item for key, text in facts.items() if text for item in (tag("dt", key), tag("dd", text))))
        source = tag(
            "details",
            tag("summary", "generated kernel"),
            tag("pre", tag("code", inspect.getsource(kernels[name]).rstrip())),
            class_="inner",
        )
        children = [node(child) for child in part.children]
        # The upper levels are open at first, so that the page shows the whole tree's shape.
        return tag("details", head, formula, listed, source, *children, open=bool(children), id=f"term-{name}")

    return node(tree.names[0])


def _figures(term: Term) -> list[Markup]:
    """Value, error, and the check's z score, for a node's summary line."""
    figures = [
        tag("span", f" {term.value:.8g}", class_="number"),
        tag("span", f"± {term.error:.1e}", class_="number soft"),
    ]
    if term.check is not None:
        z = term.deviation
        shown = "equal" if z is None else f"{z:+.1f} standard errors off"
        warn = z is not None and abs(z) > 4
        figures.append(
            tag("span", f"sampled {term.check:.5g}, {shown}", class_="number warn" if warn else "number soft")
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
    first, last = history[0], history[-1]
    norms = [math.log10(max(step.gradient_norm, 1e-300)) for step in history]
    return [
        tag(
            "p", f"{len(history)} iterations in {last.seconds:.1f} s: L from {first.loss:.6g} to {last.loss:.6g} nats."
        ),
        line_chart(iterations, [step.loss for step in history], title="Loss", x_label="iteration", y_label="L in nats"),
        line_chart(
            iterations, norms, title="Gradient", x_label="iteration", y_label="log10 of the gradient's largest entry"
        ),
    ]


def _features(problem: Problem, pictures: Sequence[Markup]) -> list[Markup]:
    """Pictures where the features can be drawn, and the table of their lengths, priors and posteriors."""
    parts = []
    if pictures:
        figures = [
            tag("figure", picture, tag("figcaption", f"feature {j + 1}: {_prior_text(problem.model.priors[j].spec())}"))
            for j, picture in enumerate(pictures)
        ]
        parts.append(tag("div", *figures, class_="gallery"))
    rows = []
    for j, (prior, posterior) in enumerate(zip(problem.model.priors, problem.encoder, strict=True)):
        length = float((problem.model.B[:, j] ** 2).sum()) ** 0.5
        spread = prior.variance() ** 0.5
        rows.append(
            [str(j + 1), f"{length:.4g}", f"{prior.mean():.4g}", f"{spread:.4g}", f"{length * spread:.4g}", prior.kind]
        )
        rows[-1].append(posterior.family)
    head = ["feature", "|b_j|", "mean", "std", "|b_j| std", "prior", "posterior"]
    return [*parts, table(head, rows, "Columns of B2, with the prior and the posterior family of each")]


def _prior_text(spec: Mapping[str, object]) -> str:
    """A prior's JSON form in a few words."""
    if isinstance(spec.get("points"), (list, tuple)):
        return f"discrete on {len(spec['points'])} points"  # type: ignore[arg-type]
    numbers = [f"{key} {value:.3g}" for key, value in spec.items() if isinstance(value, float)]
    return " ".join([str(spec["kind"]), ", ".join(numbers)]).strip()
