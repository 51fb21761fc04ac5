"""What a container sees and who it is: the sections on namespaces, users, capabilities and confinement. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from cri_py.explain import words
from cri_py.explain.facts import Fact, Origin, Party, Section, Seen, Subject
from cri_py.explain.origins import ALWAYS, SECURITY, is_privileged, look_up, of_container, of_sandbox
from cri_py.kernel import capabilities
from cri_py.kernel.isolation import IdRange

# ------------------------------------------------------------- namespaces

_HOLDS: Final = {
    "mnt": "the tree of files: what is mounted in here nobody outside sees, and the other way round",
    "pid": "process numbers: it sees no processes but those in here, and the first of them is 1",
    "net": "interfaces, addresses, routes, ports and firewall rules",
    "uts": "the host name",
    "ipc": "System V shared memory, semaphores and queues, POSIX message queues",
    "user": "what a uid means: root in one of its own may be nobody outside",
    "cgroup": "how it sees the tree of cgroups: in one of its own its group looks like the root",
    "time": "since when the monotonic clocks run: CRI has no field for it",
}


def namespaces(subject: Subject, seen: Seen) -> Section:
    facts = []
    for name in sorted(seen.namespaces, key=[*_HOLDS, *seen.namespaces].index):
        number = seen.namespaces[name]
        same = [party for party in seen.parties if party.namespaces.get(name) == number]
        value = {"id": number, "sharing": _sharing(same), "with": [_party(party) for party in same]}
        facts.append(
            Fact(
                name=name,
                value=value,
                text=_sharing_text(same),
                origin=namespace_origin(subject, name),
                read=f"/proc/{seen.pid}/ns/{name}",
                means=_HOLDS.get(name, ""),
            )
        )
    return words.section("namespaces", facts)


def _sharing(same: Sequence[Party]) -> str:
    kinds = {party.kind for party in same}
    if "node" in kinds:
        return "node"
    if "holder" in kinds:
        return "pod"
    return "container" if kinds else "own"


def _party(party: Party) -> dict[str, Any]:
    return {"kind": party.kind, "pid": party.pid, "id": party.id, "name": party.name}


def _sharing_text(same: Sequence[Party]) -> str:
    kind = _sharing(same)
    others = [party.name for party in same if party.kind == "container"]
    among = f" with {', '.join(others)}" if others else ""
    if kind == "node":
        return "the node's own: nothing of it is hidden"
    if kind == "pod":
        return f"the pod's, shared{among or ' with its holder alone'}"
    return f"shared{among}" if kind == "container" else "its own"


def namespace_origin(subject: Subject, name: str) -> Origin:
    """The field that decides about a namespace by its name in /proc/PID/ns."""
    asked, options = subject.asked, f"{SECURITY}.namespace_options"
    if name == "pid":
        own = of_container(asked, f"{options}.pid", "POD")
        # POD is also what a client sends that says nothing: then the sandbox decides.
        return of_sandbox(asked, f"{options}.pid", "POD") if own.asked == "POD" else own
    if name in ("net", "uts"):  # a pod on the node's network has the node's name
        return of_sandbox(asked, f"{options}.network", "POD")
    if name == "ipc":
        return of_sandbox(asked, f"{options}.ipc", "POD")
    if name == "user":
        return of_sandbox(asked, f"{options}.userns_options.mode", "POD" if _has_userns(subject) else None)
    if name == "cgroup":
        return of_container(asked, f"{SECURITY}.privileged", False)
    return ALWAYS


def _has_userns(subject: Subject) -> bool:
    return look_up(subject.asked.sandbox, f"{SECURITY}.namespace_options.userns_options") is not None


# ------------------------------------------------------------------- user

_ALL_IDS: Final = 2**32 - 1


def user(subject: Subject, seen: Seen) -> Section:
    status = f"/proc/{seen.pid}/status"
    uids, gids = (list(map(int, seen.status[name].split())) for name in ("Uid", "Gid"))
    groups = list(map(int, seen.status.get("Groups", "").split()))
    facts = [
        Fact("uid", uids[1], _ids_text(uids), user_origin(subject), status, _OUTSIDE),
        Fact("gid", gids[1], _ids_text(gids), group_origin(subject), status),
        Fact("groups", groups, " ".join(map(str, groups)) or "none", groups_origin(subject), status),
    ]
    for name, ranges in (("uid_map", seen.uid_map), ("gid_map", seen.gid_map)):
        value = [each._asdict() for each in ranges]
        field = f"{SECURITY}.namespace_options.userns_options.{name[:3]}s"
        facts.append(Fact(name, value, _map_text(ranges), of_sandbox(subject.asked, field), f"/proc/{seen.pid}/{name}"))
    return words.section("user", facts)


_OUTSIDE: Final = "as the node counts, which is where this was read"


def _ids_text(ids: Sequence[int]) -> str:
    kinds = ("real", "effective", "saved", "file system")
    if len(set(ids)) == 1:
        return f"{ids[0]}{' (root)' if ids[0] == 0 else ''}"
    return ", ".join(f"{word} {number}" for word, number in zip(kinds, ids, strict=True))


def _map_text(ranges: Sequence[IdRange]) -> str:
    if [tuple(each) for each in ranges] == [(0, 0, _ALL_IDS)]:
        return "none: each id is itself"
    return ", ".join(
        f"{_span(each.inside, each.length)} inside are {_span(each.outside, each.length)} outside" for each in ranges
    )


def _span(first: int, length: int) -> str:
    return f"{first}–{first + length - 1}"


def user_origin(subject: Subject) -> Origin:
    for field in ("run_as_user", "run_as_username"):
        origin = of_container(subject.asked, f"{SECURITY}.{field}")
        if origin.asked not in (None, ""):
            return origin
    return Origin("image", "config.User")


def group_origin(subject: Subject) -> Origin:
    origin = of_container(subject.asked, f"{SECURITY}.run_as_group")
    return user_origin(subject) if origin.asked is None else origin


def groups_origin(subject: Subject) -> Origin:
    groups = of_container(subject.asked, f"{SECURITY}.supplemental_groups", [])
    policy = look_up(subject.asked.container, f"{SECURITY}.supplemental_groups_policy", "Merge")
    return Origin("container", groups.field, {"groups": groups.asked, "policy": policy})


# ----------------------------------------------------------- capabilities

_SETS: Final = {
    "bounding": ("CapBnd", "what it, and all that it executes, can ever get; a setuid program gets no more"),
    "permitted": ("CapPrm", "what it may make effective"),
    "effective": ("CapEff", "what the kernel asks for when it acts"),
    "inheritable": ("CapInh", "what it can hand to programs whose file accepts it"),
    "ambient": ("CapAmb", "what a program keeps on execve though it is not root's"),
}


def rights(subject: Subject, seen: Seen) -> Section:
    asked = subject.asked.document.get("process", {}).get("capabilities", {})
    facts, told = [], dict[int, str]()
    for name, (line, means) in _SETS.items():
        bits = int(seen.status[line], 16)
        facts.append(
            Fact(
                name=name,
                value=list(capabilities.names(bits)),
                text=f"the same as {told[bits]}" if bits and bits in told else capabilities_text(bits),
                origin=capability_origin(subject, name),
                read=f"/proc/{seen.pid}/status",
                means=means,
                differs=_difference(bits, capabilities.mask(asked.get(name, ()))) if name == "bounding" else "",
            )
        )
        told.setdefault(bits, name)
    return words.section("capabilities", facts)


def capabilities_text(bits: int) -> str:
    names = [name.removeprefix("CAP_") for name in capabilities.names(bits)]
    lacking = [name.removeprefix("CAP_") for name in capabilities.NAMES if not bits >> capabilities.NUMBERS[name] & 1]
    if not lacking:
        return "all"
    if len(lacking) < len(names) / 3:
        return f"all but {' '.join(lacking)}"
    return " ".join(names) or "none"


def _difference(have: int, asked: int) -> str:
    """Why the bounding set, which nobody can widen, is not what was asked for."""
    lacking, more = asked & ~have, have & ~asked
    parts = [f"lacks {capabilities_text(lacking)}, which the daemon has not itself"] if lacking else []
    parts += [f"has {capabilities_text(more)}, which were not asked for"] if more else []
    return "; ".join(parts)


def capability_origin(subject: Subject, name: str) -> Origin:
    privileged = of_container(subject.asked, f"{SECURITY}.privileged", False)
    if privileged.asked and name not in ("inheritable", "ambient"):
        return privileged
    if name in ("inheritable", "ambient"):
        return of_container(subject.asked, f"{SECURITY}.capabilities.add_ambient_capabilities", [])
    return of_container(subject.asked, f"{SECURITY}.capabilities", {})


# ------------------------------------------------------------ confinement

_MODES: Final = {0: "none: every system call reaches the kernel", 1: "strict", 2: "filter"}


def confinement(subject: Subject, seen: Seen) -> Section:
    status = f"/proc/{seen.pid}/status"
    return words.section(
        "confinement", (*_seccomp(subject, seen, status), _no_new_privs(subject, seen, status), _label(subject, seen))
    )


def _seccomp(subject: Subject, seen: Seen, status: str) -> Iterator[Fact]:
    mode = int(seen.status.get("Seccomp", "0"))
    filters = int(seen.status.get("Seccomp_filters", "0"))
    profile = subject.asked.document.get("linux", {}).get("seccomp")
    origin = seccomp_origin(subject)
    differs = ""
    if profile and mode != 2:
        differs = "a profile was to be loaded and no filter is there"
    elif not profile and filters > seen.node_filters:
        differs = "no profile was asked for: the program has loaded a filter itself"
    text = _MODES[mode]
    if mode == 2:
        text = f"{filters} filter{'s' if filters != 1 else ''}"
        text += f", {seen.node_filters} of them the node's own" if seen.node_filters else ""
    yield Fact("seccomp", {"mode": mode, "filters": filters}, text, origin, status, differs=differs)
    if profile:
        yield Fact("profile", profile_value(profile), profile_text(profile), origin, f"{subject.bundle}/seccomp.json")


def seccomp_origin(subject: Subject) -> Origin:
    if is_privileged(subject.asked):
        return of_container(subject.asked, f"{SECURITY}.privileged")
    origin = of_container(subject.asked, f"{SECURITY}.seccomp")
    if origin.asked is None:
        return Origin("node", "runtime.seccomp", "seccomp" in subject.asked.document.get("linux", {}))
    # RuntimeDefault is 0 in the protobuf, and so is not in its JSON
    return Origin("container", origin.field, {"profile_type": "RuntimeDefault", **origin.asked})


def profile_value(profile: Any) -> dict[str, Any]:
    """The profile in numbers, not in full: it lies in the bundle."""
    counts: dict[str, set[str]] = {}
    for rule in profile.get("syscalls", ()):
        counts.setdefault(rule["action"], set()).update(rule["names"])
    return {
        "default_action": profile["defaultAction"],
        "default_errno": profile.get("defaultErrnoRet"),
        "architectures": list(profile.get("architectures", ())),
        "calls": {action: len(names) for action, names in sorted(counts.items())},
    }


def profile_text(profile: Any) -> str:
    value = profile_value(profile)
    rules = [
        f"{count} system call{'s' if count != 1 else ''}: {_ACTIONS.get(action, action)}"
        for action, count in value["calls"].items()
    ]
    rest = value["default_action"]
    return ", ".join([*rules, f"all others: {_ACTIONS.get(rest, rest)}"])


_ACTIONS: Final = {
    "SCMP_ACT_ALLOW": "let pass",
    "SCMP_ACT_ERRNO": "an error",
    "SCMP_ACT_KILL": "the end of the thread",
    "SCMP_ACT_KILL_THREAD": "the end of the thread",
    "SCMP_ACT_KILL_PROCESS": "the end of the process",
    "SCMP_ACT_LOG": "let pass, logged",
    "SCMP_ACT_TRAP": "SIGSYS",
}


def _no_new_privs(subject: Subject, seen: Seen, status: str) -> Fact:
    have = seen.status.get("NoNewPrivs") == "1"
    origin = of_container(subject.asked, f"{SECURITY}.no_new_privs", False)
    text = "yes: no program gains rights on execve" if have else "no: setuid programs work"
    if have and not origin.asked:
        differs = "not asked for: the program, or the node above us, has set it"
    else:
        differs = "" if have or not origin.asked else "asked for and not set"
    return Fact("no_new_privs", have, text, origin, status, differs=differs)


def _label(subject: Subject, seen: Seen) -> Fact:
    read = f"/proc/{seen.pid}/attr/current"
    if given := subject.asked.document.get("process", {}).get("selinuxLabel"):
        origin = of_container(subject.asked, f"{SECURITY}.selinux_options")
        differs = "" if seen.label == given else f"it was given {given}"
        return Fact("label", seen.label, seen.label or "none", origin, read, differs=differs)
    origin = of_container(subject.asked, f"{SECURITY}.apparmor")
    if origin.asked is not None:
        origin = Origin("container", origin.field, {"profile_type": "RuntimeDefault", **origin.asked})
    text = seen.label or "none: this kernel runs neither AppArmor nor SELinux"
    return Fact("label", seen.label, text, origin, read)
