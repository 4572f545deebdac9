"""W&B and trackio, offline: one run over restarts, each number once; failures."""

import importlib
import json
import sqlite3
import struct
import sys

import pytest
from tiny import NO_EVAL, lines, train

from rm_jax import sinks
from rm_jax.sinks import SINKS, Sink
from rm_jax.writer import RunWriter


class Memory(Sink):
    """Keeps what it gets, and the opening."""

    def __init__(self, opening):
        self.opening, self.got = opening, []

    def metrics(self, step, values):
        self.got.append((step, dict(values)))

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
        (2, {"x": 1.0}), (4, {"x": 2.0}), (4, {"eval/x": 3.0}), False
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


def test_a_new_run_does_not_begin_without_its_sink_but_goes_on(tmp_path, monkeypatch):
    def broken(opening):
        raise OSError("no network")

    monkeypatch.setitem(SINKS, "memory", broken)
    with pytest.raises(RuntimeError, match="config.train.memory: no network"):
        RunWriter(tmp_path, step=-1, sinks={"memory": "p"})
    with RunWriter(tmp_path, step=0, sinks={"memory": "p"}) as w:
        w.write_metrics(1, {"x": 1.0})
    assert lines(tmp_path, "events.jsonl")[0]["event"] == "sink_failed"


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
    assert json.loads((tmp_path / sinks.IDS).read_text()) == {"wandb": a, "trackio": b}


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
