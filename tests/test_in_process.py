"""As in a notebook: interrupts save and return, and runs follow one another."""

import importlib
import os
import signal
import threading

import pytest
from tiny import arrays, lines, train

import rm_jax
from rm_jax import cluster, evaluation
from rm_jax.build import build
from rm_jax.data import datasets
from rm_jax.losses import LOSSES, REGULARIZERS

train_module = importlib.import_module("rm_jax.train")


@pytest.fixture(scope="module")
def straight(make, tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(make(), folder)
    return folder


@pytest.fixture
def nothing_left():
    """Signal handlers come back and our threads end, whatever the test does.

    A shell starts what is in the background with SIGINT ignored: not here.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = [signal.getsignal(n) for n in numbers]
    yield
    assert [signal.getsignal(n) for n in numbers] == handlers
    assert ours() == []
    signal.signal(signal.SIGINT, before)


def ours():
    """Names of our threads that run."""
    return [t.name for t in threading.enumerate() if t.name.startswith("rm_jax")]


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_in_a_step_then_another_run_then_continued(
    straight, make, tmp_path, stop_after, nothing_left
):
    stop_after(3, signal.SIGINT)
    done, said = train(make(), tmp_path / "run")
    assert done is None and "SIGINT: saved step 3; the same command continues" in said
    stop_after(10**9)
    other, _ = train(make(model__d_ff=24, train__ema=0), tmp_path / "other")
    assert set(other) == {"valid"}
    done, said = train(make(), tmp_path / "run")
    assert set(done) == {"valid"} and "at step 3 of 8" in said
    assert lines(tmp_path / "run") == lines(straight)
    assert arrays(tmp_path / "run", 8) == arrays(straight, 8)
    model = rm_jax.load(str(tmp_path / "run"))
    assert len(model.score("What is 2 + 2?", ["4", "5"])) == 2


def test_interrupted_in_an_evaluation(
    straight, make, tmp_path, monkeypatch, nothing_left
):
    real = evaluation.score_table
    with monkeypatch.context() as patch:
        patch.setattr(
            evaluation, "score_table", lambda *args: interrupt() or real(*args)
        )
        done, said = train(make(), tmp_path / "run")
    assert done is None and "SIGINT: saved step 4" in said
    train(make(), tmp_path / "run")
    assert lines(tmp_path / "run") == lines(straight)
    assert arrays(tmp_path / "run", 8) == arrays(straight, 8)


def test_interrupted_while_tokenising(make, tmp_path, monkeypatch, nothing_left):
    """Nothing is saved yet, so it just ends; what was begun is done again."""
    config = make(train__duration="2 steps", data__cache_dir=str(tmp_path / "tokens"))
    real = datasets.cache.tokenised

    def interrupted(records, *rest):
        def few():
            for n, record in enumerate(records):
                if n == 5:
                    interrupt()
                yield record

        return real(few(), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.cache, "tokenised", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "tokens").glob("*.tmp"))
    assert set(train(config, tmp_path / "run")[0]) == {"valid"}


@pytest.mark.parametrize(
    ("number", "want"),
    [
        (signal.SIGINT, "SIGINT: saving; once more ends without\n"),
        (signal.SIGTERM, "SIGTERM: saving; Ctrl-C ends without\n"),
    ],
)
def test_the_first_signal_says_what_comes(number, want, capfd, nothing_left):
    with cluster.signals() as stop:
        os.kill(os.getpid(), number)
        assert capfd.readouterr().err == want and stop.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert capfd.readouterr().err == ""


def test_a_second_interrupt_ends_at_once(make, tmp_path, monkeypatch, nothing_left):
    real = train_module.run_step
    twice = lambda *args: interrupt() or interrupt() or real(*args)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "run_step", twice)
        with pytest.raises(KeyboardInterrupt):
            train(make(), tmp_path / "run")
    assert set(train(make(), tmp_path / "run")[0]) == {"valid"}


def test_an_error_leaves_no_thread_behind(make, tmp_path, monkeypatch, nothing_left):
    def broken(*args):
        raise OSError("the power is gone")

    monkeypatch.setattr(train_module, "run_step", broken)
    with pytest.raises(OSError, match="the power") as error:
        train(make(), tmp_path / "run")
    assert ours() == [] and error.tb  # which a notebook keeps, and all frames with it


def test_one_batch_over_and_over_is_learnt_by_heart(make, tmp_path, stop_after):
    config = make(
        data__eval="{}",
        train__keep_best=0,
        train__overfit_one_batch=True,
        train__ema=0,
        model__dropout=0.0,
        train__duration="60 steps",
        train__save_every="60 steps",
        train__log_every="10 steps",
        optim__schedule="constant",
        optim__learning_rate=0.03,
    )
    train(config, tmp_path / "straight")
    losses = [n["train/loss"] for n in lines(tmp_path / "straight")]
    assert losses[-1] < 0.05 and losses[-1] < losses[0] / 5
    stop_after(33)
    assert train(config, tmp_path / "run")[0] is None
    stop_after(10**9)
    train(config, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")
    assert arrays(tmp_path / "run", 60) == arrays(tmp_path / "straight", 60)


def test_one_batch_has_the_examples_of_the_first(make):
    def examples(step, **knobs):
        config = rm_jax.config.validate(make(**knobs))
        built = build(config, None, LOSSES, REGULARIZERS, lambda line: None)
        return sorted(item.example for item in built.training.loaders[0].items_at(step))

    first = examples(0)
    assert examples(7) != first
    for step in (0, 1, 7, 1000):
        assert examples(step, train__overfit_one_batch=True) == first
