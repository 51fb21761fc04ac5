"""Who a container runs as: what was asked for, looked up in the /etc/passwd and /etc/group of its root. Pure.

The two files come from an image and are anything: wrong lines are ignored, as the C library ignores them (passwd(5),
group(5)). A text of digits alone is always a number, even if a user is named so: an image must not be able to turn
``runAsUser: 1000`` into root by calling root "1000".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cri_py.errors import StartError
from cri_py.kernel import userns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_LAST_ID = 0xFFFFFFFE  # -1 means "no change" to setresuid(2)


def resolve(request: Mapping[str, Any], passwd: bytes, group: bytes) -> tuple[int, int, list[int], str]:
    """Return (uid, gid, supplementary gids, home directory).

    ``request`` is ``{"text": str, "gid": int | None, "groups": [int], "policy": "merge" | "strict"}``: text is "", USER
    or USER:GROUP, each a name or a number; gid goes before the text's group and before passwd's. The supplementary
    groups begin with the gid (a file that is closed to the gid must not open for want of it, CVE-2022-36109); then
    come, under "merge", the groups that list the user, then those asked for; none twice.

    Raises StartError that names the user or group that isn't there. A number needs no entry; its gid is then 0 and its
    home "/".
    """
    user_text, colon, group_text = str(request["text"]).partition(":")
    if colon and not (user_text and group_text):
        raise StartError(f"the user {request['text']!r} is incomplete", hint="use USER, UID, USER:GROUP or UID:GID")
    name, uid, entry_gid, home = _user(user_text or "0", passwd)
    gid = request["gid"]
    if gid is None:
        gid = _group(group_text, group) if group_text else entry_gid
    listed = _groups_of(name, group) if name and request["policy"] == "merge" else ()
    return uid, gid, list(dict.fromkeys((gid, *listed, *request["groups"]))), home


def check_mapped(uid: int, gids: Iterable[int], linux: Mapping[str, Any]) -> None:
    """Raises StartError for an id that the pod's user namespace doesn't have (``linux.uidMappings``, gidMappings)."""
    asked = [("user", uid, "uidMappings"), *(("group", gid, "gidMappings") for gid in gids)]
    for kind, number, mappings in asked:
        if userns.outside(linux.get(mappings, []), number) < 0:
            raise StartError(
                f"{kind} {number} does not exist in the pod's user namespace",
                hint="use an id that userns_options maps, or run the pod without a user namespace",
            )


def _user(text: str, passwd: bytes) -> tuple[str, int, int, str]:
    """(name, uid, gid, home) of a user by name or number; the name is "" where a number has no entry."""
    number = _requested_number("user", text)
    for fields in _entries(passwd, 7):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is None or gid is None:
            continue
        if uid == number if number is not None else fields[0] == text:
            return fields[0], uid, gid, fields[5] if fields[5].startswith("/") else "/"
    if number is None:
        raise _no_entry("user", text, "/etc/passwd")
    return "", number, 0, "/"


def _group(text: str, group: bytes) -> int:
    number = _requested_number("group", text)
    if number is not None:
        return number
    for fields in _entries(group, 4):
        gid = _number(fields[2])
        if fields[0] == text and gid is not None:
            return gid
    raise _no_entry("group", text, "/etc/group")


def _groups_of(name: str, group: bytes) -> Iterator[int]:
    for fields in _entries(group, 4):
        gid = _number(fields[2])
        if gid is not None and name in fields[3].split(","):
            yield gid


def _entries(text: bytes, width: int) -> Iterator[list[str]]:
    for line in text.split(b"\n"):
        fields = line.decode("utf-8", "surrogateescape").strip().split(":")
        if len(fields) == width and fields[0] and not fields[0].startswith(("#", "+", "-")):
            yield fields


def _number(text: str) -> int | None:
    """The id that ``text`` is, or None. Longer digits than any id has are not converted: that can take a minute."""
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > _LAST_ID:
        return None
    return int(text)


def _requested_number(kind: str, text: str) -> int | None:
    number = _number(text)
    if number is None and text.isdigit():
        raise StartError(f"{kind} {text[:20]} is no id", hint=f"ids go from 0 to {_LAST_ID}")
    return number


def _no_entry(kind: str, text: str, file: str) -> StartError:
    return StartError(
        f"unable to find {kind} {text}: no such entry in the image's {file}",
        hint=f"name a {kind} that the image has, or use a number",
    )
