"""The token cache and its report: what is counted, when it warns, when it stops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storyflower.common.errors import InputError
from storyflower.interim.dialogues import SCHEMA
from storyflower.interim.labels import LabelIndex
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import make_batch
from storyflower.tokenize import tokenize as tokenize_module
from storyflower.tokenizer.load import load_tokenizer

LABELS = ("기쁨", "분노", "불안")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
KNOWN, UNKNOWN = "나", "쀍"  # a word of the vocabulary below, and one that it lacks
PAD, UNK, CLS, SEP, MASK, WORD = range(6)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """An encoder whose vocabulary has one word; every other is one [UNK]."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, KNOWN]) + "\n", encoding="utf-8")
    # Lower-casing would also take the syllables apart.
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    card = {"tokenizer": "wordpiece", "max_length": 512}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return folder


def write_table(path: Path, training: list[str], validation: list[str]) -> Path:
    """A table of dialogues: their classes are those of LABELS in turn."""
    rows = [("Training", text) for text in training] + [("Validation", t) for t in validation]
    columns = {
        "split": [split for split, _ in rows],
        "row": list(range(2, len(rows) + 2)),
        "text": [text for _, text in rows],
        "label": [LABELS[number % 3] for number in range(len(rows))],
        "fine": [None] * len(rows),
        "file": ["표본.csv"] * len(rows),
    }
    pq.write_table(pa.table(columns, schema=SCHEMA), path)
    return path


def tokenize(
    folder: Path, encoder: Path, training: list[str], validation: list[str], max_len: int = 64
) -> dict[str, Any]:
    """tokenize() of texts; the cache is folder/tokens, the report folder/tokens.json."""
    LabelIndex(LABELS).save(folder / "labels.json")
    return tokenize_module.tokenize(
        write_table(folder / "dialogues.parquet", training, validation),
        folder / "labels.json",
        encoder,
        folder / "tokens",
        folder / "tokens.json",
        target="major",
        max_len=max_len,
    )


def text_of(known: int, unknown: int) -> str:
    return " ".join([KNOWN] * known + [UNKNOWN] * unknown)


@pytest.mark.parametrize(
    ("unknown", "warns", "stops"), [(5, 0, 0), (6, 1, 0), (50, 1, 0), (51, 0, 1), (100, 0, 1)]
)
@pytest.mark.parametrize("split", ["Training", "Validation"])
def test_too_many_unknown_tokens(
    unknown: int, warns: bool, stops: bool, split: str, words: Path, tmp_path: Path, capsys
) -> None:
    """In per cent; [CLS] and [SEP] would make 51% of 100 words 50%. One split is enough."""
    texts = {"Training": [text_of(100, 0)], "Validation": [text_of(100, 0)]}
    texts[split] = [text_of(100 - unknown, 0), text_of(0, unknown)]  # the split counts, not a text
    arguments = (tmp_path, words, texts["Training"], texts["Validation"], 512)
    if stops:
        with pytest.raises(InputError, match=rf"{unknown}.0% of the {split} tokens are \[UNK\]"):
            tokenize(*arguments)
    else:
        report = tokenize(*arguments)
        assert report[split]["unknown_share"] == unknown / 100
        assert report[split]["unknown"] == unknown
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == warns
    assert all(
        line.startswith(f"WARNING: {unknown}.0% of the {split} tokens are [UNK]") for line in lines
    )


def test_cache_and_report(words: Path, tmp_path: Path) -> None:
    """Lengths 0, 3, 4 (fits max_len 6 just so) and 5 words (cut)."""
    training = [text_of(3, 0), text_of(4, 0), text_of(40, 1), ""]
    validation = [text_of(1, 0)]
    report = tokenize(tmp_path, words, training, validation, max_len=6)
    table = TokenArrays.load(tmp_path / "tokens", "Training")
    assert table.offsets.tolist() == [0, 5, 11, 17, 19]
    assert table.lengths.tolist() == [5, 6, 6, 2]
    full = [CLS, *[WORD] * 4, SEP]
    assert table.ids.tolist() == [CLS, WORD, WORD, WORD, SEP, *full, *full, CLS, SEP]
    assert table.labels.tolist() == [0, 1, 2, 0]
    other = TokenArrays.load(tmp_path / "tokens", "Validation")
    assert (other.ids.tolist(), other.offsets.tolist()) == ([CLS, WORD, SEP], [0, 3])
    assert other.labels.tolist() == [1]  # the fifth row: numbers follow the index, not the split
    assert report == json.loads((tmp_path / "tokens.json").read_text(encoding="utf-8"))
    assert report == {
        "max_len": 6,
        "pretokenize": "bert",
        "Training": {
            "dialogues": 4,
            "tokens": 19,
            "unknown": 0,  # the one that there was is cut off
            "cut": 1,
            "unknown_share": 0.0,
            "cut_share": 0.25,
            "mean_length": 4.75,
        },
        "Validation": {
            "dialogues": 1,
            "tokens": 3,
            "unknown": 0,
            "cut": 0,
            "unknown_share": 0.0,
            "cut_share": 0.0,
            "mean_length": 3.0,
        },
    }


def test_the_cache_is_read_from_the_disk_not_into_memory(words: Path, tmp_path: Path) -> None:
    tokenize(tmp_path, words, ["나 나"] * 3, ["나"])
    table = TokenArrays.load(tmp_path / "tokens", "Training")
    for name in ("ids", "offsets", "labels"):
        array = getattr(table, name)
        assert isinstance(array, np.memmap) and not array.flags.writeable
        assert Path(array.filename) == tmp_path / f"tokens/Training.{name}.npy"
    batch = make_batch(table, np.array([2, 0]))  # and a batch can be made of it
    assert batch.ids.tolist() == [CLS, WORD, WORD, SEP] * 2


def test_offsets_go_on_from_one_block_of_rows_to_the_next(words: Path, tmp_path: Path) -> None:
    """The table is read in blocks of 16,384 rows."""
    count = 20_000
    texts = [text_of(number % 3, 0) for number in range(count)]
    tokenize(tmp_path, words, texts, ["나"])
    table = TokenArrays.load(tmp_path / "tokens", "Training")
    assert len(table) == count
    assert (table.lengths == np.arange(count) % 3 + 2).all()
    assert (table.ids[table.offsets[:-1]] == CLS).all()
    assert (table.ids[table.offsets[1:] - 1] == SEP).all()
    assert (table.labels == np.arange(count) % 3).all()


@pytest.mark.parametrize("max_len", [3, 9, 64])
def test_both_ways_to_run_sentencepiece(interim: Path, max_len: int, tmp_path: Path) -> None:
    found = {}
    for pretokenize in ("bert", "none"):
        folder = tmp_path / pretokenize
        encoder = folder / "encoder"
        encoder.mkdir(parents=True)
        (encoder / "spiece.model").write_bytes((interim / "encoder/spiece.model").read_bytes())
        card = {"tokenizer": "sentencepiece", "pretokenize": pretokenize, "max_length": 64}
        (encoder / "card.json").write_text(json.dumps(card), encoding="utf-8")
        rows = pq.read_table(interim / "dialogues.parquet", filters=[("split", "==", "Training")])
        texts = [f"{text}!" for text in rows["text"].to_pylist()]
        report = tokenize(folder, encoder, texts, texts[:3], max_len)
        assert report["pretokenize"] == pretokenize
        table = TokenArrays.load(folder / "tokens", "Training")
        direct = load_tokenizer(encoder).encode(texts, max_len)
        assert table.ids.tolist() == direct.ids.tolist()
        assert table.offsets.tolist() == direct.offsets.tolist()
        assert table.lengths.max() <= max_len
        assert report["Training"]["cut"] == direct.cut.sum()
        found[pretokenize] = table.ids.tolist()
    assert max_len < 64 or found["bert"] != found["none"]


def test_an_unknown_label_and_a_max_len_beyond_the_encoder(words: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_len must be at most 512 with this encoder, got 513"):
        tokenize(tmp_path, words, ["나"], ["나"], max_len=513)
    LabelIndex(LABELS[:2]).save(tmp_path / "labels.json")
    table = write_table(tmp_path / "dialogues.parquet", ["나"] * 3, ["나"])
    with pytest.raises(InputError, match="a label of the dialogues is not in labels.json"):
        tokenize_module.tokenize(
            table,
            tmp_path / "labels.json",
            words,
            tmp_path / "tokens",
            tmp_path / "tokens.json",
            target="major",
            max_len=64,
        )
