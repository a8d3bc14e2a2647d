"""python -m storyflower spark, in a real Spark on two cores: `make test-spark`."""

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storyflower import registry
from storyflower.common.errors import InputError
from storyflower.model.folder import digest, load_classifier
from storyflower.predict import Classifier
from tests.support import dialogue_rows

pytest.importorskip("pyspark", reason="no pyspark here: make test-spark", exc_type=ImportError)
if not os.environ.get("JAVA_HOME") and not shutil.which("java"):
    pytest.skip("no Java here: make test-spark says what to install", allow_module_level=True)

from storyflower import spark as spark_module

# Spark takes its time to start, and each worker to import torch.
pytestmark = pytest.mark.slow

COLUMN = "일 기.1"  # a blank and a dot, which are more than a name in SQL
SECRET = "아무도몰라야할비밀"
EMPTY = [None, "", " \n\t", "\u3000"]
LOADED = re.compile(r"storyflower: classifier \w+ loaded in process (\d+), (\d+) threads")


@pytest.fixture(scope="module")
def model(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an MLflow model."""
    folder = tmp_path_factory.mktemp("registered") / "model"
    labels = load_classifier(classifier)[1]["labels"]
    registry.save_pyfunc(folder, model=classifier, classifier=digest(classifier), labels=labels)
    return folder


@pytest.fixture(scope="module")
def texts() -> list[str | None]:
    rows = dialogue_rows(240, seed=3)
    return [*(f"{row[7]} {row[9]}" for row in rows), *EMPTY, "긴 글 " * 500, SECRET, "🙂"]


@pytest.fixture(scope="module")
def source(texts: list[str | None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files as skewed as they come: nearly all rows, one, none, nulls alone."""
    folder = tmp_path_factory.mktemp("입력") / "일기 모음"
    folder.mkdir()
    everything = table_of(texts)
    pieces = [everything.slice(1), everything.slice(0, 1), everything.slice(0, 0)]
    nulls = pa.table({**table_of([None] * 5).to_pydict(), "번호": range(1000, 1005)})
    for number, piece in enumerate([*pieces, nulls.cast(everything.schema)]):
        pq.write_table(piece, folder / f"{number}.parquet")
    return folder


@pytest.fixture(scope="module")
def spark(model: Path) -> Iterator:
    spark_module.check_model(str(model))
    with spark_module.session("local[2]") as session:
        yield session


def table_of(texts: list[str | None]) -> pa.Table:
    return pa.table(
        {
            "번호": pa.array(range(len(texts)), pa.int64()),
            COLUMN: pa.array(texts, pa.string()),
            "tags": pa.array([["a", None]] * len(texts), pa.list_(pa.string())),
            "Label": pa.array([0.5] * len(texts), pa.float64()),  # not label
        }
    )


def read(folder: Path) -> pa.Table:
    return pq.read_table(folder).sort_by("번호")


def left_behind(folder: Path) -> list[str]:
    """What lies in a folder that no one asked for."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def assert_equal_to_local(scored: pa.Table, texts: list[str | None], classifier: Path) -> None:
    local = Classifier.load(classifier)
    names = [f"p_{label}" for label in local.labels]
    assert scored.column_names == [*table_of([]).column_names, "label", *names]
    rows = scored.to_pylist()
    assert [row[COLUMN] for row in rows] == texts
    assert {(*row["tags"], row["Label"]) for row in rows} == {("a", None, 0.5)}
    told = [row for row in rows if row[COLUMN] and row[COLUMN].strip()]
    for row in rows:
        if row not in told:
            assert [row["label"], *(row[name] for name in names)] == [None] * (len(names) + 1)
    answers, _ = local.predict_whole([row[COLUMN] for row in told])
    for row, expected in zip(told, answers, strict=True):
        assert row["label"] == expected.label
        for label, probability in expected.probabilities.items():
            assert row[f"p_{label}"] == pytest.approx(probability, abs=1e-5)
    assert len({row["label"] for row in told}) == len(local.labels)


@pytest.mark.parametrize("partitions", [None, 1, 3, 7])
def test_the_answers_are_the_local_ones(
    spark, model, source, texts, classifier, tmp_path, partitions
):
    output = tmp_path / "결과"
    scored = spark_module.score_in(
        spark,
        model=str(model),
        source=str(source),
        column=COLUMN,
        output=str(output),
        partitions=partitions,
    )
    every = [*texts, *[None] * 5]
    assert scored == spark_module.Scored(rows=len(every), blank=len(EMPTY) + 5)
    if partitions:
        files = [pq.read_metadata(file).num_rows for file in output.glob("part-*")]
        assert len(files) <= partitions and max(files) - min(files) <= partitions
    assert_equal_to_local(read(output), every, classifier)
    assert left_behind(tmp_path) == []


def test_each_text_is_scored_once(spark, model, source, tmp_path, monkeypatch):
    """One evaluation of the model in Spark's plan, however many columns come of it."""
    plans = []
    monkeypatch.setattr(
        spark_module.Target,
        "write",
        lambda self, table: plans.append(table._jdf.queryExecution().executedPlan().toString()),
    )
    monkeypatch.setattr("pyspark.sql.Observation.get", {"rows": 0, "blank": 0})  # nothing ran
    spark_module.score_in(
        spark, model=str(model), source=str(source), column=COLUMN, output=str(tmp_path / "out")
    )
    (plan,) = plans
    (evaluated,) = re.findall(r"ArrowEvalPython \[(.*?)\], \[", plan)
    assert evaluated.count("udf(") == 1


def refused(spark, **values: object) -> str:
    with pytest.raises(InputError) as error:
        spark_module.score_in(spark, **values)
    line = str(error.value)
    assert "\n" not in line and "\tat " not in line and SECRET not in line
    return line


BAD: dict[str, tuple[Callable[[Path], dict], str]] = {
    "nothing there": (lambda _: {"source": "nowhere.parquet"}, "nowhere.parquet: not found"),
    "no Parquet": (
        lambda folder: {"source": written(folder / "x.parquet", SECRET)},
        "is not Parquet, or damaged",
    ),
    "an empty folder": (lambda folder: {"source": made(folder / "empty")}, "holds no Parquet"),
    "no such column": (
        lambda _: {"column": "일기"},
        f"no column '일기'; its columns: 번호, {COLUMN}",
    ),
    "a line break in a name": (
        lambda folder: {"source": table(folder, **{"일\n기": [SECRET]})},
        f"no column '{COLUMN}'; its columns: 일 기",
    ),
    "no columns": (lambda folder: {"source": table(folder)}, "its columns: none"),
    "a footer of 4 GiB": (
        lambda folder: {"source": ending(folder, b"\xf0\xff\xff\xffPAR1")},
        "is not Parquet, or damaged",
    ),
    "an encrypted footer": (
        lambda folder: {"source": ending(folder, b"PARE")},
        "is not Parquet, or damaged",
    ),
    "a page with another checksum": (
        lambda folder: {"source": flipped(folder)},
        "is not Parquet, or damaged",
    ),
    "bytes": (
        lambda folder: {"source": table(folder, **{COLUMN: [SECRET.encode()]})},
        f"column '{COLUMN}' is binary, and a text is a string",
    ),
    "numbers": (lambda _: {"column": "번호"}, "column '번호' is bigint, and a text is a string"),
    "lists": (lambda _: {"column": "tags"}, "column 'tags' is array<string>"),
    "a column that is added": (
        lambda folder: {"source": renamed(folder / "in.parquet")},
        "has a column 'p_기쁨', which the output adds",
    ),
    "an output": (lambda folder: {"output": made(folder / "old")}, "is there already; --overwrite"),
    "someone else's folder": (
        lambda folder: {
            "output": str(Path(written(folder / "old/thesis.odt", "x")).parent),
            "overwrite": True,
        },
        "holds thesis.odt, which Spark did not write",
    ),
    "an odd file system": (lambda _: {"output": "nosuch://host/out"}, "nosuch"),
}


def written(path: Path, content: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return str(path)


def table(folder: Path, **columns: list) -> str:
    pq.write_table(pa.table(columns), folder / "in.parquet")
    return str(folder / "in.parquet")


def ending(folder: Path, last: bytes) -> str:
    """A file whose last bytes are these."""
    path = Path(table(folder, **{COLUMN: [SECRET]}))
    path.write_bytes(path.read_bytes()[: -len(last)] + last)
    return str(path)


def flipped(folder: Path) -> str:
    """A file with one letter of a text changed, which only its checksum shows."""
    path = folder / "in.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({COLUMN: ["abcdef"]}), path, write_page_checksum=True, **options)
    content = path.read_bytes()
    assert content.count(b"abcdef") == 1
    path.write_bytes(content.replace(b"abcdef", b"abcdeg"))
    return str(path)


def made(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def renamed(path: Path) -> str:
    table = table_of([SECRET])
    pq.write_table(table.rename_columns(["번호", COLUMN, "tags", "p_기쁨"]), path)
    return str(path)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(spark, model, source, tmp_path, case):
    values, expected = BAD[case][0](tmp_path), BAD[case][1]
    before = sorted(tmp_path.rglob("*"))
    given = {"source": str(source), "column": COLUMN, "output": str(tmp_path / "out"), **values}
    assert expected in refused(spark, model=str(model), **given)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_input_is_never_the_output(spark, model, source):
    before = sorted(source.rglob("*"))
    for output in (source, source.parent, source / "out", f"{source.parent}/x/../{source.name}"):
        line = refused(
            spark,
            model=str(model),
            source=str(source),
            column=COLUMN,
            output=str(output),
            overwrite=True,
        )
        assert "is in the input, or the input in it" in line
    assert sorted(source.rglob("*")) == before


def test_overwrite_replaces_the_output_only_by_a_whole_one(spark, model, source, tmp_path):
    output = tmp_path / "out"
    common = {"model": str(model), "column": COLUMN, "output": str(output), "overwrite": True}
    spark_module.score_in(spark, source=str(source), **common)
    first = read(output)
    half = tmp_path / "half"
    shutil.copytree(source, half)
    (half / "9.parquet").write_text("no footer", encoding="utf-8")
    assert "is not Parquet, or damaged" in refused(spark, source=str(half), **common)
    assert read(output) == first and left_behind(tmp_path) == []
    (half / "9.parquet").unlink()
    (half / "0.parquet").unlink()  # nearly all rows
    spark_module.score_in(spark, source=str(half), **common)
    assert read(output).num_rows == 6 and left_behind(tmp_path) == []


def test_what_a_worker_says_may_quote_a_diary_and_is_not_repeated():
    message = (
        "An exception was thrown from the Python worker. Please see the stack trace below.\n"
        'Traceback (most recent call last):\n  File "/a/worker.py", line 3, in main\n'
        f'    f()\n  File "/a/model.py", line 12, in predict\nValueError: {SECRET}: {SECRET}\n'
        "\n\tat org.apache.spark.Some.method(Some.scala:1)"
    )
    assert spark_module.reason(message) == "ValueError in a worker, at /a/model.py:12"


# Between the two renames, in which the new output replaces the old one


class Dying:
    """Hadoop's file system, of which one call on one path ends otherwise."""

    def __init__(self, files: object, deadly: tuple[str, str], end: Callable[[], object]):
        self._files, self._deadly, self._end = files, deadly, end

    def __getattr__(self, name: str) -> object:
        def call(path: object, *more: object) -> object:
            if (name, path.getName()) == self._deadly:
                return self._end()
            return getattr(self._files, name)(path, *more)

        return call


DEADLY = {"rename": ("rename", ".out.part"), "delete": ("delete", ".out.old")}


def let_die(deadly: str, end: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """From here on, each Target has a file system that is Dying."""
    init = spark_module.Target.__init__

    def dying(self: object, *given: object) -> None:
        init(self, *given)
        self._files = Dying(self._files, DEADLY[deadly], end)

    patch.setattr(spark_module.Target, "__init__", dying)


KILLED = """
import os, signal, sys
import pytest
from storyflower import spark
from tests.spark.test_spark import COLUMN, let_die

model, source, output, deadly = sys.argv[1:]
let_die(deadly, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
spark.score(model=model, source=source, column=COLUMN, output=output, overwrite=True)
"""


@pytest.fixture(scope="module")
def two(texts, tmp_path_factory) -> list[Path]:
    """Two small inputs."""
    folder = tmp_path_factory.mktemp("two")
    for name, some in (("first", texts[:3]), ("second", texts[3:8])):
        pq.write_table(table_of(some), folder / name)
    return [folder / "first", folder / "second"]


@pytest.mark.parametrize("deadly", ["rename", "delete"])
def test_a_kill_between_the_renames_loses_nothing(spark, model, two, tmp_path, deadly):
    """Whatever the next call is for: it finds one whole output, the old one or the new one."""
    before = tmp_path / "before"
    before.mkdir()
    common = {"model": str(model), "column": COLUMN}
    spark_module.score_in(spark, source=str(two[0]), output=str(before / "out"), **common)
    old = read(before / "out")
    words = [sys.executable, "-c", KILLED, str(model), str(two[1]), str(before / "out"), deadly]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    died = {"rename": [".out.old", ".out.part"], "delete": [".out.old", "out"]}[deadly]
    assert sorted(path.name for path in before.iterdir()) == died
    whole = old if deadly == "rename" else read(before / "out")
    assert whole.num_rows == {"rename": 3, "delete": 5}[deadly]

    def again(name: str, **more: object) -> tuple[Path, dict]:
        shutil.copytree(before, tmp_path / name)
        output = tmp_path / name / "out"
        return output, {"source": str(two[0]), "output": str(output), **common, **more}

    output, given = again("a column that is not there", column="없다", overwrite=True)
    assert "no column '없다'" in refused(spark, **given)
    assert read(output) == whole
    output, given = again("without overwrite")
    assert "is there already; --overwrite replaces it" in refused(spark, **given)
    assert read(output) == whole and ".out.old" not in left_behind(output.parent)
    output, given = again("a rename that fails", overwrite=True)
    with pytest.MonkeyPatch.context() as patch:
        let_die("rename", lambda: False, patch)
        assert "cannot be made; look at its permissions" in refused(spark, **given)
    assert read(output) == whole and left_behind(output.parent) == []
    output, given = again("with overwrite", overwrite=True)
    assert spark_module.score_in(spark, **given).rows == 3
    assert read(output) == old and left_behind(output.parent) == []


def disk_error() -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("end", [disk_error, lambda: False], ids=["an error", "refused"])
def test_a_rename_that_fails_leaves_the_old_output(spark, model, two, tmp_path, monkeypatch, end):
    output = tmp_path / "out"
    common = {"model": str(model), "column": COLUMN, "output": str(output)}
    spark_module.score_in(spark, source=str(two[0]), **common)
    old = read(output)
    let_die("rename", end, monkeypatch)
    with pytest.raises((OSError, InputError), match="Input/output|cannot be made"):
        spark_module.score_in(spark, source=str(two[1]), overwrite=True, **common)
    assert read(output) == old and left_behind(tmp_path) == []


def test_a_folder_of_somebody_else_s_is_not_deleted(spark, model, two, tmp_path):
    """.out.old, which a killed run leaves, can be another's beside an output."""
    theirs = Path(written(tmp_path / ".out.old/thesis.odt", "x"))
    pq.write_table(table_of([]), tmp_path / "out")
    given = {"source": str(two[0]), "output": str(tmp_path / "out"), "overwrite": True}
    assert ".out.old beside it holds thesis.odt" in refused(
        spark, model=str(model), column=COLUMN, **given
    )
    assert theirs.read_text(encoding="utf-8") == "x"


# The command itself, in a process of its own


def words(**options: object) -> list[str]:
    listed = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "storyflower", "spark", *listed]


@contextlib.contextmanager
def command(scratch: Path, *given: str, **environment: str) -> Iterator[subprocess.Popen]:
    """The running command; its temporary files go to `scratch`."""
    scratch.mkdir(mode=0o755)
    process = subprocess.Popen(
        given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch), **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_command(model, texts, classifier, tmp_path):
    """In the plainest locale, with a model from the registry and more tasks than workers."""
    import mlflow

    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(store)
    client.create_registered_model("storyflower")
    client.create_model_version("storyflower", str(model))
    client.set_registered_model_alias("storyflower", "champion", "1")
    source, output, scratch = tmp_path / "일기.parquet", tmp_path / "결과", tmp_path / "temporary"
    pq.write_table(table_of(texts), source)
    given = words(input=source, column=COLUMN, output=output, partitions=9)
    open_to_others = set()
    with command(scratch, *given, LC_ALL="C", MLFLOW_TRACKING_URI=store) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                ours = psutil.Process(process.pid)
                for each in [ours, *ours.children(recursive=True)]:
                    for connection in each.net_connections("inet"):
                        host = connection.laddr.ip.removeprefix("::ffff:")
                        if connection.status == "LISTEN" and host not in ("127.0.0.1", "::1"):
                            open_to_others.add(connection.laddr)
                for folder in scratch.iterdir():  # Spark's, Java's and MLflow's
                    if folder.stat().st_mode & 0o027:
                        open_to_others.add(folder.name)
            time.sleep(0.5)
        printed, errors = process.communicate()
    assert (process.returncode, printed) == (
        0,
        f"{output}: {len(texts)} rows, {len(EMPTY)} without a text\n",
    ), errors
    loads = LOADED.findall(errors)
    assert errors.splitlines() == [line[0] for line in re.finditer(f"{LOADED.pattern}", errors)]
    # Nine tasks on two cores: two workers, each of which loads once and computes with one thread.
    assert 1 <= len(loads) <= 2 and len(dict(loads)) == len(loads)
    assert {threads for _, threads in loads} == {"1"}
    assert open_to_others == set()
    assert_equal_to_local(read(output), texts, classifier)
    assert {path.stat().st_mode & 0o077 for path in [output, *output.iterdir()]} == {0}
    assert list(scratch.glob("storyflower-*")) == list(scratch.glob("spark-*")) == []


def test_a_task_has_the_cores_that_spark_gives_it(model, source, tmp_path):
    given = words(model=model, input=source, column=COLUMN, output=tmp_path / "out", partitions=3)
    with command(tmp_path / "scratch", *given, "--conf", "spark.task.cpus=2") as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert [threads for _, threads in LOADED.findall(errors)] == ["2"]


def test_a_stop_leaves_everything_as_it_was(model, texts, tmp_path):
    source, output = tmp_path / "in.parquet", tmp_path / "out"
    pq.write_table(table_of(texts * 400), source)
    pq.write_table(table_of(texts), output)  # what was there before
    given = words(model=model, input=source, column=COLUMN, output=output)
    with command(tmp_path / "scratch", *given, "--overwrite") as process:
        for line in process.stderr:
            if LOADED.search(line):
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert (tmp_path / ".out.part").is_dir()
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate()
    assert (process.returncode, printed, errors) == (128 + signal.SIGTERM, "", "")
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert read(output) == table_of(texts)
    assert left_behind(tmp_path) == [] and list((tmp_path / "scratch").glob("storyflower-*")) == []
