"""The network of a configuration directory, as files and plugins come and go. The plugins are real programs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition, KernelError
from cri_py.kernel import inotify
from cri_py.network.cni import networks
from cri_py.network.cni.networks import Networks
from cri_py.network.cni.plugins import Plugins
from tests.simulators.cni_plugin import PluginSimulator


@pytest.fixture
def plugin(tmp_path: Path) -> PluginSimulator:
    return PluginSimulator(tmp_path)


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    return tmp_path / "net.d"


def of(plugin: PluginSimulator, conf_dir: Path, status_period_s: float = 0.0) -> Networks:
    return Networks(str(conf_dir), Plugins([str(plugin.bin_dir)], 5.0, "a test"), status_period_s)


async def test_a_directory_that_is_not_there_is_a_reason_and_no_crash(plugin: PluginSimulator, conf_dir: Path) -> None:
    network = of(plugin, conf_dir)
    await network.refresh()
    assert f"no CNI network: {conf_dir} can't be read" in network.fault
    with pytest.raises(FailedPrecondition, match="the CNI network is not ready: no CNI network"):
        network.current()
    plugin.configure(conf_dir)
    await network.refresh()
    assert network.current().network.name == "fakenet"


async def test_the_first_file_by_name_counts_and_is_not_skipped_when_it_is_broken(
    plugin: PluginSimulator, conf_dir: Path
) -> None:
    plugin.configure(conf_dir, "50-b.conflist", name="second")
    plugin.configure(conf_dir, "20-a.conf", name="first")
    network = of(plugin, conf_dir)
    await network.refresh()
    assert network.current().network.name == "first"
    (conf_dir / "20-a.conf").write_text("{")
    await network.refresh()
    assert "20-a.conf is not JSON" in network.fault
    (conf_dir / "20-a.conf").unlink()
    await network.refresh()
    assert network.current().network.name == "second"


async def test_the_version_is_the_newest_that_the_plugin_supports(plugin: PluginSimulator, conf_dir: Path) -> None:
    plugin.behave(versions=["0.4.0", "1.0.0"])
    plugin.configure(conf_dir, cniVersion="1.1.0", cniVersions=["0.4.0", "1.0.0"])
    network = of(plugin, conf_dir)
    await network.refresh()
    assert network.current().version == "1.0.0"


async def test_a_plugin_of_other_versions_is_a_reason_that_goes_with_it(
    plugin: PluginSimulator, conf_dir: Path
) -> None:
    plugin.behave(versions=["0.4.0"])
    plugin.configure(conf_dir)
    network = of(plugin, conf_dir)
    await network.refresh()
    assert "asks for CNI 1.1.0, which its plugin fake does not support" in network.fault
    plugin.vanish()
    plugin.behave()
    plugin.install()
    await network.refresh()
    assert network.fault == ""


async def test_a_missing_plugin_is_a_reason_that_goes_when_it_comes(plugin: PluginSimulator, conf_dir: Path) -> None:
    plugin.configure(conf_dir)
    network = of(plugin, conf_dir)
    await network.refresh()
    plugin.vanish()
    await network.refresh()
    assert "CNI plugin fake is not in" in network.fault
    plugin.install()
    await network.refresh()
    assert network.fault == ""


async def test_a_status_that_is_refused_is_a_reason_until_it_is_not(plugin: PluginSimulator, conf_dir: Path) -> None:
    plugin.configure(conf_dir)
    plugin.behave(STATUS="code 50")
    network = of(plugin, conf_dir)
    await network.refresh()
    assert "STATUS with code 50: it is not available" in network.fault
    plugin.behave()
    await network.refresh()
    assert network.fault == ""


async def test_status_is_asked_once_in_a_period(plugin: PluginSimulator, conf_dir: Path) -> None:
    plugin.configure(conf_dir)
    network = of(plugin, conf_dir, status_period_s=1000)
    for _ in range(3):
        await network.refresh()
    assert plugin.commands() == ["STATUS"]


async def test_a_plugin_that_hangs_on_version_is_a_reason(plugin: PluginSimulator, conf_dir: Path) -> None:
    plugin.program.write_text("#!/bin/sh\nsleep 600\n")
    plugin.configure(conf_dir)
    network = Networks(str(conf_dir), Plugins([str(plugin.bin_dir)], 0.2, "a test"), 0.0)
    await network.refresh()
    assert "did not end within 0.2 s and was killed" in network.fault


async def test_a_fifo_and_a_file_nested_without_end_are_reasons(plugin: PluginSimulator, conf_dir: Path) -> None:
    plugin.configure(conf_dir, "10-a.conf")
    (conf_dir / "10-a.conf").unlink()
    os.mkfifo(conf_dir / "10-a.conf")
    network = of(plugin, conf_dir)
    async with asyncio.timeout(60):
        await network.refresh()
    assert "10-a.conf is not JSON" in network.fault
    (conf_dir / "10-a.conf").unlink()
    (conf_dir / "10-a.conf").write_text("[" * 100_000)
    await network.refresh()
    assert "10-a.conf is not JSON" in network.fault


async def test_a_file_too_large_to_be_one_is_not_read(plugin: PluginSimulator, conf_dir: Path) -> None:
    os.mkdir(conf_dir)
    os.mknod(conf_dir / "1.conf", 0o644)
    os.truncate(conf_dir / "1.conf", 1 << 30)
    network = of(plugin, conf_dir)
    await network.refresh()
    assert "has more than 1048576 bytes" in network.fault


async def test_a_plugin_in_the_networks_own_directory_is_chained_and_let_go_again(
    plugin: PluginSimulator, conf_dir: Path, tmp_path: Path
) -> None:
    other = PluginSimulator(tmp_path, "other")
    plugin.configure(conf_dir)
    network = of(plugin, conf_dir)
    await network.refresh()
    (conf_dir / "fakenet").mkdir()
    (conf_dir / "fakenet" / "other.conf").write_text('{"type": "other"}')
    await network.refresh()
    assert [each.type for each in network.current().network.plugins] == ["fake", "other"]
    assert other.commands() == ["STATUS"]
    (conf_dir / "fakenet" / "other.conf").unlink()
    await network.refresh()
    assert [each.type for each in network.current().network.plugins] == ["fake"]


async def test_of_two_files_that_name_one_network_the_first_counts(plugin: PluginSimulator, conf_dir: Path) -> None:
    plugin.configure(conf_dir, "20-b.conflist", plugin={"address": "10.2.0"})
    plugin.configure(conf_dir, "10-a.conflist", plugin={"address": "10.1.0"})
    network = of(plugin, conf_dir)
    await network.refresh()
    (only,) = network.current().network.plugins
    assert only.document["address"] == "10.1.0"


# --------------------------------------------------------------- following


@contextlib.asynccontextmanager
async def followed(network: Networks) -> AsyncIterator[None]:
    task = asyncio.create_task(network.follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def soon(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not fact():  # noqa: ASYNC110 what changes is no task's
            await asyncio.sleep(0.005)


async def test_changes_are_heard_without_a_poll(
    plugin: PluginSimulator, conf_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "_POLL_S", 1000.0)
    monkeypatch.setattr(networks, "_POLL_FAULTY_S", 1000.0)
    os.mkdir(conf_dir)
    network = of(plugin, conf_dir, status_period_s=1000)
    await network.refresh()
    async with followed(network):
        await asyncio.sleep(0)  # until it watches
        plugin.configure(conf_dir)
        await soon(lambda: network.fault == "")
        plugin.configure(conf_dir, name="other")
        await soon(lambda: network.current().network.name == "other")
        (conf_dir / "10-fake.conflist").unlink()
        await soon(lambda: "has no .conf" in network.fault)


async def test_a_directory_that_goes_and_comes_again_is_polled(
    plugin: PluginSimulator, conf_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "_POLL_FAULTY_S", 0.02)
    plugin.configure(conf_dir)
    network = of(plugin, conf_dir, status_period_s=1000)
    await network.refresh()
    async with followed(network):
        await asyncio.sleep(0)
        shutil.rmtree(conf_dir)
        await soon(lambda: "can't be read" in network.fault)
        plugin.configure(conf_dir)
        await soon(lambda: network.fault == "")
        plugin.configure(conf_dir, name="watched")
        await soon(lambda: network.current().network.name == "watched")


async def test_where_nothing_can_be_watched_changes_are_found_by_a_poll(
    plugin: PluginSimulator, conf_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise KernelError(errno.EMFILE, "Too many open files", "inotify_init1", "")

    monkeypatch.setattr(inotify, "open_watch", refuse)
    monkeypatch.setattr(networks, "_POLL_S", 0.02)
    plugin.configure(conf_dir)
    network = of(plugin, conf_dir, status_period_s=1000)
    async with followed(network):
        await soon(lambda: network.fault == "")
        plugin.configure(conf_dir, name="other")
        await soon(lambda: network.current().network.name == "other")
