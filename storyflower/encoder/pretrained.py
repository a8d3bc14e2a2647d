"""A checkpoint's files → its encoder, in float32.

In: config.json and weights (safetensors, or a .bin from which only tensors are read).
Out: the encoder without its pretraining head, of any family whose texts transformers encodes.
Not supported: code that comes with a checkpoint, pickled objects, weights in several files, models
with a decoder, models of pictures or sound. Whether an encoder computes what is expected of it,
trial.py tries.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging

from storyflower.common.errors import InputError, one_line
from storyflower.encoder.card import Card
from storyflower.model.folder import misfit, model_class, without_pooler
from storyflower.tokenizer.load import load_tokenizer

# Keys of config.json that are not taken over: the family, code to run, and how the machine that
# saved it computed attention
LEFT_OUT = ("model_type", "auto_map", "_attn_implementation", "attn_implementation")
# Families whose positions count from the pad id, which is 1 where config.json does not say it
FROM_PAD = (
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod"),
    *("data2vec-text", "ibert", "longformer", "luke", "mpnet"),
)
REMEDY = "choose an encoder that reads text both ways: docs/encoders.md names some"


def read_weights(card: Card, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name; raises InputError if it holds anything else."""
    where = f"{card.source}: {path.name}"
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{where}: refused: damaged, or holds objects that could run code"
        ) from None
    except (safetensors.SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"{where}: damaged ({one_line(error)})") from None
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise InputError(f"{where}: holds more than named tensors")
    return weights


def load_body(
    card: Card, settings: dict[str, Any], weights: dict[str, torch.Tensor], folder: Path
) -> Any:
    """The encoder of a checkpoint, float32, without its pretraining head; raises InputError.

    `folder` holds the vocabulary. A checkpoint without a pooler gets none: a pooler with random
    weights would look pretrained. The classifier then uses the first token's last hidden state,
    which was pretrained.
    """
    family = model_type(card, settings)
    pad_id = pad_token(card, settings, family, folder)
    settings = {**settings, "pad_token_id": pad_id}
    settings = {key: value for key, value in settings.items() if key not in LEFT_OUT}
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # else it reports the pretraining head, which is not loaded
    try:
        config = AutoConfig.for_model(family, **settings)
        if getattr(config, "attention_type", None) == "block_sparse":
            # BigBird's, partly random, which its code gives up for good at the first short text
            config.attention_type = "original_full"
        kind = encoder_class(card, config)
        body, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # checked below, from the report
            output_loading_info=True,
        )
    except InputError:
        raise
    except Exception as error:  # transformers raises many types of error for an invalid config
        raise InputError(f"{card.source}: config.json: {one_line(error)}") from None
    # Other unexpected keys are ignored: they are the checkpoint's pretraining head.
    unused = [name for name in report["unexpected_keys"] if is_part(body, name, weights)]
    if wrong := misfit({**without_pooler(body, report), "unexpected_keys": unused}):
        raise InputError(f"{card.source}: the weights do not fit config.json: {wrong}")
    return body


def is_part(body: PreTrainedModel, name: str, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a weight for which the encoder has no place belongs to it all the same.

    So it is with BERTs of relative positions, which transformers 5 computes with absolute ones.
    Buffers that older versions saved, such as position_ids, are vectors or whole numbers.
    """
    prefix = f"{body.base_model_prefix}."
    weight = weights.get(name, weights.get(prefix + name))
    part = name.removeprefix(prefix).partition(".")[0]
    within = part != "pooler" and part in dict(body.named_children())
    return within and weight is not None and weight.is_floating_point() and weight.ndim > 1


def model_type(card: Card, settings: Mapping[str, Any]) -> str:
    """The family that config.json names; raises InputError if transformers does not know it."""
    named = settings.get("model_type")
    if named is None:
        # An older config names only the class; the oldest name neither and are BERT.
        known = str((settings.get("architectures") or ["bert"])[0]).lower()
        fitting = [name for name in CONFIG_MAPPING if known.startswith(re.sub("[-_]", "", name))]
        named = max(fitting, key=len, default=known)
    if not isinstance(named, str) or named not in CONFIG_MAPPING:
        raise InputError(
            f"{card.source}: a model of type {named!r}, which transformers "
            f"{transformers.__version__} does not know (code of a checkpoint is not run); {REMEDY}"
        )
    return named


def encoder_class(card: Card, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """transformers' class for the encoder; raises InputError if the model encodes no texts."""
    if getattr(config, "is_encoder_decoder", False):
        reason = "an encoder with a decoder, which a classifier has no use for"
    elif type(config) not in MODEL_MAPPING:
        reason = "a part of a larger model, which transformers does not load alone"
    elif (kind := model_class(config)).main_input_name != "input_ids":
        reason = f"it reads {kind.main_input_name}, not the token ids of texts"
    else:
        return kind
    raise InputError(f"{card.source}: a model of type {config.model_type!r}: {reason}; {REMEDY}")


def pad_token(card: Card, settings: Mapping[str, Any], family: str, folder: Path) -> int:
    """The id of [PAD]; card, vocabulary and config.json must agree. Raises InputError.

    An old config.json may say 0, or nothing, although [PAD] is 1 in the vocabulary (SKTBrain/KoBERT
    #36); a pad_id on the card then overrides it. Not for a family in FROM_PAD: with another pad id
    its positions are others, so its config.json must be right.
    """
    pad_id = load_tokenizer(folder, card.model_dump()).pad_id
    if card.pad_id not in (None, pad_id):
        raise InputError(
            f"{card.source}: [PAD] is id {pad_id} in the vocabulary, {card.pad_id} on the card"
        )
    stated, where = settings.get("pad_token_id"), "config.json"
    if family == "mpnet":  # has 1 in its code, whatever config.json says
        stated, where = 1, "transformers' MPNet"
    if stated is None:
        stated = 1 if family in FROM_PAD else pad_id
    if stated != pad_id and (card.pad_id is None or family in FROM_PAD):
        raise InputError(
            f"{card.source}: [PAD] is id {pad_id} in the vocabulary, {stated} in {where}"
        )
    return pad_id
