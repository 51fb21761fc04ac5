"""What a container writes stands in its log in CRI's format, and no log ever holds a container up."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators.kubelet import Kubelet, Line, Pod, refused, wait_for
from tests.system.daemon import Daemon

LINE_BYTES = 16384


def test_a_line_has_time_stream_tag_and_text(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "echo", "hello world")
    kubelet.wait(container)
    pattern = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) stdout F hello world\n"
    assert re.fullmatch(pattern, kubelet.log_file(container).read_bytes())
    assert kubelet.log_file(container).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("printf 'no newline'", [("F", b"no newline")]),
        ("printf 'one\\ntwo'", [("F", b"one"), ("F", b"two")]),
        ("echo; echo", [("F", b""), ("F", b"")]),
        ("printf '\\000\\377\\r\\n'", [("F", b"\0\xff\r")]),
        (f"head -c {LINE_BYTES + 10} /dev/zero; echo", [("P", b"\0" * LINE_BYTES), ("F", b"\0" * 10)]),
        (f"head -c {LINE_BYTES} /dev/zero; echo", [("F", b"\0" * LINE_BYTES)]),
        ("true", []),
    ],
    ids=["unfinished", "unfinished second", "empty", "binary", "long", "just as long", "nothing"],
)
def test_every_byte_is_logged(kubelet: Kubelet, pod: Pod, script: str, lines: list[tuple[str, bytes]]) -> None:
    container = kubelet.run(pod, "sh", "-c", script)
    kubelet.wait(container)
    assert [(line.tag, line.text) for line in kubelet.log(container)] == lines


def test_parts_of_long_lines_join_to_what_was_written(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end")
    kubelet.wait(container)
    log = kubelet.log(container)
    joined = b"".join(line.text + (b"\n" if line.tag == "F" else b"") for line in log)
    assert joined == b"x" * 100000 + b"\nend\n"
    assert all(len(line.text) <= LINE_BYTES for line in log)


def test_both_streams_keep_their_order(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "for i in $(seq 200); do echo $i; echo $i >&2; done")
    kubelet.wait(container)
    numbers = [str(number).encode() for number in range(1, 201)]
    for stream in ("stdout", "stderr"):
        assert [line.text for line in kubelet.log(container) if line.stream == stream] == numbers


def test_a_rotated_log_is_let_go_and_begun_anew(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "mkfifo /tmp/go; echo before; cat /tmp/go; echo after")
    log = kubelet.log_file(container)
    wait_for(log.read_bytes, lambda content: b"before" in content)
    rotated = log.with_suffix(".rotated")
    log.rename(rotated)
    kubelet.ReopenContainerLog(container_id=container)
    kubelet.exec(container, "sh", "-c", "echo told > /tmp/go")  # 137 where the container's end overtakes its own
    kubelet.wait(container)
    assert [line.text for line in kubelet.log(container)] == [b"told", b"after"]
    assert rotated.read_bytes().endswith(b"before\n")


def test_a_log_leads_nowhere_and_what_is_in_its_place_is_told_by_its_container(
    kubelet: Kubelet, pod: Pod, tmp_path: Path
) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    log = kubelet.log_file(container)
    log.unlink()
    log.symlink_to(tmp_path / "elsewhere")
    with refused("INTERNAL", f"the log of container {container} can't be opened anew", f"may be at {log}"):
        kubelet.ReopenContainerLog(container_id=container)
    assert not (tmp_path / "elsewhere").exists()
    assert kubelet.shell(container, "echo here") == "here\n"


def test_a_missing_log_directory_is_made(kubelet: Kubelet, pod: Pod) -> None:
    config = kubelet.container_config("echo", "hello", log_path="not/there/0.log")
    answer = kubelet.CreateContainer(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
    kubelet.start(answer.container_id)
    kubelet.wait(answer.container_id)
    assert kubelet.log(answer.container_id) == [Line("stdout", "F", b"hello")]


def dropped(daemon: Daemon) -> float:
    text = daemon.metrics()
    return float(re.findall(r"^cri_py_log_lines_dropped_total (\S+)$", text, re.MULTILINE)[0])


def test_a_log_that_cannot_be_opened_holds_nothing_up(kubelet: Kubelet, daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = dropped(daemon)
    config = kubelet.pod_config()
    config.log_directory = str(tmp_path / "file")
    pod = kubelet.run_pod(config)
    request = kubelet.container_config("sh", "-c", "echo lost; echo lost; exit 4")
    container = kubelet.CreateContainer(pod_sandbox_id=pod.id, config=request, sandbox_config=config).container_id
    kubelet.start(container)
    assert kubelet.wait(container).exit_code == 4
    assert dropped(daemon) == before + 2


def test_a_container_without_log_path_runs_unlogged(kubelet: Kubelet, pod: Pod) -> None:
    config = kubelet.container_config("sh", "-c", "echo nowhere")
    config.log_path = ""
    container = kubelet.create(pod, config=config)
    kubelet.start(container)
    assert kubelet.wait(container).exit_code == 0
    assert kubelet.status(container).log_path == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "logs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_loses_lines_and_counts_them_but_stops_nobody(
    kubelet: Kubelet, daemon: Daemon, small_disk: Path
) -> None:
    before = dropped(daemon)
    config = kubelet.pod_config()
    config.log_directory = str(small_disk)
    pod = kubelet.run_pod(config)
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i of many; i=$((i + 1)); done; exit 5"
    container = kubelet.run(pod, "sh", "-c", script)
    assert kubelet.wait(container).exit_code == 5
    kept = kubelet.log_file(container).read_bytes().count(b"\n")
    assert 0 < kept < 3000
    assert 3000 - kept <= dropped(daemon) - before <= 3001 - kept
    kubelet.remove_pod(pod)


def test_a_tty_logs_as_stdout(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "test -t 0 && test -t 1 && tty; echo oh >&2", tty=True)
    assert kubelet.wait(container).exit_code == 0
    assert [(line.stream, line.text.rstrip(b"\r")) for line in kubelet.log(container)] == [
        ("stdout", b"/dev/pts/0"),
        ("stdout", b"oh"),
    ]


def test_output_of_what_outlives_the_container_is_not_awaited(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "sleep 1000 & echo started")
    assert kubelet.wait(container).exit_code == 0
    assert kubelet.log(container) == [Line("stdout", "F", b"started")]
