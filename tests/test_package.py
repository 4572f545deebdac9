"""The package as others get it: declared dependencies, a wheel away from the tree."""

import ast
import hashlib
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

from rm_jax import provenance

# Import name -> distribution, where they differ.
NAMES = {
    "sklearn": "scikit-learn",
    "absl": "absl-py",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
}
OPTIONAL = ("baselines", "data", "gguf", "report")  # extras of what is shipped
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


SINKS = ("wandb", "trackio")
PEERS = {"vllm"}  # asked by `rm-jax verify` where a user has it, in no extra


def test_imports_are_declared(root, project):
    core = names(project["project"]["dependencies"])
    extras = project["project"]["optional-dependencies"]
    optional = names(sum((extras[n] for n in (*OPTIONAL, *SINKS)), []))
    used = set()
    for path in (p for d in SHIPPED for p in root.glob(f"{d}/**/*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        assert third_party(tree.body) <= core, f"{path}: import it where it is used"
        used |= third_party(ast.walk(tree))
    if any(".to_pandas(" in p.read_text() for p in root.glob("notebooks/*.ipynb")):
        used.add("pandas")
    assert used <= core | optional | PEERS
    assert core | optional <= used, "a dependency that nothing imports"


def test_imports_of_the_tests_are_declared(root, project):
    extras = project["project"]["optional-dependencies"]
    declared = project["project"]["dependencies"] + sum(
        (extras[name] for name in ("test", "torch", *OPTIONAL, *SINKS)), []
    )
    local = {path.stem.replace("_", "-") for path in root.glob("tests/**/*.py")}
    local |= {"my-losses"}
    for path in root.glob("tests/**/*.py"):
        if path.parent.name == "peers":  # programs for Pythons of their own
            continue
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
        (extras[name] for name in (*OPTIONAL, "test")), []
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


def run(command, cwd, **more) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | more
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    assert "rm_jax/_configs/rows/rated.jsonl.gz" in inside
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


OF_A_USER = {
    "my_losses.py": """
from typing import NamedTuple

import jax.numpy as jnp

from rm_jax.losses.pairwise import pairs


class HingeKnobs(NamedTuple):
    margin: float = 1.0


def hinge(out, labels, hparams: HingeKnobs, key):
    p = pairs(out, labels)
    worst = jnp.maximum(0.0, hparams.margin - jnp.sign(p.chance - 0.5) * p.delta)
    return jnp.sum(worst * p.compared, axis=(1, 2))
""",
    "my_formats.py": """
from rm_jax.data.schema import Message, Record


def exam(row):
    answers = tuple((Message("assistant", row[k]),) for k in ("right", "wrong"))
    question = (Message("user", row["question"]),)
    return [Record(id="", source="", prompt=question, responses=answers, ranks=(0, 1))]
""",
    "my_config.py": """
from rm_jax.config import load


def get_config(arg):
    c = load("rm_jax:base")
    c.data.train = "my_formats:exam:exam.jsonl"
    c.data.eval = {"valid": "#valid"}
    c.data.valid_fraction = 0.25
    c.data.cache_dir = "tokens"
    c.contract.tokenizer = "byte"
    c.contract.max_length = 64
    c.contract.max_response = 16
    c.model.d_model = 8
    c.model.n_layers = 1
    c.model.n_heads = 2
    c.model.n_kv_heads = 1
    c.model.d_ff = 16
    c.loss.name = "my_losses:hinge"
    c.loss.margin = 0.5
    c.batch.examples = 8
    c.batch.row_lengths = (64,)
    c.batch.chunk_tokens = 512
    c.train.duration = arg or "3 steps"
    c.train.tensorboard = c.train.report = False
    return c
""",
}


@pytest.mark.slow
def test_a_user_adds_a_loss_a_format_and_a_config(installed, tmp_path, root):
    _, programs = installed
    for name, text in OF_A_USER.items():
        (tmp_path / name).write_text(text)
    exam = [
        {"question": f"{n} + 1?", "right": f"{n + 1}", "wrong": "no"} for n in range(40)
    ]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(r) + "\n" for r in exam))
    (tmp_path / "ask.jsonl").write_text('{"prompt": "1 + 1?", "responses": ["2"]}\n')
    rm_jax = programs / "rm-jax"
    do = lambda *words: run([rm_jax, *words], tmp_path, PYTHONPATH=".")
    do("train", "--config", "my_config.py:4 steps", "--workdir", "runs/hinge")
    record = json.loads((tmp_path / "runs/hinge/run.json").read_text())
    kept = {name: entry["sha256"] for name, entry in record["plugins"].items()}
    sha = lambda name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert kept == {
        "loss my_losses:hinge": sha("my_losses.py"),
        "format my_formats:exam": sha("my_formats.py"),
    }
    (session,) = record["sessions"]
    # Not the commit of whatever checkout the environment lies in; its code, though.
    assert session["code"]["commit"] == session["code"]["dirty_diff"] == ""
    assert session["code"]["sha256"] == provenance.package_sha256()
    assert record["steps"] == 4 and session["versions"]["rm_jax"]

    said = do(
        "eval", "--checkpoint", "runs/hinge", "--data", "my_formats:exam:exam.jsonl",
        "--out", "runs/exam",
    )  # fmt: skip
    assert "accuracy" in said
    do(
        "score", "--checkpoint", "runs/hinge", "--input", "ask.jsonl", "--output",
        "scores.jsonl",
    )  # fmt: skip
    assert len(json.loads((tmp_path / "scores.jsonl").read_text())["scores"]) == 1

    again = ["train", "--config", "runs/hinge/config.json", "--workdir", "runs/again"]
    do(*again)
    assert do("diff", "runs/hinge", "runs/again").endswith("the runs are the same\n")
    assert "scored: token" in do("inspect", "runs/hinge", "--step", "0")

    quick = "--config.train.duration=1 steps", "--config.data.world.train=64"
    small = [f"--config.data.world.{s}=8" for s in ("valid", "test")]
    off = "--config.train.report=False", "--config.train.tensorboard=False"
    words = ["train", "--config", "rm_jax:quickstart", "--workdir", "runs/quick"]
    do(*words, *quick, *small, *off, "--config.data.cache_dir=tokens")
    assert json.loads((tmp_path / "runs/quick/config.json").read_text())["name"] == (
        "quickstart"
    )
