"""Masquerading by nftables: the rules as text, and the ``nft`` program run without forking the daemon.

``nft -f -`` replaces a whole table in one transaction. The table is ours alone, so other users of nftables are left in
peace. nft runs when the daemon starts and never while a pod does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Final

from cri_py.errors import DeadlineExceeded, Unavailable
from cri_py.kernel.syscalls import pidfd_open, pidfd_send_signal

DEADLINE_S: Final = 10.0
_OUTPUT_BYTES: Final = 1 << 16  # what is kept of a program's output
_SEARCH_PATH: Final = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"


# -------------------------------------------------------------------- text


def table_name(bridge: str) -> str:
    """A name that nft reads as one word, different for every bridge: ``br-0`` → ``cri_py_br_2d0``."""
    return "cri_py_" + "".join(
        c if c.isascii() and c.isalnum() else "__" if c == "_" else f"_{ord(c):x}" for c in bridge
    )


def masquerade_text(bridge: str, subnet: IPv4Network) -> str:
    """What leaves the node from a pod carries the node's address. Replaces the table as a whole, or makes it.

    Traffic between pods and multicast keep their addresses.
    """
    table = f"table ip {table_name(bridge)}"
    return f"""\
{table}
delete {table}
{table} {{
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr {subnet} ip daddr != {{ {subnet}, 224.0.0.0/4 }} masquerade
    }}
}}
"""


def removal_text(bridge: str) -> str:
    """Removes the table; also if there is none, hence the first line."""
    table = f"table ip {table_name(bridge)}"
    return f"{table}\ndelete {table}\n"


# ----------------------------------------------------------------- running


async def apply(ruleset: str) -> None:
    """Apply a ruleset in one transaction. Raises Unavailable (no nft, or the kernel refuses), DeadlineExceeded."""
    program = shutil.which("nft", path=_SEARCH_PATH)
    if program is None:
        raise Unavailable("the program nft is not installed", hint="apt install nftables")
    ended = await run([program, "-f", "-"], ruleset.encode(), DEADLINE_S)
    if ended.code != 0:
        raise Unavailable(
            f"nft refused the rules with status {ended.code}: {ended.output.decode(errors='replace').strip()}",
            hint="the kernel needs nf_tables with nft_nat and nft_masq: modprobe nft_masq",
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """A program's exit code (-N: killed by signal N) and its output and errors, mixed."""

    code: int
    output: bytes


async def run(arguments: list[str], stdin: bytes, deadline_s: float) -> Ended:
    """Run a program by posix_spawn: the daemon's memory is not copied and no fork handler of gRPC's core runs.

    ``stdin`` is at most what a pipe holds (64 kB). Raises DeadlineExceeded, after the program was killed and reaped;
    so it is when this is cancelled.
    """
    output_end, pid, pidfd = _spawn(arguments, stdin)
    ended = False
    try:
        async with asyncio.timeout(deadline_s):
            output = await _drain(output_end)
            await _readable(pidfd)
        ended = True
    except TimeoutError:
        raise DeadlineExceeded(f"{arguments[0]} did not end within {deadline_s:g} s and was killed") from None
    finally:
        if not ended:
            pidfd_send_signal(pidfd, signal.SIGKILL)
        code = _reap(pid)
        os.close(pidfd)
        os.close(output_end)
    return Ended(code, output)


def _reap(pid: int) -> int:
    """The exit code of a child that has ended or was just killed: there is nothing to wait for."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _spawn(arguments: list[str], stdin: bytes) -> tuple[int, int, int]:
    """Start the program; returns the end of a pipe that its output comes from, its pid and a pidfd."""
    input_end, feed = os.pipe()
    try:
        os.set_blocking(feed, False)
        os.write(feed, stdin)
    finally:
        os.close(feed)
    output_end, report = os.pipe()
    try:
        os.set_blocking(output_end, False)
        actions = [(os.POSIX_SPAWN_DUP2, end, fd) for end, fd in ((input_end, 0), (report, 1), (report, 2))]
        environment = {"PATH": _SEARCH_PATH, "LC_ALL": "C"}
        pid = os.posix_spawn(arguments[0], arguments, environment, file_actions=actions, setsigmask=[])
    except OSError as error:
        os.close(output_end)
        raise Unavailable(f"{arguments[0]} can't be executed: {error.strerror}") from error
    finally:
        os.close(input_end)
        os.close(report)
    try:
        return output_end, pid, pidfd_open(pid)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        _reap(pid)
        os.close(output_end)
        raise


async def _drain(fd: int) -> bytes:
    kept = bytearray()
    while True:
        await _readable(fd)
        piece = os.read(fd, _OUTPUT_BYTES)
        if not piece:
            return bytes(kept)
        kept += piece[: _OUTPUT_BYTES - len(kept)]


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
