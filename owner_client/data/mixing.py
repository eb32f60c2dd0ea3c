"""Private sequences with a share of public ones mixed in; which is which follows from the seed and the sequence's number alone."""

from __future__ import annotations

import numpy as np

from common.errors import UsageError
from common.textdata.packing import Batch, PackedSequences, make_batch

__all__ = ["MixedSequences"]

_STREAM = 0x6D6978  # keeps these draws apart from the packing's, which use the same seed


class MixedSequences:
    """The sequences of a whole run, ``total`` of them; each is public with probability ``public_share``.

    Args:
        private: the owner's sequences.
        public: public sequences; None only with a share of 0.
        public_share: between 0 and 1.
        seed: of the draws.
        total: sequences of the run; a longer run begins with the same ones.

    Raises:
        UsageError: a share above 0 without public sequences, or not between 0 and 1.
    """

    def __init__(self, private: PackedSequences, public: PackedSequences | None, *, public_share: float, seed: int, total: int) -> None:
        if not 0 <= public_share < 1:
            raise UsageError("The public share must be at least 0 and below 1.")
        if public is None and public_share > 0:
            raise UsageError("The anchor brings no sample of public text to mix in; use a public share of 0.")
        self._private = private
        self._public = public
        draws = np.random.Generator(np.random.PCG64([seed, _STREAM])).random(total)
        self._is_public = draws < public_share
        self._public_before = np.concatenate(([0], np.cumsum(self._is_public)))

    def batch(self, step: int, size: int) -> Batch:
        """The batch of ``size`` sequences of step ``step``, counted from 0."""
        windows = []
        for number in range(step * size, (step + 1) * size):
            public_before = int(self._public_before[number])
            if self._public is not None and self._is_public[number]:
                windows.append(self._public.window(public_before))
            else:
                windows.append(self._private.window(number - public_before))
        return make_batch(windows)
