"""CRI's signals by the names that everybody else uses: SIGNAL_SIGRTMINPLUS3 is SIGRTMIN+3 (signal(7))."""

from __future__ import annotations

from typing import Final

from cri_py.errors import InvalidArgument
from cri_py.rpc.gen import api_pb2 as pb


def _common_name(name: str) -> str:
    return name.removeprefix("SIGNAL_").replace("PLUS", "+").replace("MINUS", "-")


_WORDS: Final = {
    number: _common_name(name) for name, number in pb.Signal.items() if number != pb.SIGNAL_RUNTIME_DEFAULT
}
_CRI_NAMES: Final = {_common_name(name): name for name in pb.Signal.keys() if name != "SIGNAL_RUNTIME_DEFAULT"}  # noqa: SIM118 - not a dict


def word(signal: int) -> str:
    """The name of a message's signal, "" for the runtime's default. Raises InvalidArgument if there is none."""
    if signal == pb.SIGNAL_RUNTIME_DEFAULT:
        return ""
    name = _WORDS.get(signal)
    if name is None:
        raise InvalidArgument(f"stop_signal is {signal}, which CRI v1 does not name")
    return name


def cri_name(name: str) -> str:
    """CRI's name of a signal given with or without SIG; SIGNAL_RUNTIME_DEFAULT for "" and for what CRI can't say."""
    upper = name.upper()
    return _CRI_NAMES.get(upper if upper.startswith("SIG") else f"SIG{upper}", "SIGNAL_RUNTIME_DEFAULT")
