"""gft-edge on the device: its package unpacked, and a virtual environment with what it requires."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

from gft_edge.remote.agent.messages import NO_SPACE, Desk, RefusedError
from gft_edge.remote.agent.store import linked_or_copied, locked

# In an environment: the requirements that were installed in it.
RECORD = "gft-edge.json"
PARTIAL = ".partial-"
# What pip says of an index that it does not reach, before it blames the requirement.
UNREACHED = ("Retrying (", "Max retries", "NewConnectionError", "ConnectTimeout")


def unpacked(archive: str, folder: str) -> None:
    """Unpack a zip file into a new folder, whole or not at all."""
    partial = tempfile.mkdtemp(prefix=PARTIAL, dir=os.path.dirname(folder))
    try:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(partial)
        os.chmod(partial, 0o755)
        try:
            os.rename(partial, folder)
        except OSError:
            # Another desk was quicker, with the same files.
            if not os.path.isdir(folder):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def env_folder(folder: str) -> str:
    """The folder of the virtual environment of this Python."""
    which = hashlib.sha256(os.path.realpath(sys.executable).encode()).hexdigest()[:8]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return os.path.join(folder, "env", f"{version}-{which}")


def python_of(env: str) -> str:
    """The Python of a virtual environment."""
    return os.path.join(env, "bin", "python")


def requirements_met(env: str) -> list[str]:
    """The requirements that were installed in an environment; none where there is none to go on with."""
    try:
        with open(os.path.join(env, RECORD), encoding="utf-8") as file:
            met: list[str] = json.load(file)
    except (OSError, ValueError):
        return []
    return met if os.path.exists(python_of(env)) else []


def install(
    requirements: list[str], wheels: str | None, pip: str, folder: str, env: str, desk: Desk
) -> None:
    """Install requirements in the virtual environment `env`, which is made where it is absent.

    They come from the device's package index, or from the folder `wheels` alone. `pip` is a zip file with pip
    in it. Raises RefusedError with pip's reason.
    """
    with locked(f"{env}.lock", desk):
        met = requirements_met(env)
        needed = [each for each in requirements if each not in met]
        if not needed:
            return
        if not met:
            desk.say(f"making a virtual environment of {sys.executable} in {env}")
            shutil.rmtree(env, ignore_errors=True)
            # Debian and JetPack have no ensurepip without python3-venv.
            words = ["-m", "venv", "--without-pip", "--system-site-packages", env]
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            what = f"no virtual environment can be made (apt install python{version}-venv)"
            # -m imports from the working folder first, and home may have a logging.py.
            _run([sys.executable, *words], what, os.path.dirname(env))
        desk.say(f"installing {', '.join(needed)}")
        _install(python_of(env), pip, needed, wheels, folder)
        record = os.path.join(env, RECORD)
        with open(f"{record}.new", "w", encoding="utf-8") as file:
            json.dump(sorted({*met, *needed}), file)
        os.replace(f"{record}.new", record)


def commands_environment(folder: str) -> dict[str, str]:
    """The environment variables of commands: what they remember is kept in the device's folder."""
    cache = os.path.join(folder, "cache")
    return {
        **os.environ,
        "XDG_CACHE_HOME": cache,
        "CUDA_CACHE_PATH": os.path.join(cache, "cuda"),
        "TMPDIR": os.path.join(cache, "tmp"),
        "PYTHONPYCACHEPREFIX": os.path.join(cache, "bytecode"),
        "PYTHONUTF8": "1",
    }


def _install(
    python: str, pip: str, requirements: list[str], wheels: str | None, folder: str
) -> None:
    # --no-user: a pip.conf may ask for it, and nothing is written outside of the folder.
    words = ["install", "--no-user", "--no-input", "--no-cache-dir", "--disable-pip-version-check"]
    if wheels is not None:
        words += ["--no-index", "--find-links", wheels]
    env = commands_environment(folder)
    with tempfile.TemporaryDirectory(dir=env["TMPDIR"]) as scratch:
        archive = os.path.join(scratch, "pip.zip")
        linked_or_copied(pip, archive)
        command = [python, os.path.join(archive, "pip"), *words, *requirements]
        _run(command, f"pip cannot install {', '.join(requirements)}", scratch, env)


def _run(words: list[str], what: str, cwd: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
        if any(word in line for line in lines for word in UNREACHED):
            raise RefusedError(
                f"{what}: the device reaches no package index; --offline fetches here what it needs"
            )
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            raise RefusedError(f"{what}: {NO_SPACE}")
        # pip's own reasons begin so, and venv's last line with the type of its error.
        errors = (
            [line for line in lines if line.startswith("ERROR: ")] or lines or ["no reason given"]
        )
        raise RefusedError(f"{what}: {errors[-1].strip().removeprefix('ERROR: ')}")
