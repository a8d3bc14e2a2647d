"""Predictions: ours beside the transformers pipeline, torch beside onnxruntime, on this machine.

    python -m benchmarks.inference

In: nothing but the sample corpus, whose texts and words it takes.
Out: three tables, and the key "inference" of reports/bench.json: a sentence at a time (p50 and p99
in ms), many texts (texts a second, tokenizing included), and the seconds that a cold interpreter
takes for Classifier.load. The encoder has KoBERT's shape and random weights. All loops take the
same texts in turn, round after round, so that ratios survive a busy machine; the pipeline has the
best of its batch sizes in each round. Rows of onnxruntime need requirements-onnx.txt.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, pipeline
from transformers import BertTokenizerFast as BertTokenizer
from transformers.utils import logging

from benchmarks.random_encoders import wordpiece_vocabulary
from benchmarks.speed import KOBERT, TOY, machine, say, spread
from storyflower import Classifier, export
from storyflower.common.errors import InputError, exit_with_line
from storyflower.common.files import read_json, write_json
from storyflower.interim.labels import LabelIndex
from storyflower.model.classifier import EmotionClassifier
from storyflower.model.device import choose
from storyflower.model.folder import load_classifier, save_classifier
from storyflower.tokenizer.load import load_tokenizer

TOKENS = 20  # of the one sentence, [CLS] and [SEP] included
LABELS = ("기쁨", "당황", "분노", "불안", "상처", "슬픔")
PIPELINE_BATCHES = (1, 8, 32, 128)
COLD = """
import time
started = time.perf_counter()
from storyflower import Classifier
Classifier.load({folder!r})
print(time.perf_counter() - started)
"""


def write_models(folder: Path, texts: list[str], max_len: int, toy: bool) -> tuple[Path, Path]:
    """A classifier's folder, and the same weights as transformers' pipeline takes them."""
    pieces = wordpiece_vocabulary(texts, KOBERT["vocab_size"])[: KOBERT["vocab_size"]]
    torch.manual_seed(0)
    sizes = {**KOBERT, **(TOY if toy else {}), "vocab_size": len(pieces), "pad_token_id": 0}
    sizes["initializer_range"] = 0.1  # with the usual 0.02 every text gets the same answer
    network = EmotionClassifier(BertModel(BertConfig(**sizes)), len(LABELS), 0.1).eval()
    encoder, ours, theirs = folder / "encoder", folder / "ours", folder / "theirs"
    encoder.mkdir()
    (encoder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    settings = json.dumps({"do_lower_case": False, "tokenizer_class": "BertTokenizer"})
    (encoder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    write_json(
        {"name": "random", "tokenizer": "wordpiece", "pooling": "first"}, encoder / "card.json"
    )
    params = {"max_len": max_len, "dr_rate": 0.1, "turns": 2, "target": "major", "max_dropped": 0.0}
    save_classifier(
        network, ours, encoder=encoder, labels=LabelIndex(list(LABELS)), facts={"params": params}
    )
    names = dict(enumerate(LABELS))
    peer = BertForSequenceClassification(BertConfig(**sizes, id2label=names)).eval()
    peer.bert.load_state_dict(network.encoder.state_dict())
    peer.classifier.load_state_dict(network.linear.state_dict())
    peer.save_pretrained(theirs)
    BertTokenizer(vocab=str(encoder / "vocab.txt"), do_lower_case=False).save_pretrained(theirs)
    return ours, theirs


def peer(folder: Path, precision: str, max_len: int) -> Callable[[list[str], int], list]:
    """The transformers pipeline: (texts, batch size) → the probabilities of every class."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    classify = pipeline(
        "text-classification", model=str(folder), device="cpu", dtype=dtype, top_k=None
    )
    cut = {"truncation": True, "max_length": max_len}
    return lambda texts, batch: classify(texts, batch_size=batch, **cut)


def runtime(
    folder: Path, graph: str, max_len: int, threads: int
) -> Callable[[list[str]], np.ndarray]:
    """onnxruntime on the exported folder: texts → logits, float32 (texts, classes)."""
    session = export.open_session(folder / graph, threads)
    tokenizer = load_tokenizer(folder)
    return lambda texts: export.runtime_logits(session, export.encode(tokenizer, texts, max_len))


def runtimes(
    network: EmotionClassifier, ours: Path, folder: Path, max_len: int, threads: int
) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """onnxruntime in float32 and int8; none where it is not installed."""
    try:
        export.need_packages()
    except InputError as error:
        say(f"no rows of onnxruntime: {error}")
        return {}
    export.write_graph(network, ours / "model.onnx")
    export.quantize(ours / "model.onnx", ours / "model.int8.onnx")
    graphs = {"onnxruntime fp32": "model.onnx", "onnxruntime int8": "model.int8.onnx"}
    return {name: runtime(ours, graph, max_len, threads) for name, graph in graphs.items()}


def latency(
    loops: dict[str, Callable[[list[str]], Any]],
    sentence: str,
    times: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, float]]:
    """p50 and p99 in milliseconds of one sentence, all loops in turn."""
    taken: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(times + 3):
        for name, loop in loops.items():
            started = clock()
            loop([sentence])
            if turn >= 3:
                taken[name].append(1000 * (clock() - started))
    return {
        name: {"p50": float(np.percentile(ms, 50)), "p99": float(np.percentile(ms, 99))}
        for name, ms in taken.items()
    }


def bulk(
    loops: dict[str, Callable[[list[str]], Any]],
    peers: dict[str, Callable[[list[str], int], Any]],
    texts: list[str],
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Texts a second of every loop, round after round."""
    rates: dict[str, list[float]] = {name: [] for name in [*loops, *peers]}
    batches: dict[str, list[int]] = {name: [] for name in peers}

    def rate(work: Callable[[], Any]) -> float:
        started = clock()
        work()
        return len(texts) / (clock() - started)

    for turn in range(rounds):
        for name, loop in loops.items():
            rates[name].append(rate(lambda loop=loop: loop(texts)))
        for name, loop in peers.items():
            tried = {
                batch: rate(lambda loop=loop, batch=batch: loop(texts, batch))
                for batch in PIPELINE_BATCHES
            }
            best = max(tried, key=tried.get)
            rates[name].append(tried[best])
            batches[name].append(best)
        say(f"round {turn + 1}: " + ", ".join(f"{n} {r[-1]:.1f}" for n, r in rates.items()))
    against = {
        "ratio_fp32": ("ours fp32", "pipeline fp32"),
        "ratio_bf16": ("ours bf16", "pipeline bf16"),
        "ratio_bf16_vs_its_fp32": ("ours bf16", "pipeline fp32"),
    }
    return {
        "texts_a_second": {name: spread(values) for name, values in rates.items()},
        "pipeline_batch": {name: statistics.mode(values) for name, values in batches.items()},
        **{
            name: spread([a / b for a, b in zip(rates[one], rates[two], strict=True)])
            for name, (one, two) in against.items()
        },
    }


def cold(folder: Path, times: int) -> dict[str, float]:
    """Seconds of import and Classifier.load in new processes."""
    taken = []
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-c", COLD.format(folder=str(folder))],
            capture_output=True,
            text=True,
            check=True,
        )
        taken.append(float(done.stdout))
    return spread(taken)


def table_of(figures: dict[str, Any]) -> str:
    lines = ["| one sentence | p50 ms | p99 ms |", "| --- | --- | --- |"]
    for name, ms in figures["latency_ms"].items():
        lines.append(f"| {name} | {ms['p50']:.1f} | {ms['p99']:.1f} |")
    lines += ["", "| many texts | texts/s |", "| --- | --- |"]
    for name, rate in figures["bulk"]["texts_a_second"].items():
        lines.append(f"| {name} | {rate['median']:.1f} ({rate['min']:.1f} to {rate['max']:.1f}) |")
    lines += ["", "| faster by | |", "| --- | --- |"]
    for name, value in figures["bulk"].items():
        if name.startswith("ratio"):
            lines.append("| {} | {median:.2f} ({min:.2f} to {max:.2f}) |".format(name, **value))
    for name, value in figures["cold_load_seconds"].items():
        lines.append(
            "\ncold Classifier.load, {}: {median:.2f} s ({min:.2f} to {max:.2f})".format(
                name, **value
            )
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--max-len", type=int, default=64, help="token ids read of a text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=200, help="of the one sentence")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of this process's CPU time: a busy machine"
    )
    parser.add_argument("--toy", action="store_true", help="a tiny encoder, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("reports/bench.json"))
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    params = {"turns": 2, "target": "major", "max_dropped": 0.0}
    texts = export.validation(export.SAMPLE, {"params": params, "labels": None})[0][: options.texts]
    with tempfile.TemporaryDirectory() as work:
        ours, theirs = write_models(Path(work), texts, options.max_len, options.toy)
        fp32, bf16 = (Classifier.load(ours, "cpu", name) for name in ("fp32", "bf16"))
        lengths = np.diff(load_tokenizer(ours).encode(texts, options.max_len).offsets)
        sentence = texts[int(np.abs(lengths - TOKENS).argmin())]
        others = runtimes(
            load_classifier(ours)[0], ours, Path(work), options.max_len, options.threads
        )
        loops = {"ours fp32": fp32.predict, "ours bf16": bf16.predict, **others}
        peers = {
            f"pipeline {name}": peer(theirs, name, options.max_len) for name in ("fp32", "bf16")
        }
        single = {name: (lambda texts, loop=loop: loop(texts, 1)) for name, loop in peers.items()}
        figures = {
            "machine": machine(choose("cpu", "fp32")),
            "threads": options.threads,
            "cpu_time": options.cpu_time,
            "texts": len(texts),
            "max_len": options.max_len,
            "mean_tokens": float(lengths.mean()),
            "latency_ms": latency({**loops, **single}, sentence, options.times, clock),
            "bulk": bulk(loops, peers, texts, options.rounds, clock),
            "cold_load_seconds": {"this shape": cold(ours, options.rounds)},
        }
        shipped = Path("models/classifier")
        if shipped.is_dir():
            figures["cold_load_seconds"]["models/classifier"] = cold(shipped, options.rounds)
    write_json({**read_json(options.output, {}), "inference": figures}, options.output)
    print(table_of(figures))


if __name__ == "__main__":
    exit_with_line(main)
