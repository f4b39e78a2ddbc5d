"""Random requests, cancellations and ends, executed by a device that checks every dispatch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from engine_requests import IMAGE_LENS, MAX_MODEL_LEN, CountingMatcher, make_request
from examples import examples
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from simulation import Simulation, Sizes

from vinfer.bundle.manifest import Pooling

BEGINNINGS = {
    "a": tuple(range(10, 13)),
    "b": tuple(range(20, 29)),
    "c": tuple(range(30, 47)),
    "d": tuple(range(50, 90)),
}
"""Beginnings that several prompts have in common, by name."""

IMAGES_IN_BEGINNINGS: dict[str, tuple[tuple[int, str], ...]] = {"c": ((2, "q"),), "d": ((0, "s"), (37, "p"))}
"""The images in these; the last image of "d" ends it."""

Purpose = Literal["score"] | Pooling | None

SIZES = st.builds(
    lambda slots_and_dp, **sizes: Sizes(num_slots=slots_and_dp[0], dp=slots_and_dp[1], **sizes),
    st.sampled_from(((1, 1), (2, 1), (3, 1), (5, 1), (2, 2), (6, 2))),
    prefill_shapes=st.sampled_from(
        (
            ((1, 8),),
            ((1, 4), (1, 8)),
            ((1, 4), (1, 8), (2, 4)),
            ((2, 8), (4, 4)),
            ((1, 16), (3, 8)),
            ((2, 6),),
            ((1, 8), (5, 3)),
        )
    ),
    page_size=st.integers(1, 8),
    spare_pages=st.sampled_from((0, 0, 0, 1, 4, 60)),
    windows=st.sampled_from(((None,), (None, 5), (5,))),
    dispatch_cost_tokens=st.sampled_from((None, 0, 3)),
    min_prefill_tokens=st.sampled_from((0, 0, 16, 40)),
    encoders=st.sampled_from(((1,), (1, 3), (2,))),
    several_at_most=st.sampled_from((5, 16, 30)),
    keeps_images_whole=st.booleans(),
    ngram=st.sampled_from((None, 1, 2, 3)),
)

WHAT_HAPPENS = (
    "several rows",
    "preempted",
    "resumed",
    "found",
    "found after preemption",
    "copied",
    "used in place",
    "passed by a window",
    "encoded",
    "drafted",
    "accepted in whole",
    "rejected in part",
)


class SchedulerSequences(RuleBasedStateMachine):
    """Sizes and operations for a `Simulation`."""

    simulation: Simulation | None = None

    @initialize(sizes=SIZES)
    def start(self, sizes: Sizes) -> None:
        self.simulation = Simulation(sizes)

    @rule(
        beginning=st.sampled_from(("d", "c", "b", "a", None)),
        num_common=st.integers(1, 40),
        tail=st.lists(st.integers(0, 2), max_size=20),
        max_tokens=st.sampled_from((24, 40, 9, 2, 1, 0)),
        stops_after=st.one_of(st.none(), st.integers(1, 30)),
        purpose=st.sampled_from((None, None, None, "score", "mean", "last")),
        has_grammar=st.sampled_from((False, False, True)),
        priority=st.sampled_from((0, 0, 0, -1, 1)),
        image_names=st.lists(st.sampled_from(sorted(IMAGE_LENS)), max_size=3),
        scope=st.sampled_from(("s", "s", "t", None)),
        tenant=st.sampled_from(("", "u", "v")),
        n=st.sampled_from((2, 1, 1, 1, 5)),
    )
    def submit(
        self,
        *,
        beginning: str | None,
        num_common: int,
        tail: Sequence[int],
        max_tokens: int,
        stops_after: int | None,
        purpose: Purpose,
        has_grammar: bool,
        priority: int,
        image_names: Sequence[str],
        scope: str | None,
        tenant: str,
        n: int,
    ) -> None:
        assert self.simulation is not None
        common = BEGINNINGS[beginning][:num_common] if beginning else ()
        prompt_ids = (*common, *tail) or (7,)
        images = self._images(beginning, len(common), len(prompt_ids), image_names)
        if images:
            # Prompts with images are neither scored nor embedded.
            purpose = None
        pooling = None if purpose == "score" else purpose
        for _ in range(n):
            request = make_request(
                f"request-{self.simulation.num_submitted}",
                prompt_ids,
                0 if pooling else min(max_tokens, MAX_MODEL_LEN - len(prompt_ids)),
                scope=scope,
                tenant=tenant,
                scores_prompt=purpose == "score",
                pooling=pooling,
                grammar=CountingMatcher() if has_grammar and not pooling else None,
                priority=priority,
                images=images,
            )
            self.simulation.submit(request, stops_after)

    @rule(
        beginning=st.sampled_from(("d", "c", "b", "a", None)),
        num_common=st.integers(1, 30),
        max_tokens=st.integers(20, 40),
        num_requests=st.integers(3, 6),
        has_grammar=st.booleans(),
    )
    def submit_crowd(
        self,
        *,
        beginning: str | None,
        num_common: int,
        max_tokens: int,
        num_requests: int,
        has_grammar: bool,
    ) -> None:
        """Submit several long requests, which need more memory than there often is."""
        for place in range(num_requests):
            self.submit(
                beginning=beginning,
                num_common=num_common,
                tail=[place] * 3,
                max_tokens=max_tokens,
                stops_after=None,
                purpose=None,
                has_grammar=has_grammar,
                priority=0,
                image_names=(),
                scope="s",
                tenant="uv"[place % 2],
                n=1,
            )

    def _images(
        self, beginning: str | None, num_common: int, prompt_len: int, image_names: Sequence[str]
    ) -> list[tuple[int, str]]:
        """Return the images of the common beginning, then others that fit behind it."""
        assert self.simulation is not None
        images = [
            (start, name)
            for start, name in IMAGES_IN_BEGINNINGS.get(beginning or "", ())
            if start + IMAGE_LENS[name] <= num_common
        ]
        for name in image_names:
            start = images[-1][0] + IMAGE_LENS[images[-1][1]] + 1 if images else num_common
            is_short = IMAGE_LENS[name] <= self.simulation.largest_bucket
            fits = is_short or not self.simulation.keeps_images_whole
            if fits and start >= num_common and start + IMAGE_LENS[name] <= prompt_len:
                images.append((start, name))
        return images

    @precondition(lambda self: self.simulation is not None and bool(self.simulation.unfinished))
    @rule(place=st.integers(0, 100))
    def cancel(self, place: int) -> None:
        assert self.simulation is not None
        unfinished = self.simulation.unfinished
        self.simulation.cancel(unfinished[place % len(unfinished)])

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        assert self.simulation is not None
        for _ in range(num_steps):
            self.simulation.step()

    def teardown(self) -> None:
        if self.simulation is None:
            return
        self.simulation.run_to_the_end()
        for what in WHAT_HAPPENS:
            event(f"{what}: {self.simulation.counts[what] > 0}")


TestSchedulerSequences = SchedulerSequences.TestCase
TestSchedulerSequences.settings = examples(50, stateful_step_count=25)


def test_everything_happens_in_such_sequences() -> None:
    """The checks above are worth something only if memory runs out, and pages are shared."""
    draw = random.Random(0)
    counts: Counter[str] = Counter()
    for place in range(32):
        # One prompt, again and again, in memory for two requests at most: its last page is used in place.
        is_narrow = place % 4 == 0
        machine = SchedulerSequences()
        machine.start(
            Sizes(
                num_slots=2 if is_narrow else 4,
                dp=1 + place % 2,
                page_size=8 if is_narrow else draw.randint(1, 8),
                spare_pages=draw.choice((0, 2)),
                windows=draw.choice(((None,), (None, 5), (5,))),
                prefill_shapes=((1, 8), (5, 3)) if place % 4 == 3 else ((1, 4), (1, 8)),
                min_prefill_tokens=16 if place % 4 == 3 else 0,
                ngram=2 if place % 4 == 2 else None,
            )
        )
        for _ in range(12):
            machine.submit(
                beginning="d" if is_narrow else draw.choice((None, *BEGINNINGS)),
                num_common=36 if is_narrow else draw.randint(1, 40),
                tail=[0] * 15 if is_narrow else [draw.randrange(3) for _ in range(draw.randrange(8))],
                max_tokens=13 if is_narrow else draw.randint(1, 40),
                stops_after=None,
                purpose=None,
                has_grammar=draw.random() < 0.2,
                priority=0,
                image_names=(),
                scope=draw.choice(("s", "t")),
                # Tenants take turns, which would part equal prompts.
                tenant="u" if is_narrow else draw.choice("uv"),
                n=draw.choice((1, 1, 2)),
            )
            machine.step(num_steps=draw.randrange(6))
        assert machine.simulation is not None
        machine.simulation.run_to_the_end()
        counts += machine.simulation.counts
    assert all(counts[what] >= 5 for what in WHAT_HAPPENS), counts
