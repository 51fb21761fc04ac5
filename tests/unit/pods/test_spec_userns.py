from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cri_py import model
from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.pods import spec, spec_userns
from tests.unit.pods.builders import container, defaults, document, sandbox

POD, CONTAINER, NODE, TARGET = (
    model.NamespaceMode.POD,
    model.NamespaceMode.CONTAINER,
    model.NamespaceMode.NODE,
    model.NamespaceMode.TARGET,
)


def mapping(host: int = 200000, inside: int = 0, length: int = 65536) -> model.IdMapping:
    return model.IdMapping(host, inside, length)


UIDS, GIDS = (mapping(),), (mapping(300000),)


def own(uids: Any = UIDS, gids: Any = GIDS, mode: Any = POD) -> model.UserNamespace:
    return model.UserNamespace(mode, tuple(uids), tuple(gids))


def check(userns: model.UserNamespace | None, features: model.Features | None = None, **modes: Any) -> None:
    pod = sandbox(namespaces=model.NamespaceOption(userns=userns, **modes))
    spec.check_sandbox_security(pod.config, defaults(features=features or model.Features()))


@pytest.mark.parametrize(
    ("userns", "part"),
    [
        (own(mode=CONTAINER), "CONTAINER"),
        (own(mode=TARGET), "TARGET"),
        (own(mode=NODE), "NODE with mappings"),
        (own(uids=()), "uids has 0"),
        (own(gids=()), "gids has 0"),
        (own(uids=(mapping(), mapping(400000, 65536))), "uids has 2"),
        (own(uids=(mapping(inside=1),)), "no root"),
        (own(gids=(mapping(host=0),)), "node's root"),
        (own(uids=(mapping(length=0),)), "uids maps 0 ids"),
        (own(uids=(mapping(host=2**32 - 1, length=2),)), "uids maps 2 ids"),
    ],
)
def test_a_user_namespace_that_makes_no_sense_is_refused_by_name(userns: model.UserNamespace, part: str) -> None:
    with pytest.raises(InvalidArgument, match=f"userns_options.*{part}"):
        check(userns)


@pytest.mark.parametrize("userns", [None, own((), (), NODE)])
def test_the_nodes_user_namespace_is_nothing_special(userns: model.UserNamespace | None) -> None:
    check(userns, model.Features(no_user_namespaces="none here"), pid=NODE, ipc=NODE)
    pod = sandbox(namespaces=model.NamespaceOption(userns=userns))
    linux = document(pod, container({"namespaces": model.NamespaceOption(userns=userns)}))["linux"]
    assert "uidMappings" not in linux
    assert spec_userns.root_of(pod.config.namespaces) == (0, 0)


def test_the_kernels_reason_is_told() -> None:
    with pytest.raises(FailedPrecondition, match="no space left"):
        check(own(), model.Features(no_user_namespaces="unshare(): no space left"))


@pytest.mark.parametrize("field", ["pid", "ipc"])
def test_the_nodes_pids_and_ipc_do_not_go_with_a_user_namespace_its_network_does(field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"namespace_options.{field} is NODE"):
        check(own(), **{field: NODE})
    check(own(), network=NODE)


def test_a_container_is_in_its_sandboxs_user_namespace() -> None:
    pod = sandbox(namespaces=model.NamespaceOption(userns=own()))
    for asked in (None, own()):
        linux = document(pod, container({"namespaces": model.NamespaceOption(userns=asked)}))["linux"]
        assert {"type": "user", "path": "/proc/101/ns/user"} in linux["namespaces"]
        assert linux["uidMappings"] == [{"containerID": 0, "hostID": 200000, "size": 65536}]
        assert linux["gidMappings"] == [{"containerID": 0, "hostID": 300000, "size": 65536}]
    assert spec_userns.root_of(pod.config.namespaces) == (200000, 300000)


@pytest.mark.parametrize("asked", [own((), (), NODE), own((mapping(host=1),)), own(mode=TARGET)])
def test_a_container_that_asks_for_another_is_refused(asked: model.UserNamespace) -> None:
    pod = sandbox(namespaces=model.NamespaceOption(userns=own()))
    with pytest.raises(InvalidArgument, match="userns_options"):
        document(pod, container({"namespaces": model.NamespaceOption(userns=asked)}))


def test_a_container_can_not_get_one_that_its_sandbox_has_not() -> None:
    with pytest.raises(InvalidArgument, match="userns_options"):
        document(sandbox(), container({"namespaces": model.NamespaceOption(userns=own())}))


def test_the_namespaces_of_a_sandbox_with_the_nodes_network() -> None:
    option = replace(model.NamespaceOption(userns=own()), network=NODE)
    assert spec.sandbox_namespaces(sandbox(namespaces=option).config) == ("ipc", "pid", "user")
