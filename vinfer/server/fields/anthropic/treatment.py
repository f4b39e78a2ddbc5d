"""What vinfer does with the fields of the Messages API that it does not apply; see `fields.treatment`."""

from __future__ import annotations

from collections.abc import Mapping

from vinfer.server.fields.treatment import ACCEPTED, FieldRule, refused

_NOTHING_CLEARED = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}

COUNT_MESSAGES_OTHERS: Mapping[str, FieldRule] = {
    "cache_control": ACCEPTED,
    "thread": refused("vinfer keeps nothing between requests: send the whole conversation as messages"),
    "compaction": refused("vinfer writes no summaries by itself: ask for one in a message"),
    "context_management": refused(
        "a conversation is never changed: leave it out", {}, {"edits": []}, _NOTHING_CLEARED
    ),
    "mcp_servers": refused("vinfer calls no tools: call them yourself and send tool_result blocks", []),
    "output_format": refused("the old form of output_config.format: use that"),
    "speed": refused("a model has one speed: leave it out", "standard"),
}

MESSAGES_OTHERS: Mapping[str, FieldRule] = {
    **COUNT_MESSAGES_OTHERS,
    "metadata": ACCEPTED,
    "service_tier": ACCEPTED,
    "diagnostics": ACCEPTED,
    "fallbacks": refused("a request is answered by the model that it names: leave it out", []),
    "container": refused("vinfer runs no code: leave it out"),
    "inference_geo": refused("a model runs where its server does: leave it out"),
}
