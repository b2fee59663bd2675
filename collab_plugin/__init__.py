"""Compress Mixture-of-Experts models under a byte budget: prune, adjust top-k, quantize, place.

This is the one address of the public names. Each is imported from its home when it is first asked for, so that
``import collab_plugin`` itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Module -> its public names. The imports below say the same to type checkers; tests/plugins/test_public_names.py
# holds the two together.
_HOMES = {
    "api.calibrate": ("calibrate",),
    "api.check": ("check",),
    "api.compress": ("compress",),
    "api.evaluate": ("evaluate", "evaluate_tasks", "reference"),
    "api.fit": ("fit",),
    "api.inspect": ("inspect",),
    "api.place": ("hit_rates", "place"),
    "api.plan": ("plan",),
    "api.probe": ("probe",),
    "api.report": ("report",),
    "api.run": ("run",),
    "api.sample": ("sample",),
    "checkpoint.checkpoint": ("Checkpoint", "CheckpointFormat", "TensorInfo", "quantizable"),
    "checkpoint.families.config": ("Config",),
    "checkpoint.families.family": ("Conversion", "Decoder", "Family", "PassedOver", "Prediction"),
    "checkpoint.families.gguf_keys": ("DECODER_KEYS", "Key", "rope_keys"),
    "checkpoint.families.tensors": (
        *("BIASES", "BLOCK_NORMS", "GROUPED_QUERY", "OUTSIDE_BLOCKS", "TensorRule", "block_tensor", "computed"),
        *("dense_feed_forward", "fused_experts", "gated_experts", "ordered", "plus_one", "rotary_pairs"),
        *("router_weights", "squeezed", "vector"),
    ),
    "checkpoint.files.model_files": ("LocalFiles", "ModelFiles"),
    "checkpoint.gguf": ("open_gguf",),
    "checkpoint.storage.stored_matrix": ("Matrix",),
    "checkpoint.tensor_sources": ("TensorSource",),
    "checkpoint.topology": ("Topology", "topology_of"),
    "compression.check_artifact": ("CheckedArtifact",),
    "compression.gguf_file": ("Compressed",),
    "compression.hf_folder": ("CompressedFolder",),
    "engines.disturbance": ("Disturbance", "Effect", "Effects", "ErrorShape"),
    "engines.engine": ("Ability", "Decoding", "Engine", "Windows"),
    "engines.results": ("Evaluation", "Generation", "Served"),
    "engines.supported_types": ("Loader",),
    "engines.target": (
        *("Device", "KernelBench", "LoadOptions", "LogProbabilities", "NotOfferedError", "Routing", "Session"),
        *("Target", "TargetInfo", "TargetProvider"),
    ),
    "errors": ("CollabError",),
    "evaluation.scores": ("Score", "TaskReport", "TaskRow", "TaskRun"),
    "evaluation.task_runner": ("LoadedTasks", "TaskRunner"),
    "formats.byte_file": ("ByteFile",),
    "formats.gguf_values": ("MetaValue",),
    "formats.safetensors_header": ("Stored",),
    "formats.tensor_names": ("Role",),
    "placement.machine_fit": ("Fit",),
    "placement.machines": ("Machine", "MachineMemory"),
    "placement.run_setup": ("RunSetup",),
    "placement.machine_profile": ("DeviceSpeed", "ReadMatrix"),
    "placement.place": ("Placed",),
    "placement.placement": (
        *("ExpertPlacement", "LayerExperts", "PlacedArtifact", "Placement", "PlacementSource", "PolicyUse"),
        *("SpeedForecast", "TensorPlacement", "Tier"),
    ),
    "placement.placement_file": ("read_placement", "write_placement"),
    "placement.policy": ("LayerUse", "PlacementPolicy", "PolicyParameter", "Residency"),
    "placement.policy_table": ("HitCurve",),
    "placement.simulate": ("Replay", "best_possible", "replay", "uses_of"),
    "planning.allocators.allocator": ("Allocator", "Choice", "Item"),
    "planning.criteria.criterion": ("CriterionOptions", "ImportanceCriterion"),
    "planning.options": ("Option",),
    "plans.plan": ("Plan",),
    "plans.plan_file": ("read_plan", "write_plan"),
    "plugins.command": ("PluginCommand",),
    "plugins.hookspecs": ("hookimpl",),
    "plugins.open_checkpoint": ("open_checkpoint",),
    "progress": ("Advance", "OnProgress", "Progress"),
    "quantize.kernels": ("Kernels",),
    "reports.gather": ("Facts",),
    "reports.write": ("write_report",),
    "stats.routing_trace": ("RoutingTrace",),
    "stats.sensitivity": ("GroupProbe", "PruningProbe", "Sensitivity", "TogetherProbe"),
    "stats.sensitivity_file": ("read_sensitivity", "write_sensitivity"),
    "stats.stats": ("ImatrixEntry", "InputRounding", "LayerRouting", "Stats", "Stream"),
    "stats.stats_file": ("read_stats", "write_stats"),
    "stats.trace_file": ("read_trace", "write_trace"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = list(_HOME)

if TYPE_CHECKING:
    from collab_plugin.api.calibrate import calibrate as calibrate
    from collab_plugin.api.check import check as check
    from collab_plugin.api.compress import compress as compress
    from collab_plugin.api.evaluate import evaluate as evaluate
    from collab_plugin.api.evaluate import evaluate_tasks as evaluate_tasks
    from collab_plugin.api.evaluate import reference as reference
    from collab_plugin.api.fit import fit as fit
    from collab_plugin.api.inspect import inspect as inspect
    from collab_plugin.api.place import hit_rates as hit_rates
    from collab_plugin.api.place import place as place
    from collab_plugin.api.plan import plan as plan
    from collab_plugin.api.probe import probe as probe
    from collab_plugin.api.report import report as report
    from collab_plugin.api.run import run as run
    from collab_plugin.api.sample import sample as sample
    from collab_plugin.checkpoint.checkpoint import Checkpoint as Checkpoint
    from collab_plugin.checkpoint.checkpoint import CheckpointFormat as CheckpointFormat
    from collab_plugin.checkpoint.checkpoint import TensorInfo as TensorInfo
    from collab_plugin.checkpoint.checkpoint import quantizable as quantizable
    from collab_plugin.checkpoint.families.config import Config as Config
    from collab_plugin.checkpoint.families.family import Conversion as Conversion
    from collab_plugin.checkpoint.families.family import Decoder as Decoder
    from collab_plugin.checkpoint.families.family import Family as Family
    from collab_plugin.checkpoint.families.family import PassedOver as PassedOver
    from collab_plugin.checkpoint.families.family import Prediction as Prediction
    from collab_plugin.checkpoint.families.gguf_keys import DECODER_KEYS as DECODER_KEYS
    from collab_plugin.checkpoint.families.gguf_keys import Key as Key
    from collab_plugin.checkpoint.families.gguf_keys import rope_keys as rope_keys
    from collab_plugin.checkpoint.families.tensors import BIASES as BIASES
    from collab_plugin.checkpoint.families.tensors import BLOCK_NORMS as BLOCK_NORMS
    from collab_plugin.checkpoint.families.tensors import GROUPED_QUERY as GROUPED_QUERY
    from collab_plugin.checkpoint.families.tensors import OUTSIDE_BLOCKS as OUTSIDE_BLOCKS
    from collab_plugin.checkpoint.families.tensors import TensorRule as TensorRule
    from collab_plugin.checkpoint.families.tensors import block_tensor as block_tensor
    from collab_plugin.checkpoint.families.tensors import computed as computed
    from collab_plugin.checkpoint.families.tensors import dense_feed_forward as dense_feed_forward
    from collab_plugin.checkpoint.families.tensors import fused_experts as fused_experts
    from collab_plugin.checkpoint.families.tensors import gated_experts as gated_experts
    from collab_plugin.checkpoint.families.tensors import ordered as ordered
    from collab_plugin.checkpoint.families.tensors import plus_one as plus_one
    from collab_plugin.checkpoint.families.tensors import rotary_pairs as rotary_pairs
    from collab_plugin.checkpoint.families.tensors import router_weights as router_weights
    from collab_plugin.checkpoint.families.tensors import squeezed as squeezed
    from collab_plugin.checkpoint.families.tensors import vector as vector
    from collab_plugin.checkpoint.files.model_files import LocalFiles as LocalFiles
    from collab_plugin.checkpoint.files.model_files import ModelFiles as ModelFiles
    from collab_plugin.checkpoint.gguf import open_gguf as open_gguf
    from collab_plugin.checkpoint.storage.stored_matrix import Matrix as Matrix
    from collab_plugin.checkpoint.tensor_sources import TensorSource as TensorSource
    from collab_plugin.checkpoint.topology import Topology as Topology
    from collab_plugin.checkpoint.topology import topology_of as topology_of
    from collab_plugin.compression.check_artifact import CheckedArtifact as CheckedArtifact
    from collab_plugin.compression.gguf_file import Compressed as Compressed
    from collab_plugin.compression.hf_folder import CompressedFolder as CompressedFolder
    from collab_plugin.engines.disturbance import Disturbance as Disturbance
    from collab_plugin.engines.disturbance import Effect as Effect
    from collab_plugin.engines.disturbance import Effects as Effects
    from collab_plugin.engines.disturbance import ErrorShape as ErrorShape
    from collab_plugin.engines.engine import Ability as Ability
    from collab_plugin.engines.engine import Decoding as Decoding
    from collab_plugin.engines.engine import Engine as Engine
    from collab_plugin.engines.engine import Windows as Windows
    from collab_plugin.engines.results import Evaluation as Evaluation
    from collab_plugin.engines.results import Generation as Generation
    from collab_plugin.engines.results import Served as Served
    from collab_plugin.engines.supported_types import Loader as Loader
    from collab_plugin.engines.target import Device as Device
    from collab_plugin.engines.target import KernelBench as KernelBench
    from collab_plugin.engines.target import LoadOptions as LoadOptions
    from collab_plugin.engines.target import LogProbabilities as LogProbabilities
    from collab_plugin.engines.target import NotOfferedError as NotOfferedError
    from collab_plugin.engines.target import Routing as Routing
    from collab_plugin.engines.target import Session as Session
    from collab_plugin.engines.target import Target as Target
    from collab_plugin.engines.target import TargetInfo as TargetInfo
    from collab_plugin.engines.target import TargetProvider as TargetProvider
    from collab_plugin.errors import CollabError as CollabError
    from collab_plugin.evaluation.scores import Score as Score
    from collab_plugin.evaluation.scores import TaskReport as TaskReport
    from collab_plugin.evaluation.scores import TaskRow as TaskRow
    from collab_plugin.evaluation.scores import TaskRun as TaskRun
    from collab_plugin.evaluation.task_runner import LoadedTasks as LoadedTasks
    from collab_plugin.evaluation.task_runner import TaskRunner as TaskRunner
    from collab_plugin.formats.byte_file import ByteFile as ByteFile
    from collab_plugin.formats.gguf_values import MetaValue as MetaValue
    from collab_plugin.formats.safetensors_header import Stored as Stored
    from collab_plugin.formats.tensor_names import Role as Role
    from collab_plugin.placement.machine_fit import Fit as Fit
    from collab_plugin.placement.machine_profile import DeviceSpeed as DeviceSpeed
    from collab_plugin.placement.machine_profile import ReadMatrix as ReadMatrix
    from collab_plugin.placement.machines import Machine as Machine
    from collab_plugin.placement.machines import MachineMemory as MachineMemory
    from collab_plugin.placement.place import Placed as Placed
    from collab_plugin.placement.placement import ExpertPlacement as ExpertPlacement
    from collab_plugin.placement.placement import LayerExperts as LayerExperts
    from collab_plugin.placement.placement import PlacedArtifact as PlacedArtifact
    from collab_plugin.placement.placement import Placement as Placement
    from collab_plugin.placement.placement import PlacementSource as PlacementSource
    from collab_plugin.placement.placement import PolicyUse as PolicyUse
    from collab_plugin.placement.placement import SpeedForecast as SpeedForecast
    from collab_plugin.placement.placement import TensorPlacement as TensorPlacement
    from collab_plugin.placement.placement import Tier as Tier
    from collab_plugin.placement.placement_file import read_placement as read_placement
    from collab_plugin.placement.placement_file import write_placement as write_placement
    from collab_plugin.placement.policy import LayerUse as LayerUse
    from collab_plugin.placement.policy import PlacementPolicy as PlacementPolicy
    from collab_plugin.placement.policy import PolicyParameter as PolicyParameter
    from collab_plugin.placement.policy import Residency as Residency
    from collab_plugin.placement.policy_table import HitCurve as HitCurve
    from collab_plugin.placement.run_setup import RunSetup as RunSetup
    from collab_plugin.placement.simulate import Replay as Replay
    from collab_plugin.placement.simulate import best_possible as best_possible
    from collab_plugin.placement.simulate import replay as replay
    from collab_plugin.placement.simulate import uses_of as uses_of
    from collab_plugin.planning.allocators.allocator import Allocator as Allocator
    from collab_plugin.planning.allocators.allocator import Choice as Choice
    from collab_plugin.planning.allocators.allocator import Item as Item
    from collab_plugin.planning.criteria.criterion import CriterionOptions as CriterionOptions
    from collab_plugin.planning.criteria.criterion import ImportanceCriterion as ImportanceCriterion
    from collab_plugin.planning.options import Option as Option
    from collab_plugin.plans.plan import Plan as Plan
    from collab_plugin.plans.plan_file import read_plan as read_plan
    from collab_plugin.plans.plan_file import write_plan as write_plan
    from collab_plugin.plugins.command import PluginCommand as PluginCommand
    from collab_plugin.plugins.hookspecs import hookimpl as hookimpl
    from collab_plugin.plugins.open_checkpoint import open_checkpoint as open_checkpoint
    from collab_plugin.progress import Advance as Advance
    from collab_plugin.progress import OnProgress as OnProgress
    from collab_plugin.progress import Progress as Progress
    from collab_plugin.quantize.kernels import Kernels as Kernels
    from collab_plugin.reports.gather import Facts as Facts
    from collab_plugin.reports.write import write_report as write_report
    from collab_plugin.stats.routing_trace import RoutingTrace as RoutingTrace
    from collab_plugin.stats.sensitivity import GroupProbe as GroupProbe
    from collab_plugin.stats.sensitivity import PruningProbe as PruningProbe
    from collab_plugin.stats.sensitivity import Sensitivity as Sensitivity
    from collab_plugin.stats.sensitivity import TogetherProbe as TogetherProbe
    from collab_plugin.stats.sensitivity_file import read_sensitivity as read_sensitivity
    from collab_plugin.stats.sensitivity_file import write_sensitivity as write_sensitivity
    from collab_plugin.stats.stats import ImatrixEntry as ImatrixEntry
    from collab_plugin.stats.stats import InputRounding as InputRounding
    from collab_plugin.stats.stats import LayerRouting as LayerRouting
    from collab_plugin.stats.stats import Stats as Stats
    from collab_plugin.stats.stats import Stream as Stream
    from collab_plugin.stats.stats_file import read_stats as read_stats
    from collab_plugin.stats.stats_file import write_stats as write_stats
    from collab_plugin.stats.trace_file import read_trace as read_trace
    from collab_plugin.stats.trace_file import write_trace as write_trace
else:  # hidden from type checkers, which would take any name for a public one

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *_HOME})
