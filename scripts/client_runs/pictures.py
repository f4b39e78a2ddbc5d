"""The model that takes images, and the picture that clients send it.

    python -m client_runs.pictures

Prints a `Picture` as JSON. Writes the checkpoint on first use: a tiny LLaVA that names the color of a square.
Runs in the server's environment, with torch.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from client_runs.places import ROOT, SERVER, python

MODEL = "pictures"
VARIABLE = "CLIENTS_PICTURE"
"""Environment variable of the clients: the path of a JSON file with `url`, `question`, `colour` and `png`."""
SEED = 1_000_003
"""Of a picture that the model has not seen in training."""

ENCODER = {"batch_size": 1, "height": 30, "width": 30}

Json = dict[str, Any]


def make_picture() -> Json | None:
    """Return `source`, `question`, `colour` and `png` (base64); None if torch is not installed.

    Raises:
        CalledProcessError: the checkpoint could not be written; the output was printed.
    """
    in_environment = [str(python(SERVER)), "-c"]
    if subprocess.run([*in_environment, "import torch"], stderr=subprocess.DEVNULL, check=False).returncode:
        return None
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("scripts", "tests"))
    printed = subprocess.run(
        [str(python(SERVER)), "-m", "client_runs.pictures"],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    picture: Json = json.loads(printed.splitlines()[-1])
    return picture


def config_of(picture: Json) -> str:
    """Return the config of a server with the model of pictures and no other."""
    model = {
        "name": MODEL,
        "source": picture["source"],
        "task": "image-text",
        "dtype": "float32",
        "max_model_len": 1024,
        "num_slots": 2,
        "streaming_chunks": 4,
        "verify": "off",
        "precompile": [{"batch_size": 1, "prefill_length": 64, "vision": [ENCODER]}],
        "sampling": {"max_tokens": 12, "temperature": 0},
    }
    return json.dumps({"models": [model]})


def read_picture() -> Json | None:
    """Return the picture and the `url` of its server, in a client's process; None if there is none."""
    path = os.environ.get(VARIABLE)
    return json.loads(Path(path).read_text()) if path else None


def _main() -> None:
    from tiny.checkpoints import checkpoint
    from tiny.colours import QUESTION, coloured_image

    colour, image = coloured_image(SEED)
    png = io.BytesIO()
    image.save(png, "PNG")
    picture = {
        "source": str(checkpoint("llava-colours")),
        "question": QUESTION,
        "colour": colour,
        "png": base64.b64encode(png.getvalue()).decode(),
    }
    print(json.dumps(picture))


if __name__ == "__main__":
    _main()
