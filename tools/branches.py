"""The history of the field as git branches: a milestone each, one commit on top of the one before.

    python tools/branches.py && git log --oneline milestone/2015-resnet
    git diff milestone/1998-lenet milestone/2012-alexnet  # what the next paper brought
    python tools/branches.py --only resnet                # a branch with that folder and common,
                                                          # and with those whose networks it takes

Built from the committed tree of the repository that this file lies in, with git's plumbing: the
working tree, the index and the current branch stay as they are. The same tree gives the same
commits: author, committer and dates are fixed. A branch that this tool did not make is never
overwritten.
"""

import argparse
import ast
import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from common import fail, unknown
from tools.milestones import ROOT, parse
from tools.readme import MARKED, contents, fill

FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # of another repository, in its hooks
WHO = {"NAME": "milestones", "EMAIL": "milestones@localhost"}
CUT = "# A part of the museum, cut out by tools/branches.py."  # begins its milestones.toml
SIGN = "Made by tools/branches.py from the tree of the whole museum."  # ends every message


def git(*args: str, stdin: str | bytes = "", **environment: str) -> str:
    """Runs git in the museum's repository, wherever the user is; returns what it prints.

    A complaint of git's ends in one line.
    """
    data = stdin.encode() if isinstance(stdin, str) else stdin
    kinds = {k: v for k, v in os.environ.items() if k not in FOREIGN} | environment
    command = ["git", "-C", str(ROOT), *args]
    try:
        done = subprocess.run(command, input=data, capture_output=True, env=kinds)
    except FileNotFoundError:
        fail("git is not installed, or not on the PATH")
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        fail(f"git {args[0]}: {words[-1]}")
    return done.stdout.decode()


def show(commit: str, path: str) -> str:
    """A text file of the committed tree."""
    return git("show", f"{commit}:{path}")


@functools.cache
def read(blob: str) -> str:
    """A stored text file, by its id: read once for all branches."""
    return git("cat-file", "blob", blob)


def entries_of(commit: str) -> list[dict]:
    """The milestones of a commit, in historical order."""
    entries = parse(show(commit, "milestones.toml"))["milestone"]
    there = set(git("ls-tree", "-d", "--name-only", commit).split())
    if gone := [entry["folder"] for entry in entries if entry["folder"] not in there]:
        fail(f"milestones.toml names {gone[0]}, which is no committed folder")
    return entries


@functools.cache
def imports(blob: str) -> set[str]:
    """The packages and scripts that a stored Python file imports, by their first name."""
    names = set()
    for node in ast.walk(ast.parse(read(blob))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def needed(commit: str, folder: str, folders: Iterable[str]) -> set[str]:
    """The folders that a folder's files import, be it through one another; itself among them."""
    found, waiting = set(), [folder]
    while waiting:
        found.add(here := waiting.pop())
        rows = [row.split("\t", 1) for row in git("ls-tree", "-r", commit, f"{here}/").splitlines()]
        for info, path in rows:
            if path.endswith(".py"):
                waiting += sorted((imports(info.split()[2]) & set(folders)) - found)
    return found


def kept_files(commit: str, gone: set[str]) -> list[tuple[str, str, str]]:
    """(mode, blob, path) of the files that a tree without the folders `gone` holds.

    Folders go with their tests, and with the tests, benchmarks and tools that import them, be it
    through one another.
    """
    rows = [line.split("\t", 1) for line in git("ls-tree", "-r", "-z", commit).split("\0")[:-1]]
    stored = [(*info.split()[::2], path) for info, path in rows]
    files = [
        (mode, blob, path)
        for mode, blob, path in stored
        if path.partition("/")[0] not in gone
        and not any(Path(path).stem.startswith(f"test_{folder}") for folder in gone)
    ]
    lost = set(gone)
    while True:  # what goes may be imported by others
        foreign = {
            path
            for _, blob, path in files
            if re.fullmatch(r"(tests|tools)/.*\.py", path) and imports(blob) & lost
        }
        if not foreign:
            break
        lost |= {Path(path).stem for path in foreign}
        files = [file for file in files if file[2] not in foreign]
    return files


def titles_of(commit: str, folder: str) -> list[str]:
    """What a milestone calls itself: ["ResNet"], or of a family ["GCN", "GraphSAGE", "GAT"]."""
    head = re.match(r"# (.+?)(?: \(|\n)", show(commit, f"{folder}/README.md"))
    return head.group(1).split(", ") if head else []


def foreign_words(
    gone: set[str], lost: set[str], titles: Iterable[str] = (), names: Iterable[str] = ()
) -> re.Pattern:
    """What a page must not speak of: folders `gone` and files `lost`.

    With `titles`, those of milestones that are gone, and `names`, the branches of those that are
    here, also other milestones and their branches.
    """
    folders, files, words = (
        "|".join(map(re.escape, sorted(some))) or "(?!)" for some in (gone, lost, titles)
    )
    own = "|".join(name.partition("/")[2] for name in names)
    others = rf"|milestone/(?!({own})(?![\w-]))\d" if own else ""
    return re.compile(
        rf"(?<![\w/-])({folders})(/|\.model)|(?<![\w-])({files})(?![\w-])|\.\./({folders})/"
        rf"|\b({words})\b|--only ({folders})\b{others}"
    )


def cut_readme(text: str, foreign: re.Pattern) -> str:
    """A README without what speaks of `foreign` words.

    Of commands and tables single lines go, else whole items of a list, paragraphs, Python code or
    what a program printed, and headings that nothing is left under, also in the contents.
    """
    text = text.replace("\\\n", "\\\0")  # a command of several lines is one
    blocks, block, code, as_one = [], [], False, False
    for line in text.split("\n"):
        if line.startswith("```"):
            code, as_one = not code, line in ("```python", "```text")
        if as_one:  # stays or goes whole
            block.append(line)
            continue
        row = code or line.startswith("|")
        if row and foreign.search(line):
            continue
        starts = row or not line.strip() or re.match(r"\s*([-*]|\d+\.) ", line)
        if starts and block:
            blocks, block = [*blocks, block], []
        block.append(line)
        if row or not line.strip():
            blocks, block = [*blocks, block], []
    kept = []
    for text in ("\n".join(block) for block in [*blocks, block]):
        if not foreign.search(text):
            kept.append(text)
        elif text.startswith(("```python", "```text")):
            kept.append("```python\n```")
    whole = "\n".join(kept).replace("\0", "\n")
    whole = re.sub(r":\n\n```\w+\n+```\n", ".\n", whole)  # code of which nothing is left
    whole = re.sub(r"```\w+\n+```\n", "", whole)
    whole = re.sub(r"^\|.*\|\n\|[ |-]+\|\n(?!\|)", "", whole, flags=re.M)  # a table's head alone
    whole = MARKED.sub(lambda part: part[0] if part[3] else "", whole)  # an empty table
    whole = re.sub(r"\n{3,}", "\n\n", without_empty_sections(whole)).rstrip() + "\n"
    return fill(whole, {"contents": contents(whole)})


def without_empty_sections(text: str) -> str:
    """A README without the headings that nothing stands under."""
    kept, code, below = [], False, 0  # from the end; `below`: the heading reached, if nothing else
    for line in reversed(text.split("\n")):
        code ^= line.startswith("```")
        level = 0 if code else len(re.match(r"(#+ )?", line).group().strip())
        if level and below is not None and below <= level:
            continue
        if level or line.strip():
            below = level or None
        kept.append(line)
    return "\n".join(reversed(kept))


def cut_milestones(text: str, gone: set[str], foreign: re.Pattern) -> str:
    """milestones.toml without the folders `gone`, and ideas that speak of `foreign` words."""
    head, *entries = re.split(r"^(?=\[\[)", text, flags=re.M)
    kept = [f"{CUT}\n{head}" if gone else head]
    for entry in entries:
        folder = re.search(r'^folder = "(.*)"', entry, re.M)
        if not (folder[1] in gone if folder else foreign.search(entry)):
            kept.append(entry)
    return "".join(kept).rstrip() + "\n"


def write_tree(commit: str, gone: set[str]) -> str:
    """Stores the tree of a commit without the folders `gone`; returns its id."""
    files = kept_files(commit, gone)
    paths = {path: blob for _, blob, path in files}
    everything = git("ls-tree", "-r", "-z", "--name-only", commit).split("\0")[:-1]
    lost = {path for path in everything if path not in paths and path.partition("/")[0] not in gone}
    here = [entry for entry in entries_of(commit) if entry["folder"] not in gone]
    titles = {title for folder in gone for title in titles_of(commit, folder)}
    of_museum = foreign_words(gone, lost, titles, names_of(here))
    of_milestone = foreign_words(gone, lost)  # whose README may look ahead
    texts = {"milestones.toml": cut_milestones(show(commit, "milestones.toml"), gone, of_museum)}
    for path, blob in paths.items():
        if Path(path).suffix == ".md" and gone:
            first = re.compile(r"(pip install -e \. && python )\w+/")
            text = first.sub(rf"\g<1>{here[0]['folder']}/", read(blob))
            texts[path] = cut_readme(text, of_milestone if "/" in path else of_museum)
    rows = []
    for mode, blob, path in files:
        if path in texts:
            blob = git("hash-object", "-w", "--stdin", stdin=texts[path]).strip()
        rows.append(f"{mode} {blob}\t{path}")
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}  # never the user's own
        git("update-index", "-z", "--index-info", stdin="\0".join(rows) + "\0", **index)
        return git("write-tree", **index).strip()


def sections(readme: str, wanted: tuple[str, ...]) -> str:
    """The text of some sections of a README, without pictures."""
    parts = re.split(r"^## (.+)\n", readme, flags=re.M)
    texts = [text for title, text in zip(parts[1::2], parts[2::2], strict=True) if title in wanted]
    whole = "\n".join(re.sub(r"^!\[.*\n", "", text, flags=re.M).strip() + "\n" for text in texts)
    return re.sub(r"\n{3,}", "\n\n", whole).strip()


def message(commit: str, entry: dict) -> str:
    """The paper's summary: a line, the paper, and what its folder's README says of it."""
    folder = entry["folder"]
    readme = show(commit, f"{folder}/README.md")
    title = re.match(r"# (.+)", readme).group(1)
    paper = f"{entry['authors']}:\n{entry['title']}, {entry['year']}.\n{entry['paper']}"
    summary = sections(readme, ("The problem", "The idea", "What it advanced"))
    return f"{title}: {entry['advanced']}\n\n{paper}\n\n{summary}\n\n{SIGN}\n"


def write_commit(tree: str, parent: str | None, text: str, year: int, place: int) -> str:
    """Stores a commit with fixed author, committer and date; returns its id."""
    date = f"{max(year, 1970)}-01-{1 + place % 28:02}T12:00:00+0000"  # git knows no earlier year
    fixed = {
        f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in WHO.items()
    }
    fixed |= {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    above = ["-p", parent] if parent else []
    plain = ["-c", "i18n.commitEncoding=UTF-8", "-c", "commit.gpgSign=false"]
    return git(*plain, "commit-tree", tree, *above, stdin=text, **fixed).strip()


def present() -> dict[str, tuple[str, str]]:
    """The local branches: their commit, and the working tree they are checked out in, if any."""
    shown = git(
        "for-each-ref", "--format=%(refname:short)%09%(objectname)%09%(worktreepath)", "refs/heads"
    )
    rows = (line.split("\t") for line in shown.splitlines())
    return {name: (commit, place) for name, commit, place in rows}


def check(name: str, branches: dict[str, tuple[str, str]], new: str) -> None:
    """Fails if the branch is there, isn't ours, or is in use."""
    if name not in branches or branches[name][0] == new:
        return
    commit, place = branches[name]
    committer, body = git("log", "-1", "--format=%ce%n%B", commit).split("\n", 1)
    if committer != WHO["EMAIL"] or not body.rstrip().endswith(SIGN):  # not if someone amended it
        fail(f"the branch {name} is there and was not made by this tool: rename or delete it")
    if place:
        fail(f"the branch {name} is checked out in {place}: switch to another branch first")


def names_of(entries: list[dict]) -> list[str]:
    """milestone/1998-lenet, milestone/2012-alexnet, …: a year, so that newcomers rename none."""
    return [f"milestone/{entry['year']}-{entry['folder']}" for entry in entries]


def build(commit: str, entries: list[dict]) -> dict[str, str]:
    """Stores a commit for each milestone on top of the one before; returns them by branch."""
    made, parent = {}, None
    folders = [entry["folder"] for entry in entries]
    for place, (name, entry) in enumerate(zip(names_of(entries), entries, strict=True)):
        tree = write_tree(commit, set(folders[place + 1 :]))
        parent = write_commit(tree, parent, message(commit, entry), entry["year"], place)
        made[name] = parent
    return made


def build_only(commit: str, entries: list[dict], folder: str) -> dict[str, str]:
    """Stores a commit with one folder, those that it imports, and common, without history."""
    folders = [entry["folder"] for entry in entries]
    if folder not in folders:
        fail(unknown("milestone", folder, folders))
    entry = entries[folders.index(folder)]
    tree = write_tree(commit, set(folders) - needed(commit, folder, folders))
    new = write_commit(tree, None, message(commit, entry), entry["year"], folders.index(folder))
    return {f"milestone/only-{folder}": new}


def main(argv: list[str] | None = None) -> dict[str, str]:
    """Makes or moves the branches; returns their commits by name."""
    parser = argparse.ArgumentParser(
        "python tools/branches.py", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "--only", metavar="FOLDER", help="one branch: this folder, what it builds on, and common"
    )
    parser.error = lambda text: fail(text.removeprefix("argument "))
    args = parser.parse_args(argv)
    commit = git("rev-parse", "--verify", "HEAD^{commit}").strip()
    top = git("rev-parse", "--show-toplevel").strip()
    if not os.path.samefile(top, ROOT):
        fail(f"{ROOT} is no repository of its own, but a part of {top}: clone it to have branches")
    entries = entries_of(commit)
    alone = args.only is not None
    made = build_only(commit, entries, args.only) if alone else build(commit, entries)
    branches = present()
    for name, new in made.items():
        check(name, branches, new)
    orders = [
        f"update refs/heads/{name} {new} {branches.get(name, ('0' * 40,))[0]}\n"
        for name, new in made.items()
    ]
    git("update-ref", "--stdin", stdin="".join(orders))  # all or none
    for name, new in made.items():
        print(f"{new[:10]} {name}")
    return made


if __name__ == "__main__":
    main()
