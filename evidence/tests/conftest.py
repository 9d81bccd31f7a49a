"""Shared by the tests: a small text, and runs that take seconds."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import pytest

from evidence.corpus import Corpus, read
from evidence.training import Run, Setting

SMALL = Setting(layers=1, width=16, heads=1, context=16, rows=2)
NUMBERS = {
    "learning_rate": 3e-3, "embedding_multiple": 2.0, "b1": 0.9, "b2": 0.95, "weight_decay": 0.01,
    "initial_hidden": 1.0, "initial_embedding": 1.0,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Files of words in some order."""
    random = np.random.default_rng(0)
    words = np.array(["def", "return", "class", "x", "y", "(", ")", ":", "\n"])
    for n in range(200):
        (tmp_path / f"{n}.py").write_text(" ".join(random.choice(words, 3000)))
    return tmp_path


@pytest.fixture
def text(folder: pathlib.Path) -> Corpus:
    """The text in them."""
    return read((folder,))


def small_run(**changes: object) -> Run:
    """A run of a few steps."""
    return Run(**{"setting": SMALL, "family": "adamw", "numbers": NUMBERS, "steps": 6, "seed": 1, **changes})
