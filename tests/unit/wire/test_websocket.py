"""Frames of RFC 6455 as a server reads and writes them."""

from __future__ import annotations

import tracemalloc

import pytest

from cri_py.wire.violation import Rule
from cri_py.wire.websocket import Closed, Code, Connection, Event, Failed, Opcode, Piece, frame_header, unmask
from tests.simulators.websocket_client import MASK, frame, frames


def told(received: bytes) -> list[tuple[bytes, bool, bool]]:
    """Payload, first and last of each piece."""
    events = Connection().receive(received)
    assert all(isinstance(event, Piece) for event in events), events
    return [(bytes(event.payload), event.first, event.last) for event in events if isinstance(event, Piece)]


def failure(events: list[Event]) -> Rule:
    last = events[-1]
    assert isinstance(last, Failed), events
    return last.error.rule


@pytest.mark.parametrize(
    ("golden", "expected"),
    [
        ("8185 37fa213d 7f9f4d5158", [(b"Hello", True, True)]),  # RFC 6455 5.7, the masked text message
        ("0183 37fa213d 7f9f4d 8082 37fa213d 5b95", [(b"Hel", True, False), (b"lo", False, True)]),
        ("8280 37fa213d", [(b"", True, True)]),
        # What crictl exec -i over v5 sends: "hello\n" on channel 0.
        ("8287 e78c5eae e7e43bc28be354", [(b"\0hello\n", True, True)]),
    ],
)
def test_frames_are_read_as_specified(golden: str, expected: list[tuple[bytes, bool, bool]]) -> None:
    assert told(bytes.fromhex(golden)) == expected


def test_a_masked_ping_of_the_specification_gets_its_pong() -> None:
    connection = Connection()
    assert connection.receive(bytes.fromhex("8985 37fa213d 7f9f4d5158")) == []
    assert connection.replies() == bytes.fromhex("8a05") + b"Hello"


@pytest.mark.parametrize(
    ("size", "golden"),
    [
        (0, "8200"),
        (125, "827d"),
        (126, "827e007e"),
        (256, "827e0100"),  # RFC 6455 5.7
        (65535, "827effff"),
        (65536, "827f0000000000010000"),  # RFC 6455 5.7
    ],
)
def test_headers_take_the_shortest_form(size: int, golden: str) -> None:
    assert frame_header(size) == bytes.fromhex(golden)


@pytest.mark.parametrize("size", [125, 126, 127, 65535, 65536, 70000])
def test_every_form_of_a_length_is_read(size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    ((got, first, last),) = told(frame(payload[:size]))
    assert (got, first, last) == (payload[:size], True, True)


def test_unmasking_is_an_xor_wherever_it_begins() -> None:
    payload = bytes(range(256)) * 3
    for size in (*range(10), 700):
        expected = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload[:size]))
        assert unmask(payload[:size], MASK) == expected
    assert unmask(b"plain", bytes(4)) == b"plain"


def test_a_control_frame_may_come_within_a_message() -> None:
    connection = Connection()
    received = frame(b"one", fin=False) + frame(b"?", 9) + frame(b"two", 0)
    assert [bytes(event.payload) for event in connection.receive(received) if isinstance(event, Piece)] == [
        b"one",
        b"two",
    ]
    assert frames(connection.replies()) == [(10, b"?")]


@pytest.mark.parametrize(
    ("payload", "code"), [(b"", 1005), (b"\x03\xe8", 1000), (b"\x03\xe9going", 1001), (b"\x0b\xb8", 3000)]
)
def test_a_close_frame_is_answered_and_the_last(payload: bytes, code: int) -> None:
    connection = Connection()
    assert connection.receive(frame(payload, 8) + frame(b"late")) == [Closed(code)]
    assert frames(connection.replies()) == [(8, b"\x03\xe8")]
    assert connection.receive(frame(b"later")) == []


def test_a_close_frame_is_sent_once() -> None:
    connection = Connection()
    assert connection.close(Code.NORMAL, "é" * 100) == frame_header(124, Opcode.CLOSE) + b"\x03\xe8" + "é".encode() * 61
    assert connection.close(Code.NORMAL) == b""
    assert connection.receive(frame(b"", 9) + frame(b"", 8)) == [Closed(1005)]
    assert connection.replies() == b""


@pytest.mark.parametrize(
    ("received", "rule", "code"),
    [
        (frame(b"x", mask=None), Rule.MASK, 1002),
        (b"\x82\x00", Rule.MASK, 1002),
        (frame(b"x", reserved=4), Rule.RESERVED_BITS, 1002),
        (frame(b"x", reserved=1), Rule.RESERVED_BITS, 1002),
        *((frame(b"x", opcode), Rule.OPCODE, 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        (b"\x82\xfe\x00\x7d" + MASK, Rule.LENGTH, 1002),
        (b"\x82\xff" + (65535).to_bytes(8, "big") + MASK, Rule.LENGTH, 1002),
        (b"\x82\xff" + b"\x80" + bytes(7) + MASK, Rule.LENGTH, 1002),
        (frame(b"x", 9, fin=False), Rule.CONTROL_FRAME, 1002),
        (frame(b"", 8, fin=False), Rule.CONTROL_FRAME, 1002),
        (frame(bytes(126), 9), Rule.CONTROL_FRAME, 1002),
        (frame(b"x", 0), Rule.FRAGMENT, 1002),
        (frame(b"x", fin=False) + frame(b"y"), Rule.FRAGMENT, 1002),
        (frame(b"x", fin=False) + frame(b"y", 0) + frame(b"z", 0), Rule.FRAGMENT, 1002),
        (frame(b"\x03", 8), Rule.CLOSE_CODE, 1002),
        (frame(b"\x03\xe7", 8), Rule.CLOSE_CODE, 1002),
        (frame(b"\x03\xed", 8), Rule.CLOSE_CODE, 1002),
        (frame(b"\x03\xee", 8), Rule.CLOSE_CODE, 1002),
        (frame(b"\x13\x88", 8), Rule.CLOSE_CODE, 1002),
        (frame(b"\x03\xe8\xff", 8), Rule.CLOSE_CODE, 1002),
        (frame(b"", size=(32 << 20) + 1), Rule.MESSAGE_SIZE, 1009),
        (frame(b"", size=1 << 62), Rule.MESSAGE_SIZE, 1009),
    ],
)
def test_what_breaks_a_rule_ends_the_connection_by_its_name(received: bytes, rule: Rule, code: int) -> None:
    connection = Connection()
    assert failure(connection.receive(received)) is rule
    ((opcode, payload),) = frames(connection.replies())
    assert (opcode, payload[:2]) == (8, code.to_bytes(2, "big"))
    assert connection.receive(frame(b"more")) == []


def test_a_message_of_many_fragments_has_the_same_limit() -> None:
    connection = Connection(max_message=10)
    connection.receive(frame(b"12345", fin=False) + frame(b"67890", 0, fin=False))
    assert failure(connection.receive(frame(b"x", 0))) is Rule.MESSAGE_SIZE


def test_a_large_frame_is_not_held() -> None:
    connection = Connection()
    connection.receive(frame(b"", size=16 << 20))
    tracemalloc.start()
    try:
        for _ in range(64):
            connection.receive(bytes(64 << 10))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
