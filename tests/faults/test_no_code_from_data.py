"""Files that would run code, through every door by which data comes in: nothing runs."""

import ast
import hashlib
import io
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import stages.encoder
import stages.evaluate
import stages.ingest
import stages.labels
import stages.train
from storyflower import Classifier
from storyflower.__main__ import main as command_line
from storyflower.common.errors import InputError, exit_with_line
from storyflower.interim.tokens import TokenArrays
from storyflower.score_file import score_file
from storyflower.train.checkpoint import Checkpoints
from tests.encoder.hub import running_hub
from tests.support import ROOT, TINY_CARD, set_params, write_tiny_encoder


class Bomb:
    """Makes a file where it stands when it is unpickled."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self):
        return Path.touch, (self.sign,)


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """A file that only code out of data would make; here it is seen to be able to."""
    sign = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Bomb(sign)))  # noqa: S301
    sign.unlink()
    return sign


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run stages in, with an encoder of one's own beside the cards."""
    root = tmp_path / "root"
    (root / "encoders").mkdir(parents=True)
    write_tiny_encoder(root / "encoders")
    set_params(root, encoder="tiny")
    monkeypatch.chdir(root)
    return root


def refused(main: Callable, capsys: pytest.CaptureFixture) -> str:
    """The one line in which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        exit_with_line(main)
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def pickles(sign: Path) -> dict[str, bytes]:
    saved, old = io.BytesIO(), io.BytesIO()
    torch.save({"weight": Bomb(sign)}, saved)
    torch.save({"weight": Bomb(sign)}, old, _use_new_zipfile_serialization=False)
    return {
        "plain": pickle.dumps(Bomb(sign)),
        "protocol 0": pickle.dumps(Bomb(sign), protocol=0),
        "torch": saved.getvalue(),
        "torch of old": old.getvalue(),
    }


FORMS = ("plain", "protocol 0", "torch", "torch of old")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights(interim: Path, root: Path, sign: Path, capsys, form, name) -> None:
    folder = root / "encoders/mine"
    shutil.copytree(interim / "encoder", folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickles(sign)[form])
    (root / "encoders/mine.yaml").write_text(
        "kind: path\nsource: mine\ntokenizer: sentencepiece\nlicense: unknown\n", encoding="utf-8"
    )
    set_params(root, encoder="mine")
    assert refused(stages.encoder.main, capsys).startswith(f"error: mine: {name}: ")
    assert not sign.exists() and not (root / "models/encoder").exists()


@pytest.mark.parametrize("form", FORMS)
def test_pickled_classifier(classifier: Path, root: Path, sign: Path, form: str) -> None:
    content = pickles(sign)[form]
    for name in ("head.safetensors", "model.safetensors", "classifier.json"):
        folder = root / f"{name} of a classifier"
        shutil.copytree(classifier, folder)
        (folder / "pytorch_model.bin").write_bytes(content)
        (folder / "training_args.pt").write_bytes(content)
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            Classifier.load(folder, device="cpu")
    assert not sign.exists()


@pytest.mark.parametrize("form", FORMS)
def test_pickled_checkpoint(root: Path, sign: Path, capsys, form: str) -> None:
    """With the right name and the right checksum in it."""
    content = pickles(sign)[form]
    digest = hashlib.sha256(content).hexdigest()[:32]
    folder = root / ".storyflower/checkpoints" / ("a" * 16)
    folder.mkdir(parents=True)
    for name in (f"{1:012}-{digest}.safetensors", f"{1:012}-{digest}.pt", "checkpoint.pt"):
        (folder / name).write_bytes(content)
    with Checkpoints(folder.parent, "a" * 64, 5) as checkpoints:
        assert checkpoints.saved_extra is None
    assert "warning: checkpoint" in capsys.readouterr().err
    assert not sign.exists()


def test_pickled_type_in_a_parquet_file(classifier: Path, root: Path, sign: Path) -> None:
    """As pyarrow before 14 unpickled it."""
    metadata = {"ARROW:extension:name": "arrow.py_extension_type"}
    metadata["ARROW:extension:metadata"] = pickle.dumps(Bomb(sign))
    field = pa.field("일기", pa.string(), metadata=metadata)
    pq.write_table(pa.table([["합격했어"]], schema=pa.schema([field])), root / "a.parquet")
    for name in ("b.parquet", "b.csv"):
        score_file(folder=classifier, source=root / "a.parquet", column="일기", output=root / name)
    assert not sign.exists()


@pytest.mark.parametrize("name", ["ids", "offsets", "labels"])
def test_npy_with_objects_in_the_token_cache(
    interim: Path, root: Path, sign: Path, name: str
) -> None:
    folder = root / "tokens"
    shutil.copytree(interim / "tokens", folder)
    array = np.array([Bomb(sign)] * 3, dtype=object)
    for content in (array, pickle.dumps(Bomb(sign))):
        file = folder / f"Training.{name}.npy"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            np.save(file, content, allow_pickle=True)
        with pytest.raises(InputError, match=f"Training.{name}.npy: .*'dvc repro'"):
            TokenArrays.load(folder, "Training")
    assert not sign.exists()


TAGS = [
    "!!python/object/apply:os.mkdir ['{sign}']",
    "!!python/object/new:os.system ['touch {sign}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!reference [{sign}]",
]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_tags(root: Path, sign: Path, capsys, tag: str) -> None:
    tag = tag.format(sign=sign)
    card = root / "encoders/tiny.yaml"
    card.write_text(TINY_CARD.replace("CC0-1.0", tag), encoding="utf-8")
    assert "tiny.yaml: not readable as YAML" in refused(stages.encoder.main, capsys)
    params = root / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8") + f"more: {tag}\n", encoding="utf-8")
    for stage in (stages.encoder, stages.ingest, stages.labels, stages.train, stages.evaluate):
        assert "params.yaml: not readable as YAML" in refused(stage.main, capsys)
    assert not sign.exists()
    if "apply" in tag:
        yaml.unsafe_load(tag)  # a loader that is not safe would have run it
        assert sign.exists()


@pytest.mark.parametrize(
    "member", ["../{up}", "a/../../{up}", "{sign}", "..\\{up}", "C:\\{up}", "kobert/../../../{up}"]
)
def test_zip_that_leaves_its_folder(
    root: Path, sign: Path, capsys, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    """The zip of a kobert-legacy card, with the checksum that the card gives."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("kobert/config.json", "{}")
        archive.writestr(member.format(up=sign.name, sign=sign), "ran")
    card = yaml.safe_load((ROOT / "encoders/kobert-legacy.yaml").read_text(encoding="utf-8"))
    files = dict(zip(card["files"], (packed.getvalue(), b"1"), strict=True))
    card["files"] = {k: f"sha256:{hashlib.sha256(v).hexdigest()}" for k, v in files.items()}
    (root / "encoders/tiny.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    with running_hub(monkeypatch, root / "cache") as hub:
        hub.publish(card["source"], files)
        said = refused(stages.encoder.main, capsys)
    assert "kobert_v1.zip: refused: its member" in said
    assert not [path for path in tree(root.parent) if sign.name in path.name]


OUTSIDE = ["../x", "../../etc/passwd", "/etc/passwd", "a/b", ".", "..", "", "x\\..\\y", "~", "x\0y"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_leave_their_folder(root: Path, sign: Path, capsys, name: str) -> None:
    (root.parent / "x.yaml").write_text(TINY_CARD, encoding="utf-8")  # what -S encoder=../x meant
    (root / "models").mkdir()
    before = tree(root.parent)
    for key, stage in (("encoder", stages.encoder), ("corpus", stages.ingest)):
        set_params(root, **{key: json.dumps(name)})
        said = refused(stage.main, capsys)
        assert f"params.yaml: {key} must be a plain name" in said or "not readable" in said
    set_params(root, encoder="tiny")
    with pytest.raises(InputError):
        command_line(["card", name, "klue/bert-base"])
    mine = {"kind": "path", "source": name, "license": "unknown", "tokenizer": "wordpiece"}
    for card in (mine, {**mine, "source": "here", "vocabulary": name}):
        (root / "encoders/tiny.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
        (root / "encoders/here").mkdir(exist_ok=True)
        refused(stages.encoder.main, capsys)
        (root / "encoders/here").rmdir()
    assert tree(root.parent) == before


@pytest.mark.parametrize("family", ["bert", "own"])
def test_code_beside_a_checkpoint(
    interim: Path, classifier: Path, root: Path, sign: Path, capsys, monkeypatch, family: str
) -> None:
    """auto_map names classes in a file beside the weights, as on the hub."""
    # Where somebody sits before the terminal, transformers would ask whether to run it.
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    code = f"import pathlib\npathlib.Path({str(sign)!r}).touch()\n"
    code += "from transformers import BertConfig as Own, BertModel as OwnModel\n"
    names = {"AutoConfig": "own.Own", "AutoModel": "own.OwnModel", "AutoTokenizer": ["own.A", None]}

    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"auto_map": names, "model_type": family}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": names}))
        for name in ("own.py", "modeling_own.py", "__init__.py", "conftest.py"):
            (folder / name).write_text(code, encoding="utf-8")

    shutil.copytree(interim / "encoder", root / "encoders/mine")
    spoil(root / "encoders/mine")
    (root / "encoders/mine.yaml").write_text(
        "kind: path\nsource: mine\ntokenizer: sentencepiece\nlicense: unknown\n", encoding="utf-8"
    )
    set_params(root, encoder="mine")
    if family == "bert":
        exit_with_line(stages.encoder.main)
        assert not list((root / "models/encoder").glob("*.py"))
    else:
        assert "a model of type 'own'" in refused(stages.encoder.main, capsys)

    folder = root / "classifier"
    shutil.copytree(classifier, folder)
    spoil(folder)
    document = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    # Whoever changes the one can change the other.
    for name in {*document["tokenizer"], "tokenizer_config.json"}:
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        document["tokenizer"][name] = digest
    (folder / "classifier.json").write_text(json.dumps(document), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["x", "predict", "합격했어", "--model", str(folder)])
    if family == "bert":
        exit_with_line(command_line)
    else:
        refused(command_line, capsys)
    assert not sign.exists()


# The grep, which only backs up the tests above

FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "pd.read_pickle",
    "torch.hub.load",
    "torch.jit.load",
    "importlib.import_module",
}
KEYWORDS = {"allow_pickle": True, "shell": True, "trust_remote_code": True, "weights_only": False}


def forbidden_calls(code: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in FORBIDDEN:
            found.append(name)
        if name.endswith("torch.load") and name != "safetensors.torch.load":
            found += [name] if given.get("weights_only") != "True" else []
        if name.endswith("np.load") and given.get("allow_pickle") != "False":
            found.append(name)
        found += [key for key in KEYWORDS.keys() & given if str(KEYWORDS[key]) == given[key]]
    return found


def test_no_forbidden_call_in_the_project() -> None:
    files = [path for name in ("storyflower", "stages") for path in (ROOT / name).rglob("*.py")]
    assert len(files) > 30
    for path in files:
        assert forbidden_calls(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "pickle.loads(content)",
        "subprocess.run(words, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_the_grep_finds_what_it_looks_for(code: str) -> None:
    assert forbidden_calls(code)
