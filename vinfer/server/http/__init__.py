"""What every HTTP request passes through: the gate, API keys, bodies, errors, and uvicorn itself."""
