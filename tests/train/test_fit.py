"""fit(): it learns, its arithmetic is the notebook's, and it says truly what it did."""

import copy
import io
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    get_cosine_schedule_with_warmup,
)

from storyflower.common.errors import InputError
from storyflower.interim.history import Epoch
from storyflower.interim.tokens import TokenArrays
from storyflower.model import classifier
from storyflower.model.batch import Batch, make_batch
from storyflower.model.device import Placement, choose
from storyflower.model.folder import build_classifier
from storyflower.model.processes import ALONE, Ranks
from storyflower.train import fit as fit_module
from storyflower.train.state import State
from storyflower.train.step import clip
from tests.original import notebook
from tests.support import ROOT, params_of

CLASSES = 3
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES = {
    "bert": BertConfig(vocab_size=50, pad_token_id=1, intermediate_size=32, **SMALL),
    "roberta": RobertaConfig(vocab_size=50, pad_token_id=1, intermediate_size=32, **SMALL),
    "electra": ElectraConfig(
        vocab_size=50, pad_token_id=1, intermediate_size=32, embedding_size=8, **SMALL
    ),
    "distilbert": DistilBertConfig(
        vocab_size=50, pad_token_id=1, dim=16, n_layers=1, n_heads=2, hidden_dim=32
    ),
}


class Bag(nn.Module):
    """The smallest model that fit() can train: a mean of embeddings and a linear layer."""

    def __init__(self, size: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(50, size)
        self.norm = nn.LayerNorm(size)
        self.linear = nn.Linear(size, CLASSES)

    def forward(self, batch: Batch) -> torch.Tensor:
        vectors = self.embedding(batch.ids)  # (tokens, size)
        sums = torch.zeros(len(batch.lengths), vectors.shape[1]).index_add(0, batch.text, vectors)
        means = sums / batch.lengths.clamp(min=1).unsqueeze(1)
        return self.linear(self.norm(means))[: len(batch.first)]


def random_table(rows: int, seed: int = 0, longest: int = 12) -> TokenArrays:
    """Dialogues of 3 random ids or more; a dialogue's class is drawn too, so only memory helps."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest + 1, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, 50, offsets[-1]).astype(np.uint16)
    return TokenArrays(ids, offsets, rng.integers(0, CLASSES, rows))


RATE = {"learning_rate": 1e-2, "optimizer": "adamw", "mask_rate": 0.0}


def fit(network: nn.Module, table: TokenArrays, **values: object) -> list[Epoch]:
    """fit_module.fit on the CPU; all `values` but ranks are params."""
    precision, ranks = values.pop("precision", "fp32"), values.pop("ranks", ALONE)
    return fit_module.fit(
        network,
        train=table,
        test=table,
        params=params_of(**{**RATE, "num_epochs": 1, "batch_size": 8, **values}),
        placement=choose("cpu", precision),
        on_epoch=lambda *_: None,
        ranks=ranks,
    ).history


@contextmanager
def watched_steps() -> Iterator[list[dict]]:
    """What every optimizer has before each of its steps: rate, parameter groups, gradient norm."""
    seen: list[dict] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad.norm() for p in parameters if p.grad is not None]
        seen.append(
            {
                "rates": {float(group["lr"]) for group in optimizer.param_groups},
                "groups": [
                    (group["weight_decay"], group["params"]) for group in optimizer.param_groups
                ],
                "norm": torch.stack(gradients).norm().item(),
            }
        )

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def trained_batches(network: nn.Module) -> list[tuple[np.ndarray, torch.Tensor]]:
    """Filled by fit(): (rows, logits) of each batch that the model was trained on, in order."""
    found: list[tuple[np.ndarray, torch.Tensor]] = []

    def note(module: nn.Module, arguments: tuple[Batch], logits: torch.Tensor) -> None:
        if module.training:
            found.append((arguments[0].rows, logits.detach().clone()))

    network.register_forward_hook(note)
    return found


def encoder_folder(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModel.from_config(FAMILIES[family]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_64_dialogues_by_heart(family: str, tmp_path: Path) -> None:
    network = build_classifier(encoder_folder(family, tmp_path), CLASSES, dr_rate=0.0)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    history = fit(network, random_table(64), num_epochs=40, batch_size=16, learning_rate=5e-3)
    assert history[0].train_accuracy < 0.6
    assert history[-1].train_accuracy >= 0.95
    assert history[-1].test_accuracy >= 0.95  # the same rows, read again after the epoch
    assert history[-1].loss < history[0].loss / 2


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 0.37, 1.0])
def test_the_rate_of_every_step_is_that_of_transformers(warmup_ratio: float) -> None:
    with watched_steps() as steps:
        fit(Bag(), random_table(60), num_epochs=3, warmup_ratio=warmup_ratio, learning_rate=0.02)
    total = 3 * math.ceil(60 / 8)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    scheduler = get_cosine_schedule_with_warmup(reference, int(total * warmup_ratio), total)
    expected = []
    for _ in range(total):
        expected += scheduler.get_last_lr()
        reference.step()
        scheduler.step()
    assert all(len(step["rates"]) == 1 for step in steps)
    rates = [step["rates"].pop() for step in steps]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_and_layer_norms_do_not_decay(family: str, tmp_path: Path) -> None:
    network = build_classifier(encoder_folder(family, tmp_path), CLASSES, dr_rate=0.0)
    with watched_steps() as steps:
        fit(network, random_table(8), weight_decay=0.25)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decays = {names[id(p)]: decay for decay, group in steps[0]["groups"] for p in group}
    assert set(decays) == set(names.values())
    assert sum(len(group) for _, group in steps[0]["groups"]) == len(names)  # each once
    for name, decay in decays.items():
        exempt = name.endswith("bias") or "layernorm" in name.lower().replace("_", "")
        assert decay == (0.0 if exempt else 0.25), name
    assert {decays["linear.weight"], decays["linear.bias"]} == {0.0, 0.25}


@pytest.mark.parametrize("most", [1e-3, 1e3])
def test_clipping_is_torchs_also_where_adamw_does_it(most: float) -> None:
    """On a CPU in bfloat16, the optimizer scales; the gradients afterwards are the clipped ones."""
    torch.manual_seed(0)
    network, found = nn.Linear(40, 30), []
    gradients = [torch.randn_like(parameter) for parameter in network.parameters()]
    for precision in ("fp32", "bf16"):
        mine = copy.deepcopy(network)
        for parameter, gradient in zip(mine.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        placement = Placement(torch.device("cpu"), precision, "")
        state = fit_module.new_state(mine, params_of(learning_rate=1e-3), placement)
        clip(state, most, placement)
        state.optimizer.step()
        found.append([t.detach() for p in mine.parameters() for t in (p, p.grad)])
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)


def notebook_steps(
    network: Bag, table: TokenArrays, rate: float, decay: float, max_norm: float
) -> None:
    """One epoch of fit() as the notebook would have done it, in the order of the file."""
    exempt = {"linear.bias", "norm.weight", "norm.bias"}
    named = dict(network.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if n not in exempt], "weight_decay": decay},
        {"params": [p for n, p in named.items() if n in exempt], "weight_decay": 0.0},
    ]
    optimizer = notebook.AdamW(groups, lr=rate)
    total = len(table) // 8
    scheduler = get_cosine_schedule_with_warmup(optimizer, int(total * 0.1), total)
    for start in range(0, len(table), 8):
        batch = make_batch(table, np.arange(start, start + 8))
        optimizer.zero_grad()
        labels = torch.from_numpy(table.labels[batch.rows])
        nn.functional.cross_entropy(network(batch), labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), max_norm)
        optimizer.step()
        scheduler.step()


def weights_of(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in network.parameters()])


@pytest.mark.parametrize("max_norm", [1e-5, 1e6])
def test_the_notebook_optimizer_over_ten_steps(max_norm: float) -> None:
    """With gradients as small as eps, where the two AdamW differ most, and with whole ones."""
    table = random_table(80)
    rate, decay = 1e-2, 0.01
    common = {
        "shuffle": False,
        "max_grad_norm": max_norm,
        "weight_decay": decay,
        "learning_rate": rate,
    }
    ends = {}
    for name in ("theirs", "notebook", "adamw"):
        torch.manual_seed(0)
        network = Bag()
        start = weights_of(network)
        if name == "theirs":
            notebook_steps(network, table, rate, decay, max_norm)
        else:
            with watched_steps() as steps:
                fit(network, table, optimizer=name, **common)
            assert len(steps) == 10
        ends[name] = weights_of(network) - start
    size = ends["theirs"].norm()
    assert (ends["notebook"] - ends["theirs"]).norm() < 1e-3 * size
    if max_norm < 1:
        assert (ends["adamw"] - ends["theirs"]).norm() > 0.1 * size


def epoch_orders(**values: object) -> list[list[list[int]]]:
    """Rows of each batch (sorted) of each of three epochs over 20 dialogues in batches of 8."""
    network = Bag()
    found = trained_batches(network)
    fit(network, random_table(20), num_epochs=3, **values)
    rows = [sorted(rows.tolist()) for rows, _ in found]
    assert len(rows) == 9
    return [rows[:3], rows[3:6], rows[6:]]


def test_without_shuffle_the_order_is_that_of_the_file() -> None:
    in_order = [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    assert epoch_orders(shuffle=False) == [in_order] * 3


def test_shuffle_takes_every_dialogue_once_in_an_order_of_the_seed_and_the_epoch() -> None:
    first, second, third = orders = epoch_orders(shuffle=True, seed=5)
    for order in orders:
        assert sorted(row for rows in order for row in rows) == list(range(20))
    assert first != second != third != first
    torch.rand(3)  # the order does not hang on torch's random state
    assert epoch_orders(shuffle=True, seed=5) == orders
    assert epoch_orders(shuffle=True, seed=6)[0] != first


def test_history_says_what_was_done() -> None:
    """20 dialogues in batches of 8: the last has 4, and counts half as much."""
    network, table = Bag(), random_table(20)
    found = trained_batches(network)
    told: list[int] = []
    history = fit_module.fit(
        network,
        train=table,
        test=random_table(9, seed=1),
        params=params_of(**{**RATE, "num_epochs": 2, "batch_size": 8, "learning_rate": 0.05}),
        placement=choose("cpu", "fp32"),
        on_epoch=lambda rows: told.append(len(rows)),
    ).history
    assert [row.epoch for row in history] == told == [1, 2]
    for number, row in enumerate(history):
        losses, hits, means = [], [], []
        for rows, logits in found[3 * number : 3 * number + 3]:
            labels = torch.from_numpy(table.labels[rows])
            each = nn.functional.cross_entropy(logits, labels, reduction="none")
            losses += each.tolist()
            means.append(each.mean().item())
            hits += (logits.argmax(dim=1) == labels).tolist()
        assert len(losses) == 20
        assert row.loss == pytest.approx(sum(losses) / 20, rel=1e-5)
        assert row.loss != pytest.approx(sum(means) / 3, rel=1e-5)
        assert row.train_accuracy == sum(hits) / 20
        assert row.tokens == len(table.ids)
        assert row.seconds > 0
    test = random_table(9, seed=1)
    batch = make_batch(test, np.arange(9))
    with torch.no_grad():
        logits = network.eval()(batch)
    labels = torch.from_numpy(test.labels[batch.rows])
    right = int((logits.argmax(dim=1) == labels).sum())
    assert history[-1].test_accuracy == right / 9
    mean = nn.functional.cross_entropy(logits, labels).item()
    assert history[-1].test_loss == pytest.approx(mean, rel=1e-4)


def test_training_drops_and_scoring_does_not(tmp_path: Path) -> None:
    network = build_classifier(encoder_folder("bert", tmp_path), CLASSES, dr_rate=0.5)
    modes: list[bool] = []
    network.dropout.register_forward_hook(lambda module, *_: modes.append(module.training))
    fit(network, random_table(16), num_epochs=2)
    assert modes == [True, True, False] * 2  # two batches of 8, then one of all 16 to score


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_training(value: float) -> None:
    network = Bag()
    with torch.no_grad():
        network.linear.weight.fill_(value)
    with pytest.raises(InputError, match=r"epoch 1: loss nan; lower learning_rate \(0\.01\)"):
        fit(network, random_table(8))


def test_gradients_are_clipped_to_the_norm() -> None:
    table = random_table(40)
    torch.manual_seed(0)
    with watched_steps() as free:
        fit(Bag(), table, max_grad_norm=1e6)
    assert all(step["norm"] > 0.02 for step in free)
    torch.manual_seed(0)
    with watched_steps() as clipped:
        fit(Bag(), table, max_grad_norm=0.02)
    assert [step["norm"] for step in clipped] == pytest.approx([0.02] * 5, rel=1e-3)


def test_outside_a_terminal_a_line_every_log_interval_steps(capsys) -> None:
    history = fit(Bag(), random_table(76), log_interval=3)  # 10 steps
    out, err = capsys.readouterr()
    *lines, last = out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"epoch 1/1, step {n}/10" for n in (3, 6, 9)]
    assert all("loss" in line and "accuracy" in line and "s left" in line for line in lines)
    assert last.startswith(f"epoch 1/1: loss {history[0].loss:.4f}, train accuracy ")
    assert err == ""


def test_only_the_first_process_prints(capsys) -> None:
    fit(Bag(), random_table(76), log_interval=3, ranks=Ranks(rank=1))
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_a_bar_and_no_lines(capsys, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fit(Bag(), random_table(76), log_interval=3)
    assert "10/10" in terminal.getvalue()
    assert len(capsys.readouterr().out.splitlines()) == 1  # the epoch's


def test_bf16_on_the_cpu(tmp_path: Path) -> None:
    folder = encoder_folder("bert", tmp_path)
    losses, kinds = {}, set()
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = build_classifier(folder, CLASSES, dr_rate=0.0)
        found = trained_batches(network)
        losses[precision] = fit(network, random_table(32), num_epochs=2, precision=precision)
        kinds.add(found[0][1].dtype)
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert weights_of(network).isfinite().all()
    assert kinds == {torch.float32, torch.bfloat16}  # of the logits
    assert losses["bf16"][-1].loss == pytest.approx(losses["fp32"][-1].loss, rel=0.1)


def train_seeded(encoder: str, out: str, seed: int) -> None:
    torch.manual_seed(seed)
    network = build_classifier(Path(encoder), CLASSES, dr_rate=0.5)
    fit(network, random_table(48), num_epochs=2, seed=seed)
    network.encoder.save_pretrained(out)
    torch.save(network.linear.state_dict(), f"{out}/head.pt")


@pytest.mark.slow
def test_equal_seeds_make_equal_bytes_in_two_processes(tmp_path: Path) -> None:
    encoder = str(encoder_folder("bert", tmp_path / "encoder"))
    names = ("one", "again", "two")
    one, again, two = (str(tmp_path / name) for name in names)
    code = f"from tests.train import test_fit as own; own.train_seeded({encoder!r}, {again!r}, 1)"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    train_seeded(encoder, one, 1)
    train_seeded(encoder, two, 2)
    _, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors.decode()
    for file in ("model.safetensors", "head.pt"):
        one, again, two = ((tmp_path / name / file).read_bytes() for name in names)
        assert one == again
        assert one != two


def test_no_step_waits_for_the_device() -> None:
    """On "meta", a device that holds no values, reading one fails; so does all that would wait for
    a GPU, but for copies: after the first step's those must not block."""

    class Enough(Exception):
        """The loop has run three steps."""

    class Watch(TorchDispatchMode):
        step, copies = 0, 0

        def restore(self, state: State) -> None: ...

        def after_step(self, state: State) -> None:
            self.step = state.step
            if state.step == 3:
                raise Enough

        def __torch_dispatch__(self, call, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            moves = "_to_copy" in str(call) and "device" in kwargs
            if self.step and moves and args[0].device != kwargs["device"]:
                assert kwargs.get("non_blocking"), call
                self.copies += 1
            return call(*args, **kwargs)

    watch, table = Watch(), random_table(64)
    network = classifier.EmotionClassifier(AutoModel.from_config(FAMILIES["bert"]), CLASSES, 0.5)
    with watch, pytest.raises(Enough):
        fit_module.fit(
            network,
            train=table,
            test=table,
            params=params_of(
                batch_size=8, learning_rate=1e-3, optimizer="notebook", mask_rate=0.0, num_epochs=1
            ),
            placement=Placement(torch.device("meta"), "fp32", ""),
            on_epoch=lambda _: None,
            checkpoints=watch,
        )
    assert watch.copies == 2  # one a step
