"""The fields of `/v1/responses`, and the chat messages that its input items stand for."""
