"""The console in a real headless Chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
import uvicorn
from simulators.console_fleet import NEXT_RUN, PASSWORD, RUN, seed_console
from simulators.server_home import MODEL, open_home

from server.api import create_app
from server.config import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastapi import FastAPI
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WHY_SKIPPED = "no browser: install Debian's `chromium` (apt-get install chromium) and `pip install playwright`"
PAGES = ("", "releases", f"releases/{MODEL}/4", "rollouts", "rollouts/4", "devices", "enrolment", "runs")
PAGES += (f"runs/{RUN}", "audit", "operators", "operators/ada")
PAGES += (f"runs/{NEXT_RUN}/release?show=yes&phases=10,50",)


class Console:
    """The service on a port of its own."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/console/"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listening]})

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the service did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listening.close()


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    folder = tmp_path_factory.mktemp("console")
    home = open_home(folder / "three")
    home.release_three()
    home.registry.close()
    settings = Settings(home=seed_console(folder / "three", folder / "seeded") / "home")
    running = Console(create_app(settings))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason=WHY_SKIPPED)
    if CHROMIUM is None:
        pytest.skip(WHY_SKIPPED)
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox does not start for root, as whom containers run tests.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new window; anything that the browser complains about fails the test."""
    context = browser.new_context(accept_downloads=True)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("response", lambda answer: complaints.append(answer.url) if answer.status >= 500 else None)
    opened.set_default_timeout(20_000)
    yield opened
    context.close()
    # A refused login is an answer of 401, which Chromium calls an error of loading.
    assert [text for text in complaints if "status of 401" not in text and "status of 429" not in text] == []


def login(page: Page, console: Console, name: str = "ada", password: str = PASSWORD) -> None:
    page.goto(console.url)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    with page.expect_navigation():
        page.get_by_role("button", name="Log in").click()


def test_log_in_look_at_every_page_and_log_out(page: Page, console: Console) -> None:
    login(page, console)
    for path in PAGES:
        page.goto(console.url + path)
        assert page.locator("h1").count() == 1, path
        assert page.locator(".about").inner_text(), path
        # The stylesheet was let through by the page's own policy.
        assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") != "none", path
    page.get_by_role("button", name="Log out").click()
    assert page.url.endswith("/console/login")
    page.goto(console.url)
    assert "/console/login" in page.url


def test_a_running_rollout_is_paused_and_halted(page: Page, console: Console) -> None:
    login(page, console)
    page.get_by_role("link", name="Rollouts").click()
    page.get_by_role("link", name="4", exact=True).click()
    assert "25 %" in page.locator(".phases li[aria-current]").inner_text()
    page.locator("form[action$='/pause']").get_by_label("Why").fill("people asked")
    page.get_by_role("button", name="Pause").click()
    assert page.locator(".tiles .state").first.inner_text() == "paused"
    page.get_by_text("Halt", exact=True).first.click()
    page.locator("form[action$='/halt']").get_by_label("Why").fill("answers became shorter")
    page.get_by_role("button", name="Halt").click()
    assert page.locator(".tiles .state").first.inner_text() == "halted"
    assert "answers became shorter" in page.locator("main").inner_text()
    assert page.locator("form[action*='/rollouts/']").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_in_light_and_dark(browser: Browser, console: Console, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 780})
    page = context.new_page()
    login(page, console)
    paper = set()
    for path in PAGES:
        page.goto(console.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        paper.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    context.close()
    red, green, blue = (int(part) for part in paper.pop().removeprefix("rgb(").removesuffix(")").split(","))
    assert (red + green + blue > 384) == (scheme == "light")


def test_a_wrong_password_is_told_and_the_name_is_kept(page: Page, console: Console) -> None:
    login(page, console, password="not this one")
    assert "do not belong together" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Name").input_value() == "ada"
    assert page.get_by_label("Password").input_value() == ""


def test_everything_is_reached_with_the_keyboard_alone(page: Page, console: Console) -> None:
    page.goto(console.url)
    # A busy browser gives the focus some time after the page has loaded; what is typed before is lost.
    page.locator("#name:focus").wait_for()
    page.keyboard.type("ada")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(console.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the contents"
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Fleet", "Releases", "Devices", "Training", "Audit log", "Log out"} <= reached
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_a_device_is_found_and_revoked(page: Page, console: Console) -> None:
    login(page, console, name="paul")
    page.get_by_role("link", name="Devices").click()
    page.get_by_label("Name, or beginning of the id").fill("tablet-07")
    page.get_by_role("button", name="Find").click()
    page.get_by_role("link", name="tablet-07").click()
    assert not page.get_by_role("button", name="Revoke tablet-07").is_visible()
    page.get_by_text("Revoke this device").click()
    page.get_by_role("button", name="Revoke tablet-07").click()
    page.get_by_text("It is refused").wait_for()
    page.get_by_role("link", name="Audit log").click()
    assert "device.revoke" in page.locator("tbody tr").first.inner_text()
    assert "paul" in page.locator("tbody tr").first.inner_text()


def test_an_enrolment_file_is_downloaded(page: Page, console: Console, tmp_path: Path) -> None:
    login(page, console, name="paul")
    page.get_by_role("link", name="Enrolment").click()
    page.get_by_label("Devices", exact=True).fill("3")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download an enrolment file").click()
    download.value.save_as(tmp_path / "enrolment.json")
    file = json.loads((tmp_path / "enrolment.json").read_text())
    assert file["model"] == MODEL
    page.reload()
    assert "0 of 3" in page.locator("tbody tr").first.inner_text()


def test_a_program_gets_an_account_and_a_token(page: Page, console: Console) -> None:
    login(page, console)
    page.get_by_role("link", name="Operators").click()
    page.get_by_label("Name").fill("nightly")
    page.get_by_label("For a program").check()
    page.get_by_label("Your own password").fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()
    assert page.locator("h1").inner_text() == "Operator nightly"
    making = page.locator("form[action$='/tokens']")
    making.get_by_label("What it is for").fill("metrics")
    making.get_by_label("Your own password").fill(PASSWORD)
    making.get_by_role("button").click()
    token = page.get_by_label("The token").inner_text()
    page.get_by_role("link", name="Back to nightly").click()
    assert token.partition(".")[0] in page.locator("tbody tr").first.inner_text()
    assert token.partition(".")[2] not in page.content()
    page.get_by_role("button", name="Revoke token").click()
    assert "revoked" in page.locator("tbody tr", has_text="metrics").inner_text()


def test_a_release_is_prepared(page: Page, console: Console) -> None:
    login(page, console, name="paul")
    page.get_by_role("link", name="Training").click()
    page.get_by_role("link", name=NEXT_RUN).click()
    page.get_by_role("link", name="Prepare a release of this run").click()
    page.get_by_label("Phases in percent").fill("5, 25")
    page.get_by_label("fail or revert").fill("3")
    page.keyboard.press("Enter")
    command = page.get_by_label("The command", exact=True).inner_text()
    assert command == (
        f"lamella release {NEXT_RUN} --rollout 5%,25%,100% --soak 1 --success 0.95 --failure 0.03 --min-reports 20"
    )
    page.get_by_text("What this asks and means").first.click()
    assert "Sample: 400 values" in page.locator("main").inner_text()


def test_a_form_of_another_site_does_nothing(page: Page, console: Console, tmp_path: Path) -> None:
    """Also with the session's cookie there: SameSite keeps it away, and the origin would give it away."""
    login(page, console, name="paul")
    registry = console.app.state.services.registry
    device = next(d for d in registry.devices() if d.revoked_at is None)
    target = f"{console.url}devices/{device.device_id}/revoke"
    evil = f'<form id=f method=post action="{target}"><input name=csrf value=x></form>'
    page.route("http://evil.test/**", lambda route: route.fulfill(body=evil, content_type="text/html"))
    page.goto("http://evil.test/")
    with page.expect_navigation() as navigation:
        page.evaluate("document.getElementById('f').submit()")
    assert navigation.value.status in {200, 403}
    assert registry.device(device.device_id).revoked_at is None


def test_too_many_wrong_passwords_have_to_wait(page: Page, console: Console) -> None:
    # More than a bucket holds: on a busy machine some tokens come back meanwhile.
    for _ in range(40):
        login(page, console, name="vera", password="wrong")
        if "Try again in" in (told := page.get_by_role("alert").inner_text()):
            break
    assert "Try again in" in told
