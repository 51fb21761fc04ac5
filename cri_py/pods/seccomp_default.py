"""The default seccomp profile: an allow-list by purpose, widened by what the container's capabilities permit anyway.

What is missing is missing on purpose: key rings (not namespaced), io_uring (its work escapes the filter), kexec, swap,
modules, userfaultfd, vsock and kernel crypto sockets, new namespaces and mounts without CAP_SYS_ADMIN. 32-bit programs
may run; the x32 ABI, and the 32-bit ``socketcall`` whose arguments a filter can't see, may not.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from cri_py.errors import Unimplemented

_ENOSYS = 38
_EPERM = 1

# Calls for every container, by purpose. Names that the installed libseccomp doesn't know are skipped when compiled.
_FILES = """
access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr
flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat
getcwd getdents getdents64 getxattr getxattrat ioctl lchown lchown32 lgetxattr link linkat listxattr listxattrat
llistxattr lremovexattr _llseek lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat
open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64
statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime
utimensat utimensat_time64 utimes vmsplice write writev
listmount statmount
"""
_MEMORY = """
brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect
mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages cachestat
"""
_PROCESSES = """
capget capset execve execveat exit exit_group fork getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit getrusage
getsid gettid getuid getuid32 get_robust_list get_thread_area ioprio_get ioprio_set kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease
process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr
sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32
setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 set_robust_list
set_thread_area set_tid_address sigaltstack sigprocmask sigreturn sysinfo tgkill tkill ugetrlimit uname vfork wait4
waitid waitpid
"""
_WAITING = """
alarm clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 epoll_create
epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 futex
futex_requeue futex_time64 futex_wait futex_waitv futex_wake getitimer getrandom gettimeofday inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64
io_setup io_submit nanosleep _newselect pause pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select
setitimer signalfd signalfd4 time timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times
adjtimex clock_adjtime clock_adjtime64
"""
_SOCKETS_AND_IPC = """
accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg
send sendmmsg sendmsg sendto setsockopt shutdown socketpair ipc mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop
semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""
_ALWAYS: Final = (_FILES + _MEMORY + _PROCESSES + _WAITING + _SOCKETS_AND_IPC).split()

_BY_ARCHITECTURE: Final = {
    "x86_64": ("SCMP_ARCH_X86_64 SCMP_ARCH_X86", "arch_prctl"),
    "aarch64": ("SCMP_ARCH_AARCH64 SCMP_ARCH_ARM", "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint"
                " cacheflush set_tls"),
}  # fmt: skip

_BY_CAPABILITY: Final = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": "bpf clone clone3 fanotify_init fanotify_mark fsconfig fsmount fsopen fspick lookup_dcookie"
    " lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open"
    " quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

# AF_UNIX, INET, INET6, KEY, NETLINK, PACKET, CAN, TIPC, SMC, XDP. Not here: VSOCK (reaches the hypervisor past every
# network namespace), ALG, and families whose modules would be loaded for the first container that asks.
_SOCKET_DOMAINS: Final = (1, 2, 10, 15, 16, 17, 29, 30, 43, 44)
# PER_LINUX, PER_LINUX32, both with UNAME26, and the question which it is.
_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}. CLONE_NEWTIME needs no bit: clone(2) reads that one as part of the signal.
_CLONE_NAMESPACES: Final = 0x7E020000


@functools.lru_cache(maxsize=64)
def default_profile(capabilities: frozenset[str], arch: str) -> dict[str, Any]:
    """The ``linux.seccomp`` object (OCI runtime-spec, config-linux.md) of a container; the same one for equal wishes.

    ``capabilities`` are full names, its bounding set; ``arch`` is the machine as uname(2) says it. Raises Unimplemented
    for other machines: argument order differs between them (clone on s390x), so no list is safer than a guessed one.
    """
    if arch not in _BY_ARCHITECTURE:
        raise Unimplemented(
            f"there is no default seccomp profile for {arch} machines", hint="set runtime.seccomp = false"
        )
    architectures, calls = _BY_ARCHITECTURE[arch]
    allowed = {*_ALWAYS, *calls.split()}
    for capability, names in _BY_CAPABILITY.items():
        if capability in capabilities:
            allowed.update(names.split())
    rules: list[dict[str, Any]] = [{"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"}]
    rules += [_allow_equal("socket", domain) for domain in _SOCKET_DOMAINS]
    rules += [_allow_equal("personality", persona) for persona in _PERSONALITIES]
    if "CAP_SYS_ADMIN" not in capabilities:
        no_namespaces = {"index": 0, "value": _CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [no_namespaces]})
        # Its flags lie behind a pointer. ENOSYS makes the C library fall back to clone, which can be looked at.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": architectures.split(),
        "syscalls": rules,
    }


def _allow_equal(name: str, value: int) -> dict[str, Any]:
    equal = {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [equal]}
