"""What a further process of a container is asked for with."""

from __future__ import annotations

from typing import Any

from cri_py import model
from cri_py.cgroups.v2 import V2
from cri_py.config import RuntimeConfig
from cri_py.pods.execs import Execs
from tests.unit.pods import builders


def test_no_daemon_gives_an_exec_the_name_of_another_daemon_s() -> None:
    """Its cgroup is called so, and sessions outlive the daemon; in a container each daemon may have pid 1."""
    names = set()
    for _ in range(2):
        execs = Execs(RuntimeConfig(), V2("/g"), lambda _: None)
        names |= {execs.prepare(made(), document, ["true"]).name for _ in range(2)}
    assert len(names) == 4


def made() -> model.Container:
    return model.Container(
        id=model.ContainerId("c" * 64),
        sandbox_id=model.SandboxId("a" * 64),
        config=builders.container(),
        image_id=model.ImageId("sha256:" + "0" * 64),
        image_ref="",
        created_at=model.Nanos(0),
        state=model.Running(model.Nanos(0), 1, 1),
        log_path="",
        cgroup="/x",
        user=model.User(0, 0, ()),
    )


def document(_: model.Container) -> dict[str, Any]:
    return {"process": {"args": ["sleep"], "env": [], "cwd": "/"}}
