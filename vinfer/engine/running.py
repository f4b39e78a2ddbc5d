"""A request with a slot: how far it has come, and which pages it has. Pure data of the scheduler."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from vinfer.bundle.programs import ProgramKind
from vinfer.engine.feature_cache import FeatureCache
from vinfer.engine.kv_cache.pages import PageTable, ShardPages
from vinfer.engine.kv_cache.prefix_keys import PrefixKeys
from vinfer.engine.request import Request


@dataclasses.dataclass(eq=False, slots=True)
class Running:
    """A request from its admission to its end, or until it gives its pages back.

    Attributes:
        arrival: its number in the order of arrival.
        outputs: tokens of the answer that were read from the device before it was admitted. They are
            prefilled after the prompt, if the request was preempted.
        tokens: the prompt and all tokens of the answer that have been read.
        keys: names its pages' contents; None if it shares no pages.
    """

    request: Request
    arrival: int
    slot: int
    shard: ShardPages
    table: PageTable
    outputs: tuple[int, ...]
    tokens: list[int]
    keys: PrefixKeys | None
    num_prefilled: int = 0
    num_cached: int = 0
    """Positions that it began with, in pages of others."""
    num_dispatched: int = 0
    """Most tokens of the answer that the dispatches so far can have sampled; the first comes from prefill."""
    num_published: int = 0
    """Positions in pages that others can find."""
    holds_features: bool = False
    """Whether its images have pinned rows: from before they are encoded until the prompt is prefilled."""
    num_drafted: int = 0
    """Tokens of its draft in a dispatch that has not been read; `num_dispatched` counts all of them."""

    def __post_init__(self) -> None:
        self.num_dispatched = len(self.outputs)

    @property
    def kind(self) -> ProgramKind:
        """The kind of program that reads its prompt."""
        return "prefill" if self.outputs else prompt_kind(self.request)

    @property
    def finds_pages(self) -> bool:
        """Whether it may begin with pages of others: what is scored or pooled is computed whole."""
        return self.keys is not None and prompt_kind(self.request) == "prefill"

    @property
    def num_to_prefill(self) -> int:
        return len(self.request.prompt_ids) + len(self.outputs)

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == self.num_to_prefill

    @property
    def num_left(self) -> int:
        return self.request.params.max_tokens - self.num_dispatched

    @property
    def max_kv_len(self) -> int:
        """Most positions that the device can have written; the newest token is not among them yet.

        Those of a wrong draft do not count once the dispatch is read: they are written again.
        """
        return self.num_prefilled + max(self.num_dispatched - len(self.outputs) - 1, 0)

    def publish(self) -> None:
        """Let others find the full pages whose tokens are known; `tokens` has no more than was written."""
        if self.keys is None:
            return
        # The newest token of an answer has been sampled, but perhaps not written yet.
        num_known = len(self.tokens) - 1 if len(self.tokens) > self.num_to_prefill else self.num_prefilled
        end = min(num_known, self.max_kv_len)
        if end > self.num_published:
            self.shard.publish(self.table, self.keys, start=self.num_published, end=end)
            self.num_published = end

    def let_go_of_features(self, features: FeatureCache) -> None:
        """Unpin its images, if they are pinned."""
        if self.holds_features:
            features.unpin(self.request.images)
            self.holds_features = False


def by_turns(running: Iterable[Running], turns: Mapping[str, int]) -> list[Running]:
    """Return the unfinished prompts such that tenants take turns, each with its oldest first.

    Args:
        turns: by tenant, when a prompt of it was last worked on.
    """
    nth_of_tenant: Counter[str] = Counter()
    placed = []
    for place, each in enumerate(running):
        if not each.is_prefilled:
            tenant = each.request.tenant
            placed.append((nth_of_tenant[tenant], turns.get(tenant, 0), place, each))
            nth_of_tenant[tenant] += 1
    return [entry[-1] for entry in sorted(placed, key=lambda entry: entry[:-1])]


def prompt_kind(request: Request) -> ProgramKind:
    """Return the kind of program that reads a request's prompt."""
    if request.pooling is not None:
        return "embed"
    return "score" if request.scores_prompt else "prefill"
