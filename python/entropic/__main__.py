"""The program `entropic`, also as `python -m entropic`."""

import sys

from ._native import main as _main


def main() -> int:
    """Runs the program on the command line of this process; returns its exit code."""
    # Where the program needs a child process of itself, that is this interpreter again. `-P`: what lies in the child's folder is
    # no module of ours.
    return _main(["entropic", *sys.argv[1:]], [sys.executable, "-P", "-m", "entropic"])


if __name__ == "__main__":
    sys.exit(main())
