"""A real JupyterLab and a real browser: started, driven by what is on the screen, and ended."""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import nbformat
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from localai_clusters.machine import free_port

CHROMIUM_FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage""".split()
SECONDS_TO_START = 60.0
QUIET = {  # JupyterLab asks nobody for news and draws every cell, also those out of sight
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
IDLE = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
WRONG = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium; without one the test fails and says what to install."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("these tests drive a real browser: sudo apt-get install chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


class JupyterLab:
    """A server of its own: folder, port, token, settings. Nothing of the user's JupyterLab is read or written."""

    def __init__(self, folder: Path):
        self.root, self.token, self.port = folder / "notebooks", secrets.token_hex(16), free_port("127.0.0.1")
        self.root.mkdir(parents=True)
        self._settings = folder / "settings"
        env = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(self._settings)}
        env["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / "workspaces")
        for name in ("CONFIG", "DATA", "RUNTIME"):
            env[f"JUPYTER_{name}_DIR"] = str(folder / name.lower())
        env["IPYTHONDIR"] = str(folder / "ipython")
        self.theme("light")
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={self.port}",
                   "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
                   f"--ServerApp.root_dir={self.root}", "--LabApp.extension_manager=readonly"]  # fmt: skip
        self._log = open(folder / "jupyter.log", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(command, env=env, stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, (folder / "jupyter.log").read_text()
            time.sleep(0.2)

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url("api/status"), timeout=5).status_code == 200
        return False

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}{'&' if '?' in path else '?'}token={self.token}"

    def theme(self, name: str) -> None:
        """``light`` or ``dark``, for the pages opened from now on."""
        for plugin, values in {**QUIET, "@jupyterlab/apputils-extension/themes": {"theme": THEMES[name]}}.items():
            path = self._settings / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))

    def stop(self) -> None:
        self._process.terminate()  # it ends its kernels
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Notebook:
    """One notebook on one page of the browser."""

    def __init__(self, lab: JupyterLab, browser: Browser, name: str):
        cells = nbformat.read(lab.root / name, 4).cells
        self.page: Page = browser.new_page(viewport={"width": 1200, "height": 1100})
        self.page.set_default_timeout(60_000)
        self.page.goto(lab.url(f"lab/tree/{name}?reset"))
        expect(self.page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(cells))
        self._connected(lab, name)
        self.idle()

    def _connected(self, lab: JupyterLab, name: str, seconds: float = 60.0) -> None:
        """Wait for the page's own connection to an idle kernel. The page shows "idle" before it has one, and what is
        run then is lost without a word."""
        deadline = time.monotonic() + seconds

        def connected(session: dict) -> bool:
            kernel = session["kernel"]
            return session["path"] == name and kernel["connections"] and kernel["execution_state"] == "idle"

        while not any(map(connected, httpx.get(lab.url("api/sessions"), timeout=20).json())):
            assert time.monotonic() < deadline, f"{name} has no kernel after {seconds:.0f} s"
            self.page.wait_for_timeout(100)

    def idle(self, seconds: float = 60.0) -> None:
        """Wait until the kernel has nothing to do."""
        self.page.locator(IDLE).first.wait_for(state="attached", timeout=seconds * 1000)

    def menu(self, *names: str) -> None:
        for name in names:
            self.page.get_by_role("menuitem", name=name, exact=True).click()

    def run_all(self, seconds: float = 120.0) -> None:
        self.menu("Run", "Run All Cells")
        self._ran(self.page.locator(".jp-CodeCell").count(), seconds)

    def run_first(self, cells: int, seconds: float = 120.0) -> None:
        """Run the first so many code cells with the keyboard, as a person does; text between them is passed over."""
        self.page.locator(".jp-Notebook .jp-Cell").first.click()
        self.page.keyboard.press("Escape")
        last = self.page.locator(".jp-CodeCell").nth(cells - 1)
        for _ in range(self.page.locator(".jp-Notebook .jp-Cell").count()):
            if self._number(last):
                break
            self.page.keyboard.press("Shift+Enter")
            self.page.wait_for_timeout(50)
        self._ran(cells, seconds)

    def _ran(self, cells: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not (number := self._number(self.page.locator(".jp-CodeCell").nth(cells - 1))).isdigit():
            if time.monotonic() > deadline:
                seen = self.screenshot(f"not-run-{time.time_ns()}")
                pytest.fail(f"cell {cells} shows [{number}] after {seconds:.0f} s; see {seen}", pytrace=False)
            self.page.wait_for_timeout(100)
        self.idle(seconds)

    @staticmethod
    def _number(cell: Locator) -> str:
        """What stands in a cell's brackets: '' not run, '*' running, its number when it has run."""
        return cell.locator(".jp-InputPrompt").inner_text().strip("[]: \n")

    def restart_kernel(self) -> None:
        self.menu("Kernel")
        self.page.get_by_role("menuitem", name=re.compile(r"^Restart Kernel(…|\.\.\.)")).click()
        self.page.get_by_role("button", name="Confirm Kernel Restart").click()

    def problems(self) -> list[str]:
        """Tracebacks and what was written to stderr."""
        return self.page.locator(WRONG).all_inner_texts()

    def screenshot(self, name: str, of: Locator | None = None) -> Path:
        folder = Path(os.environ.get("LAC_SCREENSHOTS", Path(__file__).parent.parent / "build" / "screenshots"))
        folder.mkdir(parents=True, exist_ok=True)
        (of or self.page).screenshot(path=folder / f"{name}.png")
        return folder / f"{name}.png"

    def close(self) -> None:
        self.page.close()


def write_notebook(path: Path, *cells: str) -> Path:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel)
    nbformat.write(notebook, path)
    return path
