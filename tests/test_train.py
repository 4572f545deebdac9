"""Whole tiny runs in process: repeated, stopped, continued, refused, restored."""

import importlib
import json
import os
import pathlib
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import NO_EVAL, WORLD, arrays, lines, train, use_devices

import rm_jax
from rm_jax import evaluation
from rm_jax.checkpoint import Checkpoints
from rm_jax.config import ConfigError
from rm_jax.data.schema import record_from_dict, record_to_dict
from rm_jax.data.world import make_world
from rm_jax.losses import LOSSES, REGULARIZERS, bradley_terry
from rm_jax.step import OF_SOURCE
from rm_jax.steplog import TrainingError

train_module = importlib.import_module("rm_jax.train")

pytestmark = pytest.mark.usefixtures("one_device")


def files(folder):
    """Every file under a folder: its content and when it was written."""
    return {
        p.relative_to(folder): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in pathlib.Path(folder).rglob("*")
        if p.is_file()
    }


def assert_same_run(a, b):
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert arrays(a, 8) == arrays(b, 8)
    assert (a / "evals.json").read_bytes() == (b / "evals.json").read_bytes()


@pytest.fixture(scope="module")
def straight(make, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    done, _ = train(make(), folder)
    assert set(done) == {"valid"}
    return folder


def test_a_run_leaves_what_it_should(straight):
    names = {p.name for p in straight.iterdir()}
    assert names == {
        "config.json", "contract.json", "arch.json", "run.json", "tokenizer",
        "metrics.jsonl", "timing.jsonl", "events.jsonl", "checkpoints", "predictions",
        "evals.json",
    } - ({"events.jsonl"} - names)  # fmt: skip
    steps = [
        (line["step"], next(k for k in line if k != "step").split("/")[0])
        for line in lines(straight)
    ]
    assert steps == [(3, "train"), (4, "eval"), (6, "train"), (8, "eval")]
    assert Checkpoints(f"{straight}/checkpoints").steps() == [2, 4, 6, 8]
    run = json.loads((straight / "run.json").read_text())
    assert run["steps"] == 8 and run["tokenizer_commit"] == ""  # it is no hub's


def test_the_same_run_again_is_the_same_to_the_bit(straight, make, tmp_path):
    train(make(), tmp_path / "again")
    assert_same_run(tmp_path / "again", straight)


def test_stopped_and_continued_is_undisturbed(straight, make, tmp_path, stop_after):
    workdir, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    for n, at in ((1, 1), (4, 5)):
        stop_after(n)
        done, said = train(make(), workdir)
        assert done is None and f"SIGTERM: saved step {at}; the same" in said
        stop_after(10**9)
    assert signal.getsignal(signal.SIGTERM) == before
    _, said = train(make(), workdir)
    assert f"continuing {workdir} at step 5 of 8" in said
    assert "metrics.jsonl has" not in said
    assert_same_run(workdir, straight)


def test_a_log_that_was_lost_is_said(straight, make, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    size = (workdir / "metrics.jsonl").stat().st_size
    manifest = Checkpoints(f"{workdir}/checkpoints").manifest(8)
    assert manifest.meta["metrics_bytes"] == [size]
    (workdir / "metrics.jsonl").unlink()
    _, said = train(make(), workdir)
    assert f"WARNING {workdir}/metrics.jsonl has 0 bytes up to step 8" in said
    (event,) = [e for e in lines(workdir, "events.jsonl") if e["event"] != "resumed"]
    assert (event["event"], event["saved"]) == ("metrics_differ", size)


def test_stopped_in_an_evaluation_and_continued(straight, make, tmp_path, monkeypatch):
    real = evaluation.score_table

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(evaluation, "score_table", signalled)
    done, said = train(make(), tmp_path / "run")
    assert done is None and "saved step 4" in said
    assert [line["step"] for line in lines(tmp_path / "run")] == [3]
    monkeypatch.setattr(evaluation, "score_table", real)
    train(make(), tmp_path / "run")
    assert_same_run(tmp_path / "run", straight)


def test_stopped_before_the_first_checkpoint(straight, make, tmp_path, monkeypatch):
    def broken(*args):
        raise OSError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "run_step", broken)
        with pytest.raises(OSError, match="the power is gone"):
            train(make(), tmp_path / "run")
    _, said = train(make(), tmp_path / "run")
    assert "at step 0 of 8" in said
    assert_same_run(tmp_path / "run", straight)


def test_a_complete_run_says_so_and_stays(straight, make):
    before = files(straight)
    done, said = train(make(), straight)
    assert f"{straight} is complete: 8 steps; nothing to train" in said
    assert set(done) == {"valid"}
    after = files(straight)
    for name in ("metrics.jsonl", "evals.json", "timing.jsonl"):
        assert after[pathlib.Path(name)] == before[pathlib.Path(name)]
    kept = {n: v for n, v in before.items() if n.parts[0] == "checkpoints"}
    assert kept == {n: v for n, v in after.items() if n.parts[0] == "checkpoints"}


def test_steps_may_grow(make, tmp_path):
    long, grown = tmp_path / "long", tmp_path / "grown"
    flat = {"optim__schedule": "constant"}
    train(make(train__duration="6 steps", **flat), long)
    train(make(train__duration="4 steps", **flat), grown)
    before = files(grown)[pathlib.Path("predictions/valid.parquet")][0]
    _, said = train(make(train__duration="6 steps", **flat), grown)
    assert "at step 4 of 6" in said
    assert arrays(grown, 6) == arrays(long, 6)
    assert lines(grown) == lines(long)
    now, want = (
        files(d)[pathlib.Path("predictions/valid.parquet")][0] for d in (grown, long)
    )
    assert before != now == want
    assert json.loads((grown / "evals.json").read_text())["step"] == 6
    with pytest.raises(ConfigError, match="train.duration: '6 steps' -> '5 steps'"):
        train(make(train__duration="5 steps", **flat), grown)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optim__learning_rate": 0.5}, "optim.learning_rate: 0.01 -> 0.5"),
        ({"data__world__noise": 0.2}, "data.world.noise: None -> 0.2"),
        ({"train__duration": "1 epochs"}, "train.duration: '8 steps' -> '1 epochs'"),
    ],
    ids=str,
)
def test_another_config_is_refused_by_name(straight, make, changes, named):
    before = files(straight)
    with pytest.raises(ConfigError) as error:
        train(make(**changes), straight)
    text = str(error.value)
    assert f"{straight} holds a run with another config: {named}" in text
    assert "choose another --workdir" in text
    assert files(straight) == before


def test_a_folder_of_other_things_is_left_alone(make, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no run: choose anot"):
        train(make(), tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def broken_at(example):
    """A loss that is not a number for one example."""

    def loss(out, labels, hparams, key):
        value = bradley_terry(out, labels, hparams, key)
        return jnp.where(labels.ids == example, jnp.nan, value)

    loss.__annotations__ = bradley_terry.__annotations__
    return loss


def example_of_step(config, tmp_path, step):
    """An example that is in that step and in none before it."""
    built = train_module.build(
        rm_jax.config.validate(config), None, LOSSES, REGULARIZERS, lambda line: None
    )
    loader = built.training.loaders[0]
    steps = [{item.example for item in loader.items_at(s)} for s in range(step + 1)]
    return next(iter(steps[step] - set().union(*steps[:step])))


def test_a_loss_that_is_nan_stops_at_its_step(make, tmp_path):
    config = make(train__on_nonfinite="stop", loss__name="broken")
    config.loss.name = "bradley_terry"
    example = example_of_step(config, tmp_path, 4)
    config.loss.name = "broken"
    known = LOSSES | {"broken": broken_at(example)}
    with pytest.raises(TrainingError) as error:
        train(config, tmp_path / "run", losses=known)
    text = str(error.value)
    assert text.startswith("step 5: the loss is nan") and "--step 4" in text
    assert "config.train.on_nonfinite = 'stop'" in text
    assert Checkpoints(f"{tmp_path}/run/checkpoints").steps() == [2, 4]


def test_a_skipped_step_survives_a_restart(make, tmp_path, stop_after):
    config = make(**NO_EVAL)
    known = LOSSES | {"broken": broken_at(example_of_step(config, tmp_path, 3))}
    config.loss.name = "broken"
    for name in ("straight", "stopped"):
        if name == "stopped":  # with the step in a line of the log not yet written
            stop_after(5)
            assert train(config, tmp_path / name, losses=known)[0] is None
            stop_after(10**9)
        train(config, tmp_path / name, losses=known)
    a, b = tmp_path / "straight", tmp_path / "stopped"
    assert lines(a) == lines(b) and arrays(a, 8) == arrays(b, 8)
    (line,) = [line for line in lines(a) if line["step"] == 6]
    assert line["train/loss"] == "NaN" and line["train/skips"] == 1


def begin(config, workdir):
    """What a run would start from: its state, its step and the events."""
    config, events = rm_jax.config.validate(config), []
    built = train_module.build(config, None, LOSSES, REGULARIZERS, lambda line: None)
    own = Checkpoints(str(workdir / "checkpoints"))
    where = [str(workdir)]
    start = train_module.where_to_start(
        config, built, where, own, events.append, lambda line: None
    )
    return built, start, events


def test_start_cases(straight, make, tmp_path):
    nothing = tmp_path / "nothing"
    _, scratch, _ = begin(make(), nothing)
    keep = {"model__head__init": "keep"}
    _, init, _ = begin(make(model__init=str(straight), **keep), nothing)
    _, resume, _ = begin(make(train__resume=str(straight)), nothing)
    _, own, _ = begin(make(model__init="no-such-run"), straight)
    want, _, _ = Checkpoints(f"{straight}/checkpoints").restore_part("params")
    assert (scratch.step, init.step, resume.step, own.step) == (0, 0, 8, 8)
    same = lambda a, b: np.array_equal(a, b, equal_nan=True)
    equal = lambda a, b: jax.tree.all(jax.tree.map(same, a, b))
    assert not equal(scratch.state.params, want)
    for start in (init, resume, own):
        assert equal(start.state.params, want)
    assert equal(init.state.ema, want)
    assert equal(init.state.opt_state, scratch.state.opt_state)
    assert equal(resume.state, own.state)
    assert not equal(resume.state.opt_state, scratch.state.opt_state)


@pytest.mark.parametrize("init", ["zero", "normal", "reset"])
def test_the_head_of_another_run_is_replaced_unless_it_is_kept(
    straight, make, tmp_path, init
):
    config = make(model__init=str(straight), model__head__init=init)
    _, start, _ = begin(config, tmp_path / "run")
    want, _, _ = Checkpoints(f"{straight}/checkpoints").restore_part("params")
    found = start.state.params
    assert np.any(found["head"]) == (init != "zero")
    assert not np.array_equal(found.pop("head"), want.pop("head"))
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_another_head_is_no_other_model_unless_it_is_kept(straight, make, tmp_path):
    head = {"model__head__name": "bottleneck", "model__head__latent": 4}
    config = make(model__init=str(straight), model__head__init="normal", **head)
    _, start, _ = begin(config, tmp_path / "run")
    assert start.state.params["head"]["mean"].shape == (8, 4)
    config.model.head.init = "keep"
    with pytest.raises(ConfigError, match="another model: head: 'linear' -> 'bottle"):
        begin(config, tmp_path / "run")


def test_adapters_start_from_a_run_without_them(straight, make, tmp_path):
    config = make(model__init=str(straight), model__head__init="keep",
                  model__lora__rank=2)  # fmt: skip
    _, start, _ = begin(config, tmp_path / "run")
    want, _, _ = Checkpoints(f"{straight}/checkpoints").restore_part("params")
    found = start.state.params
    lora = {n: found["layer_0"]["attn"][n].pop("lora") for n in ("q", "v")}
    jax.tree.map(np.testing.assert_array_equal, found, want)
    assert lora["q"]["a"].shape == (8, 2) and np.any(lora["q"]["a"])
    assert lora["v"]["b"].shape == (2, 4) and not np.any(lora["v"]["b"])


def test_a_start_that_is_not_there_is_named(make, tmp_path):
    for key in ("model__init", "train__resume"):
        with pytest.raises(
            FileNotFoundError, match="no/run/checkpoints: no checkpoint"
        ):
            begin(make(**{key: "no/run"}), tmp_path)


def test_a_missing_start_is_found_before_any_data(make, tmp_path):
    for key in ("model__init", "train__resume"):
        config = make(**{key: "no/run", "data__train": "jsonl:not-there.jsonl"})
        with pytest.raises(ConfigError, match=f"config.{key.replace('__', '.')} = 'no"):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_better_evaluation_is_saved_between_saves(make, tmp_path):
    config = make(train__eval_every="1 steps", train__save_every="100 steps")
    train(config, tmp_path / "run")
    nll = {
        line["step"]: line["eval/valid/nll"]
        for line in lines(tmp_path / "run")
        if "eval/valid/nll" in line
    }
    better = {s for s in nll if all(nll[s] < nll[t] for t in nll if t < s)}
    steps = Checkpoints(f"{tmp_path}/run/checkpoints").steps()
    assert set(steps) == better | {8} and 1 in better and len(nll) == 8


def test_a_run_that_skips_every_step_fails(make, tmp_path):
    def broken(out, labels, hparams, key):
        return out.scores[:, 0] * np.nan

    config = make(**NO_EVAL, train__max_skips=100)
    config.loss.name = "broken"
    with pytest.raises(TrainingError, match="8 steps in a row were"):
        train(config, tmp_path / "run", losses=LOSSES | {"broken": broken})


def test_a_warm_up_that_never_ends_is_said(make, tmp_path):
    config = make(**NO_EVAL, optim__warmup="9 steps", train__duration="2 steps")
    _, said = train(config, tmp_path / "run")
    assert "WARNING config.optim.warmup = '9 steps' is longer than the run" in said
    assert "cut to its 2 steps" in said


def test_stopped_in_the_last_evaluation(make, tmp_path, monkeypatch):
    real = evaluation.evaluate_set

    def stop(*args, poll, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, poll=poll, **more)

    monkeypatch.setattr(evaluation, "evaluate_set", stop)
    done, said = train(make(), tmp_path / "run")
    assert done is None and "SIGTERM: trained; the same command evaluates" in said
    assert not (tmp_path / "run/evals.json").exists()
    monkeypatch.setattr(evaluation, "evaluate_set", real)
    done, _ = train(make(), tmp_path / "run")
    assert done["valid"]["n_pairs"] > 0


def test_a_start_of_another_model_is_refused(straight, make, tmp_path):
    with pytest.raises(ConfigError, match="holds another model: .*rope_base: 10000.0"):
        begin(make(model__init=str(straight), model__rope_base=500.0), tmp_path)
    with pytest.raises(ValueError, match="holds another model: d_ff: 16 -> 24"):
        begin(make(model__init=str(straight), model__d_ff=24), tmp_path)


def test_a_resumed_run_that_is_longer_already_is_refused(straight, make, tmp_path):
    config = make(train__resume=str(straight), train__duration="4 steps")
    with pytest.raises(ConfigError, match="has 8 steps already, .* make it longer"):
        train(config, tmp_path / "run")


def test_other_data_under_the_same_name_is_refused(straight, make, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    path = pathlib.Path(make().data.eval.valid.partition(":")[2])
    text = path.read_text()
    before = files(workdir)
    try:
        path.write_text("".join(text.splitlines(keepends=True)[:-1]))
        with pytest.raises(ConfigError, match="made with another content of .valid. "):
            train(make(), workdir)
    finally:
        path.write_text(text)
    assert files(workdir) == before


def test_a_data_file_that_is_gone_is_named(straight, make, tmp_path):
    # Its tokens are cached, but under the digest of its content: no guess is made.
    workdir, before = tmp_path / "run", files(straight)
    shutil.copytree(straight, workdir)
    path = pathlib.Path(make().data.eval.valid.partition(":")[2])
    path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(FileNotFoundError, match=f"{path}: no such file"):
            train(make(), workdir)
    finally:
        path.with_suffix(".away").rename(path)
    assert files(workdir).keys() == before.keys()
    train(make(), workdir)


def test_clocks_that_go_back_and_times_of_files_change_nothing(
    straight, make, tmp_path, monkeypatch, stop_after
):
    now = [2e9]

    def back():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr("time.time", back)
    stop_after(5)
    assert train(make(), tmp_path / "run")[0] is None
    stop_after(10**9)
    for i, path in enumerate(sorted((tmp_path / "run").rglob("*"))):
        os.utime(path, (4e9 - i, 4e9 - i))  # the newest first, and in the future
    train(make(), tmp_path / "run")
    assert_same_run(tmp_path / "run", straight)
    text = (tmp_path / "run/timing.jsonl").read_text()
    timing = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in timing if "seconds" in line] == [3, 5, 6, 8]
    assert all(value >= 0 for line in timing for value in line.values())
    assert all(0 < line.get("seconds", 1) < 100 for line in timing)


def test_resume_in_another_folder_goes_on(straight, make, tmp_path):
    config = make(train__resume=str(straight), train__duration="9 steps")
    _, said = train(config, tmp_path / "run")
    assert Checkpoints(f"{tmp_path}/run/checkpoints").steps() == [9]
    _, start, _ = begin(config, tmp_path / "run")
    assert start.step == 9  # its own, now that it has one
    assert [line["step"] for line in lines(tmp_path / "run")] == [9, 9]


def test_a_damaged_checkpoint_falls_back_loudly(straight, make, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    (workdir / "evals.json").unlink()
    saved = (workdir / "checkpoints" / "8").rglob("*")
    path = max(saved, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    _, said = train(make(), workdir)
    assert "WARNING" in said and "at step 6 of 8" in said
    text = (workdir / "events.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    assert [e["step"] for e in events if e["event"] == "damaged_checkpoint"] == [8]
    assert_same_run(workdir, straight)


def test_eight_devices_then_one(make, tmp_path, stop_after):
    config = make(
        **NO_EVAL, optim__name="sgd", train__ema=0, model__dropout=0,
        train__duration="6 steps",
    )  # fmt: skip
    train(config, tmp_path / "one")
    try:
        use_devices(8)
        stop_after(4)
        assert train(config, tmp_path / "run")[0] is None
    finally:
        use_devices(1)
    stop_after(10**9)
    built, start, _ = begin(config, tmp_path / "run")
    assert start.step == 4 and built.mesh.size == 1
    saved = Checkpoints(f"{tmp_path}/run/checkpoints").restore_part("params", step=4)
    jax.tree.map(np.testing.assert_array_equal, start.state.params, saved[0])
    _, said = train(config, tmp_path / "run")
    assert "at step 4 of 6" in said
    for a, b in zip(lines(tmp_path / "run"), lines(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    both = [
        Checkpoints(f"{tmp_path}/{name}/checkpoints").restore_part("params")[0]
        for name in ("run", "one")
    ]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, *both)


def test_a_loaded_model_scores_as_the_run_did(straight, make):
    model = rm_jax.load(str(straight))
    assert model.step == 8
    path = make().data.eval.valid.partition(":")[2]
    rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    table = pq.read_table(straight / "predictions" / "valid.parquet").to_pylist()
    got = model.score_records(record_from_dict(row) for row in rows)
    assert len(got) == len(rows) == 12 and np.ptp(got) > 0.01
    found = {(line["id"], line["response"]): line["score"] for line in table}
    for row, scores in zip(rows, got, strict=True):
        want = [found[row["id"], k] for k in range(2)]
        np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)
    prompt, responses = rows[0]["prompt"], rows[0]["responses"]
    np.testing.assert_allclose(model.score(prompt, responses), got[0], atol=1e-5)
    one = model.score(prompt, responses[1][0]["content"])
    assert isinstance(one, float) and one == pytest.approx(got[0][1], abs=1e-5)


def test_loading_what_is_no_run_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run directory: .*--workdir"):
        rm_jax.load(str(tmp_path))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Two files, of 40 and 12 pairs, and what a config says of them."""
    folder = tmp_path_factory.mktemp("mixture")
    rows = [record_to_dict(r) for r in make_world(WORLD).records("train")]
    parts = {}
    for name, own in ("much", rows[:40]), ("little", rows[40:52]):
        text = "".join(json.dumps(row) + "\n" for row in own)
        (folder / f"{name}.jsonl").write_text(text)
        parts[name] = {"spec": f"jsonl:{folder}/{name}.jsonl"}
    return parts


def amounts(mixture, **given):
    kind = "weight" if isinstance(next(iter(given.values())), float) else "count"
    return json.dumps({n: {**mixture[n], kind: of} for n, of in given.items()})


def test_a_mixture_trains_with_figures_of_each_source(
    make, mixture, tmp_path, stop_after
):
    config = make(
        data__train=amounts(mixture, much=1.0, little=3.0),
        data__eval='{"valid": "#valid"}',
        data__valid_fraction="0.3",
        contract__tokenizer="byte",
    )
    done, said = train(config, tmp_path / "straight")
    sizes = re.findall(r"train/\w+: (\d+) examples", said)
    epoch = f"an epoch is {sum(map(int, sizes))} examples, 75.0% little, 25.0% much"
    assert len(sizes) == 2 and epoch in said
    first, last = lines(tmp_path / "straight")[0], lines(tmp_path / "straight")[-1]
    for source in mixture:
        assert {f"train/{source}/{name}" for name in OF_SOURCE} <= first.keys()
        assert 0 < last[f"eval/valid/{source}/nll"] < 3
        assert done["valid"]["sources"][source]["n_pairs"] > 0
    parts = done["valid"]["sources"].values()
    for figure in ("nll", "accuracy"):
        whole = sum(p[figure] * p["n_pairs"] for p in parts) / done["valid"]["n_pairs"]
        assert done["valid"][figure] == pytest.approx(whole, rel=1e-6)
    predictions = pq.read_table(tmp_path / "straight/predictions/valid.parquet")
    assert set(predictions["source"].to_pylist()) == set(mixture)
    stop_after(3)
    assert train(config, tmp_path / "stopped")[0] is None
    train(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_counted_mixture_is_that_many_examples_an_epoch(make, mixture, tmp_path):
    config = make(
        data__train=amounts(mixture, much=10, little=6),
        train__duration="2 epochs",
        contract__tokenizer="byte",
        **NO_EVAL,
    )
    _, said = train(config, tmp_path / "run")
    assert "an epoch is 16 examples, 6 little, 10 much" in said
    assert lines(tmp_path / "run")[-1]["step"] == 3  # of 4, logged every third
    config = make(data__train=amounts(mixture, much=10, little=60), **NO_EVAL)
    config.contract.tokenizer = "byte"
    with pytest.raises(ValueError, match="train.little.count = 60, but 12 examples"):
        train(config, tmp_path / "more")
    assert not (tmp_path / "more").exists()
