"""Text files and public corpora → texts: what is read, and what is refused in one line."""

import csv
import gzip
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest

from pretrain import corpora
from pretrain.texts import NO_LABEL, read_texts
from storyflower.common.errors import InputError
from tests.support import dialogue_rows, write_workbook


def zipped(content: bytes) -> bytes:
    """The same bytes at any time: the processes that run the tests must collect the same ids."""
    return gzip.compress(content, mtime=0)


def test_distinct_texts_in_order_with_the_label_of_the_first_task(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("하나\n\n둘 \n하나\n셋\n", encoding="utf-8")
    rated = tmp_path / "rated.tsv.gz"
    rated.write_bytes(zipped("좋음\t둘\n나쁨\t넷\n".encode()))
    felt = tmp_path / "felt.tsv"
    felt.write_text(unicodedata.normalize("NFD", "기쁨\t둘\n슬픔\t다섯\n"), encoding="utf-8")
    texts = read_texts([plain, rated, felt])
    assert list(texts.label_of) == ["하나", "둘", "셋", "넷", "다섯"]
    assert texts.classes == {"felt": {"기쁨": 0, "슬픔": 1}, "rated": {"나쁨": 2, "좋음": 3}}
    assert texts.labels.tolist() == [NO_LABEL, 3, NO_LABEL, 2, 1]  # 둘 was rated first
    assert texts.tasks == {"felt": ["기쁨", "슬픔"], "rated": ["나쁨", "좋음"]}


def test_a_task_has_the_whole_name_of_its_file(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("v1.good.tsv", "v1.felt.tsv.gz", "a/v1.good.tsv.gz")]
    (tmp_path / "a").mkdir()
    for file, label in zip(files, ("좋음", "기쁨", "나쁨"), strict=True):
        content = f"{label}\t하나 {label}\n다른 것\t둘 {label}\n".encode()
        file.write_bytes(zipped(content) if file.suffix == ".gz" else content)
    assert list(read_texts(files[:2]).classes) == ["v1.felt", "v1.good"]
    with pytest.raises(InputError, match="its task is v1.good, as that of .*v1.good.tsv; rename"):
        read_texts(files)


def test_labels_are_shown_with_their_counts_and_no_text_is(tmp_path: Path, capsys) -> None:
    lines = ["좋음\t하나", "좋음\t둘", "나쁨\t셋", "나쁨\t넷", "나쁜\t다섯", "남음\t하나"]
    (tmp_path / "rated.tsv").write_text("\n".join(lines), encoding="utf-8")
    read_texts([tmp_path / "rated.tsv"])
    out, err = capsys.readouterr()
    assert out.endswith("rated.tsv: 4 labels: 나쁜 1, 나쁨 2, 남음 0, 좋음 2\n")
    assert "at most one text has the label 나쁜, 남음; is it misspelled?" in err
    assert not any(text in out + err for text in ("하나", "둘", "셋", "넷", "다섯"))


@pytest.mark.parametrize("name", ["none.txt", "folder.txt"])
def test_what_is_no_file_is_refused_before_any_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "a.txt").write_bytes(b"")  # would be refused for its content
    with pytest.raises(InputError, match=f"{name}: not "):
        read_texts([tmp_path / "a.txt", tmp_path / name])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b"\n \n", "the file is empty"),
        ("a.txt", "한 줄".encode(), "holds one line; expected one text a line"),
        ("a.txt", "하나\n둘".encode("cp949"), "line 1: not utf-8; save the file as utf-8"),
        ("a.txt.gz", "하나\n둘".encode(), "damaged or truncated gzip, after line 0"),
        ("a.txt.gz", zipped("하나\n둘\n".encode())[:-9], "damaged or truncated gzip"),
        ("a.csv", "하나\n둘".encode(), "expected .txt or .tsv, as it is or with .gz"),
        ("a.tsv", "좋음\t하나\n둘".encode(), "line 2: expected a label, one tab and a text"),
        ("a.tsv", "좋음\t하나\n좋음\t둘\t셋".encode(), "line 2: expected a label, one tab"),
        ("a.tsv", "좋음\t하나\n좋음\t둘".encode(), "a.tsv: 1 labels, expected 2 to 100"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, name, content, expected) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        read_texts([tmp_path / name])
    assert name in str(error.value) and expected in str(error.value)


def write_gz(path: Path, rows: list[list[str]], delimiter: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        if delimiter == ",":
            csv.writer(file).writerows(rows)
        else:
            file.write("".join("\t".join(row) + "\n" for row in rows))


RATINGS, EMOTIONS = [["id", "document", "label"]], [["text", "labels"]]


def write_corpora(root: Path, ratings: list[list[str]], emotions: list[list[str]]) -> list[str]:
    """Small files of each corpus; return the command line that reads them into root/new/texts."""
    write_gz(root / "nsmc/ratings_train.tsv.gz", [*RATINGS, *ratings], "\t")
    # Some are written with another blank; they are the same review.
    reviews = [["  ".join(row[1].split(" ", 1))] for row in ratings]
    write_gz(root / "nsmc/reviews.txt.gz", reviews, "\t")
    chat = [["Q", "A", "label"], ["배고파,\n정말", "드세요", "0"]]
    write_gz(root / "chat/ChatbotData.csv.gz", chat, ",")
    write_gz(root / "goemo/train.tsv.gz", [*EMOTIONS, *emotions], "\t")
    rows = dialogue_rows(6, seed=1)
    write_workbook(root / "corpus/Training.xlsx", rows)
    write_workbook(root / "corpus/Validation.xlsx", rows[::-1])
    places = [f"--{name}={root / name}" for name in ("nsmc", "chat", "goemo", "corpus")]
    return ["corpora", *places, f"--output={root / 'new/texts'}"]


def test_a_tenth_of_the_ratings_is_seen_by_no_task(tmp_path: Path, monkeypatch, capsys) -> None:
    ids = [str(number) for number in range(200)]
    ratings = [[id_, f'평 {id_} "그냥', str(int(id_) % 2)] for id_ in ids]
    emotions = [["와", "joy"], ["음", "joy|fear"]]
    monkeypatch.setattr(sys, "argv", write_corpora(tmp_path, ratings, emotions))
    corpora.main()
    written = {
        path.name: path.read_text(encoding="utf-8").splitlines()
        for path in (tmp_path / "new/texts").iterdir()
    }
    kept = [f'평 {id_} "그냥' for id_ in ids if not corpora.is_test(id_)]
    assert 160 < len(kept) < 195
    assert written["reviews.txt"] == kept
    assert [line.partition("\t")[2] for line in written["ratings.tsv"]] == kept
    assert {line.partition("\t")[0] for line in written["ratings.tsv"]} == {"부정", "긍정"}
    assert written["chat.txt"] == ["배고파, 정말", "드세요"]
    assert written["goemotions.txt"] == ["와", "음"]
    assert written["goemotions.tsv"] == ["joy\t와"]
    assert len(written["diaries.txt"]) == 18  # two turns of six dialogues, and both together


HEADER = b"id\tdocument\tlabel\n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("goemo", None, "--goemo .*goemo: no such folder$"),
        ("nsmc/reviews.txt.gz", None, "reviews.txt.gz: not found; --nsmc names its folder$"),
        ("nsmc/reviews.txt.gz", b"not gzip", "reviews.txt.gz: damaged or truncated gzip"),
        ("nsmc/reviews.txt.gz", zipped(b"a" * 9)[:-9], "damaged or truncated gzip"),
        ("nsmc/reviews.txt.gz", zipped("평".encode("cp949")), "reviews.txt.gz: not utf-8"),
        ("nsmc/ratings_train.tsv.gz", zipped(HEADER + b"1\ta\t\n"), "row 1: the label must"),
        ("nsmc/ratings_train.tsv.gz", zipped(HEADER + b"1\ta\t-1\n"), "must be 0 or 1$"),
        ("nsmc/ratings_train.tsv.gz", zipped(HEADER + b"a" * 5_000_000), "as a table"),
        ("goemo/train.tsv.gz", zipped(b"text\tlabels\na\t\n"), "row 1: no label"),
        ("new", b"", "--output: .* is a file; name another"),
    ],
)
def test_a_corpus_that_cannot_be_used(tmp_path: Path, monkeypatch, name, content, expected) -> None:
    words = write_corpora(tmp_path, [["1", "평", "0"]], [["와", "joy"]])
    monkeypatch.setattr(sys, "argv", words)
    path = tmp_path / name
    if path.is_dir():
        shutil.rmtree(path)
    elif content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        corpora.main()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new/texts").exists()
