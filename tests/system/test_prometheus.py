"""A real Prometheus (Debian's) scrapes a real daemon: rules are sound, and every query that we ship has an answer."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from cri_py.cgroups import detect
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import CUSTOM, HOST
from tests.simulators.kubelet import Kubelet, wait_for
from tests.system.daemon import Daemon
from tests.system.prometheus import DEPLOY, RULES, Prometheus, dashboard_queries, own_address

LIMITS = pb.LinuxContainerResources(cpu_period=100_000, cpu_quota=20_000, memory_limit_in_bytes=64 << 20)
BUSY = "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo x > /file; done"
_COMPARISON = re.compile(r"\s*(==|!=|>|<|>=|<=)\s*[\d.]+\s*$")


def rule_queries() -> list[str]:
    """What the alerts look at, without the threshold: that is not to be passed here."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [_COMPARISON.sub("", rule["expr"]) for group in groups for rule in group["rules"]]


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_scrape_config_and_the_rules() -> None:
    promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", DEPLOY / "prometheus/rules_test.yml")


@pytest.fixture
def daemon_on_tcp(make_daemon: Callable[[str], Daemon]) -> tuple[Daemon, str]:
    address = own_address()
    return make_daemon(f'[metrics]\nlisten = "{address}"'), address


@pytest.fixture
def prometheus(daemon_on_tcp: tuple[Daemon, str], tmp_path: Path) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path, daemon_on_tcp[1])
    try:
        yield running
    finally:
        running.stop()


def work(kubelet: Kubelet) -> None:
    """Something of everything that is counted: starts, pulls, errors of both, sessions of none."""
    kubelet.RemoveImage(image=pb.ImageSpec(image=CUSTOM))
    kubelet.pull(CUSTOM)
    with contextlib.suppress(grpc.RpcError):
        kubelet.pull(f"{HOST}/none:1")
    with contextlib.suppress(grpc.RpcError):
        kubelet.ExecSync(container_id="c" * 64)
    pod = kubelet.run_pod()
    kubelet.wait(kubelet.run(pod, "true"))
    kubelet.remove_pod(pod)


def test_every_query_of_dashboards_and_rules_has_an_answer(
    daemon_on_tcp: tuple[Daemon, str], prometheus: Prometheus
) -> None:
    kubelet = daemon_on_tcp[0].kubelet
    pod = kubelet.run_pod()
    busy = kubelet.run(pod, "sh", "-c", BUSY, linux=pb.LinuxContainerConfig(resources=LIMITS))
    wait_for(prometheus.failing, lambda errors: not errors)
    queries = [*dashboard_queries(), *rule_queries()]
    if not detect().leaves_only:  # version 1 has no pressure
        queries = [query for query in queries if "container_pressure" not in query]
    assert len(queries) > 60

    def unanswered() -> list[str]:
        """A rate needs samples from before and after."""
        work(kubelet)
        kubelet.exec(busy, "ping", "-c", "1", "-W", "1", "10.255.255.1")
        queries[:] = [query for query in queries if not prometheus.numbers(query)]
        return queries

    wait_for(unanswered, lambda left: not left)
    assert prometheus.numbers('sum(rate(container_cpu_usage_seconds_total{container="main"}[20s]))')[0] > 0
    assert prometheus.get("rules")["groups"][0]["rules"][0]["health"] == "ok"
    assert not re.search(r"level=(warn|error)", prometheus.log()), prometheus.log()
