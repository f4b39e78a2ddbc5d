"""Tool calls: how models write them, answers taken apart as they arrive, tools explained in prompts."""
