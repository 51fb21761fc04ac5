from __future__ import annotations

from dataclasses import replace

import pytest

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.model import NamespaceMode, NamespaceOption, SelinuxOption
from cri_py.pods import spec_selinux
from cri_py.pods.spec_selinux import Label, Labels, contexts, labels, pod_level, policy_of
from tests.unit.pods.builders import POLICY, container, defaults, document, sandbox

# As Fedora's container-selinux has it.
LXC_CONTEXTS = """\
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file="system_u:object_r:container_ro_file_t:s0"
sandbox_kvm_process = "system_u:system_r:container_kvm_t:s0"
"""


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


def test_what_a_container_leaves_out_is_as_its_pod_has_it() -> None:
    pod = replace(sandbox(selinux=SelinuxOption(type="pod_t", level="s0:c8,c9")), selinux_level="s0:c8,c9")
    found = document(pod, container({"selinux": SelinuxOption(user="mine_u")}), defaults=defaults(selinux=POLICY))
    assert found["process"]["selinuxLabel"] == "mine_u:system_r:pod_t:s0:c8,c9"
    assert found["linux"]["mountLabel"] == "system_u:object_r:container_file_t:s0:c8,c9"
    own = document(pod, container({"selinux": SelinuxOption(level="s0:c1,c3")}), defaults=defaults(selinux=POLICY))
    assert own["process"]["selinuxLabel"] == "system_u:system_r:pod_t:s0:c1,c3"


def test_files_of_what_is_not_confined_belong_to_its_pod_all_the_same() -> None:
    pod = replace(sandbox(privileged=True), selinux_level="s0:c8,c9")
    found = document(pod, container({"privileged": True}), defaults=defaults(selinux=POLICY))
    assert found["process"]["selinuxLabel"] == "system_u:system_r:spc_t:s0"
    assert found["linux"]["mountLabel"] == "system_u:object_r:container_file_t:s0:c8,c9"


def test_who_shares_the_nodes_processes_is_not_confined() -> None:
    for shared in (NamespaceOption(pid=NamespaceMode.NODE), NamespaceOption(ipc=NamespaceMode.NODE)):
        pod = replace(sandbox(namespaces=shared), selinux_level="s0:c8,c9")
        found = document(pod, container({"namespaces": shared}), defaults=defaults(selinux=POLICY))
        assert ":spc_t:" in found["process"]["selinuxLabel"]


def test_without_a_policy_there_are_no_labels() -> None:
    found = document()
    assert "selinuxLabel" not in found["process"]
    assert "mountLabel" not in found["linux"]


def test_a_policy_without_levels_has_labels_without_them() -> None:
    policy = contexts(LXC_CONTEXTS, levels=False)
    assert labels(policy, "", None, unconfined=False) == Labels(
        "system_u:system_r:container_t", "system_u:object_r:container_file_t"
    )
    with pytest.raises(FailedPrecondition, match="no levels"):
        spec_selinux.check(SelinuxOption(level="s0"), policy)
    spec_selinux.check(SelinuxOption(type="t"), policy)


def test_the_policy_is_that_of_its_config() -> None:
    assert policy_of("# SELINUXTYPE=no\nSELINUX=enforcing\nSELINUXTYPE = mls \n") == "mls"
    assert policy_of("") == "targeted"


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
    spec_selinux.check(SelinuxOption(level=level), POLICY)


@pytest.mark.parametrize("level", ["c1,c2", "s0:", "s0:c1,", "s0:c1 c2", 's0"', "s0:c12345"])
def test_other_levels_are_not(level: str) -> None:
    with pytest.raises(InvalidArgument, match=r"selinux_options\.level"):
        spec_selinux.check(SelinuxOption(level=level), POLICY)


def test_asking_where_there_is_no_selinux_is_refused_and_asking_for_nothing_is_not() -> None:
    with pytest.raises(FailedPrecondition, match="labels no containers"):
        spec_selinux.check(SelinuxOption(role="r"), None)
    spec_selinux.check(SelinuxOption(), None)
    spec_selinux.check(None, None)
