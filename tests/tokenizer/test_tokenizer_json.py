"""A tokenizer.json of each kind gives the ids of transformers' PreTrainedTokenizerFast."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from storyflower.common.errors import InputError
from storyflower.tokenizer.load import load_tokenizer
from storyflower.tokenizer.tokenizer_json import TokenizerJson
from tests.tokenizer.test_tokenizer import HARD, rows

CORPUS = [
    *HARD,
    "오늘 정말 기분이 좋아!",
    "친구와 영화를 봤는데 재밌다 ㅋㅋㅋ",
    "회사 일로 화가 나서 눈물이 났어",
]
TEXTS = [*HARD, *CORPUS, "<s> 가 </s>", "HELLO hello", "쀍 " * 70]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
XLM = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]


def framed(backend: tokenizers.Tokenizer, first: str, last: str) -> tokenizers.Tokenizer:
    ids = [(token, backend.token_to_id(token)) for token in (first, last)]
    backend.post_processor = processors.TemplateProcessing(f"{first} $A {last}", None, ids)
    return backend


def word_piece(lower: bool = False) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=BERT, show_progress=False)
    backend.train_from_iterator(CORPUS[:-1], trainer)  # so that some syllables are unknown
    return framed(backend, "[CLS]", "[SEP]")


def byte_level() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return framed(backend, "<s>", "</s>")


def byte_fallback() -> tokenizers.Tokenizer:
    """As Gemma's: pieces of whole texts, and bytes for a letter that the vocabulary lacks."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=GEMMA, show_progress=False)
    backend.train_from_iterator(CORPUS[-3:], trainer)
    document = json.loads(backend.to_str())
    document["model"]["byte_fallback"] = True
    pieces = document["model"]["vocab"]
    for byte in range(256):
        pieces[f"<0x{byte:02X}>"] = len(pieces)
    return framed(tokenizers.Tokenizer.from_str(json.dumps(document)), "<bos>", "<eos>")


def unigram() -> tokenizers.Tokenizer:
    """As XLM-RoBERTa's."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=XLM, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS[-3:] * 5, trainer)
    return framed(backend, "<s>", "</s>")


KINDS: dict[str, tuple[Callable[[], tokenizers.Tokenizer], list[str], list[int]]] = {
    # the ids of cls, sep, pad, unk and mask
    "wordpiece": (word_piece, BERT, [2, 3, 0, 1, 4]),
    "byte-level BPE": (byte_level, ["<s>", "<pad>", "</s>", "<mask>"], [0, 2, 1, -1, 3]),
    "BPE with bytes": (byte_fallback, GEMMA, [2, 1, 0, 3, 4]),
    "unigram": (unigram, XLM, [0, 2, 1, 3, 4]),
}


def write(folder: Path, backend: tokenizers.Tokenizer, **names: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    (folder / "card.json").write_text('{"tokenizer": "tokenizer.json"}', encoding="utf-8")
    return folder


@pytest.mark.parametrize("max_len", [3, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind: str, max_len: int, tmp_path: Path) -> None:
    make, special, ids = KINDS[kind]
    backend = make()
    pad = next(token for token in special if "pad" in token.lower())
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(backend.to_str()), pad_token=pad
    )
    # What the file itself would cut and fill
    backend.enable_truncation(9)
    backend.enable_padding(length=20, pad_token=pad, pad_id=backend.token_to_id(pad))
    ours = load_tokenizer(write(tmp_path / "encoder", backend, pad_token=pad))
    found = [ours.cls_id, ours.sep_id, ours.pad_id, ours.unk_id, ours.mask_id]
    assert found == ids
    assert ours.vocab_size == len(theirs)
    assert ours.pretokenize == "none"
    tokens = ours.encode(TEXTS, max_len)
    assert rows(tokens) == theirs(TEXTS, truncation=True, max_length=max_len)["input_ids"]
    lengths = np.array([len(row) for row in theirs(TEXTS)["input_ids"]])
    assert tokens.cut.tolist() == (lengths > max_len).tolist()


def test_only_a_model_with_an_unknown_token_has_unknown_tokens(tmp_path: Path) -> None:
    for kind, (make, _, _) in KINDS.items():
        ours = load_tokenizer(write(tmp_path / kind, make()))
        unknown = int((ours.encode(["쀍 가"], 64).ids == ours.unk_id).sum())
        assert unknown == (kind in ("wordpiece", "unigram")), kind


def test_the_special_tokens_are_those_that_the_files_name(tmp_path: Path) -> None:
    """tokenizer_config.json before special_tokens_map.json before the file's own padding."""
    backend = word_piece()
    backend.enable_padding(pad_id=4, pad_token="[MASK]")
    folder = write(tmp_path / "encoder", backend)
    assert TokenizerJson(folder).pad_id == 4
    (folder / "special_tokens_map.json").write_text('{"pad_token": "[SEP]"}')
    assert TokenizerJson(folder).pad_id == 3
    token = {"content": "[UNK]", "lstrip": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": token}))
    assert TokenizerJson(folder).pad_id == 1
    (folder / "tokenizer_config.json").write_text('{"pad_token": null, "mask_token": "[CLS]"}')
    assert (TokenizerJson(folder).pad_id, TokenizerJson(folder).mask_id) == (3, 2)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    backend.no_padding()
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    assert TokenizerJson(folder).pad_id == 0  # by the usual way to write it


def test_a_tokenizer_without_a_mask_token(tmp_path: Path) -> None:
    document = json.loads(byte_level().to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] != "<mask>"]
    backend = tokenizers.Tokenizer.from_str(json.dumps(document))
    assert TokenizerJson(write(tmp_path / "encoder", backend)).mask_id is None


def test_a_mask_token_that_only_a_name_has(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder", word_piece(), mask_token="<mask>")
    assert TokenizerJson(folder).mask_id is None


def test_ids_over_65_536_need_more_than_two_bytes(tmp_path: Path) -> None:
    """Added tokens may have the highest ids, with gaps before them."""
    document = json.loads(word_piece().to_str())
    document["model"]["vocab"]["뷁"] = 70_000
    backend = tokenizers.Tokenizer.from_str(json.dumps(document))
    ours = TokenizerJson(write(tmp_path / "encoder", backend))
    assert ours.vocab_size == 70_001
    tokens = ours.encode(["뷁"], 64)
    assert (tokens.ids.dtype, tokens.ids.tolist()) == (np.int32, [2, 70_000, 3])


def changed(**parts: object) -> str:
    return json.dumps({**json.loads(word_piece().to_str()), **parts})


def template(single: str) -> str:
    """The word piece tokenizer with another frame around a text."""
    backend = word_piece()
    ids = [(token, backend.token_to_id(token)) for token in BERT]
    backend.post_processor = processors.TemplateProcessing(single, None, ids)
    return backend.to_str()


FRAME = "does not put one special token before a text and one behind it"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "not found"),
        ("version https://git-lfs.github.com/spec/v1\n", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("{}", "not a tokenizer that can be read"),
        ("[]", "not a tokenizer that can be read"),
        (lambda: word_piece().to_str()[:-200], "not readable as JSON"),
        (lambda: changed(post_processor=None), FRAME),
        (lambda: template("[CLS] $A"), FRAME),
        (lambda: template("[CLS] [SEP] $A"), FRAME),
        (lambda: template("[CLS] [CLS] $A [SEP]"), FRAME),
        (
            lambda: template("[CLS] $A [SEP]").replace('"[SEP]":{"id"', '"[END]":{"id"'),
            "no entry found",
        ),
        (lambda: template("[CLS] $A [SEP]").replace('"ids":[3]', '"ids":[999]'), FRAME),
        (lambda: changed(added_tokens=[]), "no file names another pad token"),
        (
            lambda: word_piece().to_str().replace('"unk_token":"[UNK]"', '"unk_token":"<?>"'),
            "the vocabulary has no <?>",
        ),
    ],
)
def test_a_file_that_cannot_be_used(
    content: str | Callable[[], str] | None, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else content(), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        TokenizerJson(tmp_path)
    assert str(caught.value).startswith(f"{file}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pad_token_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder", word_piece(), pad_token="<pad>")
    with pytest.raises(InputError, match="the vocabulary has no <pad>"):
        TokenizerJson(folder)


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    ours = TokenizerJson(write(tmp_path / "encoder", word_piece()))
    with pytest.raises(InputError, match="half of a surrogate pair"):
        ours.encode(["나", "가\ud83d"], 64)
    document = json.loads(unigram().to_str())
    document["model"]["unk_id"] = None
    backend = tokenizers.Tokenizer.from_str(json.dumps(document))
    ours = TokenizerJson(write(tmp_path / "other", backend))
    with pytest.raises(InputError, match="the tokenizer cannot read a text: "):
        ours.encode(["쀍"], 64)
