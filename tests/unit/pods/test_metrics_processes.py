"""Descriptors and sockets of processes, this one among them."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from cri_py.pods import metrics_processes
from cri_py.pods.metrics_processes import opened


def test_descriptors_and_sockets_are_counted() -> None:
    before = opened([os.getpid()])
    assert before.processes == 1
    assert before.descriptors is not None
    assert before.sockets is not None
    ours, theirs = socket.socketpair()
    with ours, theirs, open("/dev/null", "rb"):
        after = opened([os.getpid()])
    assert after.descriptors == before.descriptors + 3
    assert after.sockets == before.sockets + 2


def test_the_limit_is_the_first_processs() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert opened([os.getpid()]).soft_limit == soft


def test_a_process_that_has_ended_counts_nothing() -> None:
    gone = 1 << 22  # no pid is that large (PID_MAX_LIMIT)
    found = opened([gone])
    assert (found.descriptors, found.sockets, found.soft_limit) == (0, 0, None)
    assert opened([os.getpid(), gone])[1:] == opened([os.getpid()])[1:]


def test_no_scrape_looks_at_more_than_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened([os.getpid()] * 257)[:3] == (257, None, None)
    monkeypatch.setattr(metrics_processes, "_MOST_DESCRIPTORS", 2)
    found = opened([os.getpid()])
    assert found.sockets is None
    assert found.descriptors is not None
    assert found.descriptors > 2


def test_a_group_without_processes_has_none_open() -> None:
    assert opened([]) == (0, 0, 0, None)
