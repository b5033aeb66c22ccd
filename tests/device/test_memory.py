"""Free memory: of the machine, or of the control groups of a container."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from pipeline import buffer
from pipeline.dimensions import Dimensions
from saltus.device import memory


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the control groups of a machine with 1,000 free bytes."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(memory, "CGROUP_OF_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    return tmp_path / "groups"


def limit_v2(folder: Path, limit: str, used: int = 0, cached: int = 0) -> None:
    stat = f"anon 1\ninactive_file {cached // 2}\nactive_file {cached // 2}"
    write(folder, {"memory.max": limit, "memory.current": used, "memory.stat": stat})


def limit_v1(folder: Path, limit: int, used: int = 0, cached: int = 0) -> None:
    stat = f"inactive_file 0\ntotal_inactive_file {cached // 2}\ntotal_active_file {cached // 2}"
    write(folder, {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat})


def write(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def free_bytes(groups: Path, memberships: str) -> int:
    (groups.parent / "cgroup").write_text(memberships)
    return memory.free_bytes(torch.device("cpu"))


def test_without_control_groups_the_machines_memory_is_free(groups: Path) -> None:
    assert memory.free_bytes(torch.device("cpu")) == 1000
    assert free_bytes(groups, "0::/a/b\n") == 1000


def test_the_tightest_limit_of_a_group_and_those_around_it_counts(groups: Path) -> None:
    limit_v2(groups / "a" / "b", "max", used=5)
    limit_v2(groups / "a", "700", used=500, cached=100)
    assert free_bytes(groups, "0::/a/b\n") == 300
    limit_v2(groups / "a" / "b", "200", used=50)
    assert free_bytes(groups, "0::/a/b\n") == 150
    limit_v2(groups, "90", used=100)
    assert free_bytes(groups, "0::/a/b\n") == 0
    assert free_bytes(groups, "0::/elsewhere\n") == 0


def test_limits_of_version_1_count(groups: Path) -> None:
    memberships = "9:cpu:/other\n4:hugetlb,memory:/a\n0::/\n"
    limit_v1(groups / "memory" / "other", 1)
    limit_v1(groups / "memory", 2**63 - 4096, used=10)
    assert free_bytes(groups, memberships) == 1000
    limit_v1(groups / "memory" / "a", 700, used=500, cached=100)
    assert free_bytes(groups, memberships) == 300


def test_a_container_that_sees_its_own_group_as_the_root_is_limited(groups: Path) -> None:
    limit_v1(groups / "memory", 400)
    assert free_bytes(groups, "4:memory:/docker/of-the-host\n") == 400


@pytest.mark.parametrize("missing", ["memory.max", "memory.current", "memory.stat"])
def test_files_that_cannot_be_read_are_no_limit(groups: Path, missing: str) -> None:
    limit_v2(groups, "300")
    (groups / missing).unlink()
    assert free_bytes(groups, "0::/\n") == 1000


def test_unreferenced_memory_is_released_before_a_buffer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be in reference cycles, in torch's cache, and in frees that Warp deferred."""
    calls, gpu, free = [], torch.device("cuda"), iter([0, 10**12, 10**12])
    monkeypatch.setattr(memory, "free_bytes", lambda device: next(free))
    monkeypatch.setattr(memory.gc, "collect", lambda: calls.append("collect"))
    monkeypatch.setattr(memory, "deferred_frees", [lambda device: calls.append(device)])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    monkeypatch.setattr(buffer, "resolve_device", torch.device)
    monkeypatch.setattr(buffer.transitions, "zeros", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        buffer.ReplayBuffer(3, Dimensions(3, 1), "cuda")
    assert calls == ["collect", gpu, "empty"]


def test_a_buffer_on_a_gpu_whose_copy_does_not_fit_into_host_memory_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    free = {"cuda": 9 * 10**9, "cpu": 3 * 10**9}
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[device.type])
    monkeypatch.setattr(buffer, "resolve_device", torch.device)
    monkeypatch.setattr(buffer.transitions, "num_bytes", lambda *_: 10**9)
    monkeypatch.setattr(buffer.transitions, "zeros", lambda *_: 1 / 0)
    for capacity, per_host in ((3, 1), (4, 1), (2, 2)):
        with pytest.raises(ZeroDivisionError):
            buffer.ReplayBuffer(capacity, Dimensions(3, 1), "cuda", per_host=per_host)
    texts = [
        f"a checkpoint copies the replay buffer{ranks} to host memory, which takes 4.00 GB once it is full, and 3.00 "
        "GB are free: a save may end the run. Set buffer_size below 75% of its value"
        for ranks in ("", " of this machine's 2 ranks")
    ]
    assert [str(one.message) for one in recwarn] == texts
