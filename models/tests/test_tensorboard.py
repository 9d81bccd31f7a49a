"""`entropic report --tensorboard` writes what TensorBoard's own reader takes. The program is found as in test_hlo_text.py."""

import json
import math
import subprocess

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_hlo_text import PROGRAM

TENSORS = ["params['w']", "<b>"]


def record(step):
    control = {
        "entropy": 0.5 + step / 100, "smoothed": 0.5, "target": None if step < 3 else 0.25, "norm": 2.0, "norm_threshold": None,
        "gate": None, "rearmed": False, "calibrated": False, "stop": False, "accepted": step + 1, "non_finite": 0,
        "refused_norm": step // 2, "refused_low": 0, "refused_high": 0, "rearmings": 0, "ratio": None, "lr_scale": 0.5,
        "momentum_scale": 1.0, "tensor_entropy": [0.25, None if step == 4 else 0.75], "tensor_norm": [1.0, 1.0],
        "tensor_scale": [1.0, 1.0], "tensor_momentum": [],
    }
    return {"step": step, "loss": None if step == 7 else 4.0 - step / 8, "seconds": step / 10, **control}


@pytest.fixture
def events(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    document = {"format_version": 1, "model": "m", "policy": None, "tensors": TENSORS, "loss_unit": "nats"}
    (run / "run.json").write_text(json.dumps(document))
    (run / "metrics.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in range(10)))
    subprocess.run([PROGRAM, "report", run, "--tensorboard", tmp_path / "events"], check=True)
    read = EventAccumulator(str(tmp_path / "events"), size_guidance={"scalars": 0})
    read.Reload()
    return read


def test_every_step_and_tag_is_read_back(events):
    assert {"loss", "entropy", "entropy/target", "norm", "scale/learning_rate", "gate/norm"} <= set(events.Tags()["scalars"])
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == list(range(10))
    assert [event.value for event in losses if event.step != 7] == [4.0 - step / 8 for step in range(10) if step != 7]
    assert math.isnan(losses[7].value)
    assert losses[9].wall_time - losses[0].wall_time == pytest.approx(0.9, abs=1e-5)
    assert [event.step for event in events.Scalars("entropy/target")] == list(range(3, 10))
    assert [event.value for event in events.Scalars("gate/norm")] == [step // 2 for step in range(10)]
    assert {event.value for event in events.Scalars("scale/learning_rate")} == {0.5}


def test_tensors_go_by_their_names_and_gaps_are_left_out(events):
    assert [event.value for event in events.Scalars("tensor/params['w']")] == [0.25] * 10
    assert [event.step for event in events.Scalars("tensor/<b>")] == [step for step in range(10) if step != 4]
