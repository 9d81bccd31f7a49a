"""What is asked of training runs, and which runs answer it.

Every study is a procedure for a `Lab`. Seeds are paired: runs with the same seed have the same initial parameters, batches and
faults, whatever optimizer, policy or length they have.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

from . import search
from .exported import Exported
from .faults import KINDS, Faults
from .healthy import TASKS, Healthy
from .lab import Lab, Missing
from .policies import Policy
from .timing import Timing
from .training import Guard, Result, Run, Setting

SEEDS = (1, 2, 3)
BUDGET = 500
# Steps to a loss are looked for on this grid: every twentieth of the budget.
GRID = 20
# Length of runs with faults, and of those at other sizes.
SHORT = 300


@dataclasses.dataclass(frozen=True)
class Arm:
    """An optimizer with what controls it.

    Attributes:
      title: in tables.
      family: the optimizer, with the numbers that were found for it.
      policy: the controller's; None is the plain step.
      guard: what stands beside it.
      changes: to the optimizer's numbers.
      factors: of the optimizer's numbers.
      timed: what its steps take is what these do, of `timing.TIMED`; of an arm without, steps to a loss are not looked for.
    """

    title: str
    family: str = "adamw"
    policy: Policy | None = None
    guard: Guard = "none"
    changes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    factors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    timed: str | None = None

    def run(self, steps: int, seed: int, setting: Setting, faults: Faults | None) -> Run:
        """One of its runs.

        Raises:
          Missing: the optimizer was not tuned.
        """
        found = search.tuned().get(self.family)
        if found is None:
            raise Missing(f"no search for {self.family} is on record: `python -m evidence search`")
        numbers = {**found, **self.changes}
        numbers |= {name: numbers[name] * factor for name, factor in self.factors.items()}
        return Run(setting, self.family, numbers, steps, seed, self.policy, faults, self.guard)


def spectral(k: float = 2.0, **others: Any) -> dict[str, Any]:
    """The default policy with updates of equal singular values."""
    return {"spectral": {"enabled": True, "k": k, **others}}


def _fixed_target(most: float) -> dict[str, Any]:
    # What article.toml has, with the article's fixed target and laws that act from the first steps on.
    laws = {"warmup": 0, "max": most, "rule": {"enabled": True, "momentum_max": most}, "micro": {"enabled": True}}
    return {"target": {"kind": "fixed", "value": 0.5}, "gate": {"norm": {"enabled": False}}, "laws": laws}


def _micro(factor: float) -> dict[str, Any]:
    # Below its target a tensor's ratio hardly ever is by a fifth; a law that is to act has to act on less.
    return {"laws": {"micro": {"enabled": True, "below": 1.0, "factor": factor}}}


def _switch(step: int) -> dict[str, Any]:
    return {"switch": {"enabled": True, "trigger": "step", "step": step}}


BASELINE = Arm("AdamW, tuned", timed="AdamW")
SPECTRAL = (
    Arm("AdamW + spectral, k = 1", policy=spectral(1.0), timed="AdamW + spectral"),
    Arm("AdamW + spectral, k = 2", policy="spectral", timed="AdamW + spectral"),
)
OTHERS = (
    Arm("Muon, tuned", "muon", timed="Muon"),
    Arm("schedule-free AdamW, tuned", "schedule-free", timed="schedule-free AdamW"),
    Arm("AdamW + reduce on plateau, tuned", "plateau", timed="AdamW + reduce on plateau"),
)
LAWS = (
    Arm("AdamW + default policy", policy="default"),
    Arm("AdamW + article.toml", policy="article"),
    Arm("AdamW + the article's laws, fixed target, bounds 100", policy=_fixed_target(100.0)),
    Arm("AdamW + the article's laws, fixed target, bounds 2", policy=_fixed_target(2.0)),
    Arm("AdamW + PI", policy={"laws": {"pi": {"enabled": True}}}),
    Arm("AdamW + micro, factor 1.15", policy=_micro(1.15)),
    Arm("AdamW + micro, factor 0.87", policy=_micro(0.87)),
    Arm("AdamW, SGD from half of the run on", policy=_switch(BUDGET // 2)),
    Arm("AdamW, SGD from four fifths of the run on", policy=_switch(BUDGET * 4 // 5)),
)
VARIANTS = (
    SPECTRAL[1],
    Arm("k = 4", policy=spectral(4.0)),
    Arm("`iterations = 3`", policy=spectral(iterations=3)),
    Arm("`iterations = 4`", policy=spectral(iterations=4)),
    Arm('`dtype = "bf16"`', policy=spectral(dtype="bf16")),
    Arm("`alpha = 0.5`", policy=spectral(alpha=0.5)),
    Arm("`target = 0.9`", policy=spectral(target=0.9)),
    # Embeddings keep theirs, which is a multiple of it.
    Arm("AdamW, learning rate doubled but for embeddings", factors={"learning_rate": 2.0, "embedding_multiple": 0.5}),
)
# Policies of an exported file, by what they are given to the program.
EXPORTED = (None, "default", "spectral")
EQUAL_STEPS = (BASELINE, *SPECTRAL, *OTHERS, *LAWS)


def one(lab: Lab, arm: Arm, seed: int) -> Result:
    """The result of a run of the whole budget."""
    return lab.run(arm.run(BUDGET, seed, Setting(), None))


def results(lab: Lab, arm: Arm, steps: int = BUDGET, setting: Setting = Setting(), faults: Faults | None = None) -> list[Result]:
    """The results of an arm, one for each seed."""
    return [lab.run(arm.run(steps, seed, setting, faults)) for seed in SEEDS]


def mean_test(of: Sequence[Result]) -> float:
    """Nats per byte, mean over seeds."""
    return mean(result.test for result in of)


def _smallest_length(goal: float, loss: Callable[[int], float]) -> int | None:
    """The smallest length on the grid whose loss is at most the goal; None if that of the whole budget is not.

    Each length is a run of its own, with a schedule that ends there. Found by bisection, which takes for granted that longer
    runs are no worse; that the next smaller length is not enough is measured.
    """
    # Of a loss that is no number, no comparison holds.
    if not loss(BUDGET) <= goal:
        return None
    short, enough = 0, GRID
    while enough - short > 1:
        middle = (short + enough) // 2
        if loss(BUDGET * middle // GRID) <= goal:
            enough = middle
        else:
            short = middle
    return BUDGET * enough // GRID


def steps_to_loss(lab: Lab, arm: Arm) -> int | None:
    """The smallest length whose mean test loss is at most the baseline's at its budget; None if none is."""
    return _smallest_length(mean_test(results(lab, BASELINE)), lambda steps: mean_test(results(lab, arm, steps)))


def exported(lab: Lab, policy: str | None, steps: int = BUDGET) -> list[float]:
    """What the program comes to with the baseline as a file, one loss for each seed."""
    numbers = search.tuned()[BASELINE.family]
    return [lab.exported(Exported(Setting(), numbers, steps, seed, policy)) for seed in SEEDS]


def exported_steps(lab: Lab) -> int | None:
    """`steps_to_loss` of an exported file under `spectral`."""
    return _smallest_length(mean(exported(lab, None)), lambda steps: mean(exported(lab, "spectral", steps)))


# Robustness.

CLEAN = Faults()
SPIKE = Faults(spike=30.0)
MAIN = "8% corrupted"
MIXED = {"2% corrupted": Faults(rate=0.02), MAIN: Faults(rate=0.08)}
HALF = Setting(compute="float16", loss_scale=2.0**13)
# Of a loss that is 100 times as large, gradients are beyond float16 at that scale.
OVERFLOWS = Faults(rate=0.08, kinds=("large",))
UNCLIPPED = {"clip": 1e9}


def guards() -> tuple[Arm, ...]:
    """What is compared under faults.

    Raises:
      Missing: gates were not looked for.
    """
    gates = search.gates()
    if not gates:
        raise Missing("no search for gates is on record: `python -m evidence search`")
    return (
        Arm("no clipping", changes=UNCLIPPED),
        Arm("no clipping + default policy", policy="default", changes=UNCLIPPED),
        Arm("clipping only"),
        Arm("clipping + optax.apply_if_finite", guard="finite"),
        Arm("clipping + default policy", policy="default"),
        Arm("clipping + article.toml", policy="article"),
        Arm("clipping + norm gate, tuned", policy=gates["norm"]),
        Arm("clipping + entropy band, tuned", policy=gates["entropy"]),
        Arm("clipping + both, tuned", policy=gates["both"]),
        Arm("clipping + an oracle", guard="oracle"),
    )


def conditions(full: bool) -> dict[str, tuple[Setting, Faults]]:
    """What goes wrong, by name; all of it, or what the main tables need."""
    mixed = MIXED if full else {name: faults for name, faults in MIXED.items() if name == MAIN}
    alone = {f"{rate:.0%} {kind}": Faults(rate=rate, kinds=(kind,)) for kind in KINDS for rate in (0.02, 0.08)} if full else {}
    everywhere = {"no faults": CLEAN, **mixed, "learning rate x30": SPIKE, **alone}
    return {**{name: (Setting(), faults) for name, faults in everywhere.items()}, "float16, 8% overflow": (HALF, OVERFLOWS)}


def under(lab: Lab, arm: Arm, condition: tuple[Setting, Faults]) -> list[Result]:
    """The results of an arm when this goes wrong."""
    setting, faults = condition
    return results(lab, arm, SHORT, setting, faults)


def robustness(lab: Lab, arm: Arm, full: bool) -> None:
    """All of an arm's runs with faults."""
    for condition in conditions(full).values():
        under(lab, arm, condition)


# Health.

# Gates that a default could have: by a multiple of the mean alone, and with deviations from it.
GATES = (
    search.norm_gate(2.0, 20), search.norm_gate(3.0, 20), search.norm_gate(3.0, 100),
    search.norm_gate(2.0, 20, 10.0), search.norm_gate(2.0, 20, 12.0, 20.0),
)  # fmt: skip


def health(lab: Lab, task: str) -> list[int]:
    """How many steps each of `GATES` refuses of healthy training of a kind, all seeds together."""
    return [sum(lab.healthy(Healthy(task, seed, gate)) for seed in SEEDS) for gate in GATES]


# Scale.

SIZES = {"48 wide, 2 layers": Setting(layers=2, width=48, heads=2), "96 wide, 3 layers": Setting(), "192 wide, 4 layers": Setting(layers=4, width=192, heads=6)}
# Factors of the base setting's learning rate, the square root of two apart.
RATES = (0.125, 0.18, 0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)
SIZED = (BASELINE, *SPECTRAL)


def rate_for(lab: Lab, setting: Setting) -> float:
    """The factor of the base setting's learning rate that is best for AdamW at another size, on the seed of searches: better
    than the next smaller and the next larger one.
    """

    def loss(at: int) -> float:
        arm = Arm("", factors={"learning_rate": RATES[at]})
        return lab.run(arm.run(SHORT, search.SEED, setting, None)).validation

    best = RATES.index(1.0)
    while True:
        nearby = [at for at in (best - 1, best, best + 1) if 0 <= at < len(RATES)]
        better = min(nearby, key=loss)
        if better == best:
            return RATES[best]
        best = better


def scale(lab: Lab, name: str, arm: Arm) -> list[Result]:
    """One of `SIZED` at a size, with a learning rate that is tuned for the baseline at that size."""
    setting = SIZES[name]
    factors = {"learning_rate": rate_for(lab, setting)}
    return results(lab, dataclasses.replace(arm, factors=factors), SHORT, setting)


# Time.

TIMED = (Timing(Setting()), Timing(Setting(rows=128)))


def time(lab: Lab, timing: Timing) -> dict[str, list[float]]:
    """Milliseconds of a step by round, of each of `timing.TIMED`."""
    return lab.time(timing, search.tuned())


def ratios(times: Mapping[str, Sequence[float]], name: str) -> list[float]:
    """What a step takes over what AdamW's plain one does in the same round."""
    return [one / plain for one, plain in zip(times[name], times["AdamW"], strict=True)]


def time_to(lab: Lab, arm: Arm, steps: int) -> float:
    """Time of so many steps of a timed arm over that of the baseline's budget. Steps are timed at the study's batch."""
    return steps / BUDGET * median(ratios(time(lab, TIMED[0]), arm.timed))


Task = tuple[Any, tuple[Any, ...]]


def first_tasks(full: bool) -> Iterator[Task]:
    """What other tasks look at."""
    for setting in reversed(SIZES.values() if full else ()):
        yield rate_for, (setting,)
    for seed in SEEDS:
        yield one, (BASELINE, seed)
    yield exported, (None,)


def tasks(full: bool) -> Iterator[Task]:
    """All else, the longest first; timings are not among them, since they need the machine for themselves.

    Args:
      full: whether sizes and all conditions are among them, which the main tables do without.
    """
    for arm in (*SPECTRAL, *OTHERS):
        yield steps_to_loss, (arm,)
    for arm in LAWS:
        yield results, (arm,)
    for arm in guards():
        yield robustness, (arm, full)
    for name in TASKS:
        yield health, (name,)
    for arm in VARIANTS if full else ():
        yield results, (arm,)
    for name in reversed(SIZES if full else ()):
        for arm in SIZED:
            yield scale, (name, arm)
    yield exported, ("default",)
    # The whole budget under `spectral` is the first length that it asks for.
    yield exported_steps, ()
