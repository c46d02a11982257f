"""The rules that keep the code small and its parts apart; import-linter's contracts are in pyproject.toml."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retilt.reference import reference

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "platform" / "retilt"
MODULES = sorted(PACKAGE.rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
ALGORITHMS = ("bc", "rsft", "exp_rsft", "top_rated", "dpo", "ppo", "reward_model")

DOORS = {
    "ray": ("cluster/",),
    "torchrec": ("models/catalog.py",),
    "fbgemm_gpu": ("models/catalog.py",),
    "fsspec": ("storage/",),
    "s3fs": ("storage/",),
    "pyarrow.fs": ("storage/",),
    "tenacity": ("storage/",),
    "torch.distributed": ("ranks.py", "training/parallel.py", "models/catalog.py"),
}


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of everything a module imports or reaches as an attribute of ``torch`` and ``pyarrow``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{node.value.id}.{node.attr}")
    return names


def test_the_source_root_is_no_package():
    # A package called platform would shadow the standard library's module.
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_layers():
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert linter is not None
    found = subprocess.run([linter, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:]


@pytest.mark.parametrize("name", DOORS)
def test_a_heavy_dependency_has_one_door(name):
    offenders = []
    for module in MODULES:
        path = module.relative_to(PACKAGE).as_posix()
        used = imported(ast.parse(module.read_text()))
        if any(each == name or each.startswith(f"{name}.") for each in used) and not path.startswith(DOORS[name]):
            offenders.append(path)
    assert offenders == []


def test_no_module_is_named_after_nothing():
    assert [path for path in MODULES if path.stem in ("utils", "util", "helpers", "common", "manager", "misc")] == []


@pytest.mark.parametrize("path", [path for path in MODULES if ">>> " in path.read_text()], ids=lambda path: path.stem)
def test_the_examples_of_docstrings_are_true(path):
    module = importlib.import_module(path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", "."))
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed


def test_modules_are_small_enough_to_read():
    sizes = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: lines for path, lines in sizes.items() if lines > 400} == {}


def test_functions_are_small_enough_to_read():
    long = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert long == {}


def test_jobs_are_thin():
    sizes = {path.name: len(path.read_text().splitlines()) for path in JOBS}
    assert {"prepare.py", "pretrain.py", "posttrain.py", "evaluate.py"} <= set(sizes)
    assert {name: lines for name, lines in sizes.items() if lines > 100} == {}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_its_module_test_configuration_curve_and_section(name):
    assert ast.get_docstring(ast.parse((PACKAGE / "algorithms" / f"{name}.py").read_text()))
    assert (ROOT / "tests" / "algorithms" / f"test_{name}.py").exists()
    assert (ROOT / "jobs" / "configs" / f"{name}.yaml").exists()
    golden = json.loads((ROOT / "tests" / "training" / "golden.json").read_text())
    assert set(golden[name]) == {"replicated", "row_wise"}, "run `python tests/training/test_golden.py`"
    headings = [line for line in (ROOT / "docs" / "algorithms.md").read_text().splitlines() if line.startswith("#")]
    assert any(f"`{name}`" in line or line.lstrip("# ").startswith(name) for line in headings)


def test_the_configuration_reference_is_current():
    assert (ROOT / "docs" / "configuration.md").read_text() == reference(), "run `make docs`"


def test_constraints_name_no_machine():
    for path in (ROOT / "deploy" / "constraints").glob("*.txt"):
        pins = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert all("==" in pin and "/" not in pin and "+" not in pin for pin in pins), path.name
