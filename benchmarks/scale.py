"""How much memory and time a corpus of many rows takes, stage by stage.

    make bench-scale ROWS=2000000

In: a number of rows.
Out: a table with one line a stage: seconds, and the peak of its anonymous memory (what no file
backs; memory-mapped files are not counted), looked at every 20 ms. Ends with an error when a stage
fails or takes over 1 GB.
Not supported: systems without /proc.

The corpus is put together from the sample's sentences and a number, so every text but one in 50 is
its own, and so are its words. The encoder is tiny, with random weights. `epoch` reads all batches
of an epoch in training's order; `train` is ended after 100 steps, and `evaluate` scores a
classifier that has learnt nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from pretrain.texts import NO_LABEL, Texts
from pretrain.train import Recipe, pretrain
from storyflower.common.errors import InputError, exit_with_line
from storyflower.common.params import Params
from storyflower.ingest.aihub import EMOTIONS, MAJOR, TURNS
from storyflower.ingest.files import find_files
from storyflower.ingest.ingest import open_file
from storyflower.interim.dialogues import SPLITS
from storyflower.model.batch import make_batch
from storyflower.sheets.sheet import cell_text, column_of

ROOT = Path(__file__).parents[1]
LIMIT = 1_000_000_000  # bytes of anonymous memory that a process may take
PAUSE = 0.02  # seconds between two looks at a process
HELD_OUT = 10  # one row in so many is Validation's
REPEATED = 50  # one row in so many has a text that came before
STEPS = 100  # of training
# A model that scores millions of rows in minutes, and is good for nothing.
CARD = """\
kind: path
source: scale
tokenizer: sentencepiece
pretokenize: bert
learning_rate: 1.0e-3
license: CC0-1.0
"""
SHAPE = Recipe(steps=0, pieces=8000, layers=1, hidden=32, heads=2)
# fp32: with bf16, oneDNN keeps up to 0.9 GB of compiled kernels, whatever the number of rows.
PARAMS = {"corpus": "scale", "encoder": "scale", "num_epochs": 1, "log_interval": STEPS}
PARAMS |= {"precision": "fp32", "batch_size": 64, "max_len": 64}
TOKENS, LABELS = Path("data/interim/tokens"), Path("data/interim/labels.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--format", choices=["csv", "jsonl"], default="csv")
    parser.add_argument("--folder", type=Path, help="work here, and keep what is made")
    parser.add_argument("--stages", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        raise InputError("anonymous memory is read from /proc, which this system lacks")
    if options.rows < HELD_OUT * REPEATED:
        raise InputError(f"--rows must be at least {HELD_OUT * REPEATED}, got {options.rows}")
    with tempfile.TemporaryDirectory(prefix="storyflower-scale-") as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "params.yaml").exists():
            make_repository(folder, options.rows, options.format)
        measure(folder, options.stages)


def make_repository(folder: Path, rows: int, suffix: str) -> None:
    """The corpus, an encoder card and params.yaml, the latter last: where it is, all is."""
    started = time.perf_counter()
    for name in ("data/scale", "encoders"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sentences = sample_sentences()
    texts = Texts(label_of=dict.fromkeys(sentences, NO_LABEL))
    pretrain(texts, SHAPE, folder / "encoders/scale")
    (folder / "encoders/scale.yaml").write_text(CARD, encoding="utf-8")
    held_out = rows // HELD_OUT
    size = 0
    for split, count in zip(SPLITS, (rows - held_out, held_out), strict=True):
        path = folder / f"data/scale/{split}.{suffix}"
        with path.open("w", encoding="utf-8", newline="") as file:
            if suffix == "csv":
                file.write(f"{MAJOR},{TURNS[0]},{TURNS[1]}\n")
            for number in text_numbers(split, count, rows):
                file.write(line_of(number, sentences, suffix))
        size += path.stat().st_size
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    (folder / "params.yaml").write_text(yaml.safe_dump({**shipped, **PARAMS}), encoding="utf-8")
    seconds = time.perf_counter() - started
    print(f"{rows:,} rows, {size / 1e6:,.0f} MB of {suffix}, written in {seconds:.0f} s\n")


def sample_sentences() -> list[str]:
    """사람문장1 and 사람문장2 of the sample's Training file."""
    table = open_file(find_files(ROOT / "data/sample")["Training"][0], set(TURNS[:2]))
    columns = [column_of(table, name) for name in TURNS[:2]]
    cells = (
        cell_text(table, number, column, row) for number, row in table.rows for column in columns
    )
    return [text for text in cells if text]


def text_numbers(split: str, count: int, rows: int) -> Iterator[int]:
    """Which text each row has. One in REPEATED is the row before's, or one of Training's."""
    for row in range(count):
        if split == "Training":
            yield row - (row % REPEATED == 1)
        else:
            yield row if row % REPEATED == 0 else rows + row


def line_of(number: int, sentences: list[str], suffix: str) -> str:
    """Two sentences and the number, as a line of the file."""
    # Spread by a multiplication, or every 100th text would have one of few sentences.
    spread = number * 0x9E3779B97F4A7C15 % 2**64
    code = list(EMOTIONS)[(spread >> 60) % 6 * 10]
    first = sentences[(spread >> 40) % len(sentences)]
    second = f"{sentences[(spread >> 20) % len(sentences)]} {number}"
    if suffix == "csv":
        quoted = (text.replace('"', '""') for text in (first, second))
        return f'{EMOTIONS[code][0]},"{next(quoted)}","{next(quoted)}"\n'
    item = {
        "profile": {"emotion": {"type": code}},
        "talk": {"content": {"HS01": first, "HS02": second}},
    }
    return json.dumps(item, ensure_ascii=False) + "\n"


def measure(folder: Path, stages: list[str]) -> None:
    """Run the stages and print the table; raises InputError over LIMIT."""
    print("| stage | seconds | anonymous memory, MB |\n| --- | --- | --- |", flush=True)
    peaks = {}
    for stage in stages:
        if stage == "evaluate":
            run(folder, "benchmarks.scale", "classifier")
        started = time.perf_counter()
        peaks[stage] = run(folder, *COMMANDS[stage])
        seconds = time.perf_counter() - started
        print(f"| {stage} | {seconds:.1f} | {peaks[stage] / 1e6:.0f} |", flush=True)
    for stage, peak in peaks.items():
        if peak > LIMIT:
            raise InputError(f"{stage}: {peak:,} bytes of anonymous memory; limit {LIMIT:,}")


def run(folder: Path, *words: str) -> int:
    """Run `python -m words` in the folder; return its peak of anonymous memory in bytes.

    Raises InputError, with the last line that it said, when it fails.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    log = folder / "log.txt"
    peak = 0
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=folder,
            env={**kept, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=output,
            stderr=output,
        )
        try:
            while process.poll() is None:
                peak = max(peak, anonymous(process.pid))
                if words[0] == "stages.train" and f"step {STEPS}/".encode() in log.read_bytes():
                    return peak
                time.sleep(PAUSE)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        output = log.read_text(encoding="utf-8", errors="replace").strip()
        raise InputError(f"{' '.join(words)}: {output[-500:] or process.returncode}")
    return peak


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process, in RAM or swapped out; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    fields = (line.split() for line in status.splitlines())
    return sum(int(f[1]) * 1024 for f in fields if f[0] in ("RssAnon:", "VmSwap:"))


def iterate_epoch() -> None:
    """Read every batch of an epoch; raises InputError unless each token came once."""
    from storyflower.interim.tokens import TokenArrays
    from storyflower.train.fit import epoch_order

    params = Params.load()
    table = TokenArrays.load(TOKENS, "Training")
    order = epoch_order(len(table), 0, params)
    total = 0
    for start in range(0, len(order), params.batch_size):
        batch = make_batch(table, order[start : start + params.batch_size])
        real = int(batch.lengths[: len(batch.rows)].sum())  # what fills the batch up comes last
        total += int(batch.ids[:real].sum())
    if total != table.ids.sum(dtype="int64"):
        raise InputError("the batches of an epoch do not hold every token once")


def make_classifier() -> None:
    """What the train stage writes, untrained."""
    from storyflower.interim.history import Epoch, write_history
    from storyflower.interim.labels import LabelIndex
    from storyflower.model.folder import build_classifier, save_classifier
    from storyflower.tracking.record import new_record

    params = Params.load()
    index, encoder = LabelIndex.load(LABELS), Path("models/encoder")
    network = build_classifier(encoder, len(index), params.dr_rate)
    facts = {"params": params.model_dump()}
    save_classifier(network, Path("models/classifier"), encoder=encoder, labels=index, facts=facts)
    write_history([Epoch(1, 1.0, 0.5, 1.0, 0.5, 1.0, 1)], Path("reports/history.csv"))
    record = new_record(
        experiment="scale", params={}, tags={}, dataset=Path("data/interim/dialogues.parquet")
    )
    record.save(Path("reports/run.json"))


PARTS = {"epoch": iterate_epoch, "classifier": make_classifier}
COMMANDS = {
    stage: ("benchmarks.scale", stage) if stage in PARTS else (f"stages.{stage}",)
    for stage in ("ingest", "labels", "encoder", "tokenize", "epoch", "train", "evaluate")
}

if __name__ == "__main__":
    # A part of the benchmark in a process of its own, to be measured.
    exit_with_line(PARTS.get(sys.argv[1] if sys.argv[1:] else "", main))
