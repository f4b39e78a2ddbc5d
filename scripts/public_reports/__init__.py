"""What public reports about other servers describe, tried against vinfer."""
