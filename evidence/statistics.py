"""Means and intervals of a few paired runs."""

import dataclasses
import math
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its confidence interval: Student's t, infinite for a single value."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of independent values."""
    count = len(values)
    mean = sum(values) / count
    if count < 2 or not math.isfinite(mean):
        return Interval(mean, math.inf)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return Interval(mean, float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count))


def difference(ones: Sequence[float], others: Sequence[float]) -> Interval:
    """Of the mean of ones - others, pair by pair."""
    return interval([one - other for one, other in zip(ones, others, strict=True)])
