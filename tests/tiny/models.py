"""Describes tiny random checkpoints before they are written. Imports neither torch nor transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

VOCAB_SIZE = 304
"""Larger than the tokenizer's: vocabularies are padded."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """One random checkpoint: its classes in transformers, and its differences from `SIZES`.

    Attributes:
        family: prefix of `<family>Config` and `<family>ForCausalLM`, unless `config_class` and
            `model_class` say otherwise.
        config: keyword arguments of the config class over `SIZES`; `...` removes a key of `SIZES`.
        tolerance: largest error of a logprob as a fraction of the largest logit; raise it above the default
            only with a reason.
        bias_deviation: standard deviation of biases; lower where they would hide the token's effect.
        norm_mean: mean of norm weights; 0 if the family multiplies by 1 + weight.
        stores_inputs_first: whether its matrices are [in, out].
        embedding_deviation: standard deviation of the embedding; small if a family scales embeddings, or if
            a tied head would otherwise repeat one token.
        special_tokens: tokens of the tokenizer beyond BOS and EOS.
        files: additional files of the checkpoint, name -> text.
        is_trained: initialized by transformers, then trained by `tiny.colours`; else every tensor is random.
    """

    family: str
    seed: int
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    config_class: str | None = None
    model_class: str | None = None
    tolerance: float = 1e-5
    bias_deviation: float = 0.3
    norm_mean: float = 1.0
    stores_inputs_first: bool = False
    embedding_deviation: float = 0.3
    special_tokens: tuple[str, ...] = ()
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    is_trained: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of the config class."""
        return {key: value for key, value in {**SIZES, **self.config}.items() if value is not ...}
