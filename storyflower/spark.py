"""Score Parquet with a registered model on Apache Spark.

In: an MLflow model (models:/NAME@ALIAS or a folder), Parquet with a column of texts.
Out: a folder of Parquet files: all columns of the input, `label` and one `p_<label>` per class.
A row whose text is null or blank has nulls there.
Not supported: Spark Connect, and a driver that runs inside the cluster.
"""

import codecs
import importlib.util
import locale
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from storyflower.common.errors import InputError, one_line
from storyflower.common.repository import main_root
from storyflower.tracking import mlflow as tracking

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

JAVA = 17  # the oldest that Spark 4 runs on
STOP_SECONDS = 30  # how long Java may take to end
SAID = "spark: "  # begins each line of Spark's log
SHOWN = (SAID, "storyflower: ")  # what else Java and the workers print is not shown
# One line a message, no stack traces. Failed tasks log nothing: the driver gets their exceptions,
# and a message of Python's may quote the diary that caused it.
LOG4J = f"""\
rootLogger.level = warn
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.alwaysWriteExceptions = false
appender.stderr.layout.pattern = {SAID}%p %c{{1}}: %maxLen{{%enc{{%m}}{{CRLF}}}}{{300}}%n
""" + "".join(
    f"logger.silent{number}.name = {name}\nlogger.silent{number}.level = off\n"
    for number, name in enumerate(
        (
            "org.apache.hadoop.util.NativeCodeLoader",
            "org.apache.spark.api.python",
            "org.apache.spark.executor.Executor",
            "org.apache.spark.scheduler.TaskSetManager",
            "org.apache.spark.sql.execution.datasources",
            "org.apache.spark.util.Utils",
        )
    )
)
# PySpark says so at every call; tests/spark compares its answers with the local ones.
PANDAS_3 = "PySpark does not yet fully support pandas"
# Conditions of Spark's errors → what they mean for the input
CONDITIONS = {
    "PATH_NOT_FOUND": "not found",
    "UNABLE_TO_INFER_SCHEMA": "holds no Parquet files",
    "FAILED_READ_FILE": "is not Parquet, or damaged",
}


@dataclass(frozen=True)
class Scored:
    """How many rows were written, and how many of them got no label for want of a text."""

    rows: int
    blank: int


def score(
    *,
    model: str,
    column: str | None,
    master: str = "local[2]",
    settings: Mapping[str, str] | None = None,
    **job: Any,
) -> Scored:
    """Score one column of Parquet in a session of its own; `job` is what score_in takes besides.

    `column` None is the first that the classifier was trained on. `settings` are Spark's and win
    over ours. Raises InputError as score_in does, and if there is no Spark, Java or such model.
    """
    check_installed()
    check_model(model)
    column = column or column_of(model)
    with session(master, settings) as spark:
        return score_in(spark, model=model, column=column, **job)


def score_in(
    spark: "SparkSession",
    *,
    model: str,
    source: str,
    column: str,
    output: str,
    partitions: int | None = None,
    overwrite: bool = False,
) -> Scored:
    """Score one column of `source` and write `output`, which appears whole or not at all.

    `model`, which check_model has passed, `source` and `output` are URIs or paths that MLflow and
    Spark know. `partitions` spreads the rows evenly over so many tasks, and their order is lost;
    None leaves them as they lie in the files. Raises InputError for bad input and for a job that
    failed; the output that was there before is then still there.
    """
    from mlflow.pyfunc import spark_udf
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    target = Target(spark, output)
    target.check(source, overwrite)
    table = read_texts(spark, source, column)
    predict = spark_udf(spark, model, env_manager="local")
    names = predict.returnType.fieldNames()
    if taken := [name for name in names if name in table.columns]:
        raise InputError(f"{source}: has a column {taken[0]!r}, which the output adds; rename it")
    if partitions:
        table = table.repartition(partitions)
    # Expanded in a second step, so that each text is scored once and not once a column.
    added = "_".join([*table.columns, *names])  # a name that no column has
    answers = {name: F.col(quoted(added)).getField(name) for name in names}
    # MLflow makes the string "None" of a null label, but leaves a null probability alone.
    answers["label"] = F.when(answers[names[-1]].isNotNull(), answers["label"])
    scored = table.select("*", predict(F.col(quoted(column))).alias(added)).select(
        *(F.col(quoted(name)) for name in table.columns),
        *(answer.alias(name) for name, answer in answers.items()),
    )
    seen = Observation()
    rows, blank = F.count(F.lit(1)), F.count(F.when(F.col("label").isNull(), 1))
    target.write(scored.observe(seen, rows.alias("rows"), blank.alias("blank")))
    return Scored(**seen.get)


def read_texts(spark: "SparkSession", source: str, column: str) -> "DataFrame":
    """The table in `source`; raises InputError if it is not Parquet or has no such texts."""
    with refusing(source):
        table = spark.read.parquet(source)
        types = dict(table.dtypes)
    if column not in types:
        names = one_line(", ".join(types)) if types else "none"
        raise InputError(f"{source}: no column {column!r}; its columns: {names}")
    if types[column] != "string":
        raise InputError(f"{source}: column {column!r} is {types[column]}, and a text is a string")
    return table


def check_model(model: str) -> None:
    """Raise InputError if there is no such model, or if it is not one of ours.

    From here on, MLflow looks for models where StoryFlower keeps them.
    """
    if Path(model).is_dir() and not Path(model, "MLmodel").is_file():
        raise InputError(f"{model}: no MLflow model; python -m storyflower register makes one")
    with tracking.refusing(model):
        import mlflow

        if model.startswith("models:/"):
            tracking.client_of_store(main_root())  # says so if there is no store
            mlflow.set_tracking_uri(tracking.tracking_uri(main_root()))
        signature = mlflow.models.get_model_info(model).signature
    if not (signature and signature.outputs and "label" in signature.outputs.input_names()):
        raise InputError(f"{model}: was not made by python -m storyflower register")


def column_of(model: str) -> str:
    """The first text column of a registered classifier's corpus; check_model has passed it."""
    import mlflow

    from storyflower.predict import text_column

    facts = mlflow.models.get_model_info(model).flavors["python_function"]
    place = facts["artifacts"]["classifier"]["path"]
    with tempfile.TemporaryDirectory() as scratch:
        file = mlflow.artifacts.download_artifacts(
            f"{model.rstrip('/')}/{place}/classifier.json", dst_path=scratch
        )
        return text_column(Path(file).parent)


def quoted(name: str) -> str:
    """A column's name in Spark's SQL, where a dot would mean a field."""
    return "`" + name.replace("`", "``") + "`"


class Target:
    """The output's folder, in any file system that Hadoop knows."""

    def __init__(self, spark: "SparkSession", output: str):
        self._output = output
        self._gateway = spark.sparkContext._gateway
        with refusing(output):
            self._path = self._qualified(spark, output)
            self._files = self._path.getFileSystem(spark._jsc.hadoopConfiguration())
            # Spark does not read what begins with a dot, should it be left behind.
            self._part = self._beside("part")
            self._old = self._beside("old")
            self._part_uri = self._part.toString()
            self._uris = self._path.toString(), self._old.toString()
        self._spark = spark

    def _qualified(self, spark: "SparkSession", name: str) -> Any:
        path = spark._jvm.org.apache.hadoop.fs.Path(name)
        return path.getFileSystem(spark._jsc.hadoopConfiguration()).makeQualified(path)

    def _beside(self, ending: str) -> Any:
        path = self._gateway.jvm.org.apache.hadoop.fs.Path
        return path(self._path.getParent(), f".{self._path.getName()}.{ending}")

    def check(self, source: str, overwrite: bool) -> None:
        """Raise InputError if writing the output would destroy something not meant."""
        with refusing(source):
            read = self._qualified(self._spark, source).toString()
        written = self._path.toString()
        if f"{read}/".startswith(f"{written}/") or f"{written}/".startswith(f"{read}/"):
            raise InputError(f"{self._output}: is in the input, or the input in it; choose another")
        with refusing(self._output):
            self._settle()
            if not self._files.exists(self._path):
                return
            if not overwrite:
                raise InputError(f"{self._output}: is there already; --overwrite replaces it")
            if name := self._foreign(self._path):
                raise InputError(
                    f"{self._output}: holds {name}, which Spark did not write, and "
                    "--overwrite would delete it; choose another folder"
                )

    def _settle(self) -> None:
        """End what a process began that was killed in write, around its two renames.

        If the new output has its name, the old one goes; if not, the old one gets its name back.
        """
        if not self._files.exists(self._old):
            return
        if not self._files.exists(self._path):
            if not self._files.rename(self._old, self._path):
                raise InputError(f"{self._output}: is in {self._old.getName()}; rename it back")
        elif name := self._foreign(self._old):
            raise InputError(
                f"{self._output}: {self._old.getName()} beside it holds {name}, which Spark did "
                "not write; move that folder away"
            )
        else:
            self._files.delete(self._old, True)

    def _foreign(self, path: Any) -> str | None:
        """The name of something in a folder that Spark did not write; None for a file."""
        if self._files.getFileStatus(path).isDirectory():
            for status in self._files.listStatus(path):
                name = status.getPath().getName()
                if not name.startswith(("part-", "_", ".")):
                    return name
        return None

    def write(self, table: "DataFrame") -> None:
        """Write beside the output, then rename; on failure, nothing of it stays."""
        try:
            with refusing(self._output):
                table.write.mode("overwrite").parquet(self._part_uri)
                replaced = self._files.exists(self._path)
                if replaced and not self._files.rename(self._path, self._old):
                    raise InputError(f"{self._output}: cannot be replaced; look at its permissions")
                if not self._files.rename(self._part, self._path):
                    raise InputError(f"{self._output}: cannot be made; look at its permissions")
                if replaced:
                    self._files.delete(self._old, True)
        except Exception:
            with suppress(Exception):
                if not self._files.exists(self._path):
                    self._files.rename(self._old, self._path)
            with suppress(Exception):
                self._files.delete(self._part, True)
            raise
        except BaseException:  # a signal; Java still waits for the job and answers nothing else
            end(self._gateway.proc)
            if self._part_uri.startswith("file:/"):
                shutil.rmtree(self._part_uri.removeprefix("file:"), ignore_errors=True)
                path, old = (uri.removeprefix("file:") for uri in self._uris)
                if os.path.exists(old) and not os.path.exists(path):
                    os.rename(old, path)
            raise


@contextmanager
def session(master: str, settings: Mapping[str, str] | None = None) -> Iterator["SparkSession"]:
    """A Spark session with our settings, in a Java of its own that ends with it.

    Raises InputError if Spark does not start.
    """
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="storyflower-") as scratch:
        warnings.filterwarnings("ignore", PANDAS_3)
        from pyspark import SparkConf, SparkContext
        from pyspark.errors import PySparkRuntimeError
        from pyspark.java_gateway import launch_gateway
        from pyspark.sql import SparkSession

        if master.startswith("local"):  # on a cluster, PYSPARK_PYTHON names the workers' Python
            os.environ["PYSPARK_PYTHON"] = sys.executable
        conf = SparkConf(loadDefaults=False)
        conf.setAll(list({**defaults(master, Path(scratch)), **(settings or {})}.items()))
        gateway = None
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            with printing() as (end_of_pipe, last_lines):
                try:
                    with utf8_for_java():
                        gateway = launch_gateway(
                            conf, {"stdout": end_of_pipe, "stderr": end_of_pipe}
                        )
                except PySparkRuntimeError:
                    end_of_pipe.close()
                    raise InputError(f"{master}: Spark did not start: {last_lines()}") from None
            with refusing(master):
                SparkContext(conf=conf, gateway=gateway)
                spark = SparkSession.builder.getOrCreate()
            give_back(interrupt)  # pyspark handles Ctrl-C in its own way, with a traceback
            yield spark
            spark.stop()
        finally:
            give_back(interrupt)
            if gateway is not None:
                end(gateway.proc)
            SparkContext._gateway = SparkContext._jvm = SparkContext._active_spark_context = None
            SparkSession._instantiatedSession = None


def defaults(master: str, scratch: Path) -> dict[str, str]:
    """Spark's settings; `scratch` is a folder that only the owner can read."""
    log = scratch / "log4j2.properties"
    log.write_text(LOG4J, encoding="utf-8")
    values = {
        "spark.app.name": "storyflower",
        "spark.master": master,
        "spark.ui.enabled": "false",
        "spark.python.worker.reuse": "true",  # a worker keeps the model in memory
        "spark.sql.caseSensitive": "true",
        "spark.sql.warehouse.dir": (scratch / "warehouse").as_uri(),
        "spark.hadoop.fs.permissions.umask-mode": "077",
        "spark.hadoop.parquet.page.verify-checksum.enabled": "true",  # Spark writes them
        "spark.driver.extraJavaOptions": (
            f'"-Dlog4j2.configurationFile={log.as_uri()}" "-Djava.io.tmpdir={scratch}"'
        ),
        # OMP_NUM_THREADS is spark.task.cpus: Spark itself sees to that.
        "spark.executorEnv.TOKENIZERS_PARALLELISM": "false",
        "spark.executorEnv.MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "spark.executorEnv.MLFLOW_DISABLE_TELEMETRY": "true",
        "spark.executorEnv.PYTHONWARNINGS": f"ignore:{PANDAS_3}:FutureWarning",
    }
    if master.startswith("local"):
        values |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.local.dir": str(scratch),
        }
    return values


def check_installed() -> None:
    """Raise InputError if there is no pyspark, or no Java that is new enough for it."""
    if importlib.util.find_spec("pyspark") is None:
        raise InputError(
            f"{sys.executable} has no package pyspark; type: pip install -r requirements-spark.txt "
            "(491 MB)"
        )
    home = os.environ.get("JAVA_HOME")
    remedy = f"Spark needs {JAVA} or newer; on Debian: apt-get install openjdk-17-jre-headless"
    try:
        done = subprocess.run(
            [Path(home, "bin/java") if home else "java", "-version"],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        where = f"JAVA_HOME={home} holds" if home else "there is"
        raise InputError(f"{where} no Java; {remedy}") from None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    if found and int(found[1]) < JAVA:
        raise InputError(f"Java is {found[1]}; {remedy}")


@contextmanager
def utf8_for_java() -> Iterator[None]:
    """Java opens files with Korean names in a UTF-8 locale alone, and has no option for it."""
    before = os.environ.get("LC_ALL")
    if codecs.lookup(locale.nl_langinfo(locale.CODESET)).name != "utf-8":
        os.environ["LC_ALL"] = "C.UTF-8"
    try:
        yield
    finally:
        os.environ.pop("LC_ALL", None)
        if before is not None:
            os.environ["LC_ALL"] = before


@contextmanager
def printing() -> Iterator[tuple[IO[str], Callable[[], str]]]:
    """A pipe for what Java prints. Spark's own lines go on to stderr, and so does its progress.

    Also yields a function that returns the last error among the other lines.
    """
    reading, writing = os.pipe()
    lines: deque[str] = deque(maxlen=100)
    terminal = sys.stderr.isatty()

    def relay() -> None:
        with open(reading, encoding="utf-8", errors="replace") as stream:  # \r ends a line, too
            for line in stream:
                if line.startswith(SHOWN):
                    sys.stderr.write(line)
                elif line.startswith("[Stage") and terminal:
                    sys.stderr.write(f"\r{line.rstrip()}\x1b[K")
                    sys.stderr.flush()
                else:
                    lines.append(line)

    def last_error() -> str:
        thread.join(STOP_SECONDS)
        found = [line for line in lines if re.search("error|exception", line, re.IGNORECASE)]
        message = (found or list(lines) or ["no message"])[-1]
        return one_line(re.sub(r'^Exception in thread "\S+" ', "", message))

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    with open(writing, "w", encoding="utf-8") as pipe:
        yield pipe, last_error


def give_back(interrupt: Any) -> None:
    """Set the handler of Ctrl-C; only the main thread can, and only there pyspark has."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)


def end(process: subprocess.Popen) -> None:
    """End Java; its own clean-up stops the workers and removes its temporary files."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn an exception of Spark's into an InputError about `what`."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        raise InputError(f"{what}: {reason(str(error))}") from None


def reason(message: str) -> str:
    """What went wrong, on one line, of a message that may hold the stack traces of two languages.

    Of an exception in a worker only its type and its place: its words may quote a diary.
    """
    if places := re.findall(r'^ *File "(.*)", line (\d+)', message, re.MULTILINE):
        kinds = re.findall(r"^([A-Za-z_][\w.]*)(?::|$)", message, re.MULTILINE) or ["an error"]
        file, line = places[-1]
        return f"{kinds[-1]} in a worker, at {file}:{line}"
    conditions = re.findall(r"\[([A-Z][A-Z0-9_]+)[A-Z0-9_.]*\] (.*)", message)
    for condition, _ in conditions:
        if condition in CONDITIONS:
            return CONDITIONS[condition]
    causes = re.findall(r"\b(?:[a-z]\w*\.)+([A-Z]\w*(?:Exception|Error): .*)", message)
    words = causes[-1] if causes else conditions[-1][1] if conditions else message
    return one_line(re.sub(r" SQLSTATE: \w+", "", words))
