from __future__ import annotations

import pytest
from fault_harness import Runs
from forked_saltus import Zygote


@pytest.fixture(scope="session")
def runs(zygote: Zygote) -> Runs:
    return Runs(zygote)
