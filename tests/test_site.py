"""tools/site.py: what it builds, read as files and in a real browser."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from conftest import MILESTONES, ROOT
from PIL import Image

from tools import site

pytest.importorskip("material", reason="without the extra `site`")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


class Reader(HTMLParser):
    """The links of a page, what it loads, and the places that can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        target = attrs.get("href") or attrs.get("src")
        if target and not target.startswith("data:"):
            external = attrs.get("rel") in ("canonical", "prev", "next")
            (self.links if tag == "a" or external else self.loads).append(target)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("site", numbered=False) / "out"
    if not (ROOT / ".git").exists():
        pytest.skip("the tree is not in git")
    site.build(out)
    yield out
    shutil.rmtree(out)


def test_nothing_is_broken_and_nothing_comes_from_elsewhere(built):
    pages = {page: Reader(page.read_text()) for page in built.rglob("*.html")}
    assert len(pages) > 5 * len(MILESTONES)
    wrong = []
    for page, read in pages.items():
        if page.name == "404.html":  # its links are from the root of a server
            continue
        for target in read.links + read.loads:
            path, place = urldefrag(unquote(target))
            if re.match(r"[a-z]+:|//", path):
                if target in read.loads:
                    wrong.append((page.name, target))
                continue
            other = (page.parent / path).resolve() if path else page
            places = pages[other].places if other in pages else {place}
            if not other.is_file() or (place and place not in places):
                wrong.append((str(page.relative_to(built)), target))
    assert not wrong


def test_pages_have_equations_code_and_the_timeline(built):
    for page in built.rglob("index.html"):
        assert "arithmatex" not in page.read_text()
    timeline = (built / "timeline.html").read_text()
    assert all(f'href="{folder}/index.html"' in timeline for folder in MILESTONES)
    for folder in MILESTONES:
        code = (built / folder / "model.py.html").read_text()
        lines = len((ROOT / folder / "model.py").read_text().splitlines())
        assert f'"__codelineno-0-{lines}"' in code
    equation = "".join((built / f / "index.html").read_text() for f in MILESTONES)
    assert "<math" in equation and "$$" not in equation


@pytest.mark.skipif(not CHROMIUM, reason="without Chromium")
def test_in_a_browser(built):
    """At a desk and on a phone, light and dark: no error, no request, no sideways scrolling."""
    playwright = pytest.importorskip("playwright.sync_api", reason="without playwright")
    folder = max(MILESTONES, key=lambda name: len((ROOT / name / "README.md").read_text()))
    said, asked = [], []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for size, scheme in ((DESK, "light"), (PHONE, "dark")):
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("requestfailed", lambda request: said.append(request.url))
            page.on("request", lambda request: asked.append(request.url))
            for name in ("index", "timeline", f"{folder}/index", f"{folder}/model.py"):
                page.goto((built / f"{name}.html").as_uri())
                page.wait_for_load_state("networkidle")
                assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], name
                wanted = "slate" if scheme == "dark" else "default"
                assert page.get_attribute("body", "data-md-color-scheme") == wanted
            images = (
                "[...document.images].filter(i => i.loading != 'lazy' && !i.naturalWidth).length"
            )
            assert page.evaluate(images) == 0
            page.close()
        page = browser.new_page(viewport=DESK)
        page.goto((built / "index.html").as_uri())
        page.locator("input[name=query]").press_sequentially(folder)
        page.locator(f".md-search-result__item a[href*='{folder}/']").first.wait_for()
        browser.close()
    assert not said
    assert all(re.match("file:|data:", url) for url in asked)


def test_links_are_those_of_the_site(tmp_path):
    pages = site.Pages(ROOT, tmp_path)
    pages.files = {
        "a/README.md",
        "a/model.py",
        "b/README.md",
        "b/samples/x.png",
        "b/samples/y.txt",
        "a/tutorial.ipynb",
    }
    text = (
        "[one](model.py#L12) [two](model.py) [b](../b) "
        "[x](../b/samples/x.png) [t](tutorial.ipynb) [s](../b/samples)\n"
        '<a href="../b/README.md">b</a> [web](https://x.y/model.py) [here](#place)\n'
        "<!-- made -->\n```\n[one](model.py)\n```\n"
    )
    pages.write("a/README.md", text)
    assert (tmp_path / "a" / "README.md").read_text() == (
        "[one](model.py.md#__codelineno-0-12) [two](model.py.md) [b](../b/README.md) "
        "[x](../b/samples/x.png) [t](tutorial.md) [s](../b/samples/README.md)\n"
        '<a href="../b/index.html">b</a> [web](https://x.y/model.py) [here](#place)\n'
        "\n```\n[one](model.py)\n```\n"
    )
    pages.add_folder("b/samples")
    listed = (tmp_path / "b" / "samples" / "README.md").read_text()
    assert "![x.png](x.png)" in listed and "[y.txt](y.txt)" in listed


def test_mistakes_end_in_one_line(tmp_path, refused, monkeypatch):
    (tmp_path / "mine.txt").touch()
    assert "holds other files" in refused(site.main, ["--out", str(tmp_path)])
    assert "is a file" in refused(site.main, ["--out", str(tmp_path / "mine.txt")])
    pages = site.Pages(ROOT, tmp_path)
    assert "no file of the repository" in refused(pages.write, "x.md", "[a](gone.py)")
    assert "no checkout" in refused(site.tracked, tmp_path)


def test_a_notebook_is_a_page(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    new, picture = nbformat.v4, io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "png")
    png = base64.b64encode(picture.getvalue()).decode()
    shown = new.new_output("display_data", {"image/png": png})
    cells = [new.new_markdown_cell("# T"), new.new_code_cell("1 + 1", outputs=[shown])]
    Path(tmp_path, "a").mkdir()
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "a" / "tutorial.ipynb")
    pages = site.Pages(ROOT, tmp_path / "docs")
    pages.root = tmp_path
    pages.add_notebook("a/tutorial.ipynb")
    page = (tmp_path / "docs" / "a" / "tutorial.md").read_text()
    picture = re.search(r"\]\((tutorial-.*?\.png)\)", page)[1]
    assert "1 + 1" in page and (tmp_path / "docs" / "a" / picture).stat().st_size
