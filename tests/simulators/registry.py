"""A registry in this process: serves images that tests make, asks for credentials, and fails on demand.

    with RegistrySimulator() as registry:
        image = registry.push("team/app", "1", [tar_layer(File("etc/motd", b"hi"))])
        registry.faults.append(Fault(image.layers[0], status=500))

It speaks the pull half of distribution-spec 1.1 on a port of 127.0.0.1, over plain HTTP or TLS, and is a proxy too.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import re
import select
import socket
import ssl
import tarfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
TOKEN = "simulated-token"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True)
class File:
    """A member of a layer; ``kind`` is one of tarfile's types. Owner: whoever runs the test, unless said."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    mtime: float = 1_500_000_000
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755, **more: Any) -> File:
    return File(name, kind=tarfile.DIRTYPE, mode=mode, **more)


def symlink(name: str, target: str) -> File:
    return File(name, kind=tarfile.SYMTYPE, link=target, mode=0o777)


def hard_link(name: str, target: str) -> File:
    return File(name, kind=tarfile.LNKTYPE, link=target)


def tar_layer(*members: File, form: int = tarfile.PAX_FORMAT) -> bytes:
    """An uncompressed layer; names are written as they are, however wicked."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as archive:
        for member in members:
            header = tarfile.TarInfo(member.name)
            header.type, header.linkname, header.size = member.kind, member.link, len(member.content)
            header.mode, header.uid, header.gid, header.mtime = member.mode, member.uid, member.gid, member.mtime
            header.devmajor, header.devminor = member.device
            header.pax_headers = {f"SCHILY.xattr.{key}": text for key, text in member.xattrs.items()}
            archive.addfile(header, io.BytesIO(member.content))
    return raw.getvalue()


@dataclass
class Fault:
    """What happens to requests whose path contains ``where``. The first fault that fits and has ``times`` left wins."""

    where: str
    status: int = 0  # answer with this status instead
    replace: bytes | None = None  # serve this content instead
    cut_after: int = -1  # promise all, send so many bytes, close
    stall_after: int = -1  # promise all, send so many bytes, then nothing until the simulator stops
    drip_s: float = 0.0  # send byte by byte, with so many seconds between
    headers_drip_s: float = 0.0  # send headers without end, with so many seconds between
    hang_up: bool = False  # close the connection without an answer
    etag: str = ""  # say that the content is another than before
    content_range: str = ""  # answer a range with this Content-Range instead
    redirect: str = ""  # answer 307 to this URL; {path} is replaced by the request's path
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1_000_000


@dataclass(frozen=True)
class Asked:
    """One request that came in."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")


@dataclass(frozen=True)
class Pushed:
    """Digests of what was pushed; ``index`` is what the tag names."""

    index: str
    manifest: str
    config: str
    layers: tuple[str, ...]


class RegistrySimulator:
    """Set ``login`` to ``basic`` or ``bearer`` to ask for ``user:secret`` (bearer: anonymous gets a token too).

    ``loop`` gives tokens and accepts none. ``fresh_tokens`` makes every token another, good until it is taken out of
    ``tokens``. Without ``ranges`` the Range header is ignored.
    """

    def __init__(
        self,
        login: str = "",
        user: str = "robot",
        secret: str = "s3cr3t",
        anonymous: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.login, self.user, self.secret, self.anonymous = login, user, secret, anonymous
        self.challenges: tuple[str, ...] = ()  # instead of those that ``login`` means; each a header of its own
        self.realm = ""  # instead of the simulator's own
        self.expires_in: int | None = None
        self.fresh_tokens = False
        self.tokens = {TOKEN}
        self.forms: list[dict[str, list[str]]] = []  # what was posted for tokens
        self.ranges = True
        self.tls = tls is not None
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Conversation)
        self._server.simulator = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="registry-simulator")

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``, as image refs name it."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}"

    def __enter__(self) -> RegistrySimulator:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.hang_up()
        self._thread.join()
        self._server.server_close()

    def hang_up(self) -> None:
        """End the connections that clients keep for their next request."""
        self._server.hang_up()

    def count(self, part: str) -> int:
        """How many requests had ``part`` in their path."""
        return sum(part in asked.path for asked in self.asked)

    def push(
        self,
        repository: str,
        tag: str,
        layers: Sequence[bytes],
        *,
        config: Mapping[str, Any] | None = None,
        architecture: str = ARCHITECTURE,
        diff_ids: Sequence[str] | None = None,
        compressed: bool = True,
    ) -> Pushed:
        """Make an image of uncompressed ``layers`` behind an index; ``config`` is the config's ``config`` member."""
        document = {
            "os": "linux",
            "architecture": architecture,
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids or [sha256(layer) for layer in layers])},
        }
        stored = [gzip.compress(layer, 1, mtime=0) if compressed else layer for layer in layers]
        layer_type = f"{OCI_LAYER}+gzip" if compressed else OCI_LAYER
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.describe(json.dumps(document).encode(), OCI_CONFIG),
            "layers": [self.describe(blob, layer_type) for blob in stored],
        }
        entry = self.put_manifest(repository, "", json.dumps(manifest).encode(), OCI_MANIFEST)
        entry["platform"] = {"os": "linux", "architecture": architecture}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        pushed = self.put_manifest(repository, tag, json.dumps(index).encode(), OCI_INDEX)
        return Pushed(
            pushed["digest"],
            entry["digest"],
            manifest["config"]["digest"],  # type: ignore[index]
            tuple(sha256(blob) for blob in stored),
        )

    def put_manifest(self, repository: str, tag: str, content: bytes, media_type: str) -> dict[str, Any]:
        """Store a manifest under its digest and, if given, a tag; returns its descriptor."""
        for name in (sha256(content), tag):
            self.manifests[repository, name] = (content, media_type)
        return {"mediaType": media_type, "digest": sha256(content), "size": len(content)}

    def describe(self, content: bytes, media_type: str) -> dict[str, Any]:
        """Store a blob; returns its descriptor."""
        self.blobs[sha256(content)] = content
        return {"mediaType": media_type, "digest": sha256(content), "size": len(content)}

    def token(self) -> str:
        """A new token, or always the same."""
        token = f"{TOKEN}-{len(self.asked)}" if self.fresh_tokens or self.login == "loop" else TOKEN
        self.tokens.add(token)
        return token

    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    simulator: RegistrySimulator

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End idle connections, which clients keep for their next request."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle is what many tests are about."""


class _Conversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Nothing: tests read ``asked``."""

    def do_GET(self) -> None:
        simulator = self.server.simulator
        headers = {key.lower(): text for key, text in self.headers.items()}
        length = int(headers.get("content-length", 0))
        form = self.rfile.read(length).decode()
        simulator.asked.append(Asked(self.command, self.path, headers))
        if self.path.startswith("http://"):  # we are its proxy, and what lies behind as well
            self.path = "/" + self.path.split("/", 3)[3]
        fault = self._fault()
        if fault is not None and fault.hang_up:
            self.close_connection = True
        elif fault is not None and fault.headers_drip_s:
            self._drip_headers(fault.headers_drip_s)
        elif fault is not None and fault.redirect:
            self._answer(307, b"", {"Location": fault.redirect.replace("{path}", self.path)}, None)
        elif fault is not None and fault.status:
            self._answer(fault.status, fault.replace or b'{"errors":[]}', dict(fault.headers), None)
        elif self.path.startswith("/token"):
            self._token(form)
        elif not self._welcome():
            self._challenge()
        else:
            self._content(fault)

    do_POST = do_HEAD = do_GET

    def do_CONNECT(self) -> None:
        """Be the proxy of a TLS connection: relay until one end closes."""
        self.server.simulator.asked.append(Asked(self.command, self.path, {}))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as far:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            ends = {self.connection: far, far: self.connection}
            while not self.server.simulator.stopping.is_set():
                for ready in select.select(list(ends), [], [], 0.05)[0]:
                    piece = ready.recv(65536)
                    if not piece:
                        self.close_connection = True
                        return
                    ends[ready].sendall(piece)

    def _fault(self) -> Fault | None:
        for fault in self.server.simulator.faults:
            if fault.where in self.path and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def _drip_headers(self, pause_s: float) -> None:
        self.close_connection = True
        self.send_response(200)
        self.flush_headers()
        while not self.server.simulator.stopping.wait(pause_s):
            self.wfile.write(b"X: y\r\n")

    def _welcome(self) -> bool:
        simulator = self.server.simulator
        shown = self.headers.get("Authorization", "")
        if simulator.login == "basic":
            return shown == simulator.basic()
        return not simulator.login or (
            simulator.login == "bearer" and shown.removeprefix("Bearer ") in simulator.tokens
        )

    def _challenge(self) -> None:
        simulator = self.server.simulator
        realm = simulator.realm or f"{simulator.url}/token"
        bearer = f'Bearer realm="{realm}",service="sim",scope="repository:x:pull"'
        usual = ('Basic realm="sim"',) if simulator.login == "basic" else (bearer,)
        self.send_response(401)
        for challenge in simulator.challenges or usual:
            self.send_header("WWW-Authenticate", challenge)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _token(self, form: str) -> None:
        simulator = self.server.simulator
        posted = parse_qs(form)
        if form:
            simulator.forms.append(posted)
        refreshed = posted.get("refresh_token") == [simulator.secret]
        known = refreshed or self.headers.get("Authorization", "") == simulator.basic()
        if known or (simulator.anonymous and "Authorization" not in self.headers) or simulator.login == "loop":
            answer = {"access_token": simulator.token(), "expires_in": simulator.expires_in}
            self._answer(200, json.dumps(answer).encode(), {}, None)
        else:
            self._answer(401, b"{}", {}, None)

    def _content(self, fault: Fault | None) -> None:
        simulator = self.server.simulator
        repository, _, name = urlsplit(self.path).path.removeprefix("/v2/").rpartition("/")
        repository, _, kind = repository.rpartition("/")
        if kind == "manifests" and (repository, name) in simulator.manifests:
            content, media_type = simulator.manifests[repository, name]
            self._answer(200, content, {"Content-Type": media_type, "Docker-Content-Digest": sha256(content)}, fault)
        elif kind == "blobs" and name in simulator.blobs:
            self._blob(name, fault)
        else:
            self._answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', {}, None)

    def _blob(self, name: str, fault: Fault | None) -> None:
        content = self.server.simulator.blobs[name]
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{fault.etag if fault else ""}{name}"'}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or not self.server.simulator.ranges:
            self._answer(200, content, headers, fault)
        elif int(asked[1]) >= len(content):
            self._answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"}, fault)
        else:
            usual = f"bytes {asked[1]}-{len(content) - 1}/{len(content)}"
            said = (fault.content_range if fault else "") or usual
            self._answer(206, content[int(asked[1]) :], headers | {"Content-Range": said}, fault)

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str], fault: Fault | None) -> None:
        if fault is not None and fault.replace is not None:
            content = fault.replace
        self.send_response(status)
        for name, text in {**headers, **(fault.headers if fault is not None else {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        sent = len(content)
        if fault is not None and max(fault.cut_after, fault.stall_after) >= 0:
            sent = max(fault.cut_after, fault.stall_after)
            self.close_connection = True
        if self.command != "HEAD" and fault is not None and fault.drip_s:
            for position in range(sent):
                self.wfile.write(content[position : position + 1])
                self.server.simulator.stopping.wait(fault.drip_s)
        elif self.command != "HEAD":
            self.wfile.write(content[:sent])
        if fault is not None and fault.stall_after >= 0:
            self.wfile.flush()
            self.server.simulator.stopping.wait()
