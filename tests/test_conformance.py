"""Against the real thing: gluonnlp's tokenizer in .venv-original, the notebook's training loop.

`make conformance` builds .venv-original and runs this file. It is the one test that may install
from the package index. More texts: STORYFLOWER_TEXTS=FILE:FILE, one text a line, gzip or not.
"""

import gzip
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_PARAMS, params_of
from original import notebook
from test_tokenizer import HARD
from transformers import BertModel

from storyflower import corpus, encoder, model, training
from storyflower.device import choose
from storyflower.dialogues import read_split
from storyflower.kobert import Vocab, get_pytorch_kobert_model, get_tokenizer
from storyflower.tensors import Batch, TokenTable
from storyflower.tokenizer import load_tokenizer
from storyflower.workbook import read_sheet

pytestmark = pytest.mark.slow
MAX_LEN = 64
CARD = """\
kind: scratch
tokenizer: sentencepiece
pretokenize: bert
learning_rate: 5.0e-5
license: CC0-1.0
vocab_size: 4000
layers: 2
hidden_size: 64
heads: 4
intermediate_size: 128
"""


def sample_texts() -> list[str]:
    """Every turn of the sample corpus, every sentence of one, and neighbouring turns joined."""
    texts: set[str] = set()
    for split in ("Training", "Validation"):
        for _, cells in read_sheet(corpus.find_files(ROOT / "data/sample")[split]).rows:
            turns = [cell.strip() for cell in cells[7:] if isinstance(cell, str) and cell.strip()]
            texts.update(turns)
            texts.update(part for turn in turns for part in re.split(r"(?<=[.?!…])\s+", turn))
            for width in range(2, len(turns) + 1):
                texts.update(" ".join(turns[i : i + width]) for i in range(len(turns) - width + 1))
    return sorted(texts)


def more_texts() -> list[str]:
    """The lines of the files that STORYFLOWER_TEXTS names."""
    lines = []
    for name in filter(None, os.environ.get("STORYFLOWER_TEXTS", "").split(":")):
        opener = gzip.open if name.endswith(".gz") else open
        with opener(name, "rt", encoding="utf-8") as file:
            lines += [line.rstrip("\n") for _, line in zip(range(60_000), file, strict=False)]
    return lines


def hard_texts(plain: list[str]) -> list[str]:
    """What breaks tokenizers: see the issue that asked for exactness, and the comments."""
    rng = random.Random(20261122)
    jamo = ["".join(rng.choices("ㅋㅎㅜㅠㅡ", k=rng.randint(1, 60))) for _ in range(3000)]
    mixed = ["".join(rng.choices("ㅋㅜㅠㅇ .!?~^가재", k=rng.randint(1, 80))) for _ in range(3000)]
    decomposed = [unicodedata.normalize("NFD", text) for text in plain[:2000]]
    long_words = [c * n for c in "가aㅋ漢!" for n in (199, 200, 201, 500)]
    between = [
        # Every code point of the Basic Multilingual Plane between two syllables, 16 a text.
        " ".join(f"가{chr(code)}나" for code in range(start, start + 16))
        for start in range(0, 0x10000, 16)
        if not 0xD800 <= start < 0xE000
    ]
    beyond = [f"가{chr(code)}나" for code in range(0x10000, 0x110000, 97)]
    return [*HARD, *jamo, *mixed, *decomposed, *long_words, *between, *beyond]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder of KoBERT's kind, small, with a vocabulary from the sample corpus."""
    root = tmp_path_factory.mktemp("encoder")
    table = root / "dialogues.parquet"
    corpus.ingest(
        ROOT / "data/sample", table, root / "report.json", turns=3, target="major", max_dropped=0
    )
    (root / "small.yaml").write_text(CARD, encoding="utf-8")
    encoder.prepare(root / "small.yaml", table, root / "encoder", seed=1)
    return root / "encoder"


@pytest.fixture(scope="module")
def original() -> Path:
    """The python of .venv-original, built when it is missing or stale."""
    script = ROOT / "tests/original/build.sh"
    environment = {**os.environ, "PYTHON": os.environ.get("PYTHON_ORIGINAL", sys.executable)}
    if sys.version_info[:2] != (3, 11) and "PYTHON_ORIGINAL" not in os.environ:
        pytest.skip("mxnet imports on Python 3.11 at most; name one in PYTHON_ORIGINAL")
    done = subprocess.run(
        ["bash", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip(f"the package index is out of reach: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return ROOT / ".venv-original/bin/python"


def original_arrays(
    python: Path, spiece: str, texts: list[str], work: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids (n, 64), valid_length (n,) and segment_ids (n, 64) from the real gluonnlp."""
    (work / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    script = ROOT / "tests/original/tokenize_texts.py"
    words = [python, "-W", "ignore", script, spiece, work / "texts.json", work / "out.npz", "64"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(work / "out.npz", allow_pickle=False) as arrays:
        return arrays["ids"], arrays["valid_length"], arrays["segment_ids"]


def test_ids_equal_gluonnlps(folder: Path, original: Path, tmp_path: Path) -> None:
    plain = sample_texts()
    texts = [*plain, *more_texts(), *hard_texts(plain)]
    ids, lengths, segments = original_arrays(
        original, str(folder / "spiece.model"), texts, tmp_path
    )
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.encode(texts, MAX_LEN)
    np.testing.assert_array_equal(np.diff(tokens.offsets), lengths)
    padded = np.full_like(ids, tokenizer.pad_id)
    padded[np.arange(MAX_LEN) < lengths[:, None]] = tokens.ids
    np.testing.assert_array_equal(padded, ids)
    assert not segments.any()  # our model leaves them out, which BERT takes for zeros
    print(f"\n{len(texts)} texts, {len(plain)} of them from the sample corpus: all ids equal")


def test_the_old_imports_give_gluonnlp_the_same_vocabulary(
    folder: Path, original: Path, tmp_path: Path
) -> None:
    network, vocab = get_pytorch_kobert_model(cachedir=folder)
    spiece = get_tokenizer(cachedir=folder)
    texts = sample_texts()[:2000]
    expected = original_arrays(original, spiece, texts, tmp_path)
    # The real BERTSPTokenizer, with our vocabulary in place of gluonnlp's.
    (tmp_path / "pieces.json").write_text(json.dumps(vocab.idx_to_token), encoding="utf-8")
    code = f"""
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/original")!r}]
import gluonnlp, numpy, tokenize_texts
from storyflower.kobert import Vocab
tokenize_texts.sentencepiece.SentencePieceProcessor.SampleEncodeAsPieces = (
    tokenize_texts.encode_without_sampling)
vocab = Vocab(json.load(open({str(tmp_path / "pieces.json")!r})))
tokenizer = gluonnlp.data.BERTSPTokenizer({spiece!r}, vocab, lower=False)
transform = gluonnlp.data.BERTSentenceTransform(tokenizer, max_seq_length=64, pad=True, pair=False)
rows = [transform([text]) for text in json.load(open({str(tmp_path / "texts.json")!r}))]
numpy.savez({str(tmp_path / "ours.npz")!r}, *[numpy.stack(column) for column in zip(*rows)])
"""
    done = subprocess.run(
        [original, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as ours:
        for name, array in zip(ours.files, expected, strict=True):
            np.testing.assert_array_equal(ours[name], array)

    ids, mask = torch.tensor([[2, 9, 3], [2, 3, 1]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    sequence, pooled = network(
        input_ids=ids, token_type_ids=torch.zeros_like(ids), attention_mask=mask.float()
    )
    assert sequence.shape == (2, 3, 64) and pooled.shape == (2, 64)
    assert isinstance(vocab, Vocab) and vocab[vocab.padding_token] == 1


def test_the_kobert_package_where_it_is_installed(folder: Path) -> None:
    if importlib.util.find_spec("kobert") is None:
        pytest.skip("the kobert package is not installed (it is on GitHub only, not on the index)")
    from kobert import get_tokenizer as their_tokenizer

    ours = load_tokenizer(folder)
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=their_tokenizer())
    assert len(theirs) == ours.vocab_size


def test_thirty_steps_equal_the_notebooks(folder: Path, tmp_path: Path) -> None:
    """30 steps, 3 of them warm-up: the same losses and the same update of the weights."""
    rows, batch_size, classes = 240, 8, 6
    table = read_split(folder.parent / "dialogues.parquet", "Training", ["text", "label"])
    texts = table["text"].to_pylist()[:rows]
    names = table["label"].to_pylist()
    order = list(dict.fromkeys(names))
    labels = np.array([order.index(name) for name in names[:rows]])
    tokens = load_tokenizer(folder).encode(texts, MAX_LEN)
    ragged = TokenTable(tokens.ids, tokens.offsets, labels)

    torch.manual_seed(0)
    ours = model.build(folder, classes, dr_rate=0.0)
    theirs = notebook.BertClassifier(
        BertModel.from_pretrained(folder, attn_implementation="eager"), classes
    )
    theirs.classifier.load_state_dict(ours.linear.state_dict())
    for module in [*ours.modules(), *theirs.modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # Attention's own dropout is read from the configuration.
    for bert in (ours.encoder, theirs.bert):
        for module in bert.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
    start = {name: value.clone() for name, value in theirs.bert.state_dict().items()}

    batches = []
    for first in range(0, rows, batch_size):
        part = np.arange(first, first + batch_size)
        lengths = ragged.lengths[part]
        ids = np.full((batch_size, MAX_LEN), 1)
        ids[np.arange(MAX_LEN) < lengths[:, None]] = np.concatenate(
            [ragged.ids[ragged.offsets[i] : ragged.offsets[i + 1]] for i in part]
        )
        ids = torch.from_numpy(ids)
        batches.append((ids, lengths, torch.zeros_like(ids), torch.from_numpy(labels[part])))
    expected = notebook.train(
        theirs,
        batches,
        learning_rate=5e-5,
        warmup_ratio=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
    )

    params = params_of(
        **{**TINY_PARAMS, "batch_size": batch_size, "shuffle": False, "max_len": MAX_LEN}
    )
    losses: list[float] = []

    def note_loss(_: object, arguments: tuple[Batch], logits: torch.Tensor) -> None:
        (batch,) = arguments
        if ours.training:
            part = torch.from_numpy(labels[batch.rows])
            losses.append(torch.nn.functional.cross_entropy(logits, part).item())

    ours.register_forward_hook(note_loss)
    training.fit(
        ours,
        ragged,
        ragged,
        params,
        learning_rate=5e-5,
        optimizer_name="notebook",
        placement=choose("cpu", "fp32"),
        on_epoch=lambda rows: None,
    )
    assert len(losses) == len(expected) == 30
    np.testing.assert_allclose(losses, expected, rtol=1e-5)

    def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([state[name].double().flatten() for name in start])

    update = flat(theirs.bert.state_dict()) - flat(start)
    gap = flat(ours.encoder.state_dict()) - flat(theirs.bert.state_dict())
    assert update.norm() > 0
    assert gap.norm() < 1e-3 * update.norm()
