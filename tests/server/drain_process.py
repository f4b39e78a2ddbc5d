"""A server process with a fake engine, for tests that send it signals; prints its port."""

from __future__ import annotations

import sys
from pathlib import Path

from fake_engine import FakeEngine, byte_tokenizer, served_model

from vinfer.config import ServerConfig
from vinfer.server.app import create_app
from vinfer.server.http.serve import bind, run_server
from vinfer.server.model_table import ModelTable

if __name__ == "__main__":
    config = ServerConfig(drain_timeout_seconds=float(sys.argv[2]))
    engine = FakeEngine(seconds_per_event=0.1)
    models = ModelTable(["fake"])
    models.serve(served_model(engine, byte_tokenizer(Path(sys.argv[1]))))
    sock = bind("127.0.0.1", 0)
    sys.stdout.write(f"{sock.getsockname()[1]}\n")
    sys.stdout.flush()
    code = run_server(create_app(config, models), config, sock)
    loaded = {"jax", "jaxlib", "numpy", "transformers", "torch", "easydel"} & sys.modules.keys()
    sys.stdout.write(" ".join(["loaded:", *sorted(loaded)]) + "\n")
    sys.exit(code)
