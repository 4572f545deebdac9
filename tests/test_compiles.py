"""Compilations are counted once each, late ones are said, none comes twice."""

import importlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from tiny import NO_EVAL, lines, train

import rm_jax
from rm_jax import compiles
from rm_jax.compiles import BACKEND, HIT, STAGES, Compiled, compiled
from rm_jax.data.loader import Loader
from rm_jax.losses import LOSSES, REGULARIZERS


def difference(after, before):
    return Compiled(*(a - b for a, b in zip(after, before, strict=True)))


def test_a_program_is_counted_once():
    before = compiled()
    f = jax.jit(lambda x: jax.jit(jnp.sin)(x) + 1)
    x = jnp.ones((3,), jnp.float32)
    f(x).block_until_ready()
    once = difference(compiled(), before)
    f(x).block_until_ready()
    again = difference(compiled(), before)
    assert once == again and once.programs >= 1 and once.seconds > 0


def test_a_stage_inside_another_is_counted_once():
    listener = compiles._Listener()
    trace, lower = STAGES[:2]
    listener.span(trace, 10.0, 11.0)
    listener.span(trace, 12.0, 13.0)
    listener.span(trace, 9.0, 14.0)  # the one that called both
    listener.span(lower, 14.0, 15.0)
    listener.span(BACKEND, 15.0, 18.0)
    listener.span("/jax/something_else", 0.0, 99.0)
    listener.event(HIT)
    listener.event("/jax/something_else")
    found = (listener.programs, listener.hits, listener.seconds)
    assert found == (1, 1, 9.0)
    listener.span(BACKEND, 30.0, 29.0)  # the clock was set back
    assert (listener.programs, listener.seconds) == (2, 9.0)


def test_a_folder_that_jax_was_given_stays(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    assert before and compiles.use_cache(str(tmp_path)) == before
    assert jax.config.jax_compilation_cache_dir == before


def test_a_folder_of_ours_may_be_changed_and_taken_away(monkeypatch):
    told = []

    def tell(folder):
        told.append(folder)
        monkeypatch.setitem(state, "folder", folder or None)

    state = {"folder": None}
    monkeypatch.setattr(compiles, "_ours", "")
    monkeypatch.setattr(compiles.backend, "set_compile_cache", tell)

    class Config:
        jax_compilation_cache_dir = property(lambda self: state["folder"])

    monkeypatch.setattr(compiles.jax, "config", Config())
    home = os.path.expanduser("~")
    assert compiles.use_cache("") == "" and told == []
    assert compiles.use_cache("~/x") == f"{home}/x"
    assert compiles.use_cache("~/x") == f"{home}/x"
    assert compiles.use_cache("gs://b/x") == "gs://b/x"
    assert compiles.use_cache("") == ""
    assert told == [f"{home}/x", "gs://b/x", ""]


def test_nothing_is_compiled_after_warm_up(make, tmp_path):
    """Two chunk shapes, evaluations and saves: each program once, however long."""
    config = make(
        batch__row_lengths="(64, 128)",
        train__duration="16 steps",
        train__log_every="1 steps",
    )
    _, said = train(config, tmp_path / "run")
    counts = [n["compiles"] for n in lines(tmp_path / "run", "timing.jsonl")]
    assert len(counts) == 17 and counts[0] > 0
    # 2: the first save (digests), 4: the first evaluation; then never again.
    assert [i for i, n in enumerate(counts) if n][-1] <= 5 and not any(counts[6:])
    assert "compiled late" not in said


def test_a_chunk_shape_that_comes_late_is_said(make, tmp_path, monkeypatch):
    config = make(
        **NO_EVAL,
        batch__row_lengths="(96, 128)",
        batch__chunk_tokens=1152,
        batch__examples=1,
        train__duration="6 steps",
    )
    module = importlib.import_module("rm_jax.train")
    whole = rm_jax.config.validate(config)
    built = module.build(whole, None, LOSSES, REGULARIZERS, lambda line: None)
    loader = built.training
    both = [{s.length for s in loader.batch_at(step).shapes} for step in range(40)]
    short = next(i for i, s in enumerate(both) if s == {96})
    long = next(i for i, s in enumerate(both) if s == {128})
    real = Loader.batch_at
    late = lambda self, step: real(self, long if step == 4 else short)
    monkeypatch.setattr(Loader, "batch_at", late)
    _, said = train(config, tmp_path / "run")
    (event,) = lines(tmp_path / "run", "events.jsonl")
    assert event == {
        "step": 5, "event": "compiled_late", "programs": 1, "shapes": ["9 x 128"]
    }  # fmt: skip
    assert "step 5: 1 programs compiled late, for its first chunk of 9 x 128" in said


@pytest.mark.slow
def test_a_restarted_run_compiles_nothing(make, tmp_path):
    config = make(train__duration="4 steps")
    config.train.compile_cache = str(tmp_path / "programs")
    hidden = ("JAX_COMPILATION_CACHE_DIR",)
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    found = []
    for name in ("cold", "warm"):
        command = [sys.executable, "-m", "rm_jax", "train", "--config", str(path)]
        command += ["--workdir", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(lines(tmp_path / name, "timing.jsonl"))
    cold, warm = (
        [sum(n[k] for n in f) for k in ("compiles", "cache_hits")] for f in found
    )
    assert cold[0] == warm[0] > 5 and cold[1] == 0 and warm[1] == warm[0]
    both = [
        (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("cold", "warm")
    ]
    assert both[0] == both[1]
