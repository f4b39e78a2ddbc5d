"""What holds for every test: no model hub, no distributed start-up, no clock in Hypothesis.

Bundles and engines are fixtures of the folders that use them.
"""

from __future__ import annotations

import os

from hypothesis import settings

# Before any test module is imported: all are read at import time.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ENABLE_DISTRIBUTED_INIT"] = "0"
# The tests say what float32 on a CPU gives; an accelerator that happens to be here is none of their business.
os.environ["JAX_PLATFORMS"] = "cpu"

# A deadline per example fails on a busy machine and nowhere else. Under CI the same examples come every time.
settings.register_profile("vinfer", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("vinfer")
