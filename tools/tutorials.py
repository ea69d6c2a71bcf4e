"""Executes the tutorials, `tutorial.ipynb` of every folder, and stores them with what they show.

    python tools/tutorials.py                # all, a line each with its time
    python tools/tutorials.py resnet lenet   # these
    python tools/tutorials.py --check        # executes nothing, and says what is wrong with them
    python tools/tutorials.py --heads        # executes nothing, and writes their first cells anew

The first two cells of each are this tool's: the title with its links, and the lines that fetch the
project where it isn't installed. The others are written by hand. What changes from run to run is
not stored: times, warnings, progress bars. A notebook with a cell that fails, with a machine's path
in what it shows, or larger than LARGEST is not stored at all.
"""

import argparse
import ast
import base64
import importlib
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import fail, unknown
from tools.milestones import ROOT, entries

REPOSITORY = "https://github.com/__owner__/milestones"  # no such account: put yours, then --heads
BRANCH = "main"
LARGEST = 150_000  # bytes
SECONDS = 1800  # that a cell may take, on a machine that is busy with other things
PARTS = [  # the headings of every tutorial, in this order
    "The problem",
    "The idea",
    "The model",
    "Training",
    "A prediction",
    "Change one thing",
    "Where to read on",
]
TITLE = """\
# {title}: the tutorial

[Open in Colab]({colab}) · [the summary](README.md) · [the model](model.py)

It takes about twenty minutes to read and try. Nothing is downloaded but, where it isn't installed,
the project itself."""
INSTALL = """\
import importlib.util
import sys

if importlib.util.find_spec("common") is None:  # in Colab, say: fetch the project and its needs
    !git clone --quiet --depth 1 {repository} milestones
    %pip install --quiet --editable milestones
    sys.path.insert(0, "milestones")"""
MACHINE = re.compile(r"(?<![\w.:/])/(home|root|tmp|usr|opt|var|work|mnt|Users|content)/|[A-Z]:\\\\")


def path_of(folder: str) -> Path:
    """Where a folder's tutorial stands."""
    return ROOT / folder / "tutorial.ipynb"


def head(folder: str) -> list[tuple[str, str]]:
    """The kind and the text of the first two cells of a folder's tutorial."""
    readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    title = re.match(r"# (.+)", readme)[1]
    place = f"{REPOSITORY.removeprefix('https://github.com/')}/blob/{BRANCH}/{folder}"
    colab = f"https://colab.research.google.com/github/{place}/tutorial.ipynb"
    first = TITLE.format(title=title, colab=colab)
    return [("markdown", first), ("code", INSTALL.format(repository=REPOSITORY))]


def read(folder: str) -> dict[str, Any]:
    """A folder's tutorial as JSON has it, with the text of cells in one piece."""
    path = path_of(folder)
    if not path.is_file():
        fail(f"there is no {path.relative_to(ROOT)}")
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
    except (ValueError, KeyError, TypeError) as error:
        fail(f"{path.relative_to(ROOT)} is no notebook ({error})")
    return notebook


def with_head(notebook: dict[str, Any], folder: str) -> dict[str, Any]:
    """A notebook whose first two cells are those of `head`."""
    cells = notebook["cells"]
    title = bool(cells) and cells[0]["source"].startswith("# ")
    install = len(cells) > 1 and "pip install" in cells[1]["source"]
    own = cells[2 if install else 1 if title else 0 :]
    made = []
    for number, (kind, text) in enumerate(head(folder)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text}
        made.append(cell | ({"execution_count": 1, "outputs": []} if kind == "code" else {}))
    return notebook | {"cells": [*made, *own]}


def execute(notebook: dict[str, Any], folder: str, place: Path | None = None) -> dict[str, Any]:
    """The notebook with new outputs, from the folder's own directory or `place`, by this tree.

    Raises RuntimeError with one line if a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    with tempfile.TemporaryDirectory() as settings:
        own = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": settings}
        own |= {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
        client = NotebookClient(
            nbformat.from_dict(notebook),
            timeout=SECONDS,
            kernel_name="python3",
            extra_arguments=["--log-level=40"],  # it warns of its own connections
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(place or ROOT / folder)}},
        )
        try:
            return client.execute(env=os.environ | own)
        except CellExecutionError as error:
            cell = next(
                number
                for number, cell in enumerate(client.nb.cells, 1)
                if any(out["output_type"] == "error" for out in cell.get("outputs", []))
            )
            raise RuntimeError(f"cell {cell} fails: {error.ename}: {error.evalue}") from None
        except (CellTimeoutError, DeadKernelError) as error:
            raise RuntimeError(str(error)) from None


def smaller(out: dict[str, Any]) -> dict[str, Any]:
    """An output whose picture, if it shows one, has at most 256 colours: a third of the bytes."""
    from PIL import Image

    data = dict(out.get("data", {}))
    if "image/png" not in data:
        return out
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    if picture.mode == "P":  # it is one already
        return out
    few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(packed := io.BytesIO(), "PNG", optimize=True)
    data["image/png"] = base64.b64encode(packed.getvalue()).decode() + "\n"
    return out | {"data": data}


def tidy(notebook: dict[str, Any]) -> dict[str, Any]:
    """A notebook without what changes from run to run or from machine to machine."""
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        kept = {"cell_type": cell["cell_type"], "id": f"cell-{number}", "metadata": {}}
        if cell["cell_type"] == "code":
            kept["execution_count"] = cell.get("execution_count")
            kept["outputs"] = [
                smaller(dict(out) | ({"metadata": {}} if "metadata" in out else {}))
                for out in cell.get("outputs", [])
                if out.get("name") != "stderr"
            ]
        cells.append(kept | {"source": cell["source"]})
    language = {"name": "python"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": language}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def as_text(notebook: dict[str, Any]) -> str:
    """A notebook as Jupyter stores it: texts as lists of lines."""

    def lines(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: lines(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [lines(v) for v in value]
        if isinstance(value, str) and key in ("source", "text", "text/plain", "text/html"):
            return value.splitlines(keepends=True)
        return value

    return json.dumps(lines(notebook), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def shown(notebook: dict[str, Any]) -> Iterator[str]:
    """The texts that cells have put out."""
    for cell in notebook["cells"]:
        for out in cell.get("outputs", []):
            yield "".join(out.get("text", ""))
            for kind, value in out.get("data", {}).items():
                if kind.startswith("text/"):
                    yield "".join(value)


def own_code(notebook: dict[str, Any]) -> list[str]:
    """The code of the cells below the head: plain Python."""
    return [cell["source"] for cell in notebook["cells"][2:] if cell["cell_type"] == "code"]


def wrong_imports(code: str) -> Iterator[str]:
    """What a piece of code imports that isn't there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in wanted:
            try:
                found = importlib.import_module(module)
                if name and not hasattr(found, name):
                    importlib.import_module(f"{module}.{name}")
            except ImportError as error:
                yield str(error)


def complaints(notebook: dict[str, Any], folder: str, ran: bool = False) -> list[str]:
    """What is wrong with a tutorial as it would be stored; nothing is executed.

    What has just been run needs no look at its imports.
    """
    cells, found = notebook["cells"], []
    first = [(cell["cell_type"], cell["source"]) for cell in cells[:2]]
    if first != head(folder):
        found.append("its first cells are not those of --heads")
    texts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    parts = re.findall(r"^## (.+)", "\n".join(texts), re.M)
    if parts != PARTS:
        found.append(f"its parts are {', '.join(parts)}, not {', '.join(PARTS)}")
    equations = "\n".join(texts).count("$$") / 2
    if equations != 1:
        found.append(f"it has {equations:g} equations set apart ($$), not one")
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    counts = [cell.get("execution_count") for cell in codes]
    if counts != list(range(1, len(codes) + 1)):
        found.append("its cells were not run once each, from the top")
    for code in own_code(notebook):
        try:
            found += [] if ran else wrong_imports(code)
        except SyntaxError as error:
            found.append(f"a cell doesn't parse: {error.msg} in {error.text!r}")
    outputs = [out for cell in codes for out in cell["outputs"]]
    if any(out["output_type"] == "error" or out.get("name") == "stderr" for out in outputs):
        found.append("it stores an error or a warning")
    if not any("image/png" in out.get("data", {}) for out in outputs):
        found.append("it shows no picture")
    for text in shown(notebook):
        if place := MACHINE.search(text) or re.search(re.escape(str(ROOT)), text):
            found.append(f"an output names a path of the machine: {place[0]}")
    size = len(as_text(notebook).encode())
    if size > LARGEST:
        found.append(f"it has {size:,} bytes, more than {LARGEST:,}")
    return found


def main(argv: list[str] | None = None) -> None:
    """Executes and stores tutorials, or checks them: status 1 if one fails or is wrong."""
    parser = argparse.ArgumentParser(
        "python tools/tutorials.py", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="by default all that have one")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="say what is wrong, execute nothing")
    only.add_argument("--heads", action="store_true", help="write the first cells, execute nothing")
    parser.error = lambda text: fail(text.removeprefix("argument "))
    args = parser.parse_args(argv)
    there = [entry["folder"] for entry in entries() if (ROOT / entry["folder"]).is_dir()]
    for folder in args.folders:
        if folder not in there:
            fail(unknown("milestone", folder, there))
    bad = 0
    for folder in args.folders or [name for name in there if path_of(name).is_file()]:
        notebook, begun, problem = read(folder), time.perf_counter(), ""
        if not args.check:
            notebook = tidy(with_head(notebook, folder))
        try:
            runs = not (args.check or args.heads)
            if runs:
                notebook = tidy(execute(notebook, folder))
            problem = "; ".join(complaints(notebook, folder, runs))
        except RuntimeError as error:
            problem = " ".join(str(error).split())
        text = as_text(notebook)
        if args.heads or not (args.check or problem):
            path_of(folder).write_text(text, encoding="utf-8")
        seconds = "" if args.check or args.heads else f", {time.perf_counter() - begun:.0f} s"
        print(f"{folder}: {problem or f'{len(text.encode()):,} bytes{seconds}'}", flush=True)
        bad += bool(problem)
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
