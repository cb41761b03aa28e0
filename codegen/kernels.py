"""Kernels held in memory: generate the module's text, compile it, and give its functions by name.

The only `exec` of the project is in `_load`, and it runs text that `emit` printed and nobody else wrote (see there).
Sympy is imported only when text has to be made: what `cache` remembers is loaded without it."""

from __future__ import annotations

import hashlib
import linecache
import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from elbotree.codegen import cache
from elbotree.runtime.activations import Activation
from elbotree.runtime.errors import InputError
from elbotree.runtime.storage import write_atomic


class Kernels:
    """A generated kernel module.

    source      its text
    psi         the `Activation` that it defines
    families    the posterior families that it knows
    evaluate    evaluate(law, problem) -> {"L": Estimate, ..., "U3": Estimate}
    gradient    gradient(law, problem) -> {"C": [...], "bias": [...], "B": ..., "offset": ..., "noise_std": ..., ...}
    mean, variance, kl, ...   the integrands' builders

    `kernels["T2"]` is the function of node T2; `kernels.write(path)` saves the text, `kernels.explain()` says what the
    algebra made of it.
    """

    def __init__(self, source: str, families: tuple[str, ...]) -> None:
        self.source = source
        self.families = families
        self._module = _load(source)
        self.psi: Activation = self._module.PSI
        self.evaluate: Callable[..., dict[str, Any]] = self._module.evaluate
        self.gradient: Callable[..., dict[str, Any]] = self._module.gradient

    def __getitem__(self, name: str) -> Callable[..., Any]:
        nodes: tuple[str, ...] = self._module.NODES
        if name not in nodes:
            raise KeyError(f"no node {name!r}; the nodes are {', '.join(nodes)}")
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

    def explain(self) -> str:
        """What putting in psi and the families made of the tree: what was found about psi, and for every leaf its joint
        law and its operations before and after (`elbotree.derivation.specialise`)."""
        from elbotree.derivation.specialise import specialise
        from elbotree.derivation.tree import derive

        return str(specialise(derive(), self.psi.text, self.families))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Save the module's text, whole or not at all. Raises InputError where the place cannot be written to."""
        write_atomic(Path(path), self.source.encode("utf-8"))


def _load(source: str) -> ModuleType:
    """Compile and run generated text as a module; its source stays reachable through linecache, without a file.

    Why exec is safe here: the text comes from `emit.module_source` (or `psi_section`), printed from sympy expressions
    by our own printer, in this process or by way of `cache` (which says why what it returns can be trusted). What a user
    gives, psi's text and names of families, gets there only as sympy expressions parsed by a whitelist grammar, or as
    names found in our registries.
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
    names = [family] if isinstance(family, str) else list(family)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"`family` holds {name!r}; it must be the name of a posterior family, or several names")
    if not names:
        raise InputError("`family` is empty; give the name of a posterior family, or several")
    return _generate(" ".join(text.split()), tuple(sorted(set(names))))


@lru_cache(maxsize=128)
def _generate(psi: str, families: tuple[str, ...]) -> Kernels:
    if _registered(psi, families):  # a name registered by a user may mean something else in the next process
        return Kernels(source_of(psi, families), families)
    text = cache.remembered(lambda: source_of(psi, families), "kernels", psi, *families)
    return Kernels(text, families)


def source_of(psi: str, families: Sequence[str]) -> str:
    """The text of a kernel module, made anew from the derivation."""
    from elbotree import __version__
    from elbotree.codegen.emit import module_source
    from elbotree.derivation.activations import analyse
    from elbotree.derivation.families import get_family
    from elbotree.derivation.tree import derive

    for name in families:
        get_family(name)  # raises for an unknown name, naming the nearest known one
    analyse(psi)
    return module_source(derive(), psi, tuple(families), __version__)


def _registered(psi: str, families: Sequence[str] = ()) -> bool:
    """Whether a user gave one of the names its meaning. Nobody has where the registries are not even loaded."""
    activations, known = (sys.modules.get(f"elbotree.derivation.{module}") for module in ("activations", "families"))
    own = activations is not None and activations.is_registered_by_user(psi)
    return own or (known is not None and any(known.is_registered_by_user(name) for name in families))


@lru_cache(maxsize=256)
def compile_psi(text: str) -> Activation:
    """The `Activation` of psi's text: its value and derivative as compiled numpy functions, with its breaks and poles.

    Raises InputError for text that the grammar refuses.
    """
    if not isinstance(text, str):
        raise InputError(f"psi must be text, got {type(text).__name__}; write a name like 'relu' or an expression in b")
    text = " ".join(text.split())  # a text of several lines becomes a literal of one

    def make() -> str:
        from elbotree.codegen.functions import psi_section

        header = "import numpy as np\nfrom scipy import special\n\nfrom elbotree import runtime as rt\n\n\n"
        return header + psi_section(text)

    source = make() if _registered(text) else cache.remembered(make, "psi", text)
    activation: Activation = _load(source).PSI
    return activation
