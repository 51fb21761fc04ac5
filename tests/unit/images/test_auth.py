from __future__ import annotations

import base64
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import InvalidArgument, PermissionDenied, Unavailable
from cri_py.images.auth import (
    Challenge,
    Credentials,
    Token,
    credentials_for,
    parse_challenges,
    token_from,
    token_request,
)
from cri_py.model import RegistryAuth

REALM = "https://auth.example/token"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", ()),
        ("Basic", (Challenge("basic", {}),)),
        ('Basic realm="a b"', (Challenge("basic", {"realm": "a b"}),)),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
            (Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"}),),
        ),
        ('BEARER Realm=x , SERVICE = "y"', (Challenge("bearer", {"realm": "x", "service": "y"}),)),
        (
            'Negotiate dG9rZW4=, Basic realm="b\\"c", Bearer realm="d"',
            (
                Challenge("negotiate", {}),
                Challenge("basic", {"realm": 'b"c'}),
                Challenge("bearer", {"realm": "d"}),
            ),
        ),
    ],
)
def test_challenges_are_read(header: str, challenges: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header) == challenges


@given(st.text(max_size=200))
def test_any_challenge_header_can_be_read(header: str) -> None:
    assert all(challenge.scheme == challenge.scheme.lower() for challenge in parse_challenges(header))


@pytest.mark.parametrize(
    ("auth", "found"),
    [
        (None, None),
        (RegistryAuth(), None),
        (RegistryAuth("u", "p"), Credentials("u", "p")),
        (RegistryAuth(auth=encoded("u:p:q")), Credentials("u", "p:q")),
        (RegistryAuth(auth=encoded("u:p\0")), Credentials("u", "p")),
        (RegistryAuth("u", "p", encoded("v:w")), Credentials("u", "p")),
        (RegistryAuth(identity_token="i"), Credentials(identity_token="i")),
        (RegistryAuth(registry_token="r"), Credentials(registry_token="r")),
        (RegistryAuth("u", "p", server_address="https://reg.io/v1/"), Credentials("u", "p")),
        (RegistryAuth("u", "p", server_address="other.io"), None),
    ],
)
def test_an_auth_config_of_any_form_becomes_credentials(auth: RegistryAuth | None, found: Credentials | None) -> None:
    assert credentials_for(auth, "reg.io") == found


def test_docker_hub_goes_by_several_names() -> None:
    auth = RegistryAuth("u", "p", server_address="https://index.docker.io/v1/")
    assert credentials_for(auth, "docker.io") == Credentials("u", "p")


@pytest.mark.parametrize("auth", ["geheim!", encoded("geheim"), "geheim0"])
def test_an_auth_that_is_no_base64_of_a_pair_is_refused_without_showing_it(auth: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        credentials_for(RegistryAuth(auth=auth), "reg.io")
    assert auth not in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_secrets_are_not_printed() -> None:
    credentials = Credentials("u", "geheim1", "geheim2", "geheim3")
    request = token_request(Challenge("bearer", {"realm": REALM}), credentials, "s", "https://r")
    assert "geheim" not in repr(credentials) + repr(request) + repr(RegistryAuth("u", "geheim1", "geheim4"))


def test_a_token_is_asked_for_with_service_and_scope() -> None:
    challenge = Challenge("bearer", {"realm": f"{REALM}?x=1", "service": "reg"})
    request = token_request(challenge, Credentials("u", "p"), "repository:a/b:pull", "https://r")
    query = parse_qs(urlsplit(request.url).query)
    assert query == {"x": ["1"], "service": ["reg"], "scope": ["repository:a/b:pull"]}
    assert request.headers == {"Authorization": f"Basic {encoded('u:p')}"}
    assert request.form is None


def test_each_scope_is_a_parameter_of_its_own_in_a_get() -> None:
    challenge = Challenge("bearer", {"realm": REALM, "scope": "repository:a:pull repository:b:pull"})
    scopes = ["repository:a:pull", "repository:b:pull"]
    assert parse_qs(urlsplit(token_request(challenge, None, "", "https://r").url).query) == {"scope": scopes}
    posted = token_request(challenge, Credentials(identity_token="i"), "", "https://r").form or b""
    assert parse_qs(posted.decode())["scope"] == [" ".join(scopes)]


def test_an_identity_token_is_posted() -> None:
    request = token_request(Challenge("bearer", {"realm": REALM}), Credentials(identity_token="i"), "s", "https://r")
    assert request.url == REALM
    assert parse_qs((request.form or b"").decode())["refresh_token"] == ["i"]


def test_credentials_are_not_sent_from_tls_into_plain_text() -> None:
    challenge = Challenge("bearer", {"realm": "http://auth.example/token"})
    with pytest.raises(PermissionDenied):
        token_request(challenge, Credentials("u", "p"), "s", "https://r")


@pytest.mark.parametrize(
    "realm", ["", "file:///etc/passwd", "//x", "https://", "https://[x", "https://x:y", "https://x/a b"]
)
def test_a_realm_that_is_no_url_is_refused(realm: str) -> None:
    with pytest.raises(Unavailable):
        token_request(Challenge("bearer", {"realm": realm}), None, "s", "https://r")


@pytest.mark.parametrize("body", [b'{"token":"t"}', b'{"access_token":"t","expires_in":3}', b'{"token":"t","x":1}'])
def test_a_token_is_read_under_both_names(body: bytes) -> None:
    assert token_from(body, "u") == Token("t", 60.0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token":""}', b'{"token":"a\\nb"}', b'{"token":3}'])
def test_an_answer_without_a_usable_token_is_refused(body: bytes) -> None:
    with pytest.raises(Unavailable):
        token_from(body, "u")
