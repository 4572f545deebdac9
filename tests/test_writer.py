"""Run files: the same bytes after a kill, exact numbers; progress on any stream."""

import errno
import io
import json
import re
import sys
import time

import numpy as np
import pytest

from rm_jax import progress, store, writer
from rm_jax.eventfile import EventFile
from rm_jax.writer import RunWriter


def open_writer(folder, step=-1, **kwargs) -> RunWriter:
    return RunWriter(folder, step=step, **kwargs)


def train(folder, start: int, stop: int, restored: int | None = None) -> None:
    """Lines of steps start + 1 ... stop; two of every second step."""
    with open_writer(folder, start if restored is None else restored) as w:
        for step in range(start + 1, stop + 1):
            w.write_metrics(step, {"train/loss": 1 / step, "a": step})
            w.write_timing(step, {"seconds": 0.5})
            if step % 2 == 0:
                w.write_metrics(step, {"eval/valid/nll": np.float32(0.1) * step})


def lines(folder, name: str) -> list[dict]:
    return [json.loads(line) for line in store.read_text(folder / name).splitlines()]


@pytest.fixture
def whole(tmp_path):
    train(tmp_path / "whole", 0, 12, restored=-1)
    return store.read_bytes(tmp_path / "whole" / "metrics.jsonl")


@pytest.mark.parametrize("tail", [b"", b'{"step": 9, "train/lo', b"\0\0\0", b'{"step"'])
def test_a_killed_run_leaves_the_same_bytes(tmp_path, whole, tail):
    run = tmp_path / "run"
    for saved, killed in ((0, 5), (4, 9), (8, 11)):
        train(run, saved, killed, restored=saved or -1)
        with open(run / "metrics.jsonl", "ab") as file:
            file.write(tail)
    train(run, 10, 12)
    assert store.read_bytes(run / "metrics.jsonl") == whole


def test_a_run_killed_at_any_byte_leaves_the_same_bytes(tmp_path, whole):
    saved = 4
    first = whole.index(b'{"step": 5')
    for end in range(first, len(whole) + 1, 7):
        run = tmp_path / str(end)
        store.makedirs(run)
        (run / "metrics.jsonl").write_bytes(whole[:end])
        train(run, saved, 12)
        assert store.read_bytes(run / "metrics.jsonl") == whole, end


@pytest.mark.parametrize(
    ("keep", "loud"), [(None, False), (0, True), (1, True), (4, True), (99, False)]
)
def test_lines_that_are_lost_are_said(tmp_path, keep, loud):
    """`keep` lines are left; None: nothing is known of the checkpoint."""
    with open_writer(tmp_path) as w:
        for step in range(1, 7):
            w.write_metrics(step, {"é": step, "nan": np.nan})
            saved = w.size if step <= 5 else saved
    path, said = tmp_path / "metrics.jsonl", []
    first = path.read_bytes().splitlines(keepends=True)
    assert saved == len(b"".join(first[:5])) < path.stat().st_size
    path.write_bytes(b"".join(first[:keep]))
    if keep == 0:
        path.unlink()
    size = None if keep is None else saved
    with open_writer(tmp_path, step=5, size=size, say=said.append) as w:
        left = w.size
        assert left == (path.stat().st_size if path.exists() else 0)
    assert bool(said) == loud == (tmp_path / "events.jsonl").exists()
    if loud:
        (event,) = lines(tmp_path, "events.jsonl")
        assert event == {
            "step": 5, "event": "metrics_differ", "file": str(path), "bytes": left,
            "saved": saved,
        }  # fmt: skip
        assert f"{path} has {left} bytes up to step 5, it had {saved}" in said[0]


def test_the_size_of_a_log_in_a_bucket(tmp_path):
    import uuid

    said, bucket = [], f"memory://bucket-{uuid.uuid4().hex}"
    with open_writer(bucket) as w:
        w.write_metrics(1, {"x": 1.0})
        size = w.size
    open_writer(bucket, step=1, size=size, say=said.append).close()
    assert said == [] and size == len(store.read_bytes(f"{bucket}/metrics.jsonl"))
    store.truncate(f"{bucket}/metrics.jsonl", 0)
    open_writer(bucket, step=1, size=size, say=said.append).close()
    assert len(said) == 1 and f"{bucket}/metrics.jsonl has 0 bytes" in said[0]


def test_starting_from_scratch_removes_every_line(tmp_path):
    with open_writer(tmp_path) as w:
        w.write_metrics(0, {"eval/valid/nll": 1.0})
    open_writer(tmp_path, step=0).close()
    assert len(lines(tmp_path, "metrics.jsonl")) == 1
    open_writer(tmp_path, step=-1).close()
    assert lines(tmp_path, "metrics.jsonl") == []


def test_timing_and_events_are_kept_but_not_torn_lines(tmp_path):
    with open_writer(tmp_path) as w:
        w.write_timing(7, {"seconds": 1.0})
        w.write_event(7, "started", devices=2)
    for name in ("timing.jsonl", "events.jsonl"):
        with open(tmp_path / name, "ab") as file:
            file.write(b'{"step": 8, "se')
    with open_writer(tmp_path, step=3) as w:
        w.write_timing(4, {"seconds": 2.0})
        w.alarm(4, "test", "too good: 1.0")
    assert lines(tmp_path, "timing.jsonl") == [
        {"step": 7, "seconds": 1.0},
        {"step": 4, "seconds": 2.0},
    ]
    assert lines(tmp_path, "events.jsonl") == [
        {"step": 7, "event": "started", "devices": 2},
        {"step": 4, "event": "alarm", "name": "test", "message": "too good: 1.0"},
    ]


def test_an_event_about_another_step(tmp_path):
    with open_writer(tmp_path) as w:
        w.write_event(4, "damaged_checkpoint", step=8, why="a\nb")
    (line,) = lines(tmp_path, "events.jsonl")
    assert line == {"step": 8, "event": "damaged_checkpoint", "why": "a\nb"}


def test_a_line_of_somebody_else_is_refused_and_left_alone(tmp_path):
    text = '{"step": 1}\nhello\n{"step": 2}\n'
    store.write_text(tmp_path / "metrics.jsonl", text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: this line .*hello"):
        open_writer(tmp_path, step=5)
    assert store.read_text(tmp_path / "metrics.jsonl") == text


def test_numbers_keep_every_bit_and_keys_are_sorted(tmp_path):
    values = {"b": 0.1 + 0.2, "a": np.float32(0.1), "c": 5e-324, "n": np.int64(2**60)}
    with open_writer(tmp_path) as w:
        w.write_metrics(1, values)
        w.write_metrics(2, {"array": np.ones((1, 1)), "whole": 3.0})
    one, two = store.read_text(tmp_path / "metrics.jsonl").splitlines()
    assert list(json.loads(one)) == ["step", "a", "b", "c", "n"]
    assert {k: json.loads(one)[k] for k in values} == {
        k: v.item() if hasattr(v, "item") else v for k, v in values.items()
    }
    assert two == '{"step": 2, "array": 1.0, "whole": 3.0}'


def test_nan_is_text_that_float_reads(tmp_path):
    values = {"a": float("nan"), "b": float("inf"), "c": np.float32("-inf")}
    with open_writer(tmp_path) as w:
        w.write_metrics(1, values)
    (line,) = lines(tmp_path, "metrics.jsonl")
    assert line == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}
    assert np.isnan(float(line["a"])) and float(line["c"]) == -np.inf


def test_jax_scalars_are_numbers(tmp_path):
    import jax.numpy as jnp

    with open_writer(tmp_path) as w:
        w.write_metrics(jnp.int32(3), {"x": jnp.bfloat16(1.5), "y": jnp.float32(0.25)})
    assert lines(tmp_path, "metrics.jsonl") == [{"step": 3, "x": 1.5, "y": 0.25}]


@pytest.mark.parametrize("value", ["0.5", None, True, [1.0, 2.0], np.zeros(0), 1j, {}])
def test_what_is_not_one_number_is_refused(tmp_path, value):
    with (
        open_writer(tmp_path) as w,
        pytest.raises(ValueError, match="metric 'loss' is"),
    ):
        w.write_metrics(1, {"loss": value})
    assert not store.exists(tmp_path / "metrics.jsonl")


def test_metrics_must_not_go_back(tmp_path):
    with open_writer(tmp_path, step=4) as w:
        w.write_metrics(5, {"x": 1})
        w.write_metrics(5, {"y": 1})
        with pytest.raises(ValueError, match="of step 4 come after those of step 5"):
            w.write_metrics(4, {"x": 1})
        with pytest.raises(ValueError, match="cannot be called 'step'"):
            w.write_metrics(6, {"step": 1})


def test_to_json_of_what_is_no_json_names_it():
    with pytest.raises(ValueError, match=r"run\.a\[1\] is a set"):
        writer.to_json({"a": [1, {2}]}, "run")
    assert writer.to_json({1: np.array([[np.nan, 1]]), "t": (None, True, "x")}) == {
        "1": [["NaN", 1.0]],
        "t": [None, True, "x"],
    }


def test_an_inactive_writer_writes_nothing(tmp_path):
    folder = tmp_path / "other"
    with RunWriter(folder, step=-1, sinks={"tensorboard": True}, active=False) as w:
        w.write_metrics(1, {"x": 1})
        w.write_timing(1, {"x": 1})
        w.write_event(1, "x")
        w.add_histogram(1, "x", np.zeros(3))
        w.flush()
        assert w.size == w._append(writer.METRICS, {"step": 1}) == 0
    assert not store.exists(folder)


def test_tensorboard_has_scalars_and_histograms(tmp_path):
    with RunWriter(tmp_path, step=-1, sinks={"tensorboard": True}) as w:
        (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
        empty = file.stat().st_size
        w.write_metrics(1, {"train/loss": 0.5})
        w.write_timing(1, {"seconds": 0.5})
        w.add_histogram(1, "scores", np.arange(9.0))
        w.add_histogram(1, "gaps", np.array([np.nan, 1.0]))
        w.add_histogram(1, "nothing", np.zeros(0))
    assert file.stat().st_size > empty
    known = rb"(?:train/|timing/|scores|gaps|nothing)[a-z/]*"
    names = set(re.findall(known, file.read_bytes()))
    wanted = {b"train/loss", b"timing/seconds", b"scores", b"gaps", b"gaps/nonfinite"}
    assert names == wanted


def tensorboard_events(folder):
    """The events of the only file, each a protocol buffer."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events.out.tfevents.*")
    data, events = file.read_bytes(), []
    while data:  # length and its sum, event and its sum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return events


def test_tensorboard_hides_what_came_after_the_restart(tmp_path):
    (tmp_path / "tensorboard").mkdir()  # of the start before
    RunWriter(tmp_path, step=4, sinks={"tensorboard": True}).close()
    first, start = tensorboard_events(tmp_path / "tensorboard")
    assert first.file_version == "brain.Event:2"
    # TensorBoard drops steps >= that of a START.
    assert (start.step, start.session_log.status) == (5, start.session_log.START)


def test_two_starts_in_one_second_have_event_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    for _ in range(2):
        EventFile(str(tmp_path), 0).close()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_under_tensorboard_is_said(tmp_path, monkeypatch):
    from tensorboardX.event_file_writer import EventsWriter

    def full(self, event):
        raise OSError(errno.ENOSPC, "No space left on device")

    said = []
    w = RunWriter(tmp_path, step=-1, sinks={"tensorboard": True}, say=said.append)
    monkeypatch.setattr(EventsWriter, "write_event", full)
    w.write_metrics(1, {"train/loss": 0.5})
    (line,) = said
    assert f"{tmp_path}/tensorboard: cannot write: No space left" in line


def test_tensorboard_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"rm_jax\[report\]"):
        RunWriter(tmp_path, step=-1, sinks={"tensorboard": True})


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_plain_lines_come_every_so_often_and_at_the_end():
    stream, clock = io.StringIO(), Clock()
    with progress.Progress(40, 10, stream, every=5.0, clock=clock) as p:
        p.say("compiling")
        clock.now += 3  # compilation does not count in the ETA
        for step in range(11, 41):
            p.update(step, {"loss": 0.5} if step % 10 == 1 else None)
            clock.now += 1
    assert stream.getvalue().splitlines() == [
        "compiling",
        "step 13/40 (32%) | loss 0.500, eta 0:27",
        "step 18/40 (45%) | loss 0.500, eta 0:22",
        "step 23/40 (57%) | loss 0.500, eta 0:17",
        "step 28/40 (70%) | loss 0.500, eta 0:12",
        "step 33/40 (82%) | loss 0.500, eta 0:07",
        "step 38/40 (95%) | loss 0.500, eta 0:02",
        "step 40/40 (100%) | loss 0.500",
    ]


def test_a_terminal_gets_a_bar_and_whole_lines():
    stream, clock = Terminal(), Clock()
    with progress.Progress(4, 1, stream, clock=clock) as p:
        p.update(2, {"loss": 0.25, "pairs/s": 1234.5})
        clock.now += 3660
        p.update(3)
        p.say("eval valid: 0.7")
        p.update(4)
    text = stream.getvalue()
    assert "\reval valid: 0.7\n" in text or "\neval valid: 0.7\n" in text
    assert "3/4, loss 0.250, pairs/s 1,234, eta 1:01:00" in text
    assert text.rstrip().endswith("4/4, loss 0.250, pairs/s 1,234")
    assert "100%" in text


def test_an_inactive_progress_says_nothing():
    for stream in (io.StringIO(), Terminal()):
        with progress.Progress(4, 0, stream, active=False, every=0.0) as p:
            p.update(4, {"loss": 1.0})
            p.say("x")
        assert stream.getvalue() == ""
