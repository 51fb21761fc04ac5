"""Measure a Kubernetes CRI runtime through its socket; print one JSON document.

Phases (choose with --phases):
  sequential  latency of each lifecycle call, one pod after the other
  parallel    pods per second with several workers, bringing up and taking down
  scale       latency of the list and stats calls, and memory, with many pods
  pull        time and CPU of pulling a large image, then of the first start

Needs only the socket, and /proc for memory and CPU: the daemon is the process
that listens on the socket; a process that appears while pods run and descends
from no stranger is a pod's payload (known by its command line) or a helper.
What strangers use of the CPUs is reported, so that a noisy run can be told.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from cri_py.rpc.gen import api_pb2 as cri
from cri_py.rpc.gen.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub

TICK = os.sysconf("SC_CLK_TCK")
PAYLOAD = ["sleep", "86413"]  # a command line nothing else on the machine has
RUN_LABEL = "cribench-run"

# what the kubelet masks by default
MASKED = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def note(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- processes


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


class Process:
    """What /proc says of one process; empty fields once it is gone."""

    def __init__(self, pid):
        self.pid = pid
        stat = read(f"/proc/{pid}/stat").decode(errors="replace")
        head, _, tail = stat.rpartition(")")
        fields = tail.split()
        self.comm = head.partition("(")[2]
        self.parent = int(fields[1]) if fields else 0
        self.threads = int(fields[17]) if fields else 0
        self.cpu = sum(map(int, fields[11:15])) / TICK if fields else 0.0
        self.born = int(fields[19]) if fields else 0
        self.argv = read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")[:-1]

    def pss_kib(self):
        for line in read(f"/proc/{self.pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1])
        return 0


def processes():
    """All user processes, keyed by (pid, start time)."""
    found = (Process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {(p.pid, p.born): p for p in found if p.argv}


def listener(path):
    """Pid of the process that listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
        return struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def busy():
    """CPU seconds that the whole machine has spent working, and had stolen from it."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, read("/proc/stat").split(b"\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq) / TICK, steal / TICK


class Census:
    """Tells the runtime's processes from strangers: what was there before the run,
    other than the daemon, and whatever descends from it."""

    def __init__(self, daemon):
        self.daemon = daemon
        table = processes()
        parents = {p.pid: p.parent for p in table.values()}
        self.before = {key for key in table if key[0] == daemon or not self._descends(key[0], parents)}

    def _descends(self, pid, parents):
        """Whether the daemon had started it already: a fork server, say, from which all helpers descend."""
        while pid in parents:
            pid = parents[pid]
            if pid == self.daemon:
                return True
        return False

    def sort(self):
        """(daemon's processes, helpers and payload, strangers), each a list."""
        table = processes()
        by_pid = {p.pid: p for p in table.values()}
        kinds = [], [], []
        for key, process in table.items():
            # pid 1 inherits the time of orphans, the runtime's helpers among them
            if process.pid not in (1, os.getpid()):
                kinds[self._kind(key, process, by_pid)].append(process)
        return kinds

    def _kind(self, key, process, by_pid):
        known = key in self.before
        while process and process.pid != 1:
            if process.pid == self.daemon:
                return 0 if known else 1
            if (process.pid, process.born) in self.before:
                return 2
            process = by_pid.get(process.parent)
        return 2 if known else 1


class Meter:
    """Wall time and CPU from its creation on; CPU is the whole machine's less
    this client's own and less what strangers used."""

    def __init__(self, census):
        self.census = census
        self.strangers = {(p.pid, p.born): p for p in census.sort()[2]}
        self.own, (self.busy, self.stolen) = time.process_time(), busy()
        self.start = time.monotonic()

    def read(self):
        wall = time.monotonic() - self.start
        total, stolen = busy()
        own = time.process_time() - self.own
        strangers = self._used_by_strangers()
        return {
            "wall_s": round(wall, 3),
            "cpu_s": round(total - self.busy - own - strangers, 2),
            "client_cpu_s": round(own, 2),
            "strangers_cpu_s": round(strangers, 2),
            "steal_s": round(stolen - self.stolen, 2),
        }

    def _used_by_strangers(self):
        """A process that has gone left its time, that from before the start too,
        with the ancestor that outlived it."""
        now = {(p.pid, p.born): p for p in self.census.sort()[2]}
        used = sum(p.cpu for p in now.values())
        alive, then = {p.pid for p in now.values()}, {p.pid: p for p in self.strangers.values()}
        for key, process in self.strangers.items():
            heir = process
            while key not in now and heir and heir.pid not in alive:
                heir = then.get(heir.parent)
            if heir:
                used -= process.cpu
        return used


def wait_for_quiet(limit):
    """Wait, LIMIT seconds at most, for three seconds with the CPUs nearly idle."""
    deadline, calm = time.monotonic() + limit, 0
    while calm < 3 and time.monotonic() < deadline:
        start = busy()[0]
        time.sleep(1)
        calm = calm + 1 if busy()[0] - start < 0.1 else 0
    return calm == 3


# ------------------------------------------------------------------ timings


def summary(seconds):
    """Milliseconds: median, 95th percentile and extremes of a list of durations."""
    if not seconds:
        return None
    ordered = sorted(value * 1000 for value in seconds)
    at95 = ordered[max(0, -(-95 * len(ordered) // 100) - 1)]
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 2),
        "p95": round(at95, 2),
        "mean": round(statistics.fmean(ordered), 2),
        "min": round(ordered[0], 2),
        "max": round(ordered[-1], 2),
    }


class Client:
    """CRI calls on one channel, each timed under its method's name."""

    def __init__(self, endpoint, timeout):
        self.path = endpoint.removeprefix("unix://")
        self._channel = grpc.insecure_channel(
            "unix:" + self.path, options=[("grpc.max_receive_message_length", 64 << 20)]
        )
        self._stubs = (RuntimeServiceStub(self._channel), ImageServiceStub(self._channel))
        self._timeout = timeout
        self._lock = threading.Lock()
        self._times = defaultdict(list)

    def __call__(self, method, **fields):
        stub = next(s for s in self._stubs if hasattr(s, method))
        request = getattr(cri, method + "Request")(**fields)
        start = time.perf_counter()
        reply = getattr(stub, method)(request, timeout=self._timeout)
        elapsed = time.perf_counter() - start
        with self._lock:
            self._times[method].append(elapsed)
        return reply

    def take(self):
        """Summaries of the calls since the last take()."""
        with self._lock:
            times, self._times = self._times, defaultdict(list)
        return {method: summary(values) for method, values in times.items()}


# --------------------------------------------------------------------- pods


class Pod:
    """One pod of one container, configured much as the kubelet would."""

    def __init__(self, bench, image=None):
        self.bench, self.client = bench, bench.client
        self.image = image or bench.options.image
        uid = str(uuid.uuid4())
        self.id = self.container = ""
        modes = cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.POD)
        if bench.options.host_network:
            modes.network = cri.NODE
        profile = cri.SecurityProfile(
            profile_type=(
                cri.SecurityProfile.Unconfined if bench.options.unconfined else cri.SecurityProfile.RuntimeDefault
            )
        )
        self.config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name="bench-" + uid, namespace="cribench", uid=uid),
            hostname="bench",
            log_directory=os.path.join(bench.logs, uid),
            labels={RUN_LABEL: bench.run},
            linux=cri.LinuxPodSandboxConfig(
                cgroup_parent=os.path.join(bench.cgroup, "pod" + uid),
                security_context=cri.LinuxSandboxSecurityContext(namespace_options=modes, seccomp=profile),
            ),
        )
        self.container_config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="main"),
            image=cri.ImageSpec(image=self.image, user_specified_image=self.image),
            command=PAYLOAD,
            log_path="main/0.log",
            labels={RUN_LABEL: bench.run},
            linux=cri.LinuxContainerConfig(
                resources=cri.LinuxContainerResources(
                    cpu_shares=102, cpu_period=100000, memory_limit_in_bytes=128 << 20
                ),
                security_context=cri.LinuxContainerSecurityContext(
                    namespace_options=modes, seccomp=profile, masked_paths=MASKED, readonly_paths=READONLY
                ),
            ),
        )

    def up(self):
        os.makedirs(os.path.join(self.config.log_directory, "main"))
        self.id = self.client(
            "RunPodSandbox", config=self.config, runtime_handler=self.bench.options.runtime_handler
        ).pod_sandbox_id
        self.container = self.client(
            "CreateContainer", pod_sandbox_id=self.id, config=self.container_config, sandbox_config=self.config
        ).container_id
        self.client("StartContainer", container_id=self.container)

    def down(self):
        if self.container:
            self.client("StopContainer", container_id=self.container, timeout=0)
            self.client("RemoveContainer", container_id=self.container)
            self.container = ""
        if self.id:
            self.client("StopPodSandbox", pod_sandbox_id=self.id)
            self.client("RemovePodSandbox", pod_sandbox_id=self.id)
            self.id = ""


class Bench:
    def __init__(self, options):
        self.options = options
        self.client = Client(options.endpoint, options.timeout)
        self.daemon = options.daemon_pid or listener(self.client.path)
        self.run = uuid.uuid4().hex[:12]
        self.cgroup = os.path.join(options.cgroup_parent, self.run)
        self.logs = tempfile.mkdtemp(prefix="cribench-")
        self.census = Census(self.daemon)

    # -- pieces

    def pull(self, image):
        self.client("PullImage", image=cri.ImageSpec(image=image))

    def sweep(self):
        """Remove every pod that this run made."""
        mine = cri.PodSandboxFilter(label_selector={RUN_LABEL: self.run})
        for pod in self.client("ListPodSandbox", filter=mine).items:
            with contextlib.suppress(grpc.RpcError):
                self.client("StopPodSandbox", pod_sandbox_id=pod.id)
                self.client("RemovePodSandbox", pod_sandbox_id=pod.id)
        self.tidy()
        shutil.rmtree(self.logs, ignore_errors=True)

    def tidy(self):
        """Remove the pods' parent cgroups, as the kubelet would, in every hierarchy."""
        inside = self.cgroup.strip("/")
        for root in [*Path("/sys/fs/cgroup").iterdir(), Path("/sys/fs/cgroup")]:
            for folder, _, _ in os.walk(root / inside, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            with contextlib.suppress(OSError):
                os.rmdir(root / self.options.cgroup_parent.strip("/"))

    def memory(self, pods):
        """Proportional set size in KiB, by role, once things have settled."""
        time.sleep(self.options.settle)
        daemon, others, _ = self.census.sort()
        totals, helpers = defaultdict(int), defaultdict(lambda: [0, 0, 0])
        for process in daemon:
            totals["daemon"] += process.pss_kib()
            totals["daemon_threads"] += process.threads
        for process in others:
            pss = process.pss_kib()
            if process.argv == PAYLOAD:
                totals["payload"] += pss
                continue
            totals["helpers"] += pss
            row = helpers[process.comm]
            row[0], row[1], row[2] = row[0] + 1, row[1] + process.threads, row[2] + pss
        names = {name: {"processes": n, "threads": t, "pss_kib": k} for name, (n, t, k) in helpers.items()}
        return {
            "pods": pods,
            "daemon_kib": totals["daemon"],
            "daemon_threads": totals["daemon_threads"],
            "helpers_kib": totals["helpers"],
            "runtime_kib": totals["daemon"] + totals["helpers"],
            "payload_kib": totals["payload"],
            "helpers": names,
        }

    def concurrently(self, action, items, workers):
        meter = Meter(self.census)
        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(action, item) for item in items]:
                future.result()
        used = meter.read()
        return {**used, "per_s": round(len(items) / used["wall_s"], 2)}

    # -- phases

    def sequential(self):
        count = self.options.sequential
        note(f"sequential: {count} pods")
        meter = Meter(self.census)
        for _ in range(count):
            pod = Pod(self)
            pod.up()
            self.client("ExecSync", container_id=pod.container, cmd=["true"], timeout=30)
            self.client("ContainerStatus", container_id=pod.container)
            self.client("PodSandboxStatus", pod_sandbox_id=pod.id)
            pod.down()
        used = meter.read()
        return {
            "pods": count,
            **used,
            "cpu_ms_per_pod": round(1000 * used["cpu_s"] / count, 1),
            "ms": self.client.take(),
        }

    def parallel(self):
        count, workers = self.options.parallel, self.options.workers
        note(f"parallel: {count} pods, {workers} workers")
        pods = [Pod(self) for _ in range(count)]
        up = self.concurrently(Pod.up, pods, workers)
        down = self.concurrently(Pod.down, pods, workers)
        split_ms = self.client.take()

        def whole(pod):
            pod.up()
            pod.down()

        cycle = self.concurrently(whole, [Pod(self) for _ in range(count)], workers)
        cycle["cpu_ms_per_pod"] = round(1000 * cycle["cpu_s"] / count, 1)
        return {
            "pods": count,
            "workers": workers,
            "up": up,
            "down": down,
            "lifecycle": cycle,
            "up_down_ms": split_ms,
            "lifecycle_ms": self.client.take(),
        }

    def scale(self):
        steps = sorted(self.options.scale)
        report = {"memory": [self.memory(0)], "lists_ms": {}, "list_errors": {}}
        pods = []
        for step in steps:
            note(f"scale: {step} pods")
            more = [Pod(self) for _ in range(step - len(pods))]
            pods += more
            self.concurrently(Pod.up, more, self.options.workers)
            report["memory"].append(self.memory(step))
        self.client.take()
        idle = Meter(self.census)
        time.sleep(10)
        used = idle.read()
        report["idle_cpu_percent"] = round(100 * used["cpu_s"] / used["wall_s"], 2)
        for method in (
            "ListContainers",
            "ListPodSandbox",
            "ListContainerStats",
            "ListPodSandboxStats",
            "ListPodSandboxMetrics",
        ):
            meter = Meter(self.census)
            try:
                deadline = time.monotonic() + self.options.list_seconds
                for number in range(self.options.lists):
                    if number and time.monotonic() > deadline:
                        break
                    self.client(method)
            except grpc.RpcError as error:
                report["list_errors"][method] = f"{error.code().name}: {error.details()}"[:500]
            report["lists_ms"].update(self.client.take())
            if method in report["lists_ms"]:
                report["lists_ms"][method]["cpu_s"] = meter.read()["cpu_s"]
        for pod in pods[: self.options.lists]:
            self.client("ExecSync", container_id=pod.container, cmd=["true"], timeout=30)
            self.client("ContainerStatus", container_id=pod.container)
        report["with_all_pods_ms"] = self.client.take()
        note("scale: taking down")
        report["down"] = self.concurrently(Pod.down, pods, self.options.workers)
        self.client.take()
        report["memory"].append(self.memory(0))
        return report

    def pulls(self):
        image, rounds = self.options.pull_image, []
        for number in range(self.options.pulls):
            note(f"pull: round {number + 1}")
            with contextlib.suppress(grpc.RpcError):
                self.client("RemoveImage", image=cri.ImageSpec(image=image))
            time.sleep(self.options.settle)  # let a deferred clean-up finish
            os.sync()
            self.client.take()
            daemon, meter = Process(self.daemon).cpu, Meter(self.census)
            self.pull(image)
            used = meter.read()
            used["daemon_cpu_s"] = round(Process(self.daemon).cpu - daemon, 2)
            start = time.perf_counter()
            pod = Pod(self, image)
            pod.up()
            used["first_start_ms"] = round(1000 * (time.perf_counter() - start), 1)
            used["ms"] = {method: row["p50"] for method, row in self.client.take().items()}
            used["pss_kib"] = sum(p.pss_kib() for p in self.census.sort()[0])
            pod.down()
            rounds.append(used)
        self.client("RemoveImage", image=cri.ImageSpec(image=image))
        self.client.take()
        middle = {
            key: statistics.median(r[key] for r in rounds)
            for key in ("wall_s", "cpu_s", "daemon_cpu_s", "first_start_ms")
        }
        return {"image": image, "median": middle, "rounds": rounds}

    def undisturbed(self, phase):
        """Run a phase again, at most so often, while strangers take CPU time from it;
        keep the least disturbed run."""
        best = None
        for attempt in range(1, 2 + self.options.again):
            quiet = wait_for_quiet(self.options.quiet)
            meter = Meter(self.census)
            result = phase()
            used = meter.read()
            share = max(0.0, used["strangers_cpu_s"]) / (used["wall_s"] * os.cpu_count())
            if best is None or share < best["strangers_share"]:
                best = {"strangers_share": round(share, 3), "attempt": attempt, "quiet_start": quiet, **result}
            self.tidy()
            if share < self.options.tolerate:
                break
        return best

    def measure(self):
        version = self.client("Version")
        load = os.getloadavg()[0]
        self.pull(self.options.image)
        warm = Pod(self)
        warm.up()
        warm.down()
        self.client.take()
        report = {
            "runtime": f"{version.runtime_name} {version.runtime_version}",
            "endpoint": self.options.endpoint,
            "runtime_handler": self.options.runtime_handler,
            "cpus": os.cpu_count(),
            "load_before": load,
            "seccomp": "unconfined" if self.options.unconfined else "runtime default",
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        phases = {"sequential": self.sequential, "parallel": self.parallel, "scale": self.scale, "pull": self.pulls}
        for name in self.options.phases.split(","):
            report[name] = self.undisturbed(phases[name])
        return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--endpoint", required=True, help="unix:///path/to/cri.sock")
    add("--runtime-handler", default="")
    add("--cgroup-parent", default="/cribench", help="pods go to a cgroup of their own below it")
    add("--daemon-pid", type=int, default=0, help="default: the socket's listener")
    add("--image", default="registry.k8s.io/e2e-test-images/busybox:1.29-2")
    add("--pull-image", default="registry.k8s.io/bench/big:1")
    add("--phases", default="sequential,parallel,scale,pull")
    add("--sequential", type=int, default=30, help="pods in the sequential phase")
    add("--parallel", type=int, default=60, help="pods in the parallel phase")
    add("--workers", type=int, default=8)
    add("--scale", type=int, nargs="+", default=[50, 100], help="pod counts at which to look at memory")
    add("--lists", type=int, default=30, help="calls of each list method")
    add("--list-seconds", type=float, default=15.0, help="stop calling a slow method after this")
    add("--pulls", type=int, default=5)
    add("--settle", type=float, default=5.0, help="seconds of rest before looking at memory")
    add("--quiet", type=float, default=120.0, help="seconds to wait, at most, for idle CPUs before a phase")
    add("--again", type=int, default=2, help="times to repeat a phase that strangers disturbed")
    add("--tolerate", type=float, default=0.15, help="share of the CPUs that strangers may take before that")
    add("--timeout", type=float, default=120.0, help="seconds per call")
    add("--unconfined", action="store_true", help="no seccomp profile")
    add("--host-network", action="store_true")
    add("--output", help="write the JSON here as well")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("stopped"))  # and remove our pods
    bench = Bench(options)
    try:
        report = bench.measure()
    finally:
        bench.sweep()
    text = json.dumps(report, indent=1)
    print(text)
    if options.output:
        with open(options.output, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
