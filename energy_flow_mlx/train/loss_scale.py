"""Dynamic loss scaling: float16 gradients are kept out of the range where they vanish or overflow."""

from typing import NamedTuple

import mlx.core as mx

GROWTH_INTERVAL = 2000  # steps in a row without an overflow before the scale doubles
LARGEST_SCALE = 2.0**24


class LossScale(NamedTuple):
    """State of the scaling, as arrays: it changes without a look at the numbers.

    scale []: what the loss is multiplied by; good [] int32: steps since it last changed; skipped [] int32: steps whose gradients
    overflowed and that were left out.
    """

    scale: mx.array
    good: mx.array
    skipped: mx.array

    @classmethod
    def start(cls, scale: float, good: int = 0, skipped: int = 0) -> "LossScale":
        """The state with these values."""
        return cls(mx.array(scale, dtype=mx.float32), mx.array(good, dtype=mx.int32), mx.array(skipped, dtype=mx.int32))

    def after(self, finite: mx.array) -> "LossScale":
        """The state after a step: halved if its gradients were not `finite` [], doubled after GROWTH_INTERVAL good ones."""
        good = mx.where(finite, self.good + 1, 0)
        grow = good >= GROWTH_INTERVAL
        scale = mx.where(finite, mx.where(grow, self.scale * 2.0, self.scale), self.scale / 2.0)
        return LossScale(mx.minimum(scale, LARGEST_SCALE), mx.where(grow, 0, good), self.skipped + ~finite)
