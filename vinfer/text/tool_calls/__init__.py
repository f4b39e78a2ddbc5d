"""Tool calls: how models write them, parsing them as answers arrive, explaining tools in prompts."""
