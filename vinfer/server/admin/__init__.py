"""A private listener for whoever runs the server: drain, log level, stacks, profile and cache figures."""
