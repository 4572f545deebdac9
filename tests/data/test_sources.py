import builtins
import gzip
import json
import os
import pathlib
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

from rm_jax.data import hub
from rm_jax.data.files import read_rows
from rm_jax.data.schema import Message, Record, RowError
from rm_jax.data.sources import Spec, open_source, parse_spec, prepare
from rm_jax.data.splits import Table, part_of, plan


def rows(n=40):
    return [
        {"prompt": f"question {i}?", "responses": [f"a{i}", f"b{i}"], "ranks": [0, 1]}
        for i in range(n)
    ]


def write(path, values):
    text = "".join(json.dumps(v) + "\n" for v in values)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "pairs.jsonl", rows())


def ids(spec, **options):
    return [r.id for r in open_source(spec, **options).records()]


# SPEC


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("hh:a/b.jsonl.gz", Spec("hh", "a/b.jsonl.gz")),
        ("hf:org/name@abc#test", Spec("hf", "org/name", "abc", "test")),
        ("trl:org/name#test", Spec("trl", "org/name", "", "test")),
        ("tfds:dir/x#valid", Spec("tfds", "dir/x", "", "valid")),
        ("world:", Spec("world", "")),
        ("world:#test", Spec("world", "", "", "test")),
        ("a.b:f:x.jsonl#test", Spec("a.b:f", "x.jsonl", "", "test")),
        ("hh:gs://x/y.jsonl", Spec("hh", "gs://x/y.jsonl")),
    ],
)
def test_spec_is_taken_apart_and_written_back(text, spec):
    assert parse_spec(text) == spec and str(spec) == text


@pytest.mark.parametrize("text", ["", "hh", "hh:", ":x", "hh:#train", "x.jsonl"])
def test_half_a_spec_says_what_is_wanted(text):
    with pytest.raises(ValueError, match="format:path.*truthfulqa_judge"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset:tulu3#", "SPEC 'preset:tulu3#': no split after #: name one, or leave"),
        ("preset:tulu3@", "SPEC 'preset:tulu3@': no revision after @: name one"),
        ("preset:tulu3@#train", "no revision after @"),
        ("preset:tulu3@main#", "no split after #"),
        ("hf:org/name@#", "no revision after @"),
        ("jsonl:no_such.jsonl#", "no split after #"),
        ("tfds:no_such@", "no revision after @"),
        ("world:#", "SPEC 'world:#': no split after #"),
        ("world:@", "no revision after @"),
        ("a.b:f:x.jsonl#", "no split after #"),
    ],
)
def test_a_mark_with_nothing_after_it_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_spec(text)


def test_a_file_with_a_mark_and_nothing_after_it(file):
    with pytest.raises(ValueError, match="no split after #"):
        open_source(f"jsonl:{file}#")


def test_a_tfds_directory_has_no_revision(tmp_path):
    with pytest.raises(ValueError, match="'tfds:.*@v2': a TFDS directory has no rev"):
        open_source(f"tfds:{tmp_path}@v2")


@pytest.mark.parametrize("spec", ["jsonl:{}", "tfds:{}", "preset:tulu3", "os:stat:{}"])
def test_columns_of_a_format_that_takes_none_are_refused(file, spec):
    spec = spec.format(file)
    with pytest.raises(
        ValueError, match=f"'{spec}' takes no columns, got .*'q'.*'columns', 'hf'"
    ):
        open_source(spec, columns={"prompt": "q"})


def test_a_path_that_exists_may_hold_the_marks(tmp_path):
    path = write(tmp_path / "a@b#c.jsonl", rows())
    assert parse_spec(f"jsonl:{path}") == Spec("jsonl", path)
    assert parse_spec(f"jsonl:{path}#test") == Spec("jsonl", path, "", "test")


# local files


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "json.gz", "parquet"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, kind):
    path = tmp_path / f"pairs.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), path)
    elif "jsonl" in kind:
        write(path, rows())
    else:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt") as out:
            json.dump({"version": 1, "data": rows()}, out)
    source = open_source(f"jsonl:{path}")
    found = list(source.records())
    assert [r.id for r in found] == [f"pairs:{i}" for i in range(1, 41)]
    assert found[2].prompt == (Message("user", "question 2?"),)
    assert found[2].ranks == (0, 1) and found[2].source == "pairs"
    assert source.name == "pairs"


def test_a_source_can_be_read_again_and_counts_once(file):
    source = open_source(f"jsonl:{file}")
    assert list(source.records()) == list(source.records())
    assert source.info["rows"] == source.info["records"] == 40
    next(source.records())  # one that is broken off leaves the counts alone
    assert source.info["rows"] == 40 and source.info["bad_rows"] == 0
    assert source.info["path"] == file and source.info["revision"] == ""


def test_records_are_streamed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(rows()[0]) + "\nnot json\n")
    assert next(open_source(f"jsonl:{path}").records()).id == "a:1"


def test_limit_is_the_first_records(file):
    assert ids(f"jsonl:{file}", limit=3) == ["pairs:1", "pairs:2", "pairs:3"]
    assert len(ids(f"jsonl:{file}", limit=0)) == 40
    half = {"valid_fraction": 0, "test_fraction": 0.5}
    everything = ids(f"jsonl:{file}#test", **half)
    assert ids(f"jsonl:{file}#test", limit=2, **half) == everything[:2]


def test_a_row_keeps_its_own_id_and_source(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**rows()[0], "id": "x", "source": "y"}])
    [record] = open_source(f"jsonl:{path}").records()
    assert (record.id, record.source) == ("x", "y")


def test_columns_reach_the_format(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"q": "?", "good": "x", "bad": "y"}])
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    for name in ("columns", "hf"):
        [record] = open_source(f"{name}:{path}", columns=columns).records()
        assert [r[0].content for r in record.responses] == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b'[{"a": 1}', "json", "not JSON.*line 1"),
        (b'{"a": [], "b": []}', "json", r"one list.*\['a', 'b'\]"),
        (b"3", "json", "want a list"),
        (b"PAR1", "parquet", "damaged or no parquet"),
        (
            b"PAR1" + b"\xff" * 40 + b"\x10\0\0\0PAR1",
            "parquet",
            "damaged or no parquet",
        ),
        (b"[" * 10**5 + b"]" * 10**5, "json", "nested too deeply"),
        (b'["\xff"]', "json", "not JSON.*utf-8"),
        (b"\x1f\x8b\x08", "jsonl.gz", "damaged or cut off"),
        (b"plain", "jsonl.gz", "damaged or cut off"),
        (b"a,b", "csv", "unknown kind of file; known.*parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, kind, message):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.{kind}: .*{message}|{message}") as error:
        list(open_source(f"jsonl:{path}").records())
    assert str(path) in str(error.value)


def test_a_gz_file_cut_off_in_the_middle_is_an_error_not_an_end(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    write(path, rows(2000))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged or cut off"):
        list(open_source(f"jsonl:{path}").records())


def test_a_damaged_parquet_file_is_one_line_with_its_name(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"a": ["é"] * 2000})
    pyarrow.parquet.write_table(table, path, compression="none")
    whole = path.read_bytes()
    harms = [whole[:i] + b"\xff" * 12 + whole[i + 12 :] for i in (4, 40, 99)]
    harms += [b"", whole[:-9], whole.replace("é".encode(), b"\xff\xff")]
    for harm in harms:
        path.write_bytes(harm)
        with pytest.raises(ValueError, match="a.parquet: damaged or no") as error:
            list(read_rows(str(path)))
        assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no_such.jsonl: no such file"):
        open_source(f"hh:{tmp_path}/no_such.jsonl")
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(read_rows(str(tmp_path / "x.jsonl")))


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_no_rows_is_an_error(tmp_path, content):
    path = tmp_path / ("a.json" if content == "[]" else "a.jsonl")
    path.write_text(content)
    with pytest.raises(ValueError, match="a.json.* has no records: 0 rows read"):
        list(open_source(f"jsonl:{path}").records())


# bad rows

BAD = [
    rows()[0],
    {"prompt": "q", "responses": []},
    "text",
    {"prompt": "q", "responses": ["a"], "ranks": ["x"]},
    rows()[1],
]


def test_a_bad_row_raises_with_file_line_and_field(tmp_path):
    path = write(tmp_path / "a.jsonl", BAD)
    with pytest.raises(RowError, match="a.jsonl:2: field 'responses'") as error:
        list(open_source(f"jsonl:{path}").records())
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        b"{nope\n",
        b'{"prompt": "\xff"}\n',
        b'{"a": 1\n',
        b"\0\0\0\n",
        b'{"prompt": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n",
        b'{"strength": ' + b"9" * 5000 + b"}\n",
        rows()[0]["prompt"].encode("utf-16") + b"\n",
    ],
    ids=["word", "utf-8", "open", "nul", "deep", "digits", "utf-16"],
)
def test_a_line_that_is_not_json_names_file_and_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(rows()[0]).encode() + b"\n" + line)
    with pytest.raises(RowError, match="a.jsonl:2: .*not JSON"):
        list(open_source(f"jsonl:{path}").records())
    source = open_source(f"jsonl:{path}", on_bad_row="drop")
    assert len(list(source.records())) == 1 and source.info["bad_rows"] == 1


def test_dropped_rows_are_counted_and_shown(tmp_path):
    path = write(tmp_path / "a.jsonl", BAD)
    source = open_source(f"jsonl:{path}", on_bad_row="drop")
    assert [r.id for r in source.records()] == ["a:1", "a:5"]
    assert source.info["rows"] == 5 and source.info["bad_rows"] == 3
    assert "a.jsonl:2" in source.info["errors"][0]


def test_when_every_row_is_dropped_the_error_says_so(tmp_path):
    path = write(tmp_path / "a.jsonl", BAD[1:4])
    with pytest.raises(ValueError, match="3 rows read, 3 dropped"):
        list(open_source(f"jsonl:{path}", on_bad_row="drop").records())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"on_bad_row": "skip"}, "'skip'"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "sum below 1"),
        ({"valid_fraction": -0.1}, "-0.1"),
        ({"limit": -1}, "limit -1"),
        ({"columns": {"prompt": "q"}}, "takes no columns"),
    ],
)
def test_bad_options_are_named(file, options, named):
    with pytest.raises(ValueError, match=named):
        open_source(f"jsonl:{file}", **options)


# splits


def test_carved_splits_cover_the_file_once(file):
    options = {"valid_fraction": 0.2, "test_fraction": 0.3}
    parts = [ids(f"jsonl:{file}#{s}", **options) for s in ("train", "valid", "test")]
    assert all(parts)
    assert sorted(sum(parts, [])) == sorted(ids(f"jsonl:{file}", **options))


def test_part_is_a_pure_function_of_the_prompt():
    prompt = (Message("user", "question 0?"),)
    u = 0.09038  # first 64 bits of the sha256 of [["user", "question 0?"]], over 2^64
    assert part_of(prompt, 0.0, u + 0.001) == "test"
    assert part_of(prompt, 0.0, u - 0.001) == "train"
    assert part_of(prompt, 0.002, u - 0.001) == "valid"
    assert part_of((Message("user", " question 0?\n"),), 0.002, u - 0.001) == "valid"


def test_shares_are_as_asked():
    parts = [
        part_of((Message("user", str(i)),), valid_fraction=0.1, test_fraction=0.3)
        for i in range(4000)
    ]
    # 4 standard deviations of a binomial share at n = 4000
    assert abs(parts.count("test") / 4000 - 0.3) < 0.029
    assert abs(parts.count("valid") / 4000 - 0.1) < 0.019


def table(*splits):
    return Table("t", "path/t", "", "", {s: lambda: iter(()) for s in splits})


@pytest.mark.parametrize(
    ("native", "split", "expected"),
    [
        (["train"], "", ("train", None)),
        (["train"], "train", ("train", ("train",))),
        (["train"], "valid", ("train", ("valid",))),
        (["train"], "test", ("train", ("test",))),
        (["train", "test"], "test", ("test", None)),
        # what is native is not carved, so that part stays in train
        (["train", "test"], "train", ("train", ("train", "test"))),
        (["train", "test"], "valid", ("train", ("valid",))),
        (["train", "test"], "", ("train", None)),
        (["train", "validation", "test"], "valid", ("validation", None)),
        (["train", "validation", "test"], "train", ("train", None)),
        (["train", "validation"], "train", ("train", ("train", "valid"))),
        (["test"], "", ("test", None)),
        (["train", "extra"], "extra", ("extra", None)),
    ],
)
def test_plan_of_a_split(native, split, expected):
    assert plan(table(*native), split) == expected


@pytest.mark.parametrize(
    ("native", "split", "message"),
    [
        (["train"], "dev", r"unknown split 'dev'; known: \['test', 'train', 'valid'\]"),
        (["test"], "train", r"unknown split 'train'; known: \['test'\]"),
        (["a", "b"], "", r"no split named; known: \['a', 'b'\]"),
    ],
)
def test_unknown_splits_list_the_known(native, split, message):
    with pytest.raises(ValueError, match=f"path/t: {message}"):
        plan(table(*native), split)


def test_an_empty_carved_split_says_why(file):
    with pytest.raises(ValueError, match="split 'test' of .*pairs.*test_fraction 0"):
        ids(f"jsonl:{file}#test", test_fraction=0)


@pytest.mark.parametrize(
    "spec",
    [
        "hh:hh-rlhf/helpful-base.test.jsonl.gz",
        "truthfulqa_judge:truthfulqa-judge/finetune_truth.jsonl.gz",
    ],
)
def test_no_prompt_of_real_data_is_on_two_sides(test_data, spec):
    name, path = spec.split(":")
    spec = f"{name}:{test_data / path}"
    sides = {
        split: [r.prompt for r in open_source(f"{spec}#{split}").records()]
        for split in ("train", "valid", "test")
    }
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not set(sides[a]) & set(sides[b])
    whole = [r.prompt for r in open_source(spec).records()]
    assert sum(map(len, sides.values())) == len(whole)
    assert 0.02 < len(sides["test"]) / len(whole) < 0.09


# fingerprints


def test_fingerprint_follows_content_and_choices_not_the_name(tmp_path, file):
    spec = f"jsonl:{file}"
    same = open_source(spec).fingerprint
    moved = write(tmp_path / "moved.jsonl", rows())
    assert open_source(f"jsonl:{moved}").fingerprint == same
    others = [
        open_source(f"jsonl:{write(tmp_path / 'o.jsonl', rows(39))}"),
        open_source(f"trl:{file}"),
        open_source(f"{spec}#train"),
        open_source(f"{spec}#valid"),
        open_source(f"{spec}#train", valid_fraction=0.2),
        open_source(f"{spec}#train", test_fraction=0.2),
        open_source(spec, limit=3),
        open_source(spec, on_bad_row="drop"),
        open_source(f"hf:{file}", columns={"prompt": "p", "responses": "r"}),
        open_source(f"hf:{file}", columns={"prompt": "p", "responses": "s"}),
    ]
    prints = [same, *(s.fingerprint for s in others)]
    assert len(set(prints)) == len(prints) and all(len(p) == 64 for p in prints)


def test_fractions_do_not_matter_where_nothing_is_carved(file):
    spec = f"jsonl:{file}"
    other = open_source(spec, valid_fraction=0.2)
    assert open_source(spec).fingerprint == other.fingerprint


# Hugging Face


@pytest.mark.parametrize("splits", [False, True])
def test_a_folder_of_save_to_disk(tmp_path, splits):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(rows())
    if splits:
        data = datasets.DatasetDict({"train": data, "test": data.select([0])})
    data.save_to_disk(str(tmp_path / "saved"))
    spec = f"hf:{tmp_path}/saved"
    assert ids(spec)[:2] == ["saved:1", "saved:2"] and len(ids(spec)) == 40
    assert (ids(f"{spec}#test", test_fraction=0.3) == ["saved:1"]) is splits
    assert open_source(spec).fingerprint == open_source(spec).fingerprint


def test_a_damaged_folder_of_save_to_disk_is_named(tmp_path):
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}: .*cannot be loaded.*JSONDecode"):
        open_source(f"hf:{tmp_path}")


def test_another_folder_says_what_to_name(tmp_path):
    with pytest.raises(ValueError, match="save_to_disk.*tfds:"):
        open_source(f"hf:{tmp_path}")


def test_a_local_path_has_no_revision(file):
    with pytest.raises(ValueError, match="no revision 'main'"):
        open_source(f"jsonl:{file}@main")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeBuilder:
    """What the hub gives: rows in a cache folder named by their commit, two splits."""

    name, cache_dir = "json", f"/cache/org___name/default/0.0.0/{COMMIT}"

    def download_and_prepare(self):
        pass

    def as_dataset(self):
        say = "\n\nHuman: q{}\n\nAssistant:{}"
        return {
            split: [
                {"chosen": say.format(i, " a"), "rejected": say.format(i, " b")}
                for i in range(n)
            ]
            for split, n in (("train", 20), ("test", 3))
        }


@pytest.fixture
def hub_calls(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load(id, *, name, data_dir, revision):
        calls.append((id, revision))
        return FakeBuilder()

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return calls


@pytest.mark.parametrize("name", ["hf", "hh"])
def test_a_hub_id_is_loaded_at_its_revision(hub_calls, name):
    source = open_source(f"{name}:Anthropic/hh-rlhf@main#test")
    records = list(source.records())
    assert hub_calls == [("Anthropic/hh-rlhf", "main")]
    assert [r.id for r in records] == [f"Anthropic/hh-rlhf:{i}" for i in (1, 2, 3)]
    assert records[0].prompt == (Message("user", "q0"),)
    assert source.info["revision"] == COMMIT
    assert source.name == "Anthropic/hh-rlhf#test"


def test_a_hub_id_without_revision_or_split(hub_calls):
    assert len(ids("hh:org/name")) == 20
    assert hub_calls == [("org/name", None)]


def test_offline_names_the_id_and_the_way_out(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(id, **options):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(ValueError, match="org/name@abc: offline.*local path") as error:
        open_source("hf:org/name@abc")
    assert "\n" not in str(error.value)


def test_offline_for_real():
    datasets = pytest.importorskip("datasets")
    if not datasets.config.HF_HUB_OFFLINE:
        pytest.skip("HF_HUB_OFFLINE was not set before `datasets` was imported")
    with pytest.raises(ValueError, match="no-such-org/no-such-name: offline"):
        open_source("hf:no-such-org/no-such-name")


def test_no_such_data_set_is_said(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(id, **options):
        raise datasets.exceptions.DatasetNotFoundError("404")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(ValueError, match="org/name: .*no such data set"):
        open_source("hf:org/name")


@pytest.mark.parametrize("module", ["datasets", "tensorflow_datasets", "array_record"])
def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, module):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == module:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    spec = "hf:org/name"
    if module != "datasets":
        (tmp_path / "features.json").write_text("{}")
        spec = f"tfds:{tmp_path}"
    with pytest.raises(ImportError, match=r"pip install 'rm_jax\[data\]'"):
        open_source(spec)


# TFDS


def test_prepare_and_read_back_without_tensorflow(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    values = [
        {**row, "id": f"é{i}", "source": "mine", "meta": {"n": i}, "soft": 0.25}
        for i, row in enumerate(rows())
    ]
    spec = f"jsonl:{write(tmp_path / 'a.jsonl', values)}"
    options = {"valid_fraction": 0.2, "test_fraction": 0.3}
    folder = prepare(spec, str(tmp_path / "out"), "mine", **options)
    assert folder.endswith("mine/1.0.0")
    for split in ("train", "valid", "test"):
        want = list(open_source(f"{spec}#{split}", **options).records())
        for place in (folder, tmp_path / "out"):
            assert list(open_source(f"tfds:{place}#{split}").records()) == want
    assert "tensorflow" not in sys.modules
    with pytest.raises(FileExistsError, match="mine: exists"):
        prepare(spec, str(tmp_path / "out"), "mine")
    with pytest.raises(ValueError, match="unknown split 'dev'.*'train', 'valid'"):
        open_source(f"tfds:{folder}#dev")


def test_prepared_train_is_carved_where_no_other_split_was_written(tmp_path, file):
    pytest.importorskip("tensorflow_datasets")
    folder = prepare(f"jsonl:{file}", str(tmp_path / "out"), splits=["train"])
    test = {"valid_fraction": 0, "test_fraction": 0.4}
    train = set(ids(f"tfds:{folder}#train", **test))
    held_out = set(ids(f"tfds:{folder}#test", **test))
    assert train and held_out and not train & held_out


def test_prepare_refuses_what_it_cannot_write(tmp_path, file):
    with pytest.raises(ValueError, match="leave out #split"):
        prepare(f"jsonl:{file}#train", str(tmp_path))
    with pytest.raises(ValueError, match="name 'My-data'"):
        prepare(f"jsonl:{file}", str(tmp_path), "My-data")


def test_a_failed_prepare_leaves_no_data_set_behind(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    path = write(tmp_path / "a.jsonl", BAD)
    with pytest.raises(RowError, match="a.jsonl:2"):
        prepare(f"jsonl:{path}", str(tmp_path / "out"), splits=["train"])
    with pytest.raises((FileNotFoundError, ValueError)):
        open_source(f"tfds:{tmp_path}/out")


def test_tfds_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_source(f"tfds:{tmp_path}/none")
    with pytest.raises(ValueError, match="want one TFDS data set, found 0"):
        open_source(f"tfds:{tmp_path}")


def test_a_damaged_tfds_folder_is_named(tmp_path, file):
    folder = prepare(f"jsonl:{file}", str(tmp_path / "out"), splits=["train"])
    [data] = [n for n in os.listdir(folder) if "array_record" in n]
    whole = (pathlib.Path(folder) / data).read_bytes()
    spec = f"tfds:{tmp_path}/out"
    for harm in (whole[:-40], whole[: len(whole) // 2], b"", b"x" * len(whole)):
        (pathlib.Path(folder) / data).write_bytes(harm)
        with pytest.raises(ValueError, match=f"{folder}: damaged"):
            ids(spec)
    (pathlib.Path(folder) / "dataset_info.json").write_text("[")
    with pytest.raises(ValueError, match=f"{folder}: damaged"):
        ids(spec)


# world


@pytest.fixture
def world_calls(monkeypatch):
    calls = []

    class World:
        def records(self, split):
            calls.append(split)
            said = tuple((Message("assistant", c),) for c in "ab")
            for i in range(5):
                prompt = (Message("user", f"{split} {i}"),)
                yield Record(str(i), "world", prompt, said, (0, 1))

        def fingerprint(self):
            return "f" * 64

    def make_world(knobs):
        calls.append(knobs)
        return World()

    fake = types.SimpleNamespace(make_world=make_world)
    monkeypatch.setitem(sys.modules, "rm_jax.data.world", fake)
    return calls


def test_world_delegates(world_calls):
    source = open_source("world:#test", world={"seed": 3}, limit=4)
    assert [r.prompt[0].content for r in source.records()] == [
        f"test {i}" for i in range(4)
    ]
    assert world_calls == [{"seed": 3}, "test"]
    assert source.name == "world#test" and source.info["records"] == 4
    prints = {open_source(s).fingerprint for s in ("world:", "world:#test")}
    assert len(prints | {source.fingerprint}) == 3


def test_world_takes_knobs_of_its_own(world_calls):
    own = {"seed": 3, "noise": 0.25}
    plain = open_source("world:#test", world=own)
    source = open_source("world:noise=0,tie_threshold=1e-1#test", world=own)
    assert world_calls == [own, {"seed": 3, "noise": 0, "tie_threshold": 0.1}]
    assert source.name == "world:noise=0,tie_threshold=1e-1#test"
    assert source.info["spec"] == source.name and plain.name == "world#test"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("world:x", "SPEC 'world:x': 'x': want each knob of the world once"),
        ("world:noise=", "'noise=': want each knob"),
        ("world:noise=a#test", "'noise=a': want each knob"),
        ("world:seed=1,seed=1", "'seed=1': want each knob of the world once"),
        ("world:seed=1,", "'': want each knob"),
        ("world:seed=1,,noise=0", "'': want each knob"),
        ("world:sed=1", "SPEC 'world:sed=1': unknown world knob 'sed'; known"),
        ("world:seed=1#dev", "SPEC 'world:seed=1#dev': unknown world split 'dev'"),
        ("world:responses=2.5", "responses = 2.5: want int"),
        ("world:noise=nan", "noise = nan: want float from 0.0 to 0.5"),
        ("world:@abc", "a world has no revision"),
    ],
)
def test_knobs_of_a_world_that_are_none(spec, message):
    with pytest.raises(ValueError, match=message):
        open_source(spec)


def test_digest_of_a_folder_follows_names_and_contents(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = hub.folder_digest(str(folder))
    (folder / "a").write_text("2")
    second = hub.folder_digest(str(folder))
    (folder / "a").rename(folder / "b")
    assert len({first, second, hub.folder_digest(str(folder))}) == 3
