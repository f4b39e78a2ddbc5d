"""The compiler: builds a bundle of exported programs and weights from a checkpoint and a plan."""
