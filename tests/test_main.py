"""Bad input on the command line: one clear line, a code, and nothing written."""

import importlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from command import ROW, assert_one_line, never, rows

from rm_jax import losses, main, sharding
from rm_jax.arguments import UsageError

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


def train(workdir, tokens, **changes):
    """Arguments that train a tiny model, with some changes, `section__key=value`."""
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    values = TINY | {"data.cache_dir": tokens} | changes
    knobs = [f"--config.{key}={value}" for key, value in values.items()]
    return ["train", "--config", "rm_jax:base", "--workdir", str(workdir), *knobs]


def files(folder):
    return {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(pathlib.Path(folder).rglob("*"))
        if p.is_file()
    }


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
            "config.mesh = {'member': 1, 'data': 3",
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


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("", ("--workdir: '': want a path",)),
        ("gs:/bucket/run", ("--workdir", "did you mean gs://bucket/run")),
        ("gs://", ("--workdir", "'gs://' names no bucket: want gs://BUCKET/PATH")),
        ("dangling", ("dangling is no folder that can be written to",)),
        ("dangling/run", ("dangling is no folder that can be written to",)),
        ("loop", ("loop is no folder that can be written to",)),
        ("a/" + "x" * 300, ("cannot make", "File name too long")),
        ("bad\udcff", ("--workdir 'bad\\udcff': the name is not UTF-8",)),
        ("/proc/zz", ("cannot make /proc/zz",)),
    ],
)
def test_a_workdir_that_cannot_be_made_is_refused_first(
    name, parts, rm_jax, tmp_path, tokens, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_module, "build", never)
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    code, _, err = rm_jax(*train(name, tokens))
    assert_one_line(code, err, *parts)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "loop"]


def test_a_workdir_that_can_be_made_is_not_made_yet(tmp_path):
    from rm_jax import rundir

    rundir._check_writable(str(tmp_path / "a" / "b"))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def damaged(run, tmp_path):
    """A copy of the run whose checkpoints all have a flipped bit."""
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
        before_it = assert_one_line(
            code, err, str(damaged), "every checkpoint is damaged", "step 3"
        )
        assert all(line.startswith("WARNING: ") for line in before_it)
        assert not output.exists()
    code, _, err = rm_jax(*arguments, "--step", 3)
    assert_one_line(code, err, f"{damaged}/checkpoints/3")
    assert files(damaged) == before


def score_in_a_process(model, folder):
    """Scores a row: the lines on stderr, those of the end of the process too."""
    path = rows(folder / "mine.jsonl", ROW)
    command = ["score", "--checkpoint", model, "--input", path]
    done = subprocess.run(
        [sys.executable, "-m", "rm_jax", *command, "--output", folder / "scores.jsonl"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    "name", ["array_metadatas/process_0", "_METADATA", "ocdbt.process_0/d/*"]
)
def test_a_damaged_last_checkpoint_is_one_warning(name, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (path,) = (tmp_path / "run/checkpoints/3/state").glob(name)
    data = bytearray(path.read_bytes())
    data[::50] = [byte ^ 255 for byte in data[::50]]
    path.write_bytes(data)
    warning, used = score_in_a_process(tmp_path / "run", tmp_path)
    assert warning.startswith("WARNING: ") and "checkpoints/3" in warning
    assert "the checkpoint before it" in warning and len(warning) < 500
    assert used == f"model: {tmp_path / 'run'} step 1 (last sound)"


def test_what_a_read_of_orbax_leaves_behind_is_not_shown():
    """Where a damaged file ends it, its other reads may end in nobody's hands."""
    from rm_jax.main import _unraisable

    spaces = {}
    source = "async def read():\n    raise OSError('damaged')"
    for name in ("/x/orbax/checkpoint/serialization.py", "/x/mine.py"):
        spaces[name] = {}
        exec(compile(source, name, "exec"), spaces[name])
    seen = []
    for space in spaces.values():
        left = space["read"]()
        report = types.SimpleNamespace(object=left, exc_value=OSError("damaged"))
        _unraisable(seen.append, report)
        left.close()
    assert [e.object.cr_code.co_filename for e in seen] == ["/x/mine.py"]


@pytest.fixture(scope="module")
def judged(run, tmp_path_factory):
    """A copy of the run that says that step 1 was its best."""
    from rm_jax.manifest import _sha256

    copy = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    del config["seal"]  # as a user does who edits it
    config["data"]["eval"], config["train"]["keep_best"] = {"valid": "#valid"}, 1
    (copy / "config.json").write_text(json.dumps(config))
    for step, nll in (1, 0.5), (3, 0.6):
        path = copy / f"checkpoints/{step}/manifest/data.json"
        manifest = json.loads(path.read_text())
        manifest.pop("sha256")
        manifest["metrics"] = {"eval/valid/nll": nll}
        path.write_text(json.dumps(manifest | {"sha256": _sha256(manifest)}))
    return copy


def test_score_and_eval_say_which_step_they_used(judged, rm_jax, tmp_path):
    path = rows(tmp_path / "mine.jsonl", ROW)
    for number, (step, parts) in enumerate(
        {
            (): ("step 3", "last"),
            ("--step", "1"): ("step 1",),
            ("--step", "best"): ("step 1", "best", "eval/valid/nll"),
        }.items()
    ):
        for arguments in (
            ["score", "--input", path, "--output", tmp_path / f"scores-{number}"],
            ["eval", "--data", f"jsonl:{path}", "--out", tmp_path / f"eval-{number}"],
        ):
            code, _, err = rm_jax(*arguments, "--checkpoint", judged, *step)
            assert code == 0, err
            (line,) = [x for x in err.splitlines() if x.startswith("model: ")]
            assert all(part in line for part in (str(judged), *parts)), line
    done = json.loads((tmp_path / "eval-2/evals.json").read_text())
    assert done["step"] == 1


def test_the_best_step_must_be_known(run, judged, rm_jax, tmp_path):
    path = rows(tmp_path / "mine.jsonl", ROW)
    output = tmp_path / "out"
    command = ["score", "--input", path, "--output", output, "--step", "best"]
    code, _, err = rm_jax(*command, "--checkpoint", run)
    assert_one_line(code, err, 'step "best"', "eval/valid/nll", "[1, 3]")
    shutil.copytree(judged, tmp_path / "run")
    (tmp_path / "run/checkpoints/1/manifest/data.json").write_text("{}")
    code, _, err = rm_jax(*command, "--checkpoint", tmp_path / "run")
    assert_one_line(code, err, 'step "best"', "checkpoints/1", "[1, 3]")
    assert not output.exists()


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
    ("lines", "parts"),
    [
        ([ROW | {"id": "a"}, "", ROW | {"id": "b"}, ROW | {"id": "a"}],
         ("'a'", "1", "4")),
        ([ROW | {"id": 1}, ROW | {"id": "1"}], ("'1'", "1", "2")),
        ([ROW, ROW | {"id": "mine:1"}], ("'mine:1'", "1", "2")),
    ],
)  # fmt: skip
def test_two_rows_to_score_of_one_id_are_named(
    lines, parts, rm_jax, tmp_path, monkeypatch
):
    monkeypatch.setattr("rm_jax.serve.scorer.load", never)
    path, output = rows(tmp_path / "mine.jsonl", *lines), tmp_path / "out"
    command = ["score", "--checkpoint", "run", "--input", path, "--output", output]
    code, _, err = rm_jax(*command)
    where = [f"{path}:{number}" for number in parts[1:]]
    assert_one_line(code, err, parts[0], *where)
    assert not output.exists()


def test_an_input_that_is_no_file_is_named(rm_jax, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["score", "--checkpoint", "run", "--output", "out", "--input"]
    for given in ("no/such", "no.jsonl", "."):
        code, _, err = rm_jax(*command, given)
        assert_one_line(code, err, f"--input {given}", "file")


def test_an_empty_response_is_scored(run, rm_jax, tmp_path):
    path = rows(tmp_path / "mine.jsonl", ROW | {"responses": ["Four.", ""]}, ROW, ROW)
    command = ["score", "--checkpoint", run, "--input", path, "--output"]
    code, _, err = rm_jax(*command, tmp_path / "out")
    assert code == 0, err
    found = [json.loads(x) for x in (tmp_path / "out").read_text().splitlines()]
    assert all(isinstance(score, float) for score in found[0]["scores"])
    # Rows without an id are of their line, so equal rows are no clash.
    assert [x["id"] for x in found] == ["mine:1", "mine:2", "mine:3"]


def by_log_p(out, labels, hparams, key):
    return -jnp.sum(jnp.where(labels.present > 0, out.token_logp, 0.0), axis=1)


by_log_p.needs = ("token_logp",)


def test_a_loss_of_log_p_is_inspected(rm_jax, tmp_path, tokens, monkeypatch):
    one = lambda sizes: REAL_MESH(sizes, jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda sizes, given=None: one(sizes))
    monkeypatch.setitem(losses.LOSSES, "by_log_p", by_log_p)
    arguments = train(
        tmp_path / "run", tokens, **NO_EVAL, loss__name="by_log_p",
        model__lm_head="untied", train__duration="1 steps",
    )  # fmt: skip
    assert main.run(arguments) == 0
    code, out, err = rm_jax("inspect", tmp_path / "run", "--step", 0)
    assert code == 0, err
    shown = [line for line in out.splitlines() if "  example " in line]
    # About log V = log 512 a token, and responses have tens of them.
    values = [float(line.rpartition("loss ")[2]) for line in shown]
    assert len(values) == 8 and all(100 < value < 1000 for value in values)


def test_columns_of_eval_need_a_format_that_takes_them(rm_jax, tmp_path, monkeypatch):
    monkeypatch.setattr("rm_jax.serve.evaluation.load", never)
    path = rows(tmp_path / "mine.jsonl", ROW)
    code, _, err = rm_jax(
        "eval", "--checkpoint", "run", "--data", f"jsonl:{path}", "--out",
        tmp_path / "out", "--columns", '{"prompt": "question"}',
    )  # fmt: skip
    assert_one_line(code, err, "'jsonl' takes no columns", "question")


def test_help_and_nothing(rm_jax):
    assert rm_jax("--help") == (0, main.USAGE + "\n", "")
    assert rm_jax()[0] == 2


BUSY = """
import atexit, sys, threading
from rm_jax import main
def interrupted(arguments):
    threading.Thread(target=threading.Event().wait).start()
    atexit.register(print, "Traceback of atexit", file=sys.stderr)
    raise KeyboardInterrupt
main.run = interrupted
main.console()
"""


def test_an_interrupt_is_one_line_and_the_end():
    done = subprocess.run(
        [sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr == "rm-jax: interrupted; a run goes on from its last save\n"


def test_a_traceback_on_request(rm_jax, monkeypatch):
    monkeypatch.setenv("RM_JAX_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["rm-jax", "trian"])
    with pytest.raises(UsageError, match="trian"):
        main.entry()


def test_overfit_one_batch_is_a_knob(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        train_module, "train", lambda config, workdir: asked.append(config)
    )
    for flags in ([], ["--overfit-one-batch"]):
        main.run([*train(tmp_path / "run", tmp_path / "tokens"), *flags])
    assert [c.train.overfit_one_batch for c in asked] == [False, True]
