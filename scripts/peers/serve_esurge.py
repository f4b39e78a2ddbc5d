"""Serves a model by EasyDeL's eSurge: FOLDER SLOTS PORT. Runs in an environment of its own, without vinfer.

Its default attention fails on a model of three KV heads, so an older one is chosen.
"""

from __future__ import annotations

import sys

MAX_LEN = 1024


def main() -> None:
    """Build the engine and serve it until the process is ended."""
    folder, slots, port = sys.argv[1:]
    import jax.numpy as jnp
    from easydel.inference import eSurge, eSurgeApiServer

    engine = eSurge(
        model=folder,
        processor=folder,
        dtype=jnp.float32,
        max_model_len=MAX_LEN,
        max_num_seqs=int(slots),
        page_size=128,
        attn_mechanism="ragged_page_attention_v2",
        esurge_name="smollm2",
    )
    eSurgeApiServer(engine).run(host="127.0.0.1", port=int(port))


if __name__ == "__main__":
    main()
