"""Renews what README.md and params.yaml say of each param: `make readme`.

In: the fields of `Params`.
Out: README.md's table, and the comments of params.yaml, whose values stay. README.ko.md is written
by hand; a test compares its keys, values and ranges.
"""

import json
import re
from pathlib import Path
from typing import Any

from storyflower.common.params import Params, rule

HEADER = "| key | shipped | range | meaning |\n| --- | --- | --- | --- |\n"


def main() -> None:
    for name, renewed in (("README.md", renew_readme), ("params.yaml", renew_params)):
        path = Path(name)
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


def renew_readme(readme: str) -> str:
    """README.md with the table made anew; a page without it raises IndexError."""
    before, rest = re.split(r"^\| key \| shipped \|.*\n", readme, maxsplit=1, flags=re.MULTILINE)
    after = re.split(r"^(?!\|)", rest, maxsplit=1, flags=re.MULTILINE)[1]
    rows = [f"| {' | '.join(cells)} | {field['description']} |\n" for cells, field in table()]
    return before + HEADER + "".join(rows) + after


def renew_params(text: str) -> str:
    """params.yaml with each comment behind a key made anew."""
    comments = {}
    for (key, _, allowed), field in table():
        comments[key.strip("`")] = f"{allowed}; " * bool(allowed) + field["description"]

    def renewed(line: re.Match[str]) -> str:
        return f"{line[1]:<23} # {comments[line[2]]}"

    return re.sub(rf"^(({'|'.join(comments)}): .*?) *#.*", renewed, text, flags=re.MULTILINE)


def table() -> list[tuple[tuple[str, str, str], dict[str, Any]]]:
    """For each param: its key, shipped value and range as cells of Markdown, and its schema."""
    rows = []
    for key, field in Params.model_json_schema()["properties"].items():
        shipped = field["shipped"]
        value = json.dumps(shipped) if isinstance(shipped, bool) else str(shipped)
        if isinstance(shipped, list):
            value = f"[{', '.join(shipped)}]"
        number = isinstance(shipped, int | float) and not isinstance(shipped, bool)
        cells = (f"`{key}`", value if number else f"`{value}`", allowed(field))
        rows.append((cells, field))
    return rows


def allowed(field: dict[str, Any]) -> str:
    """The range of a number, or the words that there are; "" of any other text."""
    if "rule" in field:
        return ""
    return re.sub(r"one of |a (whole )?number in ", "", rule(field)).replace(" or ", ", ")


if __name__ == "__main__":
    main()
