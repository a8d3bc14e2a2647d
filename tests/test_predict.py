"""Text → emotion, from a program and from the command line."""

import copy
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from storyflower import Classifier, __version__, predict
from storyflower.__main__ import main
from storyflower.answers import SUFFIXES
from storyflower.common.errors import exit_with_line
from storyflower.interim.labels import LabelIndex
from storyflower.model.device import Placement
from storyflower.model.folder import build_classifier, save_classifier
from tests.support import ROOT, WORDS

SENTENCES = {"심장이 뛰어": "불안", "합격했어 웃음이 나": "기쁨", "따지고 싶어": "분노"}


@pytest.fixture(scope="module")
def loaded(classifier: Path) -> Classifier:
    return Classifier.load(classifier, device="cpu")


def test_three_texts_in_their_order(loaded: Classifier) -> None:
    found = loaded.predict(list(SENTENCES))
    assert [row.label for row in found] == list(SENTENCES.values())
    assert set(loaded.labels) == set(WORDS)
    for row in found:
        assert set(row.probabilities) == set(WORDS)
        shares = list(row.probabilities.values())
        assert sum(shares) == pytest.approx(1, abs=1e-6)
        assert shares == sorted(shares, reverse=True)
        assert row.label == next(iter(row.probabilities))


def test_the_other_texts_of_a_batch_change_nothing(loaded: Classifier) -> None:
    texts = [*SENTENCES, "잠이 안 와 " * 9, "합격했어"]
    together = loaded.predict(texts)
    for text, row in zip(texts, together, strict=True):
        (alone,) = loaded.predict([text])
        assert alone.label == row.label
        assert alone.probabilities == pytest.approx(row.probabilities, abs=1e-5)
    assert loaded.predict(texts) == together  # dropout is off


def test_no_texts_and_one_text_that_is_no_list(loaded: Classifier) -> None:
    assert loaded.predict([]) == []
    with pytest.raises(TypeError, match="a list of texts, not one text"):
        loaded.predict("합격했어")


def test_texts_that_are_hard_to_read(loaded: Classifier) -> None:
    """Longer than max_len, only emoji, empty, NFD, a line break."""
    start = "심장이 뛰어 " * 20
    texts = [start, start + "합격했어 " * 10_000, "😀🎉", "", "합격했어", "합격\n했어"]
    found = loaded.predict(texts)
    # What is beyond max_len is not read.
    assert found[0].probabilities == pytest.approx(found[1].probabilities, abs=1e-6)
    for row in found:
        assert sum(row.probabilities.values()) == pytest.approx(1, abs=1e-6)


@pytest.fixture(scope="module")
def wordpiece(interim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose vocabulary is the syllables of WORDS; it has learned nothing."""
    folder = tmp_path_factory.mktemp("wordpiece")
    encoder = shutil.copytree(interim / "encoder", folder / "encoder")
    (encoder / "spiece.model").unlink()
    syllables = sorted({*"".join(words for group in WORDS.values() for words in group)} - {" "})
    pieces = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    pieces += syllables + [f"##{syllable}" for syllable in syllables]
    (encoder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (encoder / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    card = json.loads((encoder / "card.json").read_text(encoding="utf-8"))
    card |= {"tokenizer": "wordpiece"}
    (encoder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    labels = LabelIndex.load(interim / "labels.json")
    facts = {"params": {"max_len": 16, "dr_rate": 0.1}}
    network = build_classifier(encoder, len(labels), 0.1)
    save_classifier(network, folder / "classifier", encoder=encoder, labels=labels, facts=facts)
    return folder / "classifier"


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("bare", [True, False])
def test_a_folder_that_is_written_over_after_loading(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: bool
) -> None:
    """cp onto a model in use keeps the file and changes its bytes; what is loaded stays."""
    if not bare:  # as of a family that transformers reads
        monkeypatch.setattr("storyflower.model.folder.bare_encoder", lambda _: None)
    folder = shutil.copytree(classifier, tmp_path / "classifier")
    loaded = Classifier.load(folder, device="cpu")
    before = loaded.predict(list(SENTENCES))
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as inside:
            inside.write(bytes(file.stat().st_size))
    assert loaded.predict(list(SENTENCES)) == before


def test_text_is_read_as_nfc(wordpiece: Path) -> None:
    """As macOS writes it, a WordPiece vocabulary would know no word of it."""
    loaded = Classifier.load(wordpiece, device="cpu")
    texts = list(SENTENCES)
    assert [nfd(text) for text in texts] != texts
    assert loaded.predict([nfd(text) for text in texts]) == loaded.predict(texts)
    shares = loaded.unknown_shares([nfd(texts[0]), texts[0], "", "심장이 뒓"])
    assert shares.tolist() == [0, 0, 0, 0.25]


def in_child(work: Callable[[], object]) -> int | None:
    """The exit status of a forked process that does some work; None where it hangs."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    for _ in range(300):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test_a_fork_after_use(loaded: Classifier) -> None:
    """As gunicorn --preload and multiprocessing do; with two threads it would wait for ever."""
    import torch

    before, texts = torch.get_num_threads(), list(SENTENCES) * 500
    try:
        torch.set_num_threads(2)
        found = loaded.predict(texts)
        labels = [row.label for row in found]

        def work() -> None:
            assert [row.label for row in loaded.predict(texts)] == labels
            assert in_child(lambda: loaded.predict(texts)) == 0

        assert in_child(work) == 0
    finally:
        torch.set_num_threads(before)


def test_a_fork_after_loading_on_a_gpu(loaded: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(loaded, "_placement", Placement(torch.device("cuda"), "fp32", "1 GPU"))

    def work() -> None:
        with pytest.raises(RuntimeError, match="loaded on cuda before a fork"):
            loaded.predict(["합격했어"])

    assert in_child(work) == 0


def test_what_a_program_may_do_with_a_classifier(loaded: Classifier) -> None:
    """A copy is the same one, for it never changes; a pickle would carry the weights to workers."""
    assert copy.deepcopy([loaded]) == [loaded] and copy.copy(loaded) is loaded
    with pytest.raises(TypeError, match="cannot be pickled; load it in each process: Classifier.l"):
        pickle.dumps(loaded)


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[..., Done]:
    """python -m storyflower predict, with the classifier where it is looked for."""

    def call(*words: str, stdin: bytes = b"", model: Path | None = None) -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        model = ["--model", str(model or classifier)]
        monkeypatch.setattr(sys, "argv", ["storyflower", "predict", *model, *words])
        try:
            exit_with_line(main)
            code = 0
        except SystemExit as stop:
            code = stop.code
        return Done(code, *capfd.readouterr())

    return call


def test_sentences_as_arguments(call, loaded: Classifier) -> None:
    done = call(*SENTENCES)
    assert (done.code, done.err) == (0, "")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [(row, label) for row, label, _ in lines] == [
        (str(number), label) for number, label in enumerate(SENTENCES.values(), start=1)
    ]
    for (_, _, shares), row in zip(lines, loaded.predict(list(SENTENCES)), strict=True):
        assert shares == "  ".join(f"{k} {p:.1%}" for k, p in row.probabilities.items())
    shown = call("--show-text", *SENTENCES)
    assert shown.out.splitlines() == [
        "\t".join([*line, text]) for line, text in zip(lines, SENTENCES, strict=True)
    ]


def test_json_lines(call, loaded: Classifier) -> None:
    done = call("--json", "--show-text", *SENTENCES)
    assert (done.code, done.err) == (0, "")
    rows = [json.loads(line) for line in done.out.splitlines()]
    found = loaded.predict(list(SENTENCES))
    for number, (row, text, each) in enumerate(zip(rows, SENTENCES, found, strict=True), start=1):
        expected = {"row": number, "label": each.label, "probabilities": each.probabilities}
        assert row == expected | {"text": text, "temperature": None}
    assert "심장이 뛰어" in done.out  # readable, not \\uc2ec
    without = call("--json", *SENTENCES)
    assert [json.loads(line) | {"text": ""} for line in without.out.splitlines()] == [
        row | {"text": ""} for row in rows
    ]
    assert "text" not in without.out


def test_lines_of_standard_input(call) -> None:
    """As Windows writes them: a byte order mark, \\r\\n, and blank lines, which count."""
    text = "\ufeff\r\n" + "\r\n  \r\n".join(SENTENCES) + "\r\n\r\n"
    done = call("--show-text", stdin=text.encode("utf-8"))
    assert (done.code, done.err) == (0, "")
    expected = call("--show-text", *SENTENCES).out.splitlines()
    for number, line, like in zip([2, 4, 6], done.out.splitlines(), expected, strict=True):
        assert line == f"{number}\t{like.partition(chr(9))[2]}"
    marked = call("--json", "--show-text", stdin="\ufeff합격했어".encode())
    assert json.loads(marked.out)["text"] == "합격했어"


@pytest.mark.parametrize("stdin", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_no_sentence(call, stdin: bytes) -> None:
    done = call(stdin=stdin)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: no sentence given; put one in quotes or send lines to standard input\n"
    )


def test_standard_input_that_is_not_utf8(call) -> None:
    done = call(stdin="합격했어".encode("cp949"))
    assert done == (1, "", "error: standard input is not utf-8\n")


def test_no_classifier(call, tmp_path: Path) -> None:
    done = call("합격했어", model=tmp_path / "none")
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "none") in line and "dvc repro" in line


def test_another_command_is_told_how_to_predict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["storyflower", "train"])
    with pytest.raises(SystemExit) as stop:
        exit_with_line(main)
    assert stop.value.code == 2
    assert "no such command, see --help; a sentence goes behind predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--version"], f"storyflower {__version__}\n"),
        (["--help"], "usage: storyflower [-h]"),
        (["predict", "--help"], "usage: storyflower predict [-h]"),
        (["card", "--help"], "usage: storyflower card [-h] name source"),
        (["lock", "--help"], "usage: storyflower lock [-h] name"),
        (["sync", "--help"], "usage: storyflower sync [-h]"),
    ],
)
def test_help_and_version(capsys: pytest.CaptureFixture, words: list[str], expected: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(expected)


# Sentences that are not plain words

DASHED = ["-_- 심장이 뛰어", "-_-심장이", "-ㅅ-", "--", "--- 합격", "-1", "--합격=했어", "-(합격)"]


def test_sentences_that_begin_with_a_dash(call) -> None:
    expected = call("--show-text", stdin="\n".join([*DASHED, "--json"]).encode())
    assert (expected.code, expected.out.count("\n")) == (0, len(DASHED) + 1)
    given = [sentence for sentence in DASHED if sentence != "--"]
    plain = call(*given, "--show-text").out.splitlines()
    assert [line.split("\t")[1:] for line in plain] == [
        line.split("\t")[1:] for line in expected.out.splitlines() if line.split("\t")[-1] in given
    ]
    assert call("--show-text", "--", *DASHED, "--json") == expected


@pytest.mark.parametrize("name", [f"내 일기{suffix.upper()}" for suffix in SUFFIXES] + ["일기"])
def test_the_name_of_a_file_is_no_sentence(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "일기").write_text("합격했어", encoding="utf-8")
    done = call("합격했어", name)
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: sentence 2 is the name of a file; predict --input FILE")
    assert "일기" not in line


def test_a_long_sentence_is_read_whole(call, loaded: Classifier) -> None:
    text = "합격했어 " * 30 + "심장이 뛰어 " * 60
    assert loaded.is_cut([text])[0]
    whole, cut = loaded.read(text), loaded.predict([text])[0]
    assert whole.probabilities != cut.probabilities
    assert json.loads(call("--json", text).out)["probabilities"] == whole.probabilities


def test_a_sentence_too_long_for_a_file(call) -> None:
    assert call("합격했어 " * 5000).code == 0


def test_arguments_in_another_encoding(call) -> None:
    bytes_of = "합격했어".encode("cp949").decode("utf-8", "surrogateescape")
    done = call("합격했어", bytes_of)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: sentence 2 is not UTF-8; ") and done.err.count("\n") == 1
    done = call("--input", "a.csv", "--output", "b.csv", "--column", bytes_of)
    assert done == (1, "", "error: --column is not UTF-8; set the terminal to UTF-8\n")


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_ends_a_line(call, inside: str, end: str) -> None:
    done = call("--json", stdin=f"합격했어{inside}웃음이 나{end}{end}심장이 뛰어{end}".encode())
    assert [json.loads(line)["row"] for line in done.out.splitlines()] == [1, 3]


def test_lines_that_say_nothing(call) -> None:
    done = call(stdin="None\n합격했어\n\u3164\n-\n\u2800\nN/A\n심장이 뛰어".encode())
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["2", "7"]


def test_sentences_of_unknown_words_are_named_by_their_numbers(call, wordpiece: Path) -> None:
    lacks = "the encoder's vocabulary lacks those words, so the label says little\n"
    done = call("심장이 뛰어", "뷁뷁 뒓", "합격했어", model=wordpiece)
    assert done.out.count("\n") == 3
    assert done.err == f"note: row 2 is mostly [UNK]: {lacks}"
    done = call(*["뷁뷁 뒓"] * 12, model=wordpiece)
    assert done.err == (
        f"note: rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more are mostly [UNK]: {lacks}"
    )


def test_unknown_words_of_sentencepiece(loaded: Classifier) -> None:
    """It knows the blank before each of them."""
    shares = loaded.unknown_shares(["뷁 뒓 쀍", "합격했어 웃음이 나"])
    assert shares[0] >= predict.MOSTLY > shares[1]


# Diaries, unsure answers and words

DIARY = "심장이 뛰어. 따지고 싶어!\n합격했어 웃음이 나"


def test_a_diary(call, loaded: Classifier) -> None:
    reading = loaded.read(DIARY)
    expected = [("whole", reading.label, listed(reading.probabilities))]
    expected += [
        (str(number), piece.label, listed(piece.probabilities))
        for number, piece in enumerate(reading.pieces, start=1)
    ]
    assert len(expected) == 4
    for done in (call("--diary", *DIARY.split("\n")), call("--diary", stdin=DIARY.encode())):
        assert (done.code, done.err) == (0, "")
        assert [tuple(line.split("\t")) for line in done.out.splitlines()] == expected
    shown = call("--diary", "--show-text", stdin=DIARY.encode())
    assert [line.split("\t")[3:] for line in shown.out.splitlines()] == [
        [],
        *([piece.text] for piece in reading.pieces),
    ]


def listed(probabilities: dict[str, float]) -> str:
    return "  ".join(f"{name} {p:.1%}" for name, p in probabilities.items())


@pytest.mark.parametrize("words", [[], ["--show-text"]])
def test_a_diary_as_json(call, loaded: Classifier, words: list[str]) -> None:
    done = call("--diary", "--json", "--explain", *words, stdin=DIARY.encode())
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    reading = loaded.read(DIARY)
    pieces = []
    for number, piece in enumerate(reading.pieces, start=1):
        answer = loaded.explain(piece.text)  # read beside other texts: its last bits may differ
        explained = [vars(word).copy() for word in answer.words]
        row = {"piece": number, **vars(piece), **vars(answer), "words": explained}
        for part in [row, *explained] if not words else []:
            del part["text"]
        pieces.append(row)
    assert json.loads(done.out) == {
        "label": reading.label,
        "probabilities": reading.probabilities,
        "pieces": pieces,
        "temperature": None,
    }


@pytest.mark.parametrize("words", [[], ["--diary"]])
def test_unsure_answers(call, words: list[str]) -> None:
    done = call("--unsure-below", "1", *words, *SENTENCES)
    assert done.code == 0
    rows = [line.split("\t")[1] for line in done.out.splitlines()]
    assert rows == [predict.UNSURE] * (3 + bool(words))
    assert predict.UNSURE not in call("--unsure-below", "0", *words, *SENTENCES).out


@pytest.mark.parametrize("value", ["-1", "1.1", "nan", "half", "합격했어"])
def test_a_share_that_is_none(call, value: str) -> None:
    done = call("--unsure-below", value, "합격했어")
    line = "error: --unsure-below must be a number from 0 to 1, such as 0.5\n"
    assert done == (1, "", line)


def test_words(call, loaded: Classifier) -> None:
    done = call("--explain", "--show-text", *SENTENCES)
    lines = [line.split("\t") for line in done.out.splitlines()]
    plain = call("--show-text", *SENTENCES).out.splitlines()
    assert ["\t".join(line) for line in lines if line[0]] == plain
    assert [line for line in lines if not line[0]] == [
        ["", f"word {place}", f"{100 * word.change:+.1f}", word.text]
        for text in SENTENCES
        for place, word in enumerate(loaded.explain(text).words, start=1)
    ]
    hidden = call("--explain", *SENTENCES).out
    assert not any(word in hidden for text in SENTENCES for word in text.split())


def test_a_text_too_long_to_explain(call) -> None:
    long = "합격했어 " * 50
    done = call("--explain", "심장이 뛰어", long)
    assert done == (
        1,
        "",
        "error: row 2: more than 16 token ids; add --diary, which explains it piece by piece\n",
    )
    assert call("--explain", "--diary", long).code == 0


@pytest.mark.parametrize("words", [["--diary"], ["--diary", "--json"]])
@pytest.mark.parametrize("stdin", [b"", b" \n\t\n", "\u3164".encode()])
def test_no_diary(call, words: list[str], stdin: bytes) -> None:
    line = "error: no text given; put the diary in quotes or send it to standard input\n"
    assert call(*words, stdin=stdin) == (1, "", line)


@pytest.mark.parametrize("option", ["--diary", "--explain"])
def test_a_spreadsheet_is_no_diary(call, option: str) -> None:
    done = call(option, "--input", "a.csv", "--output", "b.csv")
    line = "error: --diary, --explain, --json and --show-text are for sentences, not for --input\n"
    assert done == (1, "", line)


def test_pieces_of_unknown_words_are_named_by_their_numbers(call, wordpiece: Path) -> None:
    done = call("--diary", "심장이 뛰어. 뷁뷁 뒓", model=wordpiece)
    assert done.err.startswith("note: piece 2 is mostly [UNK]: ")


# Where the output goes


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], io.BytesIO]:
    """Puts a standard output of some encoding in the place of pytest's."""

    def output(encoding: str) -> io.BytesIO:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        return raw

    return output


@pytest.mark.parametrize(
    ("encoding", "reads_as", "shown"),
    [
        ("utf-8", "utf-8", "합격했어 😀"),
        ("cp949", "cp949", "합격했어 \\U0001f600"),
        ("euc-kr", "euc-kr", "합격했어 \\U0001f600"),
        ("ascii", "utf-8", "합격했어 😀"),
        ("latin-1", "utf-8", "합격했어 😀"),
    ],
)
def test_an_output_that_cannot_hold_it(
    call, output, encoding: str, reads_as: str, shown: str
) -> None:
    raw = output(encoding)
    assert call("--show-text", "합격했어 😀").code == 0
    row, label, _, text = raw.getvalue().decode(reads_as).rstrip("\n").split("\t")
    assert (row, label, text) == ("1", "기쁨", shown)

    raw = output(encoding)
    assert call("--show-text", "--json", "합격했어 😀").code == 0
    row = json.loads(raw.getvalue().decode(encoding))  # a program reads what it asked for
    assert (row["label"], row["text"]) == ("기쁨", "합격했어 😀")


@pytest.mark.parametrize(
    ("closed", "words", "complaint"),
    [
        ("stdin", [], "no sentence given; put one in quotes or send lines to standard input"),
        ("stdout", ["합격"], "standard output is closed; there is nowhere to write the answer to"),
    ],
)
def test_closed_streams(
    classifier: Path, monkeypatch, capfd, closed: str, words: list[str], complaint: str
) -> None:
    monkeypatch.setattr(sys, closed, None)  # as Python does for `<&-`
    monkeypatch.setattr(sys, "argv", ["", "predict", *words, "--model", str(classifier)])
    with pytest.raises(SystemExit) as stop:
        exit_with_line(main)
    assert (stop.value.code, capfd.readouterr()) == (1, ("", f"error: {complaint}\n"))


def test_a_closed_standard_error_writes_nothing_into_the_answer(
    call, output, wordpiece: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = output("utf-8")
    monkeypatch.setattr(sys, "stderr", None)
    assert call("--json", "뷁뷁 뒓", model=wordpiece).code == 0
    assert json.loads(raw.getvalue())["row"] == 1


def without_reader() -> int:
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def run_into(stdout: int | io.IOBase, *words: str) -> tuple[int, bytes]:
    """A command as a process: what Python says when it ends counts, too."""
    done = subprocess.run(
        [sys.executable, "-m", "storyflower", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_nobody_reads_any_more() -> None:
    """As `| head -1` does."""
    with open(without_reader(), "wb") as pipe:
        assert run_into(pipe, "predict", "--help") == (128 + signal.SIGPIPE, b"")


def test_nobody_reads_the_answer_any_more(call, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(without_reader(), "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        done = call(*["합격했어"] * 500)
    assert done == (128 + signal.SIGPIPE, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_no_room_for_the_answer() -> None:
    line = b"error: no space left on device; make room and run it again\n"
    with open("/dev/full", "wb") as full:
        assert run_into(full, "--version") == (1, line)
