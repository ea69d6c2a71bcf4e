"""Every mistake a user can make ends in one line and exit status 2, and nothing is written."""

import importlib
import pickle
from pathlib import Path

import pytest
import torch
import toy
from conftest import MILESTONES


@pytest.fixture(params=["toy", *MILESTONES])
def main(request):
    """A script's main; one that counts steps is given --steps in place of --epochs."""
    name = "toy" if request.param == "toy" else f"{request.param}.train"
    module = importlib.import_module(name)

    def run(argv):
        return module.main([run.length if word == "--epochs" else word for word in argv])

    run.length = "--steps" if "steps" in module.QUICK else "--epochs"
    return run


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model", "resnet999"], "unknown model 'resnet999'"),
        (["--data", "imagenet"], "unknown data set 'imagenet'"),
        (["--data", "folder:"], "unknown data set"),
        (["--batch-sise", "4"], "did you mean --batch-size"),
        (["stray"], "stray"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "-4"], "--batch-size"),
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "-1"], "--epochs"),
        (["--epochs", "two"], "'two'"),
        (["--run-dir", "", "--resume"], "--run-dir is empty"),
        (["--lr", "0"], "--lr"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "1e300"], "--lr"),
        (["--seed", "18446744073709551616"], "--seed"),
        (["--max-steps", "0"], "--max-steps"),
        (["--accumulate", "0"], "--accumulate"),
        (["--clip", "-1"], "--clip"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--precision", "fp8"], "unknown precision 'fp8'"),
        (["--patience", "3", "--val", "0"], "--val"),
        (["--fsdp"], "torchrun"),
        (["--evaluate", "nothing.pt"], "nothing.pt"),
        (["--evaluate", "nothing.pt", "--resume"], "--resume"),
        (["--data", "folder:nowhere"], "nowhere"),
    ],
)
def test_bad_flags(main, argv, words, refused):
    assert words.replace("--epochs", main.length) in refused(main, argv)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("milestone", MILESTONES)
def test_bad_flags_of_samples(milestone, refused):
    main = importlib.import_module(f"{milestone}.sample").main
    assert "--checkpoint is empty" in refused(main, ["--checkpoint", ""])
    assert "--data-dir is empty" in refused(main, ["--data-dir", ""])
    mine = ["--graph", "mine"] if milestone == "gnn" else ["mine"]
    assert "inputs of your own" in refused(main, [*mine, "--data-dir", "data"])


def test_a_near_name_is_suggested(refused):
    assert "digits always lies in memory" in refused(toy.main, ["--stream"])
    assert "did you mean conv?" in refused(toy.main, ["--model", "covn"])
    assert "did you mean digits?" in refused(toy.main, ["--data", "digit"])
    assert "did you mean conv?" in refused(toy.main, ["--model", "CONV"])


@pytest.mark.parametrize(("milestone", "flag"), [("unet", "--views"), ("maskrcnn", "--trainable")])
def test_a_number_that_is_no_choice(milestone, flag, refused):
    if milestone not in MILESTONES:
        pytest.skip(f"{milestone} is not on this branch")
    main = importlib.import_module(f"{milestone}.train").main
    assert f"unknown {flag[2:]} '7': There are" in refused(main, [flag, "7"])


def test_a_run_folder_that_cannot_be_written(main, refused):
    Path("file").write_text("mine")
    line = refused(main, ["--run-dir", "file/run", "--limit", "64", "--epochs", "1"])
    assert "file/run" in line
    assert Path("file").read_text() == "mine"


class Bomb:
    def __reduce__(self):
        return Path.write_text, (Path("exploded"), "")


def checkpoints():
    Path("empty.pt").touch()
    Path("noise.pt").write_bytes(bytes(range(256)) * 10)
    torch.save({"model": {"weight": torch.zeros(3)}}, "foreign.pt")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "weights.pt")
    torch.save([1, 2], "list.pt")
    torch.save({"config": {"flags": {}}, "step": 1, "rng": [], "model": Bomb()}, "bomb.pt")
    torch.save({"config": {}, "step": 1, "rng": []}, "noflags.pt")
    torch.save({"config": {"flags": {"milestone": "other", "model": "x"}}}, "other.pt")
    Path("pickle.pt").write_bytes(pickle.dumps({"config": Bomb()}))
    whole = Path("foreign.pt").read_bytes()
    Path("cut.pt").write_bytes(whole[: len(whole) // 2])
    Path("folder.pt").mkdir()
    return sorted(Path().glob("*.pt"))


def test_bad_checkpoints(main, refused):
    for path in checkpoints():
        before = {p for p in Path().rglob("*")}
        line = refused(main, ["--evaluate", str(path)])
        assert path.name in line
        assert {p for p in Path().rglob("*")} == before
    assert "refused" in refused(main, ["--evaluate", "bomb.pt"])
    assert not Path("exploded").exists()


def test_a_checkpoint_of_another_milestone(refused):
    toy.main(["--quiet", "--run-dir", "run", "--max-steps", "1"])
    for folder in MILESTONES:
        main = importlib.import_module(f"{folder}.train").main
        for argv in (["--evaluate", "run/last.pt"], ["--resume", "--run-dir", "run"]):
            assert "toy" in refused(main, argv)


def test_a_damaged_checkpoint_is_not_resumed_over(main, refused):
    Path("run").mkdir()
    Path("run/last.pt").write_bytes(b"damaged")
    assert "run/last.pt" in refused(main, ["--resume", "--run-dir", "run"])
    assert Path("run/last.pt").read_bytes() == b"damaged"


def test_a_checkpoint_of_other_shapes(refused):
    toy.main(["--quiet", "--run-dir", "run", "--max-steps", "1"])
    content = torch.load("run/last.pt")
    content["model"]["head.weight"] = torch.zeros(7, 7)
    torch.save(content, "other.pt")
    line = refused(toy.main, ["--evaluate", "other.pt"])
    assert "other.pt" in line
    assert "head.weight" in line
    content["dataset"]["classes"] = ["a", "b"]
    torch.save(content, "other.pt")
    assert "classes" in refused(toy.main, ["--evaluate", "other.pt"])


def test_flags_without_meaning_give_the_reason(refused, capsys):
    from common import cli

    def recipe(model, data, paper, **given):
        return {}, {"accumulate": "no batches"} if model == "mlp" else {}

    parser = cli.Parser("toy", "", toy.QUICK, toy.PAPER, toy.MODELS, ["digits"], recipe)
    parser.add_switch("--augment", help="shift")
    assert "no batches" in refused(parser.parse_args, ["--model", "mlp", "--accumulate", "2"])
    assert parser.parse_args(["--accumulate", "2"]).accumulate == 2
    with pytest.raises(SystemExit):
        parser.parse_args(["--model", "mlp", "--help"])
    assert "--accumulate" not in capsys.readouterr().out


def test_flags_do_not_change():
    args = toy.parse_args(["--epochs", "7"])
    with pytest.raises(AttributeError, match="epochs"):
        args.epochs = 3
    assert (args.but(epochs=3).epochs, args.epochs) == (3, 7)


def test_recipes_and_flags():
    assert toy.parse_args([]).lr == 0.05
    assert toy.parse_args(["--paper"]).model == "mlp"
    assert toy.parse_args(["--paper", "--lr", "3"]).lr == 3
    assert toy.parse_args(["--paper"]).augment is False
    assert toy.parse_args([]).augment is True
