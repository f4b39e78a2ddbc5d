"""`vinfer bench`: load on any server with OpenAI's API, and its figures.

Knows a server by its API alone. The client, the load and the figures use the standard library only, because
scripts/bench runs where nothing is installed.
"""
