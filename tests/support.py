"""What the tests make for themselves: workbooks, a tiny encoder card, a repository of their own."""

import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from storyflower.common.params import Params

ROOT = Path(__file__).parents[1]
HEADER = [None, "연령", "성별", "상황키워드", "신체질환", "감정_대분류", "감정_소분류"]
HEADER += [f"{who}{turn}" for turn in (1, 2, 3) for who in ("사람문장", "시스템문장")]
# Words that give a feeling away, so that a model of any size can learn it.
WORDS = {
    "기쁨": ("합격했어", "선물을 받았어", "웃음이 나", "최고의 하루야"),
    "분노": ("새치기를 당했어", "소리를 질렀어", "따지고 싶어", "화가 치밀어"),
    "불안": ("잠이 안 와", "내일이 무서워", "심장이 뛰어", "떨어지면 어쩌지"),
}
FINE = {"기쁨": "감사하는", "분노": "짜증내는", "불안": "초조한"}

# A model of this size trains in seconds and is good for nothing else.
TINY_CARD = """\
kind: path
source: tiny
tokenizer: sentencepiece
pretokenize: bert
learning_rate: 3.0e-3
license: CC0-1.0
"""
TINY_PARAMS = {"encoder": "tiny", "num_epochs": 1, "batch_size": 8, "max_len": 16}


def dialogue_rows(count: int, seed: int) -> list[list]:
    """Rows below HEADER, classes in turn, sentences put together from WORDS."""
    rng = random.Random(seed)
    rows = []
    for number in range(1, count + 1):
        major = list(WORDS)[number % len(WORDS)]
        turns = [f"{rng.choice(WORDS[major])} {rng.randrange(1000)}번째" for _ in range(2)]
        person = ["청년", "여성", "대인관계", "해당없음"]
        talk = [turns[0], "그랬군요.", turns[1], "더 말해 주세요.", None, None]
        rows.append([number, *person, major, FINE[major], *talk])
    return rows


def write_workbook(path: Path, rows: list[list], header: list | None = None) -> Path:
    """An xlsx file with one sheet, Sheet1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Sheet1"
    for row in [HEADER if header is None else header, *rows]:
        sheet.append(row)
    book.save(path)
    return path


def write_tiny_encoder(cards: Path, sample: bool = False) -> Path:
    """Write tiny.yaml and the folder that it names, random weights; return the card.

    Its vocabulary is for WORDS, or for the `sample` corpus.
    """
    cards.mkdir(parents=True, exist_ok=True)
    (cards / "tiny").mkdir()
    for name, content in tiny_encoder(sample).items():
        (cards / "tiny" / name).write_bytes(content)
    card = cards / "tiny.yaml"
    card.write_text(TINY_CARD, encoding="utf-8")
    return card


def show_tiny_to_git(root: Path) -> None:
    """Except the tiny encoder's folder from .gitignore: --temp and the queue see what git knows."""
    with (root / ".gitignore").open("a", encoding="utf-8") as rules:
        rules.write("!/encoders/tiny/\n")


@functools.cache
def tiny_encoder(sample: bool) -> dict[str, bytes]:
    """The files of an encoder folder."""
    from pretrain.corpora import turns
    from pretrain.texts import NO_LABEL, Texts
    from pretrain.train import Recipe, pretrain

    rows = dialogue_rows(60, seed=1)
    known = turns(ROOT / "data/sample") if sample else [f"{row[7]} {row[9]}" for row in rows]
    texts = Texts(label_of=dict.fromkeys(known, NO_LABEL))
    recipe = Recipe(steps=0, pieces=2000 if sample else 120, layers=1, hidden=32, heads=2)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "tiny")
        pretrain(texts, recipe, folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def new_repository(root: Path, train: int = 60, test: int = 24, **params: object) -> Path:
    """Fill an empty folder as make_repository does, with `train` and `test` dialogues."""
    for name in ("stages", "storyflower"):
        shutil.copytree(ROOT / name, root / name)  # with what Python has compiled of it
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    write_tiny_encoder(root / "encoders")
    show_tiny_to_git(root)
    write_workbook(root / "data/sample/표본_Training.xlsx", dialogue_rows(train, seed=1))
    write_workbook(root / "data/sample/표본_Validation.xlsx", dialogue_rows(test, seed=2))
    set_params(root, **{**TINY_PARAMS, **params})
    command(root, "git", "init", "-q", "-b", "main")
    command(root, "git", "add", "-A")
    command(root, "git", "commit", "-qm", "start")
    return root


def before_training(interim: Path, root: Path) -> None:
    """Put what the `interim` fixture holds where the train stage of a repository looks for it."""
    for name in ("dialogues.parquet", "labels.json", "tokens", "encoder"):
        target = root / ("models" if name == "encoder" else "data/interim") / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if (interim / name).is_dir() else shutil.copyfile)(interim / name, target)


def read_split(table: Path, split: str, columns: list[str]) -> pa.Table:
    """One split of a table of dialogues, in its order."""
    return pq.read_table(table, columns=columns, filters=[("split", "==", split)])


def mlflow_runs(root: Path) -> list:
    """All runs of the repository's own MLflow store, oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, order_by=["attributes.start_time"])
    return list(runs)


def change_head(classifier: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a classifier's linear layer in place, and its checksum with it."""
    from safetensors.torch import load_file, save_file

    from storyflower.common.files import digests

    weights = load_file(classifier / "head.safetensors")
    change(weights)
    save_file(weights, classifier / "head.safetensors")
    file = classifier / "classifier.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    document["weights"] = digests(classifier, document["weights"])
    file.write_text(json.dumps(document), encoding="utf-8")


def params_of(**values: object) -> Params:
    """The shipped params with some values changed."""
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return Params.check({**shipped, **values})


def set_params(root: Path, **values: object) -> None:
    """Write the shipped params.yaml with some values changed."""
    lines = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
    if "text_columns" in values:  # DVC may have written the list in lines of its own
        lines = [line for line in lines if not line.startswith("- ")]
    changed = [
        f"{key}: {values.pop(key)}" if (key := line.split(":")[0]) in values else line
        for line in lines
    ]
    assert not values, f"no such params: {values}"
    (root / "params.yaml").write_text("\n".join(changed) + "\n", encoding="utf-8")


def run(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a repository with this python's environment first on the path."""
    return subprocess.run(
        words,
        cwd=root,
        env=environment_of(**environment),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


def environment_of(**more: str) -> dict[str, str]:
    """The environment of a command in a repository."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        # A test that itself runs inside an experiment must not join it.
        if not key.startswith(("DVC_", "MLFLOW_", "GIT_"))
    }
    settings = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_NAME": "test" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "test@example.com" for who in ("AUTHOR", "COMMITTER")},
    }
    return {**inherited, **settings, **more}


def command(root: Path, *words: str, **environment: str) -> str:
    """As run, but the command must succeed; returns its output."""
    done = run(root, *words, **environment)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
