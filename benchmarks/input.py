"""How fast text comes in: our ingest beside pandas with openpyxl, our tokenizer beside gluonnlp.

In: the sample corpus's sentences, put together anew to as many dialogues as --rows says (a third
of AI Hub's), and encoders/seedling.
Out: two lines, and the key "input" of reports/bench.json. gluonnlp runs where `make conformance`
has installed it (.venv-original), on a quarter of the sentences.
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pandas

from storyflower.common.errors import InputError, exit_with_line
from storyflower.common.files import read_json, write_json
from storyflower.encoder import prepare
from storyflower.ingest import ingest
from storyflower.ingest.files import find_files
from storyflower.tokenizer.load import load_tokenizer

ORIGINAL = Path(".venv-original/bin/python")
TURNS = ("사람문장1", "사람문장2")
ROUNDS = 3


def make_workbooks(folder: Path, rows: int) -> list[str]:
    """A corpus of `rows` Training dialogues as xlsx; returns its texts, both turns joined."""
    (sample,) = find_files(Path("data/sample"))["Training"]
    table = pandas.read_excel(sample, engine="openpyxl")
    label = table["감정_대분류"].tolist()
    turns = [table[name].dropna().tolist() for name in TURNS]
    rng = random.Random(0)
    texts = []
    for split, count in (("Training", rows), ("Validation", rows // 8)):
        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet("Sheet1")
        sheet.append([None, "연령", "감정_대분류", "감정_소분류", *TURNS, "시스템문장1"])
        for number in range(1, count + 1):
            chosen = [rng.choice(turn) for turn in turns]
            if split == "Training":
                texts.append(" ".join(chosen))
            emotion = rng.choice(label)
            sheet.append([number, "청년", emotion, emotion, *chosen, "그랬군요. 더 말해 주세요."])
        book.save(folder / f"bench_{split}.xlsx")
    return texts


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def by_pandas(folder: Path) -> None:
    """The notebook's cells: read both files, join two turns, number the labels."""
    for split in ("Training", "Validation"):
        table = pandas.read_excel(folder / f"bench_{split}.xlsx", engine="openpyxl")
        table["text"] = table[TURNS[0]].astype(str) + " " + table[TURNS[1]].astype(str)
        table["label"] = table["감정_대분류"].map(
            {name: i for i, name in enumerate(table["감정_대분류"].unique())}
        )


def measure(rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepare.prepare(Path("encoders/seedling.yaml"), work / "encoder")
        tokenizer = load_tokenizer(work / "encoder")
        (work / "bench").mkdir()
        texts = make_workbooks(work / "bench", rows)
        table, report = work / "dialogues.parquet", work / "report.json"

        def ingest_all() -> None:
            ingest.ingest(work / "bench", table, report, turns=2, target="major", max_dropped=0)

        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(seconds_of(ingest_all))
            theirs.append(seconds_of(lambda: by_pandas(work / "bench")))
        figures: dict[str, Any] = {
            "rows": rows + rows // 8,
            "ingest_rows_a_second": (rows + rows // 8) / statistics.median(ours),
            "ratio_ingest_vs_pandas": ratio(theirs, ours),
        }

        times = [seconds_of(lambda: tokenizer.encode(texts, 64)) for _ in range(ROUNDS + 1)][1:]
        tokens = tokenizer.encode(texts, 64)
        figures["sentences"] = len(texts)
        figures["mean_tokens"] = len(tokens.ids) / len(texts)
        figures["tokenizer_sentences_a_second"] = len(texts) / statistics.median(times)
        figures["ratio_tokenizer_vs_gluonnlp"] = None
        if ORIGINAL.exists():
            part = texts[: max(1, len(texts) // 4)]
            (work / "texts.json").write_text(json.dumps(part), encoding="utf-8")
            script = "tests/original/tokenize_texts.py"
            words = [work / "encoder/spiece.model", work / "texts.json", work / "out.npz", "64"]
            slow, quick = [], []
            for _ in range(ROUNDS):
                done = subprocess.run(
                    [ORIGINAL, "-W", "ignore", script, *words],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    last = done.stderr.strip().rpartition("\n")[2]
                    raise InputError(f"{ORIGINAL} {script}: {last}")
                slow.append(float(done.stdout.split()[-1]))
                quick.append(seconds_of(lambda: tokenizer.encode(part, 64)))
            figures["ratio_tokenizer_vs_gluonnlp"] = ratio(slow, quick)
        return figures


def ratio(slow: list[float], quick: list[float]) -> dict[str, float]:
    """How many times faster the second is, round by round."""
    values = [a / b for a, b in zip(slow, quick, strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--output", type=Path, default=Path("reports/bench.json"))
    options = parser.parse_args()
    figures = measure(options.rows)
    document = read_json(options.output, missing={})
    write_json({**document, "input": figures}, options.output)
    ratio_text = "ours is {median:.1f} times as fast ({min:.1f} to {max:.1f})"
    print(f"ingest: {figures['ingest_rows_a_second']:,.0f} rows/s;", end=" ")
    print(f"beside pandas with openpyxl, {ratio_text.format(**figures['ratio_ingest_vs_pandas'])}")
    print(f"tokenizer: {figures['tokenizer_sentences_a_second']:,.0f} sentences/s", end=" ")
    print(f"of {figures['mean_tokens']:.1f} tokens;", end=" ")
    if figures["ratio_tokenizer_vs_gluonnlp"]:
        print(f"beside gluonnlp, {ratio_text.format(**figures['ratio_tokenizer_vs_gluonnlp'])}")
    else:
        print("gluonnlp is not here: `make conformance` installs it")


if __name__ == "__main__":
    exit_with_line(main)
