"""Binding, exposure, and the defaults of a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from vinfer.config import SamplingConfig, ServerConfig
from vinfer.errors import BindError, ConfigError
from vinfer.server.http.serve import bind, check_exposure
from vinfer.server.model_table import SamplingDefaults


def test_a_taken_port_is_named() -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(BindError, match=rf"127\.0\.0\.1:{port}: .*another server\.port"):
            bind("127.0.0.1", port)
    # The port is free again, although it was just in use.
    bind("127.0.0.1", port).close()


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(BindError, match=r"192\.0\.2\.1:0"):
        bind("192.0.2.1", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_exposure(ServerConfig(host=host), insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.example.org"])
def test_a_wider_bind_needs_keys(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.api_keys_file, or pass --insecure"):
        check_exposure(ServerConfig(host=host), insecure=False)
    check_exposure(ServerConfig(host=host), insecure=True)
    check_exposure(ServerConfig(host=host, api_keys_file=tmp_path / "keys"), insecure=False)


def test_sampling_defaults_come_from_config_then_checkpoint_then_openai() -> None:
    config = SamplingConfig(temperature=0.0, max_tokens=9)
    theirs = {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 7, "n": 5, "do_sample": True, "top_k": None}
    assert SamplingDefaults.resolve(config, theirs) == SamplingDefaults(
        temperature=0.0, top_p=0.9, max_tokens=9
    )
    assert SamplingDefaults.resolve(SamplingConfig(n=2), theirs) == SamplingDefaults(
        temperature=0.6, top_p=0.9, max_tokens=7, n=2
    )
    assert SamplingDefaults.resolve(SamplingConfig(), {}) == SamplingDefaults()
