"""Cases of the fields that carry images: the answer equals that of transformers to the same pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from routes import Route
from tiny.vision_models import LLAVA
from tiny_server import EOS_ID, MODEL, SEEING

Case = Callable[[Route], None]
Part = dict[str, Any]
WriteParts = Callable[[Image.Image], list[Part]]
"""Content parts with one image, in each form that must mean the same."""

NUM_TOKENS = 6
QUESTION = "What is it?"
GREEDY = {"temperature": 0, "ignore_eos": True}
# For each form of a body: its route, and the field that contains the conversation.
CONVERSATIONS = {
    "ChatFields": ("/v1/chat/completions", "messages"),
    "CountMessages": ("/v1/count_tokens", "conversation"),
    "TokenizeMessages": ("/tokenize", "messages"),
    "ResponsesFields": ("/v1/responses", "input"),
}


def drawn(seed: int) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 256, (30, 30, 3), np.uint8)
    return Image.fromarray(drawn)


IMAGES = (drawn(1), drawn(2))


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def check_seen(route: Route, image: Image.Image, part: Part) -> None:
    """Check the result of an image before a question: the prompt's ids, their count, or the answer."""
    talk = route.talk
    path, field = CONVERSATIONS[route.form]
    text_type = "input_text" if route.form == "ResponsesFields" else "text"
    turn = {"role": "user", "content": [part, {"type": text_type, "text": QUESTION}]}
    ids = [
        *talk.ids("USER: "),
        *[LLAVA.image_token_id] * LLAVA.num_image_tokens,
        *talk.ids(f"\n{QUESTION}ASSISTANT: "),
    ]
    body = {"model": SEEING, field: [turn]}
    if route.form == "CountMessages":
        assert talk.post(path, body)["count"] == len(ids)
        return
    if route.form == "TokenizeMessages":
        assert talk.post(path, body)["tokens"] == ids
        return
    tokens = route.expected.seen(ids, [image], num_tokens=NUM_TOKENS)
    assert EOS_ID not in tokens, "this image ends the answer: use another seed"
    answer = talk.text([token for token in tokens if token != LLAVA.image_token_id])
    if route.form == "ResponsesFields":
        response = talk.post(path, {**body, "temperature": 0, "max_output_tokens": NUM_TOKENS})
        assert response["usage"]["input_tokens"] == len(ids)
        assert response["output"][0]["content"][0]["text"] == answer
        return
    document = talk.post(path, {**body, **GREEDY, "max_tokens": NUM_TOKENS})
    assert document["usage"]["prompt_tokens"] == len(ids)
    assert document["choices"][0]["message"]["content"] == answer


def refused(route: Route, part: Part, *, model: str = SEEING, role: str = "user") -> str:
    """Return `param`, without the conversation's own path, of a request that must be refused."""
    path, field = CONVERSATIONS[route.form]
    body = {"model": model, field: [{"role": role, "content": [part]}]}
    param: str = route.talk.refusal(path, body)["param"]
    assert param.startswith(f"{field}[0].content[0]")
    return param.removeprefix(f"{field}[0].content[0]").removeprefix(".")


def seen(place: str, write: Callable[[str], list[Part]]) -> Case:
    """Return the case of a field that contains an image's URL.

    Args:
        place: path of the field in its part, as errors name it.
        write: converts a URL to parts, in each form that must mean the same.
    """

    def check(route: Route) -> None:
        for image in IMAGES:
            for part in write(data_url(image)):
                check_seen(route, image, part)
        (bad, *_) = write("data:image/png;base64,AAAA")
        assert refused(route, bad) == place
        (remote, *_) = write("https://example.com/a.png")
        assert refused(route, remote) == place
        (good, *_) = write(data_url(IMAGES[0]))
        assert refused(route, good, model=MODEL) == place
        assert refused(route, good, role="system") == ""

    return check


def without_effect(place: str, write: Callable[[str, str], Part]) -> Case:
    """Return the case of `detail`, which has no effect: a model processes images in one way only.

    Args:
        write: converts a URL and a detail to a part.
    """

    def check(route: Route) -> None:
        for detail in ("auto", "low", "high"):
            check_seen(route, IMAGES[0], write(data_url(IMAGES[0]), detail))
        assert refused(route, write(data_url(IMAGES[0]), "fine")) == place

    return check


def _object_or_string(url: str) -> list[Part]:
    return [{"type": "image_url", "image_url": form} for form in ({"url": url}, url)]


def _as_image(url: str) -> list[Part]:
    return [{"type": "image", "image": url}]


def _with_detail(url: str, detail: str) -> Part:
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


def _as_input_image(url: str) -> list[Part]:
    return [{"type": "input_image", "image_url": url}]


def _input_image_with_detail(url: str, detail: str) -> Part:
    return {"type": "input_image", "image_url": url, "detail": detail}


MESSAGE_IMAGE_CASES: Mapping[str, Case] = {
    "content.image": seen("image", _as_image),
    "content.image_url.url": seen("image_url.url", _object_or_string),
    "content.image_url.detail": without_effect("image_url.detail", _with_detail),
}
ITEM_IMAGE_CASES: Mapping[str, Case] = {
    "content.image_url": seen("image_url", _as_input_image),
    "content.detail": without_effect("detail", _input_image_with_detail),
}
