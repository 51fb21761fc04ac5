"""Every field that a kubelet can set for a pod or container is read by code that acts on it, or refused by name.

A message with that one field set is converted; what differs from the message without it must be an attribute that some
module below rpc reads. What has no effect by intent is listed here, with the reason.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from cri_py.errors import InvalidArgument
from cri_py.rpc import convert
from cri_py.rpc.gen import api_pb2 as pb
from tests.house.source import Module, modules, within

WITHOUT_EFFECT: Final = {
    "PodSandboxConfig.linux.security_context.readonly_rootfs": "the holder has no root to write to",
    "PodSandboxConfig.linux.security_context.supplemental_groups_policy": "about an image's users; the holder has none",
    "PodSandboxConfig.linux.security_context.namespace_options.target_id": "pid TARGET is refused for sandboxes",
    "PodSandboxConfig.port_mappings.container_port": "without host_port, which is refused, nothing is to be mapped",
    "PodSandboxConfig.port_mappings.host_ip": "as container_port",
    "ContainerConfig.image.annotations": "nobody has given them a meaning for containers",
    "ContainerConfig.image.runtime_handler": "images are the same for every handler here",
    "ContainerConfig.mounts.image.annotations": "as for a container's image",
    "ContainerConfig.mounts.image.user_specified_image": "as for a container's image",
    "ContainerConfig.mounts.image.runtime_handler": "as for a container's image",
}
# Fields whose value must be of a kind that no general rule makes.
SAMPLES: Final[dict[str, Any]] = {
    "seccomp_profile_path": "localhost//profile.json",
    "apparmor_profile": "localhost/strict",
    "host_port": 80,
    "container_port": 80,
}
# What an element needs to be one at all.
SEEDS: Final[dict[str, Message]] = {
    "Mount": pb.Mount(container_path="/c", host_path="/h"),
    "KeyValue": pb.KeyValue(key="K"),
    "Device": pb.Device(container_path="/dev/x", host_path="/dev/x", permissions="r"),
}
ROOTS: Final = {
    "PodSandboxConfig": pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="n", namespace="s")),
    "ContainerConfig": pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="n"), image=pb.ImageSpec(image="i"), mounts=[SEEDS["Mount"]]
    ),
}


def fields(descriptor: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry or inner.name == "Int64Value" or field.name == "windows":
            yield (*path, field)
        else:
            yield from fields(inner, (*path, field))


PATHS: Final = {
    ".".join((root, *(field.name for field in path))): (root, path)
    for root, message in ROOTS.items()
    for path in fields(message.DESCRIPTOR)
}


def with_path(root: str, path: tuple[FieldDescriptor, ...], *, probe: bool) -> Message:
    """The root's message with everything on the way to the field there, and the field itself set or not."""
    message = type(ROOTS[root])()
    message.CopyFrom(ROOTS[root])
    at: Any = message
    for field in path[:-1]:
        if not field.is_repeated:
            at = getattr(at, field.name)
            at.SetInParent()
            continue
        elements = getattr(at, field.name)
        if not elements:
            elements.add()
            if field.message_type.name in SEEDS:
                elements[0].CopyFrom(SEEDS[field.message_type.name])
        at = elements[0]
    if probe:
        set_field(at, path[-1])
    return message


def set_field(message: Any, field: FieldDescriptor) -> None:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        getattr(message, field.name)["key"] = "value"
    elif inner is not None and inner.name == "Int64Value":
        getattr(message, field.name).value = 7
    elif inner is not None:
        getattr(message, field.name).SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).append(7 if field.cpp_type <= FieldDescriptor.CPPTYPE_UINT64 else "probe")
    else:
        setattr(message, field.name, SAMPLES.get(field.name, sample(field)))


def sample(field: FieldDescriptor) -> Any:
    return {
        FieldDescriptor.CPPTYPE_STRING: b"/probe" if field.type == FieldDescriptor.TYPE_BYTES else "/probe",
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_ENUM: 1,
    }.get(field.cpp_type, 7)


def converted(root: str, message: Message) -> Any:
    convert_root = convert.sandbox_config if root == "PodSandboxConfig" else convert.container_config
    return convert_root(message)


def changed(before: Any, after: Any) -> Iterator[tuple[str, str]]:
    """Class and attribute of what differs, as deep as it can be said."""
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new or not field.compare:
            continue
        pairs = [(old, new)]
        if isinstance(old, tuple) and len(old) == len(new):
            pairs = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
        for one, other in pairs:
            if dataclasses.is_dataclass(one) and dataclasses.is_dataclass(other):
                yield from changed(one, other)
            else:
                yield type(before).__name__, field.name


@functools.cache
def acting() -> list[Module]:
    return [module for module in modules() if not within(module.name, "cri_py.model", "cri_py.rpc.convert")]


@functools.cache
def read_attributes() -> set[str]:
    return {
        node.attr
        for module in acting()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@functools.cache
def read_of_sandboxes() -> set[str]:
    """Attributes of a SandboxConfig: so many are called as a container's that the name alone tells nothing."""
    found: set[str] = set()
    for module in acting():
        found.update(re.findall(r"(?:sandbox|pod)\.config\.(\w+)", module.text))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                named = {
                    argument.arg
                    for argument in (*node.args.args, *node.args.kwonlyargs)
                    if argument.annotation is not None and ast.unparse(argument.annotation) == "SandboxConfig"
                }
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) in named:
                        found.add(inner.attr)
    return found


@pytest.mark.parametrize("name", PATHS)
def test_a_field_is_acted_on_or_refused(name: str) -> None:
    root, path = PATHS[name]
    before = converted(root, with_path(root, path, probe=False))
    probe = with_path(root, path, probe=True)
    if name in WITHOUT_EFFECT:
        return
    try:
        after = converted(root, probe)
    except InvalidArgument as error:
        said = error.message
        assert path[-1].name in said
        return
    differing = set(changed(before, after))
    assert differing, "no converter reads it"
    of_sandboxes, attributes = read_of_sandboxes(), read_attributes()
    unread = [
        f"{kind}.{attribute}"
        for kind, attribute in differing
        if attribute not in (of_sandboxes if kind == "SandboxConfig" else attributes)
    ]
    assert unread == [], "converted, and nobody acts on it"


def test_what_is_said_to_have_no_effect_exists() -> None:
    assert set(WITHOUT_EFFECT) <= set(PATHS)
