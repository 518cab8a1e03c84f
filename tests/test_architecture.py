"""The house, read off the source: which way imports point, and what every public name owes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cdsde

ROOT = Path(cdsde.__file__).parent
# The rooms of the package, lowest first. A room uses itself and the rooms above it in this list.
ROOMS = {
    "version": "the number",
    "diffusion": "the mathematics of images: arrays in, arrays out",
    "metrics": "numbers that compare images",
    "config": "every key, and the checks on them",
    "runtime": "devices, pre-emption, logs, progress, records",
    "networks": "linen modules, and config -> (init, apply)",
    "editing": "the mathematics of latents: inversion, editors, guidance",
    "data": "images in and out",
    "weights": "where parameters come from",
    "translation": "--mode=sample",
    "api": "cdsde from Python",
    "edit": "--mode=edit",
    "train": "--mode=train",
    "evaluate": "--mode=eval",
    "serve": "--mode=serve",
    "benchmark": "a program of its own",
    "scaling": "a program of its own",
    "main": "the command line",
}
# What a room may use of the package at all, where that is less than all rooms above.
ALONE = {
    "diffusion": {"diffusion"},
    "metrics": {"metrics"},
    "config": {"config", "diffusion"},
    "editing": {"editing", "diffusion", "networks"},
}
TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): (
        ast.parse(path.read_text(encoding="utf-8"))
    )
    for path in sorted(ROOT.rglob("*.py"))
}
MODULES = sorted(name for name in TREES if name)


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


def modules_used(module: str) -> set[str]:
    """Modules of the package that a module imports, without the `cdsde.`."""
    used = set()
    for name in imports(TREES[module]):
        parts = name.split(".")
        if parts[0] == "cdsde":
            dotted = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            used |= {next(name for name in dotted if name in TREES)} if len(parts) > 1 else set()
    return used - {""}


def room(module: str) -> str:
    return module.split(".")[0]


def test_the_rooms_are_those_of_the_list():
    assert {room(module) for module in MODULES} == set(ROOMS)
    # What lies at the root of the package.
    files = {path.stem for path in ROOT.glob("*.py")}
    assert files == {"__init__", "main", "api", "version"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    order = list(ROOMS)
    later = {m for m in modules_used(module) if order.index(room(m)) > order.index(room(module))}
    assert not later, f"{module} imports {later} from a room that comes after its own"
    allowed = ALONE.get(room(module))
    assert allowed is None or {room(m) for m in modules_used(module)} <= allowed


def test_no_module_leads_back_to_itself():
    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        for used in modules_used(module) if module not in done else ():
            visit(used, [*path, module])
        done.add(module)

    done = set()
    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("module", MODULES)
def test_tensorflow_and_torch_only_in_their_place(module):
    foreign = {name.split(".")[0] for name in imports(TREES[module])} & {"tensorflow", "torch"}
    assert foreign <= ({"torch"} if module == "weights.torch.convert" else set())


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
    code = f"""
import importlib, sys
for name in ("", ".config", ".config.command_line", ".main", ".data"):
    importlib.import_module("cdsde" + name)
early = {{"jax", "flax", "orbax", "grain", "PIL"}} & set(sys.modules)
for name in {MODULES!r}:
    importlib.import_module("cdsde." + name)
late = {{"tensorflow", "torch"}} & set(sys.modules)
assert "jax" in sys.modules
sys.exit(f"early {{early}}, late {{late}}" if early or late else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
