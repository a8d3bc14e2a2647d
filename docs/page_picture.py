"""The picture of the page: its example diary, read, with the words of one sentence.

In: the address of a service that serves the default classifier.
Out: docs/page.png, or another file. See docs/page.md.
"""

import argparse
from pathlib import Path

from tests.serve.test_page import Page, start_browser

PICTURE = Path(__file__).with_name("page.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--width", type=int, default=1280, help="CSS pixels, %(default)s")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    page = start_browser()
    try:
        page.open(options.address, width=options.width, scheme=options.scheme, motion="reduce")
        take(page, options.width, options.output)
    finally:
        page.driver.quit()


def take(page: Page, width: int, output: Path) -> None:
    page.one("#example").click()
    page.send()
    page.wait(lambda: page.all(".piece"))
    page.tap(0)
    page.run("document.activeElement.blur()")
    page.resize(width, page.run("return document.documentElement.scrollHeight"))
    page.driver.save_screenshot(str(output))


if __name__ == "__main__":
    main()
