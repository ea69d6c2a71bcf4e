"""The frozen parts: an image encoder of clip/train.py and a language model of gpt/train.py.

    vision, language = find_parts(args, dev, train, named)   # those of runs, or trained now
    model = build(facts)                                      # of a checkpoint's facts

Whoever is missing is trained by its own folder's script, in a process of its own, as no folder
imports another's script: CLIP on the images and their captions, the GPT on the texts alone. They
lie in runs/flamingo-parts, and are trained once for the same data and flags.
"""

import csv
import dataclasses
from pathlib import Path

from torch import nn

from clip.model import CLIP
from common import cli, fail, seed_of
from common.checkpoint import read_checkpoint
from common.claims import finished, run_script
from common.data.captions import CaptionSet
from common.device import Device
from common.folder import make_folder, write_text
from flamingo.data import Words, text_for_language
from flamingo.model import MODELS, Flamingo
from gpt.model import GPT1, GPT2, LanguageModel

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"clip": ROOT / "clip" / "train.py", "gpt": ROOT / "gpt" / "train.py"}
PLACE, CACHE = Path("runs", "flamingo-parts"), Path("data", "cache")
CHUNKS = 24_000  # entries of the text that a language model is trained on
CONTEXT = 256  # tokens: eight examples and a question about shapes are 160


@dataclasses.dataclass
class Trained:
    """A part of a run: its weights, and the facts that are needed to build it."""

    source: str
    facts: dict
    state: dict


# ---------------------------------------------------------------------- reading


def read_part(name: str, flag: str, folder: str) -> Trained:
    """The checkpoint of a run's folder or a file; what is none of `folder`'s ends in one line."""
    path = Path(name).expanduser()
    if not path.exists():
        fail(f"--{flag} {name}: there is no such run or checkpoint")
    path = path / "last.pt" if path.is_dir() else path
    content = read_checkpoint(path)
    flags, facts = content["config"]["flags"], content.get("dataset") or {}
    if flags.get("milestone") != folder:
        fail(f"--{flag} {name} is a checkpoint of {flags.get('milestone')}: name one of "
             f"{folder}/train.py")  # fmt: skip
    if "network" not in facts or (folder == "gpt" and "classes" in facts):
        fail(f"--{flag} {name} is not of {folder}/train.py, but of another script there")
    return Trained(str(name), facts, content["model"])


def read_vision(name: str) -> Trained:
    """The image encoder of a run of clip: the weights of `visual`, its sizes, and its inputs."""
    found = read_part(name, "vision", "clip")
    prefix = "visual."
    state = {k.removeprefix(prefix): v for k, v in found.state.items() if k.startswith(prefix)}
    facts = {key: found.facts[key] for key in ("network", "mean", "std")}
    return Trained(found.source, facts, state)


def read_language(name: str) -> Trained:
    """The language model of a run of gpt, and its vocabulary."""
    found = read_part(name, "language", "gpt")
    facts = dict(found.facts)
    network = facts.pop("network")
    Words(facts)  # or ends in one line
    return Trained(found.source, dict(network=network, vocabulary=facts), found.state)


# ---------------------------------------------------------------------- building


def make_vision(network: dict) -> nn.Module:
    """CLIP's image encoder of these sizes."""
    return CLIP(**network).visual


def make_language(network: dict) -> LanguageModel:
    """The GPT of these sizes, without dropout."""
    sizes = dict(network)
    make = GPT1 if sizes.pop("family") == "gpt1" else GPT2
    if make is GPT1:
        sizes = {key: size for key, size in sizes.items() if key not in ("windows", "d_head")}
    else:
        sizes["windows"] = tuple(sizes.get("windows") or [None])
    return make(**sizes, dropout=0.0)


def build(facts: dict) -> Flamingo:
    """The network that a checkpoint's facts are of; its parts have no weights of anyone's yet."""
    parts = make_vision(facts["vision"]), make_language(facts["language"])
    return MODELS[facts["network"]["model"]](*parts, **facts["network"]["settings"])


def around(vision: Trained, language: Trained, name: str, settings: dict) -> tuple[Flamingo, dict]:
    """A new Flamingo around trained parts, and the facts to build it again."""
    vocabulary = language.facts["vocabulary"]
    settings = settings | dict(image_token=Words(vocabulary).mark)
    facts = dict(
        vision=vision.facts["network"],
        language=language.facts["network"],
        vocabulary=vocabulary,
        network=dict(model=name, settings=settings),
    )
    model = build(facts)
    for part, trained in ((model.vision_encoder, vision), (model.lang_encoder, language)):
        try:
            part.load_state_dict(trained.state)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            fail(f"{trained.source} doesn't fit the sizes that it says it has ({reason})")
    return model, facts


# ---------------------------------------------------------------------- training


def named_parts(args: cli.Flags, dev: Device) -> dict[str, Trained]:
    """The parts that --vision and --language name, read before anything else is done. Ends in one
    line where one that isn't named can't be trained."""
    readers = {"vision": read_vision, "language": read_language}
    named = {k: read(name) for k, read in readers.items() if (name := getattr(args, k))}
    missing = " and ".join(f"--{flag}" for flag in readers if flag not in named)
    if missing and args.model != "flamingo_small":
        fail(f"{args.model} takes trained parts: name runs of clip/train.py and gpt/train.py with "
             f"{missing} (flamingo_small trains its own)")  # fmt: skip
    if missing and dev.world > 1:
        fail("the parts are trained by one process: run this without torchrun once, or name runs "
             f"with {missing}")  # fmt: skip
    return named


def find_parts(
    args: cli.Flags, dev: Device, train: CaptionSet, named: dict[str, Trained]
) -> tuple[Trained, Trained]:
    """The image encoder and the language model: those that are named, or trained now."""
    vision, language = named.get("vision"), named.get("language")
    if not vision:
        vision = read_vision(str(train_part("clip", vision_flags(args, train), args, dev)))
    if not language:
        language = read_language(str(train_part("gpt", language_flags(args, train), args, dev)))
    return vision, language


def train_part(folder: str, argv: list[str], args: cli.Flags, dev: Device) -> Path:
    """Runs a folder's script with these flags, unless that is done; returns the run's folder."""
    place = PLACE / f"{folder}-{seed_of(*argv) % 16**6:06x}"
    if not finished(place):
        what = {"clip": "the image encoder, by clip", "gpt": "the language model, by gpt"}
        dev.say(f"first {what[folder]}, in {place}")
        where = ["--run-dir", str(place), "--resume", "--device", args.device]
        run_script(SCRIPTS[folder], [*argv, *where, *["--quiet"] * args.quiet])
    return place


def shared_flags(args: cli.Flags) -> list[str]:
    """What parts have of the flags: seed, precision, and where --max-steps ends all."""
    found = ["--seed", str(args.seed), "--precision", args.precision]
    return found + (["--max-steps", str(args.max_steps)] if args.max_steps else [])


def vision_flags(args: cli.Flags, train: CaptionSet) -> list[str]:
    """Of clip/train.py: on the same images, with their captions."""
    if args.data.startswith("vqa"):
        data = ["--data", f"captions:{table_of(train)}"]
    else:
        data = ["--data", args.data.partition(":")[0], "--data-dir", args.data_dir]
    if args.limit:
        data += ["--limit", str(args.limit)]
    size = ["--size", str(args.size), "--epochs", str(args.vision_epochs), "--val", "0"]
    return ["--model", "clip_small", *data, *size, *shared_flags(args)]


def table_of(train: CaptionSet) -> Path:
    """A table of the training images, each with its questions and answers as captions."""
    rows = [
        [str(Path(path).resolve()), f"{entry.question} {entry.answer}".strip()]
        for path, some in zip(train.paths, train.captions, strict=True)
        for entry in some
    ]
    path = CACHE / f"flamingo-{seed_of(str(rows)) % 16**8:08x}.csv"
    make_folder(CACHE)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "caption"], *rows])
    return path


def language_flags(args: cli.Flags, train: CaptionSet) -> list[str]:
    """Of gpt/train.py: on the texts of the training set."""
    text = text_for_language(train, args, CHUNKS)
    path = CACHE / f"flamingo-{seed_of(text) % 16**8:08x}.txt"
    make_folder(CACHE)
    write_text(path, text)
    sizes = ["--vocab-size", "512", "--context", str(CONTEXT), "--val", "0"]
    steps = ["--steps", str(args.language_steps), "--every", str(args.language_steps)]
    how = ["--batch-size", "1024", "--lr", "3e-3", "--weight-decay", "0.1", "--dropout", "0"]
    data = ["--model", "gpt_tiny", "--data", f"text:{path}"]
    return [*data, *sizes, *steps, *how, *shared_flags(args)]
