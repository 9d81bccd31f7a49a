"""The manifest of a bundle: what the flattened inputs and outputs of its modules are.

The reference of the format is `models/README.md`. A manifest is plain JSON with a fixed key order, so that the same
bundle gives the same bytes.
"""

import dataclasses
import json
from typing import Any, Literal

FORMAT_VERSION = 1

Role = Literal["param", "opt", "rng", "state", "batch", "loss", "aux"]
STATE_ROLES: tuple[Role, ...] = ("param", "opt", "rng", "state")


@dataclasses.dataclass(frozen=True)
class Input:
    """One parameter of the entry computation, in parameter-number order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role


@dataclasses.dataclass(frozen=True)
class Output:
    """One element of the entry computation's result; `input` is the index of the input that it succeeds."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role
    input: int | None


@dataclasses.dataclass(frozen=True)
class Init:
    """The computation that makes the initial state: one scalar seed in, the inputs listed in `outputs` out."""

    file: str
    seed_dtype: str
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Eval:
    """The computation of a held-out loss: the inputs listed in `inputs` in, one scalar out."""

    file: str
    inputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TokenWindows:
    """A batch that is one integer array [batch, window] of consecutive token ids, all below `vocab`.

    Attributes:
      kind: "bytes" where a token is one byte (vocab 256), "tokens" where a tokenizer made them.
      input: index of the batch input.
      batch: rows per step.
      window: tokens per row; the step predicts token j+1 from the tokens up to j.
      vocab: number of token ids.
      loss_unit: unit of the loss, "nats/byte" or "nats/token".
    """

    kind: Literal["bytes", "tokens"]
    input: int
    batch: int
    window: int
    vocab: int
    loss_unit: str


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a step is launched, where that is not one step on one device."""

    replicas: int = 1
    partitions: int = 1
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` says."""

    name: str
    module: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    init: Init | None
    eval: Eval | None
    data: TokenWindows | None
    target_platforms: tuple[str, ...]
    versions: dict[str, str]
    launch: Launch | None = None

    def to_json(self) -> str:
        """The text of `manifest.json`: two-space indent, one line per input and output, newline at the end."""
        lines = ["{", f'  "format_version": {FORMAT_VERSION},']
        body = dataclasses.asdict(self)
        for key, value in body.items():
            if key == "launch" and value is None:
                continue
            if key in ("inputs", "outputs"):
                lines.append(f'  "{key}": [')
                lines += [f"    {_line(entry)}{',' if n + 1 < len(value) else ''}" for n, entry in enumerate(value)]
                lines.append("  ],")
            else:
                lines.append(f'  "{key}": {_line(value)},')
        lines[-1] = lines[-1].removesuffix(",")
        lines.append("}")
        return "\n".join(lines) + "\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
