"""What `scripts/bench --peers` makes of figures: prompts, medians, ratios, verdicts, the page. No server."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import peers.turns
from benchmark.process import Served
from peers import ceiling, loads, process_tree, servers
from peers.main import command_of, names_of
from peers.page import page
from peers.servers import Server
from peers.sizes import FULL, QUICK
from peers.turns import Side, in_turns, median, ratio
from peers.verdicts import memory_ratio, verdicts

from vinfer.bench.client import Arrival, Endpoint, Record
from vinfer.errors import AnswerError


def side(name: str, *, is_slow: bool = False) -> Any:
    return Side(
        Server(name, name, [], is_slow=is_slow), Served("", 0.0, 0, 0.0), Endpoint("", "", None, False), {}
    )


def turns(*values: float, figure: str = "tokens_per_second") -> dict[str, Any]:
    measured = [dict.fromkeys(FIGURES, 1.0) | {figure: value} for value in values]
    return {"turns": measured, "median": median(measured)}


FIGURES = (
    *("tokens_per_second", "ttft_p50", "ttft_p99", "tpot_p50", "prompt_tokens", "num_tokens"),
    *("client_cpu_fraction", "wall_seconds", "ready_seconds", "first_answer_seconds"),
)


def document(**parts: Any) -> dict[str, Any]:
    facts = {"command": "A=1 serve -m d.gguf -t 2", "packages": ""}
    titles = {"vinfer": "vinfer", "llama.cpp-F32": "llama.cpp F32", "vllm": "vLLM"}
    return {
        "machine": {"num_cpus": 2, "platform": "Linux", "load_average_1min": 0.5},
        "conditions": {"slots": 32, "kv_bytes": 1, "kv_tokens": 17_476},
        "servers": {name: {"title": title, "planned_bytes": 1000, **facts} for name, title in titles.items()},
        "absent": {},
        "parts": parts,
        "measured": {
            part: {"date": "2026-01-02 03:04 UTC", "turns": 3, "load_average_1min": 0.52} for part in parts
        },
    }


def line(of: dict[str, Any], start: str) -> tuple[float | None, str]:
    return next((each.measured, each.verdict) for each in verdicts(of) if each.line.startswith(start))


def lengths(turn: int, count: int = 200) -> list[int]:
    drawn = loads.prompts(loads.DRAWN_TOKENS, 4, 64, turn)
    return [len(drawn.next().split()) - 1 + loads.EXTRA_TOKENS for _ in range(count)]


def test_lengths_are_drawn_over_the_whole_range_and_are_the_same_for_every_server() -> None:
    assert lengths(0) == lengths(0)
    assert lengths(0) != lengths(1)
    low, high = loads.DRAWN_TOKENS
    assert low <= min(lengths(0)) < 30
    assert 670 < max(lengths(0)) <= high
    assert 300 < sum(lengths(0)) / 200 < 410


def test_no_two_turns_have_a_prompt_in_common() -> None:
    prompts = [loads.prompts(67, 4, 64, turn).next() for turn in range(10)]
    assert len({prompt[:40] for prompt in prompts}) == 10


def test_each_turn_begins_with_another_side_and_one_that_fails_is_out() -> None:
    order: list[tuple[str, int]] = []

    async def measure(side: Any, turn: int) -> dict[str, float]:
        order.append((side.name, turn))
        if side.name == "b" and turn == 1:
            raise AnswerError("b is gone")
        return {"tokens_per_second": 10.0 * (turn + 1)}

    found = asyncio.run(in_turns("load", [side(name) for name in "abc"], 3, measure))
    assert order == [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("c", 1), ("a", 1), ("c", 2), ("a", 2)]
    assert found["a"]["median"] == {"tokens_per_second": 20.0}
    assert found["b"] == {"failure": "b is gone"}


def test_a_slow_side_has_one_turn_and_one_that_hangs_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.turns, "TURN_SECONDS", 0.05)

    async def measure(side: Side, turn: int) -> dict[str, float]:
        await asyncio.sleep(5 if side.name == "hangs" else 0)
        return {"ttft_p50": 1.0 + turn}

    sides = [side("slow", is_slow=True), side("hangs"), side("a")]
    found = asyncio.run(in_turns("load", sides, 2, measure))
    assert [turn["ttft_p50"] for turn in found["slow"]["turns"]] == [1.0]
    assert [turn["ttft_p50"] for turn in found["a"]["turns"]] == [1.0, 2.0]
    assert found["hangs"] == {"failure": "no end within 0.05 s"}


def test_a_ratio_is_the_median_of_the_ratios_within_turns() -> None:
    # The machine was half as fast in the second turn; the ratio of the medians would be 100 / 80.
    assert ratio(turns(100, 40, 100), turns(80, 50, 160), "tokens_per_second") == pytest.approx(0.8)
    assert ratio(turns(1), {"failure": "gone"}, "tokens_per_second") is None
    assert ratio(None, turns(1), "tokens_per_second") is None
    assert ratio(turns(1), turns(0), "tokens_per_second") is None


def record(*seconds: float) -> Record:
    return Record(0.0, seconds[-1], tuple(Arrival(each, 1) for each in seconds), 10, len(seconds), None, "")


def test_gaps_are_those_before_and_during_the_long_prompt() -> None:
    # The second stream begins at 1.5: the gap of 0.9 before it belongs to the prefill of its own prompt.
    first = record(0.5, 1.4, 1.6, 1.9, 3.1, 3.2, 9.0)
    second = record(1.5, 1.7, 2.9, 3.3)
    found = loads.gaps_of([first, second], sent=2.0, answered=3.0)
    assert found["gap_undisturbed"] == pytest.approx(0.3)
    assert found["gap_disturbed"] == pytest.approx(1.2)
    assert found["gap_ratio"] == pytest.approx(4.0)


def test_streams_that_end_before_the_long_prompt_is_answered_say_nothing() -> None:
    with pytest.raises(AnswerError, match="ended before"):
        loads.gaps_of([record(0.5, 1.0, 1.5)], sent=1.2, answered=2.0)


def test_a_line_holds_is_missed_or_says_why_it_was_not_measured() -> None:
    of = document(
        fixed={
            "1": {"vinfer": turns(85), "llama.cpp-F32": turns(100), "vllm": turns(70)},
            "8": {"vinfer": turns(99), "llama.cpp-F32": turns(100), "vllm": {"failure": "status 500"}},
        }
    )
    assert line(of, "tokens/s / llama.cpp F32, 1 streams") == (0.85, "holds")
    assert line(of, "tokens/s / llama.cpp F32, 8 streams") == (0.99, "**missed**")
    assert line(of, "tokens/s / vLLM, 8 streams") == (None, "not measured: vllm: status 500")
    assert line(of, "start from the bundle")[1] == "not measured: give `--before`"
    of["absent"]["vllm"] = "no AVX-512"
    assert line(of, "tokens/s / vLLM, 32 streams") == (None, "not measured: vllm: no AVX-512")


def test_a_time_must_be_at_most_and_a_rate_at_least() -> None:
    sides = {"vinfer": turns(1.2, figure="ttft_p50"), "llama.cpp-F32": turns(1.0, figure="ttft_p50")}
    assert line(document(fixed={"16": sides}), "TTFT p50 / llama.cpp") == (1.2, "**missed**")
    ceilings = {"64": {"vinfer": turns(96), "before": turns(100)}}
    assert line(document(ceiling=ceilings), "host's ceiling / before, 64") == (0.96, "holds")


def test_memory_counts_the_start_and_the_load() -> None:
    of = document(
        start={"vinfer": {"turns": [{"memory_bytes": 1700.0}]}},
        memory={"vinfer": {"turns": [{"peak_bytes": 1500.0}]}},
    )
    assert memory_ratio(of, "vinfer") == 1.7
    assert line(of, "peak memory") == (1.7, "**missed**")


def cells(text: str, heading: str) -> list[list[str]]:
    part = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [re.split(r" *\| *", row)[1:-1] for row in part.splitlines() if row.startswith("| ")]


def test_the_page_has_every_part_and_no_path_of_this_machine() -> None:
    sides = {"vinfer": turns(10, 20, 30), "llama.cpp-F32": turns(20, 20, 20), "vllm": {"failure": "gone"}}
    of = document(fixed={"4": sides}, shared=sides, start=sides, growth={"streams": {"4": sides}})
    of["absent"]["esurge"] = "no wheel"
    text = page(of)
    assert cells(text, "Prompts of one length")[1][:3] == ["4", "vinfer", "20.0"]
    assert ["4", "vLLM", "failed: gone", "", "", ""] in cells(text, "Prompts of one length")
    assert ["4", "llama.cpp F32", "1.00", "1.00", "1.00"] in cells(text, "Prompts of one length")
    assert "- esurge was not measured: no wheel" in text
    assert "`A=1 serve -m d.gguf -t 2`" in text
    assert "/a/b" not in text
    assert "## Memory" not in text
    assert "`scripts/bench --peers --parts fixed` (2026-01-02 03:04 UTC, 3 turns, load average 0.5):" in text
    assert "![streams](speed/streams.png)" in text
    assert "tokens/s / llama.cpp F32, 4 streams | at least 0.9 | 1.00 | holds" in text


def test_names_are_those_of_peers() -> None:
    assert names_of(servers.PEERS)("vllm,llama.cpp") == ("vllm", "llama.cpp")
    with pytest.raises(argparse.ArgumentTypeError, match="tgi: choose from llama"):
        names_of(servers.PEERS)("vllm,tgi")


def test_vinfer_is_served_with_the_slots_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "MODELS", tmp_path)
    text = servers.vinfer_config("other", "speculation: {ngram: 3}").read_text()
    assert "    num_slots: 32 " in text
    assert "    max_queue: 256 " in text
    assert "    speculation: {ngram: 3}\n" in text
    assert servers.kv_bytes() // (4 * servers.KV_NUMBERS_PER_TOKEN) == 17_476


def test_a_quick_run_sends_some_of_what_a_full_one_sends() -> None:
    for name in ("fixed", "drawn", "growth_streams", "growth_prompts", "growth_outputs", "ceiling"):
        assert set(getattr(QUICK, name)) <= set(getattr(FULL, name))
    assert FULL.rounds_of(1) == 8
    assert FULL.rounds_of(32) == 2


def test_the_memory_of_this_process_is_found() -> None:
    assert os.getpid() in process_tree.members(os.getppid())
    assert process_tree.pss_bytes(os.getpid()) > 10 << 20
    assert process_tree.cpu_seconds(os.getpid()) > 0


def test_the_tiny_checkpoint_is_one_that_libraries_read(tmp_path: Path) -> None:
    from safetensors import safe_open
    from tokenizers import Tokenizer

    config = ceiling.write_checkpoint(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.get_tensor("model.layers.1.mlp.up_proj.weight").shape == (64, 32)
        assert file.get_tensor("model.norm.weight").tolist() == [1.0] * 32
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("Grüße, 世界").ids) == "Grüße, 世界"
    assert tokenizer.get_vocab_size() == ceiling.VOCABULARY
    assert str(tmp_path) in config.read_text()


def test_a_command_has_no_paths_of_a_machine() -> None:
    server = Server("x", "X", ["/a/b/serve", "-m", "/c/d.gguf", "-t", "2"], variables={"A": "1", "B": "/e/f"})
    assert command_of(server) == "A=1 serve -m d.gguf -t 2"
