"""Stop signals: by name or number, from the kubelet or from an image, to one canonical name (signal(7)). Pure."""

from __future__ import annotations

from signal import SIGRTMAX, SIGRTMIN, Signals
from typing import Final

from cri_py.errors import InvalidArgument

DEFAULT: Final = "SIGTERM"
_MIDDLE: Final = (SIGRTMIN + SIGRTMAX) // 2  # CRI names real-time signals from the end that is nearer


def resolve_stop_signal(config: str, image: str) -> str:
    """The signal that stops a container: the kubelet's before the image's before SIGTERM, e.g. ``SIGRTMIN+3``.

    Each may be a name with or without SIG, in any case, or a number. Raises InvalidArgument for any other text.
    """
    return signal_name(signal_number(config or image or DEFAULT))


def signal_number(text: str) -> int:
    """The number of a signal by name (``SIGTERM``, ``term``, ``SIGRTMAX-2``) or number, on this machine."""
    if text.isascii() and text.isdigit() and len(text) <= 2:
        number = int(text)
    else:
        name = text.upper().removeprefix("SIG")
        number = _realtime(name) if name.startswith("RT") else _named(f"SIG{name}")
    if not 0 < number <= SIGRTMAX or Signals.SIGSYS < number < SIGRTMIN:  # glibc keeps 32 and 33 to itself
        raise InvalidArgument(
            f"{text!r} is no signal", hint="use a name such as SIGTERM or SIGRTMIN+3, or a number; see signal(7)"
        )
    return number


def signal_name(number: int) -> str:
    """The canonical name of a number that signal_number returned."""
    if number < SIGRTMIN:
        return Signals(number).name
    base, offset = ("SIGRTMIN", number - SIGRTMIN) if number <= _MIDDLE else ("SIGRTMAX", number - SIGRTMAX)
    return f"{base}{offset:+d}" if offset else base


def _named(name: str) -> int:
    """0 for none."""
    return int(Signals.__members__.get(name, 0))


def _realtime(name: str) -> int:
    """RTMIN, RTMIN+N, RTMAX or RTMAX-N; 0 for anything else."""
    for base, sign, start in (("RTMIN", "+", SIGRTMIN), ("RTMAX", "-", SIGRTMAX)):
        offset = name.removeprefix(base)
        if name.startswith(base) and (
            not offset or (offset[0] == sign and offset[1:].isascii() and offset[1:].isdigit())
        ):
            number = start + int(offset[:3] or 0)
            return number if SIGRTMIN <= number <= SIGRTMAX else 0
    return 0
