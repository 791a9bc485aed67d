"""Steps of a mixture of experts that take longer or shorter by what its experts are asked: a factor on the step time, drawn for each segment.

Tokens choose experts, so that the busiest rank of a step has more or less than in the mean. The calibrations hold the mean; what is drawn here has mean 1
and a coefficient of variation `cv` from step to step. A segment of n steps alike takes the mean of n draws:

    factor = 1 + cv / sqrt(n) * z,   z normal, cut to -3 ... 3

The draw is a function of (seed, replica, epoch, segment), so that nothing depends on the order in which replicas are played. Integers stay under 2**63,
and only scalar functions of the C library are used: the same bits in Python and compiled.
"""

import math
from dataclasses import dataclass
from typing import Final

LOW_32: Final = 0xFFFFFFFF
MOST_SIGMA: Final = 3.0
MOST_CV: Final = 0.33
"""Below a third, so that no factor is zero or less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imbalance:
    """How uneven the steps of one start of a replica are, and which of all draws are its own."""

    cv: float
    seed: int = 0
    replica: int = 0  # a number that no other replica of the run has
    epoch: int = 1

    def factor(self, segment: int, steps: int) -> float:
        """The factor of the segment of this number, from 0, that has so many steps.

        >>> uneven = Imbalance(cv=0.1, seed=7)
        >>> [round(uneven.factor(n, 1), 3) for n in range(3)], round(uneven.factor(0, 100), 4)
        ([0.859, 0.873, 1.11], 0.9859)
        """
        if self.cv == 0.0:
            return 1.0
        return step_factor(self.cv, first_word(self.seed, self.replica, self.epoch), segment, steps)


def mixed(word: int) -> int:
    """A 32-bit word whose every bit depends on every bit of another (a xorshift-multiply finish, as splitmix64's, with 31-bit factors)."""
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & LOW_32
    word = ((word ^ (word >> 15)) * 0x6C8E9CF5) & LOW_32
    return word ^ (word >> 16)


def first_word(seed: int, replica: int, epoch: int) -> int:
    """What one start of a replica draws from."""
    word = mixed((seed & LOW_32) ^ 0x243F6A88)
    word = mixed(word ^ (replica & LOW_32))
    return mixed(word ^ (epoch & LOW_32))


def step_factor(cv: float, word: int, segment: int, steps: int) -> float:
    """The factor itself, by the transform of Box and Muller (1958)."""
    own = mixed(word ^ (segment & LOW_32))
    radius = (mixed(own ^ 0x13198A2E) + 0.5) / 4294967296.0
    angle = (mixed(own ^ 0x03707344) + 0.5) / 4294967296.0
    z = math.sqrt(-2.0 * math.log(radius)) * math.cos(2.0 * math.pi * angle)
    return 1.0 + cv / math.sqrt(steps) * min(max(z, -MOST_SIGMA), MOST_SIGMA)
