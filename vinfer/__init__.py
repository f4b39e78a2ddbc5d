"""vinfer: an inference daemon for EasyDeL models, driven by a YAML file."""

__version__ = "0.1.0"
