"""A rendered folder is proven before it is installed: its command lines by their own binaries, on this host."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from launcher.ir.fleet import FleetManifest
from launcher.proving import prove_rendered
from launcher.runtime import read_deployment
from tests.cli.conftest import Cli
from tests.proving.test_here import ILL, engine


def rendered(cli: Cli, binary: Path) -> Path:
    """The packaged default by another binary, rendered."""
    cli.run("render", *cli.dev, f"engines.default.binary={binary}", "--output", str(cli.home / "out"))
    return next(path.parent for path in (cli.home / "out").rglob("fleet.json"))


def manifest(cli: Cli, binary: Path) -> FleetManifest:
    """What the runtime reads of it."""
    return read_deployment(rendered(cli, binary))[0]


def test_a_sound_folder_has_nothing_to_say(cli: Cli, llama_server: Path) -> None:
    """The plan of the packaged default is not less than what its binary says."""
    assert prove_rendered(manifest(cli, llama_server)) == ()


def test_less_than_the_binary_takes_is_an_error(cli: Cli, llama_server: Path) -> None:
    """A folder whose limits are half of what the server needs is refused, with both figures and the remedy."""
    whole = manifest(cli, llama_server)
    need = msgspec.structs.replace(whole.servers[0].memory[0], committed_bytes=1, file_bytes=1)
    server = msgspec.structs.replace(whole.servers[0], memory=(need,))
    (found,) = prove_rendered(msgspec.structs.replace(whole, servers=(server,)))
    assert (found.code, found.severity) == ("plan/proof-mismatch", "error")
    assert "MiB on ram, 0 KiB planned" in found.message
    assert "render" in found.notes[0]


def test_install_refuses_an_engine_that_dies(cli: Cli, llama_server: Path, tmp_path: Path) -> None:
    """Of a rendered folder, too: exit code 6, the finding, nothing written."""
    binary = engine(tmp_path, llama_server, "exec " + str(llama_server) + ' "$@"')
    folder = rendered(cli, binary)
    engine(tmp_path, llama_server, ILL)
    done = cli.run("install", "--user", str(folder), code=6)
    assert "host/engine-unfit" in done.stdout + done.stderr
    assert not list((cli.home / ".config").rglob("*.service"))


def test_a_folder_without_its_binary_is_not_asked(cli: Cli, llama_server: Path, tmp_path: Path) -> None:
    """What is missing is said where units are verified."""
    binary = engine(tmp_path, llama_server, "exec " + str(llama_server) + ' "$@"')
    whole = manifest(cli, binary)
    shutil.rmtree(binary.parent, ignore_errors=True) if binary.parent != tmp_path else binary.unlink()
    assert prove_rendered(whole) == ()


def test_a_binary_is_asked_with_the_libraries_of_a_server_that_has_them(
    cli: Cli, llama_server: Path, tmp_path: Path
) -> None:
    """One server's library path is wrong, and its binary says nothing: the next one's is right, and it is proven."""
    whole = manifest(cli, llama_server)
    (server,) = whole.servers
    binary = tmp_path / "llama-server"
    binary.write_text(f'#!/bin/sh\n[ "${{LD_LIBRARY_PATH##*/}}" = right ] && exec {llama_server} "$@"\nexit 127\n')
    binary.chmod(0o755)
    need = msgspec.structs.replace(server.memory[0], committed_bytes=1, file_bytes=1)
    servers = tuple(
        msgspec.structs.replace(
            server,
            name=name,
            argv=(str(binary), *server.argv[1:]),
            env={**server.env, "LD_LIBRARY_PATH": str(tmp_path / name)},
            memory=(need,),
        )
        for name in ("wrong", "right")
    )
    (found,) = prove_rendered(msgspec.structs.replace(whole, servers=servers))
    assert (found.code, found.key) == ("plan/proof-mismatch", "servers.right")


def test_render_can_take_the_proof(cli: Cli) -> None:
    """`render --prove` writes what `render` writes where the bound is enough, and who proved it."""
    plain, proven = (cli.home / name for name in ("plain", "proven"))
    cli.run("render", *cli.dev, "--output", str(plain))
    cli.run("render", *cli.dev, "--prove", "--output", str(proven))
    texts = [{p.relative_to(at): p.read_bytes() for p in at.rglob("*") if p.is_file()} for at in (plain, proven)]
    folder = Path("dev-dev")
    differ = {path for path, text in texts[0].items() if texts[1].pop(path) != text}
    assert (differ, texts[1]) == ({folder / "fleet.json", folder / ".launch-files.json"}, {})
    bound, asked = (read_deployment(at / folder)[0] for at in (plain, proven))
    (server,) = asked.servers
    assert server.proved is not None
    assert bound == msgspec.structs.replace(asked, servers=(msgspec.structs.replace(server, proved=None),))
