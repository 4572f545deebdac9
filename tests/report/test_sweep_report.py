"""The report of a sweep as text and as a page, at any time of it."""

import datetime
import math
import re
import shutil

import pytest
import roots

from rm_jax.report import compare, conditions, grids, sweep, sweep_html, sweep_tables

NOW = datetime.datetime(2026, 1, 2, 3, 4)
LOSSES = roots.product(loss__name=["bt", "hinge"], init_seed=[0, 1, 2])
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def made(tmp_path):
    """Two losses, three seeds, a null world, verdicts, and a number of the paper."""
    roots.write_root(
        tmp_path,
        LOSSES,
        null=LOSSES,
        expected={
            "hinge": {"value": 0.012, "source": "a paper, table 2"},
            "elsewhere": f"0.7 {EVIL}",
        },
        done=roots.noisy({"hinge": 0.05}),
    )
    roots.write_verdicts(
        tmp_path,
        roots.rule("hinge", True, estimate=0.0487),
        roots.rule("margin", False),
        roots.rule("margin", True, null=True),
        roots.rule("unsure", None, estimate=math.nan, low=math.nan, high=math.nan),
    )
    return tmp_path


def text(root, form="text", **how):
    return "\n".join(sweep.text_lines(sweep.look(str(root), **how), form))


def page(root, **how):
    path = sweep_html.write_page(sweep.look(str(root), **how), now=NOW)
    assert path == str(root / "report.html")
    return (root / "report.html").read_text()


def seen(html):
    """The words of a page, without its style."""
    body = html[html.index("<body>") :]
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_the_text_says_what_came_of_it(made):
    said = text(made)
    lines = said.splitlines()
    assert lines[:2] == ["Does the loss matter?", "12 of 12 units finished"]
    assert lines[2] == (
        "not reproduced: margin: margin helps (a paper, table 2): does not hold; "
        "margin: it holds in the null world, too: a false alarm; "
        "unsure: unsure helps (a paper, table 2): undecided"
    )
    assert lines[3].startswith(
        "with these seeds (init_seed) a true difference in test/"
    )
    first = next(line for line in lines if line.startswith("hinge "))
    assert re.fullmatch(r"hinge +3 +0\.\d{4} ± 0\.\d{4} +0\.\d{4} ± 0\.\d{4}", first)
    assert said.count("null world\ncondition") == 1
    assert re.search(r"hinge .* 0.012 \(a paper, table 2\) +\+0.0487 \[", said)
    assert re.search(r"margin, null world .* false alarm", said)


def test_selection_on_valid_is_shown_on_test(made):
    said = text(made, select="valid/nll")
    assert re.search(r"all units +loss.name=hinge +2 +0\.\d+ ± .* 3\n", said)
    with pytest.raises(ValueError, match="is a test set"):
        text(made, select="test/nll")
    assert "step=" in text(made, select="valid/nll", over=["step"])


def test_the_baseline_is_given_by_the_text_of_its_value(tmp_path):
    units = roots.product(data__label_noise=[0.0, 0.25], init_seed=[0, 1])
    roots.write_root(tmp_path, units, done=roots.noisy({}))
    said = text(tmp_path, baseline={"data.label_noise": "0.25"})
    assert re.search(r"^label_noise=0.25 +baseline", said, re.M)
    with pytest.raises(ValueError, match=r"label_noise=1: it has \['0.0', '0.25'\]"):
        text(tmp_path, baseline={"data.label_noise": "1"})
    with pytest.raises(ValueError, match="'loss.name' is no key of the sweep"):
        text(tmp_path, baseline={"loss.name": "bt"})


def test_markdown_and_latex_are_tables_alone(made):
    lines = text(made, "markdown").splitlines()
    assert all(re.match(r"\||$|\*\*null world\*\*$", line) for line in lines)
    assert "| bt | 3 |" in "\n".join(lines)
    latex = text(made, "latex")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 5
    assert r"$\pm$" in latex and "±" not in latex and "% null world" in latex


def test_cells_are_escaped_for_their_format():
    grid = grids.Grid(("a_b", "%"), (("x|y", "\\ {^} −1"),))
    assert grids.FORMATS["markdown"](grid).splitlines()[2] == "| x\\|y | \\ {^} −1 |"
    latex = grids.FORMATS["latex"](grid).splitlines()
    assert latex[2] == r"a\_b & \% \\"
    assert latex[4] == r"x|y & \textbackslash{} \{\textasciicircum{}\} $-$1 \\"
    assert grids.FORMATS["text"](grid).splitlines() == ["a_b  %", "x|y  \\ {^} −1"]


def test_a_condition_without_a_baseline_is_told_from_a_baseline():
    level = compare.Difference(0.7, 0.6, 0.8, 3, 0.0, 0.1)
    rows = [
        conditions.Row("bt", {"a": 1}, level, {"a": 1}, None, math.nan),
        conditions.Row("odd", {"a": 2}, level, None, None, math.nan),
    ]
    found = sweep_tables.differences(rows).rows
    assert [cells[0].value for cells in found.values()] == ["baseline", "no baseline"]
    sure = level._replace(p=1e-9)
    rows = [conditions.Row("x", {}, level, {"a": 1}, sure, 1e-5)]
    cells = sweep_tables.differences(rows).rows["x"]
    assert [cell.value for cell in cells[2:4]] == ["< 0.0001", "< 0.0001"]


def test_the_page_has_all_of_it(made):
    html = page(made, select="valid/nll")
    words = seen(html)
    for part in (
        "Not reproduced margin: margin helps",
        "hinge helps a paper, table 2 0.012 (a paper, table 2) +0.0487",
        "Detectable difference",
        "Null world",
        "12 of 12 units finished",
        "Chosen on a validation set",
        "Numbers of the paper that belong to no rule",
        "95 % intervals: 1 of 1 exclude 0",
        "95 % intervals: 0 of 1 exclude 0",  # of the null world
    ):
        assert part in words, part
    assert html.count("<svg") == 8  # forest, units and two curves of two worlds
    assert EVIL not in html and "&lt;script&gt;" in html
    assert not re.search(r"https?://|<script|<img|<link", html)


def test_what_is_missing_is_named(made):
    units = sorted((made / "units").iterdir())
    (units[4] / "evals.json").unlink()  # hinge, seed 1
    shutil.rmtree(units[5])
    (units[9] / "evals.json").unlink()
    roots.write_failed(units[9], "exit code 1, rm-jax: no more memory")
    said = text(made)
    assert "9 of 12 units finished, 1 running, 1 failed, 1 not started" in said
    assert "u09 failed: exit code 1, rm-jax: no more memory; log: " in said
    left = "(a is the baseline): hinge: init_seed=1 (not in b), init_seed=2 (not in b)"
    assert left in said
    assert (
        "no comparison has two pairs of seeds (init_seed) yet: nothing is sure" in said
    )
    words = seen(page(made))
    assert "u04 running" in words and "u05 not started" in words
    assert "init_seed=2 (not in b)" in words


@pytest.mark.parametrize("begun", [False, True])
def test_a_root_without_a_finished_unit_has_a_report(tmp_path, begun):
    roots.write_root(tmp_path, LOSSES, done=lambda *_: (0.7, 0.5) if begun else None)
    for file in tmp_path.glob("units/*/evals.json"):
        file.unlink()
    said = text(tmp_path, select="valid/nll")
    assert said.splitlines()[1].startswith("0 of 6 units finished, 6")
    words = seen(page(tmp_path))
    assert "No verdict yet." in words
    assert ("No unit has finished yet." in words) == begun


def test_one_seed_has_no_interval_and_many_conditions_are_drawn(tmp_path):
    names = [f"loss{n}" for n in range(30)]
    units = roots.product(loss__name=names, init_seed=[0])
    roots.write_root(tmp_path, units, done=roots.noisy({}))
    words = seen(page(tmp_path))
    assert "In grey the other 25 conditions." in words
    assert "0 of 29 exclude 0" in words
    assert "loss29" in text(tmp_path)


def test_crossed_seeds_are_two_random_effects(tmp_path):
    units = roots.product(
        loss__name=["bt", "hinge"], init_seed=[0, 1], data_seed=[0, 1]
    )
    roots.write_root(
        tmp_path, units, seeds=("init_seed", "data_seed"), done=roots.noisy({})
    )
    assert "two random effects, init_seed and data_seed" in seen(page(tmp_path))


def test_the_command_prints_and_writes(made, rm_jax):
    code, out, err = rm_jax("report", "--root", made, "--format", "markdown")
    assert code == 0 and out.startswith("\n| condition |")
    assert err == f"table: {made}/table.parquet\nreport: {made}/report.html\n"
    assert (made / "table.parquet").exists() and (made / "report.html").exists()
    code, _, err = rm_jax(
        "report", "--root", made, "--select", "valid/nll", "--over", "loss.name",
        "--baseline", "loss.name=hinge", "--show", "valid/accuracy",
    )  # fmt: skip
    assert code == 0
    for flags, why in (
        (["--baseline", "hinge"], "'hinge': want KEY=VALUE"),
        (["--select", "test/accuracy"], "'test' is a test set"),
        (["--show", "test/x"], "no figure 'test/x'; known:"),
        (["--root", "/nowhere"], "holds no sweep"),
    ):
        code, _, err = rm_jax("report", "--root", made, *flags)
        assert code == 1 and why in err.splitlines()[-1], err
