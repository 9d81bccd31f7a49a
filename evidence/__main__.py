"""Evidence for what this project says about control: training runs, recorded, and the page that they make.

    python -m evidence run       # the studies, as far as they are not on record; then docs/evidence.md
    python -m evidence page      # docs/evidence.md alone
    python -m evidence search    # tuning, as far as it is not on record in evidence/searches.jsonl
"""

import argparse
import os
import pathlib
import sys

from . import page, search, studies
from .corpus import read
from .lab import Lab, perform
from .optimizers import FAMILIES

RECORDS = pathlib.Path("runs") / "evidence.jsonl"


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "page", "search"])
    parser.add_argument(
        "--full", action="store_true",
        help="other sizes, variants of spectral, fewer corrupted batches, and each kind of corruption by itself, too",
    )  # fmt: skip
    parser.add_argument("--text", nargs="+", type=pathlib.Path, default=[], help="files and folders instead of the standard library")
    parser.add_argument("--jobs", type=_positive, default=len(os.sched_getaffinity(0)), help="runs at a time (default: one for each core)")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS, help=f"what is done already (default: {RECORDS})")
    options = parser.parse_args()
    text = tuple(options.text)
    try:
        corpus = read(text)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if options.action == "search":
        perform([(search.tune, (family,)) for family in FAMILIES], search.RECORDS, text, options.jobs)
        perform([(search.gate, (kind,)) for kind in search.GATES], search.RECORDS, text, options.jobs)
        perform([(search.gate, ("both",))], search.RECORDS, text, options.jobs)
        search.write(Lab(search.RECORDS, corpus, read_only=True))
        return
    if options.action == "run":
        perform(list(studies.first_tasks(options.full)), options.records, text, options.jobs)
        perform(list(studies.tasks(options.full)), options.records, text, options.jobs)
        # By themselves: what is measured is time.
        perform([(studies.time, (timing,)) for timing in studies.TIMED], options.records, text, 1)
    if not page.write(Lab(options.records, corpus, read_only=True), options.full):
        print(f"not all is on record in {options.records}; {page.PAGE} says what is not", file=sys.stderr)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("one is the least")
    return number


if __name__ == "__main__":
    main()
