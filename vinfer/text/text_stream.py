"""The text of one request as its tokens arrive: detokenizer, then stop strings.

One object per request, on the event loop; streamed and whole answers use the same code. Does not know the
engine: the caller cancels a request whose text has `stopped`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from vinfer.text.detokenizer import Detokenizer
from vinfer.text.stop_strings import StopStrings
from vinfer.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class TextDelta:
    """What some new tokens add to the answer.

    Attributes:
        text: text to send now; may be empty.
        num_tokens: how many of the pushed tokens belong to the answer and count as usage.
        stopped: whether a stop string ended the answer; nothing more may be pushed then.
        stop: that stop string.
    """

    text: str
    num_tokens: int
    stop: str | None = None

    @property
    def stopped(self) -> bool:
        return self.stop is not None


class TextStream:
    """Turns the tokens of one request into text, up to its first stop string.

    Args:
        stop: stop strings, none of them empty.
        includes_stop: whether a stop string or a stop token that ends the text is part of it.
        shown_special_ids: special tokens that are shown anyway.
        prompt_tail: the last few prompt ids if the text continues the prompt (raw completions), so that a
            leading space is kept; empty if the answer is separate from the prompt (chat).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        skip_special_tokens: bool = True,
        includes_stop: bool = False,
        shown_special_ids: Collection[int] = (),
        prompt_tail: Sequence[int] = (),
    ) -> None:
        self._detokenizer = Detokenizer(
            tokenizer,
            skip_special_tokens=skip_special_tokens,
            shown_special_ids=shown_special_ids,
            prompt_tail=prompt_tail,
        )
        self._stop_strings = StopStrings(stop)
        self._has_stop = bool(stop)
        self._includes_stop = includes_stop

    def push(
        self, token_ids: Sequence[int], *, ends_with_stop_token: bool = False, is_last: bool = False
    ) -> TextDelta:
        """Read new tokens and return what they add.

        Args:
            token_ids: in order; may be empty.
            ends_with_stop_token: whether the last one is the engine's stop token, which counts as usage.
            is_last: whether nothing follows; text that was held back is then returned.
        """
        shown = token_ids[:-1] if ends_with_stop_token and not self._includes_stop else token_ids
        if not self._has_stop:
            text = self._detokenizer.push(shown) + (self._detokenizer.flush() if is_last else "")
            return TextDelta(text, len(token_ids))
        pieces = []
        # One by one, so that tokens generated after the stop string do not count as usage.
        for num_tokens, token_id in enumerate(shown, start=1):
            result = self._stop_strings.push(self._detokenizer.push((token_id,)))
            pieces.append(result.text)
            if result.matched is not None:
                pieces.append(self._shown_stop(result.matched))
                return TextDelta("".join(pieces), num_tokens, result.matched)
        if is_last:
            result = self._stop_strings.push(self._detokenizer.flush())
            pieces += [result.text, self._stop_strings.flush(), self._shown_stop(result.matched)]
            return TextDelta("".join(pieces), len(token_ids), result.matched)
        return TextDelta("".join(pieces), len(token_ids))

    def _shown_stop(self, matched: str | None) -> str:
        return matched if matched is not None and self._includes_stop else ""
