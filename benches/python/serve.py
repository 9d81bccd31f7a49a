"""Runs the contenders of one engine on request, so that they can take turns with programs in other processes.

`python serve.py jax|torch --model gpt-nano TEXT...` prints one line of JSON with names and versions; then, for each line
`NAME STEPS` that it reads, one with the seconds that those steps took. While it waits it computes nothing.
"""

import argparse
import importlib
import importlib.metadata
import json
import pathlib
import sys

import handwritten
import numpy as np


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=("jax", "torch"))
    parser.add_argument("--model", choices=handwritten.CONFIGS, default="gpt-nano")
    parser.add_argument("text", nargs="+", type=pathlib.Path, help="folders of Rust sources to train on")
    arguments = parser.parse_args()

    files = sorted(file for folder in arguments.text for file in folder.rglob("*.rs"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    module = importlib.import_module(f"{arguments.engine}_steps")
    runs = module.contenders(handwritten.CONFIGS[arguments.model], text)
    packages = {"jax": ("jax", "jaxlib"), "torch": ("torch",)}[arguments.engine]
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    answer({"names": list(runs), "versions": versions})
    for line in sys.stdin:
        name, steps = line.split()
        answer({"seconds": runs[name](int(steps))})


def answer(message: dict[str, object]) -> None:
    """One line of JSON."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
