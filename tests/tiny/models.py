"""What a tiny random checkpoint is, before it is written. Imports neither torch nor transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

VOCAB_SIZE = 304
"""More than the tokenizer has: vocabularies are padded."""

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
    """One random checkpoint: its classes in transformers, and what differs from `SIZES`.

    Attributes:
        family: prefix of `<family>Config` and `<family>ForCausalLM`, where the next two do not say otherwise.
        config: keyword arguments of the config class over `SIZES`; `...` takes a key of `SIZES` out.
        tolerance: largest error of a logprob as a fraction of the largest logit; more than the usual
            only with a reason.
        bias_deviation: standard deviation of biases; less where they would drown what the token says.
        norm_mean: of norm weights; 0 where the family multiplies by 1 + weight.
        stores_inputs_first: its matrices are [in, out].
        embedding_deviation: of the embedding's entries; small where a family multiplies them, or a tied head
            would say the same token over and over.
        special_tokens: what the tokenizer has beyond BOS and EOS.
        files: further files of the checkpoint, name -> text.
        is_trained: as transformers makes it, then trained by `tiny.colours`; else every tensor is drawn anew.
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
