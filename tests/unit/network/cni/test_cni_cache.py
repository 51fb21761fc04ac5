"""What is kept of every ADD for its DEL."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri_py.errors import Internal, NotFound
from cri_py.network.cni.cache import Cache, entry, with_result
from cri_py.network.cni.calls import Subject
from cri_py.network.cni.configs import Loaded, from_document

LOADED = Loaded(from_document({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "x", "a": [1]}]}), "1.0.0")
ABOUT = Subject("c" * 64, "/run/netns/web", "eth0", (("K8S_POD_NAME", "web"),), {"aliases": ["web"]})
PENDING = entry(ABOUT, LOADED)
DONE = with_result(PENDING, {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/16"}]})


def opened(directory: Path) -> Cache:
    cache = Cache(str(directory))
    cache.load()
    return cache


def test_another_daemon_finds_all_that_del_needs(tmp_path: Path) -> None:
    opened(tmp_path).put(DONE)
    found = opened(tmp_path).get("c" * 64)
    assert found == DONE
    assert found.subject(has_netns=True) == ABOUT
    assert found.subject(has_netns=False).netns == ""
    assert found.chain().network.plugins == LOADED.network.plugins
    assert [str(address) for address in found.addresses()] == ["10.1.0.5/16"]


def test_an_add_that_did_not_end_is_found_too(tmp_path: Path) -> None:
    opened(tmp_path).put(PENDING)
    found = opened(tmp_path).get("c" * 64)
    assert (found.result, found.addresses()) == (None, ())


def test_a_dropped_entry_is_gone_and_may_be_dropped_again(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.put(DONE)
    cache.drop("c" * 64)
    cache.drop("c" * 64)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound):
        cache.get("c" * 64)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"container_id": 1}', b"\xff"])
def test_a_damaged_file_is_set_aside_and_the_others_count(tmp_path: Path, damage: bytes) -> None:
    opened(tmp_path).put(DONE)
    (tmp_path / "bad.json").write_bytes(damage)
    (tmp_path / "half.json.new").write_bytes(b"{")
    assert set(opened(tmp_path).entries()) == {"c" * 64}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json.damaged", f"{'c' * 64}.json"]


def test_a_version_that_nobody_knows_is_damage(tmp_path: Path) -> None:
    opened(tmp_path).put(DONE)
    path = tmp_path / f"{'c' * 64}.json"
    path.write_bytes(path.read_bytes().replace(b'"version":"1.0.0"', b'"version":"3.0.0"'))
    assert set(opened(tmp_path).entries()) == set()


def test_what_can_not_be_kept_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    cache = opened(tmp_path / "cni")
    (tmp_path / "cni").rmdir()
    with pytest.raises(Internal, match="the CNI result can't be kept in"):
        cache.put(DONE)
    assert not cache.entries()
