"""Text is split by file, and no text is in two parts."""

import pathlib

import numpy as np
import pytest
from evidence.corpus import read, windows


def test_every_file_is_in_one_part_and_copies_count_once(folder: pathlib.Path) -> None:
    before = read((folder,))
    sizes = [part.size for part in (before.train, before.validation, before.test)]
    files = list(folder.iterdir())
    assert sum(sizes) == sum(file.stat().st_size for file in files)
    assert all(size > 0 for size in sizes) and sizes[0] > 4 * max(sizes[1:])
    for number, file in enumerate(files):
        (folder / f"copy-{number}.py").write_bytes(file.read_bytes())
    read.cache_clear()
    after = read((folder,))
    assert [part.size for part in (after.train, after.validation, after.test)] == sizes


def test_another_text_has_another_digest(folder: pathlib.Path) -> None:
    before = read((folder,)).digest
    (folder / "0.py").write_text("something else")
    read.cache_clear()
    assert read((folder,)).digest != before


def test_too_little_text_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="bytes of text for"):
        read((tmp_path,))
    with pytest.raises(ValueError, match="none does not exist"):
        read((tmp_path / "none",))


def test_windows_are_spread_over_all_of_a_text() -> None:
    text = np.arange(100, dtype=np.uint8)
    assert windows(text, 3, 10).tolist() == [list(range(10)), list(range(45, 55)), list(range(90, 100))]
