"""How fast: our loop beside the notebook's and the Hugging Face Trainer's, on this machine.

`python -m benchmarks.speed steps` times single steps of all loops in turn and writes
reports/bench.json; `epochs` runs a whole training of ours, KoBERT's shape, on dialogues of random
ids. Ratios are medians over rounds, with least and most; a loop's first step of a round is not
counted. Rounds go on while they fit into the time given, so a slow machine has fewer. Only tokens
that are no padding count as work done.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig
from transformers.utils import logging

from benchmarks.peers import CLASSES, HuggingFace, Notebook, Ours, Steps, classifier
from storyflower.common.errors import exit_with_line
from storyflower.common.files import read_yaml, write_json
from storyflower.common.params import Params
from storyflower.interim.tokens import TokenArrays
from storyflower.model.device import Placement, choose
from storyflower.train import fit
from storyflower.train.memory import keep_freed

KOBERT = {"vocab_size": 8002, "pad_token_id": 1, "max_position_embeddings": 512}
TOY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def random_table(rows: int, mean: float, width: int, seed: int) -> TokenArrays:
    """Dialogues of random ids; lengths about the corpus's: normal, cut off at 5 and `width`."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.normal(mean, mean * 0.36, rows).round(), 5, width).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, KOBERT["vocab_size"], offsets[-1]).astype(np.uint16)
    return TokenArrays(ids, offsets, rng.integers(0, CLASSES, rows))


def params_of(**values: Any) -> Params:
    """params.yaml with KoBERT's rate and some values changed."""
    shipped = read_yaml(Path("params.yaml"), "run this in the root")
    kobert = {"max_len": 64, "learning_rate": 5e-5, "optimizer": "adamw", "mask_rate": 0.0}
    return Params.check({**shipped, **kobert, **values})


def work_per_token(config: BertConfig) -> float:
    """Floating-point operations a token in a step: 6 for each weight in the layers' matrices."""
    h, f = config.hidden_size, config.intermediate_size
    return 6.0 * config.num_hidden_layers * (4 * h * h + 2 * h * f)


def work_share(config: BertConfig) -> float:
    """How much of that work is done: the last layer's, but for query, key and value, is not."""
    h, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    return 1 - (h * h + 2 * h * f) / (4 * h * h + 2 * h * f) / layers


def matrix_rate(tokens: int, config: BertConfig, placement: Placement, sync: Callable) -> float:
    """Floating-point operations a second of the layers' matrix products alone, in our precision."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    options = {"dtype": kinds[placement.precision], "device": placement.device}
    h, f = config.hidden_size, config.intermediate_size
    seconds = work = 0.0
    for rows, columns in ((3 * h, h), (h, h), (f, h), (h, f)):
        values = torch.randn(tokens, columns, **options)
        weight = torch.randn(rows, columns, **options)
        for _ in range(3):
            torch.nn.functional.linear(values, weight)
        times = []
        for _ in range(5):
            sync()
            started = time.perf_counter()
            torch.nn.functional.linear(values, weight)
            sync()
            times.append(time.perf_counter() - started)
        seconds += statistics.median(times)
        work += 2.0 * tokens * rows * columns
    return work / seconds


def rounds(least: int, seconds: float) -> Iterator[int]:
    """0, 1, ...: `least` of them, and more as long as one like those before ends in time."""
    started, turn = time.monotonic(), 0
    while turn < least or (time.monotonic() - started) * (turn + 1) / turn <= seconds:
        yield turn
        turn += 1


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """Every loop in turn, round after round; the content of bench.json."""
    placement = choose(options.device, options.precision)
    config = BertConfig(**KOBERT, **(TOY if options.toy else {}))
    # num_epochs 1: fit() is called once a round, on that round's batches.
    params = params_of(num_epochs=1, batch_size=options.batch)
    counted = options.steps
    batches = list(np.arange((counted + 1) * options.batch).reshape(counted + 1, -1))
    with tempfile.TemporaryDirectory() as folder:
        loops: dict[str, Any] = {
            "ours": Ours(config, params, 0.5, placement),
            "trainer": HuggingFace(config, params, 0.5, placement, folder),
            "trainer_best": HuggingFace(
                config, params, 0.5, placement, folder, grouped=True, compiled=options.compile
            ),
            "notebook": Notebook(config, params, 0.5, placement.device),
        }
        rates: dict[str, list[float]] = {name: [] for name in loops}
        shares, limits, means = [], [], []
        for turn in rounds(options.rounds, 60 * options.minutes):
            table = random_table(options.batch * (counted + 1), 35.7, 64, seed=turn)
            means.append(float(table.lengths.mean()))
            tokens = int(means[-1] * options.batch)
            gemm = matrix_rate(tokens, config, placement, sync(placement))
            plain = gemm  # measured twice, one rate would differ from itself by the noise
            if placement.precision != "fp32":
                plain = matrix_rate(
                    tokens, config, replace(placement, precision="fp32"), sync(placement)
                )
            for name, loop in loops.items():
                rates[name].append(tokens_a_second(loop.run(table, batches, sync(placement))))
                rate = rates[name][-1] / means[-1]
                say(f"round {turn + 1}: {name:21} {rate:8.2f} dialogues/s")
            shares.append(rates["ours"][-1] * work_per_token(config) / gemm)
            limits.append(gemm / plain * params.max_len / means[-1] / work_share(config))
    mean = statistics.mean(means)
    ratios = {
        f"ratio_vs_{name}": spread([a / b for a, b in zip(rates["ours"], rates[name], strict=True)])
        for name in rates
        if name != "ours"
    }
    return {
        "machine": machine(placement),
        "shape": {**(TOY if options.toy else {}), **KOBERT},
        "batch": options.batch,
        "mean_tokens": mean,
        "rounds": len(means),
        "steps_a_round": counted,
        "dialogues_a_second": {
            name: spread([value / mean for value in values]) for name, values in rates.items()
        },
        **{name: values["median"] for name, values in ratios.items()},
        "share_of_gemm": statistics.median(shares),
        # What ours would be if both loops used the matrix units equally well.
        "ratio_vs_notebook_at_equal_efficiency": statistics.median(limits),
        "spread": {
            **ratios,
            "share_of_gemm": spread(shares),
            "ratio_vs_notebook_at_equal_efficiency": spread(limits),
        },
    }


def tokens_a_second(measured: Steps) -> float:
    """Over a round's steps but the first, which allocates."""
    return sum(measured.tokens[1:]) / sum(measured.seconds[1:])


def scaling(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Tokens a second of our loop by batch, and by mean length at 64 dialogues a batch."""
    placement = choose(options.device, options.precision)
    config = BertConfig(**KOBERT, **(TOY if options.toy else {}))

    def rate(batch: int, mean: float) -> float:
        params = params_of(num_epochs=1, batch_size=batch, max_len=512)
        table = random_table(batch * 2, mean, int(mean * 2), seed=2)
        batches = list(np.arange(batch * 2).reshape(2, batch))
        return tokens_a_second(
            Ours(config, params, 0.5, placement).run(table, batches, sync(placement))
        )

    figures: dict[str, dict[str, float]] = {"by_batch": {}, "by_mean_tokens": {}}
    for batch in (8, 32, 128):
        figures["by_batch"][str(batch)] = rate(batch, 35.7)
        say(f"batch {batch}: {figures['by_batch'][str(batch)]:.0f} tokens/s")
    for mean in (16, 64, 128):
        figures["by_mean_tokens"][str(mean)] = rate(32, mean)
        say(f"{mean} tokens a dialogue: {figures['by_mean_tokens'][str(mean)]:.0f} tokens/s")
    return figures


def epochs(options: argparse.Namespace) -> dict[str, Any]:
    """A whole training of ours and where its time goes."""
    placement = choose(options.device, options.precision)
    config = BertConfig(**KOBERT, **(TOY if options.toy else {}))
    params = params_of(num_epochs=options.epochs, batch_size=options.batch)
    train = random_table(options.dialogues, 35.7, 64, seed=1)
    test = random_table(options.dialogues * 6640 // 51628 or 1, 35.7, 64, seed=2)
    network = classifier(config, 0.5)
    ends = [time.perf_counter()]
    state = fit.fit(
        network,
        train=train,
        test=test,
        params=params,
        placement=placement,
        on_epoch=lambda _: ends.append(time.perf_counter()),
    )
    wall, trained = ends[-1] - ends[0], [row.seconds for row in state.history]
    usual = statistics.median(trained)
    figures = {
        "machine": machine(placement),
        "dialogues": len(train),
        "epochs": options.epochs,
        "batch": options.batch,
        "wall_seconds": wall,
        "first_epoch_extra_seconds": trained[0] - usual,  # graphs, allocations, kernel choice
        "steps_seconds": usual * len(trained),
        "evaluation_seconds": wall - sum(trained),
        "dialogues_a_second": len(train) / usual,
    }
    tokens = float(train.lengths.mean())  # a dialogue
    gemm = matrix_rate(int(tokens * options.batch), config, placement, sync(placement))
    figures["share_of_gemm"] = (
        figures["dialogues_a_second"] * tokens * work_per_token(config) / gemm
    )
    if placement.device.type == "cuda":
        figures["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def machine(placement: Placement) -> dict[str, Any]:
    """What the numbers belong to."""
    names = [
        line.split(":", 1)[1].strip()
        for line in read("/proc/cpuinfo").splitlines()
        if line.startswith("model name")
    ]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "placement": str(placement),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
        "commit": commit.stdout.strip(),
    }


def read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def sync(placement: Placement) -> Callable[[], None]:
    return placement.synchronize


def say(line: str) -> None:
    print(line, flush=True)


def table_of(figures: dict[str, Any]) -> str:
    """bench.json's steps as a Markdown table."""
    lines = ["| loop | dialogues/s | ours is faster by |", "| --- | --- | --- |"]
    for name, rate in figures["dialogues_a_second"].items():
        ratio = figures["spread"].get(f"ratio_vs_{name}")
        times = "" if ratio is None else "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
        lines.append(f"| {name} | {rate['median']:.2f} | {times} |")
    share = figures["spread"]["share_of_gemm"]
    lines.append(
        f"\nshare of the measured matrix rate: {share['median']:.0%} "
        f"({share['min']:.0%} to {share['max']:.0%})"
    )
    limit = figures["spread"]["ratio_vs_notebook_at_equal_efficiency"]
    lines.append(
        "at equal efficiency this machine would give {median:.2f} times the notebook "
        "({min:.2f} to {max:.2f})".format(**limit)
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["steps", "epochs"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="at least")
    parser.add_argument("--minutes", type=float, default=9, help="more rounds while they fit in")
    parser.add_argument("--steps", type=int, default=1, help="counted steps a round")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--dialogues", type=int, default=51628)
    parser.add_argument("--compile", action="store_true", help="torch_compile for the best Trainer")
    parser.add_argument("--no-scaling", action="store_true")
    parser.add_argument("--toy", action="store_true", help="a tiny encoder, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("reports/bench.json"))
    options = parser.parse_args()
    keep_freed()  # as the train stage does; here all loops have it, for they share the process
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.what == "epochs":
        print(json.dumps(epochs(options), indent=2, ensure_ascii=False))
        return
    figures = steps(options)
    if not options.no_scaling:
        figures["scaling"] = scaling(options)
    write_json(figures, options.output)
    print(table_of(figures))


if __name__ == "__main__":
    exit_with_line(main)
