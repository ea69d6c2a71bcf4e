"""The layout of all folders: files, imports, docstrings, tables, and commands that parse."""

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
import types
from pathlib import Path

import pytest
from conftest import BACKBONES, MILESTONES, ROOT

from tools import branches, milestones, readme

WHOLE = "lenet" in MILESTONES  # else a tree cut to other folders
READMES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in MILESTONES)]
PAGES = [ROOT / "PRACTICE.md", ROOT / "SCALE.md", ROOT / "CONTRIBUTING.md"]
ENTRIES = milestones.entries()
GONE = {  # a tree that someone has cut by hand lacks folders and their tests
    e["folder"]
    for e in ENTRIES
    if e["folder"] not in MILESTONES and not (ROOT / f"tests/test_{e['folder']}.py").exists()
}


KERNELS = {"maskrcnn": "torchvision.ops"}  # that have no equal in torch


def is_constructor(name):
    """Whether a dotted name is a folder's model.py, a network or block there, or a factory."""
    module, _, own = name.partition(".model.")
    module = importlib.import_module(f"{module.removesuffix('.model')}.model")
    found = getattr(module, own, None)
    return not own or isinstance(found, type) or found in module.MODELS.values()


def title(folder):
    """What a README calls its model, as a pattern: a family has several names."""
    head = re.match(r"# (.+?)(?: \(|\n)", (ROOT / folder / "README.md").read_text()).group(1)
    return "|".join(map(re.escape, head.split(", ")))


def name_of(path):
    return path.parent.name if path.name == "README.md" else path.stem


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path):
    """The dotted names a file imports, at any depth; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", MILESTONES)
def test_files(folder):
    for name in ("model.py", "train.py", "sample.py", "claims.py", "README.md"):
        assert (ROOT / folder / name).is_file(), name
    assert list((ROOT / folder / "samples").glob("*.*")), "no samples"
    assert not (ROOT / folder / f"{folder}.py").exists(), "shadows the package"
    assert (ROOT / "tests" / f"test_{folder}.py").is_file()


@pytest.mark.parametrize("folder", MILESTONES)
def test_every_folder_has_its_entry(folder):
    (entry,) = (e for e in ENTRIES if e["folder"] == folder)
    assert [e["year"] for e in ENTRIES] == sorted(e["year"] for e in ENTRIES)
    before = [e["folder"] for e in ENTRIES[: ENTRIES.index(entry)]]
    assert entry["predecessor"] in ["", *before] or len(ENTRIES) == 1  # a tree cut to one
    models = importlib.import_module(f"{folder}.model").MODELS
    assert entry["small"] and {entry["headline"], *entry["small"]} <= models.keys()
    assert (ROOT / folder / entry["picture"]).is_file()
    assert re.match(r".+: .*[a-zA-Z]", entry["result"]), "names no metric"
    texts = [entry[key] for key in ("advanced", "result", "alt")]
    others = [title(other) for other in MILESTONES if other != folder]
    assert not re.search(rf"\b({'|'.join(others) or '(?!)'})\b", " ".join(texts)), "cut with others"


@pytest.mark.parametrize("folder", MILESTONES)
def test_models_import_torch_and_the_standard_library_only(folder):
    """model.py, and the files of its folder that it needs, can be copied out."""
    waiting, seen = [f"{folder}.model"], set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        for name in imported(ROOT / f"{module.replace('.', '/')}.py"):
            top = name.partition(".")[0]
            if top in BACKBONES.get(folder, ()):
                assert is_constructor(name), f"{module}: {name}"
                continue
            if f"{name}.".startswith(f"{KERNELS.get(folder)}."):
                continue
            assert top in {"torch", folder} | sys.stdlib_module_names, f"{module}: {name}"
            there = (ROOT / f"{name.replace('.', '/')}.py").is_file()
            waiting += [name] if top == folder and there and name not in seen else []


@pytest.mark.parametrize("folder", [*MILESTONES, "common"])
def test_what_may_import_what(folder):
    for path in sources(folder):
        for name in imported(path):
            top = name.partition(".")[0]
            assert name != "model", f"{path}: never `from model import`"
            foreign = set(MILESTONES) - {folder}
            through = top in BACKBONES.get(folder, ()) and is_constructor(name)
            assert top not in foreign or through, f"{path}: {name}"
            if folder == "common":
                assert top not in MILESTONES, f"{path}: common never calls back"


A_PART = (ROOT / "milestones.toml").read_text().startswith(branches.CUT)


@pytest.mark.skipif(A_PART or bool(GONE), reason="a tree cut to some of the folders")
def test_common_holds_what_two_milestones_use():
    """Directly, or through another module of common."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): {*imported(path)}
        for path in sources("common")
        if path.stem != "__init__"
    }
    users = {module: set() for module in modules}
    for folder in MILESTONES:
        found = {name for path in sources(folder) for name in imported(path)} & modules.keys()
        new = found
        while new := {name for module in new for name in modules[module]} & modules.keys() - found:
            found |= new
        for module in found:
            users[module].add(folder)
    assert not {module for module in users if len(users[module]) < 2}


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


def commands(page):
    """The shell commands of a README: (script, arguments)."""
    text = page.read_text()
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


@pytest.mark.parametrize("page", READMES, ids=name_of)
def test_examples_of_the_readme_print_what_they_say(page, capsys):
    """Blocks of Python with a print, and what it prints beside it."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    examples = [block for block in blocks if "print(" in block]
    assert examples or (page.parent == ROOT and not WHOLE), "no example"
    for block in examples:
        assert len(re.findall(r"^.", block, re.M)) <= 3, block
        promised = re.findall(r"print\(.*\)  # (.+)", block)
        capsys.readouterr()
        exec(block, {})
        assert capsys.readouterr().out.splitlines() == promised != [], block


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


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=name_of)
def test_commands_of_the_readme_parse(page, monkeypatch, tmp_path):
    found = list(commands(page))
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
            if hasattr(module, "parse_args"):
                module.parse_args(argv)
            else:  # a classifier's sample.py: common has its main
                parse_alone(script, argv, monkeypatch)


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=name_of)
def test_links_of_the_readme_lead_somewhere(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)|(?:src|href)=\"([^\"#]+)", text)
    links = [one or other for one, other in links]
    pictures = [link for link in links if link.endswith((".png", ".jpg"))]
    assert pictures or page in PAGES, "no picture"
    for link in links:
        parts = Path(link).parts
        if not re.match(r"https?:", link) and parts[0] != "runs" and not GONE.intersection(parts):
            assert (page.parent / link).exists(), link


def test_no_file_is_large_and_the_clone_is_small():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the tree is not in git")
    files = [ROOT / name for name in listed.stdout.split("\0")[:-1]]
    sizes = {path: path.stat().st_size for path in files if path.exists()}
    assert not [str(path) for path, size in sizes.items() if size > 200_000]
    # what `git clone` fetches: a copy that grew by many pulls holds objects more than once
    packed = subprocess.run(
        ["git", "-C", ROOT, "pack-objects", "--revs", "--stdout", "-q", "--delta-base-offset"],
        input=b"HEAD\n", capture_output=True, check=True,
    )  # fmt: skip
    assert sum(sizes.values()) + len(packed.stdout) < 40_000_000


def test_every_folder_is_a_milestone():
    assert sorted({e["folder"] for e in ENTRIES} - GONE) == MILESTONES


def test_tables_of_the_readme_are_not_stale():
    """Names, parameters, lines and contents, made anew: `python tools/readme.py` mends them."""
    text, source = ((ROOT / name).read_text() for name in ("README.md", "milestones.toml"))
    if GONE:
        foreign = branches.foreign_words(GONE, set())
        text = branches.cut_readme(text, foreign)
        source = branches.cut_milestones(source, GONE, foreign)
    tables = milestones.parse(source)
    assert tables["milestone"]
    assert not readme.stale(text, readme.update(text, tables))


def test_parameters_are_counted_on_the_model():
    """Those that learn, of the model with the arguments that its entry names."""
    from torch import nn

    class Model(nn.Module):
        def __init__(self, heads=2, number=False):
            super().__init__()
            self.heads = nn.Linear(3, heads)
            self.fixed = nn.Parameter(nn.init.zeros_(self.heads.weight), requires_grad=False)
            if number and self.heads.weight.is_meta:
                raise NotImplementedError

    module = types.ModuleType("toy.model")
    module.MODELS = {"toy": Model}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "toy", types.ModuleType("toy"))
        patch.setitem(sys.modules, "toy.model", module)
        assert readme.count_parameters("toy", "toy") == 8
        assert readme.count_parameters("toy", "toy", heads=3) == 12
        assert readme.count_parameters("toy", "toy", number=True) == 8  # not on the meta device


def test_lines_are_found_by_their_code(tmp_path, refused):
    lines = ["class A:", "    x = 1", "class B:", "    x = 1", "    y = 2", "    y = 2"]
    (tmp_path / "a.py").write_text("\n".join(lines))

    def entry(code, **more):
        return {"name": "an idea", "file": "a.py", "code": code, **more}

    assert readme.line_of(entry("class B"), tmp_path) == 3
    assert readme.line_of(entry("x = 1", after="class A"), tmp_path) == 2
    assert readme.line_of(entry("x = 1", after="class B"), tmp_path) == 4
    row = readme.code_row(entry("class B", first="B 2000"), tmp_path)
    assert row == "an idea | B 2000 | [a.py:3](a.py#L3) | `class B`"
    for bad, reason in [
        (entry("x = 1"), "a.py: `x = 1` (an idea) stands in the lines 2, 4: name more of one"),
        (entry("z"), "a.py: `z` (an idea) stands in no line"),
        (
            entry("class A", after="class B"),
            "`class A` below `class B` (an idea) stands in no line",
        ),
        (entry("x = 1", after="y"), "`y` (an idea) stands in 2 lines, not in one"),
        (entry("x") | {"file": "b.py"}, "an idea: there is no b.py"),
    ]:
        assert reason in refused(readme.line_of, bad, tmp_path)


@pytest.mark.skipif(bool(GONE), reason="the tables of a tree cut by hand are of the whole")
def test_readme_tool(tmp_path, monkeypatch, capsys, refused):
    for path in [*MILESTONES, "common"]:
        (tmp_path / path).symlink_to(ROOT / path)
    for path in ("README.md", "milestones.toml"):
        (tmp_path / path).write_text((ROOT / path).read_text())
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    page = tmp_path / "README.md"
    readme.main([])
    right = page.read_text()
    readme.main(["--check"])
    page.write_text(right.replace("| year |", "| years |").replace("](#tests)", "](#test)"))
    with pytest.raises(SystemExit, match="1"):
        readme.main(["--check"])
    line = "README.md is stale (contents, milestones): run python tools/readme.py\n"
    assert capsys.readouterr().out == line
    readme.main([])
    assert page.read_text() == right
    page.write_text(right.replace("<!-- contents:", "<!-- content:"))
    assert "has no marker for contents" in refused(readme.main, [])
    (tmp_path / "milestones.toml").write_text("[[milestone]]\nfolder = 'x'\n")
    assert "the milestone x lacks advanced, alt, authors" in refused(readme.main, [])


def test_citation_is_of_this_version():
    cited = (ROOT / "CITATION.cff").read_text()
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert f"\nversion: {version}\n" in cited
    for key in ("cff-version: 1.2.0", "message:", "title:", "authors:"):  # what the format asks for
        assert re.search(rf"^{key}", cited, re.M), key


IDEAS = {  # that have to be there, by the folder whose lines show them
    "alexnet": ["ReLU", "dropout"],
    "vgg": ["batch normalisation"],
    "googlenet": ["EMA"],
    "seq2seq": ["sequence to sequence", "attention"],
    "resnet": ["residual connections", "augmentation"],
    "transformer": ["attention", "label smoothing"],
    "lenet": ["SGD", "momentum", "RMSprop", "Adam", "AdamW", "steps down", "cosine", "L1", "L2"],
    "common": ["clipping", "early stopping", "mixed precision", "accumulation", "DDP", "FSDP"],
}


@pytest.mark.parametrize("folder", [folder for folder in IDEAS if (ROOT / folder).is_dir()])
def test_tables_of_ideas_and_techniques_are_whole(folder):
    names = [e["name"] for table in ("idea", "technique") for e in milestones.entries(table)]
    for idea in IDEAS[folder]:
        assert [name for name in names if re.search(rf"\b{idea}\b", name)], idea
