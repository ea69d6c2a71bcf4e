"""What --help shows for every recipe is what would run; flags are spelt one way."""

import argparse
import importlib
import re

import pytest
import toy
from conftest import MILESTONES

from common import cli

SHARED = [
    "model",
    "data",
    "data-dir",
    "limit",
    "val",
    "epochs",
    "batch-size",
    "lr",
    "seed",
    "device",
    "precision",
    "compile",
    "accumulate",
    "clip",
    "patience",
    "fsdp",
    "run-dir",
    "resume",
    "evaluate",
    "max-steps",
    "paper",
    "quiet",
    "tensorboard",
    "save-minutes",
]


def parser_of(train, argv):
    """The parser of a script, and the flags that it makes of `argv`."""
    made = []

    class Kept(cli.Parser):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "Parser", Kept)
        args = train.parse_args(argv)
    return made[0], args


def shown_in(text):
    """The default of each flag in the text of a help."""
    entries = re.split(r"^  (?:-h, )?(?=--)", text, flags=re.M)[1:]
    found = {}
    for entry in entries:
        entry = " ".join(re.split(r"^[^\s-].*:$", entry, flags=re.M)[0].split())
        flag = re.match(r"--([\w-]+)", entry)[1].replace("-", "_")
        default = re.search(r"\(default: ((?:[^()]|\([^()]*\))*)\)$", entry)
        found[flag] = default and default[1]
    return found


def check(train, argv, capsys):
    """Compares help and flags; returns the flags that the help leaves out."""
    with pytest.raises(SystemExit) as caught:
        train.parse_args([*argv, "--help"])
    assert not caught.value.code
    found = shown_in(capsys.readouterr().out)
    parser, args = parser_of(train, argv)
    found.pop("help")
    for action in parser._actions:
        if action.dest in found:
            value = getattr(args, action.dest)
            value = str(value) if action.dest == "run_dir" and value else value
            shown = " ".join(parser.shown(action, value).split())
            assert found[action.dest] == shown, f"--{action.dest} {argv}"
    missing = {a.dest for a in parser._actions} - found.keys() - {"help"}
    assert missing == parser.nothing.keys(), argv
    return missing


@pytest.mark.parametrize("folder", ["toy", *MILESTONES])
def test_help_shows_what_runs(folder, capsys):
    train = toy if folder == "toy" else importlib.import_module(f"{folder}.train")
    models = toy.MODELS if train is toy else importlib.import_module(f"{folder}.model").MODELS
    parser, _ = parser_of(train, [])
    kinds = [name if ":" not in name else name.split(":")[0] + ":x,y" for name in parser.data]
    for paper in ([], ["--paper"]):
        for model in models:
            check(train, [*paper, "--model", model], capsys)
    seen = False
    for model in models:
        for data in kinds:
            try:
                argv = ["--model", model, "--data", data]
                train.parse_args(argv)
            except SystemExit:  # no pair, as generative's moons with any model but one
                capsys.readouterr()
                continue
            check(train, argv, capsys)
            seen = True
    assert seen


@pytest.mark.parametrize("folder", ["toy", *MILESTONES])
def test_flags_are_spelt_one_way(folder):
    """Yes or no is --flip and --no-flip; None has words; nothing is said twice."""
    train = toy if folder == "toy" else importlib.import_module(f"{folder}.train")
    parser, args = parser_of(train, [])
    names = {name for a in parser._actions for name in a.option_strings}
    shared = {f"--{name}" for name in SHARED if name != "epochs" or "--steps" not in names}
    assert shared <= names
    for action in parser._actions:
        assert action.help, action.dest
        assert "(default" not in action.help or action.dest in vars(args)
        assert not set(action.choices or ()) >= {"yes", "no"}, action.dest
        if action.nargs == 0:
            assert isinstance(action, argparse.BooleanOptionalAction) or action.dest == "help"


def test_help_after_typed_and_stored_flags(capsys):
    toy.main(["--quiet", "--run-dir", "run", "--max-steps", "1", "--lr", "0.25"])
    check(toy, ["--resume", "--run-dir", "run"], capsys)
    check(toy, ["--lr", "0.125", "--paper"], capsys)
    for argv, value in ((["--resume", "--run-dir", "run"], "0.25"), (["--lr", "0.5"], "0.5")):
        with pytest.raises(SystemExit):
            toy.parse_args([*argv, "--help"])
        assert shown_in(capsys.readouterr().out)["lr"] == value
