"""The numeric side of a nonlinearity psi. Deriving one from text is `elbotree.derivation`'s work, printing it
`elbotree.codegen`'s; the front door hands the two to `compile_psi` through `set_compiler`, so that this folder
never imports sympy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.errors import UnsupportedError
from elbotree.runtime.float_range import vanishing

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Activation:
    """A nonlinearity psi : R -> R as numpy functions, with what quadrature must know of it.

    text        the name or expression in b that it came from, as `Layer.psi` carries it
    value       psi(b), elementwise on arrays
    derivative  psi'(b), elementwise, away from the breaks
    breaks      where psi or one of its derivatives jumps, ascending: integration panels split there
    pieces      (slope, intercept) on each interval between the breaks (one more than there are breaks) when psi is
                linear there, otherwise None: then integrals against it have a closed form
    affine      (slope, intercept) when psi(b) = slope b + intercept, otherwise None
    domain      the open interval on which psi is real and finite (reciprocal: see `poles`)
    poles       points where psi is not finite; an expectation over a density that is positive there diverges
    """

    text: str
    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    breaks: tuple[float, ...] = ()
    affine: tuple[float, float] | None = None
    domain: tuple[float, float] = (-float("inf"), float("inf"))
    poles: tuple[float, ...] = ()
    pieces: tuple[tuple[float, float], ...] | None = None

    @vanishing
    def __call__(self, b: Array) -> Array:
        return self.value(b)


_compiler: Callable[[str], Activation] | None = None
_definition: Callable[[str], str] | None = None


def set_compiler(compiler: Callable[[str], Activation], definition: Callable[[str], str]) -> None:
    """Say how psi text becomes an `Activation`, and how it is spelled for a process that knows no name registered here (the
    front door calls this once, with codegen's printer)."""
    global _compiler, _definition
    _compiler, _definition = compiler, definition


def compiler_of(psi: Activation) -> tuple[str, Callable[[str], Activation]]:
    """Text and a function, found by its name in any process, that make this psi there.

    Raises UnsupportedError when no compiler is set.
    """
    if _compiler is None or _definition is None:
        raise UnsupportedError(f"psi {psi.text!r} cannot be sent to other processes: `import elbotree.compiler` first")
    return _definition(psi.text), _compiler


def compile_psi(text: str) -> Activation:
    """The activation that `text` names.

    Raises UnsupportedError when no compiler is set (the runtime was imported without the front door), and whatever
    the compiler raises for text that it refuses.
    """
    if _compiler is None:
        raise UnsupportedError(
            f"psi {text!r} is text and nothing here can compile it: take Layer from elbotree instead of its runtime, or "
            "`import elbotree.compiler` first, or pass the `PSI` object of a generated kernel module instead of its name"
        )
    return _compiler(text)
