"""Make stand-ins for the images that critest names, and push them to a registry on loopback.

    python -m critest.images.make --registry 127.0.0.1:5000 [--only SUBSTRING] [--big | --light]

They go to the path that follows the host in their names, so one mirror serves every host.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from critest.images.catalogue import Entry, big, entries, light_image
from critest.images.programs import MissingProgram
from critest.images.upload import Registry, UploadError


def push(address: str, wanted: Iterable[Entry], *, quiet: bool = False) -> None:
    """``address`` is HOST:PORT of a registry that speaks plain HTTP. Raises MissingProgram and UploadError."""
    registry = Registry(address)
    try:
        for entry in wanted:
            size = registry.push(entry.make(entry.names))
            if not quiet:
                print(f"{size:>12,} bytes  {' '.join(entry.names)}")
    finally:
        registry.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", default="127.0.0.1:5000", metavar="HOST:PORT")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only images with this in a name")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--big", action="store_true", help="the image for measuring pulls, too: 203 MB")
    size.add_argument("--light", action="store_true", help="only busybox, from Debian's busybox-static")
    options = parser.parse_args()
    wanted = [light_image()] if options.light else [*entries(), *([big()] if options.big else [])]
    try:
        push(options.registry, [entry for entry in wanted if any(options.only in name for name in entry.names)])
    except (MissingProgram, UploadError, OSError) as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
