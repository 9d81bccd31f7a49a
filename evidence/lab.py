"""Runs and their records: what was done already is not done again.

A procedure is a function that asks its `Lab` for results. The same procedure does runs, or, with a lab that only reads, makes a
table of what is there.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from . import exported, healthy
from .corpus import Corpus, read
from .exported import Exported
from .healthy import Healthy
from .timing import Timing, measure
from .training import Result, Run, train


# Other versions give other digits; results on record stay what they are.
_VERSIONS = {name: importlib.metadata.version(name) for name in ("entropic", "jax", "jaxlib", "optax")}


class Missing(Exception):
    """A result that a procedure needs is not on record."""


class Lab:
    """Does runs over a text, and keeps records of them in a file of JSON lines.

    Args:
      records: the file; it is made where it is not there.
      text: what is trained on.
      read_only: whether a run that is not on record is `Missing`, and not done.
    """

    def __init__(self, records: pathlib.Path, text: Corpus, read_only: bool = False):
        self.text = text
        self._path = records
        self._read_only = read_only
        self._known = dict(_read(records))

    def run(self, run: Run) -> Result:
        """The result of a run, done now if it was not done before.

        Raises:
          Missing: it is not on record, and this lab only reads.
        """

        def now() -> dict[str, Any]:
            start = time.monotonic()
            result = train(run, self.text)
            print(
                f"{run.family:13} {_name(run.policy):24.24} {run.steps:5} steps  seed {run.seed:3}  validation {result.validation:.4f}  "
                f"{time.monotonic() - start:5.0f} s",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            return _encoded(result)

        return _decoded(self._recorded("run", run, now))

    def exported(self, run: Exported) -> float:
        """The loss that the program comes to on an exported file, as `exported.train` has it; done now if it was not before.

        Raises:
          Missing: it was not, and this lab only reads.
        """
        return self._recorded("exported", run, lambda: exported.train(run, self.text))

    def healthy(self, run: Healthy) -> int:
        """How many steps of a run with nothing wrong were not applied; done now if it was not before.

        Raises:
          Missing: it was not, and this lab only reads.
        """
        return self._recorded("healthy", run, lambda: healthy.refused(run, self.text))

    def time(self, timing: Timing, tuned: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
        """Milliseconds of the steps that a timing is of, by round; measured now if they were not before.

        Raises:
          Missing: they were not, and this lab only reads.
        """
        return self._recorded("timing", timing, lambda: measure(timing, tuned))

    def _recorded(self, kind: str, question: Run | Exported | Healthy | Timing, answer: Callable[[], Any]) -> Any:
        asked = question.describe()
        key = hashlib.sha256(f"{self.text.digest} {json.dumps(asked, sort_keys=True)}".encode()).hexdigest()[:16]
        if key not in self._known:
            # Another process may have done it meanwhile.
            self._known = dict(_read(self._path))
        if key not in self._known:
            if self._read_only:
                raise Missing(f"not on record: {kind} {asked}")
            self._known[key] = answer()
            self._write({"key": key, "text": self.text.digest, "versions": _VERSIONS, kind: asked, "result": self._known[key]})
        return self._known[key]

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            # Several processes write to it, and one that was killed may have left half a line.
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            whole = end == 0 or os.pread(file.fileno(), 1, end - 1) == b"\n"
            file.write((b"" if whole else b"\n") + line.encode() + b"\n")


def _read(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        # The last line of a process that was killed can be half a line.
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            yield record["key"], record["result"]


def _encoded(result: Result) -> dict[str, Any]:
    values = dataclasses.asdict(result)
    for name in ("test", "validation"):
        values[name] = _number(values[name])
    values["curve"] = [(step, _number(loss)) for step, loss in values["curve"]]
    values["step_ms"] = round(values["step_ms"], 2)
    return values


def _decoded(values: Mapping[str, Any]) -> Result:
    infinite = lambda loss: math.inf if loss is None else loss
    losses = {name: infinite(values[name]) for name in ("test", "validation")}
    return Result(**{**values, **losses, "curve": [(step, infinite(loss)) for step, loss in values["curve"]]})


def _number(value: float) -> float | None:
    # JSON has no infinity.
    return round(value, 6) if math.isfinite(value) else None


def _name(policy: Any) -> str:
    return "-" if policy is None else policy if isinstance(policy, str) else json.dumps(policy)


Procedure = Callable[..., Any]


def perform(tasks: Sequence[tuple[Procedure, tuple[Any, ...]]], records: pathlib.Path, text: tuple[pathlib.Path, ...], jobs: int) -> None:
    """Does procedures with their arguments, several at a time, each in a process with one thread for arithmetic.

    Raises:
      RuntimeError: with what the first procedure that failed raised, after the others have ended.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    context = multiprocessing.get_context("spawn")
    cores = context.SimpleQueue()
    available = sorted(os.sched_getaffinity(0))
    for job in range(jobs):
        cores.put(available[job % len(available)])
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (cores,)) as pool:
        done = [pool.submit(_perform, procedure, args, records, text) for procedure, args in tasks]
        failures = [future.exception() for future in done]
    for failure in failures:
        if failure is not None:
            raise failure


def _begin(cores: Any) -> None:
    # Small matrices are multiplied fastest by one thread, and XLA takes as many as there are cores for its process.
    os.sched_setaffinity(0, {cores.get()})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # A worker whose program was killed would go on with all of its procedure, beside the one that is started next.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _perform(procedure: Procedure, args: tuple[Any, ...], records: pathlib.Path, text: tuple[pathlib.Path, ...]) -> None:
    try:
        procedure(Lab(records, read(text)), *args)
    except Exception as error:
        # Not every exception can be sent to another process, and one that cannot takes the others' work with it.
        raise RuntimeError("".join(traceback.format_exception(error))) from None
