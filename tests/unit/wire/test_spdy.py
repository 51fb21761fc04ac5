"""A SPDY connection: what the specification promises, and what moby/spdystream expects beside it."""

from __future__ import annotations

import zlib

import pytest

from cri_py.wire.spdy import MAX_STREAMS, WINDOW, Connection, Event, Failed, Role
from cri_py.wire.spdy_frames import (
    MAX_CHUNK,
    MAX_ID,
    Chunk,
    Departure,
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
    encode,
)
from cri_py.wire.spdy_headers import DICTIONARY, HeaderWriter
from cri_py.wire.violation import ProtocolError, Rule

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
        return self.server.receive(self.client.send(frame))

    def answer(self, frame: Frame) -> list[Event]:
        return self.client.receive(self.server.send(frame))

    def settle(self) -> None:
        while (there := self.client.replies()) or (back := self.server.replies()):
            if there:
                self.server.receive(there)
            else:
                self.client.receive(back)

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
    rule = failure(server.receive(received))
    assert server.replies()[-4:] == words(Departure.PROTOCOL_ERROR)
    assert server.receive(GOLDEN_PING) == []
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
    assert pair.client.send(Chunk(stream, b"hi", fin=True)) == GOLDEN_DATA


def test_a_stream_goes_both_ways_and_is_forgotten_after_both_ends() -> None:
    pair = Pair()
    assert pair.ask(SynStream(1, {"streamtype": "stdin"})) == [SynStream(1, {"streamtype": "stdin"})]
    assert pair.answer(SynReply(1, {"a": "b"})) == [SynReply(1, {"a": "b"})]
    assert pair.ask(Chunk(1, b"in")) == [Chunk(1, b"in")]
    assert pair.ask(Chunk(1, b"", fin=True)) == [Chunk(1, b"", fin=True)]
    assert pair.answer(Headers(1, {"c": "d"})) == [Headers(1, {"c": "d"})]
    assert pair.answer(Chunk(1, b"out", fin=True)) == [Chunk(1, b"out", fin=True)]
    assert not pair.server.can_send(1)
    with pytest.raises(ProtocolError) as caught:
        pair.server.send(Chunk(1, b"late"))
    assert caught.value.rule is Rule.STREAM_CLOSED


def test_header_blocks_count_on_those_before_them() -> None:
    pair = Pair()
    for number in range(1, 9, 2):
        headers = {"streamtype": "data", "port": str(8000 + number), "requestid": "0" * number}
        assert pair.ask(SynStream(number, headers)) == [SynStream(number, headers)]


def test_a_ping_comes_back_and_ours_is_told() -> None:
    server = Connection(Role.SERVER)
    assert server.receive(GOLDEN_PING) == []
    assert server.replies() == GOLDEN_PING
    assert server.receive(server.send(Ping(2))) == [Ping(2)]
    assert server.replies() == b""


# ------------------------------------------------------------------ windows


def overrun(pair: Pair, stream: int) -> list[Event]:
    """The client sends one byte more than a window, as if it had never heard of windows."""
    return pair.server.receive(encode(Chunk(stream, bytes(WINDOW + 1)), HeaderWriter()))


def test_a_peer_that_says_nothing_of_windows_may_be_sent_anything() -> None:
    pair = Pair()
    stream = pair.opened(streamtype="stdout")
    for _ in range(4):
        assert pair.server.room(stream) == MAX_CHUNK
        pair.server.send(Chunk(stream, bytes(WINDOW)))


def test_a_peer_that_says_nothing_of_windows_may_overrun_ours_and_gets_no_grants() -> None:
    pair = Pair()
    stream = pair.opened(streamtype="stdin")
    assert not isinstance(overrun(pair, stream)[-1], Failed)
    pair.server.consumed(stream, WINDOW + 1)
    assert pair.server.replies() == b""


def test_a_peer_that_keeps_windows_must_not_overrun_ours() -> None:
    pair = Pair()
    stream = pair.opened(streamtype="stdin")
    pair.ask(Settings({7: WINDOW}))
    assert failure(overrun(pair, stream)) is Rule.WINDOW


def test_a_session_window_is_overrun_by_several_streams_together() -> None:
    pair = Pair()
    one, other = pair.opened(streamtype="data"), pair.opened(streamtype="error")
    pair.ask(WindowUpdate(0, 1))
    pair.ask(Chunk(one, bytes(WINDOW)))
    assert failure(pair.ask(Chunk(other, b"x"))) is Rule.WINDOW


def test_what_is_consumed_may_be_sent_again() -> None:
    pair = Pair()
    stream = pair.opened(streamtype="stdin")
    pair.ask(Settings({7: WINDOW}))
    pair.ask(Chunk(stream, bytes(WINDOW)))
    assert pair.server.held == WINDOW
    pair.server.consumed(stream, WINDOW)
    grants = pair.client.receive(pair.server.replies())
    assert sorted(grants) == [WindowUpdate(0, WINDOW), WindowUpdate(stream, WINDOW)]
    assert not isinstance(pair.ask(Chunk(stream, bytes(WINDOW)))[-1], Failed)


def test_a_silent_peer_that_stops_at_its_window_gets_room_again() -> None:
    """It might keep windows without having granted any: it would wait for ever."""
    pair = Pair()
    stream = pair.opened(streamtype="stdin")
    pair.ask(Chunk(stream, bytes(WINDOW)))
    pair.server.consumed(stream, WINDOW)
    assert len(pair.client.receive(pair.server.replies())) == 2


def test_grants_bound_what_we_send() -> None:
    pair = Pair()
    stream = pair.opened(streamtype="stdout")
    pair.ask(WindowUpdate(stream, 1))
    pair.ask(WindowUpdate(0, 100))
    assert pair.server.room(stream) == WINDOW + 1
    pair.server.send(Chunk(stream, bytes(WINDOW)))
    assert pair.server.room(stream) == 1
    with pytest.raises(ProtocolError) as caught:
        pair.server.send(Chunk(stream, b"xy"))
    assert caught.value.rule is Rule.WINDOW


def test_a_grant_that_comes_after_an_overrun_bounds_nothing() -> None:
    """Its sender gives no more once it sees the overrun, which was on its way: both would wait for ever."""
    pair = Pair()
    stream = pair.opened(streamtype="stdout")
    pair.answer(Chunk(stream, bytes(WINDOW - 1)))
    pair.client.consumed(stream, WINDOW - 1)
    granted = pair.client.replies()
    pair.answer(Chunk(stream, bytes(2 * WINDOW)))
    pair.server.receive(granted)
    assert pair.server.room(stream) == MAX_CHUNK


def test_who_announces_windows_heeds_the_other_side_s() -> None:
    pair = Pair()
    stream = pair.opened(streamtype="stdin")
    pair.ask(Settings({7: WINDOW}))
    assert pair.client.room(stream) == WINDOW


def test_the_initial_window_moves_those_of_open_streams() -> None:
    pair = Pair()
    stream = pair.opened(streamtype="stdout")
    pair.ask(Settings({7: 10}))
    assert pair.server.room(stream) == 10
    pair.server.send(Chunk(stream, bytes(10)))
    pair.ask(Settings({7: 4}))
    assert pair.server.room(stream) == 0
    pair.ask(WindowUpdate(stream, 7))
    assert pair.server.room(stream) == 1


def test_a_window_grows_to_its_limit_and_no_further() -> None:
    pair = Pair()
    pair.opened(streamtype="stdout")
    pair.ask(WindowUpdate(1, MAX_ID - WINDOW))
    assert failure(pair.ask(WindowUpdate(1, 1))) is Rule.WINDOW_DELTA


def test_an_initial_window_has_its_limit_too() -> None:
    assert refused(Connection(Role.CLIENT).send(Settings({7: MAX_ID + 1}))) is Rule.WINDOW_DELTA


# -------------------------------------------------------- what races may bring


def test_frames_of_a_forgotten_stream_are_dropped() -> None:
    """moby/spdystream writes on after a reset, from another thread."""
    pair = Pair()
    stream = pair.opened(streamtype="stdin")
    late = pair.client.send(Chunk(stream, b"late"))
    pair.server.send(RstStream(stream, Status.CANCEL))
    assert pair.server.receive(late) == []
    assert pair.server.held == 0
    assert pair.server.receive(pair.client.send(RstStream(stream, Status.CANCEL))) == []


def test_a_stream_that_is_reset_within_a_frame_gets_no_more_of_it() -> None:
    pair = Pair()
    stream = pair.opened(streamtype="stdin")
    whole = pair.client.send(Chunk(stream, b"0123456789", fin=True))
    assert pair.server.receive(whole[:12]) == [Chunk(stream, b"0123")]
    pair.server.send(RstStream(stream, Status.CANCEL))
    assert pair.server.receive(whole[12:]) == []


def test_streams_after_goaway_are_ignored() -> None:
    pair = Pair()
    pair.server.send(GoAway(0))
    assert pair.ask(SynStream(1, {})) == []
    assert pair.ask(Chunk(1, b"x")) == []


def test_one_stream_too_many_is_refused_alone() -> None:
    pair = Pair()
    for number in range(MAX_STREAMS):
        pair.ask(SynStream(1 + 2 * number, {}))
    assert pair.ask(SynStream(1 + 2 * MAX_STREAMS, {})) == []
    assert pair.client.receive(pair.server.replies()) == [RstStream(1 + 2 * MAX_STREAMS, Status.REFUSED_STREAM)]
    assert pair.ask(Chunk(1, b"x")) == [Chunk(1, b"x")]


def test_a_unidirectional_stream_takes_no_answer() -> None:
    pair = Pair()
    pair.ask(SynStream(1, {}, unidirectional=True))
    assert pair.server.room(1) == 0
    with pytest.raises(ProtocolError):
        pair.server.send(SynReply(1, {}))


def test_streams_open_on_the_server_too() -> None:
    pair = Pair()
    assert pair.answer(SynStream(2, {"a": "b"})) == [SynStream(2, {"a": "b"})]
    assert pair.ask(SynReply(2, {})) == [SynReply(2, {})]
    assert pair.ask(Chunk(2, b"x", fin=True)) == [Chunk(2, b"x", fin=True)]


# ------------------------------------------------------------------ bad input


def control(kind: int, body: bytes, *, flags: int = 0, version: int = 3) -> bytes:
    return (0x8000 | version).to_bytes(2, "big") + kind.to_bytes(2, "big") + bytes([flags]) + sized(body)


def sized(body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + body


def words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def block(text: bytes, level: int = 6) -> bytes:
    """A SYN_STREAM 1 whose header block expands to ``text``."""
    deflate = zlib.compressobj(level, zdict=DICTIONARY)
    return control(1, words(1, 0) + b"\0\0" + deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH))


@pytest.mark.parametrize(
    ("received", "rule"),
    [
        (control(1, b"", version=2), Rule.VERSION),
        (control(1, b"", version=4), Rule.VERSION),
        (control(0, b""), Rule.FRAME_TYPE),
        (control(5, b""), Rule.FRAME_TYPE),
        (control(10, b""), Rule.FRAME_TYPE),
        (control(1, bytes(9)), Rule.CONTROL_LENGTH),
        (control(6, bytes(8)), Rule.CONTROL_LENGTH),
        (control(7, bytes(4)), Rule.CONTROL_LENGTH),
        (bytes.fromhex("80030001 00010001"), Rule.CONTROL_LENGTH),  # 64 KiB and a byte, refused before they come
        (bytes.fromhex("80030004 00ffffff"), Rule.CONTROL_LENGTH),
        (control(6, words(1), flags=1), Rule.FLAGS),
        (control(1, bytes(10), flags=4), Rule.FLAGS),
        (bytes.fromhex("00000001 02000000"), Rule.FLAGS),
        (control(6, words(0)), Rule.PING_ID),
        (control(3, words(1, 0)), Rule.STATUS),
        (control(3, words(1, 5)), Rule.STREAM_UNKNOWN),
        (words(0, 1) + b"x", Rule.STREAM_UNKNOWN),
        (words(1, 1) + b"x", Rule.STREAM_UNKNOWN),
        (words(2, 1) + b"x", Rule.STREAM_UNKNOWN),
        (control(9, words(0, 0)), Rule.WINDOW_DELTA),
        (control(9, words(0, 1 << 31)), Rule.WINDOW_DELTA),
        (control(9, words(0, MAX_ID)), Rule.WINDOW_DELTA),
        (control(4, words(2, 7, 1)), Rule.SETTINGS),
        (control(4, words(0xFFFFFFFF)), Rule.SETTINGS),
        (control(2, words(1)), Rule.HEADER_BLOCK),
        (control(1, words(1, 0) + b"\0\0" + b"no zlib"), Rule.HEADER_BLOCK),
        (control(1, words(1, 0) + b"\0\0" + zlib.compress(words(0))), Rule.HEADER_BLOCK),  # without the dictionary
        (block(b""), Rule.HEADER_BLOCK),
        (block(words(1)), Rule.HEADER_BLOCK),
        (block(words(1, 1) + b"a"), Rule.HEADER_BLOCK),
        (block(words(1, 1) + b"a" + words(9) + b"b"), Rule.HEADER_BLOCK),
        (block(words(1, 0, 1) + b"b"), Rule.HEADER_BLOCK),
        (block(words(1, 1) + b"A" + words(0)), Rule.HEADER_BLOCK),
        (block(words(2) + 2 * (words(1) + b"a" + words(0))), Rule.HEADER_BLOCK),
        (block(words(0, 0)), Rule.HEADER_BLOCK),
        (block(words(0xFFFFFFFF)), Rule.HEADER_BLOCK_SIZE),
        (block(words(257) + bytes(4 * 514)), Rule.HEADER_BLOCK_SIZE),
        (block(bytes(64 << 20)), Rule.HEADER_BLOCK_SIZE),  # 64 kB on the wire
    ],
)
def test_what_breaks_a_rule_ends_the_connection_by_its_name(received: bytes, rule: Rule) -> None:
    assert refused(received) is rule


def test_a_header_block_that_ends_the_compression_is_refused() -> None:
    deflate = zlib.compressobj(zdict=DICTIONARY)
    body = words(1, 0) + b"\0\0" + deflate.compress(words(0)) + deflate.flush()
    assert refused(control(1, body)) is Rule.HEADER_BLOCK


@pytest.mark.parametrize("second", [0, 1, 2, 3, 4, 5])
def test_ids_of_streams_are_odd_and_go_up(second: int) -> None:
    server, writer = Connection(Role.SERVER), Connection(Role.CLIENT)
    first = writer.send(SynStream(1, {})), writer.send(SynStream(3, {})), writer.send(SynStream(5, {}))
    syn = bytearray(first[1])
    for frame in first:
        server.receive(frame)
    syn[8:12] = words(second)
    assert failure(server.receive(bytes(syn))) is Rule.STREAM_ID


def test_nothing_follows_the_last_frame_of_a_stream() -> None:
    for late in (words(1, 1) + b"x", words(1, 0), control(8, words(1) + b"\0\0\xff\xff")):
        pair = Pair()
        pair.opened()
        pair.ask(Chunk(1, b"", fin=True))
        assert failure(pair.server.receive(late)) in {Rule.STREAM_CLOSED, Rule.HEADER_BLOCK}


def test_a_stream_is_replied_to_once() -> None:
    pair = Pair()
    pair.opened()
    with pytest.raises(ProtocolError) as caught:
        pair.server.send(SynReply(1, {}))
    assert caught.value.rule is Rule.REPLIED_TWICE
    writer = HeaderWriter()
    assert refused(encode(SynStream(1, {}), writer) + encode(SynReply(1, {}), writer)) is Rule.REPLIED_TWICE


def test_headers_before_our_reply_are_no_reply() -> None:
    pair = Pair()
    pair.ask(SynStream(1, {}))
    assert pair.ask(Headers(1, {"a": "b"})) == [Headers(1, {"a": "b"})]
    assert pair.answer(SynReply(1, {})) == [SynReply(1, {})]


def test_no_stream_is_opened_after_goaway_or_out_of_turn() -> None:
    client = Connection(Role.CLIENT)
    with pytest.raises(ProtocolError) as caught:
        client.send(SynStream(3, {}))
    assert caught.value.rule is Rule.STREAM_ID
    client.receive(GOLDEN_GOAWAY)
    with pytest.raises(ProtocolError) as caught:
        client.send(SynStream(1, {}))
    assert caught.value.rule is Rule.GONE_AWAY


def test_what_came_before_a_broken_rule_is_told() -> None:
    pair = Pair()
    stream = pair.opened()
    events = pair.server.receive(pair.client.send(Chunk(stream, b"good")) + control(5, b""))
    assert events[0] == Chunk(stream, b"good")
    assert failure(events) is Rule.FRAME_TYPE
    assert pair.client.receive(pair.server.replies()) == [GoAway(1, Departure.PROTOCOL_ERROR)]
