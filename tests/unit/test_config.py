"""Files, drop-ins and flags become one Config; what is wrong is told with file, line and a way out."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from cri_py import config
from cri_py.config import Config, Flag, RegistryConfig, effective_text, files_of, line_of, load
from cri_py.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def complaint(file: Path, text: str) -> str:
    """What is said about a file, with its name left out."""
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load([str(file)])
    return str(caught.value).removeprefix(str(file))


def test_no_file_and_no_flag_give_the_defaults() -> None:
    assert load().config == Config()


def test_a_file_sets_what_it_names_and_nothing_else(file: Path) -> None:
    file.write_text('[network]\nmtu = 1400\n[images]\npinned = ["a", "b"]\npull_progress_timeout_s = 3\n')
    loaded = load([str(file)]).config
    assert loaded.network.mtu == 1400
    assert loaded.images.pinned == ("a", "b")
    assert loaded.images.pull_progress_timeout_s == 3.0
    assert isinstance(loaded.images.pull_progress_timeout_s, float)
    assert dataclasses.replace(loaded, network=Config().network, images=Config().images) == Config()


def test_drop_ins_override_in_the_order_of_their_names_and_merge_tables(file: Path) -> None:
    file.write_text('[network]\nmtu = 1400\nbridge = "one"\n[images.registries.a]\nmirrors = ["http://one"]\n')
    drop_ins = file.with_name("config.d")
    drop_ins.mkdir()
    (drop_ins / "20.toml").write_text("network.mtu = 1300\n")
    (drop_ins / "10.toml").write_text("network.mtu = 1200\n[images.registries.a]\ninsecure = true\n")
    (drop_ins / "30.toml.bak").write_text("not read")
    loaded = load(files_of(str(file))).config
    assert (loaded.network.mtu, loaded.network.bridge) == (1300, "one")
    assert loaded.images.registries == {"a": RegistryConfig(mirrors=("http://one",), insecure=True)}


def test_arrays_are_replaced(file: Path, tmp_path: Path) -> None:
    file.write_text('runtime.handlers = ["a", "b"]\n')
    later = tmp_path / "later.toml"
    later.write_text('runtime.handlers = ["c"]\n')
    assert load([str(file), str(later)]).config.runtime.handlers == ("c",)


def test_a_flag_wins_over_a_file(file: Path) -> None:
    file.write_text('server.root = "/from-file"\n')
    loaded = load([str(file)], {("server", "root"): Flag("--root", "/from-flag")})
    assert loaded.config.server.root == "/from-flag"
    assert loaded.sources["server", "root"] == "--root"


def test_every_value_knows_where_it_was_set(file: Path) -> None:
    file.write_text('[images.registries."r.example"]\n\nmirrors = [\n  "http://m.example",\n]\n[network]\nmtu = 1400\n')
    text = effective_text(load([str(file)]))
    assert f'mirrors = ["http://m.example"]  # {file}:3' in text
    assert f"mtu = 1400  # {file}:7" in text
    assert 'bridge = "crip0"  # default' in text
    assert tomllib.loads(text)["images"]["registries"]["r.example"]["insecure"] is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[network]\n\nbridg = "x"', ":3: network.bridg is no key of cri_py (did you mean network.bridge?)"),
        ("[netwrok]\nmtu = 1", ":1: netwrok is no key of cri_py (did you mean network?)"),
        ("[server]\nmtu = 1400", ":2: server.mtu is no key of cri_py (did you mean network.mtu?)"),
        ("zzz = 1", ":1: zzz is no key of cri_py (`cri-py config default` lists all keys)"),
        (
            '[images.registries."r.example"]\nmirror = []',
            ':2: images.registries."r.example".mirror is no key of cri_py'
            ' (did you mean images.registries."r.example".mirrors?)',
        ),
    ],
)
def test_an_unknown_key_is_an_error_with_line_and_suggestion(file: Path, text: str, expected: str) -> None:
    assert complaint(file, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nroot = 3", ":2: server.root is 3 (it takes a string)"),
        ('network.mtu = "1500"', ':1: network.mtu is "1500" (it takes a whole number)'),
        ("network.mtu = true", ":1: network.mtu is true (it takes a whole number)"),
        ("network.mtu = 1500.0", ":1: network.mtu is 1500.0 (it takes a whole number)"),
        ("network.masquerade = 1", ":1: network.masquerade is 1 (it takes true or false)"),
        ('images.pinned = "x"', ':1: images.pinned is "x" (it takes an array of strings)'),
        ("images.pinned = [1]", ":1: images.pinned is [1] (it takes an array of strings)"),
        ("runtime.exec_drain_s = true", ":1: runtime.exec_drain_s is true (it takes a number)"),
        ("server = 1", ":1: server is 1 (it is a table: write [server])"),
        ("images.registries = 1", ':1: images.registries is 1 (write [images.registries."NAME"])'),
        ("server.root = {a = 1}", ":1: server.root is a table (it takes a string)"),
    ],
)
def test_a_value_of_another_type_is_an_error(file: Path, text: str, expected: str) -> None:
    assert complaint(file, text) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('server.root = "relative"', "use an absolute path without .."),
        ('server.state = "/a/../b"', "use an absolute path without .."),
        ('server.root = "/a\\u0000b"', "use an absolute path without .."),
        ('network.netns_dir = "/a\\u0000b"', 'use an absolute path without .., or ""'),
        ('server.state = "/.."', "use an absolute path without .."),
        ('server.listen = "cri.sock"', "use unix:///absolute/path or tcp://host:port"),
        ('log.level = "loud"', "use one of debug, info, warning, error"),
        ('metrics.listen = "9090"', 'use unix:///absolute/path, 127.0.0.1:PORT or "off"'),
        ('cgroups.parent = "pods"', "use a path that begins with /, without .."),
        ('cgroups.parent = "/a/../b"', "use a path that begins with /, without .."),
        ('cgroups.parent = "/"', "use a path that begins with /, without .."),
        ('network.bridge = "longer-than-15-bytes"', "use 1 to 15 characters"),
        ('network.subnet = "10.85.0.0/30"', "use a network of at least 8 addresses (/29)"),
        ("network.mtu = 1", "use a number from 68 to 65535"),
        ("images.registries.a.mirrors = ['ftp://x']", "use a URL that begins with http:// or https://"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_with_the_remedy(file: Path, text: str, hint: str) -> None:
    assert complaint(file, text).endswith(f"({hint})")


@pytest.mark.parametrize(
    "text",
    [
        'metrics.listen = "off"',
        'metrics.listen = "127.0.0.1:9090"',
        'server.listen = "unix:///run/x.sock"',
        'server.listen = "tcp://127.0.0.1:0"',
        'network.netns_dir = ""',
        'cgroups.parent = "/kubepods.slice/x..y"',
    ],
)
def test_values_that_may_be_are_taken(file: Path, text: str) -> None:
    file.write_text(text)
    load([str(file)])


@pytest.mark.parametrize(("text", "line"), [("[server]\nroot = \n", 2), ("a = 1\na = 2\n", 2), ('x = """', 1)])
def test_what_is_not_toml_is_told_with_its_line(file: Path, text: str, line: int) -> None:
    assert complaint(file, text).startswith(f":{line}: not TOML: ")


def test_a_file_that_was_named_and_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(files_of(str(tmp_path / "none.toml")))


def test_a_wrong_flag_is_told_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"^--root: server\.root is \"x\""):
        load([], {("server", "root"): Flag("--root", "x")})


def test_the_printed_defaults_are_the_defaults(file: Path) -> None:
    text = config.default_text()
    file.write_text(text)
    assert load([str(file)]).config == Config()


def test_the_printed_defaults_explain_every_key() -> None:
    lines = config.default_text().splitlines()
    for table in dataclasses.fields(Config):
        for key in dataclasses.fields(getattr(Config(), table.name)):
            assert f"# {key.metadata['comment']}" in lines, f"{table.name}.{key.name}"


def test_addresses_that_are_not_set_lie_under_the_state_directory() -> None:
    loaded = load([], {("server", "state"): Flag("--state", "/s")}).config
    assert loaded.listen == "unix:///s/cri.sock"
    assert loaded.metrics_listen == "unix:///s/metrics.sock"
    assert loaded.netns_dir == "/s/netns"


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("[a]\nb = 1\n[c]\nb = 2\n", ("c", "b"), 4),
        ('a."b.c".d = 1\n', ("a", "b.c", "d"), 1),
        ("x = 1\na = {b = 1}\n", ("a", "b"), 2),
        ("# [a]\n[ a . 'b' ]  # here\n", ("a", "b"), 2),
        ('x = """\n= no key\n"""\ny = 1\n', ("y",), 4),
        ("x = 1\n", ("y",), 0),
    ],
)
def test_the_line_of_a_key_is_found_however_it_is_written(text: str, path: tuple[str, ...], line: int) -> None:
    assert line_of(text, path) == line


ARRAYS = """unqualified = ["x"]
[[registry]]
prefix = "a"
[[registry.mirror]]
location = "m1"
[[registry.mirror]]
location = "m2"
[[registry]]
location = "b"
[[registry.mirror]]
insecure = 3
[host."https://[::1]:5000"]
ca = 1
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("registry", 0, "prefix"), 3),
        (("registry", 0, "mirror", 1, "location"), 7),
        (("registry", 1), 8),
        (("registry", 1, "location"), 9),
        (("registry", 1, "mirror", 0, "insecure"), 11),
        (("registry", 1, "mirror", 0, "location"), 10),
        (("host", "https://[::1]:5000", "ca"), 13),
    ],
)
def test_a_line_is_found_in_arrays_of_tables_and_below_quoted_names(path: tuple[str | int, ...], line: int) -> None:
    assert line_of(ARRAYS, path) == line
