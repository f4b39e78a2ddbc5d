"""Draws a colored square on noise, and trains a tiny LLaVA to name the color.

Takes seconds of CPU. Questions and image preparation match the served model, through `vinfer.images`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tiny.vision_models import IMAGE_TOKEN, NUM_IMAGE_TOKENS, PROCESSING

from vinfer.images import DecodedImage, preprocess

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "green": (40, 180, 40),
    "blue": (40, 60, 200),
    "yellow": (210, 200, 40),
    "purple": (150, 40, 170),
    "white": (240, 240, 240),
}
QUESTION = "Which colour?"
PROMPT = f"USER: {IMAGE_TOKEN * NUM_IMAGE_TOKENS}\n{QUESTION}ASSISTANT: "
MAX_NAME_LEN = max(map(len, COLOURS))
STEPS, BATCH, RATE = 160, 16, 1e-3


def coloured_image(seed: int) -> tuple[str, Image.Image]:
    """Return a color's name and an image of it; sizes, positions and shades vary."""
    generator = np.random.default_rng(seed)
    name = list(COLOURS)[generator.integers(len(COLOURS))]
    height, width = generator.integers(36, 70, size=2)
    pixels = generator.normal(120, 25, size=(height, width, 3))
    side = generator.integers(15, 28)
    # Around the center, because the processor crops images that are not square.
    top, left = (
        (height - side) // 2 + generator.integers(-2, 3),
        (width - side) // 2 + generator.integers(-2, 3),
    )
    shade = np.array(COLOURS[name]) + generator.normal(0, 12, size=3)
    pixels[top : top + side, left : left + side] = shade + generator.normal(0, 12, size=(side, side, 3))
    return name, Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def prepared(image: Image.Image) -> np.ndarray:
    """Return pixels as the server would pass them to the encoder."""
    content_hash = hashlib.sha256(image.tobytes()).hexdigest()
    return preprocess(DecodedImage(pixels=image, content_hash=content_hash), PROCESSING).pixels


def train_on_colours(model: PreTrainedModel, directory: Path) -> None:
    """Train a whole model, in place; `directory` has its tokenizer."""
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    end = tokenizer.token_to_id("</s>")
    names = {name: [*tokenizer.encode(name).ids, end] for name in COLOURS}
    # Matrices of this size gain nothing from a second thread, and its spinning costs the other core.
    torch.set_num_threads(1)
    torch.manual_seed(5)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS, pct_start=0.2)
    for step in range(STEPS):
        drawn = [coloured_image(step * BATCH + place) for place in range(BATCH)]
        answers = [names[name] + [end] * (MAX_NAME_LEN + 1 - len(names[name])) for name, _ in drawn]
        ids = torch.tensor([prompt + answer for answer in answers])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        pixels = torch.from_numpy(np.stack([prepared(image) for _, image in drawn]))
        loss = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()
