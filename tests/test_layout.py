"""The layout of DESIGN.md 2 and 3: files, imports, docstrings, and commands that parse."""

import ast
import importlib
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MILESTONES, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

READMES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in MILESTONES)]
PAGES = [ROOT / "PRACTICE.md", ROOT / "SCALE.md"]


def name_of(path):
    return path.parent.name if path.name == "README.md" else path.stem


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path):
    """The dotted names a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module


@pytest.mark.parametrize("folder", MILESTONES)
def test_files(folder):
    for name in ("model.py", "train.py", "sample.py", "claims.py", "README.md"):
        assert (ROOT / folder / name).is_file(), name
    assert list((ROOT / folder / "samples").glob("*.*")), "no samples"
    assert not (ROOT / folder / f"{folder}.py").exists(), "shadows the package"
    assert (ROOT / "tests" / f"test_{folder}.py").is_file()


@pytest.mark.parametrize("folder", MILESTONES)
def test_every_folder_has_its_entry(folder):
    entries = tomllib.loads((ROOT / "milestones.toml").read_text())["milestone"]
    entry = next(e for e in entries if e["folder"] == folder)
    assert {"folder", "year", "title", "authors", "paper", "predecessor"} == entry.keys()
    assert [e["year"] for e in entries] == sorted(e["year"] for e in entries)


@pytest.mark.parametrize("folder", MILESTONES)
def test_models_import_torch_and_the_standard_library_only(folder):
    scripts = {"train", "sample", "claims", "evaluate", "options", "train_gan"}
    for path in sources(folder):
        if path.stem in scripts:
            continue
        for name in imported(path):
            top = name.partition(".")[0]
            assert top in {"torch", folder} | sys.stdlib_module_names, f"{path}: {name}"


@pytest.mark.parametrize("folder", [*MILESTONES, "common"])
def test_what_may_import_what(folder):
    for path in sources(folder):
        for name in imported(path):
            top = name.partition(".")[0]
            assert name != "model", f"{path}: never `from model import`"
            foreign = set(MILESTONES) - {folder}
            assert top not in foreign or name.endswith(".model"), f"{path}: {name}"
            if folder == "common":
                assert top not in MILESTONES, f"{path}: common never calls back"


@pytest.mark.parametrize("folder", [*MILESTONES, "common", "tools"])
def test_docstrings(folder):
    for path in sources(folder):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                short = len(node.body) < 4 and isinstance(node, ast.FunctionDef)
                assert ast.get_docstring(node) or short, f"{path}: {node.name}"


@pytest.mark.parametrize("folder", MILESTONES)
def test_script_contract(folder):
    train = importlib.import_module(f"{folder}.train")
    model = importlib.import_module(f"{folder}.model")
    assert train.QUICK["model"] in model.MODELS
    assert train.PAPER["model"] in model.MODELS
    for recipe in (train.QUICK, train.PAPER):
        flags = vars(train.parse_args([]))
        assert recipe.keys() <= flags.keys(), "a recipe sets what is no flag"
    assert list(model.MODELS) == [name.lower() for name in model.MODELS]
    assert len((ROOT / folder / "train.py").read_text().splitlines()) <= 190
    for name in model.MODELS:
        assert name in train.__doc__ or name in (ROOT / folder / "README.md").read_text()


def commands(readme):
    """The shell commands of a README: (script, arguments)."""
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", readme.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                script = next((w for w in words if re.fullmatch(r"\w+/(\w+/)?\w+\.py", w)), None)
                if script:
                    yield script, words[words.index(script) + 1 :]


@pytest.mark.parametrize("readme", [*READMES, *PAGES], ids=name_of)
def test_commands_of_the_readme_parse(readme, monkeypatch, tmp_path):
    found = list(commands(readme))
    assert found, "no commands"
    monkeypatch.chdir(tmp_path)
    for script, argv in found:
        path = ROOT / script
        if path.parent.name not in (*MILESTONES, "tests", "benchmarks", "tools"):
            continue  # a tree cut to some of the folders
        assert path.is_file(), script
        if path.parent.name in MILESTONES and not {"--evaluate", "--help"} & set(argv):
            module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
            for flag, value in itertools.pairwise(argv):
                if flag == "--weights" and value != "imagenet":  # must be there, whatever is in it
                    Path(value).parent.mkdir(parents=True, exist_ok=True)
                    Path(value).touch()
            module.parse_args(argv)


@pytest.mark.parametrize("readme", [*READMES, *PAGES], ids=name_of)
def test_links_of_the_readme_lead_somewhere(readme):
    text = readme.read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert readme in PAGES or [link for link in links if link.endswith(".png")], "no picture"
    for link in links:
        if not re.match(r"https?:", link) and Path(link).parts[0] not in ("runs",):
            missing = not (readme.parent / link).exists()
            cut = readme.parent == ROOT and Path(link).parts[0] not in MILESTONES
            assert not missing or cut, link


def test_no_file_is_large_and_the_clone_is_small():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the tree is not in git")
    files = [ROOT / name for name in listed.stdout.split("\0")[:-1]]
    sizes = {path: path.stat().st_size for path in files if path.exists()}
    assert not [str(path) for path, size in sizes.items() if size > 200_000]
    history = Path(ROOT, ".git")  # a file in a second working tree
    stored = sum(path.stat().st_size for path in history.rglob("*") if path.is_file())
    assert sum(sizes.values()) + stored < 25_000_000


def test_the_timeline_agrees_with_the_folders():
    text = (ROOT / "README.md").read_text()
    row = (
        r"^\| (\d+) \| \[(\w+)\]\(\2/README.md\) \| \[(.+?)\]\((.+?)\) \| .+ \[picture\]\(.+\) \|$"
    )
    rows = re.findall(row, text, re.M)
    entries = tomllib.loads((ROOT / "milestones.toml").read_text())["milestone"]
    assert [r[:4] for r in rows] == [
        (str(e["year"]), e["folder"], e["title"], e["paper"]) for e in entries
    ]
    assert sorted(e["folder"] for e in entries) == MILESTONES
    for entry in entries:
        before = [e["folder"] for e in entries[: entries.index(entry)]]
        assert entry["predecessor"] in ["", *before] or len(entries) == 1  # a tree cut to one


def test_lines_that_the_readme_names_show_what_it_says():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"\[(\S+\.py):(\d+)\]\(\1#L\2\) \| `(.+)` \|$", text, re.M)
    assert len(rows) >= 5
    for path, number, code in rows:
        lines = (ROOT / path).read_text().splitlines()
        found = [n for n, line in enumerate(lines, 1) if code in line]
        assert int(number) in found, f"{path}: {code} stands on {found}, not on {number}"
