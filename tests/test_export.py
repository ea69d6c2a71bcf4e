"""tools/export.py: files that are used without the repository, and answer as checkpoints do."""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import HANGS, MILESTONES, ROOT
from helpers import run_of
from PIL import Image

from tools import export, forms, milestones, trained

LACKING = [name for name in export.NEEDS["onnx"] if not importlib.util.find_spec(name)]
needs_onnx = pytest.mark.skipif(
    bool(LACKING), reason=f'no {", ".join(LACKING)}: pip install -e ".[export]"'
)
TASKS = {  # a model a task: folder, flags of train.py, sizes in a batch of five, outputs
    "image classification": ("lenet", [], ["logits"]),
    "segmentation": ("unet", [], ["logits"]),
    "detection": ("yolo", [], ["boxes", "scores", "labels", "count"]),
    "translation": ("transformer", ["--num-layers", "1"], ["written", "log_probability"]),
    "graphs": ("gnn", ["--model", "gcn"], ["logits"]),
    "generation": ("generative", ["--model", "conv_vae"], ["decoded", "encoded"]),
    "tables": ("mlp", ["--model", "mlp_table"], ["outputs"]),
    "sequences": ("rnn", ["--model", "bilstm", "--data", "sentences:mine.csv"], ["logits"]),
    "images and text": ("clip", [], ["image_features", "text_features", "logits"]),
    "codes of images": ("latentdiffusion", ["--model", "vq_small"], ["latents", "rebuilt"]),
    "language": (
        "gpt",
        ["--model", "gpt_tiny", "--num-layers", "1"],
        ["written", "log_probability", "logits"],
    ),
    "questions about images": (
        "flamingo",
        ["--num-latents", "2", "--cross-every", "4"],
        ["written", "log_probability", "logits"],
    ),
}
LONGEST = pytest.param("questions about images", marks=pytest.mark.slow)


@pytest.fixture
def lenet(little):
    return run_of("lenet")


@needs_onnx
@pytest.mark.parametrize("task", [*(task for task in TASKS if task != LONGEST.values[0]), LONGEST])
def test_a_model_of_each_task_goes_to_onnx(task, little, capsys):
    folder, argv, outputs = TASKS[task]
    path = Path(run_of(folder, *argv), "made.onnx")
    short = ["--length", "4"] if "written" in outputs else []
    found = export.main([folder, "--to", "onnx", "--out", str(path), *short])
    assert found["difference"] <= 1e-4
    assert list(found["outputs"][: len(outputs)]) == outputs
    said = capsys.readouterr().out
    assert "largest difference from the checkpoint" in said
    assert re.search(r"ONNX Runtime [\d.]+ ms, the checkpoint [\d.]+ ms", said)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["milestone"] == folder
    assert {"model", "data", "inputs", "outputs", "trained_with", "exported_with"} <= facts.keys()
    assert json.loads(facts["exported_with"])["torch"] == torch.__version__
    assert str(ROOT) not in path.read_bytes().decode("latin-1")  # no path of this machine
    firsts = {value.shape[0] for value in [*session.get_inputs(), *session.get_outputs()]}
    assert firsts & {"batch", "nodes"}, "the batch may have any size"
    assert not any(re.fullmatch(r"s\d+", str(size)) for size in firsts)


@needs_onnx
def test_a_file_holds_how_images_are_prepared(lenet):
    import onnxruntime

    export.main([lenet, "--to", "onnx"])
    session = onnxruntime.InferenceSession("lenet/lenet5.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list("0123456789")
    assert json.loads(facts["mean"]) == pytest.approx([0.1 / 1.275])
    assert facts["size"] == "32"
    assert facts["channels"] == "1"
    assert facts["range"].startswith("0 to 1")
    assert facts["task"] == "image classification"


def test_weights_come_back_bit_for_bit(lenet, capsys):
    from safetensors import safe_open

    found = export.main([lenet, "--to", "safetensors"])
    assert found["difference"] == 0
    assert "read back" in capsys.readouterr().out
    stored = torch.load("lenet/last.pt", weights_only=True)["model"]
    with safe_open("lenet/lenet5.safetensors", "pt") as file:
        assert file.metadata()["model"] == "lenet5"
        assert set(file.keys()) == stored.keys()
        assert all(torch.equal(file.get_tensor(key), value) for key, value in stored.items())


def test_a_program_of_torch_export_runs_in_torch_alone(lenet):
    found = export.main([lenet, "--to", "torchexport"])
    assert found["difference"] <= 1e-6
    extra = {"facts.json": ""}
    module = torch.export.load("lenet/lenet5.pt2", extra_files=extra).module()
    assert json.loads(extra["facts.json"])["milestone"] == "lenet"
    for rows in (1, 11):
        assert module(torch.zeros(rows, 1, 32, 32)).shape == (rows, 10)


@pytest.mark.parametrize("task", ["language", LONGEST])
def test_a_program_with_a_loop_runs_in_torch_alone(task, little):
    """torch can't store the sums of sizes that it traces in loops: they are written otherwise."""
    folder, argv, _ = TASKS[task]
    run = run_of(folder, *argv)
    found = export.main([run, "--to", "torchexport", "--out", "made.pt2", "--length", "3"])
    assert found["difference"] <= 1e-5


def test_what_torch_cannot_write_is_refused(lenet, monkeypatch, refused):
    def fails(*args, **kwargs):
        raise AssertionError("op sym_sum is not known\nand more")

    monkeypatch.setattr(torch.export, "save", fails)
    line = refused(export.main, [lenet, "--to", "torchexport"])
    assert line.endswith("torch.export can't write it: op sym_sum is not known")
    assert not [*Path(lenet).glob("*.pt2"), *Path(lenet).glob(".*")]


def test_sums_of_sizes_become_additions():
    graph = torch.fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    a.meta["val"], b.meta["val"] = 5, 7
    total = graph.call_function(torch.sym_sum, ((a, 6, b),))
    total.meta["val"] = 18
    graph.output(total)
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    export.add_two_by_two(module)
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    assert [node.meta["val"] for node in nodes] == [11, 18]
    assert torch.sym_sum not in [node.target for node in nodes]
    assert module(5, 7) == 18


def test_a_file_that_differs_is_refused_and_gone(lenet, monkeypatch, refused):
    monkeypatch.setattr(export, "difference", lambda ours, theirs: 1.1e-4)
    line = refused(export.main, [lenet, "--to", "torchexport"])
    assert "lenet5 can't go to torchexport" in line
    assert "differ from the checkpoint's by 0.00011, more than 0.0001" in line
    assert not [*Path(lenet).glob("*.pt2"), *Path(lenet).glob(".*")]


def test_nothing_of_the_users_is_overwritten(lenet, refused):
    path = Path(lenet, "lenet5.safetensors")
    path.write_text("mine")
    assert "is there already: add --overwrite" in refused(
        export.main, [lenet, "--to", "safetensors"]
    )
    assert path.read_text() == "mine"
    export.main([lenet, "--to", "safetensors", "--overwrite"])
    assert path.stat().st_size > 10_000


def test_bad_input_ends_in_one_line(lenet, monkeypatch, refused):
    def line(*argv):
        return refused(export.main, list(argv))

    assert "there is no such run or checkpoint" in line("nowhere", "--to", "onnx")
    assert "holds no last.pt" in line(".", "--to", "safetensors")
    assert "unknown to 'onxx': did you mean onnx" in line(lenet, "--to", "onxx")
    bad = [lenet, "--to", "safetensors", "--out"]
    assert "a file of safetensors ends in .safetensors" in line(*bad, "weights.bin")
    assert "there is no folder no" in line(*bad, "no/w.safetensors")
    assert "--length is of what a network writes" in line(
        lenet, "--to", "safetensors", "--length", "3"
    )
    assert "lenet writes nothing" in line(lenet, "--to", "torchexport", "--length", "3")
    content = torch.load("lenet/last.pt", weights_only=True)
    torch.save(content["model"], "bare.pt")
    assert "it holds weights alone" in line("bare.pt", "--to", "safetensors")
    content["config"]["flags"]["milestone"] = "lennet"
    torch.save(content, "other.pt")
    assert "unknown milestone 'lennet': did you mean lenet" in line(
        "other.pt", "--to", "safetensors"
    )

    def missing(name):
        raise export.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(export.importlib.metadata, "version", missing)
    assert 'needs the package onnx: pip install -e ".[export]"' in line(lenet, "--to", "onnx")


def test_what_no_format_holds_is_refused_with_the_reason():
    given = SimpleNamespace(facts={}, flags=SimpleNamespace(model="maskrcnn_small"))
    with pytest.raises(forms.Refused, match="no batch of one shape holds that; --to safetensors"):
        forms.form_of("maskrcnn", given)


def test_every_folder_has_a_form():
    assert set(trained.milestones()) == set(MILESTONES)
    classifiers = set(milestones.small_models("image classification"))
    assert set(MILESTONES) <= forms.OWN.keys() | classifiers
    with pytest.raises(forms.Refused, match="cooking has no form"):
        forms.form_of("cooking", SimpleNamespace(facts={}))


def test_differences():
    def of(ours, theirs):
        return export.difference((torch.tensor(ours),), (torch.tensor(theirs),))

    assert of([1.0, 2.0], [1.0, 2.0]) == 0
    assert of([0.5], [0.25]) == 0.25  # of small values as it is
    assert of([200.0], [100.0]) == 1.0  # of large ones in shares
    assert of([7], [8]) == 0.125
    assert of([float("nan")], [1.0]) == float("inf")
    assert of([1.0], [1.0, 1.0]) == float("inf")


@needs_onnx
def test_the_lines_of_the_page_run_without_the_repository(little):
    """PRACTICE.md's ten lines, as they stand, in a process that can't import this repository."""
    run = run_of("resnet")
    page = (ROOT / "PRACTICE.md").read_text(encoding="utf-8")
    section = page[page.index("## Without this repository") :]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)[:1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=draw)
    Image.fromarray(pixels.numpy()).save("photo.png")
    export.main([run, "--to", "onnx", "--out", "resnet20.onnx"])
    Path("lines.py").write_text(code)
    alone = (
        "import sys, importlib.util as u, pathlib as p\n"
        "sys.path[:] = [d for d in sys.path if not p.Path(d, 'common', 'checkpoint.py').exists()]\n"
        "assert not any(u.find_spec(name) for name in ('common', 'resnet', 'tools.export'))\n"
        "exec(open('lines.py').read())"
    )
    command = [sys.executable, "-I", "-c", alone.replace("'tools.export'", "'gnn'")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    sample = importlib.import_module("resnet.sample")
    found = sample.main(["photo.png", "--checkpoint", "resnet/last.pt", "--out", "out"])
    assert done.stdout.split()[0] == found["photo.png"][0][0]
