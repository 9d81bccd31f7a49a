"""Tuning: the same procedure and the same number of runs for every optimizer, on one seed that no study uses.

Three rounds. The first spreads its runs evenly over all of the space (Sobol); each next one looks around the best so far,
half as far.
"""

import functools
import json
import math
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

from scipy.stats import qmc

from .faults import Faults
from .lab import Lab
from .optimizers import FAMILIES, Family, Range
from .training import Result, Run, Setting

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
    centre, width = [0.5] * dimensions(kind), 1.0
    for turn in range(ROUNDS):
        points = qmc.Sobol(dimensions(kind), seed=zlib.crc32(f"{family} {turn}".encode())).random(RUNS_PER_ROUND)
        found = None
        for point in points:
            place = [min(max(c + width * (p - 0.5), 0.0), 1.0) for c, p in zip(centre, point, strict=True)]
            tried = at(kind, place)
            loss = lab.run(Run(Setting(), family, tried, STEPS, SEED)).validation
            if loss < best:
                best, numbers, found = loss, tried, place
        centre, width = found or centre, width / 2
    return numbers


def gate(lab: Lab, kind: str) -> dict[str, Any]:
    """The tables of the best gate of a kind: by its loss on the validation text, the mean of clean runs and of runs of which 8%
    of the batches are corrupted."""
    loss = lambda policy: sum(result.validation for of in gated(lab, policy) for result in of)
    return min(candidates(lab, kind), key=loss)


def candidates(lab: Lab, kind: str) -> list[dict[str, Any]]:
    """The tables of the gates of a kind that are tried."""
    return [_both(lab, votes) for votes in ("any", "all")] if kind == "both" else GATES[kind]


def gated(lab: Lab, policy: dict[str, Any]) -> tuple[list[Result], list[Result]]:
    """Clean and corrupted runs under a gate, by seed."""
    numbers = tune(lab, "adamw")
    of = lambda faults: [lab.run(Run(Setting(), "adamw", numbers, GATE_STEPS, seed, policy, faults)) for seed in GATE_SEEDS]
    return of(None), of(Faults(rate=0.08))


def norm_gate(multiple: float, warmup: int, deviations: float = 0.0, half_life: float = 100.0) -> dict[str, Any]:
    """The tables of a policy with this gate on the norm."""
    return {"gate": {"norm": {"multiple": multiple, "deviations": deviations, "half_life": half_life, "warmup": warmup}}}


def _band(width: float, warmup: int) -> dict[str, Any]:
    # A target that follows within tens of steps: entropy rises in these runs.
    gates = {"norm": {"enabled": False}, "entropy": {"enabled": True, "low": 1 - width, "high": 1 + width, "warmup": warmup}}
    return {"target": {"first": 20, "every": 20, "half_life": 50}, "gate": gates}


def _both(lab: Lab, votes: str) -> dict[str, Any]:
    norm, band = gate(lab, "norm")["gate"]["norm"], gate(lab, "entropy")
    return {**band, "gate": {**band["gate"], "norm": norm, "votes": votes}}


GATES = {
    "norm": [
        norm_gate(multiple, warmup, deviations, half_life)
        for warmup, deviations, half_life in ((20, 0.0, 100.0), (100, 0.0, 100.0), (20, 10.0, 100.0), (20, 12.0, 20.0))
        for multiple in (1.5, 2.0, 3.0)
    ],
    "entropy": [_band(width, warmup) for warmup in (20, 100) for width in (0.03, 0.05, 0.1)],
}
GATE_SEEDS = (SEED + 1, SEED + 2)
GATE_STEPS = 300


def write(lab: Lab) -> None:
    """Keeps what searches found: `tuned.json`."""
    optimizers = {family: tune(lab, family) for family in FAMILIES}
    gates = {kind: gate(lab, kind) for kind in (*GATES, "both")}
    CHOSEN.write_text(json.dumps({"optimizers": optimizers, "gates": gates}, indent=2) + "\n")


def tuned() -> Mapping[str, Mapping[str, float]]:
    """The numbers of each optimizer, as the recorded searches found them."""
    return _chosen()["optimizers"]


def gates() -> Mapping[str, Mapping[str, Any]]:
    """Tables of policies whose gates the recorded searches found: "norm", "entropy", "both"."""
    return _chosen()["gates"]


@functools.cache
def _chosen() -> Mapping[str, Any]:
    return json.loads(CHOSEN.read_text())


def dimensions(kind: Family) -> int:
    """How many numbers an optimizer is tuned by."""
    return len(kind.space) + len(kind.static)


def at(kind: Family, place: list[float]) -> dict[str, float]:
    """The numbers at a place in an optimizer's space, whose sides are 0 to 1."""
    continuous = [_within(space, x) for space, x in zip(kind.space.values(), place[: len(kind.space)], strict=True)]
    choices = kind.static.values()
    chosen = [of[min(int(x * len(of)), len(of) - 1)] for of, x in zip(choices, place[len(kind.space) :], strict=True)]
    return dict(zip([*kind.space, *kind.static], [*continuous, *chosen], strict=True))


def _within(space: Range, x: float) -> float:
    low, high = (1 - space.low, 1 - space.high) if space.of_rest else (space.low, space.high)
    value = math.exp(math.log(low) + x * (math.log(high) - math.log(low)))
    # Four digits are as many as anybody would type.
    return float(f"{1 - value if space.of_rest else value:.4g}")
