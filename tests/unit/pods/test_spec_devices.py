from __future__ import annotations

import pytest

from cri_py import model
from cri_py.errors import InvalidArgument
from cri_py.pods.spec_devices import DeviceNode, check, merge, owned
from tests.unit.pods.builders import container, document, sandbox


def test_only_the_standard_devices_may_be_used_but_any_node_be_made() -> None:
    linux = document()["linux"]
    assert [node["path"] for node in linux["devices"]] == [
        f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")
    ]
    rules = linux["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "b", "access": "m"} in rules
    assert {"allow": True, "type": "c", "major": 136, "access": "rwm"} in rules
    assert {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"} in rules  # tun
    assert not [rule for rule in rules if (rule.get("major"), rule.get("minor")) == (5, 1)]  # the node's console
    assert all("major" in rule for rule in rules[1:] if rule["access"] != "m")


def test_a_privileged_container_may_use_every_device() -> None:
    rules = document(sandbox(privileged=True), container({"privileged": True}))["linux"]["resources"]["devices"]
    assert rules == [{"allow": True, "access": "rwm"}]


def test_a_device_that_was_looked_up_is_made_and_allowed_as_asked() -> None:
    nodes = [DeviceNode("/dev/fuse", "c", 10, 229, "rw"), DeviceNode("/dev/sdx", "b", 8, 0, "r", 0o640, 5, 6)]
    linux = document(device_nodes=nodes)["linux"]
    made = {device["path"]: device for device in linux["devices"]}
    assert made["/dev/sdx"] == {
        **{"path": "/dev/sdx", "type": "b", "major": 8, "minor": 0, "fileMode": 0o640, "uid": 5, "gid": 6}
    }
    for rule in (
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "r"},
    ):
        assert rule in linux["resources"]["devices"]


def test_a_character_device_by_another_name_and_a_fifo_are_no_trouble_for_rules() -> None:
    nodes = [DeviceNode("/dev/u", "u", 10, 1), DeviceNode("/dev/p", "p", 0, 0)]
    linux = document(device_nodes=nodes)["linux"]
    assert [device["type"] for device in linux["devices"][:2]] == ["u", "p"]
    rules = linux["resources"]["devices"]
    assert {"allow": True, "type": "c", "major": 10, "minor": 1, "access": "rwm"} in rules
    assert not any(rule.get("type") in {"u", "p"} for rule in rules)


def test_below_a_dev_of_the_hosts_nothing_is_made_but_elsewhere_and_allowed_it_is() -> None:
    nodes = [DeviceNode("/dev/fuse", "c", 10, 229), DeviceNode("/opt/kvm", "c", 10, 232)]
    linux = document(config=container(mounts=(model.Mount("/dev", "/dev"),)), device_nodes=nodes)["linux"]
    assert [device["path"] for device in linux["devices"]] == ["/opt/kvm"]
    assert {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"} in linux["resources"]["devices"]


def test_of_two_nodes_at_one_path_the_first_layers_counts() -> None:
    one, two, other = DeviceNode("/a", "c", 1, 1), DeviceNode("/a", "c", 2, 2), DeviceNode("/b", "c", 3, 3)
    assert merge([one], [two, other]) == [one, other]


def test_devices_of_root_go_to_the_user_who_is_told_and_others_stay() -> None:
    nodes = [DeviceNode("/a", "c", 1, 1), DeviceNode("/b", "c", 1, 2, uid=7, gid=8)]
    given = owned(nodes, model.ContainerSecurity(run_as_user=1000, run_as_group=2000))
    assert [(node.uid, node.gid) for node in given] == [(1000, 2000), (7, 8)]
    assert owned(nodes, model.ContainerSecurity()) == nodes


@pytest.mark.parametrize(
    ("host", "inside", "permissions"),
    [
        *(("/dev/../x", "/dev/x", "rw"), ("dev/x", "/dev/x", "rw"), ("/dev/\0", "/dev/x", "rw")),
        *(("/dev/x", "/dev/x", "rx"), ("/dev/x", "/dev/x", ""), ("/dev/x", "/dev/../../x", "r"), ("/", "/dev/x", "r")),
    ],
)
def test_a_malformed_device_is_refused(host: str, inside: str, permissions: str) -> None:
    with pytest.raises(InvalidArgument, match="device"):
        check(container(devices=(model.Device(inside, host, permissions),)))


def test_a_device_without_a_place_in_the_container_is_fine() -> None:
    check(container(devices=(model.Device("", "/dev/x", "rwm"),)))
