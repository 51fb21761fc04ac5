"""A container's init: forked by the pod's monitor, it builds its world, waits for the word, and becomes the program.

The OCI document (``config.json`` in the bundle) says what; the launch request says the few things that OCI has no
word for: the layers of the root, who looks up the user, the compiled filter, the cgroup that is already made.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import struct
import termios
from collections.abc import Callable
from typing import Any, NamedTuple

from cri_py.cgroups import Cgroups
from cri_py.errors import CriError, FailedPrecondition, KernelError, StartError
from cri_py.kernel import procfs, resctrl, syscalls, userns
from cri_py.kernel.constants import (
    AT_FDCWD,
    CLONE_INTO_CGROUP,
    CLONE_NEWCGROUP,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    MS_SLAVE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    PR_SET_PDEATHSIG,
    TIOCGPTPEER,
    TIOCSPTLCK,
)
from cri_py.runtime import crossing, hooks, labels, mounts, overlay, paths, security, trees, users
from cri_py.runtime.child import Parent, arrange, keep_only

# Never shared: pivot_root refuses a root below a shared mount, and the root's own mounts would appear on the host.
# What is shared with the host is taken before, by trees.take_shared.
_ROOT_PROPAGATION = {
    "": MS_SLAVE,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE,
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE,
    "shared": MS_SLAVE,
    "rshared": MS_SLAVE,
}
_PTMX = os.makedev(5, 2)
_NO_PTS = "leave /dev/pts to the runtime"
_PASSWD_LIMIT = 4 << 20
_SYNC_FD = 3
_HOLDER_FD = 4


class Stdio(NamedTuple):
    """What becomes 0, 1 and 2 of the program; -1 with a tty, which init opens inside the container."""

    stdin: int
    stdout: int
    stderr: int


class Birth(NamedTuple):
    """What must be known before the fork. ``new`` and ``joined`` are flags of namespaces: those that are made and those
    of the process ``holder``, 0 where nothing is shared."""

    cgroup: str
    new: int
    joined: int
    holder: int
    tty: bool

    @property
    def crosses(self) -> bool:
        """Whether init is to be in another user namespace than we are."""
        return bool(self.joined & CLONE_NEWUSER)

    def holder_fd(self) -> int:
        """A pidfd of the holder, -1 where nothing is shared. Opened before the fork: a pid means little after it."""
        try:
            return syscalls.pidfd_open(self.holder) if self.joined else -1
        except KernelError as error:
            if error.errno != errno.ESRCH:
                raise
            raise FailedPrecondition("the pod is ending: its holder is gone") from error


def _fork(birth: Birth, holder_fd: int, cgroup_fd: int | None) -> int:
    """clone3 with what can be had at birth: new namespaces, the holder's pid namespace, the v2 cgroup.

    A new cgroup namespace is made later, once init is in its cgroup. With a user namespace all but a mount namespace to
    prepare things in is made later, inside.
    """
    if birth.crosses:
        return syscalls.clone3(CLONE_NEWNS | (CLONE_INTO_CGROUP if cgroup_fd is not None else 0), cgroup=cgroup_fd or 0)
    flags = birth.new & ~CLONE_NEWCGROUP | (CLONE_INTO_CGROUP if cgroup_fd is not None else 0)
    if birth.joined & CLONE_NEWPID:
        return fork_beside(holder_fd, flags, cgroup_fd or 0)
    return syscalls.clone3(flags, cgroup=cgroup_fd or 0)


def fork_beside(pidfd: int, flags: int, cgroup_fd: int) -> int:
    """clone3 into the pid namespace of the process behind ``pidfd``.

    Only a child can be born into a pid namespace; this single-threaded process lends itself for the moment.
    """
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    child = -1
    try:
        syscalls.setns(pidfd, CLONE_NEWPID)
        child = syscalls.clone3(flags, cgroup=cgroup_fd)
    finally:
        if child != 0:
            syscalls.setns(ours, CLONE_NEWPID)
            os.close(ours)
    return child


class World(NamedTuple):
    """What init has from its birth."""

    birth: Birth
    holder_fd: int  # a pidfd, or -1
    stdio: Stdio
    cgroups: Cgroups
    parent: Parent


Init = Callable[[World, bytes], None]


def create(birth: Birth, body: bytes, stdio: Stdio, cgroups: Cgroups, init: Init | None = None) -> tuple[int, Parent]:
    """Fork init; returns its pid and the pair through which it will say ``ready`` or ``error``.

    ``body``: JSON {bundle, rootfs {lower, upper, work}, user, seccomp}, which init parses. ``init``: what the child
    does, for rehearsals.
    """
    parent = Parent()
    holder_fd = birth.holder_fd()
    cgroup_fd = cgroups.directory_fd(birth.cgroup)
    try:
        pid = _fork(birth, holder_fd, cgroup_fd)
        if pid == 0:
            parent.run_child(lambda: (init or _init)(World(birth, holder_fd, stdio, cgroups, parent), body))
    finally:
        for fd in (cgroup_fd, holder_fd):
            if fd is not None and fd >= 0:
                os.close(fd)
    parent.started()
    return pid, parent


# ------------------------------------------------- from here on, in the child


def _init(world: World, body: bytes) -> None:
    birth, cgroups, parent = world.birth, world.cgroups, world.parent
    holder_fd = _take_descriptors(world.stdio, parent, world.holder_fd)
    _be_the_monitors()
    if not cgroups.born_into:
        cgroups.enter(birth.cgroup)
    request = json.loads(body)
    document = json.loads(procfs.read(f"{request['bundle']}/config.json"))
    process = document["process"]
    secure = security.read_filter(request["seccomp"])
    if "intelRdt" in document["linux"]:
        resctrl.enter(document["linux"]["intelRdt"], os.path.basename(request["bundle"]))
    security.leave_keys(process)
    if not birth.crosses:
        _join(birth, holder_fd)
    notes = [note for note in [security.set_oom_score(process.get("oomScoreAdj"))] if note]
    notes += security.set_limits(process.get("rlimits", []))
    request["groups"] = _shown_groups(cgroups, birth)
    site = _lay_foundation(document, request, birth)
    if birth.crosses:
        crossing.cross(holder_fd, birth.joined, birth.new, parent)
        os.close(holder_fd)
        _be_the_monitors()
        trees.take_staged(site.trees, site.staged)
    ticks = procfs.own_start_ticks()
    terminal = _build_root(document, request, site, tty=birth.tty)
    launch, identity, home, refusal = _prepare(document, request["user"], secure)
    ready = {"user": {**identity._asdict(), "home": home} if identity else None, "notes": notes}
    parent.say_ready(ticks, json.dumps(ready).encode(), terminal)
    if terminal >= 0:
        os.close(terminal)
    if not parent.await_go():
        os._exit(0)
    if launch is None:
        raise refusal
    hooks.run(document, request["bundle"], ("startContainer",), "created", os.getpid())
    execute(launch)


def _shown_groups(cgroups: Cgroups, birth: Birth) -> tuple[str, ...]:
    """Its own groups; with v2 and the node's cgroup namespace all, as /proc/self/cgroup names them from the top."""
    shows_all = len(cgroups.mounts) == 1 and not birth.new & CLONE_NEWCGROUP
    return cgroups.mounts if shows_all else cgroups.directories(birth.cgroup)


def _be_the_monitors() -> None:
    """Until execve, init ends with its monitor; what has not been started needs no witness."""
    syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()


class Launch(NamedTuple):
    """All that is left to do when the word comes: load the filter, execute."""

    arguments: list[str]
    environment: dict[bytes, bytes]
    secure: security.Filter | None


def _prepare(
    document: dict[str, Any], user: dict[str, Any], secure: security.Filter | None
) -> tuple[Launch | None, security.Identity | None, str, Exception]:
    """Become the user now, so that start has little to do; what the user can't have is kept to be said at start."""
    try:
        uid, gid, groups, home = users.resolve(user, read_image_file("/etc/passwd"), read_image_file("/etc/group"))
        users.check_mapped(uid, (gid, *groups), document["linux"])
    except CriError as error:
        return None, None, "", error
    identity = security.Identity(uid, gid, groups)
    if uid != 0:
        give_stdio(uid, gid)
    try:
        return prepare(document["process"], identity, home, secure), identity, home, StartError("")
    except StartError as error:
        return None, identity, home, error


def give_stdio(uid: int, gid: int) -> None:
    """Let who opens /dev/stdout again, by its name in /proc/self/fd, be allowed to; it would be root's otherwise."""
    for fd in (0, 1, 2):
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind == stat.S_IFIFO:
            os.fchown(fd, uid, gid)
        elif os.isatty(fd):
            os.fchown(fd, uid, -1)  # the group is tty, which may write to it


def _take_descriptors(stdio: Stdio, parent: Parent, holder_fd: int) -> int:
    """Put what is needed at 0 to 4 and close all else, the monitor's sockets and other containers' pipes above all."""
    pairs = [(parent.child_fd, _SYNC_FD)]
    pairs += [(holder_fd, _HOLDER_FD)] if holder_fd >= 0 else []
    pairs += [(fd, number) for number, fd in enumerate(stdio)] if stdio.stdout >= 0 else []
    arrange(*pairs)
    parent.child_fd = _SYNC_FD
    keep_only(_SYNC_FD, *([_HOLDER_FD] if holder_fd >= 0 else []), null_stdio=stdio.stdout < 0)
    return _HOLDER_FD if holder_fd >= 0 else -1


def _join(birth: Birth, holder_fd: int) -> None:
    if holder_fd >= 0:
        if joined := birth.joined & ~CLONE_NEWPID:  # in the pid namespace we were born
            syscalls.setns(holder_fd, joined)
        os.close(holder_fd)
    if birth.new & CLONE_NEWCGROUP:
        syscalls.unshare(CLONE_NEWCGROUP)


class Site(NamedTuple):
    """What the container's tree is built from."""

    operations: list[mounts.MountOp]
    trees: list[int]  # for each operation what was taken for it, or -1
    root_fd: int  # a detached mount of the root's, or -1 where it is mounted at the document's root.path
    progress: mounts.Progress
    staged: list[int]  # numbers of those that were put where the other side of the crossing finds them


def _lay_foundation(document: dict[str, Any], request: dict[str, Any], birth: Birth) -> Site:
    """Mount the root, and take what can be taken only from here."""
    linux, path = document["linux"], document["root"]["path"]
    label = linux.get("mountLabel", "")
    operations = mounts.plan(document.get("mounts", []), path, label)
    progress = mounts.Progress(request["bundle"], operations)
    if request["make_sources"]:
        mounts.make_sources(operations)
    labels.relabel(operations, label, progress)
    taken = trees.take_shared(operations, progress)
    syscalls.mount("", "/", "", MS_REC | _ROOT_PROPAGATION[linux.get("rootfsPropagation", "")])
    os.umask(0)
    if not birth.crosses:
        if any(operation.apart for operation in operations):
            trees.take_rest(operations, taken, trees.Namespaces(), path, progress)
        overlay.mount_root(request["rootfs"], path, label=label)
        return Site(operations, taken, -1, progress, [])
    uids, gids = linux["uidMappings"], linux["gidMappings"]
    own_fd = os.open(f"/proc/{birth.holder}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    namespaces = trees.Namespaces(userns.text_of(uids), userns.text_of(gids), own_fd)
    trees.take_rest(operations, taken, namespaces, path, progress, everything=True)
    staged = trees.stage(taken)
    owner = userns.outside(uids, 0), userns.outside(gids, 0)
    os.chown(request["rootfs"]["upper"], *owner)
    overlay.mount_root(request["rootfs"], path, own_fd, label)
    _make_own_devices(linux, path, operations, taken)
    root_fd = syscalls.open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    give_stdio(*owner)
    namespaces.close()
    return Site(operations, taken, root_fd, progress, staged)


def _make_own_devices(linux: dict[str, Any], path: str, operations: list[mounts.MountOp], taken: list[int]) -> None:
    """The device nodes for a container in a user namespace, where none can be made; each belongs to whom it should."""
    uids, gids = linux["uidMappings"], linux["gidMappings"]
    devices = [
        {**each, "uid": userns.outside(uids, each.get("uid", 0)), "gid": userns.outside(gids, each.get("gid", 0))}
        for each in linux.get("devices", [])
    ]
    elsewhere = mounts.Root(path)
    for number, operation in enumerate(operations):
        if operation.destination == "/dev" and operation.fstype == "tmpfs":
            owner = userns.outside(uids, 0), userns.outside(gids, 0)
            taken[number] = trees.take_devices(*owner, operation)
            inside = [each for each in devices if each["path"].startswith("/dev/")]
            relative = [{**each, "path": each["path"].removeprefix("/dev")} for each in inside]
            mounts.make_devices(relative, mounts.Root(fd=taken[number]), "/", owner)
            devices = [each for each in devices if each not in inside]
    for device in devices:
        mounts.make_device(device, elsewhere)
    os.close(elsewhere.fd)


def _build_root(document: dict[str, Any], request: dict[str, Any], site: Site, *, tty: bool) -> int:
    """Mount everything and pivot; returns the tty's master, or -1."""
    linux = document["linux"]
    if site.root_fd >= 0:
        # Over the node's root, which is there for everybody: to reach the bundle may need rights that are left behind.
        syscalls.move_mount(site.root_fd, "/")
        root = mounts.Root(fd=site.root_fd)
    else:
        root = mounts.Root(document["root"]["path"])
    for operation, tree in zip(site.operations, site.trees, strict=True):
        site.progress.at(operation)
        if operation.fstype == "cgroup":
            mounts.mount_cgroup(operation, root, request["groups"])
        else:
            mounts.execute(operation, root, tree)
        if tree >= 0:
            os.close(tree)
    site.progress.end()
    if site.root_fd < 0:
        mounts.make_devices(linux.get("devices", []), root)
    terminal = _open_terminal(root) if tty else -1
    hooks.run(document, request["bundle"], hooks.BEFORE_PIVOT, "creating")
    security.set_label(document["process"])  # after the hooks, which are not the container's; /proc is the node's yet
    paths.make_readonly(linux.get("readonlyPaths", []), root)
    paths.mask(linux.get("maskedPaths", []), root, linux.get("mountLabel", ""))
    mounts.pivot(root)
    os.close(root.fd)
    _make_working_directory(document["process"]["cwd"])
    if document["root"].get("readonly"):
        mounts.make_root_readonly()
    return terminal


def _open_terminal(root: mounts.Root) -> int:
    """A pty of the container's own devpts: its slave becomes the stdio and /dev/console, its master the monitor's.

    A volume may bring a /dev of its own, so what opens is looked at, and the slave is taken by the master, not by a
    name that may be another one's by now (CVE-2025-52565).
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    try:
        master = root.open("/dev/pts/ptmx", flags | os.O_NOFOLLOW | os.O_NONBLOCK)
        found = os.fstat(master).st_rdev
    except OSError as error:
        raise FailedPrecondition(
            f"/dev/pts/ptmx of the container can't be opened: {error.strerror}", hint=_NO_PTS
        ) from error
    if found != _PTMX:
        raise FailedPrecondition("/dev/pts/ptmx of the container is no terminal multiplexer", hint=_NO_PTS)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, TIOCGPTPEER, flags)
    console = root.target("/dev/console", directory=False)
    syscalls.mount(f"/proc/self/fd/{slave}", f"/proc/self/fd/{console}", "", MS_BIND)
    os.close(console)
    for target in (0, 1, 2):
        os.dup2(slave, target)
    os.close(slave)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    return master


def _make_working_directory(path: str) -> None:
    reached = ""
    for part in path.strip("/").split("/"):
        reached = f"{reached}/{part}"
        try:
            os.mkdir(reached, 0o755)
        except FileExistsError:
            continue
        except OSError:
            return  # a read-only volume, or a file in the way: chdir, which follows, says what is wrong with it


def read_image_file(path: str) -> bytes:
    """A file that an image may have made anything of: no fifo blocks, no device fills. Missing is empty."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""  # no such file, or a loop of links: as if it listed nobody
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        return os.read(fd, _PASSWD_LIMIT)
    finally:
        os.close(fd)


def prepare(process: dict[str, Any], identity: security.Identity, home: str, secure: security.Filter | None) -> Launch:
    """Take the place and the identity of an OCI ``process``. Raises StartError in words that name the cause."""
    environment = environment_of(process["env"], home)
    os.umask(0o022)
    security.become(identity, process, filtered=secure is not None)
    try:
        os.chdir(process["cwd"])  # as the user: what it may not enter it must not work in
    except OSError as error:
        raise StartError(f"the working directory {process['cwd']!r} can't be entered: {error.strerror}") from error
    _check_inside(process["cwd"])
    security.restore_signals()
    # Set anew: a change of the user clears it. A monitor's death takes its containers along.
    syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return Launch(process["args"], environment, secure)


def _check_inside(path: str) -> None:
    """getcwd(2) tells a directory that can't be reached from the root: one behind a descriptor of the host's
    (CVE-2024-21626)."""
    try:
        inside = os.getcwd().startswith("/")
    except FileNotFoundError:
        inside = False
    if not inside:
        raise StartError(f"the working directory {path!r} lies outside of the container")


def environment_of(pairs: list[str], home: str) -> dict[bytes, bytes]:
    """The document's environment as bytes, which is what it is; HOME from passwd where it names none."""
    environment = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        environment[os.fsencode(name)] = os.fsencode(value)
    environment.setdefault(b"HOME", os.fsencode(home))
    return environment


def execute(launch: Launch) -> None:
    """The filter, then execve, looked up in PATH where the name has no slash, as execvp(3) does. Never returns."""
    arguments, environment, secure = launch
    name = arguments[0]
    candidates = [name]
    if "/" not in name:
        candidates = [f"{place}/{name}" for place in os.fsdecode(environment.get(b"PATH", b"")).split(":") if place]
        # As execve would find, for a tenth of the time, and before a filter may forbid to look.
        candidates = [candidate for candidate in candidates if os.access(candidate, os.F_OK)]
    if secure is not None:
        _refuse_early(name, candidates)
        security.load(secure)
    refusal: OSError | None = None
    for candidate in candidates:
        try:
            os.execve(candidate, arguments, environment)
        except OSError as error:
            if refusal is None or not isinstance(error, FileNotFoundError | NotADirectoryError):
                refusal = error
    raise _told(name, refusal)


def _refuse_early(name: str, candidates: list[str]) -> None:
    """What execve would say of a program that is not there, said before a filter may forbid to say anything."""
    if any(os.access(candidate, os.X_OK, effective_ids=True) for candidate in candidates):
        return
    refusal: OSError | None = None
    for candidate in candidates:
        try:
            os.stat(candidate)
        except OSError as error:
            refusal = refusal or error
        else:
            refusal = refusal or PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    raise _told(name, refusal)


def _told(name: str, refusal: OSError | None) -> StartError:
    if refusal is None or (isinstance(refusal, FileNotFoundError) and "/" not in name):
        return StartError(f'exec: "{name}": executable file not found in $PATH')
    return StartError(f'exec: "{name}": {(refusal.strerror or "").lower()}')
