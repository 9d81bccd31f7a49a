"""Several processes on one machine, CPU devices and gloo: the same bits everywhere, errors where one dies, and restarts.

Of two addends the order is of no account, so that two processes must come to the bits of one process with two devices. With
four devices gloo adds in another order than one process does, with or without control (the plain step differs as well); there the
plain step of the same processes is what must be met.
"""

import json
import pathlib
import socket
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
STEPS = 6
LIMIT = 300


def start(folder, processes, devices, split, *flags, **more):
    """Starts so many workers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def one(process):
        out = folder / f"{process}.json"
        given = {"process": process, "processes": processes, "devices": devices, "port": port, "steps": STEPS, "split": split}
        options = [f"--{name}={value}" for name, value in (given | {"out": out} | more).items()]
        command = [sys.executable, str(HERE / "worker.py"), *options, *flags]
        return out, subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    folder.mkdir()
    return [one(process) for process in range(processes)]


def finish(workers):
    """Waits for all of them: what each said, its exit code, and what it recorded of each step."""
    said, codes, records = [], [], []
    try:
        for out, worker in workers:
            said.append(worker.communicate(timeout=LIMIT)[0])
            codes.append(worker.returncode)
            records.append(json.loads(out.read_text()) if out.exists() else {})
    finally:
        for _, worker in workers:
            worker.kill()
    return said, codes, records


def done(workers):
    """What they recorded, by step: losses, and digests of all devices in order. None of them may fail."""
    said, codes, records = finish(workers)
    assert not any(codes), "\n".join(said)
    merged = {}
    for step in records[0]:
        merged[step] = {"loss": {record[step]["loss"] for record in records}}
        for what in records[0][step].keys() - {"loss"}:
            shards = {int(device): sha for record in records for device, sha in record[step][what].items()}
            merged[step][what] = [shards[device] for device in sorted(shards)]
    return merged


@pytest.mark.parametrize("split", ["data", "fsdp"])
def test_two_processes_come_to_the_bits_of_one(tmp_path, split):
    alone = done(start(tmp_path / "one", 1, 2, split))
    assert len(alone) == STEPS and all(len(found["step"]) == 2 for found in alone.values())
    assert done(start(tmp_path / "two", 2, 2, split)) == alone


@pytest.mark.parametrize(("processes", "split"), [(2, "fsdp"), (4, "data"), (4, "fsdp")])
def test_the_plain_step_of_the_same_processes_has_the_same_bits(tmp_path, processes, split):
    records = done(start(tmp_path / "all", processes, 4, split, "--beside"))
    assert len(records) == STEPS
    for found in records.values():
        assert found["step"] == found["plain"] and len(found["step"]) == 4
        # What the controller holds and says is alike everywhere, and so is the loss.
        assert len(set(found["control"])) == len(found["loss"]) == 1
        if split == "data":
            assert len(set(found["step"])) == 1


@pytest.mark.parametrize(("processes", "split"), [(2, "data"), (4, "fsdp")])
def test_a_killed_process_is_an_error_everywhere_and_a_restart_goes_on_bit_for_bit(tmp_path, processes, split):
    whole = done(start(tmp_path / "whole", processes, 4, split))
    saved = {"checkpoints": tmp_path / "checkpoints"}
    said, codes, _ = finish(start(tmp_path / "killed", processes, 4, split, **saved, die=3))
    assert all(codes), codes
    for text in said[:-1]:
        assert any(word in text.lower() for word in ("gloo", "heartbeat", "coordination", "connection")), text
    rest = done(start(tmp_path / "again", processes, 4, split, **saved))
    assert rest == {step: whole[step] for step in ("3", "4", "5")}
