from check_helpers import short_capacity_rollouts  # noqa: F401 - a fixture
from cli_helpers import command, copied, run_dir, swinger  # noqa: F401 - fixtures
from run_dir_helpers import moved, own_run, project  # noqa: F401 - fixtures
