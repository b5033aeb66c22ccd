"""Who may import whom: the dependency rules of the house, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("envs", "pipeline", "benchmarks")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


LEARNING = ["pipeline.networks", "pipeline.buffer", "pipeline.losses", "pipeline.learner"]
SOURCES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def statements(nodes: Iterable[ast.AST], lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements among and below `nodes`; with `lazy`, also those that importing the module does not run."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not lazy:
            yield from statements(node.orelse, lazy)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(ast.iter_child_nodes(node), lazy)


def imports(module: str, text: str, is_package: bool, lazy: bool = True) -> set[str]:
    """What a source imports, by full name: ``from a import b`` is `a.b`, be it a module or an object."""
    package = module if is_package else module.rpartition(".")[0]
    found = set()
    for node in statements(ast.parse(text).body, lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def imports_of(module: str, lazy: bool = True) -> set[str]:
    path = SOURCES[module]
    return imports(module, path.read_text(), path.name == "__init__.py", lazy)


def within(names: set[str], *packages: str) -> set[str]:
    """Those of `names` that are one of the packages or lie in one."""
    return {name for name in names if any(name == package or name.startswith(f"{package}.") for package in packages)}


def modules_of(*packages: str) -> list[str]:
    return sorted(within(set(SOURCES), *packages))


def test_the_sources_are_found():
    assert {"envs", "envs.batch_env", "envs.physics.cpu", "envs.tasks.hopper"} <= set(SOURCES)
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
def test_imports_are_read_as_python_reads_them(text: str, lazy: bool, expected: set[str]):
    assert imports("p.q.r", text, is_package=False, lazy=lazy) == expected


@pytest.mark.parametrize("module", modules_of("envs"))
def test_envs_know_nothing_of_learning(module: str):
    assert not within(imports_of(module), "pipeline")
    if module != "envs.torchrl_env":
        assert not within(imports_of(module), "torchrl")


@pytest.mark.parametrize("module", modules_of(*PACKAGES))
def test_warp_is_imported_in_the_files_named_after_it_alone(module: str):
    if module in ("envs.physics.warp", "envs.physics.warp_memory"):
        assert not within(imports_of(module, lazy=False), "warp", "mujoco_warp"), "warp is optional: import it lazily"
    else:
        assert not within(imports_of(module), "warp", "mujoco_warp")


@pytest.mark.parametrize("module", LEARNING)
def test_learning_knows_transitions_and_graphs_and_not_environments(module: str):
    used = within(imports_of(module), "envs")
    assert used == within(used, "envs.transition", "saltus.device.cuda_graph")


@pytest.mark.parametrize("module", modules_of("envs", "pipeline"))
def test_nothing_imports_benchmarks_or_tests(module: str):
    assert not within(imports_of(module), "benchmarks", "tests")


def module_of(name: str) -> str | None:
    """The module of ours that an imported name is, or is an object of."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name or None


def test_there_are_no_import_cycles():
    graph = {
        module: {module_of(name) for name in imports_of(module, lazy=False)} - {None, module}
        for module in modules_of("envs", "pipeline")
    }
    assert graph["envs"] >= {"envs.batch_env", "envs.task"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(reversed(error.args[1])))
