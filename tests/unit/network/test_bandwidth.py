"""Bandwidth annotations."""

from __future__ import annotations

import pytest

from cri_py.errors import InvalidArgument
from cri_py.network.bandwidth import EGRESS, INGRESS, Bandwidth, bandwidth, quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10M", 10_000_000),
        ("1.5Gi", 3 << 29),
        ("1e6", 1_000_000),
        ("5E3", 5000),
        ("+2k", 2000),
        (".5M", 500_000),
        ("1500m", 2),
        ("7", 7),
        ("", None),
        ("ten", None),
        ("-1M", None),
        ("1 M", None),
        ("1MiB", None),
    ],
)
def test_quantities_are_kubernetes(text: str, number: int | None) -> None:
    assert quantity(text) == number


def test_each_way_has_its_annotation() -> None:
    assert bandwidth({INGRESS: "1M", EGRESS: "2M"}) == Bandwidth(1_000_000, 2_000_000)
    assert not bandwidth({})


@pytest.mark.parametrize("text", ["999", "1.1P", "much"])
def test_what_no_link_can_keep_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="from 1k to 1P"):
        bandwidth({INGRESS: text})
