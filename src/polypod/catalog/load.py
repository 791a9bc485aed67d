"""Finds catalog entries by id or by any of their names, whatever the case, in English or Chinese.

An entry's file is named after its id, so an id opens one file and no other. Other names are looked up in an index made of
the files' first lines. A path instead of a name reads a person's own file; files in the person's own catalog folder take part
like shipped ones, and stand in the place of a shipped one with the same id.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Literal, get_args

from polypod.catalog.files import kind_of, read_config, read_entry, read_head
from polypod.catalog.schema import Accelerator, Interconnect, ModelCard, Pod
from polypod.errors import FileError, InputError, UnknownNameError

EntryKind = Literal["accelerator", "pod", "link", "model"]

KINDS: Final[tuple[EntryKind, ...]] = get_args(EntryKind)

_FOLDERS: Final[dict[EntryKind, str]] = {
    "accelerator": "accelerators",
    "pod": "pods",
    "link": "links",
    "model": "models",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model's config.json, and where it came from; a person's own file has no card."""

    name: str
    path: str
    config: dict[str, Any]
    card: ModelCard | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of the catalog's index."""

    kind: EntryKind
    id: str
    title: str
    year: int | None = None


def load_accelerator(name: str) -> Accelerator:
    """Look an accelerator up by id or name, or read one from a .toml path.

    >>> load_accelerator("910C").id, load_accelerator("昇腾910C").peak_flops_per_s["bf16"].value
    ('huawei-ascend-910c', 752000000000000.0)

    Raises `UnknownNameError` with the nearest names, `FileError` for a broken file.
    """
    if _is_path(name):
        return read_entry(Path(name), Accelerator)
    return read_entry(_find("accelerator", name), Accelerator)


def load_pod(name: str) -> Pod:
    """Look a pod up by id or name, or read one from a .toml path.

    >>> pod = load_pod("CM384")
    >>> pod.id, pod.accelerators, [tier.ranks for tier in pod.tiers]
    ('huawei-cm384', 384, [2, 16, 768, None])

    Raises `UnknownNameError` with the nearest names, `FileError` for a broken file.
    """
    if _is_path(name):
        return read_entry(Path(name), Pod)
    return read_entry(_find("pod", name), Pod)


def load_link(name: str) -> Interconnect:
    """Look an interconnect up by id or name, or read one from a .toml path.

    >>> load_link("nvlink 5").bytes_per_s["NVLink 5"].value
    900000000000.0

    Raises `UnknownNameError` with the nearest names, `FileError` for a broken file.
    """
    if _is_path(name):
        return read_entry(Path(name), Interconnect)
    return read_entry(_find("link", name), Interconnect)


def load_model(name: str) -> ModelEntry:
    """Look a model up by id or name, or read a config.json: its path, or the folder it lies in.

    >>> entry = load_model("meta-llama/Meta-Llama-3.1-8B")
    >>> entry.name, entry.config["num_hidden_layers"]
    ('meta-llama/Llama-3.1-8B', 32)

    Raises `UnknownNameError` with the nearest names, `FileError` for a broken file.
    """
    known = _index().get(name.casefold())
    if known is None and (name.endswith(".json") or _exists(name)):
        return _own_model(Path(name))
    file = _find("model", name)
    card = read_entry(file, ModelCard)
    folder = file.parent if isinstance(file, Path) else _shipped_folder("model")
    config = folder.joinpath(card.config)
    return ModelEntry(name=card.id, path=str(config), config=read_config(config), card=card)


def load_file(path: Path | str) -> Accelerator | Pod | Interconnect | ModelEntry:
    """Read a person's own file: an accelerator, a pod or a link in TOML, a model's config.json or the folder that holds it.

    Raises `FileError` where it is none of them.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".json":
        return _own_model(path)
    return read_entry(path, kind_of(path))


def load_any(name: str) -> Accelerator | Pod | Interconnect | ModelEntry:
    """Look an entry of any kind up by id or name, or read a person's own file by its path.

    Raises `UnknownNameError` with the nearest names, `FileError` for a broken file.
    """
    kind = known_names().get(name.casefold())
    if kind is not None:
        return _LOADERS[kind](name)
    if name.endswith((".toml", ".json")) or "/" in name:
        return load_file(name)
    raise UnknownNameError(kind="accelerator, pod, link or model", name=name, known=known_names())


_LOADERS: Final[dict[EntryKind, Callable[[str], Accelerator | Pod | Interconnect | ModelEntry]]] = {
    "accelerator": load_accelerator,
    "pod": load_pod,
    "link": load_link,
    "model": load_model,
}


def own_folder(kind: EntryKind) -> Path:
    """Where a person's own entries of a kind are: below `$XDG_CONFIG_HOME/polypod/catalog`, by default `~/.config/polypod/catalog`."""
    base = os.environ.get("XDG_CONFIG_HOME")
    home = Path(base) if base else Path.home() / ".config"
    return home / "polypod" / "catalog" / _FOLDERS[kind]


def file_name(entry_id: str) -> str:
    """The file an entry is kept in.

    >>> file_name("deepseek-ai/DeepSeek-V3")
    'deepseek-ai--DeepSeek-V3.toml'
    """
    return f"{entry_id.replace('/', '--')}.toml"


def is_shipped(kind: EntryKind, entry_id: str) -> bool:
    """Whether the catalog comes with an entry of this id."""
    return file_name(entry_id) in {file.name for file in _shipped_folder(kind).iterdir()}


def pods_accelerator(pod: Pod) -> Accelerator:
    """What a pod is made of. Raises `InputError` where its maker does not say."""
    if pod.accelerator is None:
        msg = (
            f"{pod.id} is {pod.accelerators} accelerators of a make that is not disclosed, so nothing can be planned on it; "
            f"missing: accelerator. Pods of a known one: polypod catalog list --kind pod"
        )
        raise InputError(msg)
    return load_accelerator(pod.accelerator)


def accelerators_pod(accelerator: str) -> Pod | None:
    """The pod an accelerator usually comes in: the smallest the catalog has of it; None where it has none."""
    own = load_accelerator(accelerator).id
    heads = [head for head in _heads("pod") if head.get("accelerator") == own]
    pods = [(head["accelerators"], head["id"]) for head in heads]
    return load_pod(min(pods)[1]) if pods else None


def known_names() -> dict[str, EntryKind]:
    """Every name the catalog answers to, in lower case, and what it names."""
    return {name: listed.kind for name, listed in _index().items()}


def entry_id(name: str) -> str:
    """The id of what a name is of, in any case; a name that no entry has is taken for an id.

    >>> entry_id("CM384")
    'huawei-cm384'
    """
    listed = _index().get(name.casefold())
    return name if listed is None else listed.id


def names_by_id() -> dict[str, list[str]]:
    """Every entry's names in lower case, by id."""
    found: dict[str, list[str]] = {}
    for name, listed in _index().items():
        found.setdefault(listed.id, []).append(name)
    return found


def listing() -> list[Listed]:
    """Every entry once: accelerators, then pods, links and models, by id."""
    unique = {(listed.kind, listed.id): listed for listed in _index().values()}
    order = list(_FOLDERS)
    return sorted(unique.values(), key=lambda listed: (order.index(listed.kind), listed.id))


def _is_path(name: str) -> bool:
    return name.endswith(".toml")


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # too long for a path, or holds a zero byte
        return False


def _own_model(path: Path) -> ModelEntry:
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise FileError(
            file, "does not exist; a model is a config.json or the folder that holds one"
        )
    config = read_config(file)
    name = path.name if path.is_dir() else path.resolve().parent.name
    return ModelEntry(name=name or str(path), path=str(file), config=config)


def _find(kind: EntryKind, name: str) -> Traversable:
    """The file of an entry; an id needs no index."""
    files, wanted = _files(kind), file_name(name)
    if wanted in files:
        return files[wanted]
    listed = _index().get(name.casefold())
    if listed is None:
        raise UnknownNameError(kind, name, [key for key, k in known_names().items() if k == kind])
    if listed.kind != kind:
        msg = f"{name!r} is the {listed.kind} {listed.id}, not {_article(kind)} {kind}; polypod catalog list shows them all"
        raise InputError(msg)
    return files[file_name(listed.id)]


def _article(kind: EntryKind) -> str:
    return "an" if kind == "accelerator" else "a"


def _shipped_folder(kind: EntryKind) -> Traversable:
    return resources.files("polypod.catalog").joinpath("data", _FOLDERS[kind])


def _own_files(kind: EntryKind) -> list[Path]:
    return sorted(own_folder(kind).glob("*.toml"))


def _files(kind: EntryKind) -> dict[str, Traversable | Path]:
    """Entry files by name; a person's own one stands in the place of a shipped one."""
    shipped = {file.name: file for file in _shipped_folder(kind).iterdir()}
    own = {file.name: file for file in _own_files(kind)}
    merged = shipped | own
    return {name: merged[name] for name in sorted(merged) if name.endswith(".toml")}


def _heads(kind: EntryKind) -> Iterator[dict[str, Any]]:
    for file in _files(kind).values():
        yield read_head(file)


def _index() -> dict[str, Listed]:
    return _index_with(tuple(str(file) for kind in _FOLDERS for file in _own_files(kind)))


@cache
def _index_with(_: tuple[str, ...]) -> dict[str, Listed]:
    """Every name in lower case; an id is never hidden by another entry's name. Made anew when own files come or go."""
    by_id: dict[str, Listed] = {}
    by_name: dict[str, Listed] = {}
    for kind in _FOLDERS:
        for head in _heads(kind):
            listed = Listed(kind=kind, id=head["id"], title=_title(head), year=head.get("year"))
            by_id[listed.id.casefold()] = listed
            others = [head.get("name", listed.id), *head.get("names", ()), *head.get("aliases", ())]
            by_name |= {name.casefold(): listed for name in others}
    return by_name | by_id


def _title(head: dict[str, Any]) -> str:
    owner = head.get("vendor") or head.get("owner")
    return f"{owner} {head['name']}" if owner else str(head["id"]).partition("/")[2]
