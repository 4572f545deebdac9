"""Presets: public preference data sets by a short name, `preset:NAME`.

A preset says where a data set lies on the Hugging Face hub, which format reads its
rows, and what its splits are called there. Columns and label conventions are those of
the data set's card, cited in the format (public_pairs.py, public_lists.py,
public_steps.py). Two of the repositories hold a loading script, which `datasets` no
longer runs: those are read from the branch where the hub keeps them as parquet files.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rm_jax.data.hub import PARQUET

_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


class Preset(NamedTuple):
    """A public data set.

    Attributes:
      path: hub id, with its config or folder where it needs one (`hub_table`).
      format: name of the format that reads its rows.
      splits: "train", "valid", "test", as far as the hub has them -> name there.
      labels: what it compares and who judged.
      licence: of the data, as the card has it.
      paper: where it is described.
      revision: of the hub, where none is named; empty is the newest.
      column: of each row, with the name of its split; empty where the hub has splits.
    """

    path: str
    format: str
    splits: Mapping[str, str]
    labels: str
    licence: str
    paper: str
    revision: str = ""
    column: str = ""


def _only(*names: str) -> dict[str, str]:
    return {name: _SPLITS[name] for name in names}


PRESETS: dict[str, Preset] = {
    "helpsteer2": Preset(
        "nvidia/HelpSteer2",
        "helpsteer2",
        _only("train", "valid"),
        "2 responses, 5 attributes rated 0-4 by people, ranked by helpfulness",
        "CC-BY-4.0",
        "arXiv:2406.08673",
    ),
    "helpsteer2_preference": Preset(
        "nvidia/HelpSteer2:preference/",
        "helpsteer2_preference",
        {"train": "train", "valid": "val"},
        "pairs of helpsteer2 judged by people, strength 0-3",
        "CC-BY-4.0",
        "arXiv:2410.01257",
        column="split",
    ),
    "helpsteer3": Preset(
        "nvidia/HelpSteer3:preference",
        "helpsteer3",
        _only("train", "valid"),
        "pairs, strength 0-3 and ties, up to 3 people each",
        "CC-BY-4.0",
        "arXiv:2505.11475",
    ),
    "hh_rlhf": Preset(
        "Anthropic/hh-rlhf",
        "hh",
        _only("train", "test"),
        "pairs judged by people, helpful and harmless",
        "MIT",
        "arXiv:2204.05862",
    ),
    "math_shepherd": Preset(
        "peiyi9979/Math-Shepherd",
        "math_shepherd",
        _only("train"),
        "solutions of GSM8K and MATH, each step right or wrong by rollouts",
        "not stated",
        "arXiv:2312.08935",
    ),
    "nectar": Preset(
        "berkeley-nest/Nectar",
        "nectar",
        _only("train"),
        "7 responses ranked by GPT-4",
        "Apache-2.0, not to compete with OpenAI",
        "hub card of berkeley-nest/Nectar",
    ),
    "pku_saferlhf": Preset(
        "PKU-Alignment/PKU-SafeRLHF",
        "pku_saferlhf",
        _only("train", "test"),
        "pairs by helpfulness, people with AI; ratings safe, severity",
        "CC-BY-NC-4.0",
        "arXiv:2406.15513",
    ),
    "pku_saferlhf_safe": Preset(
        "PKU-Alignment/PKU-SafeRLHF",
        "pku_saferlhf_safe",
        _only("train", "test"),
        "the same pairs by harmlessness",
        "CC-BY-NC-4.0",
        "arXiv:2406.15513",
    ),
    "preference_700k": Preset(
        "hendrydong/preference_700K",
        "conversations",
        _only("train"),
        "pairs, a mixture of people and AI, some with scores",
        "not stated; those of its parts",
        "arXiv:2405.07863",
    ),
    "prm800k": Preset(
        "tasksource/PRM800K",  # a copy of the files of github.com/openai/prm800k
        "prm800k",
        _only("train", "test"),
        "solutions of MATH, each step right or wrong by people",
        "MIT",
        "arXiv:2305.20050",
    ),
    "shp": Preset(
        "stanfordnlp/SHP",
        "shp",
        _SPLITS,
        "pairs of Reddit comments by upvotes, strength is their ratio",
        "not stated; Reddit's terms",
        "arXiv:2110.08420",
    ),
    "skywork_80k": Preset(
        "Skywork/Skywork-Reward-Preference-80K-v0.2",
        "conversations",
        _only("train"),
        "pairs, curated mixture, cleaned of RewardBench prompts",
        "not stated; those of its parts",
        "arXiv:2410.18451",
    ),
    "tldr": Preset(
        "openai/summarize_from_feedback:comparisons/",
        "tldr",
        _only("train", "valid"),
        "pairs of summaries of Reddit posts (valid: also news) judged by people",
        "not stated; posts CC-BY-4.0",
        "arXiv:2009.01325",
        PARQUET,
    ),
    "tulu3": Preset(
        "allenai/llama-3.1-tulu-3-8b-preference-mixture",
        "conversations",
        _only("train"),
        "pairs judged by AI, on- and off-policy",
        "ODC-BY-1.0, parts non-commercial",
        "arXiv:2411.15124",
    ),
    "ultrafeedback": Preset(
        "HuggingFaceH4/ultrafeedback_binarized",
        "conversations",
        {"train": "train_prefs", "test": "test_prefs"},
        "pairs by GPT-4: the best by overall score and another; rating score",
        "MIT",
        "arXiv:2310.01377",
    ),
    "ultrafeedback_ratings": Preset(
        "openbmb/UltraFeedback",
        "ultrafeedback",
        _only("train"),
        "4 responses, 4 aspects rated 1-5 by GPT-4, ranked by their mean",
        "MIT",
        "arXiv:2310.01377",
    ),
    "webgpt": Preset(
        "openai/webgpt_comparisons:default/",
        "webgpt",
        _only("train"),
        "pairs of cited answers judged by people, strength 0-1 and ties",
        "not stated",
        "arXiv:2112.09332",
        PARQUET,
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
      ValueError: unknown; the message lists the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {sorted(PRESETS)}")
    return PRESETS[name]


def preset_lines() -> Iterator[str]:
    """The table of presets as text: name, hub id, labels, licence."""
    rows = [("preset", "hub id", "labels", "licence")]
    rows += [(n, p.path, p.labels, p.licence) for n, p in PRESETS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(n) for cell, n in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
