"""Whose pages a request may share, and whose request it is: API keys, salts and `models[].prefix_cache`."""

from __future__ import annotations

import hashlib
import itertools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import PROMPT_IDS
from hypothesis import given
from hypothesis import strategies as st
from running_server import RunningServer, Start

from vinfer.server.generate.cache_scope import cache_scope
from vinfer.server.model_table import PrefixCache

KEYS = ("first-key", "second-key")
settings_of_models = st.sampled_from(typing.get_args(PrefixCache))
parts = st.text(st.characters(), max_size=8)


@pytest.fixture(scope="module")
def locked(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text("\n".join(KEYS), encoding="utf-8")
    path.chmod(0o600)
    with start(api_keys_file=path) as server:
        yield server


def post(server: RunningServer, key: str, path: str, **fields: Any) -> Any:
    """Send a request under a key; return the answer."""
    headers = {"authorization": f"Bearer {key}"}
    response = server.http.post(path, json={"model": "fake", **fields}, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def send(server: RunningServer, key: str, **fields: Any) -> Any:
    """Complete the same prompt under a key; return the answer."""
    return post(server, key, "/v1/completions", prompt=[4, 5], max_tokens=1, **fields)


def scopes(server: RunningServer) -> list[str]:
    found = [request.cache_scope for request in server.engine.requests]
    assert None not in found
    return typing.cast("list[str]", found)


def test_only_the_same_key_shares(locked: RunningServer) -> None:
    locked.engine.reset()
    answers = [send(locked, key) for key in (*KEYS, *KEYS)]
    first, second, *again = scopes(locked)
    assert first != second
    assert again == [first, second]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached == [0, 0, 1, 1]


def test_a_salt_narrows_within_a_key(locked: RunningServer) -> None:
    locked.engine.reset()
    for key, salt in itertools.product(KEYS, (None, "pepper", "null")):
        send(locked, key, cache_salt=salt)
    assert len(set(scopes(locked))) == 6
    send(locked, KEYS[0], cache_salt="pepper")
    assert scopes(locked)[-1] == scopes(locked)[1]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/embeddings", {"input": "hi"}),
    ],
)
def test_every_route_says_whose_request_it_is(
    locked: RunningServer, path: str, fields: dict[str, Any]
) -> None:
    locked.engine.reset()
    for key in KEYS:
        post(locked, key, path, **fields)
    tenants = [request.tenant for request in locked.engine.requests]
    assert tenants == [hashlib.sha256(key.encode()).hexdigest() for key in KEYS]


def test_a_key_is_neither_in_the_scope_nor_in_the_tenant(locked: RunningServer) -> None:
    locked.engine.reset()
    send(locked, KEYS[0])
    [request] = locked.engine.requests
    assert KEYS[0] not in repr(request)


def test_without_keys_all_are_one_tenant(server: RunningServer) -> None:
    for key in KEYS:
        send(server, key)
    assert len(set(scopes(server))) == 1
    assert [request.tenant for request in server.engine.requests] == ["", ""]


def test_shared_ignores_keys_but_not_salts(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("\n".join(KEYS), encoding="utf-8")
    path.chmod(0o600)
    with start(api_keys_file=path, prefix_cache="shared") as server:
        for key, salt in itertools.product(KEYS, (None, "pepper")):
            send(server, key, cache_salt=salt)
        found = scopes(server)
        assert found[:2] == found[2:]
        assert found[0] != found[1]
        assert len({request.tenant for request in server.engine.requests}) == 2


def test_off_shares_within_a_request_only(start: Start) -> None:
    """The `n` choices of a prompt, and equal prompts, still share one prefill."""
    with start(prefix_cache="off") as server:
        answers = [server.complete(prompt=[[4, 5, 6], [4, 5, 6]], n=2, cache_salt="pepper") for _ in range(2)]
        found = scopes(server)
    assert len(set(found[:4])) == len(set(found[4:])) == 1
    assert found[0] != found[4]
    cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached == [4, 4]


def test_cache_prompt_false_shares_within_a_request_only(start: Start) -> None:
    """llama.cpp's name for a prompt that is computed as a whole; benchmark tools send it."""
    with start(prefix_cache="shared") as server:
        for send in (server.chat, server.complete):
            server.engine.reset()
            for value in (False, False, True, None):
                assert send(cache_prompt=value, n=2).status_code == 200
            found = scopes(server)
            assert [found[i] == found[i + 1] for i in range(0, 8, 2)] == [True] * 4
            assert len({found[0], found[2], found[4]}) == 3
            assert found[4] == found[6]


def test_cached_tokens_of_every_route(server: RunningServer) -> None:
    """The second of two requests finds all of the prompt but its last token."""
    chats = [server.chat(max_tokens=1).json()["usage"] for _ in range(2)]
    found = [usage["prompt_tokens_details"]["cached_tokens"] for usage in chats]
    assert found == [0, len(PROMPT_IDS) - 1]
    server.engine.reset()
    body = {"model": "fake", "input": "hi", "max_output_tokens": 1}
    responses = [server.http.post("/v1/responses", json=body).json()["usage"] for _ in range(2)]
    found = [usage["input_tokens_details"]["cached_tokens"] for usage in responses]
    assert found == [0, len(PROMPT_IDS) - 1]
    server.engine.reset()
    completions = [server.complete(max_tokens=1).json()["usage"] for _ in range(2)]
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in completions] == [0, 1]


@given(
    st.lists(
        st.tuples(settings_of_models, parts, st.none() | parts, parts), min_size=2, max_size=2, unique=True
    )
)
def test_no_two_combinations_share_by_accident(
    combinations: list[tuple[PrefixCache, str, str | None, str]],
) -> None:
    """Salts are chosen by clients, and may hold quotes, separators and lone surrogates."""
    scopes = [
        cache_scope(setting, tenant=tenant, cache_salt=salt, request_name=name)
        for setting, tenant, salt, name in combinations
    ]
    whose = [
        (setting, {"per_key": tenant, "shared": "", "off": name}[setting], salt)
        for setting, tenant, salt, name in combinations
    ]
    assert (scopes[0] == scopes[1]) == (whose[0] == whose[1])
    assert all(scope.encode() for scope in scopes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("ab", "")),
        (("", None), ("", "null")),
        (("", None), ("", "")),
        (('a", "b', "c"), ("a", 'b", "c')),
        (("a/b", "c"), ("a", "b/c")),
    ],
)
def test_keys_and_salts_do_not_run_together(
    one: tuple[str, str | None], other: tuple[str, str | None]
) -> None:
    scopes = {
        cache_scope("per_key", tenant=tenant, cache_salt=salt, request_name="r")
        for tenant, salt in (one, other)
    }
    assert len(scopes) == 2
