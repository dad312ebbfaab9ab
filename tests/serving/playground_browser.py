"""A browser without a screen, and the playground in it as somebody uses it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving_models import PATIENCE

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--window-size=1280,1000",
    "--force-prefers-reduced-motion",
)  # fmt: skip


def start_browser(profile: Path) -> Any:
    """A fresh Chromium. Skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium with its chromedriver is on this machine (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class Playground:
    """The page in a browser, with what people do there."""

    def __init__(self, driver: Any, address: str):
        self.driver, self.address = driver, address

    def open(self, key: str) -> None:
        """A fresh page, which is told the key that it asks for."""
        self.driver.get(self.address)
        self.wait(lambda: self.one("#key").is_displayed())
        self.one("#key").send_keys(key + "\n")
        self.wait(lambda: self.one("#run").is_enabled())

    # Looking

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """What the first of these elements says, in sight or not."""
        said: str = self.one(selector).get_property("textContent")
        return said

    def said(self, panel: int = 0) -> str:
        """The whole text of a panel."""
        return self.text(f".panel:nth-of-type({panel + 1}) > p.visually-hidden")

    def field(self, name: str) -> Any:
        """The control of a setting or parameter."""
        return self.one(f"[data-name={name}] :is(input, select, textarea)")

    def shown(self, name: str) -> bool:
        """Whether a setting or parameter is offered."""
        return not self.one(f"[data-name={name}]").get_property("hidden")

    def wait(self, true: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            told = [self.text(selector) for selector in ("#status", "#failure")]
            assert time.monotonic() < end, f"waited in vain; the page says {told}"
            time.sleep(0.03)

    def faults(self) -> list[str]:
        """What the browser has complained of, but for answers that refuse something."""
        lines = [entry["message"] for entry in self.driver.get_log("browser")]
        return [line for line in lines if "Failed to load resource" not in line]

    # Doing

    def click(self, selector: str) -> None:
        self.reveal(self.one(selector)).click()

    def reveal(self, element: Any) -> Any:
        """Unfold what an element is in, and bring it into sight."""
        self.driver.execute_script("arguments[0].closest('details')?.setAttribute('open', '')", element)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        return element

    def choose(self, selector: str, value: str) -> None:
        """An option of a select."""
        self.click(f"{selector} option[value='{value}']")

    def method(self, name: str, place: int = 0) -> None:
        """A method, until the server has said how it is written."""
        self.choose(f".method:nth-of-type({place + 1}) > select", name)
        self.wait(lambda: self.text(f".method:nth-of-type({place + 1}) .spec") == name)

    def write(self, element: Any, text: str) -> None:
        """Text into a control, in place of what stands there."""
        self.reveal(element).clear()
        element.send_keys(text)

    def prompt(self, text: str) -> None:
        self.write(self.one("#prompt"), text)

    def run(self) -> None:
        """A whole run, which must not fail."""
        self.click("#run")
        self.wait(lambda: self.text("#status").startswith("Done") or self.text("#failure"))
        assert self.text("#failure") == ""

    def screen(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Another screen."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
