"""What milestones.toml holds, for the tools and the tests: one reader, one set of complaints."""

import sys
from pathlib import Path

from common import fail

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
KEYS = {  # of each table: those that have to be there, and those that may
    "milestone": (
        "folder year title authors paper predecessor "
        "task advanced result picture alt headline small",
        "arguments",
    ),
    "idea": ("name first file code", "after"),
    "technique": ("name file code", "after"),
}
TASKS = (
    "image classification", "segmentation", "detection", "translation", "graphs", "generation",
    "tables", "sequences", "images and text",
)  # fmt: skip


def parse(text: str) -> dict[str, list[dict]]:
    """The text of milestones.toml as lists of entries: "milestone", "idea", "technique".

    Ends in one line if the text is damaged, or an entry has a wrong key or task.
    """
    try:
        tables = tomllib.loads(text)
        tables["milestone"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        fail(f"milestones.toml is damaged ({error})")
    for table, (needed, allowed) in KEYS.items():
        for entry in tables.setdefault(table, []):
            name = f"the {table} {entry.get('folder') or entry.get('name')}"
            if lacking := set(needed.split()) - entry.keys():
                fail(f"milestones.toml: {name} lacks {', '.join(sorted(lacking))}")
            if foreign := entry.keys() - {*needed.split(), *allowed.split()}:
                fail(f"milestones.toml: {name} has {', '.join(sorted(foreign))}, read by nobody")
            if entry.get("task", TASKS[0]) not in TASKS:
                fail(f"milestones.toml: the task of {name} is none of {', '.join(TASKS)}")
    return tables


def entries(table: str = "milestone", root: Path = ROOT) -> list[dict]:
    """The entries of one table, in the order of the file: "milestone", "idea" or "technique"."""
    return parse((root / "milestones.toml").read_text(encoding="utf-8"))[table]


def small_models(task: str = "", root: Path = ROOT) -> dict[str, list[str]]:
    """By folder, of those that are there, the models a laptop trains: of a task, or all."""
    return {
        entry["folder"]: entry["small"]
        for entry in entries(root=root)
        if task in ("", entry["task"]) and (root / entry["folder"]).is_dir()
    }
