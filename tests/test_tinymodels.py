"""The tiny models load and serve in the real llama-server, and the faulty ones fail as they should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tinymodels import ARCHITECTURES, PROJECTORS, plan, write, write_parts, write_sparse
from tests.tinymodels.faulty import FAULTS, bit_rot, missing_part
from tests.tinymodels.full_size import SHAPES, write_full_size
from tests.tinymodels.picture import png
from tests.tinymodels.running import RunningServer, ServerExitedError, memory_breakdown

TinyModels = Callable[..., Path]
SMALL = ("-np", "1", "-c", "1024", "-t", "2")
CASES = [(arch, "f16") for arch in ARCHITECTURES] + [
    ("llama", "q8_0"),
    ("llama", "q4_0"),
    ("qwen3moe", "q8_0"),
    ("qwen3next", "q4_0"),
    ("deepseek2", "q8_0"),
    ("gpt-oss", "mxfp4"),
]
FAILURE_LINES = {
    "empty": "failed to read magic",
    "garbage": "invalid magic characters",
    "bad magic": "invalid magic characters",
    "future version": "this GGUF file is version 99",
    "absurd count": "number of tensors is 1152921504606846976",
    "truncated header": "failed to read key-value pairs",
    "truncated": "data is not within the file bounds",
    "one byte short": "data is not within the file bounds",
    "lfs pointer": "invalid magic characters",
    "unknown architecture": "unknown model architecture: 'frobnicator'",
}


@pytest.fixture(autouse=True)
def no_children_left() -> Iterator[None]:
    """Every test ends without a child process that it started."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert [child for child in left if "llama" in child.name()] == []


def completion(server: RunningServer, prompt: str = "Hello", **fields: Any) -> dict[str, Any]:
    """One /completion that must answer 200."""
    status, answer = server.post(
        "/completion", {"prompt": prompt, "n_predict": 24, "ignore_eos": True, "seed": 1, **fields}
    )
    assert status == 200, answer
    result: dict[str, Any] = answer
    return result


@pytest.mark.parametrize(("arch", "quantization"), CASES, ids=["-".join(case) for case in CASES])
def test_every_architecture_is_served(
    llama_server: Path, tiny_models: TinyModels, arch: str, quantization: str
) -> None:
    """The server becomes ready on the file, shows its path, answers in printable text or numbers, and stops with 0."""
    path = tiny_models(arch, quantization=quantization)
    assert 50_000 < path.stat().st_size < 2_000_000
    embedding = arch == "bert"
    with RunningServer(llama_server, "-m", path, *SMALL, *(["--embedding"] if embedding else [])) as server:
        status, properties = server.get("/props")
        assert (status, properties["model_path"], properties["total_slots"]) == (200, str(path), 1)
        if embedding:
            status, answer = server.post("/v1/embeddings", {"input": "the cat sat"})
            assert status == 200
            assert len(answer["data"][0]["embedding"]) == 64
        else:
            for prompt in ("Hello", "non-ASCII ends é"):
                answer = completion(server, prompt, temperature=1.0)
                assert answer["content"].isprintable()
                assert (answer["tokens_predicted"], answer["stop_type"]) == (24, "limit")
    assert server.process.returncode == 0
    assert not psutil.pid_exists(server.pid)


def test_a_chat_uses_the_template_of_the_file(llama_server: Path, tiny_models: TinyModels) -> None:
    """Chat works for byte-level BPE and SentencePiece alike, with exactly as many tokens as asked."""
    for arch in ("qwen3", "gemma3"):
        with RunningServer(llama_server, "-m", tiny_models(arch), *SMALL) as server:
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "ignore_eos": True}
            status, answer = server.post("/v1/chat/completions", body)
            assert (status, answer["usage"]["completion_tokens"]) == (200, 8)
            assert answer["choices"][0]["message"]["content"].isprintable()


def test_the_draft_shares_the_vocabulary_of_llama(llama_server: Path, tiny_models: TinyModels) -> None:
    """With --spec-type the draft's proposals are accepted in part."""
    files = ("-m", tiny_models("llama"), "-md", tiny_models("draft"), "--spec-type", "draft-simple")
    with RunningServer(llama_server, *files, *SMALL) as server:
        answer = completion(server, temperature=0)
    assert 0 < answer["timings"]["draft_n_accepted"] <= answer["timings"]["draft_n"]
    assert answer["tokens_predicted"] == 24


def test_multi_token_prediction_drafts(llama_server: Path, tiny_models: TinyModels) -> None:
    """qwen35moe has an MTP layer that `draft-mtp` speculates with."""
    path = tiny_models("qwen35moe")
    with RunningServer(llama_server, "-m", path, "--spec-type", "draft-mtp", *SMALL) as server:
        answer = completion(server, temperature=0)
    assert answer["timings"]["draft_n"] > 0
    assert answer["content"].isprintable()


def test_an_assertion_of_the_server_is_a_signal(llama_server: Path, tiny_models: TinyModels) -> None:
    """More experts used than there are: GGML_ASSERT, the child dies of SIGABRT."""
    wrong = ("--override-kv", "qwen3moe.expert_used_count=int:99")
    with (
        pytest.raises(ServerExitedError, match="GGML_ASSERT") as caught,
        RunningServer(llama_server, "-m", tiny_models("qwen3moe"), *wrong, *SMALL),
    ):
        pass
    assert caught.value.code == -6


def test_a_server_that_is_not_ready_in_time_is_ended(llama_server: Path, tiny_models: TinyModels) -> None:
    """The time limit raises TimeoutError and leaves no process."""
    server = RunningServer(llama_server, "-m", tiny_models("llama"), *SMALL, timeout_s=0.0)
    with pytest.raises(TimeoutError), server:
        pass
    assert server.process.returncode is not None


@pytest.mark.parametrize("arch", PROJECTORS)
def test_an_image_is_described(llama_server: Path, tiny_models: TinyModels, arch: str) -> None:
    """Each model with a projector takes an image through the chat endpoint."""
    files = ("-m", tiny_models(arch), "--mmproj", tiny_models(PROJECTORS[arch]))
    with RunningServer(llama_server, *files, *SMALL) as server:
        assert server.get("/props")[1]["modalities"]["vision"] is True
        content = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": png(64, 64)}}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
        status, answer = server.post("/v1/chat/completions", body)
        assert status == 200, answer
        assert answer["choices"][0]["message"]["content"].isprintable()


def test_a_projector_of_another_width_is_refused(llama_server: Path, tiny_models: TinyModels) -> None:
    """A projector for n_embd 32 does not load beside a model of 64."""
    files = ("-m", tiny_models("qwen2vl"), "--mmproj", tiny_models("qwen2vl-projector", n_embd=32))
    with (
        pytest.raises(ServerExitedError, match="mismatch between text model") as caught,
        RunningServer(llama_server, *files, *SMALL),
    ):
        pass
    assert caught.value.code == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_refused(llama_server: Path, tiny_models: TinyModels, tmp_path: Path, fault: str) -> None:
    """The server exits with 1 and its own words for the fault."""
    path = FAULTS[fault](tiny_models("llama"), tmp_path)
    logs = []
    for _ in range(5):
        with pytest.raises(ServerExitedError) as caught, RunningServer(llama_server, "-m", path, *SMALL):
            pass
        assert caught.value.code == 1
        logs.append(caught.value.log)
        if FAILURE_LINES[fault] in logs[-1]:
            return
    # its log thread does not always get to write the last lines before it exits; five times in a row it does
    pytest.fail("\n---\n".join(logs))


def test_bit_rot_is_seen_only_when_asked(llama_server: Path, tiny_models: TinyModels, tmp_path: Path) -> None:
    """NaN weights load; `--check-tensors` refuses them."""
    path = bit_rot(tiny_models("llama"), tmp_path)
    with RunningServer(llama_server, "-m", path, *SMALL) as server:
        assert server.get("/health")[0] == 200
    with (
        pytest.raises(ServerExitedError, match="invalid data"),
        RunningServer(llama_server, "-m", path, *SMALL, "--check-tensors"),
    ):
        pass


def test_a_split_model_loads_by_its_first_part(llama_server: Path, tmp_path: Path) -> None:
    """Two parts say what one file says; without part 2 the server refuses."""
    first, second = write_parts("llama", tmp_path)
    whole = write("llama", tmp_path)
    assert first.name == "llama-f16-00001-of-00002.gguf"
    assert second.exists()
    answers = []
    for path in (first, whole):
        with RunningServer(llama_server, "-m", path, *SMALL) as server:
            answers.append(completion(server, temperature=0)["content"])
    assert answers[0] == answers[1]
    with (
        pytest.raises(ServerExitedError, match="failed to load GGUF split from"),
        RunningServer(llama_server, "-m", missing_part(tmp_path), *SMALL),
    ):
        pass


@pytest.mark.parametrize("name", SHAPES)
def test_a_sparse_file_is_enough_for_a_dry_run(llama_server: Path, tmp_path: Path, name: str) -> None:
    """A full-size header with a hole gives the memory breakdown, and takes almost no disk."""
    path = write_full_size(name, tmp_path)
    status = path.stat()
    assert status.st_blocks * 512 < 200_000
    assert status.st_size > 500_000_000
    kind = ["--embedding"] if name.startswith("bge") else []
    rows = memory_breakdown(llama_server, "-m", path, "-c", "8192", "-np", "1", "--no-repack", *kind)
    assert any("Host" in row for row in rows)


def test_the_dry_run_knows_the_weights(llama_server: Path, tmp_path: Path) -> None:
    """Without repacking the model column of a sparse file is the sum of its tensors."""
    path = write_sparse("qwen3", tmp_path, quantization="q8_0", n_layer=8, n_embd=1024, n_ff=4096, n_vocab=32000)
    rows = memory_breakdown(llama_server, "-m", path, "-c", "1024", "-np", "1", "--no-repack", "--device", "none")
    host = next(row for row in rows if "Host" in row)
    model_mib = int(host.split("=")[1].split("+")[0])
    assert abs(model_mib - path.stat().st_size / 2**20) <= 2


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    """Every architecture is deterministic by seed, and another seed is another file."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for arch in ARCHITECTURES:
        first, second = (write(arch, tmp_path / name) for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
        other = write(arch, tmp_path / "a", seed=7)
        assert other != first
        assert other.read_bytes() != first.read_bytes()


def test_wrong_names_are_errors(tmp_path: Path) -> None:
    """An unknown architecture, field or type says what there is."""
    with pytest.raises(ValueError, match="no tiny model of architecture 'lama'"):
        write("lama", tmp_path)
    with pytest.raises(TypeError, match="did you mean 'n_layer'"):
        plan("llama", n_layers=3)
    with pytest.raises(ValueError, match="no GGML type 'q4_k_m'"):
        write("llama", tmp_path, quantization="q4_k_m")
