"""Which runs answer a question, and what is said where they are not on record."""

import math
import pathlib
from typing import Any

import pytest
from evidence import page, studies, timing
from evidence.corpus import Corpus
from evidence.lab import Lab, Missing
from evidence.training import Result, Run, Setting


@pytest.mark.parametrize("enough", [25, 275, 300, 475, 500])
def test_the_smallest_length_on_the_grid_is_found(enough: int) -> None:
    asked: list[int] = []

    def loss(steps: int) -> float:
        asked.append(steps)
        return 500.0 - steps

    assert studies._smallest_length(500.0 - enough, loss) == enough
    assert enough in asked
    assert enough == 25 or enough - studies.BUDGET // studies.GRID in asked, "that the next smaller one is not enough is measured"


def test_no_length_is_enough_where_the_budget_is_not() -> None:
    assert studies._smallest_length(1.0, lambda steps: 1.5) is None
    assert studies._smallest_length(1.0, lambda steps: float("nan")) is None


def test_time_is_compared_within_a_round() -> None:
    assert studies.ratios({"AdamW": [2.0, 4.0], "Muon": [3.0, 4.0]}, "Muon") == [1.5, 1.0]


def test_steps_of_every_arm_are_timed() -> None:
    assert {arm.timed for arm in (studies.BASELINE, *studies.SPECTRAL, *studies.OTHERS)} <= set(timing.TIMED)


def test_the_files_that_a_table_shows_are_trained() -> None:
    done = [args for procedure, args in (*studies.first_tasks(False), *studies.tasks(False)) if procedure is studies.exported]
    assert {policy for (policy,) in done} | {"spectral"} == set(studies.EXPORTED)
    assert (studies.exported_steps, ()) in studies.tasks(False)


def test_the_main_tables_do_without_what_full_adds() -> None:
    main, everything = studies.conditions(False), studies.conditions(True)
    assert main.items() <= everything.items()
    assert [name for name in everything if name in main] == list(main)
    sizes = [args for procedure, args in studies.tasks(True) if procedure is studies.scale]
    assert sizes and not any(procedure is studies.scale for procedure, _ in studies.tasks(False))


@pytest.mark.parametrize("full", [False, True])
def test_what_was_not_asked_for_is_not_missed(tmp_path: pathlib.Path, text: Corpus, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    def missing(lab: Lab, full: bool) -> str:
        raise Missing("no run")

    parts: dict[str, Any] = {"steps": lambda lab, full: "a table", "scale": missing}
    path = tmp_path / "page.md"
    path.write_text("".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in parts))
    monkeypatch.setattr(page, "PAGE", path)
    monkeypatch.setattr(page, "PARTS", parts)
    complete = page.write(Lab(tmp_path / "none.jsonl", text, read_only=True), full)
    assert complete == (not full)
    assert ("FULL=1" in path.read_text()) == (not full)
    assert "a table" in path.read_text()


@pytest.mark.parametrize("best", [0.25, 1.0, 2.83, 4.0])
def test_a_learning_rate_is_better_than_those_next_to_it(best: float) -> None:
    base = studies.search.tuned()["adamw"]["learning_rate"]

    class Parabola:
        def run(self, run: Run) -> Result:
            distance = abs(math.log(run.numbers["learning_rate"] / (base * best)))
            return Result(test=0.0, validation=distance, curve=[], step_ms=0.0)

    assert studies.rate_for(Parabola(), Setting()) == best
