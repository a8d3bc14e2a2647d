"""Loops that do the same job, for comparison: the notebook's, the Hugging Face Trainer's and ours.

In: the same weights, token table and rows for each.
Out: the seconds and the loss of each step.
"""

import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from storyflower.common.params import Params, Pooling
from storyflower.interim.tokens import TokenArrays
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import Placement
from storyflower.train import fit, optimizer

PAD = 1  # KoBERT's pad id
CLASSES = 6


@dataclass
class Steps:
    """What a loop's steps took and gave, in order."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # real ones


def classifier(
    config: PreTrainedConfig, dr_rate: float, pooling: Pooling = "first"
) -> EmotionClassifier:
    """The classifier on an encoder of random weights; equal ones at each call."""
    torch.manual_seed(0)
    return EmotionClassifier(AutoModel.from_config(config), CLASSES, dr_rate, pooling)


def padded(table: TokenArrays, rows: np.ndarray, width: int) -> dict[str, torch.Tensor]:
    """ids and mask (dialogues, width), labels (dialogues,)."""
    lengths = torch.from_numpy(table.lengths[rows])
    mask = torch.arange(width) < lengths[:, None]
    ids = torch.full(mask.shape, PAD)
    parts = [table.ids[table.offsets[r] : table.offsets[r + 1]] for r in rows]
    ids[mask] = torch.from_numpy(np.concatenate(parts).astype(np.int64))
    labels = torch.from_numpy(table.labels[rows])
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


class Notebook:
    """The original loop: eager attention, float32, every dialogue padded to 64 ids."""

    def __init__(self, config: BertConfig, params: Params, dr_rate: float, device: torch.device):
        config = BertConfig(**{**config.to_dict(), "attn_implementation": "eager"})
        self.model = classifier(config, dr_rate).to(device)
        self.params, self.device = params, device
        self.optimizer = optimizer.make_optimizer(
            self.model, 5e-5, params.weight_decay, torch.device("cpu")
        )

    def run(self, table: TokenArrays, batches: list[np.ndarray], sync: Callable) -> Steps:
        steps, network = Steps(), self.model.train()
        for rows in batches:
            sync()
            started = time.perf_counter()
            batch = padded(table, rows, self.params.max_len)
            batch = {name: values.to(self.device) for name, values in batch.items()}
            self.optimizer.zero_grad()
            pooled = network.encoder(batch["input_ids"], batch["attention_mask"]).pooler_output
            logits = network.linear(network.dropout(pooled))
            loss = functional.cross_entropy(logits, batch["labels"])
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), self.params.max_grad_norm)
            self.optimizer.step()
            logits.argmax(-1).eq(batch["labels"]).sum().item()  # it counts after each step
            sync()
            steps.seconds.append(time.perf_counter() - started)
            steps.losses.append(loss.item())
            steps.tokens.append(int(table.lengths[rows].sum()))
        return steps


class HuggingFace:
    """The Trainer with bf16, sdpa and batches padded to their longest dialogue."""

    def __init__(
        self, config: BertConfig, params: Params, dr_rate: float, placement: Placement, folder: str,
        *, grouped: bool = False, compiled: bool = False,
    ):  # fmt: skip
        ours = classifier(config, dr_rate)
        settings = {
            **config.to_dict(),
            "classifier_dropout": dr_rate,
            "id2label": {i: str(i) for i in range(CLASSES)},
        }
        self.model = BertForSequenceClassification(BertConfig(**settings))
        self.model.bert.load_state_dict(ours.encoder.state_dict())
        self.model.classifier.load_state_dict(ours.linear.state_dict())
        self.params, self.grouped = params, grouped
        self.settings: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": params.batch_size,
            "num_train_epochs": 1,
            "learning_rate": 5e-5,
            "weight_decay": params.weight_decay,
            "max_grad_norm": params.max_grad_norm,
            "bf16": placement.precision == "bf16",
            "fp16": placement.precision == "fp16",
            "use_cpu": placement.device.type == "cpu",
            "train_sampling_strategy": "group_by_length" if grouped else "sequential",
            "torch_compile": compiled,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "steps",
            "logging_steps": 1,
            "disable_tqdm": True,
        }

    def run(self, table: TokenArrays, batches: list[np.ndarray], sync: Callable) -> Steps:
        steps = Steps()
        rows = np.concatenate(batches)
        parts = [table.ids[table.offsets[r] : table.offsets[r + 1]] for r in rows]
        examples = [
            {"input_ids": part.astype(np.int64), "label": int(table.labels[row])}
            for part, row in zip(parts, rows, strict=True)
        ]

        def collate(chosen: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            lengths = np.array([len(example["input_ids"]) for example in chosen])
            steps.tokens.append(int(lengths.sum()))
            mask = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]
            ids = torch.full(mask.shape, PAD)
            joined = np.concatenate([example["input_ids"] for example in chosen])
            ids[mask] = torch.from_numpy(joined)
            labels = torch.tensor([example["label"] for example in chosen])
            return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}

        class Clock(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                sync()
                self.started = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                sync()
                steps.seconds.append(time.perf_counter() - self.started)

            def on_log(self, *args: Any, logs: dict[str, float], **_: Any) -> None:
                if "loss" in logs:
                    steps.losses.append(float(logs["loss"]))

        trainer = Trainer(
            model=self.model,
            args=TrainingArguments(**self.settings),
            data_collator=collate,
            train_dataset=examples,
            callbacks=[Clock()],
        )
        with redirect_stdout(io.StringIO()):
            trainer.train()
        del steps.tokens[len(steps.seconds) :]
        return steps


class Ours:
    """StoryFlower's fit(), as the train stage calls it."""

    def __init__(
        self,
        config: PreTrainedConfig,
        params: Params,
        dr_rate: float,
        placement: Placement,
        pooling: Pooling = "first",
    ):
        self.model = classifier(config, dr_rate, pooling)
        # The rows come in the order in which the other loops take them.
        self.params, self.placement = params.model_copy(update={"shuffle": False}), placement

    def run(self, table: TokenArrays, batches: list[np.ndarray], sync: Callable) -> Steps:
        steps = Steps(tokens=[int(table.lengths[rows].sum()) for rows in batches])
        rows = np.concatenate(batches)
        parts = [table.ids[table.offsets[r] : table.offsets[r + 1]] for r in rows]
        offsets = np.concatenate([[0], np.cumsum(table.lengths[rows])])
        mine = TokenArrays(np.concatenate(parts), offsets, table.labels[rows])
        one = TokenArrays(mine.ids[: offsets[1]], offsets[:2], mine.labels[:1])

        class Clock:
            """In the place of the checkpoints: called after each step."""

            before = 0.0

            def restore(self, state: Any) -> None: ...
            def after_epoch(self, state: Any) -> None: ...
            def after_step(self, state: Any) -> None:
                sync()
                steps.seconds.append(state.seconds - self.before)
                total = state.loss_sum.item()
                steps.losses.append((total - sum(steps.losses) * self.size) / self.size)
                self.before = state.seconds

        clock = Clock()
        clock.size = len(batches[0])
        with redirect_stdout(io.StringIO()):
            fit.fit(
                self.model,
                train=mine,
                test=one,
                params=self.params,
                placement=self.placement,
                on_epoch=lambda _: None,
                checkpoints=clock,
            )
        return steps
