"""Which protocol is agreed on, and the bytes that say so."""

from __future__ import annotations

import pytest

from cri_py.wire import channels
from cri_py.wire.channels import Agreement, Transport
from cri_py.wire.negotiation import Refusal, negotiate

SPDY = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]
WEBSOCKET = [
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),  # RFC 6455 1.3
]


def spdy(*protocols: str, forward: bool = False) -> Agreement | Refusal:
    asked = [("X-Stream-Protocol-Version", protocol) for protocol in protocols]
    return negotiate("POST", [*SPDY, *asked], forward=forward)


def websocket(*protocols: str, forward: bool = False, ports: tuple[int, ...] = ()) -> Agreement | Refusal:
    asked = [("Sec-WebSocket-Protocol", protocol) for protocol in protocols]
    return negotiate("GET", [*WEBSOCKET, *asked], forward=forward, ports=ports)


def without(name: str) -> list[tuple[str, str]]:
    return [header for header in WEBSOCKET if header[0] != name]


def test_spdy_is_answered_with_the_chosen_protocol() -> None:
    assert spdy(channels.V4) == Agreement(
        Transport.SPDY,
        "v4.channel.k8s.io",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n",
    )


def test_a_websocket_is_answered_as_in_the_specification() -> None:
    assert websocket("v5.channel.k8s.io") == Agreement(
        Transport.WEBSOCKET,
        "v5.channel.k8s.io",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n",
    )


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (["v9.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"], "v3.channel.k8s.io"),
        (["v9.channel.k8s.io, v2.channel.k8s.io ,v4.channel.k8s.io"], "v2.channel.k8s.io"),
        (["channel.k8s.io"], "channel.k8s.io"),
    ],
)
def test_the_clients_first_that_we_have_is_taken(asked: list[str], chosen: str) -> None:
    for answer in (spdy(*asked), websocket(*asked) if chosen == "channel.k8s.io" else spdy(*asked)):
        assert isinstance(answer, Agreement)
        assert answer.protocol == chosen


def test_a_websocket_that_asks_for_nothing_gets_no_protocol() -> None:
    answer = websocket()
    assert isinstance(answer, Agreement)
    assert answer.protocol == ""
    assert b"Sec-WebSocket-Protocol" not in answer.answer


def test_a_port_forward_is_tunnelled_or_has_its_ports_in_the_request() -> None:
    assert isinstance(spdy(channels.FORWARD, forward=True), Agreement)
    assert isinstance(websocket(channels.TUNNEL, forward=True), Agreement)
    assert isinstance(websocket(channels.V4, forward=True, ports=(80,)), Agreement)
    assert isinstance(websocket(forward=True, ports=(80,)), Agreement)
    for refused in (websocket(channels.V4, forward=True), websocket(forward=True), websocket(channels.TUNNEL)):
        assert isinstance(refused, Refusal)


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", [], 400),
        ("GET", [("Upgrade", "websocket")], 400),
        ("GET", [("Connection", "close"), ("Upgrade", "websocket")], 400),
        ("GET", [("Connection", "Upgrade"), ("Upgrade", "h2c")], 400),
        ("POST", SPDY, 400),
        ("POST", [*SPDY, ("X-Stream-Protocol-Version", " , ")], 400),
        ("POST", [*SPDY, ("X-Stream-Protocol-Version", "v5.channel.k8s.io")], 403),
        ("POST", WEBSOCKET, 405),
        ("GET", without("Sec-WebSocket-Version"), 426),
        ("GET", [*without("Sec-WebSocket-Version"), ("Sec-WebSocket-Version", "8")], 426),
        ("GET", without("Sec-WebSocket-Key"), 400),
        ("GET", [*WEBSOCKET, WEBSOCKET[3]], 400),
        ("GET", [*without("Sec-WebSocket-Key"), ("Sec-WebSocket-Key", "c2hvcnQ=")], 400),
        ("GET", [*without("Sec-WebSocket-Key"), ("Sec-WebSocket-Key", "é")], 400),
        ("GET", [*WEBSOCKET, ("Sec-WebSocket-Protocol", "chat")], 403),
    ],
)
def test_what_cannot_be_agreed_on_is_refused(method: str, headers: list[tuple[str, str]], status: int) -> None:
    answer = negotiate(method, headers, forward=False)
    assert isinstance(answer, Refusal)
    assert answer.status == status
    head, body = answer.answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
    assert answer.text.encode() in body


def test_a_refused_client_learns_what_it_may_ask_for() -> None:
    answer = spdy("v9.channel.k8s.io")
    assert isinstance(answer, Refusal)
    for protocol in channels.COMMAND_BY_SPDY:
        assert f"\r\nX-Accepted-Stream-Protocol-Versions: {protocol}\r\n".encode() in answer.answer


def test_what_a_client_asks_for_never_reaches_the_head_of_an_answer() -> None:
    answer = websocket("x\r\nSet-Cookie: a=b")
    assert isinstance(answer, Refusal)
    assert b"Set-Cookie" not in answer.answer.split(b"\r\n\r\n")[0]
