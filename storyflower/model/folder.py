"""Read, check and write the folders of an encoder and of a classifier.

In: a verified encoder folder.
Out: the classifier, and its folder on disk: the encoder in the from_pretrained format (so that
`transformers` alone can load it), the linear layer as safetensors, the tokenizer's files, and
classifier.json with labels, params and temperature.
"""

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch

from storyflower.common.errors import InputError, one_line
from storyflower.common.files import digests, json_text, read_json, replacing, sha256
from storyflower.interim.labels import LabelIndex
from storyflower.interim.tokens import MODEL, SETTINGS, tokenizer_files
from storyflower.model.bare import bare_encoder
from storyflower.model.classifier import EmotionClassifier, drop_pooler, may_lack_pooler

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FLOATS = ("F64", "F32", "F16", "BF16")  # types of weights in a safetensors file
SAFETENSORS = ("head.safetensors", "model.safetensors")  # of a classifier's folder


def build_classifier(
    encoder: Path, num_classes: int, dr_rate: float, body: torch.nn.Module | None = None
) -> EmotionClassifier:
    """A classifier on a pretrained encoder; torch's random state initialises its linear layer.

    The pooling is that of the folder's card.json; a folder without one, or with a card from before
    there was the key, has "first". `body` is the folder's encoder where it is already read. Raises
    InputError if the folder is incomplete or damaged.
    """
    body = body or read_encoder(encoder)
    pooling = read_json(encoder / "card.json", {}).get("pooling", "first")
    return EmotionClassifier(body, num_classes, dr_rate, pooling)


def read_encoder(folder: Path) -> "PreTrainedModel":
    """The encoder of a folder, float32, in evaluation mode, every weight from the file.

    It has a pooler only if the file has one. transformers initialises missing weights at random and
    ignores weights that config.json does not need. Here both raise InputError, and so does an
    incomplete or damaged folder.
    """
    need(folder, MODEL, "'dvc repro' makes it")
    # Not at the top: this import takes longer than loading a classifier does without it.
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a progress bar for one file is useless
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it reports what is checked below
    try:
        weights = names_of_weights(folder / "model.safetensors")
        pooled = any(name.startswith("pooler.") for name in weights)
        # Without these, transformers may ask at the terminal whether to run code from the folder.
        closed = {"local_files_only": True, "trust_remote_code": False}
        kind = model_class(AutoConfig.from_pretrained(folder, **closed))
        without = {"add_pooling_layer": False} if not pooled and may_lack_pooler(kind) else {}
        body, report = AutoModel.from_pretrained(
            folder,
            **closed,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # checked below, from the report
            output_loading_info=True,
            **without,
        )
    except Exception as error:  # transformers raises many types of error for an invalid config
        raise damaged(folder, error) from None
    finally:
        logging.set_verbosity(verbosity)
    if not pooled:
        report = without_pooler(body, report)
    if wrong := misfit(report):
        raise damaged(folder, f"model.safetensors does not fit config.json: {wrong}")
    return body


def names_of_weights(file: Path) -> list[str]:
    """The names in a safetensors file; raises ValueError for a weight that is no float.

    torch and transformers would take 3 in int8 for 3.0. Some models save lists of ids, too.
    """
    with safetensors.safe_open(file, "pt") as weights:
        kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    for name, kind in kinds.items():
        if kind not in FLOATS and not name.endswith("_ids"):
            raise ValueError(f"its weights are {kind}, and only floating-point ones are read")
    return list(kinds)


def model_class(config: "PreTrainedConfig") -> type["PreTrainedModel"]:
    """transformers' class of the bare model; raises KeyError if the family has none."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind = MODEL_MAPPING[type(config)]
    return kind[0] if isinstance(kind, tuple) else kind


def without_pooler(body: "PreTrainedModel", report: Mapping[str, Iterable]) -> dict[str, Iterable]:
    """Drop a pooler none of whose weights was there; return the loading report without them."""
    missing = set(report["missing_keys"])
    if absent := {name for name in missing if name.startswith("pooler.")}:
        drop_pooler(body)
    return {**report, "missing_keys": missing - absent}


def misfit(report: Mapping[str, Iterable]) -> str | None:
    """What is wrong with the weights, from transformers' loading report; None if they fit.

    transformers itself initialises missing weights at random and ignores unexpected ones.
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
    """The error for a file or folder that cannot be used; `reason` may be an exception."""
    return InputError(f"{path}: damaged ({one_line(reason)}); restore it with 'dvc checkout'")


def save_classifier(
    model: EmotionClassifier,
    folder: Path,
    *,
    encoder: Path,
    labels: LabelIndex,
    facts: dict[str, Any],
) -> None:
    """Write the complete classifier folder, or leave the old one unchanged.

    The tokenizer's files and the card are copied from the folder `encoder`.
    """
    with replacing() as beside:
        part = beside(folder)
        part.mkdir()
        model.encoder.save_pretrained(part)
        head = {name: value.contiguous().cpu() for name, value in model.linear.state_dict().items()}
        safetensors.torch.save_file(head, part / "head.safetensors")
        tokenizer = tokenizer_files(encoder)
        for name in tokenizer:
            shutil.copyfile(encoder / name, part / name)
        # config.json too: with another number of heads or another activation, the weights would
        # load without an error and give other results.
        files = digests(part, [*tokenizer, "config.json"])
        weights = digests(part, SAFETENSORS)
        document = {
            "labels": list(labels.names),
            "tokenizer": files,
            "weights": weights,
            **facts,
        }
        (part / "classifier.json").write_text(json_text(document), encoding="utf-8")


def load_classifier(folder: Path) -> tuple[EmotionClassifier, dict[str, Any]]:
    """Read a classifier's folder; return (model in evaluation mode, content of classifier.json).

    The model is for predictions: it cannot be trained on or saved again. Raises InputError if the
    folder is incomplete or its parts do not belong together.
    """
    names = ("classifier.json", "head.safetensors", *MODEL)
    need(folder, names, "train a classifier with 'dvc repro'")
    try:
        document = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        classes, files = len(document["labels"]), document["tokenizer"]
        # max_len is only checked here; the tokenizer's caller needs it.
        dr_rate, _ = (float(document["params"][key]) for key in ("dr_rate", "max_len"))
        temperature = document.get("temperature")  # folders from before there was one have none
        document["temperature"] = None if temperature is None else float(temperature)
        if temperature is not None and not 0 < document["temperature"] < math.inf:
            raise ValueError(f"temperature is {temperature}")
        since = [name for name in itertools.chain(*SETTINGS.values()) if (folder / name).exists()]
        changed = files != digests(folder, {*files, *since})
        # Older folders have no checksums of these.
        weights = {name: document["weights"][name] for name in SAFETENSORS if "weights" in document}
    except KeyError as error:
        raise damaged(folder / "classifier.json", f"{error} is missing") from None
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder / "classifier.json", error) from None
    if changed:
        raise InputError(
            f"{folder}: the tokenizer, or config.json, is not the one that the model was trained "
            "with; restore it with 'dvc checkout'"
        )
    for name in SAFETENSORS:
        try:
            names_of_weights(folder / name)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise damaged(folder / name, error) from None
    head = safetensors.torch.load_file(folder / "head.safetensors")
    # The new linear layer is overwritten completely, or this fails: no weight stays random.
    model = build_classifier(folder, classes, dr_rate, bare_encoder(folder))
    expected = {name: tuple(value.shape) for name, value in model.linear.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in head.items()}
    if shapes != expected:
        raise InputError(
            f"{folder}: head.safetensors holds {shapes}, but {classes} labels and the encoder need "
            f"{expected}; its parts are of different models"
        )
    model.linear.load_state_dict(head)
    # safetensors maps the file into memory. Without a copy, a file that is written over in place
    # (cp does that) would change the answers of a running service, or kill it.
    for value in itertools.chain(model.parameters(), model.buffers()):
        value.data = value.detach().clone()
    for name, checksum in weights.items():
        if sha256(folder / name) != checksum:
            raise damaged(folder / name, "its checksum has changed")
    return model.eval(), document


def classifier_files(folder: Path) -> list[str]:
    """The names of the files that make a classifier, sorted; what else lies there is none of it.

    Raises InputError if classifier.json is missing or damaged.
    """
    file = folder / "classifier.json"
    document = read_json(file)
    names = document.get("tokenizer") if isinstance(document, dict) else None
    if not isinstance(names, dict) or any(Path(name).name != name for name in names):
        raise damaged(file, "it names no files of a tokenizer")
    return sorted({"classifier.json", "head.safetensors", *MODEL, *names})


def digest(folder: Path) -> str:
    """sha256 over the names and the bytes of a classifier's files, in hex.

    Equal classifiers have equal digests, wherever they lie. Raises InputError as classifier_files.
    """
    files = digests(folder, classifier_files(folder))
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
