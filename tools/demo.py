"""A page to try the trained networks on, in the browser.

    python tools/demo.py                 # over the runs below the current directory
    python tools/demo.py --port 8000

Draw a digit, drop a photograph, have a sentence translated, a text gone on with, a caption drawn,
images found by words, a series forecast, a table's rows predicted. Where no run exists the page
says which command makes one, and runs it. It listens on 127.0.0.1 alone unless --host is given,
fetches nothing from elsewhere, and takes images, texts and tables, no checkpoints. Needs
pip install -e ".[demo]".
"""

import argparse
import functools
import html
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from common import cli, fail
from tools import answers
from tools.answers import KINDS, MOST_BYTES, Sorry, runs_for, scenes
from tools.training import Training

POLICY = (  # of the browser: what it may load
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; media-src 'self' blob:; "
    "frame-ancestors 'none'"
)
CSS = """
.table {overflow-x: auto; max-width: 100%}
.table td, .table th {border: 0 !important; padding: 2px 12px 2px 0 !important; text-align: left;
  white-space: nowrap}
.progress progress {width: 100%; height: 1.2em}
.progress pre {white-space: pre-wrap; overflow-wrap: anywhere; max-height: 16em; overflow-y: auto}
footer {display: none !important}
"""
BRUSH = """() => {
  const wait = setInterval(() => {
    const brush = document.querySelector('#paper button[aria-label="Brush"]');
    if (brush) { clearInterval(wait); brush.click(); }
  }, 200);
}"""  # gradio's paper has no tool in hand when it comes
TRAINING = Training()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = cli.OneLineParser("python tools/demo.py", __doc__)
    text = "who may reach it (default: 127.0.0.1, this machine alone)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    kind = cli.integer(1)
    parser.add_argument("--port", type=kind, default=7860, metavar="N", help="(default: 7860)")
    args = parser.parse_args(argv)
    if args.port > 65535:
        fail(f"--port {args.port}: ports are below 65536")
    return args


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; ends in one line if that can't be."""
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(kind[0], kind[1])
        if os.name == "posix":  # a port that was left a moment ago is free
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(kind[4])
        listener.listen(128)
    except OSError as error:
        hint = ": choose another --port" if "in use" in str(error) else f" ({error})"
        used = "is in use" if "in use" in str(error) else "can't be listened on"
        fail(f"port {port} of {host} {used}{hint}")
    return listener


# ---------------------------------------------------------------------- pieces of the page


def table_of(head: list[str], rows: list[list[Any]]) -> str:
    """A table as HTML; what is in it is text."""
    cells = "".join(f"<th>{html.escape(str(name))}</th>" for name in head)
    lines = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="table"><table><tr>{cells}</tr>{body}</table></div>'


def side_by_side(found: dict[str, list[tuple[str, float]]]) -> str:
    """The answers of several networks, a column each."""
    count = max(len(some) for some in found.values())
    rows = [[f"{some[k][0]} {some[k][1]:.1%}" if k < len(some) else "" for some in found.values()]
            for k in range(count)]  # fmt: skip
    return table_of([run.removeprefix("runs/") for run in found], rows)


def answered(function: Callable) -> Callable:
    """A handler of the page, whose Sorry is shown there in a line."""
    import gradio as gr

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except Sorry as error:
            raise gr.Error(html.escape(str(error)), None, print_exception=False) from None
        except Exception as error:
            line = (str(error).splitlines() or [""])[0]
            print(f"{function.__name__}: {type(error).__name__}: {line}", file=sys.stderr)
            said = html.escape(f"{type(error).__name__}: {line}")
            raise gr.Error(said, None, print_exception=False) from None

    return wrapped


def missing(name: str) -> str:
    """What is said where a tab has no run."""
    kind = KINDS[name]
    where = " or ".join(f"runs/{folder}" for folder in kind.folders[:3])
    where += " …" if len(kind.folders) > 3 else ""
    return f"**No run is in {where} yet.** This makes one: `{kind.command}`"


def progress(share: float, head: str, said: str) -> str:
    """A bar with what is printed below it."""
    return (f'<div class="progress"><progress max="1" value="{share:.3f}"></progress>'
            f"<div>{html.escape(head)}</div><pre>{html.escape(said)}</pre></div>")  # fmt: skip


def train(name: str) -> Iterator[str]:
    """Trains what a tab needs, and says how far it is until it has ended."""
    kind = KINDS[name]
    if name == "series":
        answers.make_waves()
    own = TRAINING.start([str(answers.script_of(kind)), *kind.flags])
    if not own and kind.script not in TRAINING.command:
        raise Sorry(f"{TRAINING.command} is still at work: wait, or stop it")
    while TRAINING.runs:
        yield progress(TRAINING.share(), kind.command, TRAINING.said())
        time.sleep(0.5)
    end = TRAINING.end()
    share = 1.0 if end == "done" else TRAINING.share()
    yield progress(share, f"{kind.command}: {end}", TRAINING.said())


class Tab:
    """The head of a tab: which run, and what makes one. `update` are the parts that a new run
    changes, `refresh()` what they are then."""

    def __init__(self, name: str, several: bool = False):
        import gradio as gr

        self.name, self.several, found = name, several, runs_for(name)
        self.note = gr.Markdown(missing(name), visible=not found)
        label = "runs, side by side" if several else "run"
        value = found[:3] if several else (found[0] if found else None)
        self.run = gr.Dropdown(
            found, value=value, label=label, multiselect=several, visible=bool(found)
        )
        with gr.Accordion("Train a network", open=not found):
            gr.Markdown(f"`{KINDS[name].command}`, a few minutes on two cores, into a new folder")
            with gr.Row():
                begin = gr.Button("Train", elem_id=f"train-{name}", size="sm")
                stop = gr.Button("Stop", elem_id=f"stop-{name}", size="sm", variant="stop")
            shown = gr.HTML(elem_id=f"progress-{name}")
        self.update = [self.note, self.run]

        def go() -> Iterator[str]:
            try:
                yield from train(name)
            except Sorry as error:
                yield progress(0, str(error), "")

        hidden = dict(show_progress="hidden", api_visibility="private")
        went = begin.click(go, None, shown, **hidden)
        went.then(self.refresh, None, self.update, **hidden)
        stop.click(TRAINING.cancel, None, None, **hidden)

    def refresh(self) -> list:
        """The runs that are there now."""
        import gradio as gr

        found = runs_for(self.name)
        value = found[:3] if self.several else (found[0] if found else None)
        run = gr.Dropdown(choices=found, value=value, visible=bool(found))
        return [gr.Markdown(missing(self.name), visible=not found), run]


# ---------------------------------------------------------------------- the page


def build() -> Any:
    """The page, of gradio."""
    import gradio as gr

    def picture(name: str) -> gr.Image:
        image = gr.Image(sources=["upload", "clipboard"], label="image", height=260,
                         elem_id=f"image-{name}", buttons=[])  # fmt: skip
        # The handler gets the file as it came: gradio would decode it before anybody looked at it.
        image.preprocess = lambda payload: payload.path if payload else None
        return image

    def button(name: str, text: str) -> gr.Button:
        return gr.Button(text, variant="primary", elem_id=f"go-{name}")

    def examples(images: Any, count: int = 4) -> None:
        gr.Examples([[path] for path in scenes()[:count]], [images], label="drawn scenes")

    def on(button: gr.Button, function: Callable, inputs: list, outputs: list) -> None:
        button.click(answered(function), inputs, outputs, api_visibility="private")

    tabs = []

    def tab(name: str, several: bool = False) -> Tab:
        tabs.append(Tab(name, several))
        return tabs[-1]

    with gr.Blocks(title="Milestones of deep learning", analytics_enabled=False,
                   delete_cache=(3600, 3600)) as page:  # fmt: skip
        gr.Markdown("# Milestones of deep learning\nTry what was trained here.")
        with gr.Tabs():
            with gr.Tab("Digit", id="digit"):
                head = tab("digit")
                with gr.Row():
                    paper = gr.Sketchpad(
                        label="draw a digit", canvas_size=(280, 280), layers=False, height=380,
                        brush=gr.Brush(default_size=18, colors=["#000000"], color_mode="fixed"),
                        placeholder="draw here", elem_id="paper")  # fmt: skip
                    with gr.Column():
                        go = button("digit", "Read")
                        digit = gr.Label(label="LeNet's answer", num_top_classes=5,
                                         elem_id="out-digit")  # fmt: skip
                maps = gr.Image(label="its first maps", interactive=False, buttons=[])

                def read(run: str, drawn: Any) -> tuple:
                    drawn = drawn.get("composite") if isinstance(drawn, dict) else drawn
                    return answers.read_digit(run, drawn)

                on(go, read, [head.run, paper], [digit, maps])
            with gr.Tab("Photo", id="photo"):
                head = tab("photo", several=True)
                image = picture("photo")
                examples(image)
                go, shown = button("photo", "Classify"), gr.HTML(elem_id="out-photo")

                def name(runs: list[str], file: str) -> str:
                    return side_by_side(answers.name_photo(runs, file))

                on(go, name, [head.run, image], [shown])
            with gr.Tab("Things", id="things"):
                head = tab("things")
                image = picture("things")
                examples(image)
                least = gr.Slider(0.05, 0.95, 0.3, step=0.05, label="least score")
                go = button("things", "Find")
                found = gr.Image(label="found", interactive=False, buttons=[])
                rows = gr.HTML(elem_id="out-things")

                def find(run: str, file: str, threshold: float) -> tuple:
                    drawn, said = answers.find_things(run, file, threshold)
                    return drawn, table_of(["what", ""], said)

                on(go, find, [head.run, image, least], [found, rows])
            with gr.Tab("Sentence", id="sentence"):
                head = tab("sentence")
                text = gr.Textbox(
                    label="sentence",
                    lines=2,
                    max_length=answers.MOST_LETTERS,
                    placeholder="Friday, 3 March 2017",
                    elem_id="text-sentence",
                )
                go = button("sentence", "Translate")
                said = gr.Textbox(label="translation", elem_id="out-sentence")
                looked = gr.Image(label="where its words looked", interactive=False, buttons=[])
                on(go, answers.translate, [head.run, text], [said, looked])
            with gr.Tab("Prompt", id="prompt"):
                head = tab("prompt")
                text = gr.Textbox(label="prompt", lines=2, max_length=answers.MOST_LETTERS,
                                  value="The function", elem_id="text-prompt")  # fmt: skip
                with gr.Row():
                    length = gr.Slider(10, 500, 120, step=10, label="tokens")
                    warm = gr.Slider(0, 1.5, 0.7, step=0.1, label="temperature")
                    seed = gr.Number(0, label="seed", precision=0, minimum=0)
                go = button("prompt", "Go on")
                said = gr.Textbox(label="text", lines=10, elem_id="out-prompt")
                writes = streamed(answers.go_on)
                go.click(writes, [head.run, text, length, warm, seed], said,
                         api_visibility="private", show_progress="hidden")  # fmt: skip
            with gr.Tab("Caption", id="caption"):
                head = tab("caption")
                text = gr.Textbox(label="caption", value="a large red star", elem_id="text-caption",
                                  max_length=answers.MOST_LETTERS)  # fmt: skip
                with gr.Row():
                    count = gr.Slider(1, 16, 4, step=1, label="images")
                    seed = gr.Number(0, label="seed", precision=0, minimum=0)
                go = button("caption", "Draw")
                made = gr.Gallery(label="scenes", columns=4, elem_id="out-caption", buttons=[])
                on(go, answers.draw_caption, [head.run, text, count, seed], [made])
            with gr.Tab("Search", id="words"):
                head = tab("words")
                text = gr.Textbox(label="words", value="a red circle", elem_id="text-words",
                                  max_length=answers.MOST_LETTERS)  # fmt: skip
                files = gr.File(
                    label="images (without any: drawn scenes)",
                    file_count="multiple",
                    file_types=list(answers.PICTURES),
                    elem_id="file-words",
                )
                go = button("words", "Search")
                made = gr.Gallery(label="the best first, with their cosines", columns=4,
                                  elem_id="out-words", buttons=[])  # fmt: skip
                on(go, answers.search, [head.run, files, text], [made])
            with gr.Tab("Series", id="series"):
                head = tab("series")
                file = gr.File(label="a CSV file (without one: the test set)",
                               file_types=[".csv"], elem_id="file-series")  # fmt: skip
                go = button("series", "Forecast")
                drawn = gr.Image(label="forecast", interactive=False, buttons=[])
                rows = gr.HTML(elem_id="out-series")

                def ahead(run: str, path: str) -> tuple:
                    made, told = answers.forecast(run, path)
                    return made, table_of(["time", "column", "forecast"], told) if told else ""

                on(go, ahead, [head.run, file], [drawn, rows])
            with gr.Tab("Table", id="rows"):
                head = tab("rows")
                file = gr.File(label="a CSV file (without one: the test set)",
                               file_types=[".csv"], elem_id="file-rows")  # fmt: skip
                go = button("rows", "Predict")
                rows = gr.HTML(elem_id="out-rows")
                whole = gr.File(label="all rows", interactive=False)

                def predict(run: str, path: str) -> tuple:
                    names, some, made = answers.predict_rows(run, path)
                    return table_of(names, some), made

                on(go, predict, [head.run, file], [rows, whole])

        def refresh() -> list:
            return [part for head in tabs for part in head.refresh()]

        page.load(refresh, None, [part for head in tabs for part in head.update],
                  show_progress="hidden", api_visibility="private")  # fmt: skip
        page.load(None, None, None, js=BRUSH)
    return page


def streamed(function: Callable) -> Callable:
    """The same as `answered`, for a handler that answers piece by piece."""
    import gradio as gr

    def wrapped(*args: Any) -> Iterator[Any]:
        try:
            yield from function(*args)
        except Sorry as error:
            raise gr.Error(html.escape(str(error)), None, print_exception=False) from None

    return wrapped


class Policy:
    """Adds to every answer what the browser may load, and refuses those who ask for another host:
    a page elsewhere could have its name point to this machine."""

    def __init__(self, app: Callable, hosts: tuple[str, ...]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Passes a request on."""
        asked = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        if scope["type"] == "http" and self.hosts and asked.rpartition(":")[0] not in self.hosts:
            await send({"type": "http.response.start", "status": 421, "headers": []})
            await send({"type": "http.response.body", "body": b"another host\n"})
            return

        async def answer(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, answer)


def application(host: str) -> Any:
    """The page as an application of ASGI."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    import fastapi
    import gradio as gr
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = answers.MOST_PIXELS  # what no handler looked at
    plain = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=plain, font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None), build(), "/",
        server_name=host, theme=theme, css=CSS, max_file_size=MOST_BYTES, footer_links=[],
        show_error=True, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
    )  # fmt: skip
    local = ("127.0.0.1", "localhost", "[::1]")
    return Policy(app, local if host in ("127.0.0.1", "localhost", "::1") else ())


@cli.command
def main(argv: list[str] | None = None) -> None:
    """Serves the page until Ctrl-C."""
    args = parse_args(argv)
    if not importlib.util.find_spec("gradio"):
        fail('the page needs the package gradio: pip install -e ".[demo]"')
    listener = listen(args.host, args.port)
    import uvicorn

    app = application(args.host)
    shown = "localhost" if args.host == "127.0.0.1" else args.host
    print(f"http://{shown}:{args.port}  (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        TRAINING.cancel()


if __name__ == "__main__":
    main()
