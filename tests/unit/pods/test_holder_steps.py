"""The holder's way to its program, as a value: where it is born, and what it has given up by then."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from cri_py import model
from cri_py.errors import Internal, InvalidArgument
from cri_py.kernel import constants as k
from cri_py.kernel.steps import Step, Then, encode
from cri_py.pods.holder_steps import Own, own, refusal, steps, users
from tests.unit.pods.builders import sandbox

FILES = ("/g/cpu/pod/tasks", "/g/memory/pod/tasks")
SHARED = Own("pod", ipc=True, pid=True, network=True)
PLAIN = SHARED._replace(pid=False)
USERS = Own("pod", ipc=True, pid=True, network=False, users=True, new_network=True, sysctls={"kernel/msgmax": "1"})


def listed(wish: Own = PLAIN) -> list[Step]:
    return steps(wish, "/run/holder", FILES, last_capability=40)


def calls(found: list[Step]) -> list[str]:
    return [step.call for step in found]


def born(found: list[Step]) -> int:
    """Where the child goes on."""
    return next(number for number, step in enumerate(found) if step.then is Then.FORK)


@pytest.mark.parametrize(
    ("wish", "flags"),
    [
        (PLAIN, k.CLONE_NEWIPC | k.CLONE_NEWUTS),
        (Own("", ipc=False, pid=False, network=False), 0),
        (SHARED, k.CLONE_NEWIPC | k.CLONE_NEWUTS | k.CLONE_NEWPID | k.CLONE_NEWNS),
        (
            USERS,
            k.CLONE_NEWIPC | k.CLONE_NEWUTS | k.CLONE_NEWPID | k.CLONE_NEWNS | k.CLONE_NEWNET | k.CLONE_NEWUSER,
        ),
    ],
)
def test_it_is_born_as_the_monitors_child_into_what_is_the_pods_own(wish: Own, flags: int) -> None:
    found = listed(wish)
    arguments = found[born(found)].arguments[0]
    assert isinstance(arguments, tuple)
    assert arguments[0] == flags | k.CLONE_PARENT


def test_all_that_lies_on_the_node_is_opened_before_and_used_after_birth() -> None:
    """The node's files can't be opened any more, and a frozen group must not stop who is waited for."""
    found = listed()
    opened = [step.arguments[1] for step in found[: born(found)] if step.call == "openat"]
    assert opened == [b"/run/holder\0", b"/g/cpu/pod/tasks\0", b"/g/memory/pod/tasks\0"]
    written = [step for step in found if step.call == "write"]
    assert [step.arguments for step in written] == [(6, b"0", 1), (7, b"0", 1)]
    assert all(found.index(step) > born(found) for step in written)
    assert found.index(written[-1]) < calls(found).index("setns")


def test_it_waits_for_its_monitors_word_before_it_can_fail() -> None:
    found = listed()
    at = born(found)
    assert found[at + 1].arguments[0] == k.PR_SET_PDEATHSIG  # a monitor that dies now leaves nobody
    assert calls(found)[at + 2] == "read"
    assert found[at + 3].then is Then.EXPECT


def test_a_network_that_was_made_before_is_joined_and_one_of_a_user_namespace_is_not() -> None:
    assert Step("setns", (4, k.CLONE_NEWNET)).arguments in [step.arguments for step in listed()]
    assert "setns" not in calls(listed(USERS))


def test_in_a_user_namespace_it_becomes_root_first_and_leaves_the_sysctls_to_the_monitor() -> None:
    found = listed(USERS)
    after = calls(found)[born(found) :]
    assert after.index("setresuid") < after.index("sethostname")
    assert not any(b"/proc/sys" in step.arguments[1] for step in found if step.call == "openat")  # type: ignore[operator]


def test_sysctls_are_set_inside_and_refused_by_their_name() -> None:
    found = listed(PLAIN._replace(sysctls={"kernel/msgmax": "70000"}))
    number = next(n for n, step in enumerate(found) if step.arguments[1:2] == (b"/proc/sys/kernel/msgmax\0",))
    assert number > born(found)
    assert found[number + 1].arguments == (4, b"70000", 5)
    error = refusal(found[number + 1], errno.EINVAL)
    assert isinstance(error, InvalidArgument)
    assert str(error) == "the sysctl kernel.msgmax can't be set to '70000': invalid argument"
    assert isinstance(refusal(listed()[0], errno.EPERM), Internal)


def test_where_containers_can_see_it_it_has_an_empty_root_no_rights_and_a_filter() -> None:
    found = listed(SHARED)
    names = calls(found)
    assert names[-1] == "execveat"
    assert names[-2] == "seccomp"
    assert names[-3] == "capset"
    assert found[-3].arguments[1] == bytes(24)
    assert names.index("pivot_root") < names.index("capset")
    dropped = [step.arguments[1] for step in found if step.arguments[:1] == (k.PR_CAPBSET_DROP,)]
    assert dropped == list(range(41))
    attributes = next(step.arguments[3] for step in found if step.call == "mount_setattr")
    assert attributes == struct.pack("=4Q", k.MOUNT_ATTR_RDONLY, 0, 0, 0)
    assert "seccomp" not in calls(listed())


def test_nothing_but_its_stdio_is_open_in_the_end() -> None:
    """The network is closed, and the rest is close-on-exec."""
    for wish in (PLAIN, SHARED, USERS):
        for step in listed(wish):
            if step.call == "openat":
                assert int(step.arguments[2]) & os.O_CLOEXEC  # type: ignore[call-overload]
        assert Step("close", (4,)) in listed(wish)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("wish", [PLAIN, SHARED, USERS])
def test_every_step_is_known_on_both_machines(wish: Own, machine: str) -> None:
    assert encode(listed(wish), machine)


def test_a_nul_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        steps(PLAIN, "/run/\0", (), 40)


def test_what_a_pod_has_of_its_own_follows_from_its_namespaces() -> None:
    shared = sandbox(sysctls={"kernel.msgmax": "1"}).config
    found = own(shared, "web")
    assert found.sysctls["kernel/msgmax"] == "1"
    assert found._replace(sysctls={}) == Own("web", ipc=True, pid=True, network=True)
    assert users(found, shared) == {"uid_map": "", "gid_map": ""}
    node = model.NamespaceMode.NODE
    alone = sandbox(namespaces=model.NamespaceOption(node, model.NamespaceMode.CONTAINER, node)).config
    assert own(alone, "node")._replace(sysctls={}) == Own("", ipc=False, pid=False, network=False)


def test_the_monitor_is_told_whom_to_map_and_which_sysctls_to_set_in_a_user_namespace() -> None:
    mapping = (model.IdMapping(200_000, 0, 65536),)
    userns = model.UserNamespace(model.NamespaceMode.POD, mapping, mapping)
    namespaces = model.NamespaceOption(userns=userns)
    config = sandbox(namespaces=namespaces, sysctls={"kernel.msgmax": "1"}).config
    wish = own(config, "web")
    assert (wish.users, wish.network, wish.new_network) == (True, False, True)
    lines = "0 200000 65536\n"
    told = {"sysctls": wish.sysctls, "joined": k.CLONE_NEWIPC | k.CLONE_NEWNET}
    assert users(wish, config) == {"uid_map": lines, "gid_map": lines, **told}
    assert wish.sysctls["kernel/msgmax"] == "1"
