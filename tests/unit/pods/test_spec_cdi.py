from __future__ import annotations

import pytest

from cri_py.cdi.edits import Edits, Hook, Mount, NetDevice
from cri_py.errors import Unimplemented
from cri_py.pods import spec_cdi
from tests.unit.pods.builders import document


def test_environment_groups_and_mounts_are_laid_over_the_document() -> None:
    built = document()
    before = [mount["destination"] for mount in built["mounts"]]
    edits = Edits(
        env=("LANG=gpu", "VISIBLE=0"),
        groups=(44, 44, 109),
        mounts=(
            Mount("/usr/lib/gpu/deep", "/usr/lib/gpu/deep", options=("ro", "nosuid")),
            Mount("/etc/hosts.gpu", "/etc/hosts", options=("bind", "ro")),
            Mount("tmpfs", "/cache", kind="tmpfs", options=("size=1m",)),
        ),
    )
    spec_cdi.apply(built, edits)
    assert [entry for entry in built["process"]["env"] if entry[:4] in {"LANG", "VISI"}] == ["LANG=gpu", "VISIBLE=0"]
    assert built["process"]["user"]["additionalGids"] == [44, 109]
    mounts = {mount["destination"]: mount for mount in built["mounts"]}
    assert len(mounts) == len(built["mounts"]) == len(before) + 2
    assert mounts["/usr/lib/gpu/deep"] == {
        "destination": "/usr/lib/gpu/deep",
        "type": "bind",
        "source": "/usr/lib/gpu/deep",
        "options": ["rbind", "ro", "nosuid"],
    }
    assert (mounts["/etc/hosts"]["source"], mounts["/etc/hosts"]["options"]) == ("/etc/hosts.gpu", ["bind", "ro"])
    assert mounts["/cache"]["type"] == "tmpfs"
    depths = [mount["destination"].count("/") for mount in built["mounts"]]
    assert depths == sorted(depths)


def test_hooks_are_the_documents_by_their_stage() -> None:
    built = document()
    first = Hook("createContainer", "/bin/link", ("link", "x"), ("A=b",), 3)
    edits = Edits(hooks=(first, Hook("prestart", "/bin/p"), Hook("createContainer", "/bin/second")))
    spec_cdi.check(edits)
    spec_cdi.apply(built, edits)
    assert built["hooks"] == {
        "createContainer": [
            {"path": "/bin/link", "args": ["link", "x"], "env": ["A=b"], "timeout": 3},
            {"path": "/bin/second", "args": ["/bin/second"], "env": []},
        ],
        "prestart": [{"path": "/bin/p", "args": ["/bin/p"], "env": []}],
    }


def test_nothing_asked_for_changes_nothing() -> None:
    built = document()
    spec_cdi.apply(built, Edits())
    assert built == document()


@pytest.mark.parametrize(
    ("edits", "word"),
    [
        (Edits(net_devices=(NetDevice("enp1", "eth1"),)), "enp1"),
        (Edits(rdt=True), "intelRdt"),
        (Edits(hooks=(Hook("poststop", "/bin/hook"),)), "poststop hook /bin/hook"),
    ],
)
def test_what_can_t_be_done_is_refused_by_name(edits: Edits, word: str) -> None:
    with pytest.raises(Unimplemented, match=word):
        spec_cdi.check(edits)
