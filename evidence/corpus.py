"""Text to train on, split by file into training, validation and test."""

import dataclasses
import functools
import hashlib
import pathlib
import sysconfig
from collections.abc import Iterator, Sequence

import numpy as np

# Bytes that a part has at least.
LEAST = 50_000
# Hundredths of all files, by a hash of their path, that are kept back for validation and for test.
VALIDATION = 10
TEST = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Bytes of text files, one after another.

    Attributes:
      train: uint8[n] that batches are drawn from.
      validation: uint8[n] on which every choice is made.
      test: uint8[n] that only reported losses are of.
      digest: of names and contents of all files. Results of different digests are not comparable.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    digest: str


def standard_library() -> pathlib.Path:
    """The folder of this Python's standard library."""
    return pathlib.Path(sysconfig.get_path("stdlib"))


@functools.cache
def read(paths: tuple[pathlib.Path, ...] = ()) -> Corpus:
    """Reads text files, and folders with all Python files in them; without paths, the standard library.

    A file whose content was seen before is left out, so that no text is in two parts.

    Raises:
      ValueError: a path does not exist, or a part has too little text.
    """
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    parts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    digest, seen = hashlib.sha256(), set()
    for name, path in _files(paths or (standard_library(),)):
        content = path.read_bytes()
        identity = hashlib.sha256(content).digest()
        if identity in seen or not content:
            continue
        seen.add(identity)
        digest.update(name.encode() + b"\0" + identity)
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % 100
        part = "validation" if place < VALIDATION else "test" if place < VALIDATION + TEST else "train"
        parts[part].append(content)
    arrays = {part: np.frombuffer(b"".join(contents), np.uint8) for part, contents in parts.items()}
    for part, array in arrays.items():
        if array.size < LEAST:
            raise ValueError(f"only {array.size} bytes of text for {part}; {LEAST} are the least, and whole files are what parts are made of: name more of them")
    return Corpus(**arrays, digest=digest.hexdigest()[:16])


def windows(text: np.ndarray, count: int, length: int) -> np.ndarray:
    """uint8[count, length]: evenly spaced pieces of a text."""
    starts = np.linspace(0, text.size - length, count).astype(np.int64)
    return text[starts[:, None] + np.arange(length)]


def _files(paths: Sequence[pathlib.Path]) -> Iterator[tuple[str, pathlib.Path]]:
    for top in paths:
        if top.is_file():
            yield top.name, top
            continue
        names = (path.relative_to(top) for path in top.rglob("*.py") if path.is_file())
        # What is installed beside the standard library is not part of it.
        for name in sorted(name.as_posix() for name in names if "site-packages" not in name.parts):
            yield name, top / name
