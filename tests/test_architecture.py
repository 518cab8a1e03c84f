"""The design, read off the source: which way imports point, and what every public name owes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cdsde

ROOT = Path(cdsde.__file__).parent
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): (
        ast.parse(path.read_text(encoding="utf-8"))
    )
    for path in sorted(ROOT.rglob("*.py"))
}
MATHEMATICS = {"sde", "energies", "solvers", "methods", "losses", "metrics", "augment"}
PROGRAMS = {"main", "train", "sample", "evaluate", "edit", "evaluate_edits", "exchange", "api"}
# Below the programs, lowest first; within a layer modules may use each other. A module that stands
# nowhere here is a program: it may use all but `main`.
LAYERS = (
    {"version", "logs"},
    MATHEMATICS
    | {"networks", "data", "config", "presets", "mesh", "report", "checkpoint"}
    | {"torch_files", "torch_layouts", "trees"},
    {"config_checks"},
    {"flag_errors", "features", "torch_kinds", "torch_weights"},
    {"latent"},
    {"models"},
    {"weights", "examples", "discriminant", "colours"},
    {"sampler"},
)
# What a part may use of the package at all.
ALONE = {
    **{name: MATHEMATICS for name in MATHEMATICS},
    "networks": {"networks"},
    "data": {"data"},
    "config": {"config"},
    "config_checks": {"config", "config_checks"},
    "presets": {"config", "presets"},
    "mesh": {"mesh"},
    "checkpoint": {"checkpoint"},
    "report": {"report", "version"},
    "flag_errors": {"config", "flag_errors"},
    "torch_files": {"torch_files"},
    "torch_layouts": {"torch_layouts"},
    "trees": {"trees"},
    "features": {"features", "torch_weights", "trees"},
    "torch_kinds": {"networks", "features", "torch_kinds", "torch_layouts"},
    "torch_weights": {"torch_files", "torch_kinds", "torch_layouts"},
}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported anywhere in a module, `from a import b` as `a.b`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute, so that this file can read them"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_used(module: str) -> set[str]:
    """First names, below `cdsde`, of what a module imports of the package."""
    inside = (name.split(".") for name in imports(TREES[module]))
    return {name[1] for name in inside if name[0] == "cdsde" and len(name) > 1}


def part(module: str) -> str:
    return module.split(".")[0]


def layer(name: str) -> int:
    at = [number for number, layer in enumerate(LAYERS) if name in layer]
    return at[0] if at else len(LAYERS)


MODULES = sorted(name for name in TREES if name)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    used = parts_used(module) - {part(module)}
    assert "main" not in used, "nobody imports main"
    up = {name for name in used if layer(name) > layer(part(module))}
    assert not up, f"{module} imports {up} from a layer above"


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in ALONE])
def test_parts_that_stand_alone_do(module):
    assert parts_used(module) <= ALONE[part(module)]


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) == "features"])
def test_feature_networks_know_nothing_of_their_weights(module):
    above = {
        "features.extractor"
    }  # torch_weights stands on the networks, and this on torch_weights
    assert module in above or parts_used(module) <= {"features"}


def test_the_lists_above_name_modules_that_exist():
    existing = {part(module) for module in MODULES}
    named = set().union(PROGRAMS, *LAYERS, *ALONE.values())
    assert named <= existing, f"gone or renamed: {named - existing}"


@pytest.mark.parametrize("module", MODULES)
def test_tensorflow_and_torch_only_in_their_place(module):
    foreign = {name.split(".")[0] for name in imports(TREES[module])} & {"tensorflow", "torch"}
    assert foreign <= ({"torch"} if module == "torch_weights" else set())


def definitions(tree: ast.AST, inside: str = ""):
    """Public classes, functions and methods with their dotted names; not those of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("_"):
                yield f"{inside}{node.name}", node
                if isinstance(node, ast.ClassDef):
                    yield from definitions(node, f"{inside}{node.name}.")


@pytest.mark.parametrize("module", sorted(TREES))
def test_every_public_name_says_what_it_is(module):
    tree = TREES[module]
    assert ast.get_docstring(tree), "the module has no docstring"
    silent = [name for name, node in definitions(tree) if not ast.get_docstring(node)]
    assert not silent


@pytest.mark.parametrize("module", sorted(TREES))
def test_keys_are_called_key(module):
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            wrong = {"rng", "prng", "prng_key"} & {argument.arg for argument in every}
            assert not wrong, f"line {node.lineno}: {wrong}, say key"


def test_what_importing_costs():
    """The command line answers before JAX is there; TensorFlow and PyTorch never come along."""
    others = [m for m in MODULES if m not in ("torch_weights", "exchange")]
    code = f"""
import importlib, sys
for name in ("", ".config", ".flag_errors", ".main", ".data"):
    importlib.import_module("cdsde" + name)
early = {{"jax", "flax", "orbax", "grain", "PIL"}} & set(sys.modules)
for name in {others!r}:
    importlib.import_module("cdsde." + name)
late = {{"tensorflow", "torch"}} & set(sys.modules)
importlib.import_module("cdsde.exchange")
late |= {{"tensorflow", "torch"}} & set(sys.modules)
assert "jax" in sys.modules
sys.exit(f"early {{early}}, late {{late}}" if early or late else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
