from __future__ import annotations

import pytest

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.model import SelinuxOption
from cri_py.pods import spec_selinux
from cri_py.pods.spec_selinux import Contexts, Label, Labels, contexts, labels, mount_option, pod_level, relabelled

# As Fedora's container-selinux has it.
LXC_CONTEXTS = """\
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file="system_u:object_r:container_ro_file_t:s0"
sandbox_kvm_process = "system_u:system_r:container_kvm_t:s0"
"""
POLICY = Contexts(
    Label("system_u", "system_r", "container_t", "s0"), Label("system_u", "object_r", "container_file_t", "s0")
)


def labelled(asked: SelinuxOption | None = None, *, unconfined: bool = False) -> Labels:
    return labels(POLICY, "s0:c1,c2", asked, unconfined=unconfined)


def test_the_policys_labels_are_read_from_its_file() -> None:
    assert contexts(LXC_CONTEXTS) == POLICY
    with pytest.raises(InvalidArgument, match="container-selinux"):
        contexts('process = "a:b:c:s0"\n')
    for text in ("a:b", "", "a b:c:d:s0", "a:b:c\n:s0"):
        with pytest.raises(InvalidArgument, match="no SELinux label"):
            Label.of(text)


def test_a_container_has_its_pods_categories_on_processes_and_files() -> None:
    assert labelled() == Labels("system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2")


def test_what_is_asked_for_replaces_its_part() -> None:
    assert labelled(SelinuxOption(type="mine_t")).process == "system_u:system_r:mine_t:s0:c1,c2"
    assert labelled(SelinuxOption(level="s0:c5")) == Labels(
        "system_u:system_r:container_t:s0:c5", "system_u:object_r:container_file_t:s0:c5"
    )
    whole = labelled(SelinuxOption("u", "r", "t", "s1"))
    assert whole == Labels("u:r:t:s1", "system_u:object_r:container_file_t:s1")


def test_what_shares_the_nodes_pids_or_is_privileged_is_not_confined_unless_a_type_is_named() -> None:
    assert labelled(unconfined=True).process == "system_u:system_r:spc_t:s0"
    assert labelled(SelinuxOption(type="mine_t"), unconfined=True).process == "system_u:system_r:mine_t:s0:c1,c2"


def test_a_pod_has_a_pair_of_its_own_or_the_one_that_it_names() -> None:
    levels: set[str] = set()
    for number in range(200):
        levels.add(pod_level(f"{number:064x}", None, levels))
    assert len(levels) == 200
    for level in levels:
        low, high = (int(word.removeprefix("c")) for word in level.removeprefix("s0:").split(","))
        assert 0 <= low < high < spec_selinux.CATEGORIES
    assert pod_level("a", None, ()) == pod_level("a", None, ())
    assert pod_level("a", SelinuxOption(level="s0:c7,c8"), {"s0:c7,c8"}) == "s0:c7,c8"
    assert pod_level("a", SelinuxOption(type="t"), ()) == pod_level("a", None, ())


def test_every_pair_can_be_had_and_then_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_selinux, "CATEGORIES", 6)
    levels: set[str] = set()
    for _ in range(15):
        levels.add(pod_level("a", None, levels))
    assert levels == {f"s0:c{low},c{high}" for high in range(6) for low in range(high)}
    with pytest.raises(FailedPrecondition, match="every pair"):
        pod_level("a", None, levels)


@pytest.mark.parametrize("level", ["s0", "s0:c1", "s0:c1,c2", "s0-s0:c0.c1023", "s15:c1,c3.c5"])
def test_levels_as_policies_have_them_are_taken(level: str) -> None:
    spec_selinux.check(SelinuxOption(level=level), enabled=True)


@pytest.mark.parametrize("level", ["c1,c2", "s0:", "s0:c1,", "s0:c1 c2", 's0"', "s0:c12345"])
def test_other_levels_are_not(level: str) -> None:
    with pytest.raises(InvalidArgument, match=r"selinux_options\.level"):
        spec_selinux.check(SelinuxOption(level=level), enabled=True)


def test_asking_where_there_is_no_selinux_is_refused_and_asking_for_nothing_is_not() -> None:
    with pytest.raises(FailedPrecondition, match="no SELinux"):
        spec_selinux.check(SelinuxOption(role="r"), enabled=False)
    spec_selinux.check(SelinuxOption(), enabled=False)
    spec_selinux.check(None, enabled=False)


def test_a_mount_option_keeps_the_comma_of_categories() -> None:
    assert mount_option("u:r:t:s0:c1,c2") == 'context="u:r:t:s0:c1,c2"'


@pytest.mark.parametrize("path", ["/", "//", "/etc/", "/./usr", "/proc", "/home"])
def test_what_the_node_needs_is_not_relabelled(path: str) -> None:
    with pytest.raises(InvalidArgument, match="may not be relabelled"):
        relabelled(path, spec_selinux.PROTECTED)


def test_a_volume_is() -> None:
    assert relabelled("/var/lib//kubelet/pods/x/", spec_selinux.PROTECTED) == "/var/lib/kubelet/pods/x"
