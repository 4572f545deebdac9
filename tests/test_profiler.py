"""A trace of the steps that were asked for, of no others, and none by default."""

import jax
import jax.numpy as jnp
import pytest
from tiny import NO_EVAL, train

from rm_jax.config import ConfigError
from rm_jax.limits import parse_span
from rm_jax.profiler import Profiler


@pytest.fixture
def traced(monkeypatch):
    """Calls of jax's profiler, without the profiler."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda d: calls.append(d))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def turns(span, steps, traced, total=9):
    """After each turn, how many calls there were."""
    with Profiler(span, "run", total) as profiler:
        counts = [profiler.turn(s, jnp.zeros(())) or len(traced) for s in steps]
    return counts


def test_it_begins_before_start_and_ends_before_stop(traced):
    assert turns("2:4", range(6), traced) == [0, 0, 1, 1, 2, 2]
    assert traced == ["run/profile", "stop"]


def test_a_run_that_is_continued_amid_the_steps_traces_the_rest(traced):
    assert turns("2:4", (3, 4, 5), traced) == [1, 2, 2]
    assert turns("2:4", (4, 5), traced) == [2, 2]


def test_a_trace_that_is_open_at_the_end_is_ended(traced):
    assert turns("2:9", (2, 3), traced) == [1, 1] and traced[-1] == "stop"


def test_off_and_on_other_processes_nothing_is_traced(traced):
    assert turns("", range(4), traced) == [0] * 4
    with Profiler("0:2", "run", 9, active=False) as profiler:
        profiler.turn(0, None)
    assert traced == []


@pytest.mark.parametrize("text", ["3", "3:3", "4:3", "-1:3", "a:b", "1:2:3", " 1:2"])
def test_what_is_no_span_is_refused(text, make):
    with pytest.raises(ConfigError, match="config.train.profile = .*START:STOP"):
        parse_span(text)
    with pytest.raises(ConfigError, match="config.train.profile = .*START:STOP"):
        make(train__profile=text) and train(make(train__profile=text), "nowhere")


def test_steps_after_the_end_are_refused_before_anything_is_written(make, tmp_path):
    config = make(**NO_EVAL, train__profile="7:9")
    with pytest.raises(ConfigError, match="'7:9': the run ends at step 8"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_where_the_trace_would_go_is_refused_at_the_start(tmp_path):
    (tmp_path / "profile").write_text("mine")
    with pytest.raises(ConfigError, match=f"{tmp_path}/profile is a file"):
        Profiler("0:2", str(tmp_path), 9)
    Profiler("", str(tmp_path), 9)
    Profiler("0:2", str(tmp_path), 9, active=False)


def test_a_trace_appears(make, tmp_path):
    config = make(**NO_EVAL, train__profile="1:2", train__duration="3 steps")
    train(config, tmp_path / "run")
    (file,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert file.stat().st_size > 1000
    train(make(**NO_EVAL, train__duration="3 steps"), tmp_path / "off")
    assert not (tmp_path / "off" / "profile").exists()


@pytest.mark.parametrize("name", ["start_trace", "stop_trace"])
def test_a_trace_that_fails_is_said_and_tried_no_more(traced, monkeypatch, name):
    def fails(*_):
        raise RuntimeError("disk\n full")

    monkeypatch.setattr(jax.profiler, name, fails)
    said = []
    with Profiler("1:3", "run", 9, say=said.append) as profiler:
        for step in range(5):
            profiler.turn(step, jnp.zeros(()))
    assert said == ["WARNING no trace in run/profile: disk full"]
