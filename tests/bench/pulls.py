"""Pull a large image and one of many small layers, cold, by ours and by containerd in turn; medians and ratios.

    .venv/bin/python -m tests.bench.pulls [--rounds N] [--only cri_py|runc] [--image big|deep] [--work DIR]

Needs root, an otherwise idle machine, and Debian's containerd, runc, containernetworking-plugins, docker-registry and
what critest/images needs. Each round has a daemon of its own with an empty store, on one filesystem for all: a fresh
ext4 in a file, because ext4 looks long for inodes where others were deleted just before (``recently_deleted`` in
fs/ext4/ialloc.c). ``--work`` takes a directory instead.

CPU is that of the daemon and all its processes, those that have ended too; the registry's and the kernel's
write-back are not in it. "start" is RunPodSandbox, CreateContainer and StartContainer: the first from the fresh image,
and the median of three more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from critest import registry
from critest.images.catalogue import HOSTS, Entry, big, light_image
from critest.images.layers import Image, Layer
from critest.images.make import push
from critest.images.programs import cache
from tests.bench.peers import PAUSE, containerd, missing, remove_groups
from tests.simulators.kubelet import Kubelet
from tests.system.daemon import Daemon

IMAGES: Final = {"big": "registry.k8s.io/bench/big:1", "deep": "registry.k8s.io/bench/deep:1"}
_WARM_UP: Final = "registry.k8s.io/e2e-test-images/busybox:1.29-2"  # shares no layer with them
NAMES: Final = ("cri_py", "runc")  # the peers by their low-level runtime, as in tests.bench.peers
_TITLES: Final = {"runc": "containerd"}
_CGROUP: Final = "/cribench-pulls"
_DISK_GIB: Final = 40
_PULL_S: Final = 300.0
_TICK: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one cold pull, of its CPU, of a pull of what is there, of the first start and of later ones."""

    wall_s: float
    cpu_s: float
    warm_s: float
    first_start_s: float
    start_s: float


ROWS: Final = {
    "cold pull, s": "wall_s",
    "CPU of it, s": "cpu_s",
    "warm pull, s": "warm_s",
    "first start from the fresh image, s": "first_start_s",
    "later start, s": "start_s",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--image", action="append", choices=sorted(IMAGES))
    parser.add_argument("--work", type=Path, help="a directory instead of a fresh filesystem")
    parsed = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    names = [name for name in parsed.only or NAMES if not missing(name)]
    with registry.running(cache() / "registry") as address, workplace(parsed.work) as work:
        push(address, [big(), deep(), light_image()], quiet=True)
        for key in parsed.image or sorted(IMAGES):
            rounds: dict[str, list[Round]] = {name: [] for name in names}
            for number in range(parsed.rounds):
                for name in names:  # in turn, so that what the machine does meanwhile hits all alike
                    rounds[name].append(measured(name, address, work / f"{key}-{name}-{number}", IMAGES[key]))
            print(table(key, rounds), flush=True)
    print(f"\nrepeat, as root on a quiet machine: python -m tests.bench.pulls {' '.join(sys.argv[1:])}")
    remove_groups(_CGROUP)
    return 0


def deep() -> Entry:
    """20 layers of 20 files each, 100 kB a layer, on the shell of the large image."""

    def make(names: Sequence[str]) -> Image:
        whole = big().make(names)
        return Image(names, [whole.layers[0], *(_small(number) for number in range(19))], whole.config)

    return Entry(["bench/deep:1"], make)


def _small(number: int) -> Layer:
    draw = random.Random(number)
    layer = Layer()
    for file in range(20):
        layer.file(f"opt/deep/layer{number}/file{file}", draw.randbytes(5000))
    return layer


@contextlib.contextmanager
def workplace(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="cribench-pulls-") as directory:
        disk, mount = f"{directory}/disk", Path(directory, "fs")
        mount.mkdir()
        with open(disk, "wb") as file:
            file.truncate(_DISK_GIB << 30)
        whole = "lazy_itable_init=0,lazy_journal_init=0"  # else the kernel would do it while we measure
        subprocess.run(["mkfs.ext4", "-q", "-E", whole, disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, mount], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", "--lazy", mount], check=True)


@contextlib.contextmanager
def serving(name: str, address: str, work: Path) -> Iterator[tuple[str, int]]:
    """The CRI socket and the pid of a daemon with an empty store in ``work``."""
    work.mkdir(parents=True)
    if name == "cri_py":
        hosts = [f'[images.registries."{host}"]\nmirrors = ["http://{address}"]' for host in HOSTS]
        daemon = Daemon(f"http://{address}", "\n".join(hosts))
        daemon.root = work / "root"
        try:
            daemon.start()
            yield daemon.socket, daemon.pid
        finally:
            daemon.destroy()
    else:
        with containerd(name, address, work) as socket:
            yield socket, _listener(socket)


def measured(name: str, address: str, work: Path, image: str) -> Round:
    """One round. What is on the disk stays until the end: deleting it would slow the next down."""
    with serving(name, address, work) as (socket, pid), Kubelet(socket, work / "logs", _CGROUP) as kubelet:
        for other in (PAUSE, _WARM_UP):  # what is made and loaded once is made
            kubelet.pull(other, deadline_s=_PULL_S)
        for _ in range(3):
            _start(kubelet, _WARM_UP)
        os.sync()
        time.sleep(1)
        used, began = cpu_s(pid), time.monotonic()
        kubelet.pull(image, deadline_s=_PULL_S)
        wall_s = time.monotonic() - began
        cold_cpu_s = cpu_s(pid) - used
        first_start_s = _start(kubelet, image)
        warm = [_timed_pull(kubelet, image) for _ in range(5)]
        starts = [_start(kubelet, image) for _ in range(3)]
        return Round(wall_s, cold_cpu_s, statistics.median(warm), first_start_s, statistics.median(starts))


def _timed_pull(kubelet: Kubelet, image: str) -> float:
    began = time.monotonic()
    kubelet.pull(image)
    return time.monotonic() - began


def _start(kubelet: Kubelet, image: str) -> float:
    began = time.monotonic()
    pod = kubelet.run_pod()
    kubelet.run(pod, "sleep", "1000", image=image)
    took = time.monotonic() - began
    kubelet.remove_pod(pod)
    return took


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, of its children that have ended, and of its descendants that have not."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            parents[int(entry)], used[int(entry)] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {pid}
    while grown := {each for each, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(used.get(each, 0) for each in family) / _TICK


def _listener(socket: str) -> int:
    done = subprocess.run(["ss", "-Hxlp", "src", f"unix:{socket}"], check=True, capture_output=True, text=True)
    return int(done.stdout.partition("pid=")[2].partition(",")[0])


def table(key: str, rounds: Mapping[str, Sequence[Round]]) -> str:
    """Markdown: medians, and for the peer in brackets which part of its figure ours is."""
    lines = [
        "",
        f"| {key}, {min(map(len, rounds.values()))} rounds | "
        + " | ".join(_TITLES.get(name, name) for name in rounds)
        + " |",
    ]
    lines.append("|---" * (len(rounds) + 1) + "|")
    for label, field in ROWS.items():
        medians = {name: statistics.median(getattr(each, field) for each in done) for name, done in rounds.items()}
        cells = []
        for name, median in medians.items():
            ratio = f" ({medians['cri_py'] / median:.2f})" if name != "cri_py" and "cri_py" in medians else ""
            cells.append(f"{median:.3f}{ratio}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
