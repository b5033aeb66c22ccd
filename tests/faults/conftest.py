from __future__ import annotations

from collections.abc import Iterator

import pytest
from fault_harness import Runs, Zygote


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    zygote = Zygote(tmp_path_factory.mktemp("faults"))
    yield Runs(zygote)
    zygote.close()
