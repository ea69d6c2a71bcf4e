"""Writes a trained network to a file that is used without this repository, and checks it there.

    python tools/export.py runs/lenet/lenet5-digits --to onnx
    python tools/export.py runs/gpt/gpt_small-pydocs/best.pt --to torchexport --length 100
    python tools/export.py runs/maskrcnn/maskrcnn_small-shapes --to safetensors

onnx runs in ONNX Runtime and many others, torchexport (.pt2) in torch alone, safetensors are the
weights. The batch may have any size. What has to be known to use it (how inputs are prepared,
classes, vocabulary, model, versions) is in the file's metadata. Before it is kept, the file answers
random inputs in batches of several sizes, and is refused if an answer differs from the checkpoint's
by more than 1e-4 (of values above 1: of their size). Needs pip install -e ".[export]".
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import operator
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import cli, counted, fail
from common.checkpoint import read_checkpoint
from tools.forms import Form, Refused, form_of
from tools.milestones import entries
from tools.recurrent import traceable
from tools.trained import Trained, checkpoint_of, milestone_of, open_trained

ENDINGS = {"onnx": ".onnx", "safetensors": ".safetensors", "torchexport": ".pt2"}
NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "safetensors": ("safetensors",)}
RUNNERS = {
    "onnx": "ONNX Runtime",
    "safetensors": "the weights read back",
    "torchexport": "the file",
}
LIMIT = 1e-4  # of differences
TRACED = (3, 13)  # rows and length of the example that is traced: sizes that nothing else has
CASES = ((1, 5), (3, 9), (7, 4))  # with which the file is compared
TIMED, ROUNDS = (8, 12), 7  # rows and length whose time is taken, and how often

ADAPTIVE = torch.ops.aten.adaptive_max_pool2d.default

Run = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.OneLineParser("python tools/export.py RUN|CHECKPOINT", __doc__)
    add = parser.add_argument
    add("path", type=Path, metavar="RUN|CHECKPOINT", help="a run's folder, or a checkpoint")
    add("--to", choices=list(ENDINGS), required=True, help="the file's format")
    text = "where to (default: beside the checkpoint, named as the model)"
    add("--out", type=Path, metavar="FILE", help=text)
    add("--overwrite", action="store_true", help="replace a file that is there already")
    text = "tokens that a network that writes has written (default: its own)"
    add("--length", type=cli.integer(1), metavar="N", help=text)
    return parser.parse_args(argv)


def file_for(args: argparse.Namespace, checkpoint: Path, model: str) -> Path:
    """Where the file goes; ends in one line if something is there, or it can't be."""
    ending = ENDINGS[args.to]
    path = args.out or checkpoint.with_name(f"{model}{ending}")
    if path.suffix != ending:
        fail(f"--out {path}: a file of {args.to} ends in {ending}")
    if path.is_dir():
        fail(f"--out {path} is a folder: name a file")
    if path.exists() and not args.overwrite:
        fail(f"{path} is there already: add --overwrite, or name another file with --out")
    if not path.parent.is_dir():
        fail(f"--out {path}: there is no folder {path.parent}")
    return path


def check_packages(to: str) -> None:
    """Ends in one line if a format's packages aren't installed."""
    for name in NEEDS.get(to, ()):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            fail(f'--to {to} needs the package {name}: pip install -e ".[export]"')


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, what tracing says of its own workings isn't shown."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), \
                contextlib.redirect_stderr(said):  # fmt: skip
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---------------------------------------------------------------------- what is known


def facts_of(folder: str, trained: Trained, form: Form | None) -> dict[str, str]:
    """The file's metadata: text by name, of what isn't text as JSON."""
    entry = next((e for e in entries() if e["folder"] == folder), {})
    config = trained.content["config"]
    known: dict[str, Any] = {k: v for k, v in trained.facts.items() if is_plain(v)}
    if "network" in known:
        known.setdefault("classes", [])
    known |= dict(milestone=folder, model=trained.flags.model, task=entry.get("task", ""))
    known |= dict(paper=entry.get("paper", ""), data=trained.flags.data)
    known |= dict(epoch=trained.content.get("epoch"), step=trained.content.get("step"))
    here = {"python": platform.python_version(), "torch": str(torch.__version__)}
    known |= dict(trained_with=config.get("versions", {}), exported_with=here)
    known |= dict(commit=config.get("commit") or "")
    if form:
        known |= form.more | dict(inputs=form.note, outputs=list(form.outputs))
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in known.items()}


def is_plain(value: Any) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


# ---------------------------------------------------------------------- writing


def example(form: Form, rows: int, length: int) -> dict[str, Tensor]:
    """Random inputs of these sizes, or of the largest that the network takes; always the same."""
    sizes = {name: most for axes in form.axes.values() for name, most in axes.values()}
    draw = torch.Generator().manual_seed(rows * 1000 + length)
    return form.make(rows, min(length, sizes.get("length", length)), draw)


def trace(form: Form) -> torch.export.ExportedProgram:
    """The form as a program of torch.export. Raises Refused with the reason if it can't be."""
    inputs, dims = example(form, *TRACED), {}
    for axes in form.axes.values():
        for name, most in axes.values():
            dims.setdefault(name, torch.export.Dim(name, min=1, max=most))
    shapes = tuple({axis: dims[name] for axis, (name, _) in form.axes.get(key, {}).items()}
                   for key in inputs)  # fmt: skip
    if takes_any(form.module):
        shapes = (shapes,)
    reason = ""
    for strict in (False, True):  # what asks for len(x) is traced for any batch by the second alone
        try:
            with quiet(), traceable(), torch.no_grad():
                return torch.export.export(
                    form.module, tuple(inputs.values()), dynamic_shapes=shapes, strict=strict
                )
        except Exception as error:  # of very many kinds
            reason = reason or reason_of(error)
    raise Refused(f"torch.export can't trace it: {reason}")


def reason_of(error: Exception) -> str:
    """The first line of what is said of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0]


def takes_any(module: torch.nn.Module) -> bool:
    """Whether a module's forward pass takes *inputs, which torch.export counts as one argument."""
    code = type(module).forward.__code__
    return bool(code.co_flags & 0x04) and code.co_argcount == 1


def lacking_in(error: Exception) -> str:
    """The operation that ONNX lacks, or what else an error of its writer is about."""
    found = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    said = [line for line in str(error).splitlines() if line.startswith("<class ")]
    return f"it lacks {found[1]}" if found else said[0] if said else reason_of(error)


def adaptive_max_pool(x: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """torch's, of maps (B, C, H, W) of known sides, by slices: ONNX has none. The places, which
    nobody here asks for, are zeros."""
    for axis, count in zip((2, 3), size, strict=True):
        side = x.shape[axis]
        cuts = [(k * side // count, -(-(k + 1) * side // count)) for k in range(count)]
        parts = [x.narrow(axis, low, high - low).amax(axis, keepdim=True) for low, high in cuts]
        x = torch.cat(parts, axis)
    return x, torch.zeros_like(x, dtype=torch.int64)


def write_onnx(form: Form, facts: dict[str, str], path: Path) -> None:
    """Writes a file of ONNX, without what tracing notes of this machine."""
    from onnxscript import ir
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    program, names = trace(form), list(example(form, *TRACED))
    try:
        with quiet(), traceable():
            if any(node.target == ADAPTIVE for node in program.graph.nodes):
                program = program.run_decompositions({ADAPTIVE: adaptive_max_pool})
            made = torch.onnx.export(program, input_names=names, output_names=list(form.outputs),
                                     verbose=False)  # fmt: skip
    except Exception as error:  # of very many kinds
        raise Refused(f"ONNX has no form of it: {lacking_in(error)}") from error
    ClearMetadataAndDocStringPass()(made.model)
    name_axes(made.model.graph, form)
    made.model.metadata_props.update(facts)
    made.model.producer_name = "milestones"
    size = sum(
        v.const_value.nbytes for v in made.model.graph.initializers.values() if v.const_value
    )
    if size > 2**31 - 2**20:
        raise Refused("a file of ONNX holds 2 GiB at most: take --to safetensors or torchexport")
    ir.save(made.model, str(path))


def name_axes(graph: Any, form: Form) -> None:
    """Calls the sizes that may vary by their names, which torch.onnx numbers."""
    from onnxscript import ir

    names = {}
    for value in graph.inputs:
        for axis, (name, _) in form.axes.get(value.name, {}).items():
            names[str(value.shape[axis])] = name
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    for value in [*graph.inputs, *(value for node in nodes for value in node.outputs)]:
        for axis, size in enumerate(value.shape or ()):
            if str(size) in names:
                value.shape[axis] = ir.SymbolicDim(names[str(size)])


def write_torchexport(form: Form, facts: dict[str, str], path: Path) -> None:
    """Writes a program of torch.export; the facts are its extra file facts.json."""
    program, extra = trace(form), {"facts.json": json.dumps(facts)}
    for module in program.graph_module.modules():
        add_two_by_two(module)
    try:
        with quiet():
            torch.export.save(program, path, extra_files=extra)
    except OSError:
        raise
    except Exception as error:  # of very many kinds
        raise Refused(f"torch.export can't write it: {reason_of(error)}") from error


def add_two_by_two(module: torch.nn.Module) -> None:
    """Writes sums of sizes, torch.sym_sum, as additions: torch 2.11 traces the former in loops, and
    can't store them."""
    for node in [*module.graph.nodes] if isinstance(module, torch.fx.GraphModule) else ():
        if node.target is torch.sym_sum:
            total, *rest = node.args[0]
            for size in rest:
                values = [getattr(x, "meta", {"val": x})["val"] for x in (total, size)]
                with module.graph.inserting_before(node):
                    total = module.graph.call_function(operator.add, (total, size))
                total.meta = node.meta | {"val": sum(values)}
            node.replace_all_uses_with(total)
            module.graph.erase_node(node)
            module.recompile()


def write_safetensors(trained: Trained, facts: dict[str, str], path: Path) -> None:
    """Writes the weights, shared ones under each of their names."""
    from safetensors.torch import save

    state = {k: v.detach().clone().contiguous() for k, v in trained.model.state_dict().items()}
    path.write_bytes(save(state, metadata=facts))


# ---------------------------------------------------------------------- checking


def run_onnx(path: Path) -> Run:
    """A function that runs a file of ONNX on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_inputs()]

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        arrays = {name: inputs[name].contiguous().numpy() for name in wanted}
        return tuple(torch.from_numpy(part) for part in session.run(None, arrays))

    return run


def run_torchexport(path: Path) -> Run:
    """A function that runs a program of torch.export."""
    with quiet():
        module = torch.export.load(path).module()

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        found = module(*inputs.values())
        return found if isinstance(found, tuple) else (found,)

    return run


def difference(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest one of all numbers; of those above 1 in shares of their size. What isn't a
    number, or has another shape, is infinitely far away."""
    if [part.shape for part in found] != [part.shape for part in wanted]:
        return float("inf")
    largest = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        if not theirs.numel():
            continue
        ours, theirs = ours.double(), theirs.double()
        apart = ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max()
        largest = max(largest, float(apart) if bool(apart.isfinite()) else float("inf"))
    return largest


@torch.no_grad()
def check(form: Form, run: Run) -> float:
    """The largest difference between a file and the checkpoint, over all CASES."""
    found = 0.0
    for case in CASES:
        inputs = example(form, *case)
        found = max(found, difference(run(inputs), form.answers(inputs)))
    return found


def check_weights(trained: Trained, path: Path) -> float:
    """The largest difference between the weights in a file and the checkpoint's."""
    from safetensors.torch import load_file

    state, there = trained.model.state_dict(), load_file(path)
    if state.keys() != there.keys():
        return float("inf")
    return difference(tuple(there[key] for key in state), tuple(state.values()))


@torch.no_grad()
def times(form: Form, run: Run) -> tuple[float, float]:
    """Milliseconds of the file and of the checkpoint, in turn: the medians of ROUNDS."""
    inputs, taken = example(form, *TIMED), ([], [])
    for number in range(ROUNDS + 1):
        for side, call in enumerate((run, form.answers)):
            begin = time.perf_counter()
            call(inputs)
            if number:  # the first one warms up
                taken[side].append(1000 * (time.perf_counter() - begin))
    return statistics.median(taken[0]), statistics.median(taken[1])


def export(folder: str, trained: Trained, to: str, path: Path, most: int | None) -> dict:
    """Writes and checks a file, and keeps it if it is right; returns what was measured.

    Raises Refused with the reason if there can be none.
    """
    form = None
    try:
        form = form_of(folder, trained, most)
    except Refused:
        if to != "safetensors" or most:
            raise
    facts, found = facts_of(folder, trained, form), {}
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        if to == "safetensors":
            write_safetensors(trained, facts, part)
            largest = check_weights(trained, part)
        else:
            {"onnx": write_onnx, "torchexport": write_torchexport}[to](form, facts, part)
            run = {"onnx": run_onnx, "torchexport": run_torchexport}[to](part)
            largest = check(form, run)
        if not largest <= LIMIT:
            raise Refused(f"its answers differ from the checkpoint's by {largest:.2g}, more than "
                          f"{LIMIT:g}: no file was written")  # fmt: skip
        if to != "safetensors":
            found["file_ms"], found["checkpoint_ms"] = times(form, run)
        part.replace(path)
    except OSError as error:
        fail(f"can't write {path} ({error.strerror or error})")
    finally:
        part.unlink(missing_ok=True)
    return found | dict(
        difference=largest, bytes=path.stat().st_size, outputs=form and form.outputs
    )


@cli.command
def main(argv: list[str] | None = None) -> dict:
    """Writes the file, and prints what was measured; returns that."""
    args = parse_args(argv)
    if args.to == "safetensors" and args.length:
        fail("--length is of what a network writes; safetensors are weights alone")
    checkpoint = checkpoint_of(args.path)
    check_packages(args.to)
    content = read_checkpoint(checkpoint)
    folder = milestone_of(content, checkpoint)
    model = content["config"]["flags"].get("model", folder)
    path = file_for(args, checkpoint, model)
    trained = open_trained(checkpoint)
    try:
        found = export(folder, trained, args.to, path, args.length)
    except Refused as error:
        fail(f"{model} can't go to {args.to}: {error}")
    size = found["bytes"] / 2**20
    if args.to == "safetensors":
        print(f"wrote {path} ({size:.1f} MiB): read back, largest difference "
              f"{found['difference']:.2g}")  # fmt: skip
        return found | {"path": str(path)}
    rows = ", ".join(str(rows) for rows, _ in CASES)
    threads = counted(torch.get_num_threads(), "thread")
    print(f"wrote {path} ({size:.1f} MiB): {', '.join(found['outputs'])}")
    print(f"largest difference from the checkpoint {found['difference']:.2g}, in batches of {rows}")
    print(f"a batch of {TIMED[0]}: {RUNNERS[args.to]} {found['file_ms']:.2f} ms, the checkpoint "
          f"{found['checkpoint_ms']:.2f} ms (cpu, fp32, {threads})")  # fmt: skip
    return found | {"path": str(path)}


if __name__ == "__main__":
    main()
