"""The report of a made-up run: right figures, escaped texts, pieces missing."""

import dataclasses
import datetime
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_jax import evals, report, schemas, store, writer
from rm_jax.report import html, plots, runs, tables

NOW = datetime.datetime(2026, 1, 2, 3, 4)
EVIL = "<script>alert(1)</script> & \"quotes\" \x07 <img src='x' onerror=y>"
WORDS = [
    "the",
    "answer",
    "is",
    "that",
    "you",
    "can",
    "first",
    "mix",
    "flour",
    "and",
    "water",
    "then",
    "wait",
    "an",
    "hour",
]


def score_table(seed: int, examples: int) -> evals.ScoreTable:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 60, (examples, 2))
    gold = rng.normal(size=(examples, 2)).astype(np.float32)
    scores = 1.5 * gold + 0.02 * lengths + rng.normal(size=gold.shape) * 0.7
    flip = rng.random(examples) > 1 / (1 + np.exp(-2 * (gold[:, 0] - gold[:, 1])))
    nan = np.full(examples, np.nan)
    return evals.ScoreTable(
        ids=np.array([f"world-{i}" for i in range(examples)]),
        scores=scores.astype(np.float32),
        ranks=np.stack([flip, ~flip], 1).astype(np.int64),
        lengths=lengths,
        weight=np.ones(examples),
        soft=nan,
        strength=nan,
        prompts=np.arange(examples),
        gold=gold,
        source=np.full(examples, ""),
    )


def figures(table: evals.ScoreTable) -> dict:
    bins = evals.reliability(evals.pairs(table))
    margin = evals.histograms(table)["margin"]
    probe = evals.probe_effects(
        np.full(40, 0.4) + np.arange(40) / 100,
        np.zeros(40),
        np.full(40, 0.5),
        np.arange(40),
        seed=0,
    )
    return evals.evaluate(table, seed=0) | {
        "ceiling": 0.83,
        "reliability": [
            list(point)
            for point in zip(bins.confidence, bins.share, bins.n, strict=True)
        ],
        "swap": {"max_difference": 1e-6, "flipped_share": 0.0},
        "alarms": ["saturated: 12.0% of the pairs"],
        "margin_histogram": margin._asdict(),
        "probes": {"length": probe, "sycophancy": probe},
    }


def write_predictions(run, name: str, table: evals.ScoreTable, evil: bool = False):
    rng = np.random.default_rng(0)
    text = lambda n: " ".join(rng.choice(WORDS, n)) + (EVIL if evil else "")
    arrow = evals.to_arrow(
        table,
        [f"user: how do I bake bread, number {i}? {text(8)}" for i in table.ids],
        [[text(int(n)) for n in row] for row in table.lengths],
    )
    store.makedirs(run / "predictions")
    pq.write_table(arrow, run / "predictions" / f"{name}.parquet")


def write_training(run, steps: int = 300):
    with writer.RunWriter(run, step=-1) as w:
        for step in range(0, steps + 1, 10):
            nll = 0.45 + 0.3 * np.exp(-step / 60)
            wave = 0.02 * np.sin(step)
            train = {"loss": nll, "nll": nll + wave, "accuracy": 1.0 - nll / 1.6}
            train |= {"learning_rate": 1e-3 * min(1, step / 50), "grad_norm": 1 + wave}
            w.write_metrics(step, {f"train/{k}": v for k, v in train.items()})
            w.write_timing(step, {"seconds": 3.0, "pairs_per_s": 140.0 + wave})
            if step % 100 == 0:
                for name in ("valid", "test"):
                    values = {
                        "nll": nll + 0.03,
                        "accuracy": 0.97 - nll / 1.6 - 0.02 * (name == "test"),
                    }
                    w.write_metrics(
                        step, {f"eval/{name}/{k}": v for k, v in values.items()}
                    )
        w.write_event(0, "started", devices=2)
        w.alarm(100, "test", "identical scores: 12.0% of the pairs")
        w.alarm(200, "test", "identical scores: 3.0% of the pairs")


def make_run(run, evil: bool = False, examples: int = 300):
    store.makedirs(run)
    write_training(run)
    found = {}
    for seed, name in enumerate(("valid", "test")):
        table = score_table(seed, examples)
        found[name] = figures(table)
        write_predictions(run, name, table, evil)
    for name, value in {
        "evals": {"step": 300, "sets": found},
        "config": {"name": EVIL if evil else "quickstart", "batch": {"examples": 64}},
        "contract": {"bos": "one", "max_length": 256},
        "arch": {"d_model": 128, "n_layers": 4},
        "run": {
            "sessions": [
                {
                    "starts": [{"step": 0, "time": "2026-01-01T00:00:00+00:00"}],
                    "argv": ["rm-jax", "train", "--config", "configs/quickstart.py"],
                    "code": {"commit": "0123abcd", "dirty_diff": "", "sha256": "4567"},
                    "versions": {"jax": "0.10.2", "numpy": "2.3"},
                }
            ],
            "seeds": {"init": 0, "data": 0},
            "data": {
                "train": {
                    "examples": 19988,
                    "audit": {
                        "total": 20000,
                        "kept": 19988,
                        "counts": {"empty_side": 12},
                        "policy": {"empty_side": "drop"},
                    },
                    "counts": {"responses_cut": 7},
                    "source": {"path": "world"},
                }
            },
        },
    }.items():
        value = schemas.stamped(f"{name}.json", writer.to_json(value))
        store.write_json(run / f"{name}.json", value)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(run):
    return store.read_text(report.write_report(run, now=NOW))


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def of_sources(name="valid", *sources) -> dict:
    """run.json of a set that is a mixture."""
    prints = dict.fromkeys(sources or ("help", "harm"), "x")
    return {"data": {name: {"fingerprints": prints}}}


def points(line) -> np.ndarray:
    return np.stack([line.get_xdata(), line.get_ydata()], 1)


def table_of(rows: list[dict]) -> pa.Table:
    """Predictions by hand; a row gives example, response, score and what differs."""
    base = {"rank": None, "length": 3, "weight": 1.0, "gold": None, "soft": None}
    base |= {"strength": None, "prompt": 1, "prompt_text": "p", "id": "a"}
    rows = [base | {"response_text": f"r{i}"} | row for i, row in enumerate(rows)]
    types = {"rank": pa.int64(), "gold": pa.float32(), "soft": pa.float32()}
    types |= {"strength": pa.float32()}
    return pa.table(
        {k: pa.array([row[k] for row in rows], types.get(k)) for k in rows[0]},
        metadata={"schema_version": "1"},
    )


# The page


def test_the_page_shows_every_part(page):
    text = text_of(page)
    for part in (
        "quickstart",
        "2026-01-02 03:04",
        "commit 0123abcd",
        "identical scores: 3.0%",
        "saturated: 12.0% of the pairs",
        "length alone",
        "Learning rate",
        "Gradient norm",
        "bias injected bias measured",
        "empty_side (drop) 12",
        "responses_cut 7",
        "batch.examples 64",
        "seeds.init 0",
        "Worst mistakes",
    ):
        assert part in text, part
    assert 'class="note"' not in page  # nothing is missing
    assert page.count("<svg") == 5 + 2 * 4


def test_the_page_needs_nothing_else(page):
    assert not re.search(r"https?:|//[a-z]|\burl\((?!#)|@import|xlink", page)
    assert not re.search(r"<(script|link|img|iframe|object|embed|base)\b", page)
    assert "default-src 'none'" in page


def test_the_page_is_accessible(page):
    assert page.count('role="img" aria-label="') == page.count("<svg")
    assert page.count("<caption>") == page.count("<table")
    assert '<html lang="en">' in page and 'name="viewport"' in page


def test_ids_are_unique_and_references_hold(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\(|labelledby=")#?([\w-]+)', page))
    assert used <= set(ids)


def test_figures_follow_the_colours_of_the_page(page):
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert "var(--blue)" in figures
    assert not any(color in figures for color in plots.COLORS.values())


def test_the_page_depends_on_the_run_and_the_date_only(run, page, tmp_path):
    then = NOW.replace(year=2030)
    later = report.write_report(run, tmp_path / "later.html", now=then)
    assert store.read_text(later).replace("2030-", "2026-") == page


def test_the_command_writes_the_page_of_a_run(rm_jax, run, page, tmp_path):
    kept = run / "report.html"
    kept.unlink()
    code, said, _ = rm_jax("report", run)
    assert code == 0 and said == f"report: {kept}\n"
    days = lambda text: re.sub(r"2\d{3}-\d\d-\d\d \d\d:\d\d", "", text)
    assert days(store.read_text(str(kept))) == days(page)
    (tmp_path / "sweep.json").write_text("{}")
    code, _, error = rm_jax("report", tmp_path)
    assert code == 1 and "but that of a sweep: say --root" in error


@pytest.mark.parametrize(
    "info, members, line",
    [
        ({}, {}, ""),
        ({}, {"count": 1, "reducer": "mean"}, ""),
        ({}, {"count": 4, "reducer": "min"}, "The min of 4 members is the score."),
        (
            {"evaluated": "a/checkpoints/9", "reducer": "median"},
            {"count": 4, "reducer": "min"},
            "Scores of a/checkpoints/9; the median of 4 members is the score.",
        ),
    ],
)
def test_the_head_says_what_the_scores_are_of(run, info, members, line):
    found = report.load_run(run)
    found = dataclasses.replace(found, info=info, config={"members": members})
    assert html._scored(found) == line


def test_texts_are_escaped(tmp_path):
    run = make_run(tmp_path / "run", evil=True, examples=40)
    evil_set = score_table(3, 40)
    found = json.loads(store.read_text(run / "evals.json"))
    found["sets"]["<script>set"] = writer.to_json(figures(evil_set))
    store.write_json(run / "evals.json", found)
    with writer.RunWriter(run, step=300) as w:
        w.alarm(300, "<script>n", EVIL)
        w.write_event(300, "<script>e", why=EVIL)
        w.write_metrics(300, {"eval/<script>set/nll": 1.0})
    page = store.read_text(report.write_report(run))
    assert "<script" not in page and "<img" not in page and "\x07" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;quotes&#34; ␇" in page


@pytest.mark.parametrize(
    ("keep", "notes"),
    [
        (
            ["config.json"],
            ["No evaluation yet", "No training metrics", "No data audit"],
        ),
        (["metrics.jsonl"], ["No final evaluation yet", "Provenance not recorded"]),
        (["evals.json"], ["No predictions of this set", "No training metrics yet"]),
    ],
)
def test_missing_pieces_are_said(run, tmp_path, keep, notes):
    for name in keep:
        store.write_text(tmp_path / name, store.read_text(run / name))
    text = text_of(store.read_text(report.write_report(tmp_path)))
    for note in notes:
        assert note in text, note


def test_a_running_run_shows_its_last_evaluation(run, tmp_path):
    text = store.read_text(run / "metrics.jsonl")
    store.write_text(tmp_path / "metrics.jsonl", text + '{"step": 310, "tr')
    loaded = report.load_run(tmp_path)
    assert loaded.metrics[-1]["step"] == 300
    found, note = tables.final_evals(loaded)
    assert sorted(found) == ["test", "valid"] and "step 300" in note
    assert found["valid"]["nll"] == loaded.series("eval/valid/nll")[1][-1]


def test_figures_of_an_earlier_end_are_called_so(run, tmp_path):
    store.write_text(tmp_path / "evals.json", store.read_text(run / "evals.json"))
    store.write_text(tmp_path / "metrics.jsonl", '{"step": 400, "train/loss": 1}\n')
    found, note = tables.final_evals(report.load_run(tmp_path))
    assert "step 300" in note and "step 400" in note and "test" in found


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a run directory"):
        report.write_report(tmp_path)
    store.write_text(tmp_path / "metrics.jsonl", '{"step": 1}\n{"st\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not JSON"):
        report.load_run(tmp_path)
    store.write_text(tmp_path / "metrics.jsonl", '{"loss": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:1: not an object with a step"):
        report.load_run(tmp_path)
    store.write_text(tmp_path / "metrics.jsonl", "")
    store.write_text(tmp_path / "evals.json", '{"schema_version": 1, "test": {}}')
    with pytest.raises(ValueError, match=r"no 'sets'; it has .*'test'\]"):
        report.load_run(tmp_path)


def test_unknown_predictions_list_the_known_ones(run):
    with pytest.raises(ValueError, match=r"known: \['test', 'valid'\]"):
        report.load_run(run).predictions("other")


# Tables


def test_numbers_that_are_none_come_back_and_are_warned_of(tmp_path):
    with writer.RunWriter(tmp_path, step=-1) as w:
        w.write_metrics(1, {"train/loss": 0.5})
        w.write_metrics(2, {"train/loss": float("nan")})
        w.write_metrics(3, {"train/loss": float("inf")})
    run = report.load_run(tmp_path)
    assert np.array_equal(
        run.series("train/loss")[1], [0.5, np.nan, np.inf], equal_nan=True
    )
    (warning,) = tables.warnings(run, {})
    assert warning == "train/loss is not finite in 2 of 3 lines, first at step 2"
    report.write_report(tmp_path)


def test_a_model_no_better_than_length_is_warned_of(run):
    clean = report.load_run(run)
    bad = {"accuracy": 0.57, "accuracy_low": 0.54, "accuracy_high": 0.6}
    bad |= {"length_baseline": 0.55}
    (warning,) = tables.warnings(clean, {"t": bad})
    assert warning == (
        "t: accuracy 0.570 (0.540 – 0.600) is not clearly above the 0.550 that length "
        "alone gives"
    )
    assert not list(tables.warnings(clean, {"t": bad | {"accuracy_low": 0.551}}))


def test_length_stands_beside_every_accuracy():
    sets = {"a": {"accuracy": 0.7}, "b": {"nll": 0.6, "n_pairs": 3.0}}
    table = tables.eval_table(sets)
    assert table.headings == ["pairs", "accuracy", "length alone", "NLL, nats"]
    assert [c.value for c in table.rows["a"]] == ["—", "0.700", "—", "—"]
    assert [c.value for c in table.rows["b"]] == ["3", "—", "—", "0.600"]


def test_bias_measured_stands_beside_bias_injected(run):
    table = tables.probe_table(report.load_run(run).evals)
    assert table.headings[:2] == ["bias injected", "bias measured"]
    injected, measured = table.rows["length (test)"][:2]
    # injected .5 - 0; measured .4 + mean(0, ..., .39)
    assert (injected.value, measured.value) == ("0.500", "0.595")


def test_tiles_are_of_the_test_set_and_its_ceiling():
    values = {"accuracy": 0.75, "ceiling": 0.8, "length_baseline": 0.5}
    run = runs.Run("", {}, {}, {}, {}, (), (), (), {}, None, ())
    found = tables.tiles(run, {"valid": {"accuracy": 0.1}, "test": values})
    assert [(t.label, t.cell.value) for t in found] == [
        ("Accuracy", "0.750"),
        ("Share of the ceiling", "93.8%"),
    ]


def test_training_time_counts_every_start():
    timing = tuple({"step": i, "seconds": 40.0, "pairs_per_s": i} for i in (1, 2, 9))
    run = runs.Run("", {}, {}, {}, {}, (), timing, (), {}, None, ())
    (tile,) = tables.tiles(run, {})
    assert tile.cell.value == "0:02:00" and "2 pairs/s" in tile.against


def test_alarms_of_a_kind_are_told_once(run):
    ((event, before),) = tables.alarms(report.load_run(run))
    assert (event["step"], event["name"], before) == (200, "test", 1)


# Pairs and mistakes


def test_pairs_are_those_the_ranks_order():
    table = table_of(
        [
            {"example": 0, "response": 0, "rank": 1, "score": 0.0},
            {"example": 1, "response": 0, "rank": 0, "score": 0.0},
            {"example": 0, "response": 1, "rank": 0, "score": 0.0},
            {"example": 0, "response": 2, "rank": 1, "score": 0.0},
            {"example": 1, "response": 1, "rank": None, "score": 0.0},
        ]
    )
    found = runs.find_pairs(table)
    pairs = sorted(zip(*(column.tolist() for column in found), strict=True))
    assert pairs == [(2, 0, 0.5), (2, 3, 0.5)]


def test_pairs_by_soft_label_and_weight():
    soft = lambda e, p, **more: [
        {"example": e, "response": r, "soft": p, "score": 0.0} | more for r in (0, 1)
    ]
    rows = soft(0, 0.9) + soft(1, 0.2) + soft(2, 0.5) + soft(3, 1.0, weight=0.0)
    table = table_of(rows)
    found = runs.find_pairs(table)
    assert found.chosen.tolist() == [0, 3] and found.rejected.tolist() == [1, 2]


def test_pairs_agree_with_the_evaluation(run):
    table = report.load_run(run).predictions("test")
    found, truth = runs.find_pairs(table), evals.pairs(evals.from_arrow(table))
    score = runs.floats(table, "score")
    delta = score[found.chosen] - score[found.rejected]
    assert np.array_equal(np.sort(delta), np.sort(truth.delta))


def test_no_pairs_no_mistakes_yet_a_page(tmp_path):
    table = table_of([{"example": 0, "response": 0, "score": 1.0}])
    assert len(runs.find_pairs(table).chosen) == 0
    assert runs.worst_mistakes(table) == []
    store.makedirs(tmp_path / "predictions")
    table = table.replace_schema_metadata({"schema_version": "1"})
    pq.write_table(table, tmp_path / "predictions" / "a.parquet")
    store.write_text(tmp_path / "config.json", '{"schema_version": 1}')
    page = store.read_text(report.write_report(tmp_path))
    assert "Lengths or scores are all the same" in page


def test_worst_mistakes_one_an_example_worst_first():
    scores = {0: (0.0, 5.0, 3.0), 1: (1.0, 9.0, 0.0), 2: (2.0, 1.0, 0.0)}
    table = table_of(
        [
            {"example": e, "response": r, "rank": min(r, 1), "score": s, "id": f"x{e}"}
            for e, row in scores.items()
            for r, s in enumerate(row)
        ]
    )
    found = runs.worst_mistakes(table)
    assert [(m.id, m.margin, m.texts) for m in found] == [
        ("x1", -8.0, ("r3", "r4")),
        ("x0", -5.0, ("r0", "r1")),
    ]
    assert [m.id for m in runs.worst_mistakes(table, limit=1)] == ["x1"]


def test_scores_that_are_none_are_warned_of(tmp_path):
    rows = [
        {"example": 0, "response": r, "rank": r, "score": s}
        for r, s in enumerate((np.nan, 1.0))
    ]
    store.makedirs(tmp_path / "predictions")
    table = table_of(rows).replace_schema_metadata({"schema_version": "1"})
    pq.write_table(table, tmp_path / "predictions" / "a.parquet")
    store.write_text(tmp_path / "config.json", '{"schema_version": 1}')
    page = store.read_text(report.write_report(tmp_path))
    assert "a: 1 of 2 scores are not finite" in page


# Figures


def test_reliability_draws_its_points_and_counts():
    given = [[0.1, 0.2, 30], [0.7, 0.6, 50]]
    axes, below = plots.reliability(given).axes
    diagonal, line = axes.get_lines()
    assert points(diagonal).tolist() == [[0, 0], [1, 1]]
    assert points(line).tolist() == [[0.1, 0.2], [0.7, 0.6]]
    assert [bar.get_height() for bar in below.patches] == [30, 50]


def test_reliability_leaves_empty_bins_out(tmp_path):
    empty = {"t": {"reliability": [["NaN", "NaN", 0], [0.75, 0.5, 8]]}}
    store.write_json(tmp_path / "evals.json", {"schema_version": 1, "sets": empty})
    page = store.read_text(report.write_report(tmp_path))
    assert "says 0.75, the share won is 0.50 (8 pairs)" in page


def test_margins_draw_their_counts_and_mark_the_wrong_side():
    (axes,) = plots.margin_histogram([-2, -1, 0, 1], [5, 0, 7]).axes
    bars = axes.patches
    assert [(b.get_x(), b.get_width(), b.get_height()) for b in bars] == [
        (-2, 1, 5),
        (-1, 1, 0),
        (0, 1, 7),
    ]
    colors = [b.get_facecolor() for b in bars]
    assert colors[0] == colors[1] != colors[2]


def test_score_histogram_weighs_the_pairs():
    figure = plots.score_histogram(
        np.array([1.0, 1.0]), np.array([0.0, 1.0]), np.array([3.0, 1.0]), bins=2
    )
    values = {p.get_label(): p.get_data() for p in figure.axes[0].patches}
    assert values["chosen"].values.tolist() == [0, 1]
    assert values["rejected"].values.tolist() == [0.75, 0.25]
    assert values["chosen"].edges.tolist() == [0, 0.5, 1]


def test_score_against_length_counts_every_response():
    lengths, scores = np.array([1, 1, 2, 9]), np.array([0.0, 0.0, 1.0, 2.0])
    (axes,) = plots.score_against_length(lengths, scores).axes
    assert np.sort(axes.collections[0].get_array()).tolist() == [1, 1, 2]
    assert points(axes.get_lines()[0]).tolist() == [[1, 0], [2, 1], [9, 2]]


def test_mean_by_length_by_hand():
    lengths = np.arange(1, 9)
    scores = np.array([0.0, 2.0, 1.0, 1.0, 4.0, 0.0, 3.0, 5.0])
    found = plots.mean_by_length(lengths, scores, bins=2)
    assert found.tolist() == [[2.5, 1.0, 4], [6.5, 3.0, 4]]
    assert plots.mean_by_length(np.full(3, 7), scores[:3]).tolist() == [[7, 1, 3]]
    assert plots.mean_by_length(lengths[:0], scores[:0]).shape == (0, 3)


def test_curves_draw_the_lines_of_the_metrics(run):
    loaded = report.load_run(run)
    steps, values = loaded.series("eval/test/accuracy")
    assert steps.tolist() == [0, 100, 200, 300]
    figure = plots.curve("A", "share", {"test": (steps, values)}, (0.5, "coin"))
    line, level = figure.axes[0].get_lines()
    assert np.array_equal(points(line), np.stack([steps, values], 1))
    assert set(level.get_ydata()) == {0.5}
    assert figure.axes[0].get_xlabel() == "step"


def test_svg_has_an_escaped_description_and_names_with_math_signs():
    figure = plots.curve('<b> "$x_"', "u", {"$\\frac": (np.arange(2), np.arange(2.0))})
    svg = plots.to_svg(figure, '<b> "alt"')
    assert svg.startswith('<svg role="img" aria-label="&lt;b&gt; &quot;alt&quot;"')
    assert "<b>" not in svg and svg.endswith("</svg>")


def test_control_characters_become_visible():
    assert html.visible("a\x00\x1b\n\tb") == "a␀␛\n\tb"
    assert html.visible(None) == ""


def test_the_sources_of_a_mixture_have_rows_of_their_own(tmp_path):
    own = {"n_pairs": 30, "accuracy": 0.61, "length_baseline": 0.55, "nll": 0.6}
    whole = own | {"n_pairs": 70, "sources": {"help": own, "harm": own | {"nll": 0.7}}}
    table = tables.eval_table({"valid": whole, "test": own})
    assert list(table.rows) == ["valid", "valid / help", "valid / harm", "test"]
    nll = table.headings.index("NLL, nats")
    assert [row[nll].value for row in table.rows.values()] == [
        "0.600", "0.600", "0.700", "0.600",
    ]  # fmt: skip
    line = {"step": 5, "eval/valid/nll": 0.6, "eval/valid/harm/nll": 0.7}
    store.write_text(str(tmp_path / "metrics.jsonl"), json.dumps(line) + "\n")
    store.write_text(str(tmp_path / "config.json"), '{"schema_version": 1}')
    store.write_json(tmp_path / "run.json", schemas.stamped("run.json", of_sources()))
    found, _ = tables.final_evals(runs.load_run(str(tmp_path)))
    assert found == {"valid": {"nll": 0.6, "sources": {"harm": {"nll": 0.7}}}}


def test_the_audit_of_each_source_of_a_mixture_is_shown():
    audit = {"counts": {"tied": 1}, "policy": {"tied": "drop"}}
    part = lambda n: {"audit": audit, "counts": {}, "examples": n}
    train = {
        "source": {"a": part(3), "b": part(5)}, "fingerprints": {"a": "x", "b": "y"},
        "audit": {}, "counts": {}, "examples": 8,
    }  # fmt: skip
    table = tables.data_table({"data": {"train": train, "test": part(2)}})
    assert table.headings == ["train", "train / a", "train / b", "test"]
    values = {name: [c.value for c in row] for name, row in table.rows.items()}
    assert values["examples"] == ["8", "3", "5", "2"]
    assert values["tied (drop)"] == ["—", "1", "1", "1"]


def test_each_set_of_a_mixture_has_curves_of_its_sources(tmp_path):
    names = ("train/nll", "train/a/nll", "train/b/nll", "eval/valid/nll")
    names += ("eval/valid/a/nll", "train/grad_norm", "train/seconds")
    names += ("eval/valid/members/nll", "eval/valid/uncertainty/nll")  # no sources
    names += ("eval/valid/reducer/min/nll", "eval/valid/strength/1/accuracy")
    lines = [{"step": n, **dict.fromkeys(names, 0.5)} for n in (1, 2)]
    info = {"data": {k: of_sources(k, "a", "b")["data"][k] for k in ("train", "valid")}}
    run = runs.Run(str(tmp_path), {}, {}, {}, info, lines, (), (), {}, None, ())
    captions = [picture.caption for picture in html._curves(run)]
    ends = "first to last value: "
    assert captions == [
        f"Negative log-likelihood (nats a pair), {ends}eval/valid 0.5 to 0.5, "
        "train 0.5 to 0.5.",
        "Negative log-likelihood, sources of eval/valid (nats a pair), "
        f"{ends}a 0.5 to 0.5.",
        "Negative log-likelihood, sources of train (nats a pair), "
        f"{ends}a 0.5 to 0.5, b 0.5 to 0.5.",
        f"Gradient norm (global norm), {ends}train 0.5 to 0.5.",
    ]


def test_a_metric_of_a_single_step_has_no_curve_but_a_word(tmp_path):
    lines = [{"step": 1, "train/nll": 0.5, "eval/valid/nll": 0.6}]
    lines.append({"step": 1, "train/loss": 0.5})
    lines.append({"step": 2, "train/loss": 0.4})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    page = store.read_text(report.write_report(tmp_path))
    assert page.count("<svg") == 1
    word = "No curve yet, a single point: Negative log-likelihood."
    assert word in text_of(page) and "No training metrics" not in page


def test_many_curves_look_different_and_the_legend_is_below_them():
    lines = {f"s{n}": (np.arange(3), np.arange(3.0) + n) for n in range(15)}
    figure = plots.curve("A", "share", lines)
    looks = {(a.get_color(), a.get_linestyle()) for a in figure.axes[0].get_lines()}
    assert len(looks) == 15
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 <= figure.axes[0].get_window_extent().y0


@pytest.mark.parametrize("step", ['"x"', "1.5", "true", "null"])
def test_a_step_that_is_no_whole_number_names_the_line(tmp_path, step):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:1: not an object with a step"):
        report.load_run(tmp_path)
