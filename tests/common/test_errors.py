"""How an error becomes one line."""

import pytest

from storyflower.common.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b\r\n\tc\u2028d"), "a b c d"),
        (ValueError(), "ValueError"),
        (KeyError("key"), "'key'"),
        (OSError(" \n "), "OSError"),
        ("said\nalready", "said already"),
        ("가" * 200, "가" * 200),
        ("가" * 201, "가" * 199 + "…"),
    ],
)
def test_one_line(error: object, line: str) -> None:
    assert one_line(error) == line


def test_the_limit() -> None:
    assert one_line("123456", limit=4) == "123…"
