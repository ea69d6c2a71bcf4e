"""Devices, precision, parts and processes."""

import platform
import textwrap
from pathlib import Path

import processes
import pytest
import torch
import toy
from conftest import ROOT, run_python, torchrun
from test_common_run import same, saved
from torch import nn

from common.device import Device

FLAGS = processes.FLAGS


def close(a, b, tolerance=1e-5):
    a, b = saved(a)["model"], saved(b)["model"]
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance)


def device(**changes):
    return Device(processes.device_args(**changes))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """All that two processes did, and one process beside it."""
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toy.main([*FLAGS, "--run-dir", "alone"])
        toy.main([*FLAGS, "--run-dir", "alone-clip", "--clip", "0.5"])
        toy.main([*FLAGS, "--run-dir", "alone-adam", "--optimizer", "adam", "--lr", "0.01"])
        for name in ("one", "one-fsdp"):
            toy.main([*FLAGS, "--run-dir", name, "--max-steps", "15"])
        done = torchrun(processes.__file__, folder)
        assert done.returncode == 0, done.stderr[-3000:]
        for name in ("half", "half-fsdp"):
            toy.main(["--quiet", "--run-dir", name, "--resume"])
    return folder, done


def test_two_processes_equal_one(pair):
    close(pair[0] / "ddp", pair[0] / "alone")


def test_fsdp_equals_one(pair):
    close(pair[0] / "fsdp", pair[0] / "alone-adam")
    a, b = (saved(pair[0] / name)["optimizer"]["state"] for name in ("fsdp", "alone-adam"))
    for name in b:
        torch.testing.assert_close(a[name]["exp_avg"], b[name]["exp_avg"], rtol=1e-3, atol=1e-5)


def test_two_processes_with_micro_batches_equal_one(pair):
    close(pair[0] / "ddp-accumulate", pair[0] / "alone-clip")
    close(pair[0] / "fsdp-accumulate", pair[0] / "alone-clip")


def test_metrics_are_those_of_all_processes(pair):
    rows = [Path(pair[0], name, "metrics.jsonl").read_text() for name in ("ddp", "alone")]
    import json

    for a, b in zip(
        *[[json.loads(line) for line in text.splitlines()] for text in rows], strict=True
    ):
        assert a == pytest.approx(b, rel=1e-4)
    results = torch.load(pair[0] / "results.pt")
    assert results["evaluated"]["test_count"] == 359


def test_a_tensor_that_was_summed_stays_referenced(pair):
    assert torch.load(pair[0] / "results.pt")["kept"]


@pytest.mark.parametrize("name", ["half", "half-fsdp", "one", "one-fsdp"])
def test_a_run_resumes_on_another_number_of_processes(pair, name):
    assert saved(pair[0] / name)["step"] == 30
    close(pair[0] / name, pair[0] / "alone")


def test_only_rank_0_prints(pair):
    assert len([line for line in pair[1].stdout.splitlines() if "test_loss" in line]) == 10


def test_fp16_shards_stay_finite(pair):
    assert all(torch.isfinite(t).all() for t in saved(pair[0] / "fp16")["model"].values())
    assert saved(pair[0] / "fp16")["scaler"]["optimizer"]["scale"] > 0


def test_two_optimisers_do_not_leak_over_processes(pair):
    alone = processes.two_optimisers()
    for game in torch.load(pair[0] / "results.pt")["games"]:
        for a, b in zip(game, alone, strict=True):
            torch.testing.assert_close(a, b)


def test_sums_are_divided_by_the_items_of_all_parts_and_processes(pair):
    expected = one_big_step()
    for weight in (processes.counted(), torch.load(pair[0] / "results.pt")["counted"]):
        for a, b in zip(weight, expected, strict=True):
            torch.testing.assert_close(a, b)


def one_big_step():
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    items = torch.arange(20.0).view(10, 2) / 10
    model(items).square().mean().backward()
    return [p.detach() - p.grad for p in model.parameters()]


@pytest.mark.parametrize("flags", [[], ["--clip", "0.5"]])
def test_accumulation_equals_the_large_batch(flags):
    toy.main([*FLAGS, *flags, "--run-dir", "plain"])
    toy.main([*FLAGS, *flags, "--run-dir", "cut", "--accumulate", "4"])
    assert saved("cut")["step"] == saved("plain")["step"] == 30
    close("cut", "plain")


def test_resume_with_micro_batches_is_exact():
    toy.main([*FLAGS, "--run-dir", "a", "--accumulate", "4"])
    toy.main([*FLAGS, "--run-dir", "b", "--accumulate", "4", "--max-steps", "7"])
    toy.main(["--quiet", "--resume", "--run-dir", "b"])
    assert same(saved("a")["model"], saved("b")["model"])


def test_clipping_comes_after_the_division():
    dev = device(clip=1e-3)
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    assert dev.step(model(torch.ones(5, 2)).sum(), dev.wrap(model) and optimizer, count=5)
    assert (model.weight.detach() - before).norm() == pytest.approx(1e-3, rel=1e-3)


def test_step_gives_gradients_to_its_own_parameters_alone():
    dev = device()
    one, two = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(two.parameters(), lr=0.1)
    dev.step(two(one(torch.ones(3, 2))).mean(), optimizer)
    assert one.weight.grad is None
    assert two.weight.grad is None  # zeroed


def test_each_optimiser_has_its_own_counter():
    dev = device(accumulate=2)
    one, two = nn.Linear(2, 1), nn.Linear(2, 1)
    first = torch.optim.SGD(one.parameters(), lr=0.1)
    second = torch.optim.SGD(two.parameters(), lr=0.1)
    x = torch.ones(3, 2)
    moved = [
        dev.step(one(x).mean(), first),
        dev.step(two(x).mean(), second),
        dev.step(one(x).mean(), first),
        dev.step(two(x).mean(), second),
    ]
    assert moved == [False, False, True, True]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_steps_once_and_stays_finite(precision, monkeypatch):
    calls = []
    plain = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: (calls.append(1), plain(self, *a))
    )
    for folder, flags in (("a", []), ("b", ["--accumulate", "4"])):
        calls.clear()
        toy.main(
            ["--quiet", "--precision", precision, "--run-dir", folder, *flags, "--max-steps", "6"]
        )
        assert len(calls) == 6
        content = saved(folder)
        assert all(torch.isfinite(t).all() for t in content["model"].values())
        assert ("scale" in content["scaler"]["optimizer"]) == (precision == "fp16")


def test_fp16_overflow_skips_the_step_and_says_so():
    dev = device(precision="fp16")
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    scale = dev.scaler(optimizer).get_scale()
    assert not dev.step(model(torch.ones(3, 2)).mean() * 1e38, optimizer)
    assert torch.equal(model.weight, before)
    assert dev.scaler(optimizer).get_scale() < scale
    assert dev.step(model(torch.ones(3, 2)).mean(), optimizer)


def test_auto_precision_is_bf16_only_where_it_is_native(monkeypatch):
    def on(able, **kwargs):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
        return Device(processes.device_args(precision="auto"), **kwargs).precision

    assert on({"avx512_bf16": True}) == "bf16"
    assert on({"amx_bf16": True}) == "bf16"
    assert on({"avx2": True}) == "fp32"
    assert on({"avx512_bf16": True}, auto_precision="fp32") == "fp32"
    assert on({"avx512_bf16": True, "cpu_name": "AMD EPYC"}) == "bf16"
    assert on({"avx512_bf16": True, "cpu_name": "Intel Xeon"}) == "fp32"
    assert on({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}) == "bf16"


def test_wrap_keeps_names_and_compiles_in_place(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    model = toy.Conv()
    names = set(model.state_dict())
    net = device(compile=True).wrap(model)
    assert net is model
    assert compiled == [model]
    assert set(net.state_dict()) == names
    assert model.blocks[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert toy.Conv().blocks[1][0].weight.is_contiguous()


@pytest.mark.slow
def test_compile():
    toy.main(["--quiet", "--compile", "--run-dir", "compiled", "--precision", "fp32"])
    toy.main(["--quiet", "--run-dir", "plain", "--precision", "fp32"])
    close("compiled", "plain", 1e-3)


def test_devices_that_are_not_there(refused):
    if not torch.cuda.is_available():
        assert "--device cpu" in refused(toy.main, ["--device", "cuda"])
    if not torch.backends.mps.is_available():
        assert "--device cpu" in refused(toy.main, ["--device", "mps"])
    assert "torchrun" in refused(toy.main, ["--fsdp"])
    assert not list(Path().iterdir())


def test_memory_that_runs_out(refused, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "backward", full)
    assert "--batch-size" in refused(toy.main, ["--quiet", "--device", "cpu"])
    with pytest.raises(RuntimeError, match="alloc"):
        torch.empty(1 << 50)
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_, **__: torch.empty(1 << 50))
    assert "--batch-size" in refused(toy.main, ["--quiet", "--device", "cpu"])


def test_help_is_light():
    """Nothing heavier than torch is imported before the flags are parsed."""
    code = (
        "import sys, toy\n"
        "try: toy.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torchvision', 'sklearn', 'matplotlib', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_freed_memory_is_kept():
    """A tensor of the size of one that is gone touches no new page."""
    code = """
        import resource, torch
        from common.device import keep_memory
        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for told in (False, True):
            if told:
                keep_memory()
            new = []
            for k in range(13):
                before = faults()
                torch.ones(2**23)  # 32 MiB
                new.append(faults() - before)
            print(min(new))  # the system may reclaim what lies idle meanwhile
    """
    usual, told = map(int, run_python("-c", textwrap.dedent(code)).stdout.split())
    assert 5 * told < usual


# ---------------------------------------------------------------------- other systems


def test_a_system_without_resource_and_without_a_c_library():
    """As Windows: `import resource` fails, and so does CDLL(None)."""
    code = """
        import sys, ctypes, torch
        sys.modules["resource"] = None

        def no_library(name):
            raise TypeError("bad argument type for built-in operation")

        ctypes.CDLL = no_library
        from common import device
        device.keep_memory()
        device.Path = lambda path: type("None", (), {"exists": lambda self: False})()
        print(device.peak_memory())
        import lenet.train
    """
    if not (ROOT / "lenet").exists():
        code = code.replace("import lenet.train", "")
    done = run_python("-c", textwrap.dedent(code))
    assert (done.returncode, done.stdout) == (0, "nan\n"), done.stderr


def test_nothing_of_common_needs_what_windows_lacks():
    """Modules that other systems don't have are imported where they are caught."""
    import ast

    for path in (ROOT / "common").rglob("*.py"):
        tops = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import)]
        names = {alias.name for node in tops for alias in node.names}
        assert not names & {"resource", "fcntl", "pwd", "grp", "termios"}, path


def test_an_overflow_in_the_first_fp16_step_leaves_no_momentum():
    dev = Device(processes.device_args(precision="fp16"))
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    assert not dev.step(model(torch.ones(1, 2)).mean() * 1e38, optimizer)
    assert torch.equal(model.weight, before)
    assert not any("momentum_buffer" in state for state in optimizer.state.values())
    assert dev.step(model(torch.ones(1, 2)).mean(), optimizer)
    torch.testing.assert_close(model.weight, before - 0.1)
