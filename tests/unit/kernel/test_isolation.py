"""What /proc tells of isolation, as bytes."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from cri_py.errors import KernelError
from cri_py.kernel import isolation
from cri_py.kernel.isolation import IdRange, ResourceLimit

LIMITS = b"""\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max open files            1024                 524288               files     
Max nice priority         0                    0                    
Max of a kernel to come   1                    2                    things    
"""  # noqa: W291


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "42/ns").mkdir(parents=True)
    for name, number in (("mnt", 7), ("pid", 8), ("pid_for_children", 9)):
        (tmp_path / "42/ns" / name).symlink_to(f"{name.removesuffix('_for_children')}:[{number}]")
    (tmp_path / "42/limits").write_bytes(LIMITS)
    (tmp_path / "42/uid_map").write_bytes(b"         0     100000      65536\n")
    (tmp_path / "42/oom_score_adj").write_bytes(b"-998\n")
    (tmp_path / "42/attr").mkdir()
    (tmp_path / "42/attr/current").write_bytes(b"cri_py-default (enforce)\n\0")
    return tmp_path


def test_namespaces_are_numbers_by_name_and_those_for_children_are_left_out(proc: Path) -> None:
    assert isolation.namespaces(42, str(proc)) == {"mnt": 7, "pid": 8}


def test_limits_are_numbers_and_unknown_ones_are_left_out(proc: Path) -> None:
    assert isolation.limits(42, str(proc)) == (
        ResourceLimit("RLIMIT_CPU", -1, -1, "seconds"),
        ResourceLimit("RLIMIT_NOFILE", 1024, 524288, "files"),
        ResourceLimit("RLIMIT_NICE", 0, 0, ""),
    )


def test_this_kernels_limits_are_those_that_getrlimit_tells() -> None:
    found = isolation.limits(os.getpid()) or ()
    assert len(found) == len(Path("/proc/self/limits").read_text().splitlines()) - 1
    for limit in found:
        number = getattr(resource, limit.name, None)  # Python has no name for RLIMIT_LOCKS
        if number is not None:
            assert resource.getrlimit(number) == (limit.soft, limit.hard), limit.name


def test_maps_scores_and_labels_are_read(proc: Path) -> None:
    assert isolation.id_map(42, "uid_map", str(proc)) == (IdRange(0, 100000, 65536),)
    assert isolation.oom_score_adj(42, str(proc)) == -998
    assert isolation.security_label(42, str(proc)) == "cri_py-default (enforce)"


def test_a_process_that_is_gone_has_nothing(proc: Path) -> None:
    gone = (7, str(proc))
    assert isolation.namespaces(*gone) is None
    assert isolation.limits(*gone) is None
    assert isolation.id_map(7, "uid_map", str(proc)) is None
    assert isolation.oom_score_adj(*gone) is None
    assert isolation.security_label(*gone) is None


def test_any_other_failure_is_an_error(proc: Path) -> None:
    (proc / "8").mkdir()
    (proc / "8/ns").write_text("")
    with pytest.raises(KernelError, match="readlink"):
        isolation.namespaces(8, str(proc))
