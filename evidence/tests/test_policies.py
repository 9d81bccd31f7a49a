"""What a record says of a policy."""

import json

import pytest
from evidence.policies import in_force


def test_what_is_left_out_is_the_defaults() -> None:
    default = in_force("default")
    assert set(default) == {"gate"}
    assert default["gate"]["norm"]["enabled"]
    assert in_force({}) == default
    assert in_force(None) is None
    assert json.dumps(in_force({"gate": {"max_pause": 50}})) == json.dumps(in_force({"gate": {"max_pause": 50.0}}))
    assert in_force({"gate": default["gate"]}) == default


def test_what_is_given_stands() -> None:
    got = in_force({"gate": {"norm": {"multiple": 7.0}}, "laws": {"micro": {"enabled": True}}})
    assert got["gate"]["norm"] == {**in_force("default")["gate"]["norm"], "multiple": 7.0}
    assert got["laws"]["micro"]["enabled"]
    assert {"factor", "below", "tensors"} <= set(got["laws"]["micro"])
    assert in_force({"laws": {"micro": {"tensors": {"*": {"factor": 0.5}}}}})["laws"]["micro"]["tensors"] == {"*": {"factor": 0.5}}


def test_policies_of_the_program() -> None:
    assert in_force("spectral")["spectral"]["k"] == 2.0
    assert not in_force("article")["gate"]["norm"]["enabled"]
    with pytest.raises(OSError, match="none-such"):
        in_force("none-such")
