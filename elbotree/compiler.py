"""Importing this module hands the runtime the compiler of psi's text. The runtime may not import sympy itself, so every
module of the front door that makes layers imports this one; codegen is imported only when some psi is first needed.
"""

from __future__ import annotations

from elbotree.runtime.activations import Activation, set_compiler


def _compile_psi(text: str) -> Activation:
    from elbotree.codegen import compile_psi

    return compile_psi(text)


def _definition(text: str) -> str:
    from elbotree.derivation.activations import definition

    return definition(text)


set_compiler(_compile_psi, _definition)
