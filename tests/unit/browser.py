"""Debian's Chromium, headless, for tests of pages; a test that asks for it is skipped where it is not installed."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--lang=en-US",
)


class Page:
    """An open page."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script gives back."""
        return self._driver.execute_script(script, *arguments)

    def open(self, url: str) -> None:
        """Load a page of ours and wait until its rows and charts are there."""
        self._driver.get(url)
        self.wait("return document.documentElement.dataset.charts")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Wait until a script gives back something true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(script):
                return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def resize(self, width: int, height: int = 900, theme: str = "light") -> None:
        """Take on a screen's size and theme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, on whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            ActionChains(self._driver).send_keys(getattr(Keys, key, key)).perform()

    def requests(self) -> list[str]:
        """Return every address that the browser asked for since the last call, whatever came of it."""
        events = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Return what the browser's console says since the last call."""
        return [entry["message"] for entry in self._driver.get_log("browser")]


@contextmanager
def open_browser() -> Iterator[Page]:
    """Start Chromium with a profile of its own, and end it."""
    binary, driver_binary = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver_binary is None:
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(driver_binary))
        try:
            # The page of a new tab asks for things of the browser's own.
            driver.get("about:blank")
            driver.get_log("performance")
            yield Page(driver)
        finally:
            driver.quit()
