"""A card → a verified encoder folder with its tokenizer.

Enters: a card, encoders/<name>.yaml, and the table of dialogues. Leaves: a folder in the
from_pretrained format with the tokenizer's files and card.json. Two kinds of card: `scratch` makes
a SentencePiece vocabulary from the Training texts and a small BERT with random weights; `path`
takes a from_pretrained folder beside the card. Given up: code that comes with a checkpoint; it is
never run.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from storyflower import dialogues
from storyflower.errors import InputError
from storyflower.tokenizer import TOKENIZER_FILES, basic_tokenize, load_tokenizer

SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")  # KoBERT's ids 0..4
KINDS = ("scratch", "path")
TOKENIZERS = ("sentencepiece", "wordpiece")
PRETOKENIZE = ("bert", "none")
SHAPE = ("vocab_size", "layers", "hidden_size", "heads", "intermediate_size")
MAX_SENTENCES = 500_000  # texts that the SentencePiece trainer sees; more change little


@dataclass(frozen=True)
class Card:
    """What a card says. Keys that its kind does not use are None."""

    kind: str  # scratch or path
    tokenizer: str  # sentencepiece (spiece.model) or wordpiece (vocab.txt)
    learning_rate: float  # the peak rate that learning_rate: auto means
    license: str  # SPDX name, or "unknown"
    optimizer: str = "adamw"  # what optimizer: auto means: adamw or notebook
    pretokenize: str | None = None  # sentencepiece: bert (the notebook's way) or none
    path: str | None = None  # kind path: a folder under encoders/
    # Kind scratch: the shape
    vocab_size: int | None = None  # pieces, at most
    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    intermediate_size: int | None = None

    @classmethod
    def load(cls, file: Path) -> "Card":
        """Read and check a card; raises InputError naming the file, the key and the value."""
        try:
            raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            names = ", ".join(sorted(card.stem for card in file.parent.glob("*.yaml")))
            raise InputError(f"{file}: no such encoder card; there are {names}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(
                f"{file}: not readable as YAML: {' '.join(str(error).split())}"
            ) from None
        if not isinstance(raw, dict):
            raise InputError(f"{file}: expected 'key: value' lines")
        if raw.get("kind") not in KINDS:
            raise InputError(
                f"{file}: kind must be one of {', '.join(KINDS)}, got {raw.get('kind')!r}"
            )
        scratch = raw["kind"] == "scratch"
        needed = {"kind", "tokenizer", "learning_rate", "license"}
        needed |= set(SHAPE) if scratch else {"path"}
        needed |= {"pretokenize"} if raw.get("tokenizer") == "sentencepiece" else set()
        if missing := sorted(needed - raw.keys()):
            raise InputError(f"{file}: key {missing[0]!r} is missing")
        if unknown := sorted(str(key) for key in raw.keys() - needed):
            known = ", ".join(field.name for field in fields(cls) if field.name in needed)
            raise InputError(f"{file}: unknown key {unknown[0]!r}; this kind knows {known}")

        def need(key: str, good: bool, rule: str) -> None:
            if not good:
                raise InputError(f"{file}: {key} must be {rule}, got {raw[key]!r}")

        need("tokenizer", raw["tokenizer"] in TOKENIZERS, "one of " + ", ".join(TOKENIZERS))
        if "pretokenize" in needed:
            need(
                "pretokenize", raw["pretokenize"] in PRETOKENIZE, "one of " + ", ".join(PRETOKENIZE)
            )
        need("license", isinstance(raw["license"], str), "text")
        try:
            # YAML 1.1 reads 5e-5 as text.
            rate = raw["learning_rate"] = float(raw["learning_rate"])
        except (TypeError, ValueError):
            rate = 0.0
        need("learning_rate", 0 < rate <= 1, "a number in (0, 1]")
        if scratch:
            need("tokenizer", raw["tokenizer"] == "sentencepiece", "sentencepiece for kind scratch")
            for key in SHAPE:
                good = isinstance(raw[key], int) and not isinstance(raw[key], bool) and raw[key] > 0
                need(key, good, "a whole number above 0")
            need("hidden_size", raw["hidden_size"] % raw["heads"] == 0, "a multiple of heads")
            need("vocab_size", raw["vocab_size"] >= 16, "at least 16")
        else:
            inside = isinstance(raw["path"], str) and ".." not in Path(raw["path"]).parts
            # DVC watches encoders/, so a folder elsewhere could change unseen.
            inside = inside and not Path(raw["path"]).is_absolute()
            need("path", inside, "a folder beside the card (a link to a folder elsewhere will do)")
        return cls(**raw)


def prepare(card_file: Path, table: Path, output: Path, *, seed: int) -> Card:
    """Make, or take over and verify, the encoder that a card names; write it to `output`.

    Raises InputError when the card, the folder it names, or their fit is wrong.
    """
    card = Card.load(card_file)
    output.mkdir(parents=True, exist_ok=True)
    document = {"name": card_file.stem, **asdict(card)}
    (output / "card.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if card.kind == "scratch":
        train_vocabulary(card, table, output / "spiece.model", seed=seed)
        draw_weights(card, output, seed=seed)
    else:
        take_over(card_file.parent / str(card.path), output)
    verify(output)
    return card


def train_vocabulary(card: Card, table: Path, output: Path, *, seed: int) -> None:
    """Train a SentencePiece unigram model on the Training texts, KoBERT's special pieces first."""
    import sentencepiece

    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_texts(table, card.pretokenize),
            model_prefix=str(output.with_suffix("")),
            model_type="unigram",
            vocab_size=card.vocab_size,
            hard_vocab_limit=False,  # a small corpus does not have that many pieces
            unk_id=0,
            pad_id=1,
            bos_id=2,
            eos_id=3,
            unk_piece=SPECIAL[0],
            pad_piece=SPECIAL[1],
            bos_piece=SPECIAL[2],
            eos_piece=SPECIAL[3],
            control_symbols=SPECIAL[4],
            input_sentence_size=MAX_SENTENCES,
            shuffle_input_sentence=True,
            num_threads=1,  # the sums, and so the pieces, depend on the number of threads
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"{table}: too little text for a vocabulary ({' '.join(str(error).split())[-120:]})"
        ) from None
    output.with_suffix(".vocab").unlink(missing_ok=True)


def training_texts(table: Path, pretokenize: str | None) -> Iterator[str]:
    for split, batch in dialogues.batches(table, ["text"]):
        if split == "Training":
            for text in batch.column("text").to_pylist():
                # The pieces are for words as the tokenizer will cut them.
                yield " ".join(basic_tokenize(text)) if pretokenize == "bert" else text


def draw_weights(card: Card, output: Path, *, seed: int) -> None:
    """Write a randomly initialised BERT of the card's shape."""
    import torch
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=load_tokenizer(output).vocab_size,
        num_hidden_layers=card.layers,
        hidden_size=card.hidden_size,
        num_attention_heads=card.heads,
        intermediate_size=card.intermediate_size,
        pad_token_id=SPECIAL.index("[PAD]"),
    )
    BertModel(config).save_pretrained(output)


def take_over(folder: Path, output: Path) -> None:
    """Copy a from_pretrained folder's tokenizer and store its weights as float32 safetensors."""
    import torch
    from transformers import AutoModel

    if not folder.is_dir():
        raise InputError(f"{folder}: no such encoder folder")
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)
    # A checkpoint with another head reports every weight it drops; the encoder's are checked below.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        model, loading = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for a folder that is not one
        raise InputError(f"{folder}: not a from_pretrained folder: {first_line(error)}") from None
    # A checkpoint trained without a pooler gets a new one; anything else missing is damage.
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(f"{folder}: the weights lack {missing[0]} and {len(missing) - 1} more")
    model.save_pretrained(output)


def verify(folder: Path) -> None:
    """Check that vocabulary and embedding belong together; raises InputError."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(folder)
    rows = config["vocab_size"]
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"{folder}: {tokenizer.vocab_size} pieces, but {rows} rows in the embedding"
        )
    if tokenizer.pad_id != config.get("pad_token_id"):
        raise InputError(
            f"{folder}: [PAD] is id {tokenizer.pad_id} in the vocabulary, "
            f"{config.get('pad_token_id')} in config.json"
        )


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
