"""Time series to forecast: windows of the past and what follows, and three simple forecasts.

train, val, test = load(args, dev)
for past, lengths, ahead in run.progress(train.batches(args.batch_size, train=True)): ...

Parts follow one another in time. A window of the validation or test set may reach back into the
part before, as one that forecasts knows the past; what it is to forecast lies in its own part.
"""

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import cli, counted, fail
from common.data.batches import Batches, Draw
from common.data.sources import Source, open_source, say_parts
from common.data.tables import no_column
from common.device import Device
from rnn.times import Series, read_series

FILES = {
    "airline": "airline-passengers.csv",
    "sunspots": "monthly-sunspots.csv",
    "etth1": "ETTh1.csv",
}
WINDOWS = {  # of the past, ahead
    "airline": dict(window=24, horizon=12, segment=12, target="Passengers"),
    "sunspots": dict(window=264, horizon=12, segment=12, target="Sunspots"),
    "etth1": dict(window=336, horizon=24, segment=24, target="OT"),
}
SUNSPOT_CYCLE = 132  # months: about eleven years
ETT_MONTHS = (12, 4, 4)  # of 30 days, as in Zhou et al. 2021 and since
SHARES = (0.7, 0.1, 0.2)
METRICS = ["mse", "mae", "mse_units", "mae_units"]
FEW_STEPS = 300
MOST_RIDGE = 50_000  # windows that the regression is fitted to
ALPHAS = [0.1, 1.0, 10.0, 100.0, 1000.0]
FIXED = ["target", "inputs", "horizon", "window", "segment", "relative", "time_column", "season"]


def add_flags(parser: cli.Parser) -> None:
    """The flags of `load`; WINDOWS has values for some sets."""
    add, switch, kind = parser.add_argument, parser.add_switch, dict(group="data")
    column = dict(metavar="COLUMN", group="data")
    add("--target", **column, none="the last of numbers", help="what to forecast; all is all")
    text = "what the network sees of the past: the target, or all columns of numbers"
    add("--inputs", choices=["target", "all"], default="target", help=text, **kind)
    steps = dict(type=cli.integer(1), metavar="N", group="data")
    fit = "(at most what there is room for, unless typed)"
    add("--window", **steps, default=96, help=f"steps of the past that it sees {fit}")
    add("--horizon", **steps, default=24, help=f"steps ahead, forecast all at once {fit}")
    text = "steps of the past that the network sees at a time, so that it has fewer to remember"
    none = "a season, if the window has two of them"
    add("--segment", **steps, none=none, help=text)
    add("--time-column", **column, none="found", help="where the times stand")
    text = "steps after which things repeat, for the forecast of a season ago"
    add("--season", **steps, none="told from the times' step", help=text)
    text = "count from the last value that is seen, so that the level doesn't matter"
    switch("--relative", default=True, help=text, **kind)


@dataclasses.dataclass
class Starts:
    """The windows of a part: the row of the first step ahead of each."""

    series: Series
    rows: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> "Starts":
        """The windows at `indices`."""
        return Starts(self.series, self.rows[indices])


def path_of(args: argparse.Namespace) -> Path:
    """The file that --data names."""
    name, _, path = args.data.partition(":")
    if path:
        return Path(path).expanduser()
    root = Path(args.data_dir).expanduser()
    for folder in (root / "timeseries", root):
        if (folder / FILES[name]).is_file():
            return folder / FILES[name]
    fail(f"{FILES[name]} is not in {root / 'timeseries'}: name the folder that holds timeseries "
         "with --data-dir, or take --data pydocs, which needs no files")  # fmt: skip


def read(args: argparse.Namespace) -> Source:
    """The series, cut into parts in order of time."""
    series = read_series(path_of(args), args.time_column)
    count = len(series.values)
    if args.data == "etth1":
        sizes, rule = [months * 30 * 24 for months in ETT_MONTHS], "12, 4, 4 months of 30 days"
    else:
        sizes = [int(count * share) for share in SHARES]
        sizes[1] = count - sizes[0] - sizes[2]
        rule = "70, 10, 20% of the time"
    if min(sizes) < 1:
        fail(f"{series.path} has {count:,} rows: too few for a training, a validation and a test "
             "part; at least 5 are needed")  # fmt: skip
    if sum(sizes) > count:
        fail(f"{series.path} has {count:,} rows, not the {sum(sizes):,} of {rule}")
    season = args.season or (SUNSPOT_CYCLE if args.data == "sunspots" else series.season)
    window, horizon, segment, note = lengths_of(args, series.path, sizes, season)
    parts, begin = {}, 0
    for name, size in zip(("train", "val", "test"), sizes, strict=True):
        first = begin + (window if name == "train" else 0)
        parts[name] = Starts(series, torch.arange(first, begin + size - horizon + 1))
        begin += size
    rule += f" ({count - begin:,} rows after these are left out)" if begin < count else ""
    facts = dict(rows=sizes, window=window, horizon=horizon, segment=segment, season=season)
    return Source([], parts, "; ".join(filter(None, [rule, note])), facts)


def lengths_of(
    args: argparse.Namespace, path: Path, sizes: list[int], season: int
) -> tuple[int, int, int, str]:
    """Window, horizon and segment: a checkpoint's, or as typed, or at most what the parts have room
    for; and what to say of it."""
    names = ("window", "horizon", "segment")
    known = args.stored.get("dataset", {})
    window, horizon, segment = (known.get(name, getattr(args, name)) for name in names)
    ours = known or not args.data.startswith("series:")  # sets have lengths that fit
    free, note = [name for name in names if not (ours or name in args.chosen)], ""
    if "horizon" in free and horizon > min(sizes) // 2:
        horizon = max(1, min(sizes) // 2)
        note = f"so short a series has room for --horizon {horizon}"
    if "window" in free:
        window = max(1, min(window, (sizes[0] - horizon) // 2))
    fits = 2 * season <= window and ("window" in free or window % season == 0)
    segment = segment or (season if fits else 1)
    if "window" in free:  # all segments are whole
        window = max(segment, window // segment * segment)
    if horizon > min(sizes) or window + horizon > sizes[0]:
        fits = horizon < sizes[0] and horizon <= min(sizes)
        most = f"--window {sizes[0] - horizon}" if fits else f"--horizon {max(1, min(sizes) // 2)}"
        counts = ", ".join(f"{size:,}" for size in sizes)
        fail(f"--window {window} and --horizon {horizon} are too long for {path}: training, "
             f"validation and test have {counts} rows; take {most} at most")  # fmt: skip
    if rest := window % segment:
        more = window - rest + segment
        fail(f"--window {window} is no multiple of --segment {segment}: take {more}")
    return window, horizon, segment, note


SETS = {"airline": read, "sunspots": read, "etth1": read, "series": read}


# ---------------------------------------------------------------------- windows


class Windows:
    """One part of a series: `part` is "train", "val" or "test".

    `facts` are plain values for the checkpoint: `columns` that are seen and their `mean` and `std`
    in the training set, `targets` among them, `window`, `horizon`, `segment`, `season`, `step`,
    `relative`.
    """

    def __init__(self, part: str, starts: Starts, facts: dict, dev: Device):
        self.part, self.series, self.starts = part, starts.series, starts.rows
        self.facts, self.dev = facts, dev
        self.values = scaled(self.series, facts).to(dev.device)  # (T, C)
        self.places = [facts["columns"].index(name) for name in facts["targets"]]
        self.filled = torch.from_numpy(filled(self.series, facts)).to(dev.device)  # (T, K)

    def __len__(self) -> int:
        return len(self.starts)

    def batches(self, batch_size: int, train: bool = False) -> Batches:
        """Batches of the past (B, window / segment, segment * C), lengths (B,) on the CPU, all
        alike, and what is ahead (B, horizon, K), both scaled."""

        def fetch(parts: list[Tensor], _draws: Iterable[Draw], _epoch: int) -> Iterator:
            return map(self.examples, parts)

        return Batches(len(self), batch_size, self.dev, train, fetch)

    def examples(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The chosen windows as a batch: past, lengths, ahead."""
        past, ahead = self.rows(indices)
        past, length = in_segments(past, self.facts)
        return past, torch.full((len(indices),), length), ahead

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The past (B, window, C) of the chosen windows, and what is ahead (B, horizon, K).

        But for training that is NaN where the file has no number.
        """
        window, horizon = self.facts["window"], self.facts["horizon"]
        rows = self.starts[indices, None] + torch.arange(-window, horizon)
        values = self.values[rows.to(self.dev.device)]  # (B, window + horizon, C)
        if self.facts["relative"]:
            values = values - values[:, window - 1 : window]
        ahead = values[:, window:, self.places]
        if self.part != "train" and self.filled.any():
            ahead = ahead.masked_fill(self.filled[rows[:, window:].to(self.dev.device)], torch.nan)
        return values[:, :window], ahead

    def in_units(self, index: int) -> tuple[list[str], Tensor, Tensor]:
        """A window as people read it: times (window + horizon), past (window, K) and truth
        (horizon, K) of the targets in their own units, NaN where the file has none."""
        window, start = self.facts["window"], int(self.starts[index])
        rows = range(start - window, start + self.facts["horizon"])
        places = [self.series.columns.index(name) for name in self.facts["targets"]]
        values = torch.from_numpy(self.series.values[rows.start : rows.stop, places]).float()
        truth = values[window:].masked_fill(self.filled[start : rows.stop].cpu(), torch.nan)
        return self.series.label(rows), values[:window], truth


def in_segments(past: Tensor, facts: dict) -> tuple[Tensor, int]:
    """The past (B, window, C) as the network sees it, some steps at a time, and how many times."""
    past = past.unflatten(1, (-1, facts["segment"])).flatten(2)  # (B, window / segment, ...)
    return past, past.shape[1]


def scaled(series: Series, facts: dict) -> Tensor:
    """The columns that a network of these facts sees (T, C), float32, in its scale."""
    values = np.stack([series.values[:, series.columns.index(c)] for c in facts["columns"]], 1)
    return torch.from_numpy((values - facts["mean"]) / facts["std"]).float()


def filled(series: Series, facts: dict) -> np.ndarray:
    """Where the file has no number of the targets: (T, K)."""
    return series.filled[:, [series.columns.index(name) for name in facts["targets"]]]


def to_units(outputs: Tensor, last: Tensor, facts: dict) -> Tensor:
    """Forecasts (..., horizon, K) in the targets' units; `last` (..., 1, K) are the last values
    of the past, in units."""
    places = [facts["columns"].index(name) for name in facts["targets"]]
    mean, std = (torch.tensor(facts[name]).to(outputs)[places] for name in ("mean", "std"))
    return outputs * std + (last.to(outputs) if facts["relative"] else mean)


class Ahead(NamedTuple):
    """The last window of a file, to go on from."""

    inputs: Tensor  # (1, window / segment, segment * C), scaled
    lengths: Tensor  # (1,)
    past: Tensor  # (window, K), of the targets, in their units
    times: list[str]  # window + horizon of them, the last not in the file
    notes: list[str]


def last_window(path: str | Path, facts: dict, time_column: str | None = None) -> Ahead:
    """The newest window of a series for a network of these facts; `to_units(outputs,
    ahead.past[-1:], facts)` is what it forecasts."""
    series = read_series(Path(path).expanduser(), time_column)
    check_columns(series, facts["columns"], "the checkpoint's column")
    notes = [*series.notes, check_step(series, facts)]
    for name in facts["columns"]:
        if series.filled[-1, series.columns.index(name)]:
            fail(f"{path}: the newest {name}, of {series.label([len(series.values) - 1])[0]}, is "
                 "missing: fill it in, or end the file with the row before")  # fmt: skip
    count, window = len(series.values), facts["window"]
    if count < window:
        fail(f"{path} has {count:,} rows: the network sees a window of {window:,}")
    inputs = scaled(series, facts)[None, -window:]
    if facts["relative"]:
        inputs = inputs - inputs[:, -1:]
    inputs, length = in_segments(inputs, facts)
    places = [series.columns.index(name) for name in facts["targets"]]
    past = torch.from_numpy(series.values[-window:, places]).float()
    times = series.label(range(count - window, count + facts["horizon"]))
    return Ahead(inputs, torch.tensor([length]), past, times, list(filter(None, notes)))


def check_step(series: Series, facts: dict) -> str:
    """Fails where a network was trained on other steps than the series has; without times nobody
    knows, which is what is returned to say."""
    ours, theirs = series.step_name, facts["step"]
    if ours == theirs:
        return ""
    if "row" in ours or "row" in theirs:
        return f"the network was trained on steps of {theirs}; here they are of {ours}"
    fail(f"{series.path} has steps of {ours}: the network was trained on steps of {theirs}")


def check_columns(series: Series, wanted: Iterable[str], flag: str) -> None:
    """Fails for a column that isn't there, or holds no numbers."""
    for name in wanted:
        if name == series.time_name:
            fail(f"{flag} {name}: {series.path}: that is where the times stand; there are "
                 f"{', '.join(series.columns[:20])}")  # fmt: skip
        if name in series.dropped:
            fail(f"{flag} {name}: {series.path}: {series.dropped[name]}")
        if name not in series.columns:
            no_column(series.path, flag, name, series.columns)


def load(args: argparse.Namespace, dev: Device) -> tuple[Windows, Windows | None, Windows]:
    """The training, validation (None with --val 0) and test set of `--data`, in order of time.

    The scale is that of the training set, or of the checkpoint that the run goes on with.
    """
    source = open_source(args, dev, SETS)
    series, known = source.parts["train"].series, args.stored.get("dataset", {})
    facts = {name: source.facts[name] for name in ("window", "horizon", "segment", "season")}
    facts |= {"task": "series", "relative": args.relative, "step": series.step_name}
    notes = [source.note, *series.notes]
    if known:
        facts |= {name: known[name] for name in ("columns", "targets", "mean", "std")}
        check_columns(series, facts["columns"], "the checkpoint's column")
        notes.append(check_step(series, known))
    else:
        targets = [series.columns[-1] if args.target is None else args.target]
        if targets == ["all"] and "all" not in series.columns:
            targets = list(series.columns)
        check_columns(series, targets, "--target")
        facts["targets"] = targets
        wanted = series.columns if args.inputs == "all" else targets
        first = series.values[: source.facts["rows"][0]]
        rows = {name: first[:, series.columns.index(name)] for name in wanted}
        flat = [name for name, values in rows.items() if not spread(values)]
        for name in flat:
            if name in targets:
                others = (c for c, v in zip(series.columns, first.T, strict=True) if spread(v))
                hint = f": try --target {other}" if (other := next(others, None)) else ""
                fail(f"{series.path}: {name} is {rows[name][0]:g} in the whole training set: "
                     f"there is nothing to forecast{hint}")  # fmt: skip
            notes.append(f"{name} is constant in the training set: left out")
        facts["columns"] = [name for name in wanted if name not in flat]
        used = [rows[name] for name in facts["columns"]]
        facts |= {"mean": [float(v.mean()) for v in used], "std": [float(v.std()) for v in used]}
        if args.target is None and len(series.columns) > 1:
            notes.append(f"--target is not given: {targets[0]}, the last column of numbers")
    known_rows = torch.from_numpy(~filled(series, facts).all(1))
    for name, part in source.parts.items() if not known_rows.all() else ():
        some = part.rows[:, None] + torch.arange(facts["horizon"])
        source.parts[name] = part.take(known_rows[some].any(1).nonzero().flatten())
        if not len(source.parts[name]):
            fail(f"{series.path}: the {name} set has no number of {', '.join(facts['targets'])}")
    if few := few_steps(args, len(source.parts["train"])):
        notes.append(few)
    if series.dropped:
        notes.append(f"no columns of numbers: {', '.join(list(series.dropped)[:12])}")
    sets = {part: Windows(part, starts, facts, dev) for part, starts in source.parts.items()}
    seen = f"{facts['window']} seen" + f", {facts['segment']} at a time" * (facts["segment"] > 1)
    more = [f"{len(series.values):,} steps of {facts['step']}", f"season {facts['season']}"]
    more.append(f"{seen}, {facts['horizon']} forecast")
    say_parts(args, dev, sets, "windows", f"of {', '.join(facts['targets'])[:200]}", *more)
    for note in filter(None, notes):
        dev.say(f"note: {note}")
    return sets["train"], sets.get("val"), sets["test"]


def few_steps(args: argparse.Namespace, windows: int) -> str:
    """What to say where so short a training moves the weights only a few times."""
    epochs, batch_size = getattr(args, "epochs", None), getattr(args, "batch_size", 1)
    steps = max(1, windows // batch_size) * (epochs or FEW_STEPS)
    if steps >= FEW_STEPS or getattr(args, "evaluate", None):
        return ""
    more = f"--epochs {-(-FEW_STEPS * epochs // steps)}"
    make = f"{counted(windows, 'window')} make{'s' if windows == 1 else ''}"
    return f"{make} {counted(steps, 'step')} of training: {more} would be {FEW_STEPS}"


def spread(values: np.ndarray) -> bool:
    """Whether numbers differ by more than rounding."""
    return bool(values.std() > 1e-9 * max(1e-20, np.abs(values).max()))


# ---------------------------------------------------------------------- measures, simple forecasts


def error_sums(outputs: Tensor, targets: Tensor, facts: dict) -> Tensor:
    """Sums over forecasts (B, horizon, K), scaled: of `METRICS`, and how many they are: (5,).

    Where the target is NaN nothing is counted.
    """
    error = outputs.detach().double() - targets.double()
    count = (~targets.isnan()).double()
    error = error.masked_fill(targets.isnan(), 0)
    places = [facts["columns"].index(name) for name in facts["targets"]]
    units = error * torch.tensor(facts["std"], dtype=error.dtype)[places].to(error.device)
    sums = [error.square(), error.abs(), units.square(), units.abs(), count]
    return torch.stack([value.sum() for value in sums])


def as_metrics(sums: Tensor) -> dict[str, float]:
    """Means by the names of `METRICS`, from `error_sums`."""
    *totals, count = sums.tolist()
    return {name: total / count for name, total in zip(METRICS, totals, strict=True)}


def baselines(train: Windows, val: Windows | None, test: Windows) -> dict[str, dict[str, float]]:
    """What `METRICS` forecasts without a network reach on the test set.

    The last value; the value one season ago (of what is known by then); and ridge regression of
    all steps ahead on the same window, its penalty chosen on validation (1 without).
    """
    rules = {"the last value": last_value}
    first = int(min(test.starts))
    if 1 < test.facts["season"] <= first:
        rules[f"one season ago ({test.facts['season']})"] = season_ago
    rules["ridge regression"] = ridge(train, val)
    return {name: as_metrics(measure(test, rule)) for name, rule in rules.items()}


def measure(windows: Windows, rule) -> Tensor:
    """`error_sums` of a rule, `rule(windows, indices, past) -> (B, horizon, K)`, on all windows."""
    total = torch.zeros(5, dtype=torch.float64)
    for indices in torch.arange(len(windows)).split(1024):
        past, ahead = windows.rows(indices)
        total += error_sums(rule(windows, indices, past).to(ahead), ahead, windows.facts).cpu()
    return total


def last_value(windows: Windows, indices: Tensor, past: Tensor) -> Tensor:
    """The last value that was seen, at all steps ahead."""
    return past[:, -1:, windows.places].expand(-1, windows.facts["horizon"], -1)


def season_ago(windows: Windows, indices: Tensor, past: Tensor) -> Tensor:
    """The value one season before, or more where that isn't known yet."""
    season, ahead = windows.facts["season"], torch.arange(windows.facts["horizon"])
    rows = windows.starts[indices, None] + ahead - season * (ahead // season + 1)
    values = windows.values[rows.to(windows.values.device)][..., windows.places]
    if windows.facts["relative"]:
        last = windows.values[(windows.starts[indices] - 1).to(windows.values.device)]
        values = values - last[:, None, windows.places]
    return values


def ridge(train: Windows, val: Windows | None):
    """A rule that scikit-learn's ridge regression has learned from the training set."""
    from sklearn.linear_model import Ridge

    some = torch.arange(len(train))[:: -(-len(train) // MOST_RIDGE)]
    past, ahead = train.rows(some)
    x, y = (values.flatten(1).double().cpu().numpy() for values in (past, ahead))

    def fitted(alpha: float):
        model = Ridge(alpha=alpha).fit(x, y)

        def rule(windows: Windows, indices: Tensor, past: Tensor) -> Tensor:
            found = model.predict(past.flatten(1).double().cpu().numpy())
            return torch.from_numpy(found.reshape(len(indices), windows.facts["horizon"], -1))

        return rule

    rules = [fitted(alpha) for alpha in (ALPHAS if val else [1.0])]
    return min(rules, key=lambda rule: float(measure(val, rule)[0])) if val else rules[0]


def as_table(rows: Mapping[str, Mapping[str, float]], facts: dict) -> str:
    """Metrics by name as lines of text: scaled, and in the units of the targets."""
    width = max(len("forecast"), *map(len, rows))
    heads = "".join(f"  {text:>11}" for text in ("MSE", "MAE", "MSE, units", "MAE, units"))
    lines = [f"{'forecast':{width}}" + heads]
    for name, row in rows.items():
        lines.append(f"{name:{width}}" + "".join(f"  {row[metric]:11.4g}" for metric in METRICS))
    return "\n".join(lines)
