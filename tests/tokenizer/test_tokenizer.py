"""Text → ids: the BERT path against a slow reference, plain SentencePiece, and WordPiece."""

import json
import random
import struct
import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from storyflower.common.errors import InputError
from storyflower.tokenizer import base, basic
from storyflower.tokenizer.base import Tokens
from storyflower.tokenizer.load import load_tokenizer
from storyflower.tokenizer.sentencepiece import SentencePieceTokenizer
from storyflower.tokenizer.wordpiece import WordPieceTokenizer

SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]  # KoBERT's ids 0..4
STEMS = [
    "오늘",
    "정말",
    "기분",
    "좋아",
    "슬퍼",
    "화가",
    "회사",
    "친구",
    "가족",
    "영화",
    "재밌다",
    "눈물",
    "ㅋㅋ",
    "ㅋㅋㅋ",
    "ㅠㅠ",
    "ㅜㅜ",
    "漢字",
    "movie",
]
ENDINGS = ["", "가", "는", "에서", "했어", ".", "!", "..", "?", "ㅋㅋㅋㅋ", "ㅠㅜ"]

HARD = [
    "",
    " \t\r\n\u3000",
    "가",
    "기분이 좋아요!!! 정말로...",
    "영화 " * 100,
    *("가" * n for n in (199, 200, 201, 500)),
    "ㅋㅋㅋㅋㅋㅋㅋ ㅜㅠㅜㅠㅜㅜ",
    "[CLS] 가 [SEP] [UNK][MASK] [PAD]",
    "▁가▁나 ▁",
    "漢字와 한자, \uf900\ufa0e \U00020000\U0002f800 \U00030000",
    unicodedata.normalize("NFD", "기분이 좋아요, café"),
    "ＡＢＣ！ ｱｲｳ ﾡﾢ ㈜ ①",
    "👨‍👩‍👧 ❤️ 👍🏽 🇰🇷",
    "\ufeff가\u200b나\u00ad다\0라\ufffd마\x0b바\x0c사\x1c아\x85자\u2028차\u2029카\u00a0타",
    "a\u2260b \u1fef \u226e \u037e \u2329",
    "가\u302e\ufe0f\U0001d165\u302e\u0301\U0001d16d!\u0301",
    "가\n나\r\n다",
    "가".join(map(chr, range(33, 127))),
    "뷁" * 30,
]


@pytest.fixture(scope="session")
def spiece(tmp_path_factory) -> Path:
    """A throwaway unigram model with KoBERT's special pieces."""
    rng = random.Random(0)
    lines = [
        " ".join(rng.choice(STEMS) + rng.choice(ENDINGS) for _ in range(rng.randint(2, 9)))
        for _ in range(2000)
    ]
    prefix = tmp_path_factory.mktemp("spiece") / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(prefix),
        vocab_size=200,
        hard_vocab_limit=False,
        unk_id=0,
        pad_id=1,
        bos_id=-1,
        eos_id=-1,
        unk_piece=SPECIAL[0],
        pad_piece=SPECIAL[1],
        control_symbols=",".join(SPECIAL[2:]),
        num_threads=1,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture(scope="session")
def bert(spiece) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spiece, "bert")


@pytest.fixture(scope="session")
def plain(spiece) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spiece, "none")


def rows(tokens: Tokens) -> list[list[int]]:
    return [part.tolist() for part in np.split(tokens.ids, tokens.offsets[1:-1])][: len(tokens.cut)]


def reference_words(text: str) -> list[str]:
    """gluonnlp 0.10's basic tokenizer, character by character and without any table."""
    spaced = ""
    for char in text:
        category, code = unicodedata.category(char), ord(char)
        if category == "Zs" or char in "\t\n\r":
            spaced += " "
        elif category in ("Cc", "Cf") or char == "\ufffd":
            continue
        elif (
            0x3400 <= code <= 0x4DBF
            or 0x4E00 <= code <= 0x9FFF
            or 0xF900 <= code <= 0xFAFF
            or 0x20000 <= code <= 0x2A6DF
            or 0x2A700 <= code <= 0x2CEAF
            or 0x2F800 <= code <= 0x2FA1F
        ):
            spaced += f" {char} "
        else:
            spaced += char
    cut = ""
    for char in unicodedata.normalize("NFD", spaced):
        category = unicodedata.category(char)
        if category == "Mn":
            continue
        ascii_mark = "!" <= char <= "~" and not char.isalnum()
        cut += f" {char} " if ascii_mark or category[0] == "P" else char
    return cut.split()


@cache
def load(model: Path) -> tuple[sentencepiece.SentencePieceProcessor, dict[str, int]]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return processor, {processor.id_to_piece(i): i for i in range(len(processor))}


def reference_ids(model: Path, words: list[str], max_len: int) -> list[int]:
    """Pieces word by word, looked up in a dictionary, cut, [CLS] and [SEP] around."""
    processor, index = load(model)
    pieces = [piece for word in words for piece in processor.encode(word, out_type=str)]
    return [2, *(index.get(piece, 0) for piece in pieces[: max_len - 2]), 3]


TEXTS = st.text(
    st.one_of(
        st.sampled_from("ㅋㅜㅠ가기분 좋아.,!?~[]=\n\t漢éa1"),
        st.sampled_from("\0\x0b\x1c\x85\xa0\u200d\u2028\ufe0f\u0301\u0338\u302e\U0001d165\ufffd▁"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


@pytest.mark.parametrize("max_len", [2, 3, 16, 64])
def test_bert_is_the_reference_on_hard_texts(spiece, bert, max_len):
    expected = [reference_ids(spiece, reference_words(text), max_len) for text in HARD]
    assert rows(bert.encode(HARD, max_len)) == expected


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5), max_len=st.integers(2, 40))
def test_bert_is_the_reference_on_any_text(spiece, bert, texts, max_len):
    expected = [reference_ids(spiece, reference_words(text), max_len) for text in texts]
    assert rows(bert.encode(texts, max_len)) == expected


def test_every_character_between_two_words_is_treated_as_in_the_reference():
    chars = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code)) != "Cs"]
    for char in chars:
        text = f"가{char}나"
        assert basic.basic_tokenize(text) == reference_words(text), hex(ord(char))


def test_rough_cuts_lose_nothing_at_any_character(spiece, bert):
    chars = [chr(code) for code in range(0x3100) if unicodedata.category(chr(code)) != "Cs"]
    texts = [f"기분{char}가{char}\u0301좋아" for char in chars]
    expected = [reference_ids(spiece, reference_words(text), 64) for text in texts]
    assert rows(bert.encode(texts, 64)) == expected


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_none_is_sentencepiece_itself(spiece, plain, texts):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    expected = [[2, *processor.encode(text)[:62], 3] for text in texts]
    assert rows(plain.encode(texts, 64)) == expected


def test_bert_cuts_words_where_none_does_not(spiece, bert, plain):
    # As in KoBERT's own model the mark alone is a word, and a word begins with ▁.
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    for tokenizer, expected in ((bert, "▁아주▁!"), (plain, "▁아주!")):
        ids = tokenizer.encode(["아주!"], 64).ids[1:-1].tolist()
        assert "".join(map(processor.id_to_piece, ids)) == expected.replace("주", "[UNK]")


def test_blocks_change_nothing(bert, monkeypatch):
    whole = bert.encode(HARD, 16)
    monkeypatch.setattr(base, "BLOCK", 3)
    in_blocks = bert.encode(HARD, 16)
    for name in ("ids", "offsets", "cut"):
        np.testing.assert_array_equal(getattr(in_blocks, name), getattr(whole, name))


def test_arrays_and_special_ids(bert):
    assert (bert.unk_id, bert.pad_id, bert.cls_id, bert.sep_id) == (0, 1, 2, 3)
    tokens = bert.encode(["", "영화 " * 3, "영화 " * 63], 64)
    assert (tokens.ids.dtype, tokens.offsets.dtype) == (np.uint16, np.int64)
    assert tokens.cut.tolist() == [False, False, True]
    assert tokens.offsets[-1] == len(tokens.ids) and np.diff(tokens.offsets).max() == 64
    none = bert.encode([], 64)
    assert (none.ids.shape, none.offsets.tolist(), none.cut.shape) == ((0,), [0], (0,))
    assert (none.ids.dtype, none.cut.dtype) == (np.uint16, bool)


def proto_field(number: int, kind: int, payload: bytes) -> bytes:
    size = bytes([len(payload)]) if kind == 2 else b""
    return bytes([number << 3 | kind]) + size + payload


def test_ties_are_broken_as_in_the_original(tmp_path):
    """ㅋㅋㅋ ㅋㅋ scores like ㅋㅋ ㅋㅋㅋ; sentencepiece from 0.2.2 on takes the second."""
    pieces = [
        ("[UNK]", 0.0, 2),
        *((name, 0.0, 3) for name in SPECIAL[1:]),
        ("▁", -3.0, 1),
        ("ㅋㅋ", -5.6, 1),
        ("ㅋㅋㅋ", -7.6, 1),
    ]
    model = b"".join(
        proto_field(
            1,
            2,
            proto_field(1, 2, name.encode())
            + proto_field(2, 5, struct.pack("<f", score))
            + proto_field(3, 0, bytes([kind])),
        )
        for name, score, kind in pieces
    )
    (tmp_path / "spiece.model").write_bytes(model)
    tokenizer = SentencePieceTokenizer(tmp_path / "spiece.model", "bert")
    assert tokenizer.encode(["ㅋㅋㅋㅋㅋ"], 64).ids.tolist() == [2, 5, 7, 6, 3]


def test_errors_say_what_was_found(tmp_path, bert, plain, spiece):
    for tokenizer in (bert, plain):
        with pytest.raises(TypeError, match=r"texts\[1\] must be str, got float"):
            tokenizer.encode(["가", float("nan")], 64)
        with pytest.raises(TypeError, match="got one str"):
            tokenizer.encode("가나다", 64)
        with pytest.raises(ValueError, match=r"max_len must be at least 2.*got 1"):
            tokenizer.encode(["가"], 1)
        with pytest.raises(InputError, match="half of a surrogate pair"):
            tokenizer.encode(["나", "가\ud83d"], 64)
    with pytest.raises(InputError, match="pretokenize must be bert or none, got 'word'"):
        SentencePieceTokenizer(spiece, "word")
    with pytest.raises(InputError, match="not found"):
        SentencePieceTokenizer(tmp_path / "spiece.model", "bert")
    (tmp_path / "spiece.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        SentencePieceTokenizer(tmp_path / "spiece.model", "bert")
    (tmp_path / "spiece.model").write_bytes(spiece.read_bytes().replace(b"[CLS]", b"<CLS>"))
    with pytest.raises(InputError, match=r"no \[CLS\]"):
        SentencePieceTokenizer(tmp_path / "spiece.model", "bert")


WORDPIECES = [
    "가",
    "##가",
    "기분",
    "##이",
    "좋",
    "##아",
    "##요",
    "!",
    ".",
    ",",
    "a",
    "##b",
    "cafe",
    "é",
    "café",
    "漢",
    "字",
    "ㅋㅋ",
    "##ㅋ",
    "[",
    "]",
    "cls",
    "CLS",
]
CONFIGS = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "tokenize_chinese_chars": False},
]


def wordpiece_folder(folder: Path, config: dict, special: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDPIECES]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "card.json").write_text('{"tokenizer": "wordpiece"}', encoding="utf-8")
    return folder


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("max_len", [3, 64])
def test_wordpiece_is_transformers_own(tmp_path, config, max_len):
    transformers = pytest.importorskip("transformers")
    # The order of klue/roberta-base: [CLS] 0, [PAD] 1, [SEP] 2, [UNK] 3.
    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    folder = wordpiece_folder(tmp_path / "encoder", config, special)
    theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    ours = load_tokenizer(folder)
    assert (ours.cls_id, ours.pad_id, ours.sep_id, ours.unk_id) == (0, 1, 2, 3)
    assert ours.vocab_size == len(theirs)
    texts = [*HARD, "기분이 좋아요! CAFÉ cafe\u0301 ab", "[CLS]가", "ㅋㅋㅋㅋ"]
    expected = theirs(texts, truncation=True, max_length=max_len)["input_ids"]
    assert rows(ours.encode(texts, max_len)) == expected
    lengths = np.array([len(ids) for ids in theirs(texts)["input_ids"]])
    assert ours.encode(texts, max_len).cut.tolist() == (lengths > max_len).tolist()


def test_wordpiece_ids_and_errors(tmp_path):
    folder = wordpiece_folder(tmp_path / "encoder", {"do_lower_case": False}, SPECIAL)
    tokenizer = WordPieceTokenizer(folder)
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    ids = tokenizer.encode(["기분이 뷁!"], 64).ids[1:-1]
    assert [vocabulary[row] for row in ids] == ["기분", "##이", "[UNK]", "!"]
    with pytest.raises(InputError, match="half of a surrogate pair"):
        tokenizer.encode(["가\ud83d"], 64)
    wordpiece_folder(folder, {}, SPECIAL[:-1])
    with pytest.raises(InputError, match=r"no \[MASK\]"):
        WordPieceTokenizer(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(InputError, match="not found"):
        WordPieceTokenizer(folder)


def test_load_tokenizer_reads_the_card(tmp_path, spiece):
    (tmp_path / "spiece.model").write_bytes(spiece.read_bytes())
    card = {"tokenizer": "sentencepiece", "pretokenize": "none"}
    assert load_tokenizer(tmp_path, card).pretokenize == "none"
    with pytest.raises(InputError, match=r"card\.json: not found"):
        load_tokenizer(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({**card, "pretokenize": "bert"}))
    assert load_tokenizer(tmp_path).pretokenize == "bert"
    with pytest.raises(InputError, match="wordpiece or tokenizer.json, got 'bpe'"):
        load_tokenizer(tmp_path, {"tokenizer": "bpe"})


def test_import_is_cheap():
    heavy = {"torch", "transformers", "tokenizers", "sentencepiece", "pandas"}
    code = f"import sys, storyflower.tokenizer; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
