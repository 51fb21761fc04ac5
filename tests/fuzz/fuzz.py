"""Fuzz one target: ``python -m tests.fuzz.fuzz TARGET DIRECTORY [options of libFuzzer]``, such as -max_total_time=60.

It begins with corpus/TARGET and keeps what it finds in DIRECTORY; what breaks the target is written to the current
directory as crash-…, and belongs into the corpus with the correction.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cri_py", "tests.fuzz.targets"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, directory, *options = sys.argv[1:]
    corpus = Path(__file__).with_name("corpus") / name
    atheris.Setup([sys.argv[0], *options, directory, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
