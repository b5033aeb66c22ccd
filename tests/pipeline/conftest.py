from cli_helpers import command, swinger  # noqa: F401 - fixtures
