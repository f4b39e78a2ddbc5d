"""The parts of scripts/bench. Standard library only: a benchmark client should cost next to nothing.

Its client and figures are those of `vinfer bench`, from this checkout, which need not be installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
