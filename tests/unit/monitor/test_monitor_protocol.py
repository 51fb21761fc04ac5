"""Frames: what is sent is what arrives, what is none is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import InvalidArgument
from cri_py.kernel.constants import CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID
from cri_py.monitor import protocol

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
words = st.text().filter(lambda text: "\0" not in text)


@given(words, words, st.dictionaries(st.text().filter(lambda name: name not in {"id", "name"}), values))
def test_a_request_arrives_as_its_words_and_a_body(container: str, name: str, rest: dict[str, Any]) -> None:
    frame = protocol.request("exec", 7, {"id": container, "name": name, **rest})
    request = protocol.parse_request(frame)
    assert (request.op, request.seq) == ("exec", 7)
    assert [word.decode("utf-8", "surrogateescape") for word in request.words] == [container, name]
    assert (json.loads(request.body) if request.body else {}) == rest


def test_bytes_that_are_no_text_survive_as_surrogates() -> None:
    path = b"/\xff\xfe".decode("utf-8", "surrogateescape")
    frame = protocol.request("exec", 1, {"id": path, "name": "", "process": path})
    request = protocol.parse_request(frame)
    assert request.words[0] == b"/\xff\xfe"
    assert json.loads(request.body)["process"] == path


def test_truth_is_told_as_a_digit() -> None:
    frame = protocol.request("kill", 1, {"id": "c", "signal": 15, "all": True})
    assert protocol.parse_request(frame).words == [b"c", b"15", b"1"]


def test_a_word_can_t_hold_what_separates_words() -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        protocol.request("start", 1, {"id": "a\0b"})


@pytest.mark.parametrize("frame", [b"", b"start", b"start\x001", b"start\x001\0id", b"fly\x001\0id\0", b"\xff\x001\0"])
def test_what_is_no_request_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError):
        protocol.parse_request(frame)


@given(st.integers(1, 2**60), st.dictionaries(st.text(), values))
def test_an_answer_arrives_whatever_its_body_holds(seq: int, body: dict[str, Any]) -> None:
    reply = protocol.parse_reply(protocol.answer(seq, json.dumps(body).encode()))
    assert (reply.seq, reply.word, reply.content()) == (seq, "ok", body)


def test_an_empty_body_is_an_empty_answer() -> None:
    assert protocol.parse_reply(protocol.answer(3)).content() == {}


@given(st.sampled_from(["start", "state", "missing", "failed"]), st.text())
def test_a_refusal_arrives_with_its_kind_and_text(kind: str, text: str) -> None:
    reply = protocol.parse_reply(protocol.refusal(9, kind, text))
    assert (reply.seq, reply.word, reply.text()) == (9, kind, text)


def test_an_event_answers_nothing() -> None:
    reply = protocol.parse_reply(protocol.event(b"up", b'{"pid":7}'))
    assert (reply.seq, reply.word, reply.content()) == (0, "up", {"pid": 7})


@pytest.mark.parametrize("frame", [b"", b"1", b"1\0ok", b"x\0ok\0"])
def test_what_is_no_reply_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError):
        protocol.parse_reply(frame)


@pytest.mark.parametrize("op", sorted(protocol.WORDS))
def test_a_frame_that_stands_for_a_memfd_is_no_message_of_ours(op: str) -> None:
    assert protocol.request(op, 1, dict.fromkeys(protocol.WORDS[op], "")) != protocol.MEMFD


def test_namespaces_are_sorted_into_those_made_and_those_of_the_holder() -> None:
    document = [
        {"type": "mount"},
        {"type": "pid"},
        {"type": "cgroup"},
        {"type": "network", "path": "/proc/42/ns/net"},
        {"type": "ipc", "path": "/proc/42/ns/ipc"},
    ]
    assert protocol.namespace_words(document) == {
        "new": CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWCGROUP,
        "joined": CLONE_NEWNET | CLONE_NEWIPC,
        "holder": 42,
        "own_pids": True,
    }


def test_pids_that_are_shared_are_not_the_container_s_own() -> None:
    assert not protocol.namespace_words([{"type": "pid", "path": "/proc/42/ns/pid"}])["own_pids"]
