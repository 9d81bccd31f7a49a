"""Tuning: the same procedure and the same number of runs for every optimizer, on one seed that no study uses.

Three rounds. The first spreads its runs evenly over all of the space (Sobol); each next one looks around the best so far,
half as far.
"""

import json
import math
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from scipy.stats import qmc

from .lab import Lab
from .optimizers import FAMILIES, Family, Range
from .training import Run, Setting

ROUNDS = 3
RUNS_PER_ROUND = 8
SEED = 100
STEPS = 500

HERE = pathlib.Path(__file__).parent
RECORDS = HERE / "searches.jsonl"
CHOSEN = HERE / "tuned.json"


def tune(lab: Lab, family: str) -> dict[str, float]:
    """The numbers of the best run, by its loss on the validation text."""
    kind = FAMILIES[family]
    best, numbers = math.inf, {}
    centre, width = [0.5] * _dimensions(kind), 1.0
    for turn in range(ROUNDS):
        points = qmc.Sobol(_dimensions(kind), seed=zlib.crc32(f"{family} {turn}".encode())).random(RUNS_PER_ROUND)
        found = None
        for point in points:
            place = [min(max(c + width * (p - 0.5), 0.0), 1.0) for c, p in zip(centre, point, strict=True)]
            tried = _at(kind, place)
            loss = lab.run(Run(Setting(), family, tried, STEPS, SEED)).validation
            if loss < best:
                best, numbers, found = loss, tried, place
        centre, width = found or centre, width / 2
    return numbers


def tuned() -> Mapping[str, Mapping[str, float]]:
    """The numbers of each optimizer, as the recorded searches found them."""
    return json.loads(CHOSEN.read_text())


def write(lab: Lab) -> None:
    """Keeps what searches found, of those that are complete."""
    chosen: dict[str, Any] = {family: tune(lab, family) for family in FAMILIES}
    CHOSEN.write_text(json.dumps(chosen, indent=2) + "\n")


def _dimensions(kind: Family) -> int:
    return len(kind.space) + len(kind.static)


def _at(kind: Family, place: list[float]) -> dict[str, float]:
    continuous = [_within(space, x) for space, x in zip(kind.space.values(), place[: len(kind.space)], strict=True)]
    choices = kind.static.values()
    chosen = [of[min(int(x * len(of)), len(of) - 1)] for of, x in zip(choices, place[len(kind.space) :], strict=True)]
    return dict(zip([*kind.space, *kind.static], [*continuous, *chosen], strict=True))


def _within(space: Range, x: float) -> float:
    low, high = (1 - space.low, 1 - space.high) if space.of_rest else (space.low, space.high)
    value = math.exp(math.log(low) + x * (math.log(high) - math.log(low)))
    # Four digits are as many as anybody would type.
    return float(f"{1 - value if space.of_rest else value:.4g}")
