"""What a node's files say of SELinux, on trees as its machines have them, and whose categories are whose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cri_py import model
from cri_py.errors import FailedPrecondition
from cri_py.pods import selinux, spec_selinux
from cri_py.pods.ledger import Ledger
from cri_py.pods.selinux import Levels, read_policy
from cri_py.rpc.convert import decode_container_config, decode_sandbox_config
from cri_py.state.store import Store
from tests.unit.pods import builders
from tests.unit.pods.builders import POLICY

LXC_CONTEXTS = """\
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file="system_u:object_r:container_ro_file_t:s0"
"""
# Fedora 42 in enforcing mode; selinuxfs has many more files, none of which is read.
FEDORA = {
    "sys/fs/selinux/enforce": "1",
    "sys/fs/selinux/mls": "1",
    "sys/fs/selinux/policyvers": "33",
    "etc/selinux/config": "# comment\nSELINUX=enforcing\nSELINUXTYPE=targeted\n",
    "etc/selinux/targeted/contexts/lxc_contexts": LXC_CONTEXTS,
}
ONE, OTHER = (model.SandboxId(digit * 64) for digit in "ab")


def tree(root: Path, files: dict[str, str]) -> str:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return str(root)


def without(*paths: str) -> dict[str, str]:
    return {path: text for path, text in FEDORA.items() if path not in paths}


def test_a_node_with_selinux_has_its_policys_labels(tmp_path: Path) -> None:
    assert read_policy(tree(tmp_path, FEDORA)) == POLICY


def test_permissive_nodes_label_too(tmp_path: Path) -> None:
    assert read_policy(tree(tmp_path, FEDORA | {"sys/fs/selinux/enforce": "0"})) == POLICY


def test_a_kernel_without_selinux_labels_nothing_whatever_is_installed(tmp_path: Path) -> None:
    gone = [path for path in FEDORA if path.startswith("sys/")]
    assert read_policy(tree(tmp_path, without(*gone))) is None


def test_a_node_without_container_selinux_labels_nothing(tmp_path: Path) -> None:
    assert read_policy(tree(tmp_path, without("etc/selinux/targeted/contexts/lxc_contexts"))) is None


def test_the_policy_that_is_loaded_counts_and_what_all_policies_share_goes_before(tmp_path: Path) -> None:
    own = LXC_CONTEXTS.replace("container_t", "strict_t")
    files = FEDORA | {"etc/selinux/config": "SELINUXTYPE=mls\n", "etc/selinux/mls/contexts/lxc_contexts": own}
    strict = read_policy(tree(tmp_path, files))
    assert strict is not None
    assert strict.process.type == "strict_t"
    shared = {"usr/share/containers/selinux/contexts": LXC_CONTEXTS.replace("container_t", "shared_t")}
    everywhere = read_policy(tree(tmp_path, files | shared))
    assert everywhere is not None
    assert everywhere.process.type == "shared_t"


def test_a_policy_without_mls_has_no_levels(tmp_path: Path) -> None:
    policy = read_policy(tree(tmp_path, FEDORA | {"sys/fs/selinux/mls": "0"}))
    assert policy is not None
    assert not policy.has_levels


def test_labels_that_are_none_are_no_reason_to_run_without(tmp_path: Path) -> None:
    files = FEDORA | {"etc/selinux/targeted/contexts/lxc_contexts": 'process = "a"\nfile = "b:c:d:e"\n'}
    with pytest.raises(FailedPrecondition, match="lxc_contexts"):
        read_policy(tree(tmp_path, files))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    store = Store(str(tmp_path / "pods.db"), durable=False)
    yield Ledger(store, decode_sandbox_config, decode_container_config)
    store.close()


async def record(ledger: Ledger, sandbox_id: model.SandboxId, level: str) -> None:
    await ledger.put_sandbox(replace(builders.sandbox(), id=sandbox_id, selinux_level=level))


async def test_no_two_pods_have_the_same_categories(ledger: Ledger) -> None:
    levels = Levels(POLICY, ledger)
    with levels.promise(ONE, None) as first:
        assert first == spec_selinux.pod_level(ONE, None, ())
        with levels.promise(ONE, None) as beside:  # of another one, whose id leads to the same pair
            assert beside != first
    await record(ledger, ONE, first)
    with levels.promise(ONE, None) as later:
        assert later != first


def test_what_failed_is_free_again(ledger: Ledger) -> None:
    levels = Levels(POLICY, ledger)
    with pytest.raises(ValueError, match="failed"), levels.promise(ONE, None) as first:
        raise ValueError("failed")
    with levels.promise(ONE, None) as again:
        assert again == first


async def test_a_level_that_a_container_has_for_itself_is_taken(ledger: Ledger) -> None:
    own = model.SelinuxOption(level=spec_selinux.pod_level(OTHER, None, ()))
    await record(ledger, ONE, "s0:c1,c2")
    config = builders.container({"selinux": own})
    await ledger.put_container(
        model.Container(
            id=model.ContainerId("c" * 64),
            sandbox_id=ONE,
            config=config,
            image_id=model.ImageId("i"),
            image_ref="i",
            created_at=model.Nanos(1),
            state=model.Created(),
            log_path="",
            cgroup="/c",
        )
    )
    with Levels(POLICY, ledger).promise(OTHER, None) as level:
        assert level != own.level


def test_without_labels_or_levels_there_is_nothing_to_promise(ledger: Ledger) -> None:
    flat = spec_selinux.contexts(LXC_CONTEXTS, levels=False)
    for policy in (None, flat):
        with selinux.Levels(policy, ledger).promise(ONE, None) as level:
            assert level == ""
