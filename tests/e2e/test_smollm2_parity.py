"""Greedy answers over HTTP compared with transformers in float32, token by token.

The reference reads the weights from the GGUF file itself. Prompts are token ids, so both get the same input.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server_process import MODEL, ServerProcess, smollm2_file

from vinfer.text.token_bytes import token_bytes
from vinfer.text.tokenizer import Tokenizer

# Lengths on both sides of every prefill length and of the smallest block of the KV cache, and odd ones.
PROMPT_LENGTHS = (5, 17, 63, 64, 65, 131, 255, 256, 257, 401)
NUM_TOKENS = 48
# With 8 in flight, batched requests run through other programs than a single request.
NUM_IN_FLIGHT = 8
# If the reference's two best tokens are this close, float32 cannot decide between them.
TIE = 1e-4
# Prompts that the reference also answers by itself, without seeing our answer.
NUM_GENERATED = 2


@dataclasses.dataclass(frozen=True)
class Answer:
    token_ids: tuple[int, ...]
    text: str


@pytest.fixture(scope="module")
def prompts(text_ids: list[int]) -> list[list[int]]:
    return [text_ids[150 * i : 150 * i + length] for i, length in enumerate(PROMPT_LENGTHS)]


@pytest.fixture(scope="module")
def ids_by_label(tokenizer: Tokenizer) -> dict[str, int]:
    """Return token ids by their spelling in logprobs."""
    labels = {}
    for token_id in range(tokenizer.vocab_size):
        raw = token_bytes(tokenizer, token_id)
        try:
            label = raw.decode()
        except UnicodeDecodeError:
            label = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        assert label not in labels
        labels[label] = token_id
    return labels


def ask(server: ServerProcess, prompt: list[int], ids_by_label: dict[str, int], *, stream: bool) -> Answer:
    fields = {"prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True, "logprobs": 0}
    response = server.complete(**fields, stream=stream)
    assert response.status_code == 200, response.text
    if stream:
        lines = [
            line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")
        ]
        assert lines.pop() == "[DONE]"
        choices = [json.loads(line)["choices"][0] for line in lines]
    else:
        choices = response.json()["choices"]
    labels = [label for choice in choices for label in (choice["logprobs"] or {"tokens": []})["tokens"]]
    return Answer(
        tuple(ids_by_label[label] for label in labels), "".join(choice["text"] for choice in choices)
    )


@pytest.fixture(scope="module")
def answers(
    server: ServerProcess, prompts: list[list[int]], ids_by_label: dict[str, int]
) -> dict[str, list[Answer]]:
    """Every prompt's answer, for each way of asking."""
    alone = {
        "alone": [ask(server, prompt, ids_by_label, stream=False) for prompt in prompts],
        "alone, streamed": [ask(server, prompt, ids_by_label, stream=True) for prompt in prompts],
    }
    with ThreadPoolExecutor(NUM_IN_FLIGHT) as pool:

        def crowd(stream: bool) -> list[Answer]:
            return list(pool.map(lambda prompt: ask(server, prompt, ids_by_label, stream=stream), prompts))

        return {**alone, "batched": crowd(False), "batched, streamed": crowd(True)}


@pytest.fixture(scope="module")
def reference(prompts: list[list[int]], answers: dict[str, list[Answer]]) -> dict[str, list[list]]:
    """The reference's choices for each distinct answer, by way of asking, and its own first answers."""
    checked = [
        (prompt, answer.token_ids)
        for given in answers.values()
        for prompt, answer in zip(prompts, given, strict=True)
    ]
    different = list(dict.fromkeys((tuple(prompt), answer) for prompt, answer in checked))
    generated = [(prompt, NUM_TOKENS) for prompt in prompts[:NUM_GENERATED]]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("reference.py"), smollm2_file()],
        input=json.dumps({"checked": different, "generated": generated}),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    choices = dict(zip(different, results["checked"], strict=True))
    return {
        "generated": results["generated"],
        **{
            way: [
                choices[tuple(prompt), answer.token_ids]
                for prompt, answer in zip(prompts, given, strict=True)
            ]
            for way, given in answers.items()
        },
    }


@pytest.mark.parametrize("way", ["alone", "alone, streamed", "batched", "batched, streamed"])
def test_every_token_is_the_references_choice(
    answers: dict[str, list[Answer]], reference: dict[str, list[list]], way: str
) -> None:
    mismatches = []
    for length, answer, choices in zip(PROMPT_LENGTHS, answers[way], reference[way], strict=True):
        assert len(answer.token_ids) == len(choices) == NUM_TOKENS
        for step, (token, (best, second, lead)) in enumerate(zip(answer.token_ids, choices, strict=True)):
            if token != best and not (token == second and lead < TIE):
                mismatches.append(f"prompt of {length}, step {step}: {token}, reference {best} by {lead:.2g}")
    assert not mismatches


def test_the_reference_says_the_same_by_itself(
    answers: dict[str, list[Answer]], reference: dict[str, list[list]]
) -> None:
    for answer, generated, choices in zip(
        answers["alone"], reference["generated"], reference["alone"], strict=False
    ):
        # After a near tie, two greedy answers may diverge for good.
        step = next((i for i, choice in enumerate(choices) if choice[2] < TIE), NUM_TOKENS)
        assert list(answer.token_ids[:step]) == generated[:step]
        assert step > 0


def test_the_text_is_that_of_the_tokens(
    answers: dict[str, list[Answer]], tokenizer: Tokenizer, bundle: Path
) -> None:
    from tokenizers import Tokenizer as FastTokenizer

    decode = FastTokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json")).decode
    for given in answers.values():
        for answer in given:
            assert answer.text == decode(list(answer.token_ids), skip_special_tokens=True)


@pytest.mark.parametrize("logprobs", [False, True])
def test_the_question_of_the_readme(server: ServerProcess, logprobs: bool) -> None:
    answer = server.chat("What is the capital of France?", logprobs=logprobs).json()
    assert answer["model"] == MODEL
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"
