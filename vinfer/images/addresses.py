"""Which network addresses a URL of a request may lead to: those of the public internet, nothing else.

Pure functions. Whoever may name an address that this machine can reach, but its user cannot, reads what is
none of their business: metadata services, databases, other servers on loopback.
"""

from __future__ import annotations

import ipaddress

# What some version of `ipaddress` lets count as global.
_REFUSED_4 = tuple(
    map(
        ipaddress.IPv4Network,
        ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_6 = tuple(
    map(
        ipaddress.IPv6Network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo and its like, documents, 6to4
    )
)


def is_public(address: str) -> bool:
    """Whether the text is an address, 4 or 6, that anyone on the internet reaches directly.

    Not public: private, loopback, link-local, shared, reserved and multicast ranges; IPv6 addresses with an
    IPv4 address inside (mapped, compatible, NAT64, 6to4, Teredo), whatever it is; anything with a scope.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not parsed.is_global:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in _REFUSED_4)
    return (
        parsed.scope_id is None
        and parsed in _PUBLIC_6
        and not any(parsed in network for network in _REFUSED_6)
    )
