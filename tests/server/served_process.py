"""A server process with a fake engine, for tests that send it signals; prints its port.

Arguments: a directory for the tokenizer, and a YAML file, which SIGHUP reads again.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from fake_engine import FakeEngine, byte_tokenizer, served_model

from vinfer.config import load_config
from vinfer.launch.reload import Reloader
from vinfer.launch.terminal import configure_logging
from vinfer.server.api_keys import read_api_keys
from vinfer.server.app import create_app
from vinfer.server.http.serve import bind, run_server
from vinfer.server.model_table import ModelTable

if __name__ == "__main__":
    config = load_config(sys.argv[2], environ={})
    configure_logging(config.log_level, config.log_format)
    engine = FakeEngine(seconds_per_event=0.1)
    models = ModelTable(["fake"])
    models.serve(served_model(engine, byte_tokenizer(Path(sys.argv[1]))))
    app = create_app(config.server, models, read_api_keys(config.server.api_keys_file))
    reload = Reloader(
        config,
        app.state.services,
        load=lambda: load_config(sys.argv[2], environ={}),
        check=lambda _: None,
    )
    sock = bind("127.0.0.1", 0)
    sys.stdout.write(f"{sock.getsockname()[1]}\n")
    sys.stdout.flush()
    code = run_server(app, config.server, sock, reload=reload)
    logging.shutdown()
    loaded = {"jax", "jaxlib", "numpy", "transformers", "torch", "easydel"} & sys.modules.keys()
    sys.stdout.write(" ".join(["loaded:", *sorted(loaded)]) + "\n")
    sys.exit(code)
