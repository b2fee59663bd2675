"""`evaluate --tasks` as users run it: real lm-evaluation-harness, real served models, no network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from collab_llamacpp.llamacpp_engine import LlamaCppEngine
from collab_lm_eval.lm_eval_runner import LmEvalRunner
from gguf import LlamaFileType
from small_models.llama_cpp_calls import llama_quantize

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.engines.engine import Decoding
from collab_plugin.engines.results import Served
from collab_plugin.errors import CollabError
from collab_plugin.plugins.open_checkpoint import open_checkpoint

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
TOOL = (sys.executable, "-c", "from collab_plugin.cli import main; main()")
LIMIT = 6


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An empty Hugging Face cache, and no way to fill it."""
    return {"HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_HUB_OFFLINE": "1"}


def run(
    environment: dict[str, str], *arguments: object, folder: Path | None = HERE
) -> subprocess.CompletedProcess[str]:
    own = ("--tasks-folder", folder) if folder else ()
    command = [*TOOL, "evaluate", *arguments, *own, "--threads", "1"]
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_windows_are_made_by_the_script(tmp_path: Path) -> None:
    subprocess.run([sys.executable, HERE / "make_windows.py", tmp_path], check=True)
    made = sorted(tmp_path.glob("*.jsonl"))
    assert [path.name for path in made] == [f"windows_{d}.jsonl" for d in ("english", "german", "python")]
    for path in made:
        assert path.read_bytes() == (HERE / path.name).read_bytes()
        text = (HERE.parent / "texts" / f"{path.stem.removeprefix('windows_')}.validation.txt").read_text("utf-8")
        labels = set()
        for line in path.read_text("utf-8").splitlines():
            item = json.loads(line)
            whole = [context + item["continuation"] in text for context in item["contexts"]]
            assert whole[item["label"]]
            assert sum(whole) == 1, item
            labels.add(item["label"])
        assert labels == {0, 1, 2, 3}


@pytest.fixture(scope="session")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-deepseek-v3 at TQ1_0, which suits no model that was not trained for it: answers must change."""
    out, source = (
        tmp_path_factory.mktemp("coarse") / "tq1_0.gguf",
        as_gguf(open_checkpoint(MODELS / "tiny-deepseek-v3"), 1),
    )
    llama_quantize(source, out, "TQ1_0", LlamaFileType.MOSTLY_TQ1_0, open_gguf(source), None)
    return out


@pytest.mark.slow
def test_a_model_beside_its_original(coarse: Path, offline: dict[str, str]) -> None:
    original = MODELS / "tiny-deepseek-v3"
    done = run(offline, coarse, "--against", original, "--tasks", "windows", "--limit", LIMIT, "--json")
    assert done.returncode == 0, done.stderr
    assert "lm_eval" not in done.stderr, "its log stays in the child"
    told = json.loads(done.stdout)["tasks"]
    assert (told["asked"], told["limit"], told["ctx"]) == (["windows"], LIMIT, 2048)
    rows = {row["task"]: row for row in told["rows"]}
    assert list(rows) == ["windows_english", "windows_german", "windows_python", "windows"]
    for row in told["rows"]:
        assert row["metric"] == "acc"
        assert row["higher_is_better"] is True
        assert row["recovery"] == pytest.approx(100 * row["value"] / row["original"])
        assert row["difference"] == pytest.approx(row["value"] - row["original"])
        assert row["gained"] - row["lost"] == round(row["difference"] * row["samples"])
    whole = rows.pop("windows")
    assert whole["samples"] == 3 * LIMIT
    assert whole["value"] == pytest.approx(sum(row["value"] for row in rows.values()) / 3)
    # Chance is 0.25 with a standard deviation of 0.1 over 18 items: four of them above.
    assert whole["original"] >= 0.65
    assert whole["value"] < whole["original"]
    assert whole["lost"] > whole["gained"]


@pytest.mark.slow
def test_one_model_alone_as_a_table(offline: dict[str, str]) -> None:
    done = run(offline, MODELS / "tiny-qwen3moe", "--tasks", "windows_python", "--limit", 10)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "windows_python" in line)
    score = float(row.split("│")[3].split("±")[0])
    assert score >= 0.7  # chance is 0.25 ± 0.14
    assert "original" not in done.stdout
    assert "40 of 40 requests" in done.stderr


_GENERATION = """
task: continue
dataset_path: json
dataset_kwargs:
  data_files:
    test: continue.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs:
  until: ["\\n"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: %d
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def generation_task(folder: Path, answers: dict[str, str], most: int = 12) -> None:
    (folder / "continue.yaml").write_text(_GENERATION % most)
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in answers.items()]
    (folder / "continue.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_generation(tmp_path: Path, offline: dict[str, str]) -> None:
    """Answers made by the engine itself are met exactly, others are not."""
    model = as_gguf(open_checkpoint(MODELS / "tiny-qwen3moe"), 1)
    answers = {}
    for n, prompt in enumerate(("In the beginning God", "import os\nimport", "Die Datei", "def main(")):
        made = LlamaCppEngine().generate(
            model, prompt, Decoding(max_tokens=12, ctx=64), threads=1, write=lambda text: None
        )
        answers[prompt] = "something else" if n == 3 else made.text.split("\n")[0]
    generation_task(tmp_path, answers)
    done = run(offline, model, "--tasks", "continue", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["tasks"]["rows"]
    assert (row["metric"], row["samples"], row["value"]) == ("exact_match", 4, 0.75)


_EXAMPLES = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: sums.jsonl
test_split: test
fewshot_split: test
num_fewshot: 3
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
"""


@pytest.mark.slow
def test_the_same_examples_before_the_questions_of_both(
    qwen3moe: Path, tmp_path: Path, offline: dict[str, str]
) -> None:
    """Perplexity tells the least difference in a prompt; its error is drawn, not calculated."""
    (tmp_path / "sums.yaml").write_text(_EXAMPLES)
    items = [{"question": f"{i} plus {i * 3 % 7} is", "answer": str(i + i * 3 % 7)} for i in range(12)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n")
    done = run(offline, qwen3moe, "--against", qwen3moe, "--tasks", "sums", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["tasks"]["rows"]
    assert (row["metric"], row["samples"], row["shots"]) == ("perplexity", 12, 3)
    assert row["value"] == row["original"] > 1
    assert row["stderr"] == row["original_stderr"] > 0
    assert (row["recovery"], row["difference"], row["lost"]) == (None, 0, None)


@pytest.mark.slow
def test_text_and_tasks_together(qwen3moe: Path, tmp_path: Path, offline: dict[str, str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over a lazy dog. " * 8)
    done = run(
        offline, qwen3moe, "--against", qwen3moe, "--text", text, "--ctx", 300,
        "--tasks", "windows_python", "--limit", 1, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["mean_kld"] == pytest.approx(0, abs=1e-9)
    assert told["tasks"]["rows"][0]["recovery"] in (None, 100)
    assert told["tasks"]["rows"][0]["lost"] == 0
    # The tiny vocabulary has a token a byte: 240 characters before and 60 after fill 300.
    assert "fill the context of 300 tokens" in done.stderr


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == done.stderr.splitlines()[-1:], done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.slow
def test_an_unknown_task(qwen3moe: Path, offline: dict[str, str]) -> None:
    said = error_of(run(offline, qwen3moe, "--tasks", "mmlu,gsm9k", folder=None))
    assert "unknown task 'gsm9k'" in said
    assert "gsm8k" in said


_HUB = "task: hub\ndataset_path: openai/gsm8k\ntest_split: test\ndoc_to_text: a\ndoc_to_target: b\n"


@pytest.mark.slow
def test_data_without_a_network(qwen3moe: Path, tmp_path: Path, offline: dict[str, str]) -> None:
    (tmp_path / "hub.yaml").write_text(_HUB)
    said = error_of(run(offline, qwen3moe, "--tasks", "hub", folder=tmp_path))
    assert "cannot be had: Couldn't reach 'openai/gsm8k'" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        (_GENERATION % 8 + "unsafe_code: true\n", "continue runs code that the model writes"),
        (_GENERATION.replace("continue.jsonl", "none.jsonl") % 8, "none.jsonl"),
        ("task: continue\noutput_type: multiple_choice\ndataset_path: !function nothing.here\n", "nothing"),
    ],
)
def test_tasks_that_cannot_be_loaded(
    yaml: str, says: str, tmp_path: Path, offline: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from collab_lm_eval.load_tasks import load

    generation_task(tmp_path, {"a": "b"})
    (tmp_path / "continue.yaml").write_text(yaml)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CollabError) as error:
        load(["continue"], str(tmp_path))
    assert says in str(error.value)


@pytest.mark.slow
def test_more_to_generate_than_the_context_holds(qwen3moe: Path, tmp_path: Path, offline: dict[str, str]) -> None:
    generation_task(tmp_path, {"a": "b"}, most=200)
    said = error_of(run(offline, qwen3moe, "--tasks", "continue", "--ctx", 100, folder=tmp_path))
    assert "generates up to 200 tokens, more than the context of 100 holds: raise --ctx" in said


@pytest.mark.slow
def test_a_wrong_original_is_told_before_the_work(qwen3moe: Path, tmp_path: Path, offline: dict[str, str]) -> None:
    done = run(offline, qwen3moe, "--against", tmp_path / "none", "--tasks", "windows_python", "--limit", 1)
    assert f"{tmp_path / 'none'} does not exist" in error_of(done)
    assert "requests" not in done.stderr


def _children() -> set[int]:
    pid = os.getpid()
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in /proc")
def test_the_harness_ends_with_us(monkeypatch: pytest.MonkeyPatch, offline: dict[str, str]) -> None:
    for key, value in offline.items():
        monkeypatch.setenv(key, value)
    before = _children()
    with pytest.raises(KeyboardInterrupt), LmEvalRunner().load(["windows"], limit=1, folder=HERE) as harness:
        assert harness.tasks == 3
        assert len(_children() - before) == 1
        raise KeyboardInterrupt
    assert _children() <= before
    with (
        pytest.raises(
            CollabError,
            match=r"ended by SIGKILL while it tried to run tasks \(the machine ran out of memory",
        ),
        LmEvalRunner().load(["windows"], limit=1, folder=HERE) as harness,
    ):
        for pid in _children() - before:
            os.kill(pid, signal.SIGKILL)
        harness.run(Served("http://127.0.0.1:9", "", 64), lambda done, total: None)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in /proc")
def test_a_server_killed_between_two_answers(monkeypatch: pytest.MonkeyPatch, offline: dict[str, str]) -> None:
    """Not the connection that broke is told, but why."""
    for key, value in offline.items():
        monkeypatch.setenv(key, value)
    model = as_gguf(open_checkpoint(MODELS / "tiny-qwen3moe"), 1)
    with LmEvalRunner().load(["windows"], limit=1, folder=HERE) as harness:
        before = _children()

        def kill(done: int, total: int) -> None:
            for pid in (_children() - before) if done == 3 else ():
                os.kill(pid, signal.SIGKILL)

        with (
            pytest.raises(CollabError, match="ended by SIGKILL while it tried to serve") as error,
            LlamaCppEngine().serve(model, ctx=None, threads=1) as served,
        ):
            harness.run(served, kill)
    assert "ended before its tasks did" in str(error.value.__cause__)


def in_process(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_mistakes_on_the_command_line(qwen3moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    cases: tuple[tuple[tuple[object, ...], str], ...] = (
        ((qwen3moe,), "nothing to evaluate on"),
        ((qwen3moe, "--tasks", " , "), "--tasks is empty"),
        ((qwen3moe, "--text", "a.txt"), "give it with --against"),
        ((qwen3moe, "--tasks", "mmlu"), "pip install 'collab-plugin[tasks]'"),
    )
    for arguments, says in cases:
        result = in_process(*arguments)
        assert result.exit_code == 2, arguments
        assert says in result.stderr.splitlines()[-1]
    monkeypatch.undo()
    result = in_process(qwen3moe, "--tasks", "windows", "--tasks-folder", HERE / "nowhere")
    assert result.exit_code == 2
    assert "nowhere does not exist" in result.stderr
