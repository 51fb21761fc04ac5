from __future__ import annotations

import json
from typing import Any

import pytest

from cri_py.cdi.documents import named_in, parse, qualified
from cri_py.cdi.edits import Edits, Hook, Mount, NetDevice, Node, Rdt
from cri_py.errors import InvalidArgument

YAML = """\
# made by a vendor's tool
cdiVersion: 0.7.0
kind: vendor.com/gpu
containerEdits:
  env: [COMMON=1]
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - {path: /dev/gpu0, fileMode: 438}
- name: all
  annotations: {key: value}
  containerEdits:
    env:
    - A=b=c
"""


def described(**changes: Any) -> dict[str, Any]:
    device = {"name": "0", "containerEdits": {"env": ["A=b"]}}
    return {"cdiVersion": "1.1.0", "kind": "vendor.com/gpu", "devices": [device], **changes}


def with_edits(**edits: Any) -> dict[str, Any]:
    return described(devices=[{"name": "0", "containerEdits": edits}])


def read(content: dict[str, Any]) -> Any:
    return parse(json.dumps(content).encode(), "/etc/cdi/v.json")


def test_a_yaml_file_is_read() -> None:
    document = parse(YAML.encode(), "/etc/cdi/v.yaml")
    assert document.kind == "vendor.com/gpu"
    assert document.common == Edits(env=("COMMON=1",))
    assert document.devices == {"0": Edits(nodes=(Node("/dev/gpu0", mode=0o666),)), "all": Edits(env=("A=b=c",))}


def test_all_that_a_device_may_ask_for_is_read() -> None:
    asked = {
        "env": ["A=b"],
        "deviceNodes": [
            {
                **{"path": "/dev/x", "hostPath": "/dev/y", "type": "b", "major": 1, "minor": 2, "fileMode": 384},
                **{"permissions": "rw", "uid": 3, "gid": 4},
            }
        ],
        "mounts": [{"hostPath": "/h", "containerPath": "/c", "type": "bind", "options": ["ro"]}],
        "hooks": [
            {"hookName": "createContainer", "path": "/hook", "args": ["hook", "x"], "env": ["E=f"], "timeout": 5}
        ],
        "additionalGids": [0, 44],
        "netDevices": [{"hostInterfaceName": "enp1", "name": "eth1"}],
        "intelRdt": {"closID": "a", "l3CacheSchema": "L3:0=f", "schemata": ["MB:0=50"], "enableMonitoring": True},
    }
    assert read(with_edits(**asked)).devices["0"] == Edits(
        env=("A=b",),
        nodes=(Node("/dev/x", "/dev/y", "b", 1, 2, 0o600, "rw", 3, 4),),
        mounts=(Mount("/h", "/c", "bind", ("ro",)),),
        hooks=(Hook("createContainer", "/hook", ("hook", "x"), ("E=f",), 5),),
        groups=(44,),
        net_devices=(NetDevice("enp1", "eth1"),),
        rdt=Rdt("a", "L3:0=f", "", ("MB:0=50",), monitoring=True),
    )


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({}, "cdiVersion"),
        (described(cdiVersion="2.0.0"), "2.0.0"),
        (described(kind="gpu"), "'gpu'"),
        (described(kind="vendor.com/gpu/x"), "vendor.com/gpu/x"),
        (described(unknown=1), "unknown"),
        (described(devices=[{"name": "-", "containerEdits": {}}]), "'-'"),
        (described(devices=[{"name": "0", "containerEdits": {}}] * 2), "twice"),
        (described(devices=[{"name": "0"}]), "containerEdits"),
        (with_edits(env=["A"]), "env"),
        (with_edits(env=["=b"]), "env"),
        (with_edits(deviceNodes=[{"path": "dev/x"}]), "dev/x"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "type": "q"}]), "'q'"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "permissions": "rx"}]), "rx"),
        (with_edits(deviceNodes=[{"path": "/dev/x", "major": -1}]), "below 0"),
        (with_edits(mounts=[{"hostPath": "/a", "containerPath": "/b/../../c"}]), r"\.\."),
        (with_edits(mounts=[{"hostPath": "", "containerPath": "/b"}]), "hostPath"),
        (with_edits(hooks=[{"hookName": "later", "path": "/x"}]), "later"),
        (with_edits(hooks=[{"hookName": "poststop", "path": "x"}]), "hooks.path"),
        (with_edits(netDevices=[{"hostInterfaceName": "a/b", "name": "x"}]), "hostInterfaceName"),
        (with_edits(netDevices=[{"hostInterfaceName": "a", "name": "sixteen-letters-"}]), "netDevices.name"),
        (with_edits(intelRdt={"closID": "../x"}), "closID"),
        (with_edits(intelRdt={"schemata": ["L3:0=f\nMB:0=1"]}), "several lines"),
        (with_edits(intelRdt={"closId": "x"}), "closId"),
        (with_edits(additionalGids=[-1]), "additionalGids"),
        (with_edits(deviceNode=[]), "deviceNode"),
    ],
)
def test_what_is_not_understood_makes_a_file_bad_with_its_name_and_the_word(content: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"/etc/cdi/v\.json.*{word}"):
        read(content)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        *((b"", "/v.json"), (b"\xff", "/v.json"), (b"{}", "/v.yaml"), (b"", "/v.yaml"), (b"a: [", "/v.yaml")),
        *((b"\xff", "/v.yaml"), (b"!!python/object/apply:os.getpid []", "/v.yaml"), (b"[" * 5000, "/v.yaml")),
        (b"a: &x [1,1]\nb: &y [*x,*x]\nc: [*y,*y]", "/v.yaml"),
    ],
)
def test_what_is_no_description_is_refused(text: bytes, path: str) -> None:
    with pytest.raises(InvalidArgument, match=path):
        parse(text, path)


def test_names_of_devices_are_taken_apart() -> None:
    assert qualified("vendor.com/gpu=all:0.1") == ("vendor.com/gpu", "all:0.1")
    for name in ("", "gpu=0", "vendor.com/gpu", "vendor.com/gpu=", "vendor.com/gpu=-", "a/b=c\n", "1/b=c"):
        with pytest.raises(InvalidArgument, match="no name of one"):
            qualified(name)


def test_annotations_name_devices_in_the_order_of_their_keys() -> None:
    annotations = {"cdi.k8s.io/z_1": "v/c=3", "cdi.k8s.io/a_2": "v/c=1,v/c=2", "other/key": "v/c=4"}
    assert named_in(annotations) == ["v/c=1", "v/c=2", "v/c=3"]
