from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread, Timer
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, fx
from torch._inductor import codecache
from torch._inductor import config as inductor_config
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch.fx.experimental.proxy_tensor import make_fx

from saltus.device import compiled_update as graph_module
from saltus.device.compiled_update import Graph
from saltus.device.onednn import UseOneDNN

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
STANDALONE = graph_module.standalone_compile
needs_onednn = pytest.mark.skipif(not UseOneDNN.available(), reason="no oneDNN on this machine")


class Regression:
    """A small update with all that one has: noise, a gradient, state that is changed in place, nested entries."""

    def __init__(self, seed: int = 0, width: int = 3):
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(width, 2, generator=generator).requires_grad_()
        self.alias = self.weight.detach()  # the same memory
        self.count = torch.zeros(())
        self.traced = 0

    def state(self) -> list[Tensor]:
        return [self.weight, self.count]

    def update(self, batch: TensorDict) -> dict[str, Tensor]:
        self.traced += 1
        noise = torch.randn_like(batch["observation"])
        error = (batch["observation"] + noise) @ self.weight - batch["next", "reward"]
        loss = error.square().mean()
        (gradient,) = torch.autograd.grad(loss, [self.weight])
        with torch.no_grad():
            self.weight -= 0.1 * gradient
            self.count += 1
        batch["scribble"] = error  # as TorchRL's losses do
        return {"loss": loss.detach(), "noise": noise, "alias": self.alias.sum()}


def make_batch(seed: int = 0, rows: int = 4, width: int = 3) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    following = TensorDict({"reward": torch.randn(rows, 1, generator=generator)}, batch_size=[rows])
    observation = torch.randn(rows, width, generator=generator)
    return TensorDict({"observation": observation, "next": following}, batch_size=[rows])


def play(update: Callable[[TensorDict], dict[str, Tensor]], count: int = 4) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    return [{name: value.clone() for name, value in update(make_batch(seed)).items()} for seed in range(count)]


@pytest.fixture(scope="module")
def shared() -> tuple[Regression, Graph]:
    """An update that has been compiled."""
    regression = Regression()
    graph = Graph(regression.update, regression.state)
    play(graph, 1)
    assert graph.seconds > 0
    return regression, graph


@pytest.fixture
def compiled(shared: tuple[Regression, Graph], monkeypatch: pytest.MonkeyPatch) -> tuple[Regression, Graph]:
    """The same in a fresh state; to compile or to trace again fails."""
    regression, graph = shared
    with torch.no_grad():
        for mine, fresh in zip(regression.state(), Regression().state(), strict=True):
            mine.copy_(fresh)
    monkeypatch.setattr(graph_module, "standalone_compile", lambda *_, **__: pytest.fail("compiled again"))
    return regression, graph


def test_a_graph_computes_what_the_function_does_and_draws_the_same_random_numbers(
    compiled: tuple[Regression, Graph],
) -> None:
    regression, graph = compiled
    plain = Regression()
    expected, expected_random = play(plain.update), torch.get_rng_state()
    found, random = play(graph), torch.get_rng_state()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(regression.state(), plain.state())
    assert torch.equal(random, expected_random)
    assert not torch.equal(found[0]["noise"], found[1]["noise"])
    assert int(regression.count) == 4
    assert regression.traced == 1, "at a call no Python of the function is left"


def test_a_graph_reads_and_writes_its_tensors_where_they_are(compiled: tuple[Regression, Graph]) -> None:
    regression, graph = compiled
    other = Regression(seed=5)
    with torch.no_grad():
        regression.weight.copy_(other.weight)
        regression.count.fill_(100)
    torch.testing.assert_close(play(graph), play(other.update))
    torch.testing.assert_close(regression.weight, other.weight)
    assert int(regression.count) == 104
    assert torch.equal(regression.alias, regression.weight)


def test_a_graph_leaves_the_batches_it_is_given_as_they_were(compiled: tuple[Regression, Graph]) -> None:
    batch = make_batch()
    compiled[1](batch)
    assert (batch == make_batch()).all()
    assert set(batch.keys(True)) == set(make_batch().keys(True))


def test_a_function_is_compiled_at_its_first_call_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(graph_module, "standalone_compile", lambda *a, **k: calls.append(a) or STANDALONE(*a, **k))
    regression = Regression()
    graph = Graph(regression.update, regression.state)
    assert graph.pending
    assert not calls
    play(graph)
    assert not graph.pending
    assert len(calls) == 1


def test_tracing_leaves_the_state_and_the_random_stream_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    regression, seen = Regression(), []

    def look(*_: Any, **__: Any) -> Any:
        seen.append(([tensor.detach().clone() for tensor in regression.state()], torch.get_rng_state()))
        raise KeyboardInterrupt

    monkeypatch.setattr(graph_module, "standalone_compile", look)
    torch.manual_seed(0)
    random = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        Graph(regression.update, regression.state)(make_batch())
    assert regression.traced == 1
    ((state, random_then),) = seen
    assert all(torch.equal(*pair) for pair in zip(state, Regression().state(), strict=True))
    assert torch.equal(random, random_then)


FAILURES = [
    pytest.param(RuntimeError("no C++ compiler\nlong story"), "no C++ compiler", id="message"),
    pytest.param(torch._inductor.exc.InductorError(ValueError("bad"), None), "bad", id="inductor"),
    pytest.param(NotImplementedError(), "NotImplementedError", id="without a message"),
]


@pytest.mark.parametrize(("error", "reason"), FAILURES)
def test_where_compiling_fails_the_function_goes_on_as_it_is_and_one_warning_says_why(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def failing(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        raise error

    monkeypatch.setattr(graph_module, "standalone_compile", failing)
    regression, plain, another = Regression(), Regression(), Regression()
    graph = Graph(regression.update, regression.state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = play(graph)
        play(Graph(another.update, another.state))
    said = [str(warning.message) for warning in caught]
    assert len(said) == 1, said
    assert "torch.compile failed, going on without it" in said[0]
    assert reason in said[0]
    assert "long story" not in said[0]
    assert "apt install g++" in said[0]
    assert calls == 4
    assert not graph.pending
    for left, right in zip(found, play(plain.update), strict=True):
        assert all(torch.equal(left[name], right[name]) for name in right)
    assert torch.equal(regression.weight, plain.weight)


def test_headers_are_precompiled_where_inductor_finds_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in ("/usr/bin/openssl", None):
        monkeypatch.setattr(graph_module, "shutil", SimpleNamespace(which={"openssl": found}.get))
        for wanted in (True, False):
            with inductor_config.patch(cpp_cache_precompile_headers=wanted):
                assert graph_module.can_precompile_headers() == (wanted and found is not None)


def test_without_openssl_kernels_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def precompile(*_: Any, **__: Any) -> str:
        raise FileNotFoundError("openssl")

    monkeypatch.setattr(codecache, "_precompile_header", precompile)
    monkeypatch.setattr(graph_module, "can_precompile_headers", lambda: False)
    width = 1 + int.from_bytes(os.urandom(2)) % 5000  # a kernel that no cache holds
    graph = Graph(lambda batch: {"scaled": batch["x"].sin() * width}, list)
    batch = TensorDict({"x": torch.ones(5000 + width)})
    torch.testing.assert_close(graph(batch)["scaled"], batch["x"].sin() * width)
    assert graph.compiled


def test_a_graph_waits_until_the_vector_instructions_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known, waiting, compiling = Event(), Event(), Event()

    class Watched(graph_module.WarmStart):
        def wait_until_probed(self) -> None:
            waiting.set()
            super().wait_until_probed()

    monkeypatch.setattr(graph_module, "WarmStart", Watched)
    monkeypatch.setattr(graph_module, "pick_vec_isa", lambda: known.wait(60))
    monkeypatch.setattr(graph_module, "can_precompile_headers", lambda: False)
    monkeypatch.setattr(graph_module, "_preparation", None)
    monkeypatch.setattr(graph_module, "standalone_compile", lambda *_, **__: compiling.set())
    graph_module.warm_start()
    regression = Regression()
    graph = Graph(regression.update, regression.state)
    caller = Thread(target=graph._compile, args=(make_batch(), *graph_module._flat(make_batch())))
    caller.start()
    assert waiting.wait(60)
    assert not compiling.wait(0.5)
    known.set()
    caller.join(60)
    assert compiling.is_set()
    graph_module._preparation.join(60)


def test_where_nobody_looks_for_them_no_graph_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process has the preparation that its parent began, and not the thread."""
    monkeypatch.setattr(graph_module, "_preparation", graph_module.WarmStart())
    regression = Regression()
    graph = Graph(regression.update, regression.state)
    graph(make_batch())
    assert graph.compiled


def test_a_compilation_that_was_interrupted_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the compiler's processes, too; the update in which it came is to be computed as all others are."""
    errors = [RuntimeError("-2")]
    monkeypatch.setattr(
        graph_module,
        "standalone_compile",
        lambda *a, **k: (_ for _ in ()).throw(errors.pop()) if errors else STANDALONE(*a, **k),
    )
    regression, plain = Regression(), Regression()
    graph = Graph(regression.update, regression.state)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile")
        torch.testing.assert_close(play(graph), play(plain.update))
    assert regression.traced == 2
    torch.testing.assert_close(regression.state(), plain.state())


def test_an_error_of_the_function_itself_is_raised() -> None:
    def broken(_batch: TensorDict) -> dict[str, Tensor]:
        raise ZeroDivisionError("a bug")

    with pytest.warns(UserWarning, match="a bug"), pytest.raises(ZeroDivisionError, match="a bug"):
        Graph(broken, list)(make_batch())


def products(function: Callable[..., Tensor], *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> set[str]:
    """The matrix products that are left after the pass, once it is certain that they compute the same.

    A shape is that of a tensor of random numbers.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    traced: fx.GraphModule = make_fx(function, tracing_mode="fake")(*tensors)
    UseOneDNN()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    exact = function(*(tensor.double() for tensor in tensors)).double()
    tolerance = (2e-6 if dtype != torch.bfloat16 else 2**-8) * exact.abs().max().item()
    torch.testing.assert_close(traced(*tensors).double(), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(function(*tensors).double(), exact, rtol=0, atol=tolerance)
    names = {str(node.target) for node in traced.graph.nodes}
    return {name for name in names if "mm" in name or "matmul" in name}


ONEDNN = {"saltus.matmul.default"}
convert = torch.ops.prims.convert_element_type.default


@needs_onednn
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, w: x @ w, [(64, 8), (8, 64)]),
        (lambda x, w: x @ w.t(), [(256, 17), (256, 17)]),
        (lambda x, g: x.t() @ g, [(100, 65), (100, 77)]),
        (lambda x, g: x.t() @ g.t(), [(100, 65), (77, 100)]),
        (lambda x, w: x[::2, 1:] @ w, [(200, 31), (30, 80)]),
        (lambda x, g: x.t() @ g, [(256, 256), (256, 8)]),
        (lambda x, w: (x @ w)[:, 20:35], [(256, 256), (256, 80)]),
        (lambda x, w, b: torch.nn.functional.linear(x, w, b).relu(), [(64, 30), (80, 30), (80,)]),
        (lambda x, w, b: torch.nn.functional.linear(x, w, b), [(64, 30), (80, 30), (80,)]),
        (lambda x, w, b: torch.addmm(b, x, w), [(64, 30), (30, 80), (80,)]),
        (lambda x, v, w: (x @ v).relu() @ w, [(64, 64), (64, 64), (64, 64)]),
    ],
    ids=[
        "mm",
        "transposed right",
        "transposed left",
        "both transposed",
        "strided",
        "thin",
        "some columns",
        "relu",
        "linear",
        "addmm",
        "two",
    ],
)
def test_large_products_go_to_onednn_and_agree_within_rounding(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    assert products(function, *shapes) == ONEDNN


@needs_onednn
def test_products_of_bfloat16_go_to_onednn_too() -> None:
    shapes = [(64, 65), (65, 80)]
    assert products(lambda x, w: x @ w, *shapes, dtype=torch.bfloat16) == ONEDNN
    assert products(lambda x, w: convert(x @ w, torch.float32)[:, 20:35], *shapes, dtype=torch.bfloat16) == ONEDNN


@needs_onednn
@pytest.mark.parametrize("shapes", [[(63, 8), (8, 64)], [(64, 7), (7, 99)], [(99, 99), (99, 7)], [(7, 99), (99, 99)]])
def test_small_products_are_left_alone(shapes: list[tuple[int, int]]) -> None:
    assert products(lambda x, w: x @ w, *shapes) == {"aten.mm.default"}


@needs_onednn
def test_outer_products_are_multiplications() -> None:
    assert products(lambda x, w: x @ w, (256, 1), (1, 256)) == set()
    assert products(lambda x, w, b: torch.addmm(b, x, w), (256, 1), (1, 256), (256,)) == {"aten.addmm.default"}


@needs_onednn
def test_of_a_product_only_the_columns_that_are_read_are_computed() -> None:
    def shapes(function: Callable[..., Tensor]) -> list[tuple[int, ...]]:
        tensors = [torch.randn(64, 32), torch.randn(32, 90)]
        traced: fx.GraphModule = make_fx(function, tracing_mode="fake")(*tensors)
        UseOneDNN()(traced.graph)
        traced.graph.lint()
        traced.recompile()
        torch.testing.assert_close(traced(*tensors), function(*tensors))
        return [tuple(node.meta["val"].shape) for node in traced.graph.nodes if "matmul" in str(node.target)]

    assert shapes(lambda x, w: (x @ w)[:, 30:50]) == [(64, 20)]
    assert shapes(lambda x, w: convert(x @ w, torch.float64)[:, 30:50]) == [(64, 20)]
    assert shapes(lambda x, w: convert(y := x @ w, torch.float64)[:, 30:50] + y.sum()) == [(64, 90)]
    assert shapes(lambda x, w: (y := convert(x @ w, torch.float64))[:, 30:50] + y.sum()) == [(64, 90)]
    assert shapes(lambda x, w: (x @ w)[:, 30:50] + (x @ w)[:, 70:]) == [(64, 20), (64, 20)]
    assert shapes(lambda x, w: (x @ w)[:, 1::2]) == [(64, 90)]
    assert shapes(lambda x, w: (x @ w)[3:]) == [(64, 90)]
    assert shapes(lambda x, w: (y := x @ w)[:, :9] + y.sum()) == [(64, 90)]


@needs_onednn
def test_what_onednn_would_not_compute_the_same_is_left_alone() -> None:
    large = [(64, 64), (64, 64)]
    assert products(lambda x, w: x @ w, *large, dtype=torch.float64) == {"aten.mm.default"}
    assert products(lambda b, x, w: torch.addmm(b, x, w), (64, 64), *large) == {"aten.addmm.default"}
    assert products(lambda b, x, w: torch.addmm(b, x, w, beta=2, alpha=0.5), (64,), *large) == {"aten.addmm.default"}
    assert products(lambda x, w: x @ w[:, 1:], (64, 64), (64, 80)) == {"aten.mm.default"}, "not dense in any order"
    assert products(lambda x, w: torch.bmm(x, w), (3, 64, 64), (3, 64, 64)) == {"aten.bmm.default"}


PREPARED = """
import json, signal
from pathlib import Path
import torch
from tensordict import TensorDict
from torch._inductor import codecache
from torch._inductor import config as inductor_config
from torch._inductor.cpu_vec_isa import pick_vec_isa, valid_vec_isa_list
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from saltus.device import compiled_update

signal.signal(signal.SIGINT, lambda *_: None)  # as StopSignal does, a run goes on until it has saved
graph.warm_start()
graph.warm_start()
print("preparing", flush=True)
graph._preparation.join()
print("prepared", flush=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
headers = lambda: sorted(str(path) for path in Path(default_cache_dir()).rglob("*.[gp]ch"))
before = headers()
compiled = graph.Graph(lambda batch: {"double": 2 * batch["x"].sin()}, lambda: [])
assert (compiled(TensorDict({"x": torch.ones(64)}))["double"] > 1).all() and compiled.compiled
print(json.dumps([str(pick_vec_isa()), valid_vec_isa_list.cache_info().misses, len(before), headers() == before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not graph_module.can_precompile_headers(), reason="Inductor's header is not precompiled here")
def test_what_is_prepared_is_what_compiling_takes_and_no_interrupt_spoils_it(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    done = Event()
    with subprocess.Popen(
        [sys.executable, "-c", PREPARED],
        env=environment | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        too_late = Timer(240, process.kill)
        too_late.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "preparing\n"
            Thread(target=interrupt_until, args=(done, process.pid), daemon=True).start()
            assert process.stdout.readline() == "prepared\n"
            done.set()
            found, probes, headers, no_new_header = json.loads(process.stdout.read())
        finally:
            done.set()
            too_late.cancel()
            process.kill()
    assert found == str(pick_vec_isa())
    assert probes == 1
    assert headers == 1
    assert no_new_header


def interrupt_until(done: Event, group: int) -> None:
    while not done.wait(0.1):
        os.killpg(group, signal.SIGINT)


@needs_onednn
@pytest.mark.slow
def test_a_compiled_graph_calls_onednn_where_it_is_worth_it() -> None:
    regression = Regression(width=64)
    weight = torch.randn(64, 64)

    def wide(batch: TensorDict) -> dict[str, Tensor]:
        return {"product": torch.relu(batch["observation"]) @ weight} | regression.update(batch)

    batch = make_batch(rows=64, width=64)
    graph = Graph(wide, regression.state)
    graph(batch)
    with torch.profiler.profile() as profile:
        found = graph(batch)["product"]
    assert sum(event.name == "mkldnn::_linear_pointwise" for event in profile.events()) == 1
    torch.testing.assert_close(found, torch.relu(batch["observation"]) @ weight, rtol=1e-5, atol=1e-4)
