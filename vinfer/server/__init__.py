"""The HTTP half: plain Starlette handlers over engines. No JAX."""
