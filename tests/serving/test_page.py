"""The page in a headless Chromium: type, see text stream, stop, fork, reload."""

import shutil
import time

import pytest

pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in (CHROMIUM, DRIVER), reason="there is no chromium with its driver"),
]


@pytest.fixture
def browser(server):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1300,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        found.get(server.url)
        found.execute_script("localStorage.clear(); sessionStorage.clear()")
        found.refresh()
        wait(found, lambda: text(found, "#model") == "tiny")
        yield found
        # An answer of 400 is told by the page, and no fault of its own.
        severe = [
            line
            for line in found.get_log("browser")
            if line["level"] == "SEVERE" and line["source"] != "network"
        ]
        assert not severe
    finally:
        found.quit()


def wait(browser, true, seconds=60):
    """Waits until something is so."""
    return WebDriverWait(browser, seconds, 0.05).until(lambda _: true())


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def text(browser, selector):
    return find(browser, selector).text


def turns(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('article .text')].map((x) => x.textContent)"
    )


def put(browser, name, value):
    """Sets a field of the settings."""
    field = find(browser, f"#settings [name={name}]")
    field.clear()
    field.send_keys(value, Keys.TAB)


def send(browser, message):
    find(browser, "#message").send_keys(message, Keys.ENTER)


def test_a_conversation_streams_stops_forks_and_outlives_a_reload(browser):
    put(browser, "max_tokens", "12")
    put(browser, "seed", "1")
    send(browser, "Who goes there?")
    wait(browser, lambda: text(browser, "#status") == "Griffin has written.")
    first = turns(browser)
    assert first[0] == "Who goes there?" and len(first) == 2
    assert "tokens a second" in text(browser, "#speed")
    state, tokens = text(browser, "#state-text"), text(browser, "#tokens")
    assert state and tokens != "0 tokens"

    send(browser, "And who else?")
    wait(browser, lambda: len(turns(browser)) == 4 and find(browser, "#send").is_enabled())
    assert text(browser, "#state-text") == state and text(browser, "#tokens") != tokens

    browser.find_elements(By.CSS_SELECTOR, "article footer button")[1].click()
    assert turns(browser) == first
    assert "fork" in text(browser, "#title")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#conversations li")) == 2
    send(browser, "Something else.")
    wait(browser, lambda: len(turns(browser)) == 4 and find(browser, "#send").is_enabled())
    forked = turns(browser)

    # One's own message is there to be said otherwise, before it was sent.
    browser.find_elements(By.CSS_SELECTOR, "article footer button")[2].click()
    assert turns(browser) == first
    assert find(browser, "#message").get_attribute("value") == "Something else."
    find(browser, "#message").clear()
    browser.find_elements(By.CSS_SELECTOR, "#conversations button")[2].click()

    browser.refresh()
    wait(browser, lambda: turns(browser) == forked)
    browser.find_elements(By.CSS_SELECTOR, "#conversations button")[4].click()
    assert turns(browser)[:2] == first and turns(browser) != forked


def test_an_answer_stops_and_a_text_goes_on(browser, server, lm, monkeypatch):
    engine = server.service.worker.engine
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.1), step())[1])  # for one to see it
    drawn = {"temperature": 1.0, "top_p": 0.95}
    seed = next(
        seed
        for seed in range(50)
        if lm.sample(["The sea"], 300, seed=[seed], **drawn)[0].finish_reason == "length"
    )
    find(browser, "#new-text").click()
    put(browser, "max_tokens", "300")
    put(browser, "temperature", "1")
    put(browser, "seed", str(seed))
    send(browser, "The sea")
    wait(browser, lambda: len(turns(browser)) == 2 and len(turns(browser)[1]) > 5)
    find(browser, "#message").send_keys(Keys.ESCAPE)
    wait(browser, lambda: text(browser, "#status") == "Stopped.")
    wait(browser, lambda: server.service.worker.num_open == 0)
    stopped = turns(browser)
    assert stopped[0] == "The sea"
    put(browser, "max_tokens", "5")
    find(browser, "#send").click()
    wait(browser, lambda: text(browser, "#status") == "Griffin has written.")
    assert turns(browser)[:2] == stopped and len(turns(browser)) == 3


def test_what_goes_wrong_is_said_and_the_message_is_kept(browser):
    put(browser, "max_tokens", "100000")
    send(browser, "Who goes there?")
    wait(browser, lambda: "512 are the most here" in text(browser, "#status"))
    assert find(browser, "#message").get_attribute("value") == "Who goes there?"
    assert not turns(browser)


def test_every_control_has_a_name_and_the_keyboard_reaches_it(browser):
    unnamed = browser.execute_script("""
        return [...document.querySelectorAll("button, input, textarea, progress")].filter(
            (x) => !(x.labels?.length || x.ariaLabel || x.textContent.trim())).map((x) => x.outerHTML)
    """)
    assert not unnamed
    reached = set()
    find(browser, "body").send_keys(Keys.TAB)
    for _ in range(25):
        active = browser.switch_to.active_element
        reached.add(active.get_attribute("id") or active.get_attribute("name"))
        active.send_keys(Keys.TAB)
    assert {"new-chat", "new-text", "message", "send", "temperature", "key"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    send(browser, "Who goes there?")
    wait(browser, lambda: len(turns(browser)) == 2 and find(browser, "#send").is_enabled())
    for selector in ("h1", "#model", "article .text", "#send", "dt", "button.plain", "#hint"):
        assert contrast(browser, selector) >= 4.5, selector


def contrast(browser, selector):
    """The contrast of a text by WCAG 2, against the nearest background that is not transparent."""
    front, back = browser.execute_script(
        """
        const element = document.querySelector(arguments[0]);
        const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
        let at = element, back = [0, 0, 0, 0];
        while (at && back[3] === 0) {
          back = numbers(getComputedStyle(at).backgroundColor);
          if (back.length === 3) back.push(1);
          at = at.parentElement;
        }
        return [numbers(getComputedStyle(element).color), back];
        """,
        selector,
    )
    light, dark = sorted(map(luminance, (front, back)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color):
    parts = [x / 255 for x in color[:3]]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
