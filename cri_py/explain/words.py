"""The sections of an explanation in words: titles, what a learner should know first, and where to read on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from cri_py.explain.facts import Fact, Section


class Chapter(NamedTuple):
    title: str
    about: str
    pages: tuple[str, ...]
    made_by: tuple[str, ...]


CHAPTERS: Final[Mapping[str, Chapter]] = MappingProxyType(
    {
        "namespaces": Chapter(
            "What it sees",
            """A namespace is the kernel's answer to the question what there is. Each process is in one of every kind.
            One of its own hides the node's things of that kind; in one that is shared, both see and change the same.
            The pod's are kept by its holder, a process that does nothing else.""",
            ("namespaces(7)", "unshare(2)", "setns(2)"),
            ("cri_py/pods/holder_steps.py", "cri_py/runtime/container.py"),
        ),
        "user": Chapter(
            "Who it is",
            """Files and signals are guarded by numbers, not names; the image's /etc/passwd and /etc/group only say
            which numbers to take. Without a user namespace a number means the same inside and outside: root is root,
            held back by nothing but what the next sections tell.""",
            ("credentials(7)", "user_namespaces(7)"),
            ("cri_py/runtime/users.py", "cri_py/runtime/security.py"),
        ),
        "capabilities": Chapter(
            "What it may do as root",
            """The kernel cuts root's power into capabilities, and looks for one of them where it once looked for
            uid 0. A program of root's gets on execve all that the bounding set has, one of another user only what is
            ambient.""",
            ("capabilities(7)",),
            ("cri_py/pods/spec_security.py", "cri_py/runtime/security.py"),
        ),
        "confinement": Chapter(
            "What it may ask of the kernel",
            """Every system call is first shown to the seccomp filter, a small program that lets it pass, refuses it
            or ends the process; it can't be taken off again. no_new_privs makes setuid and file capabilities void.
            AppArmor or SELinux, where the kernel has one, judge by names and labels on top.""",
            ("seccomp(2)", "prctl(2)"),
            ("cri_py/pods/seccomp_default.py", "cri_py/kernel/seccomp.py", "cri_py/runtime/security.py"),
        ),
        "mounts": Chapter(
            "What it finds on disk",
            """Its root is an overlay: the image's layers, which all containers of the image share and none can
            change, under one writable layer of its own. On that lie the kernel's views of itself (/proc, /sys), a
            /dev of its own, and the volumes. What of /proc and /sys would let it reach the node is hidden or made
            read-only.""",
            ("mount_namespaces(7)", "pivot_root(2)"),
            ("cri_py/pods/spec_mounts.py", "cri_py/runtime/mounts.py"),
        ),
        "devices": Chapter(
            "Which devices it may use",
            """A node in /dev is only a name for two numbers. Whether it may be opened is for the cgroup to say, which
            is asked at every open and mknod: a node that a container makes by itself opens nothing.""",
            ("mknod(2)", "cgroups(7)"),
            ("cri_py/pods/spec_mounts.py", "cri_py/cgroups/devices.py"),
        ),
        "cgroup": Chapter(
            "What it may use up",
            """A cgroup is a directory of the kernel with processes in it. Its files say how much all of them together
            may use, and count what they do. Groups nest, and the tightest limit on the way to the root is the one
            that holds: the kubelet puts one around the pod.""",
            ("cgroups(7)",),
            ("cri_py/cgroups/plans.py", "cri_py/cgroups/v1.py", "cri_py/cgroups/v2.py"),
        ),
        "process": Chapter(
            "What holds each of its processes",
            """Some limits are older than cgroups: they are set on a process, and its children inherit them. The soft
            one holds, and may be raised up to the hard one. Who goes first when the node itself runs out of memory is
            decided by a score, which oom_score_adj shifts.""",
            ("getrlimit(2)", "proc_pid_oom_score_adj(5)"),
            ("cri_py/pods/spec.py", "cri_py/runtime/security.py"),
        ),
    }
)


def section(name: str, facts: Iterable[Fact]) -> Section:
    """The section of that name with its words."""
    chapter = CHAPTERS[name]
    return Section(name, chapter.title, " ".join(chapter.about.split()), chapter.pages, chapter.made_by, tuple(facts))
