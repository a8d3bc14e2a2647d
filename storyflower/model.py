"""Encoder + dropout + linear → logits.

Enters: a verified encoder folder. Leaves: the classifier, and its own folder on disk: the encoder
in the from_pretrained format (so `transformers` loads it by itself), the linear layer beside it as
safetensors, the tokenizer's files, and classifier.json, which names labels and params.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from storyflower import attention
from storyflower.errors import InputError
from storyflower.labels import LabelIndex
from storyflower.tensors import Batch

WEIGHTS = ("config.json", "model.safetensors")  # of an encoder folder; the rest is its tokenizer
POOLED = ("bert", "roberta")  # the families that may have a pooler


class EmotionClassifier(nn.Module):
    """The notebook's classifier: the encoder's summary of a text, dropout, one linear layer.

    The summary is the pooler's output where the checkpoint has a pooler (KoBERT), and the last
    hidden state of the first token where it has none: ELECTRA and DistilBERT never have one, BERT
    and RoBERTa that were trained on masked words alone (klue/roberta-base) neither.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, dr_rate: float):
        super().__init__()
        self.encoder = encoder
        # RoBERTa counts positions from the one after its pad id.
        roberta = encoder.config.model_type == "roberta"
        self.first_position = encoder.config.pad_token_id + 1 if roberta else 0
        self.dropout = nn.Dropout(dr_rate)
        # nn.Linear's own initialisation, as in the notebook, not BERT's normal(0, 0.02).
        self.linear = nn.Linear(encoder.config.hidden_size, num_classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        """A batch of dialogues end to end → logits (dialogues, classes), in the batch's order."""
        output = self.encoder(
            input_ids=batch.ids.unsqueeze(0),  # (1, tokens)
            position_ids=(batch.positions + self.first_position).unsqueeze(0),
            groups=batch.groups,
        )
        # [CLS] of every dialogue, as if each were a sequence of its own: (dialogues, 1, hidden)
        summary = output.last_hidden_state[0, batch.first].unsqueeze(1)
        pooler = getattr(self.encoder, "pooler", None)
        summary = summary[:, 0] if pooler is None else pooler(summary)  # (dialogues, hidden)
        return self.linear(self.dropout(summary))  # (batch, classes)


def build(encoder: Path, num_classes: int, dr_rate: float) -> EmotionClassifier:
    """The classifier on a pretrained encoder, with a new linear layer from torch's random state."""
    logging.disable_progress_bar()  # a bar for reading one file says nothing
    with safetensors.safe_open(encoder / "model.safetensors", "pt") as weights:
        pooled = any(name.startswith("pooler.") for name in weights.keys())  # noqa: SIM118
    family = AutoConfig.from_pretrained(encoder, local_files_only=True).model_type
    # transformers would draw a missing pooler at random.
    without = {} if pooled or family not in POOLED else {"add_pooling_layer": False}
    body = AutoModel.from_pretrained(
        encoder,
        local_files_only=True,
        dtype=torch.float32,
        attn_implementation=attention.register(),
        **without,
    )
    return EmotionClassifier(body, num_classes, dr_rate)


def save(
    model: EmotionClassifier,
    folder: Path,
    *,
    encoder: Path,
    labels: LabelIndex,
    facts: dict[str, Any],
) -> None:
    """Write the classifier's folder; `encoder` is where its tokenizer and card come from."""
    folder.mkdir(parents=True, exist_ok=True)
    model.encoder.save_pretrained(folder)
    head = {name: value.contiguous().cpu() for name, value in model.linear.state_dict().items()}
    safetensors.torch.save_file(head, folder / "head.safetensors")
    tokenizer = sorted(path.name for path in encoder.iterdir() if path.name not in WEIGHTS)
    for name in tokenizer:
        shutil.copyfile(encoder / name, folder / name)
    document = {"labels": list(labels.names), "tokenizer": digests(folder, tokenizer), **facts}
    text = json.dumps(document, ensure_ascii=False, indent=2)
    (folder / "classifier.json").write_text(text + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[EmotionClassifier, dict[str, Any]]:
    """Read a classifier's folder back; return (model in evaluation mode, classifier.json).

    Raises InputError when the folder is incomplete or its parts do not belong together.
    """
    try:
        document = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        head = safetensors.torch.load_file(folder / "head.safetensors")
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename}: not found; train a classifier with 'dvc repro'"
        ) from None
    except (ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder}: damaged ({error}); restore it with 'dvc checkout'") from None
    if document["tokenizer"] != digests(folder, document["tokenizer"]):
        raise InputError(f"{folder}: the tokenizer is not the one that the model was trained with")
    # The shape comes from config.json and every weight from the files: nothing is drawn at random.
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    classes, hidden = head["weight"].shape
    if classes != len(document["labels"]) or hidden != config.hidden_size:
        raise InputError(
            f"{folder}: a linear layer of {classes} x {hidden}, {len(document['labels'])} labels, "
            f"hidden size {config.hidden_size}; its parts are of different models"
        )
    model = build(folder, classes, document["params"]["dr_rate"])
    model.linear.load_state_dict(head)
    return model.eval(), document


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of each named file; "missing" where there is none."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if (folder / name).is_file()
        else "missing"
        for name in names
    }
