"""A Hugging Face folder that lacks a tensor, or claims absurd counts, is refused when opened.

llama.cpp would take some of these: without lm_head it uses the embedding, without the bias it routes
otherwise, and says nothing.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from small_models.hf_folder import deepseek, write_folder

from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.errors import CollabError


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.0.self_attn.q_a_proj.weight",
        "model.layers.0.self_attn.kv_b_proj.weight",
        "model.layers.1.mlp.shared_experts.up_proj.weight",
        "lm_head.weight",
    ],
)
def test_missing_tensor(name: str, tmp_path: Path) -> None:
    config, tensors = deepseek()
    del tensors[name]
    with pytest.raises(CollabError):
        open_safetensors(write_folder(tmp_path / "m", config, tensors))


OPEN = """
import sys
from pathlib import Path
from collab_plugin.checkpoint.safetensors import open_safetensors
from collab_plugin.errors import CollabError
try:
    open_safetensors(Path(sys.argv[1]))
except CollabError:
    sys.exit(2)
"""


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_routed_experts", "vocab_size"])
def test_absurd_counts_cost_nothing(key: str, tmp_path: Path) -> None:
    config, tensors = deepseek()
    folder = write_folder(tmp_path / "m", config | {key: 2**31}, tensors)
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder)],
        timeout=20,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30)),
    )
    assert done.returncode == 2, done.stderr.decode()
