"""params.yaml, checked once and frozen.

In: a YAML file with exactly the keys of `Params`.
Out: a frozen `Params`. Every stage reads it once, at its start, because a queued experiment may
rewrite the file while another one runs. `make readme` generates README's table and the comments
of params.yaml from the fields below.
Not supported: nesting. The keys are flat so that `dvc exp run -S num_epochs=10` needs no path.
"""

import math
import re
from collections.abc import Mapping, Set
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from storyflower.common.errors import InputError
from storyflower.common.files import read_yaml

# adamw: torch's; notebook: transformers 3's AdamW, whose eps comes before the bias correction
Optimizer = Literal["adamw", "notebook"]
# What an encoder's card may say about how a text's states become one
Pooling = Literal["first", "mean"]
# Params whose "auto" means the value on the encoder's card
ON_THE_CARD = ("max_len", "num_epochs", "batch_size", "learning_rate", "optimizer", "mask_rate")
# AI Hub's columns: the turns of a person, and the feeling
AI_HUB_TEXTS = ["사람문장1", "사람문장2", "사람문장3", "사람문장4"]
AI_HUB_LABEL = "감정_대분류"
# However many rows there are; two passes would be too few for the warm-up and the decay
LEAST_EPOCHS = 3
# Params that do not change the model. (Two processes add up sums in another order than one; the
# number of processes is a tag in MLflow.)
WITHOUT_EFFECT = ("log_interval", "checkpoint_minutes", "checkpoint_dir", "launcher")


def number_text(value: object) -> object:
    """Text such as 5e-5 → float: `dvc exp run -S` writes it so, and YAML 1.1 reads it as text."""
    plain = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    if isinstance(value, str) and re.fullmatch(plain, value, re.ASCII):
        return float(value)
    return value


def printable(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError
    return value


def different(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError
    return values


Number = Annotated[float, BeforeValidator(number_text)]
Rate = Annotated[float, Field(gt=0, le=1), BeforeValidator(number_text)]
Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(number_text)]
MaxLen = Annotated[int, Field(ge=3, le=512)]
Epochs = Annotated[int, Field(ge=1, le=1000)]
BatchSize = Annotated[int, Field(ge=1, le=65536)]
# One folder or file name, without slashes: it becomes part of a path.
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*\Z")]
Text = Annotated[str, AfterValidator(printable)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=4), AfterValidator(different)]


class Strict(BaseModel):
    """A frozen mapping, checked without conversions or unknown keys: '10' is not 10."""

    model_config = ConfigDict(
        strict=True,  # without it, 1 becomes true and '10' becomes 10
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        regex_engine="python-re",
    )

    @classmethod
    def check(cls, raw: dict[str, Any], where: str, absent: Set[str] = frozenset()) -> Self:
        """Turn a mapping of key → value into this class; `absent` are fields that may not be given.

        Raises InputError naming the key and the value for an unknown key, a missing key, a wrong
        type or a value out of range.
        """
        known = [name for name in cls.model_fields if name not in absent]
        for key in raw:
            if key not in known:
                raise InputError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        for key in known:
            if cls.model_fields[key].is_required() and key not in raw:
                raise InputError(f"{where}: key {key!r} is missing")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
        key = first["loc"][0]
        said = str(first.get("ctx", {}).get("error", ""))  # the message of a field's own check
        field = cls.model_json_schema()["properties"][key]
        must = said or rule(field)
        try:
            shown = repr(raw[key])
        except ValueError:  # Python does not print an int of more than 4,300 digits
            shown = "a number of thousands of digits"
        given = raw[key] if isinstance(raw[key], list) else [raw[key]]
        # YAML reads 1, 2024-01-01 and yes as a number, a date and true.
        no_text = any(isinstance(value, int | float | date) for value in given)
        hint = "; put it in quotes" if no_text and "rule" in field else ""
        raise InputError(f"{where}: {key} must be {must}, got {shown}{hint}")


def knob(shipped: object, prose: str, rule: str | None = None, **limits: float) -> Any:
    """A field: its value in params.yaml as shipped, a one-line description, and its range.

    `rule` says in words what a text value must be; `limits` are pydantic's ge, gt, le and lt.
    """
    extra = {"shipped": shipped} | ({"rule": rule} if rule else {})
    return Field(description=prose, json_schema_extra=extra, **limits)


PLAIN_NAME = "a plain name (letters, digits, '.', '_', '-')"


class Params(Strict):
    """The knobs of a run."""

    # The data
    corpus: Name = knob("sample", "folder under data/; aihub: your own files", PLAIN_NAME)
    target: Literal["major", "fine"] = knob(
        "major", "major: label_column; fine: the pair of it and 감정_소분류 (60 classes)"
    )
    text_columns: Text | Texts = knob(
        AI_HUB_TEXTS,
        "headers of the texts; for your own table: document, or [title, body]",
        "a header, or a list of 1 to 4 different ones",
    )
    label_column: Text = knob(
        AI_HUB_LABEL, "header of the labels; for your own table: label", "a header"
    )
    turns: int = knob(2, "how many of text_columns, from the first, make the text", ge=1, le=4)
    max_dropped: Number = knob(
        0.05, "share of rows without text or label above which ingest stops", ge=0, le=1
    )
    validation_share: Share = knob(
        0.1,
        "without a Validation file, this share of the rows becomes Validation; 0: it must exist",
    )
    # The encoder and its input
    encoder: Name = knob(
        "seedling", "a card in encoders/; seedling ships and needs no download", PLAIN_NAME
    )
    max_len: Literal["auto"] | MaxLen = knob(
        "auto",
        "token ids per text, [CLS] and [SEP] included; auto: the value on the encoder's card",
    )
    # Training
    num_epochs: Literal["auto"] | Epochs = knob(
        "auto", "passes over Training; auto: what the encoder's card says for so many rows"
    )
    batch_size: Literal["auto"] | BatchSize = knob(
        "auto", "dialogues per optimizer step; auto: the value on the encoder's card"
    )
    learning_rate: Literal["auto"] | Rate = knob(
        "auto", "peak of the schedule; auto: the value on the encoder's card"
    )
    optimizer: Literal["auto", Optimizer] = knob(
        "auto", "adamw: torch's; notebook: transformers 3's AdamW; auto: the encoder's card says it"
    )
    warmup_ratio: Number = knob(
        0.1, "share of the steps in which the rate rises from 0; then half a cosine", ge=0, le=1
    )
    max_grad_norm: Number = knob(1.0, "gradients are scaled down to this L2 norm", gt=0)
    weight_decay: Number = knob(0.01, "AdamW's, not on biases and norms", ge=0, le=1)
    layer_decay: Rate = knob(
        1.0,
        "each layer's rate is this times that of the layer above it, such as 0.9; 1.0: all equal",
    )
    dr_rate: Number = knob(0.5, "dropout before the linear layer", ge=0, lt=1)
    mask_rate: Literal["auto"] | Share = knob(
        "auto",
        "share of a text's tokens that [MASK] hides, anew at each step; helps where rows are few; "
        "auto: the value on the encoder's card",
    )
    class_weights: Literal["none", "balanced"] = knob(
        "none", "balanced: in the loss, every class weighs the same, however few rows it has"
    )
    label_smoothing: Number = knob(
        0.0, "share of the label's probability that is spread evenly over all classes", ge=0, lt=1
    )
    shuffle: bool = knob(
        True, "a new order each epoch; false: the order of the file, as in the original notebook"
    )
    dev_share: Number = knob(
        0.0,
        "share of each class of Training that is held back, to choose an epoch by and to fit the "
        "temperature on",
        ge=0,
        le=0.5,
    )
    keep: Literal["last", "best"] = knob(
        "last", "which epoch's weights; best: the one with the best accuracy on the dev part"
    )
    patience: int = knob(
        0, "epochs without a better one on the dev part after which training ends; 0: never",
        ge=0, le=1000,
    )  # fmt: skip
    average_last: Epochs = knob(
        1, "the final weights are the mean over this many last epochs; 1: the last epoch's"
    )
    micro_batch: Literal["none"] | BatchSize = knob(
        "none",
        "dialogues computed at once when memory is short; an update still uses batch_size; "
        "none: the whole batch",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob(
        "auto", "auto: bf16 where the hardware has it, fp16 on older GPUs, fp32 elsewhere"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = knob("auto", "auto: cuda, mps or cpu")
    seed: int = knob(
        42,
        "the same seed and data give the same weights on one machine and thread count "
        "(CPU; not promised on CUDA)",
        ge=0,
        le=2**32 - 1,
    )
    log_interval: int = knob(
        200, "steps between two log lines outside a terminal", ge=1, le=1_000_000_000
    )
    launcher: Text = knob(
        "python",
        "starts the train stage; several GPUs: torchrun --standalone --nproc-per-node=8 "
        "(docs/speed.md)",
        "a command, such as python",
    )
    checkpoint_minutes: Number = knob(
        5, "of training between two checkpoints; each epoch ends with one too", gt=0, le=1_000_000
    )
    checkpoint_dir: Text = knob(
        "auto",
        "where checkpoints lie; auto: .storyflower/checkpoints; or a folder, such as one in Drive",
        "auto or a folder",
    )

    def decisive(self) -> dict[str, Any]:
        """The params that can change a result: all except those in WITHOUT_EFFECT."""
        return self.model_dump(exclude=set(WITHOUT_EFFECT))

    def resolved(self, card: Mapping[str, Any], rows: int = 0) -> "Params":
        """These params with each "auto" replaced by the value on an encoder's card.

        With so many `rows` of Training, num_epochs: auto means fewer passes where the card's would
        take more than its most_steps updates, but LEAST_EPOCHS at least. Raises InputError as
        `agree` does.
        """
        auto = {key: card[key] for key in ON_THE_CARD if getattr(self, key) == "auto"}
        params = self.model_copy(update=auto)
        if "num_epochs" in auto and rows and card.get("most_steps"):
            passes = card["most_steps"] // math.ceil(rows / params.batch_size)
            fewer = min(params.num_epochs, max(passes, LEAST_EPOCHS))
            params = params.model_copy(update={"num_epochs": fewer})
        params.agree("params")
        return params

    def agree(self, where: str) -> None:
        """Raise InputError if two of these params exclude each other; an "auto" is not judged."""
        choice = "keep: best" if self.keep == "best" else "patience" if self.patience else ""
        if choice and self.dev_share == 0:
            raise InputError(f"{where}: {choice} needs a dev part; set dev_share, such as 0.1")
        if choice and self.average_last > 1:
            other = "keep: last" if self.keep == "best" else "patience: 0"
            raise InputError(
                f"{where}: average_last {self.average_last} and {choice} exclude each other; set "
                f"average_last: 1 or {other}"
            )
        for key, limit in (("micro_batch", "batch_size"), ("average_last", "num_epochs")):
            value, most = getattr(self, key), getattr(self, limit)
            if isinstance(value, int) and isinstance(most, int) and value > most:
                raise InputError(
                    f"{where}: {key} {value} is above {limit}, which is {most}; lower {key}"
                )

    @classmethod
    def load(cls, path: Path = Path("params.yaml")) -> "Params":
        """Read and check a params file; raises InputError as `check` does."""
        return cls.check(read_yaml(path, "run this in the repository's root"), where=str(path))

    @classmethod
    def check(cls, raw: dict[str, Any], where: str = "params") -> Self:
        """As Strict.check; raises InputError also as `agree` does."""
        params = super().check(raw, where)
        params.agree(where)
        return params


def rule(field: dict[str, Any]) -> str:
    """What a value must be, in words, from the JSON schema of its field."""
    if "rule" in field:
        return field["rule"]
    if "anyOf" in field:
        return " or ".join(rule(way) for way in field["anyOf"] if way != {"type": "null"})
    if "const" in field:
        return field["const"]
    if "enum" in field:
        return f"one of {', '.join(field['enum'])}"
    if field["type"] == "boolean":
        return "true or false"
    return f"a {'whole ' * (field['type'] == 'integer')}number in {interval(field)}"


def interval(field: dict[str, Any]) -> str:
    """The range of a number, such as [0, 1), from the JSON schema of its field."""
    low = f"[{field['minimum']}" if "minimum" in field else f"({field['exclusiveMinimum']}"
    if "maximum" in field:
        return f"{low}, {field['maximum']}]"
    return f"{low}, {field.get('exclusiveMaximum', 'inf')})"
