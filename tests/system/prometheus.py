"""Debian's Prometheus with the config, rules and dashboards of deploy/, on loopback."""

from __future__ import annotations

import json
import math
import re
import secrets
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
RULES: Final = DEPLOY / "prometheus/rules.yml"
DASHBOARDS: Final = ("runtime", "node")
_WINDOW: Final = "20s"  # instead of Grafana's $__rate_interval


def own_address() -> str:
    """One of loopback's sixteen million, by chance. A port that is free on 127.0.0.1 may be taken a moment later."""
    return f"127.{secrets.randbelow(255)}.{secrets.randbelow(255)}.{2 + secrets.randbelow(250)}:9090"


def substituted(query: str) -> str:
    """A dashboard's query as Grafana would ask it for everything."""
    return re.sub(r"\$(instance|namespace|pod)\b", ".*", query).replace("$__rate_interval", _WINDOW)


def dashboard_queries() -> list[str]:
    """All that our dashboards ask."""
    found = []
    for name in DASHBOARDS:
        board = json.loads((DEPLOY / f"grafana/{name}.json").read_text())
        found += [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return [substituted(text) for text in found]


def with_times(pages: Sequence[tuple[float, str]]) -> str:
    """Pages of /metrics, read at those Unix times, as one text of OpenMetrics, series by series."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, dict[str, list[str]]] = {}
    for at, page in pages:
        family = ""
        for line in page.splitlines():
            if line.startswith("# "):
                word, family = line.split(" ", 3)[1:3]
                heads.setdefault(family, [])
                if word == "TYPE":  # a counter of OpenMetrics ends in _total, which those of cAdvisor needn't
                    heads[family] = [f"# TYPE {family} unknown"]
            else:
                series, _, number = line.rpartition(" ")
                samples.setdefault(family, {}).setdefault(series, []).append(f"{series} {number} {at:.3f}")
    lines = [line for family in samples for line in (*heads[family], *(_joined(samples[family].values())))]
    return "\n".join([*lines, "# EOF", ""])


def _joined(parts: Iterable[Sequence[str]]) -> Iterator[str]:
    for part in parts:
        yield from part


class Prometheus:
    """One on loopback, with our own config but for the address and a scrape every second."""

    def __init__(self, directory: Path, target: str) -> None:
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES)]
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [target]}]
        file, self._log = directory / "prometheus.yml", (directory / "log").open("w+")
        file.write_text(yaml.safe_dump(config))
        self._url = f"http://{own_address()}"
        self._process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={file}", f"--storage.tsdb.path={directory}/data"),
                *(f"--web.listen-address={self._url.removeprefix('http://')}", "--log.level=warn"),
            ],
            stdout=self._log,
            stderr=self._log,
        )

    @classmethod
    def of_recorded(cls, directory: Path, pages: Sequence[tuple[float, str]]) -> Prometheus:
        """One that knows what ``pages`` told at their times, and scrapes nobody who answers."""
        text = directory / "recorded"
        text.write_text(with_times(pages))
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), f"{directory}/data"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return cls(directory, own_address())

    def is_ready(self) -> bool:
        assert self._process.poll() is None, self.log()
        try:
            return bool(self.get("query", query="1"))
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        question = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{question}", timeout=10) as answer:
            return json.load(answer)["data"]

    def numbers(self, query: str, at: float | None = None) -> list[float]:
        """What a query answers, now or at a Unix time."""
        moment = {} if at is None else {"time": f"{at:.3f}"}
        found = [float(each["value"][1]) for each in self.get("query", query=query, **moment)["result"]]
        return [number for number in found if not math.isnan(number)]

    def failing(self) -> list[str]:
        """What is wrong with targets, or with itself while it comes up. A slow scrape is an error, too, and the next is
        a second later."""
        assert self._process.poll() is None, self.log()
        try:
            targets = self.get("targets", state="active")["activeTargets"]
        except OSError as error:
            return [str(error)]
        return [each["lastError"] or each["health"] for each in targets if each["health"] != "up"]

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._log.close()
