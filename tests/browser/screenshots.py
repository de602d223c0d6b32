"""Makes the pictures of docs/playground.md from real bundles:

    python -m tests.browser.screenshots runs/*/bundle --out docs/images

The first bundle is the one that is tried, explained, and compared with another that has its labels. There must be one
of each task but pairs. What they look like depends on the fonts: apt-get install fonts-noto-core.
"""

import argparse
import io
import json
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.serving.service_process import serving
from tests.browser.conftest import PROGRAMS, opened

REVIEW = "A moving, beautifully acted film, though the ending drags and the jokes fall flat."
NEWS = (
    "Ada Lovelace lived in London and wrote to Charles Babbage, who held Newton's chair in Cambridge. In 1842 Luigi "
    "Menabrea, an engineer of Turin and later prime minister of Italy, described the machine in a journal of Geneva, "
    "and she put his French into English for Richard Taylor. Her notes, three times as long as the paper, tell how it "
    "would weave algebraic patterns as the Jacquard loom weaves flowers and leaves. The British government had paid "
    "for an earlier machine and would not pay again. The Science Museum in London built that machine for the two "
    "hundredth birthday of Charles Babbage, and an American museum in Mountain View had a second one for years."
)
DESK = {"viewport": {"width": 960, "height": 600}}
PHONE = {"viewport": {"width": 390, "height": 700}, "is_mobile": True, "has_touch": True}
WARM_UP = 20  # calls: the first ones are slower than those a picture should show


def ask(page: Page, text: str, button: str = "Classify") -> None:
    page.get_by_label("Text", exact=True).fill(text)
    for _ in range(WARM_UP):
        page.get_by_role("button", name=button, exact=True).click()
        expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


def take(page: Page, file: Path) -> None:
    """Write what is seen, in 256 colors."""
    page.evaluate("document.activeElement.blur()")
    seen = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    seen.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")  # noqa: T201


def take_all(browser: Browser, url: str, folder: Path) -> None:
    def chosen(task: str, **options: object) -> Page:
        page = opened(browser.new_context(**options).new_page(), url)
        models = page.evaluate("fetch('playground/models').then(answer => answer.json())")["models"]
        names = [one["name"] for one in models if one["task"] == task]
        default = page.get_by_label("Model").input_value()
        page.get_by_label("Model").select_option(default if default in names else names[0])
        return page

    page = chosen("single-label", **DESK)
    ask(page, REVIEW)
    take(page, folder / "playground-light.png")
    ask(page, REVIEW, "Explain")
    take(page, folder / "playground-explain.png")
    page = chosen("single-label", **DESK)
    for number in range(1, page.locator("#other option").count()):
        page.get_by_label("Compare with").select_option(index=number)
        ask(page, REVIEW)
        if "in common" not in page.locator("#said").inner_text():
            take(page, folder / "playground-compare.png")
            break
    page = chosen("token-classification", **DESK, color_scheme="dark")
    ask(page, NEWS)
    page.locator("details[open]").evaluate_all("all => all.forEach(one => one.open = false)")
    take(page, folder / "playground-dark.png")
    page = chosen("multi-label", **PHONE)
    ask(page, NEWS.partition(" In 1842")[0])
    take(page, folder / "playground-phone.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    program = next(filter(None, map(shutil.which, PROGRAMS)))
    first = json.loads((options.bundles[0] / "manifest.json").read_text(encoding="utf-8"))["name"]
    settings = {"workers": 1, "log_level": "error", "default_model": first}
    with serving(*options.bundles, **settings) as (_, port), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        take_all(browser, f"http://127.0.0.1:{port}", options.out)


if __name__ == "__main__":
    main()
