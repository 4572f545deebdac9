"""The README is true: its commands run, its code works, its paths exist."""

import contextlib
import gzip
import importlib
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tinymodel

import rm_jax
from rm_jax import experiment, losses, main
from rm_jax.data.tokenizers import byte_tokenizer, save_tokenizer

# Makes any training command of the README small; seeds, data and code stay the same.
TINY = {
    "data.limit": "32",
    "data.eval": '{"valid": "#valid"}',
    "data.world.train": "64",
    "data.world.valid": "16",
    "data.world.test": "16",
    "data.valid_fraction": "0.2",
    "data.test_fraction": "0.2",
    "contract.max_length": "128",
    "contract.max_response": "96",
    "batch.examples": "8",
    "batch.row_lengths": "(128,)",
    "batch.chunk_tokens": "8192",
    "model.d_model": "8",
    "model.n_layers": "2",
    "model.n_heads": "2",
    "model.n_kv_heads": "1",
    "model.d_ff": "16",
    "train.duration": "2 steps",
    "train.report": "False",
}


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def readme(root):
    return (root / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def commands(readme):
    """Arguments of every `rm-jax` command, in order."""
    lines = "".join(blocks(readme, "sh")).replace("\\\n", " ").splitlines()
    split, begun = [], ""
    for line in lines:
        begun += line.removeprefix("PYTHONPATH=. ") + "\n"
        with contextlib.suppress(ValueError):  # a quotation goes on in the next line
            split.append(shlex.split(begun))
            begun = ""
    assert not begun
    return [words[1:] for words in split if words[0] == "rm-jax"]


@pytest.fixture(scope="module")
def folder(root, readme, tmp_path_factory):
    """A working directory with every file that the README's commands name."""
    here = tmp_path_factory.mktemp("readme")
    (here / "configs").symlink_to(root / "configs")
    turn = "\n\nHuman: what is {0} + {0}?\n\nAssistant: {1}"
    pairs = [(turn.format(i, 2 * i), turn.format(i, 2 * i + 1)) for i in range(60)]
    for name in ("helpful", "harmless"):
        with gzip.open(here / f"{name}-base.jsonl.gz", "wt") as f:
            rows = ({"chosen": a, "rejected": b} for a, b in pairs)
            f.writelines(json.dumps(row) + "\n" for row in rows)
    with open(here / "pairs.jsonl", "w") as f:
        for i in range(60):
            row = {"question": f"{i} + {i}?", "best": f"{2 * i}", "worst": "no idea"}
            f.write(json.dumps(row) + "\n")
    (here / "responses.jsonl").write_text(blocks(readme, "json")[0])
    module, *_ = [b for b in blocks(readme, "python") if b.startswith("# my_losses.py")]
    (here / "my_losses.py").write_text(module)
    return here


@pytest.fixture
def at(folder, monkeypatch):
    """Works in that directory, as a shell would."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("HOME", str(folder))  # its token cache
    return folder


def tiny(arguments: list[str]) -> list[str]:
    """A training command with TINY overrides."""
    return arguments + [f"--config.{key}={value}" for key, value in TINY.items()]


def test_install_and_test_are_one_command_each(readme, root):
    lines = "".join(blocks(readme, "sh")).splitlines()
    assert lines.count("pip install -e '.[test]' -c constraints.txt") == 1
    assert lines.count("pytest") == 1
    # .ci/run takes them from the README by these words.
    for word in ("pip install", "pytest"):
        assert len(re.findall(rf"^{word}", readme, re.MULTILINE)) == 1
        assert f'readme "{word}"' in (root / ".ci" / "run").read_text("utf-8")


def test_every_command_is_understood(commands, at, root, monkeypatch):
    calls = []

    def stand_in(module, name):
        signature = inspect.signature(getattr(module, name))

        def call(*args, **kwargs):
            calls.append((name, signature.bind(*args, **kwargs).arguments))

        monkeypatch.setattr(module, name, call)

    # By their full names: `rm_jax.train` may be looked up as module or as function.
    for module, name in (
        ("rm_jax.cluster", "join"),
        ("rm_jax.train", "train"),
        ("rm_jax.serve.evaluation", "evaluate_run"),
        ("rm_jax.serve.inspection", "inspect_step"),
        ("rm_jax.serve.scoring", "score_file"),
        ("rm_jax.averaging", "average_runs"),
    ):
        stand_in(importlib.import_module(module), name)
    monkeypatch.setattr("rm_jax.serve.inspection.inspect_step", lambda *a: iter("x"))
    sweep = importlib.import_module("rm_jax.launch.sweep")
    monkeypatch.setattr(sweep, "sweep", lambda address, *a, **k: len(seen(address)))
    seen = lambda address: experiment.load(str(root / address)).null[:0]
    monkeypatch.setattr("rm_jax.features.of_config", lambda *a: (None, {}))
    monkeypatch.setattr("rm_jax.export.export", lambda *a, **k: [])
    report = importlib.import_module("rm_jax.report.sweep")
    monkeypatch.setattr(report, "look", lambda root, **k: calls.append((root, k)))
    for arguments in commands:
        if arguments[0] == "report":  # stops after its arguments are understood
            with pytest.raises(AttributeError):
                main.run(arguments)
            assert calls[-1] == (
                "runs/losses",
                {"show": "test/gold_accuracy", "select": "", "over": [],
                 "baseline": None},
            )  # fmt: skip
            continue
        if arguments[0] != "train":
            assert main.run(arguments) == 0, arguments
        else:
            main.run(arguments)
            name, given = calls[-1]
            assert name == "train"
            losses.choose(rm_jax.config.validate(given["config"]).loss)
    verbs = {a[0] for a in commands}
    assert verbs == {
        "train", "eval", "score", "inspect", "data", "sweep", "report", "features",
        "export",
    }  # fmt: skip


def test_a_model_is_trained_evaluated_explained_and_scored_with(commands, at, readme):
    first = next(a for a in commands if a[0] == "train")
    assert main.run(tiny(first)) == 0
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        for verb in ("eval", "score", "inspect"):
            assert main.run(next(a for a in commands if a[0] == verb)) == 0
    assert "scored: token" in shown.getvalue() and "accuracy" in shown.getvalue()
    assert (at / "runs/quickstart-test/report.html").exists()
    line = json.loads((at / "scores.jsonl").read_text())
    model = rm_jax.load("runs/quickstart")
    scores = model.score("What is 2 + 2?", ["4", "5"])
    assert line["id"] == "1" and line["scores"] == scores.tolist()


def test_a_backbone_is_trained_exported_and_has_features(commands, at):
    """A narrow Llama in place of the README's models, which are of the hub."""
    own, other = at / "models" / "Qwen3-0.6B", at / "models" / "SmolLM2"
    own.mkdir(parents=True)
    tinymodel.write(own)
    model = tinymodel.write(other)
    save_tokenizer(byte_tokenizer(), other)
    no_bos = byte_tokenizer()  # as Qwen's
    no_bos.chat_template = no_bos.chat_template.replace("bos_token", "''")
    no_bos.bos_token = None
    save_tokenizer(no_bos, own)
    named = "--config.model.init=hf:models/Qwen3-0.6B"
    train = next(a for a in commands if named in a)
    rows = ["--config.data.train=hh:helpful-base.jsonl.gz"]
    assert main.run([*tiny(train), *rows]) == 0
    assert main.run(next(a for a in commands if a[0] == "export")) == 0
    assert (at / "exported" / "golden.jsonl").exists()
    rows += [f"--config.model.init={model}", "--config.model.features=2"]
    features = next(a for a in commands if a[0] == "features")
    features = [*features[: features.index("--layers")], "--layers", "1,2"]
    assert main.run([*tiny(features), *rows]) == 0
    head = next(a for a in commands if "runs/head" in a)
    assert main.run([*tiny(head), *rows]) == 0
    assert rm_jax.load("runs/head").arch.n_layers == 2


def test_the_example_loss(readme, at):
    objective = losses.choose({"name": "my_losses:hinge", "margin": 0.5})
    k = 3
    labels = types.SimpleNamespace(
        ranks=np.array([[0, 1, 2], [1, 0, -1], [0, 0, -1]]),
        present=np.ones((3, k)),
        soft=np.full(3, np.nan, np.float32),
    )
    scores = np.array([[1.0, 0.8, 2.0], [0.0, 3.0, 9.0], [1.0, 0.0, 9.0]], np.float32)
    out = types.SimpleNamespace(scores=scores, aux={})
    value = objective.loss(out, labels, objective.hparams["loss"], None)
    # Gaps to the worse: .2, -1, -1.2; 3; a tie has no sign and costs the margin.
    assert value == pytest.approx([(0.3 + 1.5 + 1.7) / 3, 0.0, 0.5])


def test_the_map_is_right(readme, root):
    paths = re.findall(r"^[\w./]+(?= {2,})", blocks(readme, "text")[0], re.MULTILINE)
    links = re.findall(r"\]\(([^:)]+)\)", readme)
    named = re.findall(r"[\w/]+\.py\b", readme)
    assert len(paths) > 10
    for path in paths + links + named:
        found = (root / path, root / "rm_jax" / path, root / "configs" / path)
        assert any(p.exists() for p in found) or path in (
            "my_losses.py",
            "verify.py",
        ), path


def test_formats_are_those_of_the_code(readme):
    from rm_jax.data.formats import FORMATS

    table = re.search(r"\| format \| rows \|\n(.*?)\n\n", readme, re.DOTALL)[1]
    named = set(re.findall(r"`([\w.:]+)`", "".join(
        row.split("|")[1] for row in table.splitlines()
    )))  # fmt: skip
    assert named == {*FORMATS, "columns", "preset", "tfds", "world"} | {
        "package.module:function"
    }


def test_the_knobs_of_a_world_are_those_of_the_code(readme):
    from rm_jax.data.world import WORLD_DEFAULTS

    text = re.search(r"\nThe knobs of a world.*?#test`:(.*?)\n\n", readme, re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", text)) == set(WORLD_DEFAULTS)


@pytest.mark.parametrize("verb", sorted(main.VERBS))
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as done:
        main.run([*verb.split(), "--help"])
    assert done.value.code == 0 and f"rm-jax {verb}" in capsys.readouterr().out


def test_help_is_quick():
    def seconds():
        start = time.perf_counter()
        command = [sys.executable, "-m", "rm_jax", "train", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.5


def test_an_error_is_one_line_and_a_code():
    command = [sys.executable, "-m", "rm_jax", "train", "--config", "no.py"]
    done = subprocess.run([*command, "--workdir", "x"], capture_output=True, text=True)
    first, *rest = done.stderr.splitlines()
    assert done.returncode == 1 and "no.py" in first and len(rest) <= 1
    assert not os.path.exists("x")


@pytest.mark.slow
def test_every_training_command_trains(commands, at):
    for arguments in (a for a in commands if a[0] == "train"):
        if "--coordinator" in arguments:  # of four hosts: test_cluster.py trains so
            continue
        workdir = arguments[arguments.index("--workdir") + 1]
        run = [*arguments]
        run[run.index(workdir)] = workdir.replace("runs", "tiny")
        if any("hh.py" in a for a in run):  # 60 rows are too few for its BPE
            run.append("--config.contract.tokenizer=byte")
        assert main.run(tiny(run)) == 0


@pytest.mark.slow
def test_the_python_block(readme, at, monkeypatch):
    load = rm_jax.config.load

    def small(address):
        config = load(address)
        for key, value in TINY.items():
            rm_jax.config.override(config, key, value)
        return config

    monkeypatch.setattr(rm_jax.config, "load", small)
    names = {}
    exec(next(b for b in blocks(readme, "python") if "rm_jax.train" in b), names)
    assert names["scores"].shape == (2,)


@pytest.mark.slow
def test_the_quickstart_is_what_the_readme_says(commands, root, tmp_path):
    first = next(a for a in commands if a[0] == "train")
    first = [str(tmp_path / "run") if a == "runs/quickstart" else a for a in first]

    def run():
        done = subprocess.run(
            [sys.executable, "-m", "rm_jax", *first],
            cwd=root, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "% of the ceiling" in run()
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    sets = json.loads((tmp_path / "run" / "evals.json").read_text())["sets"]
    test = sets["test"]
    assert test["n_pairs"] >= 2000
    assert test["accuracy"] >= 0.9 * test["ceiling"]
    assert test["gold_accuracy"] >= 0.75
    assert {"length", "sycophancy"} <= set(test["probes"])
    assert "is complete" in run()
