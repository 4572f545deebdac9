"""A loss, a format and an architecture from outside: copied, held to, repeated."""

import json
import pathlib
import shutil
import sys

import jax
import pytest

import rm_jax
from rm_jax import build, main, plugins, sharding
from rm_jax.checkpoint import Checkpoints
from rm_jax.config import ConfigError
from rm_jax.losses import LOSSES, REGULARIZERS, Regularizer, bradley_terry
from rm_jax.report.diff import diff
from rm_jax.serve.inspection import inspect_step

REAL_MESH = sharding.make_mesh
FILES = {
    "outside_losses.py": """
from typing import NamedTuple
from rm_jax.losses import Regularizer
from rm_jax.losses.pairwise import BradleyTerryKnobs, bradley_terry

class Knobs(NamedTuple):
    scale: float = 1.0

def double(out, labels, hparams: Knobs, key):
    return hparams.scale * bradley_terry(out, labels, BradleyTerryKnobs(), key)

class Weight(NamedTuple):
    weight: float = 0.1

def squared(out, labels, hparams: Weight, key):
    return (out.scores**2).sum(1)

flat = Regularizer(per_example=squared)
""",
    "outside_formats.py": """
from rm_jax.data.schema import Message, Record

def parse(row):
    answers = tuple((Message("assistant", row[k]),) for k in ("good", "bad"))
    question = (Message("user", row["q"]),)
    return [Record(id="", source="", prompt=question, responses=answers, ranks=(0, 1))]
""",
    "outside_package/__init__.py": "",
    "outside_package/archs.py": """
from rm_jax.models.arch import decoder

def small(model, vocab_size, pooling):
    return decoder({**model, "d_ff": 16}, vocab_size, pooling)
""",
    "my_config.py": """
from rm_jax.config import load

def get_config(arg):
    c = load("rm_jax:base")
    c.name = f"outside-{arg}"
    c.data.train = {
        "pairs": {"spec": "columns:pairs.jsonl", "weight": 1.0, "columns": {
            "prompt": "q", "chosen": "good", "rejected": "bad"}},
        "own": {"spec": "outside_formats:parse:pairs.jsonl", "weight": 2},
    }
    c.data.eval = {"valid": "#valid"}
    c.data.valid_fraction = 0.25
    c.data.audit.duplicate = "drop"
    c.data.world.noise = 0.1
    c.contract.tokenizer = "byte"
    c.contract.max_length = 64
    c.contract.max_response = 24
    c.model.arch = "outside_package.archs:small"
    c.model.d_model = 8
    c.model.n_layers = 1
    c.model.n_heads = 2
    c.model.n_kv_heads = 1
    c.loss.name = "outside_losses:double"
    c.loss.regularizers = {"outside_losses:flat": {"weight": 0.01}}
    c.batch.examples = 8
    c.optim.learning_rate = 0.01
    c.optim.warmup = "1 steps"
    c.batch.chunk_tokens = 512
    c.train.duration = "3 steps"
    c.train.log_every = "1 steps"
    c.train.eval_every = "2 steps"
    c.train.tensorboard = c.train.report = False
    return c
""",
}
COPIES = {
    "loss outside_losses:double": "plugins/outside_losses.py",
    "regularizer outside_losses:flat": "plugins/outside_losses.py",
    "arch outside_package.archs:small": "plugins/outside_package/archs.py",
    "format outside_formats:parse": "plugins/outside_formats.py",
}
OVERRIDES = (
    "--config.batch.row_lengths=(64,)",
    "--config.optim.lr_multipliers=(('.*embed.*', 0.5), ('.*', 1.0))",
    "--config.loss.scale=0.25",
    "--config.data.cache_dir=tokens",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder: its modules, its config, its data."""
    here = tmp_path_factory.mktemp("user")
    for name, text in FILES.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    rows = (
        {"q": f"What is {n} + 1?", "good": f"{n + 1}", "bad": f"{n}, perhaps"}
        for n in range(40)
    )
    (here / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return here


@pytest.fixture(autouse=True)
def at(folder, monkeypatch):
    """Works in that folder, with its modules importable and one device."""
    one = lambda sizes, given=None: REAL_MESH(sizes, given or jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    forget()


def forget():
    for name in [n for n in sys.modules if n.startswith("outside_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def run(folder):
    """The run directory of `rm-jax train` there."""
    with pytest.MonkeyPatch.context() as patch:
        one = lambda sizes, given=None: REAL_MESH(sizes, given or jax.devices()[:1])
        patch.setattr(sharding, "make_mesh", one)
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        start = ["train", "--config", "my_config.py:x", "--workdir", "run"]
        assert main.run([*start, *OVERRIDES]) == 0
        forget()
    return folder / "run"


def info(run):
    return json.loads((run / "run.json").read_text())


def files(run):
    return {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def test_every_plugin_is_copied_with_its_sha(run, folder):
    found = info(run)["plugins"]
    assert {name: entry["file"] for name, entry in found.items()} == COPIES
    for entry in found.values():
        copy = (run / entry["file"]).read_bytes()
        assert copy == (folder / entry["file"].removeprefix("plugins/")).read_bytes()
        assert entry["sha256"] == plugins.hashlib.sha256(copy).hexdigest()
        assert not entry["handed_over"] and entry["distribution"] == ""
    assert found["arch outside_package.archs:small"]["package"] == "outside_package"
    assert found["loss outside_losses:double"]["package"] == ""


def test_a_config_of_a_run_repeats_it_to_the_bit(run, tmp_path):
    again = tmp_path / "again"
    start = ["train", "--config", f"{run}/config.json", "--workdir", str(again)]
    assert main.run(start) == 0
    names = ["config.json", "contract.json", "arch.json", "metrics.jsonl", "evals.json"]
    for name in [*names, "predictions/valid.parquet"]:
        assert (again / name).read_bytes() == (run / name).read_bytes(), name
    a, b = (Checkpoints(f"{r}/checkpoints").manifest(3) for r in (run, again))
    assert a.arrays == b.arrays and a.metrics == b.metrics
    found = diff(str(run), str(again))
    assert found.same, found
    config = rm_jax.config.load(str(again))
    assert config.batch.row_lengths == (64,) and config.name == "outside-x"
    assert config.data.train.own.weight == 2 and config.data.audit.duplicate == "drop"


@pytest.mark.parametrize("name", sorted(set(COPIES.values())))
def test_changed_code_is_refused_by_name(run, folder, name):
    path, before = folder / name.removeprefix("plugins/"), files(run)
    text = path.read_text()
    try:
        path.write_text(text + "\n# another comment\n")
        with pytest.raises(ConfigError) as error:
            main.run(["train", "--config", str(run), "--workdir", str(run)])
    finally:
        path.write_text(text)
    assert "its code has changed since" in str(error.value)
    assert any(plugin in str(error.value) for plugin in COPIES)
    assert f"its copy: {run}/{name}" in str(error.value)
    assert files(run) == before


def test_another_command_is_another_session(run, monkeypatch):
    (before,) = info(run)["sessions"]
    monkeypatch.setattr(sys, "argv", ["rm-jax", "train", "once more"])
    for starts in ([1, 1], [1, 2]):
        assert main.run(["train", "--config", str(run), "--workdir", str(run)]) == 0
        first, second = info(run)["sessions"]
        assert first == before and second["starts"][-1]["step"] == 3
        assert [len(s["starts"]) for s in (first, second)] == starts
        assert {k for k in first if first[k] != second[k]} == {"argv", "starts"}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, folder):
    """A place from where the user's modules cannot be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(folder)])
    forget()


def test_scoring_needs_no_plugin(run, elsewhere):
    scores = rm_jax.load(str(run)).score("What is 1 + 1?", ["2", "1, perhaps"])
    assert scores.shape == (2,) and not [n for n in sys.modules if "outside" in n]


def test_code_that_is_not_here_is_named_with_its_copy(run, elsewhere):
    for act in (
        lambda: list(inspect_step(str(run), 0, 1)),
        lambda: main.run(["train", "--config", str(run), "--workdir", str(run)]),
    ):
        with pytest.raises(ValueError) as error:
            act()
        assert "outside_losses" in str(error.value)
    config = rm_jax.load(str(run)).config
    with pytest.raises(ConfigError) as error:
        plugins.find(config, run=str(run))
    text = str(error.value)
    assert "loss outside_losses:double: cannot be imported: ModuleNotFound" in text
    assert f"{run}/plugins/outside_losses.py: read it, then put {run}/plugins" in text
    assert not [n for n in sys.modules if "outside" in n]


def test_the_copies_work_once_they_are_on_the_path(run, elsewhere, monkeypatch):
    monkeypatch.syspath_prepend(str(run / "plugins"))
    found = plugins.find(rm_jax.load(str(run)).config, run=str(run))
    plugins.check_same(str(run), info(run), found)
    assert set(found) == set(COPIES)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("outside_losses:triple", "AttributeError: .*no attribute 'triple'"),
        ("outside_nothing:f", "ModuleNotFoundError: No module named 'outside_nothing'"),
        ("outside_broken:f", "ZeroDivisionError: division by zero"),
        ("sys:intern", "sys has no source file"),
    ],
)
def test_what_cannot_be_kept_is_refused(folder, name, said):
    (folder / "outside_broken.py").write_text("1 / 0\n")
    config = rm_jax.config.load("rm_jax:base")
    config.model.arch = name
    with pytest.raises(ConfigError, match=f"arch {name}: .*{said}|arch {name}: {said}"):
        plugins.find(config)


def test_nothing_of_rm_jax_is_a_plugin():
    config = rm_jax.config.load("rm_jax:base")
    assert plugins.find(config) == {}
    config.loss.name = "rm_jax.losses.pairwise:bradley_terry"
    config.loss.regularizers = {"center": {"weight": 0.1}}
    assert plugins.find(config) == {}


def test_what_a_program_hands_over_is_kept_and_asked_for_again(run, tmp_path):
    def mine(out, labels, hparams, key):
        return bradley_terry(out, labels, hparams, key)

    mine.__annotations__ = bradley_terry.__annotations__
    config = rm_jax.config.load(str(run))
    config.loss.name, config.loss.regularizers = "mine", {}
    config.model.arch = "decoder"
    config.train.duration = "1 steps"
    workdir = str(tmp_path / "run")
    del config.loss.scale
    config = rm_jax.config.validate(config)
    known = LOSSES | {"mine": mine}
    built = build.build(config, workdir, known, REGULARIZERS, lambda line: None)
    build.describe(config, workdir, built)
    entry = info(tmp_path / "run")["plugins"]["loss mine"]
    assert entry["handed_over"] and entry["file"] == "plugins/handed_over/loss_mine.py"
    assert "return bradley_terry" in (tmp_path / "run" / entry["file"]).read_text()
    with pytest.raises(ValueError) as error:
        main.run(["train", "--config", f"{workdir}/config.json", "--workdir", "new"])
    text = str(error.value)
    assert "no loss 'mine'" in text and "a Python program handed to train()" in text

    def mine(out, labels, hparams, key):
        return 3.0 * bradley_terry(out, labels, hparams, key)

    mine.__annotations__ = bradley_terry.__annotations__
    known = LOSSES | {"mine": mine}
    with pytest.raises(ConfigError, match="loss mine: its code has changed since"):
        build.build(config, workdir, known, REGULARIZERS, lambda line: None)


def test_code_without_source_is_said_to_have_none():
    config = rm_jax.config.load("rm_jax:base")
    made = eval("lambda out, labels, hparams, key: out.scores")
    given = REGULARIZERS | {"a/b": Regularizer(per_example=lambda *a: 0.0)}
    config.loss.name, config.loss.regularizers = "made", {"a/b": {"weight": 1.0}}
    found = plugins.find(config, LOSSES | {"made": made}, given)
    assert found["loss made"].to_json() == {
        "kind": "loss", "file": "", "package": "", "distribution": "",
        "handed_over": True, "sha256": "",
    }  # fmt: skip
    assert found["regularizer a/b"].file == "plugins/handed_over/regularizer_a_b.py"


def test_an_init_file_and_a_distribution_are_told(tmp_path, monkeypatch):
    package = tmp_path / "outside_init"
    package.mkdir()
    (package / "__init__.py").write_text("def f(): ...\n")
    installed = tmp_path / "outside_init-1.2.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: outside-init\nVersion: 1.2\n")
    (installed / "top_level.txt").write_text("outside_init\n")
    (installed / "RECORD").write_text("outside_init/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = rm_jax.config.load("rm_jax:base")
    config.model.arch = "outside_init:f"
    (plugin,) = plugins.find(config).values()
    assert plugin.file == "plugins/outside_init/__init__.py"
    assert plugin.package == "outside_init"
    assert plugin.distribution == "outside-init 1.2"
    plugins.copy(str(tmp_path / "run"), {"arch": plugin})
    copied = pathlib.Path(tmp_path / "run" / plugin.file).read_text()
    assert copied == "def f(): ...\n"
    shutil.rmtree(tmp_path / "run")
