"""The package as others get it: declared dependencies, a wheel away from the tree."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata

import pytest

# Import name -> distribution, where they differ.
NAMES = {
    "absl": "absl-py",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
}
SHIPPED = ("rm_jax", "configs", "experiments")


@pytest.fixture(scope="module")
def project(root):
    with open(root / "pyproject.toml", "rb") as f:
        return tomllib.load(f)


def names(requirements: list[str]) -> set[str]:
    """Normalised distribution names of requirement lines."""
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def third_party(nodes) -> set[str]:
    """Distributions that import statements among `nodes` need."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    ours = {"rm_jax", *sys.stdlib_module_names}
    return {normal(NAMES.get(name, name)) for name in found - ours}


SINKS = ("wandb", "trackio")  # where they are absent, their tests skip


def test_imports_are_declared(root, project):
    core = names(project["project"]["dependencies"])
    extras = project["project"]["optional-dependencies"]
    optional = names(sum((extras[n] for n in ("data", "report", *SINKS)), []))
    used = set()
    for path in (p for d in SHIPPED for p in root.glob(f"{d}/**/*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        assert third_party(tree.body) <= core, f"{path}: import it where it is used"
        used |= third_party(ast.walk(tree))
    if any(".to_pandas(" in p.read_text() for p in root.glob("notebooks/*.ipynb")):
        used.add("pandas")
    assert used <= core | optional
    assert core | optional <= used, "a dependency that nothing imports"


def test_imports_of_the_tests_are_declared(root, project):
    extras = project["project"]["optional-dependencies"]
    declared = project["project"]["dependencies"] + sum(
        (extras[name] for name in ("test", "data", "report", "torch", *SINKS)), []
    )
    local = {path.stem for path in root.glob("tests/**/*.py")} | {"my-losses"}
    for path in root.glob("tests/**/*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        assert third_party(ast.walk(tree)) <= names(declared) | local, path


def test_every_package_is_listed(root, project):
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {
        str(path.parent.relative_to(root)).replace("/", ".")
        for path in root.glob("rm_jax/**/*.py")
    }
    assert listed == found | {"rm_jax._configs", "rm_jax._experiments"}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-3.12.txt"])
def test_constraints_are_within_the_bounds(root, project, name):
    lines = (root / name).read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {normal(name): version for name, version in pinned.items()}
    extras = project["project"]["optional-dependencies"]
    bounds = project["project"]["dependencies"] + sum(
        (extras[name] for name in ("data", "report", "test")), []
    )
    number = lambda text: tuple(int(n) for n in re.findall(r"\d+", text))
    for line in bounds:
        if not line.startswith("rm_jax["):
            name, low = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
            assert number(pinned[normal(name)]) >= number(low), line


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory):
    """The wheel, and the bin/ of an environment with it and no sight of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"  # a copy: setuptools leaves build/ beside the sources
    for name in SHIPPED:
        shutil.copytree(root / name, tree / name)
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(root / name, tree)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", folder, tree]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("rm_jax-*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False)
    other = [*pip, "--python", environment / "bin" / "python"]
    subprocess.run([*other, "install", *offline, wheel], check=True)
    # The dependencies are those of this environment; only rm_jax is the wheel's.
    site = f"lib/python3.{sys.version_info.minor}/site-packages"
    here = metadata.distribution("numpy").locate_file("")
    (environment / site / "dependencies.pth").write_text(f"{here}\n")
    return wheel, environment / "bin"


def run(command, cwd) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=cwd, env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_the_configs_and_no_tests(installed, root):
    wheel, _ = installed
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for path in [*root.glob("rm_jax/**/*.py"), *root.glob("rm_jax/**/*.j2")]:
        assert str(path.relative_to(root)) in inside
    for path in root.glob("configs/*.py"):
        assert f"rm_jax/_configs/{path.name}" in inside
    assert {"rm_jax/py.typed", "rm_jax/_experiments/README.md"} <= inside
    assert not [name for name in inside if name.startswith(("tests", "configs"))]


@pytest.mark.slow
def test_the_wheel_works_away_from_the_tree(installed, tmp_path, project):
    _, programs = installed
    code = """
import json, importlib.metadata, rm_jax, rm_jax.train, rm_jax.serve.evaluation
load = rm_jax.config.load
print(json.dumps([
    rm_jax.__file__, str(rm_jax.config.locate("rm_jax:base")),
    importlib.metadata.version("rm_jax"),
    load("rm_jax:quickstart").name, load("rm_jax:hh:small").name,
]))
"""
    package, base, *rest = json.loads(run([programs / "python", "-c", code], tmp_path))
    home = str(programs.parent)
    assert package.startswith(home) and base.startswith(home)
    assert rest == [project["project"]["version"], "quickstart", "hh-small"]
    assert "rm-jax inspect" in run([programs / "rm-jax", "--help"], tmp_path)
