"""What a trained network makes of your own inputs: rows of a table, images, or questions.

    python mlp/sample.py rows.csv              # a network of a table: predictions.csv
    python mlp/sample.py photo.jpg scans/      # a network of images: a table, and a picture
    python mlp/sample.py Colin aunt            # the family trees: who are Colin's aunts?
    python mlp/sample.py 011110 011011         # symmetry
    python mlp/sample.py                       # the test set, or pictures of the weights

The rows need the columns of the training table but its target, in any order; others are kept. An
image may have any size and mode, dark ink on light or light on dark.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from common import cli, counted, fail, unknown
from common.data.files import find_images
from common.data.images import load_images
from common.data.ink import classify, show_mistakes
from common.device import Device
from common.folder import keep_what_is_there, make_folder, open_run
from mlp.model import MODELS, LogisticNet
from mlp.plot import draw_families, draw_symmetry
from mlp.tables import encode, load_table, read_source, read_table
from mlp.train import build, evaluate, kind_of
from mlp.worlds import PEOPLE, RELATIONS, relatives

SHOWN = 10  # rows that are printed


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.sample_parser("mlp", __doc__)
    parser.add_argument("inputs", nargs="*", help="a CSV file, images, or questions")
    return parser.parse_args(argv)


def open_model(args: argparse.Namespace) -> tuple[nn.Module, cli.Flags, dict, Device, Path]:
    """The trained network, the flags of its training, facts of its data, a device, and the folder
    for what is made."""
    checkpoint, flags, dev, out = open_run(args, "mlp", MODELS)
    model = build(flags, checkpoint["dataset"])
    model.load_state_dict(checkpoint["model"])
    return model.to(dev.device).eval(), flags, checkpoint["dataset"], dev, out


@torch.inference_mode()
def predict(rows, model: nn.Module, facts: dict, dev: Device) -> dict[str, list]:
    """New columns for rows of a table: the answer, and the probability of each class."""
    inputs, notes = encode(rows, facts["columns"])
    for note in [*rows.attrs.get("notes", []), *notes]:
        print(f"note: {note}", file=sys.stderr)
    outputs = torch.cat([model(part.to(dev.device)).float().cpu() for part in inputs.split(10_000)])
    target, classes = facts["target"], facts["classes"]
    if not classes:
        numbers = outputs[:, 0].double() * facts["target_std"] + facts["target_mean"]
        return {f"predicted {target}": [f"{n:.6g}" for n in numbers.tolist()]}
    shares = outputs.softmax(1)
    found = {f"predicted {target}": [classes[i] for i in shares.argmax(1).tolist()]}
    for place, name in enumerate(classes):
        found[f"p({name})"] = [f"{p:.4f}" for p in shares[:, place].tolist()]
    return found


def predict_table(
    inputs: list[str], model: nn.Module, flags: cli.Flags, facts: dict, dev: Device, out: Path
) -> dict:
    """Writes predictions.csv, the rows with answers beside them; of the test set without inputs.

    Returns the new columns.
    """
    if len(inputs) > 1:
        fail(f"the network takes one CSV file at a time, not {len(inputs)}")
    picture = "confusion.png" if facts["classes"] else "predicted.png"
    keep_what_is_there(out, "predictions.csv", *([] if inputs else [picture]))
    if inputs:
        rows = read_table(Path(inputs[0]).expanduser())
    else:
        rows = read_source(flags)[0].parts["test"].table
    found = predict(rows, model, facts, dev)
    make_folder(out)
    table = {name: rows[name].fillna("").tolist() for name in rows.columns}
    for name, values in found.items():
        free = name
        while free in table:  # a column of the user's
            free += " (new)"
        table[free] = values
    with open(out / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    answers = f"predicted {facts['target']}"
    for line, answer in list(zip(rows.index, found[answers], strict=True))[:SHOWN]:
        print(f"line {line}: {facts['target']} {answer}" if inputs else f"row {line}: {answer}")
    more = len(rows) - SHOWN
    print(f"… and {more:,} more" if more > 0 else "", end="\n" if more > 0 else "")
    if not inputs:
        test = load_table(flags, dev)[2]
        metrics = evaluate(model, test, dev, out / picture)
        print("  ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
    print(f"wrote {out / 'predictions.csv'}, {counted(len(rows), 'row')}")
    return found


def lowered(names: Sequence[str]) -> list[str]:
    """Names in lower case."""
    return [name.lower() for name in names]


@torch.inference_mode()
def answer_families(words: list[str], model: LogisticNet, dev: Device) -> dict[str, list]:
    """Who the network thinks is meant by pairs of words, a person and a relationship."""
    if len(words) % 2:
        fail(f"a question is a person and a relationship, as Colin aunt: {words[-1]!r} is alone")
    found = {}
    for person, relation in zip(words[::2], words[1::2], strict=True):
        inputs = torch.zeros(1, 36, device=dev.device)
        for word, kind, known, begin in (
            (person, "person", PEOPLE, 0),
            (relation, "relationship", RELATIONS, 24),
        ):
            if word.lower() not in lowered(known):
                fail(unknown(kind, word, known))
            inputs[0, begin + lowered(known).index(word.lower())] = 1
        activities = model(inputs).sigmoid()[0]
        order = activities.argsort(descending=True).tolist()
        on = [i for i in order if activities[i] > 0.5]
        found[f"{person} {relation}"] = [PEOPLE[i] for i in on]
        shown = ", ".join(f"{PEOPLE[i]} {activities[i]:.2f}" for i in on or order[:2])
        place = lowered(PEOPLE).index(person.lower())
        truth = [
            PEOPLE[p + place // 12 * 12] for p in sorted(relatives(place % 12, relation.lower()))
        ]
        answer = shown if on else f"nobody (nearest: {shown})"
        print(f"{person}, {relation}: {answer}; truth: {', '.join(truth) or 'nobody'}")
    return found


@torch.inference_mode()
def answer_symmetry(words: list[str], model: LogisticNet, dev: Device) -> dict[str, bool]:
    """Whether the network takes patterns of six zeros and ones for symmetrical."""
    found = {}
    for word in words:
        if len(word) != 6 or set(word) - {"0", "1"}:
            fail(f"a pattern is six zeros and ones, as 011110, not {word!r}")
        inputs = torch.tensor([[float(c) for c in word]], device=dev.device)
        activity = float(model(inputs).sigmoid())
        found[word] = activity > 0.5
        print(f"{word}: {'symmetrical' if activity > 0.5 else 'not symmetrical'} ({activity:.3f})")
    return found


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Answers for the inputs, or shows the test set or the weights; returns what it found."""
    args = parse_args(argv)
    model, flags, facts, dev, out = open_model(args)
    kind = kind_of(flags.data)
    files = find_images([Path(path) for path in args.inputs]) if kind == "image" else []
    if kind == "table":
        return predict_table(args.inputs, model, flags, facts, dev, out)
    if files:
        keep_what_is_there(out, "predictions.png")
        found = classify(files, model, facts, dev, flags.data, out)
        return dict(zip(map(str, files), found, strict=True))
    if args.inputs:
        ask = answer_symmetry if flags.model == "symmetry" else answer_families
        return ask(args.inputs, model, dev)
    pictures = {"symmetry": ["symmetry.png"], "family_trees": ["people.png", "relations.png"]}
    keep_what_is_there(out, *pictures.get(flags.model, ["mistakes.png"]))
    make_folder(out)
    if kind == "image":
        test = load_images(flags, dev, 28, 1, 0, facts["mean"], facts["std"])[2]
        return {"mistakes": show_mistakes(model, test, out)}
    made = draw_families(model, out) if flags.model == "family_trees" else ["symmetry.png"]
    if flags.model == "symmetry":
        draw_symmetry(model, out / made[0])
    print(f"wrote {', '.join(made)} in {out}")
    return {"pictures": made}


if __name__ == "__main__":
    main()
