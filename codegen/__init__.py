"""From the derived tree to numpy: lower a node's expression to calls of the runtime's engines (`lower`), print them
with psi's and the families' functions as a module (`emit`, `functions`), and hold it compiled in memory (`kernels`);
remember its text on disk (`cache`), and say whether a file still holds it (`check`)."""

from __future__ import annotations

from elbotree.codegen.check import check
from elbotree.codegen.kernels import Kernels, compile_psi, generate

__all__ = ["Kernels", "check", "compile_psi", "generate"]
