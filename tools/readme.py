"""Writes README.md's tables from milestones.toml, the code and the headings.

    python tools/readme.py                # rewrites what stands between the markers
    python tools/readme.py --check        # says what is stale, and changes nothing

A marker is a line `<!-- NAME: made by tools/readme.py -->`, and `<!-- end -->` ends the part.
Parameters are counted on the model itself, lines found by the code that milestones.toml names.
"""

import argparse
import functools
import importlib
import re
from pathlib import Path

from common import fail
from tools.milestones import ROOT, parse

MARKED = re.compile(r"(<!-- (\w+): made by tools/readme\.py -->\n)(.*?)(<!-- end -->)", re.S)


@functools.cache
def count_parameters(folder: str, name: str, **arguments) -> int:
    """The number of learnt parameters of a model, built without memory where that is possible."""
    import torch

    models = importlib.import_module(f"{folder}.model").MODELS
    if name not in models:
        fail(f"milestones.toml: {folder} has no model {name}")
    try:
        with torch.device("meta"):
            model = models[name](**arguments)
    except NotImplementedError:  # an initialisation that needs numbers
        model = models[name](**arguments)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def line_of(entry: dict, root: Path) -> int:
    """The number of the line in which an idea's or technique's code stands, from 1."""
    path = root / entry["file"]
    if not path.is_file():
        fail(f"milestones.toml: {entry['name']}: there is no {entry['file']}")
    lines = path.read_text(encoding="utf-8").splitlines()

    def found(code: str) -> list[int]:
        return [number for number, line in enumerate(lines, 1) if code in line]

    where, code = found(entry["code"]), f"`{entry['code']}`"
    if "after" in entry:
        above = found(entry["after"])
        if len(above) != 1:
            fail(f"{entry['file']}: `{entry['after']}` ({entry['name']}) stands in "
                 f"{len(above)} lines, not in one")  # fmt: skip
        where, code = [n for n in where if n > above[0]][:1], f"{code} below `{entry['after']}`"
    if len(where) != 1:
        lines = f"the lines {', '.join(map(str, where))}: name more of one" if where else "no line"
        fail(f"{entry['file']}: {code} ({entry['name']}) stands in {lines}")
    return where[0]


def table(head: str, rows: list[str]) -> str:
    """A table with its head; no rows, no table."""
    heads = f"| {head} |\n|{' --- |' * (head.count('|') + 1)}\n"
    return heads + "".join(f"| {row} |\n" for row in rows) if rows else ""


def milestone_row(entry: dict) -> str:
    """A milestone: paper, what it advanced, parameters, result and picture."""
    folder = entry["folder"]
    size = count_parameters(folder, entry["headline"], **entry.get("arguments", {}))
    picture = f"{folder}/{entry['picture']}"
    return (
        f"{entry['year']} | [{folder}]({folder}/README.md) | [{entry['title']}]({entry['paper']}) "
        f'| {entry["advanced"]} | {size:,} | {entry["result"]} | <a href="{picture}">'
        f'<img src="{picture}" width="160" alt="{entry["alt"]}"></a>'
    )


def code_row(entry: dict, root: Path) -> str:
    """An idea or technique, with a link to its line."""
    file, number = entry["file"], line_of(entry, root)
    names = [entry[key] for key in ("name", "first") if key in entry]
    code = entry["code"].replace("|", "\\|")
    return " | ".join([*names, f"[{file}:{number}]({file}#L{number})", f"`{code}`"])


def anchor(heading: str) -> str:
    """What GitHub calls a heading in a link."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def contents(readme: str) -> str:
    """The sections of a README as a list of links."""
    without_code = re.sub(r"^```.*?^```", "", readme, flags=re.S | re.M)
    headings = re.findall(r"^## (.+)$", without_code, re.M)
    return "".join(f"- [{heading}](#{anchor(heading)})\n" for heading in headings)


def fill(readme: str, parts: dict[str, str]) -> str:
    """A README with `parts` between their markers; other marked parts stay."""
    return MARKED.sub(lambda old: f"{old[1]}{parts.get(old[2], old[3])}{old[4]}", readme)


def update(readme: str, tables: dict[str, list[dict]], root: Path = ROOT) -> str:
    """A README with all its marked parts made anew, from the entries of `tables`.

    Ends in one line if a part has no marker; a table without rows needs none.
    """
    milestones = "year | milestone | paper | what it advanced | parameters | our result | picture"
    ideas, techniques = ([code_row(e, root) for e in tables[t]] for t in ("idea", "technique"))
    parts = {
        "contents": contents(readme),
        "milestones": table(milestones, [milestone_row(e) for e in tables["milestone"]]),
        "ideas": table("idea | first | where | line", ideas),
        "techniques": table("technique | where | line", techniques),
    }
    marked = {name for _, name, _, _ in MARKED.findall(readme)}
    if lacking := [name for name, part in parts.items() if part and name not in marked]:
        fail(f"README.md has no marker for {lacking[0]}, which tools/readme.py makes")
    if foreign := marked - parts.keys():
        fail(f"README.md: nothing is made for the marker {foreign.pop()}")
    return fill(readme, parts)


def stale(readme: str, new: str) -> list[str]:
    """The names of the parts that differ."""
    pairs = zip(MARKED.findall(readme), MARKED.findall(new), strict=True)
    return [then[1] for then, now in pairs if then != now]


def main(argv: list[str] | None = None) -> None:
    """Rewrites README.md, or checks it: then status 1 if a part is stale."""
    parser = argparse.ArgumentParser("python tools/readme.py", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="say what is stale, change nothing")
    parser.error = lambda text: fail(text.removeprefix("argument "))
    args = parser.parse_args(argv)
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    tables = parse((ROOT / "milestones.toml").read_text(encoding="utf-8"))
    for entry in tables["milestone"]:
        if not (ROOT / entry["folder"]).is_dir():
            fail(f"milestones.toml names {entry['folder']}, which is no folder")
    new = update(readme, tables)
    if not args.check:
        path.write_text(new, encoding="utf-8")
    elif names := stale(readme, new):
        print(f"README.md is stale ({', '.join(names)}): run python tools/readme.py")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
