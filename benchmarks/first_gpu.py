"""The first minutes on a machine with an NVIDIA GPU: install, test, build, verify, time, and note it all.

python3 first_gpu.py FOLDER [--seconds 540] [--out FOLDER/results]

FOLDER is what `first_gpu.sh prepare` filled. Needs Python 3.10 and nothing else: it installs from FOLDER
into an environment of its own, which sees what this Python has. After each step, and after each row of
a long one, first_gpu.json and first_gpu.md are written anew: whatever ends the run leaves what there is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from first_gpu_install import BASE, gpu, installations, make_environment
from first_gpu_steps import Step, steps
from first_gpu_table import markdown, profile_rows, said_of

SECONDS = 540
# What the last step leaves for its end to be written.
RESERVE_S = 3
INSTALL_S = 150
# What PyTorch takes to import, and one measurement too many.
OVERHEAD_S = 20
FEWEST_S = 5


# What an exit code is called; None is a command whose time was up.
OUTCOMES = {0: "done", None: "stopped, its time was up"}
ROW = '{"row": '
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StoppedError(Exception):
    """A signal asked the run to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Run:
    """One run: its folder, its clock, what it knows of TensorRT, and what it has found."""

    def __init__(self, folder: Path, out: Path, seconds: float, rehearse: bool):
        self.folder, self.out, self.rehearse = folder, out, rehearse
        self.work = folder / "work"
        self.started = time.monotonic()
        self.end = self.started + seconds
        self.child: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        self.printed: tuple[str, str] | None = None
        # Why no TensorRT builds, and why none runs; None where it does or nobody has tried.
        self.no_builder: str | None = None
        self.no_engines: str | None = None
        self.data: dict[str, Any] = {
            "started": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "seconds": 0.0,
            "machine": {"gpu": gpu(), "python": platform.python_version(), "system": platform.platform()},
            "notes": [],
            "left_out": json.loads((folder / "content.json").read_text())["left_out"],
            "latencies": [],
            "kernels": [],
            "steps": [],
            "documents": {},
        }  # fmt: skip

    @property
    def python(self) -> str:
        """The Python of the environment that is made."""
        return str(self.work / "venv" / "bin" / "python")

    def save(self) -> None:
        """Write both files whole, in place of the last."""
        with self.lock:
            self.data["seconds"] = round(time.monotonic() - self.started, 1)
            texts = {"json": json.dumps(self.data, indent=1), "md": markdown(self.data)}
            for ending, text in texts.items():
                partial = self.out / f".first_gpu.{ending}"
                partial.write_text(text)
                partial.replace(self.out / f"first_gpu.{ending}")

    def note(self, name: str, outcome: str, seconds: float, said: str) -> None:
        """Add a step to the table."""
        self.data["steps"].append(
            {"name": name, "outcome": outcome, "seconds": round(seconds, 1), "said": said}
        )
        if (outcome, said) != self.printed:
            text = f"{name}: {outcome}; {said}".rstrip("; ")
            print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)
        # Many steps are not run for one reason.
        self.printed = ("not run", said) if outcome == "not run" else None
        self.save()

    def left_s(self) -> float:
        """Seconds that a step may still take."""
        return self.end - time.monotonic() - RESERVE_S

    def do(self, step: Step) -> None:
        """Do a step within its budget and what is left, or note why not."""
        if reason := self.why_not(step):
            self.note(step.name, "not run", 0, reason)
            return
        started = time.monotonic()
        self.data["running"] = step.name
        self.save()
        limit_s = min(step.budget_s, self.left_s())
        # A step that stops by itself leaves its last rows, one that is stopped may not.
        filled = {"{work}": str(self.work), "{seconds}": f"{max(limit_s - OVERHEAD_S, 1):.0f}"}
        words = [self.python, *step.words]
        for placeholder, text in filled.items():
            words = [word.replace(placeholder, text) for word in words]
        code, output, errors = self.call(words, limit_s, step.reads)
        seconds = time.monotonic() - started
        del self.data["running"]
        document = read_json(output) if step.reads not in ("text", "rows", "tests") else None
        said = last_line(errors) or last_line(output)
        if document is not None:
            try:
                said = self.keep(step, document)
            except (KeyError, TypeError, ZeroDivisionError) as error:
                said = f"its JSON is not as expected: {error!r}"
        elif step.reads == "rows":
            # The profiler logs too.
            told = [
                line for line in errors.splitlines() if line.startswith(("failed:", "the time"))
            ]
            said = "; ".join([f"{output.count(ROW)} rows", *told, *([said] if code else [])])
        elif step.reads == "tests":
            said = "; ".join([last_line(output) or said, *skipped(output)])
        self.judge(step, code, said)
        outcome = OUTCOMES.get(code, f"exit code {code}")
        if step.reads == "tests" and (code == 5 or " passed" not in output):
            outcome = "no test passed"
        self.note(step.name, outcome, seconds, said)

    def why_not(self, step: Step) -> str | None:
        """Why a step is not run."""
        if step.needs == "builder" and self.no_builder:
            return f"TensorRT was not run: {self.no_builder}"
        if step.needs == "engines" and (reason := self.no_builder or self.no_engines):
            return f"TensorRT was not run: {reason}"
        if step.needs == "builder" and self.no_engines and not self.rehearse:
            return f"TensorRT was not run: {self.no_engines}"
        return "the time is up" if self.left_s() < FEWEST_S else None

    def judge(self, step: Step, code: int | None, said: str) -> None:
        """Let the first build and the first verification say whether TensorRT builds and runs here."""
        # 2 is a library that is missing or does not serve this GPU; 1 is what went wrong with one bundle.
        if code == 2 and step.reads == "build" and not self.built():
            self.no_builder = said
        elif code == 2 and step.reads == "verify" and self.built() and not self.data["latencies"]:
            self.no_engines = said
        for reason in (self.no_builder, self.no_engines):
            text = f"TensorRT was not run: {reason}"
            if reason and text not in self.data["notes"]:
                self.data["notes"].append(text)

    def built(self) -> bool:
        """Whether a build has succeeded before."""
        return any(
            one["name"].startswith("build ") and one["outcome"] == "done" for one in self.data["steps"]
        )  # fmt: skip

    def keep(self, step: Step, document: dict[str, Any]) -> str:
        """Keep what a command found, and say what it comes to."""
        said = said_of(step.reads, document)
        if step.reads == "profile":
            latencies, kernels = profile_rows(document)
            # With --layers it is measured briefly, for the layers.
            self.data["latencies"] += [] if kernels else latencies
            self.data["kernels"] += kernels
        else:
            self.data["documents"][step.name] = document
        return said

    def call(
        self, words: list[str], limit_s: float, reads: str = ""
    ) -> tuple[int | None, str, str]:
        """Run a command: its exit code, None where the time was up, and what it printed."""
        kept = {key: value for key, value in os.environ.items()
                if not key.startswith(("PIP_", "PYTHONPATH", "PYTHONHOME"))}  # fmt: skip
        more = {
            "XDG_CACHE_HOME": str(self.work / "cache"),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
        }
        self.child = subprocess.Popen(
            words, cwd=self.folder / "source", env={**kept, **more, "PIP_CONFIG_FILE": os.devnull},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
        printed: dict[str, list[str]] = {"stdout": [], "stderr": []}
        readers = [
            threading.Thread(target=self.read, args=(stream, printed[name], reads), daemon=True)
            for name, stream in (("stdout", self.child.stdout), ("stderr", self.child.stderr))
        ]
        for reader in readers:
            reader.start()
        code: int | None = None
        try:
            code = self.child.wait(max(limit_s, 1))
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.end_child()
            for reader in readers:
                reader.join(2)
            output, errors = ("".join(printed[name]) for name in ("stdout", "stderr"))
            with (self.out / "first_gpu.log").open("a") as log:
                log.write(f"$ {' '.join(words)}\n{errors}{output}\n")
        return code, output, errors

    def read(self, stream: Any, into: list[str], reads: str) -> None:
        """Read a stream to its end; a row of measurements counts as soon as it is printed."""
        with stream:
            for line in stream:
                into.append(line)
                row = read_json(line) if reads == "rows" and line.startswith(ROW) else None
                if row is not None:
                    place = "kernels" if row.pop("row") == "kernels" else "latencies"
                    with self.lock:
                        self.data[place].append(row)
                    self.save()

    def end_child(self) -> None:
        """End the command that runs, with all that it started."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
            self.child = None


def main() -> None:
    """Install, then do every step that there is time for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `first_gpu.sh prepare` filled")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument(
        "--index", action="store_true", help="let pip fetch TensorRT from its index"
    )
    parser.add_argument("--rehearse", action="store_true", help="go on where there is no GPU")
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    if not (folder / "content.json").is_file():
        parser.error(f"{given.folder} was not filled by first_gpu.sh prepare")
    if not given.rehearse and gpu() is None:
        parser.error("no NVIDIA driver answers here: install it, or see the order with --rehearse")
    out: Path = (given.out or folder / "results").resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "first_gpu.log").write_text("")
    run = Run(folder, out, given.seconds, given.rehearse)
    for name in SIGNALS:
        signal.signal(name, stop)
    try:
        install(run, given.index)
        bundles = unpack(run)
        if not bundles:
            run.no_builder = "no bundle was carried"
        for step in steps(bundles, on_gpu=run.data["machine"]["gpu"] is not None):
            run.do(step)
    except StoppedError as stopped:
        for name in SIGNALS:
            signal.signal(name, signal.SIG_IGN)
        run.end_child()
        run.note(run.data.pop("running", "the run"), f"stopped by {stopped}", 0, "")
        sys.exit(stopped.exit_code)
    print(f"written: {out / 'first_gpu.md'}, {out / 'first_gpu.json'}")


def install(run: Run, index: bool) -> None:
    """Install what is missing; what fails is noted, and without the base nothing can follow."""
    make_environment(run.work / "venv")
    for name, words in installations(run.python, run.folder / "wheels", index).items():
        started = time.monotonic()
        limit_s = min(run.started + INSTALL_S - started, run.left_s())
        code, output, errors = run.call(words, limit_s)
        said = "" if code == 0 else last_line(errors) or last_line(output)
        outcome = OUTCOMES.get(code, f"exit code {code}")
        run.note(f"install {name}", outcome, time.monotonic() - started, said)
        if name == BASE and code != 0:
            sys.exit(f"Error: nothing can run without what is installed first: {said}")


def unpack(run: Run) -> list[str]:
    """Unpack the bundles that are not there yet; their names, of which an engine's folder is made."""
    names = []
    for packed in sorted((run.folder / "bundles").glob("*.tar.xz")):
        name = packed.name.removesuffix(".tar.xz")
        if not (run.work / "bundles" / name).is_dir():
            shutil.unpack_archive(packed, run.work / "bundles", "xztar")
        names.append(name)
    return names


def read_json(text: str) -> dict[str, Any] | None:
    """The object that a text is, or None."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def last_line(text: str) -> str:
    """The last line that says something; of an error that spans lines, its first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith("Error: "):
            return " ".join(lines[number:]).removeprefix("Error: ")[:400]
    return lines[-1][:400] if lines else ""


def skipped(output: str) -> list[str]:
    """Why tests were skipped, in pytest's short summary."""
    lines = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    return list(dict.fromkeys(line.partition(": ")[2] for line in lines))


def stop(number: int, _frame: object) -> NoReturn:
    """Leave whatever runs."""
    raise StoppedError(number)


if __name__ == "__main__":
    main()
