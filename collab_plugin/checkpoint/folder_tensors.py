"""Every tensor that the safetensors files of a folder hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from collab_plugin.checkpoint.families.family import Conversion, PassedOver
from collab_plugin.checkpoint.files.model_files import ModelFiles
from collab_plugin.checkpoint.tokenizer import load_json
from collab_plugin.errors import CollabError
from collab_plugin.formats.name_list import few
from collab_plugin.formats.safetensors_header import Stored, read_header

INDEX = "model.safetensors.index.json"
_OF_MISTRAL = "consolidated"
HEADERS_AT_ONCE = 8  # each waits for an answer where files are far away
_LONGEST = 255  # bytes of a file's name, on any system
_BESIDE = "._"  # what macOS writes beside a file on a foreign file system


def stored_tensors(files: ModelFiles) -> tuple[dict[str, Stored], list[str]]:
    """All tensors by name, whatever file they are in, and a note for files that were passed over.

    CollabError for a file that is missing or outside the folder, a tensor that is stored twice, and one that the
    index promises and no file holds.
    """
    table, names = _index(files)
    notes = []
    if passed := [name for name in names if name.startswith(_BESIDE)]:
        names = [name for name in names if name not in passed]
        notes.append(f"passed over {', '.join(passed)}: macOS writes such files, they are no part of the model")
    if not table and (others := [name for name in names if name.startswith(_OF_MISTRAL)]) and others != names:
        names = [name for name in names if name not in others]
        notes.append(f"passed over {few(others)}: mistral-inference's copy of the weights")
    _check_there(files, names)
    found: dict[str, Stored] = {}
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        headers = pool.map(lambda name: read_header(files.open(name)), names)
    for header in headers:
        for tensor, stored in header.items():
            if tensor in found:
                raise CollabError(
                    f"tensor {tensor!r} is in two files of {files.address}; remove the one that is not the model's"
                )
            found[tensor] = stored
    missing = sorted(table - set(found))
    if missing:
        raise CollabError(f"{files.address}: the index promises {missing[0]!r}, no file holds it; download it again")
    return found, notes


def _check_there(files: ModelFiles, names: list[str]) -> None:
    """CollabError for files that are not there, and for a folder of none."""
    missing = [name for name in names if not files.has(name)]
    there = [name for name in files.names() if name.endswith(".safetensors") and not name.startswith(_BESIDE)]
    if not names:
        pickles = [name for name in files.names() if name.endswith(".bin")]
        beside = f" ({few(pickles)}: pickles are not read, save it with safetensors)" if pickles else ""
        raise CollabError(f"{files.address} holds no safetensors file{beside}")
    if missing and there and not set(there) & set(names):
        raise CollabError(
            f"{files.where(INDEX)} names other files than are there ({few(missing)} against {few(there)}): it is "
            "of another version of the weights; remove it, or download the right one"
        )
    if missing:
        raise CollabError(f"shard missing: {missing[0]} of {files.address}; download it again")


def passed_over(stored: dict[str, Stored], conversion: Conversion) -> tuple[dict[str, Stored], list[Stored], list[str]]:
    """Tensors under the names that the family's rules have, those that a pruned folder has beside them, and a note
    for each kind that is left out of a GGUF."""
    named: dict[str, Stored] = {}
    counts: dict[PassedOver, int] = {}
    beside = []
    for name, tensor in stored.items():
        out = next((part for part in conversion.passed_over if name.startswith(part.prefix)), None)
        if out is None:
            old, new = next((pair for pair in conversion.renames if name.startswith(pair[0])), ("", ""))
            named[new + name.removeprefix(old)] = tensor
            continue
        counts[out] = counts.get(out, 0) + 1
        if out.copied:
            beside.append(tensor)
    notes = [f"{out.what} dropped: {count} tensors {out.prefix}*" for out, count in counts.items()]
    return named, beside, notes


def _index(files: ModelFiles) -> tuple[set[str], list[str]]:
    """Tensors that the index promises and the files that it names; without an index all files of the folder."""
    if not files.has(INDEX):
        return set(), [name for name in files.names() if name.endswith(".safetensors")]
    table = load_json(files.companions() / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CollabError(f"{files.where(INDEX)} has no weight_map; download it again")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name or name in ("", ".", "..") or len(name.encode(errors="replace")) > _LONGEST:
            raise CollabError(f"{files.where(INDEX)} names {name[:80]!r}, a file outside the folder")
    return set(table), names
