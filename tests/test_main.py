"""Bad input on the command line: one clear line, a code, and nothing written."""

import importlib
import json
import os
import pathlib
import signal
import sys

import jax
import pytest

from rm_jax import main, sharding

train_module = importlib.import_module("rm_jax.train")
REAL_MESH = sharding.make_mesh

TINY = {
    "data.world.train": 64,
    "data.world.valid": 12,
    "data.world.test": 1,
    "contract.max_length": 128,
    "contract.max_response": 96,
    "batch.examples": 8,
    "batch.row_lengths": "(128,)",
    "batch.chunk_tokens": 1024,
    "model.d_model": 8,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_ff": 16,
    "train.duration": "3 steps",
    "train.log_every": "1 steps",
    "train.tensorboard": False,
    "train.report": False,
}
NO_EVAL = {"data__eval": "{}", "train__keep_best": 0}
ROW = {"prompt": "Two and two?", "responses": ["Four.", "Five."], "ranks": [0, 1]}


@pytest.fixture
def rm_jax(capsys, monkeypatch):
    """Runs a command line as the console script does: code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rm-jax", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main.entry()
        out = capsys.readouterr()
        return done.value.code, out.out, out.err

    return run


def train(workdir, tokens, **changes):
    """Arguments that train a tiny model, with some changes, `section__key=value`."""
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    values = TINY | {"data.cache_dir": tokens} | changes
    knobs = [f"--config.{key}={value}" for key, value in values.items()]
    return ["train", "--config", "rm_jax:base", "--workdir", str(workdir), *knobs]


def rows(path, *lines):
    """A jsonl file of rows, or of lines of text as they are."""
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{line}\n" for line in text))
    return path


def files(folder):
    return {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(pathlib.Path(folder).rglob("*"))
        if p.is_file()
    }


def assert_one_line(code, err, *parts):
    """The last line is the error, the only one, and has all the parts."""
    assert code == 1
    *before, last = err.splitlines()
    assert last.startswith("rm-jax: ") and "Traceback" not in err
    assert not any(line.startswith("rm-jax: ") for line in before)
    for part in parts:
        assert part in last
    return before


BAD_CONFIG = {
    "unknown knob": (
        {"batch__exampels": 4},
        ("config.batch.exampels", "did you mean", "batch.examples"),
    ),
    "wrong type": (
        {"batch__examples": "many"},
        ("config.batch.examples = 'many'", "want int like 64", "got str"),
    ),
    "out of range": (
        {"optim__b1": 1},
        ("config.optim.b1 = 1.0", "0 or more, below 1"),
    ),
    "row length": (
        {"contract__max_length": 129},
        ("max_length = 129", "= 128", "raise the row length or lower max_length"),
    ),
    "unknown loss": (
        {"loss__name": "bradley_tery"},
        ("'bradley_tery'", "did you mean 'bradley_terry'", "package.module:function"),
    ),
    "unknown knob of a loss": (
        {"loss__margn": 1},
        ("no knob 'margn'", "did you mean 'margin'"),
    ),
    "unknown knob of the world": ({"data__world__nose": 1}, ("nose", "noise")),
    "batch and mesh": (
        {"batch__chunk_tokens": 128},
        (
            "chunk of row length 128 has 1 rows",
            "data x fsdp = 8",
            "config.batch.chunk_tokens",
        ),
    ),
    "mesh and devices": (
        {"mesh__data": 3},
        (
            "config.mesh = {'data': 3",
            "needs 3 devices, but there are 8",
            "change a size",
        ),
    ),
    "unknown format": (
        {"data__train": "jsnl:x.jsonl"},
        ("unknown format 'jsnl'", "'jsonl'", "package.module:function"),
    ),
    "no format": (
        {"data__train": "x.jsonl"},
        ("'x.jsonl'", "format:path-or-hub-id"),
    ),
    "missing file": (
        {"data__train": "jsonl:no/such.jsonl"},
        ("no/such.jsonl: no such file",),
    ),
    "missing split": (
        {"data__eval__valid": "world:#validation"},
        ("'validation'", "valid", "test"),
    ),
    "metric of no set": (
        {"train__best_metric": "eval/vaild/nll"},
        ("'eval/vaild/nll'", "['test', 'valid']", "keep_best = 0"),
    ),
    "tokenizer": ({"contract__tokenizer": "wrod"}, ("wrod",)),
    "arch": ({"model__arch": "encoder"}, ("'encoder'", "known", "decoder")),
    "mask": (
        {"optim__lr_multipliers": "(('nothing', 0.0), ('.*', 1.0))"},
        ("optim.lr_multipliers", "'nothing'", "matches none"),
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_a_bad_config_is_one_line_and_no_run(case, rm_jax, tmp_path, tokens):
    changes, parts = BAD_CONFIG[case]
    code, out, err = rm_jax(*train(tmp_path / "run", tokens, **changes))
    assert_one_line(code, err, *parts)
    assert out == "" and not (tmp_path / "run").exists()


BAD_ROWS = {
    "no response": ({"prompt": "x", "ranks": []}, ("field 'responses'", "missing")),
    "empty responses": (
        ROW | {"responses": [], "ranks": []},
        ("field 'responses'", "at least one response", "[]"),
    ),
    "NaN weight": (ROW | {"weight": float("nan")}, ("field 'weight'", "finite", "nan")),
    "weight below 0": (ROW | {"weight": -1}, ("field 'weight'", ">= 0", "-1")),
    "text for a rank": (ROW | {"ranks": [0, "1"]}, ("field 'ranks'", "'1'")),
    "unknown field": (ROW | {"chosen": "x"}, ("field 'chosen'", "known fields")),
    "not JSON": ('{"prompt": "x", ', ("JSON",)),
    "not an object": ("[1, 2]", ("object",)),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_its_number(case, rm_jax, tmp_path, tokens):
    bad, parts = BAD_ROWS[case]
    path = rows(tmp_path / "mine.jsonl", ROW, ROW | {"prompt": "And?"}, bad)
    arguments = train(
        tmp_path / "run", tokens, data__train=f"jsonl:{path}", **NO_EVAL,
        contract__tokenizer="byte",
    )  # fmt: skip
    code, _, err = rm_jax(*arguments)
    assert_one_line(code, err, "mine", "3", *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "spec", "parts"),
    [
        ([], "#train", ("no records", "0 rows")),
        (
            [ROW] * 3,
            "#valid",
            ("split 'valid' of", "no records", "valid_fraction 0.0"),
        ),
        ([ROW] * 3, "#tset", ("'tset'",)),
    ],
    ids=["empty file", "empty split", "unknown split"],
)
def test_an_empty_side_is_named(lines, spec, parts, rm_jax, tmp_path, tokens):
    path = rows(tmp_path / "mine.jsonl", *lines)
    arguments = train(
        tmp_path / "run", tokens, data__train=f"jsonl:{path}",
        data__eval=json.dumps({"valid": f"jsonl:{path}{spec}"}),
        data__valid_fraction=0, contract__tokenizer="byte",
    )  # fmt: skip
    code, _, err = rm_jax(*arguments)
    assert_one_line(code, err, "mine.jsonl", *parts)
    assert not (tmp_path / "run").exists()


def test_nothing_left_after_the_audit_is_named(rm_jax, tmp_path, tokens):
    path = rows(tmp_path / "mine.jsonl", *[ROW | {"responses": ["Same.", "Same."]}] * 3)
    arguments = train(
        tmp_path / "run", tokens, data__train=f"jsonl:{path}", **NO_EVAL,
        contract__tokenizer="byte",
    )  # fmt: skip
    code, _, err = rm_jax(*arguments)
    assert_one_line(code, err, "no records left", "identical_responses 3 drop")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A token cache that all tests share."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokens):
    """A finished run; its training was stopped once on the way."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    real, arguments = train_module.run_step, train(workdir, tokens, **NO_EVAL)

    def stopped(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    sharding.make_mesh = lambda sizes, given=None: REAL_MESH(sizes, jax.devices()[:1])
    train_module.run_step = stopped
    try:
        codes = [main.run(arguments)]
        train_module.run_step = real
        codes.append(main.run(arguments))
    finally:
        train_module.run_step, sharding.make_mesh = real, REAL_MESH
    # Stopped is not done: whoever started it should start it again.
    assert codes == [75, 0]
    return workdir


def test_another_config_in_a_workdir_is_refused(run, rm_jax, tokens):
    before = files(run)
    arguments = train(run, tokens, **NO_EVAL, batch__examples=4)
    code, _, err = rm_jax(*arguments)
    assert_one_line(
        code, err, str(run), "batch.examples: 8 -> 4", "choose another --workdir"
    )
    assert files(run) == before


def test_a_workdir_of_something_else_is_refused(rm_jax, tmp_path, tokens):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = rm_jax(*train(tmp_path, tokens))
    assert_one_line(code, err, f"{tmp_path} is not empty", "choose another --workdir")
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.fixture
def damaged(run, tmp_path):
    """A copy of the run whose checkpoints all have a flipped bit."""
    import shutil

    copy = tmp_path / "damaged"
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").iterdir():
        path = max(folder.rglob("*"), key=lambda p: p.stat().st_size)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    return copy


def test_damaged_checkpoints_are_named(damaged, rm_jax, tmp_path, tokens):
    path = rows(tmp_path / "mine.jsonl", ROW)
    before = files(damaged)
    output = tmp_path / "out"
    for arguments in (
        ["score", "--checkpoint", damaged, "--input", path, "--output", output],
        ["eval", "--checkpoint", damaged, "--data", f"jsonl:{path}", "--out", output],
    ):
        code, _, err = rm_jax(*arguments)
        assert_one_line(
            code, err, str(damaged), "every checkpoint is damaged", "step 3"
        )
        assert not output.exists()
    code, _, err = rm_jax(*arguments, "--step", 3)
    assert_one_line(code, err, f"{damaged}/checkpoints/3")
    assert files(damaged) == before


def test_a_damaged_run_is_not_started_over(damaged, rm_jax, tokens, monkeypatch):
    monkeypatch.setattr(
        sharding, "make_mesh", lambda sizes: REAL_MESH(sizes, jax.devices()[:1])
    )
    checkpoints, metrics = files(damaged / "checkpoints"), damaged / "metrics.jsonl"
    before = metrics.read_bytes()
    code, _, err = rm_jax(*train(damaged, tokens, **NO_EVAL))
    assert_one_line(code, err, "every checkpoint is damaged")
    assert files(damaged / "checkpoints") == checkpoints
    assert metrics.read_bytes() == before


def test_a_step_that_was_not_saved_is_named(run, rm_jax, tmp_path):
    path = rows(tmp_path / "mine.jsonl", ROW)
    code, _, err = rm_jax(
        "score", "--checkpoint", run, "--step", 2, "--input", path, "--output",
        tmp_path / "out",
    )  # fmt: skip
    assert_one_line(code, err, "no step 2; there are [1, 3]")


def test_scores_are_written_whole_or_not_at_all(run, rm_jax, tmp_path):
    path = rows(tmp_path / "mine.jsonl", ROW, ROW | {"prompt": "And?"})
    command = ["score", "--checkpoint", run, "--input", path, "--output"]
    code, _, err = rm_jax(*command, tmp_path / "scores.jsonl")
    assert code == 0, err
    found = [
        json.loads(x) for x in (tmp_path / "scores.jsonl").read_text().splitlines()
    ]
    assert len(found) == 2 and len(found[0]["scores"]) == 2
    before = files(tmp_path)
    code, _, err = rm_jax(*command, tmp_path / "scores.jsonl")
    assert_one_line(code, err, "scores.jsonl is there already: choose another name")
    bad = rows(tmp_path / "bad.jsonl", ROW, {"prompt": "x"})
    command[4] = bad
    code, _, err = rm_jax(*command, tmp_path / "more.jsonl")
    assert_one_line(code, err, "bad", "field 'responses'")
    assert not (tmp_path / "more.jsonl").exists()
    assert {k: v for k, v in files(tmp_path).items() if k in before} == before


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
        (["inspect", "no/run", "--step", "-1"], ("--step -1", "from 0")),
        (
            ["data", "audit", "--data", "world:", "--columns", "prompt"],
            ("--columns 'prompt'", '{"field": "column"}'),
        ),
        (["data", "audit", "--data", "jsonl:no.jsonl"], ("no.jsonl: no such file",)),
    ],
    ids=lambda x: " ".join(x)[:30] if isinstance(x, list) else "",
)
def test_a_bad_command_is_one_line(arguments, parts, rm_jax, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = rm_jax(*arguments)
    assert assert_one_line(code, err, *parts) == [] and out == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "--config", "x.py"], "--workdir"),
        (["train", "--config", "x.py", "--workdir", "x", "--confg.a=1"], "--confg.a=1"),
        (["inspect", "run", "--step", "two"], "invalid int value: 'two'"),
    ],
    ids=["missing", "unknown", "no number"],
)
def test_a_command_that_cannot_be_parsed_shows_its_usage(arguments, part, rm_jax):
    code, _, err = rm_jax(*arguments)
    assert (
        code == 2 and part in err.splitlines()[-1] and err.startswith("usage: rm-jax")
    )


def test_help_and_nothing(rm_jax):
    assert rm_jax("--help") == (0, main.USAGE + "\n", "")
    assert rm_jax()[0] == 2


def test_a_traceback_on_request(rm_jax, monkeypatch):
    monkeypatch.setenv("RM_JAX_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["rm-jax", "trian"])
    with pytest.raises(main.UsageError, match="trian"):
        main.entry()
