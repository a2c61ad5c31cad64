"""The site in a real browser: every page, on a phone and on a desktop, light and dark."""

from __future__ import annotations

import functools
import html
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import playwright.sync_api as playwright
import pytest

ROOT = Path(__file__).parents[1]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}
# What a reader would see to be wrong: a picture that did not load, a formula that was left as LaTeX, words in the colour of
# what is behind them.
LOOK = """() => ({
    pictures: [...document.images].filter(image => !image.naturalWidth).map(image => image.src),
    formulas: [...document.querySelectorAll("article p, article td, article li")].map(part => {
        const copy = part.cloneNode(true);
        copy.querySelectorAll("code, pre, math").forEach(other => other.remove());
        return copy.textContent;
    }).filter(text => /\\\\[a-z(]|[$]/.test(text)),
    undrawn: [...document.querySelectorAll("math")].filter(formula => formula.textContent.includes("\\\\")).length,
    text: getComputedStyle(document.querySelector("article")).color,
    back: getComputedStyle(document.body).backgroundColor,
    headings: document.querySelectorAll("article h1").length,
})"""
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter(part => part.getBoundingClientRect().right > document.documentElement.clientWidth).map(part => part.outerHTML)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if BROWSER is None:
        if os.environ.get("REQUIRE_CHROMIUM"):
            pytest.fail("no Chromium here: `make system-deps`")
        pytest.skip("no Chromium here: `make system-deps`")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: playwright.Browser, address: str) -> Iterator[tuple[playwright.Page, list[str]]]:
    """A page of the browser, and what goes wrong on it: errors, what cannot be loaded, what is asked of other hosts."""
    page, wrong = browser.new_page(), []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on("response", lambda answer: wrong.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
    page.on(
        "request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else wrong.append(request.url)
    )
    yield page, wrong
    page.close()


def brightness(colour: str) -> float:
    return sum(float(part) for part in colour.strip("rgba()").split(",")[:3]) / 3


def test_commands_of_the_algorithms_pages_have_tabs_for_pip_uv_and_poetry(site):
    page = html.unescape(re.sub("<[^>]*>", "", (site / "rl-algorithms/dqn/index.html").read_text(encoding="utf-8")))
    lines = [line.split("  #")[0].rstrip() for line in page.splitlines()]
    for line in (
        'pip install -c requirements/constraints.txt -e ".[flappy,jax]"',
        "python cleanrl/dqn.py --config benchmark/configs/dqn_cartpole.yaml",
        "uv run python cleanrl/dqn.py --config benchmark/configs/dqn_cartpole.yaml",
        "uv run --extra atari --extra jax python cleanrl/dqn_atari_jax.py --env-id BreakoutNoFrameskip-v4",
        "uv run --extra flappy python cleanrl/dqn.py --config benchmark/configs/dqn_flappybird.yaml",
        'poetry install --extras "flappy jax"',
        "poetry run python cleanrl/dqn_atari.py --help",
    ):
        assert line in lines, line


@pytest.mark.slow
def test_every_page_shows_on_phone_and_desktop_light_and_dark(site, address, tab):
    page, wrong = tab
    pages = sorted(path.parent.relative_to(site).as_posix() for path in site.rglob("index.html"))
    code = [name for name in pages if name.startswith("source/") and "." in name]
    pages = [name for name in pages if name not in code[1:]]  # one stands for all: they are made alike
    assert len(pages) > 20
    for name in pages:
        page.goto(f"{address}/{name}/", wait_until="load")
        page.wait_for_function("document.fonts.status === 'loaded'")
        for size, viewport in SIZES.items():
            page.set_viewport_size(viewport)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.wait_for_function(
                    f"document.body.dataset.mdColorScheme === '{'slate' if scheme == 'dark' else 'default'}'"
                )
                where = f"{name}, {size}, {scheme}"
                try:  # a page that was just made wider may take a moment to be laid out
                    page.wait_for_function(FITS, timeout=5000)
                except playwright.TimeoutError:
                    pytest.fail(f"{where}: wider than the screen: {page.evaluate(TOO_WIDE)}")
                seen = page.evaluate(LOOK)
                assert not seen["pictures"], where
                assert not seen["formulas"], where
                assert not seen["undrawn"], where
                assert seen["headings"] == 1, where
                bright = brightness(seen["back"]) - brightness(seen["text"])
                assert bright > 120 if scheme == "light" else bright < -80, where
        assert not wrong, name


def test_formulas_are_drawn_with_the_sites_own_font(address, tab):
    page, _ = tab
    page.goto(f"{address}/rl-algorithms/qdagger/", wait_until="networkidle")
    assert page.locator("math").count() > 40
    assert page.evaluate("document.fonts.check('16px \"STIX Two Math\"')")
    brace, line = page.locator("math mo", has_text="{").first.bounding_box(), page.locator("math mi").first.bounding_box()
    assert brace["height"] > 2 * line["height"], "the brace of the two cases is as high as both"


def test_tabs_open_and_code_is_copied_and_searched_for(address, tab):
    page, wrong = tab
    page.set_viewport_size(SIZES["desktop"])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{address}/get-started/", wait_until="networkidle")
    assert not page.get_by_text("poetry install").is_visible()
    page.get_by_text("Poetry", exact=True).click()
    assert page.get_by_text("poetry install").is_visible()
    page.locator("article pre").first.hover()
    page.locator("article .md-clipboard, article .md-code__button").first.click()
    assert page.evaluate("navigator.clipboard.readText()").startswith("make quickstart")
    page.get_by_role("textbox", name="Search").click()
    page.get_by_role("textbox", name="Search").press_sequentially("distill_coeff")
    page.locator(".md-search-result__item").first.wait_for(state="attached")
    assert "QDagger" in page.locator(".md-search-result__list").inner_text()
    assert not wrong
