"""vinfer: an inference daemon for EasyDeL models, driven by a YAML file.

`vinfer.load` is the same engine without a port, for notebooks and tests.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vinfer.version import __version__

if TYPE_CHECKING:
    from vinfer.llm.host import Host
    from vinfer.llm.loading import Loading

__all__ = ["__version__", "load"]


def load(
    source: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    devices: str | None = None,
    progress: bool = True,
) -> Loading:
    """Return what `with` or `async with` loads: the models of a config, in this process.

    Nothing is read before the block begins. Inside, it is a `vinfer.llm.llm.LLM` or an `AsyncLLM`.

    Args:
        source: YAML file or bundle directory, as for `vinfer serve`.
        overrides: such as `models[0].num_slots=4`.
        devices: such as `cpu:4`; see `--devices`.
        progress: whether to write the phases of a build and a load to standard error.
    """
    from vinfer.llm.loading import Loading

    def host() -> Host:
        from vinfer.llm.host import Host

        return Host(source, overrides=overrides, devices=devices, shows_progress=progress)

    return Loading(host)
