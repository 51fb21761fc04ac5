from __future__ import annotations

from typing import Any

import pytest

from cri_py import model
from cri_py.errors import FailedPrecondition, InvalidArgument, Unimplemented
from cri_py.kernel.capabilities import NAMES
from cri_py.pods.seccomp_default import default_profile
from cri_py.pods.spec import user_request
from cri_py.pods.spec_security import DEFAULT_CAPABILITIES, localhost_seccomp
from tests.unit.pods.builders import container, defaults, document, sandbox

Kind = model.ProfileKind


def bounding(**asked: tuple[str, ...]) -> set[str]:
    built = document(config=container({"capabilities": model.Capabilities(**asked)}))["process"]["capabilities"]
    assert built["bounding"] == built["permitted"] == built["effective"]
    return set(built["bounding"])


# --------------------------------------------------------- capabilities


def test_the_default_set_has_fourteen_and_no_way_to_rule_the_node() -> None:
    assert len(set(DEFAULT_CAPABILITIES)) == 14
    assert bounding() == set(DEFAULT_CAPABILITIES)
    assert "CAP_SYS_ADMIN" not in bounding()


def test_capabilities_are_added_and_dropped_with_and_without_prefix() -> None:
    assert bounding(add=("NET_ADMIN", "CAP_SYS_TIME")) - set(DEFAULT_CAPABILITIES) == {"CAP_NET_ADMIN", "CAP_SYS_TIME"}
    assert set(DEFAULT_CAPABILITIES) - bounding(drop=("net_raw", "CAP_MKNOD")) == {"CAP_NET_RAW", "CAP_MKNOD"}


def test_all_is_every_one_and_singles_refine_it() -> None:
    assert bounding(add=("ALL",)) == set(NAMES)
    assert bounding(drop=("ALL",)) == set()
    assert bounding(drop=("ALL",), add=("KILL",)) == {"CAP_KILL"}
    assert set(NAMES) - bounding(add=("all",), drop=("SYS_ADMIN",)) == {"CAP_SYS_ADMIN"}
    assert bounding(add=("ALL",), drop=("ALL",)) == set()


@pytest.mark.parametrize("field", ["add", "drop", "add_ambient"])
def test_an_unknown_capability_is_named_with_its_field(field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{field}.*'FLY'"):
        bounding(**{field: ("FLY",)})


def test_ambient_capabilities_are_in_every_set_that_the_kernel_wants_them_in() -> None:
    asked = model.Capabilities(drop=("ALL",), add_ambient=("NET_BIND_SERVICE",))
    built = document(config=container({"capabilities": asked}))["process"]["capabilities"]
    assert set(map(tuple, built.values())) == {("CAP_NET_BIND_SERVICE",)}


def test_nothing_is_inheritable_or_ambient_by_default() -> None:
    built = document()["process"]["capabilities"]
    assert built["inheritable"] == built["ambient"] == []


def test_privileged_is_all() -> None:
    config = container({"privileged": True, "capabilities": model.Capabilities(drop=("ALL",))})
    assert document(sandbox(privileged=True), config)["process"]["capabilities"]["bounding"] == list(NAMES)


def test_what_the_daemon_lacks_it_neither_gives_nor_leaves_out_in_silence() -> None:
    held = tuple(name for name in NAMES if name not in {"CAP_SYS_RESOURCE", "CAP_MKNOD"})
    weak = defaults(capabilities=held)
    everything = container({"privileged": True})
    for config, pod in ((everything, sandbox(privileged=True)), (everything_added(), sandbox())):
        built = document(pod, config, defaults=weak)["process"]["capabilities"]
        assert built["bounding"] == list(held)
    assert "CAP_MKNOD" not in document(defaults=weak)["process"]["capabilities"]["bounding"]
    for field in ("add", "add_ambient"):
        asked = container({"capabilities": model.Capabilities(**{field: ("SYS_RESOURCE",)})})
        with pytest.raises(FailedPrecondition, match="CAP_SYS_RESOURCE, which the daemon itself lacks"):
            document(config=asked, defaults=weak)


def everything_added() -> model.ContainerConfig:
    return container({"capabilities": model.Capabilities(add=("ALL",))})


def test_all_ambient_is_what_else_is_granted() -> None:
    asked = container({"capabilities": model.Capabilities(drop=("ALL",), add=("KILL",), add_ambient=("ALL",))})
    assert document(config=asked)["process"]["capabilities"]["ambient"] == ["CAP_KILL"]


# -------------------------------------------------------------- seccomp


def filtered(profile: model.SecurityProfile | None, *, enabled: bool = True, **more: Any) -> Any:
    built = document(config=container({"seccomp": profile}), defaults=defaults(seccomp=enabled), **more)
    return built["linux"].get("seccomp")


def test_the_default_profile_is_that_of_the_containers_capabilities() -> None:
    expected = default_profile(frozenset(DEFAULT_CAPABILITIES), "x86_64")
    assert filtered(model.SecurityProfile(Kind.RUNTIME_DEFAULT), enabled=False) == expected
    asked = container({"capabilities": model.Capabilities(add=("SYS_ADMIN",))})
    assert document(config=asked, defaults=defaults(seccomp=True))["linux"]["seccomp"] == default_profile(
        frozenset({*DEFAULT_CAPABILITIES, "CAP_SYS_ADMIN"}), "x86_64"
    )


def test_a_container_that_names_no_profile_gets_what_the_node_decides() -> None:
    assert filtered(None) is not None
    assert filtered(None, enabled=False) is None


def test_unconfined_and_privileged_are_not_filtered() -> None:
    assert filtered(model.SecurityProfile(Kind.UNCONFINED)) is None
    config = container({"privileged": True, "seccomp": model.SecurityProfile(Kind.LOCALHOST, "p.json")})
    assert "seccomp" not in document(sandbox(privileged=True), config)["linux"]


def test_a_localhost_profile_is_the_one_passed_in() -> None:
    mine = {"defaultAction": "SCMP_ACT_ALLOW"}
    assert filtered(model.SecurityProfile(Kind.LOCALHOST, "/p.json"), localhost_seccomp=mine) == mine


def test_the_file_of_a_profile_is_read_only_where_it_counts() -> None:
    named = model.SecurityProfile(Kind.LOCALHOST, "/p.json")
    assert localhost_seccomp(model.ContainerSecurity(seccomp=named)) == "/p.json"
    assert localhost_seccomp(model.ContainerSecurity(seccomp=named, privileged=True)) == ""
    assert localhost_seccomp(model.ContainerSecurity(seccomp=model.SecurityProfile(Kind.UNCONFINED, "/p"))) == ""
    assert localhost_seccomp(model.ContainerSecurity()) == ""
    with pytest.raises(InvalidArgument, match="without localhost_ref"):
        localhost_seccomp(model.ContainerSecurity(seccomp=model.SecurityProfile(Kind.LOCALHOST)))
    with pytest.raises(InvalidArgument, match=r"localhost/p\.json is no absolute path"):
        localhost_seccomp(model.ContainerSecurity(seccomp=model.SecurityProfile(Kind.LOCALHOST, "p.json")))


def test_a_machine_without_a_profile_is_refused_rather_than_guessed() -> None:
    with pytest.raises(Unimplemented, match="s390x"):
        document(defaults=defaults(arch="s390x", seccomp=True))


# ----------------------------------------------------------------- user


def asked(image_user: str = "", **security: Any) -> dict[str, Any]:
    return user_request(container(security), model.ImageConfig(user=image_user))


def test_the_images_user_is_passed_on_as_it_is() -> None:
    assert asked("web:logs") == {"text": "web:logs", "gid": None, "groups": [], "policy": "merge"}
    assert asked()["text"] == ""


def test_the_kubelets_user_goes_before_the_images() -> None:
    assert asked("web:logs", run_as_user=0)["text"] == "0"
    assert asked("web:logs", run_as_username="other")["text"] == "other"


def test_group_supplementary_groups_and_policy_are_passed_on() -> None:
    strict = model.GroupsPolicy.STRICT
    request = asked(run_as_user=1, run_as_group=0, supplemental_groups=(5, 6), groups_policy=strict)
    assert request == {"text": "1", "gid": 0, "groups": [5, 6], "policy": "strict"}


def test_a_group_without_a_user_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="run_as_group 5 is set without a user"):
        asked("web", run_as_group=5)


def test_two_users_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="both set"):
        asked(run_as_user=1, run_as_username="web")


def test_more_groups_than_the_kernel_takes_are_refused() -> None:
    asked(supplemental_groups=tuple(range(65536)))
    with pytest.raises(InvalidArgument, match="supplemental_groups has 65537 groups"):
        asked(supplemental_groups=tuple(range(65537)))


@pytest.mark.parametrize(
    "security",
    [{"run_as_user": -1}, {"run_as_user": 1, "run_as_group": 1 << 32}, {"supplemental_groups": (0xFFFFFFFF,)}],
)
def test_numbers_that_are_no_ids_are_refused(security: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="is no id"):
        asked(**security)


def test_the_document_has_the_user_as_far_as_numbers_tell() -> None:
    config = container({"run_as_user": 7, "run_as_group": 8, "supplemental_groups": (9,)})
    assert document(config=config)["process"]["user"] == {"uid": 7, "gid": 8, "additionalGids": [9]}
