"""Write what `elbotree doctor` compares with: a few problems and their twelve terms by the independent oracle.

    python -m tests.reference.selfcheck            write elbotree/selfcheck.json
    python -m tests.reference.selfcheck --print    print it instead

Each number is the oracle's at twice its usual resolution; nothing of the package takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.reference.oracle import reference_terms
from tests.reference.problems import problem
from tests.written import write

TARGET = Path(__file__).parents[2] / "elbotree" / "selfcheck.json"

#: Every posterior family, psi with a kink, with jumps and smooth in pieces, priors with atoms and without.
CHOSEN = ("relu", "heaviside-tilted", "two-dimensions", "hardtanh-mixed", "normal-scale", "tilted-continuous")


def references(names: Sequence[str]) -> list[dict[str, Any]]:
    """For each chosen problem its name, the problem, and its terms."""
    return [
        {"name": name, "problem": problem(name), "terms": reference_terms(problem(name), resolution=2.0)}
        for name in names
    ]


if __name__ == "__main__":
    write(__doc__, TARGET, CHOSEN, references)
