"""What the admin routes do with JAX."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from vinfer.errors import EngineError
from vinfer.launch.admin import profiler


def test_a_profile_lies_in_the_directory_of_the_config(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "profiles"
    profile = profiler(directory)
    np.asarray(jax.jit(lambda x: x + 1)(np.ones(3, np.float32)))
    written = Path(profile(0.05))
    assert directory in written.parents
    assert [path.suffix for path in written.iterdir() if path.suffix == ".pb"] == [".pb"]
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="the profile failed"):
        profiler(tmp_path / "file" / "x")(0.01)
