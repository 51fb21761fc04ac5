"""What is remembered, for how long, and who may see a pull secret."""

from __future__ import annotations

import pytest

from cri_py.images.auth import Credentials
from cri_py.images.endpoints import Endpoint
from cri_py.images.tokens import Expiring, pull_secret
from cri_py.model import RegistryAuth


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_what_has_expired_is_forgotten() -> None:
    clock = Clock()
    kept: Expiring[str] = Expiring(clock)
    kept.put("a", "one", 10.0)
    clock.now_s = 9.9
    assert kept.get("a") == ("one", 10.0)
    clock.now_s = 10.0
    assert kept.get("a") == ("", 0.0)


def test_the_least_used_goes_when_there_are_too_many() -> None:
    kept: Expiring[str] = Expiring(Clock(), limit=2)
    for key in ("a", "b"):
        kept.put(key, key, 1.0)
    kept.get("a")
    kept.put("c", "c", 1.0)
    assert [kept.get(key)[0] for key in ("a", "b", "c")] == ["a", "", "c"]


def test_only_what_was_refused_is_dropped() -> None:
    kept: Expiring[str] = Expiring(Clock())
    kept.put("a", "new", 1.0)
    kept.drop("a", "old")
    kept.drop("nothing", "")
    assert kept.get("a")[0] == "new"
    kept.drop("a", "new")
    assert kept.get("a")[0] == ""


OWN = Endpoint("https://server.example/v2", "app", "r.example", own=True)
MIRROR = Endpoint("https://mirror.example:5000/v2", "app", "r.example", own=False)
HUB = Endpoint("https://registry-1.docker.io/v2", "library/app", "docker.io", own=True)


@pytest.mark.parametrize(
    ("endpoint", "address", "shown"),
    [
        (OWN, "", True),
        (OWN, "r.example", True),
        (OWN, "https://server.example", True),
        (OWN, "mirror.example:5000", False),
        (MIRROR, "", False),
        (MIRROR, "r.example", False),
        (MIRROR, "mirror.example", False),
        (MIRROR, "https://mirror.example:5000/v2/", True),
        (HUB, "https://index.docker.io/v1/", True),
        (HUB, "r.example", False),
    ],
)
def test_a_pull_secret_is_for_the_registry_or_for_whom_it_names(endpoint: Endpoint, address: str, shown: bool) -> None:
    found = pull_secret(endpoint, RegistryAuth("u", "p", server_address=address))
    assert found == (Credentials("u", "p") if shown else None)
