"""The daemon's log and series."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from cri_py import telemetry
from cri_py.errors import ConfigError, CriError
from cri_py.model import RegistryAuth


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_away_from_a_terminal_a_line_is_json_with_the_ids_of_its_call() -> None:
    stream = io.StringIO()
    telemetry.configure_logging("info", "auto", stream)
    structlog.contextvars.bind_contextvars(request_id="ab12", container_id="c" * 64)
    structlog.get_logger().info("started", pid=7)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["pid"], line["request_id"]) == ("started", "info", 7, "ab12")
    assert line["container_id"] == "c" * 64
    assert line["timestamp"].endswith("Z")


def test_on_a_terminal_a_line_is_text() -> None:
    stream = Terminal()
    telemetry.configure_logging("info", "auto", stream)
    structlog.get_logger().info("started", pid=7)
    assert "started" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize(("form", "is_json"), [("json", True), ("text", False)])
def test_the_form_can_be_chosen(form: str, is_json: bool) -> None:
    stream = Terminal() if is_json else io.StringIO()
    telemetry.configure_logging("info", form, stream)
    structlog.get_logger().info("started")
    assert stream.getvalue().startswith("{") == is_json


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    telemetry.configure_logging("warning", "json", stream)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_lines_of_libraries_look_like_ours() -> None:
    stream = io.StringIO()
    telemetry.configure_logging("info", "json", stream)
    logging.getLogger("asyncio").info("chatter")
    logging.getLogger("asyncio").error("a task failed: %s", 3)
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["event"], line["level"], line["logger"]) == ("a task failed: 3", "error", "asyncio")


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_is_written_whole(form: str) -> None:
    stream = io.StringIO()
    telemetry.configure_logging("info", form, stream)
    empty: dict[str, int] = {}
    try:
        empty["nowhere"]
    except KeyError:
        structlog.get_logger().exception("lost")
    assert "KeyError: 'nowhere'" in stream.getvalue()


def test_credentials_are_not_written() -> None:
    stream = io.StringIO()
    telemetry.configure_logging("info", "json", stream)
    structlog.get_logger().info("pull", auth=RegistryAuth(username="me", password="hunter2", auth="aHVudGVyMg=="))
    assert "me" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()
    assert "aHVudGVyMg" not in stream.getvalue()


@pytest.mark.parametrize(("level", "form", "key"), [("loud", "json", "level"), ("info", "xml", "format")])
def test_an_unknown_level_or_form_is_a_config_error(level: str, form: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"log\.{key}"):
        telemetry.configure_logging(level, form, io.StringIO())


def test_every_series_of_ours_bears_the_prefix_and_says_what_it_is() -> None:
    families = [family for family in telemetry.REGISTRY.collect() if not family.name.startswith("process_")]
    assert len(families) >= 15
    assert all(family.name.startswith("cri_py_") for family in families)
    assert all(family.documentation for family in families)


def test_a_reading_is_read_at_every_scrape() -> None:
    ready = {"ready": 1.0, "notready": 0.0}
    telemetry.PODS.read_by(lambda: ready)
    assert telemetry.REGISTRY.get_sample_value("cri_py_pods", {"state": "ready"}) == 1
    ready["ready"] = 5.0
    assert telemetry.REGISTRY.get_sample_value("cri_py_pods", {"state": "ready"}) == 5
    telemetry.PODS.read_by(dict)


def test_a_reading_without_label_has_one_number() -> None:
    telemetry.EVENT_QUEUE_DEPTH.read_by(lambda: {"": 3.0})
    assert telemetry.REGISTRY.get_sample_value("cri_py_event_queue_depth") == 3
    telemetry.EVENT_QUEUE_DEPTH.read_by(dict)


def test_the_version_is_told() -> None:
    telemetry.set_version("1.2.3")
    _, body = telemetry.exposition("")
    assert b'cri_py_build_info{python="' in body
    assert b'version="1.2.3"' in body


def _value(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_timed_step_counts_what_succeeds_and_what_fails_apart() -> None:
    @telemetry.stage("unit test")
    async def step(fails: bool) -> str:
        if fails:
            raise CriError("no")
        return "yes"

    assert await step(False) == "yes"
    with pytest.raises(CriError):
        await step(True)
    assert _value("cri_py_stage_seconds_count", stage="unit test") == 1
    assert _value("cri_py_stage_errors_total", stage="unit test") == 1


async def test_a_caller_who_leaves_is_no_failure_of_the_step() -> None:
    @telemetry.stage("abandoned")
    async def step() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(step())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _value("cri_py_stage_errors_total", stage="abandoned") == 0


def test_no_counter_has_a_second_series_for_its_birth() -> None:
    telemetry.RPC_ERRORS.labels("Born", "INTERNAL").inc()
    _, body = telemetry.exposition("application/openmetrics-text; version=1.0.0")
    assert b'cri_py_rpc_errors_total{code="INTERNAL",method="Born"} 1.0' in body
    assert b"_created" not in body
