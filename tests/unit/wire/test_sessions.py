"""Sessions: what the stream process sees of a client, the same over every transport."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cri_py.wire import channels, spdy
from cri_py.wire.channels import ERROR, STDERR, STDIN, STDOUT, Agreement, Exit, Failure, Streams, Transport
from cri_py.wire.events import (
    MOST_HELD,
    MOST_SENT,
    Command,
    Dropped,
    Event,
    Forward,
    Gone,
    HalfClosed,
    Opened,
    Ready,
    Received,
    Resized,
    Session,
)
from cri_py.wire.session import port_forward, remote_command
from cri_py.wire.spdy_frames import (
    Chunk,
    Departure,
    Frame,
    GoAway,
    Ping,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
    chunk_header,
)
from cri_py.wire.violation import ProtocolError, Rule
from tests.simulators.websocket_client import frame, frames

PIPES = Streams(stdin=True, stdout=True, stderr=True, tty=False)
TERMINAL = Streams(stdin=True, stdout=True, stderr=False, tty=True)
CLOSE_NORMAL = (8, b"\x03\xe8")

# What crictl exec -i sent, over SPDY and v4: streams error, stdin, stdout, stderr.
CRICTL = bytes.fromhex(
    "800300010000002900000001000000000000"
    "78f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff"
    "800300010000001700000003000000000000c22e555c92929907000000ffff"
    "800300010000001900000005000000000000c22ac5565c92925f5a02000000ffff"
)
# What crictl port-forward sent: the error stream and its end, the data stream of request 0 to port 18099.
CRICTL_FORWARD = bytes.fromhex(
    "800300010000004000000001000000000000"
    "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45a024cc6a68616069c9c0c0c0590489c74c50fa663400000000ffff"
    "0000000101000000"
    "800300010000001a00000003000000000000"
    "82ea264219aa05a0b22a11000000ffff"
)


def sent_by(session: Session) -> bytes:
    return b"".join(session.pieces())


class SpdyClient:
    """A client beside a session over SPDY."""

    def __init__(self, session: Session) -> None:
        self.connection = spdy.Connection(spdy.Role.CLIENT)
        self.session = session
        self.wraps = False

    def say(self, *said: Frame) -> list[Event]:
        sent = b"".join(map(self.connection.send, said)) + self.connection.replies()
        return self.session.receive(frame(sent) if self.wraps and sent else sent)

    def hear(self) -> list[spdy.Event]:
        heard = sent_by(self.session)
        if self.wraps:
            messages = frames(heard)
            assert all(opcode == 2 for opcode, _ in messages)
            heard = b"".join(payload for _, payload in messages)
        return self.connection.receive(heard)

    def open(self, **headers: str) -> list[Event]:
        return self.say(SynStream(self.connection.next_stream, headers))


def command_by_spdy(streams: Streams = PIPES, protocol: str = channels.V4) -> tuple[SpdyClient, Command]:
    """With error as stream 1 and the others after it."""
    session = remote_command(Agreement(Transport.SPDY, protocol, b""), streams)
    assert session.receive(b"") == []
    client = SpdyClient(session)
    lanes = sorted(streams.lanes(protocol), key=[ERROR, STDIN, STDOUT, STDERR, channels.RESIZE].index)
    names = {lane: name for name, lane in channels.LANES.items()}
    opened = [client.open(streamtype=names[lane]) for lane in lanes]
    assert opened == [[]] * (len(lanes) - 1) + [[Ready()]]
    assert client.hear() == [SynReply(1 + 2 * at, {}) for at in range(len(lanes))]
    return client, session


def command_by_channels(streams: Streams = PIPES, protocol: str = channels.V5) -> Command:
    session = remote_command(Agreement(Transport.WEBSOCKET, protocol, b""), streams)
    assert session.receive(b"") == [Ready()]
    session.pieces()
    return session


def forward_by_spdy(*, tunnelled: bool = False) -> tuple[SpdyClient, Forward]:
    """With one connection to port 80, whose error stream is 1 and whose data stream, its lane, is 3."""
    transport = Transport.WEBSOCKET if tunnelled else Transport.SPDY
    session = port_forward(Agreement(transport, channels.TUNNEL if tunnelled else channels.FORWARD, b""), [])
    client = SpdyClient(session)
    client.wraps = tunnelled
    assert client.open(streamtype="error", port="80", requestid="0") == []
    assert client.open(streamtype="data", port="80", requestid="0") == [Opened(3, 80)]
    assert client.hear() == [SynReply(1, {}), SynReply(3, {})]
    assert client.say(Chunk(1, b"", fin=True)) == []
    return client, session


def gone(events: Sequence[Event]) -> Rule:
    last = events[-1]
    assert isinstance(last, Gone), events
    assert last.error is not None
    return last.error.rule


# -------------------------------------------------------------- commands by SPDY


def test_a_command_is_ready_when_its_streams_are_there() -> None:
    session = remote_command(Agreement(Transport.SPDY, channels.V4, b""), Streams(True, True, False, False))
    assert session.receive(CRICTL) == [Ready()]
    assert session.room(STDOUT) == MOST_SENT
    assert session.room(STDERR) == 0


def test_stdin_comes_and_ends() -> None:
    client, session = command_by_spdy()
    assert client.say(Chunk(3, b"hello"), Chunk(3, b"", fin=True)) == [Received(STDIN, b"hello"), HalfClosed(STDIN)]
    session.consumed(STDIN, 5)
    assert session.wants_input


def test_output_and_exit_code_leave_in_order() -> None:
    client, session = command_by_spdy()
    session.send(STDOUT, b"out")
    session.send(STDERR, b"err")
    session.close(STDERR)
    session.close(STDERR)
    session.finish(Exit(3))
    status = channels.status(channels.V4, Exit(3))
    assert client.hear() == [
        Chunk(5, b"out"),
        Chunk(7, b"err"),
        Chunk(7, b"", fin=True),
        Chunk(5, b"", fin=True),
        Chunk(1, status, fin=True),
        Chunk(3, b"", fin=True),
        GoAway(7),
    ]
    assert session.gone
    assert not session.wants_input
    assert client.say(Chunk(3, b"late")) == []
    session.finish(Exit(0))
    assert session.pieces() == []


@pytest.mark.parametrize("protocol", [channels.V1, channels.V2, channels.V3])
def test_success_says_nothing_before_v4(protocol: str) -> None:
    client, session = command_by_spdy(Streams(False, True, False, False), protocol)
    session.finish(Exit(0))
    assert client.hear() == [Chunk(3, b"", fin=True), Chunk(1, b"", fin=True), GoAway(3)]


def test_a_payload_leaves_uncopied_behind_its_header() -> None:
    client, session = command_by_spdy()
    payload = bytearray(b"x" * 100)
    session.send(STDOUT, payload)
    header, same = session.pieces()
    assert same is payload
    assert header == chunk_header(5, 100)
    assert session.splices
    session.send_header(STDOUT, 7)
    assert session.pieces() == [chunk_header(5, 7)]
    assert client.connection.receive(chunk_header(5, 7) + b"spliced") == [Chunk(5, b"spliced")]


def test_a_terminal_is_resized_however_its_size_is_cut() -> None:
    client, _ = command_by_spdy(TERMINAL)
    assert client.say(Chunk(7, b'{"Width":80,"Hei'), Chunk(7, b'ght":24}\n')) == [Resized(80, 24)]


def test_a_client_may_drop_a_stream() -> None:
    client, session = command_by_spdy()
    assert client.say(RstStream(5, 5)) == [Dropped(STDOUT)]
    assert session.room(STDOUT) == 0
    assert client.say(RstStream(3, 5), RstStream(1, 5)) == [Dropped(STDIN)]
    session.finish(Exit(0))
    assert client.hear()[-1] == GoAway(7)


def test_a_command_that_reads_nothing_stops_the_client() -> None:
    """A client of Kubernetes keeps no windows: not to read from it is the only bound there is."""
    client, session = command_by_spdy()
    for _ in range(MOST_HELD >> 15):
        assert session.wants_input
        client.say(Chunk(3, bytes(1 << 15)))
    assert not session.wants_input
    session.consumed(STDIN, 1)
    assert session.wants_input


def test_windows_are_kept_with_a_client_that_keeps_them() -> None:
    client, session = command_by_spdy()
    client.say(Settings({7: 100}))
    assert session.room(STDOUT) == 100
    session.send(STDOUT, bytes(100))
    with pytest.raises(ProtocolError):
        session.send(STDOUT, b"x")
    client.say(WindowUpdate(5, 1))
    session.send(STDOUT, b"x")
    client.hear()
    client.say(Chunk(3, bytes(spdy.WINDOW)))
    session.consumed(STDIN, spdy.WINDOW)
    assert client.hear() == [WindowUpdate(3, spdy.WINDOW), WindowUpdate(0, spdy.WINDOW)]


def test_a_ping_is_answered() -> None:
    client, _ = command_by_spdy()
    assert client.say(Ping(1)) == []
    assert client.hear() == [Ping(1)]


@pytest.mark.parametrize("kind", ["", "data", "stdout", "resize", "STDIN"])
def test_a_stream_that_was_not_asked_for_ends_the_session(kind: str) -> None:
    client, _ = command_by_spdy()
    assert gone(client.open(streamtype=kind)) is Rule.STREAM_TYPE
    assert client.hear() == [GoAway(9, Departure.PROTOCOL_ERROR)]


def test_a_size_that_is_none_ends_the_session() -> None:
    client, session = command_by_spdy(TERMINAL)
    assert gone(client.say(Chunk(7, b"80x24\n"))) is Rule.RESIZE
    assert client.hear() == [GoAway(7, Departure.PROTOCOL_ERROR)]
    assert session.gone


def test_a_broken_frame_ends_the_session_after_what_came_before() -> None:
    client, session = command_by_spdy()
    good = client.connection.send(Chunk(3, b"good"))
    events = session.receive(good + bytes.fromhex("8002000100000000"))
    assert events[0] == Received(STDIN, b"good")
    assert gone(events) is Rule.VERSION
    assert client.hear() == [GoAway(7, Departure.PROTOCOL_ERROR)]


# ---------------------------------------------------------- commands by channels


@pytest.mark.parametrize(
    ("streams", "first"),
    [(PIPES, b"\1"), (Streams(False, False, True, False), b"\2"), (Streams(True, False, False, False), b"\3")],
)
def test_an_empty_message_tells_that_a_command_begins(streams: Streams, first: bytes) -> None:
    session = remote_command(Agreement(Transport.WEBSOCKET, channels.V4, b""), streams)
    assert session.receive(b"") == [Ready()]
    assert frames(sent_by(session)) == [(2, first)]


def test_channels_carry_what_streams_do() -> None:
    session = command_by_channels()
    assert session.receive(frame(b"\0hello")) == [Received(STDIN, b"hello")]
    assert session.receive(frame(b"\xff\0")) == [HalfClosed(STDIN)]
    assert session.receive(frame(b"\xff\0") + frame(b"\xff\1") + frame(b"")) == []
    session.send(STDOUT, b"out")
    session.send(STDERR, b"err")
    session.close(STDOUT)
    assert session.room(STDOUT) == 0
    session.finish(Exit(3))
    assert frames(sent_by(session)) == [
        (2, b"\1out"),
        (2, b"\2err"),
        (2, b"\3" + channels.status(channels.V4, Exit(3))),
        CLOSE_NORMAL,
    ]
    assert session.receive(frame(b"\x03\xe8", 8)) == []


def test_a_terminal_is_resized_by_a_channel() -> None:
    session = command_by_channels(TERMINAL)
    assert session.receive(frame(b'\4{"Width":80,"Height":24}')) == [Resized(80, 24)]
    assert gone(session.receive(frame(b"\4[]}"))) is Rule.RESIZE
    ((opcode, payload),) = frames(sent_by(session))
    assert (opcode, payload[:2]) == (8, b"\x03\xea")


def test_base64_goes_both_ways() -> None:
    session = command_by_channels(PIPES, channels.V4_BASE64)
    assert not session.splices
    assert session.receive(frame(b"0aGVsbG8=", 1)) == [Received(STDIN, b"hello")]
    session.send(STDOUT, b"hi")
    session.finish(Failure("it broke"))
    (out, status, close) = frames(sent_by(session))
    assert (out, status[1][:1], close) == ((1, b"1aGk="), b"3", CLOSE_NORMAL)
    with pytest.raises(ProtocolError):
        command_by_channels(PIPES, channels.V1_BASE64).send_header(STDOUT, 1)


def test_a_header_counts_the_byte_of_the_channel() -> None:
    session = command_by_channels()
    session.send_header(STDOUT, 200)
    assert sent_by(session) == bytes.fromhex("827e00c9 01")


def test_what_is_not_connected_is_dropped() -> None:
    """As by the kubelet: a browser sends sizes and keys whether or not they are of use."""
    session = command_by_channels(Streams(False, True, False, False))
    assert session.receive(frame(b"\0keys") + frame(b"\4no size") + frame(b"\2what") + frame(b"\xff\0")) == []


def test_channels_that_are_read_by_nobody_stop_the_client() -> None:
    session = command_by_channels()
    session.receive(frame(b"\0" + bytes(MOST_HELD)))
    assert not session.wants_input
    session.consumed(STDIN, MOST_HELD)
    assert session.wants_input


@pytest.mark.parametrize(
    ("protocol", "received", "rule", "code"),
    [
        (channels.V5, frame(b"\5x"), Rule.CHANNEL, 1002),
        (channels.V5, frame(b"\xfex"), Rule.CHANNEL, 1002),
        (channels.V4, frame(b"\xff\0"), Rule.CHANNEL, 1002),
        (channels.V5, frame(b"\xff"), Rule.CLOSE_CHANNEL, 1002),
        (channels.V5, frame(b"\xff\0\0"), Rule.CLOSE_CHANNEL, 1002),
        (channels.V5, frame(b"\xff\5"), Rule.CLOSE_CHANNEL, 1002),
        (channels.V5, frame(b"\xff\0") + frame(b"\0late"), Rule.CLOSE_CHANNEL, 1002),
        (channels.V4_BASE64, frame(b"5aGk=", 1), Rule.CHANNEL, 1002),
        (channels.V4_BASE64, frame(b"\0aGk=", 1), Rule.CHANNEL, 1002),
        (channels.V4_BASE64, frame(b"0a", 1), Rule.BASE64, 1007),
        (channels.V5, frame(b"\0x", mask=None), Rule.MASK, 1002),
    ],
)
def test_a_broken_message_ends_the_session(protocol: str, received: bytes, rule: Rule, code: int) -> None:
    session = command_by_channels(PIPES, protocol)
    assert gone(session.receive(received)) is rule
    ((opcode, payload),) = frames(sent_by(session))
    assert (opcode, payload[:2]) == (8, code.to_bytes(2, "big"))
    assert session.receive(frame(b"\0more")) == []


def test_a_client_that_closes_is_gone() -> None:
    session = command_by_channels()
    assert session.receive(frame(b"\0last") + frame(b"\x03\xe9", 8)) == [Received(STDIN, b"last"), Gone(None)]
    assert frames(sent_by(session)) == [CLOSE_NORMAL]
    assert session.room(STDOUT) == 0
    assert session.receive_eof() == []


# ----------------------------------------------------------------- port-forwards


@pytest.mark.parametrize("tunnelled", [False, True])
def test_a_connection_goes_both_ways(tunnelled: bool) -> None:
    client, session = forward_by_spdy(tunnelled=tunnelled)
    assert client.say(Chunk(3, b"ping")) == [Received(3, b"ping")]
    session.consumed(3, 4)
    session.send(3, b"pong")
    session.send_header(3, 4)
    pieces = [*session.pieces(), b"more"]
    whole = b"".join(pieces)
    heard = b"".join(payload for _, payload in frames(whole)) if tunnelled else whole
    assert client.connection.receive(heard) == [Chunk(3, b"pong"), Chunk(3, b"more")]
    session.close(3)
    assert client.say(Chunk(3, b"rest", fin=True)) == [Received(3, b"rest"), HalfClosed(3)]
    session.end(3)
    assert client.hear() == [Chunk(3, b"", fin=True), Chunk(1, b"", fin=True)]


def test_what_crictl_sends_opens_a_connection() -> None:
    session = port_forward(Agreement(Transport.SPDY, channels.FORWARD, b""), [])
    assert session.receive(CRICTL_FORWARD) == [Opened(3, 18099)]


def test_connections_are_independent() -> None:
    client, session = forward_by_spdy()
    assert client.open(streamtype="data", port="81", requestid="1") == []
    assert client.open(streamtype="error", port="81", requestid="1") == [Opened(5, 81)]
    client.hear()
    session.fail(5, "connection refused")
    session.end(5)
    assert client.hear() == [Chunk(7, b"connection refused", fin=True), Chunk(5, b"", fin=True)]
    assert client.say(Chunk(5, b"late"), Chunk(3, b"on")) == [Received(3, b"on")]
    assert session.room(5) == 0


def test_a_connection_that_the_client_resets_is_dropped_alone() -> None:
    client, session = forward_by_spdy()
    assert client.say(RstStream(3, 5)) == [Dropped(3)]
    assert session.room(3) == 0
    session.close(3)
    session.end(3)
    session.end(3)
    session.fail(3, "too late")
    assert client.hear() == [Chunk(1, b"", fin=True)]
    assert client.open(streamtype="error", port="80", requestid="0") == []
    assert client.open(streamtype="data", port="80", requestid="0") == [Opened(7, 80)]


def test_old_clients_name_no_request() -> None:
    session = port_forward(Agreement(Transport.SPDY, channels.FORWARD, b""), [])
    client = SpdyClient(session)
    assert client.open(streamtype="error", port="80") == []
    assert client.open(streamtype="data", port="80") == [Opened(3, 80)]


def test_a_half_that_is_reset_is_forgotten() -> None:
    session = port_forward(Agreement(Transport.SPDY, channels.FORWARD, b""), [])
    client = SpdyClient(session)
    client.open(streamtype="error", port="80", requestid="0")
    assert client.say(RstStream(1, 5)) == []
    assert client.open(streamtype="error", port="80", requestid="0") == []
    assert client.open(streamtype="data", port="80", requestid="0") == [Opened(5, 80)]


@pytest.mark.parametrize(
    "headers",
    [
        {"streamtype": "data", "port": "0", "requestid": "1"},
        {"streamtype": "data", "requestid": "1"},
        {"streamtype": "stdin", "port": "80", "requestid": "1"},
        {"port": "80"},
        {"streamtype": "error", "port": "80", "requestid": "half"},
    ],
)
def test_a_stream_that_forwards_nothing_ends_the_session(headers: dict[str, str]) -> None:
    client, session = forward_by_spdy()
    client.open(streamtype="error", port="80", requestid="half")
    assert gone(client.open(**headers)) is Rule.FORWARD
    assert session.gone


def test_a_stream_that_takes_no_answer_ends_the_session() -> None:
    """It would be closed from its first frame, so that no bound on open streams would count it."""
    client, _ = forward_by_spdy()
    headers = {"streamtype": "error", "port": "80", "requestid": "9"}
    assert gone(client.say(SynStream(5, headers, fin=True, unidirectional=True))) is Rule.FORWARD


def test_a_tunnel_takes_no_text_and_ends_with_both_words() -> None:
    client, session = forward_by_spdy(tunnelled=True)
    assert gone(session.receive(frame(b"text", 1))) is Rule.OPCODE
    goaway, close = frames(sent_by(session))
    assert client.connection.receive(goaway[1]) == [GoAway(3, Departure.PROTOCOL_ERROR)]
    assert (close[0], close[1][:2]) == (8, b"\x03\xea")


def test_a_tunnel_with_a_broken_frame_ends_with_both_words() -> None:
    client, session = forward_by_spdy(tunnelled=True)
    assert gone(session.receive(frame(bytes.fromhex("8002000100000000")))) is Rule.VERSION
    goaway, close = frames(sent_by(session))
    assert client.connection.receive(goaway[1]) == [GoAway(3, Departure.PROTOCOL_ERROR)]
    assert (close[0], close[1][:2]) == (8, b"\x03\xea")


def test_a_session_may_leave() -> None:
    client, session = forward_by_spdy(tunnelled=True)
    session.leave()
    session.leave()
    goaway, close = frames(sent_by(session))
    assert (client.connection.receive(goaway[1]), close) == ([GoAway(3)], CLOSE_NORMAL)
    assert session.gone


def test_ports_of_the_request_are_channels() -> None:
    session = port_forward(Agreement(Transport.WEBSOCKET, channels.V4, b""), [80, 8443])
    assert session.receive(b"") == [Opened(0, 80), Opened(1, 8443)]
    assert frames(sent_by(session)) == [(2, b"\0P\0"), (2, b"\1P\0"), (2, b"\2\xfb "), (2, b"\3\xfb ")]
    assert session.receive(frame(b"\0a") + frame(b"\1b") + frame(b"\2c")) == [Received(0, b"a"), Received(1, b"c")]
    session.send(1, b"answer")
    session.fail(0, "refused")
    session.end(0)
    assert frames(sent_by(session)) == [(2, b"\2answer"), (2, b"\1refused")]
    assert session.room(0) == session.room(2) == 0
    assert session.receive(frame(b"\0late")) == []
    assert gone(session.receive(frame(b"\4x"))) is Rule.CHANNEL
