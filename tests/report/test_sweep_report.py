"""The report of a sweep as text and as a page, at any time of it."""

import datetime
import math
import re
import shutil

import pytest
import roots

from rm_jax.report import (
    compare,
    conditions,
    grids,
    root,
    sweep,
    sweep_html,
    sweep_plots,
    sweep_tables,
    verdicts,
)

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
    both = "differences: from the condition of loss.name=bt and otherwise equal keys"
    assert lines[3:5] == [both, f"null world: {both}"]
    assert lines[5].startswith(
        "with these seeds (init_seed) a true difference in test/"
    )
    first = next(line for line in lines if line.startswith("hinge "))
    assert re.fullmatch(r"hinge +3 +0\.\d{4} ± 0\.\d{4} +0\.\d{4} ± 0\.\d{4}", first)
    assert said.count("null world\ncondition") == 1
    assert re.search(r"hinge .* a paper, table 2 +0.012 +\+0.0487 \[", said)
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
    with pytest.raises(ValueError, match=r"label_noise=1: it has \['0', '0.25'\]"):
        text(tmp_path, baseline={"data.label_noise": "1"})
    with pytest.raises(ValueError, match="'loss.name' is no key of the sweep"):
        text(tmp_path, baseline={"loss.name": "bt"})


def test_markdown_and_latex_are_tables_alone(made):
    lines = text(made, "markdown").splitlines()
    assert all(re.match(r"\||$|\*\*null world\*\*$", line) for line in lines)
    at = [n for n, line in enumerate(lines) if line.startswith("**")]
    assert len(at) == 2 and all(lines[n + 1] == "" for n in at)
    assert "| bt | 3 |" in "\n".join(lines)
    latex = text(made, "latex")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 5
    assert r"\ensuremath{\pm}" in latex and latex.isascii()
    assert latex.count("\\begin{table}\n\\caption{null world}") == 2


def test_cells_are_escaped_for_their_format():
    grid = grids.Grid(("a_b", "%"), (("x|y", "\\ {^} −1"),))
    assert grids.FORMATS["markdown"](grid).splitlines()[2] == "| x\\|y | \\ {^} −1 |"
    latex = grids.FORMATS["latex"](grid).splitlines()
    assert latex[2] == r"a\_b & \% \\"
    last = r"\textbackslash{} \{\textasciicircum{}\} \ensuremath{-}1 \\"
    assert latex[4] == r"x\textbar{}y & " + last
    assert grids.FORMATS["text"](grid).splitlines() == ["a_b  %", "x|y  \\ {^} −1"]


def test_a_cell_is_one_line_and_a_row_no_argument_of_the_one_before():
    grid = grids.Grid(("a",), (("[x]",), ("*",), ("two\n\nlines",)), "of α")
    lines = grids.FORMATS["latex"](grid).splitlines()
    assert lines[:2] == [r"\begin{table}", r"\caption{of \ensuremath{\alpha}}"]
    assert lines[6:9] == [r"{}[x] \\", r"{}* \\", r"two lines \\"]
    assert lines[-1] == r"\end{table}"
    marked = grids.FORMATS["markdown"](grid).splitlines()
    assert marked[:3] == ["**of α**", "", "| a |"] and marked[-1] == "| two lines |"
    assert grids.FORMATS["text"](grid).splitlines()[-1] == "two lines"


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
        "hinge helps a paper, table 2 0.012 +0.0487",
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
    number = {"value": 0.012, "what": "gained", "source": "table 2"}
    done = lambda *_: (0.7, 0.5) if begun else None
    roots.write_root(tmp_path, LOSSES, expected={"hinge": number}, done=done)
    for file in tmp_path.glob("units/*/evals.json"):
        file.unlink()
    said = text(tmp_path, select="valid/nll")
    assert said.splitlines()[1].startswith("0 of 6 units finished, 6")
    words = seen(page(tmp_path))
    assert "No verdict yet." in words and "belong to no rule" not in words
    assert "Numbers of the paper: hinge 0.012: gained (table 2)" in words
    assert ("No unit has finished yet." in words) == begun


def test_verdicts_older_than_units_are_of_an_earlier_state(made):
    assert "earlier state" not in text(made) + seen(page(made))
    units = sorted((made / "units").iterdir())
    kept = (units[1] / "evals.json").read_text()
    (units[1] / "evals.json").unlink()
    roots.write_verdicts(made, roots.rule("hinge", True))
    (units[1] / "evals.json").write_text(kept)
    why = "the verdicts are of an earlier state: 1 unit changed since (u01)"
    assert why in text(made) and why in seen(page(made))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (0.012, "0.012"),
        ("about 1", "about 1"),
        ([1, 2], "1, 2"),
        (
            {"value": 0.016, "what": "80.7 - 79.1", "source": "Llama 2, table 28"},
            "0.016: 80.7 - 79.1 (Llama 2, table 28)",
        ),
        ({"value": None, "what": "a figure", "source": "x"}, "no number: a figure (x)"),
        ({"value": 1, "n": 3}, "1: n 3"),
    ],
)
def test_a_number_of_the_paper_as_text(tmp_path, given, text):
    units = roots.product(init_seed=[0])
    roots.write_root(tmp_path, units, expected={"a": given}, done=lambda *_: None)
    found = root.load_root(str(tmp_path))
    assert verdicts.other_numbers(found, []) == {"a": text}


def test_conditions_of_the_null_world_are_no_conditions(tmp_path):
    null = roots.product(loss__name=["bt"], data__label_noise=[0.5], init_seed=[0])
    roots.write_root(tmp_path, LOSSES, null=null, done=roots.noisy({}))
    assert "Conditions 2 loss.name" in seen(page(tmp_path))


def test_a_curve_of_one_point_is_left_out_and_said(made):
    for file in made.glob("units/*/metrics.jsonl"):
        lines = [x for x in file.read_text().splitlines() if '"step": 4' in x]
        file.write_text("".join(x + "\n" for x in lines))
    html = page(made)
    assert html.count("<svg") == 4
    assert seen(html).count("No curve of test/accuracy: every unit was evaluated") == 2


@pytest.mark.parametrize("seeds", [["a"], ["init_seed=0, data_seed=1" + "x" * 60]])
def test_a_legend_fits_its_page(seeds):
    names = [f"{seed}{n}" for seed in seeds for n in range(3)]
    rows = {"bt": [(name, 0.7) for name in names], "hinge": [(names[0], 0.8)]}
    figure = sweep_plots.scatter("test/accuracy", rows)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert figure.axes[0].get_window_extent().height > 30  # pixels are left for it


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
    said = err.splitlines()
    assert said[-2:] == [f"table: {made}/table.parquet", f"report: {made}/report.html"]
    assert said[0].startswith("not reproduced: margin") and len(said) == 6
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
