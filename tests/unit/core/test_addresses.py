from __future__ import annotations

import pytest

from raypipe.core.addresses import check_cluster_address, dashboard_url
from raypipe.core.errors import UserError
from raypipe.core.options import parse_options, parse_pretrain_options
from raypipe.search.forecast import forecast


@pytest.mark.parametrize(
    "address",
    [None, "", "auto", "10.0.0.1:6379", "head:1", "[::1]:65535", "ray://head:10001", "ray://head", "a-b.c_d:80"],
)
def test_addresses_that_ray_may_join(address):
    check_cluster_address(address)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:99999", "there is no port 99999"),
        ("127.0.0.1:0", "there is no port 0"),
        ("127.0.0.1:" + "9" * 5000, "there is no port 9999"),
        ("127.0.0.1", "has no port"),
        ("local", "has no port"),
        ("http://", "not an address"),
        (":6379", "not an address"),
        ("::1:6379", "not an address"),
        ("a b:6379", "not an address"),
        ("http://127.0.0.1:8265", "begins with http://, as no such address does"),
        ("u:secret@host:6379", "leave the keys out"),
        ("ray://u:secret@host:6379", "leave the keys out"),
        ("http://u:sec/secret@ret@host", "leave the keys out"),
    ],
)
def test_another_address_is_one_short_line_before_any_work(address, problem, monkeypatch):
    for call in (
        check_cluster_address,
        lambda name: parse_options({"address": name}),
        lambda name: parse_pretrain_options({"address": name}),
        lambda name: forecast("none.py", "none", address=name),
    ):
        with pytest.raises(UserError, match=problem) as caught:
            call(address)
        line = str(caught.value)
        assert line.startswith("--address ") and "secret" not in line and "HOST:PORT" in line and "\n" not in line
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=r"^RAY_ADDRESS "):
        check_cluster_address(address)


def test_urls_of_dashboards():
    for url in ("http://127.0.0.1:8265", "https://u:p@head/path", "http://[::1]:8265"):
        assert dashboard_url(url) == url
    assert dashboard_url("127.0.0.1:8265") == "http://127.0.0.1:8265"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:99999", "there is no port 99999"),
        ("ftp://x", "begins with ftp://"),
        ("ftp://u:secret@x", "begins with ftp://"),
        ("http://", "not an address"),
        ("http://u:secret@x:99999", "there is no port 99999"),
        ("", "not an address"),
    ],
)
def test_another_url_is_one_line_without_its_password(address, problem):
    with pytest.raises(UserError, match=problem) as caught:
        dashboard_url(address)
    assert "secret" not in str(caught.value)
