from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import InvalidArgument
from cri_py.images.reference import ImageRef, names_a_host, parse_digest, parse_ref, short_name
from cri_py.model import Digest

HEX = "0123456789abcdef" * 4
DIGEST = Digest(f"sha256:{HEX}")

labels = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?", fullmatch=True)
hosts = st.one_of(
    st.just("localhost"),
    st.lists(labels, min_size=2, max_size=4).map(".".join),
    st.sampled_from(["[::1]", "[2001:db8::7]", "127.0.0.1"]),
)
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
components = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
paths = st.lists(components, min_size=2, max_size=4).map("/".join)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digests = st.from_regex(r"sha256:[a-f0-9]{64}", fullmatch=True)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:2", "localhost:5000/app:2"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("[2001:db8::1]/a/b:t", "[2001:db8::1]/a/b:t"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"busybox:1@{DIGEST}", f"docker.io/library/busybox:1@{DIGEST}"),
        ("Host/app", "Host/app:latest"),
        ("host:80", "docker.io/library/host:80"),
    ],
)
def test_what_people_write_is_normalised_as_docker_does(written: str, normal: str) -> None:
    assert str(parse_ref(written)) == normal


@pytest.mark.parametrize(
    "wrong",
    [
        "", " ", ":", "@", "a:", "a@", "UPPER", "a/B", "a//b", "/a", "a/", "a b", "a:t g", "a:.t", "a:" + "t" * 129,
        f"a@sha256:{HEX[1:]}", f"a@sha256:{HEX.upper()}", f"a@md5:{HEX}", "a@b@c", "-.io/a", "[::1/a", "a..b",
        "x.io/" + "a" * 256, HEX, "a\n", "a:t\n", "host.io:port/a", "é",
    ],
)  # fmt: skip
def test_what_is_no_ref_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match="is no image ref"):
        parse_ref(wrong)


@given(host=hosts, port=ports, path=paths, tag=tags)
def test_a_full_tagged_ref_reads_as_its_parts(host: str, port: str, path: str, tag: str) -> None:
    assert parse_ref(f"{host}{port}/{path}:{tag}") == ImageRef(f"{host}{port}", path, tag)


@given(host=hosts, port=ports, path=paths, tag=st.one_of(st.just(""), tags), digest=st.one_of(st.none(), digests))
def test_the_text_of_a_ref_reads_as_the_same_ref(host: str, port: str, path: str, tag: str, digest: str | None) -> None:
    text = f"{host}{port}/{path}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    ref = parse_ref(text)
    assert parse_ref(str(ref)) == ref
    assert ref.tag or ref.digest
    assert bool(ref.tagged) == (digest is None)


@given(st.text(max_size=80))
def test_any_text_gives_a_ref_or_a_plain_refusal(text: str) -> None:
    try:
        ref = parse_ref(text)
    except InvalidArgument:
        return
    assert parse_ref(str(ref)) == ref


@given(st.text(max_size=80))
def test_any_text_is_a_digest_or_refused(text: str) -> None:
    try:
        assert parse_digest(text) == text
    except InvalidArgument:
        return


@pytest.mark.parametrize("wrong", ["[1]:5/a", "[::::1]:5000/a", "[::1]x/a", "host.io:65536/a", "host.io:123456/a"])
def test_what_is_no_host_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidArgument, match="is no host name"):
        parse_ref(wrong)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *(
            ("app", "app"),
            ("app:1", "app"),
            ("team/app:1", "team/app"),
            (f"a/b:1@{DIGEST}", "a/b"),
            ("host:80", "host"),
        ),
        *((full, "") for full in ("r.io/app", "localhost/app", "h:5/a", "Host/a", "[::1]/a")),
    ],
)
def test_a_short_name_is_told_from_a_full_one(text: str, name: str) -> None:
    assert short_name(text) == name


@given(path=paths, tag=tags)
def test_a_path_without_a_host_is_a_short_name(path: str, tag: str) -> None:
    if "." not in path.partition("/")[0] and not path.startswith("localhost/"):
        assert short_name(f"{path}:{tag}") == path


@given(host=hosts, port=ports, path=paths)
def test_a_host_of_a_ref_can_stand_in_a_url(host: str, port: str, path: str) -> None:
    ref = parse_ref(f"{host}{port}/{path}")
    assert names_a_host(ref.host)
    assert urlsplit(f"https://{ref.host}/").hostname
