"""The exported graph computes what torch computes, and its examples let a port check itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from storyflower import export
from storyflower.__main__ import main
from storyflower.common.errors import InputError
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.folder import digests, load_classifier
from storyflower.tokenizer.base import Tokens, ends
from storyflower.tokenizer.load import load_tokenizer
from tests.support import dialogue_rows, write_workbook

MISSING = "not installed; make onnx installs requirements-onnx.txt and runs this"
for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package}: {MISSING}")

MAX_LEN = 16
BODY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": MAX_LEN + 2,
}
FAMILIES = {  # one with a pooler, one with positions behind the pad id, a projection, no types
    "bert, first": (transformers.BertConfig, transformers.BertModel, {"pad_token_id": 1}),
    "roberta, mean": (transformers.RobertaConfig, transformers.RobertaModel, {"pad_token_id": 1}),
    "electra, first": (
        transformers.ElectraConfig,
        transformers.ElectraModel,
        {"embedding_size": 8},
    ),
    "distilbert, mean": (
        transformers.DistilBertConfig,
        transformers.DistilBertModel,
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
}


def random_tokens(lengths: list[int]) -> Tokens:
    """Texts of random ids, the pad id among them."""
    ids = np.random.default_rng(0).integers(0, BODY["vocab_size"], sum(lengths)).astype(np.uint16)
    return Tokens(ids, ends(np.array(lengths)), np.zeros(len(lengths), bool))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    """At every length, alone and beside texts of other lengths."""
    config, model, more = FAMILIES[name]
    torch.manual_seed(0)
    network = EmotionClassifier(model(config(**BODY, **more)), 6, 0.5, name.split(", ")[1]).eval()
    with torch.no_grad():  # of the first weights a lost layer would not show
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    export.write_graph(network, tmp_path / "model.onnx")
    session = export.open_session(tmp_path / "model.onnx", threads=1)
    cases = [[length] for length in range(1, MAX_LEN + 1)]
    cases += [list(range(MAX_LEN, MAX_LEN - texts, -1)) for texts in range(2, MAX_LEN + 1)]
    cases += [[1, MAX_LEN] * 40]
    for lengths in cases:
        tokens = random_tokens(lengths)
        expected = export.torch_logits(network, tokens)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(
            export.runtime_logits(session, tokens), expected, atol=1e-4, rtol=0
        )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_workbook(root / "Training.xlsx", dialogue_rows(9, seed=1))
    write_workbook(root / "Validation.xlsx", dialogue_rows(60, seed=3))
    return root


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file as --examples takes it."""
    file = tmp_path_factory.mktemp("lines") / "texts.txt"
    texts = [row[7] for row in dialogue_rows(300, seed=4)]
    file.write_text("\n".join(texts) + "\n\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def mean(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same classifier, pooled by the mean, with a temperature."""
    folder = shutil.copytree(classifier, tmp_path_factory.mktemp("mean") / "classifier")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    (folder / "card.json").write_text(json.dumps(card | {"pooling": "mean"}), encoding="utf-8")
    document = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    document |= {"tokenizer": digests(folder, document["tokenizer"]), "temperature": 1.5}
    (folder / "classifier.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(mean: Path, corpus: Path, lines: Path) -> tuple[Path, export.Check]:
    output = mean.parent / "onnx"
    return output, export.export(mean, output, examples=lines, corpus=corpus, int8=True)


@pytest.mark.slow
def test_a_port_can_check_itself(mean: Path, exported: tuple[Path, export.Check]) -> None:
    """With the files of the folder alone: ids from the tokenizer's files, logits from the graph."""
    folder, check = exported
    assert (check.texts, check.largest < 1e-4) == (60, True)
    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    network, document = load_classifier(mean)
    assert facts["labels"] == document["labels"]
    assert (facts["max_len"], facts["temperature"], facts["pooling"]) == (MAX_LEN, 1.5, "mean")
    assert facts["tokenizer"] == digests(folder, facts["tokenizer"])
    rows = [json.loads(line) for line in (folder / "examples.jsonl").open(encoding="ascii")]
    assert len(rows) == export.EXAMPLES
    assert len({row["text"] for row in rows}) > 150
    tokens = export.encode(load_tokenizer(folder), [row["text"] for row in rows], facts["max_len"])
    assert [row["input_ids"] for row in rows] == [ids.tolist() for ids in export.rows_of(tokens)]
    assert (max(len(row["input_ids"]) for row in rows)) == MAX_LEN
    session = export.open_session(folder / "model.onnx", threads=1)
    logits = np.array([row["logits"] for row in rows])
    np.testing.assert_allclose(export.runtime_logits(session, tokens), logits, atol=1e-4, rtol=0)
    np.testing.assert_allclose(export.torch_logits(network, tokens), logits, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_int8_is_compared(exported: tuple[Path, export.Check]) -> None:
    folder, check = exported
    assert (folder / "model.int8.onnx").is_file()
    assert check.clear_agree >= 0.99 * check.clear > 0
    assert check.accuracy > 0.9
    assert abs(check.int8_accuracy - check.accuracy) <= len(check.differences) / check.texts
    for row in check.differences:
        assert row.label != row.int8_label
        assert 0 <= row.margin <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TOLERANCE", -1.0, "logits differ from torch's by"),
        ("AGREE", 1.01, "export it without --int8"),
    ],
)
def test_a_graph_that_is_too_far_off_is_not_written(
    name: str,
    value: float,
    expected: str,
    mean: Path,
    exported: tuple[Path, export.Check],
    corpus: Path,
    lines: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = exported
    before = digests(folder, (path.name for path in folder.iterdir()))
    # Not the export again, but the file that it wrote.
    graphs = {path.name: path.read_bytes() for path in folder.glob("*.onnx")}
    monkeypatch.setattr(export, "write_graph", lambda _, path: path.write_bytes(graphs[path.name]))
    monkeypatch.setattr(export, "quantize", lambda _, path: path.write_bytes(graphs[path.name]))
    monkeypatch.setattr(export, name, value)
    with pytest.raises(InputError, match=expected) as caught:
        export.export(mean, folder, examples=lines, corpus=corpus, int8=True)
    assert "\n" not in str(caught.value)
    assert digests(folder, (path.name for path in folder.iterdir())) == before
    assert [path.name for path in folder.parent.glob("*.part")] == []


@pytest.mark.slow
def test_the_command_says_what_was_compared(
    mean: Path,
    exported: tuple[Path, export.Check],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check = export.Check(9, 2e-6, 0.5, 0.25, 8, 7, (export.Difference(3, "기쁨", "분노", 0.015),))
    asked = {}
    monkeypatch.setattr(export, "export", lambda *a, **k: asked.update(k) or check)
    main(["export", "--onnx", str(tmp_path / "o"), "--int8", "--check", str(corpus)])
    assert asked == {"examples": None, "corpus": corpus, "int8": True}
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'o'}: onnxruntime's logits are torch's to 2e-06 on 9 texts, accuracy 0.5000",
        "int8: 7 of 8 labels agree where the two best classes lie more than 2% apart",
        "int8: accuracy 0.2500, -25.00 points",
        "text 3: 기쁨, in int8 분노, margin 1.5%",
    ]


def few(root: Path) -> dict:
    (root / "few.txt").write_text("하나\n둘\n", encoding="utf-8")
    return {"examples": root / "few.txt"}


def cp949(root: Path) -> dict:
    (root / "cp949.txt").write_bytes("한국어\n".encode("cp949") * 20)
    return {"examples": root / "cp949.txt"}


def other_labels(root: Path) -> dict:
    rows = [[*row[:5], "놀람", *row[6:]] for row in dialogue_rows(9, seed=1)]
    write_workbook(root / "other/Training.xlsx", rows)
    write_workbook(root / "other/Validation.xlsx", rows[::-1])
    return {"corpus": root / "other"}


def occupied(root: Path) -> dict:
    (root / "out").mkdir()
    (root / "out/diary.txt").touch()
    return {}


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda root: {"examples": root / "none.txt"}, r"none\.txt: not found"),
        (few, r"few\.txt: 2 texts; 16 lines or more"),
        (cp949, r"cp949\.txt: not UTF-8"),
        (lambda root: {"corpus": root / "none"}, "none: no such folder"),
        (other_labels, "other: 1 labels that the classifier does not know"),
        (occupied, "out: is there and no ONNX export"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_input_is_one_line(
    prepare: Callable[[Path], dict], expected: str, classifier: Path, lines: Path, tmp_path: Path
) -> None:
    values = {"examples": lines, **prepare(tmp_path)}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=expected) as caught:
        export.export(classifier, tmp_path / "out", **values)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
