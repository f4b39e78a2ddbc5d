"""Fetches the image behind a URL, from public addresses only; the one place that sends requests for users.

Runs on the event loop. The client only learns that a fetch failed, and the log says why; otherwise the server
could be used as a port scanner. Protections against server-side request forgery:

- one parser (httpx.URL); the requested URL is rebuilt from its result;
- a name is resolved once, all of its addresses must be public, and the connection goes to one of those. The
  name is kept for the Host header and for TLS, so the name server is never asked a second time;
- redirects are followed here, at most `MAX_REDIRECTS`, each with the same checks;
- proxies, netrc and certificates named by the environment are ignored; no cookies, no connection reuse;
- bytes are counted as they arrive, the timeout covers everything, and the content decides what the file is.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable

import httpx

from vinfer.config import ImagesConfig
from vinfer.errors import ImageError

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 3
MAX_URL_CHARS = 4096
MAX_PORT = 65535
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
# RFC 3986; letters of other scripts are allowed, because they become punycode or percent-encoded.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\"<>\\^`{|}]")
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?\.?|[0-9a-f:.]+", re.ASCII)

Resolve = Callable[[str, int], Awaitable[list[str]]]


# Networks that some versions of `ipaddress` count as global.
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
        ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo and similar, documentation, 6to4
    )
)


def is_public(address: str) -> bool:
    """Return whether the text is an IPv4 or IPv6 address that anyone on the internet can reach directly.

    A client must not reach addresses that only this machine can reach: metadata services, databases, other
    servers on loopback.

    Not public: private, loopback, link-local, shared, reserved and multicast ranges; all IPv6 addresses that
    contain an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo); anything with a scope.
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


class _Refused(Exception):  # noqa: N818
    """Why a fetch failed: for the log, never for the client."""


async def resolve(host: str, port: int) -> list[str]:
    """Return all addresses of a name, as the system resolves it."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class ImageFetcher:
    """Fetches images for one server; at most `limits.max_fetches` at a time.

    Args:
        limits: the config's `server.images`.
        resolve: returns all addresses of a host and port.
        may_connect: returns whether connecting to an address is allowed.
    """

    def __init__(
        self,
        limits: ImagesConfig,
        *,
        resolve: Resolve = resolve,
        may_connect: Callable[[str], bool] = is_public,
    ) -> None:
        self._limits = limits
        self._resolve = resolve
        self._may_connect = may_connect
        self._turns = asyncio.Semaphore(limits.max_fetches)
        self._tls = httpx.create_ssl_context(trust_env=False) if limits.allow_remote else None

    async def fetch(self, source: str, *, param: str | None = None) -> bytes:
        """Fetch a file of at most `max_bytes` within `timeout_seconds`, which includes waiting for a turn.

        Raises:
            ImageError: remote images are off, or the fetch failed for any reason.
        """
        if not self._limits.allow_remote:
            raise ImageError(
                "the image is a URL, and this server fetches none (server.images.allow_remote): "
                "send it as a data URL",
                param=param,
            )
        try:
            async with asyncio.timeout(self._limits.timeout_seconds), self._turns:
                return await self._follow(source)
        except (_Refused, TimeoutError, OSError, httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            logger.warning("cannot fetch an image: %s: %.300r", type(error).__name__, str(error))
            raise ImageError(
                "the image's URL could not be fetched: it must be a public http(s) URL of a file of at most "
                f"{self._limits.max_bytes} bytes that arrives within {self._limits.timeout_seconds:g} s; "
                "or send the image as a data URL",
                param=param,
            ) from None

    async def _follow(self, source: str) -> bytes:
        url = _parse(source)
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._request(url)
            if isinstance(found, bytes):
                return found
            location = httpx.URL(_checked(found))
            if location.scheme and not location.host:
                raise _Refused("a redirect without a host")
            url = _parse(str(url.join(location)))
        raise _Refused(f"more than {MAX_REDIRECTS} redirects")

    async def _request(self, url: httpx.URL) -> bytes | str:
        """Return the body, or the URL that the response redirects to."""
        address = await self._address(url)
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Accept": "image/png, image/jpeg, image/webp, image/gif",
            "Accept-Encoding": "identity",
            "User-Agent": "vinfer",
            "Connection": "close",
        }
        async with httpx.AsyncClient(
            verify=self._tls or True,
            trust_env=False,
            follow_redirects=False,
            timeout=self._limits.timeout_seconds,
            limits=httpx.Limits(max_keepalive_connections=0),
        ) as client:
            request = client.build_request(
                "GET",
                url.copy_with(host=address),
                headers=headers,
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            )
            answer = await client.send(request, stream=True)
            try:
                if answer.status_code in _REDIRECTS and "location" in answer.headers:
                    return answer.headers["location"]
                if answer.status_code != httpx.codes.OK:
                    raise _Refused(f"{url.host} answered {answer.status_code}")
                return await self._body(answer)
            finally:
                await answer.aclose()

    async def _address(self, url: httpx.URL) -> str:
        host = url.raw_host.decode("ascii").strip("[]")
        addresses = await self._resolve(host, url.port or _PORTS[url.scheme])
        if not addresses:
            raise _Refused(f"{host} has no address")
        for address in addresses:
            # One address that is not public disqualifies the name, so it does not matter which one is used.
            if not self._may_connect(address):
                raise _Refused(f"{host} resolves to {address}, which is not public")
        return addresses[0]

    async def _body(self, answer: httpx.Response) -> bytes:
        """Read the raw bytes as they arrive: not decompressed, so a small response cannot become large."""
        body = bytearray()
        async for chunk in answer.aiter_raw():
            body += chunk
            if len(body) > self._limits.max_bytes:
                raise _Refused(f"more than {self._limits.max_bytes} bytes")
        return bytes(body)


def _checked(source: str) -> str:
    if len(source) > MAX_URL_CHARS:
        raise _Refused(f"a URL of more than {MAX_URL_CHARS} characters")
    if _FORBIDDEN.search(source):
        raise _Refused("a URL with invalid characters")
    return source


def _parse(source: str) -> httpx.URL:
    url = httpx.URL(_checked(source))
    if url.scheme not in _PORTS:
        raise _Refused(f"the scheme {url.scheme!r}")
    if url.userinfo:
        raise _Refused("a URL with a user or password")
    if not 1 <= (url.port or _PORTS[url.scheme]) <= MAX_PORT:
        raise _Refused(f"the port {url.port}")
    # The parser does not change the host, not even percent signs.
    if not _HOST.fullmatch(url.raw_host.decode("ascii").strip("[]")):
        raise _Refused("a host that is neither a name nor an address")
    return url.copy_with(fragment=None)
