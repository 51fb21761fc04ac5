"""Who a container is and what it may: user, capabilities, seccomp, AppArmor, SELinux, from CRI to OCI words. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.kernel import capabilities
from cri_py.model import (
    Capabilities,
    ContainerConfig,
    ContainerSecurity,
    ImageConfig,
    ProfileKind,
    SandboxConfig,
    SecurityProfile,
)
from cri_py.pods import spec_seccomp
from cri_py.pods.seccomp_default import default_profile

_LAST_ID: Final = 0xFFFFFFFE
_GROUPS_MAX: Final = 65536  # linux/limits.h: NGROUPS_MAX
# What containers have had since Docker's first days; images rely on it.
DEFAULT_CAPABILITIES: Final = tuple(
    capabilities.canonical(name)
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP"),
        *("NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    )
)


def user_request(config: ContainerConfig, image: ImageConfig) -> dict[str, Any]:
    """What ``cri_py.runtime.users.resolve`` looks up in the container's root.

    ``{"text": str, "gid": int | None, "groups": [int], "policy": "merge" | "strict"}``; text is USER or USER:GROUP as
    an image has it, "" for root. Raises InvalidArgument for a contradiction.
    """
    security = config.security
    if security.run_as_user is not None and security.run_as_username:
        raise InvalidArgument("run_as_user and run_as_username are both set", hint="set one of them")
    named = security.run_as_username or ("" if security.run_as_user is None else str(security.run_as_user))
    _check_ids(named, security.run_as_user, security.run_as_group, security.supplemental_groups)
    return {
        "text": named or image.user,
        "gid": security.run_as_group,
        "groups": list(security.supplemental_groups),
        "policy": security.groups_policy.name.lower(),
    }


def _check_ids(named: str, user: int | None, group: int | None, groups: Sequence[int]) -> None:
    if group is not None and not named:
        raise InvalidArgument(
            f"run_as_group {group} is set without a user", hint="set run_as_user or run_as_username too"
        )
    asked = {"run_as_user": user, "run_as_group": group}.items()
    for field, number in (*asked, *(("supplemental_groups", each) for each in groups)):
        if number is not None and not 0 <= number <= _LAST_ID:
            raise InvalidArgument(f"{field} {number} is no id", hint=f"ids go from 0 to {_LAST_ID}")
    if len(groups) > _GROUPS_MAX:
        raise InvalidArgument(f"supplemental_groups has {len(groups)} groups", hint=f"at most {_GROUPS_MAX}")


def check_sandbox(config: SandboxConfig) -> None:
    """Raises InvalidArgument for what contradicts itself in a sandbox's security context.

    User, groups and filter there are about a pause container. Ours has none: the holder executes nothing of any image,
    and where containers see it, it has no rights and a filter for its one call.
    """
    user = config.run_as_user
    _check_ids("" if user is None else str(user), user, config.run_as_group, config.supplemental_groups)
    _profile_path(config.seccomp)


def process_user(request: Mapping[str, Any]) -> dict[str, Any]:
    """``process.user`` as far as numbers tell; the runtime replaces it by what it finds in the container's root."""
    user, _, group = request["text"].partition(":")
    gid = request["gid"] if request["gid"] is not None else int(group) if group.isdigit() else 0
    return {"uid": int(user) if user.isdigit() else 0, "gid": gid, "additionalGids": list(request["groups"])}


def process_capabilities(
    security: ContainerSecurity, held: Collection[str] = capabilities.NAMES
) -> dict[str, list[str]]:
    """``process.capabilities``. Privileged, and ALL, mean ``held``, all that the daemon has itself.

    ``inheritable`` is empty: a set of it lets files of the image give capabilities to other users (CVE-2022-24769),
    except for the ambient ones, which the kernel takes from there. A capability that is named and that the daemon
    can't give is FailedPrecondition, one that doesn't exist InvalidArgument.
    """
    asked = security.capabilities
    granted = (set(capabilities.NAMES) if security.privileged else _granted(asked)).intersection(held)
    ambient = _names(asked.add_ambient, "add_ambient_capabilities")
    if _has_all(asked.add_ambient):
        ambient.update(granted)
    for name in sorted((_names(asked.add, "add_capabilities") | ambient).difference(held)):
        raise FailedPrecondition(
            f"the container asks for {name}, which the daemon itself lacks",
            hint="start cri-py with it, or leave it out of the container's capabilities",
        )
    bounding = [name for name in capabilities.NAMES if name in granted | ambient]
    raised = [name for name in bounding if name in ambient]
    return {
        "bounding": bounding,
        "effective": list(bounding),
        "permitted": list(bounding),
        "inheritable": raised,
        "ambient": list(raised),
    }


def _granted(asked: Capabilities) -> set[str]:
    """The default set, changed by adding ALL, dropping ALL, adding single ones, dropping single ones, in this order."""
    granted = set(capabilities.NAMES) if _has_all(asked.add) else set(DEFAULT_CAPABILITIES)
    if _has_all(asked.drop):
        granted = set()
    return (granted | _names(asked.add, "add_capabilities")) - _names(asked.drop, "drop_capabilities")


def _has_all(names: Iterable[str]) -> bool:
    return any(name.upper() == "ALL" for name in names)


def _names(names: Iterable[str], field: str) -> set[str]:
    """The single capabilities among ``names``."""
    try:
        return {capabilities.canonical(name) for name in names if name.upper() != "ALL"}
    except InvalidArgument as error:
        raise InvalidArgument(f"{field}: {error.message}", hint=error.hint) from None


def seccomp_profile(
    security: ContainerSecurity,
    granted: Iterable[str],
    *,
    enabled: bool,
    arch: str,
    localhost: Mapping[str, Any] | None,
) -> Mapping[str, Any] | None:
    """``linux.seccomp``, None for no filter.

    ``enabled``: whether containers that name no profile get the default one; CRI has them unconfined. ``localhost``:
    the profile that ``localhost_ref`` names, as ``localhost_seccomp`` tells. Privileged containers have no filter.
    """
    profile = security.seccomp
    if security.privileged:
        return None
    if profile is None:
        return default_profile(frozenset(granted), arch) if enabled else None
    match profile.kind:
        case ProfileKind.UNCONFINED:
            return None
        case ProfileKind.RUNTIME_DEFAULT:
            return default_profile(frozenset(granted), arch)
        case ProfileKind.LOCALHOST:
            assert localhost is not None, "who knows of the file reads it"
            return localhost


def localhost_seccomp(security: ContainerSecurity) -> str:
    """The path of the file with the container's seccomp profile, "" where none is to be read.

    Raises InvalidArgument if it is no path.
    """
    return "" if security.privileged else _profile_path(security.seccomp)


def _profile_path(profile: SecurityProfile | None) -> str:
    if profile is None or profile.kind is not ProfileKind.LOCALHOST:
        return ""
    if not profile.localhost_ref:
        raise InvalidArgument("the seccomp profile is LOCALHOST without localhost_ref", hint="name the file")
    spec_seccomp.check_path(profile.localhost_ref)
    return profile.localhost_ref


def apparmor_profile(profile: SecurityProfile | None, *, privileged: bool, enabled: bool, default: str) -> str:
    """``process.apparmorProfile``: the name of a profile, "" for none.

    ``enabled``: whether the kernel has AppArmor; ``default``: the name of the node's own profile, "" if it has none.
    Containers that ask for nothing get that one, but for privileged ones. Raises FailedPrecondition for a profile that
    would not be enforced, InvalidArgument for one without a name.
    """
    if profile is None or profile.kind is ProfileKind.RUNTIME_DEFAULT:
        return "" if privileged else default
    if profile.kind is ProfileKind.UNCONFINED:
        return ""
    name = profile.localhost_ref.removeprefix("localhost/")  # as the deprecated field has it
    if not name or "\n" in name or "\0" in name:
        raise InvalidArgument(f"the AppArmor profile is LOCALHOST with the name {name!r}", hint="name the profile")
    if not enabled:
        raise FailedPrecondition(
            f"the AppArmor profile {name!r} is asked for, but this kernel has no AppArmor",
            hint="boot with security=apparmor, or leave the profile out",
        )
    return name
