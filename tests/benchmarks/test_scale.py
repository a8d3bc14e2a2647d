"""The benchmark of many rows, at toy size, and what keeps its memory bounded."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import scale
from storyflower.common.errors import InputError
from storyflower.evaluate import baseline
from storyflower.ingest import aihub, ingest
from storyflower.interim import dialogues
from tests.support import ROOT, command


def table_of(out: str) -> dict[str, tuple[float, int]]:
    """stage → (seconds, MB)"""
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    return {stage: (float(seconds), int(mb)) for stage, seconds, mb in rows[2:]}


@pytest.fixture(scope="module", autouse=True)
def sample_read_once() -> Iterator[None]:
    """The sample corpus, whose sentences every repository of this file is made of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "sample_sentences", functools.cache(scale.sample_sentences))
        yield


@pytest.mark.slow
def test_every_stage_at_toy_size(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.scale", "--rows", "1000", "--folder", str(tmp_path)]
    table = table_of(command(ROOT, *words))
    assert list(table) == list(scale.COMMANDS)
    for seconds, mb in table.values():
        assert seconds > 0 and 0 < mb < 1000
    report = json.loads((tmp_path / "reports/ingest.json").read_text(encoding="utf-8"))
    assert {name: part["kept"] for name, part in report["splits"].items()} == {
        "Training": 900,
        "Validation": 100,
    }
    assert report["splits"]["Training"]["repeated_texts"] == 18
    assert report["splits"]["Validation"]["repeated_texts"] == 0
    assert report["validation_texts_also_in_training"] == 2
    assert len(report["splits"]["Training"]["labels"]) == 6
    metrics = json.loads((tmp_path / "reports/metrics.json").read_text(encoding="utf-8"))
    assert metrics["rows"] == 100


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_both_formats_hold_the_same_dialogues(tmp_path: Path, suffix: str) -> None:
    scale.make_repository(tmp_path, 600, suffix)
    table = tmp_path / "dialogues.parquet"
    settings = {"turns": 2, "target": "major", "max_dropped": 0.0}
    ingest.ingest(tmp_path / "data/scale", table, tmp_path / "ingest.json", **settings)
    found = pq.read_table(table, columns=["split", "text", "label"]).to_pylist()
    assert len(found) == 600
    sentences = scale.sample_sentences()
    expected = json.loads(scale.line_of(7, sentences, "jsonl"))
    turns = expected["talk"]["content"]
    label, _ = aihub.EMOTIONS[expected["profile"]["emotion"]["type"]]
    text = f"{turns['HS01']} {turns['HS02']}"
    assert found[7] == {"split": "Training", "text": text, "label": label}
    assert {**found[540], "split": ""} == {**found[0], "split": ""}  # one of Training's
    params = yaml.safe_load((tmp_path / "params.yaml").read_text(encoding="utf-8"))
    assert params["corpus"] == "scale"


def test_a_stage_over_the_limit_or_that_fails_is_an_error(tmp_path: Path, monkeypatch) -> None:
    scale.make_repository(tmp_path, 600, "csv")
    monkeypatch.setattr(scale, "LIMIT", 1_000_000)
    with pytest.raises(InputError, match="ingest: .* bytes of anonymous memory; limit 1,000,000"):
        scale.measure(tmp_path, ["ingest"])
    (tmp_path / "data/interim/dialogues.parquet").unlink()
    with pytest.raises(InputError, match=r"stages\.labels"):
        scale.measure(tmp_path, ["labels"])


def test_anonymous_memory_is_told_from_mapped(tmp_path: Path) -> None:
    """A file of 64 MB that is read through a map, then 64 MB of zeros made and written to."""
    (tmp_path / "zeros").write_bytes(bytes(64 * 2**20))
    code = """if True:
        import mmap, sys
        with open("zeros", "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        sum(mapped[::4096])
        print("mapped", flush=True); sys.stdin.readline()
        made = bytearray(b"1") * (64 * 2**20)
        print("made", flush=True); sys.stdin.readline()
    """
    words = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, cwd=tmp_path, text=True, **pipes) as process:
        assert process.stdout.readline() == "mapped\n"
        mapped = scale.anonymous(process.pid)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "made\n"
        made = scale.anonymous(process.pid)
        process.stdin.close()
    assert mapped < 32 * 2**20
    assert 64 * 2**20 <= made - mapped < 72 * 2**20
    assert scale.anonymous(process.pid) == 0


def test_reading_the_table_keeps_none_of_it(tmp_path: Path) -> None:
    """40 MB that do not compress, in 20 row groups; Arrow would keep all that it has read."""
    path = tmp_path / "dialogues.parquet"
    rows = dialogues.ROWS
    with pq.ParquetWriter(path, dialogues.SCHEMA) as writer:
        for _ in range(20):
            noise = os.urandom(64 * rows).hex()
            columns = {
                "split": ["Training"] * rows,
                "row": range(rows),
                "text": [noise[128 * row : 128 * (row + 1)] for row in range(rows)],
                "label": ["기쁨"] * rows,
                "fine": [None] * rows,
                "file": ["표본.csv"] * rows,
            }
            writer.write_table(pa.table(columns, schema=dialogues.SCHEMA))
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in dialogues.batches(path, ["text"])]
    assert len(held) == 20
    assert 1e6 < max(held) < 12e6


@settings(max_examples=25, deadline=None)
@given(training=st.integers(0, 40_000), held_out=st.integers(0, 3), every=st.integers(1, 40_000))
def test_every_nth_text(tmp_path_factory, training: int, held_out: int, every: int) -> None:
    """Wherever the blocks end in which the table is read."""
    path = tmp_path_factory.mktemp("table") / "dialogues.parquet"
    count = training + held_out
    columns = {
        "split": ["Training"] * training + ["Validation"] * held_out,
        "row": range(count),
        "text": [str(number) for number in range(count)],
        "label": ["기쁨"] * count,
        "fine": [None] * count,
        "file": ["표본.csv"] * count,
    }
    pq.write_table(pa.table(columns, schema=dialogues.SCHEMA), path)
    found = list(dialogues.texts(path, "Training", every))
    assert found == columns["text"][:training:every]
    assert list(dialogues.texts(path, "Validation")) == columns["text"][training:]


def test_validation_texts_are_classified_block_by_block(interim: Path, monkeypatch) -> None:
    table = interim / "dialogues.parquet"
    train = list(dialogues.texts(table, "Training"))
    labels = np.arange(len(train)) % 3
    arguments = (train, labels, list(dialogues.texts(table, "Validation")), 3)
    at_once = baseline.tfidf_logistic_regression(*arguments)
    monkeypatch.setattr(baseline, "BLOCK", 7)
    assert np.array_equal(baseline.tfidf_logistic_regression(*arguments), at_once)
    assert at_once.shape == (24, 3)
