"""Addresses of Ray clusters and of their dashboards, checked before anything is asked or recorded."""

from __future__ import annotations

import os
import re

from raypipe.core.errors import UserError

MAX_PORT = 65535

_HOST = r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s/:@\[\]?#]+)"
_CLUSTER = re.compile(rf"(?P<scheme>ray://)?{_HOST}(?::(?P<port>\d+))?")
_DASHBOARD = re.compile(rf"(?P<scheme>https?://)?(?:[^\s/]*@)?{_HOST}(?::(?P<port>\d+))?(?:/\S*)?")
_PASSWORD = re.compile(r"^([\w+.-]*://)?\S*@")


def without_password(address: str) -> str:
    """Return an address without the user and the password that it may contain."""
    return _PASSWORD.sub(r"\1", address)


def check_cluster_address(address: str | None) -> None:
    """Check that an address is one that Ray joins a cluster by.

    Raises
    ------
    UserError
        It is none; the message has no password.
    """
    if not address or address == "auto":
        return
    option = "RAY_ADDRESS" if address == os.environ.get("RAY_ADDRESS") else "--address"
    problem = _problem(_CLUSTER.fullmatch(address), address, needs_port="://" not in address)
    if "@" in address:
        problem = "leave the keys out of the URI, which is recorded"
    if problem:
        raise UserError(
            f"{option} {without_password(address)}: {problem}; give HOST:PORT, such as 10.0.0.1:6379, "
            "ray://HOST:PORT, or auto"
        )


def dashboard_url(address: str) -> str:
    """Return the URL of a cluster's dashboard; an address without a scheme is of HTTP.

    Raises
    ------
    UserError
        It is no address of a dashboard; the message has no password.
    """
    found = _DASHBOARD.fullmatch(address)
    if problem := _problem(found, address, needs_port=False):
        raise UserError(
            f"--cluster {without_password(address)}: {problem}; give the URL of Ray's dashboard, such as "
            "http://127.0.0.1:8265"
        )
    return address if found and found["scheme"] else f"http://{address}"


def _problem(found: re.Match[str] | None, address: str, *, needs_port: bool) -> str:
    """Return what is wrong with an address; empty if nothing is."""
    if found is None:
        scheme, separator, rest = address.partition("://")
        return f"begins with {scheme}://, as no such address does" if separator and rest else "not an address"
    if found["port"] is None:
        return "has no port" if needs_port else ""
    return "" if 0 < int(found["port"][:6]) <= MAX_PORT else f"there is no port {found['port'][:20]}"
