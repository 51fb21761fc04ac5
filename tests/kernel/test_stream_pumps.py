"""The loops of a stream process, with a client at the other end of a socket pair."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cri_py.monitor import stream, stream_command
from cri_py.monitor.link import Link
from cri_py.monitor.stream_command import CommandPump
from cri_py.monitor.stream_forward import ForwardPump
from cri_py.monitor.stream_process import Process
from cri_py.wire import channels, spdy
from cri_py.wire import spdy_frames as frames
from cri_py.wire.channels import Agreement, Exit, Outcome, Streams, Transport
from cri_py.wire.session import port_forward, remote_command

pytestmark = pytest.mark.root
IDLE_S = 60.0
ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


class ProcessSimulator(Process):
    """Says ``output``, and has ended at once."""

    def __init__(self, output: bytes = b"", lane: int = channels.STDOUT) -> None:
        super().__init__(tty=False)
        self._output = output
        self._lane = lane
        self.abandoned = False

    def start(self) -> str:
        for content, keep in ((self._output, True), (b"", False)):
            read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(write_end, content)
            os.close(write_end)
            if keep:
                self.outputs[self._lane] = read_end
            else:
                self.exit_fd = read_end  # readable, as it has ended
        return ""

    def outcome(self) -> Outcome:
        return Exit(0)

    def reap(self) -> None:
        """It is nobody's child."""

    def abandon(self) -> None:
        self.abandoned = True


@contextmanager
def pumping(run: Callable[[], str]) -> Iterator[list[str]]:
    """Run a pump in a thread; what it says is there after the body."""
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(run()))
    thread.start()
    try:
        yield said
    finally:
        thread.join(60)


def command(ours: socket.socket, process: Process) -> CommandPump:
    streams = Streams(stdin=False, stdout=True, stderr=False, tty=False)
    session = remote_command(Agreement(Transport.SPDY, channels.V4, b""), streams)
    return CommandPump(Link(ours, session, ANSWER), session, process, IDLE_S)


def test_a_client_that_opens_no_streams_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after the hours that a session may idle: it would keep a process, and what it was to attach to."""
    monkeypatch.setattr(stream_command, "_OPENING_S", 0.05)
    process = ProcessSimulator()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(60)
        with pumping(lambda: command(ours, process).run(b"")) as said:
            while theirs.recv(4096):
                pass
            theirs.close()
    assert process.abandoned
    assert "did not open its streams" in said[0]


def test_a_client_that_takes_its_time_gets_the_last_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand in this process and in the kernel when the session is over; a pager may hold them for long."""
    monkeypatch.setattr(Link.linger, "__defaults__", (0.02,))
    monkeypatch.setattr(stream_command, "DRAIN_S", 0.02)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = spdy.Connection(spdy.Role.CLIENT)
    with ours, theirs:
        theirs.settimeout(60)
        for number, kind in ((1, "error"), (3, "stdout")):
            theirs.sendall(client.send(frames.SynStream(number, {"streamtype": kind})))
        with pumping(lambda: command(ours, ProcessSimulator(bytes(60_000))).run(b"")) as said:
            time.sleep(0.3)  # what a slow client takes
            theirs.recv(len(ANSWER))
            received = {1: b"", 3: b""}
            while data := theirs.recv(1000):
                for event in client.receive(data):
                    if isinstance(event, frames.Chunk):
                        received[event.stream] += bytes(event.payload)
            theirs.close()
    assert said == [""]
    assert received[3] == bytes(60_000)
    assert json.loads(received[1])["status"] == "Success"


def test_a_forward_without_descriptors_left_fails_alone() -> None:
    ours, theirs = socket.socketpair()
    session = port_forward(Agreement(Transport.SPDY, channels.FORWARD, b""), [])
    client = spdy.Connection(spdy.Role.CLIENT)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, theirs:
        theirs.settimeout(60)
        pump = ForwardPump(Link(ours, session, ANSWER), session, os.pidfd_open(os.getpid()), IDLE_S)
        with pumping(lambda: pump.run(b"")) as said:
            theirs.sendall(client.send(frames.Ping(1)))
            theirs.recv(len(ANSWER))
            theirs.recv(4096)  # so it turns
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
                for number, kind in ((1, "error"), (3, "data")):
                    headers = {"streamtype": kind, "port": "1", "requestid": "0"}
                    theirs.sendall(client.send(frames.SynStream(number, headers)))
                brought: dict[int, bytes] = {}
                while not brought.get(1):
                    for event in client.receive(theirs.recv(4096)):
                        if isinstance(event, frames.Chunk):
                            brought[event.stream] = brought.get(event.stream, b"") + bytes(event.payload)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            theirs.sendall(client.send(frames.Ping(3)))
            assert frames.Ping(3) in client.receive(theirs.recv(4096))  # the session goes on
            theirs.close()
    assert b"Too many open files" in brought[1]
    assert said == [""]


def test_a_report_is_whole_json_whatever_the_error_says() -> None:
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    heard = stream.StreamProcess(read_end, stream.Forwarded(-1))
    try:
        assert not heard.hear()
        stream._report(write_end, stream.Forwarded(-1), 1.0, None, "\U0001f525" * 2000)
        assert not heard.hear()
        told = json.loads(heard.report)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert told["error"].startswith("\U0001f525")
    assert json.loads(stream.report_of_killed(stream.Forwarded(-1))).keys() == told.keys()
