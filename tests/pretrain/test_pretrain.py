"""Texts → an encoder folder: what it holds, that it learns, and that a kill loses nothing."""

import itertools
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel

from pretrain import __main__ as pretrain_command
from pretrain import embeddings, loop, objective, train
from pretrain.embeddings import count_pairs, embeddings_from_counts
from pretrain.texts import NO_LABEL, Texts
from pretrain.train import pretrain, random_encoder
from pretrain.vocabulary import MASK_ID, SPECIAL, train_vocabulary
from storyflower.common import locks
from storyflower.common.errors import InputError
from storyflower.encoder import prepare
from storyflower.interim.tokens import TokenArrays
from storyflower.model.batch import make_batch
from tests.pretrain.support import RECIPE, contents, epochs_of, files, sentences, some_texts
from tests.support import ROOT, environment_of


def test_zero_steps_write_random_weights_that_the_encoder_stage_takes(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=0)
    pretrain(some_texts(), recipe, tmp_path / "a", checkpoint_root=tmp_path / "none")
    pretrain(some_texts(), recipe, tmp_path / "b", checkpoint_root=tmp_path / "none")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert not (tmp_path / "none").exists()
    (tmp_path / "a.yaml").write_text("kind: path\nsource: a\nlicense: unknown\npretokenize: bert\n")
    card = prepare.prepare(tmp_path / "a.yaml", tmp_path / "encoder")
    assert card.pad_id == SPECIAL.index("[PAD]")
    document = json.loads((tmp_path / "encoder/card.json").read_text(encoding="utf-8"))
    assert document["mask_id"] == MASK_ID
    model = AutoModel.from_pretrained(tmp_path / "encoder")
    assert model.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_it_learns_tokens_and_labels(tmp_path: Path, capsys) -> None:
    pretrain(some_texts(), RECIPE, tmp_path / "mine", checkpoint_root=tmp_path / "checkpoints")
    epochs = epochs_of(tmp_path / "mine")
    first, last = epochs[0], epochs[-1]
    assert first["held_out_loss"] > last["held_out_loss"]
    assert last["held_out_loss"] < 2.5  # ln 200 is 5.3; of single tokens' frequencies over 3
    for name in ("label_loss", "held_out_label_loss"):  # ln 3 is 1.1
        assert first[name] > last[name] and last[name] < 0.5
    assert sum(row["steps"] for row in epochs) == RECIPE.steps
    assert last["steps"] < first["steps"] and last["tokens"] < first["tokens"]  # 60 steps end there
    assert f"epoch 1: loss {first['loss']:.4f}, label loss " in capsys.readouterr().out
    assert not list((tmp_path / "checkpoints").glob("*/*.safetensors"))  # the result is there
    states = AutoModel.from_pretrained(tmp_path / "mine", dtype=torch.float32)
    assert all(torch.isfinite(value).all() for value in states.state_dict().values())


def test_each_epoch_counts_anew(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=30, rate=1e-9)
    pretrain(some_texts(), recipe, tmp_path / "mine", checkpoint_root=tmp_path / "checkpoints")
    first, second = epochs_of(tmp_path / "mine")[:2]
    for name in ("loss", "label_loss"):
        assert first[name] == pytest.approx(second[name], rel=0.1)


def test_without_a_label_there_is_no_label_loss(tmp_path: Path) -> None:
    pretrain(
        some_texts(labelled=False), replace(RECIPE, steps=1), tmp_path / "mine",
        checkpoint_root=tmp_path / "checkpoints",
    )  # fmt: skip
    (row,) = epochs_of(tmp_path / "mine")
    assert row["label_loss"] is row["held_out_label_loss"] is None


@pytest.mark.parametrize("name", ["loss", "label loss"])
def test_a_loss_that_is_no_number_ends_it_and_writes_nothing(
    tmp_path: Path, monkeypatch, name: str
) -> None:
    original = objective.PretrainingModel.forward

    def lost(model: objective.PretrainingModel, masked: objective.Masked) -> tuple:
        token_loss, label_loss, logits = original(model, masked)
        if name == "loss":
            return token_loss + math.nan, label_loss, logits
        return token_loss, label_loss + math.nan, logits  # its gradients are finite

    monkeypatch.setattr(objective.PretrainingModel, "forward", lost)
    with pytest.raises(InputError, match=rf"^epoch 1: {name} nan; lower --rate \(0.005\)$"):
        pretrain(some_texts(), RECIPE, tmp_path / "mine", checkpoint_root=tmp_path / "checkpoints")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("lost", [(math.nan, 0.0, 0.0), (0.0, 0.0, math.inf)])
def test_the_texts_held_out_tell_of_the_last_update(tmp_path: Path, monkeypatch, lost) -> None:
    monkeypatch.setattr(loop, "score", lambda *_: lost)
    with pytest.raises(InputError, match="^epoch 1, texts held out: (label )?loss (nan|inf); "):
        pretrain(some_texts(), RECIPE, tmp_path / "mine", checkpoint_root=tmp_path / "checkpoints")


def test_a_run_that_died_while_scoring_loses_no_row(tmp_path: Path, monkeypatch, capsys) -> None:
    """Its checkpoint is of the very last step, in the middle of an epoch."""
    root = tmp_path / "checkpoints"
    pretrain(some_texts(), RECIPE, tmp_path / "whole", checkpoint_root=root)
    left = len(epochs_of(tmp_path / "whole"))
    original = loop.score

    def score(*arguments) -> tuple:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return original(*arguments)

    def again() -> None:
        pretrain(
            some_texts(), RECIPE, tmp_path / "mine", checkpoint_root=root, checkpoint_minutes=1e-9
        )

    monkeypatch.setattr(loop, "score", score)
    with pytest.raises(KeyboardInterrupt):
        again()
    capsys.readouterr()
    again()
    last = epochs_of(tmp_path / "whole")[-1]
    said = f"going on from the checkpoint after step {last['steps']} of epoch {last['epoch']}\n"
    assert said in capsys.readouterr().out
    assert contents(tmp_path / "mine") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_pretraining_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that nobody kills runs in this process: the command's imports take seconds."""
    (tmp_path / "plain.txt").write_text("\n".join(sentences(600)), encoding="utf-8")
    shape = ["--pieces", "200", "--layers", "1", "--hidden", "32", "--heads", "2", "--steps", "200"]
    shape += ["--batch-tokens", "512", "--warmup", "10", "--precision", "fp32"]

    def words(name: str, minutes: str) -> list[str]:
        places = {"--checkpoint-dir": f"checkpoints-{name}", "--output": name}
        given = [word for key, place in places.items() for word in (key, str(tmp_path / place))]
        text = str(tmp_path / "plain.txt")
        return ["pretrain", text, "--checkpoint-minutes", minutes, *shape, *given]

    def start(minutes: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", *words("killed", minutes)],
            cwd=ROOT,
            env=environment_of(OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    monkeypatch.setattr(sys, "argv", words("whole", "5"))
    pretrain_command.main()
    killed = start("0.0003")
    while not any(tmp_path.glob("checkpoints-killed/*/*.safetensors")) and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed").exists()
    again = start("5")
    said, _ = again.communicate()
    assert again.returncode == 0 and "going on from the checkpoint after step" in said
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("texts", "pieces", "expected"),
    [
        (["하나", "둘"], 6, r"--pieces 6: the characters of these texts alone need \d+; raise it$"),
        (["\u200b"], 200, "too little text for a vocabulary"),
    ],
)
def test_a_vocabulary_that_cannot_be(tmp_path: Path, texts, pieces, expected) -> None:
    with pytest.raises(InputError, match=expected):
        train_vocabulary(texts, tmp_path / "spiece.model", pieces=pieces, seed=0)


@pytest.mark.parametrize("output", [".", "..", "a/.."])
def test_the_folder_that_one_works_in_is_no_output(tmp_path: Path, monkeypatch, output) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretraining.json").touch()
    with pytest.raises(InputError, match=f"^--output {re.escape(output)}: name a new folder, such"):
        pretrain(some_texts(), replace(RECIPE, steps=0), Path(output))


@pytest.mark.parametrize("output", ["none/mine", "full", "file", "link"])
def test_an_output_that_would_be_lost_is_refused(tmp_path: Path, monkeypatch, output: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/diary.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"^--output {re.escape(output)}: [^\n]*$"):
        pretrain(some_texts(), replace(RECIPE, steps=0), Path(output))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_and_an_earlier_pretraining_are_replaced(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=0)
    (tmp_path / "mine").mkdir()
    pretrain(some_texts(), recipe, tmp_path / "mine")
    before = files(tmp_path / "mine")
    pretrain(some_texts(), replace(recipe, seed=1), tmp_path / "mine")
    assert files(tmp_path / "mine") != before


def test_two_runs_with_one_output_take_turns(tmp_path: Path, capsys) -> None:
    output, said = tmp_path / "mine", ""
    second = threading.Thread(
        target=pretrain, args=(some_texts(), replace(RECIPE, steps=0), output)
    )
    with locks.acquire(locks.beside(output), "holds it"):
        second.start()
        deadline = time.monotonic() + 20
        while "waiting: process" not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capsys.readouterr().err
        assert f"pretrains {output}; this one goes on when that has ended" in said
        assert not output.with_name("mine.part").exists()
    second.join(20)
    assert (output / "pretraining.json").exists()


class Told(Exception):
    """Holds the fingerprint of a run that was about to begin."""


def run_of(tmp_path: Path, monkeypatch, texts: Texts, **changes: object) -> str:
    def tell(_: Path, fingerprint: str, *__: object, **___: object) -> None:
        raise Told(fingerprint)

    monkeypatch.setattr(train, "Checkpoints", tell)
    with pytest.raises(Told) as told:
        pretrain(texts, replace(RECIPE, **changes), tmp_path / "mine")
    return str(told.value)


def test_whatever_decides_makes_it_another_run(tmp_path: Path, monkeypatch) -> None:
    runs = [run_of(tmp_path, monkeypatch, some_texts())]
    assert run_of(tmp_path, monkeypatch, some_texts()) == runs[0]
    runs.append(run_of(tmp_path, monkeypatch, some_texts(), rate=1e-3))
    renamed = some_texts()
    renamed.classes = {"word": renamed.classes["noun"]}
    runs.append(run_of(tmp_path, monkeypatch, renamed))
    renamed.classes = {"noun": {f"{noun}!": n for noun, n in some_texts().classes["noun"].items()}}
    runs.append(run_of(tmp_path, monkeypatch, renamed))
    for name in ("machine", "loaded_code"):
        original = getattr(train, name)
        with monkeypatch.context() as patch:
            patch.setattr(train, name, lambda *about, f=original: {**f(*about), "torch": "0.1"})
            runs.append(run_of(tmp_path, monkeypatch, some_texts()))
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["pretrain.embeddings"], "__file__", __file__)
        runs.append(run_of(tmp_path, monkeypatch, some_texts()))
    original = train.split
    with monkeypatch.context() as patch:  # other texts held out of the same training texts
        patch.setattr(train, "split", lambda tokens: (original(tokens)[0], tokens))
        runs.append(run_of(tmp_path, monkeypatch, some_texts()))
    assert len(set(runs)) == len(runs)


def token_arrays(rows: list[np.ndarray]) -> TokenArrays:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return TokenArrays(np.concatenate(rows), offsets, np.zeros(len(rows), np.int64))


def rows_of(tokens: TokenArrays) -> set[bytes]:
    return {tokens.ids[a:b].tobytes() for a, b in itertools.pairwise(tokens.offsets)}


@pytest.mark.parametrize(("count", "expected"), [(100, 2), (103_999, 2000)])
def test_what_is_held_out(count: int, expected: int) -> None:
    """At most 2,000 texts, equal ones on one side, whatever their order."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 40, length) for length in rng.integers(3, 6, count)]  # many are equal
    trained_on, held_out = train.split(token_arrays(rows))
    assert len(held_out) == expected and len(trained_on) == count - expected
    assert not rows_of(trained_on) & rows_of(held_out)
    other_order = token_arrays([rows[index] for index in rng.permutation(count)])
    assert rows_of(train.split(other_order)[1]) == rows_of(held_out)


def test_texts_without_a_known_token_are_left_out_and_cut_ones_counted(
    tmp_path: Path, capsys
) -> None:
    pretrain(some_texts(), replace(RECIPE, steps=0), tmp_path / "mine")
    texts = some_texts()
    count = len(texts)
    texts.label_of |= {"\u200b": 1, " ".join(sentences(9)): 2}
    tokens = train.encode(texts, tmp_path / "mine", 32)
    assert len(tokens) == count + 1
    assert tokens.labels[-1] == 2 and tokens.lengths[-1] == 32
    assert capsys.readouterr().out == (
        f"1 of {count + 2} texts are longer than --max-len 32: they are cut\n"
        f"1 of {count + 2} texts have no token of the vocabulary: they are left out\n"
    )


def test_too_few_texts(tmp_path: Path) -> None:
    texts = Texts(label_of=dict.fromkeys(sentences(600)[:49], NO_LABEL))
    with pytest.raises(InputError, match="^49 texts are too few to train on; expected at least 50"):
        pretrain(texts, RECIPE, tmp_path / "mine", checkpoint_root=tmp_path / "none")


def test_masking_hides_what_it_should() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 400)
    ids = rng.integers(len(SPECIAL), 150, lengths.sum()).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids[offsets[:-1]], ids[offsets[1:] - 1] = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")
    batch = make_batch(TokenArrays(ids, offsets, np.zeros(400, np.int64)), np.arange(400))
    torch.manual_seed(1)
    masked = objective.mask(batch, 0.3, 150)
    changed = masked.batch.ids != batch.ids
    chosen = torch.zeros_like(changed)
    chosen[masked.indices] = True
    assert (masked.targets == batch.ids[masked.indices]).all()
    assert (masked.targets >= len(SPECIAL)).all()  # never [CLS], [SEP]
    assert not (changed & ~chosen).any()
    ordinary = int((lengths - 2).sum())
    assert len(masked.indices) / ordinary == pytest.approx(0.3, abs=0.02)
    shown = masked.batch.ids[masked.indices]
    assert (shown == MASK_ID).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (shown == masked.targets).float().mean() == pytest.approx(0.1, abs=0.02)


def test_each_task_has_its_own_labels() -> None:
    model = objective.PretrainingModel(random_encoder(RECIPE, 50), [2, 3])
    firsts = torch.randn(4, 32)
    labels = torch.tensor([1, 0, 4, 2])  # the first two of one task, the others of the other
    expected = functional.cross_entropy(
        model.heads[0](firsts[:2]), torch.tensor([1, 0]), reduction="sum"
    ) + functional.cross_entropy(model.heads[1](firsts[2:]), torch.tensor([2, 0]), reduction="sum")
    torch.testing.assert_close(model.label_loss(firsts, labels), expected / 4)
    assert model.label_loss(firsts[:0], labels[:0]) == 0


def test_tokens_of_the_same_contexts_begin_near_each_other() -> None:
    rng = np.random.default_rng(0)
    # 10 and 11 stand between 20 and 21, 12 and 13 between 30 and 31.
    texts = [[2, *around, 3] for around in ([20, 10, 21], [20, 11, 21], [30, 12, 31], [30, 13, 31])]
    chosen = [texts[index] for index in rng.integers(0, 4, 2000)]
    ids = np.concatenate(chosen).astype(np.uint16)
    offsets = np.arange(0, 5 * 2001, 5)
    tokens = TokenArrays(ids, offsets, np.zeros(2000, np.int64))
    table = embeddings_from_counts(tokens, 60, 16, seed=1)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    assert unit[10] @ unit[11] > 0.9 > 0.5 > unit[10] @ unit[12]
    assert np.linalg.norm(table[10]) == pytest.approx(0.04 * 4, rel=1e-3)
    assert table[59].std() < 0.04  # never seen: random
    assert (table == embeddings_from_counts(tokens, 60, 16, seed=1)).all()


def test_counting_in_blocks_is_exact(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 50)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = TokenArrays(rng.integers(0, 20, offsets[-1]), offsets, np.zeros(50, np.int64))
    expected = np.zeros((20, 20))
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        for left in range(start, end):
            for right in range(left + 1, min(left + 5, end)):
                pair = tokens.ids[left], tokens.ids[right]
                expected[pair] += 1 / (right - left)
                expected[pair[::-1]] += 1 / (right - left)
    whole = count_pairs(tokens, 20).toarray()
    np.testing.assert_allclose(whole, expected, rtol=1e-12)
    monkeypatch.setattr(embeddings, "BLOCK", 7)
    assert (count_pairs(tokens, 20).toarray() == whole).all()
