"""Make tiny random models through transformers and compute their logits, whole and pruned.

python families_job.py JOB.json, in an environment with transformers. The job has "folder" and "cases": name -> what
`small_models.family_cases` says of it; "tokenizers": by name, files that are copied beside a model; "converter": the
folder of llama.cpp's own converter, or null; "classes": config classes of transformers, whose defaults go into
defaults.json. Each case's folder gets the checkpoint in model/, and original.npy and pruned.npy:
float32[tokens, vocabulary], where a case with "whole" is not pruned; and converted.gguf, or converter.txt with what
went wrong.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models.packed_checkpoints import PACK
from small_models.tiny_families import LAYERS, Tiny, make_tiny, pruned, save_tiny
from transformers import PreTrainedModel


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: list[int]) -> np.ndarray:
    return np.asarray(model(torch.tensor([tokens])).logits[0].numpy())


def leave_out(path: Path, keys: list[str]) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in keys}))


def one(folder: Path, case: dict[str, Any], job: dict[str, Any]) -> None:
    tiny = Tiny(case["config"], case.get("keys", {}), case.get("extra", {}), case.get("dense", 0))
    model = make_tiny(tiny, vocab_size=job["vocabulary"])
    packed = mxfp4_experts(model) if case.get("mxfp4") else {}
    save_tiny(model, tiny, folder / "model", fused=case.get("fused", False))
    if packed:
        store_packed(folder / "model", packed)
    if case.get("transposed"):
        transpose_experts(folder / "model" / "model.safetensors")
    leave_out(folder / "model" / "config.json", case.get("left_out", []))
    if form := case.get("packed"):
        model = packed_form(folder / "model", model, form)
    for path in job["tokenizers"][case.get("tokenizer", "qwen3")]:
        shutil.copy(path, folder / "model")
    np.save(folder / "original.npy", logits(model, job["tokens"]))
    if case.get("whole"):
        return
    layers = case.get("sparse", range(tiny.dense, tiny.keys.get("num_hidden_layers", LAYERS)))
    kept = {layer: tuple(job["kept"]) for layer in layers}
    np.save(folder / "pruned.npy", logits(pruned(model, kept, job["used"]), job["tokens"]))


def mxfp4_experts(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Give all experts random values of four bits; blocks and scales by their stored names."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator, packed = torch.Generator().manual_seed(0), {}
    for name, values in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, columns, rows = values.shape
            codes = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(121, 125, codes.shape[:-1], generator=generator, dtype=torch.uint8)
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = codes, scales
            with torch.no_grad():
                values.copy_(convert_moe_packed_tensors(codes, scales, dtype=torch.float32))
    return packed


def transpose_experts(path: Path) -> None:
    experts = ("experts.gate_up_proj", "experts.down_proj")
    tensors = load_file(path)
    turned = {name: tensor.transpose(1, 2).contiguous() for name, tensor in tensors.items() if name.endswith(experts)}
    save_file(tensors | turned, path, {"format": "pt"})


def packed_form(folder: Path, model: PreTrainedModel, form: str) -> PreTrainedModel:
    """Store the checkpoint in a packed form; the model with the values that it stands for."""
    path = folder / "model.safetensors"
    packed, values = PACK[form](load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in values.items()}, path, {"format": "pt"})
    made = type(model).from_pretrained(folder, config=model.config, dtype=torch.float32).eval()
    save_file(packed, path, {"format": "pt"})
    return made


def store_packed(folder: Path, packed: dict[str, torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    plain = {name.rpartition("_")[0] for name in packed}
    kept = {name: tensor for name, tensor in load_file(path).items() if name not in plain}
    save_file(kept | packed, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (folder / "config.json").write_text(json.dumps(config))


def by_converter(source: Path, folder: Path, tokenizer: str, others: list[str]) -> None:
    """Real tokenizers are known to the converter by a hash of the tokens of a text, which no tokenizer of tests has:
    it is told the name. What it reads by code of a model only, tiktoken's, is stood for by ``others``."""
    if tokenizer == "tiktoken":
        for path in others:
            shutil.copy(path, folder / "model")
    sys.path[:0] = [str(source / "gguf-py"), str(source)]
    import gguf
    from conversion import ModelBase, ModelType, TextModel, get_model_architecture, get_model_class

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    try:
        kind = get_model_class(get_model_architecture(ModelBase.load_hparams(folder / "model", False), ModelType.TEXT))
        kind.no_mtp = kind.supports_mtp_export
        if tokenizer != "marked":
            kind.set_vocab = TextModel._set_vocab_gpt2  # some look for tokens of their own tokenizer
        with torch.inference_mode():
            kind(folder / "model", gguf.LlamaFileType.ALL_F32, folder / "converted.gguf").write()
    except Exception as error:
        (folder / "converter.txt").write_text(f"{type(error).__name__}: {error}")


def defaults(name: str) -> dict[str, Any]:
    config = getattr(transformers, name)()
    rope = getattr(config, "rope_parameters", None) or {}
    found: dict[str, Any] = config.to_dict()
    return found | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})


def main(path: str) -> None:
    job = json.loads(Path(path).read_text())
    told = {name: defaults(name) for name in job["classes"]}
    (Path(job["folder"]) / "defaults.json").write_text(json.dumps(told, default=str))
    for name, case in job["cases"].items():
        folder = Path(job["folder"]) / name
        folder.mkdir(parents=True)
        one(folder, case, job)
        if job["converter"]:
            tokenizers = job["tokenizers"]
            by_converter(Path(job["converter"]), folder, case.get("tokenizer", "qwen3"), tokenizers["qwen3"])
            if case.get("tokenizer") == "tiktoken":
                (folder / "model" / "tokenizer.json").unlink()
                for path in tokenizers["tiktoken"]:
                    shutil.copy(path, folder / "model")


main(sys.argv[1])
