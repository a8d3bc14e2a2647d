"""A classifier as one ONNX graph, with all that a port to another language needs to check itself.

In: a classifier's folder.
Out: a folder with model.onnx (encoder, pooling and linear layer), model.int8.onnx if asked for, the
tokenizer's files, model.json (labels, max_len, temperature, special ids) and examples.jsonl (200
texts, their ids and their logits). onnxruntime has computed the same logits before it is written.
Not supported: encoders that model/padded.py computes; opset versions other than OPSET; models over
2 GB; a tokenizer inside the graph.
"""

import io
import json
import logging
import shutil
import unicodedata
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from storyflower import __version__
from storyflower.common.errors import InputError
from storyflower.common.files import json_text, replacing
from storyflower.ingest.aihub import MAJOR
from storyflower.interim.tokens import TokenArrays
from storyflower.model import forward, scoring
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import choose
from storyflower.model.folder import load_classifier
from storyflower.tokenizer.base import Tokenizer, Tokens
from storyflower.tokenizer.load import load_tokenizer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 20  # the first with Gelu; onnxruntime reads such a file since 1.18
EXAMPLES = 200
SAMPLE = Path("data/sample")
FEWEST = 16  # example texts below which a port would hardly be checked
TOLERANCE = 1e-4  # between the logits of torch and of onnxruntime
BATCH = 64  # texts computed at once by onnxruntime, padded to the longest
CLEAR = 0.02  # int8 must agree where the two best classes lie further apart than this,
AGREE = 0.99  # in this share of the texts
NAMED = 20  # texts on which int8 differs that are listed
# What ports get wrong: blanks, decomposed Hangul, emoji, signs that are no letters, other scripts.
HARD = (
    "",
    " ",
    "\t\n",
    "ㅋㅋㅋㅋ ㅠㅠ",
    "😀🎉👩‍👩‍👧",
    unicodedata.normalize("NFD", "오늘은 정말 기뻤어."),
    "café naïve ÅNGSTRÖM ≠",
    "“따옴표”…그리고—줄표",
    "전각 ＡＢＣ１２３！",
    "漢字와 かな",
    "[CLS] [SEP] [MASK] [UNK] [PAD] <s>",
    "첫 줄\r\n둘째 줄\u2028셋째 줄",
    "\u200b보이지\u200d않는\ufeff글자\x00",
    "Ты где? שלום مرحبا",
    "a" * 300,
    "길고 긴 하루였다. " * 400,
)


@dataclass(frozen=True)
class Difference:
    """A text on which int8 answers otherwise, without the text."""

    number: int  # of the text among those compared, from 1
    label: str
    int8_label: str
    margin: float  # between float32's two most probable classes, 0 to 1


@dataclass(frozen=True)
class Check:
    """Texts computed by torch, by onnxruntime and, if there is one, by the int8 graph."""

    texts: int
    largest: float  # difference of the logits between torch and onnxruntime
    accuracy: float | None  # share that torch gets right; None where no labels are known
    int8_accuracy: float | None = None
    clear: int = 0  # texts whose two best classes lie more than CLEAR apart
    clear_agree: int = 0  # of these, how many have the same label in int8
    differences: tuple[Difference, ...] = ()


class Padded(nn.Module):
    """The classifier on padded texts: what becomes the graph. Evaluation only."""

    def __init__(self, network: EmotionClassifier):
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Ids and mask, int64 (texts, length), 1 for a token and 0 for padding behind it →
        logits, float32 (texts, classes)."""
        encoder, network = self.network.encoder, self.network
        config = encoder.config
        shift = config.pad_token_id + 1 if config.model_type == "roberta" else 0
        positions = torch.arange(input_ids.shape[1]).unsqueeze(0) + shift
        hidden = encoder.embeddings(input_ids=input_ids, position_ids=positions)
        if hasattr(encoder, "embeddings_project"):
            hidden = encoder.embeddings_project(hidden)
        seen = attention_mask.to(torch.bool)[:, None, None, :]
        layers = list(forward.layers(encoder))
        for layer in layers:
            qkv = functional.linear(hidden, *layer.joined())  # (texts, length, 3 * hidden)
            parts = qkv.unflatten(2, (3, config.num_attention_heads, -1))
            query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (texts, heads, length, size)
            if layer is layers[-1] and network.pooling == "first":
                hidden, query = hidden[:, :1], query[:, :, :1]  # nothing else is read
            scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
            weights = scores.masked_fill(~seen, -1e9).softmax(3)
            mixed = (weights @ value).transpose(1, 2).flatten(2)
            hidden = layer.mix_norm(layer.mix(mixed) + hidden)
            hidden = layer.narrow_norm(layer.narrow(layer.activation(layer.widen(hidden))) + hidden)
        if network.pooling == "mean":
            mask = attention_mask.unsqueeze(2).to(hidden.dtype)
            summary = (hidden * mask).sum(1) / mask.sum(1)
        else:
            pooler = getattr(encoder, "pooler", None)
            summary = hidden[:, 0] if pooler is None else pooler(hidden)
        return network.linear(summary)


def export(
    folder: Path,
    output: Path,
    *,
    examples: Path | None = None,
    corpus: Path | None = None,
    int8: bool = False,
) -> Check:
    """Write the ONNX folder of a classifier, replacing an old one; return what was compared.

    The examples are HARD texts and lines of the text file `examples` (UTF-8), or without one the
    sample corpus's Validation. Compared are the texts of the Validation file of `corpus`, by
    default the sample's if it is here (without its labels if the classifier has others), else the
    examples. Raises InputError for bad input, for missing packages, and if onnxruntime's logits or
    int8's labels are too far off; the old folder is then unchanged.
    """
    need_packages()
    network, document = load_classifier(folder)
    family = network.encoder.config.model_type
    if family not in forward.UNPADDED:
        raise InputError(
            f"{folder}: its encoder is of type {family!r}, and export knows only "
            f"{', '.join(forward.UNPADDED)}; train on one of those"
        )
    tokenizer = load_tokenizer(folder)
    if output.exists() and not (output / "model.json").is_file():
        raise InputError(f"{output}: is there and no ONNX export; choose another name")
    chosen = example_texts(examples, document)
    texts, actual = chosen, None
    if corpus is not None:
        texts, actual = validation(corpus, document)
    elif SAMPLE.is_dir():
        ours = document["params"].get("label_column", MAJOR) == MAJOR
        texts, actual = validation(SAMPLE, document if ours else {**document, "labels": None})
    max_len = document["params"]["max_len"]
    with replacing() as beside:
        part = beside(output)
        part.mkdir()
        write_graph(network, part / "model.onnx")
        if int8:
            quantize(part / "model.onnx", part / "model.int8.onnx")
        for name in document["tokenizer"]:
            if name != "config.json":
                shutil.copyfile(folder / name, part / name)
        facts = port_facts(network, tokenizer, document)
        (part / "model.json").write_text(json_text(facts), encoding="utf-8")
        tokens = encode(tokenizer, chosen, max_len)
        write_examples(part / "examples.jsonl", chosen, tokens, torch_logits(network, tokens))
        graphs = [open_session(path) for path in sorted(part.glob("*.onnx"), reverse=True)]
        compare(graphs[:1], network, tokens, facts, None)
        return compare(graphs, network, encode(tokenizer, texts, max_len), facts, actual)


def need_packages() -> None:
    """Raise InputError where a package is missing that requirements-onnx.txt names."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"no package {error.name}; in StoryFlower's repository, type: "
                "pip install -r requirements-onnx.txt -c requirements.txt"
            ) from None


def example_texts(file: Path | None, document: dict[str, Any]) -> list[str]:
    """EXAMPLES texts: HARD ones, then evenly spread ones from the file or the sample corpus."""
    if file is None:
        if not SAMPLE.is_dir():
            raise InputError(f"{SAMPLE}: not here; name a text file, one text a line: --examples")
        texts = validation(SAMPLE, {**document, "labels": None})[0]
    else:
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except FileNotFoundError:
            raise InputError(f"{file}: not found") from None
        except UnicodeDecodeError:
            raise InputError(f"{file}: not UTF-8") from None
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from None
        texts = [line.removesuffix("\r") for line in lines if line.strip()]
        if len(texts) < FEWEST:
            raise InputError(f"{file}: {len(texts)} texts; {FEWEST} lines or more are needed")
    wanted = EXAMPLES - len(HARD)
    every = max(len(texts) // wanted, 1)
    return [*HARD, *islice(texts, 0, every * wanted, every)]


def validation(corpus: Path, document: dict[str, Any]) -> tuple[list[str], np.ndarray | None]:
    """A corpus's Validation: texts as the classifier was trained on, and class numbers (texts,).

    The sample's columns are AI Hub's, whatever the classifier's were. Without labels in the
    document, there are no class numbers.
    """
    from storyflower.ingest.ingest import ingest
    from storyflower.interim import dialogues

    keys = ("turns", "target", "max_dropped")
    if missing := [key for key in keys if key not in document["params"]]:
        raise InputError(f"classifier.json: params has no {missing[0]}; train it again")
    if corpus != SAMPLE:
        own = ("text_columns", "label_column", "validation_share", "seed")
        keys += tuple(key for key in own if key in document["params"])
    params = {key: document["params"][key] for key in keys}
    with TemporaryDirectory() as work:
        table = Path(work, "dialogues.parquet")
        ingest(corpus, table, Path(work, "ingest.json"), **params)
        rows = [batch for split, batch in dialogues.batches(table, ["text", "label", "fine"])
                if split == "Validation"]  # fmt: skip
    texts = [text for batch in rows for text in batch.column("text").to_pylist()]
    if document["labels"] is None:
        return texts, None
    names = [name for batch in rows for name in dialogues.class_names(batch, params["target"])]
    index = {name: number for number, name in enumerate(document["labels"])}
    if unknown := set(names) - set(index):
        raise InputError(f"{corpus}: {len(unknown)} labels that the classifier does not know")
    return texts, np.array([index[name] for name in names])


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_len: int) -> Tokens:
    return tokenizer.encode([unicodedata.normalize("NFC", text) for text in texts], max_len)


def rows_of(tokens: Tokens) -> list[np.ndarray]:
    return np.split(tokens.ids, tokens.offsets[1:-1])


def torch_logits(network: EmotionClassifier, tokens: Tokens) -> np.ndarray:
    """Logits by the project's own forward pass, float32 (texts, classes)."""
    table = TokenArrays(tokens.ids, tokens.offsets, np.zeros(len(tokens.cut), np.int64))
    return scoring.logits(network, table, choose("cpu", "fp32"))


def runtime_logits(session: "InferenceSession", tokens: Tokens) -> np.ndarray:
    """Logits by onnxruntime, float32 (texts, classes); texts of similar length share a batch."""
    rows, result = rows_of(tokens), []
    order = np.argsort(np.diff(tokens.offsets), kind="stable")
    for start in range(0, len(order), BATCH):
        chosen = [rows[number] for number in order[start : start + BATCH]]
        ids = np.zeros((len(chosen), len(chosen[-1])), np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(chosen):
            ids[number, : len(row)], mask[number, : len(row)] = row, 1
        result.append(session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0])
    logits = np.concatenate(result)
    logits[order] = logits.copy()
    return logits


def open_session(path: Path, threads: int = 0) -> "InferenceSession":
    """onnxruntime on the CPU; threads 0: as many as it chooses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # its warnings are about its own rewriting of the graph
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def write_graph(network: EmotionClassifier, path: Path) -> None:
    """Write model.onnx: input_ids and attention_mask (batch, length) → logits (batch, classes)."""
    ids = torch.ones(2, 7, dtype=torch.int64)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Padded(network).eval(),
            (ids, torch.ones_like(ids)),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
            verbose=False,
        )
    program.save(path, external_data=False)


def quantize(source: Path, path: Path) -> None:
    """Write the int8 graph: weights of matrix products in int8, activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)
    quantize_dynamic(
        source, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
    )


def port_facts(
    network: EmotionClassifier, tokenizer: Tokenizer, document: dict[str, Any]
) -> dict[str, Any]:
    """The content of model.json."""
    ids = ("cls_id", "sep_id", "pad_id", "unk_id")
    return {
        "storyflower": __version__,
        "labels": document["labels"],
        "temperature": document.get("temperature"),
        "max_len": document["params"]["max_len"],
        "normalize": "NFC",
        "pretokenize": tokenizer.pretokenize,
        **{name: int(getattr(tokenizer, name)) for name in ids},
        "tokenizer": {k: v for k, v in document["tokenizer"].items() if k != "config.json"},
        "pooling": network.pooling,
        "inputs": {"input_ids": "int64 (batch, length)", "attention_mask": "int64 (batch, length)"},
        "outputs": {"logits": "float32 (batch, classes)"},
        "opset": OPSET,
    }


def write_examples(path: Path, texts: Sequence[str], tokens: Tokens, logits: np.ndarray) -> None:
    """One JSON object a line: text, input_ids, logits. ASCII, so that no editor changes a text."""
    with path.open("w", encoding="ascii") as file:
        for text, ids, row in zip(texts, rows_of(tokens), logits, strict=True):
            values = [round(float(value), 6) for value in row]
            line = {"text": text, "input_ids": ids.tolist(), "logits": values}
            file.write(json.dumps(line) + "\n")


def compare(
    sessions: Sequence["InferenceSession"],
    network: EmotionClassifier,
    tokens: Tokens,
    facts: dict[str, Any],
    actual: np.ndarray | None,
) -> Check:
    """Compare the graphs, float32 first, with torch; raises InputError if they are too far off."""
    reference = torch_logits(network, tokens)
    logits = [runtime_logits(session, tokens) for session in sessions]
    largest = float(np.abs(logits[0] - reference).max())
    if largest > TOLERANCE:
        raise InputError(
            f"onnxruntime's logits differ from torch's by {largest:.1e}, and {TOLERANCE:.0e} is "
            "allowed; nothing was written; try the versions in requirements-onnx.txt"
        )
    best = reference.argmax(axis=1)
    accuracy = None if actual is None else float((best == actual).mean())
    check = Check(len(reference), largest, accuracy)
    if len(sessions) == 1:
        return check
    scaled = torch.from_numpy(reference) / (facts["temperature"] or 1.0)
    two = torch.softmax(scaled, dim=1).topk(2, dim=1).values.numpy()
    margin = two[:, 0] - two[:, 1]
    other = logits[1].argmax(axis=1)
    clear = margin > CLEAR
    check = replace(
        check,
        int8_accuracy=None if actual is None else float((other == actual).mean()),
        clear=int(clear.sum()),
        clear_agree=int((clear & (best == other)).sum()),
        differences=tuple(
            Difference(
                int(i) + 1, facts["labels"][best[i]], facts["labels"][other[i]], float(margin[i])
            )
            for i in np.flatnonzero(best != other)
        ),
    )
    if check.clear_agree < AGREE * check.clear:
        raise InputError(
            f"int8 agrees in only {check.clear_agree} of {check.clear} texts whose two best "
            f"classes lie more than {CLEAR:.0%} apart, and {AGREE:.0%} is the least; nothing was "
            "written; export it without --int8"
        )
    return check
