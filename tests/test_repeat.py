"""A repeat reads the hub commits that the run read, and says which files differ."""

import hashlib
import importlib

import pytest

import rm_jax
from rm_jax import main, repeat, schemas, store
from rm_jax.rundir import config_text

A, B, C = "a" * 40, "b" * 40, "c" * 40


def write_run(folder, config, data, **more):
    """A run directory as far as a repeat looks at one."""
    folder.mkdir()
    (folder / "config.json").write_text(config_text(config))
    body = {"contract_sha256": "", "data": data, "plugins": {}, "sessions": []} | more
    store.write_sealed(str(folder / "run.json"), schemas.stamped("run.json", body))


def source(**facts):
    return {"source": {"spec": "", "revision": "", "sha256": "", **facts}}


@pytest.fixture
def base():
    config = rm_jax.config.load("rm_jax:base")
    config.data.eval = {}
    return config


def load(run):
    return rm_jax.config.load(str(run))


def test_what_came_from_the_hub_is_pinned(tmp_path, base):
    base.data.train = "hf:org/name@main"
    base.data.eval = {"valid": "#valid", "other": "preset:helpsteer2#valid"}
    base.contract.tokenizer = "org/words@main"
    data = {
        "train": source(revision=A),
        "valid": source(revision=A),
        "other": source(revision=B),
    }
    write_run(tmp_path / "a", base, data, tokenizer_commit=C)
    for address in (tmp_path / "a", tmp_path / "a" / "config.json"):
        config = load(address)
        said = repeat.pin(config, str(address), str(tmp_path / "b"))
        assert config.data.train == f"hf:org/name@{A}"
        assert config.data.eval.to_dict() == {
            "valid": "#valid",
            "other": f"preset:helpsteer2@{B}#valid",
        }
        assert config.contract.tokenizer == f"org/words@{C}"
        assert said == [
            f"hf:org/name@main: commit {A}, as the run read it",
            f"preset:helpsteer2#valid: commit {B}, as the run read it",
            f"tokenizer org/words: commit {C}, as {tmp_path}/a read it",
        ]
        # What is pinned stays, and is not said again.
        assert repeat.pin(config, str(address), str(tmp_path / "b")) == []
    rm_jax.config.validate(config)


def test_each_source_of_a_mixture_is_pinned(tmp_path, base):
    parts = {"x": {"spec": "hf:org/x", "weight": 1}, "y": {"spec": "hh:o/y#train"}}
    parts["y"]["weight"] = 2
    rm_jax.config.override(base, "data.train", parts)
    read = {"source": {"x": {"revision": A}, "y": {"revision": B}}}
    write_run(tmp_path / "a", base, {"train": read})
    config = load(tmp_path / "a")
    assert len(repeat.pin(config, str(tmp_path / "a"), str(tmp_path / "b"))) == 2
    assert config.data.train.x.spec == f"hf:org/x@{A}"
    assert config.data.train.y.spec == f"hh:o/y@{B}#train"


def test_the_run_itself_and_other_configs_are_left_alone(tmp_path, base):
    base.data.train = "hf:org/name"
    write_run(tmp_path / "a", base, {"train": source(revision=A)})
    run = str(tmp_path / "a")
    for address, workdir in (
        (run, f"{run}/"),
        (f"{run}/config.json", run),
        ("rm_jax:base", run),
        (f"{tmp_path}/mine.json", run),
    ):
        config = load(run)
        assert repeat.pin(config, address, workdir) == []
        assert config.data.train == "hf:org/name"
    (tmp_path / "a" / "run.json").unlink()  # killed before it was written
    assert repeat.pin(load(run), run, str(tmp_path / "b")) == []


def test_a_commit_that_nobody_knows_is_said(tmp_path, base):
    base.data.train = "hf:org/name"
    old = "unknown (cache folder 12)"
    write_run(tmp_path / "a", base, {"train": source(revision=old)})
    config = load(tmp_path / "a")
    (line,) = repeat.pin(config, str(tmp_path / "a"), str(tmp_path / "b"))
    assert line.startswith(
        f"WARNING hf:org/name: the commit that the run read is {old}"
    )
    assert config.data.train == "hf:org/name"


def test_a_file_that_is_another_now_is_said_once(tmp_path, base):
    path = tmp_path / "rows.jsonl"
    path.write_text("1\n")
    sha = hashlib.sha256(b"1\n").hexdigest()
    base.data.train, base.data.eval = f"jsonl:{path}", {"valid": f"jsonl:{path}"}
    write_run(tmp_path / "a", base, {n: source(sha256=sha) for n in ("train", "valid")})
    config = load(tmp_path / "a")
    pin = lambda: repeat.pin(config, str(tmp_path / "a"), str(tmp_path / "b"))
    assert pin() == []
    path.write_text("2\n")
    new = hashlib.sha256(b"2\n").hexdigest()
    assert pin() == [
        f"WARNING jsonl:{path}: its content is not what the run read: sha256 "
        f"{new[:12]}, it was {sha[:12]}"
    ]
    path.unlink()  # training says so
    assert pin() == [] and config.data.train == f"jsonl:{path}"


def test_the_command_line_pins_and_a_flag_wins(tmp_path, base, monkeypatch, capsys):
    base.data.train = "hf:org/name"
    write_run(tmp_path / "a", base, {"train": source(revision=A)})
    got = []
    module = importlib.import_module("rm_jax.train")
    monkeypatch.setattr(module, "train", lambda config, workdir: got.append(config))
    command = ["train", "--config", f"{tmp_path}/a/config.json", "--workdir", "b"]
    main.run(command)
    main.run([*command, f"--config.data.train=hf:org/name@{B}"])
    assert [c.data.train for c in got] == [f"hf:org/name@{A}", f"hf:org/name@{B}"]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"hf:org/name: commit {A}, as the run read it"
