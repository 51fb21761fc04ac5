"""Frames over a socket: large ones travel in a memfd, descriptors arrive, nothing is left open."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from cri_py.monitor import protocol, transport
from tests.leaks import open_descriptors


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def open_fds() -> int:
    return len(open_descriptors())


@pytest.mark.parametrize(
    "length", [1, 100, protocol.PACKET_BYTES - 1, protocol.PACKET_BYTES, protocol.PACKET_BYTES + 1, 3 << 20]
)
def test_a_frame_of_any_size_arrives_and_leaves_nothing_open(
    pair: tuple[socket.socket, socket.socket], length: int
) -> None:
    before = open_fds()
    transport.send(pair[0], b"y" * length)
    assert transport.receive(pair[1]) == (b"y" * length, [])
    assert open_fds() == before


@pytest.mark.parametrize("length", [1, 1 << 20])
def test_descriptors_arrive_beside_their_frame(pair: tuple[socket.socket, socket.socket], length: int) -> None:
    read_end, write_end = os.pipe()
    transport.send(pair[0], b"y" * length, (read_end,))
    os.close(read_end)
    _, (taken,) = transport.receive(pair[1])
    os.write(write_end, b"through")
    assert os.read(taken, 10) == b"through"
    assert not os.get_inheritable(taken)
    os.close(taken)
    os.close(write_end)


def test_frames_keep_their_order_and_their_bounds(pair: tuple[socket.socket, socket.socket]) -> None:
    for number in range(20):
        transport.send(pair[0], b"%d" % number)
    assert [transport.receive(pair[1])[0] for _ in range(20)] == [b"%d" % number for number in range(20)]


def test_the_end_of_the_other_side_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].close()
    assert transport.receive(pair[1]) == (b"", [])
    with pytest.raises(BrokenPipeError):
        transport.send(pair[1], b"x")


def test_a_full_socket_refuses_instead_of_blocking(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].setblocking(False)
    before = open_fds()
    with pytest.raises(BlockingIOError):  # noqa: PT012
        while True:
            transport.send(pair[0], b"y" * (1 << 20))
    while True:
        pair[1].setblocking(False)
        try:
            transport.receive(pair[1])
        except BlockingIOError:
            break
    assert open_fds() == before
