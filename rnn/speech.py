"""Spoken words with a class each: digits, Speech Commands, the user's own WAV files.

train, val, test = load(args, dev)
for features, lengths, classes in run.progress(train.batches(args.batch_size, train=True)): ...

A recording becomes a picture of its sound: every 10 ms the loudness, in decibels, of some bands
of frequencies that are as wide as the ear hears them (log-mel features).
"""

import argparse
import collections
import dataclasses
import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common import cli, counted, fail
from common.data.batches import Draw
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
from rnn.batches import Sequences, check_classes, classes_in, split_by, with_test

WINDOW, HOP = 0.025, 0.010  # seconds
DEEPEST = 80.0  # decibels below the loudest place of a recording: what is softer is as soft
HIGHEST_RATE = 16_000  # of --sample-rate, if nobody asks for another: speech needs no more
NUM_MASKS, MOST_MASKED = 2, 0.2  # Park et al. 2019, Table 1 (m_F, m_T of LD; p of LibriSpeech's)
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
    """Spoken digits (Jackson et al. 2018), DIGIT_SPEAKER_INDEX.wav: 0 to 4 are the test part."""
    root = find(args, "fsdd/recordings", "free-spoken-digit-dataset/recordings", "recordings")
    named = ((path, re.fullmatch(r"(\d)_(\w+)_(\d+)\.wav", path.name)) for path in root.iterdir())
    found = sorted((path, *match.groups()) for path, match in named if match)
    rows = {part: [row for row in found if (int(row[3]) < 5) == (part == "test")]
            for part in ("train", "test")}  # fmt: skip
    if not all(rows.values()):
        fail(f"{root} holds no recordings for both parts: wanted are files such as 7_jackson_32.wav"
             " and, for the test, indices of 0 to 4")  # fmt: skip
    classes = [str(digit) for digit in range(10)]
    parts = {p: labelled([row[0] for row in r], [row[1] for row in r], classes)
             for p, r in rows.items()}  # fmt: skip
    speakers = len({row[2] for row in found})
    return Source(classes, parts, f"{counted(speakers, 'speaker')}, who are in both parts")


def speech_commands(args: argparse.Namespace) -> Source:
    """Speech Commands (Warden 2018): a folder a word, SPEAKER_nohash_N.wav.

    The parts are those of validation_list.txt and testing_list.txt; where these are missing, a
    fifth of the speakers is the validation and a fifth the test part.
    """
    root = find(args, "speech_commands_part", "SpeechCommands/speech_commands_v0.02",
                "speech_commands_v0.02", "speech_commands")  # fmt: skip
    words = [folder for folder in folders_in(root) if not folder.name.startswith("_")]
    files = [path for folder in words for path in wav_files(folder)[0]]
    if not files:
        fail(f"{root} holds no folders of WAV files")
    lists = [root / "validation_list.txt", root / "testing_list.txt"]
    labels = [path.parent.name for path in files]
    classes = classes_in(labels)
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
            fail(f"{root} holds no recordings of the {name} part")
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
    known = args.stored.get("dataset", {}).get("classes", [])
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
        classes = classes or classes_in((name for _, name in rows), known)
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


# ---------------------------------------------------------------------- sound


def read_wav(path: Path) -> tuple[Tensor, int]:
    """The samples (N,), float32 from -1 to 1, stereo made mono, and how many a second has.

    Whole numbers of 8, 16, 24 and 32 bits, or floats. A file that is none, of another coding, that
    is cut short or holds no sound ends in one line that names it.
    """
    from scipy.io import wavfile

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            rate, data = wavfile.read(path)
        except OSError as error:
            fail(f"can't read {path}: {error.strerror or error}")
        except Exception as error:  # scipy has no kind of its own for what is no WAV
            fail(f"{path} is not a WAV file that can be read ({error or type(error).__name__})")
    for warning in caught:  # a file written into a pipe says that it is endless
        cut = re.search(r"finished at (\d+) bytes, expected (\d+)", str(warning.message))
        if cut and int(cut[2]) < 2**32 - 1:
            fail(f"{path} is cut short: it has {cut[1]} of {cut[2]} bytes")
    samples = torch.from_numpy(data.astype("float32"))
    if data.dtype.kind == "u":
        samples = samples / 128 - 1
    elif data.dtype.kind == "i":
        samples = samples / 2.0 ** (8 * data.dtype.itemsize - 1)
    samples = samples.mean(1) if samples.dim() > 1 else samples
    if not len(samples) or rate < 1:
        fail(f"{path} holds no sound: {counted(len(samples), 'sample')} at {rate} Hz")
    if not samples.isfinite().all():
        fail(f"{path} holds samples that are not finite numbers")
    return samples, rate


def log_mel(samples: Tensor, rate: int, facts: dict) -> Tensor:
    """Samples (N,) at `rate` as features (T, F), not normalised yet: decibels about their mean.

    So it doesn't matter how loud a recording is; silence is zero everywhere.
    """
    from torchaudio.functional import resample

    new = facts["sample_rate"]
    samples = samples[: int(facts["max_seconds"] * rate) + 1]
    ratio = Fraction(new, rate).limit_denominator(1000)  # keeps the filter's table small
    if ratio != 1:
        samples = resample(samples, ratio.denominator, max(1, ratio.numerator))
    to_mel = mel_transform(new, facts["mels"])
    short = to_mel.n_fft - len(samples)
    power = to_mel(torch.nn.functional.pad(samples, (0, max(0, short)))).T  # (T, F)
    level = 10 * power.clamp(min=1e-30).log10()
    level = level.clamp(min=level.max() - DEEPEST)
    return level - level.mean()


TRANSFORMS: dict[tuple[int, int], torch.nn.Module] = {}  # made once a rate


def mel_transform(rate: int, mels: int) -> torch.nn.Module:
    """Power of mel bands by the short-time Fourier transform."""
    from torchaudio.transforms import MelSpectrogram

    if (rate, mels) not in TRANSFORMS:
        window = max(2, round(WINDOW * rate))
        n_fft = 2 ** (window - 1).bit_length() * 2
        if mels > n_fft // 8:
            fail(f"--mels {mels}: at {rate:,} samples a second there are {n_fft // 8} at most")
        kind = dict(win_length=window, hop_length=max(1, round(HOP * rate)), n_mels=mels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bands narrower than the transform's lines
            TRANSFORMS[rate, mels] = MelSpectrogram(rate, n_fft, **kind, f_min=20.0)
    return TRANSFORMS[rate, mels]


def normalise(features: Tensor, facts: dict) -> Tensor:
    """Features (T, F) with mean 0 and deviation 1 in each band, as over the training part."""
    return (features - torch.tensor(facts["mean"])) / torch.tensor(facts["std"])


def read_recording(path: str | Path, facts: dict) -> Tensor:
    """One WAV file as a network of these `facts` takes it: (T, F)."""
    samples, rate = read_wav(Path(path).expanduser())
    return normalise(log_mel(samples, rate, facts), facts)


def spec_augment(
    freq_mask: int, time_mask: int, features: Tensor, lengths: Tensor, draw: Draw
) -> Tensor:
    """Covers bands and moments of features (B, T, F) with zeros, which are their mean (Park et al.
    2019, Sec. 2): twice 0 to `freq_mask` bands, and 0 to `time_mask` moments. Time isn't warped,
    which mattered least there (Sec. 5.1)."""
    batch, steps, bands = features.shape
    f, f0, t, t0 = draw.uniform(0, 1, 4, NUM_MASKS).cpu().unbind(1)  # (B, NUM_MASKS)
    longest = (lengths * MOST_MASKED).floor().clamp(max=time_mask)[:, None]
    for share, begin, most, size in (
        (f, f0, torch.tensor(min(freq_mask, bands)), torch.full((batch, 1), bands)),
        (t, t0, longest, lengths[:, None]),
    ):
        width = (share * (most + 1)).floor()
        first = (begin * (size - width + 1)).floor()[..., None]  # (B, NUM_MASKS, 1)
        along = bands if most.dim() == 0 else steps
        places = torch.arange(along)
        covered = ((places >= first) & (places < first + width[..., None])).any(1)
        covered = covered[:, None, :] if most.dim() == 0 else covered[:, :, None]
        features = features.masked_fill(covered.to(features.device), 0.0)
    return features


def load(args: argparse.Namespace, dev: Device) -> tuple[Sequences, Sequences | None, Sequences]:
    """The training, validation (None without --val) and test part of `--data`.

    Rate and normalisation are those of the training part, or of the checkpoint that the run goes
    on with.
    """
    source = open_source(args, dev, SETS)
    known, notes, parts = args.stored.get("dataset", {}), [source.note], source.parts
    check_classes(args.data, source.classes, known.get("classes", []))
    classes = known.get("classes") or source.classes
    facts = {"task": "speech", "classes": classes, "mels": args.mels}
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
    torch.set_num_threads(
        1
    )  # too little work to share: on a busy machine two took 13 times as long
    heard = progress_bar(sounds, dev, "hearing them", len(sounds))
    features = [log_mel(samples, rate, facts) for samples, rate in heard]
    torch.set_num_threads(threads)
    silent = [path for path, (samples, _) in zip(paths, sounds, strict=True) if not samples.any()]
    if silent:
        notes.append(f"{counted(len(silent), 'recording')} silent, the first {silent[0]}")
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
    say_parts(args, dev, sets, "recordings", named(classes), more)
    for note in filter(None, notes):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]
