"""What every HTTP request passes: the gate, keys, bodies, errors, and uvicorn itself."""
