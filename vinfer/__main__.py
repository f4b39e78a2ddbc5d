"""`python -m vinfer`: the command line."""

from __future__ import annotations

from vinfer.cli import main

if __name__ == "__main__":
    main()
