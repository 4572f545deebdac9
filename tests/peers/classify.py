"""Scores conversations as a user of transformers does, of any version.

    python classify.py FOLDER CONVERSATIONS OUT DTYPE

CONVERSATIONS has a JSON list of messages a line; OUT becomes {version, scores}. Text
comes from the folder's own tokenizer and chat template, rows are padded in batches.
"""

import json
import sys

import torch
import transformers

BATCH = 4


def main() -> None:
    """Runs."""
    folder, conversations, out, dtype = sys.argv[1:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, torch_dtype=getattr(torch, dtype)
    ).eval()
    with open(conversations, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    scores = []
    for i in range(0, len(texts), BATCH):
        batch = tokenizer(
            texts[i : i + BATCH],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            scores += model(**batch).logits[:, 0].float().tolist()
    with open(out, "w", encoding="utf-8") as f:
        json.dump({"version": transformers.__version__, "scores": scores}, f)


if __name__ == "__main__":
    main()
