"""W&B and trackio, offline: one run over restarts, each number once; failures."""

import importlib
import json
import sqlite3
import struct
import sys

import pytest
from tiny import NO_EVAL, lines, train

from rm_jax import schemas, sinks
from rm_jax.sinks import SINKS, Sink
from rm_jax.writer import RunWriter


class Memory(Sink):
    """Keeps what it gets, and the opening."""

    def __init__(self, opening):
        self.opening, self.got = opening, []
        sinks._id("memory", opening.workdir)

    def metrics(self, step, values):
        self.got.append((step, dict(values)))

    def timing(self, step, values):
        self.got.append((step, {f"timing/{k}": v for k, v in values.items()}))

    def close(self, failed):
        self.got.append(failed)


@pytest.fixture
def memory(monkeypatch):
    """RunWriter's sink `memory`, and every one that was opened."""
    opened = []
    make = lambda opening: opened.append(Memory(opening)) or opened[-1]
    monkeypatch.setitem(SINKS, "memory", make)
    return opened


def test_a_sink_is_told_what_was_sent_before(tmp_path, memory):
    on = {"memory": "project", "tensorboard": False, "wandb": ""}
    with RunWriter(tmp_path, step=-1, sinks=on, config={"a": 1}) as w:
        w.write_metrics(2, {"x": 1.0})
        w.write_metrics(4, {"x": 2.0})
        w.write_metrics(4, {"eval/x": 3.0})
        w.write_timing(4, {"seconds": 1.0})
    with RunWriter(tmp_path, step=2, sinks=on):
        pass
    first, second = (m.opening for m in memory)
    assert first == (tmp_path, -1, "project", {"a": 1}, {}, -1)
    assert second.sent == {4: {"step", "x", "eval/x"}} and second.timed == 4
    assert memory[0].got == [
        (2, {"x": 1.0}), (4, {"x": 2.0}), (4, {"eval/x": 3.0}),
        (4, {"timing/seconds": 1.0}), False,
    ]  # fmt: skip


def test_a_run_that_fails_closes_its_sinks_as_failed(tmp_path, memory):
    with (
        pytest.raises(KeyError),
        RunWriter(tmp_path, step=-1, sinks={"memory": "p"}),
    ):
        raise KeyError
    assert memory[0].got == [True]


def test_a_sink_that_fails_is_given_up_and_said_once(tmp_path, memory):
    said = []
    with RunWriter(tmp_path, step=-1, sinks={"memory": "p"}, say=said.append) as w:
        w.write_metrics(1, {"x": 1.0})
        memory[0].metrics = lambda *_: 1 / 0
        w.write_metrics(2, {"x": 2.0})
        w.write_metrics(3, {"x": 3.0})
    assert [n["x"] for n in lines(tmp_path)] == [1.0, 2.0, 3.0]
    (event,) = lines(tmp_path, "events.jsonl")
    why = "ZeroDivisionError: division by zero"
    assert event == {"step": 2, "event": "sink_failed", "sink": "memory", "why": why}
    assert said == [f"WARNING memory failed and gets nothing more: {why}"]
    assert memory[0].got == [(1, {"x": 1.0})]


def broken(opening):
    sinks._id("memory", opening.workdir)
    raise OSError("no network")


def log(workdir, first, last, step, **more):
    """Lines of steps first ... last, by a start from `step`; the bytes of each."""
    sizes = {}
    with RunWriter(workdir, step=step, **more) as w:
        for s in range(first, last + 1):
            w.write_metrics(s, {"x": float(s)})
            w.write_timing(s, {"seconds": 0.5})
            sizes[s] = w.size
    return sizes


def sent(*steps):
    return [
        (s, values)
        for s in steps
        for values in ({"x": float(s)}, {"timing/seconds": 0.5})
    ]


@pytest.mark.parametrize("step", [-1, 0, 3])
def test_no_start_goes_on_without_a_sink_that_has_nothing(tmp_path, monkeypatch, step):
    log(tmp_path, 1, 4, -1)  # without it
    monkeypatch.setitem(SINKS, "memory", broken)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="config.train.memory: no network"):
            RunWriter(tmp_path, step=step, sinks={"memory": "p"})
    assert not (tmp_path / "events.jsonl").exists()


def test_a_sink_that_opens_late_is_sent_the_whole_log(tmp_path, memory, monkeypatch):
    on, said = {"sinks": {"memory": "p"}}, []
    with monkeypatch.context() as patch:
        patch.setitem(SINKS, "memory", broken)
        with pytest.raises(RuntimeError, match="no network"):
            log(tmp_path, 1, 0, -1, **on)
    log(tmp_path, 1, 5, 0)  # meanwhile off; then restored at 3
    log(tmp_path, 4, 6, 3, say=said.append, **on)
    (first,) = memory
    assert first.opening.step == first.opening.timed == -1 and not first.opening.sent
    # Of timing.jsonl, which is not cut, the steps that are done again come again.
    assert first.got == [*sent(1, 2, 3, 4, 5, 6), False]
    assert said == ["memory is sent the 6 lines that it lacks"]
    log(tmp_path, 6, 6, 5, say=said.append, **on)
    assert len(said) == 1 and memory[1].opening.sent == {6: {"step", "x"}}


@pytest.mark.parametrize("restored", [1, 2, 4])
def test_a_sink_that_failed_is_sent_the_rest_when_it_opens_again(
    tmp_path, memory, monkeypatch, restored
):
    on = {"sinks": {"memory": "p"}}
    with RunWriter(tmp_path, step=-1, **on) as w:
        for step in range(1, 6):
            if step == 3:
                memory[0].metrics = lambda *_: 1 / 0
            w.write_metrics(step, {"x": float(step)})
    assert memory[0].got == [(1, {"x": 1.0}), (2, {"x": 2.0})]
    with monkeypatch.context() as patch:  # it has something, so the run goes on
        patch.setitem(SINKS, "memory", broken)
        log(tmp_path, 1, 0, 4, **on)
    with RunWriter(tmp_path, step=restored, **on) as w:
        for step in range(restored + 1, 6):
            w.write_metrics(step, {"x": float(step)})
    opening, got = memory[1].opening, dict(memory[1].got[:-1])
    assert got | {1: 0, 2: 0} == {
        1: 0,
        2: 0,
        3: {"x": 3.0},
        4: {"x": 4.0},
        5: {"x": 5.0},
    }
    assert opening.sent == ({2: {"step", "x"}} if restored == 1 else {})
    assert opening.step == min(restored, 2)


def test_a_sink_that_cannot_be_opened_again_is_sent_the_rest_later(
    tmp_path, memory, monkeypatch
):
    on, said = {"sinks": {"memory": "p"}}, []
    log(tmp_path, 1, 4, -1, **on)
    with monkeypatch.context() as patch:
        patch.setitem(SINKS, "memory", broken)
        log(tmp_path, 3, 6, 2, say=said.append, **on)
    assert "memory failed and gets nothing more: OSError: no network" in said[0]
    assert lines(tmp_path, "events.jsonl")[0]["event"] == "sink_failed"
    log(tmp_path, 7, 7, 6, **on)
    assert memory[1].got == [*sent(5, 6, 7), False]


def test_tensorboard_that_is_turned_on_later_has_the_whole_log(tmp_path):
    pytest.importorskip("tensorboardX")
    log(tmp_path, 1, 4, -1)
    log(tmp_path, 5, 5, 4, sinks={"tensorboard": True})
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert file.read_bytes().count(b"timing/seconds") == 5
    kept = json.loads((tmp_path / sinks.IDS).read_text())
    assert kept == {"schema_version": 1}  # it lacks nothing


def test_the_ids_of_a_newer_rm_jax_are_refused_and_older_ones_read(tmp_path, memory):
    path = tmp_path / sinks.IDS
    path.write_text('{"memory": "ab"}')  # as the first files were
    log(tmp_path, 1, 1, 0, sinks={"memory": "p"})
    assert sinks._id("memory", str(tmp_path)) == "ab"
    path.write_text('{"memory": "ab", "schema_version": 2}')
    with pytest.raises(schemas.SchemaError, match=f"{path}: schema_version is 2, "):
        RunWriter(tmp_path, step=1, sinks={"memory": "p"})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_package_that_is_missing_is_named(tmp_path, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    for step in (-1, 4):
        with pytest.raises(ImportError, match=rf"config.train.{name} needs .*\[{name}"):
            RunWriter(tmp_path, step=step, sinks={name: "p"})


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_named_before_anything_is_read(
    name, make, tmp_path, monkeypatch
):
    package = {"tensorboard": "tensorboardX"}.get(name, name)
    on = {f"train__{name}": True if name == "tensorboard" else "p"}
    config = make(**on, data__train="jsonl:not-there.jsonl")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"config.train.{name} needs {package}: pip"):
        train(config, tmp_path / "run")


def test_ids_are_made_once(tmp_path):
    a, b = (sinks._id(name, str(tmp_path)) for name in ("wandb", "trackio"))
    assert a != b and sinks._id("wandb", str(tmp_path)) == a
    kept = json.loads((tmp_path / sinks.IDS).read_text())
    lacks = {"wandb": 0, "trackio": 0}  # neither is open
    assert kept == {
        "schema_version": 1, "wandb": a, "trackio": b, sinks.LACKS: lacks
    }  # fmt: skip


def killed_and_continued(make, tmp_path, monkeypatch, **knobs):
    """A run killed in step 8, with the log at 6 and the checkpoint at 4; continued."""
    config = make(
        **NO_EVAL, train__log_every="1 steps", train__save_every="4 steps", **knobs
    )
    workdir = tmp_path / "run"
    module = importlib.import_module("rm_jax.train")
    real, count = module.run_step, [0]

    def killed(*args):
        count[0] += 1
        if count[0] == 8:
            raise OSError("the power is gone")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_step", killed)
        with pytest.raises(OSError, match="the power"):
            train(config, workdir)
    assert [n["step"] for n in lines(workdir)] == [1, 2, 3, 4, 5, 6]
    train(config, workdir)
    return workdir


def wanted(workdir):
    """(step, name) -> value of every number in metrics.jsonl."""
    return {
        (n["step"], k): v for n in lines(workdir) for k, v in n.items() if k != "step"
    }


def test_trackio_has_each_number_once(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in list(sys.modules):  # it reads TRACKIO_DIR when imported
        if module.partition(".")[0] == "trackio":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    workdir = killed_and_continued(make, tmp_path, monkeypatch, train__trackio="rm")
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as db:
        rows = db.execute("select run_name, step, metrics from metrics").fetchall()
        (config,) = db.execute("select config from configs").fetchone()
    ids = json.loads((workdir / sinks.IDS).read_text())
    assert {name for name, _, _ in rows} == {f"run-{ids['trackio']}"}
    found = [
        ((step, name), value)
        for _, step, text in rows
        for name, value in json.loads(text).items()
        if not name.startswith("timing/")
    ]
    assert len(found) == len(dict(found)) and dict(found) == wanted(workdir)
    assert json.loads(config)["batch"]["examples"] == 8


def records(data):
    """Of a .wandb file, a LevelDB log: a head of 7 bytes, records in 32 KiB blocks."""
    at, parts = 7, []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def read_wandb(folder):
    """Run id, (step, name, value) of all numbers, and config of each offline start."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(folder.rglob("*.wandb")):
        run, numbers, config = None, [], {}
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                run = record.run.run_id
                update = record.run.config.update
                config = {u.key: json.loads(u.value_json) for u in update}
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = row.get("_step", record.history.step.num)
            numbers += [(step, name, value) for name, value in row.items()]
        yield run, numbers, config


def test_wandb_has_each_number_once(make, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    workdir = killed_and_continued(make, tmp_path, monkeypatch, train__wandb="rm")
    starts = list(read_wandb(tmp_path / "wandb"))
    ids = json.loads((workdir / sinks.IDS).read_text())
    assert [run for run, _, _ in starts] == [ids["wandb"]] * 2
    found = [
        ((step, name), value)
        for _, numbers, _ in starts
        for step, name, value in numbers
        if not name.startswith(("timing/", "_"))
    ]
    assert len(found) == len(dict(found)) and dict(found) == wanted(workdir)
    assert all(config["batch"]["examples"] == 8 for _, _, config in starts)
