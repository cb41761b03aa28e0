"""The twelve numbers of the loss tree as one object: look a term up, print the tree, write it as JSON or HTML.

What a term means, and how it is computed, is not here: that is the derived tree and the generated kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from elbotree.runtime.errors import InputError, ToleranceError
from elbotree.runtime.estimates import Estimate

#: Figure 2: which terms a term is made of. R3 is (S1 + S2) / (2 sigma2^2); any other parent is its children's sum.
CHILDREN: dict[str, tuple[str, ...]] = {
    "L": ("R1", "R2", "R3"),
    "R3": ("S1", "S2"),
    "S2": ("T1", "T2", "T3"),
    "T1": ("U1", "U2", "U3"),
}

#: The order in which terms are listed everywhere.
NAMES = ("L", "R1", "R2", "R3", "S1", "S2", "T1", "T2", "T3", "U1", "U2", "U3")


@dataclass(frozen=True)
class Term:
    """One term of the loss.

    value, error         the number and an estimate of its absolute error
    check, check_error   the same term by sampling and its standard error, when a check was asked for
    seconds              how long it took, its children included; None where nobody looked. What several leaves share is
                         counted at the first of them
    """

    name: str
    value: float
    error: float
    check: float | None = None
    check_error: float | None = None
    seconds: float | None = None

    @property
    def deviation(self) -> float | None:
        """(check - value) in standard errors of the check; None without a check, and where samples do not vary beyond rounding
        and agree with the value to that and its error."""
        if self.check is None or not self.check_error:
            return None
        rounding = 1e-13 * max(1.0, abs(self.check))
        if self.check_error <= rounding and abs(self.check - self.value) <= self.error + rounding:
            return None
        return (self.check - self.value) / self.check_error

    def to_dict(self) -> dict[str, float]:
        """The term as JSON shows it; the check appears only when there is one."""
        numbers = {"value": self.value, "error": self.error, "check": self.check, "check_error": self.check_error}
        return {key: number for key, number in numbers.items() if number is not None}


def seconds_text(seconds: float | None) -> str:
    """A time for people: 1.23 s, 45 ms, 0.2 ms; "" for None."""
    if seconds is None:
        return ""
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{1e3 * seconds:.0f} ms"
        if seconds >= 0.01
        else f"{1e3 * seconds:.1f} ms"
    )


def _total(laps: Mapping[str, float], name: str) -> float:
    """The time of a leaf, or of all leaves below an inner node."""
    if name not in CHILDREN:
        return laps[name]
    return sum(_total(laps, child) for child in CHILDREN[name])


def require_divergence(value: float, error: float) -> None:
    """Raise ToleranceError where R1, a sum of divergences, is said to be negative: rounding has eaten it."""
    if value < -error - 1e-9:
        raise ToleranceError(
            f"R1 = {value:.10g} is negative beyond its error {error:.1e}, which no sum of divergences is: the posteriors' "
            "parameters are so large that nothing is left of it in float64; give the encoder smaller rows and biases"
        )


class Values(Mapping[str, Term]):
    """The loss tree's numbers: a mapping from the names L, R1, ..., U3 to `Term`.

    Arguments
        terms     name -> Term, all twelve
        tol       the tolerance that was asked for, relative to max(1, |value|); None when none was
        method    "spectral" or "grid"
        seconds   how long the evaluation took
        samples   how many samples the check drew, if any

    `print(values)` draws the tree of Figure 2 with a number and its error at every node.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        *,
        tol: float | None = None,
        method: str = "spectral",
        seconds: float | None = None,
        samples: int | None = None,
    ) -> None:
        missing = [name for name in NAMES if name not in terms]
        if missing:
            raise InputError(f"terms lacks {', '.join(missing)}; all of {', '.join(NAMES)} are needed")
        self._terms = {name: terms[name] for name in NAMES}
        self.tol = tol
        self.method = method
        self.seconds = seconds
        self.samples = samples

    @classmethod
    def of(
        cls,
        estimates: Mapping[str, Estimate],
        check: Mapping[str, Estimate] | None = None,
        *,
        tol: float | None = None,
        method: str = "spectral",
        seconds: float | None = None,
        samples: int | None = None,
        laps: Mapping[str, float] | None = None,
    ) -> Values:
        """Gather what a kernel's `evaluate` returned, beside it what the same kernel returned on samples, and how long
        each leaf took (`laps`)."""
        terms = {}
        for name, estimate in estimates.items():
            beside = None if check is None else check[name]
            terms[name] = Term(
                name,
                float(estimate.value),
                float(estimate.error),
                None if beside is None else float(beside.value),
                None if beside is None else float(beside.error),
                None if laps is None else _total(laps, name),
            )
        return cls(terms, tol=tol, method=method, seconds=seconds, samples=samples)

    def __getitem__(self, name: str) -> Term:
        try:
            return self._terms[name]
        except KeyError:
            raise KeyError(f"no term {name!r}; the terms are {', '.join(NAMES)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def share(self, name: str) -> float | None:
        """What a term adds to L, as a fraction of L: children's shares add up to their parent's, L's own is 1.

        A term below R3 adds its value over 2 sigma2^2. Shares may be negative or exceed 1, since terms have signs; None
        where L is 0.
        """
        loss = self["L"].value
        if loss == 0.0:
            return None
        whole = sum(self[child].value for child in CHILDREN["R3"])
        # 1 / (2 sigma2^2) is read off R3; where S1 + S2 = 0, both are 0 and any factor will do
        factor = 1.0 if name in ("L", *CHILDREN["L"]) else self["R3"].value / whole if whole else 0.0
        return factor * self[name].value / loss

    @property
    def checked(self) -> bool:
        """Whether there is a check by sampling beside the values."""
        return self["L"].check is not None

    def require(self, tol: float) -> None:
        """Raise ToleranceError unless error <= tol max(1, |value|) holds at every one of the twelve terms, all finite, and R1 is
        not negative beyond its error."""
        require_divergence(self["R1"].value, self["R1"].error)
        misses = [
            term
            for term in self.values()
            if not (math.isfinite(term.value) and term.error <= tol * max(1.0, abs(term.value)))
        ]
        if not misses:
            return
        # The term that misses by most is the one to mend first, and the sums above it follow.
        worst = max(misses, key=lambda term: (term.name not in CHILDREN, term.error / max(1.0, abs(term.value))))
        others = [term.name for term in misses if term is not worst]
        also = f" (also missed: {', '.join(others)})" if others else ""
        helps = (
            "a smaller eps" if self.method == "grid" else "a larger tol, or more noise in the input model (noise_std)"
        )
        raise ToleranceError(
            f"{worst.name} = {worst.value:.10g} has error {worst.error:.1e}, above tol * max(1, |value|) = "
            f"{tol * max(1.0, abs(worst.value)):.1e} at tol = {tol:g}{also}; what would help: {helps}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the command line: terms, tol, method, seconds (and samples, when checked)."""
        form: dict[str, Any] = {
            "terms": {name: term.to_dict() for name, term in self.items()},
            "tol": self.tol,
            "method": self.method,
            "seconds": self.seconds,
        }
        if self.samples is not None:
            form["samples"] = self.samples
        return form

    def rows(self) -> list[tuple[str, Term]]:
        """(branch drawing, term) from the root down, in the tree's order: what every picture of the tree is made of."""
        rows: list[tuple[str, Term]] = []

        def walk(name: str, lead: str, joint: str, below: str) -> None:
            rows.append((lead + joint, self[name]))
            children = CHILDREN.get(name, ())
            for child in children:
                last = child == children[-1]
                walk(child, lead + below, "└─ " if last else "├─ ", "   " if last else "│  ")

        walk("L", "", "", "")
        return rows

    def cells(self) -> list[tuple[str, ...]]:
        """Header and rows of the table: term, value, error, share of L, time where it is known, and when checked the check,
        its standard error, its z."""
        timed = self["L"].seconds is not None
        head: tuple[str, ...] = ("term", "value", "error", "share", *(("time",) if timed else ()))
        if self.checked:
            head += ("sampled", "std. error", "z")
        table = [head]
        for branch, term in self.rows():
            cells: tuple[str, ...] = (
                branch + term.name,
                f"{term.value:.10g}",
                f"{term.error:.1e}",
                self._share_text(term.name),
            )
            if timed:
                cells += (seconds_text(term.seconds),)
            if self.checked:
                z = term.deviation
                cells += (f"{term.check:.6g}", f"{term.check_error:.1e}", "" if z is None else f"{z:+.1f}")
            table.append(cells)
        return table

    def _share_text(self, name: str) -> str:
        share = self.share(name)
        return "" if share is None else f"{share:.1%}" if abs(share) < 10 else f"{share:.3g}x"

    def caption(self) -> str:
        """One line that says how the numbers were made."""
        parts = [f"method {self.method}"]
        if self.tol is not None:
            parts.append(f"tol {self.tol:g}")
        if self.seconds is not None:
            parts.append(f"{self.seconds:.2f} s")
        if self.samples is not None:
            parts.append(f"checked with {self.samples} samples")
        return ", ".join(parts)

    def __str__(self) -> str:
        table = self.cells()
        widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in table
        ]
        return "\n".join([*(line.rstrip() for line in lines), self.caption()])

    def __repr__(self) -> str:
        return f"<Values L = {self['L'].value:.10g} ± {self['L'].error:.1e}, {self.caption()}>"

    def _repr_html_(self) -> str:
        head, *rows = self.cells()
        top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
        body = "".join(
            f'<tr><th scope="row" style="text-align:left;white-space:pre;font-family:monospace">{escape(row[0])}</th>'
            + "".join(f'<td style="text-align:right">{escape(cell)}</td>' for cell in row[1:])
            + "</tr>"
            for row in rows
        )
        return (
            f"<table><caption>{escape(self.caption())}</caption><thead><tr>{top}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )
