"""The kobert package's two functions, called as old notebooks call them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel, DistilBertConfig, DistilBertModel

from storyflower.common.errors import InputError
from storyflower.encoder import prepare
from storyflower.kobert import get_pytorch_kobert_model, get_tokenizer
from storyflower.tokenizer.load import load_tokenizer
from tests.model.test_folder import tiny_encoder
from tests.support import ROOT

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "pad_token_id": 1,
}
IDS = torch.tensor([[31, 51, 99], [15, 5, 0]])  # from KoBERT's README, as the two below
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
TYPES = torch.tensor([[0, 0, 1], [0, 1, 0]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def taken_over(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, torch.nn.Module]]:
    """Encoder folders that the encoder stage made of checkpoints, and the checkpoints' models."""
    root = tmp_path_factory.mktemp("checkpoints")
    rows = load_tokenizer(tiny).vocab_size
    torch.manual_seed(4)
    distilled = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "pad_token_id": 1}
    networks = {
        "kobert": BertModel(BertConfig(vocab_size=rows, **SMALL)),
        "no pooler": BertForMaskedLM(BertConfig(vocab_size=rows, **SMALL)),
        "distilkobert": DistilBertModel(DistilBertConfig(vocab_size=rows, **distilled)),
    }
    folders = {}
    for name, network in networks.items():
        network.eval().save_pretrained(root / name)
        shutil.copyfile(tiny / "spiece.model", root / name / "spiece.model")
        card = root / f"{name}.yaml"
        card.write_text(f"kind: path\nsource: {name}\nlicense: unknown\npretokenize: bert\n")
        prepare.prepare(card, root / "made" / name)
        folders[name] = (root / "made" / name, network)
    return folders


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without models/encoder yet; `dvc repro encoder` would put it there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "encoder"


def test_old_calls(
    taken_over: dict[str, tuple[Path, torch.nn.Module]], notebook: Path, tmp_path: Path
) -> None:
    made, network = taken_over["kobert"]
    shutil.copytree(made, notebook)
    (tmp_path / ".cache").mkdir()  # the old downloads' folder
    for arguments in ({}, {"cachedir": ".cache"}, {"cachedir": "no-such-folder"}):
        assert Path(get_tokenizer(**arguments)).read_bytes() == (made / "spiece.model").read_bytes()
    assert isinstance(get_tokenizer(), str)  # BERTSPTokenizer takes no Path
    ids = IDS % network.config.vocab_size  # the small vocabulary ends before 99
    expected = network(input_ids=ids, token_type_ids=TYPES, attention_mask=MASK)
    for arguments in ({}, {"ctx": "cpu"}, {"cachedir": ".cache"}, {"cachedir": made}):
        bertmodel, vocab = get_pytorch_kobert_model(**arguments)
        assert not bertmodel.training
        answer = bertmodel(input_ids=ids, token_type_ids=TYPES, attention_mask=MASK.float())
        assert isinstance(answer, tuple)
        sequence, pooler = answer
        torch.testing.assert_close(sequence, expected.last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(pooler, expected.pooler_output, atol=1e-5, rtol=0)
        assert len(vocab) == bertmodel.config.vocab_size


def test_vocabulary_has_gluonnlps_names(
    taken_over: dict[str, tuple[Path, torch.nn.Module]],
) -> None:
    _, vocab = get_pytorch_kobert_model("cpu", taken_over["kobert"][0])
    assert vocab.idx_to_token[:5] == ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    assert [vocab.token_to_idx[token] for token in vocab.idx_to_token] == list(range(len(vocab)))
    names = ("unknown", "padding", "cls", "sep", "mask")
    assert [vocab[getattr(vocab, f"{name}_token")] for name in names] == [0, 1, 2, 3, 4]
    assert (vocab.bos_token, vocab.eos_token) == ("[CLS]", "[SEP]")  # ids 2 and 3 of spiece.model
    piece = vocab.idx_to_token[9]
    assert piece in vocab and "no such piece" not in vocab
    assert vocab["no such piece"] == vocab.token_to_idx["no such piece"] == 0
    for look_up in (vocab.__getitem__, vocab.to_indices, vocab):
        assert look_up(piece) == 9
        assert look_up(["[PAD]", piece, "no such piece"]) == [1, 9, 0]
    for index in (9, np.int64(9), np.int32(9)):
        assert vocab.to_tokens(index) == piece
    for indices in ([1, 9], (1, 9), np.array([1, 9]), np.array([1, 9], np.int32)):
        assert vocab.to_tokens(indices) == ["[PAD]", piece]
    for index in (-1, np.int64(-1), len(vocab)):
        with pytest.raises(ValueError, match=f"token index {index} is not in"):
            vocab.to_tokens(index)


def refused(call, *arguments: object) -> str:
    """The one line that a call ends in."""
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("run 'dvc repro encoder'")
    return str(error.value)


@pytest.mark.parametrize("call", [get_tokenizer, get_pytorch_kobert_model])
def test_the_encoder_that_ships_is_not_handed_out_as_kobert(
    call, taken_over: dict[str, tuple[Path, torch.nn.Module]], notebook: Path
) -> None:
    made, _ = taken_over["kobert"]
    assert refused(call).startswith("models/encoder/spiece.model: not found; set encoder: kobert")
    shutil.copytree(made, notebook)
    card = json.loads((notebook / "card.json").read_text(encoding="utf-8"))
    card["name"] = "seedling"  # as `dvc repro` writes it with the params that ship
    (notebook / "card.json").write_text(json.dumps(card), encoding="utf-8")
    said = "models/encoder: seedling, the encoder that ships, not KoBERT; set encoder: kobert"
    assert refused(call).startswith(said)
    assert refused(lambda: call(cachedir=".cache")).startswith(said)
    call(cachedir=made)  # asked for by name
    call(cachedir="models/encoder")


def test_other_models_are_no_kobert(
    taken_over: dict[str, tuple[Path, torch.nn.Module]], notebook: Path
) -> None:
    said = {"no pooler": "has no pooler", "distilkobert": "a distilbert, but KoBERT is a bert"}
    for name, expected in said.items():
        made, _ = taken_over[name]
        assert refused(get_pytorch_kobert_model, "cpu", made).startswith(f"{made}: {expected}")
        shutil.rmtree(notebook, ignore_errors=True)
        shutil.copytree(made, notebook)
        assert refused(get_pytorch_kobert_model).startswith(f"models/encoder: {expected}")


def test_vocab_needs_no_torch() -> None:
    code = "import sys, storyflower.kobert; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_golden_values_of_the_real_kobert() -> None:
    """KoBERT's README, on real weights: a text's ids, and the last layer for IDS."""
    if not os.environ.get("STORYFLOWER_KOBERT_ENCODER"):
        pytest.skip(
            "needs KoBERT's weights: run 'dvc repro encoder' with encoder: kobert, and name the "
            "folder in STORYFLOWER_KOBERT_ENCODER"
        )
    folder = Path(os.environ["STORYFLOWER_KOBERT_ENCODER"])
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    plain = load_tokenizer(folder, {**card, "pretokenize": "none"})
    ids = plain.encode(["한국어 모델을 공유합니다."], 64).ids.tolist()
    assert ids == [2, 4958, 6855, 2046, 7088, 1050, 7843, 54, 3]
    bertmodel, vocab = get_pytorch_kobert_model(cachedir=folder)
    assert len(vocab) == 8002
    assert vocab.to_tokens(ids[1:-1]) == ["▁한국", "어", "▁모델", "을", "▁공유", "합니다", "."]
    assert sum(parameter.numel() for parameter in bertmodel.parameters()) == 92_186_880
    with torch.inference_mode():
        sequence, pooler = bertmodel(IDS, attention_mask=MASK, token_type_ids=TYPES)
    assert sequence.shape == (2, 3, 768) and pooler.shape == (2, 768)
    starts = [[-0.2461, 0.2428, 0.2590], [-0.2478, 0.2420, 0.2552], [-0.2472, 0.2420, 0.2561]]
    torch.testing.assert_close(sequence[0, :, :3], torch.tensor(starts), atol=1e-3, rtol=0)
    end = torch.tensor([-0.4861, -0.0731, 0.0756])
    torch.testing.assert_close(sequence[0, 0, -3:], end, atol=1e-3, rtol=0)
