"""`vinfer verify`: the command and its tables."""
