"""How far pulls are."""

from __future__ import annotations

from cri_py.images.manifest import Descriptor
from cri_py.images.progress import Progress
from cri_py.model import Digest

A, B = (Descriptor("", Digest("sha256:" + digit * 64), size) for digit, size in (("a", 10), ("b", 100)))


async def test_a_layer_that_two_pulls_need_counts_once() -> None:
    progress = Progress()
    with progress.pull("one", [A, B], {A.digest}), progress.pull("two", [B], set()):
        progress.fetched(B.digest, 60)
        progress.unpacked(B.digest, 30)
        assert progress.under_way() == ("one", "two")
        assert progress.totals() == {"wanted": 110, "fetched": 70, "unpacked": 40}
    assert not progress.under_way()
    assert progress.totals() == {"wanted": 0, "fetched": 0, "unpacked": 0}


def test_one_ref_may_be_pulled_twice_at_once() -> None:
    progress = Progress()
    with progress.pull("one", [A], set()):
        with progress.pull("one", [A], set()):
            progress.fetched(A.digest, 7)
            assert progress.under_way() == ("one",)
        (layer,) = progress.of("one")
        assert layer.fetched == 7
    assert progress.of("one") == ()
