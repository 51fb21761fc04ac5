"""A program that is a list of system calls.

What a process does between its birth and the execve of another program needs no language: it is one system call after
the other, and every argument is known before. So the list itself becomes a program, an ELF image of three parts::

    0x400000     code       200 bytes that carry out one step after the other
    0x10000000   steps      64 bytes each, then all that they point to: paths, argument vectors, structures
    0x20000000   scratch    a page for what calls return, to be looked at by ``expect``

A process that executes it has some pages where a forked interpreter has two thousand, and none of it is shared with
whoever started it. It says by a message of eight bytes on descriptor 3 how it went, two 32-bit numbers in native order:
the step and the errno of the call that failed, or FORKED and the pid of the child that goes on. Parent and child report
by the same socket, so the child should wait for a byte before it says anything. On success nothing is said: then
descriptor 3, if it is close-on-exec, ends with the last step, which is an execve.
"""

from __future__ import annotations

import errno
import os
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from cri_py.errors import FailedPrecondition
from cri_py.kernel import elf

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# A number, or a pointer to bytes, or a pointer to a vector of 64-bit words of these kinds.
Argument: TypeAlias = "int | bytes | tuple[Argument, ...]"

REPORT_FD = 3
SCRATCH = 0x20000000
FORKED = -1  # in a report, where else the step stands
REPORT_BYTES = 8
_STEPS = 0x10000000
_STEP_WORDS = 8
_STEP_BYTES = 8 * _STEP_WORDS
_ZEROES = [0] * _STEP_WORDS
_WORD = (1 << 64) - 1
_MFD_EXEC = 0x10


class Then(IntEnum):
    """What a step's result means."""

    MUST = 0  # a failure is reported and is the end
    MAY = 1  # a failure is passed over
    TRY = 2  # an execve of several: a failure is remembered if it is the first that is more than a missing file
    FORK = 3  # the parent reports the child's pid and ends, the child goes on
    GIVE_UP = 4  # no call: the end, with the failure that TRY has remembered, else ENOENT
    EXPECT = 5  # no call: the word at the first argument, masked by the second, is the third, else errno the fourth


class Words(NamedTuple):
    """How a failed step is told: ``special`` for some errnos, else ``usual`` and, with ``cause``, the errno's text."""

    usual: str
    special: Mapping[int, str] = {}
    cause: bool = True

    def told(self, number: int) -> str:
        """The text for a person."""
        if number in self.special:
            return self.special[number]
        if not self.cause:
            return self.usual
        cause = os.strerror(number)
        return f"{self.usual}: {cause[:1].lower()}{cause[1:]}"


class Step(NamedTuple):
    """One system call, by its name in section 2 of the manual; see ``Then`` for the steps that are none."""

    call: str
    arguments: tuple[Argument, ...] = ()
    then: Then = Then.MUST
    words: Words | None = None

    def told(self, number: int) -> str:
        """What to say of its failure with this errno."""
        return (self.words or Words(self.call)).told(number)


class Report(NamedTuple):
    """A message of the program; ``step`` is FORKED where ``number`` is a pid and no errno."""

    step: int
    number: int


def read_report(message: bytes) -> Report:
    """Raises ValueError for what is no message of such a program."""
    if len(message) != REPORT_BYTES:
        raise ValueError(f"a report has {REPORT_BYTES} bytes, not {len(message)}")
    return Report(*struct.unpack("<ii", message))


def program(steps: Sequence[Step], machine: str = "") -> bytes:
    """The ELF image that carries out ``steps`` on ``machine``, ours by default.

    Raises FailedPrecondition on a machine that has no code here, KeyError for a call that it does not know.
    """
    machine = elf.machine_or_ours(machine)
    if machine not in _CODE:
        raise FailedPrecondition(f"no program can be made for the machine {machine!r}", hint=f"use {', '.join(_CODE)}")
    content = encode(steps, machine)
    segments = elf.Segment(_STEPS, content, 0), elf.Segment(SCRATCH, b"", elf.PAGE, writable=True)
    return elf.image(_CODE[machine], segments, machine)


def encode(steps: Sequence[Step], machine: str) -> bytes:
    """The steps, and behind them what they point to."""
    column = _COLUMNS[machine]
    heap = _Heap(_STEPS + len(steps) * _STEP_BYTES)
    words: list[int] = []
    for call, arguments, then, _ in steps:
        if then is not Then.EXPECT and then is not Then.GIVE_UP:
            words.append(_NUMBERS[call][column])
        words += [each & _WORD if isinstance(each, int) else heap.word(each) for each in arguments]
        words += _ZEROES[: -1 - len(words) % _STEP_WORDS]
        words.append(then)
    return struct.pack(f"<{len(words)}Q", *words) + b"".join(heap.parts)


class _Heap:
    """Puts what is pointed to one after the other, at multiples of eight."""

    def __init__(self, address: int) -> None:
        self.parts: list[bytes] = []
        self._next = address
        self._placed: dict[int, int] = {}  # by identity: the steps keep what they point to

    def word(self, argument: Argument) -> int:
        """The number itself, or the address of what it points to."""
        if isinstance(argument, int):
            return argument & _WORD
        if id(argument) not in self._placed:
            self._placed[id(argument)] = self._place(argument)
        return self._placed[id(argument)]

    def _place(self, argument: bytes | tuple[Argument, ...]) -> int:
        if isinstance(argument, tuple):
            words = [self.word(each) for each in argument]
            argument = struct.pack(f"<{len(words)}Q", *words)
        address = self._next
        padding = -len(argument) % 8
        self.parts.append(argument + bytes(padding))
        self._next += len(argument) + padding
        return address


def words(steps: Iterable[Step]) -> list[list[object]]:
    """All that ``told`` needs, fit for JSON: for a process that runs the program and did not write it."""
    every = ((step.words or Words(step.call)) for step in steps)
    return [[usual, [*special.items()], cause] for usual, special, cause in every]


def told(every: Sequence[Sequence[Any]], report: Report) -> str:
    """What to say of a report that is a failure, with ``words`` of the program's steps."""
    usual, special, cause = every[report.step]
    return Words(usual, dict(map(tuple, special)), cause).told(report.number)


def in_memory(image: bytes) -> int:
    """A descriptor of a program that lies nowhere else, close-on-exec; the caller owns it. Raises OSError."""
    try:
        fd = os.memfd_create("steps", os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 6.3, where each can be executed and none need say so
            raise
        fd = os.memfd_create("steps", os.MFD_CLOEXEC)
    try:
        os.write(fd, image)
    except BaseException:
        os.close(fd)
        raise
    return fd


def text(value: str) -> bytes:
    """A path or another string as the kernel takes it. Raises ValueError where it holds a NUL."""
    encoded = os.fsencode(value)
    if b"\0" in encoded:
        raise ValueError(f"{value!r} holds a NUL")
    return encoded + b"\0"


def vector(values: Iterable[bytes]) -> tuple[Argument, ...]:
    """``argv`` or ``envp``: pointers to NUL-terminated strings, ended by one to nothing."""
    return (*values, 0)


_COLUMNS = {"x86_64": 0, "aarch64": 1}
# The numbers on x86-64 and arm64 (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
_NUMBERS = {
    "capset": (126, 91),
    "chdir": (80, 49),
    "clone3": (435, 435),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup3": (292, 24),
    "execve": (59, 221),
    "execveat": (322, 281),
    "exit_group": (231, 94),
    "faccessat2": (439, 439),
    "fchdir": (81, 50),
    "fchown": (93, 55),
    "fcntl": (72, 25),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "getcwd": (79, 17),
    "ioctl": (16, 29),
    "keyctl": (250, 219),
    "mkdirat": (258, 34),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "openat": (257, 56),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "read": (0, 63),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "seccomp": (317, 277),
    "sendmsg": (46, 211),
    "setgroups": (116, 159),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setresgid": (119, 149),
    "setresuid": (117, 147),
    "setsid": (112, 157),
    "statx": (332, 291),
    "umask": (95, 166),
    "umount2": (166, 39),
    "write": (1, 64),
}

# The assembly of both; tests/unit/kernel/test_steps.py holds the bytes below against it.
SOURCES = {
    "x86_64": """
        .intel_syntax noprefix
        mov     ebx, 0x10000000         # the step
        xor     r12d, r12d              # its number
        xor     r13d, r13d              # the failure that is remembered
again:  mov     r14, [rbx+56]           # then
        cmp     r14d, 4                 # GIVE_UP
        je      give_up
        cmp     r14d, 5                 # EXPECT
        je      expect
        mov     rax, [rbx]
        mov     rdi, [rbx+8]
        mov     rsi, [rbx+16]
        mov     rdx, [rbx+24]
        mov     r10, [rbx+32]
        mov     r8, [rbx+40]
        mov     r9, [rbx+48]
        syscall
        cmp     rax, -4095              # -4095 to -1 are errors
        jae     failed
        cmp     r14d, 3                 # FORK
        jne     next
        test    eax, eax
        jz      next                    # we are the child
        mov     r12d, -1                # FORKED
        jmp     report
next:   add     rbx, 64
        inc     r12d
        jmp     again
expect: mov     rax, [rbx]
        mov     rax, [rax]
        and     rax, [rbx+8]
        cmp     rax, [rbx+16]
        je      next
        mov     eax, [rbx+24]
        jmp     report
failed: neg     eax
        cmp     r14d, 1                 # MAY
        je      next
        cmp     r14d, 2                 # TRY
        jne     report
        cmp     eax, 2                  # ENOENT
        je      next
        cmp     eax, 20                 # ENOTDIR
        je      next
        test    r13d, r13d
        cmovz   r13d, eax
        jmp     next
give_up:
        mov     eax, r13d
        test    eax, eax
        jnz     report
        mov     eax, 2
report: mov     [rsp-16], r12d
        mov     [rsp-12], eax
        mov     eax, 1                  # write
        mov     edi, 3
        lea     rsi, [rsp-16]
        mov     edx, 8
        syscall
        mov     eax, 231                # exit_group
        mov     edi, 128
        syscall
""",
    "aarch64": """
        movz    x19, #0x1000, lsl #16   // the step
        mov     w20, #0                 // its number
        mov     w21, #0                 // the failure that is remembered
again:  ldr     x22, [x19, #56]         // then
        cmp     x22, #4                 // GIVE_UP
        b.eq    give_up
        cmp     x22, #5                 // EXPECT
        b.eq    expect
        ldp     x8, x0, [x19]
        ldp     x1, x2, [x19, #16]
        ldp     x3, x4, [x19, #32]
        ldr     x5, [x19, #48]
        svc     #0
        cmn     x0, #4095               // -4095 to -1 are errors
        b.hs    failed
        cmp     x22, #3                 // FORK
        b.ne    next
        cbz     x0, next                // we are the child
        mov     w20, #-1                // FORKED
        b       report
next:   add     x19, x19, #64
        add     w20, w20, #1
        b       again
expect: ldp     x9, x10, [x19]
        ldr     x9, [x9]
        and     x9, x9, x10
        ldp     x11, x0, [x19, #16]
        cmp     x9, x11
        b.eq    next
        b       report
failed: neg     w0, w0
        cmp     x22, #1                 // MAY
        b.eq    next
        cmp     x22, #2                 // TRY
        b.ne    report
        cmp     w0, #2                  // ENOENT
        b.eq    next
        cmp     w0, #20                 // ENOTDIR
        b.eq    next
        cmp     w21, #0
        csel    w21, w0, w21, eq
        b       next
give_up:
        cmp     w21, #0
        mov     w0, #2
        csel    w0, w0, w21, eq
report: sub     sp, sp, #16
        stp     w20, w0, [sp]
        mov     x0, #3
        mov     x1, sp
        mov     x2, #8
        mov     x8, #64                 // write
        svc     #0
        mov     x0, #128
        mov     x8, #94                 // exit_group
        svc     #0
""",
}
_CODE = {
    "x86_64": bytes.fromhex(
        "bb000000104531e44531ed4c8b73384183fe04747c4183fe057440488b03488b7b08488b7310488b53184c8b53204c8b"
        "43284c8b4b300f05483d01f0ffff73304183fe03750c85c0740841bcffffffffeb4b4883c34041ffc4ebb0488b03488b"
        "0048234308483b431074e78b4318eb2df7d84183fe0174da4183fe02751f83f80274cf83f81474ca4585ed440f44e8eb"
        "c14489e885c07505b80200000044896424f0894424f4b801000000bf03000000488d7424f0ba080000000f05b8e70000"
        "00bf800000000f05"
    ),
    "aarch64": bytes.fromhex(
        "1300a2d21400805215008052761e40f9df1200f1a0040054df1600f100020054680240a9610a41a9631242a9651a40f9"
        "010000d41ffc3fb102020054df0e00f181000054600000b4140080121a0000147302019194060011edffff17692a40a9"
        "290140f929010a8a6b0241a93f010beb00ffff5410000014e003004bdf0600f180feff54df0a00f1610100541f080071"
        "00feff541f500071c0fdff54bf0200711500951aebffff17bf020071400080520000951aff4300d1f4030029600080d2"
        "e1030091020180d2080880d2010000d4001080d2c80b80d2010000d4"
    ),
}
