from __future__ import annotations

from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition
from cri_py.pods import apparmor


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel with AppArmor and two profiles, as its files tell."""
    (tmp_path / "enabled").write_text("Y\n")
    (tmp_path / "profiles").write_text("cri-py-default (enforce)\n/usr/bin/man (complain)\n")
    monkeypatch.setattr(apparmor, "_ENABLED", str(tmp_path / "enabled"))
    monkeypatch.setattr(apparmor, "_PROFILES", str(tmp_path / "profiles"))
    return tmp_path


def parser(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = directory / "apparmor_parser"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(apparmor, "_PARSERS", (str(program),))


def test_a_kernel_without_apparmor_gets_no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apparmor, "_ENABLED", str(tmp_path / "missing"))
    assert not apparmor.enabled()
    assert apparmor.load_default("cri-py-default", str(tmp_path)) == ""


def test_a_kernel_that_has_it_switched_off_is_one_without(kernel: Path) -> None:
    assert apparmor.enabled()
    (kernel / "enabled").write_text("N\n")
    assert not apparmor.enabled()


def test_the_default_profile_is_written_and_handed_to_the_parser(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser(kernel, monkeypatch, f'echo "$@" > {kernel}/asked')
    assert apparmor.load_default("mine", str(kernel)) == "mine"
    assert (kernel / "asked").read_text() == f"--skip-cache --replace {kernel}/apparmor-profile\n"
    text = (kernel / "apparmor-profile").read_text()
    assert text.startswith("profile mine ")
    assert "signal (send, receive) peer=mine,\n" in text
    assert text.count("{") == text.count("}")


def test_a_profile_that_can_t_be_loaded_is_told_in_the_parsers_words(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser(kernel, monkeypatch, "echo syntax error >&2; exit 1")
    with pytest.raises(apparmor.Unavailable, match="mine can't be loaded: syntax error"):
        apparmor.load_default("mine", str(kernel))


def test_without_a_parser_or_a_wish_there_is_no_profile(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apparmor, "_PARSERS", (str(kernel / "missing"),))
    assert apparmor.load_default("mine", str(kernel)) == ""
    assert apparmor.load_default("", str(kernel)) == ""


def test_a_profile_is_there_only_by_its_whole_name(kernel: Path) -> None:
    apparmor.check_loaded("cri-py-default")
    apparmor.check_loaded("/usr/bin/man")
    for name in ("cri-py", "cri-py-default (enforce)", "man"):
        with pytest.raises(FailedPrecondition, match="is not loaded"):
            apparmor.check_loaded(name)
