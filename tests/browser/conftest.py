"""A real headless Chromium, and a real service for it.

`page` is for pages of the service and for files alike: whatever goes wrong in one, and whatever it asks of anybody but
the server that it came from, fails the test. `problems` is the list of what went wrong; a test that expects something
says so and clears it. The fixtures end with this folder, because a running Playwright keeps its thread's event loop.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.serving.service_process import serving
from tests.browser.bundles import bundles_of_every_task

try:
    from playwright import sync_api
except ModuleNotFoundError:
    sync_api = None  # an error here would end the whole run; `browser` skips, and so do modules that want more
else:
    sync_api.expect.set_options(timeout=60_000)  # a busy machine; what is there is not waited for

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
QUICK: dict[str, object] = {"workers": 1, "sessions": 1, "log_level": "error", "default_model": "reviews"}


@pytest.fixture(scope="package")
def browser() -> Iterator["sync_api.Browser"]:
    """Chromium as Debian installs it; Playwright's own would have to be downloaded."""
    if sync_api is None:
        pytest.skip("playwright is not installed")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    # its sandbox does not start as root; in containers /dev/shm is small
    unsafe = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=[*unsafe, "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture
def problems() -> list[str]:
    """What went wrong in the test's pages: errors of scripts, error lines of the console, requests to strangers."""
    return []


@pytest.fixture
def new_page(browser: "sync_api.Browser", problems: list[str]) -> Iterator[Callable[..., "sync_api.Page"]]:
    """A function that opens a page of its own context, whose options it takes: a size, a color scheme, a phone."""
    with contextlib.ExitStack() as stack:

        def open_page(**options: object) -> "sync_api.Page":
            context = browser.new_context(**({"locale": "en-US", "reduced_motion": "reduce"} | options))
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("console", lambda line: line.type == "error" and problems.append(f"console: {line.text}"))
            page.on("pageerror", lambda error: problems.append(f"script: {error}"))
            page.on("request", lambda request: _stays_home(request) or problems.append(f"asks {request.url}"))
            return page

        yield open_page
    assert problems == []


@pytest.fixture
def page(new_page: Callable[..., "sync_api.Page"]) -> "sync_api.Page":
    return new_page()


@pytest.fixture(scope="package")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of tiny bundles of every task."""
    return bundles_of_every_task(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="package")
def server(bundles: list[Path]) -> Iterator[str]:
    """The URL of a service process with those bundles."""
    with serving(*bundles, **QUICK) as (_, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def playground(page: "sync_api.Page", server: str) -> "sync_api.Page":
    """The playground, when it knows what is served."""
    return opened(page, server)


def opened(page: "sync_api.Page", server: str) -> "sync_api.Page":
    page.goto(f"{server}/playground")
    page.locator("#about").filter(has_text="variant").wait_for()
    return page


def _stays_home(request: "sync_api.Request") -> bool:
    """Say whether a request goes to nobody, or to the server that its page came from."""
    url = urlsplit(request.url)
    if url.scheme in ("data", "blob", "about"):
        return True
    if request.is_navigation_request() and request.frame.parent_frame is None:
        return url.scheme == "file" or url.hostname == "127.0.0.1"
    home = urlsplit(request.frame.url)
    return url.scheme != "file" and (url.scheme, url.netloc) == (home.scheme, home.netloc)
