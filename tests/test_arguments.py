"""What is wrong with a command line is one line, before any work."""

import importlib
import os

import pytest
from command import ROW, assert_one_line, never, rows

from rm_jax import main

train_module = importlib.import_module("rm_jax.train")


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["--config.batch.examples", "7"], 7),
        (["--config.batch.examples=7"], 7),
        (["--config.batch.examples", "8", "--config.batch.examples", "-7"], -7),
    ],
    ids=["space", "equals", "negative"],
)
def test_a_knob_is_set_with_an_equals_sign_or_a_space(words, want, monkeypatch):
    given = []
    monkeypatch.setattr(train_module, "train", lambda config, _: given.append(config))
    head = ["train", "--config", "rm_jax:base"]
    assert main.run([*head, *words, "--workdir", "x"]) == 75
    assert given[0].batch.examples == want


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--config.batch.examples"], ("--config.batch.examples", "no value")),
        (
            ["--config.batch.examples", "--workdir", "y"],
            ("no value", "want --config.batch.examples=VALUE"),
        ),
        (["--config."], ("want --config.KEY=VALUE",)),
        (["--config.a-b=1"], ("unknown key config.a-b",)),
    ],
    ids=["last", "before a flag", "no key", "no word"],
)
def test_a_knob_without_a_value_is_one_line(words, parts, rm_jax, tmp_path):
    command = ["train", "--config", "rm_jax:base", "--workdir", tmp_path / "run"]
    code, out, err = rm_jax(*command, *words)
    assert assert_one_line(code, err, *parts) == [] and out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["inspect", "~/x", "--step", "0"], "{home}/x is no run directory"),
        (["diff", "~/x", "y"], "'{home}/x' is not a run directory"),
        (["data", "audit", "--data", "jsonl:~/x.jsonl"], "{home}/x.jsonl: no such"),
        (["train", "--config", "~/x.py", "--workdir", "y"], "'{home}/x.py'"),
    ],
)
def test_a_tilde_is_the_home_folder(command, flag, rm_jax, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = rm_jax(*command)
    assert_one_line(code, err, flag.format(home=tmp_path))


@pytest.mark.parametrize(
    ("verb", "output", "parts"),
    [
        ("score", "no/such/x.jsonl", ("--output no/such/x.jsonl", "no folder")),
        ("score", "folder", ("folder", "is there already")),
        ("score", "", ("--output: '': want a path",)),
        ("score", "mine.jsonl/x", ("mine.jsonl", "no folder")),
        ("eval", "mine.jsonl/x/y", ("mine.jsonl", "no folder")),
        ("eval", "mine.jsonl", ("--out mine.jsonl", "is there already")),
    ],
)  # fmt: skip
def test_an_output_that_cannot_be_written_is_named_first(
    verb, output, parts, rm_jax, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rm_jax.serve.evaluation.load", never)  # before what it is of
    monkeypatch.setattr("rm_jax.serve.scorer.load", never)
    rows(tmp_path / "mine.jsonl", ROW)
    (tmp_path / "folder").mkdir()
    what = {
        "score": ["--input", "mine.jsonl", "--output", output],
        "eval": ["--data", "jsonl:mine.jsonl", "--out", output],
    }
    code, out, err = rm_jax(verb, "--checkpoint", "run", *what[verb])
    assert assert_one_line(code, err, *parts) == [] and out == ""
    assert sorted(os.listdir(tmp_path)) == ["folder", "mine.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trian"], ("unknown command 'trian'", "known", "'train'")),
        (["data", "audt"], ("unknown command 'data audt'", "'data audit'")),
        (["data"], ("unknown command 'data'", "'data prepare'")),
        (
            ["train", "--config", "no.py", "--workdir", "x"],
            ("no config file 'no.py'", "rm_jax:NAME"),
        ),
        (
            ["eval", "--checkpoint", "no/run", "--data", "world:", "--out", "x"],
            ("no/run is no run directory", "--workdir"),
        ),
        (["inspect", "no/run", "--step", "0"], ("no/run is no run directory",)),
        (["inspect", "no/run", "--step", "-1"], ("--step", "'-1'", "0 or more")),
        (["inspect", "no/run", "--step", "two"], ("--step", "'two'", "0 or more")),
        (
            ["inspect", "run", "--step", "1", "--rows", "-5"],
            ("--rows", "'-5'", "0 or more"),
        ),
        (["inspect", "no/run", "--step", "9" * 5000], ("--step", "0 or more")),
        (
            ["score", "--step", "worst"],
            ("--step", "'worst'", "0 or more", "best", "rm-jax score --help"),
        ),
        (["eval", "--step", "1.5"], ("--step", "'1.5'", "best", "rm-jax eval --help")),
        (["eval", "--limit", "-1"], ("--limit", "'-1'", "0 or more")),
        (["train", "--config", "x.py"], ("--workdir", "rm-jax train --help")),
        (
            ["train", "--config", "x.py", "--workdir", "x", "--confg.a=1"],
            ("--confg.a=1",),
        ),
        (
            ["data", "audit", "--data", "world:", "--columns", '{"prompt": "x"}'],
            ("'world:' takes no columns", "{'prompt': 'x'}"),
        ),
        (
            [
                *("data", "audit", "--data", "columns:x.jsonl", "--columns"),
                '{"chosen": 3, "rejected": "x"}',
            ],
            ("columns: 'chosen': 3", "want the name of a column"),
        ),
        (
            ["data", "audit", "--data", "world:", "--columns", "{'prompt': 'x'}"],
            ("--columns", "{'prompt': 'x'}", "line 1 column 2", '{"name": ...}'),
        ),
        (
            ["data", "audit", "--data", "hf:x", "--columns", '{"a": "x", "a": "y"}'],
            ("--columns", "the key 'a' twice"),
        ),
        (
            ["data", "audit", "--data", "world:", "--columns", "prompt"],
            ("--columns = 'prompt': not JSON", '{"name": ...}'),
        ),
        (["data", "audit", "--data", "jsonl:no.jsonl"], ("no.jsonl: no such file",)),
        (["diff", "gs:/x/y", "z"], ("RUN_A", "did you mean gs://x/y")),
    ],
    ids=lambda x: " ".join(x)[:30] if isinstance(x, list) else "",
)
def test_a_bad_command_is_one_line(arguments, parts, rm_jax, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = rm_jax(*arguments)
    assert assert_one_line(code, err, *parts) == [] and out == ""
    assert os.listdir(tmp_path) == []
