"""Well-known request fields of other servers: the name that vinfer has for each, or what to do instead.

Clients send the fields of the server that they were written for, often with the value that changes nothing.
Each entry is (why it is refused and what to do instead, the values that pass because they ask for nothing).
`treatment` puts the entries into the tables of the routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Entry = tuple[str, tuple[Any, ...]]

ALIASES: Mapping[str, str] = {
    "repeat_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "random_seed": "seed",
}
"""Other servers' names of fields that vinfer applies."""

WITHOUT_EFFECT = (
    # How long or how large something is kept: here a model stays loaded, with all of its context.
    *("prompt_cache_retention", "num_ctx", "keep_alive", "n_ctx", "truncation_length"),
    # Settings of samplers that vinfer does not have. What switches the sampler on is refused.
    *("mirostat_eta", "mirostat_tau", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *(
        "dry_range",
        "dry_sequence_breakers",
        "xtc_threshold",
        "dynatemp_exponent",
        "smoothing_curve",
        "min_keep",
    ),
)
"""They ask for nothing, whatever their value."""

_NO_SAMPLER = "vinfer does not have this sampler: leave it out"
_USE_GRAMMAR = "use response_format or structured_outputs.{}"
_USE_THINKING = "use chat_template_kwargs.enable_thinking"

SAMPLING: Mapping[str, Entry] = {
    # vLLM
    "use_beam_search": ("vinfer has no beam search: leave it out", (False,)),
    "length_penalty": ("vinfer has no beam search: leave it out", (1,)),
    "early_stopping": ("vinfer has no beam search: leave it out", (False,)),
    "spaces_between_special_tokens": ("special tokens are shown without spaces: leave it out", (True, False)),
    "truncate_prompt_tokens": ("a prompt that is too long is refused, never cut: shorten it", (-1,)),
    "prompt_logprobs": ("use echo and logprobs of /v1/completions", (False,)),
    "allowed_token_ids": ("use logit_bias or structured_outputs", ()),
    "bad_words": ("use logit_bias", ([],)),
    "logits_processors": ("code is never taken from a request: leave it out", ([],)),
    "return_tokens_as_token_ids": ("use return_token_ids", (False,)),
    "detokenize": ("an answer is always text; return_token_ids adds the ids", (True,)),
    "mm_processor_kwargs": ("images are processed as the model was trained: leave it out", ({},)),
    "request_id": ("send it as the header x-request-id", ("",)),
    "kv_transfer_params": ("a request is prefilled and decoded in one server: leave it out", ({},)),
    "vllm_xargs": ("vinfer has no extensions: leave it out", ({},)),
    "guided_json": (_USE_GRAMMAR.format("json"), ()),
    "guided_regex": (_USE_GRAMMAR.format("regex"), ()),
    "guided_choice": (_USE_GRAMMAR.format("choice"), ()),
    "guided_grammar": (_USE_GRAMMAR.format("grammar"), ()),
    "guided_decoding_backend": ("there is one backend: leave it out", ()),
    "guided_whitespace_pattern": ("JSON is written on one line: leave it out", ()),
    # SGLang
    "regex": (_USE_GRAMMAR.format("regex"), ()),
    "ebnf": (_USE_GRAMMAR.format("grammar"), ()),
    "no_stop_trim": ("use include_stop_str_in_output", (False,)),
    "return_hidden_states": ("hidden states are not returned: leave it out", (False,)),
    "lora_path": ("vinfer has no adapters at run time: leave it out", ()),
    # Text Generation Inference
    "do_sample": ("temperature 0 is greedy, any other samples: send temperature", ()),
    # llama.cpp
    "typical_p": (_NO_SAMPLER, (1,)),
    "tfs_z": (_NO_SAMPLER, (1,)),
    "top_a": (_NO_SAMPLER, (0,)),
    "mirostat": (_NO_SAMPLER, (0,)),
    "dynatemp_range": (_NO_SAMPLER, (0,)),
    "dynamic_temperature": (_NO_SAMPLER, (False,)),
    "dry_multiplier": (_NO_SAMPLER, (0,)),
    "xtc_probability": (_NO_SAMPLER, (0,)),
    "smoothing_factor": (_NO_SAMPLER, (0,)),
    "top_n_sigma": (_NO_SAMPLER, (-1, 0)),
    "epsilon_cutoff": (_NO_SAMPLER, (0,)),
    "eta_cutoff": (_NO_SAMPLER, (0,)),
    "penalty_alpha": (_NO_SAMPLER, (0,)),
    "penalize_nl": ("repetition_penalty looks at every token: leave it out", (True,)),
    "ban_eos_token": ("use ignore_eos", (False,)),
    "return_progress": ("a stream begins with the first token: leave it out", (False,)),
    "repeat_last_n": ("repetition_penalty looks at the whole prompt and answer: leave it out", (-1,)),
    "n_probs": ("use logprobs and top_logprobs", (0,)),
    "n_keep": ("a prompt that is too long is refused, never cut: leave it out", (0, -1)),
    "id_slot": ("the server chooses the slot: leave it out", (-1,)),
    "samplers": ("the order of the samplers is fixed: leave it out", ()),
    "grammar": (_USE_GRAMMAR.format("grammar"), ("",)),
    "json_schema": (_USE_GRAMMAR.format("json"), ({},)),
    "timings_per_token": ("use stream_options.continuous_usage_stats", (False,)),
    # Ollama
    "options": ("send each option as a field of its own", ({},)),
    "format": (_USE_GRAMMAR.format("json"), ("",)),
    # OpenRouter
    "provider": ("there is no other provider: leave it out", ({},)),
    "transforms": ("a prompt is never changed: leave it out", ([],)),
    "plugins": ("vinfer has no plugins: leave it out", ([],)),
    # What a client library should have taken apart.
    "extra_body": ("send what is in it as fields of the body", ({},)),
}
"""Fields of chat and plain completions."""

CHAT: Mapping[str, Entry] = {
    "echo": ("an answer never repeats the conversation: leave it out", (False,)),
    "best_of": ("use n, or best_of of /v1/completions", (1,)),
    "suffix": ("vinfer does not fill in the middle: leave it out", ("",)),
    "add_special_tokens": ("the chat template writes a prompt's special tokens: leave it out", (False,)),
    "documents": ("put them into a message", ([],)),
    "verbosity": ("no model here reads it: say in a message how long the answer shall be", ("medium",)),
    "separate_reasoning": ("reasoning is always separate: leave it out", (True,)),
    "stream_reasoning": ("reasoning is streamed with the rest: leave it out", (True,)),
    "reasoning_format": ("reasoning is always reasoning_content: leave it out", ("auto", "deepseek")),
    "think": (_USE_THINKING, ()),
    "thinking": (_USE_THINKING, ()),
    "enable_thinking": (_USE_THINKING, ()),
    "thinking_budget": ("use max_tokens", ()),
    "reasoning": ("use reasoning_effort or include_reasoning", ({},)),
    "response_role": ("an answer always comes from the assistant: leave it out", ("assistant",)),
}
"""Fields of chat completions alone."""

COMPLETION: Mapping[str, Entry] = {
    "add_special_tokens": ("send token ids, or a text without special tokens", (True,)),
}
"""Fields of plain completions alone."""

RESPONSES: Mapping[str, Entry] = {
    "stop": ("this route has no stop strings: use /v1/chat/completions", ([],)),
    "n": ("a response has one answer: leave it out", (1,)),
    "response_format": ("use text.format", ()),
    "reasoning_effort": ("use reasoning.effort", ()),
    "max_tokens": ("use max_output_tokens", ()),
    "max_completion_tokens": ("use max_output_tokens", ()),
    "verbosity": ("use text.verbosity", ()),
}
"""Fields of responses: mostly those of chat completions."""

EMBEDDING: Mapping[str, Entry] = {
    "add_special_tokens": ("send token ids, or a text without special tokens", (True,)),
    "normalize": ("vectors are L2-normalized: leave it out", (True,)),
    "truncate": ("use truncate_prompt_tokens", (False,)),
    "priority": ("this route has no priority: leave it out", (0,)),
}
"""Fields of embeddings."""
