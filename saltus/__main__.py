"""The `saltus` command, also as ``python -m saltus``."""

from __future__ import annotations

import sys

from saltus import require_own_packages


def main() -> None:
    """Run the command line; exit with a message if another package shadows one of saltus's."""
    try:
        require_own_packages()
    except ImportError as error:
        sys.exit(f"saltus: {error}")
    from pipeline.cli import main as run

    run()


if __name__ == "__main__":
    main()
