"""`vinfer.load` over a real bundle: answers and errors of the API, for callers that wait or do not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from compiling import as_served
from tiny.checkpoints import CACHE

import vinfer
from vinfer.errors import BundleError, ConfigError, EngineError, ModelNotFoundError, RequestError
from vinfer.llm.llm import LLM

FIELDS = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def bundle(bundle_of: Callable[[str], Path]) -> Path:
    return bundle_of("llama")


@pytest.fixture(scope="module")
def llm(bundle: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch, as_served():
        patch.setenv("VINFER_XLA_CACHE", str(CACHE / "test-code"))
        with vinfer.load(bundle, progress=False) as llm:
            yield llm


@pytest.mark.bundles("llama")
def test_whole_and_streamed_answers_are_alike(llm: LLM) -> None:
    answer = llm.chat("hi", **FIELDS)
    assert (answer.finish_reason, answer.usage["completion_tokens"]) == ("length", 6)
    assert str(answer) == answer.text == answer.body["choices"][0]["message"]["content"]
    pieces = list(llm.stream([{"role": "user", "content": "hi"}], **FIELDS))
    assert pieces
    assert "".join(map(str, pieces)) == answer.text


@pytest.mark.bundles("llama")
def test_embeddings_are_those_of_the_route(llm: LLM) -> None:
    [one] = llm.embed("one")
    both = llm.embed(["two", "one"], dimensions=None)
    assert both[1] == pytest.approx(one, abs=1e-5)
    assert sum(value * value for value in one) == pytest.approx(1, abs=1e-5)
    assert llm.post("/v1/embeddings", model=llm.models[0], input="one")["data"][0]["embedding"] == one


@pytest.mark.bundles("llama")
def test_the_rules_are_those_of_the_api(llm: LLM) -> None:
    with pytest.raises(RequestError, match="temperature") as caught:
        llm.chat("hi", temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(ModelNotFoundError, match="model 'none' is not served here"):
        llm.chat("hi", model="none")
    with pytest.raises(RequestError, match="no_such_field"):
        next(llm.stream("hi", no_such_field=1))
    with pytest.raises(RequestError, match="stream is no field here"):
        llm.chat("hi", stream=True)


@pytest.mark.bundles("llama")
def test_a_stream_that_is_left_stops_the_work(llm: LLM) -> None:
    pieces = llm.stream("hi", **{**FIELDS, "max_tokens": 400})
    next(pieces)
    pieces.close()
    # All slots are free again, and the next answer is right.
    assert llm.chat("hi", **FIELDS).text == "".join(map(str, llm.stream("hi", **FIELDS)))
    assert [thread.name for thread in threading.enumerate()].count("vinfer-load") == 1


@pytest.mark.bundles("llama")
def test_callers_with_an_event_loop_run_together(bundle: Path, llm: LLM) -> None:
    expected = llm.chat("hi", **FIELDS).text

    async def ask() -> None:
        async with vinfer.load(bundle, progress=False) as other:
            answers = await asyncio.gather(*(other.chat("hi", **FIELDS) for _ in range(3)))
            assert [answer.text for answer in answers] == [expected] * 3
            assert "".join([piece.text async for piece in other.stream("hi", **FIELDS)]) == expected
            assert len(await other.embed(["a", "b"])) == 2
            left = other.stream("hi", **FIELDS)
            await anext(left)
        with pytest.raises(EngineError, match="no longer loaded"):
            await anext(left)
        await left.aclose()

    asyncio.run(ask())


@pytest.mark.bundles("llama")
def test_what_cannot_be_loaded_is_the_error_of_a_start(bundle: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"models\[0\].num_slots is 3"),
        vinfer.load(bundle, overrides=["models[0].num_slots=3"], progress=False),
    ):
        pass
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError), vinfer.load(tmp_path, progress=False):
        pass


def test_importing_vinfer_loads_almost_nothing() -> None:
    source = "import sys, vinfer; vinfer.load('none.yaml'); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("vinfer")} == {
        *("vinfer", "vinfer.version", "vinfer.llm", "vinfer.llm.loading")
    }
    assert {"jax", "numpy", "pydantic", "starlette"} & loaded == set()
