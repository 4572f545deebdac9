"""The model card of an exported folder, from what the run says of itself."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rm_jax import store
from rm_jax.models import hf_out
from rm_jax.models.arch import ArchConfig
from rm_jax.serve.scorer import Scorer

FIGURES = (
    ("accuracy", "accuracy"),
    ("length_baseline", "accuracy by length alone"),
    ("length_matched_accuracy", "accuracy of pairs alike in length"),
    ("longer_chosen_accuracy", "accuracy where the longer is preferred"),
    ("shorter_chosen_accuracy", "accuracy where the shorter is preferred"),
    ("nll", "negative log-likelihood"),
    ("ece", "calibration error"),
)


def card(scorer: Scorer, model_type: str, dtype: str, base: str = "") -> str:
    """README.md in Markdown: data, figures, intended use, known biases, licence.

    Args:
      scorer: the run.
      model_type: of the trunk.
      dtype: of the weights.
      base: what the folder is an adapter of; "" is a whole model.
    """
    arch, run = scorer.arch, scorer.config
    hub = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(@.*)?", str(run.model.init))
    lines = [
        "---",
        *([f"base_model: {base}", "library_name: peft"] if base else []),
        *([f"base_model: {hub[1]}"] if hub and not base else []),
        "pipeline_tag: text-classification",
        "tags: [reward-model, rm_jax]",
        "---",
        "",
        f"# {run.name}",
        "",
        f"A reward model: one number for a prompt and a response, {dtype}, of "
        f"{arch.n_layers} layers of {arch.d_model} ({model_type}). Exported "
        f"by rm_jax from step {scorer.step} of a run.",
        "",
        "## Data",
        "",
        f"- training: `{_public(run.data.train)}`",
        f"- loss: `{run.loss.name}`",
        f"- weights at the start: `{_public(run.model.init)}`",
        "",
        "## Figures",
        "",
        *_figures(scorer),
        "",
        "## Use",
        "",
        "For comparing responses to one prompt: as the reward of RLHF, or to choose "
        "the best of several. A score is log-odds against other responses to the same "
        "prompt; scores of different prompts are not on one scale. Template the "
        "conversation with the tokenizer's chat template, and tokenise it with "
        "`add_special_tokens=False`. `python verify.py` checks the folder.",
        "",
        *(_adapter(base, arch) if base else _whole(arch)),
        f"Longer conversations than {scorer.contract.max_length} tokens: in training "
        f"`{scorer.contract.over_long}` (truncation_side "
        f"`{scorer.contract.truncation_side}`).",
        "",
        "## Known biases",
        "",
        *_biases(scorer),
        "",
        "## Licence",
        "",
        "That of the weights it started from and of the data it was trained on, which "
        "this file does not know: say it here before you share the folder.",
        "",
    ]
    return "\n".join(lines)


def _whole(arch: ArchConfig) -> list[str]:
    read = hf_out.versions(arch)
    text = f"transformers {read} score it so."
    if read == "5":
        text = (
            "transformers 5 only: 4.51 has no such classifier, or scores otherwise "
            "without a word."
        )
    return [text, ""]


def _adapter(base: str, arch: ArchConfig) -> list[str]:
    # What 4.51 chooses by itself has no cap.
    eager = ['    attn_implementation="eager",'] if arch.attention_cap else []
    return [
        "The folder holds adapters and the head of scores; the trunk is that of "
        f"`{base}`. The padding token is the tokenizer's, which the base may not know:",
        "",
        "```python",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "base = AutoModelForSequenceClassification.from_pretrained(",
        f"    {base!r}, num_labels=1, pad_token_id=tokenizer.pad_token_id,",
        *eager,
        ")",
        "model = PeftModel.from_pretrained(base, FOLDER)",
        "```",
        "",
    ]


def _public(spec: Any) -> str:
    """A SPEC, or several, of local paths with the last name only."""
    return re.sub(r"(?<=:)(?:[~.]{0,2}/)[^\s'\"#]*/(?=[^/])", "", str(spec))


def _sets(scorer: Scorer) -> dict[str, Any]:
    path = store.join(scorer.run, "evals.json")
    if not store.exists(path):
        return {}
    return store.read_json(path)["sets"]


def _figures(scorer: Scorer) -> list[str]:
    sets = _sets(scorer)
    if not sets:
        return ["The run was not evaluated."]
    head = "| | " + " | ".join(sets) + " |"
    lines = [head, "|---|" + "---|" * len(sets)]
    for key, words in FIGURES:
        values = [found.get(key) for found in sets.values()]
        if any(v is not None for v in values):
            shown = ["" if v is None else f"{v:.3f}" for v in values]
            lines.append(f"| {words} | " + " | ".join(shown) + " |")
    return lines


def _biases(scorer: Scorer) -> list[str]:
    """What the run's own audit found, of each set, and what every model has."""
    lines, sets = [], _sets(scorer)
    for name, found in sets.items():
        lines += [f"- {name}: {said}" for said in _found(found)]
    if not sets:
        lines.append("- Not measured: the run was not evaluated.")
    lines += [
        "",
        "A reward model inherits what its annotators like (length, style, agreement), "
        "and a policy trained hard against it will find what it gets wrong.",
    ]
    return lines


def _found(found: Mapping[str, Any]) -> Iterator[str]:
    """Biases of one set: of length, of a world's probes, and alarms."""
    if "score_length_corr" in found:
        yield (
            "scores correlate with the length of the response by "
            f"{found['score_length_corr']:+.2f} within a prompt"
        )
    pair = [found.get(f"{way}_chosen_accuracy") for way in ("longer", "shorter")]
    if None not in pair:
        yield (
            f"{pair[0]:.3f} of the pairs are right where people prefer the longer "
            f"response, {pair[1]:.3f} where they prefer the shorter one"
        )
    for kind, probe in found.get("probes", {}).items():
        yield (
            f"{kind} is worth {probe['model_bias']:+.2f} nats more to the model than "
            f"in truth, and {probe['annotator_bias']:+.2f} to its annotators"
        )
    for alarm in found.get("alarms", ()):
        yield f"ALARM: {alarm}"
