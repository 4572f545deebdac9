"""A file of a newer rm_jax is refused by name: file, version found, version known."""

import hashlib
import importlib.util
import io
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

import rm_jax
from rm_jax import report, schemas
from rm_jax.checkpoint import Checkpoints
from rm_jax.report.diff import diff

WAY_OUT = "install a newer rm_jax"


@pytest.fixture
def run(root, tmp_path):
    shutil.copytree(root / "tests" / "golden" / "run", tmp_path / "run")
    return tmp_path / "run"


def raise_version(path):
    value = json.loads(path.read_text())
    value.pop("seal", None)
    newer = {"schema_version": schemas.VERSIONS[path.name] + 1, "shape": "new"}
    path.write_text(json.dumps(value | newer))


# Files of a run directory without a version of ours, each with the reason.
OTHERS = {
    r"(metrics|timing|events)\.jsonl": "run.json has theirs",
    r"report\.html": "read by nobody but people; made again from the rest",
    r"tokenizer/.*": "the files of transformers",
    r"tensorboard/events\.out\.tfevents\..*": "the format of TensorBoard",
    r"wandb/.*": "of W&B",
    r"profile/.*": "the format of jax's profiler",
    r"checkpoints/\d+/(?!manifest/data\.json).*": "Orbax's; the manifest is ours",
    r"plugins/.*": "code of the user, kept as it was",
}
# Files beside the run directories of a sweep, and of runs that train together.
OF_A_ROOT = {"sweep.json", "verdicts.json", "failed.json", "member.json", "table"}


def version_of(path):
    if path.suffix == ".parquet":
        return int(pq.read_schema(path).metadata[b"schema_version"])
    return json.loads(path.read_text())["schema_version"]


@pytest.mark.slow
def test_every_file_of_a_run_with_everything_on_has_a_version(
    make, tmp_path, monkeypatch
):
    sinks = {"train__tensorboard": True}
    for name in ("wandb", "trackio"):
        if importlib.util.find_spec(name):
            sinks[f"train__{name}"] = "rm"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    config = make(
        **sinks,
        train__report=True,
        train__example_losses=True,
        train__profile="2:3",
        train__duration="4 steps",
    )
    rm_jax.train(config, str(tmp_path / "run"), stream=io.StringIO())
    names = [
        str(path.relative_to(tmp_path / "run"))
        for path in (tmp_path / "run").rglob("*")
        if path.is_file()
    ]
    ours = [n for n in names if not any(re.fullmatch(p, n) for p in OTHERS)]
    kinds = {
        name: "checkpoint"
        if name.startswith("checkpoints/")
        else name.partition("/")[0]
        for name in ours
    }
    for name, kind in kinds.items():
        assert version_of(tmp_path / "run" / name) == schemas.VERSIONS[kind], name
    made = set(kinds.values()) | set(schemas.LINES) | OF_A_ROOT
    if len(sinks) == 1:  # sinks.json is of the others
        made.add("sinks.json")
    assert made == set(schemas.VERSIONS)
    assert "tensorboard" in " ".join(names) and "report.html" in names
    assert any(name.startswith("profile/") for name in names)


def train(run):
    config = rm_jax.config.load(str(run))
    return rm_jax.train(config, str(run), stream=io.StringIO())


def test_every_json_file_of_a_run_has_a_version(run):
    for path in run.glob("*.json"):
        found = json.loads(path.read_text())["schema_version"]
        assert 1 <= found <= schemas.VERSIONS[path.name], path
    manifest = json.loads((run / "checkpoints/6/manifest/data.json").read_text())
    assert manifest["schema_version"] == manifest["meta"]["arch"]["schema_version"] == 1


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("config.json", (report.load_run, rm_jax.load, train)),
        ("contract.json", (report.load_run,)),
        ("arch.json", (report.load_run,)),
        ("run.json", (report.load_run, train)),
        ("evals.json", (report.load_run, report.write_report)),
    ],
)
def test_a_newer_json_file_is_refused(run, name, readers):
    raise_version(run / name)
    for read in readers:
        with pytest.raises(ValueError) as error:
            read(str(run)) if read is not train else train(run)
        assert f"{run}/{name}: " in str(error.value), read
        known = schemas.VERSIONS[name]
        want = f"is {known + 1}, this rm_jax reads {name} up to {known}: {WAY_OUT}"
        assert want in str(error.value), read
        assert str(error.value).count(str(run)) == 1, error.value
    with pytest.raises(ValueError, match=f"{name}: .*is {known + 1}"):
        diff(str(run), str(run))


@pytest.mark.parametrize("name", schemas.LINES)
def test_newer_lines_are_refused_before_one_is_written(run, name):
    info = json.loads((run / "run.json").read_text())
    del info["seal"]
    info["schema_versions"][name] = 7
    (run / "run.json").write_text(json.dumps(info))
    before = (run / name).read_bytes()
    for read in (report.load_run, train):
        with pytest.raises(ValueError, match=f"{run}/{name}: schema_version is 7, "):
            read(run)
    assert (run / name).read_bytes() == before


def test_a_newer_checkpoint_is_refused_and_not_passed_over(run):
    path = run / "checkpoints/6/manifest/data.json"
    value = json.loads(path.read_text()) | {"schema_version": 2, "shards": []}
    del value["sha256"]
    text = json.dumps(value, sort_keys=True)
    value["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(value))
    shutil.copytree(run / "checkpoints/6", run / "checkpoints/3")
    with pytest.raises(schemas.SchemaError, match="6/manifest/data.json: .* is 2, "):
        Checkpoints(str(run / "checkpoints")).restore_part("params")


def test_newer_predictions_are_refused(run):
    path = run / "predictions/valid.parquet"
    table = pq.read_table(path)
    assert table.schema.metadata[b"schema_version"] == b"1"
    for found, shown in ((b"2", "is 2"), (b"two", "is None"), (None, "is None")):
        metadata = {b"schema_version": found} if found else None
        pq.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(schemas.SchemaError, match=f"valid.parquet: .* {shown}, "):
            report.load_run(run).predictions("valid")


@pytest.mark.parametrize("found", [0, -1, True, 1.0, "1", None, [1]])
def test_what_is_no_version_is_refused(found):
    with pytest.raises(schemas.SchemaError, match="x.json: schema_version is .*again"):
        schemas.checked("arch.json", {"schema_version": found}, "x.json")


@pytest.mark.parametrize("value", [[], 3, None, "text"])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(schemas.SchemaError, match="x.json: want a JSON object, got "):
        schemas.checked("arch.json", value, "x.json")


def test_older_versions_are_read(monkeypatch):
    monkeypatch.setitem(schemas.VERSIONS, "arch.json", 3)
    for version in (1, 2, 3):
        assert schemas.problem("arch.json", version) == ""
    assert "up to 3" in schemas.problem("arch.json", 4)
    assert schemas.stamped("arch.json", {"a": 1}) == {"schema_version": 3, "a": 1}
