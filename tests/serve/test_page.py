"""The page in a real browser: what someone who writes a diary sees, hears and never gives away."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from storyflower.serve import messages
from tests.serve.conftest import Service
from tests.support import ROOT

pytestmark = pytest.mark.slow

AXE = ROOT / "node_modules/axe-core/axe.min.js"
NEEDED = {
    "a Chromium browser": "apt-get install chromium",
    "chromedriver": "apt-get install chromium-driver",
    "a Korean font": "apt-get install fonts-nanum",
    "axe-core": "npm install --prefix . --no-save --no-package-lock axe-core@4.14.1",
    "selenium": "make venv",
}
# The page needs no network, and the browser itself is not to use one.
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-client-side-phishing-detection",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENCE = 60  # seconds
DIARY = "오늘 드디어 합격했어! 그런데 내일이 무서워 잠이 안 와."


def browser_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def missing() -> list[str]:
    """What of NEEDED is not there."""
    fonts = ["fc-list", ":lang=ko"]
    there = {
        "a Chromium browser": browser_path(),
        "chromedriver": shutil.which("chromedriver"),
        "a Korean font": shutil.which("fc-list") is None
        or subprocess.run(fonts, capture_output=True, check=True).stdout,
        "axe-core": AXE.exists(),
    }
    try:
        import selenium  # noqa: F401
    except ModuleNotFoundError:
        there["selenium"] = None
    return [name for name, found in there.items() if not found]


class Page:
    """The page in a browser, by what stands on it."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, address: str, *, width: int = 1280, scheme: str = "light", motion="") -> None:
        """Load the page as a screen of this width shows it, with these wishes of its user."""
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        self.devtools(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )
        self.resize(width, 900)
        self.driver.get(address)
        self.wait(lambda: self.driver.execute_script("return !!document.querySelector('.flower')"))

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)

    def devtools(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: condition())

    def all(self, selector: str) -> list[Any]:
        found = self.driver.find_elements("css selector", selector)
        return [element for element in found if element.is_displayed()]

    def one(self, selector: str) -> Any:
        (element,) = self.all(selector)
        return element

    def text(self, selector: str) -> str:
        """Exactly what the elements hold, blanks and all; "" without any."""
        script = "return Array.from(document.querySelectorAll(arguments[0]), e => e.textContent)"
        return "".join(self.run(script, selector))

    def write(self, diary: str) -> None:
        """Put a text in at once; the driver's own keys know no emoji and are slow."""
        self.run(
            "const box = document.getElementById('diary'); box.value = arguments[0];"
            "box.dispatchEvent(new Event('input'))",
            diary,
        )

    def send(self) -> None:
        self.one("#send").click()

    def read(self, diary: str) -> None:
        """Write a diary, send it and wait for the answer."""
        self.write(diary)
        self.send()
        self.wait(lambda: self.all(".piece"))

    def pieces(self) -> list[str]:
        return self.run(
            "return Array.from(document.querySelectorAll('.sentence'), e => e.textContent)"
        )

    def tap(self, number: int) -> None:
        """Tap a sentence and wait for its words."""
        self.all(".piece")[number].click()
        self.wait(lambda: self.all(".marked"))

    def answer_with(self, status: int, body: str, **headers: str) -> None:
        """From now on every request of the open page gets this answer."""
        self.run(
            "const [status, body, headers] = arguments;"
            "window.fetch = async () => new Response(body, {status, headers})",
            status,
            body,
            headers,
        )


def start_browser() -> Page:
    """Chromium without a window; whoever starts it ends it: .driver.quit()"""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser_path()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(PATIENCE)
    return Page(driver)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    lacking = missing()
    if lacking:
        message = "; ".join(f"{name} is missing: {NEEDED[name]}" for name in lacking)
        if os.environ.get("STORYFLOWER_CONFORMANCE") == "1":
            pytest.fail(message)
        pytest.skip(message)
    page = start_browser()
    yield page
    page.driver.quit()


@pytest.fixture
def address(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


@pytest.fixture
def page(browser: Page, address: str) -> Page:
    browser.open(address)
    return browser


def test_typed_and_sent_by_keyboard_a_diary_blooms(page: Page, service: Service) -> None:
    from selenium.webdriver.common.keys import Keys

    box = page.one("#diary")
    box.click()
    box.send_keys(DIARY)
    assert page.text("#count") == f"{len(DIARY)}자"
    box.send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.all(".piece"))

    answer = service.call("/v1/diary", {"text": DIARY}).json
    assert page.pieces() == [piece["text"] for piece in answer["pieces"]]
    assert len(page.pieces()) > 1
    assert answer["label"] in page.text("#answer") and "짐작" in page.text("#answer")
    for guess, piece in zip(page.all(".guess"), answer["pieces"], strict=True):
        assert piece["label"] in guess.text
    spoken = page.one("#flower svg").get_attribute("aria-label")
    assert [name in spoken for name in answer["probabilities"]] == [True] * 3
    sizes = page.run(
        "return Array.from(document.querySelectorAll('#flower .petal'),"
        "p => Number(p.style.getPropertyValue('--size')) ** 2)"
    )
    assert sizes == pytest.approx(
        [answer["probabilities"][k] for k in sorted(answer["probabilities"])]
    )


def test_a_tap_shows_the_words_that_decided(page: Page, service: Service) -> None:
    page.read(DIARY)
    sentence = page.all(".piece")[0]
    assert sentence.get_attribute("aria-expanded") == "false"
    page.tap(0)
    assert sentence.get_attribute("aria-expanded") == "true"
    text = page.pieces()[0]
    assert page.text(".marked") == text
    words = service.call("/v1/explain", {"text": text}).json["words"]
    moved = {word["text"]: word["change"] for word in words if abs(word["change"]) >= 0.01}
    assert moved, "the tiny classifier decides by words"
    for mark in page.all("mark"):
        direction = "toward" if moved.pop(mark.text) > 0 else "away"
        assert direction in mark.get_attribute("class").split()
    assert moved == {}
    strongest = max(words, key=lambda word: abs(word["change"]))
    size = f"{abs(strongest['change']) * 100:.0f}%p"
    assert f"{strongest['text']} {size}" in [line.text for line in page.all(".words dd")]
    sentence.click()
    assert page.all(".marked") == []


def test_the_focus_goes_down_the_page(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.read(DIARY)
    page.one("#clear").send_keys("")
    page.run("document.getElementById('clear').focus()")
    order = []
    for _ in range(4):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = page.driver.switch_to.active_element
        order.append(focused.get_attribute("id") or focused.get_attribute("class"))
        assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert order == ["diary", "send", "piece", "piece"]
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait(lambda: page.all(".marked"))


def test_markup_and_emoji_in_a_diary_are_text(page: Page) -> None:
    family = "\U0001f469\u200d\U0001f469\u200d\U0001f467"  # one emoji of five code points
    markup = f"{family} <script>ran = 1</script><img src=x onerror='ran = 1'> 합격했어 <b>😀</b>"
    page.read(markup)
    assert "".join(page.pieces()).replace(" ", "") == markup.replace(" ", "")
    page.tap(0)
    assert page.text(".marked") == page.pieces()[0]
    assert all(" " not in mark.text for mark in page.all("mark"))
    assert page.run("return window.ran") is None
    assert page.all("main script, main img, main b:not(dd b)") == []


def test_ten_thousand_characters(page: Page) -> None:
    diary = "".join(f"{n}번째 선물을 받았어. " for n in range(2000))[:10_000]
    page.read(diary)
    assert page.text("#count") == "10,000자"
    assert len(page.pieces()) == 40
    while page.all("#more"):
        page.one("#more").click()
    assert "".join(page.pieces()).replace(" ", "") == diary.replace(" ", "")
    assert page.driver.switch_to.active_element.get_attribute("class") == "piece"


def test_a_diary_that_is_longer_than_the_service_takes(page: Page) -> None:
    page.write("가" * (messages.MAX_CHARACTERS + 1))
    page.send()
    assert "10만 자" in page.text("#problem") and messages.MAX_CHARACTERS == 100_000
    page.read("선물을 받았어.\n" * 5)
    assert page.text("#problem") == ""


@pytest.mark.parametrize("diary", ["", " \n\t "])
def test_an_empty_diary(page: Page, diary: str) -> None:
    page.write(diary)
    page.send()
    assert "읽을 글이 없습니다" in page.text("#problem")
    assert page.all(".piece") == []


def error(code: str) -> str:
    return json.dumps({"error": {"code": code, "message": "…", "field": None}})


@pytest.mark.parametrize(
    "status, body, headers, words, again",
    [
        (503, error("busy"), {"Retry-After": "7"}, "7초 뒤에", True),
        (503, error("stopping"), {"Retry-After": "1"}, "멈추는 중", True),
        (500, error("internal"), {}, "답하지 못했습니다", True),
        (422, error("no_text"), {}, "읽을 글이 없습니다", False),
        (413, "<html>of a proxy</html>", {}, "너무 깁니다", False),
        (502, "<html>of a proxy</html>", {}, "닿지 않습니다", True),
    ],
)
def test_what_the_service_refuses(page: Page, status, body, headers, words, again) -> None:
    page.answer_with(status, body, **headers)
    page.write(DIARY)
    page.send()
    page.wait(lambda: page.text("#problem"))
    assert words in page.text("#problem") and page.one("#problem").get_attribute("role") == "alert"
    assert ("다시 시도" in [button.text for button in page.all("#problem button")]) is again
    assert page.one("#diary").get_property("value") == DIARY
    assert page.one("#send").get_attribute("aria-disabled") == "false"


def test_an_unsure_answer_is_called_unsure(page: Page) -> None:
    unsure = {"label": "모름", "probabilities": {"분노": 0.4, "기쁨": 0.35, "불안": 0.25}}
    piece = {"start": 0, "end": 3, "text": "글쎄.", **unsure}
    page.answer_with(200, json.dumps({**unsure, "pieces": [piece]}))
    page.read("글쎄.")
    assert page.text(".verdict") == "모름" and "분노 40%" in page.text("#answer")
    assert page.text(".guess") == "모름"


def test_a_server_that_is_down(browser: Page, command: Callable) -> None:
    started = command()
    browser.open(f"http://127.0.0.1:{started.started().port}")
    browser.read(DIARY)
    started.end(signal.SIGKILL)
    browser.all(".piece")[0].click()
    browser.wait(lambda: "닿지 않습니다" in browser.text(".why"))
    browser.send()
    browser.wait(lambda: "닿지 않습니다" in browser.text("#problem"))
    assert browser.all(".piece") == []
    assert browser.one("#diary").get_property("value") == DIARY


def test_a_token_is_asked_for_and_kept_in_memory_only(browser: Page, start: Callable) -> None:
    address = f"http://127.0.0.1:{start(token='open-sesame').port}"
    browser.open(address)
    browser.wait(lambda: browser.all("#token"))
    browser.write(DIARY)
    for token in ("wrong", "한글"):
        browser.one("#token").send_keys(token)
        browser.one("#token-form button").click()
        browser.wait(lambda: "토큰이 맞지 않습니다" in browser.text("#problem"))
    browser.one("#token").send_keys("open-sesame\n")
    browser.wait(lambda: browser.all(".piece"))
    assert (browser.all("#token"), browser.text("#problem")) == ([], "")
    browser.tap(0)
    assert stored(browser) == {}
    assert "sesame" not in browser.run("return document.documentElement.outerHTML")
    browser.open(address)
    browser.wait(lambda: browser.all("#token"))


def stored(page: Page) -> dict:
    """What the browser keeps of this origin."""
    script = """
        const done = arguments[0], workers = navigator.serviceWorker;
        Promise.all([indexedDB.databases(), caches.keys(), workers.getRegistrations()]).then(
            found => done({...localStorage, ...sessionStorage, ...found.flat(),
                           ...(document.cookie && {cookie: document.cookie})}))
    """
    return page.driver.execute_async_script(script)


def test_nothing_is_stored_and_no_request_leaves_the_origin(page: Page, address: str) -> None:
    page.driver.get_log("performance"), page.driver.get_log("browser")
    page.open(address)
    page.read(DIARY)
    page.tap(0)
    assert stored(page) == {}
    urls = [
        entry["params"]["request"]["url"]
        for line in page.driver.get_log("performance")
        if (entry := json.loads(line["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert f"{address}/v1/diary" in urls and f"{address}/v1/explain" in urls
    assert [url for url in urls if not url.startswith(f"{address}/")] == []
    assert page.driver.get_log("browser") == []
    blocked = """
        const done = arguments[0];
        addEventListener("securitypolicyviolation", event => done(event.violatedDirective));
        fetch("http://127.0.0.1:9/").catch(() => {});
    """
    assert page.driver.execute_async_script(blocked) == "connect-src"
    page.driver.refresh()
    assert page.one("#diary").get_property("value") == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing(browser: Page, address: str, width: int, scheme: str) -> None:
    browser.open(address, width=width, scheme=scheme, motion="reduce")
    browser.run(AXE.read_text(encoding="utf-8"))

    def violations() -> list[str]:
        found = browser.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then(done, done)"
        )
        assert found["passes"], found
        return [
            f"{rule['id']}: {node['html']} {node['failureSummary']}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]

    assert violations() == []
    browser.read(DIARY)
    browser.tap(0)
    assert violations() == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.answer_with(401, error("unauthorized"))
    browser.send()
    browser.wait(lambda: browser.all("#token"))
    assert violations() == []


def test_reduced_motion(browser: Page, address: str) -> None:
    moves = "return getComputedStyle(document.querySelector('.petal')).animationName"
    for motion, name in (("", "bloom"), ("reduce", "none")):
        browser.open(address, motion=motion)
        assert browser.run(moves) == name
