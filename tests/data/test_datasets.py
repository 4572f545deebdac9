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
    with pytest.raises(OSError, match="No space left"):
        train()


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
