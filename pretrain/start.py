"""The folder that --start names: checked, read, and how heads are kept for the next --start.

In: an encoder folder, as pretraining writes it or of another BERT with KoBERT's special ids.
Out: the encoder, and the heads of heads.safetensors as far as they are for the same thing. The
file's metadata names its tasks and their labels.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from pretrain.objective import PretrainingModel
from pretrain.vocabulary import CARD, SPECIAL
from storyflower.common.errors import InputError, one_line
from storyflower.common.files import read_json
from storyflower.model.folder import read_encoder
from storyflower.tokenizer.load import load_tokenizer

HEADS = "heads.safetensors"
NEEDED = ("config.json", "model.safetensors", "spiece.model")


def check_start(folder: Path) -> None:
    """Raise InputError for a folder that no pretraining can go on from."""
    for name in NEEDED:
        if not (folder / name).is_file():
            raise InputError(
                f"--start {folder}: has no {name}; name a folder with {', '.join(NEEDED)}"
            )
    config = read_json(folder / "config.json")
    family = config.get("model_type") if isinstance(config, dict) else None
    if family != "bert":
        raise InputError(
            f"--start {folder}: its config.json says model_type {family!r}, not 'bert'; name the "
            "folder of a BERT"
        )
    tokenizer = load_tokenizer(folder, CARD)
    ids = [
        *(tokenizer.unk_id, tokenizer.pad_id, tokenizer.cls_id),
        *(tokenizer.sep_id, tokenizer.mask_id),
    ]
    if ids != list(range(len(SPECIAL))):
        raise InputError(
            f"--start {folder}: its {', '.join(SPECIAL)} have the ids "
            f"{', '.join(map(str, ids))}, not 0 to {len(SPECIAL) - 1}, as KoBERT's have; name "
            "another folder"
        )


def read_start(folder: Path, max_len: int) -> PreTrainedModel:
    """The encoder of a folder; raises InputError where no pretraining can go on from it."""
    check_start(folder)
    encoder = read_encoder(folder)
    config, pieces = encoder.config, load_tokenizer(folder, CARD).vocab_size
    if pieces > config.vocab_size:
        raise InputError(
            f"--start {folder}: spiece.model has {pieces} pieces and the encoder "
            f"{config.vocab_size} embeddings; they are of different models"
        )
    if max_len > config.max_position_embeddings:
        raise InputError(
            f"--max-len {max_len}: the encoder of {folder} has {config.max_position_embeddings} "
            "positions; lower it"
        )
    return encoder


def digest_start(folder: Path) -> str:
    """sha256 of all that is read of a folder."""
    digest = hashlib.sha256()
    for name in (*NEEDED, HEADS):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digest.update(name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def save_heads(model: PretrainingModel, tasks: Mapping[str, list[str]], folder: Path) -> None:
    """Write what the encoder does without, float16; `tasks` has the labels in their order."""
    heads = {
        name: value.to("cpu", torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("encoder.")
    }
    save_file(heads, folder / HEADS, {"tasks": json.dumps(tasks, ensure_ascii=False)})


def load_heads(model: PretrainingModel, tasks: Mapping[str, list[str]], folder: Path) -> None:
    """Take on the heads of a folder, if it has any.

    The one for tokens, and those of the tasks that have the same name and the same labels; what is
    of another shape stays as it was. Raises InputError for a damaged file.
    """
    file = folder / HEADS
    if not file.is_file():
        return
    try:
        with safetensors.safe_open(file, "pt") as content:
            saved = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            known = dict(json.loads((content.metadata() or {}).get("tasks", "{}")))
    except (ValueError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{file}: damaged ({one_line(error)}); without it, the heads begin anew"
        ) from None
    found = {name: value for name, value in saved.items() if not name.startswith("heads.")}
    for number, (task, labels) in enumerate(tasks.items()):
        if known.get(task) != labels:
            print(f"{task}: {folder} has no head for these labels; a new one begins", flush=True)
            continue
        old = list(known).index(task)
        for part in ("weight", "bias"):
            if f"heads.{old}.{part}" in saved:
                found[f"heads.{number}.{part}"] = saved[f"heads.{old}.{part}"]
    own = model.state_dict()
    fitting = {k: v for k, v in found.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(fitting, strict=False)
