"""From a card to a verified encoder folder, against a hub that runs on this machine."""

import hashlib
import importlib
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import sentencepiece
import tokenizers
import torch
import transformers
import yaml
from huggingface_hub import constants

from storyflower import Classifier
from storyflower.__main__ import main
from storyflower.common.errors import InputError
from storyflower.encoder import lock as lock_module
from storyflower.encoder import prepare as prepare_module
from storyflower.encoder import pretrained, sources, verify
from storyflower.encoder.card import Card, write_card
from storyflower.interim.labels import LabelIndex
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import make_batch
from storyflower.model.folder import build_classifier, save_classifier
from storyflower.tokenize import tokenize
from storyflower.tokenizer.load import load_tokenizer
from tests.encoder.hub import Hub, ask, running_hub
from tests.support import ROOT, TINY_PARAMS, WORDS, set_params

TEXTS = [
    "오늘 드디어 합격했어! 너무 기뻐서 눈물이 났어.",
    "친구와 다투고 나서 하루 종일 마음이 무거워",
    "[CLS] ㅋㅋㅋ 漢字 Ａｂｃ café 3.5% 😀",
    "",
    "회사 일이 많아서 지쳤다",
]
# What the vocabularies are made of: these texts, and those of the tests' corpus.
LETTERS = [*TEXTS, verify.GOLDEN_TEXT, *chain(*WORDS.values()), "0123456789 번째"]
BODY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 80,
}
DISTILLED = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}


# ---------------------------------------------------------------- vocabularies and checkpoints


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> bytes:
    """A SentencePiece model with KoBERT's special ids."""
    prefix = tmp_path_factory.mktemp("pieces") / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LETTERS * 20),
        model_prefix=str(prefix),
        vocab_size=160,
        hard_vocab_limit=False,
        unk_id=0,
        pad_id=1,
        bos_id=2,
        eos_id=3,
        unk_piece="[UNK]",
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        control_symbols="[MASK]",
        minloglevel=2,
    )
    return prefix.with_suffix(".model").read_bytes()


def plain_ids(pieces: bytes, text: str) -> list[int]:
    return [2, *sentencepiece.SentencePieceProcessor(model_proto=pieces).encode(text), 3]


def word_pieces(special: list[str]) -> list[str]:
    letters = sorted(set("".join(LETTERS)) - {" "})
    words = ["오늘", "마음", "##이", "##했어", "한국어", "##을", "모델"]
    return [*special, *letters, *(f"##{letter}" for letter in letters), *words]


def checkpoint(config, head: str, *, safe: bool, change=None) -> tuple[dict[str, bytes], object]:
    """The hub's files of a tiny checkpoint with random weights, and transformers' own model."""
    torch.manual_seed(5)
    network = getattr(transformers, head)(config).eval()
    with torch.no_grad():  # the initial weights are so small that a wrong layer would not show
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    if change:
        change(weights)
    files = {"config.json": config.to_json_string().encode()}
    if safe:
        files["model.safetensors"] = safetensors.torch.save(weights)
    else:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        files["pytorch_model.bin"] = buffer.getvalue()
    return files, network


def word_piece_files(special: list[str], **settings) -> dict[str, bytes]:
    settings = {"do_lower_case": False, "tokenizer_class": "BertTokenizer", **settings}
    return {
        "vocab.txt": "\n".join(word_pieces(special)).encode() + b"\n",
        "tokenizer_config.json": json.dumps(settings).encode(),
    }


def tokenizer_json() -> bytes:
    """The same vocabulary in one file, with a length that it cuts texts to and fills them up to."""
    pieces = {piece: row for row, piece in enumerate(word_pieces(BERT_ORDER))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(BERT_ORDER)
    backend.enable_truncation(7)
    backend.enable_padding(length=7)
    return backend.to_str().encode()


BERT_ORDER = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Families whose positions count from the pad id; written out, so that none is lost
FROM_PAD = (
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod"),
    *("data2vec-text", "ibert", "longformer", "luke", "mpnet"),
)
ROBERTA_ORDER = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]  # as klue/roberta-base


def kobert(pieces: bytes, change=None, **more) -> tuple[dict[str, bytes], object]:
    rows = sentencepiece.SentencePieceProcessor(model_proto=pieces).vocab_size()
    config = transformers.BertConfig(**{"vocab_size": rows, "pad_token_id": 1, **BODY, **more})
    files, network = checkpoint(config, "BertForPreTraining", safe=False, change=change)
    return {**files, "spiece.model": pieces}, network


def family(name: str, pieces: bytes) -> tuple[dict[str, bytes], object, dict]:
    """A family's files as on the hub, transformers' own model, and what its card says."""
    rows = len(word_pieces(BERT_ORDER))
    if name == "kobert":
        card = {"tokenizer": "sentencepiece", "pretokenize": "bert", "pad_id": 1}
        return (*kobert(pieces), {**card, "optimizer": "notebook"})
    if name == "bert":
        config = transformers.BertConfig(vocab_size=rows, **BODY)
        files, network = checkpoint(config, "BertForMaskedLM", safe=True)
        return {**files, **word_piece_files(BERT_ORDER)}, network, {}
    if name == "tokenizer.json":
        config = transformers.BertConfig(vocab_size=rows, **BODY)
        files, network = checkpoint(config, "BertForMaskedLM", safe=True)
        return {**files, "tokenizer.json": tokenizer_json()}, network, {}
    if name == "roberta":
        config = transformers.RobertaConfig(
            vocab_size=rows, pad_token_id=1, type_vocab_size=1, **BODY
        )
        files, network = checkpoint(config, "RobertaForMaskedLM", safe=False)
        return {**files, **word_piece_files(ROBERTA_ORDER)}, network, {"pad_id": 1}
    if name == "electra":
        config = transformers.ElectraConfig(vocab_size=rows, embedding_size=8, **BODY)
        files, network = checkpoint(config, "ElectraForPreTraining", safe=False)
        return {**files, **word_piece_files(BERT_ORDER)}, network, {"tokenizer": "wordpiece"}
    if name == "modernbert":  # one of those that are computed with padding
        config = transformers.ModernBertConfig(vocab_size=rows, pad_token_id=0, **BODY)
        files, network = checkpoint(config, "ModernBertForMaskedLM", safe=True)
        return {**files, **word_piece_files(BERT_ORDER)}, network, {"pooling": "mean"}
    rows = sentencepiece.SentencePieceProcessor(model_proto=pieces).vocab_size()
    config = transformers.DistilBertConfig(vocab_size=rows, **DISTILLED)
    files, network = checkpoint(config, "DistilBertForMaskedLM", safe=False)
    files["tokenizer_78b3253a26.model"] = pieces
    files["config.json"] = json.dumps(  # as of old: no pad id
        {k: v for k, v in config.to_dict().items() if k not in ("pad_token_id", "model_type")}
        | {"architectures": ["DistilBertModel"]}
    ).encode()
    return files, network, {"vocabulary": "tokenizer_78b3253a26.model", "pad_id": 1}


# ---------------------------------------------------------------- the hub on this machine


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    with running_hub(monkeypatch, tmp_path / "hub-cache") as hub:
        yield hub


@pytest.fixture
def cards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the command line looks for encoders/
    folder = tmp_path / "encoders"
    folder.mkdir()
    return folder


def write(cards: Path, name: str = "tiny", **keys) -> Path:
    keys = {"kind": "hub", "source": "lab/tiny", "license": "unknown", **keys}
    file = cards / f"{name}.yaml"
    text = "# mine\n" + yaml.safe_dump(keys, allow_unicode=True, sort_keys=False)
    file.write_text(text, encoding="utf-8")
    return file


def prepare(card_file: Path, output: Path | None = None) -> Path:
    output = output or card_file.parents[1] / "models" / "encoder"
    prepare_module.prepare(card_file, output)
    return output


def refused(card_file: Path) -> str:
    """The one line that an impossible card ends in; it leaves nothing behind."""
    output = card_file.parents[1] / "models" / "encoder"
    with pytest.raises(InputError) as caught:
        prepare(card_file, output)
    assert not output.exists()
    assert not output.with_name("encoder.part").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- families


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("name", ["kobert", "distilbert"])  # the rest: test_families.py
def test_what_skt_and_monologg_publish_computes_what_transformers_computes(
    name, pooling, pieces, hub, cards, capsys
):
    files, network, keys = family(name, pieces)
    commit = hub.publish("lab/tiny", {**files, "README.md": b"#", "modeling.py": b"1/0"})
    output = prepare(write(cards, pooling=pooling, **keys))

    classifier = build_classifier(output, 6, dr_rate=0.5).eval()
    tokenizer = load_tokenizer(output)
    tokens = tokenizer.encode(TEXTS, 64)
    table = TokenArrays(tokens.ids, tokens.offsets, np.zeros(len(TEXTS), np.int64))
    body = getattr(network, network.base_model_prefix)
    batch = make_batch(table, np.arange(len(TEXTS)))
    logits = classifier(batch)
    labels = torch.arange(len(TEXTS)) % 6
    torch.nn.functional.cross_entropy(logits, labels[batch.rows]).backward()

    # transformers' own model, on the same texts padded to the longest.
    mask = torch.arange(int(table.lengths.max())) < torch.from_numpy(table.lengths)[:, None]
    ids = torch.full(mask.shape, tokenizer.pad_id)
    ids[mask] = torch.from_numpy(table.ids.astype(np.int64))
    body.eval()
    # The card's pad id, which may mend the one of config.json: [PAD] is what gets no gradient.
    body.get_input_embeddings().padding_idx = tokenizer.pad_id
    theirs = body(input_ids=ids, attention_mask=mask.long())
    summary = getattr(theirs, "pooler_output", None)
    if summary is None:
        summary = theirs.last_hidden_state[:, 0]
    if pooling == "mean":
        states, weight = theirs.last_hidden_state, mask.unsqueeze(2)
        summary = (states * weight).sum(1) / weight.sum(1)
    linear = torch.nn.functional.linear(summary, classifier.linear.weight, classifier.linear.bias)
    torch.testing.assert_close(logits, linear[batch.rows], atol=1e-5, rtol=0)
    torch.nn.functional.cross_entropy(linear, labels).backward()
    expected = {key: value.grad for key, value in body.named_parameters()}
    for key, value in classifier.encoder.named_parameters():
        torch.testing.assert_close(
            value.grad, expected[key], atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}"
        )
    pooled = getattr(classifier.encoder, "pooler", None) is not None
    assert pooled == (name == "kobert" and pooling == "first")

    document = json.loads((output / "card.json").read_text(encoding="utf-8"))
    assert document["revision"] == commit
    assert document["optimizer"] == keys.get("optimizer", "adamw")
    assert (
        document["pad_id"] == tokenizer.pad_id == int(name in ("kobert", "roberta", "distilbert"))
    )
    assert document["learning_rate"] == 5e-5
    assert document["max_length"] == {"roberta": 78, "distilbert": 512}.get(name, 80)
    assert not list(output.glob("*.bin"))
    assert not any("README" in path or "modeling" in path for path in hub.paths())
    said = capsys.readouterr().err
    assert "is not locked" in said
    assert commit in said
    assert document["files"]["config.json"][:19] in said


@pytest.mark.slow
def test_each_family_goes_through_the_whole_pipeline(
    pieces, hub, make_repository: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    """By the stages themselves, one after the other in this process: starting one takes longer."""
    root = make_repository()
    monkeypatch.chdir(root)
    for variable in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("kobert", "roberta", "electra", "distilbert", "modernbert"):
        files, _, keys = family(name, pieces)
        hub.publish(f"lab/{name}", files)
        write(root / "encoders", name, source=f"lab/{name}", **keys)
        set_params(root, **{**TINY_PARAMS, "encoder": name})
        for stage in ("ingest", "labels", "encoder", "tokenize", "train", "evaluate"):
            importlib.import_module(f"stages.{stage}").main()
        # The classifier says what its own encoder says, so nothing of the last family is left.
        config = json.loads((root / "models/classifier/config.json").read_text())
        assert config["model_type"] == name.removeprefix("ko")
        metrics = json.loads((root / "reports/metrics.json").read_text(encoding="utf-8"))
        assert 0 <= metrics["accuracy"] <= 1
        hub.log.clear()
        (prediction,) = Classifier.load(root / "models/classifier").predict(["합격했어"])
        assert prediction.label in WORDS
        assert hub.log == []


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_wordpiece_ids_are_those_of_transformers(name, lower, pieces, hub, cards, tmp_path):
    files = family(name, pieces)[0]
    order = BERT_ORDER if name == "bert" else ROBERTA_ORDER
    files |= word_piece_files(order, do_lower_case=lower)
    hub.publish("lab/tiny", files)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for file in ("vocab.txt", "tokenizer_config.json", "config.json"):
        (theirs / file).write_bytes(files[file])
    expected = transformers.BertTokenizer.from_pretrained(theirs)(TEXTS)["input_ids"]
    tokens = load_tokenizer(prepare(write(cards))).encode(TEXTS, 512)
    rows = np.split(tokens.ids, tokens.offsets[1:-1])
    assert [row.tolist() for row in rows] == expected


def test_tokenizer_json_goes_with_the_encoder_and_its_lock(pieces, hub, cards, capsys, tmp_path):
    names = {"special_tokens_map.json": b'{"pad_token": "[PAD]"}', "tokenizer_config.json": b"{}"}
    hub.publish("lab/tiny", {**family("tokenizer.json", pieces)[0], **names})
    card = write(cards)
    main(["lock", "tiny"])
    lock = json.loads((cards / "tiny.lock.json").read_text(encoding="utf-8"))
    assert {"tokenizer.json", *names} < set(lock["files"])
    hub.log.clear()
    capsys.readouterr()
    output = prepare(card)
    assert (hub.log, capsys.readouterr().err) == ([], "")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(output / "tokenizer.json"), pad_token="[PAD]"
    )
    (expected,) = theirs([verify.GOLDEN_TEXT], truncation=True, max_length=512)["input_ids"]
    assert lock["golden"] == {"text": verify.GOLDEN_TEXT, "ids": expected, "pretokenize": None}
    document = json.loads((output / "card.json").read_text(encoding="utf-8"))
    assert (document["tokenizer"], document["mask_id"]) == ("tokenizer.json", 4)

    # And with the classifier: everything but the weights is copied.
    network = build_classifier(output, 2, 0.0)
    facts = {"params": {"max_len": 16, "dr_rate": 0.0}}
    labels = LabelIndex(("기쁨", "슬픔"))
    save_classifier(network, tmp_path / "c", encoder=output, labels=labels, facts=facts)
    classifier = Classifier.load(tmp_path / "c", device="cpu")
    diary = "오늘 드디어 합격했어! 너무 기뻐서 눈물이 났어. " * 9
    assert classifier.predict([diary])[0].label in labels.names
    assert classifier.is_cut([diary, "오늘"]).tolist() == [True, False]
    pieces_read = classifier.read(diary).pieces
    assert "".join(piece.text for piece in pieces_read).count("합격") == 9
    assert not classifier.is_cut([piece.text for piece in pieces_read]).any()
    assert [word.text for word in classifier.explain("오늘 눈물이").words] == ["오늘", "눈물이"]
    assert classifier.unknown_shares(["오늘", "쀍", "쀍 오늘"]).tolist() == [0, 1, 0.5]


def test_vocabulary_that_a_card_does_not_name_is_looked_for_in_order(pieces, hub, cards):
    both = {**family("bert", pieces)[0], "tokenizer.json": tokenizer_json()}
    hub.publish("lab/tiny", both)
    for keys, expected in (
        ({}, "wordpiece"),
        ({"tokenizer": "tokenizer.json"}, "tokenizer.json"),
        ({"vocabulary": "tokenizer.json"}, "tokenizer.json"),
    ):
        output = prepare(write(cards, **keys))
        document = json.loads((output / "card.json").read_text(encoding="utf-8"))
        assert document["tokenizer"] == expected
        assert (output / "tokenizer.json").exists() == (expected == "tokenizer.json")


@pytest.mark.parametrize("pretokenize", ["bert", "none"])
def test_card_chooses_how_sentencepiece_is_run(pretokenize, pieces, hub, cards):
    hub.publish("lab/tiny", kobert(pieces)[0])
    text = "합격했어! 漢字."
    card = {"tokenizer": "sentencepiece", "pretokenize": pretokenize}
    ids = load_tokenizer(prepare(write(cards, **card))).encode([text], 64).ids.tolist()
    assert (ids == plain_ids(pieces, text)) == (pretokenize == "none")


def test_old_names_of_layer_norm_are_read(pieces, hub, cards):
    def change(weights):
        for name in list(weights):
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            weights[new.replace("LayerNorm.bias", "LayerNorm.beta")] = weights.pop(name)

    files, network = kobert(pieces, change)
    hub.publish("lab/tiny", files)
    body = build_classifier(prepare(write(cards)), 2, 0.0).encoder
    ours, theirs = body.embeddings.LayerNorm.weight, network.bert.embeddings.LayerNorm.weight
    assert torch.equal(ours, theirs)


def test_max_len_beyond_the_encoders_positions_is_an_error(pieces, hub, cards, tmp_path):
    files, _, _ = family("roberta", pieces)
    hub.publish("lab/tiny", files)
    output = prepare(write(cards))
    table = tmp_path / "dialogues.parquet"
    columns = {"split": ["Training"], "text": ["오늘"], "label": ["기쁨"], "fine": ["기쁨/기쁨"]}
    pq.write_table(pa.table(columns), table)
    labels = tmp_path / "labels.json"
    labels.write_text('{"labels": ["기쁨", "슬픔"]}', encoding="utf-8")
    with pytest.raises(InputError, match="max_len must be at most 78 with this encoder, got 79"):
        tokenize.tokenize(
            table, labels, output, tmp_path / "t", tmp_path / "r.json", target="major", max_len=79
        )


# ---------------------------------------------------------------- locks, caches, the network


def test_lock_pins_the_source_and_needs_no_network_after(pieces, hub, cards, capsys):
    commit = hub.publish("lab/tiny", kobert(pieces)[0])
    card = write(cards)
    before = card.read_bytes()
    main(["lock", "tiny"])
    assert card.read_bytes() == before
    lock = json.loads((cards / "tiny.lock.json").read_text(encoding="utf-8"))
    assert lock["revision"] == commit
    assert set(lock["files"]) == {"config.json", "pytorch_model.bin", "spiece.model"}
    assert lock["golden"]["ids"] == plain_ids(pieces, verify.GOLDEN_TEXT)

    other = kobert(pieces, lambda weights: [value.zero_() for value in weights.values()])[0]
    hub.publish("lab/tiny", other)
    hub.log.clear()
    capsys.readouterr()
    first = prepare(card)
    assert hub.log == []
    assert capsys.readouterr().err == ""
    assert json.loads((first / "card.json").read_text(encoding="utf-8"))["revision"] == commit

    # A cache that is empty again is filled with the locked commit, not with the newest.
    content = {path.name: path.read_bytes() for path in first.iterdir()}
    shutil.rmtree(constants.HF_HUB_CACHE)
    second = prepare(card)
    assert {path.name: path.read_bytes() for path in second.iterdir()} == content


def test_without_a_lock_the_newest_is_taken_and_the_cache_when_out_of_reach(
    pieces, hub, cards, monkeypatch
):
    hub.publish("lab/tiny", kobert(pieces)[0])
    card = write(cards)
    prepare(card)
    commit = hub.publish("lab/tiny", kobert(pieces, num_hidden_layers=1)[0])
    output = prepare(card)
    document = json.loads((output / "card.json").read_text(encoding="utf-8"))
    assert document["revision"] == commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    huggingface_hub.close_session()
    assert json.loads((prepare(card) / "card.json").read_text(encoding="utf-8")) == document
    assert hub.log == []


def test_pinned_revision_is_taken_and_asks_nothing_twice(pieces, hub, cards):
    files, _, keys = family("bert", pieces)
    del files["tokenizer_config.json"]  # that there is none is remembered as well
    commit = hub.publish("lab/tiny", files)
    hub.publish("lab/tiny", {"config.json": b"{}"})
    card = write(cards, revision=commit, **keys)
    prepare(card)
    hub.log.clear()
    prepare(card)
    assert hub.log == []


def run_stage(folder: Path, hub: Hub, **more: str) -> subprocess.CompletedProcess:
    """The stage in a process of its own, with the environment of someone who uses a mirror."""
    (folder / "encoders").mkdir(exist_ok=True)
    write(folder / "encoders", "mine", source="skt/kobert-base-v1")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    (folder / "params.yaml").write_text(yaml.safe_dump({**params, "encoder": "mine"}))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), **more}
    return subprocess.run(
        [sys.executable, "-m", "stages.encoder"],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), **settings},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_stage_ends_in_one_line_when_offline(hub, tmp_path):
    done = run_stage(tmp_path, hub, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr == (
        "error: skt/kobert-base-v1: config.json is not in the hub cache, "
        "and HF_HUB_OFFLINE forbids to fetch it\n"
    )
    assert hub.log == []


@pytest.mark.slow  # the hub's client waits a second between its attempts
@pytest.mark.parametrize("case", ["status", "cut off"])
def test_stage_ends_in_one_line_when_the_hub_breaks_off(case, pieces, hub, tmp_path):
    hub.publish("skt/kobert-base-v1", kobert(pieces)[0])
    if case == "status":
        hub.status = {"GET": [503] * 20}
        expected = "the hub answers 503 for config.json; try again later\n"
    else:
        hub.die_after = [0] * 20
        expected = "config.json could not be downloaded ("
    done = run_stage(tmp_path, hub)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: skt/kobert-base-v1: {expected}")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_stage_fetches_from_the_mirror_of_the_environment(pieces, hub, tmp_path):
    hub.publish("skt/kobert-base-v1", kobert(pieces)[0])
    done = run_stage(tmp_path, hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "encoder mine: hub, sentencepiece, licence unknown\n"
    assert "skt/kobert-base-v1/resolve/main/config.json" in hub.paths()
    assert list((tmp_path / "home" / "hub").glob("models--skt--kobert-base-v1/snapshots/*"))
    hub.log.clear()
    assert run_stage(tmp_path, hub, HF_HUB_OFFLINE="1").returncode == 0
    assert hub.log == []


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("gated", "lab/tiny: gated: accept its conditions"),
        ("misspelt", "lab/tiny: no such repository on the hub; check the spelling"),
        ("revision", "lab/tiny: the hub knows no revision 'v9'"),
        ("offline", "config.json is not in the hub cache, and HF_HUB_OFFLINE forbids"),
        ("network", "config.json is not in the hub cache, and http://127.0.0.1:9 cannot be"),
        ("weights", "lab/tiny: has no model.safetensors or pytorch_model.bin"),
        ("vocabulary", "lab/tiny: has no spiece.model, vocab.txt or tokenizer.json"),
        ("named vocabulary", "lab/tiny: has no tokenizer.json"),
        ("shifted", "lab/tiny: the ids of sentencepiece.bpe.model are not the encoder's; say"),
    ],
)
def test_hub_that_does_not_deliver(case, expected, pieces, hub, cards, monkeypatch):
    files = kobert(pieces)[0]
    if case == "gated":
        hub.gated.add("lab/tiny")
    elif case == "weights":
        hub.publish("lab/tiny", {k: v for k, v in files.items() if k != "pytorch_model.bin"})
    elif case == "vocabulary":
        hub.publish("lab/tiny", {k: v for k, v in files.items() if k != "spiece.model"})
    elif case == "shifted":
        hub.publish("lab/tiny", {**files, "sentencepiece.bpe.model": pieces})
    elif case != "misspelt":
        hub.publish("lab/tiny", files)
    if case == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if case == "network":
        ask(monkeypatch, "http://127.0.0.1:9")
    keys = {
        "revision": {"revision": "v9"},
        "named vocabulary": {"tokenizer": "tokenizer.json"},
        "shifted": {"vocabulary": "sentencepiece.bpe.model"},
    }.get(case, {})
    assert expected in refused(write(cards, **keys))


def test_file_that_differs_from_its_lock_is_not_read(pieces, hub, cards, monkeypatch):
    hub.publish("lab/tiny", kobert(pieces)[0])
    card = write(cards)
    lock_module.lock(card)
    [cached] = Path(constants.HF_HUB_CACHE).rglob("snapshots/*/pytorch_model.bin")
    cached.resolve().write_bytes(b"something else")
    monkeypatch.setattr(pretrained, "read_weights", None)
    said = refused(card)
    assert f"{cached.resolve()}: sha256:" in said
    assert "if it is damaged, delete it" in said
    cached.resolve().unlink()
    monkeypatch.undo()


# ---------------------------------------------------------------- a zip on the hub: kobert-legacy


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def legacy(hub: Hub, cards: Path, pieces: bytes, packed: bytes | None = None, **keys) -> Path:
    """A card such as kobert-legacy's, and its files on the hub."""
    files, _ = kobert(pieces)
    inside = {f"kobert_from_pretrained/{k}": v for k, v in files.items() if k != "spiece.model"}
    packed = packed or archive(inside)
    # Beside them, as on the hub, the files that another card takes.
    hub.publish("skt/old", {"legacy/kobert_v1.zip": packed, "legacy/ko.spiece": pieces, **files})
    checksums = {
        "legacy/kobert_v1.zip": f"md5:{hashlib.md5(packed).hexdigest()}",
        "legacy/ko.spiece": f"md5:{hashlib.md5(pieces).hexdigest()[:10]}",
    }
    more = {"vocabulary": "ko.spiece", "tokenizer": "sentencepiece", "pretokenize": "bert"}
    return write(cards, **{"source": "skt/old", "files": checksums, **more, **keys})


def test_legacy_files_become_the_same_encoder_as_the_hubs(pieces, hub, cards, capsys):
    card = legacy(hub, cards, pieces)
    output = prepare(card)
    taken = json.loads((output / "card.json").read_text(encoding="utf-8"))
    assert set(taken["files"]) == {"legacy/kobert_v1.zip", "legacy/ko.spiece"}
    assert taken["revision"] == hub.commit("skt/old", 0)
    assert not any(path.endswith((".bin", "config.json")) for path in hub.paths())
    assert "is not locked" in capsys.readouterr().err
    hub.publish("lab/tiny", kobert(pieces)[0])
    theirs = prepare(write(cards, "hub"), output.with_name("other"))
    for name in ("model.safetensors", "config.json", "spiece.model"):
        assert (output / name).read_bytes() == (theirs / name).read_bytes()
    lock_module.lock(card)
    hub.log.clear()
    capsys.readouterr()
    prepare(card)
    assert hub.log == []
    assert capsys.readouterr().err == ""


def test_locked_zip_that_changed_is_not_unpacked(pieces, hub, cards, monkeypatch):
    card = legacy(hub, cards, pieces)
    lock_module.lock(card)
    file = cards / "tiny.lock.json"
    lock = json.loads(file.read_text(encoding="utf-8"))
    lock["files"]["legacy/kobert_v1.zip"] = "sha256:" + "0" * 64
    file.write_text(json.dumps(lock), encoding="utf-8")
    monkeypatch.setattr(sources, "unzip", None)
    assert f"but {file} says sha256:0000" in refused(card)
    del lock["files"]["legacy/kobert_v1.zip"]
    file.write_text(json.dumps(lock), encoding="utf-8")
    assert "tiny.lock.json: of other files than the card names; lock it again" in refused(card)


def test_download_resumes_where_the_server_died(pieces, hub, cards, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is lost of a broken answer
    card = legacy(hub, cards, pieces)
    hub.die_after = [1000, 500]
    prepare(card)
    stored = f"store/{hashlib.sha256(hub.repos['skt/old'][0]['legacy/kobert_v1.zip']).hexdigest()}"
    ranges = [span for _, path, span in hub.log if path == stored]
    assert ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_what_was_fetched_whole_is_not_fetched_again(pieces, hub, cards):
    card = legacy(hub, cards, pieces)
    (packed,) = hub.repos["skt/old"]
    hub.die_after = [len(packed["legacy/kobert_v1.zip"]), *[0] * 20]
    said = refused(card)
    assert "skt/old: legacy/ko.spiece could not be downloaded (" in said
    assert said.endswith("run it again")
    hub.die_after = []
    hub.log.clear()
    prepare(card)
    stored = hashlib.sha256(packed["legacy/kobert_v1.zip"]).hexdigest()
    assert f"store/{stored}" not in hub.paths()


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "skt/old: the hub refuses legacy/kobert_v1.zip (401); log in with"),
        (403, "skt/old: the hub refuses legacy/kobert_v1.zip (403); log in with"),
        (500, "skt/old: the hub answers 500 for legacy/kobert_v1.zip; try again later"),
        (503, "skt/old: the hub answers 503 for legacy/kobert_v1.zip; try again later"),
    ],
)
def test_hub_that_answers_with_an_error(method, status, expected, pieces, hub, cards):
    card = legacy(hub, cards, pieces)
    hub.status = {method: [status] * 20}
    assert refused(card).startswith(expected)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("checksum", "tiny.yaml says md5:"),
        ("absent", "tiny.yaml: its source has no legacy/kobert_v1.zip"),
        ("offline", "legacy/kobert_v1.zip is not in the hub cache, and HF_HUB_OFFLINE forbids"),
        ("network", "http://127.0.0.1:9 cannot be reached ("),
        ("cut off", "legacy/kobert_v1.zip could not be downloaded ("),
    ],
)
def test_zip_that_does_not_come(case, expected, pieces, hub, cards, monkeypatch):
    card = legacy(hub, cards, pieces)
    if case == "checksum":
        hub.repos["skt/old"][0]["legacy/kobert_v1.zip"] = archive({"other": b"file"})
        monkeypatch.setattr(sources, "unzip", None)
    elif case == "absent":
        del hub.repos["skt/old"][0]["legacy/kobert_v1.zip"]
    elif case == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif case == "network":
        ask(monkeypatch, "http://127.0.0.1:9")
    elif case == "cut off":
        hub.die_after = [100, *[0] * 20]
    assert expected in refused(card)


def test_file_that_rots_in_the_cache_is_noticed(pieces, hub, cards, monkeypatch):
    card = legacy(hub, cards, pieces)
    prepare(card)
    [cached] = Path(constants.HF_HUB_CACHE).rglob("kobert_v1.zip")
    cached.resolve().write_bytes(b"something else")
    shutil.rmtree(cards.parent / "models")
    said = refused(card)
    assert said.startswith(f"{cached.resolve()}: md5:") and "delete it and run again" in said
    cached.resolve().unlink()
    prepare(card)


def link(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        member = zipfile.ZipInfo(name)
        member.external_attr = 0o120777 << 16
        file.writestr(member, "/etc")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (archive({"../../escaped": b"x"}), "refused: its member '../../escaped'"),
        (archive({"/tmp/escaped": b"x"}), "refused: its member '/tmp/escaped'"),
        (archive({"a\\..\\escaped": b"x"}), "refused: its member"),
        (link("config.json"), "refused: its member 'config.json'"),
        (archive({"zeros": bytes(200 << 20)}), "would unpack to 200 MiB; refused"),
        (archive({"config.json": b"{}"})[:-30], "not a usable zip"),
        (archive({"a/config.json": b"{}", "b/config.json": b"{}"}), "more than one config.json"),
    ],
    ids=["parent", "absolute", "windows", "link", "bomb", "truncated", "twice"],
)
def test_malicious_zip_is_refused(packed, expected, pieces, hub, cards, tmp_path):
    assert expected in refused(legacy(hub, cards, pieces, packed))
    assert not list(tmp_path.rglob("escaped"))
    assert not Path("/tmp/escaped").exists()


# ---------------------------------------------------------------- checkpoints that must not pass


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self):
        return Path.touch, (self.sign,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bin_that_would_run_code_does_not(pieces, hub, cards, tmp_path):
    sign = tmp_path / "it-ran"
    files, _ = kobert(pieces)
    for content in (pickle.dumps(Bomb(sign)), saved({"weight": Bomb(sign)})):
        hub.publish("lab/tiny", {**files, "pytorch_model.bin": content})
        assert "pytorch_model.bin: refused: damaged, or holds objects" in refused(write(cards))
    assert not sign.exists()


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_code_of_a_checkpoint_is_not_run(pieces, hub, cards, tmp_path):
    files, network, keys = family("kobert", pieces)
    sign = tmp_path / "it-ran"
    code = f"import pathlib\npathlib.Path({str(sign)!r}).touch()\n".encode()
    config = json.loads(files["config.json"])
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    known = {**files, "own.py": code, "config.json": json.dumps(config).encode()}
    hub.publish("lab/tiny", known)
    body = build_classifier(prepare(write(cards, **keys)), 2, 0.0).encoder
    assert torch.equal(body.pooler.dense.weight, network.bert.pooler.dense.weight)

    config["model_type"] = "own"
    hub.publish("lab/own", {**known, "config.json": json.dumps(config).encode()})
    output = tmp_path / "own"
    with pytest.raises(InputError, match="a model of type 'own', which transformers 5"):
        prepare(write(cards, "own", source="lab/own"), output)
    assert not sign.exists()
    assert not any(path.endswith("own.py") for path in hub.paths())


def fewer_rows(weights):
    for name in list(weights):
        if "word_embeddings" in name or name.startswith("cls.predictions"):
            weights[name] = weights[name][:-7] if weights[name].dim() else weights[name]


def floats(weights):
    return [weight for weight in weights.values() if weight.is_floating_point()]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("config rows", "embeddings.word_embeddings.weight is"),
        ("fewer rows", "pieces in the vocabulary, but 40 rows in the embedding"),
        ("many rows", "pieces in the vocabulary, but 900 rows in the embedding"),
        ("layer", "encoder.layer.2.attention.output.LayerNorm.bias is missing"),
        ("pad in config", "lab/tiny: [PAD] is id 1 in the vocabulary, 0 in config.json"),
        ("pad on card", "lab/tiny: [PAD] is id 1 in the vocabulary, 0 on the card"),
        ("golden", "lab/tiny: another vocabulary or tokenizer: '한국어 모델을"),
        ("config", "config.json: not readable as JSON"),
        ("config list", "lab/tiny: config.json: not a JSON object"),
        ("settings list", "lab/tiny: tokenizer_config.json: not a JSON object"),
        (
            "not numbers",
            "a model of type 'bert': its states are not numbers (NaN); are its weights",
        ),
        ("no weights", "lab/tiny: pytorch_model.bin: holds more than named tensors"),
        ("not pieces", "spiece.model: not a SentencePiece model"),
        ("not a tokenizer", "tokenizer.json: not a tokenizer that can be read"),
    ],
)
def test_parts_that_do_not_belong_together(case, expected, pieces, hub, cards):
    keys: dict = {}
    files, _ = kobert(pieces)
    if case == "config rows":
        files, _ = kobert(pieces, fewer_rows)
    elif case == "fewer rows":
        files, _ = kobert(pieces, vocab_size=40)
    elif case == "many rows":
        files, _ = kobert(pieces, vocab_size=900)
    elif case == "layer":
        files["config.json"] = kobert(pieces, num_hidden_layers=3)[0]["config.json"]
    elif case == "pad in config":
        files, _ = kobert(pieces, pad_token_id=0)
    elif case == "pad on card":
        keys = {"pad_id": 0}
    elif case == "golden":
        keys = {"golden": {"text": verify.GOLDEN_TEXT, "ids": [2, 4958, 3]}}
    elif case == "config":
        files["config.json"] = b"{"
    elif case == "config list":
        files["config.json"] = b"[]"
    elif case == "settings list":
        files = family("bert", pieces)[0] | {"tokenizer_config.json": b"[]"}
    elif case == "not numbers":
        files, _ = kobert(
            pieces, lambda weights: [each.fill_(math.nan) for each in floats(weights)]
        )
    elif case == "no weights":
        files["pytorch_model.bin"] = saved({"bert": {"deep": torch.zeros(1)}})
    elif case == "not a tokenizer":
        files = family("tokenizer.json", pieces)[0] | {"tokenizer.json": b'{"version": "1.0"}'}
    else:
        files["spiece.model"] = b"<html>"
    hub.publish("lab/tiny", files)
    assert expected in refused(write(cards, **keys))


@pytest.mark.parametrize("name", ["kobert", "bert", "tokenizer.json"])
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"cls_id": 9}, "lab/tiny: cls_id is 2 in the tokenizer, 9 on the card"),
        ({"sep_id": 2}, "lab/tiny: sep_id is 3 in the tokenizer, 2 on the card"),
        (
            {"lower_case": True},
            "lab/tiny: the tokenizer does not lower-case, but the card says lower_case: true",
        ),
        ({"cls_id": 2, "sep_id": 3, "lower_case": False}, None),
    ],
)
def test_card_that_contradicts_the_tokenizer(name, keys, expected, pieces, hub, cards):
    hub.publish("lab/tiny", family(name, pieces)[0])
    if expected:
        assert refused(write(cards, **keys)) == expected
        return
    document = json.loads((prepare(write(cards, **keys)) / "card.json").read_text())
    assert {key: document[key] for key in keys} == keys


@pytest.mark.parametrize("name", ["bert", "tokenizer.json"])
def test_lower_casing_is_tried_not_read(name, pieces, hub, cards):
    files = family(name, pieces)[0] | {"tokenizer_config.json": b'{"do_lower_case": true}'}
    hub.publish("lab/tiny", files)
    # It is the vocab.txt that depends on tokenizer_config.json.
    lowers = name == "bert"
    said = "lower-cases" if lowers else "does not lower-case"
    assert f"the tokenizer {said}, but" in refused(write(cards, lower_case=not lowers))
    document = json.loads((prepare(write(cards)) / "card.json").read_text())
    assert document["lower_case"] is lowers


@pytest.mark.parametrize("older", [False, True])
def test_tokens_added_to_a_word_piece_vocabulary(older, hub, cards):
    """Left out, each of them would be cut into pieces, and its row of the embedding never used."""
    rows = len(word_pieces(BERT_ORDER))
    config = transformers.BertConfig(vocab_size=rows + 1, **BODY)
    files, _ = checkpoint(config, "BertForMaskedLM", safe=True)

    def publish(row: int, **more: bytes) -> None:
        ids = {"[CLS]": 2, "ㅋㅋ": row}
        added = {str(row): {"content": token} for token, row in ids.items()}
        settings = word_piece_files(
            BERT_ORDER, **({} if older else {"added_tokens_decoder": added})
        )
        settings |= {"added_tokens.json": json.dumps(ids).encode()} if older else {}
        hub.publish("lab/tiny", files | settings | more)

    for row in (BERT_ORDER.index("[MASK]"), rows + 1):  # in vocab.txt; without a row
        publish(row)
        prepare(write(cards), cards.parent / "fits")
    for more, remedy in (
        ({}, "make a tokenizer.json, as docs/encoders.md says"),
        ({"tokenizer.json": tokenizer_json()}, "say tokenizer: tokenizer.json on the card"),
    ):
        publish(rows, **more)
        said = refused(write(cards, tokenizer="wordpiece"))
        assert said == f"lab/tiny: 1 tokens are added that vocab.txt lacks; {remedy}"


def test_pretokenize_is_no_word_to_a_word_piece_vocabulary(pieces, hub, cards):
    hub.publish("lab/tiny", family("bert", pieces)[0])
    said = refused(write(cards, pretokenize="bert"))
    assert said == "lab/tiny: has vocab.txt: leave pretokenize out of the card"


@pytest.mark.parametrize(
    ("pieces_there", "rows", "fits"),
    [
        (400, 400, True),
        (400, 399, False),
        (400, 527, True),  # padded to a multiple of 128
        (400, 528, False),
        (250_102, 251_000, True),  # mDeBERTa
        (250_102, 251_400, False),
    ],
)
def test_rows_of_the_embedding_that_no_piece_has(pieces_there, rows, fits, tmp_path):
    """The highest id counts: an added token may lie far above the others."""
    document = json.loads(tokenizer_json())
    document["model"]["vocab"]["쀍"] = pieces_there - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": rows}), encoding="utf-8")
    card = Card(kind="path", source="x", license="unknown", tokenizer="tokenizer.json")
    if fits:
        assert verify.verify(tmp_path, card).cls_id == 2
    else:
        with pytest.raises(
            InputError, match=f"x: {pieces_there} pieces in the vocab.* {rows} rows"
        ):
            verify.verify(tmp_path, card)


def test_card_mends_the_pad_id_of_an_old_config(pieces, hub, cards):
    hub.publish("lab/tiny", kobert(pieces, pad_token_id=0)[0])
    config = json.loads((prepare(write(cards, pad_id=1)) / "config.json").read_text())
    assert config["pad_token_id"] == 1


@pytest.mark.parametrize("name", FROM_PAD)
def test_positions_that_count_from_the_pad_id_forbid_another_one(name, pieces, hub, cards):
    files, _, _ = family("roberta", pieces)
    stated = {"pad_token_id": 0, "model_type": name}
    if name == "mpnet":  # has 1 in its code
        files |= word_piece_files(BERT_ORDER)
        expected = "0 in the vocabulary, 1 in transformers' MPNet"
    else:
        expected = "1 in the vocabulary, 0 in config.json"
    config = json.loads(files["config.json"]) | stated
    hub.publish("lab/tiny", {**files, "config.json": json.dumps(config).encode()})
    card = write(cards, pad_id=int(name != "mpnet"))
    assert expected in refused(card)
    if name == "mpnet":
        return
    # Without one in config.json, transformers takes 1.
    hub.publish("lab/tiny", {
        **files, **word_piece_files(BERT_ORDER),
        "config.json": json.dumps({**config, "pad_token_id": None}).encode(),
    })  # fmt: skip
    assert "0 in the vocabulary, 1 in config.json" in refused(write(cards, pad_id=0))


@pytest.mark.parametrize("name", FROM_PAD)
def test_those_families_do_count_from_the_pad_id(name):
    """And transformers takes 1 where config.json names none."""
    sizes = {**BODY, "vocab_size": 20, "entity_vocab_size": 4, "entity_emb_size": 4}
    if name == "xmod":
        sizes |= {"languages": ["ko_KR"], "default_language": "ko_KR"}
    config = transformers.AutoConfig.for_model(name, **sizes, attention_window=4)
    assert config.pad_token_id == 1
    body = transformers.AutoModel.from_config(config)
    (table,) = [part for path, part in body.named_modules() if path.endswith("position_embeddings")
                and "entity" not in path]  # fmt: skip
    assert table.padding_idx == 1


def test_golden_sentence_is_checked_the_way_it_says(pieces, hub, cards):
    hub.publish("lab/tiny", kobert(pieces)[0])
    golden = {"text": "기뻐서 났어!", "pretokenize": "none"}
    card = {"tokenizer": "sentencepiece", "pretokenize": "bert"}
    golden["ids"] = plain_ids(pieces, golden["text"])
    prepare(write(cards, golden=golden, **card))


def test_locked_golden_sentence_notices_another_tokenizer(pieces, hub, cards):
    hub.publish("lab/tiny", kobert(pieces)[0])
    card = write(cards)
    lock_module.lock(card)
    file = cards / "tiny.lock.json"
    lock = json.loads(file.read_text(encoding="utf-8"))
    lock["golden"]["ids"].insert(1, 0)  # as if the code had cut the sentence in another way then
    file.write_text(json.dumps(lock), encoding="utf-8")
    assert "lab/tiny: another vocabulary" in refused(card)


def test_failure_leaves_the_old_encoder(pieces, hub, cards):
    files, _ = kobert(pieces)
    hub.publish("lab/tiny", files)
    card = write(cards)
    output = prepare(card)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    hub.publish("lab/tiny", {**files, "pytorch_model.bin": b"half"})
    with pytest.raises(InputError):
        prepare(card)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in output.parent.iterdir()] == ["encoder"]


# ---------------------------------------------------------------- cards


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"kind": "zip"}, "kind must be one of hub, path, got 'zip'"),
        ({"kind": ["hub"]}, "kind must be one of hub, path, got ['hub']"),
        ({"source": None}, "source must be given, or its line left out, got None"),
        ({"source": 5}, "source must be text, got 5"),
        ({"source": "a/b/c"}, "source must be a hub id such as klue/bert-base, got 'a/b/c'"),
        ({"source": "../secret"}, "source must be a hub id"),
        ({"pad": 1}, "unknown key 'pad'; known: kind, license, source"),
        ({"path": "x"}, "unknown key 'path'"),
        (
            {"tokenizer": "bpe"},
            "tokenizer must be one of sentencepiece, wordpiece, tokenizer.json, got 'bpe'",
        ),
        ({"pooling": "max"}, "pooling must be one of first, mean, got 'max'"),
        ({"cls_id": -1}, "cls_id must be a whole number from 0, got -1"),
        ({"sep_id": "3"}, "sep_id must be a whole number from 0, got '3'"),
        ({"lower_case": "no"}, "lower_case must be true or false, got 'no'"),
        ({"lower_case": 0}, "lower_case must be true or false, got 0"),
        ({"pretokenize": "yes"}, "pretokenize must be one of bert, none, got 'yes'"),
        ({"pretokenize": None}, "pretokenize must be given, or its line left out, got None"),
        ({"tokenizer": "wordpiece", "pretokenize": "bert"}, "pretokenize must be left out with"),
        ({"tokenizer": "tokenizer.json", "pretokenize": "none"}, "pretokenize must be left out"),
        ({"pad_id": -1}, "pad_id must be a whole number from 0, got -1"),
        ({"pad_id": True}, "pad_id must be a whole number from 0, got True"),
        ({"pad_id": "1"}, "pad_id must be a whole number from 0, got '1'"),
        ({"pad_id": 1.0}, "pad_id must be a whole number from 0, got 1.0"),
        ({"learning_rate": 2}, "learning_rate must be a number in (0, 1], got 2"),
        ({"learning_rate": True}, "learning_rate must be a number in (0, 1], got True"),
        ({"learning_rate": "５e-5"}, "learning_rate must be a number in (0, 1], got '５e-5'"),
        ({"learning_rate": "1_0e-3"}, "learning_rate must be a number in (0, 1], got '1_0e-3'"),
        ({"learning_rate": "nan"}, "learning_rate must be a number in (0, 1], got 'nan'"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number in (0, 1], got nan"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, notebook, got 'sgd'"),
        ({"optimizer": "auto"}, "optimizer must be one of adamw, notebook, got 'auto'"),
        ({"revision": 1234567}, "revision must be a commit, tag or branch, in quotes"),
        ({"revision": "../main"}, "revision must be a commit"),
        ({"vocabulary": "../spiece.model"}, "vocabulary must be a file name"),
        ({"golden": {"text": "오늘"}}, "golden must be a text, its ids"),
        ({"golden": {"text": "오늘", "ids": [2, "3"]}}, "golden must be a text, its ids"),
        ({"golden": {"text": "오늘", "ids": [2], "x": 1}}, "golden must be a text, its ids"),
        ({"golden": {"text": "오늘", "ids": [2], "pretokenize": "x"}}, "golden must be a text"),
        ({"license": 3}, "license must be text, got 3"),
        ({"license": "a\nb"}, "license must be text, got 'a\\nb'"),
        ({"kind": "path", "files": {"a": "md5:0123456789"}}, "unknown key 'files'"),
        ({"kind": "path", "source": "a\0b"}, "source must be a folder beside the card"),
        ({"kind": "scratch"}, "kind must be one of hub, path, got 'scratch'"),
    ],
)
def test_card_that_is_wrong(change, expected, cards):
    card = write(cards, **change)
    assert f"{card}: {expected}" in refused(card)


@pytest.mark.parametrize(
    "files",
    [
        *({}, [], {"a": 5}, {"a": "md5:123"}, {"a": "0" * 32}, {"a": "crc:" + "0" * 32}),
        *({f"{name}": "md5:" + "0" * 32} for name in ("../a", "/a", "a/../b", "a//b", "a\0b")),
    ],
)
def test_checksums_that_are_wrong(files, cards):
    assert "files must be names with md5" in refused(write(cards, files=files))


@pytest.mark.parametrize("text", ["5e-5", "3e-05", "5.0e-5", "0.00005", "5E-5", "+.5e-4", "1"])
def test_a_rate_may_be_what_yaml_reads_as_text(text, cards):
    file = write(cards)
    file.write_text(file.read_text() + f"learning_rate: {text}\n")
    rate = Card.load(file).learning_rate
    assert type(rate) is float and rate == float(text)


def test_missing_key_and_missing_card(cards):
    card = cards / "tiny.yaml"
    card.write_text("kind: hub\nlicense: unknown\n")
    assert refused(card) == f"{card}: key 'source' is missing"
    assert "kobrt.yaml: not found; there are cards for tiny" in refused(cards / "kobrt.yaml")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"source": "lab/other"}, "of lab/tiny, but the card says lab/other; lock it again: "),
        ({"revision": "0" * 40}, "but the card says 0000000000"),
    ],
)
def test_lock_of_another_card(change, expected, pieces, hub, cards):
    hub.publish("lab/tiny", kobert(pieces)[0])
    lock_module.lock(write(cards))
    assert expected in refused(write(cards, **change))
    (cards / "tiny.lock.json").write_text('{"source": "lab/tiny"}')
    assert "tiny.lock.json: damaged; lock it again" in refused(write(cards))


def test_new_card_of_a_hub_id_works_as_it_is(pieces, hub, cards, capsys):
    hub.publish("lab/tiny", family("bert", pieces)[0])
    main(["card", "mine", "lab/tiny"])
    card = cards / "mine.yaml"
    assert card.read_text() == 'kind: hub\nsource: "lab/tiny"\nlicense: unknown\n'
    ids = load_tokenizer(prepare(card)).encode(["오늘 마음이"], 64).ids[1:-1]
    assert [word_pieces(BERT_ORDER)[row] for row in ids] == ["오늘", "마음", "##이"]
    with pytest.raises(InputError, match=r"mine.yaml: is there already; it is not overwritten"):
        main(["card", "mine", "lab/other"])
    assert "lab/tiny" in card.read_text()


def test_writing_a_card_loads_no_model_library(cards):
    code = (
        "import sys; from storyflower.__main__ import main; main(['card', 'x', 'lab/tiny']);"
        "print({'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "-x y", "x\n"])
def test_name_of_a_new_card_is_no_path(name, cards, tmp_path):
    with pytest.raises(InputError, match="a card's name has letters"):
        write_card(name, "lab/tiny", cards)
    assert [path.name for path in tmp_path.iterdir()] == ["encoders"]


def test_source_of_a_new_card_is_a_folder_or_a_hub_id(cards):
    for source in ("./not/there", "encoders/mnie"):  # the second could be a hub id
        with pytest.raises(InputError, match="neither a folder nor a hub id"):
            write_card("x", source, Path("encoders"))
    assert list(cards.iterdir()) == []


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_folder_elsewhere_is_to_be_copied_where_dvc_watches_it(pieces, cards, tmp_path):
    place = unpack(kobert(pieces)[0], tmp_path / "elsewhere" / "mine")
    with pytest.raises(InputError, match="copy it to .*encoders/mine first"):
        main(["card", "mine", str(place)])
    assert list(cards.iterdir()) == []
    for source in (str(place), "../elsewhere/mine"):
        card = write(cards, kind="path", source=source)
        with pytest.raises(InputError, match=r"source must be a folder beside the card"):
            Card.load(card)


def test_locked_folder_is_compared_with_its_lock(pieces, cards, capsys):
    files, _ = kobert(pieces)
    place = unpack(files, cards / "mine")
    main(["card", "mine", str(place)])
    main(["lock", "mine"])
    capsys.readouterr()
    (place / "model.safetensors").write_bytes(b"was not there when it was locked")
    prepare(cards / "mine.yaml")
    assert capsys.readouterr().err == ""
    (place / "config.json").write_bytes(files["config.json"] + b"\n")
    with pytest.raises(InputError, match="if the source has changed: python -m storyflower"):
        prepare(cards / "mine.yaml")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "added_tokens.json"),
        ("bert", "tokenizer_config.json"),
        ("tokenizer.json", "special_tokens_map.json"),
    ],
)
def test_settings_that_a_locked_folder_did_not_have_are_noticed(kind, name, pieces, cards):
    """Or had, when a lock did not name them yet."""
    files = family(kind, pieces)[0]
    files.pop(name, None)
    place = unpack(files, cards / "mine")
    main(["card", "mine", str(place)])
    main(["lock", "mine"])
    (place / name).write_bytes(b"{}")
    again = "lock it again: python -m storyflower lock mine"
    lock = cards / "mine.lock.json"
    assert refused(cards / "mine.yaml") == f"{place / name}: not in {lock}; {again}"
    main(["lock", "mine"])
    prepare(cards / "mine.yaml", cards.parent / "fits")
    (place / name).unlink()
    assert refused(cards / "mine.yaml") == f"{place / name}: not found, but {lock} has it; {again}"


def test_folder_that_is_no_encoder_is_refused(cards):
    main(["card", "mine", str(unpack({}, cards / "empty"))])
    assert "has no config.json" in refused(cards / "mine.yaml")


def test_folder_beside_the_card_needs_no_lock(pieces, cards, capsys):
    unpack(kobert(pieces)[0], cards / "own")
    main(["card", "mine", str(cards / "own")])
    assert 'source: "own"' in (cards / "mine.yaml").read_text()
    capsys.readouterr()
    prepare(cards / "mine.yaml")
    assert capsys.readouterr().err == ""


def test_cards_that_ship():
    cards = {file.stem: Card.load(file) for file in (ROOT / "encoders").glob("*.yaml")}
    assert set(cards) == {
        *("seedling", "kobert", "kobert-legacy", "kobert-monologg", "distilkobert"),
        *("klue-roberta", "klue-bert", "koelectra", "kcelectra", "kcbert"),
        *("kcelectra-v2022", "klue-roberta-large", "klue-roberta-small", "koelectra-small"),
        *("ax-encoder", "kf-deberta", "deberta-v3-korean", "mmbert", "kykim-bert"),
        *("bge-m3", "kure"),
    }
    readme = [2, 4958, 6855, 2046, 7088, 1050, 7843, 54, 3]
    for name in ("kobert", "kobert-legacy", "kobert-monologg"):
        card = cards[name]
        assert (card.pretokenize, card.pad_id, card.optimizer) == ("bert", 1, "notebook")
        assert (card.learning_rate, card.license) == (5e-5, "Apache-2.0")
        assert (card.max_len, card.batch_size, card.mask_rate) == (64, 64, 0)  # the notebook's
        golden = {"text": "한국어 모델을 공유합니다.", "pretokenize": "none", "ids": readme}
        assert card.golden.model_dump() == golden
    assert cards["kobert-legacy"].source == "skt/kobert-base-v1"
    assert cards["kobert-legacy"].files == {
        "legacy/kobert_v1.zip": "md5:411b2429199bc04558576acdcac6d498",
        "legacy/kobert_news_wiki_ko_cased-1087f8699e.spiece": "md5:ae5711deb3",
    }
    assert all(card.optimizer == "adamw" for name, card in cards.items() if "kobert" not in name)
