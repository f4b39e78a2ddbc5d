"""Expands the image markers in a rendered chat to as many placeholder tokens as the images have features.

Pure functions of strings, run on worker threads. Knows neither token ids nor images.
"""

from __future__ import annotations

from collections.abc import Sequence

from vinfer.errors import RequestError
from vinfer.image_processing import Placeholder
from vinfer.text.control_tokens import ControlTokens, RenderedPrompt


def expand_placeholders(
    rendered: RenderedPrompt,
    placeholder: Placeholder,
    num_tokens: Sequence[int],
    control_tokens: ControlTokens,
) -> RenderedPrompt:
    """Replace each marker that the template wrote with the tokens of its image, in order.

    A marker that a user typed is not a control token and stays text.

    Args:
        num_tokens: number of tokens of each image.

    Raises:
        RequestError: the template did not write one marker per image.
    """
    markers = [
        span for span in rendered.control_spans if rendered.text[span[0] : span[1]] == placeholder.marker
    ]
    if len(markers) != len(num_tokens):
        raise RequestError(
            f"the model's chat template shows {len(markers)} of {len(num_tokens)} images: "
            "send them in other messages, or one by one",
            param="messages",
        )
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0

    def add(text: str, own_spans: Sequence[tuple[int, int]]) -> None:
        nonlocal length
        spans.extend((start + length, end + length) for start, end in own_spans)
        pieces.append(text)
        length += len(text)

    counts = dict(zip(markers, num_tokens, strict=True))
    read = 0
    for start, end in rendered.control_spans:
        add(rendered.text[read:start], ())
        token = rendered.text[start:end]
        if (start, end) in counts:
            token = placeholder.expand(counts[start, end])
        add(token, control_tokens.spans(token))
        read = end
    add(rendered.text[read:], ())
    return RenderedPrompt("".join(pieces), tuple(spans), rendered.has_user_specials)
