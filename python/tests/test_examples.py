"""Every example runs as it is, and is short."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "python"
EXAMPLES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_has_fewer_than_60_lines(example, tmp_path):
    assert len(example.read_text().splitlines()) < 60
    done = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "loss at the end" in done.stdout


def test_the_notebook_says_what_comes_out(tmp_path):
    cells = [cell for cell in json.loads((FOLDER / "control.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    said = ["".join(output["text"]) for cell in cells for output in cell["outputs"] if output.get("name") == "stdout"]
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=os.environ | {"MPLBACKEND": "agg"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # Losses may end in other digits on another machine; which batches are refused may not.
    decisive = said[-1].split("; ")[-1]
    assert decisive.strip() == "refused steps [150, 190, 230, 270]" and decisive in done.stdout
