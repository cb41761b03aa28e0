"""Lattice sums of one feature as work for another process: what is handed out, and what comes back.

The counterpart of `pair_blocks` for the functions of one feature's parameters. Their series stay with the process that asks; a
worker gets axes and modes and gives back the sums of the `Frame`, the same bits as if they had been made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elbotree.runtime.frames import Axis, Frame, Sums
from elbotree.runtime.pair_blocks import BuiltLaw

Array = NDArray[np.float64]

# of a point of the lattice and a source: E e^{..}, with E f e^{..}, with E <f, v> f e^{..}
_SECONDS = 6e-9, 6e-9, 65e-9


@dataclass(frozen=True)
class Single:
    """A frame's axes (as they travel) and modes, and which of its sums are asked for: `order` of `Frame.sums`, `along` where
    that is 2."""

    axes: tuple[Axis, ...]
    modes: NDArray[np.int64]
    order: int
    along: Array | None

    @staticmethod
    def of(frame: Frame, order: int, along: Array | None) -> Single:
        return Single(tuple(axis.travelling() for axis in frame.axes), frame.modes, order, along)

    def made(self, law: BuiltLaw) -> Sums:
        """The sums, under a law."""
        data = law.data
        frame = Frame(law.linear, law.transform, data.u, data.w, self.axes, self.modes, data.compiled)
        return frame.sums(self.order, self.along)


def seconds(frame: Frame, order: int) -> float:
    """About how long a frame's sums take."""
    lattice = frame.lattice
    return len(frame.modes) * lattice.columns * max(1, len(lattice.law.priors)) * _SECONDS[order]
