"""Builds a site to browse: READMEs, tutorials, code and pictures, with a timeline and a search.

    pip install -e ".[site]"
    python tools/site.py                 # into site/, to be opened as files or put on any server
    python tools/site.py --serve 8000    # and shows it at http://127.0.0.1:8000/

MkDocs with the theme Material. Nothing is fetched from elsewhere when a page is opened: fonts are
the reader's, equations are MathML made here, and the search's index is a file of the site. A link
to a line of code leads to that line, in a page of the site.
"""

import argparse
import html
import logging
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from common import cli, counted, fail
from common.folder import make_folder
from tools.milestones import ROOT, entries

GUIDES = {
    "Your own data": "PRACTICE.md",
    "Many devices": "SCALE.md",
    "Adding one": "CONTRIBUTING.md",
}
MADE = ".built-by-tools-site"  # stands in a folder that may be built anew
FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.M | re.S)
LINK = re.compile(r"(\]\(|(?:href|src)=\")(?![a-z]+:|#|/)([^)\s\"#]*)(#[^)\s\"]*)?(?=[)\"])")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.S)
LANGUAGES = {
    "py": "python",
    "toml": "toml",
    "json": "json",
    "yml": "yaml",
    "cff": "yaml",
    "run": "bash",
}
STYLE = """
.md-grid { max-width: 72rem; }
.timeline { border-left: .15rem solid var(--md-primary-fg-color); margin-left: .4rem; }
.timeline > div { display: flex; gap: 1rem; padding: .2rem 0 1.2rem 1rem; position: relative; }
.timeline > div::before { content: ""; position: absolute; left: -.42rem; top: .6rem; width: .7rem;
  height: .7rem; border-radius: 50%; background: var(--md-primary-fg-color); }
.timeline p { margin: .2rem 0; }
.timeline .year { font-weight: 700; }
.timeline img { width: 8rem; max-height: 7rem; object-fit: contain; background: white; }
.timeline .text { flex: 1; min-width: 0; }
.md-typeset math[display="block"] { overflow-x: auto; margin: 1em 0; }
.md-typeset pre > code { overflow-x: auto; }
"""
# A page that was opened as a file may start no worker, so that the search runs in a frame of it.
WORKER = """
if (location.protocol === "file:") window.Worker = function (url) {
  const frame = document.createElement("iframe"), worker = new EventTarget();
  frame.hidden = true;
  document.body.append(frame);
  const inside = frame.contentWindow, script = inside.document.createElement("script");
  const loaded = new Promise(function (done) { script.onload = done; });
  const tell = (where, data) => where.dispatchEvent(new MessageEvent("message", {data}));
  inside.postMessage = data => tell(worker, data);
  worker.postMessage = data => loaded.then(() => tell(inside, data));
  worker.terminate = () => frame.remove();
  script.src = url;
  inside.document.body.append(script);
  return worker;
};
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.OneLineParser("python tools/site.py", __doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("site"), help="folder for the site (default: site)")
    add("--serve", type=cli.integer(1), metavar="PORT", help="show it at this port of 127.0.0.1")
    return parser.parse_args(argv)


def tracked(root: Path) -> set[str]:
    """The files of the repository, as paths from its root."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        fail(f"{root} is no checkout of the repository: git lists no files there")
    return {name for name in listed.stdout.split("\0") if name and (root / name).is_file()}


def outside_code(change: Callable[[str], str], text: str) -> str:
    """`text` with everything changed that doesn't stand between fences."""
    parts, end = [], 0
    for fence in FENCED.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


class Pages:
    """Collects what the site is made of in `docs`, from the files of the repository at `root`."""

    def __init__(self, root: Path, docs: Path):
        self.root, self.docs, self.files = root, docs, tracked(root)
        self.wanted: list[str] = []  # files that a page links to, in the order they are met

    def link(self, page: str, found: re.Match) -> str:
        """A link of `page` as it is on the site: to code, to a page that shows it."""
        start, target, place = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if path + "/README.md" in self.files:
            target, path = posixpath.join(target, "README.md"), path + "/README.md"
        elif self.inside(path):
            target = posixpath.join(target, "README.md")
        elif path not in self.files:
            fail(f"{page} links to {target}, which is no file of the repository")
        self.wanted.append(path)
        if path.endswith(".ipynb"):
            target = target.removesuffix(".ipynb") + ".md"
        elif self.shown_as_code(path):
            target, place = f"{target}.md", re.sub(r"^#L(\d+).*", r"#__codelineno-0-\1", place)
        if not start.startswith("]"):  # HTML is not changed by MkDocs
            target = re.sub(r"(README)?\.md$", lambda m: "index.html" if m[1] else ".html", target)
        return f"{start}{target}{place}"

    def inside(self, folder: str) -> list[str]:
        """The names of the files of a folder that has no README."""
        parts = (posixpath.split(path) for path in self.files)
        return sorted(name for where, name in parts if where == folder)

    def shown_as_code(self, path: str) -> bool:
        """Whether a page is made that shows the text of this file."""
        return posixpath.splitext(path)[1] in (".py", ".toml", ".cff") or path.startswith(".ci/")

    def write(self, page: str, text: str) -> None:
        """A page of the site, made of Markdown as GitHub reads it."""
        text = outside_code(lambda part: LINK.sub(partial(self.link, page), part), text)
        text = outside_code(lambda part: re.sub(r"^<!--.*?-->$", "", part, flags=re.M), text)
        target = self.docs / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def add_notebook(self, path: str) -> None:
        """A tutorial as a page, its pictures beside it."""
        from nbconvert import MarkdownExporter

        text, resources = MarkdownExporter().from_filename(str(self.root / path))
        page, pictures = path.removesuffix(".ipynb") + ".md", {}
        for name, data in resources["outputs"].items():
            pictures[name] = f"tutorial-{name}"
            place = self.docs / posixpath.dirname(path) / pictures[name]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            self.files.add(posixpath.join(posixpath.dirname(path), pictures[name]))
        text = re.sub(r"(?<=\]\()[^)\s]+(?=\))", lambda m: pictures.get(m[0], m[0]), text)
        self.write(page, text)

    def add_code(self, path: str) -> None:
        """A page that shows a file, each line with a number that can be linked to."""
        text = (self.root / path).read_text(encoding="utf-8")
        language = LANGUAGES.get(re.split(r"[./]", path)[-1], "text")
        fence = "`" * (3 + max(map(len, re.findall("`{3,}", text)), default=0))
        page = self.docs / f"{path}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        head = "---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n"
        heading = f"# {posixpath.basename(path)}\n\n`{path}`\n\n"
        page.write_text(
            f'{head}{heading}{fence}{language} linenums="1"\n{text.rstrip()}\n{fence}\n',
            encoding="utf-8",
        )

    def add_folder(self, folder: str) -> None:
        """A page that lists the files of a folder, and shows its pictures."""
        lines = [f"# {posixpath.basename(folder)}", f"`{folder}`"]
        for name in self.inside(folder):
            picture = name.endswith((".png", ".jpg", ".gif"))
            lines.append(f"[{name}]({name})" + (f"\n\n![{name}]({name})" if picture else ""))
        self.write(f"{folder}/README.md", "\n\n".join(lines) + "\n")

    def add_linked(self) -> None:
        """Everything that is linked to and has no page yet."""
        for path in self.wanted:
            target = self.docs / (f"{path}.md" if self.shown_as_code(path) else path)
            if target.is_file() or path.endswith(".ipynb"):
                continue
            if path not in self.files:
                self.add_folder(path)
            elif self.shown_as_code(path):
                self.add_code(path)
            elif path.endswith(".md"):
                self.write(path, (self.root / path).read_text(encoding="utf-8"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.root / path, target)


def timeline(milestones: list[dict]) -> str:
    """The milestones from the first to the last, each with its picture."""
    rows = []
    for entry in milestones:
        said = {key: html.escape(value) for key, value in entry.items() if isinstance(value, str)}
        home, before = f"{entry['folder']}/README.md", entry["predecessor"]
        after = f' · after <a href="{before}/README.md">{before}</a>' if before else ""
        rows.append(
            f'<div><a href="{home}"><img src="{entry["folder"]}/{entry["picture"]}" '
            f'alt="{said["alt"]}" loading="lazy"></a><div class="text">'
            f'<p><span class="year">{entry["year"]}</span> · <a href="{home}">'
            f"<strong>{entry['folder']}</strong></a> · {entry['task']}{after}</p>"
            f"<p>{said['advanced']}</p><p><small>{said['authors']}: "
            f'<a href="{entry["paper"]}">{said["title"]}</a></small></p></div></div>'
        )
    return '# Timeline\n\n<div class="timeline">\n' + "\n".join(rows) + "\n</div>\n"


def collect(root: Path, docs: Path) -> list:
    """Writes the pages into `docs`; returns what the site's menu shows."""
    pages = Pages(root, docs)
    milestones = [e for e in entries(root=root) if f"{e['folder']}/README.md" in pages.files]
    pages.write("README.md", (root / "README.md").read_text(encoding="utf-8"))
    pages.write("timeline.md", timeline(milestones))
    menu = [{"Home": "README.md"}, {"Timeline": "timeline.md"}, {"Milestones": []}]
    for folder in (entry["folder"] for entry in milestones):
        pages.write(f"{folder}/README.md", (root / folder / "README.md").read_text("utf-8"))
        parts = [{"The paper": f"{folder}/README.md"}]
        if f"{folder}/tutorial.ipynb" in pages.files:
            pages.add_notebook(f"{folder}/tutorial.ipynb")
            parts.append({"Tutorial": f"{folder}/tutorial.md"})
        pages.wanted.append(f"{folder}/model.py")
        parts.append({"model.py": f"{folder}/model.py.md"})
        menu[2]["Milestones"].append({folder: parts})
    for title, name in GUIDES.items():
        if name in pages.files:
            pages.write(name, (root / name).read_text(encoding="utf-8"))
            menu.append({title: name})
    pages.add_linked()
    (docs / "style.css").write_text(STYLE)
    (docs / "iframe-worker.js").write_text(WORKER)
    return menu


def settings(docs: Path, out: Path, menu: list) -> dict:
    """What MkDocs is told."""
    from pymdownx.slugs import slugify

    def scheme(name: str, media: str, icon: str, other: str) -> dict:
        toggle = {"icon": f"material/{icon}", "name": f"Switch to {other}"}
        return {"scheme": name, "media": media, "toggle": toggle, "primary": "indigo"}

    light = scheme("default", "(prefers-color-scheme: light)", "weather-night", "dark")
    dark = scheme("slate", "(prefers-color-scheme: dark)", "weather-sunny", "light")
    extensions = [
        "tables", "attr_list", "md_in_html", "footnotes", "pymdownx.superfences",
        {"toc": {"slugify": slugify(case="lower"), "permalink": True, "toc_depth": 3}},
        {"pymdownx.highlight": {"anchor_linenums": True, "pygments_lang_class": True}},
        {"pymdownx.arithmatex": {"generic": True}},
    ]  # fmt: skip
    return dict(
        site_name="Milestones", docs_dir=str(docs), site_dir=str(out), nav=menu, strict=True,
        use_directory_urls=False, plugins=["material/search", "material/offline"],
        markdown_extensions=extensions, extra_css=["style.css"],
        extra={"polyfills": ["iframe-worker.js"]},
        validation={"nav": {"omitted_files": "ignore"}, "links": {"anchors": "info"}},
        theme={
            "name": "material", "font": False, "palette": [light, dark],
            "features": [
                "navigation.tabs", "navigation.top", "search.highlight", "content.code.copy",
            ],
        },
    )  # fmt: skip


def equations(page: str) -> str:
    """The HTML of a page with its equations in MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert

    def drawn(found: re.Match) -> str:
        tex = html.unescape(found[2]).strip()
        inner = re.sub(r"^\\[(\[]|\\[)\]]$", "", tex).strip()
        return convert(inner, display="block" if tex.startswith("\\[") else "inline")

    return FORMULA.sub(drawn, page)


def build(out: Path, root: Path = ROOT) -> int:
    """Builds the site of the repository at `root` into `out`; the number of its pages."""
    try:
        os.environ["DISABLE_MKDOCS_2_WARNING"] = "true"  # an advertisement of another program
        import material  # noqa: F401  (the theme)
        from mkdocs.commands.build import build as build_site
        from mkdocs.config import load_config
        from mkdocs.exceptions import Abort
    except ImportError as error:
        fail(f"{error.name} is not installed: pip install -e '.[site]'")
    if out.exists() and not out.is_dir():
        fail(f"--out {out} is a file")
    if out.is_dir() and any(out.iterdir()) and not (out / MADE).exists():
        fail(f"--out {out} holds other files: name another folder")
    make_folder(out)
    (out / MADE).touch()
    complaints: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: complaints.append(record.getMessage())
    logging.getLogger("mkdocs").addHandler(handler)
    with tempfile.TemporaryDirectory() as temporary:
        docs = Path(temporary, "docs")
        docs.mkdir()
        menu = collect(root, docs)
        empty = Path(temporary, "mkdocs.yml")
        empty.write_text("{}")
        try:
            build_site(load_config(str(empty), **settings(docs, out.resolve(), menu)))
        except Abort:
            fail(f"the site has {counted(len(complaints), 'flaw')}: {'; '.join(complaints)}")
        finally:
            logging.getLogger("mkdocs").removeHandler(handler)
    pages = sorted(out.rglob("*.html"))
    for page in pages:
        page.write_text(equations(page.read_text(encoding="utf-8")), encoding="utf-8")
    return len(pages)


@cli.command
def main(argv: list[str] | None = None) -> None:
    """Builds the site, and shows it if asked."""
    args = parse_args(argv)
    print(f"{build(args.out)} pages in {args.out}: open {args.out / 'index.html'}")
    if args.serve:
        handler = partial(SimpleHTTPRequestHandler, directory=args.out)
        try:
            server = ThreadingHTTPServer(("127.0.0.1", args.serve), handler)
        except OSError as error:
            fail(f"--serve {args.serve}: {error.strerror}")
        print(f"http://127.0.0.1:{args.serve}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.server_close()


if __name__ == "__main__":
    main()
