"""The folders of an encoder and of a classifier: reading, checking, writing.

In: a verified encoder folder.
Out: the classifier, and its own folder on disk: the encoder in the from_pretrained format (so
`transformers` loads it by itself), the linear layer beside it as safetensors, the tokenizer's
files, and classifier.json, which names labels and params.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from storyflower.common.errors import InputError, one_line
from storyflower.common.files import json_text, replacing
from storyflower.interim.labels import LabelIndex
from storyflower.model.classifier import EmotionClassifier

WEIGHTS = ("config.json", "model.safetensors")  # of an encoder folder; the rest is its tokenizer
POOLED = ("bert", "roberta")  # the families that may have a pooler


def build_classifier(encoder: Path, num_classes: int, dr_rate: float) -> EmotionClassifier:
    """The classifier on a pretrained encoder, with a new linear layer from torch's random state.

    Raises InputError when the encoder's folder is incomplete or damaged.
    """
    return EmotionClassifier(read_encoder(encoder), num_classes, dr_rate)


def read_encoder(folder: Path) -> PreTrainedModel:
    """The encoder of a folder, float32, in evaluation mode, every weight from the file.

    It has a pooler only where the file has one. transformers draws at random what a file lacks and
    leaves out what config.json does not ask for; here both raise InputError, as a folder does that
    is incomplete or damaged.
    """
    need(folder, WEIGHTS, "'dvc repro' makes it")
    logging.disable_progress_bar()  # a bar for reading one file says nothing
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report what is judged below
    try:
        with safetensors.safe_open(folder / "model.safetensors", "pt") as weights:
            pooled = any(name.startswith("pooler.") for name in weights.keys())  # noqa: SIM118
        # transformers would ask at the terminal whether to run code that lies in the folder.
        closed = {"local_files_only": True, "trust_remote_code": False}
        family = AutoConfig.from_pretrained(folder, **closed).model_type
        without = {} if pooled or family not in POOLED else {"add_pooling_layer": False}
        body, report = AutoModel.from_pretrained(
            folder,
            **closed,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported, and judged below
            output_loading_info=True,
            **without,
        )
    except Exception as error:  # transformers raises many kinds for a config that makes no sense
        raise damaged(folder, error) from None
    finally:
        logging.set_verbosity(verbosity)
    if wrong := misfit(report):
        raise damaged(folder, f"model.safetensors does not fit config.json: {wrong}")
    return body


def misfit(report: Mapping[str, Iterable]) -> str | None:
    """What is wrong with weights, from transformers' loading report; None where they fit.

    transformers itself draws at random what a file lacks and leaves out what has no place.
    """
    wrong = [
        *(f"{name} is missing" for name in sorted(report["missing_keys"])),
        *(
            f"{name} is {' x '.join(map(str, there))}, not {' x '.join(map(str, asked))}"
            for name, there, asked in sorted(report["mismatched_keys"])
        ),
        *(f"{name} has no place" for name in sorted(report["unexpected_keys"])),
    ]
    return wrong[0] + (f" and {len(wrong) - 1} more" if wrong[1:] else "") if wrong else None


def need(folder: Path, names: Iterable[str], remedy: str) -> None:
    """Raise InputError unless the folder has these files."""
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: not found; {remedy}")


def damaged(path: Path, reason: object) -> InputError:
    """The error for a file or folder that cannot be used; an exception as the reason will do."""
    return InputError(f"{path}: damaged ({one_line(reason)}); restore it with 'dvc checkout'")


def save_classifier(
    model: EmotionClassifier,
    folder: Path,
    *,
    encoder: Path,
    labels: LabelIndex,
    facts: dict[str, Any],
) -> None:
    """Write the classifier's folder whole, or leave the old one.

    `encoder` is where its tokenizer and card come from.
    """
    with replacing() as beside:
        part = beside(folder)
        part.mkdir()
        model.encoder.save_pretrained(part)
        head = {name: value.contiguous().cpu() for name, value in model.linear.state_dict().items()}
        safetensors.torch.save_file(head, part / "head.safetensors")
        tokenizer = sorted(path.name for path in encoder.iterdir() if path.name not in WEIGHTS)
        for name in tokenizer:
            shutil.copyfile(encoder / name, part / name)
        # config.json too: other heads or another activation would load, and compute something else.
        files = digests(part, [*tokenizer, "config.json"])
        document = {"labels": list(labels.names), "tokenizer": files, **facts}
        (part / "classifier.json").write_text(json_text(document), encoding="utf-8")


def load_classifier(folder: Path) -> tuple[EmotionClassifier, dict[str, Any]]:
    """Read a classifier's folder back; return (model in evaluation mode, classifier.json).

    Raises InputError when the folder is incomplete or its parts do not belong together.
    """
    names = ("classifier.json", "head.safetensors", *WEIGHTS)
    need(folder, names, "train a classifier with 'dvc repro'")
    try:
        document = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        classes, files = len(document["labels"]), document["tokenizer"]
        # The tokenizer's caller needs max_len.
        dr_rate, _ = (float(document["params"][key]) for key in ("dr_rate", "max_len"))
        changed = files != digests(folder, files)
    except KeyError as error:
        raise damaged(folder / "classifier.json", f"{error} is missing") from None
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder / "classifier.json", error) from None
    if changed:
        raise InputError(
            f"{folder}: the tokenizer, or config.json, is not the one that the model was trained "
            "with; restore it with 'dvc checkout'"
        )
    try:
        head = safetensors.torch.load_file(folder / "head.safetensors")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise damaged(folder / "head.safetensors", error) from None
    # The new linear layer is overwritten whole, or refused: nothing stays random.
    model = build_classifier(folder, classes, dr_rate)
    expected = {name: tuple(value.shape) for name, value in model.linear.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in head.items()}
    if shapes != expected:
        raise InputError(
            f"{folder}: head.safetensors holds {shapes}, but {classes} labels and the encoder need "
            f"{expected}; its parts are of different models"
        )
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
