"""The notebooks as a person runs them: JupyterLab in a browser, and the menu's Run All Cells.

Two of them in every run, all of them with `python -m pytest -m "slow or not slow" tests/test_browser.py`.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from notebook_cells import NOTEBOOKS, code_cells, read
from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from ddetr_lite import course

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ALWAYS = ("00_start_here", "01_self_attention")  # the others take longer, and ask nothing more of JupyterLab
TOKEN = "test"
STARTS = 60_000  # milliseconds for a server, a page, a kernel, a figure to be there
RUNS = 600_000  # milliseconds for all cells of a notebook

# What the page is asked. `jupyterapp` is JupyterLab itself, which --expose-app-in-browser hands out: cells that are
# scrolled out of sight need not be in the page, but are in the notebook's model. A dialog opens when a kernel dies.
PANEL = "const panel = window.jupyterapp?.shell.currentWidget; const kernel = panel?.sessionContext?.session?.kernel;"
KERNEL_IS_READY = f"() => {{ {PANEL} return kernel?.status === 'idle'; }}"
CELLS = f"() => {{ {PANEL} return panel.content.model.toJSON().cells; }}"
HAS_ENDED = f"""() => {{ {PANEL}
    if (document.querySelector('.jp-Dialog')) return true;
    const code = ({CELLS})().filter(cell => cell.cell_type === 'code');
    if (code.some(cell => cell.outputs.some(output => output.output_type === 'error'))) return true;
    return kernel.status === 'idle' && code.every(cell => cell.execution_count); }}"""
SCROLL_TO = f"async i => {{ {PANEL} await panel.content.scrollToItem(i); }}"
FIGURES_ARE_SEEN = f"""([i, count]) => {{ {PANEL}
    const figures = [...panel.content.widgets[i].node.querySelectorAll('.jp-OutputArea-output img')]
        .filter(figure => !figure.closest('.jupyter-widgets'));  // those of a slider are no outputs of the cell
    return figures.length === count
        && figures.every(figure => figure.naturalWidth && figure.offsetWidth && figure.offsetHeight); }}"""
# MathJax sets one container for each formula, with an merror in it where it does not understand the formula, and the names of
# commands that it lacks in red. Dollars that it took for no formula are left in the text.
FORMULAS = """() => {
    const cell = document.querySelector('.jp-RenderedMarkdown');
    const formulas = [...cell?.querySelectorAll('mjx-container') ?? []];
    const text = cell?.cloneNode(true);
    text?.querySelectorAll('code, pre, mjx-container').forEach(node => node.remove());
    const wrong = formulas.map(formula => formula.querySelector('mjx-assistive-mml'))
        .filter(formula => formula?.querySelector('merror, mtext[mathcolor="red"]'));
    return {set: formulas.length, wrong: wrong.map(formula => formula.textContent),
        left: (text?.textContent ?? '').split('\\n').filter(line => line.includes('$'))};
}"""
STOP_KERNELS = "() => window.jupyterapp?.serviceManager.sessions.shutdownAll()"


@dataclass(frozen=True)
class Server:
    """A JupyterLab on copies of the notebooks, from which all outputs are removed."""

    address: str
    folder: Path
    log: Path

    def last_words(self) -> str:
        return self.log.read_text(encoding="utf-8")[-3000:]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        missing = f"none of {', '.join(BROWSERS)} is on the PATH (on Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true" and sys.platform == "linux":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        # Chromium refuses its own sandbox to root, who runs the tests in a container.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("notebooks")
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        for cell in code_cells(notebook):
            cell.update(outputs=[], execution_count=None)
        nbformat.write(notebook, folder / path.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Neither reads nor leaves anything in the settings of the person who runs the tests.
    own = tmp_path_factory.mktemp("jupyter")
    places = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    places += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    command = [sys.executable, "-m", "jupyterlab", str(folder), "--no-browser", "--expose-app-in-browser"]
    command += ["--allow-root", f"--IdentityProvider.token={TOKEN}", "--ip=127.0.0.1", f"--port={port}"]
    running = Server(f"http://127.0.0.1:{port}", folder, own / "server.log")
    with running.log.open("w", encoding="utf-8") as log:
        env = os.environ | {place: str(own / place) for place in places}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        _wait_for(running, process)
        yield running
    finally:
        process.terminate()  # the server ends its kernels first
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()  # kernels notice that the server is gone, and end
            process.wait()


def _wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTS / 1000
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{server.address}/api/status?token={TOKEN}", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer:\n{server.last_words()}")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(STARTS)
    yield page
    page.evaluate(STOP_KERNELS)
    page.close()


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem in ALWAYS else [pytest.mark.slow]) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_run_all_cells(path: Path, server: Server, page: Page) -> None:
    page.goto(f"{server.address}/lab/tree/{path.name}?reset&token={TOKEN}")
    try:
        page.wait_for_function(KERNEL_IS_READY)
    except PlaywrightTimeoutError:
        pytest.fail(f"{path.name}: no kernel became ready:\n{server.last_words()}")
    page.locator(".lm-MenuBar-itemLabel").get_by_text("Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel").get_by_text("Run All Cells", exact=True).click()
    with contextlib.suppress(PlaywrightTimeoutError):  # the cells say below what is missing
        page.wait_for_function(HAS_ENDED, timeout=RUNS, polling=250)

    dialog = " ".join(page.locator(".jp-Dialog").all_inner_texts())
    figures = {}
    for i, cell in enumerate(page.evaluate(CELLS)):
        if cell["cell_type"] == "code":
            where = f"{path.name}, cell {i + 1}:\n{cell['source']}\n\n"
            for output in cell["outputs"]:
                assert output["output_type"] != "error", f"{where}{output['ename']}: {output['evalue']}"
            # A kernel that died has taken the counts of all cells along.
            assert not dialog, f"{path.name}: JupyterLab says: {dialog}"
            assert cell["execution_count"], f"{where}has not run: all cells together had {RUNS // 1000} s"
            figures[i] = _figures(cell)

    stored = sum(_figures(cell) for cell in code_cells(read(path)))
    assert sum(figures.values()) == stored > 0, f"{path.name}: not as many figures as are stored"
    for i, count in figures.items():
        page.evaluate(SCROLL_TO, i)
        try:
            page.wait_for_function(FIGURES_ARE_SEEN, arg=[i, count])
        except PlaywrightTimeoutError:
            pytest.fail(f"{path.name}, cell {i + 1}: its {count} figures are not all to be seen")


def _figures(cell: dict[str, Any]) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_mathematics_is_typeset(server: Server, page: Page) -> None:
    """All prose, the glossary and the equation map in one cell: each formula is one for JupyterLab, and understood."""
    texts = [cell.source for path in NOTEBOOKS for cell in read(path).cells if cell.cell_type == "markdown"]
    texts += [table._repr_markdown_() for table in (course.symbols(), course.equation_map())]
    everything = "\n\n".join(texts)
    prose = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", everything)
    formulas = re.findall(r"(?s)\$\$.*?\$\$|\$[^$]*\$", prose)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(everything)])
    nbformat.write(notebook, server.folder / "mathematics.ipynb")
    page.goto(f"{server.address}/lab/tree/mathematics.ipynb?reset&token={TOKEN}")
    with contextlib.suppress(PlaywrightTimeoutError):  # what is missing is said below
        page.wait_for_function(f"count => ({FORMULAS})().set >= count", arg=len(formulas))
    found = page.evaluate(FORMULAS)
    assert not found["wrong"]
    assert not found["left"]
    assert found["set"] == len(formulas) > 100
