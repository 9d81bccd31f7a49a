"""What is on record is not done again; and what is made of it."""

import json
import math
import pathlib

import pytest
from conftest import small_run
from evidence import lab as labs
from evidence import page
from evidence.corpus import Corpus
from evidence.lab import Lab, Missing
from evidence.statistics import difference, interval
from evidence.training import Result

RESULT = Result(test=2.0, validation=math.inf, curve=[(1, 3.0), (6, math.inf)], step_ms=1.0, bad=1, refused={"non_finite": 1}, caught=1)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    done: list[object] = []

    def train(run: object, text: object) -> Result:
        del text
        done.append(run)
        return RESULT

    monkeypatch.setattr(labs, "train", train)
    return done


def test_a_run_is_done_once_and_read_again(tmp_path: pathlib.Path, text: Corpus, trained: list[object]) -> None:
    path = tmp_path / "records" / "runs.jsonl"
    first = Lab(path, text)
    assert first.run(small_run()) == first.run(small_run()) == RESULT
    assert Lab(path, text).run(small_run()) == Lab(path, text, read_only=True).run(small_run()) == RESULT
    assert len(trained) == 1
    Lab(path, text).run(small_run(seed=2))
    assert len(trained) == 2
    assert json.loads(path.read_text().splitlines()[0])["run"]["seed"] == 1


def test_half_a_line_of_a_killed_process_is_done_again(tmp_path: pathlib.Path, text: Corpus, trained: list[object]) -> None:
    path = tmp_path / "runs.jsonl"
    Lab(path, text).run(small_run())
    path.write_text(path.read_text()[:-20])
    assert Lab(path, text).run(small_run()) == RESULT
    assert len(trained) == 2
    assert Lab(path, text, read_only=True).run(small_run()) == RESULT


def test_what_is_not_on_record_is_missing(tmp_path: pathlib.Path, text: Corpus) -> None:
    with pytest.raises(Missing, match="adamw"):
        Lab(tmp_path / "none.jsonl", text, read_only=True).run(small_run())


def test_intervals() -> None:
    # t of 2 degrees of freedom at 97.5% is 4.302653.
    got = difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
    assert got.mean == pytest.approx(7 / 3)
    assert got.half == pytest.approx(4.302653 * math.sqrt(7 / 3) / math.sqrt(3), rel=1e-6)
    assert interval([1.0]).half == math.inf
    assert interval([1.0, math.inf]).mean == math.inf


def test_parts_of_the_page_are_found_by_their_names() -> None:
    text = "a\n<!-- begin steps -->\nold\n<!-- end steps -->\nb\n"
    assert page._replaced(text, "steps", r"new \1") == "a\n<!-- begin steps -->\n\nnew \\1\n\n<!-- end steps -->\nb\n"
    with pytest.raises(ValueError, match="begin time"):
        page._replaced(text, "time", "new")
