"""What differs between two runs, each thing changed by itself in a golden run."""

import json
import shutil
import subprocess
import sys

import pytest

from rm_jax import main
from rm_jax.report.diff import compare_lines, diff, text_lines


@pytest.fixture
def pair(root, tmp_path):
    """Two copies of one run."""
    for name in "ab":
        shutil.copytree(root / "tests" / "golden" / "run", tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def change(path, edit):
    value = json.loads(path.read_text())
    value.pop("seal", None)
    edit(value)
    path.write_text(json.dumps(value))


def test_a_run_and_its_copy_are_the_same(pair, capsys):
    found = diff(*map(str, pair))
    assert found.same and found.lines.counts == (8, 8)
    text = list(text_lines(found))
    assert text[-1] == "the runs are the same"
    assert "config: the same" in text and "metrics.jsonl: the same, 8 lines" in text
    assert main.run(["diff", *map(str, pair)]) == 0
    assert capsys.readouterr().out == "\n".join(text) + "\n"


CASES = [
    (
        "config.json",
        lambda v: v["optim"].update(learning_rate=0.5),
        "config",
        {"optim.learning_rate": (0.01, 0.5)},
    ),
    ("config.json", lambda v: v.update(data_seed=3), "config", {"data_seed": (0, 3)}),
    (
        "run.json",
        lambda v: v["data"]["train"]["fingerprints"].update({"": "other"}),
        "data",
        None,
    ),
    (
        "run.json",
        lambda v: v["data"]["train"]["audit"]["counts"].update(duplicate=9),
        "data",
        {"train.audit.counts.duplicate": (0, 9)},
    ),
    (
        "run.json",
        lambda v: v["specs"].update(extra={"": "world:"}),
        "data",
        {"specs.extra.": (None, "world:")},
    ),
    (
        "contract.json",
        lambda v: v.update(bos="none"),
        "contract",
        {"bos": ("one", "none")},
    ),
    ("arch.json", lambda v: v.update(d_ff=4), "arch", {"d_ff": (16, 4)}),
    (
        "run.json",
        lambda v: v["plugins"].update({"loss m:f": {"sha256": "12"}}),
        "code",
        {"loss m:f": (None, "12")},
    ),
    (
        "evals.json",
        lambda v: v["sets"]["valid"].update(accuracy=0.5),
        "evals",
        None,
    ),
]


@pytest.mark.parametrize(("file", "edit", "section", "want"), CASES)
def test_one_change_is_in_one_section(pair, file, edit, section, want):
    change(pair[1] / file, edit)
    found = diff(*map(str, pair))
    assert not found.same
    assert [name for name, c in found.sections.items() if c] == [section]
    assert len(found.sections[section]) == 1
    if want:
        assert found.sections[section] == want
    text = list(text_lines(found))
    assert f"{section}: 1 differ" in text and text[-1] == f"they differ in {section}"
    back = diff(str(pair[1]), str(pair[0])).sections[section]
    assert {k: v[::-1] for k, v in back.items()} == found.sections[section]


def test_what_ran_is_told_by_the_step_it_began_at(pair):
    def edit(info):
        last = info["sessions"][1]
        last["versions"]["jax"] = "9.9"
        last["code"].update(commit="abc", dirty_diff="- a\n+ b")
        last["devices"]["kind"] = "v9"

    change(pair[1] / "run.json", edit)
    sections = diff(*map(str, pair)).sections
    old, new = sections["versions"].pop("versions.jax")
    assert (
        new == {"from step 0": old, "from step 3": "9.9"} and not sections["versions"]
    )
    assert sections["devices"]["devices.kind"][1]["from step 3"] == "v9"
    _, diffs = sections["code"]["code.dirty_diff"]
    assert diffs["from step 0"] == "" and diffs["from step 3"].startswith("sha256 ")
    assert set(sections["code"]) == {"code.commit", "code.dirty_diff"}


def test_commands_folders_and_times_are_not_compared(pair):
    def edit(info):
        for session in info["sessions"]:
            session.update(argv=["other"], folder="/elsewhere")
            session["starts"][0]["time"] = "2030-01-01T00:00:00+00:00"
        info["data"]["train"]["source"].update(path="b.jsonl", spec="jsonl:b.jsonl")
        info["data"]["train"]["cache"] = "other"

    change(pair[1] / "run.json", edit)
    assert diff(*map(str, pair)).same


def test_lines_of_metrics():
    a = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "nll": 1.0}]
    assert compare_lines(a, a) == ((2, 2), None, {})
    b = [a[0], {"step": 2, "loss": 0.5, "acc": 1.0}]
    want = {"loss": (0.25, 0.5), "nll": (1.0, None), "acc": (None, 1.0)}
    assert compare_lines(a, b) == ((2, 2), 2, want)
    assert compare_lines(a[:1], a) == (
        (1, 2),
        2,
        {"loss": (None, 0.25), "nll": (None, 1.0)},
    )
    assert compare_lines([], []) == ((0, 0), None, {})
    skewed = [{"step": 1, "loss": 0.5}, {"step": 4, "loss": 0.25, "nll": 1.0}]
    assert compare_lines(a, skewed).step == 2
    nan = [{"step": 1, "loss": float("nan")}]
    assert compare_lines(nan, [{"step": 1, "loss": float("nan")}]).step is None
    assert compare_lines(nan, [{"step": 1, "loss": 0.5}]).step == 1


def test_a_change_in_metrics_is_told_with_its_size(pair, capsys):
    path = pair[1] / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["train/loss"] += 0.5
    lines[2]["train/grad_norm"] = "NaN"
    step = lines[2]["step"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
    assert main.run(["diff", *map(str, pair)]) == 3
    out = capsys.readouterr().out
    assert f"8 and 5 lines, the first that differs is of step {step}" in out
    assert "(+0.5)" in out and out.endswith("they differ in metrics.jsonl\n")
    assert main.run(["diff", *map(str, pair), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is False and found["lines"]["step"] == step
    assert found["lines"]["values"]["train/grad_norm"][1] == "NaN"


def test_figures_stand_side_by_side_with_intervals(pair):
    change(
        pair[1] / "evals.json",
        lambda v: v["sets"]["valid"].update(accuracy=0.5, accuracy_low=0.25),
    )
    (line,) = [x for x in text_lines(diff(*map(str, pair))) if "  accuracy " in x]
    assert "0.792 0.708 – 0.917" in line and "0.500 0.250 – 0.917" in line
    assert line.endswith("*")


def test_pieces_that_are_missing_differ(pair):
    for name in ("run.json", "evals.json", "metrics.jsonl"):
        (pair[1] / name).unlink()
    found = diff(*map(str, pair))
    assert found.sections["code"]["code.commit"][1] is None
    assert found.lines.counts == (8, 0) and found.lines.step == 1
    assert list(text_lines(found))[-1].startswith("they differ in data, code, ")


def test_what_is_no_run_is_an_error(pair, tmp_path):
    with pytest.raises(ValueError, match="is not a run directory"):
        diff(str(pair[0]), str(tmp_path))
    with pytest.raises(ValueError, match="^'' is not a run directory"):
        diff(str(pair[0]), "")


def test_long_values_are_shown_short_and_whole_as_json(pair):
    change(pair[1] / "contract.json", lambda v: v.update(template="x" * 999))
    found = diff(*map(str, pair))
    assert all(len(line) < 600 for line in text_lines(found))
    assert found.to_json()["sections"]["contract"]["template"][1] == "x" * 999


def test_it_needs_no_jax():
    code = "import sys, rm_jax.report.diff; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
