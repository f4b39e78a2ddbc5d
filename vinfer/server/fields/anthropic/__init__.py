"""The fields of Anthropic's Messages API, and the chat completion that asks for the same."""
