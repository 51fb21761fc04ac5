"""What reads bytes of strangers, each as a function that any bytes must go through without an unexpected error.

A new target is a function here and a line in TARGETS; its seeds lie in corpus/NAME/.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar
from urllib.parse import urlsplit

from cri_py.errors import (
    ConfigError,
    CriError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SignatureValidationFailed,
)
from cri_py.images import auth, manifest
from cri_py.images.endpoints import SYSTEM_TRUST, by_default
from cri_py.images.hosts import by_hosts_file, parse_hosts
from cri_py.images.layers import unpack
from cri_py.images.reference import parse_ref, short_name
from cri_py.images.registries_conf import by_registry, parse_conf
from cri_py.images.signatures import Policy, parse_policy
from cri_py.model import Digest
from cri_py.streaming.heads import Head, HeadReader, Refused
from cri_py.wire import channels, spdy, spdy_frames
from cri_py.wire.channels import Agreement, Transport
from cri_py.wire.events import Gone, Opened, Received, Session
from cri_py.wire.negotiation import Refusal, negotiate
from cri_py.wire.session import port_forward, remote_command

NODE: Final = manifest.Platform("linux", "amd64")
FILE: Final = "/f"
_T = TypeVar("_T")
REFS: Final = tuple(map(parse_ref, ("busybox", "a.io/x/y:1", "x.a.io/y", f"localhost:5/z@sha256:{'0' * 64}")))


def reference(content: bytes) -> None:
    """A ref reads as itself when written out, and leads to a URL."""
    text = content.decode(errors="surrogateescape")
    try:
        ref = parse_ref(text)
    except InvalidArgument:
        return
    assert parse_ref(str(ref)) == ref
    short_name(text)
    (endpoint,) = by_default(ref, SYSTEM_TRUST)
    assert urlsplit(endpoint.url).hostname


def challenge_header(content: bytes) -> None:
    """Every challenge either leads to a request of an http(s) URL or is refused."""
    for challenge in auth.parse_challenges(content.decode("latin-1")):
        with contextlib.suppress(CriError):
            request = auth.token_request(challenge, auth.Credentials("u", "p"), "s", "https://r")
            assert request.url.startswith(("https://", "HTTPS://")) or urlsplit(request.url).scheme == "https"


def image_manifest(content: bytes) -> None:
    """A manifest, index or config is understood, or refused in words."""
    with contextlib.suppress(CriError):
        manifest.parse_config(content, "the image")
    try:
        document = manifest.parse_manifest(content, manifest.OCI_MANIFEST, "the image")
    except CriError:
        return
    if isinstance(document, manifest.Index):
        with contextlib.suppress(NotFound):
            manifest.fitting(document, NODE, "the image")


def understood(parse: Callable[[bytes, str], _T], content: bytes) -> _T | None:
    """What ``parse`` makes of a file; None if it refuses it, which it must do by its name and line."""
    try:
        return parse(content, FILE)
    except ConfigError as error:
        said = error.message
    assert re.match(rf"{FILE}:\d+: ", said), said
    return None


def hosts_toml(content: bytes) -> None:
    """Hosts are URLs that can be opened, or the file is refused by its name."""
    found = understood(parse_hosts, content)
    if found is None:
        return
    for ref in REFS:
        for endpoint in by_hosts_file(ref, found):
            assert urlsplit(endpoint.url).hostname
            assert endpoint.host


def registries_conf(content: bytes) -> None:
    """Locations are URLs that can be opened, or the file is refused by its name."""
    found = understood(parse_conf, content)
    if found is None:
        return
    for ref in REFS:
        registry = found.registry_for(ref)
        if registry is not None:
            with contextlib.suppress(FailedPrecondition):
                assert all(urlsplit(endpoint.url).hostname for endpoint in by_registry(ref, registry))
    with contextlib.suppress(InvalidArgument):
        found.candidates("short:1")


def auth_file(content: bytes) -> None:
    """An auth file is read, or refused by its name; so is the answer of a helper."""
    with contextlib.suppress(ConfigError):
        auth.parse_auth_file(content, FILE)
    with contextlib.suppress(CriError):
        auth.parse_keychain_answer(content, "program")
    with contextlib.suppress(CriError):
        auth.token_from(content, "https://r")


def policy_file(content: bytes) -> None:
    """A policy is understood whole, or refused by its name."""
    try:
        found = parse_policy(content, FILE)
    except ConfigError as error:
        said = error.message
    else:
        said = f"{FILE}: "
        admit_all(found)
    assert said.startswith(f"{FILE}: ")


def admit_all(found: Policy) -> None:
    for ref in REFS:
        with contextlib.suppress(SignatureValidationFailed):
            found.admit(ref)


ALL: Final = channels.Streams(stdin=True, stdout=True, stderr=False, tty=True)


def spdy_frames_of(content: bytes) -> None:
    """Either side says frames that follow the rules, or Failed as its last word; what it answers can be read."""
    for role, other in ((spdy.Role.SERVER, spdy.Role.CLIENT), (spdy.Role.CLIENT, spdy.Role.SERVER)):
        connection = spdy.Connection(role)
        held = 0
        for at in range(0, len(content), 50):
            events = connection.receive(content[at : at + 50])
            assert not any(isinstance(event, spdy.Failed) for event in events[:-1])
            for event in events:
                if isinstance(event, spdy_frames.SynStream) and connection.can_send(event.stream):
                    connection.send(spdy_frames.SynReply(event.stream, {}))
                if isinstance(event, spdy_frames.Chunk):
                    held += len(event.payload)
            assert connection.held == held <= len(content)
        answered = spdy.Connection(other).receive(connection.replies())
        assert not any(isinstance(event, spdy.Failed) for event in answered if role is spdy.Role.SERVER), answered


def _sessions() -> tuple[Session, ...]:
    """The first byte of an input chooses among these."""
    by_spdy, by_websocket = Transport.SPDY, Transport.WEBSOCKET
    return (
        remote_command(Agreement(by_spdy, channels.V4, b""), ALL),
        port_forward(Agreement(by_spdy, channels.FORWARD, b""), []),
        remote_command(Agreement(by_websocket, channels.V5, b""), ALL),
        remote_command(Agreement(by_websocket, channels.V4_BASE64, b""), ALL),
        port_forward(Agreement(by_websocket, channels.TUNNEL, b""), []),
        port_forward(Agreement(by_websocket, channels.V4, b""), [80, 443]),
    )


def channels_of(content: bytes) -> None:
    """A session ends in Gone and nothing else; what it holds is what it told; it takes commands at any time."""
    if not content:
        return
    choice = _sessions()
    session = choice[content[0] % len(choice)]
    over = False
    for chunk in (b"", content[1:40], content[40:41], content[41:], None):
        events = session.receive_eof() if chunk is None else session.receive(chunk)
        assert not (over and events)
        assert not any(isinstance(event, Gone) for event in events[:-1])
        over = session.gone
        for event in events:
            if isinstance(event, Received):
                session.consumed(event.lane, len(event.payload))
            if isinstance(event, Opened) and session.room(event.lane):
                session.send(event.lane, b"x")
                session.close(event.lane)
        assert session.wants_input or over
        session.pieces()
    assert over


def _head_of(content: bytes, size: int) -> Head | Refusal | None:
    """The head in ``content``, read in pieces of ``size`` bytes; None if it is not whole."""
    reader = HeadReader()
    for at in range(0, len(content), size):
        try:
            head = reader.receive(content[at : at + size])
        except Refused as refused:
            return refused.refusal
        if head is not None:
            return replace(head, rest=head.rest + content[at + size :])
    return None


def http_head(content: bytes) -> None:
    """A request head is read, the same however it is cut, or refused by a whole response; so is what it asks for."""
    whole, cut = _head_of(content, len(content) or 1), _head_of(content, 7)
    answers = [each.answer for each in (whole, cut) if isinstance(each, Refusal)]
    assert answers or whole == cut  # whether a head is too long may show only at its end
    for head in (whole, cut):
        if isinstance(head, Head):
            assert all(name == name.lower() for name, _ in head.headers)
            answers += [negotiate(head.method, head.headers, forward=way, ports=[80]).answer for way in (False, True)]
    for answer in answers:
        lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert not any(b"\r" in line or b"\n" in line for line in lines)
        assert re.match(rb"HTTP/1\.1 (101|4\d\d|501) ", lines[0]), lines[0]


def tar_layer(content: bytes) -> None:
    """Whatever a layer holds, it is placed inside its directory or refused in words."""
    with tempfile.TemporaryDirectory() as outside:
        canary, layer = Path(outside, "canary"), Path(outside, "layer")
        canary.write_text("untouched")
        layer.mkdir()
        with contextlib.suppress(CriError):
            unpack(
                io.BytesIO(content),
                str(layer),
                size=len(content),
                diff_id=Digest("sha256:" + "0" * 64),
                lowest=False,
                subject="the layer",
                watch=lambda _: None,
            )
        assert sorted(os.listdir(outside)) == ["canary", "layer"]
        assert canary.read_text() == "untouched"


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = MappingProxyType(
    {
        "reference": reference,
        "challenge_header": challenge_header,
        "manifest": image_manifest,
        "hosts_toml": hosts_toml,
        "registries_conf": registries_conf,
        "auth_file": auth_file,
        "policy_file": policy_file,
        "spdy": spdy_frames_of,
        "channels": channels_of,
        "http_head": http_head,
        "tar_layer": tar_layer,
    }
)
