"""Checks pieces of the new sample corpus against their plans and against each other.

    python data/writers/check.py pieces/W03-2.jsonl     # one piece, or several
    python data/writers/check.py                        # every piece there is

One line a problem: `error` breaks a hard rule (exit 1), `warn` is for the writer to judge. Texts of
other writers are compared with but never shown.
"""

import argparse
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZE = 60
FIELDS = {"id", "turns", "replies", "situation"}
JACCARD, SHARED = 0.4, 0.6  # trigrams two texts may not have in common; of both, of the shorter
NAMES_ALLOWED, STEMS_ALLOWED = 2, 4  # rows of a piece

NAMES = {
    "분노": r"분노|분해서|(?<![가-힣])화(?=가 |나|났|난|날|내|냈|를 |도 |딱지)"
    "|열받|열 받|빡쳐|빡친|빡쳤",
    "슬픔": "슬픔|슬프|슬퍼|슬펐|슬픈|슬플",
    "불안": "불안",
    "상처": "상처",
    "당황": "당황",
    "기쁨": "기쁨|기쁘|기뻐|기쁜|기뻤|기쁠",
}
STEMS = {
    "분노": "툴툴|좌절|짜증|방어|악의|안달|구역질|노여|성가[시신셔셨]",
    "슬픔": "실망|비통|후회|우울|마비|염세|눈물|낙담|환멸",
    "불안": "두려|두렵|스트레스|취약|혼란|당혹|회의적|회의감|걱정|조심|초조",
    "상처": "질투|배신|고립|충격|가난|불우|희생|억울|괴로|괴롭|버려진|버려졌|버림",
    "당황": "고립|시선|의식|외로|외롭|열등|죄책|부끄|혐오|한심|혼란",
    "기쁨": "감사|신뢰|편안|만족|흥분|느긋|안도|신이 나|신이 났|신난|신나|신났"
    "|자신감|자신 있|자신있",
}
FORBIDDEN = """오늘 드디어 합격했어!
손주가 처음으로 할머니라고 불렀어요
회의 중에 배에서 꼬르륵 소리가 나서 다들 쳐다봤어
인사했는데 모르는 사람이었다
새치기한 사람이 오히려 나한테 소리를 질렀다
환불해 준다더니 연락을 끊었어요
내일 조직검사 결과가 나온대요
막차가 끊겼는데 배터리가 3퍼센트야
믿었던 친구가 내 얘기를 다 퍼뜨렸더라
생일인데 아무도 모르고 지나갔다
십오 년 키운 강아지를 오늘 보내 줬어요
텅 빈 방을 치우다가 엄마 글씨를 봤어""".splitlines()


def trigrams(text: str) -> set[str]:
    text = re.sub(r"\s", "", text)
    return {text[n : n + 3] for n in range(len(text) - 2)}


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def human(row: dict) -> str:
    return " ".join(row["turns"])


def check_shape(row: object, plan: dict) -> list[str]:
    """Hard rules without which nothing else can be read."""
    if not isinstance(row, dict) or set(row) != FIELDS:
        return [f"needs exactly the fields {', '.join(sorted(FIELDS))}"]
    if row["id"] != plan["id"]:
        return [f"stands where {plan['id']} belongs"]
    problems = []
    for field in ("turns", "replies"):
        cells = row[field]
        if not isinstance(cells, list) or not all(isinstance(cell, str) for cell in cells):
            problems.append(f"{field} is not a list of texts")
        elif len(cells) != plan["turns"]:
            problems.append(f"{len(cells)} {field} instead of {plan['turns']}")
        elif not all(cell.strip() for cell in cells):
            problems.append(f"an empty text in {field}")
    if not isinstance(row["situation"], str) or not row["situation"].strip():
        problems.append("situation is empty")
    return problems


def check_text(row: dict, plan: dict) -> tuple[list[str], list[str]]:
    """Errors and warnings about one dialogue by itself."""
    errors, warnings = [], []
    text = human(row)
    for cell in [*row["turns"], *row["replies"], row["situation"]]:
        if not unicodedata.is_normalized("NFC", cell):
            errors.append("not NFC")
        if cell != cell.strip() or re.search(r"[\x00-\x1f\x7f\u200b-\u200f\ufeff]|  ", cell):
            errors.append("a control character, a line break, or blanks too many")
        if re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", cell):
            errors.append("Chinese or Japanese characters")
    letters = [letter for letter in text if letter.isalpha()]
    share = sum("가" <= x <= "힣" or "ㄱ" <= x <= "ㅣ" for x in letters) / max(1, len(letters))
    if share < 0.7:
        errors.append(f"only {share:.0%} of the letters are Hangul")
    for mark, pattern in (("ㅋㅋ", "[ㅋㅎ]"), ("ㅠㅠ", "[ㅠㅜ]")):
        if (mark in plan["marks"]) != bool(re.search(pattern, text)):
            verb = "lacks" if mark in plan["marks"] else "has unplanned"
            errors.append(f"{verb} {mark}")
    low, high = map(int, plan["length"].split("-"))
    if not 0.75 * low <= len(text) <= 1.25 * high:
        errors.append(f"{len(text)} characters, planned {plan['length']}")
    elif not 0.9 * low <= len(text) <= 1.1 * high:
        warnings.append(f"{len(text)} characters, planned {plan['length']}")
    polite = [bool(re.search(r"요(?=[\s.!?~…ㅋㅎㅠㅜ,)]|$)", turn)) for turn in row["turns"]]
    if plan["ending"] == "해요체" and not any(polite):
        warnings.append("planned 해요체, no 요")
    if plan["ending"] != "해요체" and all(polite):
        warnings.append(f"planned {plan['ending']}, but 요")
    if plan["ending"] == "다체" and not re.search(r"다(?=[\s.!?~…ㅋㅎㅠㅜ,)]|$)", text):
        warnings.append("planned 다체, no 다")
    if plan["punctuation"] == "마침표 없음" and re.search(r"\.(?=\s|$)", text):
        warnings.append("planned 마침표 없음, has a full stop")
    if plan["punctuation"] == "마침표 꼬박꼬박" and "." not in text:
        warnings.append("planned 마침표 꼬박꼬박, has none")
    if any(len(reply) > 45 for reply in row["replies"]):
        warnings.append("a reply of more than 45 characters")
    if not 2 <= len(row["situation"].split()) <= 6:
        warnings.append("situation should have 2 to 4 words")
    for sentence in FORBIDDEN:
        grams = trigrams(sentence)
        close = len(grams & trigrams(text)) / len(grams)
        if close >= 0.25:
            (errors if close >= 0.4 else warnings).append(f"close to '{sentence}' ({close:.0%})")
    return errors, warnings


def check_piece(path: Path, others: dict[str, set[str]]) -> tuple[list[str], list[str]]:
    """Errors and warnings of a piece, each beginning with an id. Adds its trigrams to `others`."""
    plans = read_lines(HERE / "plan" / path.name)
    try:
        rows = read_lines(path)
    except (ValueError, UnicodeDecodeError) as error:
        return [f"{path.stem} cannot be read: {error}"], []
    errors, warnings = [], []
    if len(rows) != SIZE:
        errors.append(f"{path.stem} has {len(rows)} lines instead of {SIZE}")
    good = []
    for row, plan in zip(rows, plans, strict=False):
        problems = check_shape(row, plan)
        errors += [f"{plan['id']} {problem}" for problem in problems]
        if not problems:
            good.append((row, plan))
    named, stemmed = [], []
    openings, runs = defaultdict(list), defaultdict(set)
    for row, plan in good:
        wrong, doubtful = check_text(row, plan)
        errors += [f"{plan['id']} {problem}" for problem in wrong]
        warnings += [f"{plan['id']} {problem}" for problem in doubtful]
        text, major = human(row), plan["major"]
        for patterns, found, what in ((NAMES, named, "name"), (STEMS, stemmed, "fine stem")):
            hits = re.findall(patterns[major], text)
            if hits:
                found.append(plan["id"])
                warnings.append(f"{plan['id']} {what} of its own {major}: {', '.join(hits)}")
            if found is named and not hits:
                foreign = [m for m in NAMES if m != major and re.search(NAMES[m], text)]
                if foreign:
                    warnings.append(f"{plan['id']} names another major: {', '.join(foreign)}")
        openings[" ".join(text.split()[:2])].append(plan["id"])
        dense = re.sub(r"\s", "", text)
        for n in range(len(dense) - 9):
            runs[dense[n : n + 10]].add(plan["id"])
        grams = trigrams(text)
        for other, theirs in others.items():
            both = len(grams & theirs)
            if not both or other == plan["id"]:
                continue
            jaccard = both / len(grams | theirs)
            shorter = both / min(len(grams), len(theirs))
            if jaccard >= JACCARD or shorter >= SHARED:
                alike = f"{plan['id']} is like {other}: {jaccard:.0%} of trigrams"
                errors.append(f"{alike}, {shorter:.0%} of the shorter one's")
        others[plan["id"]] = grams
    for what, found, allowed in (
        ("their own major's name", named, NAMES_ALLOWED),
        ("a fine stem of their major", stemmed, STEMS_ALLOWED),
    ):
        if len(found) > allowed:
            errors.append(f"{path.stem} {len(found)} rows hold {what}, at most {allowed} may")
    for opening, ids in openings.items():
        if len(ids) > 1:
            warnings.append(f"{ids[0]} opens like {', '.join(ids[1:])}: {opening}")
    pairs = Counter(tuple(sorted(ids)) for ids in runs.values() if len(ids) > 1)
    warnings += [
        f"{ids[0]} shares ten characters in a row with {', '.join(ids[1:])}" for ids in pairs
    ]
    return errors, warnings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pieces", nargs="*", type=Path, help="default: all in pieces/")
    chosen = [path.resolve() for path in parser.parse_args().pieces]
    present = sorted((HERE / "pieces").glob("[WV][0-9][0-9]-[0-9].jsonl"))
    chosen = chosen or present
    others: dict[str, set[str]] = {}
    for path in present:
        if path not in chosen:
            try:
                others |= {row["id"]: trigrams(human(row)) for row in read_lines(path)}
            except (ValueError, KeyError, TypeError):
                print(f"warn  {path.stem} cannot be compared with: not a finished piece")
    failed = False
    for path in chosen:
        if not path.is_file():
            sys.exit(f"{path}: no such piece")
        if not (HERE / "plan" / path.name).exists():
            sys.exit(f"{path.name} has no plan")
        errors, warnings = check_piece(path, others)
        failed = failed or bool(errors)
        for kind, lines in (("error", errors), ("warn ", warnings)):
            for line in lines:
                print(kind, line)
        print(f"{path.stem}: {len(errors)} errors, {len(warnings)} warnings")
    sys.exit(failed)


if __name__ == "__main__":
    main()
