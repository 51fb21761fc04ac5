from __future__ import annotations

from typing import Any

import pytest

from cri_py.errors import StartError
from cri_py.runtime.users import resolve

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
web:x:1000:1001::/srv/web:/bin/sh
0042:x:0:0:sly:/root:/bin/sh
99999999999:x:0:0:sly:/root:/bin/sh
broken:x:many:0::/:/bin/sh
short:x:5
\xff\xfe:x:77:78::/bytes:/bin/sh
nohome:x:9:9:::
"""
GROUP = b"""root:x:0:
web:x:1001:
logs:x:50:daemon,web
cache:x:60:web
wheel:x:10:root
bad:x:none:web
"""


def ask(text: str, *, gid: int | None = None, groups: tuple[int, ...] = (), policy: str = "merge") -> Any:
    request = {"text": text, "gid": gid, "groups": list(groups), "policy": policy}
    return resolve(request, PASSWD, GROUP)


def test_nothing_asked_for_is_root_with_its_groups() -> None:
    assert ask("") == (0, 0, [0, 10], "/root")


def test_a_name_brings_its_ids_home_and_groups() -> None:
    assert ask("web") == (1000, 1001, [1001, 50, 60], "/srv/web")


def test_a_number_with_an_entry_is_that_user() -> None:
    assert ask("1000") == ask("web")


def test_a_number_without_an_entry_needs_none() -> None:
    assert ask("4711") == (4711, 0, [0], "/")
    assert resolve({"text": "4711:4712", "gid": None, "groups": [], "policy": "merge"}, b"", b"")[:2] == (4711, 4712)


def test_a_group_in_the_text_goes_before_that_of_passwd() -> None:
    assert ask("web:logs") == (1000, 50, [50, 60], "/srv/web")
    assert ask("web:7")[1] == 7


def test_a_gid_asked_for_goes_before_both() -> None:
    assert ask("web:logs", gid=3)[:3] == (1000, 3, [3, 50, 60])
    assert ask("web", gid=0)[1] == 0


def test_groups_asked_for_are_added_once() -> None:
    assert ask("web", groups=(50, 99, 99))[2] == [1001, 50, 60, 99]


def test_strict_leaves_out_the_groups_of_the_image() -> None:
    assert ask("web", groups=(99,), policy="strict")[2] == [1001, 99]


def test_a_user_that_is_named_like_a_number_does_not_take_the_number() -> None:
    assert ask("0042")[0] == 42


@pytest.mark.parametrize("name", ["nobody", "broken", "short", "#", "-1", "root "])
def test_an_unknown_user_is_named(name: str) -> None:
    with pytest.raises(StartError, match=r"unable to find user .*: no such entry in the image's /etc/passwd"):
        ask(name)


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(StartError, match="unable to find group nogroup: no such entry in the image's /etc/group"):
        ask("web:nogroup")
    with pytest.raises(StartError, match="group bad"):
        ask("web:bad")


@pytest.mark.parametrize("text", ["4294967295", "99999999999", "web:4294967295"])
def test_numbers_beyond_all_ids_are_refused_also_where_a_user_is_named_so(text: str) -> None:
    with pytest.raises(StartError, match="is no id"):
        ask(text)


@pytest.mark.parametrize("text", [":", "web:", ":web"])
def test_half_a_user_is_refused(text: str) -> None:
    with pytest.raises(StartError, match="incomplete"):
        ask(text)


def test_a_home_that_is_no_path_is_the_root() -> None:
    assert ask("nohome")[3] == "/"


def test_names_that_are_not_utf_8_are_found() -> None:
    assert ask(b"\xff\xfe".decode("utf-8", "surrogateescape"))[:2] == (77, 78)


def test_files_without_a_last_newline_and_with_carriage_returns_are_read() -> None:
    request = {"text": "a", "gid": None, "groups": [], "policy": "merge"}
    assert resolve(request, b"a:x:1:2::/a:/bin/sh\r", b"g:x:3:a")[:3] == (1, 2, [2, 3])
