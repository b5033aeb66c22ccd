from __future__ import annotations

import io
import math

import pytest
import torch
from pipeline_helpers import differing
from torch import Tensor

from pipeline.optimizer import Adam

DECAYS = {"linear": lambda progress: 1 - progress, "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2}
schedules = pytest.mark.parametrize("schedule", DECAYS)
SHAPES = {"weight": (4, 3), "bias": (4,), "scalar": ()}
START = torch.zeros((), dtype=torch.float64)  # of a run


def random_tensors(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Gradients over many orders of magnitude, some of them zero."""
    found = random_tensors(1000 + step, dtype)
    found["weight"][:, 0] *= 1e-6
    found["weight"][:, 1] *= 1e3
    found["bias"][step % 4] = 0
    return list(found.values())


def trajectories(
    schedule: str, final_fraction: float, beta1: float, total_steps: int, steps: int, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    ours, theirs = random_tensors(0, dtype), random_tensors(0, dtype)
    progress = torch.zeros((), dtype=torch.float64)
    adam = Adam(ours, 3e-3, final_fraction, progress, schedule, beta1)
    adam.step_count = adam.step_count.to(dtype)  # in float32, the relative error of 1 - beta2**1 is 1e-5
    reference = torch.optim.Adam([value.requires_grad_() for value in theirs.values()], lr=3e-3, betas=(beta1, 0.999))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        reference, lambda step: final_fraction + (1 - final_fraction) * DECAYS[schedule](min(step / total_steps, 1.0))
    )
    for step in range(steps):
        progress.fill_(min(step / total_steps, 1.0))
        adam.step(gradients(step, dtype))
        for value, gradient in zip(theirs.values(), gradients(step, dtype), strict=True):
            value.grad = gradient
        reference.step()
        scheduler.step()
    return ours, {name: value.detach() for name, value in theirs.items()}


@schedules
@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("final_fraction", "total_steps"), [(1.0, 60), (0.1, 80), (0.1, 300)])
def test_adam_equals_torchs_with_a_decaying_rate(
    schedule: str, beta1: float, final_fraction: float, total_steps: int
) -> None:
    ours, theirs = trajectories(schedule, final_fraction, beta1, total_steps, steps=120)
    for name, start in random_tensors(0).items():
        distance = (theirs[name] - start).abs().max()
        assert (ours[name] - theirs[name]).abs().max() < 1e-11 * distance


@schedules
@pytest.mark.parametrize("beta1", [0.5, 0.9])
def test_first_steps_equal_torchs(schedule: str, beta1: float) -> None:
    for steps in (1, 2, 5):
        ours, theirs = trajectories(schedule, 0.1, beta1, 100, steps)
        for name, start in random_tensors(0).items():
            torch.testing.assert_close(ours[name] - start, theirs[name] - start, rtol=1e-10, atol=1e-14)


@schedules
def test_float32_steps_stay_close_to_torchs(schedule: str) -> None:
    ours, theirs = trajectories(schedule, 0.1, 0.9, 250, 400, torch.float32)
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def rates(schedule: str, final_fraction: float, total_steps: int, steps: int) -> list[float]:
    """The learning rates. With a constant gradient, mean and root mean square equal it, so a step has that size."""
    parameters, taken = {"x": torch.zeros((), dtype=torch.float64)}, []
    progress = torch.zeros((), dtype=torch.float64)
    adam = Adam(parameters, 0.1, final_fraction, progress, schedule)
    for step in range(steps):
        progress.fill_(min(step / total_steps, 1.0))
        before = parameters["x"].clone()
        adam.step([torch.tensor(5.0, dtype=torch.float64)])
        taken.append(float(before - parameters["x"]))
    return taken


def test_linear_rate_decays_to_its_final_fraction_and_stays_there() -> None:
    expected = [0.1 * max(1 - 0.75 * step / 20, 0.25) for step in range(50)]
    assert rates("linear", final_fraction=0.25, total_steps=20, steps=50) == pytest.approx(expected, rel=1e-4)


def test_cosine_rate_equals_torchs_and_stays_at_the_end() -> None:
    reference = torch.optim.SGD([torch.zeros(())], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=20, eta_min=0.1 * 0.25)
    expected = []
    for _ in range(20):
        expected += scheduler.get_last_lr()
        reference.step()
        scheduler.step()
    taken = rates("cosine", final_fraction=0.25, total_steps=20, steps=50)
    assert taken == pytest.approx(expected + [0.1 * 0.25] * 30, rel=1e-4)


@schedules
def test_loaded_optimizer_continues_bit_for_bit(schedule: str) -> None:
    parameters, progress = random_tensors(0, torch.float32), torch.zeros((), dtype=torch.float64)
    adam = Adam(parameters, lr=1e-3, final_fraction=0.1, progress=progress, schedule=schedule)
    for step in range(20):
        adam.step(gradients(step, torch.float32))
    file = io.BytesIO()
    torch.save(adam.state_dict(), file)
    file.seek(0)
    copies = {name: value.clone() for name, value in parameters.items()}
    loaded = Adam(copies, lr=1e-3, final_fraction=0.1, progress=progress, schedule=schedule)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for step in range(20, 60):
        progress.fill_(step / 60)
        for optimizer in (adam, loaded):
            optimizer.step(gradients(step, torch.float32))
    assert differing(copies, parameters) == []
    assert differing(loaded.state_dict(), adam.state_dict()) == []


def test_step_changes_parameters_in_place_and_not_the_gradients() -> None:
    parameters, given = random_tensors(0), gradients(0)
    before, kept = {name: value.clone() for name, value in parameters.items()}, [value.clone() for value in given]
    adam = Adam(parameters, lr=1e-3, final_fraction=1.0, progress=START)
    adam.step(given)
    assert all(not torch.equal(parameters[name], before[name]) for name in SHAPES)
    assert all(torch.equal(left, right) for left, right in zip(given, kept, strict=True))


def test_minimize_steps_along_the_gradient_of_a_loss() -> None:
    ours, theirs = ({name: value.requires_grad_() for name, value in random_tensors(0).items()} for _ in range(2))
    loss = sum(value.square().sum() for value in ours.values())
    Adam(ours, lr=1e-3, final_fraction=1.0, progress=START).minimize(loss)
    Adam(theirs, lr=1e-3, final_fraction=1.0, progress=START).step([2 * value.detach() for value in theirs.values()])
    assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)


def test_a_missing_gradient_is_an_error() -> None:
    adam = Adam(random_tensors(0), lr=1e-3, final_fraction=1.0, progress=START)
    with pytest.raises(ValueError, match="shorter"):
        adam.step(gradients(0)[:2])
