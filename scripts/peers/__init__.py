"""The parts of `scripts/bench --peers`: other servers beside vinfer, under one load client.

Standard library only, as scripts/bench. `main` turns a run into one document; `page` and `verdicts` read only
the document, so that they need no server.
"""
