"""registries.conf: which table a ref falls under, where that leads, what a short name means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import ConfigError, FailedPrecondition, InvalidArgument
from cri_py.images.reference import parse_ref
from cri_py.images.registries_conf import ConfFiles, RegistriesConf, by_registry, parse_conf

FILE = "/etc/containers/registries.conf"
DIGEST = "sha256:" + "0" * 64


def conf(text: str) -> RegistriesConf:
    return parse_conf(text.encode(), FILE)


def ways(text: str, ref: str) -> list[str]:
    """``URL repository`` of every endpoint."""
    parsed = parse_ref(ref)
    registry = conf(text).registry_for(parsed)
    assert registry is not None
    return [f"{endpoint.url} {endpoint.repository}" for endpoint in by_registry(parsed, registry)]


PREFIXES = """
[[registry]]
prefix = "r.example"
[[registry]]
prefix = "r.example/team"
[[registry]]
prefix = "r.example/team/app:1"
[[registry]]
prefix = "*.wild.example"
[[registry]]
prefix = "*.b.wild.example"
[[registry]]
location = "only.example/x"
"""


@pytest.mark.parametrize(
    ("ref", "prefix"),
    [
        ("r.example/other", "r.example"),
        ("r.example/team/x", "r.example/team"),
        ("r.example/teams/x", "r.example"),
        ("r.example/team/app:1", "r.example/team/app:1"),
        ("r.example/team/app:12", "r.example/team"),
        (f"r.example/team@{DIGEST}", "r.example/team"),
        ("r.example:5000/team/x", ""),
        ("r.example.org/x", ""),
        ("a.wild.example/x", "*.wild.example"),
        ("a.b.wild.example/x", "*.b.wild.example"),
        ("wild.example/x", ""),
        ("only.example/x/y", "only.example/x"),
        ("only.example/y", ""),
        ("busybox", ""),
    ],
)
def test_the_longest_prefix_takes_a_ref(ref: str, prefix: str) -> None:
    found = conf(PREFIXES).registry_for(parse_ref(ref))
    assert (found.prefix if found is not None else "") == prefix


@pytest.mark.parametrize(
    ("text", "ref", "found"),
    [
        ('prefix = "a.io/x"\nlocation = "b.io/y/z"', "a.io/x/app", ["https://b.io/v2 y/z/app"]),
        ('prefix = "a.io/x/"\nlocation = "b.io/y/"', "a.io/x/app", ["https://b.io/v2 y/app"]),
        ('prefix = "a.io/x/app"\nlocation = "b.io/other"', "a.io/x/app:1", ["https://b.io/v2 other"]),
        ('prefix = "docker.io"\nlocation = "hub.io"', "busybox", ["https://hub.io/v2 library/busybox"]),
        ('prefix = "a.io"\nlocation = "docker.io"', "a.io/app", ["https://registry-1.docker.io/v2 library/app"]),
        ('prefix = "*.a.io"', "x.a.io/app", ["https://x.a.io/v2 app"]),
        ('prefix = "*.a.io"\nlocation = "b.io/all"', "x.a.io/app", ["https://b.io/v2 all/app"]),
        ('location = "a.io"\ninsecure = true', "a.io/app", ["https://a.io/v2 app", "http://a.io/v2 app"]),
        ('location = "localhost:5000"', "localhost:5000/app", ["http://localhost:5000/v2 app"]),
        (
            'location = "a.io"\n[[registry.mirror]]\nlocation = "m.io/sub"\n[[registry.mirror]]\nlocation = "n.io"',
            "a.io/app",
            ["https://m.io/v2 sub/app", "https://n.io/v2 app", "https://a.io/v2 app"],
        ),
        (
            'prefix = "*.a.io"\n[[registry.mirror]]\nlocation = "m.io"',
            "x.a.io/app",
            ["https://m.io/v2 app", "https://x.a.io/v2 app"],
        ),
    ],
)
def test_a_location_takes_the_place_of_the_prefix(text: str, ref: str, found: list[str]) -> None:
    assert ways(f"[[registry]]\n{text}", ref) == found


MIRRORS = """[[registry]]
location = "a.io"
{by_digest}
[[registry.mirror]]
location = "all.io"
[[registry.mirror]]
location = "digest.io"
{digest}
[[registry.mirror]]
location = "tag.io"
{tag}
"""


@pytest.mark.parametrize(
    ("ref", "hosts"),
    [("a.io/app:1", ["all.io", "tag.io", "a.io"]), (f"a.io/app:1@{DIGEST}", ["all.io", "digest.io", "a.io"])],
)
def test_a_mirror_serves_the_kind_of_ref_that_it_is_for(ref: str, hosts: list[str]) -> None:
    text = MIRRORS.format(by_digest="", digest='pull-from-mirror = "digest-only"', tag='pull-from-mirror = "tag-only"')
    assert ways(text, ref) == [f"https://{host}/v2 app" for host in hosts]


@pytest.mark.parametrize(("ref", "count"), [("a.io/app:1", 1), (f"a.io/app@{DIGEST}", 4)])
def test_mirrors_by_digest_only_are_not_asked_for_tags(ref: str, count: int) -> None:
    assert len(ways(MIRRORS.format(by_digest="mirror-by-digest-only = true", digest="", tag=""), ref)) == count


def test_a_mirror_gets_no_pull_secret_and_the_location_does() -> None:
    parsed = parse_ref("a.io/app")
    registry = conf('[[registry]]\nprefix = "a.io"\nlocation = "b.io"\n[[registry.mirror]]\nlocation = "m.io"')
    (found,) = registry.registries
    assert [(each.registry, each.own) for each in by_registry(parsed, found)] == [("a.io", False), ("a.io", True)]


def test_an_insecure_host_is_not_verified() -> None:
    (found,) = conf('[[registry]]\nlocation = "a.io"\ninsecure = true').registries
    assert [each.trust.skip_verify for each in by_registry(parse_ref("a.io/app"), found)] == [True, False]


def test_a_blocked_registry_is_refused_by_file_and_line() -> None:
    (found,) = conf('\n[[registry]]\nlocation = "a.io"\nblocked = true').registries
    with pytest.raises(FailedPrecondition, match=rf"a\.io/app is blocked by {FILE}:2"):
        by_registry(parse_ref("a.io/app"), found)


@pytest.mark.parametrize(
    "text",
    [
        '\n[[registry]]\nlocation = "a"\n\n [[ registry ]] # b\nlocation = "b"\n[[registry.mirror]]\nlocation = "m"',
        '\n[[registry]]\nlocation = "a"\n[aliases]\n[["registry"]]\nlocation = "b"\n',
    ],
)
def test_a_table_knows_its_line(text: str) -> None:
    assert conf(text).registries[-1].place == f"{FILE}:5"


# ----------------------------------------------------------------------- short names

SHORT = 'unqualified-search-registries = ["one.io", "two.io/sub"]\n[aliases]\nnick = "long.io/name"\ngone = ""\n'


@pytest.mark.parametrize(
    ("text", "written", "meant"),
    [
        ("", "app:1", ["docker.io/library/app:1"]),
        (SHORT, "app:1", ["one.io/app:1", "two.io/sub/app:1"]),
        (SHORT, "team/app", ["one.io/team/app:latest", "two.io/sub/team/app:latest"]),
        (SHORT, f"app@{DIGEST}", [f"one.io/app@{DIGEST}", f"two.io/sub/app@{DIGEST}"]),
        (SHORT, "nick", ["long.io/name:latest"]),
        (SHORT, f"nick:2@{DIGEST}", [f"long.io/name:2@{DIGEST}"]),
        (SHORT, "gone", ["one.io/gone:latest", "two.io/sub/gone:latest"]),
        (SHORT, "r.io/app", ["r.io/app:latest"]),
        (SHORT, "localhost/nick", ["localhost/nick:latest"]),
        ('short-name-mode = "disabled"\n' + SHORT, "nick", ["one.io/nick:latest", "two.io/sub/nick:latest"]),
        ('short-name-mode = "enforcing"\n' + SHORT, "nick", ["long.io/name:latest"]),
        ('short-name-mode = "enforcing"\nunqualified-search-registries = ["one.io"]', "app", ["one.io/app:latest"]),
    ],
)
def test_a_short_name_means_its_alias_or_what_is_searched(text: str, written: str, meant: list[str]) -> None:
    assert [str(ref) for ref in conf(text).candidates(written)] == meant


def test_an_ambiguous_short_name_is_refused_where_that_is_enforced() -> None:
    with pytest.raises(InvalidArgument, match=r"may mean one\.io/app:latest, two\.io/sub/app:latest"):
        conf('short-name-mode = "enforcing"\n' + SHORT).candidates("app")


# ---------------------------------------------------------------------------- files


def test_drop_ins_override_in_the_order_of_their_names(tmp_path: Path) -> None:
    main = tmp_path / "registries.conf"
    files = ConfFiles(str(main))
    assert files.read() == RegistriesConf()
    main.write_text('short-name-mode = "enforcing"\n[[registry]]\nlocation = "a.io"\n[[registry]]\nlocation = "b.io"\n')
    drop_ins = tmp_path / "registries.conf.d"
    drop_ins.mkdir()
    (drop_ins / "20.conf").write_text('[aliases]\nx = "b.io/x"\ny = "b.io/y"\n')
    (drop_ins / "10.conf").write_text(
        'short-name-mode = "permissive"\nunqualified-search-registries = ["s.io"]\n'
        '[aliases]\nx = "a.io/x"\n[[registry]]\nlocation = "a.io"\nblocked = true\n'
    )
    (drop_ins / "30.conf.rpmsave").write_text("not read")
    merged = files.read()
    assert [(each.prefix, each.blocked) for each in merged.registries] == [("b.io", False), ("a.io", True)]
    assert merged.aliases == {"x": "b.io/x", "y": "b.io/y"}
    assert (merged.search, merged.short_name_mode) == (("s.io",), "permissive")
    (drop_ins / "10.conf").unlink()
    assert files.read().search is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[registry]\n", ":1: not TOML"),
        ("[registries.search]\nregistries = []", ":1: .*version 1"),
        ("\n[[registry]]\ninsecure = true", ":2: .*neither prefix nor location"),
        ('[[registry]]\nprefix = "*example.com"', ":2: registry.0.prefix is"),
        ('[[registry]]\nprefix = "https://a"', ":2: registry.0.prefix is"),
        ('[[registry]]\nlocation = "https://a"', ":2: registry.0.location is"),
        ('[[registry]]\nprefix = "a"\nlocation = "b c"', ":3: registry.0.location is"),
        ('[[registry]]\nlocation = "a"\n[[registry]]\nlocation = "b"\nblocked = 1', ":5: registry.1.blocked is 1"),
        ('[[registry]]\nlocation = "a"\n[[registry.mirror]]\n', ":3: registry.0.mirror.0.location is"),
        (
            '[[registry]]\nlocation = "a"\n[[registry.mirror]]\nlocation = "m"\npull-from-mirror = "never"',
            ":5: registry.0.mirror.0.pull-from-mirror is",
        ),
        (
            '[[registry]]\nlocation = "a"\nmirror-by-digest-only = true\n'
            '[[registry.mirror]]\nlocation = "m"\npull-from-mirror = "all"',
            ":6: registry.0.mirror.0.pull-from-mirror is",
        ),
        ("registry = 1", ":1: registry is 1"),
        ('short-name-mode = "strict"', ":1: short-name-mode is"),
        ('unqualified-search-registries = ["https://a"]', ":1: unqualified-search-registries is"),
        ('[aliases]\nx = "short"', ":2: aliases.x is"),
        ('[aliases]\nx = "a.io/x:1"', ":2: aliases.x is"),
        ("aliases = 1", ":1: aliases is 1"),
        ("credential-helpers = 1", ":1: credential-helpers is 1"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=FILE + words):
        conf(text)


def test_misspelt_keys_are_found() -> None:
    text = 'search = []\n[[registry]]\nlocation = "a"\nblock = true\n[[registry.mirror]]\nlocation = "m"\nby = 1\n'
    assert conf(text).unknown == (f"{FILE}:1: search", f"{FILE}:4: block", f"{FILE}:7: by")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_refused_with_its_name(content: bytes) -> None:
    try:
        parse_conf(content, FILE)
    except ConfigError as error:
        said = error.message
    else:
        return
    assert said.startswith(f"{FILE}:")
