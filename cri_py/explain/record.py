"""What the record says of a container that has no process to be looked at: the same sections, shorter. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cri_py.explain import files, limits, sections, words
from cri_py.explain.facts import Fact, Origin, Section, Subject
from cri_py.explain.origins import RESOURCES, SECURITY, is_privileged, of_container
from cri_py.kernel import capabilities
from cri_py.kernel.isolation import ResourceLimit

_OCI_NAMES: Final = {
    "mount": "mnt",
    "pid": "pid",
    "network": "net",
    "uts": "uts",
    "ipc": "ipc",
    "user": "user",
    "cgroup": "cgroup",
}


def of_record(subject: Subject) -> tuple[Section, ...]:
    """All is read from the bundle, but for the user, which is the record's and told without a bundle too."""
    document = subject.asked.document
    found = []
    if subject.user is not None:
        found.append(words.section("user", _user(subject, subject.user)))
    if document:
        found = [
            words.section("namespaces", _namespaces(subject, document)),
            *found,
            words.section("capabilities", _rights(subject, document)),
            words.section("confinement", _confinement(subject, document)),
            words.section("mounts", _mounts(subject, document)),
            words.section("devices", _devices(subject, document)),
            words.section("cgroup", _resources(subject)),
            words.section("process", _process(subject, document)),
        ]
    return tuple(found)


def _namespaces(subject: Subject, document: Mapping[str, Any]) -> Iterator[Fact]:
    paths = {_OCI_NAMES[each["type"]]: each.get("path", "") for each in document["linux"]["namespaces"]}
    for name in _OCI_NAMES.values():
        sharing = "node" if name not in paths else "pod" if paths[name] else "own"
        origin = sections.namespace_origin(subject, name)
        if isinstance(origin.asked, str) and origin.asked == "TARGET":
            sharing = "container"
        value: dict[str, Any] = {"id": None, "sharing": sharing, "with": []}
        yield Fact(name, value, _SHARING[sharing], origin, _bundle(subject))


_SHARING: Final = {
    "own": "its own",
    "pod": "the pod's",
    "node": "the node's own: nothing of it is hidden",
    "container": "another container's",
}


def _user(subject: Subject, user: tuple[int, int, tuple[int, ...]]) -> Iterator[Fact]:
    uid, gid, groups = user
    yield Fact("uid", uid, str(uid), sections.user_origin(subject))
    yield Fact("gid", gid, str(gid), sections.group_origin(subject))
    yield Fact("groups", list(groups), " ".join(map(str, groups)) or "none", sections.groups_origin(subject))


def _rights(subject: Subject, document: Mapping[str, Any]) -> Iterator[Fact]:
    for name, names in document["process"].get("capabilities", {}).items():
        text = sections.capabilities_text(capabilities.mask(names))
        yield Fact(name, list(names), text, sections.capability_origin(subject, name), _bundle(subject))


def _confinement(subject: Subject, document: Mapping[str, Any]) -> Iterator[Fact]:
    profile = document["linux"].get("seccomp")
    origin = sections.seccomp_origin(subject)
    if profile:
        value, text = sections.profile_value(profile), sections.profile_text(profile)
        yield Fact("profile", value, text, origin, f"{subject.bundle}/seccomp.json")
    else:
        yield Fact("profile", None, "none: every system call reaches the kernel", origin, _bundle(subject))
    denied = bool(document["process"].get("noNewPrivileges"))
    origin = of_container(subject.asked, f"{SECURITY}.no_new_privs", False)
    yield Fact("no_new_privs", denied, "yes" if denied else "no", origin, _bundle(subject))


def _mounts(subject: Subject, document: Mapping[str, Any]) -> Iterator[Fact]:
    root = document["root"]
    access = "read-only" if root.get("readonly") else "writable"
    yield Fact("/", root, f"the image's layers: {access}", files.mount_origin(subject.asked, "/"), _bundle(subject))
    for mount in document.get("mounts", ()):
        path = files.clean(mount["destination"])
        what = files.whose(subject, mount["source"]) if mount.get("type") == "bind" else mount.get("type", "")
        text = f"{what}: {', '.join(mount.get('options', ()))}"
        yield Fact(path, mount, text, files.mount_origin(subject.asked, path), _bundle(subject))
    for key, field, text in (
        ("maskedPaths", "masked_paths", "hidden"),
        ("readonlyPaths", "readonly_paths", "bound over itself: read-only"),
    ):
        for path in document["linux"].get(key, ()):
            origin = of_container(subject.asked, f"{SECURITY}.{field}")
            yield Fact(path, {"type": key}, text, origin, _bundle(subject))


def _devices(subject: Subject, document: Mapping[str, Any]) -> Iterator[Fact]:
    rules = [files.rule_line(rule) for rule in document["linux"]["resources"].get("devices", ())]
    privileged = is_privileged(subject.asked)
    origin = of_container(subject.asked, f"{SECURITY}.privileged" if privileged else "devices", [])
    nodes = document["linux"].get("devices", ())
    yield Fact("nodes", nodes, " ".join(node["path"] for node in nodes) or "none", origin, _bundle(subject))
    yield Fact("rules", rules, ", ".join(rules) or "none", origin, _bundle(subject))


def _resources(subject: Subject) -> Iterator[Fact]:
    yield limits.group(subject)
    for field, value in subject.resources.items():
        origin = of_container(subject.asked, f"{RESOURCES}.{field}")
        yield Fact(field, origin.asked if origin.asked is not None else value, str(value), origin)


def _process(subject: Subject, document: Mapping[str, Any]) -> Iterator[Fact]:
    score = document["process"].get("oomScoreAdj", 0)
    origin = of_container(subject.asked, f"{RESOURCES}.oom_score_adj", 0)
    yield Fact("oom_score_adj", score, str(score), origin)
    for each in document["process"].get("rlimits", ()):
        limit = ResourceLimit(each["type"], each["soft"], each["hard"], "")
        value = {"soft": limit.soft, "hard": limit.hard, "unit": ""}
        yield Fact(limit.name, value, limits.limit_text(limit), Origin("node", "runtime.nofile"), _bundle(subject))


def _bundle(subject: Subject) -> str:
    return f"{subject.bundle}/config.json"
