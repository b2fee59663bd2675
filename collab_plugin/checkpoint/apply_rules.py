"""A family's rules applied to the tensors of a folder: every tensor is used, or known not to matter, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from gguf import GGMLQuantizationType as Type

from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.family import Conversion, Prediction
from collab_plugin.checkpoint.families.tensors import TensorRule
from collab_plugin.checkpoint.rearranged_sources import Constant
from collab_plugin.checkpoint.storage.microscaled import Nvfp4
from collab_plugin.checkpoint.storage.quantization import Quantization
from collab_plugin.checkpoint.storage.recognise import beside, is_stored, matrix_of, stored_name, without_effect
from collab_plugin.checkpoint.storage.stored_matrix import Matrix
from collab_plugin.checkpoint.tensor_sources import ExpertFactors, TensorSource
from collab_plugin.errors import CollabError
from collab_plugin.formats.safetensors_header import Stored
from collab_plugin.formats.tensor_names import Role, layer_of, role_of

_LAYER = re.compile(r"^(?:.*\.)?layers\.(\d+)\.")
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.")
# Matrices that llama.cpp's converter leaves as F32, beside norms and routers (conversion/base.py, prepare_tensors).
_FLOAT32 = ("ssm_conv1d.weight", "indexer.proj.weight")
_COMPUTED = ("rotary_emb.inv_freq",)  # stored by old versions of transformers, computed by all


class RuleMatcher:
    """``stored``: all tensors of a folder by name. ``scales_experts``: as in `routers.scales_experts`."""

    def __init__(
        self,
        conversion: Conversion,
        config: Config,
        stored: Mapping[str, Stored],
        quantization: Quantization,
        scales_experts: bool = False,
    ) -> None:
        self.config, self.stored, self._quantization = config, stored, quantization
        self._scales_experts = scales_experts
        self.layers = config.integer("num_hidden_layers")
        self._prediction = conversion.prediction
        self._sets = {
            "all": lambda config, layer: True,
            "dense": conversion.dense,
            "experts": lambda config, layer: not conversion.dense(config, layer),
            **conversion.layer_sets,
        }
        self._constants = conversion.constants(config)
        self._sizes = conversion.sizes(config)
        rules = sorted(conversion.tensors(config), key=lambda rule: rule.gguf)  # stable: alternatives keep their order
        self._rules = [list(group) for _, group in groupby(rules, key=lambda rule: rule.gguf)]
        self._tied = bool(config.get("tie_word_embeddings"))
        self._used: set[str] = set()

    def sources(self) -> dict[str, TensorSource]:
        """Tensors of the GGUF in its order; CollabError for one that is missing, has another shape, or is unknown."""
        found: dict[str, TensorSource] = dict(self._all())
        found |= {name: Constant(values) for name, values in self._constants.items()}
        self._check_rest()
        return dict(sorted(found.items(), key=lambda item: _order(item[0])))

    def prediction_layers(self) -> list[int]:
        """Layers behind the decoder's that only predict further tokens; CollabError when they are something else."""
        behind: dict[int, list[str]] = {}
        for name in self.stored:
            found = _LAYER.match(name)
            if found and int(found[1]) >= self.layers:
                behind.setdefault(int(found[1]), []).append(name)
        if behind:
            self._check_prediction(behind, self._prediction)
        return sorted(behind)

    def _check_prediction(self, behind: Mapping[int, Sequence[str]], prediction: Prediction | None) -> None:
        many = f"{self.config.where} has num_hidden_layers = {self.layers}, and layer {min(behind)} is stored"
        if prediction is None:
            raise CollabError(f"{many}: correct the number, for no layer may be left out")
        counted = self.config.integer(prediction.count)
        if len(behind) > counted:
            raise CollabError(f"{many}: {len(behind)} layers more, {prediction.count} tells of {counted}; correct one")
        for names in behind.values():
            if not any(name.endswith(prediction.marks) for name in names):
                raise CollabError(f"{many}: it predicts no further tokens ({prediction.marks[0]} is not there)")

    def _all(self) -> Iterator[tuple[str, TensorSource]]:
        for rules in self._rules:
            if rules[0].layers == "outside":
                if not (self._tied and rules[0].gguf == "output.weight"):
                    yield from self._one(rules, 0)
                continue
            for layer in range(self.layers):
                if here := [rule for rule in rules if self._sets[rule.layers](self.config, layer)]:
                    yield from self._one(here, layer)

    def _one(self, alternatives: Sequence[TensorRule], layer: int) -> Iterator[tuple[str, TensorSource]]:
        name = alternatives[0].gguf.replace("{layer}", str(layer))
        there = [rule for rule in alternatives if self._starts(rule, layer)]
        rule = next((rule for rule in there if self._fits(rule, layer)), there[0] if there else None)
        if rule is None:
            if not alternatives[0].optional:
                wanted = next(alternatives[0].names(layer, 1))
                raise CollabError(f"{self.config.where}: the folder has no {wanted}; download it again")
            return
        role = role_of(name)
        matrices = [self._matrix(stored, rule) for stored in rule.names(layer, self._sizes["experts"])]
        wide = (
            role in (Role.NORM, Role.ROUTER, Role.ROUTER_BIAS)
            or len(matrices[0].shape) <= 1
            or not name.endswith(".weight")
            or name.endswith(_FLOAT32)
        )
        yield from self._taken(name, rule, matrices, wide)

    def _taken(
        self, name: str, rule: TensorRule, matrices: list[Matrix], wide: bool
    ) -> Iterator[tuple[str, TensorSource]]:
        """The tensor, and beside experts that stay NVFP4 each one's scale, for which a GGUF's blocks have no place."""
        scaled = [matrix for matrix in matrices if isinstance(matrix, Nvfp4)]
        kept = self._scales_experts and rule.by_expert and name.endswith("_exps.weight")
        if scaled and not kept:
            for matrix in scaled:
                matrix.native = None
        made = rule.take(matrices, wide, self._sizes)
        yield name, made
        if made.type == Type.NVFP4:
            yield f"{name.removesuffix('weight')}scale", ExpertFactors(scaled)

    def _starts(self, rule: TensorRule, layer: int) -> bool:
        return is_stored(next(rule.names(layer, 1)), self.stored)

    def _fits(self, rule: TensorRule, layer: int) -> bool:
        """Whether the stored shape is the rule's: some models are stored transposed or not."""
        held = self.stored.get(next(rule.names(layer, 1)))
        return held is not None and held.shape == rule.wanted(self._sizes)

    def _matrix(self, name: str, rule: TensorRule) -> Matrix:
        if not is_stored(name, self.stored):
            count = self._sizes["experts"]
            raise CollabError(f"{name} is not stored: an expert is missing or too many ({count} are configured)")
        wanted = rule.wanted(self._sizes)
        matrix = matrix_of(name, wanted, self.stored, self._quantization)
        self._used.update(part.name for part in matrix.parts)
        held = stored_name(name, self.stored)
        matrix.name = self.stored[held].name.removesuffix(held.removeprefix(name))  # as the folder spells it
        if matrix.shape != wanted:
            raise CollabError(
                f"{name} has the shape {list(matrix.shape)}, by {self.config.where} it is {list(wanted)} ({rule.shape})"
            )
        return matrix

    def _check_rest(self) -> None:
        for name in sorted(name for name, stored in self.stored.items() if stored.name not in self._used):
            layer = _LAYER.match(name)
            if beside(name, self.stored) or without_effect(name):
                continue
            if name.endswith(_COMPUTED) or (self._tied and name == "lm_head.weight"):
                continue
            if layer and int(layer[1]) >= self.layers:
                continue  # prediction layers, which were checked
            self._refuse(name)

    def _refuse(self, name: str) -> None:
        found, count = _EXPERT.match(name), self._sizes["experts"]
        if found and int(found[2]) >= count:
            raise CollabError(f"{found[1]}: expert {found[2]} is missing or too many ({count} are configured)")
        raise CollabError(f"tensor {name!r} has no name in GGUF for this family; is it of another version?")


def _order(name: str) -> tuple[int, int, str]:
    layer = layer_of(name)
    return (0 if name.startswith("token_embd") else 2 if layer is None else 1, layer or 0, name)
