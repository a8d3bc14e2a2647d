"""The service under load: requests a second, p50 and p99, with batching and without; a soak.

    dvc repro && python -m benchmarks.serving load          # the trained classifier
    python -m benchmarks.serving load --kobert              # KoBERT's shape, random weights
    python -m benchmarks.serving soak --seconds 600

In: models/classifier (or --model FOLDER).
Out: one line a round and a summary. Two services run side by side, one with a batch limit of 1,
and are asked in turn, so that a busy machine is busy for both. Clients keep their connections and
each sends its next request when the answer to the last one is there. The client's process shares
the cores with the service; its own time is printed, too.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from storyflower.common.errors import InputError, exit_with_line
from storyflower.common.files import read_json

CLIENTS = 20
TEXTS = 2000
WORDS = (
    "오늘 회사에서 상사에게 혼이 나서 너무 속상했어 집에 와서 혼자 울다가 친구에게 전화를 "
    "했는데 위로해 줘서 조금 나아졌어 내일은 시험이 있는데 공부를 하나도 못 해서 걱정이야"
)
TOKENS = (3, 120)  # of a text, [CLS] and [SEP] included, each length as often


@dataclass
class Round:
    """What one round of asking one service gave."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # seconds, of requests answered with 200
    errors: int = 0
    server: float = 0.0  # processor seconds of the service
    client: float = 0.0  # processor seconds of the clients

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("load", "soak"))
    parser.add_argument("--model", type=Path, default=Path("models/classifier"))
    parser.add_argument("--kobert", action="store_true", help="KoBERT's shape, random weights")
    parser.add_argument("--seconds", type=float, default=60, help="of asking each service")
    parser.add_argument("--rounds", type=int, default=6, help="in which they are asked in turn")
    parser.add_argument("--serve", default="", help="more words for the service")
    options = parser.parse_args()
    if not (options.model / "classifier.json").is_file():
        raise InputError(f"{options.model}: no classifier; train one with 'dvc repro'")
    with tempfile.TemporaryDirectory(prefix="storyflower-serving-") as work:
        model = kobert_shape(options.model, Path(work)) if options.kobert else options.model
        bodies = requests(model)
        if options.what == "soak":
            soak(model, bodies, options.seconds, options.serve.split())
        else:
            load(model, bodies, options)


def load(model: Path, bodies: list[bytes], options: argparse.Namespace) -> None:
    words = options.serve.split()
    with running(model, *words) as batching, running(model, *words, "--batch-limit", "1") as alone:
        services = {"batching": batching, "limit 1": alone}
        totals = {name: Round() for name in services}
        for process, port in services.values():
            ask(process, port, bodies, 2.0)  # the first calls of each shape are slow
        for number in range(1, options.rounds + 1):
            for name, (process, port) in services.items():
                found = ask(process, port, bodies, options.seconds / options.rounds)
                add(totals[name], found)
                print(f"round {number}, {line(name, found)}", flush=True)
        for name, total in totals.items():
            print(line(name, total))
        ratio = totals["batching"].rate / totals["limit 1"].rate
        print(f"batching gives {ratio:.2f} times the requests a second")


def line(name: str, found: Round) -> str:
    if not found.latencies:
        return f"{name}: no answer, {found.errors} errors"
    p50, p99 = np.percentile(found.latencies, [50, 99]) * 1000
    count = len(found.latencies)
    return (
        f"{name}: {found.rate:.1f} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
        f"{found.errors} errors; processor time a request: service "
        f"{found.server / count * 1000:.2f} ms, client {found.client / count * 1000:.2f} ms"
    )


def add(total: Round, found: Round) -> None:
    total.seconds += found.seconds
    total.latencies += found.latencies
    total.errors += found.errors
    total.server += found.server
    total.client += found.client


def soak(model: Path, bodies: list[bytes], seconds: float, words: list[str]) -> None:
    """Print the resident memory of the service while it is asked."""
    with running(model, *words) as (process, port):
        parts = 20
        for number in range(parts + 1):
            resident = process.memory_info().rss / 2**20
            print(f"{number * seconds / parts:.0f} s: {resident:.1f} MiB", flush=True)
            if number < parts:
                found = ask(process, port, bodies, seconds / parts)
                if found.errors:
                    raise InputError(f"{found.errors} requests were not answered with 200")


@contextmanager
def running(model: Path, *words: str) -> Iterator[tuple[psutil.Process, int]]:
    """A service on a free port: its process and the port."""
    command = [sys.executable, "-m", "storyflower", "serve", "--model", str(model), "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "STORYFLOWER_TOKEN"}
    with subprocess.Popen(
        [*command, *words], env=environment, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            address = started.stdout.readline()
            if not address:
                raise InputError("the service did not start; its message stands above")
            yield psutil.Process(started.pid), int(address.rpartition(":")[2])
        finally:
            started.terminate()


def ask(process: psutil.Process, port: int, bodies: list[bytes], seconds: float) -> Round:
    """Let CLIENTS ask one service for some seconds."""
    result = Round()
    before, own = process.cpu_times(), time.process_time()
    started = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        index = number * (len(bodies) // CLIENTS)
        while time.perf_counter() - started < seconds:
            index = (index + 1) % len(bodies)
            sent = time.perf_counter()
            writer.write(bodies[index])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            if head.startswith(b"HTTP/1.1 200"):
                result.latencies.append(time.perf_counter() - sent)
            else:
                result.errors += 1
        writer.close()

    async def clients() -> None:
        await asyncio.gather(*map(client, range(CLIENTS)))

    asyncio.run(clients())
    after = process.cpu_times()
    result.seconds = time.perf_counter() - started
    result.server = after.user + after.system - before.user - before.system
    result.client = time.process_time() - own
    return result


def requests(model: Path) -> list[bytes]:
    """Whole HTTP requests of one text each, of about TOKENS lengths; always the same."""
    from storyflower.tokenizer.load import load_tokenizer

    words, rng = WORDS.split(), random.Random(1)
    tokens = np.diff(load_tokenizer(model).encode(words, TOKENS[1]).offsets) - 2
    made = []
    for _ in range(TEXTS):
        left, chosen = rng.randint(*TOKENS) - 2, []
        while left > 0:
            index = rng.randrange(len(words))
            left -= tokens[index]
            chosen.append(words[index])
        text = " ".join(chosen)
        body = json.dumps({"texts": [text]}, ensure_ascii=False).encode()
        head = (
            "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


def kobert_shape(model: Path, work: Path) -> Path:
    """A classifier as large as KoBERT, random weights, with another one's tokenizer and labels."""
    import torch
    from transformers import BertConfig, BertModel

    from storyflower.interim.labels import LabelIndex
    from storyflower.interim.tokens import MODEL
    from storyflower.model.folder import build_classifier, save_classifier

    torch.manual_seed(1)
    document = read_json(model / "classifier.json", {})
    shape = BertModel(BertConfig(vocab_size=8002, pad_token_id=1), add_pooling_layer=False)
    encoder = work / "encoder"
    shape.save_pretrained(encoder)
    for name in document["tokenizer"]:
        if name not in MODEL:
            shutil.copyfile(model / name, encoder / name)
    labels = LabelIndex(document["labels"])
    network = build_classifier(encoder, len(labels), 0.1)
    facts = {"params": document["params"]}
    save_classifier(network, work / "classifier", encoder=encoder, labels=labels, facts=facts)
    return work / "classifier"


if __name__ == "__main__":
    exit_with_line(main)
