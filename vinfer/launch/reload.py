"""Reloads what can change while the server runs: API keys, the log level, and the hot keys of the config.

Called on the event loop, after SIGHUP. Reads small local files, and changes nothing if one of them is wrong.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from vinfer.config import Config, changes, with_hot_keys
from vinfer.errors import ConfigError
from vinfer.launch.terminal import set_log_level
from vinfer.server.api_keys import read_api_keys
from vinfer.server.model_table import ModelTable, SamplingDefaults
from vinfer.server.services import Services
from vinfer.server.tenant_limits import tenant_limits

logger = logging.getLogger(__name__)


class Reloader:
    """Keeps the config that is in effect.

    Args:
        load: reads the config anew.
        check: raises a ConfigError for a config that may not be served.
    """

    def __init__(
        self,
        config: Config,
        services: Services,
        *,
        load: Callable[[], Config],
        check: Callable[[Config], None],
    ) -> None:
        self._config = config
        self._services = services
        self._load = load
        self._check = check

    def __call__(self) -> None:
        """Apply what can be applied, and log what was and what was not."""
        if self._services.models.loading:
            logger.warning("SIGHUP: nothing was reloaded: models are still loading; send it again once ready")
            return
        try:
            wanted = self._load()
            config = with_hot_keys(self._config, wanted)
            self._check(config)
            keys = read_api_keys(config.server.api_keys_file)
        except ConfigError as error:
            logger.error("SIGHUP: nothing was reloaded: %s", error.message)
            return
        applied = [change.key for change in changes(self._config, config)]
        needs_restart = [change.key for change in changes(config, wanted)]
        self._config = config
        set_log_level(config.log_level)
        self._services.reload(config.server, keys)
        apply_to_models(config, self._services.models, num_keys=len(keys))
        logger.info("SIGHUP: %d API keys; changed: %s", len(keys), ", ".join(applied) or "nothing else")
        if needs_restart:
            logger.warning("SIGHUP: restart the server to change %s", ", ".join(needs_restart))


def apply_to_models(config: Config, table: ModelTable, *, num_keys: int) -> None:
    """Give the models that are served the hot keys of a config."""
    configs = {model.name: model for model in config.models}
    for served in table.served_models:
        model = configs[served.name]
        num_slots = served.manifest.num_slots
        served.engine.set_limits(tenant_limits(model, num_slots=num_slots, num_keys=num_keys))
        sampling = SamplingDefaults.resolve(model.sampling, served.card.sampling_defaults)
        table.serve(dataclasses.replace(served, sampling=sampling))
