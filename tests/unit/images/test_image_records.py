"""How tags and digests move between the records of images."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from cri_py.images import records
from cri_py.images.manifest import Descriptor
from cri_py.images.records import ImageRecord
from cri_py.images.reference import parse_ref
from cri_py.model import Digest, Image, ImageConfig, ImageId

DIGESTS = [Digest(f"sha256:{digit * 64}") for digit in "0123"]


def record(number: int, tags: Iterable[str] = (), digests: Iterable[str] = ()) -> ImageRecord:
    image = Image(ImageId(DIGESTS[number]), tuple(tags), tuple(digests), 1, ImageConfig(), ())
    return ImageRecord(image, (DIGESTS[number],), b"{}", (Descriptor("", DIGESTS[3], 7),))


MOVES = st.lists(st.tuples(st.sampled_from(["attach", "tag", "untag"]), st.integers(0, 2), st.sampled_from("ab")))


@given(MOVES)
def test_a_name_never_means_two_images(moves: list[tuple[str, int, str]]) -> None:
    here = {each.image.id: each for each in (record(0), record(1), record(2))}
    for act, number, name in moves:
        ref, found = parse_ref(f"r.test/{name}:1"), here[ImageId(DIGESTS[number])]
        if act == "attach":
            changed = records.attach(here.values(), found, ref, DIGESTS[number])
        elif act == "tag":
            changed = records.tag(here.values(), found, ref.tagged)
        else:
            changed = [records.untag(found, [ref.tagged])]
        here.update({each.image.id: each for each in changed})
        assert (ref.tagged in here[found.image.id].image.repo_tags) == (act != "untag")
        names = [tag for each in here.values() for tag in (*each.image.repo_tags, *each.image.repo_digests)]
        assert len(names) == len(set(names))


def test_only_records_that_change_are_given() -> None:
    here = [record(0, ["r.test/a:1"]), record(1, ["r.test/b:1"]), record(2)]
    assert [Digest(each.image.id) for each in records.tag(here, here[2], "r.test/a:1")] == [DIGESTS[0], DIGESTS[2]]
    assert [Digest(each.image.id) for each in records.tag(here, here[2], "r.test/c:1")] == [DIGESTS[2]]


def test_a_record_is_read_as_it_was_written() -> None:
    written = record(0, ["r.test/a:1"], [f"r.test/a@{DIGESTS[1]}"])
    assert records.decode(records.encode(written)) == written


def test_a_prefix_that_fits_two_ids_finds_none() -> None:
    ids = [ImageId("sha256:ab" + "0" * 62), ImageId("sha256:ac" + "0" * 62)]
    assert records.by_prefix(ids, "ab") == ids[0]
    assert records.by_prefix(ids, "sha256:ac0") == ids[1]
    assert records.by_prefix(ids, "a") is None
    assert records.by_prefix(ids, "") is None


def test_globs_pin_by_tag_and_by_digest() -> None:
    image = record(0, ["registry.k8s.io/pause:3.10"], [f"r.test/a@{DIGESTS[1]}"]).image
    assert records.pinned(image, ["registry.k8s.io/pause:*"])
    assert records.pinned(image, ["r.test/a@*"])
    assert not records.pinned(image, ["pause:*", "registry.k8s.io/Pause:*"])
