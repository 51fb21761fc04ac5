"""However the bytes of a client are cut, a session says the same; and whatever they are, it ends in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from cri_py.wire import channels, spdy
from cri_py.wire.channels import Agreement, Streams, Transport
from cri_py.wire.events import Event, Gone, Received, Session
from cri_py.wire.session import port_forward, remote_command
from cri_py.wire.spdy_frames import Chunk, GoAway, Headers, Ping, RstStream, Settings, SynStream, WindowUpdate
from tests.simulators.websocket_client import frame

Make = Callable[[], Session]

ALL = Streams(stdin=True, stdout=True, stderr=False, tty=True)
COMMAND = partial(remote_command, Agreement(Transport.SPDY, channels.V4, b""), ALL)
CHANNELS = partial(remote_command, Agreement(Transport.WEBSOCKET, channels.V5, b""), ALL)
BASE64 = partial(remote_command, Agreement(Transport.WEBSOCKET, channels.V4_BASE64, b""), ALL)
FORWARD = partial(port_forward, Agreement(Transport.SPDY, channels.FORWARD, b""), [])
TUNNEL = partial(port_forward, Agreement(Transport.WEBSOCKET, channels.TUNNEL, b""), [])
PORTS = partial(port_forward, Agreement(Transport.WEBSOCKET, channels.V4, b""), [80, 443])


def spdy_command() -> bytes:
    client = spdy.Connection(spdy.Role.CLIENT)
    kinds = ("error", "stdin", "stdout", "resize")
    sent = [client.send(SynStream(1 + 2 * at, {"streamtype": kind})) for at, kind in enumerate(kinds)]
    sent += [
        client.send(each)
        for each in (
            Chunk(7, b'{"Width":80,"Height":24}\n{"Wid'),
            Chunk(3, b"hello "),
            Ping(1),
            Chunk(7, b'th":132,"Height":50}\n'),
            Settings({7: 1 << 20}),
            WindowUpdate(0, 1000),
            Headers(3, {"a": "b"}),
            Chunk(3, b"world" * 50),
            Chunk(3, b"", fin=True),
            RstStream(5, 5),
            GoAway(0),
        )
    ]
    return b"".join(sent)


def spdy_forward() -> list[bytes]:
    client = spdy.Connection(spdy.Role.CLIENT)
    sent = []
    for number, request in ((1, "0"), (5, "1")):
        for stream, kind in ((number, "error"), (number + 2, "data")):
            headers = {"streamtype": kind, "port": "80", "requestid": request}
            sent.append(client.send(SynStream(stream, headers)))
        sent.append(client.send(Chunk(number, b"", fin=True)))
    sent.append(client.send(Chunk(3, b"GET / HTTP/1.0\r\n\r\n")))
    sent.append(client.send(Chunk(7, b"x" * 300, fin=True)))
    sent.append(client.send(RstStream(3, 5)))
    return sent


CHANNEL_BYTES = b"".join(
    (
        frame(b'\4{"Width":80,"Height":24}'),
        frame(b"\0hello "),
        frame(b"ping", 9),
        frame(b"\0wor", fin=False),
        frame(b"pong", 10),
        frame(b"", 0, fin=False),
        frame(b"ld" * 300, 0),
        frame(b""),
        frame(b"\xff\0"),
        frame(b"\3\xe8bye", 8),
    )
)
BASE64_BYTES = b"".join((frame(b"0aGVs", 1), frame(b"0bG8g", 1, fin=False), frame(b"d29ybGQ=", 0), frame(b"4e30=", 1)))
TUNNEL_BYTES = b"".join(map(frame, spdy_forward())) + frame(b"\3\xe8", 8)
FORWARD_FRAMES = spdy_forward()
PORT_BYTES = frame(b"\0GET /") + frame(b"\2" + b"y" * 200) + frame(b"\1ignored") + frame(b"\0 HTTP/1.0")
SAID: Sequence[tuple[Make, bytes]] = (
    (COMMAND, spdy_command()),
    (CHANNELS, CHANNEL_BYTES),
    (BASE64, BASE64_BYTES),
    (FORWARD, b"".join(FORWARD_FRAMES)),
    (TUNNEL, TUNNEL_BYTES),
    (PORTS, PORT_BYTES),
)
# Bytes that end without a close, and the places where they may.
ENDS: Sequence[tuple[Make, bytes, set[int]]] = (
    (FORWARD, FORWARD_FRAMES[0] + FORWARD_FRAMES[1], {0, len(FORWARD_FRAMES[0]), sum(map(len, FORWARD_FRAMES[:2]))}),
    (PORTS, PORT_BYTES[:23], {0, 12}),
    (BASE64, BASE64_BYTES[:11], {0, 11}),
)


def said_by(make: Make, chunks: Iterable[bytes]) -> list[Event | str]:
    """All events, with the pieces of a lane joined."""
    session = make()
    events: list[Event] = []
    for chunk in (b"", *chunks):
        for event in session.receive(chunk):
            last = events[-1] if events else None
            if isinstance(event, Received):
                event = Received(event.lane, bytes(event.payload))  # noqa: PLW2901
                session.consumed(event.lane, len(event.payload))
                if isinstance(last, Received) and last.lane == event.lane:
                    events[-1] = Received(event.lane, bytes(last.payload) + event.payload)
                    continue
            events.append(event)
    return [str(event) if isinstance(event, Gone) else event for event in events]


def brought(events: Iterable[Event | str], lane: int) -> bytes:
    return b"".join(bytes(each.payload) for each in events if isinstance(each, Received) and each.lane == lane)


def cut(whole: bytes, places: Iterable[int]) -> list[bytes]:
    at = sorted({place % (len(whole) + 1) for place in places})
    return [whole[start:end] for start, end in zip([0, *at], [*at, len(whole)], strict=True)]


def test_a_client_that_is_read_byte_by_byte_says_the_same() -> None:
    for make, whole in SAID:
        assert said_by(make, cut(whole, range(len(whole)))) == said_by(make, [whole])


def test_a_client_that_is_cut_once_says_the_same() -> None:
    for make, whole in SAID:
        expected = said_by(make, [whole])
        for place in range(1, len(whole)):
            assert said_by(make, [whole[:place], whole[place:]]) == expected


@given(st.sampled_from(SAID), st.lists(st.integers(0, 1 << 16), max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_chunking_gives_the_same_events(said: tuple[Make, bytes], places: list[int]) -> None:
    make, whole = said
    assert said_by(make, cut(whole, places)) == said_by(make, [whole])


@given(st.sampled_from(SAID), st.integers(0, 1 << 16), st.binary(max_size=40), st.lists(st.integers(0, 1 << 16)))
@settings(max_examples=150, deadline=None)
def test_broken_bytes_end_in_the_same_words_however_they_are_cut(
    said: tuple[Make, bytes], place: int, broken: bytes, places: list[int]
) -> None:
    make, whole = said
    place %= len(whole) + 1
    damaged = whole[:place] + broken + whole[place + len(broken) :]
    fine, coarse = said_by(make, cut(damaged, places)), said_by(make, [damaged])
    assert fine[-1:] == coarse[-1:]
    if not (fine and isinstance(fine[-1], str)):
        assert fine == coarse
    # Of the message that breaks a rule, smaller pieces may have brought more before the rule was broken, never other.
    for lane in range(256):
        less, more = sorted((brought(fine, lane), brought(coarse, lane)), key=len)
        assert more.startswith(less)


def test_a_client_may_leave_between_frames_but_not_within_one() -> None:
    for make, whole, boundaries in ENDS:
        for place in range(len(whole) + 1):
            session = make()
            session.receive(whole[:place])
            (gone,) = session.receive_eof()
            assert isinstance(gone, Gone)
            assert (gone.error is None) is (place in boundaries), place
            assert session.receive_eof() == []
            assert session.receive(whole) == []
