"""Classes of block I/O, from a pod's annotations to OCI's words."""

from __future__ import annotations

import pytest

from cri_py.config import BlockIoClass
from cri_py.errors import InvalidArgument
from cri_py.pods.spec_block_io import class_of, find, section

POD, CONTAINER = "blockio.resources.beta.kubernetes.io/pod", "blockio.resources.beta.kubernetes.io/container.db"


@pytest.mark.parametrize(
    ("annotations", "name"),
    [({}, ""), ({POD: "slow"}, "slow"), ({CONTAINER: "fast"}, "fast"), ({POD: "slow", CONTAINER: "fast"}, "fast")],
)
def test_a_container_has_its_own_class_or_the_pods(annotations: dict[str, str], name: str) -> None:
    assert class_of("db", annotations) == name
    assert class_of("web", annotations) == annotations.get(POD, "")


def test_rates_and_weights_are_those_of_each_disk() -> None:
    wanted = BlockIoClass(devices=("/dev/a", "/dev/b"), weight=50, read_bytes_s=1, write_bytes_s=2, write_ops_s=4)
    disks = [{"major": 8, "minor": 0}, {"major": 8, "minor": 16}]
    assert section(wanted, [(8, 0), (8, 16)]) == {
        "weightDevice": [{**disk, "weight": 50} for disk in disks],
        "throttleReadBpsDevice": [{**disk, "rate": 1} for disk in disks],
        "throttleWriteBpsDevice": [{**disk, "rate": 2} for disk in disks],
        "throttleWriteIOPSDevice": [{**disk, "rate": 4} for disk in disks],
    }


def test_without_disks_a_weight_is_that_of_the_group() -> None:
    assert section(BlockIoClass(weight=700), []) == {"weight": 700}


def test_a_class_that_is_not_configured_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"'quick' is not .*its config has fast, slow"):
        find("quick", {"slow": BlockIoClass(), "fast": BlockIoClass()})
    with pytest.raises(InvalidArgument, match="has none"):
        find("quick", {})


def test_rates_of_no_disk_are_refused() -> None:
    with pytest.raises(
        InvalidArgument, match=r"'slow' limits rates, but names no disk .*block_io_classes\.slow\.devices"
    ):
        find("slow", {"slow": BlockIoClass(read_ops_s=5)})
