"""Spoken words with a class each: digits, Speech Commands, the user's own WAV files.

train, val, test = load(args, dev)
for features, lengths, classes in run.progress(train.batches(args.batch_size, train=True)): ...
"""

import argparse
import collections
import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common import cli, counted, fail
from common.data.classes import check_classes, classes_in, known_classes, split_by, with_test
from common.data.sources import (
    Source,
    folders_in,
    named,
    open_source,
    part_folders,
    readable,
    say_parts,
)
from common.device import Device
from common.run import progress_bar
from rnn.batches import Sequences
from rnn.sound import MOST_MASKED, NUM_MASKS, WINDOW, log_mel, normalise, read_wav, spec_augment

HIGHEST_RATE = 16_000  # of --sample-rate, if nobody asks for another: speech needs no more
OTHER_SOUND = {".mp3", ".flac", ".ogg", ".m4a", ".opus", ".aac", ".wma", ".aif", ".aiff"}
FIXED = ["sample_rate", "mels", "max_seconds"]  # by a checkpoint


def add_flags(parser: cli.Parser) -> None:
    """The flags of `load`."""
    add, kind = parser.add_argument, dict(metavar="N", group="data")
    text, none = "samples a second, to which all is brought", "as most files, at most 16,000"
    add("--sample-rate", type=cli.integer(1000), **kind, none=none, help=text)
    text = "bands of frequencies, of equal width on the mel scale"
    add("--mels", type=cli.integer(2), **kind, default=40, help=text)
    text = "of a recording; what is more is cut off"
    add("--max-seconds", type=cli.positive, metavar="S", default=10.0, group="data", help=text)
    text = f"SpecAugment: at most N neighbouring bands covered, {NUM_MASKS} times; 0 is none"
    add("--freq-mask", type=cli.integer(0), metavar="N", default=8, help=text)
    text = f"the same of moments of 10 ms, {MOST_MASKED:.0%} of a recording at most"
    add("--time-mask", type=cli.integer(0), metavar="N", default=10, help=text.replace("%", "%%"))


@dataclasses.dataclass
class Recordings:
    """WAV files and a class for each."""

    paths: list[Path]
    labels: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: Tensor) -> "Recordings":
        """The examples at `indices`."""
        return Recordings([self.paths[i] for i in indices.tolist()], self.labels[indices])


def labelled(paths: Sequence[Path], names: Sequence[str], classes: Sequence[str]) -> Recordings:
    """Files with the places of their classes' names."""
    return Recordings(list(paths), torch.tensor([classes.index(name) for name in names]))


def find(args: argparse.Namespace, *folders: str) -> Path:
    """The first of `folders` that is there, below --data-dir."""
    root = Path(args.data_dir).expanduser()
    there = (root / folder for folder in folders if (root / folder).is_dir())
    return next(there, None) or fail(
        f"{folders[0]} is not in {root}: name the folder that holds it with --data-dir, or take "
        "--data pydocs, which needs no files"
    )


def fsdd(args: argparse.Namespace) -> Source:
    """Spoken digits (Jackson et al. 2018), DIGIT_SPEAKER_INDEX.wav: 0 to 4 are the test set."""
    root = find(args, "fsdd/recordings", "free-spoken-digit-dataset/recordings", "recordings")
    named = ((path, re.fullmatch(r"(\d)_(\w+)_(\d+)\.wav", path.name)) for path in root.iterdir())
    found = sorted((path, *match.groups()) for path, match in named if match)
    rows = {part: [row for row in found if (int(row[3]) < 5) == (part == "test")]
            for part in ("train", "test")}  # fmt: skip
    if not all(rows.values()):
        fail(f"{root} holds no recordings for both parts: wanted are files such as 7_jackson_32.wav"
             " and, for the test, indices of 0 to 4")  # fmt: skip
    classes = classes_in((row[1] for row in found), known_classes(args))
    parts = {p: labelled([row[0] for row in r], [row[1] for row in r], classes)
             for p, r in rows.items()}  # fmt: skip
    speakers = len({row[2] for row in found})
    return Source(classes, parts, f"{counted(speakers, 'speaker')}, who are in both parts")


def speech_commands(args: argparse.Namespace) -> Source:
    """Speech Commands (Warden 2018): a folder a word, SPEAKER_nohash_N.wav.

    The parts are those of validation_list.txt and testing_list.txt; where these are missing, a
    fifth of the speakers is the validation and a fifth the test set.
    """
    root = find(args, "speech_commands_part", "SpeechCommands/speech_commands_v0.02",
                "speech_commands_v0.02", "speech_commands")  # fmt: skip
    words = [folder for folder in folders_in(root) if not folder.name.startswith("_")]
    files = [path for folder in words for path in wav_files(folder)[0]]
    if not files:
        fail(f"{root} holds no folders of WAV files")
    lists = [root / "validation_list.txt", root / "testing_list.txt"]
    labels = [path.parent.name for path in files]
    classes = classes_in(labels, known_classes(args))
    everything = labelled(files, labels, classes)
    if all(path.is_file() for path in lists):
        listed = [set(path.read_text("utf-8").split()) for path in lists]
        places = [path.relative_to(root).as_posix() for path in files]
        part_of = ["val" if p in listed[0] else "test" if p in listed[1] else "train"
                   for p in places]  # fmt: skip
        note = "the parts are the official lists"
    else:
        speakers = [path.name.partition("_nohash_")[0] for path in files]
        rest, test = split_by(speakers)
        rest = rest[torch.cat(split_by([speakers[i] for i in rest.tolist()], 0.25))]
        count = len(split_by([speakers[i] for i in rest.tolist()], 0.25)[0])
        part_of = ["train"] * len(files)
        for name, indices in (("val", rest[count:]), ("test", test)):
            for i in indices.tolist():
                part_of[i] = name
        note = f"{counted(len(set(speakers)), 'speaker')}, each of them in one part"
    parts = {}
    for name in ("train", "val", "test"):
        indices = [i for i, part in enumerate(part_of) if part == name]
        if not indices:
            fail(f"{root} holds no recordings of the {name} set")
        parts[name] = everything.take(torch.tensor(indices))
    return Source(classes, parts, note)


def wav_files(folder: Path) -> tuple[list[Path], int]:
    """The WAV files at any depth, and how many others there are of sound."""
    files = [p for p in sorted(folder.rglob("*")) if not p.name.startswith(".") and p.is_file()]
    others = sum(path.suffix.lower() in OTHER_SOUND for path in files)
    return [path for path in files if path.suffix.lower() in (".wav", ".wave")], others


def own(args: argparse.Namespace) -> Source:
    """The user's own WAV files, a folder a class, perhaps below train/, val/, test/."""
    root = Path(args.data.partition(":")[2]).expanduser()
    if not root.is_dir():
        fail(f"--data {args.data}: there is no such folder; name one with a folder of WAV files "
             "for each class, or take --data pydocs, which needs no files")  # fmt: skip
    found, notes = part_folders(root, args.data)
    parts, others, classes = {}, 0, []
    for part, folder in sorted((found or {"train": root}).items(), key=lambda p: p[0] != "train"):
        files = {readable(path.name): wav_files(path) for path in folders_in(folder)}
        others += sum(count for _, count in files.values())
        rows = [(path, name) for name, (paths, _) in files.items() for path in paths]
        if not rows:
            fail(f"--data {args.data}: {folder} holds no folder of WAV files for each class"
                 + (f" ({counted(others, 'file')} of other sound: convert with ffmpeg)" if others
                    else ""))  # fmt: skip
        empty = [name for name, (paths, _) in files.items() if not paths]
        if part == "train" and empty:
            fail(f"--data {args.data}: {folder / empty[0]} holds no WAV files: remove or fill it")
        classes = classes or classes_in((name for _, name in rows), known_classes(args))
        if strange := sorted({name for _, name in rows} - set(classes)):
            fail(f"--data {args.data}: {folder.name}/ has the class {strange[0]!r}, which train/ "
                 "has not")  # fmt: skip
        parts[part] = labelled([path for path, _ in rows], [name for _, name in rows], classes)
    if others:
        notes.append(f"{counted(others, 'file')} of other sound left out: make WAV of them")
    if len(classes) == 1:
        notes.append("with one class there is nothing to tell apart: every answer is right")
    notes += with_test(parts, args.data, parts["train"].paths)
    return Source(classes, parts, "; ".join(notes))


SETS = {"fsdd": fsdd, "speech-commands": speech_commands, "wav": own}


def read_recording(path: str | Path, facts: dict) -> tuple[Tensor, list[str]]:
    """One WAV file as a network of these `facts` takes it, (T, F), and what there is to say."""
    samples, rate = read_wav(Path(path).expanduser())
    notes = [] if samples.any() else [f"{path} is silent"]
    if len(samples) < WINDOW * rate:
        notes.append(f"{path} holds {counted(len(samples), 'sample')}, under {WINDOW:g} seconds")
    if len(samples) > facts["max_seconds"] * rate:
        seconds = f"{facts['max_seconds']:g} of {len(samples) / rate:.1f} seconds"
        notes.append(f"{path}: cut at {seconds}")
    return normalise(log_mel(samples, rate, facts), facts), notes


def load(args: argparse.Namespace, dev: Device) -> tuple[Sequences, Sequences | None, Sequences]:
    """The training, validation (None without --val) and test set of `--data`.

    Rate and normalisation are those of the training set, or of the checkpoint that the run goes
    on with.
    """
    source = open_source(args, dev, SETS)
    known, notes, parts = args.stored.get("dataset", {}), [source.note], source.parts
    check_classes(args.data, source.classes, known_classes(args))
    facts = {"task": "speech", "classes": source.classes, "mels": args.mels}
    facts |= {"max_seconds": args.max_seconds, "sample_rate": args.sample_rate}
    facts |= {name: known[name] for name in (*FIXED, "mean", "std") if name in known}
    paths = [path for part in parts.values() for path in part.paths]
    read = map(read_wav, paths)
    sounds = list(progress_bar(read, dev, "reading recordings", len(paths)))
    rates = collections.Counter(rate for _, rate in sounds)
    common = collections.Counter(rate for _, rate in sounds[: len(parts["train"])]).most_common(1)
    facts["sample_rate"] = facts["sample_rate"] or min(common[0][0], HIGHEST_RATE)
    if strange := {rate: n for rate, n in sorted(rates.items()) if rate != facts["sample_rate"]}:
        those = ", ".join(f"{n:,} of {rate:,} Hz" for rate, n in strange.items())
        notes.append(f"recordings brought to {facts['sample_rate']:,} Hz: {those}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # too little to share: two took 13 times as long on a busy machine
    heard = progress_bar(sounds, dev, "hearing them", len(sounds))
    features = [log_mel(samples, rate, facts) for samples, rate in heard]
    torch.set_num_threads(threads)
    silent = [path for path, (samples, _) in zip(paths, sounds, strict=True) if not samples.any()]
    if silent:
        notes.append(f"{counted(len(silent), 'recording')} silent, the first {silent[0]}")
    short = [p for p, (s, rate) in zip(paths, sounds, strict=True) if len(s) < WINDOW * rate]
    if short:
        names = f"{WINDOW:g} seconds, the first {short[0]}"
        notes.append(f"{counted(len(short), 'recording')} of less than {names}")
    cut = sum(len(s) > facts["max_seconds"] * rate for s, rate in sounds)
    if cut:
        notes.append(f"{counted(cut, 'recording')} cut at {facts['max_seconds']:g} seconds")
    if "mean" not in facts:
        std, mean = torch.std_mean(torch.cat(features[: len(parts["train"])]), 0, correction=0)
        facts |= {"mean": mean.tolist(), "std": std.clamp(min=1e-3).tolist()}
    augment = partial(spec_augment, args.freq_mask, args.time_mask)
    sets, rest = {}, iter(features)
    for part, content in parts.items():
        own = [normalise(next(rest), facts) for _ in range(len(content))]
        names = [str(path) for path in content.paths]
        sets[part] = Sequences(part, own, content.labels, names, facts, dev, augment)
    seconds = sum(len(samples) / rate for samples, rate in sounds)
    more = f"{seconds / 60:.1f} minutes, {facts['mels']} bands at {facts['sample_rate']:,} Hz"
    say_parts(args, dev, sets, "recordings", named(source.classes), more)
    for note in filter(None, notes):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]
