"""What another process in a container inherits: the document, and a filter that must be the container's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cri_py.config import RuntimeConfig
from cri_py.errors import FailedPrecondition
from cri_py.model import Container
from cri_py.pods.bundles import Bundles
from cri_py.pods.places import Places
from tests.unit.pods import builders

CONTAINER = cast(Container, SimpleNamespace(id="c1", sandbox_id="s1", resources=None))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places(str(tmp_path / "root"), str(tmp_path / "state"))
    Path(places.bundle(CONTAINER.sandbox_id, CONTAINER.id)).mkdir(parents=True)
    Path(places.seccomp).mkdir(parents=True)
    bundle(places, "config.json").write_text('{"process": {}}')
    return places


@pytest.fixture
def bundles(places: Places) -> Iterator[Bundles]:
    made = Bundles(places, builders.defaults(), RuntimeConfig())
    yield made
    made.close()


def bundle(places: Places, name: str) -> Path:
    return Path(places.bundle(CONTAINER.sandbox_id, CONTAINER.id)) / name


def profile(places: Places, **changes: Any) -> Path:
    """The file of a profile, which the container's bundle points to."""
    path = Path(places.seccomp) / "abc.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", **changes}))
    bundle(places, "seccomp.json").symlink_to(path)
    return path


def test_a_container_without_a_profile_has_no_filter(bundles: Bundles) -> None:
    assert bundles.executing(CONTAINER) == ({"process": {}}, None)


def test_a_filter_of_an_earlier_daemon_is_found_with_its_flags(bundles: Bundles, places: Places) -> None:
    path = profile(places, flags=["SECCOMP_FILTER_FLAG_LOG"])
    _, found = bundles.executing(CONTAINER)
    assert found == {"path": str(path.with_suffix("")), "flags": 2}


def test_a_profile_that_is_gone_is_an_error_and_no_freedom(bundles: Bundles, places: Places) -> None:
    path = profile(places)
    path.unlink()
    with pytest.raises(FailedPrecondition, match=r"the seccomp profile of container c1 is gone: .*/abc\.json"):
        bundles.executing(CONTAINER)
    path.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert bundles.executing(CONTAINER)[1] is not None


def test_profiles_that_no_container_has_go_with_the_next_start(bundles: Bundles, places: Places) -> None:
    kept = profile(places)
    for name in ("abc", "old", "old.json", "cut.json.new"):
        (kept.parent / name).write_text("{}")
    asyncio.run(bundles.warm())
    left = {path.name for path in kept.parent.iterdir()}
    assert left >= {"abc", "abc.json"}
    assert not left & {"old", "old.json", "cut.json.new"}


def test_the_profile_that_is_shared_is_not_written_again(bundles: Bundles, places: Places) -> None:
    """A reader in between would take a cut one for missing."""
    asyncio.run(bundles.warm())
    (written,) = Path(places.seccomp).glob("*.json")
    before = written.stat()
    (written.with_suffix("")).unlink()
    asyncio.run(bundles.warm())
    assert written.with_suffix("").exists()
    assert (written.stat().st_ino, written.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_document_that_is_gone_is_an_error_and_no_fault(bundles: Bundles, places: Places) -> None:
    bundle(places, "config.json").unlink()
    with pytest.raises(FailedPrecondition, match=r"the OCI document of container c1 is gone: .*/config\.json"):
        bundles.executing(CONTAINER)
