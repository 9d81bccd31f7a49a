"""An exported file under a policy: the program `entropic` trains a bundle, and nothing of the training code is there any more."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from entropic_export import export_bundle
from entropic_export.bundles import gpt

from .corpus import Corpus
from .optimizers import FAMILIES
from .policies import in_force
from .training import Setting, initial


@dataclasses.dataclass(frozen=True)
class Exported:
    """A run of the program.

    Attributes:
      setting: the model.
      numbers: AdamW's, which are constants in the file.
      steps: the length of the run, which the schedule in the file ends at.
      seed: of initial weights and batches.
      policy: what `--policy` is given; None is `--no-control`.
    """

    setting: Setting
    numbers: Mapping[str, float]
    steps: int
    seed: int
    policy: str | None

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "policy": in_force(self.policy), "program": "entropic train"}


def train(run: Exported, text: Corpus) -> float:
    """Nats per byte at the end of a run, on text that the program holds out of what is given to train on.

    Raises:
      RuntimeError: the program failed; with what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _export(run, folder / "model")
        (folder / "text").write_bytes(text.train.tobytes())
        control = ["--no-control"] if run.policy is None else ["--policy", run.policy]
        command = ["train", "model", "--data", "text", "--steps", run.steps, "--seed", run.seed, "--out", "run", *control]
        done = subprocess.run([sys.executable, "-m", "entropic", *map(str, command)], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"`entropic {' '.join(map(str, command))}` ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads((folder / "run" / "summary.json").read_text())["held_out_after"]


def _export(run: Exported, path: pathlib.Path) -> None:
    config = run.setting.config
    optimizer = FAMILIES["adamw"].make({**run.numbers, "steps": run.steps, "rate_scale": 1.0})
    _, step, evaluate = gpt.training(config, optimizer)

    def init(seed: jax.Array) -> tuple[Any, Any]:
        params = initial(config, seed, run.numbers)
        return params, jax.tree.map(jnp.copy, optimizer.init(params))

    batch = jax.ShapeDtypeStruct((run.setting.rows, run.setting.context + 1), jnp.int32)
    export_bundle(step, init, batch, path, name="model", eval_step=evaluate, data="bytes", vocab=config.vocab)
