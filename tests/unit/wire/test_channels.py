"""What Kubernetes says on the lanes of a remote command."""

from __future__ import annotations

import json

import pytest

from cri_py.wire.channels import (
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    V1,
    V1_BASE64,
    V2,
    V3,
    V4,
    V4_BASE64,
    V5,
    Base64,
    Exit,
    Failure,
    Sizes,
    Streams,
    forwarded_port,
    status,
)
from cri_py.wire.violation import ProtocolError, Rule


@pytest.mark.parametrize("protocol", [V4, V4_BASE64, V5])
def test_an_exit_code_is_a_status_since_v4(protocol: str) -> None:
    assert json.loads(status(protocol, Exit(0))) == {"metadata": {}, "status": "Success"}
    assert json.loads(status(protocol, Exit(137))) == {
        "metadata": {},
        "status": "Failure",
        "message": "command terminated with non-zero exit code: exit status 137",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "137"}]},
    }


@pytest.mark.parametrize("protocol", ["", V1, V1_BASE64, V2, V3])
def test_an_exit_code_is_a_text_before_v4_and_success_is_silent(protocol: str) -> None:
    assert status(protocol, Exit(0)) == b""
    assert status(protocol, Exit(3)) == b"command terminated with non-zero exit code: exit status 3"
    assert status(protocol, Failure("no such program")) == b"no such program"


def test_a_failure_is_a_status_with_any_text() -> None:
    said = json.loads(status(V4, Failure('"\\\n\udc80 é' + "x" * 9999)))
    assert (said["status"], said["reason"], said["code"]) == ("Failure", "InternalError", 500)
    assert said["message"].startswith('"\\\n? éxxx')
    assert len(said["message"].encode()) <= 1024
    assert said["details"] == {"causes": [{"message": said["message"]}]}


def test_a_failure_is_at_most_16_kib() -> None:
    """What a command has to have room for before it is finished."""
    assert len(status(V4, Failure("\0" * 9999))) < 16 << 10


@pytest.mark.parametrize(
    ("streams", "protocol", "lanes"),
    [
        (Streams(True, True, True, False), V4, {STDIN, STDOUT, STDERR, ERROR}),
        (Streams(True, True, False, True), V4, {STDIN, STDOUT, ERROR, RESIZE}),
        (Streams(True, True, True, True), V3, {STDIN, STDOUT, ERROR, RESIZE}),
        (Streams(True, True, False, True), V2, {STDIN, STDOUT, ERROR}),
        (Streams(False, True, False, False), V1, {STDOUT, ERROR}),
    ],
)
def test_clients_open_the_streams_of_their_protocol(streams: Streams, protocol: str, lanes: set[int]) -> None:
    assert streams.lanes(protocol) == lanes


@pytest.mark.parametrize(
    ("said", "sizes"),
    [
        (b'{"Width":80,"Height":24}\n', [(80, 24)]),
        (b'{"Width":80,"Height":24}{"Height":50,"Width":132}', [(80, 24), (132, 50)]),
        (b' { "width" : 1 , "height" : 65535 } ', [(1, 65535)]),
        (b'{"Width":0,"Height":24}{"Width":80}{}', []),
    ],
)
def test_sizes_are_read_as_go_writes_them(said: bytes, sizes: list[tuple[int, int]]) -> None:
    assert Sizes().read(said) == sizes


@pytest.mark.parametrize(
    "said",
    [
        b"resize!",
        b"\xff",
        b"[80,24]}",
        b"}",
        b'{"Width":"80","Height":24}',
        b'{"Width":-1,"Height":24}',
        b'{"Width":65536,"Height":24}',
        b'{"Width":1.5,"Height":24}',
        b'{"Width":true,"Height":24}',
        b'{"Width":NaN,"Height":24}',
        b'{"Width":{"a":1}}',
        b'{"Width":80,"Height":24}x',
        b"{" * 300,
        b'{"Width":' + b" " * 300,
        b'{"a":' + b"[" * 100000 + b"}",
    ],
)
def test_a_size_that_is_none_breaks_a_rule(said: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        Sizes().read(said)
    assert caught.value.rule is Rule.RESIZE
    assert len(caught.value.message) < 400


def test_base64_goes_on_over_the_pieces_of_a_message() -> None:
    reader = Base64()
    assert b"".join(reader.decode(b, last=False) for b in (b"a", b"GVsb", b"G8g", b"d29y")) == b"hello wor"
    assert reader.decode(b"bGQ=", last=True) == b"ld"
    assert reader.decode(b"aGk=", last=True) == b"hi"


@pytest.mark.parametrize(
    "said", [[b"a"], [b"aGk"], [b"aGk=aGk="], [b"aGk=", b"aGk="], [b"a*b="], [b"=aaa"], [b"aGk=\n"]]
)
def test_what_is_no_base64_breaks_a_rule(said: list[bytes]) -> None:
    reader = Base64()
    *first, last = said
    for piece in first:
        reader.decode(piece, last=False)
    with pytest.raises(ProtocolError) as caught:
        reader.decode(last, last=True)
    assert caught.value.rule is Rule.BASE64


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "+80", "8O", "٨٠", "000080", " 80"])
def test_a_port_is_a_number_from_1_to_65535(port: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        forwarded_port({"port": port})
    assert caught.value.rule is Rule.FORWARD


def test_a_port_is_read() -> None:
    assert forwarded_port({"port": "65535"}) == 65535
