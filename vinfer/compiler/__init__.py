"""The compiler: from a checkpoint and a plan to a bundle of exported programs and weights."""
