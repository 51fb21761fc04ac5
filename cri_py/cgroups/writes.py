"""One step of a plan, as data."""

from __future__ import annotations

from typing import NamedTuple


class Write(NamedTuple):
    """One write(2) of ``text``. ``optional``: where the file is missing it is left out with a note, as peers do."""

    file: str
    text: str
    optional: bool = False
