"""Prompt lookup: vinfer with speculation beside vinfer without, one stream, on answers that copy or do not.

The same greedy prompts go to both, whose answers must be equal.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import Any

from benchmark.process import started, vinfer_command

from peers.servers import of_vinfer, vinfer_config
from peers.sizes import Sizes
from peers.starts import READY_SECONDS, side_of
from peers.turns import Side, Values, in_turns
from vinfer.bench.client import complete

# Its first start need not compare it with transformers once more.
SPECULATION = 'speculation: {ngram: 3, tokens: 4}\n    verify: "off"'
NEW_TOKENS = 128
_TEXT = (
    "The harbour of Lindau was built in 1856, when the railway reached the island. A lion of stone, six "
    "metres high, looks over the lake from the eastern mole. The lighthouse on the western mole is 33 "
    "metres high and is the southernmost of the country. Its clock can be seen from every ship that "
    "enters. In winter the ferries to Bregenz and Constance rest, and the harbour belongs to the gulls. "
    "The council decided in 2019 that no more than forty boats may stay overnight. The fishermen, of "
    "whom three are left, protested."
)
_CODE = """\
def summed_by_month(entries):
    total_by_month = {}
    for entry in entries:
        if entry.amount <= 0:
            raise ValueError(f"entry {entry.number} has no amount")
        month = (entry.date.year, entry.date.month)
        total_by_month[month] = total_by_month.get(month, 0) + entry.amount
    return sorted(total_by_month.items())
"""
_PEOPLE = {
    "type": "array",
    "minItems": 3,
    "maxItems": 3,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "occupation": {"enum": ["engineer", "teacher", "fisherman"]},
            "year_of_birth": {"type": "integer", "minimum": 1900, "maximum": 2020},
        },
        "required": ["name", "occupation", "year_of_birth"],
        "additionalProperties": False,
    },
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A prompt, and the fields that its answer needs."""

    prompt: str
    is_chat: bool = False
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


TASKS = {
    "summary with quotes": Task(
        f'{_TEXT}\n\nThe text again, with each sentence in quotes:\n\n1. "The harbour of'
    ),
    # It begins with the edit, which so small a model does not make by itself.
    "code edit": Task(
        f"```python\n{_CODE}```\n\nThe same function with a docstring:\n\n```python\n"
        'def summed_by_month(entries):\n    """Add up the amounts of each month."""\n    total_by_month',
        fields={"stop": "```"},
    ),
    "JSON with a schema": Task(
        "Anna Lang, born in 1961, teaches. Bert Ohm, born in 1974, is an engineer. Carl Meer, born in 1950, "
        "fishes. List these three people as JSON.",
        is_chat=True,
        fields={
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "people", "strict": True, "schema": _PEOPLE},
            }
        },
    ),
    "a text that copies nothing": Task(
        "An essay about why people travel, although they could stay at home:\n\n"
    ),
}


def lookup(vinfer: str, sizes: Sizes) -> dict[str, Any]:
    """Return the figures by task and by side, `with` and `without` speculation.

    Raises:
        AnswerError: a server does not start.
    """
    configs = {"with": vinfer_config("speculation", SPECULATION), "without": vinfer_config()}
    with contextlib.ExitStack() as stack:
        sides = []
        for name, config in configs.items():
            server = of_vinfer(vinfer_command(config, vinfer), name, f"vinfer {name} speculation")
            served = stack.enter_context(
                started(server.command, ready_path=server.ready_path, timeout_seconds=READY_SECONDS)
            )
            sides.append(side_of(server, served))

        async def run() -> dict[str, Any]:
            return {
                task: await in_turns(f"lookup, {task}", sides, sizes.repeats, _Measurement(TASKS[task]).run)
                for task in TASKS
            }

        return asyncio.run(run())


class _Measurement:
    """One task on every side, and whether they answer the same."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._text: str | None = None

    async def run(self, side: Side, turn: int) -> Values:
        if turn == 0:
            await self._answer(side)
        return await self._answer(side)

    async def _answer(self, side: Side) -> Values:
        endpoint = dataclasses.replace(side.endpoint, is_chat=self._task.is_chat)
        fields = {**side.fields, **self._task.fields, "max_tokens": NEW_TOKENS}
        if self._task.fields:
            # It ends where the schema or the code does.
            fields.pop("ignore_eos", None)
        record = await complete(endpoint, endpoint.body(self._task.prompt, **fields))
        self._text = self._text or record.text
        return {
            "tokens_per_second": record.num_tokens / (record.done_seconds - record.sent_seconds),
            "num_tokens": record.num_tokens,
            "is_equal": float(record.text == self._text),
        }
