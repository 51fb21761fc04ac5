"""The node as a whole: its conditions, and what `crictl info` shows."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict

from cri_py.cgroups import Cgroups
from cri_py.config import Config
from cri_py.model import Condition, Features
from cri_py.network.pod_network import PodNetwork


class Node:
    def __init__(self, config: Config, cgroups: Cgroups, network: PodNetwork, features: Features, driver: str) -> None:
        self._config = config
        self._features = features
        self._driver = driver
        self._cgroups = cgroups
        self._network = network

    def conditions(self) -> list[Condition]:
        return [Condition("RuntimeReady", True), self._network.condition()]

    def handlers(self) -> tuple[str, ...]:
        """The names that a RuntimeClass may use; "" is the default."""
        return ("", *self._config.runtime.handlers)

    def features(self) -> Features:
        """As the kernel has proved them when the daemon started."""
        return self._features

    def cgroup_driver(self) -> str:
        return self._driver

    async def update_pod_cidr(self, cidr: str) -> None:
        await self._network.update_pod_cidr(cidr)

    def verbose(self) -> dict[str, str]:
        node = {
            "python": sys.version.split()[0],
            "kernel": platform.release(),
            "cgroups": type(self._cgroups).__name__.lower(),
            "cgroupDriver": self._driver,
            "cgroupMounts": self._cgroups.mounts,
            "features": asdict(self._features),
        }
        return {"config": json.dumps(asdict(self._config)), "node": json.dumps(node), **self._network.verbose()}
