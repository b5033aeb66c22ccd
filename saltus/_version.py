"""The version, which pyproject.toml reads: an installed package's metadata may be those of an earlier checkout."""

__version__ = "0.9.0"
