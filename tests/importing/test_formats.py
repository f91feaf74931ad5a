"""llama-swap, presets, scripts, units, compose files: what becomes of each."""

from __future__ import annotations

import pytest
import yaml

from launcher.importing import Imported, imported_text, translate
from launcher.importing.formats import UnknownFormatError, format_of
from tests.importing.test_flags import FLAGS

ENV = {"HOME": "/home/me"}


def read(name: str, text: str) -> Imported:
    """The translation; its text is YAML that says the same."""
    imported = translate(name, text, FLAGS, ENV)
    written = yaml.safe_load(imported_text(imported, name))["servers"] or {}
    assert {n: s if isinstance(s, dict) else {"file": s} for n, s in written.items()} == imported.servers
    return imported


def lost(imported: Imported) -> str:
    """All that was lost, as one text."""
    return "\n".join(f.message for f in imported.findings)


SWAP = """\
healthCheckTimeout: 60
globalTTL: 300
macros:
  server: llama-server --port ${PORT}
  ctx: 4096
  args: "-c ${ctx} -np 1"
  dir: ${env.HOME}/m
models:
  "qwen3:8b":
    cmd: |
      # the big one
      ${server} -m ${dir}/q.gguf ${args}
    macros: {ctx: 16384}
    aliases: [gpt-4, {id: gpt-4o}]
    env: ["OMP_NUM_THREADS=1"]
    ttl: 600
    filters: {stripParams: "temperature, top_p", setParams: {top_k: 1}}
  small: {cmd: "${server} -m ${dir}/s.gguf"}
  embed: {cmd: "${server} -m ${dir}/e.gguf --embeddings", ttl: 0}
  rerank: {cmd: "${server} -m ${dir}/r.gguf --reranking"}
groups:
  always: {swap: false, exclusive: false, persistent: true, members: [embed, rerank]}
hooks: {on_startup: {preload: [embed, "qwen3:8b"]}}
"""


def test_llama_swap() -> None:
    """Macros in macros, aliases, ttl, environment, filters, groups, preload."""
    imported = read("config.yaml", SWAP)
    assert imported.findings == []
    assert imported.servers["qwen3-8b"]["aliases"] == ["qwen3:8b", "gpt-4", "gpt-4o"]
    big = imported.servers["qwen3-8b"]
    assert (big["file"], big["n_ctx"], big["slots"]) == ("/home/me/m/q.gguf", 16384, 1)
    assert (big["ttl_s"], big["tier"], big["exclusive"], big["default"]) == (600, "hot", "swap", True)
    assert (big["request_strip"], big["request_set"]) == (["temperature", "top_p"], {"top_k": 1})
    assert (big["env"], big["start_timeout_s"]) == ({"OMP_NUM_THREADS": "1"}, 60)
    small, embed, rerank = (imported.servers[name] for name in ("small", "embed", "rerank"))
    assert (small["exclusive"], small["tier"], small["ttl_s"]) == ("swap", "warm", 300)
    assert (embed.get("exclusive"), embed["tier"], embed["ttl_s"]) == (None, "hot", 0)
    assert (rerank["pooling"], rerank["tier"]) == ("rank", "warm")


def test_groups_of_llama_swap() -> None:
    """A group that swaps among its own and leaves others alone has turns of its own."""
    text = "models: {a: {cmd: llama-server -m a}, b: {cmd: llama-server -m b}, c: {cmd: llama-server -m c}}\n"
    imported = read("c.yaml", text + "groups: {own: {exclusive: false, members: [a, b]}}\n")
    assert [s.get("exclusive") for s in imported.servers.values()] == ["own", "own", "swap"]
    imported = read("c.yaml", text + "groups: {all: {swap: false, members: [a, b, d]}}\n")
    assert [s.get("exclusive") for s in imported.servers.values()] == [None, None, "swap"]
    assert "send all others away" in lost(imported)
    assert "d is no model" in lost(imported)


def test_groups_and_comments_of_newer_llama_swap() -> None:
    """Groups may be settings of the router; a macro in a comment brings nothing to life."""
    text = """\
macros: {run: "llama-server\\n--port ${PORT}"}
models:
  a: {cmd: "# ${run} is above\\n${run}\\n-m a"}
  b: {cmd: "${run} -m b"}
routing: {router: {use: %s, settings: {groups: {own: {exclusive: false, members: [a]}}, matrix: {}}}}
"""
    imported = read("c.yaml", text % "group")
    assert [s["exclusive"] for s in imported.servers.values()] == ["own", "swap"]
    assert imported.findings == []
    imported = read("c.yaml", text % "matrix")
    assert [s["exclusive"] for s in imported.servers.values()] == ["swap", "swap"]
    assert "a matrix" in lost(imported)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("apiKeys: [sk-1]", "apiKeys"),
        ("peers: {p: {proxy: http://x}}", "peers"),
        ("matrix: {vars: {}}", "matrix"),
        ("models: {a: {cmd: llama-server -m a, concurrencyLimit: 3}}", "concurrencyLimit"),
        ("models: {a: {cmd: llama-server -m a, proxy: 'http://other:1'}}", "proxy"),
        ("models: {a: {cmd: 'llama-server -m a ${no}'}}", "${no}"),
        ("models: {a: {cmd: 'llama-server -m \"a'}}", "no shell line"),
        ("models: {a: {cmd: vllm serve}}", "vllm"),
        ("models: {a: {cmd: llama-server --port 1}}", "names no model file"),
        ("models: {a: {}}", "no `cmd`"),
        ("models: {a: {cmd: llama-server -m a, filters: {setOther: {b: 1}}}}", "setOther"),
        (
            "models: {a: {cmd: llama-server -m a, filters: {setParamsByID: {a: {k: 1}, b: {l: 1}}}}}",
            "sets k for a alone",
        ),
        ("models: {a: {cmd: llama-server -m a, cmdStop: /my/stop}}", "cmdStop"),
        ("models: {a: {cmd: llama-server -m a, metadata: {x: 1}}}", "metadata"),
        ("hooks: {on_startup: {preload: [z]}}", "z is no model"),
        ("selectors: {s: {targets: [b]}}", "selectors"),
        ("profiles: {s: {}}", "profiles"),
    ],
)
def test_losses_of_llama_swap(more: str, says: str) -> None:
    """One finding for each, and never the key itself."""
    imported = read(
        "c.yaml", more if more.startswith("models") else f"models: {{b: {{cmd: llama-server -m b}}}}\n{more}"
    )
    assert says in lost(imported)
    assert "sk-1" not in lost(imported)


def test_a_preset_of_the_router() -> None:
    """`[*]` for all, switches with true and false, what is loaded at start; a repository is no file."""
    text = """\
version = 1
[*]
c = 8192
n-gpu-layers = 99
jinja = true
[qwen]
model = /m/q.gguf
parallel = 2
load-on-startup = true
[embed]
LLAMA_ARG_MODEL = /m/e.gguf
embedding = true
mlock = false
[ggml-org/x-GGUF:Q8_0]
c = 512
"""
    imported = read("preset.ini", text)
    assert imported.servers == {
        "qwen": {"file": "/m/q.gguf", "n_ctx": 8192, "n_gpu_layers": "all", "slots": 2, "tier": "hot"},
        "embed": {"file": "/m/e.gguf", "n_ctx": 8192, "n_gpu_layers": "all", "embedding": True, "tier": "warm"},
    }
    assert "ggml-org/x-GGUF:Q8_0" in lost(imported)


def test_a_preset_with_indented_lines() -> None:
    """Each is a line of its own, also behind a flag without a value."""
    imported = read("p.ini", "[a]\n  jinja\n  model = /m/a.gguf\n    ctx-size = 4096\n    parallel = 1\n")
    assert imported.servers == {"a": {"file": "/m/a.gguf", "n_ctx": 4096, "slots": 1, "tier": "warm"}}


def test_a_script() -> None:
    """Variables with defaults, lines that go on, wrappers, what is behind `&` and `>`."""
    text = """\
#!/bin/bash
export DIR=/srv/models
CTX="${CTX:-4096}"
# llama-server -m not.gguf
CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=2 nohup /opt/llama.cpp/llama-server \\
  -m $DIR/Big-Q4_K_M.gguf -c $CTX -np 1 --port 8081 > big.log 2>&1 &
llama-server -m ${DIR}/e.gguf --embedding --port 8082 -a embeddings &
wait
"""
    imported = read("start.sh", text)
    assert imported.findings == []
    assert imported.servers == {
        "big-q4-k-m": {
            "file": "/srv/models/Big-Q4_K_M.gguf",
            "n_ctx": 4096,
            "slots": 1,
            "port": 8081,
            "devices": [],
            "env": {"OMP_NUM_THREADS": "2"},
        },
        "embeddings": {"file": "/srv/models/e.gguf", "embedding": True, "port": 8082},
    }


def test_a_script_as_people_write_them() -> None:
    """Several commands a line, the shell's own words, wrappers with options; a path that nobody can know is said."""
    text = """\
DIR="/srv/my models"; MODEL="$DIR/it's.gguf"; export A=1 CTX=2048
cd ~/llama.cpp && ./llama-server -m "$MODEL" -c $CTX 2>&1 | tee log &
if pgrep llama-server; then echo up; else sudo -u llama nice -n 10 A=b llama-server -m /b.gguf; fi
screen -dmS x numactl --interleave=all llama-server -m /c.gguf && echo done
llama-server -m "$NOWHERE/d.gguf" >d.log
llama-server -m 'open.gguf
"""
    imported = read("start.sh", text)
    assert imported.servers == {
        "it-s": {"file": "/srv/my models/it's.gguf", "n_ctx": 2048, "slots": 4, "kv_unified": True},
        "b": {"file": "/b.gguf", "env": {"A": "b"}},
        "c": {"file": "/c.gguf"},
        "d": {"file": "$NOWHERE/d.gguf"},
    }
    for word in ("line 3: runs pgrep", "numactl", "$NOWHERE in the model's path", "No closing quotation"):
        assert word in lost(imported)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.service", "[Service]\nEnvironment=A='x\nExecStart=llama-server -m '/a.gguf\n", "No closing quotation"),
        ("a.yaml", 'services: {s: {image: llama.cpp:server, command: "-m \'/x"}}', "No closing quotation"),
        ("a.yaml", "services: {s: {image: llama.cpp:server, command: 7, volumes: a, environment: 5}}", "'7' belongs"),
        ("a.yaml", 'models: {m: {cmd: "llama-server -m \'/x"}}', "No closing quotation"),
        ("a.yaml", "models: {m: {cmd: [llama-server]}}", "has no `cmd`"),
        ("a.ini", "[m]\njinja\n", "names no model file"),
    ],
)
def test_what_cannot_be_read_is_said(name: str, text: str, says: str) -> None:
    """And ends nothing."""
    assert says in lost(read(name, text))


def test_a_list_of_one_without_brackets() -> None:
    """YAML that people write for a list is one of one item, never its letters; a time that is none is none."""
    text = """\
models:
  one: {cmd: llama-server -m /a.gguf, env: A=b, aliases: uno, ttl: soon}
hooks: {on_startup: {preload: one}}
groups: {g: {exclusive: false, members: one}}
globalTTL: never
"""
    assert read("a.yaml", text).servers["one"] == {
        "file": "/a.gguf", "env": {"A": "b"}, "aliases": ["uno"], "tier": "hot",
        "ttl_s": 0, "exclusive": "g", "default": True,
    }  # fmt: skip


def test_a_unit() -> None:
    """`ExecStart` with its environment; files of environment and other commands are lost, and said."""
    text = """\
[Service]
Environment="DIR=/srv/models" CTX=2048
EnvironmentFile=/etc/llama
ExecStartPre=/bin/true
ExecStart=/usr/bin/llama-server -m ${DIR}/q.gguf \\
    -c $CTX -np 1
"""
    imported = read("/etc/systemd/system/coder.service", text)
    assert imported.servers["coder"]["file"] == "/srv/models/q.gguf"
    assert imported.servers["coder"]["n_ctx"] == 2048
    assert [f.key for f in imported.findings] == ["EnvironmentFile", "ExecStartPre"]
    assert "no ExecStart" in lost(translate("x.service", "[Service]\n", FLAGS, ENV))


def test_a_compose_file() -> None:
    """Mounts become paths, `LLAMA_ARG_…` flags; a service of another image is lost."""
    text = """\
services:
  chat:
    image: ghcr.io/ggml-org/llama.cpp:server-cuda
    command: --port 8080 -c 8192 -np 2
    volumes: ["${HOME}/m:/models"]
    environment: {LLAMA_ARG_MODEL: /models/q.gguf, LLAMA_ARG_EMBEDDINGS: "1"}
    ports: ["8080:8080"]
    restart: always
    networks: [x]
  ui: {image: ghcr.io/open-webui/open-webui}
"""
    imported = read("compose.yaml", text)
    assert imported.servers == {"chat": {"file": "/home/me/m/q.gguf", "embedding": True, "n_ctx": 8192, "slots": 2}}
    for word in ("open-webui", "`networks`", "container"):
        assert word in lost(imported)


@pytest.mark.parametrize(
    ("name", "text"), [("a.yaml", "a: 1"), ("a.yaml", "["), ("a.yaml", "- 1"), ("a.txt", "hello"), ("a.json", "{}")]
)
def test_what_is_none_of_them(name: str, text: str) -> None:
    """It is refused with a reason."""
    with pytest.raises(UnknownFormatError):
        translate(name, text, FLAGS, ENV)


def test_formats_without_a_telling_name() -> None:
    """What is in a file says what it is."""
    assert format_of("run", "exec llama-server -m a") == "script"
    assert format_of("x", "[Service]\nExecStart=llama-server") == "unit"


@pytest.mark.parametrize(
    "options",
    [
        "-dit",
        "--interactive --tty",
        "--read-only",
        "-P",
        "-dp 8080:8080",
        "-p8080:8080",
        "-itp=80:80 -eA=b",
        "--rm=true",
    ],
)
def test_options_of_docker_run(options: str) -> None:
    """Those without a value take none of the words behind them; short ones stand together, with the value attached."""
    command = f"docker run {options} -v /m:/models ghcr.io/ggml-org/llama.cpp:server -m /models/a.gguf"
    for name, text in (("s.yaml", f"models: {{m: {{cmd: {command}}}}}"), ("s.sh", f"sudo {command}\n")):
        (server,) = read(name, text).servers.values()
        assert server["file"] == "/m/a.gguf"
        assert server.get("env", {}) == ({"A": "b"} if "-eA=b" in options else {})


def test_a_variable_that_a_container_takes_from_the_shell() -> None:
    """Its value is not known here: it is no empty one, which would keep a server off all cards."""
    service = "{image: 'llama.cpp:server', command: -m /a.gguf, environment: %s}"
    for environment in ("{HF_HOME: , CUDA_VISIBLE_DEVICES: , B: 1}", "[HF_HOME, CUDA_VISIBLE_DEVICES, B=1]"):
        imported = read("compose.yaml", f"services: {{chat: {service % environment}}}")
        assert imported.servers == {"chat": {"file": "/a.gguf", "env": {"B": "1"}}}
        assert "HF_HOME" in lost(imported)
        assert "CUDA_VISIBLE_DEVICES" in lost(imported)


def test_a_unit_with_drop_ins() -> None:
    """As `systemctl cat` shows it: an empty line takes back those before it; spaces and specifiers are systemd's."""
    text = (
        "[Service]\nEnvironment=A=b\nExecStart=llama-server -m /a.gguf\n"
        "[Service]\nEnvironment=\nEnvironment = C=d\nExecStart=\n"
        "ExecStart = llama-server -m %h/b%%.gguf --alias %i\n"
    )
    imported = read("x.service", text)
    assert imported.servers == {"x": {"file": "/home/me/b%.gguf", "env": {"C": "d"}, "aliases": ["%i"]}}
    assert "%i" in lost(imported)


def test_a_subshell_in_a_script() -> None:
    """The shell's brackets are not words of the command, those in a name are its own."""
    imported = read(
        "x.sh", "(llama-server -m 'a (1).gguf' &)\n( cd /x; llama-server -m b.gguf )\n(llama-server -m c.gguf)\n"
    )
    assert [s["file"] for s in imported.servers.values()] == ["a (1).gguf", "b.gguf", "c.gguf"]


def test_values_that_no_fleet_file_can_have() -> None:
    """A date, a number that is none: left out and said, not a failure of ours."""
    filters = "{setParams: {a: 2020-01-01, b: .nan}}"
    imported = read("s.yaml", f"models: {{m: {{cmd: llama-server -m a.gguf, filters: {filters}}}}}")
    assert "request_set" not in imported.servers["m"]
    assert "request_set" in lost(imported)
    imported = read("s.sh", "llama-server -m a.gguf --temp nan --top-p inf -ts 1,nan\n")
    assert imported.servers == {"a": {"file": "a.gguf"}}
    assert lost(imported).count("is not a value") == 3


def test_a_small_file_that_expands_to_a_big_one() -> None:
    """Aliases of aliases, and one that has itself, are refused at once."""
    pairs = zip("abcdefghijkl", "bcdefghijklm", strict=True)
    bomb = "a: &a [x]\n" + "".join(f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in pairs)
    for text in (bomb, "x: &x {y: *x}\n"):
        with pytest.raises(UnknownFormatError, match="too many values"):
            translate("a.yaml", f"{text}models: {{m: {{cmd: llama-server -m a.gguf}}}}\n", FLAGS, ENV)


def test_a_name_of_several_lines_stays_in_its_comment() -> None:
    """The file that was read may be called anything."""
    text = imported_text(translate("s.sh", "llama-server -m a.gguf\n", FLAGS, ENV), "x\nwaive: [y]\n#.sh")
    assert yaml.safe_load(text) == {"servers": {"a": "a.gguf"}}
