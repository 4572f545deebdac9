"""Imports go downward only, and a reader or a report never pays for jax."""

import ast
import pathlib
import subprocess
import sys

import pytest

# Lowest first. A file imports from lower layers and from its own package, never from a
# neighbour in its layer: so any of them can be read, tested and replaced alone.
LAYERS = (
    ("types", "jsontext", "objects", "schemas", "seal", "hyper"),
    ("store", "eventfile", "limits", "digest", "backend", "sharding", "progress"),
    ("agreement", "cluster", "compiles", "lines", "masks", "shares", "sinks", "needs"),
    ("config", "manifest", "writer", "goodput", "arguments", "members", "weights"),
    ("data", "models", "losses", "optim", "profiler", "ensemble", "together"),
    ("experiment",),
    (
        "state",
        "pretrained",
        "evals",
        "flops",
        "example_losses",
        "plugins",
        "arrayfiles",
    ),
    ("step", "stepscores", "doubt", "checkpoint", "laplace"),
    ("report", "rundir", "provenance", "features"),
    ("build", "repeat", "steplog"),
    ("start", "evaluation"),
    ("train", "serve", "connectivity"),
    ("launch", "averaging", "export"),
    ("verbs",),
    ("main",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# The package's front door names config, train and load; __main__ is main.
DOORS = ("__init__.py", "__main__.py")
# Installed but heavy: imported by the function that uses them.
LAZY = {
    "array_record", "datasets", "fsspec", "gguf", "matplotlib", "pandas",
    "tensorboardX", "tensorflow", "tensorflow_datasets", "torch", "trackio",
    "transformers", "wandb",
}  # fmt: skip


def imported(tree: ast.AST) -> set[str]:
    """Full names of everything a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str:
    """Of "rm_jax.data.pack.Shape" the "data"."""
    return name.split(".")[1]


def upward(source: str, here: str) -> list[str]:
    """Imports of a file of part `here` that go up or sideways."""
    names = {n for n in imported(ast.parse(source)) if n.startswith("rm_jax.")}
    return sorted(n for n in names if part(n) != here and LEVEL[part(n)] >= LEVEL[here])


def files(root: pathlib.Path):
    package = root / "rm_jax"
    for path in sorted(package.rglob("*.py")):
        below = path.relative_to(package)
        if str(below) not in DOORS:
            yield path, below.parts[0].removesuffix(".py")


def test_every_part_of_the_package_has_one_layer(root):
    assert {name for _, name in files(root)} == set(LEVEL)
    assert sum(map(len, LAYERS)) == len(LEVEL)


def test_imports_go_downward(root):
    bad = {
        str(path.relative_to(root)): found
        for path, here in files(root)
        if (found := upward(path.read_text("utf-8"), here))
    }
    assert not bad


@pytest.mark.parametrize(
    "source, here, found",
    [
        ("from rm_jax.step import run_step", "evals", ["rm_jax.step.run_step"]),
        ("def f():\n    import rm_jax.models.arch", "data", ["rm_jax.models.arch"]),
        ("from rm_jax import losses, store", "optim", ["rm_jax.losses"]),
        ("from rm_jax.data import cache\nimport jax", "data", []),
    ],
)
def test_a_wrong_import_is_seen(source, here, found):
    assert upward(source, here) == found


def test_nothing_imports_configs_or_experiments(root):
    for path, _ in files(root):
        tops = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert not tops & {"configs", "experiments", "tests"}, path


def test_heavy_packages_are_imported_where_used(root):
    for path, _ in files(root):
        tops = set()
        for node in ast.parse(path.read_text()).body:  # module level only
            if isinstance(node, ast.Import | ast.ImportFrom):
                tops |= {name.split(".")[0] for name in imported(node)}
        assert not tops & LAZY, path


@pytest.mark.parametrize("part", ["config", "store", "evals", "report", "main"])
def test_imports_without_jax(part):
    code = f"import sys, rm_jax.{part}; sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"rm_jax.{part} imports jax"
