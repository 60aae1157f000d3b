"""The page in a real Chromium, served by the command itself: everything a person does, with mouse, keys and phone.

Needs Debian's packages chromium and chromium-driver (or CHROMIUM and CHROMEDRIVER with their paths). With
HIDISTILL_SCREENSHOTS=DIR its pictures go there; HIDISTILL_VIEW_RUN=RUN takes a trained run in place of a tiny one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
SHOTS = os.environ.get("HIDISTILL_SCREENSHOTS")
PATIENCE = 60
LARGEST_SHOT = 150_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the bundled teacher whose two stages are short, unless a trained one is named."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    if trained := os.environ.get("HIDISTILL_VIEW_RUN"):
        shutil.copytree(trained, folder)
        (folder / "votes.jsonl").unlink(missing_ok=True)
        return folder
    small = ["--sketch-steps", "6", "--refine-steps", "6", "--batch-size", "8", "--evaluate-samples", "20"]
    command = [sys.executable, "-m", "hidistill", "train", "fashion.distill", "--out", str(folder), *small]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def address(run):
    """Where the command serves the page, until the tests are done."""
    command = [sys.executable, "-u", "-m", "hidistill", "view", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + server.stderr.read()
        yield found[0]
        server.send_signal(signal.SIGINT)
        _, complaints = server.communicate(timeout=30)
        assert server.returncode == 0
        assert "Traceback" not in complaints


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests; what it asks for is written down."""
    from selenium import webdriver

    assert CHROMIUM, "no Chromium: apt-get install chromium chromium-driver"
    assert DRIVER, "no chromedriver: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def page(chromium, address):
    """The page at desk width, its first pictures drawn; afterwards: nothing but the server was asked for anything."""
    sized(chromium, 1100, 900)
    chromium.get(address)
    shown(chromium, "#compared .hd-pair")
    yield chromium
    entries = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [entry["params"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]
    urls = [each["request"]["url"] for each in asked if each["request"]["url"].startswith(("http", "ws"))]
    assert [url for url in urls if not url.startswith(address)] == []
    said = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    # A page that is left while its stream of events is open says so.
    severe = [message for message in said if "abort" not in message.lower() and "errored out" not in message]
    assert severe == []


def sized(browser, width, height, *, phone=False):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def until(condition, what):
    """Wait for something that becomes true."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except (NoSuchElementException, StaleElementReferenceException):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {PATIENCE} seconds")


def shown(browser, selector):
    """The first element that a selector finds and a person sees."""
    found = lambda: [each for each in browser.find_elements("css selector", selector) if each.is_displayed()]  # noqa: E731
    return until(found, f"{selector} on the page")[0]


def tab(browser, name):
    buttons = browser.find_elements("css selector", "button[role=tab]")
    next(each for each in buttons if each.text.strip() == name and each.is_displayed()).click()


def typed(browser, selector, text):
    from selenium.webdriver.common.keys import Keys

    field = shown(browser, selector)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)
    return field


def ours(browser, out):
    """What we wrote to a place of the page, without what Gradio shows there while it waits."""
    collect = "return [...document.querySelectorAll(arguments[0] + ' [class^=hd-]')].map(e => e.outerHTML).join('')"
    return browser.execute_script(collect, out)


def pressed_and_changed(browser, button, out):
    """Press a button and wait for another content of what it writes to."""
    before = ours(browser, out)
    shown(browser, button).click()
    return until(lambda: (now := ours(browser, out)) != before and now, f"{out} anew")


def sources(browser, selector):
    return [each.get_attribute("src") for each in browser.find_elements("css selector", selector)]


def shot(browser, name):
    """A picture of the page for the documentation, if somebody asked for it."""
    if SHOTS:
        from PIL import Image

        time.sleep(0.6)
        path = Path(SHOTS) / f"view-{name}.png"
        browser.save_screenshot(str(path))
        with Image.open(path) as image:
            small = image.convert("RGB").quantize(128)
        small.save(path, optimize=True)
        assert path.stat().st_size < LARGEST_SHOT


def test_the_page_loads_and_draws(page):
    assert page.title == "hidistill view"
    text = shown(page, "#compared").text
    assert re.search(r"teacher, scale 1.5, 50 steps\n100 network passes, [\d.,]+ ms for 6 images", text)
    assert re.search(r"student, 1 step\n1 network pass, [\d.,]+ ms for 6 images", text)
    pictures = page.find_elements("css selector", "#compared img")
    assert len(pictures) == 12
    assert all(each.get_attribute("alt") for each in pictures)
    names = [each.text.strip() for each in tabs(page)]
    assert names == ["Side by side", "Noise to image", "Attention", "Blind test", "Runs"]
    assert page.execute_script(
        "return [...document.querySelectorAll('#compared img')].every(i => i.naturalWidth == 28)"
    )
    shot(page, "compare")


def test_settings_change_what_is_drawn(page):
    before = sources(page, "#compared img")
    typed(page, "#seed input, #seed textarea", "1")
    pressed_and_changed(page, "#draw", "#compared")
    other = sources(page, "#compared img")
    assert not set(other) & set(before)
    typed(page, "#student-steps input[type=number]", "4")
    typed(page, "#teacher-steps input[type=number]", "8")
    typed(page, "#scale input[type=number]", "3")
    pressed_and_changed(page, "#draw", "#compared")
    text = shown(page, "#compared").text
    assert "student, 4 steps" in text
    assert "teacher, scale 3, 8 steps" in text
    assert not set(sources(page, "#compared img")) & set(other)


def test_another_student(page):
    from selenium.webdriver.common.keys import Keys

    before = sources(page, "#compared img")
    field = shown(page, "#student input")
    field.click()
    until(lambda: len(page.find_elements("css selector", "[role=option]")) == 2, "a list of two students")
    field.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    until(lambda: "sketch" in field.get_attribute("value"), "the sketch chosen")
    pressed_and_changed(page, "#draw", "#compared")
    after = sources(page, "#compared img")
    assert after[::2] == before[::2]  # the teacher's
    assert after[1::2] != before[1::2]


def test_a_class_by_its_name_and_one_that_is_not_there(page):
    from selenium.webdriver.common.keys import Keys

    typed(page, "#class input", "sandal").send_keys(Keys.ENTER)
    pressed_and_changed(page, "#draw", "#compared")
    assert shown(page, "#compared figcaption").text.startswith("sandal")
    typed(page, "#class input", "sandel").send_keys(Keys.ENTER, Keys.TAB)
    pressed_and_changed(page, "#draw", "#compared")
    assert "did you mean 'sandal'?" in shown(page, "#compared [role=alert]").text


def test_a_bad_seed_is_said_and_the_next_draw_is_fine(page):
    typed(page, "#seed input, #seed textarea", "<b>${1+1}{{2}}</b>")
    pressed_and_changed(page, "#draw", "#compared")
    said = shown(page, "#compared [role=alert]").text
    assert said.startswith("seed '<b>${1+1}{{2}}</b>': must be a whole number")
    shot(page, "error")
    typed(page, "#seed input, #seed textarea", "2")
    pressed_and_changed(page, "#draw", "#compared")
    assert len(sources(page, "#compared img")) == 12


def test_the_slider_goes_from_noise_to_image(page):
    from selenium.webdriver.common.keys import Keys

    tab(page, "Noise to image")
    slider = shown(page, "#flow input[type=range]")
    place = "return document.querySelector('#flow .hd-frame img').getBoundingClientRect().left"
    start = page.execute_script(place)
    width = page.execute_script("return document.querySelector('#flow .hd-frame').getBoundingClientRect().width")
    assert shown(page, "#flow output").text == "t = 1.00"
    slider.send_keys(*[Keys.ARROW_RIGHT] * 14)
    assert shown(page, "#flow output").text == "t = 0.30"
    assert slider.get_attribute("aria-valuetext") == "time 0.30"
    assert start - page.execute_script(place) == pytest.approx(14 * width, rel=0.01)
    shot(page, "flow")
    slider.send_keys(Keys.END)
    assert shown(page, "#flow output").text == "t = 0.00"


def test_attention_lies_over_the_pictures(page):
    tab(page, "Attention")
    shown(page, "#looks img")
    assert len(page.find_elements("css selector", "#looks img")) == 2
    assert "times the weight of average pooling" in shown(page, "#looks").text
    shot(page, "attention")


def test_votes_by_mouse_and_key_are_in_the_file(page, run):
    file = run / "votes.jsonl"
    tab(page, "Blind test")
    assert not shown(page, "#vote-left").is_enabled()
    pressed_and_changed(page, "#next-pair", "#blind")
    for key, button in (("", "#vote-left"), ("", "#vote-neither"), ("3", "#vote-right")):
        count = len(file.read_text().splitlines()) if file.exists() else 0
        until(lambda b=button: shown(page, b).is_enabled(), f"{button} enabled")
        before = sources(page, "#blind img")
        text = shown(page, "#blind").text
        assert "teacher" not in text
        assert "student" not in text
        shown(page, "#blind figcaption").click()
        if key:
            page.switch_to.active_element.send_keys(key)
        else:
            shown(page, button).click()
        until(lambda b=before: sources(page, "#blind img") not in (b, []), "the next pair")
        assert len(file.read_text().splitlines()) == count + 1
    shot(page, "blind")
    votes = [json.loads(line) for line in file.read_text().splitlines()]
    left, tie, right = votes[-3:]
    assert left["choice"] == left["left"]
    assert tie["choice"] == "tie"
    assert right["choice"] != right["left"]
    pressed_and_changed(page, "#show-result", "#preference")
    said = shown(page, "#preference").text
    assert "of 2 votes" in said
    assert "95 % interval" in said
    assert "1 more saw no difference" in said


def test_a_run_with_its_curves_grows_on_the_page(page, run):
    tab(page, "Runs")
    shown(page, "#run-page svg")
    assert "Finished at step" in shown(page, "#run-page").text
    assert [each.text.strip() for each in tabs(page)].count("Runs") == 1
    assert page.find_elements("css selector", "#run-page table")
    assert page.find_elements("css selector", "#run-page .hd-picture img")
    shot(page, "runs")
    journal = run / "metrics.jsonl"
    kept = journal.read_text()
    last = json.loads(kept.splitlines()[-1])
    with journal.open("a") as file:
        file.write(json.dumps({**last, "kind": "step", "global_step": 12345, "step": 12345}) + "\n")
    until(lambda: "step 12345" in shown(page, "#run-page").text, "the new step on the page")
    journal.write_text(kept)


def test_a_run_that_went_away_is_said_on_the_page(page, run):
    away = run.with_name("away")
    run.rename(away)
    try:
        tab(page, "Runs")
        assert "is not a folder" in shown(page, "#run-page [role=alert]").text
    finally:
        away.rename(run)


@pytest.mark.parametrize("name", ["Side by side", "Noise to image", "Attention", "Blind test", "Runs"])
def test_nothing_is_wider_than_a_phone(page, address, name):
    out = {"Side by side": "#compared img", "Noise to image": "#flow img", "Attention": "#looks img"}
    out |= {"Blind test": "#blind img", "Runs": "#run-page svg"}
    sized(page, 390, 844, phone=True)
    page.get(address)
    shown(page, "#compared .hd-pair")
    if name != "Side by side":
        reached(page, name)
    if name == "Blind test":
        pressed_and_changed(page, "#next-pair", "#blind")
    shown(page, out[name])
    time.sleep(0.3)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = (
        "return [...document.querySelectorAll('button, input, img, p, figure')].filter(e => e.offsetParent && "
        "!e.closest('.scroll, .hd-frame, [class*=tab-container], [class*=overflow]') && "
        "e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 120))"
    )
    assert page.execute_script(wide) == []
    if name in ("Side by side", "Blind test"):
        page.execute_script("if (arguments[0]) document.querySelector('#blind').scrollIntoView()", name == "Blind test")
        shot(page, "phone-" + name.lower().replace(" ", "-"))


def reached(browser, name):
    """A tab by its button, or by the menu of those that a narrow page has no place for."""
    if not any(e.text.strip() == name and e.is_displayed() for e in tabs(browser)):
        shown(browser, "[class*=overflow-menu] > button").click()
        until(lambda: any(e.text.strip() == name and e.is_displayed() for e in menu(browser)), "the menu's entry")
        next(e for e in menu(browser) if e.text.strip() == name and e.is_displayed()).click()
    else:
        tab(browser, name)


def tabs(browser):
    return browser.find_elements("css selector", "button[role=tab]")


def menu(browser):
    return browser.find_elements("css selector", "[class*=overflow-dropdown] button")


def test_everything_can_be_reached_by_keys(page):
    """Tab goes to every field and button in turn, each has a name, and Enter and the arrows work them."""
    from selenium.webdriver.common.keys import Keys

    page.execute_script("document.activeElement.blur()")
    page.find_element("css selector", "body").send_keys(Keys.TAB)
    seen, names = [], []
    for _ in range(40):
        focused = page.switch_to.active_element
        seen.append(page.execute_script("return arguments[0].closest('[id]')?.id", focused))
        names.append(page.execute_script("return arguments[0].computedName ?? ''", focused) or focused.accessible_name)
        focused.send_keys(Keys.TAB)
    wanted = {"student", "class", "seed", "count", "student-steps", "teacher-steps", "scale", "draw", "next-seed"}
    assert wanted <= set(seen)
    nameless = [place for place, name in zip(seen, names, strict=True) if place in wanted and not name]
    assert nameless == []
    before = sources(page, "#compared img")
    shown(page, "#next-seed").send_keys(Keys.ENTER)
    until(lambda: sources(page, "#compared img") not in (before, []), "other pictures")
    first = tabs(page)[0]
    first.send_keys("")
    second = next(each for each in tabs(page) if each.text.strip() == "Noise to image")
    second.send_keys(Keys.ENTER)
    assert shown(page, "#flow input[type=range]").accessible_name.startswith("From noise")


def test_nothing_else_is_served(address, run):
    outside = [run / "recipe.json", Path("/etc/passwd"), Path("README.md")]
    for path in outside:
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")
        assert refusal.value.code in (403, 404)
    for place in ("docs", "openapi.json", "gradio_api/info"):
        try:
            with urllib.request.urlopen(f"{address}/{place}") as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as refusal:
            text = refusal.read().decode()
        assert str(run) not in text
    strangers = {"421": {"Host": "elsewhere.example"}, "403": {"Origin": "http://elsewhere.example"}}
    for status, headers in strangers.items():
        with pytest.raises(urllib.error.HTTPError, match=status):
            urllib.request.urlopen(urllib.request.Request(f"{address}/config", headers=headers))
    with urllib.request.urlopen(address) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
