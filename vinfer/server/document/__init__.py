"""What the server says about itself: OpenAPI and capabilities, made from the types that parse bodies."""
