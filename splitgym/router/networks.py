"""Addresses of servers: what is one, and in which networks they may lie."""

import ipaddress
from urllib.parse import urlsplit

LOCAL_NETWORKS = ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")


def check_url(url: str) -> None:
    """Refuse what is no plain http(s) address of a server.

    Raises:
        ValueError: says what is wrong.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url {url!r}: expected http://HOST:PORT or https://HOST:PORT")
    if parts.username or parts.password or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise ValueError(f"url {url!r}: give scheme, host and port alone")
    try:
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError:
        raise ValueError(f"url {url!r}: the port is no number") from None


def is_loopback(host: str) -> bool:
    """Is this host the machine itself?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_network(url: str, allowed: tuple[str, ...]) -> None:
    """Refuse a literal address outside the allowed networks. (Names are checked when they are resolved.)

    Raises:
        ValueError: names the address.
    """
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    if not in_networks(str(address), allowed):
        raise ValueError(f"server address {host} is in none of admin.allowed_networks")


def in_networks(address: str, allowed: tuple[str, ...]) -> bool:
    """Does an address lie in one of the networks?"""
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in ipaddress.ip_network(network) for network in allowed)
