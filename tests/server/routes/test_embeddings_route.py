"""`/v1/embeddings`: vectors worked out by hand, both encodings, limits, and the official client."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import openai
import pytest
from fake_engine import BOS, EMBEDDING_SIZE, VOCAB_SIZE, FakeEngine, ids_of, served_model, with_manifest
from running_server import RunningServer, run

from vinfer.bundle.manifest import Embeddings
from vinfer.config import ServerConfig
from vinfer.engine.request import Request, TokenEvent
from vinfer.errors import EngineError, QueueFullError
from vinfer.server.fields.completions import MAX_PROMPTS
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

Vector = npt.NDArray[np.float64]


def embed(server: RunningServer, **fields: Any) -> httpx.Response:
    return server.http.post("/v1/embeddings", json={"model": "fake", "input": "ab", **fields})


def vector(token_ids: list[int], size: int = EMBEDDING_SIZE) -> Vector:
    """Return the vector of the fake engine's sums: the mean of [id, 1, 0, ...], L2-normalized."""
    whole = np.zeros(EMBEDDING_SIZE)
    whole[:2] = (sum(token_ids), len(token_ids))
    return np.asarray(whole[:size] / np.linalg.norm(whole[:size]))


def vectors(response: httpx.Response) -> list[Vector]:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [np.array(item["embedding"]) for item in data]


def refusal(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(
    ("sent", "prompts"),
    [
        ("ab", [ids_of("ab")]),
        (["ab", "ü"], [ids_of("ab"), ids_of("ü")]),
        (ids_of("ab"), [ids_of("ab")]),
        ([ids_of("ab"), ids_of("ü")], [ids_of("ab"), ids_of("ü")]),
        ([ids_of("a"), "b"], [ids_of("a"), ids_of("b")]),
        ([BOS], [[BOS]]),
    ],
)
def test_every_form_of_input(server: RunningServer, sent: Any, prompts: list[list[int]]) -> None:
    response = embed(server, input=sent)
    for found, prompt_ids in zip(vectors(response), prompts, strict=True):
        np.testing.assert_allclose(found, vector(prompt_ids), rtol=1e-6)
    assert [list(request.prompt_ids) for request in server.engine.requests] == prompts
    assert {(request.pooling, request.params.max_tokens) for request in server.engine.requests} == {
        ("mean", 0)
    }
    num_tokens = sum(map(len, prompts))
    assert response.json()["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert server.engine.cancelled == []


def test_base64_is_little_endian_float32(server: RunningServer) -> None:
    [as_numbers] = vectors(embed(server))
    [item] = embed(server, encoding_format="base64").json()["data"]
    raw = base64.b64decode(item["embedding"], validate=True)
    assert len(raw) == 4 * EMBEDDING_SIZE
    assert np.frombuffer(raw, "<f4").tolist() == as_numbers.tolist()


@pytest.mark.parametrize("size", [1, 2, EMBEDDING_SIZE])
def test_fewer_dimensions_are_as_long_again(server: RunningServer, size: int) -> None:
    [found] = vectors(embed(server, dimensions=size))
    assert len(found) == size
    np.testing.assert_allclose(found, vector(ids_of("ab"), size), rtol=1e-6)
    assert abs(np.linalg.norm(found) - 1) < 1e-6


def test_a_model_that_pools_the_last_token(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(), ModelTable(["fake"])
    last = Embeddings(pooling="last", size=EMBEDDING_SIZE)
    models.serve(with_manifest(served_model(engine, tokenizer), embeddings=last))
    with run(ServerConfig(port=0), models, engine) as server:
        np.testing.assert_allclose(vectors(embed(server))[0], vector(ids_of("b")), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[4], []]}, "input[1]"),
        ({"input": None}, "input"),
        ({"input": 4}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a", 4]}, "input[1]"),
        ({"input": [4, "a"]}, "input[1]"),
        ({"input": [4, VOCAB_SIZE]}, "input[1]"),
        ({"input": [4, True]}, "input[1]"),
        ({"input": [[4, -1]]}, "input[0][1]"),
        ({"input": ["a"] * (MAX_PROMPTS + 1)}, "input"),
        ({"input": "a" * 129}, "input"),
        ({"input": ["a", [4] * 129]}, "input[1]"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": EMBEDDING_SIZE + 1}, "dimensions"),
        ({"dimensions": 2.5}, "dimensions"),
        ({"model": None}, "model"),
        ({"temperature": 1}, "temperature"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(server: RunningServer, fields: dict[str, Any], param: str) -> None:
    assert refusal(embed(server, **fields))["param"] == param
    assert server.engine.requests == []


def test_the_longest_and_the_most(server: RunningServer) -> None:
    limit = server.engine.max_model_len
    assert len(vectors(embed(server, input=[4] * limit))) == 1
    too_long = refusal(embed(server, input=[4] * (limit + 1)))
    assert too_long["code"] == "context_length_exceeded"
    assert "max_model_len is 128: shorten it or raise models[0].max_model_len" in too_long["message"]
    assert len(vectors(embed(server, input=["a"] * MAX_PROMPTS))) == MAX_PROMPTS


def test_a_model_without_the_programs_says_which_key_to_set(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(), ModelTable(["fake"])
    models.serve(with_manifest(served_model(engine, tokenizer), embeddings=None))
    with run(ServerConfig(port=0), models, engine) as server:
        error = refusal(embed(server))
        assert error["param"] == "model"
        assert "set models[0].embeddings: mean (or last)" in error["message"]
        [model] = server.http.get("/v1/capabilities").json()["models"]
        assert model["embeddings"] is None
        assert "/v1/embeddings" not in {form["path"] for form in model["forms"]}


def test_capabilities_say_pooling_and_size(server: RunningServer) -> None:
    [model] = server.http.get("/v1/capabilities").json()["models"]
    assert model["embeddings"] == {"pooling": "mean", "size": EMBEDDING_SIZE}


def test_a_full_queue_is_429(server: RunningServer) -> None:
    server.engine.queue_full = True
    assert refusal(embed(server), 429)["code"] == "queue_full"


class ShortQueue(FakeEngine):
    """Accepts at most `room` requests at once; `in_flight` has how many there were when each arrived."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.num_open = 0
        self.in_flight: list[int] = []

    def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        if self.num_open >= self.room:
            raise QueueFullError("no room")
        self.num_open += 1
        self.in_flight.append(self.num_open)
        return self._counted(super().submit(request))

    async def _counted(self, events: AsyncIterator[TokenEvent]) -> AsyncIterator[TokenEvent]:
        async for event in events:
            self.num_open -= event.is_last
            yield event


@pytest.mark.parametrize(("room", "most"), [(1, 1), (3, 3), (80, 4)])
def test_more_inputs_than_the_queue_has_room_for(tokenizer: Tokenizer, room: int, most: int) -> None:
    """The fake engine has four slots; a request with many inputs must not take more of the queue."""
    engine, models = ShortQueue(room), ModelTable(["fake"])
    models.serve(served_model(engine, tokenizer))
    with run(ServerConfig(port=0), models, engine) as server:
        sent = [[4 + i] for i in range(20)]
        for found, prompt_ids in zip(vectors(embed(server, input=sent)), sent, strict=True):
            np.testing.assert_allclose(found, vector(prompt_ids), rtol=1e-6)
        assert max(engine.in_flight) == most
        engine.room = 0
        assert refusal(embed(server, input=sent), 429)["code"] == "queue_full"


def test_a_failure_of_the_engine_cancels_the_rest(server: RunningServer) -> None:
    server.engine.failure = EngineError("the device is gone")
    assert refusal(embed(server, input=["a", "b", "c"]), 500)["code"] == "engine_error"
    assert server.engine.cancelled == [request.id for request in server.engine.requests]
    assert len(server.engine.cancelled) == 3


def test_a_client_that_leaves_cancels_all(server: RunningServer) -> None:
    server.engine.is_stuck = True
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/embeddings", json={"model": "fake", "input": ["a", "b"]}, timeout=0.5)
    server.engine.wait_until_cancelled(2)


def test_no_vector_holds_what_json_cannot(server: RunningServer) -> None:
    """The first number of [0, 1, 0, ...] alone has no direction; a model whose states overflow fails."""
    assert vectors(embed(server, input=[0]))[0].tolist()[:2] == [0, 1]
    assert vectors(embed(server, input=[0], dimensions=1))[0].tolist() == [0]
    server.engine.pooled_scale = float("inf")
    assert refusal(embed(server), 500)["code"] == "engine_error"


def test_the_official_client(server: RunningServer) -> None:
    """It requests base64 by default."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        default = client.embeddings.create(model="fake", input=["ab", "c"], user="somebody")
        numbers = client.embeddings.create(model="fake", input=["ab", "c"], encoding_format="float")
        fewer = client.embeddings.create(model="fake", input=ids_of("ab"), dimensions=1)
    assert [item.embedding for item in default.data] == [item.embedding for item in numbers.data]
    np.testing.assert_allclose(default.data[1].embedding, vector(ids_of("c")), rtol=1e-6)
    assert fewer.data[0].embedding == [1.0]
    assert default.usage.total_tokens == 3


def test_a_model_without_a_head_embeds_and_refuses_to_generate(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(), ModelTable(["fake"])
    model = served_model(engine, tokenizer)
    models.serve(with_manifest(model, model=model.card.model_copy(update={"has_head": False})))
    with run(ServerConfig(port=0), models, engine) as server:
        assert len(vectors(embed(server))) == 1
        for response in (
            server.chat(),
            server.chat(stream=True),
            server.complete(),
            server.http.post("/v1/responses", json={"model": "fake", "input": "hi"}),
        ):
            error = refusal(response)
            assert (error["param"], "without a head" in error["message"]) == ("model", True)
        assert server.http.post("/tokenize", json={"model": "fake", "prompt": "ab"}).status_code == 200
        (model,) = server.http.get("/v1/capabilities").json()["models"]
        assert not {"/v1/chat/completions", "/v1/completions", "/v1/responses"} & {
            form["path"] for form in model["forms"]
        }
