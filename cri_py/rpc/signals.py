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
_NUMBERS: Final = {word: number for number, word in _WORDS.items()}


def word(signal: int) -> str:
    """The name of a message's signal, "" for the runtime's default. Raises InvalidArgument if there is none."""
    if signal == pb.SIGNAL_RUNTIME_DEFAULT:
        return ""
    name = _WORDS.get(signal)
    if name is None:
        raise InvalidArgument(f"stop_signal is {signal}, which CRI v1 does not name")
    return name


def number(name: str) -> pb.Signal:
    """CRI's number for a name, with or without SIG; SIGNAL_RUNTIME_DEFAULT for "" and for what CRI can't say."""
    upper = name.upper()
    wanted = upper if upper.startswith("SIG") else f"SIG{upper}"
    return (
        pb.Signal.Value("SIGNAL_RUNTIME_DEFAULT") if wanted not in _NUMBERS else pb.Signal.ValueType(_NUMBERS[wanted])
    )
