"""python -m storyflower predict [sentence …] [--input FILE --column NAME --output FILE]"""

import gc
import sys

from storyflower.errors import InputError, exit_with_line


def main() -> None:
    if sys.argv[1:2] != ["predict"]:
        raise InputError('usage: python -m storyflower predict "오늘 드디어 합격했어!"')
    gc.set_threshold(1_000_000)  # as in stages/__init__.py
    from storyflower.predict import command_line

    command_line(sys.argv[2:])


if __name__ == "__main__":
    exit_with_line(main)
