"""docs/evidence.md: its tables and pictures, from records. The text between them is written by hand."""

import math
import pathlib
import re
import statistics as plain_statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from . import search, studies
from .healthy import STEPS, TASKS
from .lab import Lab, Missing
from .optimizers import FAMILIES
from .statistics import Interval, difference
from .studies import BASELINE, BUDGET, EQUAL_STEPS, SEEDS, Arm
from .training import Result

T = TypeVar("T")

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "evidence.md"
PICTURES = PAGE.with_suffix("")

# Of Okabe and Ito: told apart by everybody, and in grey.
COLOURS = ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#F0E442", "#999999")


NOT_YET = "not on record yet"
NOT_ASKED = "Not on record: of `make evidence FULL=1`.\n"


def write(lab: Lab, full: bool) -> bool:
    """Puts what is on record into the page. Returns whether all that was asked for is; what is not is said in its place."""
    text, complete = PAGE.read_text(), True
    for name, part in PARTS.items():
        asked = full or name not in FULL
        content = _found(lambda part=part: part(lab, full)) or (f"{NOT_YET.capitalize()}.\n" if asked else NOT_ASKED)
        complete &= NOT_YET not in content.lower()
        text = _replaced(text, name, content)
    PAGE.write_text(text)
    return complete


def _found(ask: Callable[[], T]) -> T | None:
    """What a procedure finds; None where something that it needs is not on record."""
    try:
        return ask()
    except Missing:
        return None


def _replaced(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{PAGE.name} has no part between `<!-- begin {name} -->` and `<!-- end {name} -->`")
    return pattern.sub(lambda match: f"{match[1]}\n{content.rstrip()}\n\n{match[2]}", text)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tuning(lab: Lab, full: bool) -> str:
    """What searches found."""
    del full
    tuned = search.tuned()
    names = list(dict.fromkeys(name for numbers in tuned.values() for name in numbers))
    rows = [[f"`{name}`", *(f"{numbers[name]:g}" if name in numbers else "" for numbers in tuned.values())] for name in names]
    missing = [family for family in FAMILIES if family not in tuned]
    remark = f"\nOf {', '.join(missing)}: {NOT_YET}.\n" if missing else ""
    return f"{_table(['', *tuned], rows)}{remark}\n{_gates(Lab(search.RECORDS, lab.text, read_only=True))}"


def _gates(lab: Lab) -> str:
    chosen, rows = search.gates(), []
    for kind in (*search.GATES, "both"):
        for policy in search.candidates(lab, kind):
            clean, faulty = search.gated(lab, policy)
            losses = [sum(result.validation for result in of) / len(of) for of in (clean, faulty)]
            mark = " **chosen**" if policy == chosen.get(kind) else ""
            counts = [f"{_refusals(clean)} of {len(clean) * search.GATE_STEPS}", _caught(faulty)]
            rows.append([f"{_gate(policy)}{mark}", *(f"{loss:.4f}" for loss in losses), *counts])
    head = ["gate", "clean", "8% corrupted", "steps not applied, clean", "8% corrupted: not applied, of those corrupted"]
    return f"Gates, with validation losses of two seeds of 300 steps:\n\n{_table(head, rows)}"


def _gate(policy: Mapping[str, Any]) -> str:
    norm, entropy = policy["gate"]["norm"], policy["gate"].get("entropy")
    deviations = f", {norm['deviations']:g} deviations, half-life {norm['half_life']:g}" if norm.get("deviations") else ""
    parts = [f"norm {norm['multiple']:g} x{deviations} after {norm['warmup']}"] if "multiple" in norm else []
    if entropy:
        parts.append(f"entropy {entropy['low']:g} to {entropy['high']:g} after {entropy['warmup']}")
    return f" {policy['gate'].get('votes', '')} ".join(parts)


def steps(lab: Lab, full: bool) -> str:
    """The study of equal steps, and of steps to the baseline's loss."""
    del full
    baseline = studies.results(lab, BASELINE)
    head = ["", "test loss", "difference", "perplexity per byte", "steps to the first row's loss", "time to it", "steps not applied"]
    rows = []
    for arm in EQUAL_STEPS:
        got = _found(lambda arm=arm: studies.results(lab, arm))
        if got is None:
            rows.append([arm.title, NOT_YET, *[""] * (len(head) - 2)])
            continue
        compared = ("", "") if arm is BASELINE else _compared(got, baseline)
        rows.append([arm.title, _loss(got), *compared, *_reached(lab, arm), _refused(got)])
    _curves(PICTURES / "curves.svg", lab)
    return f"{_table(head, rows)}\n![Learning curves](evidence/curves.svg)\n"


def _reached(lab: Lab, arm: Arm) -> tuple[str, str]:
    """Steps and time to the baseline's loss."""
    if arm.timed is None:
        return "", ""
    if arm is BASELINE:
        return _length(BUDGET), "100%"
    try:
        steps = studies.steps_to_loss(lab, arm)
    except Missing:
        return NOT_YET, ""
    return _length(steps), "" if steps is None else _found(lambda: f"{studies.time_to(lab, arm, steps):.0%}") or NOT_YET


def _length(steps: int | None) -> str:
    return f"more than {BUDGET}" if steps is None else f"{steps} ({steps / BUDGET:.0%})"


def exported(lab: Lab, full: bool) -> str:
    """The study of an exported file."""
    del full
    plain = studies.exported(lab, None)
    rows = []
    for policy in studies.EXPORTED:
        got = studies.exported(lab, policy)
        option = "--no-control" if policy is None else f"--policy {policy}"
        change = difference(got, plain)
        compared = ["", ""] if policy is None else [_signed(change), _perplexity(change)]
        needed = _length(BUDGET) if policy is None else ""
        if policy == "spectral":
            needed = _found(lambda: _length(studies.exported_steps(lab))) or NOT_YET
        rows.append([f"`{option}`", f"{plain_statistics.mean(got):.4f}", *compared, needed])
    return _table(["`entropic train`", "held-out loss", "difference", "perplexity per byte", "steps to the first row's loss"], rows)


def robustness(lab: Lab, full: bool) -> str:
    """The study of faults."""
    arms, asked = studies.guards(), studies.conditions(full)
    got = {
        (arm.title, name): _found(lambda arm=arm, condition=condition: studies.under(lab, arm, condition))
        for arm in arms
        for name, condition in studies.conditions(True).items()
    }
    conditions = [name for name in studies.conditions(True) if name in asked or all(got[arm.title, name] for arm in arms)]
    oracles = {name: got[arms[-1].title, name] for name in conditions}
    parts = []
    for title, cell in (
        ("Test loss, and against the oracle's:", lambda of, name: _against(of, oracles[name])),
        ("Steps not applied in all three runs, and how many of those had a corrupted batch:", lambda of, name: _caught(of)),
    ):
        of = lambda arm, name, cell=cell: NOT_YET if got[arm.title, name] is None else cell(got[arm.title, name], name)
        rows = [[arm.title, *(of(arm, name) for name in conditions)] for arm in arms]
        parts.append(f"{title}\n\n{_table(['', *conditions], rows)}")
    return "\n".join(parts)


def health(lab: Lab, full: bool) -> str:
    """The study of healthy training of other kinds."""
    del full
    rows = []
    for task in TASKS:
        got = _found(lambda task=task: studies.health(lab, task))
        rows.append([task, *([NOT_YET] * len(studies.GATES) if got is None else map(str, got))])
    return _table([f"steps not applied, of {len(SEEDS) * STEPS}", *map(_gate, studies.GATES)], rows)


def scale(lab: Lab, full: bool) -> str:
    """The study of sizes."""
    del full
    rows = []
    for name, setting in studies.SIZES.items():
        baseline = studies.scale(lab, name, BASELINE)
        factor = studies.rate_for(lab, setting)
        for arm in studies.SIZED:
            got = studies.scale(lab, name, arm)
            compared = ("", "") if arm is BASELINE else _compared(got, baseline)
            rows.append([name, f"{factor:g}", arm.title, _loss(got), *compared])
    return _table(["model", "learning rate, times the base's", "", "test loss", "difference", "perplexity per byte"], rows)


def variants(lab: Lab, full: bool) -> str:
    """The study of other values of what `spectral` has defaults for."""
    del full
    baseline = studies.results(lab, BASELINE)
    rows = [[BASELINE.title, _loss(baseline), "", ""]]
    for arm in studies.VARIANTS:
        got = studies.results(lab, arm)
        rows.append([arm.title, _loss(got), *_compared(got, baseline)])
    return _table(["", "test loss", "difference", "perplexity per byte"], rows)


def time(lab: Lab, full: bool) -> str:
    """What steps take."""
    del full
    rows = []
    for timing in studies.TIMED:
        times = studies.time(lab, timing)
        for name, of in times.items():
            low, middle, high = plain_statistics.quantiles(studies.ratios(times, name), n=4)
            median = plain_statistics.median(of)
            tokens = timing.setting.rows * timing.setting.context
            rows.append([f"{tokens}", name, f"{median:.1f} ms", f"{middle:.3f} ({low:.3f} to {high:.3f})"])
    return _table(["bytes per step", "", "a step", "over AdamW's"], rows)


PARTS: Mapping[str, Callable[[Lab, bool], str]] = {
    "tuning": tuning, "steps": steps, "exported": exported, "robustness": robustness, "health": health, "scale": scale, "variants": variants, "time": time,
}  # fmt: skip
# Parts that need more than the main runs.
FULL = ("scale", "variants")


def _tests(of: Sequence[Result]) -> list[float]:
    return [result.test for result in of]


def _loss(of: Sequence[Result]) -> str:
    mean = studies.mean_test(of)
    return f"{mean:.4f}" if math.isfinite(mean) else f"diverged ({sum(math.isinf(t) for t in _tests(of))} of {len(SEEDS)})"


def _compared(of: Sequence[Result], baseline: Sequence[Result]) -> tuple[str, str]:
    if not math.isfinite(studies.mean_test(of)):
        return "", ""
    change = difference(_tests(of), _tests(baseline))
    return _signed(change), _perplexity(change)


def _signed(change: Interval) -> str:
    return f"{change.mean:+.4f} ± {change.half:.4f}"


def _perplexity(change: Interval) -> str:
    return f"{_percent(change.mean)} ({_percent(change.low)} to {_percent(change.high)})"


def _percent(nats: float) -> str:
    return f"{math.expm1(nats):+.1%}"


def _against(of: Sequence[Result], oracle: Sequence[Result] | None) -> str:
    mean = studies.mean_test(of)
    if not math.isfinite(mean):
        return _loss(of)
    return f"{mean:.3f}" if oracle is None or of is oracle else f"{mean:.3f} ({mean / studies.mean_test(oracle) - 1:+.1%})"


def _refused(of: Sequence[Result]) -> str:
    return f"{_refusals(of)} of {len(of) * BUDGET}" if of[0].refused else ""


def _refusals(of: Sequence[Result]) -> int:
    return sum(sum(result.refused.values()) for result in of)


def _caught(of: Sequence[Result]) -> str:
    if not of[0].refused:
        return ""
    caught, bad = sum(result.caught for result in of), sum(result.bad for result in of)
    return f"{_refusals(of)}, {caught} of {bad}" if bad else f"{_refusals(of)}"


def _curves(path: pathlib.Path, lab: Lab) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    shown = (BASELINE, *studies.SPECTRAL, *studies.OTHERS)
    for arm, colour in zip(shown, COLOURS, strict=False):
        got = _found(lambda arm=arm: studies.results(lab, arm))
        if got is None:
            continue
        at = [step for step, _ in got[0].curve]
        losses = [[loss for _, loss in result.curve] for result in got]
        means = [sum(of) / len(of) for of in zip(*losses, strict=True)]
        axes.plot(at, means, color=colour, label=arm.title, linewidth=1.6)
        axes.fill_between(at, [min(of) for of in zip(*losses, strict=True)], [max(of) for of in zip(*losses, strict=True)], color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel="validation loss, nats per byte")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    # Without a date, so that the same records make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "entropic"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
