from __future__ import annotations

import pytest

from cri_py.errors import InvalidArgument
from cri_py.kernel import capabilities


def test_numbers_are_the_kernels() -> None:
    # capability.h: CHOWN 0, NET_ADMIN 12, SYS_ADMIN 21, SETFCAP 31, SYSLOG 34, CHECKPOINT_RESTORE 40
    numbers = [capabilities.NUMBERS[f"CAP_{name}"] for name in ("CHOWN", "NET_ADMIN", "SYS_ADMIN", "SETFCAP", "SYSLOG")]
    assert numbers == [0, 12, 21, 31, 34]
    assert capabilities.NAMES[40] == "CAP_CHECKPOINT_RESTORE"
    assert len(capabilities.NAMES) == 41


def test_a_mask_and_its_names_are_inverse() -> None:
    assert capabilities.mask(["CAP_CHOWN", "net_admin"]) == 1 << 12 | 1
    assert capabilities.names(1 << 12 | 1) == ("CAP_CHOWN", "CAP_NET_ADMIN")
    assert capabilities.mask(capabilities.NAMES) == (1 << 41) - 1


def test_bits_of_newer_kernels_are_left_out_of_the_names() -> None:
    assert capabilities.names(1 << 50 | 1) == ("CAP_CHOWN",)


def test_an_unknown_name_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="CAP_FLY"):
        capabilities.mask(["CAP_FLY"])
