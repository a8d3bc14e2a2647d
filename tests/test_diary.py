"""A diary's pieces, and what a classifier makes of them."""

import itertools
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyflower import UNSURE, Classifier, diary
from storyflower.common.errors import InputError
from storyflower.sheets.sheet import is_visible


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("오늘은 좋았다. 내일도 좋을까?  그럼!", ["오늘은 좋았다.", "내일도 좋을까?", "그럼!"]),
        ("  첫 줄\r\n\r\n 둘째 줄\r셋째\u2028\t넷째\n", ["첫 줄", "둘째 줄", "셋째", "넷째"]),
        ("표시 없는 일기는 끝까지 한 조각", ["표시 없는 일기는 끝까지 한 조각"]),
        # Behind a mark
        (
            "좋았다. ㅋㅋㅋ 그런데 슬펐다.ㅠㅠ ㅠ 끝.",
            ["좋았다. ㅋㅋㅋ", "그런데 슬펐다.ㅠㅠ ㅠ", "끝."],
        ),
        ("좋다! 😀👍🏽 또? ^^;; 그래~~. ♥ 응", ["좋다! 😀👍🏽", "또? ^^;;", "그래~~. ♥", "응"]),
        ("“가자.” (정말!) 「싫어。」 응", ["“가자.”", "(정말!)", "「싫어。」", "응"]),
        ('"가자."라고 했다. "뭐?" 응.', ['"가자."라고 했다.', '"뭐?"', "응."]),
        ("'가.'도 '와.' 도", ["'가.'도 '와.'", "도"]),
        # An ASCII quote behind white space opens
        ('끝났다. "다시 하자." 그랬다.', ["끝났다.", '"다시 하자."', "그랬다."]),
        # Marks that end nothing
        ("3.5점이다. naver.com에 썼다. a.txt!", ["3.5점이다.", "naver.com에 썼다.", "a.txt!"]),
        ("1. 밥을 먹었다\n 2. 잤다", ["1. 밥을 먹었다", "2. 잤다"]),
        ("음... 모르겠다… 뭐?! 진짜!!! 끝", ["음...", "모르겠다…", "뭐?!", "진짜!!!", "끝"]),
        # Without a blank
        ("먹었다.잤다!끝", ["먹었다.", "잤다!", "끝"]),
        # Other languages
        ("今日は楽しかった。明日も行く？はい！", ["今日は楽しかった。", "明日も行く？", "はい！"]),
        ("I was sad. Then happy! Why?", ["I was sad.", "Then happy!", "Why?"]),
        ("أنا حزين؟ मैं खुश हूँ। हाँ", ["أنا حزين؟", "मैं खुश हूँ।", "हाँ"]),
        # No words
        ("😀🎉\nㅋㅋㅋㅋ\nㅠㅠ\n...", ["😀🎉", "ㅋㅋㅋㅋ", "ㅠㅠ", "..."]),
    ],
)
def test_sentences(text: str, pieces: list[str]) -> None:
    assert [text[start:end] for start, end in diary.sentences(text)] == pieces


@pytest.mark.parametrize("text", ["", " \n\t", "\u3164\n\u200b", "\r\n"])
def test_nothing_has_no_sentence(text: str) -> None:
    assert diary.sentences(text) == []


@pytest.mark.parametrize("text", [".~" * 50_000 + '"가', " " * 30_000 + '가."' * 20_000 + "가"])
def test_a_hostile_text_is_cut_in_a_moment(text: str) -> None:
    """Looking at a part of it again at each mark takes minutes."""
    started = time.process_time()
    diary.sentences(text)
    assert time.process_time() - started < 3


def syllables(texts: Sequence[str]) -> np.ndarray:
    """A token id for each character that is no white space, and two more."""
    return np.array([len("".join(text.split())) + 2 for text in texts], np.int64)


def together(texts: Sequence[str]) -> np.ndarray:
    """As syllables, but words that stand together have more ids than one by one."""
    return syllables(texts) + np.array([3 * (len(text.split()) > 1) for text in texts], np.int64)


def cut(text: str, max_len: int, count: diary.Count = syllables) -> list[str]:
    parts = diary.cut(text, diary.sentences(text), count, max_len)
    assert [size for _, size in parts] == [int(count([text[a:b]])[0]) for (a, b), _ in parts]
    return [text[start:end] for (start, end), _ in parts]


def test_long_pieces_are_cut_at_white_space() -> None:
    text = "가나다 라마 바사아자 차카타파하 가나"
    assert cut(text, 10) == ["가나다 라마", "바사아자", "차카타파하 가나"]
    assert cut(text, 100) == [text]
    assert cut("가나. " + text, 10)[0] == "가나."


def test_long_words_are_cut_inside() -> None:
    assert cut("가나다라마바사아자차", 6) == ["가나다", "라마바", "사아자차"]
    assert cut("가 나다라마바사아자 카", 6) == ["가", "나다라마", "바사아자", "카"]


def test_a_character_is_not_cut_in_two() -> None:
    whole = "각" * 20
    text = unicodedata.normalize("NFD", whole)  # three code points each
    parts = cut(text, 13)
    assert "".join(parts) == text
    assert all(unicodedata.normalize("NFC", part).count("각") * 3 == len(part) for part in parts)
    family = "👨\u200d👩\u200d👧" * 10
    assert all(part.count("👨") == part.count("👧") for part in cut(family, 13))


@settings(deadline=None, max_examples=200)
@given(
    st.text(st.sampled_from("가나 .!\n\"'…ㅋ😀\u0301\u200d\u200b1a「」"), max_size=80),
    st.integers(4, 12),
    st.sampled_from([syllables, together]),
)
def test_nothing_visible_is_lost_and_nothing_is_too_long(
    text: str, max_len: int, count: diary.Count
) -> None:
    pieces = diary.cut(text, diary.sentences(text), count, max_len)
    for parts in (pieces, diary.windows(text, pieces, count, max_len)):
        ends = [0, *itertools.chain.from_iterable(span for span, _ in parts), len(text)]
        assert ends == sorted(ends)
        gaps = (text[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True))
        assert not any(is_visible(gap) for gap in gaps)
        for (start, end), size in parts:
            assert size == count([text[start:end]])[0]
            assert start < end and (size <= max_len or end - start == 1)


def test_windows_hold_neighbours() -> None:
    text = "가나다. 라마바. 사아자. 차카타. 파하."
    pieces = diary.cut(text, diary.sentences(text), syllables, 12)

    def windows(max_len: int) -> list[str]:
        found = diary.windows(text, pieces, syllables, max_len)
        return [text[start:end] for (start, end), _ in found]

    assert windows(100) == [text]
    assert windows(20) == ["가나다. 라마바. 사아자.", "차카타. 파하."]  # not 4 and 1
    assert windows(14) == ["가나다. 라마바. 사아자.", "차카타. 파하."]
    assert windows(10) == ["가나다. 라마바.", "사아자. 차카타.", "파하."]


def test_the_whole_is_the_mean_weighted_by_tokens() -> None:
    rows = np.array([[0.8, 0.2], [0.2, 0.8]], np.float32)
    assert diary.whole(rows, np.array([32, 12])) == pytest.approx([0.65, 0.35])
    assert diary.whole(rows[:1], np.array([2])) == pytest.approx([0.8, 0.2])  # no tokens at all


# With a classifier, whose max_len is 16


@pytest.fixture(scope="module")
def loaded(classifier: Path) -> Classifier:
    return Classifier.load(classifier, device="cpu")


TEXTS = {
    "two sentences": "심장이 뛰어. 합격했어!",
    "no marks": "심장이 뛰어 잠이 안 와 내일이 무서워 " * 10,
    "many lines": "\n\n".join(["합격했어 웃음이 나", "따지고 싶어", "잠이 안 와"] * 5),
    "one long word": "합격했어" * 200,
    "emoji only": "😀🎉\n😭",
    "jamo only": "ㅋㅋㅋㅋㅋㅋ ㅠㅠ",
    "English": "I passed the exam. I am so happy!",
    "Japanese": "今日はとても楽しかった。明日も行きたい。",
    "Arabic": "أنا حزين جدا اليوم. لماذا؟",
    "NFD": unicodedata.normalize("NFD", "합격했어! 웃음이 나"),
    "marks only": "... !!! ???",
    "zero width": "합격\u200b했어.\u200b \u200b",
}


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_of_a_diary_is_cut_away(loaded: Classifier, name: str) -> None:
    text = TEXTS[name]
    reading = loaded.read(text)
    assert loaded.read(text) == reading
    for piece in reading.pieces:
        assert piece.text == text[piece.start : piece.end]
    ends = [0, *(end for piece in reading.pieces for end in (piece.start, piece.end)), len(text)]
    assert not any(is_visible(text[a:b]) for a, b in zip(ends[::2], ends[1::2], strict=True))
    assert not loaded.is_cut([piece.text for piece in reading.pieces]).any()
    for answer in (reading, *reading.pieces):
        shares = list(answer.probabilities.values())
        assert sum(shares) == pytest.approx(1, abs=1e-6)
        assert shares == sorted(shares, reverse=True)
        assert answer.label == next(iter(answer.probabilities))
        assert set(answer.probabilities) == set(loaded.labels)


def test_20_000_characters(loaded: Classifier) -> None:
    start = "오늘은 심장이 뛰어서 잠이 안 와 "
    for text in (start * (20_000 // len(start) + 1), "웃" * 20_000, "합격했어.\n" * 3334):
        text = text[:20_000]
        reading = loaded.read(text)
        joined = "".join("".join(piece.text for piece in reading.pieces).split())
        assert joined == "".join(text.split())
        assert not loaded.is_cut([piece.text for piece in reading.pieces]).any()


def test_the_end_of_a_long_diary_counts(loaded: Classifier) -> None:
    """predict reads the beginning, read all of it."""
    text = "심장이 뛰어. " * 5 + "합격했어 웃음이 나. " * 40
    assert loaded.predict([text])[0].label == "불안"
    assert loaded.read(text).label == "기쁨"


def test_a_diary_that_fits_is_read_at_once(loaded: Classifier) -> None:
    for text in ("합격했어", "합격. 뛰어!"):
        assert not loaded.is_cut([text])[0]
        (expected,) = loaded.predict([text])
        reading = loaded.read(text)
        assert reading.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    pieces = [piece.text for piece in reading.pieces]
    assert pieces == ["합격.", "뛰어!"]
    for piece, alone in zip(reading.pieces, loaded.predict(pieces), strict=True):
        assert piece.probabilities == pytest.approx(alone.probabilities, abs=1e-6)


def test_many_diaries_as_one_by_one(loaded: Classifier) -> None:
    texts = [*TEXTS.values(), "심장이 뛰어"]
    together = loaded.read_all(texts)
    for text, reading in zip(texts, together, strict=True):
        alone = loaded.read(text)
        assert [piece.text for piece in reading.pieces] == [piece.text for piece in alone.pieces]
        assert reading.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    assert loaded.read_all([]) == []


@pytest.mark.parametrize("text", ["", "  \n", "\u3164", "-", "None"])
def test_a_text_that_says_nothing(loaded: Classifier, text: str) -> None:
    for call in (loaded.read, loaded.explain, lambda text: loaded.read_all(["합격했어", text])):
        with pytest.raises(InputError, match="^no text$"):
            call(text)
    assert len(loaded.predict([text])) == 1  # as before


def test_what_is_no_text(loaded: Classifier) -> None:
    for call in (loaded.read, loaded.explain):
        with pytest.raises(TypeError, match="takes one text"):
            call(["합격했어"])
    with pytest.raises(TypeError, match="a list of texts, not one text"):
        loaded.read_all("합격했어")
    for value in (None, 3, b"text", ["합격했어"]):
        with pytest.raises(TypeError, match=f"a text must be str, got {type(value).__name__}"):
            loaded.read_all(["합격했어", value])
    with pytest.raises(InputError, match="half of a surrogate pair"):
        loaded.read("합격했어 \ud800")


def test_unsure_below(loaded: Classifier) -> None:
    text = "심장이 뛰어. 합격했어!"
    sure = loaded.read(text)
    best = [next(iter(answer.probabilities.values())) for answer in (sure, *sure.pieces)]
    for threshold in (0.0, min(best), max(best), 1.0):
        reading = loaded.read(text, threshold)
        for answer, before, p in zip(
            (reading, *reading.pieces), (sure, *sure.pieces), best, strict=True
        ):
            assert answer.label == (before.label if p >= threshold else UNSURE)
            assert answer.probabilities == before.probabilities
    (row,) = loaded.predict(["합격했어"])
    (unsure,) = loaded.predict(["합격했어"], unsure_below=1.0)
    assert (unsure.label, unsure.probabilities) == (UNSURE, row.probabilities)
    assert loaded.explain("합격했어", 1.0).label == UNSURE
    for share in (-0.1, 1.1, float("nan")):
        for call in (loaded.read, loaded.explain, lambda text, p: loaded.predict([text], p)):
            with pytest.raises(InputError, match="unsure_below must be between 0 and 1"):
                call(text, share)


def test_each_word_is_left_out_once(loaded: Classifier) -> None:
    text = " 오늘\n심장이  뛰어 합격했어 "
    found = loaded.explain(text)
    assert [word.text for word in found.words] == text.split()
    assert [text[word.start : word.end] for word in found.words] == text.split()
    without = [
        "심장이 뛰어 합격했어",
        "오늘 뛰어 합격했어",
        "오늘 심장이 합격했어",
        "오늘 심장이 뛰어",
    ]
    (whole,) = loaded.predict([text])
    assert found.probabilities == pytest.approx(whole.probabilities, abs=1e-6)
    best = whole.label
    for word, other in zip(found.words, loaded.predict(without), strict=True):
        change = whole.probabilities[best] - other.probabilities[best]
        assert word.change == pytest.approx(change, abs=1e-5)


def test_the_word_that_decides(loaded: Classifier) -> None:
    found = loaded.explain("12번째 합격했어 13번째")
    assert found.label == "기쁨"
    assert max(found.words, key=lambda word: word.change).text == "합격했어"


def test_a_text_of_one_word_and_one_of_invisible_words(loaded: Classifier) -> None:
    (word,) = loaded.explain("합격했어").words
    assert (word.start, word.end) == (0, 4)
    # The tokenizer drops U+FFFD; a variant for each of these would fill the memory.
    for text in ("\u200b 합격했어 \u200b", "\ufffd " * 100_000 + "합격했어"):
        assert [word.text for word in loaded.explain(text).words] == ["합격했어"]
    assert loaded.explain("\ufffd").words == ()


def test_a_text_too_long_to_explain(loaded: Classifier) -> None:
    with pytest.raises(InputError, match="more than 16 token ids; explain its pieces one by one"):
        loaded.explain("합격했어 " * 50)
