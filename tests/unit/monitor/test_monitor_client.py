"""The daemon's end of a monitor, against a monitor that is simulated at the other end of a socket pair."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cri_py import telemetry
from cri_py.errors import DeadlineExceeded, FailedPrecondition, Internal, NotFound, StartError, Unavailable
from cri_py.monitor import protocol, transport
from cri_py.monitor.client import SOCKET_NAME, MonitorClient
from tests.leaks import open_descriptors


class MonitorSimulator:
    """Receives frames, answers as it is told."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection

    async def receive(self) -> tuple[dict[str, Any], list[int]]:
        while True:
            try:
                frame, fds = transport.receive(self.connection)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            request = protocol.parse_request(frame)
            words = dict(zip(protocol.WORDS[request.op], (word.decode() for word in request.words), strict=True))
            rest = json.loads(request.body) if request.body else {}
            return {"op": request.op, "seq": request.seq, **words, **rest}, fds

    def send(self, frame: bytes) -> None:
        transport.send(self.connection, frame)

    async def answer(self, **result: Any) -> dict[str, Any]:
        message, _ = await self.receive()
        self.send(answer(message["seq"], result))
        return message


def answer(seq: int, result: dict[str, Any]) -> bytes:
    return protocol.answer(seq, json.dumps(result).encode())


@pytest.fixture
async def ends() -> AsyncIterator[tuple[MonitorClient, MonitorSimulator]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = MonitorClient(ours)
    with theirs:
        yield client, MonitorSimulator(theirs)
    client.close()


Ends = tuple[MonitorClient, MonitorSimulator]


async def test_a_request_gets_its_own_answer(ends: Ends) -> None:
    client, monitor = ends
    first = asyncio.create_task(client.request("reopen", timeout_s=60, id="a"))
    second = asyncio.create_task(client.request("reopen", timeout_s=60, id="b"))
    (one, _), (two, _) = await monitor.receive(), await monitor.receive()
    assert [(one["op"], one["id"]), (two["op"], two["id"])] == [("reopen", "a"), ("reopen", "b")]
    monitor.send(answer(two["seq"], {"of": "b"}))
    monitor.send(answer(one["seq"], {"of": "a"}))
    assert await asyncio.gather(first, second) == [{"of": "a"}, {"of": "b"}]


@pytest.mark.parametrize(
    ("kind", "error"),
    [("start", StartError), ("state", FailedPrecondition), ("missing", NotFound), ("failed", Internal)],
)
async def test_a_refusal_is_raised_in_the_monitors_words(ends: Ends, kind: str, error: type[Exception]) -> None:
    client, monitor = ends
    asked = asyncio.create_task(client.request("start", timeout_s=60, id="a"))
    message, _ = await monitor.receive()
    monitor.send(protocol.refusal(message["seq"], kind, "exec: no such file"))
    with pytest.raises(error, match="exec: no such file"):
        await asked


async def test_a_monitor_that_does_not_answer_is_given_up_and_its_late_answer_ignored(ends: Ends) -> None:
    client, monitor = ends
    with pytest.raises(DeadlineExceeded, match="hello"):
        await client.request("hello", timeout_s=0.01)
    message, _ = await monitor.receive()
    monitor.send(answer(message["seq"], {"late": True}))
    asked = asyncio.create_task(client.request("hello", timeout_s=60))
    await monitor.answer(now=True)
    assert await asked == {"now": True}


async def test_what_a_monitor_still_owes_an_earlier_daemon_answers_nothing_of_ours(ends: Ends) -> None:
    client, monitor = ends
    asked = asyncio.create_task(client.request("hello", timeout_s=60))
    for seq in range(1, 50):
        monitor.send(answer(seq, {"old": True}))
    await monitor.answer(now=True)
    assert await asked == {"now": True}


async def test_a_monitor_that_dies_is_told_once_and_ends_every_request(ends: Ends) -> None:
    client, monitor = ends
    told = []
    client.on_lost = lambda: told.append("lost")
    asked = [asyncio.create_task(client.request("exec", timeout_s=None, id="a", name="e")) for _ in range(3)]
    await monitor.receive()
    monitor.connection.close()
    for request in asked:
        with pytest.raises(Unavailable):
            await request
    with pytest.raises(Unavailable):
        await client.request("hello", timeout_s=1)
    assert told == ["lost"]
    assert client.closed


async def test_a_monitor_that_is_let_go_is_not_lost(ends: Ends) -> None:
    client, _ = ends
    told = []
    client.on_lost = lambda: told.append("lost")
    asked = asyncio.create_task(client.request("hello", timeout_s=60))
    await asyncio.sleep(0)
    client.close()
    with pytest.raises(Unavailable):
        await asked
    assert told == []


async def test_events_from_before_anybody_listened_are_kept(ends: Ends) -> None:
    client, monitor = ends
    asked = asyncio.create_task(client.request("hello", timeout_s=60))
    message, _ = await monitor.receive()
    monitor.send(answer(message["seq"], {}))
    monitor.send(protocol.event(b"holder_exit"))  # read in the same round as the answer
    await asked
    assert client.early == [{"event": "holder_exit"}]
    seen: list[dict[str, Any]] = []
    client.on_event = seen.append
    monitor.send(protocol.event(b"exit", b'{"id":"a"}'))
    await asyncio.sleep(0.01)
    assert seen == [{"event": "exit", "id": "a"}]


async def test_a_full_socket_delays_requests_and_keeps_their_order_and_descriptors(ends: Ends) -> None:
    client, monitor = ends
    read_end, write_end = os.pipe()
    asked = []
    for number in range(500):
        asked.append(
            asyncio.create_task(client.request("reopen", timeout_s=60, id="a", n=number, x="y" * 4096, fds=(read_end,)))
        )
        await asyncio.sleep(0)
    os.close(read_end)
    for number in range(500):
        message, (fd,) = await monitor.receive()
        os.close(fd)
        assert message["n"] == number
        monitor.send(answer(message["seq"], {"n": number}))
        await asyncio.sleep(0)
    assert [answer["n"] for answer in await asyncio.gather(*asked)] == list(range(500))
    os.close(write_end)


async def test_descriptors_that_still_wait_are_closed_with_the_connection(ends: Ends) -> None:
    client, monitor = ends
    before = len(open_descriptors())
    read_end, write_end = os.pipe()
    asked = [
        asyncio.create_task(client.request("reopen", timeout_s=60, id="a", x="y" * 4096, fds=(read_end,)))
        for _ in range(500)
    ]
    await asyncio.sleep(0)
    os.close(read_end)
    os.close(write_end)
    client.close()
    monitor.connection.close()  # what has been sent goes with it
    for request in asked:
        with pytest.raises(Unavailable):
            await request
    assert len(open_descriptors()) == before - 2


async def test_a_new_monitor_says_that_it_is_up(ends: Ends) -> None:
    client, monitor = ends
    monitor.send(protocol.event(b"up", b'{"pid":42}'))
    assert await client.wait_until_up(5) == 42
    assert client.pid == 42


async def test_a_monitor_that_dies_before_it_is_up_is_unavailable(ends: Ends) -> None:
    client, monitor = ends
    monitor.connection.close()
    with pytest.raises(Unavailable, match="died at once"):
        await client.wait_until_up(5)


async def test_a_monitor_that_does_not_come_up_is_given_up(ends: Ends) -> None:
    client, _ = ends
    with pytest.raises(DeadlineExceeded):
        await client.wait_until_up(0.01)


async def test_a_monitor_is_found_again_by_its_directory(tmp_path: Any) -> None:
    deep = tmp_path / ("d" * 100)  # a socket's path holds 108 bytes
    deep.mkdir()
    with pytest.raises(Unavailable, match="no monitor answers"):
        MonitorClient.connect(str(deep))
    fd = os.open(deep, os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"/proc/self/fd/{fd}/{SOCKET_NAME}")
        os.close(fd)
        listener.listen()
        client = MonitorClient.connect(str(deep))
        connection, _ = listener.accept()
        with connection:
            asked = asyncio.create_task(client.request("hello", timeout_s=60))
            await MonitorSimulator(connection).answer(pid=1)
            assert await asked == {"pid": 1}
            client.close()


async def test_a_monitor_that_hangs_with_a_full_queue_holds_no_start_up(tmp_path: Any) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
        listener.listen(0)
        waiting = MonitorClient.connect(str(tmp_path))
        with pytest.raises(Unavailable, match="no monitor answers"):
            MonitorClient.connect(str(tmp_path))
        waiting.close()


async def test_what_a_monitor_reports_is_no_part_of_the_call_that_made_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reset = telemetry.request_id.set("a call")
    client = MonitorClient(ours)
    seen: list[str] = []
    client.on_event = lambda _: seen.append(telemetry.request_id.get())
    with theirs:
        MonitorSimulator(theirs).send(protocol.event(b"holder_exit"))
        await asyncio.sleep(0.01)
    client.close()
    telemetry.request_id.reset(reset)
    assert seen == [""]
