"""Text → emotion, from a program and from the command line."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import WORDS

from storyflower import Classifier
from storyflower.__main__ import main
from storyflower.errors import exit_with_line

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
    assert found[0] == found[1]  # what is beyond max_len is not read
    for row in found:
        assert sum(row.probabilities.values()) == pytest.approx(1, abs=1e-6)


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
        monkeypatch.setattr(sys, "argv", ["storyflower", "predict", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--model", str(model or classifier)])
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
    assert [(text, label) for label, _, text in lines] == list(SENTENCES.items())
    for (_, shares, text), row in zip(lines, loaded.predict(list(SENTENCES)), strict=True):
        assert shares == "  ".join(f"{k} {p:.1%}" for k, p in row.probabilities.items()), text


def test_json_lines(call, loaded: Classifier) -> None:
    done = call("--json", *SENTENCES)
    assert (done.code, done.err) == (0, "")
    rows = [json.loads(line) for line in done.out.splitlines()]
    for row, text, found in zip(rows, SENTENCES, loaded.predict(list(SENTENCES)), strict=True):
        assert row == {"text": text, "label": found.label, "probabilities": found.probabilities}
    assert "심장이 뛰어" in done.out  # readable, not \\uc2ec


def test_lines_of_standard_input(call) -> None:
    """As Windows writes them: a byte order mark, \\r\\n, and blank lines between."""
    text = "\ufeff\r\n" + "\r\n  \r\n".join(SENTENCES) + "\r\n\r\n"
    done = call(stdin=text.encode("utf-8"))
    assert (done.code, done.err) == (0, "")
    assert done.out == call(*SENTENCES).out
    marked = call("--json", stdin="\ufeff합격했어".encode())
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
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("error: usage: python -m storyflower predict")
