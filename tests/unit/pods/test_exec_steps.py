"""The order in which an exec gives up what it has, as a value."""

from __future__ import annotations

import errno
import resource
from typing import Any

import pytest

from cri_py.cgroups import ExecScope
from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.cgroups.v2 import V2
from cri_py.errors import FailedPrecondition, InvalidArgument, StartError
from cri_py.kernel import constants as k
from cri_py.kernel.capabilities import NUMBERS
from cri_py.kernel.steps import Step, Then, encode
from cri_py.pods.exec_steps import Filter, Identity, Rights, refusal, steps, template

WHO = Identity(1000, 2000, (30, 40), "/home/who")
RIGHTS = Rights((1 << 41) - 1, 40, dict.fromkeys(range(16), resource.RLIM_INFINITY))
FILTER = Filter(bytes(16), 2)
SETS = ("bounding", "permitted", "effective")
PROCESS: dict[str, Any] = {
    "args": ["true"],
    "env": ["PATH=/sbin:/bin", "LANG=C"],
    "cwd": "/work",
    "capabilities": {name: ["CAP_CHOWN", "CAP_KILL"] for name in SETS},
    "oomScoreAdj": 7,
    "noNewPrivileges": False,
}


def v1() -> ExecScope:
    groups = V1([Hierarchy("/g/freezer", ("freezer",)), Hierarchy("/g/memory", ("memory",))])
    return groups.exec_scope("/pod/ctr", "exec-1")


def v2() -> ExecScope:
    return V2("/g").exec_scope("/pod/ctr", "exec-1")


def last(found: list[Step], call: str) -> int:
    return max(number for number, step in enumerate(found) if step.call == call)


def listed(
    scope: ExecScope | None = None, secure: Filter | None = FILTER, rights: Rights = RIGHTS, **changes: Any
) -> list[Step]:
    process = {**PROCESS, **changes}
    common = template(process, WHO, secure, rights)
    return steps(common, process["args"], scope or v1(), terminal=bool(changes.get("terminal")))


def calls(found: list[Step]) -> list[str]:
    return [step.call for step in found]


def at(found: list[Step], call: str, *arguments: Any) -> int:
    """Where the first step with this call and these first arguments stands."""
    return next(
        number
        for number, step in enumerate(found)
        if step.call == call and step.arguments[: len(arguments)] == arguments
    )


def test_nobody_may_look_into_it_from_the_first_step_on_and_again_after_the_change_of_user() -> None:
    found = listed()
    assert (found[0].call, found[0].arguments) == ("prctl", (k.PR_SET_DUMPABLE, 0))
    after = found[at(found, "setresuid") + 1]
    assert (after.call, after.arguments) == ("prctl", (k.PR_SET_DUMPABLE, 0))


ENTERED = k.CLONE_NEWNS | k.CLONE_NEWNET | k.CLONE_NEWIPC | k.CLONE_NEWUTS | k.CLONE_NEWCGROUP


@pytest.mark.parametrize("scope", [v1(), v2()])
def test_no_descriptor_of_the_node_is_left_but_files_by_which_it_enters_its_groups(scope: ExecScope) -> None:
    found = listed(scope)
    fork = at(found, "clone3")
    first, let_go = (number for number, step in enumerate(found) if step.arguments[:2] == (5, 0xFFFFFFFF))
    assert first < min(at(found, "openat"), fork)  # so that the numbers of all that opens are known
    opened, closed = calls(found[:fork]).count("openat"), calls(found[:fork]).count("close")
    entering = [number for number, step in enumerate(found) if number > fork and step.call == "write"]
    assert opened - closed == len(entering) == (0 if scope.groups.born_into else 2)
    assert max(entering, default=fork) + 1 == let_go
    assert fork < at(found, "close", 4) < at(found, "setsid")
    assert at(found, "fcntl", 3, 2, 1) < fork  # the report's socket ends with execve


@pytest.mark.parametrize("scope", [v1(), v2()])
def test_from_its_birth_on_it_has_the_containers_root_and_directory(scope: ExecScope) -> None:
    """The container sees it, and may have CAP_SYS_PTRACE."""
    found = listed(scope)
    entered = ENTERED & ~k.CLONE_NEWCGROUP if scope.groups.born_into else ENTERED
    assert at(found, "setns", 4, k.CLONE_NEWPID) < at(found, "setns", 4, entered) < at(found, "clone3")


def test_the_apparmor_profile_is_set_by_the_nodes_proc_and_only_where_there_is_one() -> None:
    found = listed(apparmorProfile="strict")
    written = next(number for number, step in enumerate(found) if step.arguments[1:2] == (b"exec strict",))
    assert found[written - 1].arguments[1] == b"/proc/self/attr/apparmor/exec\0"
    assert written < at(found, "setns", 4, ENTERED)  # a fork keeps it (apparmor_task_alloc)
    assert not any(b"attr" in step.arguments[1] for step in listed() if step.call == "openat")


def test_the_selinux_label_is_written_alone_by_the_nodes_proc() -> None:
    found = listed(selinuxLabel="u:r:t:s0:c1,c2")
    written = at(found, "write", 5, b"u:r:t:s0:c1,c2", 14)
    assert found[written - 1].arguments[1] == b"/proc/self/attr/exec\0"
    assert written < at(found, "setns", 4, ENTERED)  # credentials keep it over a fork
    assert not [step for step in listed() if b"/proc/self/attr/exec\0" in step.arguments]


def test_keys_of_the_daemon_are_left_behind_for_a_ring_that_the_container_may_use() -> None:
    assert at(listed(), "keyctl", 1, 0) < at(listed(), "setns")
    found = listed(selinuxLabel="u:r:t:s0")
    opened = at(found, "openat", k.AT_FDCWD, b"/proc/self/attr/keycreate\0")
    assert opened < at(found, "keyctl")


def test_a_child_is_born_into_the_pid_namespace_and_is_its_makers_sibling() -> None:
    found = listed()
    fork = at(found, "clone3")
    assert found[fork].then is Then.FORK
    assert at(found, "setns", 4, k.CLONE_NEWPID) < fork
    arguments = found[fork].arguments[0]
    assert isinstance(arguments, tuple)
    assert arguments[0] == k.CLONE_PARENT


def test_on_v1_the_child_enters_its_groups_by_files_that_its_maker_has_opened() -> None:
    """They may be frozen; the maker is waited for. A limit on files may not keep it from opening them."""
    found = listed(v1(), secure=None)
    written = [step.arguments[1] for step in found if step.call == "openat"]
    assert written == [
        b"/proc/self/oom_score_adj\0",
        b"/g/memory/pod/ctr/tasks\0",
        b"/g/freezer/pod/ctr/exec-1/tasks\0",
    ]
    made = at(found, "mkdirat", k.AT_FDCWD, b"/g/freezer/pod/ctr/exec-1\0")
    assert made < at(found, "clone3") < at(found, "write", 5, b"0") < at(found, "write", 6, b"0") < at(found, "setsid")
    limited = listed(v1(), rlimits=[{"type": "RLIMIT_NOFILE", "soft": 4, "hard": 4}])
    assert at(limited, "openat", k.AT_FDCWD, b"/g/freezer/pod/ctr/exec-1/tasks\0") < at(limited, "prlimit64")


def test_on_v2_the_child_is_born_into_its_group() -> None:
    found = listed(v2())
    fork = at(found, "clone3")
    arguments = found[fork].arguments[0]
    assert isinstance(arguments, tuple)
    assert arguments[0] == k.CLONE_PARENT | k.CLONE_INTO_CGROUP
    assert found[at(found, "open_tree")].arguments[1] == b"/g/pod/ctr/exec-1\0"
    assert arguments[10] == 5  # the lowest free descriptor
    assert fork < at(found, "setns", 4, k.CLONE_NEWCGROUP)  # from inside of it no group of the node's is reached
    opened = [step.arguments[1] for step in listed(v2(), secure=None) if step.call == "openat"]
    assert opened == [b"/proc/self/oom_score_adj\0"]


def test_groups_go_before_the_gid_the_gid_before_the_uid_and_capabilities_last() -> None:
    found = listed()
    order = [*(at(found, call) for call in ("setgroups", "setresgid", "setresuid")), last(found, "capset")]
    assert order == sorted(order)
    assert found[order[0]].arguments == (2, b"\x1e\0\0\0\x28\0\0\0")
    assert found[order[1]].arguments == (2000,) * 3
    assert found[order[2]].arguments == (1000,) * 3


def test_the_filter_is_the_last_before_execve() -> None:
    for asked in (True, False):
        found = listed(noNewPrivileges=asked)
        assert calls(found)[at(found, "seccomp") + 1] == "execve"


def test_a_program_that_is_not_there_is_told_before_the_filter_may_forbid_to_tell() -> None:
    for args in (["true"], ["/bin/true"]):
        found = listed(args=args)
        looked = at(found, "faccessat2") if "/" in args[0] else at(found, "fcntl", 4, 1)
        assert at(found, "chdir") < looked < at(found, "seccomp")
    missing = listed()[at(listed(), "fcntl", 4, 1)]
    assert str(refusal(missing, errno.EBADF)) == 'exec: "true": executable file not found in $PATH'
    assert not {"faccessat2"}.intersection(calls(listed(secure=None, args=["/bin/true"])))


@pytest.mark.parametrize("scope", [v1(), v2()], ids=["v1", "v2"])
def test_from_its_birth_on_it_has_few_more_rights_than_the_container(scope: ExecScope) -> None:
    few = {"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"}
    for secure, more in ((None, set()), (FILTER, {"CAP_SYS_ADMIN"})):
        found = listed(scope, secure=secure)
        joining = {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}  # the cgroup namespace of a process of any user
        wanted = few | more | (joining if scope.groups.born_into else set())
        lessened = next(step for step in found if step.call == "capset")
        assert found.index(lessened) < at(found, "clone3")
        sets = lessened.arguments[1]
        assert isinstance(sets, bytes)
        assert int.from_bytes(sets[:4], "little") == sum(1 << NUMBERS[name] for name in wanted)
        assert sets[:4] == sets[4:8]


def test_without_no_new_privs_the_right_to_load_the_filter_is_kept_till_then_and_not_passed_on() -> None:
    def permitted(**changes: Any) -> int:
        found = listed(**changes)
        sets = found[last(found, "capset")].arguments[1]
        assert isinstance(sets, bytes)
        assert sets[8:12] == bytes(4)  # nothing is inheritable
        return int.from_bytes(sets[4:8], "little")

    admin = 1 << NUMBERS["CAP_SYS_ADMIN"]
    assert permitted() & admin
    assert not permitted(noNewPrivileges=True) & admin
    assert not permitted(secure=None) & admin
    found = listed()
    assert at(found, "prctl", k.PR_CAPBSET_DROP, NUMBERS["CAP_SYS_ADMIN"]) < last(found, "capset")


def test_no_new_privs_comes_before_anything_is_given_up() -> None:
    found = listed(noNewPrivileges=True)
    assert at(found, "prctl", k.PR_SET_NO_NEW_PRIVS, 1) < at(found, "prctl", k.PR_CAPBSET_DROP)
    assert (k.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) not in [step.arguments for step in listed()]


def test_an_unconfined_process_loads_no_filter() -> None:
    assert "seccomp" not in calls(listed(secure=None))


def test_all_but_what_is_granted_is_dropped_from_the_bounding_set() -> None:
    dropped = [step.arguments[1] for step in listed() if step.arguments[:1] == (k.PR_CAPBSET_DROP,)]
    assert dropped == [number for number in range(41) if number not in (NUMBERS["CAP_CHOWN"], NUMBERS["CAP_KILL"])]


def test_what_the_runtime_lacks_itself_is_not_asked_for() -> None:
    found = listed(secure=None, rights=RIGHTS._replace(held=1 << NUMBERS["CAP_KILL"]))
    _, sets = found[at(found, "capset")].arguments
    assert sets == b"\x20\0\0\0" * 2 + bytes(16)


def test_ambient_capabilities_are_raised_after_the_sets() -> None:
    granted = {**PROCESS["capabilities"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL", "CAP_CHOWN"]}
    found = listed(capabilities=granted)
    raised = [step.arguments[2] for step in found if step.arguments[:2] == (k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE)]
    assert raised == [NUMBERS["CAP_KILL"]]  # what is not inheritable can't be ambient
    assert at(found, "capset") < at(found, "prctl", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, NUMBERS["CAP_KILL"])


def test_the_working_directory_is_entered_as_the_user_and_must_lie_inside() -> None:
    found = listed()
    entered = at(found, "chdir", b"/work\0")
    assert at(found, "capset") < entered
    assert [found[entered + 1].call, found[entered + 2].then] == ["getcwd", Then.EXPECT]


def test_a_limit_above_our_own_is_set_as_far_as_it_goes_and_then_tried_in_full() -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 100}]
    tried = [
        step for step in listed(rights=RIGHTS._replace(limits={7: 50}), rlimits=limits) if step.call == "prlimit64"
    ]
    assert [(step.arguments[2], step.then) for step in tried] == [((10, 50), Then.MAY), ((10, 100), Then.MAY)]
    enough = [step for step in listed(rlimits=limits) if step.call == "prlimit64"]
    assert [step.arguments for step in enough] == [(0, 7, (10, 100), 0)]


def test_a_name_is_looked_up_in_the_containers_path_and_a_path_is_taken_as_it_is() -> None:
    assert [step.arguments[0] for step in listed() if step.call == "execve"] == [b"/sbin/true\0", b"/bin/true\0"]
    assert [step.arguments[0] for step in listed(args=["./a"]) if step.call == "execve"] == [b"./a\0"]
    assert "execve" not in calls(listed(env=[]))


def test_home_comes_from_passwd_where_the_environment_names_none() -> None:
    def environment(pairs: list[str]) -> Any:
        return next(step for step in listed(env=pairs) if step.call == "execve").arguments[2]

    assert environment(["PATH=/bin"]) == (b"PATH=/bin\0", b"HOME=/home/who\0", 0)
    assert environment(["HOME=/x", "PATH=/bin", "HOME=/y"]) == (b"HOME=/y\0", b"PATH=/bin\0", 0)


def test_a_terminal_is_looked_at_before_it_is_used_and_its_master_is_sent() -> None:
    found = listed(terminal=True)
    opened = at(found, "openat", k.AT_FDCWD, b"/dev/pts/ptmx\0")
    assert at(found, "setns", 4) < opened
    assert [step.call or step.then for step in found[opened + 1 : opened + 5]] == [
        "statx",
        Then.EXPECT,
        "ioctl",
        "ioctl",
    ]
    assert at(found, "sendmsg", 3) < at(found, "setresuid")
    assert "statx" not in calls(listed())


def test_every_step_can_be_written_for_both_machines() -> None:
    for scope in (v1(), v2()):
        found = listed(
            scope, terminal=True, noNewPrivileges=True, rlimits=[{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
        )
        assert len(encode(found, "x86_64")) == len(encode(found, "aarch64")) > len(found) * 64


@pytest.mark.parametrize("changes", [{"args": ["a\0b"]}, {"args": ["x", "\0"]}, {"cwd": "/a\0"}, {"env": ["A=\0"]}])
def test_a_nul_is_refused(changes: dict[str, Any]) -> None:
    env = {"env": [*changes.get("env", ()), "PATH=/bin"]}
    with pytest.raises(InvalidArgument, match="NUL"):
        listed(**{**changes, **env})


def test_failures_are_told_in_words_that_name_the_cause() -> None:
    found = listed()
    (last,) = (step for step in found if step.then is Then.GIVE_UP)
    assert str(refusal(last, errno.ENOENT)) == 'exec: "true": executable file not found in $PATH'
    assert str(refusal(last, errno.EACCES)) == 'exec: "true": permission denied'
    entered = refusal(found[at(found, "chdir")], errno.ENOTDIR)
    assert isinstance(entered, StartError)
    assert str(entered) == "the working directory '/work' can't be entered: not a directory"


@pytest.mark.parametrize("call", ["setns", "clone3"])
def test_a_container_that_is_ending_is_a_matter_of_its_state(call: str) -> None:
    found = listed()
    for number in (errno.ESRCH, errno.ENOMEM):
        assert isinstance(refusal(found[at(found, call)], number), FailedPrecondition)
    assert isinstance(refusal(found[at(found, call)], errno.EPERM), StartError)


# -------------------------------------------------- with a user namespace

LINUX = {
    "uidMappings": [{"containerID": 0, "hostID": 200000, "size": 65536}],
    "gidMappings": [{"containerID": 0, "hostID": 300000, "size": 65536}],
}


def enters_users(step: Step) -> bool:
    return step.call == "setns" and isinstance(step.arguments[1], int) and bool(step.arguments[1] & k.CLONE_NEWUSER)


def test_in_a_user_namespace_it_is_root_there_before_it_is_the_user() -> None:
    """Until then its ids are the node's, which are nobody inside; and a change of ids would make it dumpable."""
    common = template(PROCESS, WHO, FILTER, RIGHTS, LINUX)
    found = steps(common, ["true"], v1())
    entered = next(
        i for i, step in enumerate(found) if step.call == "setns" and int(step.arguments[1]) & k.CLONE_NEWUSER
    )
    root = at(found, "setresuid", 0, 0, 0)
    hidden = next(i for i in range(root, len(found)) if found[i].call == "prctl")
    assert entered < at(found, "setgroups", 0) < at(found, "setresgid", 0, 0, 0) < root < hidden
    assert found[hidden].arguments == (k.PR_SET_DUMPABLE, 0)
    assert root < at(found, "setresuid", 1000)
    assert (common.owner, common.uid) == ((201000, 302000), 1000)


def test_without_one_nobody_becomes_root() -> None:
    found = listed()
    assert not [step for step in found if enters_users(step)]
    assert [step.arguments for step in found if step.call == "setresuid"] == [(1000, 1000, 1000)]


def test_in_a_user_namespace_it_has_what_was_granted_though_the_daemon_lacks_it() -> None:
    lacking = RIGHTS._replace(held=0)
    inside = template(PROCESS, WHO, None, lacking, LINUX)
    outside = template(PROCESS, WHO, None, lacking)
    (given,) = [step for step in steps(inside, ["true"], v1()) if step.call == "capset"]
    (taken,) = [step for step in steps(outside, ["true"], v1()) if step.call == "capset"]
    assert given.arguments[1] != taken.arguments[1]
