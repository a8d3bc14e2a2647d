"""Draws what every writer writes: plan/<writer>-<piece>.jsonl, 60 lines a piece.

    python data/writers/plan.py            # writes plan/ beside this file, prints the crossing
    python data/writers/plan.py --check    # only prints; exit 1 when plan/ differs from the draw

Everything follows from grid.txt, props.txt and the seed. A piece holds each of the 60 pairs
(major, fine) once, in a shuffled order. What is drawn never depends on the label:

- topic: 50 topics; each Training writer meets each topic once under each of the six majors, and
  the five Validation writers together meet it twice under each.
- situation (topic, relation, place): given once in the whole corpus.
- age, sex, form, turns, length, ending, punctuation, marks: one deck a writer, and the same deck
  under each of the six majors, shuffled. Only age has to fit the situation.
- prop: a thing that may occur; a Training writer meets each of the 300 once, and over the twelve
  writers each stands under each major twice.
"""

import argparse
import json
import random
import sys
from collections import Counter
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAIRS = {  # as CODES of the ingest stage
    "분노": "분노|툴툴대는|좌절한|짜증내는|방어적인|악의적인|"
    "안달하는|구역질 나는|노여워하는|성가신",
    "슬픔": "슬픔|실망한|비통한|후회되는|우울한|마비된|염세적인|눈물이 나는|낙담한|환멸을 느끼는",
    "불안": "불안|두려운|스트레스 받는|취약한|혼란스러운|"
    "당혹스러운|회의적인|걱정스러운|조심스러운|초조한",
    "상처": "상처|질투하는|배신당한|고립된|"
    "충격 받은|가난한, 불우한|희생된|억울한|괴로워하는|버려진",
    "당황": "당황|고립된|남의 시선을 의식하는|외로운|열등감|"
    "죄책감의|부끄러운|혐오스러운|한심한|혼란스러운",
    "기쁨": "기쁨|감사하는|신뢰하는|편안한|만족스러운|흥분|느긋|안도|신이 난|자신하는",
}
MAJORS = list(PAIRS)
PIECES = {f"W{n:02}": 5 for n in range(1, 13)} | {f"V{n:02}": 2 for n in range(1, 6)}

AGES = ["청소년", "청년", "중년", "장년", "노년"]
GROWN = AGES[1:]
RELATIONS = {  # who may have one: age groups of the person who speaks
    "부모": AGES[:4],
    "조부모": AGES[:2],
    "형제자매": AGES,
    "배우자": GROWN,
    "연인": AGES[:3],
    "전 연인": AGES[:3],
    "자녀": AGES[2:],
    "손주": AGES[3:],
    "사촌": AGES,
    "친척": AGES,
    "시댁·처가": AGES[1:4],
    "며느리·사위": AGES[3:],
    "친구": AGES,
    "옛 동창": GROWN,
    "선배": AGES[:3],
    "후배": AGES[:4],
    "상사": AGES[1:4],
    "동료": AGES[1:4],
    "사장님": AGES[:3],
    "거래처 사람": AGES[1:4],
    "손님": GROWN,
    "이웃": AGES,
    "룸메이트": ["청년"],
    "선생님": AGES,
    "학부모": AGES[2:4],
    "담당 직원": GROWN,
    "모임 사람": GROWN,
    "모르는 사람": AGES,
    "혼자": AGES,
}
NOWHERE = {  # kinds of place where a relation makes no sense (h, w, s, u, m: see grid.txt)
    "손주": "wu",
    "조부모": "wm",
    "상사": "hsum",
    "거래처 사람": "hsum",
    "사장님": "hsum",
    "손님": "hsum",
    "동료": "hsum",
    "선생님": "whm",
    "학부모": "wumh",
    "룸메이트": "sw",
    "모르는 사람": "h",
    "담당 직원": "hm",
    "시댁·처가": "sum",
    "며느리·사위": "sum",
    "이웃": "wum",
    "모임 사람": "hs",
    "사촌": "w",
}
LIMITS = {  # topics in which not every age speaks
    "조별과제와 발표": AGES[:4],
    "아르바이트": AGES[:4],
    "회의와 보고": AGES[1:],
    "면접과 취업": AGES[1:],
    "승진과 이직": AGES[1:4],
    "장사와 가게": GROWN,
    "부부의 하루": GROWN,
    "육아와 어린이집": GROWN,
    "이사와 집 구하기": GROWN,
    "운전과 주차": GROWN,
    "돈과 빌린 돈": GROWN,
    "노후와 은퇴": AGES[2:],
    "관공서와 서류": GROWN,
    "기숙사와 자취": AGES[:4],
    "사춘기와 학부모": [AGES[0], *AGES[2:]],
    "손주와 조부모": [*AGES[:2], *AGES[3:]],
}
THROUGH_CHILDREN = {"학교 생활과 급식", "기숙사와 자취"}  # for whom it is their own no longer
CHILDREN = ("자녀", "손주", "학부모", "선생님")
# Shares of 100
AGE = {"청소년": 18, "청년": 26, "중년": 22, "장년": 18, "노년": 16}
SEX = {"남성": 50, "여성": 50}
FORM = {"일기": 44, "메시지": 56}
TURNS = {1: 30, 2: 40, 3: 30}
SIZE = {0: 34, 1: 36, 2: 30}
LENGTH = {  # characters of all human turns together
    1: ("30-55", "55-95", "95-150"),
    2: ("45-75", "75-120", "120-180"),
    3: ("65-100", "100-150", "150-210"),
}
MARKS = {"없음": 60, "ㅋㅋ": 18, "ㅠㅠ": 16, "ㅋㅋ ㅠㅠ": 6}
PUNCTUATION = {
    "마침표 없음": 28,
    "마침표 꼬박꼬박": 22,
    "마침표 가끔": 18,
    "말줄임 섞음": 12,
    "느낌표 물음표 겹침": 8,
    "쉼표 많음": 6,
    "띄어쓰기 대충": 6,
}
ENDING = {  # by form: weights of 반말, 해요체, 다체, 음슴체
    "일기": {"반말": 30, "해요체": 6, "다체": 42, "음슴체": 22},
    "메시지": {"반말": 46, "해요체": 40, "다체": 0, "음슴체": 14},
}


def read_grid(path: Path) -> dict[str, dict]:
    """topic → its 상황키워드 and, for each age, the situations (topic, relation, place)."""
    grid = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        topic, keyword, relations, places = (part.strip() for part in line.split(" | "))
        fitting = {age: [] for age in AGES}
        for relation, place in product(relations.split(", "), places.split(", ")):
            name, _, kind = place.partition("@")
            for age in RELATIONS[relation]:
                own = age in AGES[:2] if topic != "학교 생활과 급식" else age == AGES[0]
                if topic in THROUGH_CHILDREN and not own and relation not in CHILDREN:
                    continue
                if age in LIMITS.get(topic, AGES) and sensible(age, relation, kind):
                    fitting[age].append((topic, relation, name))
        grid[topic] = {"keyword": keyword, "situations": fitting}
    return grid


def sensible(age: str, relation: str, kind: str) -> bool:
    """Whether somebody of that age has to do with that relation in such a place."""
    if kind and kind in NOWHERE.get(relation, ""):
        return False
    child = relation in ("자녀", "손주")
    if kind == "w":
        return age in AGES[1:4]
    if kind == "s":
        school = age == "청소년" and not child
        return school or child or (relation in ("선생님", "학부모") and age in AGES[2:4])
    if kind == "u":
        return (age == "청년" and not child) or (relation == "자녀" and age in AGES[2:4])
    if kind == "m":
        return age == "청년" or child or relation == "형제자매"
    return True


def deck(shares: dict, size: int, rng: random.Random) -> list:
    """Values in their shares, as nearly as `size` cards allow, shuffled."""
    total = sum(shares.values())
    exact = {value: share * size / total for value, share in shares.items()}
    cards = [value for value, count in exact.items() for _ in range(int(count))]
    rest = sorted(exact, key=lambda value: (int(exact[value]) - exact[value], rng.random()))
    cards += rest[: size - len(cards)]
    rng.shuffle(cards)
    return cards


def draw_styles(size: int, rng: random.Random) -> list[dict]:
    """One writer's deck: how `size` dialogues look, whatever they are about."""
    columns = (AGE, SEX, FORM, TURNS, SIZE, PUNCTUATION, MARKS)
    styles = []
    for age, sex, form, turns, length, punctuation, marks in zip(
        *(deck(shares, size, rng) for shares in columns), strict=True
    ):
        weights = dict(ENDING[form])
        if age in ("장년", "노년"):
            weights["음슴체"] *= 0.3
        elif age == "청소년":
            weights["해요체"] *= 0.5
        (ending,) = rng.choices(list(weights), list(weights.values()))
        styles.append(
            {
                "age": age,
                "sex": sex,
                "form": form,
                "turns": turns,
                "length": LENGTH[turns][length],
                "ending": ending,
                "punctuation": punctuation,
                "marks": marks,
            }
        )
    return styles


def marry(
    topics: list[str], styles: list[dict], grid: dict, used: set, rng: random.Random
) -> list[tuple[dict, tuple]]:
    """A style and a situation nobody else has for each topic, so that the age fits."""
    for _ in range(2000):
        left = rng.sample(styles, len(styles))
        order = sorted(range(len(topics)), key=lambda n: (open_ages(grid, topics[n]), rng.random()))
        found = {}
        for n in order:
            by_age = grid[topics[n]]["situations"]
            for style in left:
                free = [s for s in by_age[style["age"]] if s not in used]
                if free:
                    found[n] = (style, rng.choice(free))
                    left.remove(style)
                    break
            else:
                break
        if len(found) == len(topics):
            used.update(situation for _, situation in found.values())
            return [found[n] for n in range(len(topics))]
    raise SystemExit("grid.txt has too few situations for its ages")


def open_ages(grid: dict, topic: str) -> int:
    return sum(bool(situations) for situations in grid[topic]["situations"].values())


def draw_topics(topics: list[str], rng: random.Random) -> list[dict[str, list[str]]]:
    """For five pieces: the ten topics of each major; each topic once under each major."""
    shuffled = rng.sample(topics, len(topics))
    groups = [shuffled[n::5] for n in range(5)]
    majors = rng.sample(MAJORS, len(MAJORS))
    return [
        {major: groups[(piece + n) % 5][:] for n, major in enumerate(majors)} for piece in range(5)
    ]


def draw(seed: int) -> dict[str, list[dict]]:
    """Every piece by name."""
    rng = random.Random(seed)
    grid = read_grid(HERE / "grid.txt")
    words = (HERE / "props.txt").read_text(encoding="utf-8").split()
    props = rng.sample(words, len(words))
    blocks = [props[n::6] for n in range(6)]
    waiting: list[dict] = []
    used: set = set()
    plan = {}
    for number, (writer, count) in enumerate(PIECES.items()):
        while len(waiting) < count:
            waiting += draw_topics(list(grid), rng)
        mine, waiting = waiting[:count], waiting[count:]
        styles = draw_styles(10 * count, rng)
        pieces: list[list[dict]] = [[] for _ in range(count)]
        for place, major in enumerate(MAJORS):
            topics = [topic for piece in mine for topic in piece[major]]
            block = blocks[(place + number) % 6]
            things = rng.sample(block, len(block))
            married = marry(topics, styles, grid, used, rng)
            for piece in range(count):
                fines = PAIRS[major].split("|")
                rng.shuffle(fines)
                ten = slice(10 * piece, 10 * piece + 10)
                for fine, (style, (topic, relation, where)), prop in zip(
                    fines, married[ten], things[ten], strict=True
                ):
                    situation = {"topic": topic, "relation": relation, "place": where}
                    keyword = grid[topic]["keyword"]
                    label = {"major": major, "fine": fine}
                    row = label | situation | {"keyword": keyword, "prop": prop} | style
                    pieces[piece].append(row)
        for piece, rows in enumerate(pieces, start=1):
            rng.shuffle(rows)
            split = "Training" if writer[0] == "W" else "Validation"
            plan[f"{writer}-{piece}"] = [
                {"id": f"{writer}-{piece}-{n:02}", "split": split, "writer": writer} | row
                for n, row in enumerate(rows, start=1)
            ]
    return plan


CROSSED = ["topic", "relation", "age", "sex", "form", "turns", "ending", "length"]
CROSSED += ["punctuation", "marks"]


def crossing(plan: dict[str, list[dict]]) -> str:
    """Counts of what was drawn under each major, for both splits, and what must hold."""
    rows = [row for piece in plan.values() for row in piece]
    lines = []
    for split in ("Training", "Validation"):
        part = [row for row in rows if row["split"] == split]
        lines.append(f"\n{split}: {len(part)} dialogues")
        lines.append(f"{'':24}" + "".join(f"{major:>6}" for major in MAJORS))
        for column in CROSSED:
            counts = Counter((row[column], row["major"]) for row in part)
            lines.append(f"[{column}]")
            for value in sorted({value for value, _ in counts}, key=str):
                cells = "".join(f"{counts[value, major]:8}" for major in MAJORS)
                lines.append(f"{value!s:<20}{cells}")
    triples = {(row["topic"], row["relation"], row["place"]) for row in rows}
    per_pair = Counter((row["writer"], row["major"], row["fine"]) for row in rows)
    ordinary = all(per_pair[key] == PIECES[key[0]] for key in per_pair)
    majors = Counter()
    for _, topic in {(row["major"], row["topic"]) for row in rows if row["split"] == "Training"}:
        majors[topic] += 1
    lines += [
        "",
        f"situations: {len(rows)} rows, {len(triples)} different (no two rows share one)",
        f"pairs: {len(per_pair)} (writer, major, fine), each as often as pieces: {ordinary}",
        f"majors a topic stands under in Training: at least {min(majors.values())}",
        f"topics: {len(majors)}, pieces: {len(plan)}",
    ]
    if len(triples) != len(rows) or not ordinary or min(majors.values()) < 5:
        raise SystemExit("the crossing does not hold")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--check", action="store_true", help="write nothing, compare plan/")
    arguments = parser.parse_args()
    plan = draw(arguments.seed)
    folder = HERE / "plan"
    folder.mkdir(exist_ok=True)
    stale = []
    for name, rows in plan.items():
        path = folder / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    print(crossing(plan))
    if stale:
        sys.exit(f"not as drawn: {', '.join(stale)}")


if __name__ == "__main__":
    main()
