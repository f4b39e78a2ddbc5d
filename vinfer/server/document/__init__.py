"""The server's description of itself: OpenAPI and capabilities, built from the types that parse bodies."""
