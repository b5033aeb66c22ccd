"""CompiledUpdate: equal to the plain function, compiled once, and replaced by it if compilation fails."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch._inductor
from tensordict import TensorDict
from torch import Tensor
from torch._inductor import codecache
from update_helpers import Regression, make_batch, run

from saltus.device import compiled_update
from saltus.device.compiled_update import CompiledUpdate, flatten, trace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
Shared = tuple[Regression, CompiledUpdate]


def patch_compiler(monkeypatch: pytest.MonkeyPatch, compiler: Callable[..., Any]) -> None:
    monkeypatch.setattr(torch._inductor, "standalone_compile", compiler)


def return_traced(traced: Any, *_: Any, **__: Any) -> Any:
    """Replaces Inductor: a call runs the traced operations one by one."""
    return traced


@pytest.fixture(scope="module")
def compiled_once() -> Shared:
    regression = Regression()
    update = regression.compiled()
    run(update, 1)
    assert update.compiled
    assert update.seconds > 0
    return regression, update


@pytest.fixture
def compiled(compiled_once: Shared, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """A compiled update in its first state, which fails to compile or to trace again."""
    regression, update = compiled_once
    with torch.no_grad():
        for tensor, value in zip(regression.state(), Regression().state(), strict=True):
            tensor.copy_(value)
    patch_compiler(monkeypatch, lambda *_, **__: pytest.fail("compiled again"))
    return regression, update


def test_compiled_update_equals_the_function_with_the_same_random_numbers(compiled: Shared) -> None:
    regression, update = compiled
    plain = Regression()
    expected, expected_random = run(plain.update), torch.get_rng_state()
    found, random = run(update), torch.get_rng_state()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(regression.state(), plain.state())
    assert torch.equal(random, expected_random)
    assert not torch.equal(found[0]["noise"], found[1]["noise"])
    assert int(regression.count) == 4
    assert regression.python_calls == 1, "a call runs the function's Python"


def test_state_stays_at_its_address(compiled: Shared) -> None:
    regression, update = compiled
    other = Regression(seed=5)
    with torch.no_grad():
        regression.weight.copy_(other.weight)
        regression.count.fill_(100)
    torch.testing.assert_close(run(update), run(other.update))
    torch.testing.assert_close(regression.weight, other.weight)
    assert int(regression.count) == 104
    assert torch.equal(regression.alias, regression.weight)


def test_batches_are_unchanged(compiled: Shared) -> None:
    batch = make_batch()
    compiled[1](batch)
    assert (batch == make_batch()).all()
    assert set(batch.keys(True)) == set(make_batch().keys(True))


def test_first_call_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    patch_compiler(monkeypatch, lambda traced, *_, **__: calls.append(traced) or traced)
    update = Regression().compiled()
    assert update.pending
    assert not calls
    run(update)
    assert not update.pending
    assert len(calls) == 1


def test_processes_that_train_together_on_cuda_choose_no_kernel_by_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = (compiled_update.inductor_options("cuda", count) for count in (1, 2))
    assert together == {**alone, "deterministic": True}
    assert "deterministic" not in {**alone, **compiled_update.inductor_options("cpu", 2)}
    monkeypatch.delattr(torch._inductor.config, "deterministic")  # as other versions of torch may lack it
    assert compiled_update.inductor_options("cuda", 2) == alone


def test_a_compiled_update_knows_how_many_processes_train(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(compiled_update, "inductor_options", lambda *asked_for: asked.append(asked_for) or {})
    patch_compiler(monkeypatch, return_traced)
    regression = Regression()
    run(CompiledUpdate(regression.update, regression.state, num_processes=3), 1)
    assert asked == [("cpu", 3)]


def test_tracing_restores_state_and_random_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    regression, seen = Regression(), []

    def interrupt(*_: Any, **__: Any) -> Any:
        seen.append(([tensor.detach().clone() for tensor in regression.state()], torch.get_rng_state()))
        raise KeyboardInterrupt

    patch_compiler(monkeypatch, interrupt)
    torch.manual_seed(0)
    random = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        regression.compiled()(make_batch())
    assert regression.python_calls == 1
    ((state, random_then),) = seen
    assert all(torch.equal(*pair) for pair in zip(state, Regression().state(), strict=True))
    assert torch.equal(random, random_then)


def assert_equals_plain(found: list[dict[str, Tensor]], regression: Regression) -> None:
    plain = Regression()
    for left, right in zip(found, run(plain.update), strict=True):
        assert all(torch.equal(left[name], right[name]) for name in right)
    assert torch.equal(regression.weight, plain.weight)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(RuntimeError("no C++ compiler\nlong story"), "no C++ compiler", id="message"),
        pytest.param(torch._inductor.exc.InductorError(ValueError("bad"), None), "bad", id="inductor"),
        pytest.param(NotImplementedError(), "NotImplementedError", id="without a message"),
    ],
)
def test_failed_compilation_warns_once_and_updates_run_eagerly(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fail(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        raise error

    patch_compiler(monkeypatch, fail)
    regression = Regression()
    update = regression.compiled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(update)
        run(Regression().compiled())
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1, messages
    assert "compilation failed, so updates run eagerly" in messages[0]
    assert reason in messages[0]
    assert "long story" not in messages[0]
    assert "apt install g++" in messages[0]
    assert calls == 4
    assert not update.pending
    assert not update.compiled
    assert_equals_plain(found, regression)


def test_interrupted_compilation_is_repeated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C also kills the compiler's processes."""
    errors = [RuntimeError("-2")]

    def fail_once(traced: Any, *_: Any, **__: Any) -> Any:
        if errors:
            raise errors.pop()
        return traced

    patch_compiler(monkeypatch, fail_once)
    regression = Regression()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile")
        found = run(regression.compiled())
    assert regression.python_calls == 2
    assert_equals_plain(found, regression)


def test_compilation_that_a_stop_interrupts_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[bool] = []

    def interrupt(*_: Any, **__: Any) -> Any:
        stopped.append(True)
        raise RuntimeError("g++ was killed by signal 15")

    regression = Regression()
    update = regression.compiled()
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch_compiler(patch, interrupt)
        update.compile(make_batch(), lambda: bool(stopped))
        update.compile(make_batch(), lambda: bool(stopped))
    assert stopped == [True], "compiled once, and not again"
    assert (update.pending, update.attempted) == (True, False)
    patch_compiler(monkeypatch, return_traced)
    assert_equals_plain(run(update), regression)
    assert update.compiled


def test_errors_of_the_function_are_raised() -> None:
    def broken(_batch: TensorDict) -> dict[str, Tensor]:
        raise ZeroDivisionError("a bug")

    with pytest.warns(UserWarning, match="a bug"), pytest.raises(ZeroDivisionError, match="a bug"):
        CompiledUpdate(broken, list)(make_batch())


def test_kernels_compile_without_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    def precompile(*_: Any, **__: Any) -> str:
        raise FileNotFoundError("openssl")

    monkeypatch.setattr(codecache, "_precompile_header", precompile)
    monkeypatch.setattr(compiled_update, "can_precompile_header", lambda: False)
    width = 1 + int.from_bytes(os.urandom(2)) % 5000  # a kernel that no cache holds
    update = CompiledUpdate(lambda batch: {"scaled": batch["x"].sin() * width}, list)
    batch = TensorDict({"x": torch.ones(5000 + width)})
    torch.testing.assert_close(update(batch)["scaled"], batch["x"].sin() * width)
    assert update.compiled


@pytest.fixture
def onednn_not_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(sys.modules, "saltus.device.onednn", raising=False)
    compiled_update._onednn_pass.cache_clear()
    yield
    compiled_update._onednn_pass.cache_clear()


@pytest.mark.usefixtures("onednn_not_imported")
@pytest.mark.parametrize(
    "name",
    [
        "torch._inductor.custom_graph_pass.CustomGraphPass",
        "torch._inductor.custom_graph_pass.get_hash_for_files",
        "torch._inductor.lowering.register_lowering",
    ],
)
def test_update_compiles_without_internals_of_the_onednn_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(name)
    regression, plain = Regression(), Regression()
    update = regression.compiled()
    with pytest.warns(UserWarning, match="instead of oneDNN") as caught:
        found = [run(update), run(Regression().compiled())]
    assert update.compiled
    assert len(caught) == 1
    torch.testing.assert_close(found, [run(plain.update), run(Regression().update)])
    assert name.rpartition(".")[2] in str(caught[0].message)
    torch.testing.assert_close(regression.state(), plain.state())


@pytest.mark.parametrize("name", ["torch._inductor.standalone_compile", "torch.fx.experimental.proxy_tensor.make_fx"])
def test_update_runs_eagerly_without_internals_of_inductor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(name)
    regression = Regression()
    update = regression.compiled()
    with pytest.warns(UserWarning, match="a version of torch that saltus supports") as caught:
        found = run(update)
    assert len(caught) == 1
    assert not update.compiled
    assert_equals_plain(found, regression)


WITHOUT_INTERNALS = """
import importlib, pkgutil, warnings

homes = [(importlib.import_module(module), name) for module, name in %r]
for module, name in homes:
    delattr(module, name)
warnings.simplefilter("ignore")
import envs, pipeline, saltus
for package in (envs, pipeline, saltus):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in ("saltus.__main__", "saltus.device.onednn"):
            importlib.import_module(module.name)
from update_helpers import Regression, make_batch
from saltus.device.warm_start import warm_start
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    warm_start()
    assert float(Regression().compiled()(make_batch())["loss"]) > 0
print(*(str(one.message) for one in caught), sep="\\n")
"""
INTERNALS = [
    "torch._inductor.standalone_compile",
    "torch._inductor.codecache.CppPythonBindingsCodeCache",
    "torch._inductor.cpu_vec_isa.pick_vec_isa",
    "torch._inductor.custom_graph_pass.CustomGraphPass",
    "torch._inductor.lowering.register_lowering",
    "torch._inductor.runtime.cache_dir_utils.cache_dir",
    "torch.fx.experimental.proxy_tensor.make_fx",
]


@pytest.mark.slow
def test_imports_succeed_without_any_internals_of_inductor() -> None:
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_INTERNALS % [name.rsplit(".", 1) for name in INTERNALS]],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert "cannot be prepared early" in first
    assert "updates run eagerly" in second


def test_graph_that_reads_a_view_of_a_parameter_can_be_copied() -> None:
    """Inductor copies it. The parameters of a single critic are such views."""
    view, batch = torch.ones(3, requires_grad=True).unsqueeze(0), make_batch()
    traced = trace(lambda values: {"sum": (view.detach() * values["observation"]).sum()}, batch, [])
    (found,) = deepcopy(traced.graph)(*traced.inputs, *flatten(batch)[1])
    assert torch.equal(found, batch["observation"].sum())
