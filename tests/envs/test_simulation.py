"""Simulation: settings, the choice of the engine, and messages for impossible values."""

from __future__ import annotations

import dataclasses
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from env_helpers import Actions, CartBall

import envs
from envs import BatchEnv, Simulation, simulation
from envs.physics.cpu import CpuPhysics
from envs.physics.warp import WarpPhysics
from envs.simulation import MIN_WARP_WORLDS
from saltus.errors import SaltusError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"physics": "gpu"}, "physics is 'gpu'; it must be one of auto, cpu, warp"),
    ({"physics": None}, "physics is None; it must be one of auto, cpu, warp"),
    ({"solver": "pgs"}, "solver is 'pgs'; it must be one of model, newton"),
    ({"num_threads": -1}, "num_threads is -1; it must be a whole number, 0 or more"),
    ({"num_threads": True}, "num_threads is True; it must be a whole number, 0 or more"),
    ({"num_threads": 1.5}, "num_threads is 1.5; it must be a whole number, 0 or more"),
    ({"solver_iterations": -1}, "solver_iterations is -1; it must be a whole number, 0 or more"),
    ({"physics": "warp", "max_contacts": -1}, "max_contacts is -1; it must be a whole number, 0 or more"),
    ({"physics": "warp", "max_constraints": -2}, "max_constraints is -2; it must be a whole number, 0 or more"),
]


def test_numpy_integers_are_whole_numbers():
    assert Simulation(num_threads=np.int64(2)).num_threads == 2


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(SaltusError) as error:
        Simulation(**settings)
    assert str(error.value) == message
    with pytest.raises(SaltusError) as error:
        envs.make("Hopper-v5", 2, **settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"physics": "cpu", "max_constraints": 20}, "max_contacts and max_constraints need physics warp"),
        ({"max_contacts": 20}, "max_contacts and max_constraints need physics warp"),
        ({"device": "cuda"}, "torch sees no CUDA device"),
    ],
)
def test_impossible_combinations_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(SaltusError, match=message):
        envs.make("Hopper-v5", 2, **options)


def test_unknown_execution_is_refused():
    with pytest.raises(SaltusError, match="execution is 'graph'; it must be one of auto, host, device, captured"):
        BatchEnv(CartBall(), 2, execution="graph")  # type: ignore[arg-type]


def test_settings_are_frozen_and_given_by_name():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Simulation().num_threads = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Simulation("cpu")  # type: ignore[call-arg]


FEW_WORLDS = (
    "physics: on the CPU. A step of Warp takes as long for a few worlds as for 512, and pays from there on (--physics "
    "warp, or --num-envs)"
)
AUTO: list[tuple[dict[str, Any], torch.device, int, str]] = [
    ({}, CPU, 4096, "cpu"),
    ({}, CUDA, 4096, "warp"),
    ({}, CUDA, MIN_WARP_WORLDS, "warp"),
    ({}, CUDA, MIN_WARP_WORLDS - 1, "cpu"),
    ({"max_contacts": 20}, CUDA, 1, "warp"),
    ({"physics": "cpu"}, CUDA, 4096, "cpu"),
    ({"physics": "warp"}, CUDA, 1, "warp"),
]


@pytest.mark.parametrize(("settings", "device", "worlds", "engine"), AUTO)
def test_auto_chooses_warp_on_cuda_for_many_worlds(
    settings: dict[str, Any], device: torch.device, worlds: int, engine: str, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("INFO", "saltus"):
        assert Simulation(**settings).resolve(device, worlds).physics == engine
    explained = [record.getMessage() for record in caplog.records]
    chosen_for_few_worlds = device == CUDA and engine == "cpu" and not settings
    assert explained == [FEW_WORLDS] * chosen_for_few_worlds


def test_auto_chooses_the_cpu_without_warp(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulation, "missing_packages", lambda: ["mujoco_warp"])
    with pytest.warns(UserWarning, match=r"physics runs on the CPU: pip install -c constraints.txt -e '.\[warp\]'"):
        assert Simulation().resolve(CUDA, 4096).physics == "cpu"


def test_few_worlds_are_the_reason_for_the_cpu_also_without_warp(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
):
    monkeypatch.setattr(simulation, "missing_packages", lambda: ["mujoco_warp"])
    with caplog.at_level("INFO", "saltus"):
        assert Simulation().resolve(CUDA, MIN_WARP_WORLDS - 1).physics == "cpu"
    assert [record.getMessage() for record in caplog.records] == [FEW_WORLDS]
    assert not recwarn.list


def test_resolving_keeps_the_other_settings():
    settings = Simulation(num_threads=3, solver="newton")
    assert settings.resolve(CPU, 1) == dataclasses.replace(settings, physics="cpu")


def test_settings_reach_the_engine():
    cpu = BatchEnv(CartBall(), 2, simulation=Simulation(physics="cpu", num_threads=1))
    warp = BatchEnv(CartBall(), 2, simulation=Simulation(physics="warp", max_contacts=12, max_constraints=40))
    assert isinstance(cpu.physics, CpuPhysics)
    assert isinstance(warp.physics, WarpPhysics)
    assert (warp.physics.max_contacts, warp.physics.max_constraints) == (12, 40)
    assert not cpu.captured
    assert not warp.captured


def test_solver_iterations_limit_those_of_either_engine():
    cpu = BatchEnv(CartBall(), 2, simulation=Simulation(physics="cpu", solver_iterations=3))
    settings = Simulation(physics="warp", solver_iterations=3, max_contacts=12, max_constraints=40)
    warp = BatchEnv(CartBall(), 2, simulation=settings)
    assert Simulation().load_model(CartBall()).opt.iterations == 100
    assert cpu.physics.model.opt.iterations == 3
    assert isinstance(warp.physics, WarpPhysics)
    assert warp.physics._warp_model.opt.iterations == 3


def test_solver_newton_replaces_the_models_solver_on_the_cpu():
    model, newton = (envs.make("Humanoid-v5", 2, seed=0, solver=solver) for solver in ("model", "newton"))
    assert newton.physics.model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON != model.physics.model.opt.solver
    draw = Actions(model)
    assert torch.equal(model.reset(), newton.reset())
    for _ in range(10):
        action = draw()
        left, right = model.step(action)[1], newton.step(action)[1]
    assert not torch.equal(left, right)
    torch.testing.assert_close(left[:, :45], right[:, :45], rtol=0, atol=1e-2)
