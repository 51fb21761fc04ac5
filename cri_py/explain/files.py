"""What a container reaches: the sections on its root, its mounts and its devices. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cri_py.explain import words
from cri_py.explain.facts import Asked, Device, Fact, Origin, Section, Seen, Subject
from cri_py.explain.origins import ALWAYS, SECURITY, is_privileged, look_up, of_container, of_sandbox
from cri_py.kernel.procfs import MountPoint

# ----------------------------------------------------------------- mounts


def mounts(subject: Subject, seen: Seen) -> Section:
    read = f"/proc/{seen.pid}/mountinfo"
    last = {mount.path: mount.id for mount in seen.mounts}
    facts = []
    for mount in seen.mounts:
        origin = mount_origin(subject.asked, mount.path)
        facts.append(
            Fact(
                name=mount.path,
                value=_mount_value(subject, mount, hidden=last[mount.path] != mount.id),
                text=_mount_text(subject, mount, origin),
                origin=origin,
                read=read,
                differs=_mount_difference(mount, origin, newest=last[mount.path] == mount.id),
            )
        )
    return words.section("mounts", facts)


_MASKS: Final = {True: "hidden behind /dev/null", False: "hidden behind an empty directory"}


def _mount_value(subject: Subject, mount: MountPoint, *, hidden: bool) -> dict[str, Any]:
    """``hidden``: whether a later mount lies on the same place."""
    return {
        "host_path": _bound_from(subject, mount),
        "type": mount.fstype,
        "source": mount.source,
        "root": mount.root,
        "device": mount.device,
        "options": list(mount.options),
        "super_options": list(mount.super_options),
        "propagation": list(mount.propagation),
        "hidden": hidden,
    }


def _mount_text(subject: Subject, mount: MountPoint, origin: Origin) -> str:
    if origin.field.endswith("masked_paths"):
        return _MASKS[mount.root.endswith("/null")]
    access = "read-only" if "ro" in mount.options else "writable"
    restrictions = [option for option in ("nosuid", "nodev", "noexec") if option in mount.options]
    said = [access, *restrictions, *_propagation_words(mount.propagation)]
    return f"{_what(subject, mount, origin)}: {', '.join(said)}"


def _what(subject: Subject, mount: MountPoint, origin: Origin) -> str:
    if mount.path == "/":
        layers = sum(len(option.split(":")) for option in mount.super_options if option.startswith("lowerdir"))
        return f"overlay of {layers} layer{'s' if layers != 1 else ''} of the image" if layers else mount.fstype
    if origin.field.endswith("readonly_paths"):
        return "bound over itself"
    source = _bound_from(subject, mount)
    if source:
        return whose(subject, source)
    if mount.fstype in ("cgroup", "cgroup2"):
        return "its own cgroup" if mount.path != "/sys/fs/cgroup" or mount.root != "/" else "the cgroups"
    return mount.fstype


def whose(subject: Subject, source: str) -> str:
    """A path of the node in short: what lies in the pod's own directory is the pod's."""
    of_pod = subject.bundle.partition("/containers/")[0] + "/"
    return f"the pod's {source.removeprefix(of_pod)}" if source.startswith(of_pod) else f"{source} of the node"


def _bound_from(subject: Subject, mount: MountPoint) -> str:
    """The node's path of a bind mount, as the document has it; what lies below one has come along with it."""
    for planned in reversed(subject.asked.document.get("mounts", ())):
        if planned.get("type") == "bind" and clean(planned["destination"]) == mount.path:
            return str(planned["source"])
    return ""


def _propagation_words(tags: Sequence[str]) -> Iterator[str]:
    for tag in tags:
        kind = tag.partition(":")[0]
        if kind == "shared":
            yield "mounts made here appear on the node"
        elif kind == "master":
            yield "mounts of the node appear here"
        elif kind == "unbindable":
            yield "can't be bound elsewhere"


def _mount_difference(mount: MountPoint, origin: Origin, *, newest: bool) -> str:
    if not newest or "rw" not in mount.options:
        return ""
    asked = origin.asked
    wanted = asked is True and origin.field.endswith("readonly_rootfs")
    if isinstance(asked, Mapping) and clean(asked.get("container_path", "")) == mount.path:
        wanted = bool(asked.get("readonly"))
    return "asked for read-only and is writable" if wanted else ""


def mount_origin(asked: Asked, path: str) -> Origin:
    """The field from which the mount at ``path`` of the container came."""
    if path == "/":
        return of_container(asked, f"{SECURITY}.readonly_rootfs", False)
    for field in ("masked_paths", "readonly_paths"):
        if path in map(clean, look_up(asked.container, f"{SECURITY}.{field}", ())):
            return Origin("container", f"{SECURITY}.{field}", path)
    if volume := _volume(asked, path):
        return volume
    if path == "/etc/hostname":
        return of_sandbox(asked, "hostname")
    if path == "/etc/resolv.conf":
        return of_sandbox(asked, "dns_config")
    if path == "/dev/shm":  # noqa: S108 - the place itself, nothing is made in it
        return of_sandbox(asked, f"{SECURITY}.namespace_options.ipc", "POD")
    if path == "/sys" or path.startswith("/sys/fs/cgroup"):
        return of_container(asked, f"{SECURITY}.privileged", False)
    if path == "/dev/console":
        return of_container(asked, "tty", False)
    return ALWAYS


def _volume(asked: Asked, path: str) -> Origin | None:
    """The mount that was asked for at ``path``, or the innermost above it that brought it along."""
    above = ""
    found = None
    for number, mount in enumerate(look_up(asked.container, "mounts", ())):
        place = clean(mount.get("container_path", ""))
        if (path == place or path.startswith(f"{place}/")) and len(place) >= len(above):
            above, found = place, Origin("container", f"mounts[{number}]", mount)
    return found


def clean(path: str) -> str:
    """Without doubled and trailing slashes, as the kernel shows it."""
    return "/" + posixpath.normpath(path).lstrip("/") if path else ""


# ---------------------------------------------------------------- devices

_STANDARD: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_SHOWN: Final = 12


def devices(subject: Subject, seen: Seen) -> Section:
    return words.section("devices", (*_nodes(subject, seen), _rules(subject, seen)))


def _nodes(subject: Subject, seen: Seen) -> Iterator[Fact]:
    named = {
        clean(device.get("container_path", "")): Origin("container", f"devices[{number}]", device)
        for number, device in enumerate(look_up(subject.asked.container, "devices", ()))
    }
    read = f"/proc/{seen.pid}/root/dev"
    standard = [device for device in seen.devices if device.path in _STANDARD and device.path not in named]
    others = [device for device in seen.devices if device not in standard and device.path not in named]
    if standard:
        yield Fact("standard", _values(standard), _names(standard), ALWAYS, read)
    for device in seen.devices:
        if device.path in named:
            text = f"{device.kind} {device.major}:{device.minor}, mode {device.mode:04o}"
            yield Fact(device.path, _values([device]), text, named[device.path], read)
    if others:
        privileged = is_privileged(subject.asked)
        origin = of_container(subject.asked, f"{SECURITY}.privileged") if privileged else ALWAYS
        yield Fact("others", _values(others), _names(others), origin, read)


def _values(found: Sequence[Device]) -> list[dict[str, Any]]:
    return [
        {
            "path": device.path,
            "kind": device.kind,
            "major": device.major,
            "minor": device.minor,
            "mode": device.mode,
            "uid": device.uid,
            "gid": device.gid,
        }
        for device in found
    ]


def _names(found: Sequence[Device]) -> str:
    names = [device.path.removeprefix("/dev/") for device in found]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return " ".join(names[:_SHOWN]) + more


def _rules(subject: Subject, seen: Seen) -> Fact:
    """Version 1 lists them; version 2 has a BPF program, of which the document says what it was compiled from."""
    origin = of_container(subject.asked, f"{SECURITY}.privileged", False)
    if not origin.asked:
        origin = of_container(subject.asked, "devices", [])
    for reading in seen.cgroups:
        if reading.file == "devices.list":
            lines = reading.value.splitlines()
            return Fact("rules", lines, _rules_text(lines), origin, f"{reading.directory}/{reading.file}")
    planned = subject.asked.document.get("linux", {}).get("resources", {}).get("devices", ())
    lines = [rule_line(rule) for rule in planned]
    text = f"a BPF program on the cgroup, made of: {_rules_text(lines)}"
    return Fact("rules", lines, text, origin, f"{subject.bundle}/config.json")


def rule_line(rule: Mapping[str, Any]) -> str:
    """An OCI device rule in the words of version 1, denials with a minus: ``c 1:3 rwm``, ``-a *:* rwm``."""
    major, minor = (rule.get(name) for name in ("major", "minor"))
    numbers = ":".join("*" if number is None or number < 0 else str(number) for number in (major, minor))
    return f"{'' if rule['allow'] else '-'}{rule.get('type', 'a')} {numbers} {rule.get('access', 'rwm')}"


def _rules_text(lines: Sequence[str]) -> str:
    if "a *:* rwm" in lines:
        return "every device of the node"
    return ", ".join(lines) or "none"
