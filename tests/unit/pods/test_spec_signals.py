from __future__ import annotations

import pytest

from cri_py.errors import InvalidArgument
from cri_py.pods.spec_signals import resolve_stop_signal, signal_name, signal_number


def test_the_kubelets_signal_goes_before_the_images_before_sigterm() -> None:
    assert resolve_stop_signal("SIGUSR1", "SIGINT") == "SIGUSR1"
    assert resolve_stop_signal("", "SIGINT") == "SIGINT"
    assert resolve_stop_signal("", "") == "SIGTERM"


@pytest.mark.parametrize(
    ("text", "name", "number"),
    [
        *(("SIGQUIT", "SIGQUIT", 3), ("quit", "SIGQUIT", 3), ("3", "SIGQUIT", 3), ("SIGCLD", "SIGCHLD", 17)),
        *(("SIGRTMIN+3", "SIGRTMIN+3", 37), ("RTMIN+3", "SIGRTMIN+3", 37), ("37", "SIGRTMIN+3", 37)),
        *(("SIGRTMIN", "SIGRTMIN", 34), ("SIGRTMAX", "SIGRTMAX", 64), ("SIGRTMAX-2", "SIGRTMAX-2", 62)),
        *(("SIGRTMIN+16", "SIGRTMAX-14", 50), ("SIGRTMIN+15", "SIGRTMIN+15", 49)),
    ],
)
def test_a_signal_has_one_name_and_number(text: str, name: str, number: int) -> None:
    assert signal_number(text) == number
    assert resolve_stop_signal(text, "") == name


def test_every_number_has_a_name_that_leads_back() -> None:
    for number in (*range(1, 32), *range(34, 65)):
        assert signal_number(signal_name(number)) == number


@pytest.mark.parametrize(
    "text",
    ["SIGFOO", "0", "65", "32", "-1", "SIGRTMIN-1", "SIGRTMAX+1", "SIGRTMIN+31", "SIGRTMIN+", "SIGRT", "SIG", "1e1"],
)
def test_a_text_that_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no signal"):
        resolve_stop_signal("", text)
