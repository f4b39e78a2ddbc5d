"""EasyDeL 0.3.0 as a front end: the only package that imports it, with each correction next to its reason."""
