"""A blob from a registry, whole, resumed, damaged or dripping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from cri_py.config import RegistryConfig
from cri_py.errors import (
    DeadlineExceeded,
    ResourceExhausted,
)
from cri_py.images.manifest import Descriptor
from cri_py.model import Digest
from tests.simulators.registry import Fault, RegistrySimulator
from tests.unit.images.nodes import BLOB, Node, Sink


def fail_once(registry: RegistrySimulator, **fault: Any) -> None:
    registry.faults.append(Fault("/blobs/", times=1, **fault))


def whole_that_claims_to_be_the_rest(registry: RegistrySimulator) -> None:
    registry.ranges = False
    fail_once(registry, headers={"Content-Range": f"bytes 1000-{len(BLOB) - 1}/{len(BLOB)}"})


@pytest.mark.parametrize("held", [1, 1000, len(BLOB) - 1])
async def test_a_blob_is_resumed_from_what_an_earlier_life_held(
    node: Node, registry: RegistrySimulator, blob: Descriptor, held: int
) -> None:
    sink = Sink(BLOB[:held])
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert [asked.headers["range"] for asked in registry.asked] == [f"bytes={held}-"]
    assert sink.written == len(BLOB) - held


async def test_a_blob_that_is_all_there_is_verified_and_not_asked_for(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, Sink(BLOB))
    assert registry.asked == []


async def test_a_cut_blob_goes_on_where_it_was_cut(node: Node, registry: RegistrySimulator, blob: Descriptor) -> None:
    registry.faults.append(Fault("/blobs/", cut_after=300_000, times=2))
    sink = Sink()
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert [asked.headers.get("range") for asked in registry.asked] == [None, "bytes=300000-", "bytes=600000-"]
    assert node.waits == [1.0, 2.0]


async def test_a_blob_that_gets_on_is_never_given_up(node: Node, registry: RegistrySimulator) -> None:
    content = bytes(12 << 20)
    described = registry.describe(content, "")
    registry.faults.append(Fault("/blobs/", cut_after=(1 << 20) + 1))
    node.config["pull_attempts"] = 2
    sink = Sink()
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(Descriptor("", Digest(described["digest"]), len(content)), sink)
    assert sink.content == content
    assert set(node.waits) == {1.0}


@pytest.mark.parametrize(
    "prepare",
    [
        lambda registry: setattr(registry, "ranges", False),
        whole_that_claims_to_be_the_rest,
        lambda registry: fail_once(registry, content_range=f"bytes 7-9/{len(BLOB)}"),
        lambda registry: fail_once(registry, content_range=f"bytes 1000-1009/{len(BLOB) + 1}"),
        lambda registry: fail_once(registry, content_range="nonsense"),
        lambda registry: fail_once(registry, status=416),
    ],
    ids=["ignored", "claimed", "elsewhere", "another size", "unreadable", "refused"],
)  # fmt: skip
async def test_a_host_that_can_not_resume_sends_all_again(
    node: Node, registry: RegistrySimulator, blob: Descriptor, prepare: Callable[[RegistrySimulator], None]
) -> None:
    prepare(registry)
    sink = Sink(BLOB[:1000])
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert sink.written == len(BLOB), "what does not fit is not taken"


async def test_a_blob_whose_etag_changes_between_pieces_is_fetched_whole(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    registry.faults += [Fault("/blobs/", cut_after=1000, times=1), Fault("/blobs/", etag="other", times=1)]
    sink = Sink()
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert [asked.headers.get("range") for asked in registry.asked] == [None, "bytes=1000-", None]


async def test_damage_in_what_was_held_is_mended_by_the_same_host(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    sink = Sink(b"x" * 1000)
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert len(registry.asked) == 2


async def test_another_host_goes_on_with_what_the_first_sent(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    with RegistrySimulator() as mirror:
        mirror.blobs.update(registry.blobs)
        mirror.faults.append(Fault("/blobs/", cut_after=1000))
        node.config["registries"] = {registry.host: RegistryConfig(mirrors=(mirror.url,))}
        sink = Sink()
        async with node.repository(f"{registry.host}/app:1") as repository:
            await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert [asked.headers.get("range") for asked in registry.asked] == ["bytes=1000-"]


async def test_a_full_disk_is_no_reason_to_ask_another_host(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    class Full(Sink):
        async def write(self, piece: bytes) -> None:
            raise ResourceExhausted("the disk is full")

    with RegistrySimulator() as mirror:
        mirror.blobs.update(registry.blobs)
        node.config["registries"] = {registry.host: RegistryConfig(mirrors=(mirror.url,))}
        async with node.repository(f"{registry.host}/app:1") as repository:
            with pytest.raises(ResourceExhausted):
                await repository.blob(blob, Full())
    assert registry.asked == []


async def test_the_host_that_served_a_blob_is_logged(node: Node, registry: RegistrySimulator, blob: Descriptor) -> None:
    with structlog.testing.capture_logs() as logs:
        async with node.repository(f"{registry.host}/app:1") as repository:
            await repository.blob(blob, Sink())
    assert [(each["host"], each["digest"]) for each in logs if each["event"] == "blob fetched"] == [
        (registry.url, blob.digest)
    ]


async def test_a_host_whose_headers_drip_is_given_up(node: Node, registry: RegistrySimulator, blob: Descriptor) -> None:
    registry.faults.append(Fault("/blobs/", headers_drip_s=0.02))
    node.config["pull_progress_timeout_s"] = 0.2
    async with asyncio.timeout(60), node.repository(f"{registry.host}/app:1") as repository:
        with pytest.raises(DeadlineExceeded, match=r"sent nothing for 0\.2 s"):
            await repository.blob(blob, Sink())


async def test_a_dripping_host_is_given_up(node: Node, registry: RegistrySimulator, blob: Descriptor) -> None:
    registry.faults.append(Fault("/blobs/", drip_s=0.01))
    node.config |= {"pull_progress_timeout_s": 0.6, "pull_minimum_bytes_per_s": 1000}
    async with node.repository(f"{registry.host}/app:1") as repository:
        with pytest.raises(DeadlineExceeded, match=r"sent only \d+ bytes in 0\.6"):
            await repository.blob(blob, Sink())
    assert len(registry.asked) == 1
