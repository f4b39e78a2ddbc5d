"""The prompts of a parity check: built in, or from a file. Deterministic for a given bundle."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

from vinfer.bundle.manifest import Manifest
from vinfer.errors import ConfigError, RequestError

ANSWER_LEN = 64
"""Tokens of each greedy answer; fewer if max_model_len leaves no room."""
MAX_PROMPT_LEN = 2048
"""Longest built-in prompt; the memory of the reference's attention grows with its square."""

TEXT = (
    "The harbour master keeps two books: one for the ships that came, and one for those that were expected. "
    "On 3 May 1897 both had 17 lines. « Où est le navire ? » — 船はどこですか。\n\n"
    "def arrivals(book):\n    return [line.split(',')[0] for line in book if line]\n"
)

Encode = Callable[[str], list[int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and their name in a table."""

    name: str
    token_ids: tuple[int, ...]


def built_in_prompts(
    manifest: Manifest, encode: Encode, *, max_model_len: int, num_token_ids: int
) -> list[Prompt]:
    """Return the prompts for a bundle: random ids of lengths just past the limits of its programs, and text.

    A single token; one token more than each prefill length, so that a chunk is nearly empty; answers that
    grow past the end of a page; a prompt whose answer ends in the last row of the cache; text.

    Args:
        encode: converts text to token ids, with whatever the tokenizer puts before a text.
        max_model_len: the engine's, which can be less than the bundle's.
        num_token_ids: ids are drawn below this number.
    """
    longest = min(max_model_len - answer_len(max_model_len), MAX_PROMPT_LEN)
    shapes = [program.shape for program in manifest.programs]
    edges = {shape.length + 1 for shape in shapes if shape.kind == "prefill"}
    # Answers that grow over the end of the first pages, and of the blocks that attention reads.
    edges |= {manifest.page_size * pages - ANSWER_LEN // 2 - 1 for pages in (1, 2, 4, 16)}
    lengths = {1, *(edge for edge in edges if 0 < edge < longest), longest}
    prompts = [
        Prompt(f"{length} random", random_ids(length, num_token_ids=num_token_ids))
        for length in sorted(lengths)
    ]
    text_ids = tuple(encode(TEXT))[:longest]
    if text_ids:
        prompts.append(Prompt(f"{len(text_ids)} text", text_ids))
    return prompts


def random_ids(length: int, *, num_token_ids: int) -> tuple[int, ...]:
    """Return random token ids; the same for the same arguments."""
    draw = random.Random(length)  # noqa: S311 - no secret
    return tuple(draw.randrange(num_token_ids) for _ in range(length))


def answer_len(max_model_len: int, prompt_len: int = 1) -> int:
    """Return how many tokens to ask for: ANSWER_LEN, half of a short max_model_len, or what is left."""
    return min(ANSWER_LEN, max(max_model_len // 2, 1), max_model_len - prompt_len)


def read_prompts(path: Path, encode: Encode, *, max_model_len: int, num_token_ids: int) -> list[Prompt]:
    """Read a file with one JSON value per line: a list of token ids, or a string.

    Raises:
        ConfigError: the file is unreadable or empty, or a line is not a valid prompt for this model.
    """
    try:
        # Not splitlines: a JSON string may contain other line separators.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {path}: {error}") from None
    prompts = [
        _prompt(line, f"{path.name}:{number}", encode, max_model_len, num_token_ids)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not prompts:
        raise ConfigError(f"--prompts {path} is empty: write one JSON string or list of token ids per line")
    return prompts


def _prompt(line: str, where: str, encode: Encode, max_model_len: int, num_token_ids: int) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--prompts {where} is not JSON: {error}") from None
    if isinstance(value, str):
        try:
            value = encode(value)
        except RequestError as error:
            raise ConfigError(f"--prompts {where}: {error.message}") from None
    if not isinstance(value, list) or not value or any(type(item) is not int for item in value):
        raise ConfigError(f"--prompts {where} must be a nonempty JSON string or list of token ids")
    if not all(0 <= item < num_token_ids for item in value):
        raise ConfigError(f"--prompts {where} has token ids outside 0 to {num_token_ids - 1}")
    if len(value) >= max_model_len:
        raise ConfigError(
            f"--prompts {where} has {len(value)} tokens; max_model_len is {max_model_len}: shorten it"
        )
    return Prompt(where, tuple(value))
