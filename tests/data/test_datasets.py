"""The tokenizer that a run trains: written whole, once, by whoever is first."""

import json
import os

import pytest

import rm_jax
from rm_jax.data import datasets, tokenizers

KNOBS = {"columns": {}, "world": {}, "on_bad_row": "raise"}
KNOBS |= {"valid_fraction": 0.1, "test_fraction": 0.1}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Says what is made; trains in `tmp_path/tokens`."""
    path = tmp_path / "x.jsonl"
    row = {"prompt": "how long?", "responses": ["not long", "long"], "ranks": [0, 1]}
    path.write_text(json.dumps(row) + "\n")
    source = datasets.open_source(f"jsonl:{path}", KNOBS)
    config = {"data": {"cache_dir": str(tmp_path / "tokens")}}
    config["contract"] = {"tokenizer": "bpe:266"}

    def start():
        said = []
        return datasets.make_tokenizer(config, [source], said.append), said

    return start


def test_a_trained_tokenizer_is_kept(train, tmp_path):
    first, said = train()
    again, silent = train()
    assert len(said) == 1 and not silent
    assert first.get_vocab() == again.get_vocab()
    assert len(os.listdir(tmp_path / "tokens/tokenizers")) == 1


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux's /proc")
def test_a_trained_tokenizer_is_on_the_disk_before_it_has_its_name(train, monkeypatch):
    synced, named = set(), []
    fsync, rename = os.fsync, os.rename

    def note(handle):
        synced.add(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def move(old, new):
        named.append(set(os.listdir(old)) - synced)
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", move)
    train()
    assert named == [set()] and "tokenizer.json" in synced


def test_a_tokenizer_that_another_run_finished_first_is_taken(train, monkeypatch):
    save = tokenizers.save_tokenizer

    def late(tokenizer, folder):
        monkeypatch.setattr(datasets, "save_tokenizer", save)
        train()
        save(tokenizer, folder)

    monkeypatch.setattr(datasets, "save_tokenizer", late)
    tokenizer, said = train()
    assert len(said) == 1 and len(tokenizer) == 266


def test_a_full_disk_is_an_error(train, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "tokenizer.json")

    monkeypatch.setattr(datasets, "save_tokenizer", full)
    with pytest.raises(OSError, match="No space left.*config.data.cache_dir"):
        train()


def small(tmp_path):
    loaded = rm_jax.config.load("rm_jax:base")
    loaded.data.cache_dir = str(tmp_path / "tokens")
    loaded.data.world.update({"train": 12, "valid": 6, "test": 1})
    return loaded


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("jsonl:{}/none.jsonl", "none.jsonl: no such file"),
        ("nope.nope:f:{}/none.jsonl", "format 'nope.nope:f' is not a Python"),
        ("tfds:{}/none", "none: no such folder"),
        ("world:#nope", "nope"),
        ("jsonl:{}/x.jsonl@main", "a local path has no revision 'main'"),
    ],
)
def test_what_is_wrong_with_a_source_names_the_knob(tmp_path, spec, why):
    (tmp_path / "x.jsonl").write_text("{}")
    spec, loaded = spec.format(tmp_path), small(tmp_path)
    good = {"spec": "world:", "weight": 1}
    mixed = {"a": good, "b": {"spec": spec, "weight": 1}}
    for train, evals, where in (
        (spec, {}, "config.data.train"),
        (mixed, {}, "config.data.train.b"),
        ("world:", {"held": spec}, "config.data.eval.held"),
    ):
        loaded.data.train, loaded.data.eval = train, evals
        with pytest.raises((ValueError, FileNotFoundError), match=why) as error:
            datasets.open_data(loaded, None, print)
        assert str(error.value).startswith(f"{where}: ")


def test_a_split_that_a_source_of_a_mixture_lacks_names_both(tmp_path):
    loaded = small(tmp_path)
    loaded.data.train = {"a": {"spec": "world:", "weight": 1}}
    loaded.data.eval = {"held": "#nope"}
    with pytest.raises(
        ValueError, match="^config.data.train.a in config.data.eval.held"
    ):
        datasets.open_data(loaded, None, print)


def test_columns_of_all_go_to_those_that_take_them(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"q": "?", "c": "a", "r": "b"}))
    loaded = small(tmp_path)
    loaded.data.columns = {"prompt": "q", "chosen": "c", "rejected": "r"}
    loaded.contract.tokenizer = "byte"
    loaded.data.train = {
        "a": {"spec": f"columns:{tmp_path}/x.jsonl", "weight": 1},
        "b": {"spec": "world:#train", "weight": 1},
    }
    loaded.data.eval = {"held": "world:#valid"}
    assert len(datasets.open_data(loaded, None, print).train) == 13
    with pytest.raises(ValueError, match="'world:#valid' takes no columns"):
        datasets.open_source("world:#valid", loaded.data, columns=loaded.data.columns)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("x" * 256, "want a shorter name: 256 bytes in one of its parts, .* takes 255"),
        ("ü" * 128, "want a shorter name: 256 bytes in one of its parts"),
        ("x/" * 2000, "want a shorter name: .* in the paths of its files"),
        ("a\0b", "it holds a NUL: want the name of a folder"),
        ("\ud800", "want the name of a folder"),
        ("~no_such_user_of_this_machine/x", "want the name of a folder"),
        ("gs://bucket/x", "want a folder of this machine's disk"),
    ],
    ids=["name", "bytes", "path", "nul", "utf-8", "home", "url"],
)
def test_a_cache_dir_that_cannot_be_is_refused_before_data_is_read(name, why):
    loaded = rm_jax.config.load("rm_jax:base")
    loaded.data.cache_dir, loaded.data.train = name, "jsonl:no_such.jsonl"
    with pytest.raises(
        rm_jax.config.ConfigError, match=f"^config.data.cache_dir = .*{why}"
    ):
        datasets.open_data(loaded, None, print)


def test_a_cache_dir_as_long_as_can_be(tmp_path):
    loaded = small(tmp_path)
    room = os.pathconf("/", "PC_PATH_MAX") - 1 - 200 - len(str(tmp_path))
    name = ("/" + "x" * 254) * (room // 255) + "/" + "x" * (room % 255 - 1)
    loaded.data.cache_dir = f"{tmp_path}{name}"
    loaded.data.eval, loaded.contract.tokenizer = {"valid": "#valid"}, "bpe:300"
    said = []
    datasets.open_data(loaded, None, said.append)
    datasets.open_data(loaded, None, said.append)
    assert sum("tokenising" in line for line in said) == 2
    assert sum("training tokenizer" in line for line in said) == 1


@pytest.mark.parametrize("damage", ["[]", '{"same": 4, "more": 1}', "{", None])
def test_a_damaged_overlap_is_found_again(tmp_path, damage):
    """None: a count is edited, which the seal tells."""
    loaded = rm_jax.config.load("rm_jax:base")
    loaded.data.cache_dir = str(tmp_path / "tokens")
    loaded.data.train, loaded.data.eval = "world:#train", {"valid": "world:#valid"}
    loaded.data.world.update({"train": 12, "valid": 6, "test": 1})
    said = []
    first = datasets.open_data(loaded, None, said.append).contamination
    (path,) = (tmp_path / "tokens/overlaps").iterdir()
    good = path.read_text()
    same = json.loads(good)["same"]
    path.write_text(damage or good.replace(f'"same": {same}', f'"same": {same + 1}'))
    assert path.read_text() != good
    assert datasets.open_data(loaded, None, said.append).contamination == first
    assert path.read_text() == good
    assert sum("found again" in line for line in said) == 1


def test_pairs_of_rankings_have_the_tokenizer_of_the_whole(tmp_path):
    loaded = small(tmp_path)
    loaded.data.world.update({"train": 40, "responses": 5})
    loaded.data.train = "world:#train"
    loaded.data.eval, loaded.contract.tokenizer = {}, "bpe:400"
    loaded.data.cache_dir = str(tmp_path / "whole")
    whole = datasets.open_data(loaded, None, print)
    loaded.data.rankings, loaded.data.cache_dir = "pairs", str(tmp_path / "pairs")
    pairs = datasets.open_data(loaded, None, print)
    assert pairs.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert (len(whole.train), len(pairs.train)) == (40, 400)
