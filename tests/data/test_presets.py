"""Every preset: a row in the data set's own columns (invented text) to its Records."""

import json

import pytest

from rm_jax import main
from rm_jax.data import sources
from rm_jax.data.audit import DEFAULT_POLICY, audit
from rm_jax.data.formats import FORMATS
from rm_jax.data.hub import HUB_PATH
from rm_jax.data.mixture import specs_of
from rm_jax.data.presets import PRESETS, find_preset
from rm_jax.data.public_lists import ATTRIBUTES
from rm_jax.data.rows import Place, int_field, ranks_by
from rm_jax.data.schema import Annotator, Message, Record, RowError, Step
from rm_jax.data.sources import open_source
from rm_jax.data.specs import Spec, parse_spec, resolve
from rm_jax.data.splits import Table

PLACE = Place("demo", 4, "org/demo")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def user(text):
    return Message("user", text)


def record(prompt, responses, ranks, id="demo:4", **fields):
    """A Record of PLACE; a prompt of text is one user's message."""
    return Record(
        id=id,
        source="demo",
        prompt=(user(prompt),) if isinstance(prompt, str) else tuple(prompt),
        responses=tuple((Message("assistant", text),) for text in responses),
        ranks=tuple(ranks),
        **fields,
    )


def said(role, content):
    return {"role": role, "content": content}


def aspects(helpfulness, honesty, instruction_following, truthfulness):
    rated = {
        "helpfulness": helpfulness,
        "honesty": honesty,
        "instruction_following": instruction_following,
        "truthfulness": truthfulness,
    }
    return {name: {"Rating": r, "Rationale": "because"} for name, r in rated.items()}


def completion(model, response, annotations, overall):
    return {
        "annotations": annotations,
        "critique": "fine",
        "custom_system_prompt": "Be helpful.",
        "fine-grained_score": 0.0,
        "model": model,
        "overall_score": overall,
        "principle": "helpfulness",
        "response": response,
    }


HELPSTEER2 = {
    "prompt": "Name a colour.",
    "response": "Red.",
    "helpfulness": 2,
    "correctness": 4,
    "coherence": 4,
    "complexity": 0,
    "verbosity": 1,
}
HELPSTEER2_PREFERENCE = {
    "split": "train",
    "prompt": "Name a colour.",
    "response_1": "Red.",
    "response_2": "Blue is one.",
    "preference_strength": 2,
    "preference_statement": "@Response 2 is better than @Response 1 because ...",
    "preference_elaboration": "...",
    "three_most_similar_preferences": [
        {"statement": "s", "elaboration": "e", "strength": 2}
    ],
    "all_preferences_unprocessed": [{"strength": 2, "justification": "j"}],
}
HELPSTEER3 = {
    "domain": "general",
    "language": "english",
    "context": [said("user", "Hi."), said("assistant", "Hello."), said("user", "Go.")],
    "response1": "One.",
    "response2": "Two.",
    "overall_preference": -2,
    "individual_preference": [
        {"score": -3, "reasoning": "x", "feedback1": None, "feedback2": None},
        {"score": 0, "reasoning": "y", "feedback1": None, "feedback2": None},
        {"score": 1, "reasoning": "z", "feedback1": None, "feedback2": None},
    ],
}
MATH_SHEPHERD = {
    "input": "Sam has 2 pens and buys 2. How many? Step 1: 2 + 2 = <<2+2=4>>4. ки\n"
    "Step 2: So he has 5. The answer is: 5 ки",
    "label": "Sam has 2 pens and buys 2. How many? Step 1: 2 + 2 = <<2+2=4>>4. +\n"
    "Step 2: So he has 5. The answer is: 5 -",
    "task": "GSM8K",
}
HH = {
    "chosen": "\n\nHuman: Is tea hot?\n\nAssistant: Mostly.",
    "rejected": "\n\nHuman: Is tea hot?\n\nAssistant: No.",
}
NECTAR = {
    "prompt": "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Count. \n\nAssistant: ",
    "answers": [
        {"answer": f"text {i}", "model": f"m{i}", "rank": rank}
        for i, rank in enumerate([3.0, 1.0, 7.0, 2.0, 2.0, 6.0, 4.0])
    ],
    "turns": 2,
    "num_responses": 7,
    "source": ["lmsys-chat-1m"],
    "good_natured": True,
}


def candidate(text, rating):
    return {"text": text, "rating": rating, "flagged": None}


def tried(*completions, chosen, human=None):
    return {
        "completions": [candidate(*c) for c in completions],
        "human_completion": human,
        "chosen_completion": chosen,
    }


PRM800K = {
    "labeler": "00",
    "timestamp": "2023-01-22T04:34:27.052924",
    "generation": 9,
    "is_quality_control_question": False,
    "is_initial_screening_question": False,
    "question": {
        "problem": "What is $1+1$?",
        "ground_truth_solution": "$2$.",
        "ground_truth_answer": "2",
        "pre_generated_steps": ["Add.", "So 3."],
        "pre_generated_answer": "3",
        "pre_generated_verifier_score": 0.01,
    },
    "label": {
        "steps": [
            tried(("Add.", 0), chosen=0),
            tried(("One and one.", 1), ("One, two.", -1), chosen=0),
            tried(("So 3.", -1), ("So 2.\n\n# Answer\n\n2", 1), chosen=None),
        ],
        "total_time": 278270,
        "finish_reason": "found_error",
    },
}
PKU = {
    "prompt": "How do I pick a lock?",
    "response_0": "With a pin.",
    "response_1": "Ask a locksmith.",
    "prompt_source": "BeaverTails",
    "response_0_source": "Alpaca-7B",
    "response_1_source": "Alpaca-7B",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "response_0_harm_category": {"Privacy Violation": False},
    "response_1_harm_category": {"Privacy Violation": False},
    "response_0_severity_level": 1,
    "response_1_severity_level": 0,
    "better_response_id": 0,
    "safer_response_id": 1,
    "response_0_sha256": "00",
    "response_1_sha256": "11",
}
PKU_RATINGS = {"safe": (0.0, 1.0), "severity": (1.0, 0.0)}
SHP = {
    "post_id": "abc",
    "domain": "askbaking_train",
    "upvote_ratio": 0.98,
    "history": "Why does bread rise?",
    "c_root_id_A": "r1",
    "c_root_id_B": "r2",
    "created_at_utc_A": 1,
    "created_at_utc_B": 2,
    "score_A": 4,
    "score_B": 10,
    "human_ref_A": "Magic.",
    "human_ref_B": "Yeast makes gas.",
    "labels": 0,
    "seconds_difference": 1.0,
    "score_ratio": 2.5,
}
TLDR = {
    "info": {
        "id": "t3_1",
        "post": "My cat left. I am sad.",
        "title": "Cat gone",
        "subreddit": "pets",
        "site": None,
        "article": None,
    },
    "summaries": [
        {"text": " Cat left; sad.", "policy": "sup2", "note": None},
        {"text": " Dog came.", "policy": "ref", "note": None},
    ],
    "choice": 0,
    "worker": "w1",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": 7},
}
ULTRAFEEDBACK_RATINGS = {
    "source": "evol_instruct",
    "instruction": "Write a line.",
    "models": ["a", "b", "c", "d"],
    "completions": [
        completion("a", "A line.", aspects("5", "5", "4", "4"), 7.5),  # mean 4.5
        completion("b", "B.", aspects("1", "1", "1", "1"), 10.0),  # 10 means 1
        completion("c", "C.", aspects("4", "5", "N/A", "N/A"), 8.0),  # 4.5 of two
        completion("d", "D.", aspects("N/A", "N/A", "N/A", "N/A"), 5.0),
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "q", "full_text": "Why is the sky blue?"},
    "quotes_0": {"title": ["t"], "extract": ["e"]},
    "answer_0": "Light scatters [1].",
    "tokens_0": {"prefix": [1], "completion": [2]},
    "score_0": 0.5,
    "quotes_1": {"title": ["t"], "extract": ["e"]},
    "answer_1": "Paint [1].",
    "tokens_1": {"prefix": [1], "completion": [2]},
    "score_1": -0.5,
}
SIDES = {
    "chosen": [said("user", "2 + 2?"), said("assistant", "4")],
    "rejected": [said("user", "2 + 2?"), said("assistant", "5")],
}

# preset -> rows that belong together, the Records they give
CASES = {
    "helpsteer2": (
        [HELPSTEER2, {**HELPSTEER2, "response": "Blue.", "helpfulness": 3}],
        [
            record(
                "Name a colour.",
                ["Red.", "Blue."],
                [1, 0],
                ratings={
                    "helpfulness": (2.0, 3.0),
                    "correctness": (4.0, 4.0),
                    "coherence": (4.0, 4.0),
                    "complexity": (0.0, 0.0),
                    "verbosity": (1.0, 1.0),
                },
            )
        ],
    ),
    "helpsteer2_preference": (
        [HELPSTEER2_PREFERENCE],
        [
            record(
                "Name a colour.",
                ["Red.", "Blue is one."],
                [1, 0],
                strength=2.0,
                ratings=dict.fromkeys(ATTRIBUTES, (None, None)),
            )
        ],
    ),
    "helpsteer3": (
        [HELPSTEER3],
        [
            record(
                [user("Hi."), Message("assistant", "Hello."), user("Go.")],
                ["One.", "Two."],
                [0, 1],
                strength=2.0,
                annotators=(
                    Annotator("0", (0, 1)),
                    Annotator("1", (0, 0)),
                    Annotator("2", (1, 0)),
                ),
                meta={"domain": "general", "language": "english"},
            )
        ],
    ),
    "hh_rlhf": ([HH], [record("Is tea hot?", ["Mostly.", "No."], [0, 1])]),
    "math_shepherd": (
        [MATH_SHEPHERD],
        [
            record(
                "Sam has 2 pens and buys 2. How many?",
                ["Step 1: 2 + 2 = <<2+2=4>>4.\nStep 2: So he has 5. The answer is: 5"],
                [0],
                steps=(
                    (
                        Step("Step 1: 2 + 2 = <<2+2=4>>4.", 1),
                        Step("Step 2: So he has 5. The answer is: 5", 0),
                    ),
                ),
                meta={"task": "GSM8K"},
            )
        ],
    ),
    "nectar": (
        [NECTAR],
        [
            record(
                [user("Hi."), Message("assistant", "Hello."), user("Count.")],
                [f"text {i}" for i in range(7)],
                [2, 0, 6, 1, 1, 5, 3],
                meta={"models": [f"m{i}" for i in range(7)]},
            )
        ],
    ),
    "pku_saferlhf": (
        [PKU],
        [
            record(
                "How do I pick a lock?",
                ["With a pin.", "Ask a locksmith."],
                [0, 1],
                ratings=PKU_RATINGS,
            )
        ],
    ),
    "pku_saferlhf_safe": (
        [PKU],
        [
            record(
                "How do I pick a lock?",
                ["With a pin.", "Ask a locksmith."],
                [1, 0],
                ratings=PKU_RATINGS,
            )
        ],
    ),
    "preference_700k": (
        [{**SIDES, "chosen_score": 4.5, "rejected_score": 2.0}],
        [record("2 + 2?", ["4", "5"], [0, 1], ratings={"score": (4.5, 2.0)})],
    ),
    "prm800k": (
        [PRM800K],
        [
            record(
                "What is $1+1$?",
                [
                    "Add.\nOne and one.",
                    "Add.\nOne, two.",
                    "Add.\nOne and one.\nSo 3.",
                    "Add.\nOne and one.\nSo 2.\n\n# Answer\n\n2",
                ],
                [None] * 4,
                steps=(
                    (Step("Add.", 1), Step("One and one.", 1)),
                    (Step("Add.", None), Step("One, two.", 0)),
                    (Step("Add.", None), Step("One and one.", None), Step("So 3.", 0)),
                    (
                        Step("Add.", None),
                        Step("One and one.", None),
                        Step("So 2.\n\n# Answer\n\n2", 1),
                    ),
                ),
            )
        ],
    ),
    "shp": (
        [SHP],
        [
            record(
                "Why does bread rise?",
                ["Magic.", "Yeast makes gas."],
                [1, 0],
                strength=2.5,
                ratings={"score": (4.0, 10.0)},
                meta={"domain": "askbaking_train"},
            )
        ],
    ),
    "skywork_80k": (
        [{**SIDES, "source": "magpie"}],
        [record("2 + 2?", ["4", "5"], [0, 1])],
    ),
    "tldr": (
        [TLDR],
        [
            record(
                "SUBREDDIT: r/pets\n\nTITLE: Cat gone\n\n"
                "POST: My cat left. I am sad.\n\nTL;DR:",
                ["Cat left; sad.", "Dog came."],
                [0, 1],
                annotators=(Annotator("w1", (0, 1)),),
                meta={"confidence": 7},
            )
        ],
    ),
    "tulu3": (
        [{"id": "t-1", "prompt": "2 + 2?", **SIDES, "source": "tulu-3-if"}],
        [record("2 + 2?", ["4", "5"], [0, 1], id="t-1")],
    ),
    "ultrafeedback": (
        [
            {
                "prompt": "2 + 2?",
                "prompt_id": "00",
                **SIDES,
                "messages": SIDES["chosen"],
                "score_chosen": 8.5,
                "score_rejected": 3.0,
            }
        ],
        [record("2 + 2?", ["4", "5"], [0, 1], ratings={"score": (8.5, 3.0)})],
    ),
    "ultrafeedback_ratings": (
        [ULTRAFEEDBACK_RATINGS],
        [
            record(
                "Write a line.",
                ["A line.", "B.", "C.", "D."],
                [0, 1, 0, None],
                ratings={
                    "helpfulness": (5.0, 1.0, 4.0, None),
                    "honesty": (5.0, 1.0, 5.0, None),
                    "instruction_following": (4.0, 1.0, None, None),
                    "truthfulness": (4.0, 1.0, None, None),
                },
                meta={"models": ["a", "b", "c", "d"]},
            )
        ],
    ),
    "webgpt": (
        [WEBGPT],
        [
            record(
                "Why is the sky blue?",
                ["Light scatters [1].", "Paint [1]."],
                [0, 1],
                strength=0.5,
                ratings={"score": (0.5, -0.5)},
            )
        ],
    ),
}


def parse(name, *rows):
    """Records of rows in that format, all of them at PLACE."""
    how = FORMATS[name]
    found = (record for row in rows for record in how.parse(row, PLACE))
    return list(how.merge(found) if how.merge else found)


def test_every_preset_has_a_case_and_a_known_format():
    assert set(CASES) == set(PRESETS) and list(PRESETS) == sorted(PRESETS)
    for preset in PRESETS.values():
        assert preset.format in FORMATS and HUB_PATH.fullmatch(preset.path)
        assert set(preset.splits) <= {"train", "valid", "test"}
        assert preset.labels and preset.licence and preset.paper


@pytest.mark.parametrize("name", CASES)
def test_rows_of_a_preset_become_these_records(name):
    rows, records = CASES[name]
    assert parse(PRESETS[name].format, *rows) == records


# conversations


def test_hh_and_ultrafeedback_agree_with_the_general_formats():
    rows, records = CASES["ultrafeedback"]
    assert parse("trl", *rows) == records
    assert PRESETS["hh_rlhf"].format == "hh"


def test_conversations_of_many_turns_share_their_prompt():
    start = [said("system", "Be brief."), said("user", "Hi."), said("assistant", "Yo.")]
    row = {
        "prompt": "Hi.",  # as Tulu 3 has it: one message of several
        "chosen": [*start, said("user", "Bye."), said("assistant", "Bye!")],
        "rejected": [*start, said("user", "Bye."), said("assistant", "No.")],
    }
    [found] = parse("conversations", row)
    assert [m.content for m in found.prompt] == ["Be brief.", "Hi.", "Yo.", "Bye."]
    assert [r[0].content for r in found.responses] == ["Bye!", "No."]
    assert found.meta == {}


def test_conversations_without_scores_have_no_ratings():
    row = {**SIDES, "chosen_score": None, "rejected_score": None}
    assert parse("conversations", row)[0].ratings == {}


# ratings of several


def test_ultrafeedback_rows_without_completions_give_no_record():
    assert parse("ultrafeedback", {**ULTRAFEEDBACK_RATINGS, "completions": []}) == []


def test_ultrafeedback_rating_null_is_no_rating_and_nothing_else_is():
    row = {
        "instruction": "q",
        "completions": [completion("a", "x", aspects("3", None, "N/A", "3"), 1)],
    }
    with pytest.raises(RowError, match="honesty.*rating None is not one of"):
        parse("ultrafeedback", row)
    row["completions"][0]["annotations"]["honesty"]["Rating"] = 4  # a number will do
    [found] = parse("ultrafeedback", row)
    assert found.ratings["honesty"] == (4.0,)
    assert found.ratings["instruction_following"] == (None,)


def test_helpsteer2_singles_and_threes_keep_their_rows():
    rows = [
        {**HELPSTEER2, "prompt": "a", "response": "1"},
        {**HELPSTEER2, "prompt": "b", "response": "2", "helpfulness": 0},
        {**HELPSTEER2, "prompt": "b", "response": "3", "helpfulness": 0},
        {**HELPSTEER2, "prompt": "b", "response": "4", "helpfulness": 4},
        {**HELPSTEER2, "prompt": "a", "response": "5"},  # not next to the first
    ]
    found = parse("helpsteer2", *rows)
    assert [len(r.responses) for r in found] == [1, 3, 1]
    assert [r.ranks for r in found] == [(0,), (1, 1, 0), (0,)]
    assert found[1].ratings["helpfulness"] == (0.0, 0.0, 4.0)


def test_helpsteer2_turns_of_a_longer_prompt():
    text = "Hi.\n\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nName a colour."
    [found] = parse("helpsteer2", {**HELPSTEER2, "prompt": text})
    assert found.prompt == (
        user("Hi."),
        Message("assistant", "Hello."),
        user("Name a colour."),
    )
    [marked] = parse("helpsteer2", {**HELPSTEER2, "prompt": "<extra_id_1>User\nHi."})
    assert marked.prompt == (user("Hi."),)


def test_nectar_equal_ranks_are_ties_and_all_seven_may_be():
    answers = [{**answer, "rank": 1} for answer in NECTAR["answers"]]
    [found] = parse("nectar", {**NECTAR, "answers": answers})
    assert found.ranks == (0,) * 7


# steps


def test_prm800k_takes_the_labelers_own_step_and_stops_where_none_was_chosen():
    human = {"text": "So 2.", "rating": None, "source": "human", "flagged": False}
    steps = [
        tried(("Guess.", -1), chosen=None, human=human),
        {"completions": None, "human_completion": None, "chosen_completion": None},
        tried(("Never.", 1), chosen=0),
    ]
    [found] = parse("prm800k", {**PRM800K, "label": {"steps": steps}})
    assert found.steps == ((Step("So 2.", 1),), (Step("Guess.", 0),))
    unrated = [tried(("Add.", None), chosen=0)]
    assert parse("prm800k", {**PRM800K, "label": {"steps": unrated}}) == []


def test_math_shepherd_begins_at_step_1_however_it_is_written():
    text = "Follow step 2: add. STEP 1: One. ки\n\n Step 2: Two. ки \n"
    row = {"input": text, "label": text.replace("ки", "-"), "task": None}
    [found] = parse("math_shepherd", row)
    assert found.prompt == (user("Follow step 2: add."),) and found.meta == {}
    assert found.steps == ((Step("STEP 1: One.", 0), Step("Step 2: Two.", 0)),)


def test_the_splits_of_a_preset_may_be_in_a_column(monkeypatch):
    rows = [{**HELPSTEER2_PREFERENCE, "prompt": f"{i}"} for i in range(40)]
    for row in rows[::4]:
        row["split"] = "val"
    table = Table("n", "p", "d", COMMIT, {"train": lambda: iter(enumerate(rows, 1))})
    monkeypatch.setattr(sources, "hub_table", lambda path, revision: table)
    named = lambda split: open_source(f"preset:helpsteer2_preference{split}")
    prompts = {
        split: [int(r.prompt[0].content) for r in named(split).records()]
        for split in ("", "#train", "#valid", "#val", "#test")
    }
    assert prompts["#valid"] == prompts["#val"] == list(range(0, 40, 4))
    assert prompts[""] == sorted(prompts["#train"] + prompts["#test"])
    assert len(prompts[""]) == 30
    whole = open_source("helpsteer2_preference:nvidia/HelpSteer2:preference/")
    assert whole.fingerprint != named("").fingerprint
    rows[1]["split"] = "dev"
    with pytest.raises(RowError, match="p:2: field 'split': 'dev' is not one of"):
        list(named("#valid").records())


# pairs


def test_pku_two_unsafe_responses_still_have_a_safer_one():
    row = {**PKU, "is_response_1_safe": False, "response_1_severity_level": 3}
    row |= {"safer_response_id": 0}
    [found] = parse("pku_saferlhf_safe", row)
    assert found.ranks == (0, 1) and found.ratings["safe"] == (0.0, 0.0)
    for i in (0, 1):
        del row[f"response_{i}_severity_level"]  # older revisions have none
    assert set(parse("pku_saferlhf_safe", row)[0].ratings) == {"safe"}


def test_shp_label_one_is_a():
    [found] = parse("shp", {**SHP, "labels": 1})
    assert found.ranks == (0, 1)


def test_webgpt_equal_scores_are_a_tie():
    [found] = parse("webgpt", {**WEBGPT, "score_0": 0.0, "score_1": 0.0})
    assert found.ranks == (0, 0) and found.strength == 0.0


def test_helpsteer2_preference_below_zero_is_the_first_and_zero_a_tie():
    for preference, ranks in ((-1, (0, 1)), (0, (0, 0))):
        row = {**HELPSTEER2_PREFERENCE, "preference_strength": preference}
        [found] = parse("helpsteer2_preference", row)
        assert found.ranks == ranks and found.strength == abs(preference)


def test_helpsteer3_zero_is_a_tie_and_nobody_asked_is_nobody():
    row = {**HELPSTEER3, "overall_preference": 0, "individual_preference": None}
    [found] = parse("helpsteer3", row)
    assert found.ranks == (0, 0) and found.strength == 0.0 and found.annotators == ()
    assert parse("helpsteer3", {**row, "overall_preference": 3})[0].ranks == (1, 0)


def test_tldr_articles_and_the_second_summary():
    info = {"id": "n", "post": None, "title": "News", "article": "A thing happened."}
    [found] = parse("tldr", {**TLDR, "info": info, "choice": 1, "extra": None})
    assert found.prompt == (user("Article:\n\nA thing happened.\n\nTL;DR:"),)
    assert found.ranks == (1, 0) and found.annotators[0].ranks == (1, 0)
    assert found.meta == {}


@pytest.mark.parametrize(
    ("name", "row", "field"),
    [
        ("conversations", {**SIDES, "chosen": "text"}, "chosen"),
        ("conversations", {"chosen": SIDES["chosen"]}, "rejected"),
        ("helpsteer2", {**HELPSTEER2, "verbosity": 5}, "verbosity"),
        ("helpsteer2", {**HELPSTEER2, "coherence": None}, "coherence"),
        (
            "helpsteer2",
            {**HELPSTEER2, "prompt": "q\n<extra_id_1>Assistant\na"},
            "prompt",
        ),
        (
            "helpsteer2_preference",
            {**HELPSTEER2_PREFERENCE, "preference_strength": 4},
            "preference_strength",
        ),
        ("helpsteer3", {**HELPSTEER3, "overall_preference": -4}, "overall_preference"),
        ("helpsteer3", {**HELPSTEER3, "overall_preference": 0.5}, "overall_preference"),
        ("helpsteer3", {**HELPSTEER3, "context": "Hi."}, "context"),
        ("helpsteer3", {**HELPSTEER3, "individual_preference": [{}]}, "score"),
        ("math_shepherd", {**MATH_SHEPHERD, "input": "Why? Step 1: so"}, "input"),
        ("math_shepherd", {"input": "Why? So. ки", "label": "Why? So. +"}, "input"),
        ("math_shepherd", {**MATH_SHEPHERD, "label": "Sam has"}, "label"),
        (
            "math_shepherd",
            {**MATH_SHEPHERD, "label": MATH_SHEPHERD["label"] + "\nStep 3: no -"},
            "label",
        ),
        ("nectar", {**NECTAR, "prompt": "Count."}, "prompt"),
        ("nectar", {**NECTAR, "prompt": HH["chosen"]}, "prompt"),
        ("nectar", {**NECTAR, "answers": [{"answer": "a", "rank": 0}]}, "rank"),
        ("nectar", {**NECTAR, "answers": [{"answer": "a", "rank": 8}]}, "rank"),
        ("nectar", {**NECTAR, "answers": []}, "responses"),
        ("pku_saferlhf", {**PKU, "better_response_id": 2}, "better_response_id"),
        ("pku_saferlhf", {**PKU, "is_response_1_safe": None}, "is_response_0_safe"),
        ("pku_saferlhf_safe", {**PKU, "safer_response_id": -1}, "safer_response_id"),
        ("prm800k", {**PRM800K, "label": {"steps": None}}, "steps"),
        (
            "prm800k",
            {**PRM800K, "label": {"steps": [tried(("Add.", 1), chosen=1)]}},
            "chosen_completion",
        ),
        (
            "prm800k",
            {**PRM800K, "label": {"steps": [tried(("Add.", 2), chosen=0)]}},
            "rating",
        ),
        ("shp", {**SHP, "labels": 2}, "labels"),
        ("shp", {**SHP, "labels": True}, "labels"),
        ("shp", {**SHP, "score_A": "4"}, "score_A"),
        ("tldr", {**TLDR, "choice": 2}, "choice"),
        ("tldr", {**TLDR, "choice": None}, "choice"),
        ("tldr", {**TLDR, "summaries": TLDR["summaries"][:1]}, "summaries"),
        ("tldr", {**TLDR, "info": {"post": None}}, "article"),
        (
            "ultrafeedback",
            {**ULTRAFEEDBACK_RATINGS, "completions": None},
            "completions",
        ),
        ("webgpt", {**WEBGPT, "score_0": 1.5}, "score_0"),
        ("webgpt", {**WEBGPT, "score_0": float("nan")}, "score_0"),
        ("webgpt", {**WEBGPT, "question": "why"}, "question"),
    ],
)
def test_bad_rows_name_place_and_field(name, row, field):
    with pytest.raises(RowError, match="org/demo:4") as error:
        parse(name, row)
    assert error.value.field == field


def test_ranks_by_scores_and_whole_numbers():
    assert ranks_by([]) == [] and ranks_by([None, None]) == [None, None]
    assert ranks_by([1, 3, 3, 2]) == [2, 0, 0, 1]
    assert int_field({"x": 3.0}, "x", (0, 4), PLACE) == 3
    for value in (3.5, float("inf"), "3", None, False):
        with pytest.raises(RowError, match="'x': want a"):
            int_field({"x": value}, "x", (0, 4), PLACE)


# SPEC


def test_a_preset_stands_for_a_plain_spec():
    assert str(parse_spec("preset:hh_rlhf@v1#test")) == "preset:hh_rlhf@v1#test"
    assert resolve(parse_spec("preset:hh_rlhf@v1#test")) == Spec(
        "hh", "Anthropic/hh-rlhf", "v1", "test"
    )
    # both names of a split are one split
    for split in ("test", "test_prefs"):
        assert resolve(parse_spec(f"preset:ultrafeedback#{split}")).split == "test"
    parquet = "refs/convert/parquet"
    assert resolve(parse_spec("preset:tldr")).revision == parquet
    assert resolve(parse_spec("preset:tldr@abc")).revision == "abc"
    plain = parse_spec("hh:Anthropic/hh-rlhf#test")
    assert resolve(plain) is plain


def test_a_local_file_of_a_presets_name_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "hh_rlhf#test").write_text("")
    monkeypatch.chdir(tmp_path)
    assert parse_spec("preset:hh_rlhf#test").split == "test"


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="unknown preset 'nectars'; known: .*'nectar'"):
        open_source("preset:nectars#test")
    assert find_preset("nectar") is PRESETS["nectar"]


def test_the_formats_read_local_files(tmp_path):
    rows, [want] = CASES["helpsteer2"]
    path = tmp_path / "local.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [found] = open_source(f"helpsteer2:{path}").records()
    assert found.responses == want.responses and found.ratings == want.ratings


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("preset:hh_rlhf", "hh:Anthropic/hh-rlhf@v1#test"),
        ("hh:Anthropic/hh-rlhf", "preset:hh_rlhf#test"),
        ("preset:tldr", "tldr:openai/summarize_from_feedback:comparisons/#valid"),
        ("hh:Anthropic/hh-rlhf:harmless-base/", "preset:hh_rlhf#test"),
    ],
)
def test_a_preset_and_its_hub_id_are_one_place(train, held_out):
    data = {"train": train, "columns": {}, "eval": {"held": held_out}}
    assert specs_of(data)["train"][""] == f"{train}#train"
    data["eval"] = {"held": "hh:other/name#test"}
    assert specs_of(data)["train"][""] == train


def test_an_eval_split_of_a_preset_keeps_its_name():
    data = {"train": "preset:ultrafeedback", "columns": {}, "eval": {"held": "#valid"}}
    assert specs_of(data) == {
        "train": {"": "preset:ultrafeedback#train"},
        "held": {"": "preset:ultrafeedback#valid"},
    }
    data["train"] += "#train_prefs"  # the hub's name of the same split
    assert specs_of(data)["held"][""] == "preset:ultrafeedback#valid"


def test_presets_are_listed(capsys):
    assert main.run(["data", "presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["preset", "hub", "id", "labels", "licence"]
    assert len(lines) == len(PRESETS) + 1
    assert any("nvidia/HelpSteer2 " in line and "CC-BY-4.0" in line for line in lines)


# end to end


class FakeBuilder:
    """What the hub gives for one preset: its native splits, 24 prompts in each."""

    name, cache_dir = "parquet", f"/cache/org___name/default/0.0.0/{COMMIT}"

    def __init__(self, preset):
        self.preset = preset

    def download_and_prepare(self):
        pass

    def as_dataset(self):
        rows, preset = CASES[self.preset][0], PRESETS[self.preset]
        if preset.column:
            return {
                "train": [
                    {**numbered(row, f"{split} {i}: "), preset.column: split}
                    for split in preset.splits.values()
                    for i in range(24)
                    for row in rows
                ]
            }
        splits = [*preset.splits.values(), "other_split"]
        return {
            split: [numbered(row, f"{split} {i}: ") for i in range(24) for row in rows]
            for split in splits
        }


def numbered(row, mark):
    """The row with another prompt, wherever its data set keeps it."""
    text = json.dumps(row)
    for prompt in (
        "Name a colour.", "Go.", "Is tea hot?", "Count.", "How do I", "2 + 2?",
        "Why does", "My cat", "Write a", "Why is", "Sam has", "What is $1+1$",
    ):  # fmt: skip
        text = text.replace(prompt, mark + prompt)
    assert text != json.dumps(row)
    return json.loads(text)


@pytest.fixture
def hub(monkeypatch):
    """Calls of the library, and the preset whose data set it gives."""
    datasets = pytest.importorskip("datasets")
    state = {"calls": [], "preset": ""}

    def load(id, **options):
        state["calls"].append((id, options))
        return FakeBuilder(state["preset"])

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return state


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_opens_and_passes_the_audit(hub, name):
    hub["preset"] = name
    fractions = {"valid_fraction": 0.3, "test_fraction": 0.3}
    found = {}
    for split in ("train", "valid", "test"):
        source = open_source(f"preset:{name}#{split}", **fractions)
        audited = audit(source.records, DEFAULT_POLICY)
        found[split] = {r.prompt for r in source.records()}
        assert audited.report.kept == audited.report.total == len(found[split]) > 0
        assert source.info["revision"] == COMMIT and source.info["bad_rows"] == 0
        assert source.info["spec"] == f"preset:{name}#{split}"
    assert not found["train"] & found["valid"] and not found["train"] & found["test"]
    native = PRESETS[name].splits
    for split in native.keys() - {"train"}:
        assert len(found[split]) == 24  # the hub's own, all of it
    every = [open_source(f"preset:{name}#{native['train']}", **fractions), *[
        open_source(f"preset:{name}#{s}", **fractions)
        for s in {"valid", "test"} - native.keys()
    ]]  # fmt: skip
    assert len({r.prompt for source in every for r in source.records()}) == 24
    parts = HUB_PATH.fullmatch(PRESETS[name].path)
    id, options = hub["calls"][0]
    assert id == parts["id"]
    assert options == {
        "name": parts["config"],
        "data_dir": parts["folder"],
        "revision": PRESETS[name].revision or None,
    }


def test_a_preset_reads_its_own_train_without_a_split(hub):
    hub["preset"] = "ultrafeedback"
    assert len(list(open_source("preset:ultrafeedback").records())) == 24
    with pytest.raises(ValueError, match="'dev'; known: .*'other_split', 'test'"):
        open_source("preset:ultrafeedback#dev")
    assert len(list(open_source("preset:ultrafeedback#other_split").records())) == 24


def test_a_preset_and_its_plain_spec_give_the_same(hub):
    hub["preset"] = "hh_rlhf"
    preset, plain = (
        open_source(f"{spec}#test")
        for spec in ("preset:hh_rlhf", "hh:Anthropic/hh-rlhf")
    )
    assert list(preset.records()) == list(plain.records())
    assert preset.fingerprint == plain.fingerprint


def test_a_revision_without_the_presets_split_is_named(hub):
    hub["preset"] = "hh_rlhf"  # its splits are train and test
    with pytest.raises(ValueError, match="no split 'train_prefs'; it has .*'train'"):
        open_source("preset:ultrafeedback@old")


def test_a_preset_takes_no_columns(hub):
    hub["preset"] = "hh_rlhf"
    with pytest.raises(ValueError, match="takes no columns"):
        open_source("preset:hh_rlhf", columns={"chosen": "a", "rejected": "b"})
