"""Start vLLM once and measure; a child of load.py and artifact.py beside it.

Runs in vLLM's environment, with -P: `vllm` is not this folder. Prints one JSON line.

measure.py MODEL NEW [OPTIONS]: a start, and prompts with NEW tokens after each. OPTIONS is a JSON object for load
format collab.
measure.py --dequantize ROWS COLUMNS ROUNDS: dequantizing a matrix, by type.
measure.py --make FOLDER TOKENIZER LAYERS WIDTH EXPERTS EXPERT_WIDTH: writes a Qwen3-MoE checkpoint with random
bfloat16 weights.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

PROMPTS, PROMPT, REPEATS = 8, 32, 3
CLOCK = time.process_time if os.environ.get("BENCH_CLOCK") == "processor" else time.perf_counter
"""Of decoding. Processor time is what a core needs, whatever else runs on it."""


def main(model: Path, new: int, options: dict[str, Any] | None) -> None:
    from vllm import LLM, SamplingParams

    evict(model)
    load: dict[str, float] = {}
    watch_loaders(load)
    how: dict[str, Any] = {}
    if options is not None:
        how = {"load_format": "collab", "model_loader_extra_config": options}
    begun = time.perf_counter()
    # One short request at a time is no measure of serving; eight at once are.
    llm = LLM(
        str(model), enforce_eager=True, max_model_len=256, max_num_seqs=PROMPTS, enable_prefix_caching=False, **how
    )
    start = time.perf_counter() - begun
    prompts = [{"prompt_token_ids": [3 + (7 * i + j) % 2048 for j in range(PROMPT)]} for i in range(PROMPTS)]
    wanted = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
    llm.generate(prompts, wanted, use_tqdm=False)
    speeds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        made = sum(len(o.outputs[0].token_ids) for o in llm.generate(prompts, wanted, use_tqdm=False))
        speeds.append(made / (time.perf_counter() - begun))
    figures = {**load, "start_s": start, "tokens_s": statistics.median(speeds)}
    for name, count in (("one", 1), ("all", PROMPTS)):
        found = [decoding(llm, prompts[:count], new) for _ in range(REPEATS)]
        figures |= {f"{name}_s": statistics.median(new for _, new in found)}
        figures["prompt_s"] = statistics.median(prompt for prompt, _ in found)
    print("MEASURED " + json.dumps(figures), flush=True)


def decoding(llm: Any, prompts: Sequence[Any], new: int) -> tuple[float, float]:
    """Tokens a second of prompts, and of what follows after the first token; all requests together."""
    from vllm import SamplingParams

    times = []
    for tokens in (1, 1 + new):
        wanted = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
        begun = CLOCK()
        llm.generate(prompts, wanted, use_tqdm=False)
        times.append(CLOCK() - begun)
    return len(prompts) * PROMPT / times[0], len(prompts) * new / (times[1] - times[0])


def watch_loaders(load: dict[str, float]) -> None:
    """Fill ``load`` when a loader has run, see load.py's Row. What the disk gave counts from here."""
    from collab_vllm.load.safetensors_files import Weights
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    asked: list[int] = []
    disk = disk_bytes()
    for loader in (DefaultModelLoader, _LOAD_FORMAT_TO_MODEL_LOADER["collab"]):
        loader.load_model = watched(loader.load_model, load, asked, disk)
    # The check at start reads router weights; they count too.
    Weights.parts = counted(Weights.parts, asked)  # type: ignore[method-assign]
    DefaultModelLoader._get_weights_iterator = counted(DefaultModelLoader._get_weights_iterator, asked)


def counted(original: Callable[..., Iterator[Any]], asked: list[int]) -> Callable[..., Iterator[Any]]:
    def iterate(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for name, tensor in original(*args, **kwargs):
            asked.append(tensor.nbytes)
            yield name, tensor

    return iterate


def watched(original: Callable[..., Any], load: dict[str, float], asked: list[int], disk: int) -> Callable[..., Any]:
    def load_model(*args: Any, **kwargs: Any) -> Any:
        Path("/proc/self/clear_refs").write_text("5")  # peak resident memory counts from here
        before, begun = status("VmRSS"), time.perf_counter()
        model = original(*args, **kwargs)
        load["load_s"] = time.perf_counter() - begun
        load["asked_mb"] = sum(asked) / 1e6
        load["disk_mb"] = (disk_bytes() - disk) / 1e6
        load["peak_mb"] = (status("VmHWM") - before) / 1e6
        return model

    return load_model


def dequantize_matrices(rows: int, columns: int, rounds: int) -> None:
    """Milliseconds a matrix, by type: as plain PyTorch and compiled, in turn."""
    import torch
    from collab_vllm.experts.ggml.compiled import Compiled
    from collab_vllm.experts.ggml.dequantize import BLOCKS, tables_of
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    torch.manual_seed(0)
    found = {}
    for kind, function in BLOCKS.items():
        values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        blocks = torch.randint(0, 256, (rows * columns // values, size), dtype=torch.uint8)
        ways: dict[str, Callable[..., Any]] = {"plain": function, "compiled": Compiled(function)}
        times: dict[str, list[float]] = {way: [] for way in ways}
        tables = tables_of(kind, blocks.device)
        with torch.inference_mode():
            for number in range(rounds + 1):
                for way, call in ways.items():
                    begun = time.perf_counter()
                    call(blocks, *tables)
                    if number:  # the first compiles
                        times[way].append(1e3 * (time.perf_counter() - begun))
        found[kind] = {way: statistics.median(values) for way, values in times.items()}
    print("MEASURED " + json.dumps(found), flush=True)


def evict(model: Path) -> None:
    """Drop the model's files from the page cache, so that reading them is reading the disk."""
    for path in model.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.fdatasync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def disk_bytes() -> int:
    """What storage was asked to fetch for this process, page faults of memory maps included (proc_pid_io(5))."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def make(folder: Path, tokenizer: Path, layers: int, width: int, experts: int, expert_width: int) -> None:
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=3072, hidden_size=width, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=max(1, width // 256), head_dim=64,
        num_experts=experts, num_experts_per_tok=8, moe_intermediate_size=expert_width, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=2048, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=3071, pad_token_id=3069,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    # transformers 5 saves the count as num_local_experts, published checkpoints have num_experts.
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings.pop("num_local_experts", None)
    path.write_text(json.dumps(settings | {"num_experts": experts}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make(Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
    elif sys.argv[1] == "--dequantize":
        dequantize_matrices(*map(int, sys.argv[2:]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else None)
