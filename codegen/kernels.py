"""Kernels held in memory: generate the module's text, compile it, and give its functions by name.

The only `exec` of the project is in `_load`, and it runs text that `emit` printed and nobody else wrote (see there)."""

from __future__ import annotations

import hashlib
import linecache
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from elbotree.codegen.emit import module_source
from elbotree.codegen.functions import psi_section
from elbotree.derivation.activations import analyse
from elbotree.derivation.families import family_names, get_family
from elbotree.derivation.tree import NODE_NAMES, derive
from elbotree.runtime.activations import Activation
from elbotree.runtime.errors import InputError


class Kernels:
    """A generated kernel module.

    source      its text
    psi         the `Activation` that it defines
    families    the posterior families that it knows
    evaluate    evaluate(law, problem) -> {"L": Estimate, ..., "U3": Estimate}
    gradient    gradient(law, problem) -> {"C": [...], "bias": [...], "B": ..., "offset": ..., "noise_std": ..., ...}
    mean, variance, kl, ...   the integrands' builders

    `kernels["T2"]` is the function of node T2; `kernels.write(path)` saves the text.
    """

    def __init__(self, source: str, families: tuple[str, ...]) -> None:
        self.source = source
        self.families = families
        self._module = _load(source)
        self.psi: Activation = self._module.PSI
        self.evaluate: Callable[..., dict[str, Any]] = self._module.evaluate
        self.gradient: Callable[..., dict[str, Any]] = self._module.gradient

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in NODE_NAMES:
            raise KeyError(f"no node {name!r}; the nodes are {', '.join(NODE_NAMES)}")
        function: Callable[..., Any] = getattr(self._module, name)
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return getattr(self._module, name)
        except AttributeError:
            raise AttributeError(f"the kernel module defines no {name!r}") from None

    def __repr__(self) -> str:
        return f"<Kernels for psi = {self.psi.text}, families {', '.join(self.families)}>"

    def __reduce__(self) -> tuple[Callable[..., Kernels], tuple[str, tuple[str, ...]]]:
        # A process that receives kernels generates them anew: no text crosses, so none but our own is ever run.
        return generate, (self.psi.text, self.families)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Save the module's text, whole or not at all. Raises InputError where the place cannot be written to."""
        target = Path(path)
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=target.parent, delete=False, encoding="utf-8", newline="\n"
            ) as file:
                file.write(self.source)
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except OSError as problem:
            raise InputError(
                f"cannot write the kernels to {target}: {problem.strerror}; give a path in a writable folder"
            ) from None


def _load(source: str) -> ModuleType:
    """Compile and run generated text as a module; its source stays reachable through linecache, without a file.

    Why exec is safe here: the text comes from `emit.module_source` (or `psi_section`), printed from sympy expressions
    by our own printer. What a user gives, psi's text and names of families, gets there only as sympy expressions parsed
    by a whitelist grammar, or as names found in our registries.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    name, filename = f"elbotree_kernels_{digest}", f"<elbotree kernels {digest}>"
    module = ModuleType(name)
    module.__file__ = filename
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), module.__dict__)
    return module


def generate(psi: str | Activation = "relu", family: str | Sequence[str] = "bernoulli") -> Kernels:
    """Generate numpy kernels of the loss tree for a nonlinearity and posterior families.

    Arguments
        psi      a name (relu, tanh, ...) or an expression in b, or an `Activation` that came from one
        family   the name of a posterior family, or several

    Returns `Kernels`, from a cache in memory where the same were made before.
    Raises InputError for a psi or a family that is not known.

    >>> from elbotree.codegen import generate
    >>> print(generate("relu", "bernoulli").source.splitlines()[2])
    psi       relu
    """
    text = psi if isinstance(psi, str) else psi.text
    names = (family,) if isinstance(family, str) else tuple(dict.fromkeys(family))
    known = family_names()
    for name in names:
        if name not in known:
            get_family(name)  # raises, naming the nearest known family
    # The order of the families is theirs, not the caller's: the same set gives the same text.
    return _generate(text.strip(), tuple(name for name in known if name in names))


@lru_cache(maxsize=128)
def _generate(psi: str, families: tuple[str, ...]) -> Kernels:
    from elbotree import __version__

    analyse(psi)
    return Kernels(module_source(derive(), psi, families, __version__), families)


@lru_cache(maxsize=256)
def compile_psi(text: str) -> Activation:
    """The `Activation` of psi's text: its value and derivative as compiled numpy functions, with its breaks and poles.

    Raises InputError for text that the grammar refuses.
    """
    header = "import numpy as np\nfrom scipy import special\n\nfrom elbotree import runtime as rt\n\n\n"
    activation: Activation = _load(header + psi_section(text)).PSI
    return activation
