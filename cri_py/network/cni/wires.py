"""Pods attached by CNI plugins: the namespace is made here, all in it but lo is the plugins' doing.

What a plugin has given is recorded before it can be given (``cache``), so whatever this daemon leaves when it dies, and
whatever a plugin refuses to take back, is tried again by the next round of :meth:`Cni.tidy`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog

from cri_py.config import NetworkConfig
from cri_py.errors import AlreadyExists, CriError, Internal, KernelError, NotFound
from cri_py.model import Attachment, Condition, Sandbox
from cri_py.network import netns, pod_cidrs
from cri_py.network.cni import cache, chain, results
from cri_py.network.cni.cache import Cache, Entry
from cri_py.network.cni.calls import INTERFACE, subject
from cri_py.network.cni.configs import Loaded, candidates
from cri_py.network.cni.gate import Gate
from cri_py.network.cni.networks import Networks
from cri_py.network.cni.plugins import Plugins
from cri_py.network.cni.template import facts, render
from cri_py.network.netlink import Netlink, set_up
from cri_py.network.pins import Pins
from cri_py.network.routes import interface_to
from cri_py.network.wires import Surroundings

log = structlog.get_logger()
_DEL_ATTEMPTS: Final = 3  # of one stop after the other; then the pod may go, and what is left is for tidy
_FIRST_TIDY_S: Final = 1.0
_OWN_CONFIGURATION: Final = "10-cri_py-net.conflist"


class Cni:
    """The pods' network of one daemon. ``owner`` tells it from others on the node. Belongs to one event loop."""

    def __init__(
        self, config: NetworkConfig, netns_dir: str, owner: str, cache_dir: str, tasks: asyncio.TaskGroup
    ) -> None:
        self._config = config
        self._pins = Pins(netns_dir, owner)
        self._plugins = Plugins(config.cni_bin_dirs, config.cni_timeout_s, owner)
        self._cache = Cache(cache_dir)
        self._networks = self._of(config.cni_conf_dir)
        self._by_handler = {
            name: self._of(handler.conf_dir) for name, handler in config.cni_handlers.items() if handler.conf_dir
        }
        self._tasks = tasks
        self._running: list[asyncio.Task[None]] = []
        self._attached: dict[str, str] = {}  # container id by the pin's path, also while it is being made
        # By container id; each has one interface. A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._gate = Gate()
        self._refused: Counter[str] = Counter()
        self._pod_cidrs: tuple[str, ...] = ()
        self._left = asyncio.Event()  # a plugin has refused to take something back
        self._stopping = False

    # ------------------------------------------------------------- the node

    @property
    def tables(self) -> frozenset[str]:
        return frozenset()

    async def restore_rules(self) -> None:
        """The rules of plugins are theirs."""

    async def start(self) -> None:
        """Read the configuration, and follow it from now on. A node without one starts, too: NetworkReady tells.

        Raises Internal if the directories can't be made.
        """
        try:
            await netns.on_own_thread(self._pins.make_directory, lambda _: None)
            await self._plugins.end_orphans()
            self._cache.load()
        except OSError as error:
            raise Internal(f"the CNI network can't be started: {error}") from error
        for networks in self._all():
            await networks.refresh()
            self._running.append(self._tasks.create_task(networks.follow()))

    async def stop(self) -> None:
        """Take no more pods."""
        self._stopping = True
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def condition(self) -> Condition:
        """CRI's NetworkReady."""
        fault = "the daemon is stopping" if self._stopping else self._networks.fault
        if fault:
            return Condition("NetworkReady", False, "NetworkPluginNotReady", fault)
        return Condition("NetworkReady", True)

    def damage(self) -> str:
        """What plugins made they see to themselves."""
        return ""

    def verbose(self) -> dict[str, str]:
        """Under containerd's names; the networks of single handlers by their status alone."""
        loaded = self._networks.loaded
        network = {"version": loaded.version, "network": loaded.network.document} if loaded else None
        handlers = {f"lastCNILoadStatus.{name}": each.fault or "OK" for name, each in self._by_handler.items()}
        return {"cniconfig": json.dumps(network), "lastCNILoadStatus": self._networks.fault or "OK", **handlers}

    async def update_pod_cidr(self, cidr: str) -> None:
        """What the kubelet says the node's pods should have: for plugins with the capability ipRanges, and for the
        template, if there is one. Raises InvalidArgument, ConfigError (the template), Internal (can't be written)."""
        networks = pod_cidrs.parse(cidr)
        self._pod_cidrs = tuple(map(str, networks))
        if self._config.cni_conf_template and networks:
            await asyncio.to_thread(self._write_configuration, networks)
            await self._networks.refresh()

    def _write_configuration(self, networks: Sequence[pod_cidrs.Network]) -> None:
        """Unless the node has another one already, which an add-on has brought."""
        directory = self._config.cni_conf_dir
        path = f"{directory}/{_OWN_CONFIGURATION}"
        try:
            os.makedirs(directory, exist_ok=True)
            if any(name != _OWN_CONFIGURATION for name in candidates(os.listdir(directory))):
                log.info("the CNI template is not used: the node has a configuration", directory=directory)
                return
            with open(self._config.cni_conf_template, encoding="utf-8") as template:
                text = render(template.read(), facts(networks))
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(f"{path}.new", path)
        except (OSError, UnicodeDecodeError) as error:
            raise Internal(f"{path} can't be made of {self._config.cni_conf_template}: {error}") from error

    # ------------------------------------------------------------- the pods

    async def attach(self, sandbox: Sandbox, on_netns: Callable[[], None], holder: int) -> Attachment:
        """A new network namespace, pinned, in which the plugins make eth0.

        ``on_netns`` is called as soon as it is pinned. ``holder``: a process that is in it already. On failure and on
        cancellation the plugins were told to undo it; what they refuse then is for :meth:`tidy`.
        Raises FailedPrecondition (network not ready), InvalidArgument (annotations), AlreadyExists, and what the
        plugins refuse (``answers``).
        """
        loaded = self._by_handler.get(sandbox.runtime_handler, self._networks).current()
        pin = self.pin_of(sandbox)
        about = subject(sandbox, pin, self._pod_cidrs)
        if pin in self._attached:
            raise AlreadyExists(f"{sandbox.id} has a network already", hint="detach it first")
        self._attached[pin] = sandbox.id
        try:
            async with self._lock(sandbox.id), self._gate.together():
                await self._make_netns(pin, holder)
                on_netns()
                return await self._add(cache.entry(about, loaded), loaded)
        except BaseException:
            del self._attached[pin]
            _unpin(pin)
            raise

    async def detach(self, attachment: Attachment) -> None:
        """Have the plugins take back what they gave, and let go of the namespace. Idempotent.

        Raises what a plugin refuses, for a few times: a plugin that is gone must not keep a pod for ever.
        """
        pin = attachment.netns_path
        found = self._entry_at(pin)
        if found is not None:
            try:
                async with self._lock(found.container_id), self._gate.together():
                    await self._delete(found)
            except CriError as error:
                self._refused[pin] += 1
                if self._refused[pin] < _DEL_ATTEMPTS:
                    raise
                log.warning(
                    "a pod goes though its network was not taken back", pod=found.container_id, cause=str(error)
                )
        self._refused.pop(pin, None)
        self._attached.pop(pin, None)
        _unpin(pin)

    def adopt(self, attachment: Attachment) -> bool:
        """Take over what an earlier daemon attached. Returns whether its namespace is still there."""
        found = self._entry_at(attachment.netns_path)
        self._attached[attachment.netns_path] = found.container_id if found else ""
        return netns.is_pinned(attachment.netns_path)

    async def sweep(self, known: Set[str]) -> list[str]:
        """Let the namespaces go that nobody has; what plugins gave to them is taken back a bit later, and plugins that
        hang keep no start waiting."""
        held = {found.netns for found in self._cache.entries().values()} | self._attached.keys()
        strange = self._pins.strange(held, known)
        for path in strange:
            _unpin(path)
        self._running.append(self._tasks.create_task(self._keep_tidy()))
        return [os.path.basename(path) for path in strange]

    def pin_of(self, sandbox: Sandbox) -> str:
        """Where the namespace of a pod is pinned."""
        return self._pins.path_of(sandbox)

    def surroundings(self, attachment: Attachment) -> Surroundings | None:
        """Where host ports lead; None if a plugin of the pod's chain leads them."""
        found = self._entry_at(attachment.netns_path)
        if found is None or found.chain().network.maps_ports:
            return None
        networks = tuple(address.network for address in found.addresses())
        return Surroundings(interface_to(attachment.ips[0]), networks)

    def result(self, attachment: Attachment) -> dict[str, Any] | None:
        """What the plugins answered."""
        found = self._entry_at(attachment.netns_path)
        return found.result if found else None

    # ----------------------------------------------------------------- tidy

    async def _keep_tidy(self) -> None:
        await asyncio.sleep(_FIRST_TIDY_S)
        await self.check()
        while True:
            try:
                await self.tidy()
            except CriError as error:
                log.warning("what CNI plugins left could not be tidied; it is tried again", cause=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.cni_gc_period_s):
                    await self._left.wait()
                    await asyncio.sleep(_FIRST_TIDY_S)  # once more soon; what is refused then waits for its hour
            self._left.clear()

    async def tidy(self) -> None:
        """Take back what no pod has: first what our own cache tells (DEL), then what the plugins remember (GC)."""
        for found in list(self._cache.entries().values()):
            if found.netns in self._attached:
                continue
            try:
                async with self._lock(found.container_id), self._gate.together():
                    await self._delete(found)
            except (CriError, OSError) as error:
                log.warning("a CNI network is not taken back yet", pod=found.container_id, cause=str(error))
            if found.netns not in self._attached:
                _unpin(found.netns)
        for networks in self._all():
            if networks.loaded:
                await self._collect(networks.loaded)

    async def _collect(self, loaded: Loaded) -> None:
        """GC, alone: a pod that is attached meanwhile would not be among the valid ones."""
        try:
            async with self._gate.alone():
                valid = [(found.container_id, found.interface) for found in self._cache.entries().values()]
                await chain.collect(self._plugins, loaded, valid)
        except (CriError, OSError) as error:
            log.warning("CNI plugins did not collect what is left over", cause=str(error))

    async def check(self) -> None:
        """Ask the plugins whether adopted pods still have their network, and say which have not."""
        for found in list(self._cache.entries().values()):
            if found.netns not in self._attached or found.result is None or not netns.is_pinned(found.netns):
                continue
            try:
                async with self._lock(found.container_id):
                    if found.container_id not in self._cache.entries():
                        continue  # it was detached meanwhile
                    about = found.subject(has_netns=True)
                    await chain.check(self._plugins, found.chain(), about, found.result)
            except (CriError, OSError) as error:
                log.warning("a pod's network is damaged", pod=found.container_id, cause=str(error))

    # ---------------------------------------------------------------- parts

    def _of(self, conf_dir: str) -> Networks:
        return Networks(conf_dir, self._plugins, self._config.cni_status_period_s)

    def _all(self) -> list[Networks]:
        return [self._networks, *self._by_handler.values()]

    async def _add(self, pending: Entry, loaded: Loaded) -> Attachment:
        self._cache.put(pending)
        try:
            about = pending.subject(has_netns=True)
            result = await chain.add(self._plugins, loaded, about)
            done = cache.with_result(pending, result)
            ips = self._addresses(done)
            self._cache.put(done)
        except BaseException:
            await self._undo(pending)
            raise
        return Attachment(pending.netns, ips, INTERFACE, _host_interface(results.read(result, loaded.version)))

    async def _undo(self, pending: Entry) -> None:
        """DEL after an ADD that failed, also when the caller has left meanwhile."""
        undoing = asyncio.ensure_future(self._delete(pending))
        try:
            while not undoing.done():
                with contextlib.suppress(asyncio.CancelledError):  # the error of the ADD is raised by our caller
                    await asyncio.wait({undoing})
            undoing.result()
        except CriError as error:
            self._left.set()
            log.warning("an attachment that failed is not undone yet", pod=pending.container_id, cause=str(error))

    async def _delete(self, found: Entry) -> None:
        if found.container_id not in self._cache.entries():
            return  # done while this call waited for its turn
        about = found.subject(has_netns=netns.is_pinned(found.netns))
        await chain.delete(self._plugins, found.chain(), about, found.result)
        self._cache.drop(found.container_id)

    def _addresses(self, done: Entry) -> tuple[str, ...]:
        """The pod's addresses, the preferred family's first. Raises Internal if one of them is another pod's."""
        found = done.addresses()
        for other in self._cache.entries().values():
            if other.container_id == done.container_id or other.netns not in self._attached:
                continue
            if taken := {address.ip for address in other.addresses()} & {address.ip for address in found}:
                raise Internal(
                    f"the CNI plugins gave {min(map(str, taken))} to two pods, {other.container_id} has it",
                    hint="its ipam has lost what it gave: see to the directory in which it keeps that",
                )
        preferred = {"ipv4": 4, "ipv6": 6}.get(self._config.cni_ip_preference, found[0].version)
        return tuple(str(address.ip) for address in sorted(found, key=lambda address: address.version != preferred))

    async def _make_netns(self, pin: str, holder: int) -> None:
        enter = partial(netns.enter_that_of, holder) if holder else netns.enter_new

        def make() -> None:
            enter(pin)
            try:
                with Netlink() as pod:
                    pod.request(set_up("lo"))
            except BaseException:
                netns.unpin(pin)
                raise

        try:
            await netns.on_own_thread(make, lambda _: _unpin(pin))
        except KernelError as error:
            raise Internal(f"the network namespace {pin} can't be made: {error}") from error

    def _entry_at(self, pin: str) -> Entry | None:
        container_id = self._attached.get(pin)
        if container_id is None:  # of a sandbox that was not adopted: its monitor had gone before
            entries = self._cache.entries().values()
            return next((found for found in entries if found.netns == pin), None)
        try:
            return self._cache.get(container_id)
        except NotFound:
            return None

    def _lock(self, container_id: str) -> asyncio.Lock:
        return self._locks.setdefault(container_id, asyncio.Lock())


def _host_interface(result: results.Result) -> str:
    """The pod's end on the node as far as plugins tell: the last that they name, after the bridge."""
    return next((found.name for found in reversed(result.interfaces) if not found.sandbox), "")


def _unpin(path: str) -> None:
    try:
        netns.unpin(path)
    except KernelError as error:
        raise Internal(f"the network namespace {path} can't be removed: {error}") from error
