from __future__ import annotations

import pytest

from cri_py.cdi.edits import Edits, Hook, Mount, NetDevice, Rdt
from cri_py.errors import InvalidArgument
from cri_py.pods import spec_cdi
from tests.unit.pods.builders import document


def test_environment_groups_and_mounts_are_laid_over_the_document() -> None:
    built = document()
    before = [mount["destination"] for mount in built["mounts"]]
    edits = Edits(
        env=("LANG=gpu", "VISIBLE=0"),
        groups=(44, 44, 109),
        mounts=(
            Mount("/usr/lib/gpu/deep", "/usr/lib/gpu/deep", options=("ro", "nosuid")),
            Mount("/etc/hosts.gpu", "/etc/hosts", options=("bind", "ro")),
            Mount("tmpfs", "/cache", kind="tmpfs", options=("size=1m",)),
        ),
    )
    spec_cdi.apply(built, edits)
    assert [entry for entry in built["process"]["env"] if entry[:4] in {"LANG", "VISI"}] == ["LANG=gpu", "VISIBLE=0"]
    assert built["process"]["user"]["additionalGids"] == [44, 109]
    mounts = {mount["destination"]: mount for mount in built["mounts"]}
    assert len(mounts) == len(built["mounts"]) == len(before) + 2
    assert mounts["/usr/lib/gpu/deep"] == {
        "destination": "/usr/lib/gpu/deep",
        "type": "bind",
        "source": "/usr/lib/gpu/deep",
        "options": ["rbind", "ro", "nosuid"],
    }
    assert (mounts["/etc/hosts"]["source"], mounts["/etc/hosts"]["options"]) == ("/etc/hosts.gpu", ["bind", "ro"])
    assert mounts["/cache"]["type"] == "tmpfs"
    depths = [mount["destination"].count("/") for mount in built["mounts"]]
    assert depths == sorted(depths)


def test_hooks_are_the_documents_by_their_stage() -> None:
    built = document()
    first = Hook("createContainer", "/bin/link", ("link", "x"), ("A=b",), 3)
    edits = Edits(hooks=(first, Hook("prestart", "/bin/p"), Hook("createContainer", "/bin/second")))
    spec_cdi.apply(built, edits)
    assert built["hooks"] == {
        "createContainer": [
            {"path": "/bin/link", "args": ["link", "x"], "env": ["A=b"], "timeout": 3},
            {"path": "/bin/second", "args": ["/bin/second"], "env": []},
        ],
        "prestart": [{"path": "/bin/p", "args": ["/bin/p"], "env": []}],
    }


def test_nothing_asked_for_changes_nothing() -> None:
    built = document()
    spec_cdi.apply(built, Edits())
    assert built == document()


def test_interfaces_and_a_class_of_caches_are_told_in_ocis_words() -> None:
    built = document()
    edits = Edits(
        net_devices=(NetDevice("enp1", "eth1"),), rdt=Rdt("gold", mem_bw_schema="MB:0=50", schemata=("L3:0=f",))
    )
    spec_cdi.apply(built, edits)
    assert built["linux"]["netDevices"] == {"enp1": {"name": "eth1"}}
    assert built["linux"]["intelRdt"] == {"closID": "gold", "memBwSchema": "MB:0=50", "schemata": ["L3:0=f"]}


def test_a_class_without_words_is_one_of_the_containers_own() -> None:
    built = document()
    spec_cdi.apply(built, Edits(rdt=Rdt()))
    assert built["linux"]["intelRdt"] == {}


def test_of_two_classes_the_later_counts() -> None:
    assert (Edits(rdt=Rdt("a")) + Edits(rdt=Rdt("b")) + Edits()).rdt == Rdt("b")


def test_the_monitor_is_told_which_hooks_are_left_to_it() -> None:
    built = document()
    hooks = (Hook("poststop", "/bin/a"), Hook("createContainer", "/bin/b"), Hook("poststart", "/bin/c"))
    assert spec_cdi.later_hooks(built) == ""
    spec_cdi.apply(built, Edits(hooks=hooks))
    assert spec_cdi.later_hooks(built) == "poststart poststop"


def test_an_interface_of_the_node_is_not_moved_into_the_nodes_own_network() -> None:
    edits = Edits(net_devices=(NetDevice("enp1", "eth1"),))
    spec_cdi.check(edits, host_network=False)
    with pytest.raises(InvalidArgument, match="enp1"):
        spec_cdi.check(edits, host_network=True)


def test_what_several_devices_ask_of_resource_control_is_put_together() -> None:
    cache = Edits(rdt=Rdt("gold", l3_cache_schema="L3:0=f", schemata=("MB:0=50", "L2:0=1")))
    counted = Edits(rdt=Rdt(mem_bw_schema="MB:0=70", schemata=("L2:0=1", "L2:1=3"), monitoring=True))
    assert (cache + counted).rdt == Rdt(
        "gold", "L3:0=f", "MB:0=70", schemata=("MB:0=50", "L2:0=1", "L2:1=3"), monitoring=True
    )
