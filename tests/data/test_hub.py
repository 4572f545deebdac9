"""The revision that is recorded is the commit of the rows that are read."""

import json
import os
import shutil

import pytest

from rm_jax.data.hub import HUB_PATH, hub_table

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


class FakeBuilder:
    """A builder of `datasets`, as far as hub_table looks at one."""

    name = "parquet"

    def __init__(self, folder):
        self.cache_dir = f"/cache/org___name/default/0.0.0/{folder}"

    def download_and_prepare(self):
        pass

    def as_dataset(self):
        return {"train": [{"x": 1}]}


@pytest.fixture
def loads(monkeypatch):
    """Makes the library give a builder, and keeps what it was asked."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def give(folder):
        def load(id, **options):
            asked.append((id, options))
            return FakeBuilder(folder)

        monkeypatch.setattr(datasets, "load_dataset_builder", load)
        return asked

    return give


@pytest.mark.parametrize("revision", ["", "main", "v1", COMMIT])
def test_the_revision_is_the_commit_whatever_was_named(loads, revision):
    asked = loads(COMMIT)
    table = hub_table("org/name", revision)
    assert table.revision == COMMIT and table.path == f"org/name@{COMMIT}"
    assert asked[0][1]["revision"] == (revision or None)


@pytest.mark.parametrize(
    ("path", "name", "data_dir"),
    [
        ("org/name", None, None),
        ("org/name:axis", "axis", None),
        ("org/name:axis/", None, "axis"),
        ("org/name:data/axis/", None, "data/axis"),
    ],
)
def test_a_config_or_a_folder_is_passed_on(loads, path, name, data_dir):
    asked = loads(COMMIT)
    table = hub_table(path, "")
    options = {"name": name, "data_dir": data_dir, "revision": None}
    assert asked == [("org/name", options)]
    assert table.name == "org/name" and table.digest == f"{path}@{COMMIT}"


@pytest.mark.parametrize("path", ["name", "a/b/c", "a/b:", "a/b:c:d", "a/b:/", "/a/b"])
def test_what_is_no_hub_path(path):
    assert not HUB_PATH.fullmatch(path)


@pytest.mark.parametrize("folder", ["2b48ed4c2f3a6ae5", "a" * 64, COMMIT.upper(), ""])
def test_rows_of_an_old_cache_have_no_commit_and_say_so(loads, folder):
    loads(folder)
    table = hub_table("org/name", "main")
    assert table.revision == f"unknown (cache folder {folder})"
    assert table.digest == f"org/name@{table.revision}"


def test_a_loading_script_names_the_way_out(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(id, **options):
        why = "Dataset scripts are no longer supported, but found name.py"
        raise RuntimeError(why)

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(ValueError, match="name.py; .*CONFIG/@refs/convert/parquet"):
        hub_table("org/name", "")


# the library itself, offline, with a cache that a run with a network left behind


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Puts a data set `org/name` into the cache of `datasets`, in a folder's name."""
    datasets = pytest.importorskip("datasets")
    if not datasets.config.HF_HUB_OFFLINE:
        pytest.skip("HF_HUB_OFFLINE was not set before `datasets` was imported")
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    source = tmp_path / "rows.jsonl"
    source.write_text('{"x": 1}\n{"x": 2}\n')

    def put(folder):
        built = datasets.load_dataset_builder("json", data_files=str(source))
        built.download_and_prepare()
        target = cache / "org___name" / "default" / "0.0.0" / folder
        shutil.move(built.cache_dir, target)
        os.rename(target / "json-train.arrow", target / "name-train.arrow")
        info = json.loads((target / "dataset_info.json").read_text())
        info |= {"config_name": "default", "dataset_name": "name"}
        (target / "dataset_info.json").write_text(json.dumps(info))

    return put


@pytest.fixture
def known(monkeypatch, tmp_path):
    """Writes what a branch was when the hub was last asked, as its client does."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(revision, commit):
        path = tmp_path / "hub" / "datasets--org--name" / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)

    return put


def test_offline_the_commit_is_that_of_the_cache(cached, known):
    cached(COMMIT)
    for revision in ("", COMMIT):
        table = hub_table("org/name", revision)
        assert table.revision == COMMIT
        assert [row for _, row in table.splits["train"]()] == [{"x": 1}, {"x": 2}]
    known("refs/convert/parquet", COMMIT)
    assert hub_table("org/name", "refs/convert/parquet").revision == COMMIT


def test_offline_another_revision_is_not_taken_for_the_one_asked(cached, known):
    cached(COMMIT)  # the library would give it, whatever revision is asked
    with pytest.raises(ValueError, match=f"holds {COMMIT}, .* wanted is {OTHER}"):
        hub_table("org/name", OTHER)
    with pytest.raises(ValueError, match=f"holds {COMMIT}, .* wanted is not known"):
        hub_table("org/name", "v1")
    known("v1", OTHER)
    with pytest.raises(ValueError, match=f"org/name@v1: .* wanted is {OTHER}"):
        hub_table("org/name", "v1")


def test_offline_an_old_cache_has_no_commit(cached, known):
    cached("2b48ed4c2f3a6ae5")
    found = hub_table("org/name", "").revision
    assert found == "unknown (cache folder 2b48ed4c2f3a6ae5)"
    with pytest.raises(ValueError, match="holds unknown .cache folder 2b48"):
        hub_table("org/name", COMMIT)
