"""Scores token ids with exported folders, in transformers of any version.

    python score_ids.py IDS OUT FOLDER...

IDS has a JSON list of rows of ids; OUT becomes {version, scores: {FOLDER: [scores of
the rows one by one, scores of the rows padded on the right in one batch]}}.
"""

import json
import sys

import torch
import transformers


def scores(folder: str, rows: list[list[int]]) -> list[list[float]]:
    """As a user loads the folder: without a word on how attention is computed."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, torch_dtype=torch.float32
    ).eval()
    pad, t = model.config.pad_token_id, max(map(len, rows))
    ids = torch.tensor([row + [pad] * (t - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (t - len(row)) for row in rows])
    with torch.no_grad():
        alone = [model(torch.tensor([row])).logits[0, 0].item() for row in rows]
        return [alone, model(ids, attention_mask=mask).logits[:, 0].tolist()]


def main() -> None:
    """Runs."""
    ids, out, *folders = sys.argv[1:]
    with open(ids, encoding="utf-8") as f:
        rows = json.load(f)
    found = {folder: scores(folder, rows) for folder in folders}
    with open(out, "w", encoding="utf-8") as f:
        json.dump({"version": transformers.__version__, "scores": found}, f)


if __name__ == "__main__":
    main()
