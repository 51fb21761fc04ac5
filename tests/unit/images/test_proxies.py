"""HTTP_PROXY and NO_PROXY, as Go reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.images.proxies import proxy_for

PROXIES = {"HTTP_PROXY": "http://plain:1", "HTTPS_PROXY": "secure:2", "http_proxy": "ignored"}


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://r.example/v2", "http://plain:1"),
        ("https://r.example/v2", "http://secure:2"),
        ("https://localhost/v2", ""),
        ("http://127.0.0.9:5000/v2", ""),
        ("http://[::1]:5000/v2", ""),
        ("http://x.localhost", ""),
    ],
)
def test_a_url_goes_through_the_proxy_of_its_scheme(url: str, proxy: str) -> None:
    assert proxy_for(url, PROXIES) == proxy


def test_without_a_proxy_all_is_direct() -> None:
    assert proxy_for("https://r.example", {"HTTP_PROXY": "http://plain:1", "HTTPS_PROXY": ""}) == ""
    assert proxy_for("https://r.example", {"https_proxy": "http://lower"}) == "http://lower"


@pytest.mark.parametrize(
    ("rules", "url", "direct"),
    [
        ("r.example", "https://r.example", True),
        ("R.EXAMPLE", "https://r.example", True),
        ("r.example", "https://a.r.example", True),
        ("r.example", "https://ar.example", False),
        (".r.example", "https://r.example", False),
        (".r.example", "https://a.r.example", True),
        ("*.r.example", "https://a.r.example", True),
        ("r.example:443", "https://r.example", True),
        ("r.example:443", "https://r.example:444", False),
        ("r.example:80", "http://r.example", True),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3:5000", True),
        ("fd00::/8", "https://[fd00::7]:5000", True),
        ("[fd00::7]:5000", "https://[fd00::7]:5000", True),
        ("*", "https://anything", True),
        ("", "https://r.example", False),
        (" a , b.example,,", "https://b.example", True),
        ("[", "https://b.example", False),
        ("10.0.0.0/99", "https://10.0.0.1", False),
    ],
)
def test_no_proxy_exempts_names_networks_and_ports(rules: str, url: str, direct: bool) -> None:
    assert (proxy_for(url, PROXIES | {"NO_PROXY": rules}) == "") is direct


@given(st.text(max_size=40))
def test_any_no_proxy_is_read(rules: str) -> None:
    assert proxy_for("https://r.example:5000", PROXIES | {"no_proxy": rules}) in {"", "http://secure:2"}
