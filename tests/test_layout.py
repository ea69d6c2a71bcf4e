"""The layout of DESIGN.md 2 and 3: files, imports, docstrings, and commands that parse."""

import argparse
import ast
import importlib
import itertools
import os
import re
import runpy
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

WHOLE = "lenet" in MILESTONES  # else a tree cut to other folders
READMES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in MILESTONES)]
PAGES = [ROOT / "PRACTICE.md", ROOT / "SCALE.md"]
ENTRIES = tomllib.loads((ROOT / "milestones.toml").read_text())["milestone"]
GONE = {  # a tree that someone has cut by hand lacks folders and their tests
    e["folder"]
    for e in ENTRIES
    if e["folder"] not in MILESTONES and not (ROOT / f"tests/test_{e['folder']}.py").exists()
}


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
    entry = next(e for e in ENTRIES if e["folder"] == folder)
    assert {"folder", "year", "title", "authors", "paper", "predecessor"} == entry.keys()
    assert [e["year"] for e in ENTRIES] == sorted(e["year"] for e in ENTRIES)


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
    text = readme.read_text()
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.S)
    inline = re.findall(r"`((?:python|torchrun) [^`\n]+)`", text)
    for block in [*blocks, *inline]:
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                script = next((w for w in words if re.fullmatch(r"\w+/(\w+/)?\w+\.py", w)), None)
                if script:
                    yield script, words[words.index(script) + 1 :]


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=lambda page: name_of(page))
def test_python_in_the_pages_runs_as_far_as_its_imports(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block


def parse_alone(script, argv, monkeypatch):
    """Runs a script as far as its command line is parsed."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, args=None, namespace=None):
        parse(parser, args, namespace)
        raise StopIteration

    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [script, *argv])
        patch.syspath_prepend(str((ROOT / script).parent))  # as Python does
        patch.setattr(os, "environ", dict(os.environ))  # benchmarks set some
        runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=lambda page: name_of(page))
def test_flags_of_torchrun_parse(page):
    from torch.distributed.run import get_args_parser

    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("torchrun "):
                get_args_parser().parse_args(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("readme", [*READMES, *PAGES], ids=name_of)
def test_commands_of_the_readme_parse(readme, monkeypatch, tmp_path):
    found = list(commands(readme))
    assert found or not WHOLE, "no commands"
    monkeypatch.chdir(tmp_path)
    for script, argv in found:
        path = ROOT / script
        if path.parent.name not in (*MILESTONES, "tests", "benchmarks", "tools"):
            continue  # a tree cut to some of the folders
        assert path.is_file(), script
        if path.parent.name not in MILESTONES:
            parse_alone(script, argv, monkeypatch)
        elif not {"--evaluate", "--help"} & set(argv):
            module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
            for flag, value in itertools.pairwise(argv):
                if flag == "--weights" and value != "imagenet":  # must be there, whatever is in it
                    Path(value).parent.mkdir(parents=True, exist_ok=True)
                    Path(value).touch()
            module.parse_args(argv)


@pytest.mark.parametrize("readme", [*READMES, *PAGES], ids=name_of)
def test_links_of_the_readme_lead_somewhere(readme):
    text = readme.read_text()
    links = re.findall(r"\]\(([^)#\s]+)|(?:src|href)=\"([^\"#]+)", text)
    links = [one or other for one, other in links]
    pictures = [link for link in links if link.endswith((".png", ".jpg"))]
    assert pictures or readme in PAGES, "no picture"
    for link in links:
        if not re.match(r"https?:", link) and Path(link).parts[0] not in ("runs", *GONE):
            assert (readme.parent / link).exists(), link


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
        r"^\| (\d+) \| \[(\w+)\]\(\2/README.md\) \| \[(.+?)\]\((.+?)\) \| (\w.+) \| .+ \| .+ "
        r"\| <a href=\"(\2/samples/\S+)\"><img src=\"\6\" width=\"160\" alt=\".+\"></a> \|$"
    )
    rows = re.findall(row, text, re.M)
    assert [r[:4] for r in rows] == [
        (str(e["year"]), e["folder"], e["title"], e["paper"]) for e in ENTRIES
    ]
    assert sorted({e["folder"] for e in ENTRIES} - GONE) == MILESTONES
    assert len(re.findall(r"^\| \d{4} \|", text, re.M)) == len(rows)
    for entry in ENTRIES:
        before = [e["folder"] for e in ENTRIES[: ENTRIES.index(entry)]]
        assert entry["predecessor"] in ["", *before] or len(ENTRIES) == 1  # a tree cut to one


def test_parameters_of_the_timeline_are_those_that_the_tests_count():
    text = (ROOT / "README.md").read_text()
    for folder in MILESTONES:
        number = re.search(rf"\[{folder}\]\(.*\| ([\d,]+) \|", text).group(1)
        tests = ROOT / "tests" / f"test_{folder}.py"
        assert number.replace(",", "_") in tests.read_text(), folder


IDEAS = {  # that issue and README promise, by the folder whose lines show them
    "alexnet": ["ReLU", "dropout"],
    "vgg": ["batch normalisation"],
    "googlenet": ["EMA"],
    "resnet": ["residual connections", "augmentation"],
    "transformer": ["attention", "label smoothing"],
    "lenet": ["SGD", "momentum", "RMSprop", "Adam", "AdamW", "steps down", "cosine", "L1", "L2"],
    "common": ["clipping", "early stopping", "mixed precision", "accumulation", "DDP", "FSDP"],
}


@pytest.mark.parametrize("folder", [folder for folder in IDEAS if (ROOT / folder).is_dir()])
def test_tables_of_ideas_and_techniques_are_whole(folder):
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (.+) \| \[\S+\.py:\d+\]", text, re.M)
    for idea in IDEAS[folder]:
        assert [row for row in rows if re.search(rf"\b{idea}\b", row)], idea


def test_lines_that_the_readme_names_show_what_it_says():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"\[(\S+\.py):(\d+)\]\(\1#L\2\) \| `(.+)` \|$", text, re.M)
    assert len(rows) >= 5
    tables = re.findall(r"\| where \| line \|\n\|[ |-]+\|\n((?:\|.*\n)+)", text)
    assert len(rows) == sum(table.count("\n") for table in tables)  # each row names a line
    for path, number, code in rows:
        if path.partition("/")[0] in GONE:
            continue
        lines = (ROOT / path).read_text().splitlines()
        found = [n for n, line in enumerate(lines, 1) if code in line]
        assert int(number) in found, f"{path}: {code} stands on {found}, not on {number}"
