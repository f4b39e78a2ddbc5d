"""The routes: one handler each, from a request to an answer."""
