"""Under pytest-xdist the workers share the cores: threads of one would only wait for those of another."""

import os

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the processes tests start
