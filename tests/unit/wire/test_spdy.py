"""A SPDY connection: what the specification promises, and what moby/spdystream expects beside it."""

from __future__ import annotations

import zlib

import pytest

from cri_py.wire.spdy import Connection, Event, Failed, Role
from cri_py.wire.spdy_frames import (
    Data,
    Frame,
    GoAway,
    Headers,
    Ping,
    RstStream,
    Settings,
    Status,
    SynReply,
    SynStream,
    WindowUpdate,
)
from cri_py.wire.spdy_headers import DICTIONARY
from cri_py.wire.violation import ProtocolError, Rule

# What crictl sends first for exec: SYN_STREAM 1 with {"streamtype": "error"}, deflated by Go.
GOLDEN_PING = bytes.fromhex("8003000600000004 00000001")
GOLDEN_GOAWAY = bytes.fromhex("8003000700000008 0000000000000000")
GOLDEN_RESET = bytes.fromhex("8003000300000008 0000000300000005")
GOLDEN_WINDOW = bytes.fromhex("8003000900000008 0000000100010000")
GOLDEN_SETTINGS = bytes.fromhex("800300040000000c 00000001 00000007 00020000")
GOLDEN_DATA = bytes.fromhex("00000001 01000002") + b"hi"


class Pair:
    """A client and a server that are wired to each other."""

    def __init__(self) -> None:
        self.client = Connection(Role.CLIENT)
        self.server = Connection(Role.SERVER)

    def ask(self, frame: Frame) -> list[Event]:
        return self.server.receive_data(self.client.send(frame))

    def answer(self, frame: Frame) -> list[Event]:
        return self.client.receive_data(self.server.send(frame))

    def settle(self) -> None:
        while (there := self.client.replies()) or (back := self.server.replies()):
            if there:
                self.server.receive_data(there)
            else:
                self.client.receive_data(back)

    def opened(self, **headers: str) -> int:
        stream = self.client.next_stream
        self.ask(SynStream(stream, headers))
        self.answer(SynReply(stream, {}))
        return stream


def failure(events: list[Event]) -> Rule:
    """The rule that the last event names."""
    last = events[-1]
    assert isinstance(last, Failed), events
    return last.error.rule


def refused(received: bytes) -> Rule:
    """What a fresh server says of the bytes, which must be the end of the connection."""
    server = Connection(Role.SERVER)
    rule = failure(server.receive_data(received))
    assert server.replies()[-8:] == bytes([0, 0, 0, 0, 0, 0, 0, 1])
    assert server.receive_data(GOLDEN_PING) == []
    return rule


def test_the_dictionary_is_that_of_the_specification() -> None:
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


@pytest.mark.parametrize(
    ("frame", "golden"),
    [
        (Ping(1), GOLDEN_PING),
        (GoAway(0), GOLDEN_GOAWAY),
        (RstStream(3, Status.CANCEL), GOLDEN_RESET),
        (WindowUpdate(1, 65536), GOLDEN_WINDOW),
        (Settings({7: 131072}), GOLDEN_SETTINGS),
    ],
)
def test_frames_are_written_as_specified(frame: Frame, golden: bytes) -> None:
    assert Connection(Role.CLIENT).send(frame) == golden


def test_data_is_written_as_specified() -> None:
    pair = Pair()
    stream = pair.opened(streamtype="stdin")
    assert pair.client.send(Data(stream, b"hi", fin=True)) == GOLDEN_DATA


def test_a_stream_goes_both_ways_and_is_forgotten_after_both_ends() -> None:
    pair = Pair()
    assert pair.ask(SynStream(1, {"streamtype": "stdin"})) == [SynStream(1, {"streamtype": "stdin"})]
    assert pair.answer(SynReply(1, {"a": "b"})) == [SynReply(1, {"a": "b"})]
    assert pair.ask(Data(1, b"in")) == [Data(1, b"in")]
    assert pair.ask(Data(1, b"", fin=True)) == [Data(1, b"", fin=True)]
    assert pair.answer(Headers(1, {"c": "d"})) == [Headers(1, {"c": "d"})]
    assert pair.answer(Data(1, b"out", fin=True)) == [Data(1, b"out", fin=True)]
    assert not pair.server.can_send(1)
    with pytest.raises(ProtocolError) as caught:
        pair.server.send(Data(1, b"late"))
    assert caught.value.rule is Rule.STREAM_CLOSED


def test_header_blocks_count_on_those_before_them() -> None:
    pair = Pair()
    for number in range(1, 9, 2):
        headers = {"streamtype": "data", "port": str(8000 + number), "requestid": "0" * number}
        assert pair.ask(SynStream(number, headers)) == [SynStream(number, headers)]


def test_a_ping_comes_back_and_ours_is_told() -> None:
    server = Connection(Role.SERVER)
    assert server.receive_data(GOLDEN_PING) == []
    assert server.replies() == GOLDEN_PING
    assert server.receive_data(server.send(Ping(2))) == [Ping(2)]
    assert server.replies() == b""
