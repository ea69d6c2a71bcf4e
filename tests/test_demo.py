"""tools/demo.py: what the page answers, who may ask, and, where there is a browser, every tab."""

import asyncio
import importlib
import importlib.util
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import MILESTONES, ROOT
from helpers import run_of
from PIL import Image

from tools import answers, demo
from tools.answers import Sorry
from tools.training import Training

needs_lenet = pytest.mark.skipif("lenet" not in MILESTONES, reason="a tree without LeNet")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
LACKING = [name for name in ("gradio", "playwright") if not importlib.util.find_spec(name)]
needs_browser = pytest.mark.skipif(
    not BROWSER or bool(LACKING), reason='needs chromium, playwright and pip install -e ".[demo]"'
)


@pytest.fixture(autouse=True)
def streams(monkeypatch):
    """What listens to the streams is gone after a test."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    yield
    answers.kept_open.cache_clear()


# ---------------------------------------------------------------------- what is given


def test_what_is_said_is_heard_by_its_thread_alone(capsys):
    from common import fail

    with answers.listening() as notes:
        print("not for the terminal")
        print("note: three words are unknown", file=sys.stderr)
    assert notes == ["three words are unknown"]
    with pytest.raises(Sorry, match=r"^there is no cat$"), answers.listening():
        fail("there is no cat")
    print("again")
    assert capsys.readouterr() == ("again\n", "")


def test_uploads_are_looked_at_before_they_are_read(tmp_path):
    def line(path):
        with pytest.raises(Sorry) as caught:
            answers.checked_image(path)
        return str(caught.value)

    assert line(None) == "give an image first"
    Path("weights.pkl").write_bytes(b"\x80\x04.")
    assert "weights.pkl is no image: give one of .png" in line("weights.pkl")
    Path("fake.png").write_bytes(b"\x80\x04 no image")
    assert line("fake.png") == "fake.png is no image that can be read"
    with open("large.png", "wb") as file:
        file.truncate(answers.MOST_BYTES + 1)
    assert line("large.png") == "large.png has more than 10 MiB: give a smaller image"
    Image.new("1", (6000, 5000)).save("wide.png")
    assert "wide.png has more than 25 million pixels" in line("wide.png")
    Image.new("1", (20_000, 20_000)).save("bomb.png")
    assert "bomb.png has more than 25 million pixels" in line("bomb.png")
    Image.new("RGB", (20, 10)).save("good.png")
    assert answers.checked_image("good.png") == Path("good.png")


def test_texts_and_tables_have_a_limit():
    with pytest.raises(Sorry, match="write a sentence first"):
        answers.checked_text("  \n", "a sentence")
    with pytest.raises(Sorry, match="2,001 letters are too many: 2,000 at most"):
        answers.checked_text("x" * 2001, "a sentence")
    assert answers.checked_table(None) == []
    Path("a.pt").write_bytes(b"")
    with pytest.raises(Sorry, match=r"a\.pt is no table"):
        answers.checked_table("a.pt")
    assert answers.checked_table(shutil.copy("a.pt", "a.csv")) == ["a.csv"]


def test_only_runs_that_are_there_are_opened(little):
    """A name that was changed on its way is never a path."""
    for run in ("runs/lenet/../../secret", "/etc/passwd", "runs/lenet/gone"):
        with pytest.raises(Sorry, match="is no run for this, or is gone"):
            answers.open_run("digit", run)
    with pytest.raises(Sorry, match=r"no run is chosen: train one, python lenet/train.py"):
        answers.open_run("digit", None)


def test_what_is_missing_names_a_command_that_parses():
    for name, kind in answers.KINDS.items():
        assert answers.runs_for(name) == []
        assert f"`{kind.command}`" in demo.missing(name)
        assert kind.command.startswith("python ")
        if kind.script.split("/")[0] in MILESTONES:
            assert answers.script_of(kind).is_file()
    if "rnn" in MILESTONES:
        train = importlib.import_module("rnn.train")
        answers.make_waves()
        assert train.parse_args([*answers.KINDS["series"].flags]).horizon == 24
        before = answers.WAVES.read_text()
        answers.WAVES.write_text("mine")
        answers.make_waves()
        assert answers.WAVES.read_text() == "mine" != before


# ---------------------------------------------------------------------- the answers


@needs_lenet
def test_a_drawn_digit_has_an_answer_and_maps(little):
    run_of("lenet", new=True)
    (run,) = answers.runs_for("digit")
    ink = torch.zeros(280, 280, 4, dtype=torch.uint8)
    with pytest.raises(Sorry, match="there is nothing on the paper"):
        answers.read_digit(run, ink.numpy())
    ink[60:220, 130:150, 3] = 255
    odds, maps = answers.read_digit(run, ink.numpy())
    assert sum(odds.values()) == pytest.approx(1)
    assert Image.open(maps).size[0] > 100
    again, _ = answers.read_digit(run, ink.numpy())
    assert again == odds
    assert answers.kept_open.cache_info().hits == 2  # it was opened once
    assert answers.runs_for("photo") == []  # a digit's network is none for photographs


def test_a_text_goes_on_token_by_token(little):
    run_of("gpt", "--model", "gpt_tiny", new=True)
    (run,) = answers.runs_for("prompt")
    texts = list(answers.go_on(run, "The function", 12, 0.0))
    assert texts[0] == "The function"
    assert len(texts) > 3
    assert all(a == b[: len(a)] and a != b for a, b in itertools.pairwise(texts))
    sample = importlib.import_module("gpt.sample")
    argv = ["--prompt", "The function", "--length", "12", "--temperature", "0"]
    assert sample.main([*argv, "--checkpoint", f"{run}/last.pt"]) == [texts[-1]]
    with pytest.raises(Sorry, match="write a beginning first"):
        list(answers.go_on(run, "", 12))


def test_rows_have_predictions_first(little):
    run_of("mlp", "--model", "mlp_table", new=True)
    (run,) = answers.runs_for("rows")
    head, rows, path = answers.predict_rows(run, None)
    assert head[0] == "predicted target"
    assert len(rows) == answers.SHOWN
    assert Path(path).read_text().count("\n") > answers.SHOWN
    Path("odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(Sorry, match="the rows have no column 'sepal length"):
        answers.predict_rows(run, "odd.csv")


def test_tables_are_text():
    said = demo.table_of(["<b>"], [["<script>alert(1)</script>"]])
    assert "<script>" not in said
    assert "&lt;b&gt;" in said
    assert "&lt;i&gt;" in demo.progress(0.5, "<i>", "")


# ---------------------------------------------------------------------- training


def until(condition):
    """Looks until something is so; whoever waits too long is ended by the suite."""
    while not condition():
        time.sleep(0.01)


def test_a_training_says_how_far_it_is():
    Path("train.py").write_text(
        "import json, pathlib\n"
        "folder = pathlib.Path('runs/toy/a')\nfolder.mkdir(parents=True)\n"
        "(folder / 'config.json').write_text(json.dumps({'flags': {'epochs': 4}}))\n"
        "(folder / 'metrics.jsonl').write_text('{\"epoch\": 1, \"step\": 9}\\n')\n"
        "print('toy on digits, cpu, fp32, in runs/toy/a')\n"
        "print('epoch   1/4  step 9  loss 1')\nprint('epoch 2/4: 5/10, 3.0/s')\n"
    )
    training = Training()
    assert training.start(["train.py"])
    assert training.end() == "done"
    until(lambda: training.inside)
    assert training.share() == (1 + 0.5) / 4
    assert training.said().splitlines()[-1] == "epoch   1/4  step 9  loss 1"


def test_a_training_is_stopped_and_only_one_runs():
    Path("wait.py").write_text("import signal\nprint('ready')\nsignal.pause()\n")
    training = Training()
    assert training.start(["wait.py"])
    until(lambda: training.said() == "ready")
    assert not training.start(["wait.py"])
    training.cancel()
    assert training.end() == "stopped"
    Path("bad.py").write_text("import sys\nprint('error: no data')\nsys.exit(2)\n")
    assert training.start(["bad.py"])
    training.process.wait()
    until(lambda: training.said())
    assert training.end() == "no data"


# ---------------------------------------------------------------------- who may ask


def asked(host, policy):
    """What a request for this host gets: status and headers."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"host", host.encode())]}
    asyncio.run(demo.Policy(app, policy)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_another_host_is_refused_and_the_browser_told_to_stay_here():
    local = ("127.0.0.1", "localhost", "[::1]")
    for host in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860"):
        status, headers = asked(host, local)
        assert status == 200
        assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert asked("evil.example:7860", local)[0] == 421
    assert asked("server:7860", ())[0] == 200  # --host was typed


def test_bad_flags_end_in_one_line(refused, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refused(demo.listen, "127.0.0.1", port)
        assert line == f"error: port {port} of 127.0.0.1 is in use: choose another --port"
    assert "ports are below 65536" in refused(demo.parse_args, ["--port", "70000"])
    assert demo.parse_args([]).host == "127.0.0.1"
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert 'needs the package gradio: pip install -e ".[demo]"' in refused(demo.main, [])


def test_this_machine_alone_is_listened_to():
    with demo.listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


# ---------------------------------------------------------------------- the browser


@pytest.fixture
def page(little, request):
    """The page of a server of its own, over runs of a step, in a real browser; with `errors` that
    its console has, and the addresses that were `fetched`."""
    from playwright.sync_api import sync_playwright

    for folder, *argv in (
        ("lenet",), ("resnet",), ("yolo",), ("transformer",), ("gpt", "--model", "gpt_tiny"),
        ("latentdiffusion",), ("clip",), ("rnn", "--data", "series:waves.csv", "--val", "0"),
    ):  # fmt: skip
        answers.make_waves(Path("waves.csv"), 400)
        run_of(folder, *argv, new=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-u", str(ROOT / "tools" / "demo.py"), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        address = f"http://127.0.0.1:{port}"
        assert f":{port}" in server.stdout.readline()
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.set_default_timeout(600_000)
            page.errors, page.fetched = [], []
            page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on("request", lambda asked: page.fetched.append(asked.url))
            page.goto(address)
            page.address = address
            yield page
            browser.close()
    finally:
        server.terminate()
        server.wait()


def choose(page, name):
    """Goes to a tab, in the menu where there is no room for it."""
    tabs = page.get_by_role("tab", name=name, exact=True)
    shown = [tab for tab in tabs.all() if tab.is_visible()]
    if shown:
        shown[0].click()
        return
    page.locator(".overflow-menu button").first.click()
    page.locator(".overflow-dropdown button", has_text=name).first.click()


def use(page, name, key, answer):
    """Presses a tab's button, and waits for the answer."""
    choose(page, name)
    page.click(f"#go-{key}")
    page.wait_for_selector(answer)


TABS = ("Digit", "Photo", "Things", "Sentence", "Prompt", "Caption", "Search", "Series", "Table")


@needs_browser
def test_every_tab_in_a_browser(page):
    page.wait_for_selector("#paper button[aria-label=Brush]")
    page.wait_for_selector("#paper canvas")
    page.wait_for_function("!document.querySelector('#paper').innerText.includes('draw tool')")
    box = page.locator("#paper canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 80)
    page.mouse.down()
    page.mouse.move(x, y + 80, steps=12)
    page.mouse.up()
    use(page, "Digit", "digit", "#out-digit [data-testid=label-output-value]")
    for name, key in (("Photo", "photo"), ("Things", "things")):
        choose(page, name)
        page.set_input_files(f"#image-{key} input[type=file]", answers.scenes()[0])
        page.wait_for_selector(f"#image-{key} img")
        use(page, name, key, f"#out-{key} table")
    choose(page, "Sentence")
    page.fill("#text-sentence textarea", "Friday, 3 March 2017")
    use(page, "Sentence", "sentence", "[role=tabpanel]:visible .image-frame img")
    choose(page, "Prompt")
    page.click("#go-prompt")
    written = "document.querySelector('#out-prompt textarea').value.length > 'The function'.length"
    page.wait_for_function(written)
    use(page, "Caption", "caption", "#out-caption img")
    use(page, "Search", "words", "#out-words img")
    choose(page, "Series")
    page.set_input_files("#file-series input[type=file]", "waves.csv")
    use(page, "Series", "series", "#out-series table")
    choose(page, "Table")  # of which there is no run: it is trained from here
    panel = page.locator("[role=tabpanel]:visible")
    assert "python mlp/train.py --model mlp_table" in panel.inner_text()
    page.click("#train-rows")
    page.wait_for_selector("#progress-rows progress")
    page.wait_for_function("document.querySelector('#progress-rows').innerText.includes(': done')")
    page.wait_for_function("document.querySelector('#progress-rows progress').value === 1")
    use(page, "Table", "rows", "#out-rows table")
    assert [path.name for path in Path("runs/mlp").iterdir()] == ["mlp_table-iris"]
    page.set_viewport_size({"width": 390, "height": 844})
    for name in TABS:
        page.evaluate("scrollTo(0, 0)")
        choose(page, name)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{name} scrolls sideways"
    assert page.errors == []
    own = (page.address, "data:", "blob:")
    assert [url for url in page.fetched if not url.startswith(own)] == []
    Path("fake.png").write_bytes(b"\x80\x04 no image")
    page.set_viewport_size({"width": 1200, "height": 900})
    choose(page, "Photo")
    page.set_input_files("#image-photo input[type=file]", "fake.png")
    page.wait_for_selector("#image-photo img", state="attached")
    page.click("#go-photo")
    page.wait_for_selector(".toast-body")
    said = page.locator(".toast-body").inner_text()
    assert "fake.png is no image that can be read" in said
    assert "Traceback" not in said
