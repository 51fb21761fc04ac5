"""``python -m cri_py`` and the program ``cri-py``."""

from __future__ import annotations

import sys

from cri_py.cli import run


def main() -> int:
    """Returns the exit status: 0, 1 for what went wrong or is missing, 2 for a wrong command line or config."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
