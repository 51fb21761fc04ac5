"""What a container is made from on disk: its OCI document, its own layer, its compiled filter."""

from __future__ import annotations

import asyncio
import glob
import json
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from cri_py import telemetry
from cri_py.cdi.documents import named_in
from cri_py.cdi.edits import Edits
from cri_py.cdi.registry import Registry
from cri_py.config import RuntimeConfig
from cri_py.errors import CriError, FailedPrecondition, Internal, InvalidArgument, NotFound
from cri_py.kernel import resctrl, seccomp
from cri_py.model import Container, ContainerConfig, Image, Ready, Sandbox
from cri_py.pods import (
    apparmor,
    devices,
    spec,
    spec_block_io,
    spec_cdi,
    spec_devices,
    spec_seccomp,
    spec_security,
    spec_userns,
)
from cri_py.pods.places import Places
from cri_py.pods.seccomp_default import default_profile
from cri_py.pods.spec_devices import DeviceNode
from cri_py.pods.spec_mounts import ImageVolumes

log = structlog.get_logger()
_PROFILE_BYTES = 1 << 20
_PROFILE = ".json"  # beside the filter that was made from it


@dataclass(frozen=True, slots=True)
class Bundle:
    """The OCI document in two parts, and the second part compiled.

    The profile is nine tenths of a document and of no use to our own runtime, which loads ``filter``, {"path",
    "flags"}; so it lies in a file of its own, shared by all containers that have the same, and init need not parse it.
    """

    document: dict[str, Any]  # without linux.seccomp
    filter: dict[str, Any] | None
    groups: tuple[int, ...] = ()  # supplementary ones that its devices ask for


class Bundles:
    """Plans bundles (pure, but for the lookups) and keeps them on disk."""

    def __init__(self, places: Places, defaults: spec.SpecDefaults, config: RuntimeConfig) -> None:
        self._places = places
        self._defaults = defaults
        self._cdi = Registry(config.cdi_spec_dirs)
        self._owned_devices = config.device_ownership_from_security_context
        self._block_io_classes = config.block_io_classes
        self._filters: dict[str, dict[str, Any]] = {}
        self._last_key: tuple[Mapping[str, Any], str] = ({}, "")
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="seccomp")
        self._asked: set[str] = set()  # profiles that this daemon was asked for; the compiler's thread alone sees it

    @telemetry.stage("container document")
    async def plan(
        self,
        sandbox: Sandbox,
        container: Container,
        image: Image,
        target_pid: int | None,
        image_volumes: ImageVolumes,
    ) -> Bundle:
        """Everything that the container will be, before anything of it is made."""
        assert isinstance(sandbox.state, Ready)
        config = container.config
        spec_devices.check(config)
        edits = await self._cdi_edits(sandbox, config)
        document = spec.container_document(
            sandbox=sandbox,
            config=config,
            image=image.config,
            container_id=container.id,
            root_path=f"{self._places.bundle(sandbox.id, container.id)}/rootfs",
            holder_pid=sandbox.state.holder_pid,
            files=self._places.files(sandbox.id),
            defaults=self._defaults,
            cgroup=container.cgroup,
            target_pid=target_pid,
            device_nodes=self._device_nodes(config, edits, own_users=spec_userns.has_own(sandbox.config.namespaces)),
            localhost_seccomp=await self._localhost_seccomp(config),
            image_volumes=image_volumes,
        )
        spec_cdi.apply(document, edits)
        document["linux"]["resources"] |= self._block_io(sandbox, config)
        await self._check_label(document["process"].get("apparmorProfile", ""))
        profile = document["linux"].pop("seccomp", None)
        return Bundle(document, await self._filter(profile) if profile else None, edits.groups)

    async def _check_label(self, name: str) -> None:
        """A profile that isn't loaded would be noticed at the start only, and in the kernel's words."""
        if name and name != self._defaults.apparmor_profile:
            await asyncio.get_running_loop().run_in_executor(self._compiler, apparmor.check_loaded, name)

    async def _cdi_edits(self, sandbox: Sandbox, config: ContainerConfig) -> Edits:
        """What the CDI devices ask for that the config or its annotations name."""
        names = [*config.cdi_devices, *named_in(config.annotations)]
        if not names:
            return Edits()
        edits = await asyncio.get_running_loop().run_in_executor(self._compiler, self._cdi.edits, names)
        spec_cdi.check(edits, host_network=sandbox.attachment is None)
        return edits

    def _device_nodes(self, config: ContainerConfig, edits: Edits, *, own_users: bool) -> list[DeviceNode]:
        """What CDI asks for goes before what the kubelet does. A privileged container gets all else that is there, but
        not in a user namespace: there its root is not the node's, whose devices these are."""
        asked = [node for device in config.devices for node in devices.look_up(device)]
        nodes = spec_devices.merge([devices.look_up_cdi(node) for node in edits.nodes], asked)
        if self._owned_devices:
            nodes = spec_devices.owned(nodes, config.security)
        everything = config.security.privileged and not own_users
        return spec_devices.merge(nodes, devices.all_of_the_node() if everything else ())

    def _block_io(self, sandbox: Sandbox, config: ContainerConfig) -> dict[str, Any]:
        name = spec_block_io.class_of(config.metadata.name, sandbox.config.annotations)
        if not name:
            return {}
        wanted = spec_block_io.find(name, self._block_io_classes)
        return {"blockIO": spec_block_io.section(wanted, [devices.disk(path) for path in wanted.devices])}

    async def _localhost_seccomp(self, config: ContainerConfig) -> dict[str, Any] | None:
        """The profile of the node's file that the container names, read anew for each container."""
        path = spec_security.localhost_seccomp(config.security)
        if not path:
            return None
        text = await asyncio.get_running_loop().run_in_executor(self._compiler, _read_profile, path)
        return spec_seccomp.reduce_profile(
            text,
            path,
            granted=spec_security.process_capabilities(config.security, self._defaults.capabilities)["bounding"],
            arch=self._defaults.arch,
            kernel=self._defaults.kernel,
        )

    async def warm(self) -> None:
        """Compile the filter of a container without wishes: the first one after a start would wait for it. Then remove
        profiles of earlier daemons that no container has."""
        try:
            granted = frozenset(spec_security.DEFAULT_CAPABILITIES).intersection(self._defaults.capabilities)
            await self._filter(default_profile(granted, self._defaults.arch))
        except CriError as error:
            log.warning("the default seccomp profile can't be compiled", cause=str(error))  # who needs it is refused
        try:
            await asyncio.get_running_loop().run_in_executor(self._compiler, self._sweep)
        except OSError as error:
            log.warning("seccomp profiles that nobody has can't be removed", cause=str(error))

    def _sweep(self) -> None:
        """Only at the start: one that is compiled may be about to get its first container."""
        used = set()
        for link in glob.iglob(f"{glob.escape(self._places.pods)}/*/containers/*/seccomp.json"):
            with suppress(FileNotFoundError):  # removed meanwhile
                used.add(os.path.basename(os.readlink(link)).removesuffix(_PROFILE))
        for name in os.listdir(self._places.seccomp):
            if name.partition(".")[0] not in used | self._asked:
                os.unlink(f"{self._places.seccomp}/{name}")

    async def _filter(self, profile: Mapping[str, Any]) -> dict[str, Any]:
        """Compile a profile once (10 ms); it lies in the state directory under its hash, its filter beside it."""
        key = self._key_of(profile)
        if not self._is_there(key):
            loop = asyncio.get_running_loop()
            path = await loop.run_in_executor(self._compiler, self._compile, profile, key)
            self._filters[key] = {"path": path, "flags": seccomp.filter_flags(profile)}
        return self._filters[key]

    def _is_there(self, key: str) -> bool:
        return key in self._filters and os.path.exists(self._filters[key]["path"])

    def _key_of(self, profile: Mapping[str, Any]) -> str:
        """Its hash; of the profile that came last it is known."""
        last, key = self._last_key
        if profile is not last:
            key = seccomp.profile_key(profile)
            self._last_key = profile, key
        return key

    def _compile(self, profile: Mapping[str, Any], key: str) -> str:
        self._asked.add(key)
        path = f"{self._places.seccomp}/{key}"
        if not os.path.exists(f"{path}{_PROFILE}"):
            _replace(f"{path}{_PROFILE}", profile)
        if not os.path.exists(path):
            with open(f"{path}.new", "wb") as file:
                file.write(seccomp.compile_profile(profile))
            os.rename(f"{path}.new", path)
        return path

    def write(self, container: Container, bundle: Bundle) -> None:
        """The bundle's directory, and the empty layer that takes the container's writes."""
        directory = self._places.bundle(container.sandbox_id, container.id)
        writable = self._places.writable(container.id)
        try:
            os.makedirs(f"{directory}/rootfs")
            os.mkdir(writable, 0o700)
            os.mkdir(f"{writable}/upper", 0o755)
            os.mkdir(f"{writable}/work", 0o755)
            if container.log_path:
                _make_log_directory(container.log_path)
            _write(f"{directory}/config.json", bundle.document)
            if bundle.filter is not None:
                os.symlink(f"{bundle.filter['path']}{_PROFILE}", f"{directory}/seccomp.json")
        except OSError as error:
            raise Internal(f"the bundle of container {container.id} can't be written: {error}") from error

    def read(self, container: Container) -> dict[str, Any]:
        """The OCI document in whole; empty once the state directory was lost by a reboot."""
        directory = self._places.bundle(container.sandbox_id, container.id)
        document = self._document(container)
        profile = read_document(f"{directory}/seccomp.json")
        if profile:
            document["linux"]["seccomp"] = profile
        return document

    def _document(self, container: Container) -> dict[str, Any]:
        """What the container was made from, with the limits that it has now: the file is written once, new limits are
        the record's. Empty once the state directory was lost by a reboot."""
        document = read_document(f"{self._places.bundle(container.sandbox_id, container.id)}/config.json")
        resources = container.resources
        if document and resources is not None and resources != container.config.resources:
            made: dict[str, Any] = document["linux"]["resources"]
            kept = {name: made[name] for name in ("devices", "blockIO") if name in made}  # CRI has no word for these
            document["linux"]["resources"] = spec.linux_resources(resources) | kept
            document["process"]["oomScoreAdj"] = resources.oom_score_adj
        return document

    def executing(self, container: Container) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What another process in the container inherits: the document without its seccomp profile, and the filter."""
        directory = self._places.bundle(container.sandbox_id, container.id)
        document = self._document(container)
        if not document:
            raise FailedPrecondition(
                f"the OCI document of container {container.id} is gone: {directory}/config.json",
                hint="nothing can be executed in it as it should; start a new one",
            )
        try:
            profile = os.readlink(f"{directory}/seccomp.json")
        except FileNotFoundError:
            return document, None
        path = profile.removesuffix(_PROFILE)
        key = os.path.basename(path)
        if key not in self._filters:  # compiled by an earlier daemon
            found = read_document(profile)
            if not found:
                raise FailedPrecondition(
                    f"the seccomp profile of container {container.id} is gone: {profile}",
                    hint="nothing can be executed in it as it should; start a new one",
                )
            self._filters[key] = {"path": path, "flags": seccomp.filter_flags(found)}
        return document, self._filters[key]

    async def leave_class(self, container: Container) -> None:
        """Remove the class of Intel's resource control that was made for the container, if one was."""
        if not asks_for_devices(container):
            return  # only they ask for one, and to read a document takes time
        rdt = self.read(container).get("linux", {}).get("intelRdt")
        if rdt is not None:
            await asyncio.get_running_loop().run_in_executor(self._compiler, resctrl.leave, rdt, container.id)

    def mounting(self, container: Container) -> str:
        """The host path that init is at, while it mounts volumes; "" before and after."""
        try:
            with open(f"{self._places.bundle(container.sandbox_id, container.id)}/mounting", "rb") as file:
                return os.fsdecode(file.readline().rstrip(b"\n"))
        except FileNotFoundError:
            return ""

    def kept_exit(self, container: Container) -> dict[str, Any] | None:
        """The exit that the monitor wrote down before it died itself."""
        return read_document(f"{self._places.pod(container.sandbox_id)}/exits/{container.id}") or None

    def close(self) -> None:
        self._compiler.shutdown()


def asks_for_devices(container: Container) -> bool:
    """Of CDI, which alone bring hooks and classes of resource control."""
    return bool(container.config.cdi_devices or named_in(container.config.annotations))


def _read_profile(path: str) -> bytes:
    """The seccomp profile at ``path``, whatever lies there: no fifo blocks, nothing endless is read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidArgument(f"the seccomp profile {path} is no file", hint="name a file with JSON")
            text = os.read(fd, _PROFILE_BYTES + 1)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise NotFound(f"the seccomp profile {path} is not on this node") from error
    except OSError as error:
        raise FailedPrecondition(f"the seccomp profile {path} can't be read: {error.strerror}") from error
    if len(text) > _PROFILE_BYTES:
        raise InvalidArgument(f"the seccomp profile {path} has more than {_PROFILE_BYTES} bytes")
    return text


def _make_log_directory(log_path: str) -> None:
    """A kubelet has made it; for other callers the monitor would, but with more memory for the rest of its life."""
    try:
        os.makedirs(os.path.dirname(log_path), 0o755, exist_ok=True)
    except OSError:
        return  # the monitor tries again with each line, counts those that are lost, and the container runs


def _write(path: str, document: Mapping[str, Any]) -> None:
    with open(path, "w") as file:
        file.write(json.dumps(document))


def _replace(path: str, document: Mapping[str, Any]) -> None:
    """Whoever reads it meanwhile has the old one or the new one."""
    _write(f"{path}.new", document)
    os.rename(f"{path}.new", path)


def read_document(path: str) -> dict[str, Any]:
    """A document, empty if there is none or if a full disk or a death cut it short."""
    try:
        with open(path) as file:
            document: dict[str, Any] = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("a document is damaged and counts as missing", path=path, cause=str(error))
        return {}
    return document
