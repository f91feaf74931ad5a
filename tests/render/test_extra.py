"""What users add by hand, checked against the build and against what the compiler decides."""

from __future__ import annotations

import pytest

from launcher.engine import recorded
from launcher.errors import Finding
from tests.render.plan_factory import render_argv, server_plan

NEWEST = recorded("b10434")


def findings(*extra: str, **changes: object) -> list[Finding]:
    """Findings of a server with `extra` in extra_args."""
    return list(render_argv(server_plan(extra_args=extra, **changes), NEWEST, "b")[1])


def codes(*extra: str, **changes: object) -> list[tuple[str, str]]:
    """Codes and keys of those findings, the key without `servers.frontdoor.`."""
    return [(f.code, f.key.removeprefix("servers.frontdoor.")) for f in findings(*extra, **changes)]


@pytest.mark.parametrize(
    "extra",
    [
        ("--timeout", "600"),
        (),
        ("--logit-bias", "15043-1", "--seed", "-1"),
        ("--numa", "numactl"),
        ("--control-vector-layer-range", "1", "2"),
        ("--log-colors", "enabled"),
        ("--prio", "2", "--poll-batch", "50"),
        ("--reasoning-format", "auto"),
        ("--override-kv", "llama.rope.freq_base=float:1"),
        ("--no-perf", "--warmup"),
    ],
)
def test_accepted(extra: tuple[str, ...]) -> None:
    """Flags with their values, in every shape."""
    assert codes(*extra) == []
    argv, _ = render_argv(server_plan(extra_args=extra), NEWEST, "b")
    assert argv[len(argv) - len(extra) :] == extra


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--lookup",), "has no flag --lookup"),
        (("--draft-max", "24"), "has removed --draft-max"),
        (("--jinja", "false"), "refuses 'false': --jinja takes no value"),
        (("--timeout=3",), "refuses '--timeout=3'"),
        (("stray",), "has no flag stray"),
    ],
)
def test_the_seeds_flags_that_builds_refuse(extra: tuple[str, ...], message: str) -> None:
    """Unknown, removed, a value behind a switch, `=`: unknown-flag, as the server itself would say."""
    (finding, *more) = findings(*extra)
    assert finding.code == "engine/unknown-flag"
    assert message in finding.message
    assert more == []


def test_embedding_false_is_two_mistakes() -> None:
    """The seed's `--embedding false`: decided by config, and a switch besides."""
    assert codes("--embedding", "false") == [
        ("engine/flag-conflict", "extra_args.0"),
        ("engine/unknown-flag", "extra_args.1"),
    ]


def test_did_you_mean() -> None:
    """A close name is suggested."""
    (finding,) = findings("--cache-reus")
    assert finding.notes == ("did you mean --cache-reuse?",)


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (("--numa", "everywhere"), "takes distribute, isolate, numactl, not 'everywhere'"),
        (("--timeout",), "takes 1 value, 0 given"),
        (("--control-vector-layer-range", "1"), "takes 2 values, 1 given"),
        (("--rope-scaling", "yarm"), "not 'yarm'"),
    ],
)
def test_bad_values(extra: tuple[str, ...], part: str) -> None:
    """Missing values and values that the help does not list."""
    (finding,) = findings(*extra)
    assert finding.code == "engine/bad-value"
    assert part in finding.message


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        (("-c", "4096"), "n_ctx"),
        (("--swa-full",), "swa_full"),
        (("-nkvo",), "kv_offload"),
        (("--cpu-moe",), "n_cpu_moe"),
        (("-m", "/other.gguf"), "model"),
        (("-ngl", "3"), "n_gpu_layers"),
        (("--no-mmproj-offload",), "projector_device"),
        (("--spec-type", "draft-simple,ngram-mod"), "ngram"),
    ],
)
def test_what_the_compiler_decides(extra: tuple[str, ...], key: str) -> None:
    """By any spelling, also where we would have said nothing; the fix takes it away and names the config key."""
    (finding,) = findings(*extra)
    assert finding.code == "engine/flag-conflict"
    assert finding.fixes[0].override == "servers.frontdoor.extra_args=[]"
    assert finding.fixes[0].effect == f"leaves it to servers.frontdoor.{key}"


def test_fit_has_no_key() -> None:
    """A second fit by the server would change the plan."""
    (finding,) = findings("--fit", "on")
    assert (finding.code, finding.fixes[0].effect) == ("engine/flag-conflict", "leaves it to the compiler")


def test_our_habits_give_way() -> None:
    """Flags that the plan does not depend on are the user's, if he wants them."""
    argv, found = render_argv(server_plan(extra_args=("--warmup", "--cors-origins", "*", "--webui")), NEWEST, "b")
    assert found == ()
    assert "--no-warmup" not in argv
    assert "--no-ui" not in argv
    assert argv.count("--cors-origins") == 1


def test_expert_counts_have_one_say() -> None:
    """--override-kv of the planned key conflicts; other keys do not."""
    override = {"experts_used": 6}
    assert codes("--override-kv", "qwen3moe.expert_used_count=int:4", arch="qwen3moe", **override) == [
        ("engine/flag-conflict", "extra_args.0")
    ]
    assert codes("--override-kv", "llama.rope.scale=int:4", **override) == []
    assert codes("--override-kv", "a.b=int:4", **override) == [("engine/override-key", "extra_args.0")]


def test_deprecated_is_a_warning() -> None:
    """The build still takes it."""
    (finding,) = findings("--defrag-thold", "0.1")
    assert (finding.code, finding.severity) == ("engine/deprecated-flag", "warning")


def test_secrets_stay_out_of_argv() -> None:
    """--api-key shows its value to every user of the host; --api-key-file does not. The value is not repeated."""
    (finding,) = findings("--api-key", "hunter2")
    assert finding.code == "engine/secret-in-argv"
    assert "hunter2" not in str(finding)
    assert codes("--api-key-file", "/run/keys") == []


def test_the_environment_decides_nothing() -> None:
    """llama-server reads flags from variables too."""
    assert codes(env={"LLAMA_ARG_SWA_FULL": "1", "LLAMA_ARG_TIMEOUT": "3", "PATH": "/bin"}) == [
        ("engine/flag-conflict", "env.LLAMA_ARG_SWA_FULL")
    ]
