"""What steps take, in turns in one process."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from .policies import in_force
from .training import Program, Setting, given_of, static_of

ROUNDS = 40
# What is timed: an optimizer, and a policy.
TIMED = {
    "AdamW": ("adamw", None),
    "AdamW + default policy": ("adamw", "default"),
    "AdamW + spectral": ("adamw", "spectral"),
    "Muon": ("muon", None),
    "schedule-free AdamW": ("schedule-free", None),
    "AdamW + reduce on plateau": ("plateau", None),
}


@dataclasses.dataclass(frozen=True)
class Timing:
    """Steps of a setting, under what `TIMED` names."""

    setting: Setting
    rounds: int = ROUNDS

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        timed = {name: (family, in_force(policy)) for name, (family, policy) in TIMED.items()}
        return {**dataclasses.asdict(self), "timed": timed}


def measure(timing: Timing, tuned: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """Milliseconds of each program's step, by round."""
    setting = timing.setting
    tokens = np.random.default_rng(0).integers(0, 256, (setting.rows, setting.context)).astype(np.int32)
    batch = {"inputs": tokens, "targets": tokens, "loss_scale": np.float32(1), "bad": np.bool_(False)}
    programs: dict[str, Callable[[], None]] = {}
    for name, (family, policy) in TIMED.items():
        program = Program(setting, family, static_of(family, tuned[family]), "none")
        programs[name] = _stepper(program, policy, batch, given_of(family, tuned[family], 1000, 1.0))
    times: dict[str, list[float]] = {name: [] for name in programs}
    for name in programs:
        programs[name](), programs[name]()
    for turn in range(timing.rounds):
        for name in list(programs)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            programs[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _stepper(program: Program, policy: Any, batch: Mapping[str, Any], numbers: Mapping[str, Any]) -> Callable[[], None]:
    state = program.start(0, numbers)
    controlled, ctl = (None, None) if policy is None else program.controlled(policy, numbers)

    def step() -> None:
        nonlocal state, ctl
        if controlled is None:
            *state, _ = program.plain(*state, batch, numbers)
        else:
            (*state, _), ctl, _ = controlled(ctl, *state, batch, numbers)
        jax.block_until_ready(state)

    return step
