"""Routing traces as compressed npz files, and the public forms that are imported. Page: docs/formats/trace.md."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collab_plugin.errors import CollabError
from collab_plugin.formats.atomic_write import write_bytes
from collab_plugin.stats.routing_trace import NONE, RoutingTrace

TRACE_VERSION = 1
MOST_EXPERTS = 2**15 - 1
_NAME = "collab-plugin trace"


def write_trace(path: str | os.PathLike[str], trace: RoutingTrace) -> None:
    """Write ``trace``; complete or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        format=np.array(_NAME),
        version=np.array(TRACE_VERSION),
        chosen=trace.chosen,
        layers=np.array(trace.layers, np.int32),
        experts=np.array(trace.experts, np.int32),
        starts=np.array(trace.starts, np.int64),
        labels=np.array(trace.labels, np.str_),
        model_id=np.array(trace.model_id or ""),
    )
    write_bytes(Path(path), buffer.getvalue())


def read_trace(path: str | os.PathLike[str]) -> RoutingTrace:
    """Read a trace of ours, an npz with ``requested_expert_ids``, a CSV of ``layer,expert``, or a folder of them.

    In a folder each file is a sequence, in the order of their paths, and its folder's name is its label. Raises
    CollabError naming the file and what is wrong with it. No pickled object is ever loaded.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".npz", ".csv"))
        if not files:
            raise CollabError(f"{path} has no trace in it: no .npz and no .csv file")
        return _joined([_read(file, file.parent.name) for file in files], path)
    return _read(path, "")


def _read(path: Path, label: str) -> RoutingTrace:
    if path.suffix == ".csv":
        return _from_csv(path, label)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError as error:
        raise CollabError(f"cannot read the trace {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise CollabError(f"{path} is no npz file with arrays alone: {error}") from None
    if "requested_expert_ids" in arrays:
        return _from_events(path, arrays, label)
    return _own(path, arrays)


def _own(path: Path, arrays: dict[str, NDArray[Any]]) -> RoutingTrace:
    kinds = {"format": "U", "version": "i", "chosen": "i", "layers": "i", "experts": "i", "starts": "i", "labels": "U",
             "model_id": "U"}  # fmt: skip
    if set(arrays) != set(kinds) or any(arrays[name].dtype.kind != kind for name, kind in kinds.items()):
        raise CollabError(f"{path} is no trace: it has neither our arrays nor `requested_expert_ids`")
    if str(arrays["format"]) != _NAME or int(arrays["version"]) != TRACE_VERSION:
        raise CollabError(f"{path} has trace version {arrays['version']}; this collab-plugin reads {TRACE_VERSION}")
    chosen, layers, starts = arrays["chosen"], arrays["layers"], arrays["starts"]
    experts, labels = int(arrays["experts"]), arrays["labels"]
    if chosen.ndim != 3 or chosen.shape[1] != layers.size or starts.shape != labels.shape or starts.ndim != 1:
        raise CollabError(f"{path}: the arrays of this trace do not go together")
    if starts.size and (starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] > len(chosen)):
        raise CollabError(f"{path}: the starts of this trace do not rise from 0")
    return _checked(
        path, chosen, layers.tolist(), experts, starts.tolist(), labels.tolist(), str(arrays["model_id"]) or None
    )


def _checked(
    path: Path,
    chosen: NDArray[Any],
    layers: Sequence[int],
    experts: int,
    starts: Sequence[int],
    labels: Sequence[str],
    model_id: str | None,
) -> RoutingTrace:
    if not 0 < experts <= MOST_EXPERTS or not chosen.size:
        raise CollabError(f"{path}: a trace of {len(chosen)} tokens and {experts} experts")
    if chosen.min() < NONE or chosen.max() >= experts:
        raise CollabError(f"{path} names expert {chosen.max() if chosen.max() >= experts else chosen.min()}")
    return RoutingTrace(chosen.astype(np.int16), tuple(layers), experts, tuple(starts), tuple(labels), model_id)


def _from_events(path: Path, arrays: dict[str, NDArray[Any]], label: str) -> RoutingTrace:
    """One row a layer and token: ``requested_expert_ids`` i[events, k], ``layer_index`` i[events], layers in turn;
    ``sequence_id`` where there are several."""
    ids, layer = arrays["requested_expert_ids"], arrays.get("layer_index")
    if layer is None or ids.ndim != 2 or layer.shape != ids.shape[:1] or ids.dtype.kind != "i" or not ids.size:
        raise CollabError(f"{path}: `requested_expert_ids` [events, k] needs a `layer_index` [events] beside it")
    layers = np.unique(layer)
    if len(layer) % len(layers) or (layer.reshape(-1, len(layers)) != layers).any():
        raise CollabError(f"{path}: the layers of a token do not stand in turn, each once")
    chosen = ids.reshape(-1, len(layers), ids.shape[1])
    sequence = arrays.get("sequence_id", np.zeros(len(layer), np.int64)).reshape(-1)[:: len(layers)]
    starts = [0, *(np.flatnonzero(np.diff(sequence)) + 1).tolist()]
    return _checked(path, chosen, layers.tolist(), int(ids.max()) + 1, starts, [label] * len(starts), None)


def _from_csv(path: Path, label: str) -> RoutingTrace:
    """Lines of ``layer,expert``; consecutive lines of a layer are one token's choices, and a layer that is not above
    the one before begins the next token."""
    tokens: list[dict[int, list[int]]] = []
    before = -1
    for number, (layer, expert) in _csv_rows(path):
        if layer != before:
            if layer < before or not tokens:
                tokens.append({})
            tokens[-1][layer] = []
            before = layer
        elif expert in tokens[-1][layer]:  # a model with one such layer: the next token begins unmarked
            tokens.append({layer: []})
        if expert > MOST_EXPERTS or expert < 0:
            raise CollabError(f"{path}, line {number}: expert {expert}")
        tokens[-1][layer].append(expert)
    layers = sorted({layer for token in tokens for layer in token})
    width = max((len(ids) for token in tokens for ids in token.values()), default=0)
    chosen = np.full((len(tokens), len(layers), width), NONE, np.int16)
    for at, token in enumerate(tokens):
        for layer, ids in token.items():
            chosen[at, layers.index(layer), : len(ids)] = ids
    return _checked(path, chosen, layers, int(chosen.max(initial=-1)) + 1, [0], [label], None)


def _csv_rows(path: Path) -> Iterator[tuple[int, tuple[int, int]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if number == 1 and [cell.strip().lower() for cell in row[:2]] == ["layer", "expert"]:
                    continue
                try:
                    yield number, (int(row[0]), int(row[1]))
                except (ValueError, IndexError):
                    raise CollabError(f"{path}, line {number} is not `layer,expert`") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CollabError(f"cannot read the trace {path}: {error}") from None


def _joined(traces: list[RoutingTrace], path: Path) -> RoutingTrace:
    first = traces[0]
    for trace in traces:
        if trace.layers != first.layers or trace.chosen.shape[2] != first.chosen.shape[2]:
            raise CollabError(f"the traces in {path} are of different models")
    lengths = np.cumsum([0, *(trace.tokens for trace in traces)])
    starts = [int(offset) + start for offset, trace in zip(lengths, traces, strict=False) for start in trace.starts]
    return RoutingTrace(
        np.concatenate([trace.chosen for trace in traces]),
        first.layers,
        max(trace.experts for trace in traces),
        tuple(starts),
        tuple(label for trace in traces for label in trace.labels),
        first.model_id if len({trace.model_id for trace in traces}) == 1 else None,
    )
