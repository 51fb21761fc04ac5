"""Which images critest names, and what each must hold: users, groups, ports and programs as its specs expect them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from critest.images import programs
from critest.images.layers import ARCHITECTURE, Image, Layer

# Every host that critest's image names begin with. All of them are mirrored by one registry: paths don't collide.
HOSTS: Final = ("registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io", "public.ecr.aws")

_E2E: Final = "e2e-test-images/"
_CRI_TOOLS: Final = "k8s-staging-cri-tools/"
_PATH: Final = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
_PASSWD: Final = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP: Final = """\
root:x:0:
daemon:x:1:
bin:x:2:
mail:x:8:
www-data:x:33:
operator:x:37:
nogroup:x:65534:
"""
_NGINX_CONF: Final = """\
worker_processes 1;
pid /var/run/nginx.pid;
error_log /var/log/nginx/error.log warn;
events { worker_connections 128; }
http {
    access_log /var/log/nginx/access.log;
    server {
        listen %d;
        location / { root /usr/share/nginx/html; index index.html; }
    }
}
"""
_PAGE: Final = "<html><body><h1>It works!</h1></body></html>\n"


@dataclass(frozen=True, slots=True)
class Entry:
    """Names without the registry's host, and how the image under them is made; making may take seconds."""

    names: Sequence[str]
    make: Callable[[Sequence[str]], Image]


def entries() -> Iterator[Entry]:
    """All stand-ins."""
    yield from _users()
    yield from _image_specs()
    yield from _servers()
    yield Entry([_E2E + "nonewprivs:1.3"], _nonewprivs)
    # One image per version: suites remove some of them while a runtime pins another.
    yield from (Entry([f"pause:{tag}"], _pause) for tag in ("3.6", "3.8", "3.9", "3.10", "3.10.1", "3.10.2"))
    for tag in ("1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl"):
        yield Entry([f"docker/library/busybox:{tag}"], _plain(f"variant-{tag}"))
    yield from (Entry([f"library/{name}:latest"], _plain(f"library-{name}")) for name in ("busybox", "alpine"))


def big() -> Entry:
    """For measuring pulls: 5 layers, 20,000 files, 203 MB."""
    layers = range(1, 5)
    return Entry(
        ["bench/big:1"], lambda names: Image(names, [_busybox(), *(_bulk(n, 5000, 64 << 20) for n in layers)], _shell())
    )


def light_image() -> Entry:
    """Debian's busybox-static in place of the one that is built: for running pods, not for all of critest."""
    return Entry(
        [_E2E + "busybox:1.29-2"],
        lambda names: Image(names, [_busybox(program=programs.debian_busybox())], _shell()),
    )


def _users() -> Iterator[Entry]:
    yield Entry([_E2E + "busybox:1.29-2"], _plain())
    users = {"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"}
    for name, user in users.items():
        yield Entry([f"{_CRI_TOOLS}test-image-user-{name}:latest"], _plain(User=user))
    yield Entry([_CRI_TOOLS + "test-image-predefined-group:latest"], _predefined_group)


def _image_specs() -> Iterator[Entry]:
    for mark in ("test-image-1", "test-image-2", "test-image-3", "test-image-latest", "test-image-digest"):
        yield Entry([f"{_CRI_TOOLS}{mark}:latest"], _plain(mark))
    for tag in ("test", "all"):
        yield Entry([f"{_CRI_TOOLS}test-image-tag:{tag}"], _plain(tag))
    yield Entry([f"{_CRI_TOOLS}test-image-tags:{number}" for number in (1, 2, 3)], _plain("same-image"))


def _servers() -> Iterator[Entry]:
    yield Entry([_E2E + "nginx:1.14-2"], _nginx(80, "SIGTERM"))
    yield Entry([f"{_CRI_TOOLS}hostnet-nginx-{ARCHITECTURE}:latest"], _nginx(12003, "SIGQUIT"))
    yield Entry([_E2E + "httpd:2.4.39-4"], _httpd)


# ------------------------------------------------------------------- images


def _plain(*marks: str, **config: Any) -> Callable[[Sequence[str]], Image]:
    """Busybox; a file per mark gives the image an id of its own."""
    return lambda names: Image(names, [_busybox(), *map(_mark, marks)], _shell(**config))


def _predefined_group(names: Sequence[str]) -> Image:
    users = "default-user:x:1000:1000::/home/default-user:/bin/sh\n"
    groups = "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
    return Image(names, [_busybox(users, groups)], _shell(User="1000"))


def _nginx(port: int, stop_signal: str) -> Callable[[Sequence[str]], Image]:
    config = {
        "Cmd": ["nginx", "-g", "daemon off;"],
        "Env": _PATH,
        "StopSignal": stop_signal,
        "ExposedPorts": {f"{port}/tcp": {}},
    }
    return lambda names: Image(names, [_busybox(), _nginx_layer(port)], config)


def _httpd(names: Sequence[str]) -> Image:
    page = Layer()
    page.file("usr/local/apache2/htdocs/index.html", _PAGE)
    script = "echo 'httpd: starting'; exec httpd -f -v -p 80 -h /usr/local/apache2/htdocs"
    config = {
        "Cmd": ["sh", "-c", script],
        "Env": _PATH,
        "StopSignal": "SIGTERM",
        "ExposedPorts": {"80/tcp": {}},
    }
    return Image(names, [_busybox(), page], config)


def _nonewprivs(names: Sequence[str]) -> Image:
    layer = Layer()
    layer.file("nnp", programs.compiled("nnp"), 0o4755)
    return Image(names, [_busybox(), layer], {"Entrypoint": ["/nnp"], "Env": _PATH})


def _pause(names: Sequence[str]) -> Image:
    layer = Layer()
    layer.file("pause", programs.compiled("pause"), 0o755)
    config = {
        "Entrypoint": ["/pause"],
        "Env": _PATH,
        "User": "65535:65535",
        "WorkingDir": "/",
        "Labels": {"stand-in": names[0]},
    }
    return Image(names, [layer], config)


def _shell(**more: Any) -> dict[str, Any]:
    return {"Cmd": ["sh"], "Env": _PATH, **more}


# ------------------------------------------------------------------- layers


def _busybox(users: str = "", groups: str = "", program: Path | None = None) -> Layer:
    program = program or programs.busybox()
    layer = Layer()
    for name in ("bin", "etc", "home", "root", "usr/bin", "usr/sbin", "var/spool/mail", "var/www"):
        layer.directory(name)
    layer.directory("tmp", 0o1777)
    layer.file("bin/busybox", program.read_bytes(), 0o755)
    for applet in programs.applets(program):
        layer.hard_link(f"bin/{applet}", "bin/busybox")
    layer.file("etc/passwd", _PASSWD + users)
    layer.file("etc/group", _GROUP + groups)
    layer.file("etc/shadow", "root:*:19000:0:99999:7:::\n", 0o640)
    return layer


def _mark(name: str) -> Layer:
    layer = Layer()
    layer.file(name, name)
    return layer


def _nginx_layer(port: int) -> Layer:
    layer = Layer()
    for path, content in programs.nginx_files():
        layer.file(path, content, 0o755)
    layer.file("etc/nginx/nginx.conf", _NGINX_CONF % port)
    layer.file("usr/share/nginx/html/index.html", _PAGE)
    layer.directory("run")
    layer.symlink("var/run", "/run")
    layer.directory("var/lib/nginx")
    layer.symlink("var/log/nginx/access.log", "/dev/stdout")
    layer.symlink("var/log/nginx/error.log", "/dev/stderr")
    return layer


def _bulk(number: int, files: int, total_bytes: int) -> Layer:
    """So many files of about so many bytes in all, every second one incompressible; the same at every call."""
    draw = random.Random(number)
    words = [bytes(draw.choices(b"abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(2000)]
    weights = [draw.lognormvariate(0, 1.2) for _ in range(files)]
    scale = total_bytes / sum(weights)
    layer = Layer()
    for position, weight in enumerate(weights):
        size = int(weight * scale)
        content = draw.randbytes(size) if position % 2 else b" ".join(draw.choices(words, k=size // 6 + 1))[:size]
        layer.file(f"opt/bulk/layer{number}/dir{position // 100:03}/file{position:05}", content)
    return layer
