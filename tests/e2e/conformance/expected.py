"""The answers expected of the tiny model: transformers' logits and a NumPy sampler, none of our code."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy_sampler import Array, Sampling, next_token
from tiny.checkpoints import NUM_TOKENS
from tiny.vision_models import LLAVA
from tiny_server import EOS_ID, Answer, Talk

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedModel

SAMPLING_FIELDS = {field for field in Sampling.__dataclass_fields__ if field != "logit_bias"}


class Expected:
    """The reference's answers to requests.

    Args:
        model, seeing: the models for text and for images; float32, on the CPU.
    """

    def __init__(self, model: PreTrainedModel, seeing: PreTrainedModel, talk: Talk) -> None:
        self._model = model
        self._seeing = seeing
        self._talk = talk
        self._logits = functools.cache(self._forward)

    def _forward(self, ids: tuple[int, ...]) -> Array:
        import torch

        with torch.no_grad():
            logits: Array = self._model(torch.tensor([ids]), use_cache=False).logits[0].double().numpy()
        return logits

    def embedding(self, ids: list[int]) -> Array:
        """Return float64 [hidden], L2-normalized: the mean of the last hidden states."""
        import torch

        with torch.no_grad():
            hidden = self._model.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state
        mean: Array = hidden[0].double().numpy().mean(axis=0)
        return mean / np.linalg.norm(mean)

    def seen(self, ids: list[int], images: Sequence[Image.Image], *, num_tokens: int) -> list[int]:
        """Return the likeliest tokens after a prompt whose placeholders represent these images."""
        import torch
        from tiny.checkpoints import checkpoint
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        processor = CLIPImageProcessorPil.from_pretrained(checkpoint("llava"))
        pixels = processor(list(images), return_tensors="pt")["pixel_values"]
        found: list[int] = []
        with torch.no_grad():
            for _ in range(num_tokens):
                logits = self._seeing(
                    input_ids=torch.tensor([[*ids, *found]]), pixel_values=pixels, use_cache=False
                ).logits
                found.append(int(logits[0, -1, : LLAVA.num_tokens].argmax()))
        return found

    def logprobs(self, ids: list[int]) -> Array:
        """Return float64 [len(ids), vocab]: row i belongs to the token after ids[: i + 1]."""
        logits = self._logits(tuple(ids))
        shifted = logits - logits.max(-1, keepdims=True)
        logprobs: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        return logprobs

    def answer(
        self, prompt: list[int], fields: Mapping[str, Any], *, choice: int = 0, texts: Collection[str] = ()
    ) -> Answer:
        """Return the answer to a request with these fields.

        Args:
            fields: fields of the request; those that neither `Sampling` nor this method reads change no
                token.
            choice: index among the choices of the prompt; each has its own seed.
            texts: all texts that a grammar allows; empty for no grammar.
        """
        sampling = Sampling(
            **{key: value for key, value in fields.items() if key in SAMPLING_FIELDS},
            logit_bias={int(key): value for key, value in fields.get("logit_bias", {}).items()},
        )
        if choice:
            digest = hashlib.sha256(f"{sampling.seed % 2**64}:{choice}".encode()).digest()
            sampling = Sampling(**{**vars(sampling), "seed": int.from_bytes(digest[:8], "big")})
        eos = () if fields.get("ignore_eos") else (EOS_ID,)
        stop_ids = {*eos, *fields.get("stop_token_ids", ())}
        forms = [self._talk.ids(text) for text in texts]
        output: list[int] = []
        while len(output) < fields["max_tokens"]:
            allowed: Collection[int] = range(NUM_TOKENS)
            if forms:
                begun = [form for form in forms if form[: len(output)] == output]
                allowed = {(*form, EOS_ID)[len(output)] for form in begun}
            token = next_token(
                self._logits((*prompt, *output))[-1],
                sampling,
                prompt=prompt,
                output=output,
                stop_ids=stop_ids,
                allowed=allowed,
            )
            if token in stop_ids:
                return Answer(output, self._talk.text(output), "stop")
            output.append(token)
        return Answer(output, self._talk.text(output), "length")
