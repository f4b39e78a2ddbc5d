"""Two processes serve one model each of whose arrays lies on both: the answers are those of one process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from group import Group, Member, one_process, two_members
from metrics_samples import summed_samples
from server_process import wait_until
from tiny.images import data_url, encoded, noise

BUNDLES = ("llama-of-two-hosts", "llava-of-two-hosts")
LOGPROB_ERROR = 1e-4
CONSTRAINED = "[a-f]{3}-[0-9]{2}"


def bundles(*names: str) -> dict[str, Path]:
    pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")
    from tiny.bundles import build

    return {name.removesuffix("-of-two-hosts"): build(name) for name in names}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with two_members(tmp_path_factory.mktemp("two"), bundles(*BUNDLES)) as both:
        both.wait_until_ready()
        yield both
        # Nobody needs more than SIGTERM, and nothing was compiled for a request.
        assert both.terminate() == [0, 0], both.logs
        assert "0 programs compiled after they were loaded" in both.members[1].log


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    with one_process(tmp_path_factory.mktemp("one"), bundles(*BUNDLES)) as one:
        one.wait_until_ready()
        yield one.leader
        assert one.terminate() == [0]


def completion(member: Member, **fields: Any) -> dict[str, Any]:
    body = {"model": "llama", "prompt": "Once upon a time", "max_tokens": 40, "logprobs": 3, **fields}
    choice: dict[str, Any] = member.post("/v1/completions", **{"temperature": 0, **body})["choices"][0]
    return choice


CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 7, "top_p": 0.9},
    "prompt in several chunks": {"prompt": "All work and no play. " * 12},
    "constrained": {"structured_outputs": {"regex": CONSTRAINED}, "logprobs": None},
    "prompt logprobs": {"echo": True, "max_tokens": 4},
    "biased, with stops": {"logit_bias": {"65": 5}, "stop": ["Z"], "presence_penalty": 0.5},
}


@pytest.mark.bundles(*BUNDLES)
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_one_process(group: Group, alone: Member, case: str) -> None:
    ours, theirs = (completion(member, **CASES[case]) for member in (group.leader, alone))
    assert ours["text"] == theirs["text"]
    assert ours["finish_reason"] == theirs["finish_reason"]
    if case == "constrained":
        assert re.fullmatch(CONSTRAINED, ours["text"])
    elif ours["logprobs"] is not None:
        pairs = zip(ours["logprobs"]["token_logprobs"], theirs["logprobs"]["token_logprobs"], strict=True)
        assert all(a == b or abs(a - b) < LOGPROB_ERROR for a, b in pairs)


@pytest.mark.bundles(*BUNDLES)
def test_embeddings_are_those_of_one_process(group: Group, alone: Member) -> None:
    ours, theirs = (
        member.post("/v1/embeddings", model="llama", input=["one", "and another text"])["data"]
        for member in (group.leader, alone)
    )
    for own, their in zip(ours, theirs, strict=True):
        assert max(abs(a - b) for a, b in zip(own["embedding"], their["embedding"], strict=True)) < 1e-5


@pytest.mark.bundles(*BUNDLES)
def test_images_are_seen_as_by_one_process(group: Group, alone: Member) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(encoded(noise(50, 40)))}},
        {"type": "text", "text": "Which colour?"},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 12, "temperature": 0}
    ours, theirs = (
        member.post("/v1/chat/completions", model="llava", **body)["choices"][0]["message"]["content"]
        for member in (group.leader, alone)
    )
    assert ours == theirs


@pytest.mark.bundles(*BUNDLES)
def test_dispatches_overlap_as_in_one_process(group: Group, alone: Member) -> None:
    names = [f"num_{kind}_dispatches_total" for kind in ("prefill", "decode", "overlapped")]

    def counted(member: Member) -> list[float]:
        def read() -> list[float]:
            samples = summed_samples(member.http.get("/metrics").text)
            return [samples[name] for name in names]

        before = read()
        completion(member, logprobs=None, max_tokens=81, ignore_eos=True)
        # The last step is counted after its tokens are sent.
        wait_until(lambda: read()[1] - before[1] >= 20, "the last dispatch")
        return [after - earlier for after, earlier in zip(read(), before, strict=True)]

    ours, theirs = counted(group.leader), counted(alone)
    assert ours == theirs
    assert ours[2] >= 19


@pytest.mark.bundles(*BUNDLES)
def test_followers_have_no_route_but_the_probes(group: Group) -> None:
    follower = group.members[1]
    assert {path: follower.status(path) for path in ("/liveness", "/readiness", "/health")} == {
        "/liveness": 200,
        "/readiness": 200,
        "/health": 200,
    }
    for path in ("/metrics", "/v1/models", "/version", "/openapi.json", "/"):
        assert follower.status(path) == 404
    assert group.leader.http.get("/metrics").text.count("vinfer:post_ready_compiles_total 0.0") == 1


@pytest.mark.slow
@pytest.mark.bundles("llama-dp2")
def test_slots_on_two_hosts_give_the_tokens_of_one_process(tmp_path: Path) -> None:
    """Requests together, so that rows of both hosts are busy."""
    found = bundles("llama-dp2")
    served = {"llama": found["llama-dp2"]}
    cases = [*CASES.values()][:4]

    def answers(member: Member) -> list[str]:
        with ThreadPoolExecutor(len(cases)) as pool:
            return [choice["text"] for choice in pool.map(lambda case: completion(member, **case), cases)]

    (tmp_path / "two").mkdir()
    with two_members(tmp_path / "two", served) as both:
        both.wait_until_ready()
        ours = answers(both.leader)
        assert both.terminate() == [0, 0], both.logs
        assert "0 programs compiled after they were loaded" in both.members[1].log
    (tmp_path / "one").mkdir()
    with one_process(tmp_path / "one", served) as one:
        one.wait_until_ready()
        assert answers(one.leader) == ours
        assert one.terminate() == [0]
