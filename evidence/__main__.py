"""`python -m evidence`: searches, studies, and the page that they make."""

import argparse
import os
import pathlib

from . import search
from .corpus import read
from .lab import Lab, perform
from .optimizers import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m evidence", description=__doc__)
    parser.add_argument("--text", nargs="+", type=pathlib.Path, default=[], help="files and folders instead of the standard library")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: one for each core)")
    parser.add_argument("action", choices=["search"])
    options = parser.parse_args()
    text = tuple(options.text)
    if options.action == "search":
        perform([(search.tune, (family,)) for family in FAMILIES], search.RECORDS, text, options.jobs)
        search.write(Lab(search.RECORDS, read(text), read_only=True))


if __name__ == "__main__":
    main()
