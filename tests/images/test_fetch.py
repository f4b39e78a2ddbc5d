"""URLs in requests: the server only ever connects to public addresses, and says little about why it refuses.

A canary listens on loopback and counts connections; for refusals it must count none. If a fetch must succeed,
only a fake resolver knows its host name, and the test says which address may be connected to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tiny.images import encoded, noise

from vinfer.config import ImagesConfig
from vinfer.errors import ImageError
from vinfer.images import ImageFetcher
from vinfer.images.fetch import is_public

PNG = encoded(noise(6, 5))


def answer(body: bytes = PNG, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Canary:
    """A listener on 127.0.0.1 that counts connections and keeps the request heads."""

    def __init__(self) -> None:
        self.port = 0
        self.num_connections = 0
        self.heads: list[str] = []
        self.replies: list[bytes] = []
        self.pause_seconds = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            reply = self.replies[min(self.num_connections, len(self.replies)) - 1]
            for at in range(0, len(reply), 2**16):
                await asyncio.sleep(self.pause_seconds)
                writer.write(reply[at : at + 2**16])
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def canary(*replies: bytes) -> AsyncIterator[Canary]:
    found = Canary()
    found.replies = list(replies or (answer(),))
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()


def names(**addresses: list[str]) -> Callable[[str, int], Awaitable[list[str]]]:
    """Return a fake name server; each time it is asked for a name, it returns the next of its answers."""
    left = {name.replace("_", "."): list(answers) for name, answers in addresses.items()}

    async def resolve(host: str, port: int) -> list[str]:
        answers = left.get(host, [])
        if not answers:
            raise OSError(f"unknown name {host}")
        return (answers.pop(0) if len(answers) > 1 else answers[0]).split()

    return resolve


def fetcher(**limits: Any) -> ImageFetcher:
    """Return a fetcher that may connect to the canary under the name `images.test`."""
    settings = ImagesConfig(**{"allow_remote": True, "timeout_seconds": 3.0, **limits})
    return ImageFetcher(
        settings,
        resolve=names(images_test=["127.0.0.1"], other_test=["127.0.0.1"], inside_test=["127.0.0.2"]),
        may_connect=lambda address: address == "127.0.0.1",
    )


PRIVATE = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "0",
    "0.0.0.0",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fe80::1]",
    "[fe80::1%25lo]",
    "[fc00::1]",
    "[ff02::1]",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.100.100.200",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "%31%32%37.0.0.1",
    "127%2e0.0.1",
    "127。0。0。1",
    "①②⑦.⓪.⓪.①",
    "ⓛⓞcalhost",
    "ok@127.0.0.1",
    "example.com\\@127.0.0.1",
    "example.com:80@127.0.0.1",
    "example.com%00@127.0.0.1",
    "127.0.0.1\t",
    "exa mple.com@127.0.0.1",
    "127.0.0.1#@example.com",
    "127.0.0.1?@example.com",
    "127.0.0.1\\.example.com",
]


@pytest.mark.alone
@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_no_spelling_of_an_inner_address_is_connected_to(scheme: str) -> None:
    async def run() -> None:
        async with canary() as listener:
            real = ImageFetcher(ImagesConfig(allow_remote=True, timeout_seconds=2.0))
            messages = set()
            for host in PRIVATE:
                started = time.monotonic()
                for spelled in (host, f"{host}:{listener.port}"):
                    with pytest.raises(ImageError) as refused:
                        await real.fetch(f"{scheme}://{spelled}/x.png", param="p")
                    messages.add(refused.value.message)
                assert time.monotonic() - started < 1, host
            assert listener.num_connections == 0
            # The same sentence for all: no address, no name, no reason.
            assert len(messages) == 1
            assert "127" not in messages.pop()

    asyncio.run(run())


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.31.0.1", "192.0.0.8"),
        *("192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
        *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:8.8.8.8"),
        *("::8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::808:808", "100::1", "2001::1", "2001:db8::1"),
        *("2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1", "fe80::1%lo", "fec0::1"),
        *("ff0e::1", "2606:4700::1%eth0", "", "localhost", "8.8.8", "0x8.8.8.8", "8.8.8.8/32"),
    ],
)
def test_an_address_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "2a00::1"])
def test_an_address_outside_is_public(address: str) -> None:
    assert is_public(address)


def test_an_image_is_fetched_from_the_pinned_address_under_its_name() -> None:
    async def run() -> None:
        async with canary() as listener:
            url = f"http://Images.test:{listener.port}/a b.png?x=1#part".replace(" ", "%20")
            assert await fetcher().fetch(url) == PNG
            [head] = listener.heads
            assert head.startswith("GET /a%20b.png?x=1 HTTP/1.1\r\n")
            assert f"\r\nHost: images.test:{listener.port}\r\n" in head
            assert "ookie" not in head
            assert "uthorization" not in head

    asyncio.run(run())


def test_urls_are_off_unless_asked_for() -> None:
    async def run() -> None:
        async with canary() as listener:
            with pytest.raises(ImageError, match="allow_remote"):
                await fetcher(allow_remote=False).fetch(f"http://images.test:{listener.port}/x.png")
            assert listener.num_connections == 0

    asyncio.run(run())


def test_one_inner_address_among_public_ones_spoils_a_name() -> None:
    async def run() -> None:
        async with canary() as listener:
            mixed = ImageFetcher(
                ImagesConfig(allow_remote=True),
                resolve=names(mixed_test=["93.184.216.34 127.0.0.1"], none_test=[" "]),
            )
            for host in ("mixed.test", "none.test"):
                with pytest.raises(ImageError):
                    await mixed.fetch(f"http://{host}:{listener.port}/x.png")
            assert listener.num_connections == 0

    asyncio.run(run())


def test_a_name_is_resolved_once_and_the_connection_goes_there() -> None:
    """DNS rebinding: the name server is never asked again, when it would return another address."""

    async def run() -> None:
        async with canary() as listener:
            asked = []
            answers = names(rebind_test=["127.0.0.1", "127.0.0.2"])

            async def counting(host: str, port: int) -> list[str]:
                asked.append(host)
                return await answers(host, port)

            rebound = ImageFetcher(
                ImagesConfig(allow_remote=True), resolve=counting, may_connect=lambda a: a == "127.0.0.1"
            )
            url = f"http://rebind.test:{listener.port}/x.png"
            assert await rebound.fetch(url) == PNG
            assert asked == ["rebind.test"]
            # Now the name resolves to an internal address.
            with pytest.raises(ImageError):
                await rebound.fetch(url)
            assert listener.num_connections == 1

    asyncio.run(run())


def test_redirects_are_followed_through_the_same_door() -> None:
    async def run() -> None:
        for location in ("http://other.test:{port}/y.png", "/y.png", "//other.test:{port}/y.png"):
            async with canary() as listener:
                first = answer(b"", "302 Found", Location=location.format(port=listener.port))
                listener.replies = [first, answer()]
                assert await fetcher().fetch(f"http://images.test:{listener.port}/x.png") == PNG
                assert listener.heads[1].startswith("GET /y.png ")

    asyncio.run(run())


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/",
        "http://inside.test:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://images.test\\@127.0.0.1:{port}/",
        "http://u:p@images.test:{port}/",
        "//169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "gopher://images.test:{port}/",
        "data:image/png;base64,AAAA",
        "http://unknown.test/",
        "http://images.test:99999/",
        "http:///x",
        "",
    ],
)
def test_a_redirect_to_elsewhere_is_not_followed(location: str) -> None:
    async def run() -> None:
        async with canary() as listener:
            listener.replies = [answer(b"", "302 Found", Location=location.format(port=listener.port))]
            with pytest.raises(ImageError):
                await fetcher().fetch(f"http://images.test:{listener.port}/x.png")
            # The empty location redirects to itself until there are too many redirects.
            assert listener.num_connections == (1 if location else 4)

    asyncio.run(run())


def test_three_redirects_are_followed_and_no_more() -> None:
    async def run() -> None:
        onward = answer(b"", "307 Temporary Redirect", Location="/on.png")
        async with canary(onward, onward, onward, answer()) as listener:
            assert await fetcher().fetch(f"http://images.test:{listener.port}/x.png") == PNG
        async with canary(onward, onward, onward, onward, answer()) as listener:
            with pytest.raises(ImageError):
                await fetcher().fetch(f"http://images.test:{listener.port}/x.png")
            assert listener.num_connections == 4

    asyncio.run(run())


@pytest.mark.parametrize(
    "reply",
    [
        answer(bytes(2**20)),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(2**20),
        answer(PNG, "404 Not Found"),
        answer(PNG, "304 Not Modified"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 2**20,
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"",
    ],
    ids=["large", "large without a length", "missing", "unchanged", "short", "large head", "ssh", "nothing"],
)
def test_a_bad_answer_is_one_refusal(reply: bytes) -> None:
    async def run() -> None:
        async with canary(reply) as listener:
            with pytest.raises(ImageError, match="could not be fetched") as refused:
                await fetcher(max_bytes=4096).fetch(f"http://images.test:{listener.port}/x.png", param="p")
            assert refused.value.param == "p"
            assert str(listener.port) not in refused.value.message

    asyncio.run(run())


@pytest.mark.alone
def test_time_runs_over_the_whole_fetch() -> None:
    """Each piece arrives in time, but all of them together do not."""

    async def run() -> None:
        async with canary(answer(bytes(2**23))) as listener:
            listener.pause_seconds = 0.05
            started = time.monotonic()
            with pytest.raises(ImageError):
                await fetcher(timeout_seconds=0.3).fetch(f"http://images.test:{listener.port}/x.png")
            assert time.monotonic() - started < 1

    asyncio.run(run())


def test_only_so_many_fetches_run_at_once() -> None:
    async def run() -> None:
        async with canary(answer()) as listener:
            listener.pause_seconds = 0.3
            shared = fetcher(max_fetches=2)
            url = f"http://images.test:{listener.port}/x.png"
            tasks = [asyncio.create_task(shared.fetch(url)) for _ in range(6)]
            await asyncio.sleep(0.2)
            begun = listener.num_connections
            assert await asyncio.gather(*tasks) == [PNG] * 6
            assert begun <= 2

    asyncio.run(run())


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with canary() as listener, canary() as proxy:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            assert await fetcher().fetch(f"http://images.test:{listener.port}/x.png") == PNG
            assert proxy.num_connections == 0

    asyncio.run(run())


def test_tls_is_spoken_with_the_name_not_the_address() -> None:
    """The client hello names the host in plain text; nothing answers it, so the fetch fails."""

    async def run() -> None:
        hellos = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hellos.append(await reader.read(2048))
            writer.close()

        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ImageError):
            await fetcher().fetch(f"https://images.test:{port}/x.png")
        server.close()
        [hello] = hellos
        assert b"images.test" in hello
        assert b"127.0.0.1" not in hello

    asyncio.run(run())
