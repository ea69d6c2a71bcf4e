"""A train.py in a process of its own, watched from the page: its lines, how far it is, its end."""

import atexit
import json
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from common.folder import read_rows

LINES = 12  # that are shown
FOLDER = re.compile(r", in (runs/\S+?)(?:,|$)")  # what a run says of its place as it begins
INSIDE = re.compile(r"^epoch +(\d+)(?:/\d+)?: (\d+)/(\d+)")  # a line of a progress bar


class Training:
    """One command at a time; nothing that is there is overwritten, as each run has a new folder."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.command, self.lines, self.folder = "", deque(maxlen=LINES), None
        self.inside, self.lock = 0.0, threading.Lock()
        atexit.register(self.cancel)

    @property
    def runs(self) -> bool:
        """Whether a command is at work."""
        return self.process is not None and self.process.poll() is None

    def start(self, command: Sequence[str]) -> bool:
        """Starts `python SCRIPT FLAGS` in the current directory; False while another one runs."""
        with self.lock:
            if self.runs:
                return False
            self.lines.clear()
            self.folder, self.inside = None, 0.0
            self.command = " ".join(["python", *command])
            self.process = subprocess.Popen(
                [sys.executable, "-u", *command], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
        threading.Thread(target=self.read, args=(self.process,), daemon=True).start()
        return True

    def read(self, process: subprocess.Popen) -> None:
        """Keeps the last lines, and finds the run's folder in them."""
        for line in process.stdout:
            if inside := INSIDE.match(line):
                self.inside = int(inside[2]) / max(1, int(inside[3]))
                continue
            self.inside = 0.0
            if found := FOLDER.search(line.strip()):
                self.folder = Path(found[1])
            self.lines.append(line.rstrip())

    def share(self) -> float:
        """How much of the run is done, from 0 to 1."""
        if self.folder is None:
            return 0.0
        try:
            flags = json.loads((self.folder / "config.json").read_text())["flags"]
            rows = [row for row in read_rows(self.folder) if not row.get("final")]
        except (OSError, ValueError, KeyError):
            return 0.0
        last = rows[-1] if rows else {}
        if flags.get("epochs"):
            return min(1.0, (last.get("epoch", 0) + self.inside) / flags["epochs"])
        return min(1.0, last.get("step", 0) / max(1, flags.get("steps") or 1))

    def cancel(self) -> None:
        """Ends it as Ctrl-C does: after its step, with everything saved. (By SIGTERM: what was
        started in the background may never hear of Ctrl-C.)"""
        if self.runs:
            self.process.terminate()

    def said(self) -> str:
        """The last lines."""
        return "\n".join(self.lines)

    def end(self) -> str:
        """How it ended, in a line."""
        status = self.process.wait() if self.process else 0
        errors = [line for line in self.lines if line.startswith("error: ")]
        if status == 0:
            return "done"
        if status in (128 + signal.SIGTERM, -signal.SIGTERM):
            return "stopped"
        return errors[-1].removeprefix("error: ") if errors else f"it ended with status {status}"
