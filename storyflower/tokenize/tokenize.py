"""The table of dialogues → the token cache.

In: the table, the label index, the encoder's tokenizer.
Out: the token arrays (interim/tokens.py), and a report: per split, the share of unknown tokens and
the share of dialogues cut to max_len.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from storyflower.common.errors import InputError
from storyflower.common.files import json_text, read_json, replacing
from storyflower.interim import dialogues
from storyflower.interim.dialogues import SPLITS
from storyflower.interim.labels import LabelIndex
from storyflower.interim.tokens import TokenWriter, note_tokenizer
from storyflower.tokenizer.load import load_tokenizer

UNKNOWN_WARNING, UNKNOWN_ERROR = 0.05, 0.50  # share of a split's tokens that are [UNK]


def tokenize(
    table: Path,
    labels: Path,
    encoder: Path,
    output: Path,
    report: Path,
    *,
    target: str,
    max_len: int,
) -> dict[str, Any]:
    """Tokenize every dialogue into the folder `output` and write a JSON report; return the report.

    Warns on stderr if over 5% of a split's tokens are [UNK]. Raises InputError if over 50% are,
    because the encoder's vocabulary then does not fit the text, and for a max_len longer than the
    encoder can read.
    """
    index = LabelIndex.load(labels)
    tokenizer = load_tokenizer(encoder)
    longest = read_json(encoder / "card.json")["max_length"]
    if max_len > longest:
        raise InputError(f"max_len must be at most {longest} with this encoder, got {max_len}")
    counts = {
        split: dict.fromkeys(("dialogues", "tokens", "unknown", "cut"), 0) for split in SPLITS
    }
    with replacing() as beside:
        folder = beside(output)
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(TokenWriter(folder, split, tokenizer.ids_dtype))
                for split in SPLITS
            }
            for split, batch in dialogues.batches(table, ["text", "label", "fine"]):
                tokens = tokenizer.encode(batch.column("text").to_pylist(), max_len)
                numbers = index.encode(dialogues.class_names(batch, target))
                writers[split].append(tokens.ids, tokens.offsets, numbers)
                count = counts[split]
                count["dialogues"] += len(batch)
                count["tokens"] += len(tokens.ids)
                count["unknown"] += int((tokens.ids == tokenizer.unk_id).sum())
                count["cut"] += int(tokens.cut.sum())
        note_tokenizer(folder, encoder)
        summary: dict[str, Any] = {"max_len": max_len, "pretokenize": tokenizer.pretokenize}
        for split, count in counts.items():
            # Without [CLS] and [SEP], which are never [UNK] and would lower the share.
            words = max(count["tokens"] - 2 * count["dialogues"], 1)
            summary[split] = {
                **count,
                "unknown_share": round(count["unknown"] / words, 6),
                "cut_share": round(count["cut"] / max(count["dialogues"], 1), 6),
                "mean_length": round(count["tokens"] / max(count["dialogues"], 1), 3),
            }
        beside(report).write_text(json_text(summary), encoding="utf-8")
    for split in SPLITS:
        share = summary[split]["unknown_share"]
        complaint = f"{share:.1%} of the {split} tokens are [UNK]"
        if share > UNKNOWN_ERROR:
            raise InputError(f"{complaint}: the encoder's vocabulary does not fit the text")
        if share > UNKNOWN_WARNING:
            print(f"WARNING: {complaint}; does the encoder know this language?", file=sys.stderr)
    return summary
