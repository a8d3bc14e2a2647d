"""Small encoders of other families with random weights, to compare where there is no hub.

    dvc repro ingest && python -m benchmarks.random_encoders

In: data/interim/dialogues.parquet.
Out: encoders/electra-random and encoders/distilbert-random, from_pretrained folders that share a
WordPiece vocabulary made from the Training texts. They were never pretrained: their accuracy says
nothing about the families.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import DistilBertConfig, DistilBertModel, ElectraConfig, ElectraModel

from storyflower.common.errors import exit_with_line
from storyflower.interim import dialogues
from storyflower.model.folder import need

DIALOGUES = Path("data/interim/dialogues.parquet")
PARTS = 3000  # most frequent parts of words in the vocabulary


def wordpiece_vocabulary(texts: Iterable[str], most: int = PARTS) -> list[str]:
    words = " ".join(texts).split()
    characters = sorted(set("".join(words)))
    parts: Counter[str] = Counter()  # ## begins a piece that continues a word
    for word in words:
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                parts["##" * (start > 0) + word[start:end]] += 1
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    frequent = [part for part, _ in parts.most_common(most)]
    return list(dict.fromkeys([*special, *characters, *("##" + c for c in characters), *frequent]))


def main() -> None:
    need(DIALOGUES.parent, [DIALOGUES.name], "'dvc repro ingest' makes it")
    pieces = wordpiece_vocabulary(dialogues.texts(DIALOGUES, "Training"))
    torch.manual_seed(42)
    electra = ElectraConfig(
        vocab_size=len(pieces), embedding_size=128, hidden_size=256, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=1024,
    )  # fmt: skip
    distilbert = DistilBertConfig(
        vocab_size=len(pieces), dim=256, n_layers=3, n_heads=4, hidden_dim=1024
    )
    encoders = {
        "electra-random": ElectraModel(electra),
        "distilbert-random": DistilBertModel(distilbert),
    }
    for name, encoder in encoders.items():
        folder = Path("encoders", name)
        encoder.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
        settings = {"do_lower_case": False}  # lower-casing would take Hangul apart
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        print(folder)


if __name__ == "__main__":
    exit_with_line(main)
