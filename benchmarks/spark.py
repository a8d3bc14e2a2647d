"""Dialogues a second through Spark on this machine, and what a billion of them take on a cluster.

    make repro && make test-spark && .venv-spark/bin/python -m benchmarks.spark

In: the classifier and the dialogues that the pipeline has written here; the dialogues are repeated
to the number of rows.
Out: one line for the program itself, without Spark, on one core; one for Spark. The time of Spark
begins when its workers have loaded the classifier, and ends when the Parquet is written.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from storyflower import registry
from storyflower.common.errors import InputError, exit_with_line
from storyflower.model.folder import digest, load_classifier
from storyflower.predict import Classifier
from storyflower.spark import check_installed, check_model, score_in, session
from storyflower.tracking import mlflow

TEXTS = Path("data/interim/dialogues.parquet")
WORKERS, DIARIES = 100, 1_000_000_000
SEED = 42


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spark")
    parser.add_argument("--model", type=Path, default=Path("models/classifier"), metavar="FOLDER")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    check_installed()
    mlflow.set_up()
    if not TEXTS.exists():
        raise InputError(f"{TEXTS}: not found; 'make repro' makes it")
    table = pq.read_table(TEXTS, columns=["text"])
    chosen = np.random.default_rng(SEED).integers(0, len(table), options.rows)
    table = table.take(chosen)

    torch.set_num_threads(1)
    classifier = Classifier.load(options.model)
    few = table["text"][: max(options.rows // 10, 1)].to_pylist()
    classifier.predict(few[:100])
    start = time.perf_counter()
    classifier.predict(few)
    print(f"no Spark, 1 core: {len(few) / (time.perf_counter() - start):,.0f} dialogues/s")

    with tempfile.TemporaryDirectory(prefix="storyflower-bench-") as work:
        model, source, output = (str(Path(work, name)) for name in ("model", "in", "out"))
        registry.save_pyfunc(
            Path(model),
            model=options.model,
            classifier=digest(options.model),
            labels=load_classifier(options.model)[1]["labels"],
        )
        Path(source).mkdir()
        share = -(-options.rows // (4 * options.cores))  # four tasks a core
        for number, first in enumerate(range(0, options.rows, share)):
            pq.write_table(table.slice(first, share), Path(source, f"{number}.parquet"))
        check_model(model)
        common = {"model": model, "source": source, "column": "text"}
        # A file a task, and no task for a few files together
        settings = {"spark.sql.files.openCostInBytes": str(2**27)}
        with session(f"local[{options.cores}]", settings) as spark:
            # Enough tasks for every worker to load the classifier, on few rows
            first = {**common, "source": f"{source}/0.parquet"}
            score_in(spark, output=f"{output}-0", partitions=8 * options.cores, **first)
            start = time.perf_counter()
            score_in(spark, output=output, **common)
            rate = options.rows / (time.perf_counter() - start)
    hours = DIARIES / rate / WORKERS / 3600
    print(f"Spark, {options.cores} cores: {rate:,.0f} dialogues/s")
    print(
        f"{DIARIES:,} diaries / {rate:,.0f} a second / {WORKERS} workers of {options.cores} cores "
        f"= {hours:,.1f} hours"
    )


if __name__ == "__main__":
    exit_with_line(main)
