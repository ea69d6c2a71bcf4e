"""The tutorials of all folders: their form, what they import, and that they run."""

import ast
import base64
import io
import json
import re
import shutil

import pytest
from conftest import BACKBONES, MILESTONES, ROOT

from tools import tutorials

FASTEST = {"mlp", "rnn"}  # run by default, where they are


def runs(folder):
    return folder if folder in FASTEST else pytest.param(folder, marks=pytest.mark.slow)


def test_every_folder_has_one():
    have = {folder for folder in MILESTONES if tutorials.path_of(folder).is_file()}
    assert have == set(MILESTONES)


@pytest.mark.parametrize("folder", MILESTONES)
def test_form(folder):
    """The parts and their order, one equation, pictures, size, imports, no path of a machine."""
    notebook = tutorials.read(folder)
    assert not tutorials.complaints(notebook, folder)
    assert tutorials.as_text(notebook) == tutorials.path_of(folder).read_text(encoding="utf-8")
    assert tutorials.tidy(notebook) == notebook  # holds nothing that changes from run to run


@pytest.mark.parametrize("folder", MILESTONES)
def test_it_teaches_the_folders_own_model(folder):
    """The code imports the folder's model, trains it in sight, and copies nothing of it."""
    codes = tutorials.own_code(tutorials.read(folder))
    names = {
        node.module
        for code in codes
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom)
    }
    assert any(name.startswith(f"{folder}.") for name in names), names
    others = {name.partition(".")[0] for name in names} & set(MILESTONES)
    assert folder in others and others <= {folder, *BACKBONES.get(folder, ())}
    code = "\n".join(codes)
    assert re.search(r"\bfor \w.* in ", code) and "plt." in code
    own = {
        node.name
        for path in (ROOT / folder).glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    written = {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ClassDef)}
    assert not written & own


@pytest.mark.parametrize("folder", MILESTONES)
def test_links(folder):
    """To the folder's own files alone, as branches have tutorials without other folders."""
    notebook = tutorials.read(folder)
    text = "\n".join(c["source"] for c in notebook["cells"] if c["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)#\s]+)\)", text):
        if not re.match(r"https?:", link):
            assert "/" not in link or link.startswith("samples/"), link
            assert (ROOT / folder / link).exists(), link
    assert f"/{folder}/tutorial.ipynb)" in notebook["cells"][0]["source"]  # Colab's
    readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert "](tutorial.ipynb)" in readme


def files_of(folder):
    paths = (ROOT / folder).rglob("*")
    return {path for path in paths if "__pycache__" not in path.parts and path.is_file()}


@pytest.mark.parametrize("folder", [runs(folder) for folder in MILESTONES])
def test_it_runs(folder):
    """From the folder, and the fastest also from the root; it writes nothing there."""
    notebook, before = tutorials.read(folder), files_of(folder)
    for place in (ROOT / folder, ROOT) if folder == "mlp" else (ROOT / folder,):
        made = tutorials.tidy(tutorials.execute(notebook, folder, place))
        assert not tutorials.complaints(made, folder, ran=True)
    assert files_of(folder) == before


@pytest.fixture
def museum(tmp_path, monkeypatch):
    """A tree with one folder, whose tutorial is short."""
    shutil.copy(ROOT / "milestones.toml", tmp_path)
    folder = tmp_path / MILESTONES[0]
    folder.mkdir()
    (folder / "README.md").write_text("# Toy (2000)\n")
    monkeypatch.setattr(tutorials, "ROOT", tmp_path)
    texts = [f"## {part}\n" for part in tutorials.PARTS]
    texts[1] += "$$ x $$\n"
    cells = [{"cell_type": "markdown", "metadata": {}, "source": text} for text in texts]
    picture = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (9, 9)).save(picture, "PNG")
    shown = {"image/png": base64.b64encode(picture.getvalue()).decode()}
    out = {"data": shown, "metadata": {}, "output_type": "display_data"}
    code = {"cell_type": "code", "metadata": {}, "execution_count": 2, "source": "import math\n"}
    cells.insert(3, code | {"outputs": [out]})
    path = folder / "tutorial.ipynb"

    def write():
        path.write_text(tutorials.as_text(notebook))
        return path

    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return notebook, write


def test_heads_and_complaints(museum, capsys):
    write = museum[1]
    path = write()
    with pytest.raises(SystemExit, match="1"):
        tutorials.main(["--check"])
    assert "its first cells are not those of --heads" in capsys.readouterr().out
    tutorials.main(["--heads"])
    tutorials.main(["--check"])
    assert capsys.readouterr().out.count(" bytes\n") == 2
    whole = path.read_text()
    tutorials.main(["--heads"])
    assert path.read_text() == whole
    capsys.readouterr()
    right = json.loads(whole)
    at = next(i for i, cell in enumerate(right["cells"]) if cell["cell_type"] == "code" and i > 1)
    stream = {"name": "stdout", "output_type": "stream", "text": "/home/me/x.py"}
    for change, words in [
        ({"source": "def f(:"}, "a cell doesn't parse"),
        ({"source": "from math import nothing"}, "math.nothing"),
        ({"source": "import nothing_of_the_kind"}, "nothing_of_the_kind"),
        ({"outputs": []}, "it shows no picture"),
        ({"outputs": [stream]}, "names a path of the machine: /home/"),
        ({"outputs": [stream | {"name": "stderr"}]}, "an error or a warning"),
        ({"outputs": [stream | {"text": "x" * 150_000}]}, "bytes, more than 150,000"),
        ({"execution_count": 7}, "not run once each"),
    ]:
        wrong = json.loads(whole)
        wrong["cells"][at] |= change
        path.write_text(json.dumps(wrong))
        with pytest.raises(SystemExit, match="1"):
            tutorials.main(["--check"])
        line = capsys.readouterr().out
        assert words in line and line.count("\n") == 1
    for old, new, words in [
        ("## The idea", "## An idea", "its parts are The problem, An idea"),
        ("$$ x $$", "x", "it has 0 equations"),
    ]:
        path.write_text(whole.replace(old, new))
        with pytest.raises(SystemExit, match="1"):
            tutorials.main(["--check"])
        assert words in capsys.readouterr().out


def test_what_is_refused(museum, refused):
    path = museum[1]()
    assert "unknown milestone 'toy'" in refused(tutorials.main, ["toy"])
    path.write_text("{")
    assert "tutorial.ipynb is no notebook" in refused(tutorials.main, [])
    path.unlink()
    assert "there is no" in refused(tutorials.main, [path.parent.name])


def test_a_cell_that_fails_ends_in_one_line_and_stores_nothing(museum, capsys):
    notebook, write = museum
    notebook["cells"][3]["source"] = "print(1 / 0)"
    before = write().read_text()
    with pytest.raises(SystemExit, match="1"):
        tutorials.main([])
    line = f"{MILESTONES[0]}: cell 6 fails: ZeroDivisionError: division by zero\n"
    assert capsys.readouterr().out == line
    assert write().read_text() == before


def test_pictures_become_small_and_warnings_go():
    from PIL import Image

    picture = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(picture, "PNG")
    data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "x"}
    out = {"data": data, "metadata": {"a": 1}, "output_type": "display_data"}
    warning = {"name": "stderr", "output_type": "stream", "text": "slow"}
    timed = {"execution": {"iopub.status.busy": "2026"}}
    cell = {"cell_type": "code", "metadata": timed, "execution_count": 1, "source": "1"}
    made = tutorials.tidy({"cells": [cell | {"outputs": [warning, out]}], "metadata": {"x": 1}})
    (kept,) = made["cells"]
    assert kept["metadata"] == {} and made["metadata"].keys() == {"kernelspec", "language_info"}
    (shown,) = kept["outputs"]
    again = Image.open(io.BytesIO(base64.b64decode(shown["data"]["image/png"])))
    assert again.mode == "P" and shown["metadata"] == {}
    assert tutorials.tidy(made) == made  # what is small stays as it is
