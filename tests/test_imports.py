"""Dependency rules, checked on the sources' syntax trees."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from pipeline.file_names import OWN_NAMES
from pipeline.torchrl_adapter import PARTS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("saltus", "envs", "pipeline", "benchmarks")
LEARNING = (
    "agent",
    "buffer",
    "estimators",
    "learner",
    "losses",
    "networks",
    "normalize",
    "optimizer",
    "ranks",
    "torchrl_adapter",
)
INDUCTOR = ("torch._inductor", "torch.fx.experimental.proxy_tensor.make_fx")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def statements(nodes: Iterable[ast.AST], lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements in `nodes`; with `lazy`, also those that do not run when the module is imported."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not lazy:
            yield from statements(node.orelse, lazy)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(ast.iter_child_nodes(node), lazy)


@functools.cache
def parse(text: str) -> ast.Module:
    return ast.parse(text)


def imports(module: str, text: str, is_package: bool, lazy: bool = True) -> set[str]:
    """Full names of a source's imports; ``from a import b`` gives `a.b`, whether b is a module or an object."""
    package = module if is_package else module.rpartition(".")[0]
    found = set()
    for node in statements(parse(text).body, lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


@functools.cache
def imports_of(module: str, lazy: bool = True) -> set[str]:
    path = SOURCES[module]
    return imports(module, path.read_text(), path.name == "__init__.py", lazy)


def within(names: Iterable[str], *packages: str) -> set[str]:
    """The `names` that equal one of the packages or lie in one."""
    return {name for name in names if any(name == package or name.startswith(f"{package}.") for package in packages)}


def modules_of(*packages: str) -> list[str]:
    return sorted(within(SOURCES, *packages))


@functools.cache
def references(text: str) -> set[str]:
    """Attribute names and string constants in a source."""
    nodes = list(ast.walk(parse(text)))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_sources_are_found():
    assert {"saltus", "saltus.device.cuda_graph", "envs.batch_env", "envs.physics.cpu", "pipeline.agent"} <= set(
        SOURCES
    )
    assert {f"pipeline.{name}" for name in LEARNING} <= set(SOURCES)
    assert "envs.task" in {name.rpartition(".")[0] for name in imports_of("envs.batch_env")}


@pytest.mark.parametrize(
    ("text", "lazy", "expected"),
    [
        ("import a.b, c", True, {"a.b", "c"}),
        ("from a.b import c as d", True, {"a.b.c"}),
        ("from . import c\nfrom .d import e\nfrom ..f import g", True, {"p.q.c", "p.q.d.e", "p.f.g"}),
        ("def f():\n    import a\nclass C:\n    import b", True, {"a", "b"}),
        ("def f():\n    import a\nclass C:\n    import b", False, {"b"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", True, {"a", "b"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", False, {"b"}),
        ("try:\n    import a\nexcept ImportError:\n    import b", False, {"a", "b"}),
    ],
)
def test_imports_are_parsed(text: str, lazy: bool, expected: set[str]):
    assert imports("p.q.r", text, is_package=False, lazy=lazy) == expected


def forbidden_imports(modules: Iterable[str], *packages: str, lazy: bool = True) -> dict[str, set[str]]:
    """The modules that import one of the packages or something in it, each with these imports."""
    found = {module: within(imports_of(module, lazy), *packages) for module in modules}
    return {module: names for module, names in found.items() if names}


def test_saltus_imports_envs_and_pipeline_only_lazily():
    """Only the public names and the command need them; errors, versions and device work lie below both packages."""
    public = {"saltus", "saltus.__main__"}
    assert forbidden_imports(public, "envs", "pipeline", lazy=False) == {}
    assert forbidden_imports({*modules_of("saltus")} - public, "envs", "pipeline") == {}


def test_envs_do_not_import_learning():
    interfaces = {"envs.torchrl_env", "envs.external.torchrl_worlds"}
    assert forbidden_imports(modules_of("envs"), "pipeline") == {}
    assert forbidden_imports({*modules_of("envs")} - interfaces, "torchrl") == {}


def test_interfaces_of_other_libraries_are_imported_at_their_first_use():
    interfaces = ("envs.torchrl_env", "envs.gymnasium_env", "envs.external.factory", "envs.external.torchrl_worlds")
    assert forbidden_imports(modules_of("saltus", "envs", "pipeline"), *interfaces, lazy=False) == {}


def test_warp_is_imported_lazily_in_files_named_after_it():
    named_after_warp = {module for module in SOURCES if module.startswith("envs.physics.warp")}
    assert forbidden_imports(named_after_warp, "warp", "mujoco_warp", lazy=False) == {}
    assert forbidden_imports({*SOURCES} - named_after_warp, "warp", "mujoco_warp") == {}


@pytest.mark.parametrize("name", LEARNING)
def test_learning_modules_know_transitions_but_not_environments(name: str):
    used = within(imports_of(f"pipeline.{name}"), "envs", "mujoco", "mujoco_warp", "warp", "gymnasium")
    assert used == within(used, "envs.transition")


def test_config_knows_the_simulation_settings_only():
    used = within(imports_of("pipeline.config"), "envs")
    assert used == within(used, "envs.simulation")


def test_private_parts_of_torchrl_are_used_in_the_adapter_only():
    parts = {name for names in PARTS.values() for name in names} - {"target_entropy"}  # which is a setting, as well
    used = {module: references(path.read_text()) & parts for module, path in SOURCES.items()}
    assert {module: names for module, names in used.items() if names} == {"pipeline.torchrl_adapter": parts}


def test_names_of_a_runs_files_are_written_once():
    names = OWN_NAMES - {"task", "wandb"}  # which are an option and a package, as well
    texts = {module: references(SOURCES[module].read_text()) for module in modules_of("pipeline")}
    used = {module: {text.partition("/")[0] for text in found} & names for module, found in texts.items()}
    assert {module: found for module, found in used.items() if found} == {"pipeline.file_names": names}


def test_internals_of_inductor_are_used_in_device_work_only():
    assert forbidden_imports({*SOURCES} - {*modules_of("saltus.device")}, *INDUCTOR) == {}


def test_nothing_imports_benchmarks_or_tests():
    assert forbidden_imports(modules_of("saltus", "envs", "pipeline"), "benchmarks", "tests") == {}


def module_of(name: str) -> str | None:
    """The module of ours that an imported name is or belongs to."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name or None


def test_no_import_cycles():
    graph = {
        module: {module_of(name) for name in imports_of(module, lazy=False)} - {None, module}
        for module in modules_of("saltus", "envs", "pipeline")
    }
    assert graph["envs"] >= {"envs.batch_env", "envs.task"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(reversed(error.args[1])))
