"""CNI configurations made of the pod CIDRs."""

from __future__ import annotations

import json

import pytest

from cri_py.errors import ConfigError
from cri_py.network import pod_cidrs
from cri_py.network.cni.template import facts, render

BOTH = facts(pod_cidrs.parse("10.1.0.0/24, fd00:1::/64"))
TEMPLATE = """\
{
  "name": "net", "cniVersion": "1.0.0",
  "plugins": [{"type": "bridge", "ipam": {
    "type": "host-local",
    "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
    "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
  }}]
}
"""


def test_a_template_of_containerd_gives_every_range_and_family() -> None:
    document = json.loads(render(TEMPLATE, BOTH))
    assert document["plugins"][0]["ipam"] == {
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.PodCIDR}}", "10.1.0.0/24"),
        ("a {{- range $x := .Routes -}} {{ $x }}; {{- end }} b", "a0.0.0.0/0;::/0; b"),
        ("{{if .PodCIDR}}yes{{end}}", "yes"),
        ("no action", "no action"),
    ],
)
def test_actions(template: str, text: str) -> None:
    assert render(template, BOTH) == text


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{end}}", "too many"),
        ("{{if .PodCIDR}}", r"lacks an \{\{end\}\}"),
        ("{{.Node}}", r"names \.Node"),
        ("{{printf .PodCIDR}}", r"has \{\{printf .PodCIDR\}\}, which cri_py does not know"),
    ],
)
def test_what_is_not_known_is_named(template: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        render(template, BOTH)
