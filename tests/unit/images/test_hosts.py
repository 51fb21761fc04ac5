"""certs.d: directories, hosts.toml and Docker's files, as containerd reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import ConfigError
from cri_py.images.endpoints import Trust
from cri_py.images.hosts import CertsDirectories, by_hosts_file, parse_hosts
from cri_py.images.reference import parse_ref

FILE = "/etc/certs.d/r.example/hosts.toml"
ALL_KEYS = """
server = "https://r.example"
ca = "/ca.pem"
[host."https://mirror.example"]
  capabilities = ["Pull", "RESOLVE"]
  ca = ["one.pem", "/two.pem"]
  client = [["us.cert", "us.key"], ["/both.pem"]]
  skip_verify = true
  dial_timeout = "1m1.5s"
  [host."https://mirror.example".header]
    x-one = "1"
    x-many = ["a", "b"]
[host."http://plain.example:5000/some/path/"]
  capabilities = ["pull"]
  client = "us.pem"
[host."other.example/v2/project"]
  override_path = true
"""


def urls(text: str, ref: str = "r.example/app:1") -> list[str]:
    return [endpoint.url for endpoint in by_hosts_file(parse_ref(ref), parse_hosts(text.encode(), FILE))]


def test_every_key_of_a_hosts_toml_counts() -> None:
    endpoints = by_hosts_file(parse_ref("r.example/team/app:1"), parse_hosts(ALL_KEYS.encode(), FILE))
    mirror, plain, other, server = endpoints
    assert [endpoint.url for endpoint in endpoints] == [
        *("https://mirror.example/v2", "http://plain.example:5000/some/path/v2", "https://other.example/v2/project"),
        "https://r.example/v2",
    ]
    assert mirror.trust == Trust(
        ("/etc/certs.d/r.example/one.pem", "/two.pem"),
        (("/etc/certs.d/r.example/us.cert", "/etc/certs.d/r.example/us.key"), ("/both.pem", "")),
        skip_verify=True,
    )
    assert mirror.headers == (("x-one", "1"), ("x-many", "a, b"))
    assert (mirror.dial_timeout_s, plain.dial_timeout_s) == (61.5, 30.0)
    assert plain.trust == Trust(clients=(("/etc/certs.d/r.example/us.pem", ""),))
    assert [(each.resolves, each.pulls) for each in (mirror, plain, other)] == [
        (True, True),
        (False, True),
        (True, True),
    ]
    assert [each.namespace for each in endpoints] == ["r.example", "r.example", "r.example", ""]
    assert [each.own for each in endpoints] == [False, False, False, True]
    assert server.trust == Trust(("/ca.pem",))
    assert {each.repository for each in endpoints} == {"team/app"}


@pytest.mark.parametrize(
    ("text", "ref", "found"),
    [
        ("", "docker.io/library/app", ["https://registry-1.docker.io/v2"]),
        ("", "r.example/app", ["https://r.example/v2"]),
        ("", "localhost:5000/app", ["http://localhost:5000/v2"]),
        ("", "localhost/app", ["https://localhost/v2"]),
        ("", "127.0.0.1:443/app", ["https://127.0.0.1:443/v2"]),
        ('server = "https://r.example/v2/"', "r.example/app", ["https://r.example/v2"]),
        ('server = "http://[::1]:5000"', "r.example/app", ["http://[::1]:5000/v2"]),
        ('server = "https://a"\noverride_path = true', "r.example/app", ["https://a"]),
        ('[host."b"]\n[host."a"]', "r.example/app", ["https://b/v2", "https://a/v2", "https://r.example/v2"]),
    ],
)
def test_a_host_becomes_the_root_of_its_api(text: str, ref: str, found: list[str]) -> None:
    assert urls(text, ref) == found


def test_the_server_is_the_registry_itself_wherever_it_is() -> None:
    found = parse_hosts(b'server = "https://moved.example"\n[host."https://m.example"]', FILE)
    assert [(each.host, each.own) for each in by_hosts_file(parse_ref("r.example/app"), found)] == [
        ("m.example", False),
        ("moved.example", True),
    ]


def test_docker_hubs_server_is_no_mirror_of_it() -> None:
    text = '[host."https://registry-1.docker.io"]\n[host."https://m.example"]'
    endpoints = by_hosts_file(parse_ref("busybox"), parse_hosts(text.encode(), FILE))
    assert [endpoint.namespace for endpoint in endpoints] == ["", "docker.io", ""]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server = 3", r":1: server is 3 \(it takes a string\)"),
        ("\nserver = ", r":2: not TOML"),
        ('x = "\n', ":1: not TOML"),
        ('server = "ftp://x"', ":1: server 'ftp://x' is no URL"),
        ('server = "https://x?y"', ":1: server"),
        ('server = "https://x:y"', ":1: server"),
        ('server = "https://[::1"', ":1: server"),
        ('[host."https://a b"]', ":1: host"),
        ("[host]\na = 1", r":2: host.a is 1 \(it takes a table"),
        ("host = 1", ":1: host is 1"),
        ('\n[host."https://a"]\ncapabilities = ["pul"]', r':3: host."https://a".capabilities is \["pul"\]'),
        ('[host."https://a"]\n\nskip_verify = "yes"', ':3: host."https://a".skip_verify is "yes"'),
        ("override_path = 1", ":1: override_path is 1"),
        ("ca = [1]", ":1: ca is"),
        ('client = [["a", "b", "c"]]', ":1: client is"),
        ("client = 1", ":1: client is"),
        ("client = [[]]", ":1: client is"),
        ('dial_timeout = "10"', ":1: dial_timeout is"),
        ('dial_timeout = "-1s"', ":1: dial_timeout is"),
        ('dial_timeout = "0s"', ":1: dial_timeout is"),
        ("[header]\nx = 1", ":2: header.x is 1"),
        ('[header]\nx = "a\\nb"', ":2: header.x is"),
        ('[header]\n"x y" = "a"', ':2: header."x y" is'),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=FILE + words):
        parse_hosts(text.encode(), FILE)


def test_misspelt_keys_are_found() -> None:
    found = parse_hosts(b'sever = "x"\n[host."https://a"]\ncapability = []\n', FILE)
    assert found.unknown == (f"{FILE}:1: sever", f"{FILE}:3: capability")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_refused_with_its_name(content: bytes) -> None:
    try:
        parse_hosts(content, FILE)
    except ConfigError as error:
        said = error.message
    else:
        return
    assert said.startswith(f"{FILE}:")


# ----------------------------------------------------------------- directories


def put(root: Path, name: str, **files: str) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    for stem, text in files.items():
        (root / name / stem.replace("_", ".")).write_text(text)


@pytest.mark.parametrize(
    ("name", "host"),
    [("r.example_5000_", "r.example:5000"), ("r.example:5000", "r.example:5000"), ("[::1]_5000_", "[::1]:5000")],
)
def test_a_directory_is_named_by_the_host_and_its_port(tmp_path: Path, name: str, host: str) -> None:
    put(tmp_path, name, hosts_toml='server = "https://found"')
    certs = CertsDirectories([str(tmp_path / "none"), str(tmp_path)])
    found = certs.hosts_file(host)
    assert found is not None
    assert found.hosts[0].url == "https://found/v2"
    assert certs.hosts_file("r.example") is None
    assert certs.default_file() is None


def test_the_first_directory_wins_and_the_default_is_last(tmp_path: Path) -> None:
    put(tmp_path / "a", "_default", hosts_toml='server = "https://default"')
    put(tmp_path / "a", "one", hosts_toml='server = "https://a"')
    put(tmp_path / "b", "one", hosts_toml='server = "https://b"')
    certs = CertsDirectories([str(tmp_path / "a"), str(tmp_path / "b")])
    one, default = certs.hosts_file("one"), certs.default_file()
    assert one is not None
    assert default is not None
    assert (one.hosts[0].url, default.hosts[0].url) == ("https://a/v2", "https://default/v2")


def test_dockers_files_are_certificates(tmp_path: Path) -> None:
    put(tmp_path, "r.example", b_crt="", a_crt="", us_cert="", us_key="", notes_txt="")
    directory = tmp_path / "r.example"
    assert CertsDirectories([str(tmp_path)]).certificates("r.example") == Trust(
        (f"{directory}/a.crt", f"{directory}/b.crt"), ((f"{directory}/us.cert", f"{directory}/us.key"),)
    )


@pytest.mark.parametrize("lonely", ["us_cert", "us_key"])
def test_a_certificate_without_its_key_is_an_error(tmp_path: Path, lonely: str) -> None:
    put(tmp_path, "r.example", **{lonely: ""})
    with pytest.raises(ConfigError, match=r"r\.example/us\.(cert|key) has no us\.(key|cert) beside it"):
        CertsDirectories([str(tmp_path)]).certificates("r.example")


def test_beside_a_hosts_toml_dockers_files_mean_nothing(tmp_path: Path) -> None:
    put(tmp_path, "r.example", ca_crt="", hosts_toml="server = 'https://x'")
    assert CertsDirectories([str(tmp_path)]).certificates("r.example") == Trust()


def test_beside_an_empty_hosts_toml_dockers_files_count(tmp_path: Path) -> None:
    put(tmp_path, "r.example", ca_crt="", hosts_toml="")
    assert CertsDirectories([str(tmp_path)]).certificates("r.example") == Trust((f"{tmp_path}/r.example/ca.crt",))
