"""tools/branches.py, in a temporary clone: the history, its trees, and what it refuses."""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import FORKS, MILESTONES, ROOT, start
from test_layout import commands

from tools import branches, milestones, readme


def git(*args):
    done = subprocess.run(["git", *args], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    if subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True).returncode:
        pytest.skip("the tree is not in git")
    git("clone", "--quiet", ROOT, "clone")
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.setattr(branches, "ROOT", tmp_path / "clone")
    git("switch", "--quiet", "--detach")  # the original may be on a branch that the tool made
    for name in git("for-each-ref", "--format=%(refname:short)", "refs/heads").split():
        git("branch", "--quiet", "-D", name)
    return tmp_path / "clone"


def pytest_in(folder, *flags):
    """Runs the tests of a checkout; returns what they print. On Linux in a forked process: torch,
    and what else is no part of the museum, is imported already."""
    command = [__file__, str(folder), "-q", "-n0", "-p", "no:cacheprovider", *flags]
    command += ["--ignore", "tests/test_branches.py"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if FORKS:
            process = start(command, out, err)
            process.join()
            code = process.exitcode
        else:
            code = subprocess.run([sys.executable, *command], stdout=out, stderr=err).returncode
        printed, errors = ((file.seek(0), file.read())[1] for file in (out, err))
    assert not code, printed[-3000:] + errors[-1000:]
    return printed


def be_in(folder):
    """Makes this process one that has imported nothing of the museum and finds only `folder`'s."""
    own = {path.stem for pattern in ("*/", "tests/**/*.py") for path in ROOT.glob(pattern)}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
    gone = ROOT, ROOT / "tests", ROOT / "tests" / "benchmarks"
    others = [path for path in sys.path if Path(path).resolve() not in gone]
    sys.path[:] = [folder, f"{folder}/tests", *others]
    os.chdir(folder)


def checkout(clone, name):
    folder = clone.parent / name.replace("/", "-")
    git("worktree", "add", "--quiet", "--detach", folder, name)
    return folder


def test_the_history(clone, capsys):
    (clone / "README.md").write_text("changed, and not committed")
    (clone / "new.txt").write_text("not in git")
    before = git("status", "--porcelain", "--branch"), git("rev-parse", "HEAD")
    made = branches.main([])
    assert (git("status", "--porcelain", "--branch"), git("rev-parse", "HEAD")) == before
    folders = [name.split("-", 1)[1] for name in made]
    assert sorted(folders) == MILESTONES
    assert branches.main([]) == made  # the same tree, the same commits
    assert capsys.readouterr().out.count("milestone/") == 2 * len(made)
    parent = None
    for place, (name, commit) in enumerate(made.items()):
        assert git("rev-parse", name) == commit
        assert git("log", "-1", "--format=%P", name) == (parent or "")
        there = git("ls-tree", "-d", "--name-only", name).split()
        assert sorted(set(there) & set(MILESTONES)) == sorted(folders[: place + 1])
        assert {"common", "tests", "tools"} <= set(there)
        body = git("log", "-1", "--format=%B", name)
        assert re.match(r".+ \(\d{4}( to \d{4})?\): ", body) and len(body) > 1000
        assert "](claims.py)" not in body  # the paper's summary, not the list of files
        assert branches.entries_of(name)[-1]["folder"] == folders[place]
        parent = commit
    last = list(made)[-1]
    changed = git("diff", "--name-only", "HEAD", last).split()
    assert changed in ([], ["README.md"], ["milestones.toml"]), changed  # the whole museum


def test_links_and_commands_on_every_branch(clone):
    alone = MILESTONES[-1]
    made = [*branches.main([]), *branches.main(["--only", alone])]
    folders = [checkout(clone, name) for name in made]
    titles = {name: branches.titles_of("HEAD", name) for name in MILESTONES}
    for folder in folders:
        here = [path.parent.name for path in folder.glob("*/model.py")]
        later = "|".join(title for name in MILESTONES if name not in here for title in titles[name])
        for page in folder.glob("*.md"):  # they speak of nothing that isn't there
            text = page.read_text()
            assert not (later and re.search(rf"\b({later})\b", text)), page
            own = {branch.split("/")[1] for branch in made} if len(here) > 1 else set()
            assert set(re.findall(r"milestone/(\d+-\w+)", text)) <= own, page
            assert not re.search(r":\n+(#|\Z)|```\w+\n```", text), page  # nothing is left open
        for page in [folder / "README.md", *folder.glob("*/README.md")]:
            links = re.findall(r"(?:\]\(|src=\"|href=\")([^)#\"]+)", page.read_text())
            for link in links:
                if not re.match(r"https?:|runs/", link):
                    assert (page.parent / link).exists(), f"{page}: {link}"
            for script, _ in commands(page):
                assert (folder / script).is_file(), f"{page}: {script}"
        text, tables = (folder / "README.md").read_text(), (folder / "milestones.toml").read_text()
        assert readme.update(text, milestones.parse(tables), folder) == text  # cut alike


def collects(folder):
    found = pytest_in(folder, "--collect-only")
    assert re.search(r"\d+(/\d+)? tests collected", found)


def test_a_branch_alone_collects(clone):
    """A folder from the middle: what it is cut from has most other folders in it."""
    (name,) = branches.main(["--only", MILESTONES[len(MILESTONES) // 2]])
    collects(checkout(clone, name))


@pytest.mark.slow
def test_every_branch_collects(clone):
    made = [*branches.main([]), *branches.main(["--only", MILESTONES[-1]])]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(collects, [checkout(clone, name) for name in made]))


def test_the_first_branch_passes(clone):
    """The tests over all folders, of one. Those of `common` and of the folder itself are the same
    files here and there: that they need no other folder, the slow tests see."""
    name = next(iter(branches.main([])))
    own = [f"--ignore-glob=*/test_{part}*" for part in ("common_", name.split("-", 1)[1])]
    assert "passed" in pytest_in(checkout(clone, name), "-x", *own)


@pytest.mark.slow
def test_all_branches_pass(clone):
    for name in branches.main([]):
        assert "passed" in pytest_in(checkout(clone, name), "-x")


def test_one_folder(clone):
    ((name, commit),) = branches.main(["--only", "lenet"]).items()
    assert name == "milestone/only-lenet"
    assert not git("log", "-1", "--format=%P", commit)
    there = git("ls-tree", "-d", "--name-only", commit).split()
    assert set(there) & set(MILESTONES) == {"lenet"}


def test_one_folder_with_the_network_that_it_takes(clone):
    """Mask R-CNN builds on ResNet: its branch has both, and the tests of both."""
    if not {"maskrcnn", "resnet"} <= set(MILESTONES):
        pytest.skip("a tree without one of the two")
    ((_, commit),) = branches.main(["--only", "maskrcnn"]).items()
    there = git("ls-tree", "-d", "--name-only", commit).split()
    assert set(there) & set(MILESTONES) == {"maskrcnn", "resnet"}
    tests = git("ls-tree", "--name-only", commit, "tests/").split()
    assert {"tests/test_maskrcnn.py", "tests/test_resnet.py"} <= set(tests)
    assert "tests/test_yolo.py" not in tests
    entries = [entry["folder"] for entry in branches.entries_of(commit)]
    assert entries == ["resnet", "maskrcnn"]


def test_what_is_refused(clone, refused, monkeypatch):
    git("branch", "milestone/1998-lenet")
    line = refused(branches.main, [])
    assert "milestone/1998-lenet is there and was not made by this tool" in line
    assert "milestone/2012" not in git("branch")  # all or none
    git("branch", "-D", "milestone/1998-lenet")
    assert "unknown milestone 'lenett': did you mean lenet?" in refused(
        branches.main, ["--only", "lenett"]
    )
    assert "unknown milestone ''" in refused(branches.main, ["--only", ""])
    assert "unrecognized" in refused(branches.main, ["--all"])
    branches.main([])
    first = git("rev-parse", "milestone/1998-lenet")
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@localhost"]
    git("switch", "--quiet", "milestone/1998-lenet")
    Path("README.md").write_text("mine")
    git(*identity, "commit", "--quiet", "--all", "--amend", "--no-edit")
    git("switch", "--quiet", "--detach", "-")
    assert "was not made by this tool" in refused(branches.main, [])  # someone has amended it
    git("branch", "--force", "milestone/1998-lenet", first)
    git("switch", "--quiet", "milestone/1998-lenet")
    Path("common/extra.py").write_text('"""New."""\n')
    git("add", ".")
    git(*identity, "commit", "--quiet", "-m", "mine")
    git("switch", "--quiet", "--detach")
    assert "was not made by this tool" in refused(branches.main, [])  # someone has gone on from it
    monkeypatch.setattr(branches, "ROOT", clone / "tools")  # a museum inside another repository
    assert f"is no repository of its own, but a part of {clone}" in refused(branches.main, [])
    monkeypatch.setattr(branches, "ROOT", clone.parent)
    assert "not a git repository" in refused(branches.main, [])


def test_the_users_own_repository_is_left_alone(clone, monkeypatch):
    """Wherever the user stands, and whatever a hook has set: branches are made in the museum."""
    git("init", "--quiet", clone.parent / "other")
    monkeypatch.chdir(clone.parent / "other")
    monkeypatch.setenv("GIT_DIR", str(clone.parent / "other" / ".git"))
    name, commit = next(iter(branches.main([]).items()))
    assert not git("for-each-ref")  # of the other
    monkeypatch.delenv("GIT_DIR")
    assert git("-C", clone, "rev-parse", name) == commit


def test_an_earlier_milestone_renames_no_branch():
    before = [{"year": 1998, "folder": "lenet"}, {"year": 2014, "folder": "vgg"}]
    earlier = [{"year": 1986, "folder": "mlp"}, *before, {"year": 2014, "folder": "googlenet"}]
    names = branches.names_of(before)
    assert names == ["milestone/1998-lenet", "milestone/2014-vgg"]
    assert [name for name in branches.names_of(earlier) if name in names] == names
    assert len(set(branches.names_of(earlier))) == 4  # two of one year


def test_what_is_left_of_a_page():
    """A table, a transcript and a section that speak of others go, with their line of contents."""
    gone = branches.foreign_words({"lenet"}, set())
    parts = {"contents": "- [One](#one)\n- [Two](#two)\n", "ideas": "| a |\n| --- |\n| lenet/x |\n"}
    marks = {name: f"<!-- {name}: made by tools/readme.py -->\n" for name in parts}
    marked = {name: f"{marks[name]}{parts[name]}<!-- end -->\n" for name in parts}
    page = f"{marked['contents']}\n## One\n\n{marked['ideas']}\n## Two\n\nIt prints 1.\n\n"
    page += "```text\n$ python lenet/train.py\n\n1\n```\n"
    cut = f"{marks['contents']}- [Two](#two)\n<!-- end -->\n\n## Two\n\nIt prints 1.\n"
    assert branches.cut_readme(page, gone) == cut


if __name__ == "__main__":  # what pytest_in starts
    be_in(sys.argv[1])
    sys.exit(pytest.main(sys.argv[2:]))
