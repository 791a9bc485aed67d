"""Finds catalog entries by id or by any of their names, whatever the case, in English or Chinese.

An entry's file is named after its id, so an id opens one file and no other. Other names are looked up in an index made of
the files' first lines. A path instead of a name reads a person's own file; files in the person's own catalog folder, and in those that
`$POLYPOD_CATALOG` lists (which is what `--catalog DIR` sets), take part like shipped ones, and stand in the place of a shipped one with the
same id.
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
from polypod.catalog.schema import Accelerator, Fact, Interconnect, ModelCard, Pod
from polypod.errors import FileError, InputError, UnknownNameError

EntryKind = Literal["accelerator", "pod", "link", "model"]

FOLDERS_VARIABLE: Final = "POLYPOD_CATALOG"

CALIBRATIONS: Final = "calibrations.toml"
"""The file of a person's own calibrations (`cost.own`), beside the folders of entries."""

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
    if file.name.endswith(".json"):
        return ModelEntry(name=_own_name(file), path=str(file), config=read_config(file))
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
    return f"{_stem(entry_id)}.toml"


def _stem(entry_id: str) -> str:
    return entry_id.replace("/", "--")


def own_folders(kind: EntryKind) -> list[Path]:
    """Where a person's own entries are read from; a later folder's entry stands in the place of an earlier one's.

    The folders that `$POLYPOD_CATALOG` lists come after `own_folder`; entries lie in them as there, by kind.
    """
    base = os.environ.get("XDG_CONFIG_HOME") or os.environ.get("HOME", "")
    return list(_own_folders(kind, base, os.environ.get(FOLDERS_VARIABLE, "")))


@cache
def _own_folders(kind: EntryKind, base: str, folders: str) -> tuple[Path, ...]:
    """Kept by what the environment says, since every lookup asks for them."""
    listed = [Path(name) for name in folders.split(os.pathsep) if name]
    return (own_folder(kind), *(folder / _FOLDERS[kind] for folder in listed))


def use_folder(folder: Path) -> None:
    """Let a folder of own entries take part, in this process and those it starts.

    Raises `FileError` where it is no folder, or has none of the folders that entries are looked for in.
    """
    if not folder.is_dir():
        raise FileError(folder, "is no folder; --catalog takes one with your own entries in it")
    if not any((folder / name).exists() for name in (*_FOLDERS.values(), CALIBRATIONS)):
        names = ", ".join((*(f"{name}/" for name in _FOLDERS.values()), CALIBRATIONS))
        raise FileError(folder, f"has none of {names}: entries are looked for there, by kind")
    before = os.environ.get(FOLDERS_VARIABLE, "")
    os.environ[FOLDERS_VARIABLE] = os.pathsep.join(
        part for part in (before, str(folder.resolve())) if part
    )


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


def link_speeds() -> dict[str, Fact]:
    """One-way speeds per accelerator of every fabric's generations, by generation, spaces left out: NVLink4."""
    return {
        name.replace(" ", ""): fact
        for listed in listing()
        if listed.kind == "link"
        for name, fact in load_link(listed.id).bytes_per_s.items()
    }


def known_names() -> dict[str, EntryKind]:
    """Every name the catalog answers to, in lower case, and what it names."""
    return _names_of(_own_names())


@cache
def _names_of(own: tuple[str, ...]) -> dict[str, EntryKind]:
    return {name: listed.kind for name, listed in _index_with(own).items()}


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


def _own_name(file: Traversable | Path) -> str:
    return file.name.removesuffix(".json").replace("--", "/")


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


def _find(kind: EntryKind, name: str) -> Traversable | Path:
    """The file of an entry; an id needs no index."""
    files, wanted = _files(kind), _stem(name)
    if wanted in files:
        return _noted(kind, files[wanted])
    listed = _index().get(name.casefold())
    if listed is None:
        raise UnknownNameError(kind, name, [key for key, k in known_names().items() if k == kind])
    if listed.kind != kind:
        msg = f"{name!r} is the {listed.kind} {listed.id}, not {_article(kind)} {kind}; polypod catalog list shows them all"
        raise InputError(msg)
    return _noted(kind, files[_stem(listed.id)])


def _noted(kind: EntryKind, file: Traversable | Path) -> Traversable | Path:
    """Remember that a person's own file was read in the place of a shipped one."""
    if isinstance(file, Path) and file in _own_files(kind) and is_shipped(kind, file.stem):
        read_instead[file.stem] = file
    return file


read_instead: Final[dict[str, Path]] = {}
"""Own files read in this process in the place of shipped ones, by what both are named after; the command line says so."""


def _article(kind: EntryKind) -> str:
    return "an" if kind == "accelerator" else "a"


def _shipped_folder(kind: EntryKind) -> Traversable:
    return resources.files("polypod.catalog").joinpath("data", _FOLDERS[kind])


def _own_files(kind: EntryKind) -> tuple[Path, ...]:
    """Later folders last. A model of one's own needs no card: its config.json is kept under its name."""
    changed = []
    for folder in own_folders(kind):
        try:
            changed.append((folder, folder.stat().st_mtime_ns))
        except OSError:  # there is none
            continue
    return _files_of_folders(kind, tuple(changed))


@cache
def _files_of_folders(kind: EntryKind, changed: tuple[tuple[Path, int], ...]) -> tuple[Path, ...]:
    """Listed anew when a folder comes, goes or changes."""
    folders = [folder for folder, _ in changed]
    entries = [file for folder in folders for file in sorted(folder.glob("*.toml"))]
    if kind == "model":
        carded = {file.with_name(read_head(file)["config"]) for file in entries}
        bare = [file for folder in folders for file in sorted(folder.glob("*.json"))]
        entries += [file for file in bare if file not in carded]
    return tuple(entries)


def _files(kind: EntryKind) -> dict[str, Traversable | Path]:
    """Entry files by name, without what it ends in; a person's own one stands in the place of a shipped one."""
    own = {file.stem: file for file in _own_files(kind)}
    shipped = _shipped_files(kind)
    return shipped | own if own else shipped


@cache
def _shipped_files(kind: EntryKind) -> dict[str, Traversable | Path]:
    files = {
        file.name.removesuffix(".toml"): file
        for file in _shipped_folder(kind).iterdir()
        if file.name.endswith(".toml")
    }
    return {name: files[name] for name in sorted(files)}


def forget_own() -> None:
    """Look for own files again: a folder that changes twice in one tick of the clock does not show it."""
    _files_of_folders.cache_clear()


def _heads(kind: EntryKind) -> Iterator[dict[str, Any]]:
    for file in _files(kind).values():
        yield {"id": _own_name(file)} if file.name.endswith(".json") else read_head(file)


def _index() -> dict[str, Listed]:
    return _index_with(_own_names())


def _own_names() -> tuple[str, ...]:
    return tuple(str(file) for kind in _FOLDERS for file in _own_files(kind))


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
    if owner:
        return f"{owner} {head['name']}"
    title = str(head["id"]).rpartition("/")[2]
    fidelity = head.get("fidelity", "verbatim")
    return title if fidelity == "verbatim" else f"{title} ({fidelity}: not a published file)"
