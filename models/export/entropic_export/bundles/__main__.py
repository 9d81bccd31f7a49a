"""`python -m entropic_export.bundles [NAME...]`: re-exports the committed bundles, or checks that they still match."""

import argparse
import importlib.metadata
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from ..bundle import MANIFEST_FILE
from . import BUNDLES


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, 1 where a file does not match, 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m entropic_export.bundles", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(BUNDLES)}")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("models"), help="folder of the bundles")
    parser.add_argument("--check", action="store_true", help="write nothing, say per file whether --out still matches")
    parser.add_argument("--layers", type=int, help="other number of layers, for the gpt bundles; not with --check")
    arguments = parser.parse_args(argv)

    names = arguments.names or list(BUNDLES)
    unknown = [name for name in names if name not in BUNDLES]
    if unknown:
        parser.error(f"no bundle {', '.join(unknown)}; there are {', '.join(BUNDLES)}")
    if not arguments.out.is_dir() and arguments.out == pathlib.Path("models"):
        parser.error("there is no folder models here; run at the root of the project, or name one with --out")
    if arguments.layers is not None:
        if arguments.check:
            parser.error("--layers makes another bundle than the committed one; it does not go with --check")
        if arguments.layers < 1 or not all(name.startswith("gpt") for name in names):
            parser.error("--layers needs at least 1 and bundles that have layers (gpt...)")

    if arguments.check:
        return check(names, arguments.out)
    for name in names:
        folder = arguments.out / name
        manifest = BUNDLES[name](folder, arguments.layers)
        size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
        print(f"{folder}: {len(manifest.inputs)} inputs, {len(manifest.outputs)} outputs, {size / 1e6:.2f} MB")
    return 0


def check(names: Sequence[str], committed: pathlib.Path) -> int:
    """Re-exports each bundle aside and compares it with the committed one, file by file."""
    matches = True
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            fresh = pathlib.Path(scratch) / name
            BUNDLES[name](fresh, None)
            for line, ok in compare(fresh, committed / name):
                print(f"{committed / name}: {line}")
                matches &= ok
    if not matches:
        print(f"re-export with: python -m entropic_export.bundles --out {committed} {' '.join(names)}")
    return 0 if matches else 1


def compare(fresh: pathlib.Path, committed: pathlib.Path) -> list[tuple[str, bool]]:
    """One line per file of either folder, and whether it is all right."""
    if not committed.is_dir():
        return [("missing", False)]
    lines = [(note, True) for note in _other_versions(committed / MANIFEST_FILE)]
    files = {f.name for folder in (fresh, committed) for f in folder.iterdir() if not f.name.startswith(".")}
    for file in sorted(files):
        new, old = fresh / file, committed / file
        if not old.is_file():
            lines.append((f"{file}: missing", False))
        elif not new.is_file():
            lines.append((f"{file}: the exporter does not write it", False))
        elif new.read_bytes() == old.read_bytes():
            lines.append((f"{file}: matches", True))
        else:
            lines.append((f"{file}: differs ({_difference(new.read_bytes(), old.read_bytes())})", False))
    return lines


def _other_versions(manifest: pathlib.Path) -> list[str]:
    """Says which packages are installed in other versions than the committed manifest names."""
    try:
        recorded = json.loads(manifest.read_text())["versions"]
    except (OSError, ValueError, KeyError):
        return []
    notes = []
    for package, version in recorded.items():
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed = "none"
        if installed != version:
            notes.append(f"exported with {package} {version}, installed is {installed}: differences are to be expected")
    return notes


def _difference(new: bytes, old: bytes) -> str:
    at = next((n for n, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), min(len(new), len(old)))
    return f"{len(old)} bytes committed, {len(new)} exported, first difference at byte {at}"


if __name__ == "__main__":
    sys.exit(main())
