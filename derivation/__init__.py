"""The symbolic side of elbotree: the loss derived from the ELBO as a tree of sympy expressions, its gradient, the
closed-form minimisers, and renderers. Nothing numeric happens here, and nothing here is imported by the runtime.

    >>> from elbotree.derivation import derive
    >>> tree = derive()
    >>> tree.leaves
    ('R1', 'R2', 'S1', 'T2', 'T3', 'U1', 'U2', 'U3')
"""

from __future__ import annotations

from elbotree.derivation.tree import JointLaw, LossTree, Node, Step, derive

__all__ = ["JointLaw", "LossTree", "Node", "Step", "derive"]
