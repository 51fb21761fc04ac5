"""What a plugin's end means."""

from __future__ import annotations

import json

import pytest

from cri_py.errors import CriError, FailedPrecondition, Internal, Unavailable
from cri_py.network.cni.answers import answer, in_context, supported_versions
from cri_py.network.program import Ended


def refusal(code: int, **more: str) -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "code": code, "msg": "no", **more}).encode()


def test_add_answers_with_an_object_and_del_with_nothing() -> None:
    assert answer("x", "ADD", Ended(0, b'{"ips": []}', b"")) == {"ips": []}
    assert answer("x", "DEL", Ended(0, b"", b"chatter")) == {}


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (1, FailedPrecondition, "version of CNI"),
        (2, FailedPrecondition, "field"),
        (3, FailedPrecondition, "container"),
        (4, Internal, "environment"),
        (5, Internal, "read or write"),
        (6, Internal, "decode"),
        (7, FailedPrecondition, "configuration is wrong"),
        (11, Unavailable, "tried again later"),
        (50, Unavailable, "not available"),
        (51, Unavailable, "no full network"),
        (120, Internal, "code 120: no: the details"),
    ],
)
def test_every_code_has_its_text(code: int, kind: type[CriError], words: str) -> None:
    with pytest.raises(kind, match=words) as refused:
        answer("bridge", "ADD", Ended(1, refusal(code, details="the details"), b""))
    assert f"CNI plugin bridge refused ADD with code {code}" in str(refused.value)


def test_an_error_counts_whatever_the_exit_status_is() -> None:
    with pytest.raises(Internal, match="with code 999: no"):
        answer("x", "DEL", Ended(0, refusal(999), b""))


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (Ended(-11, b"", b""), "was killed by signal 11 on ADD"),
        (Ended(0, b"{]}", b""), "no JSON object: '{]}'"),
        (Ended(0, b"", b""), "no JSON object: it printed nothing"),
        (Ended(0, b"[" * 100_000, b""), "no JSON object"),
        (Ended(0, b"null", b""), "no JSON object"),
        (Ended(2, b"", b"panic: oops\n"), "failed ADD with status 2: 'panic: oops'"),
        (Ended(2, b"x" * 1000, b""), "x' …"),
        (Ended(1, b'{"code": "7", "msg": "text"}', b""), "with code 7: text"),
    ],
)
def test_what_is_no_answer_is_told_as_it_was(ended: Ended, words: str) -> None:
    with pytest.raises(Internal, match=words):
        answer("x", "ADD", ended)


def test_versions_are_those_that_a_plugin_says_it_supports() -> None:
    both = Ended(0, b'{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}', b"")
    assert supported_versions(both) == {"0.4.0", "1.0.0"}
    assert supported_versions(Ended(0, b'{"cniVersion": "0.2.0"}', b"")) == {"0.2.0"}


def test_a_plugin_that_does_not_know_version_is_of_the_oldest() -> None:
    assert supported_versions(Ended(1, b'{"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}', b"")) == {"0.1.0"}
    assert supported_versions(Ended(1, b"", b"crash")) == frozenset()


def test_an_error_names_its_network_and_stays_of_its_kind() -> None:
    told = in_context(Unavailable("later", hint="wait"), "net", "ADD")
    assert (type(told), str(told)) == (Unavailable, "network net, ADD: later (wait)")
