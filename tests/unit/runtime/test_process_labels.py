"""What is written to the kernel's files for labels, on files like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.kernel import labels, syscalls
from cri_py.runtime import security


def written(tmp_path: Path, process: dict[str, str]) -> tuple[str, str]:
    files = tmp_path / "apparmor", tmp_path / "selinux"
    for file in files:
        file.write_text("")
    security.set_label(process, str(files[0]), str(files[1]))
    return files[0].read_text(), files[1].read_text()


def test_each_has_its_own_file_and_form(tmp_path: Path) -> None:
    assert written(tmp_path, {"selinuxLabel": "u:r:t:s0:c1,c2"}) == ("", "u:r:t:s0:c1,c2")
    assert written(tmp_path, {"apparmorProfile": "strict"}) == ("exec strict", "")
    assert written(tmp_path, {}) == ("", "")


def test_a_label_that_the_kernel_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="'u:r:t' is refused"):
        security.set_label({"selinuxLabel": "u:r:t"}, selinux_file=str(tmp_path))
    with pytest.raises(FailedPrecondition, match="'strict' is not loaded"):
        security.set_label({"apparmorProfile": "strict"}, str(tmp_path / "none"))


def test_the_keyring_gets_the_processs_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, joined = tmp_path / "keycreate", []
    file.touch()
    monkeypatch.setattr(syscalls, "join_new_session_keyring", lambda: joined.append(file.read_text()))
    security.leave_keys({"selinuxLabel": "u:r:t:s0"}, str(file))
    security.leave_keys({}, str(tmp_path / "not-there"))
    assert joined == ["u:r:t:s0", "u:r:t:s0"]


def test_a_context_is_quoted_for_the_comma_of_its_categories() -> None:
    assert labels.with_context("mode=755", "u:r:t:s0:c1,c2") == 'mode=755,context="u:r:t:s0:c1,c2"'
    assert labels.with_context("", "u:r:t") == 'context="u:r:t"'
    assert labels.with_context("mode=755", "") == "mode=755"
