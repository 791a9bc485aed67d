"""A model from the Hugging Face hub, by its id: found in the cache that other tools share, or fetched into it, and checked byte by byte.

    <cache>/models--ORG--NAME/refs/main            the commit that `main` was, when it was last asked
                              blobs/<hash>         the files, by the sha256 of large ones and the git hash of small ones
                              snapshots/<commit>/  their names, as links to the blobs

That is huggingface_hub's own layout (https://huggingface.co/docs/huggingface_hub/guides/manage-cache), in `HF_HUB_CACHE`, else `HF_HOME/hub`, else
~/.cache/huggingface/hub. Files come by `<endpoint>/<id>/resolve/<commit>/<file>`, which may send on to another host; the token goes to the endpoint only. Only GGUF
and safetensors are taken, with the JSON and text that belong to them: nothing that could hold code.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from polypod import units
from polypod.errors import FileError, InputError, RunError, nearest_names
from polypod.serve.hub_net import Hub, Stopped

Say = Callable[[str], None]

PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_BESIDE_SAFETENSORS: Final = re.compile(
    r"[\w.-]+\.(safetensors|json|jinja|txt|model)", re.ASCII
)  # no folder, no .py
_ID: Final = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?(?::(.+))?", re.ASCII)  # fmt: skip
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TELL_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubId:
    """What of the hub is meant: `org/name`, `org/name@revision`, `org/name:file.gguf`."""

    repository: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repository}{at}{'' if self.file is None else f':{self.file}'}"


class HubFile(msgspec.Struct, frozen=True, kw_only=True, rename={"name": "rfilename", "git_hash": "blobId"}):  # fmt: skip
    """One file, as the hub lists it. Large ones have a sha256, small ones the hash git has of them."""

    name: str
    size: int | None = None
    git_hash: str | None = None
    lfs: dict[str, int | str] | None = None

    @property
    def digest(self) -> str:
        """Raises `RunError` where the hub says none: what cannot be checked is not taken."""
        found = str(self.lfs["sha256"]) if self.lfs and "sha256" in self.lfs else self.git_hash
        if found is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", found):
            msg = f"{self.name}: the hub names no hash of it, so it cannot be checked; fetch it by hand and give its path"
            raise RunError(msg)
        return found


class _Listing(msgspec.Struct, frozen=True, kw_only=True):
    sha: str
    siblings: list[HubFile] = []


def hub_id(text: str) -> HubId | None:
    """What was typed, if it is an id and no path. What exists here is a path, and so is what ends as a file of weights does.

    >>> hub_id("Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf").file, hub_id("models/a.gguf"), hub_id("./a/b")
    ('Qwen3-0.6B-Q8_0.gguf', None, None)
    """
    match = _ID.fullmatch(text)
    is_file = text.endswith((".gguf", ".safetensors", *PICKLES)) and ":" not in text
    if match is None or is_file or ".." in text or Path(text).exists():
        return None
    return HubId(repository=f"{match[1]}/{match[2]}", revision=match[3] or "main", file=match[4])


def cache_folder() -> Path:
    """Where the hub's files are kept, by every tool on this machine."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named)
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"


def fetch(wanted: HubId, *, hub: Hub, cache: Path, say: Say) -> Path:
    """The GGUF file, or the folder with safetensors: from the cache if it is whole there, else from the hub.

    Raises `InputError` for what the repository does not have or would hold code, and `RunError` where the hub cannot be reached, refuses, or sends something else.
    """
    if wanted.file is not None:
        check_name(wanted.file)
    folder = cache / f"models--{wanted.repository.replace('/', '--')}"
    kept = _kept(folder, wanted)
    if kept is not None:
        return kept
    listing = hub.json(f"/api/models/{wanted.repository}/revision/{wanted.revision}?blobs=true", _Listing, what=str(wanted))  # fmt: skip
    if not _COMMIT.fullmatch(listing.sha):
        msg = f"{wanted}: {hub.endpoint} names no commit; is it a hub?"
        raise RunError(msg)
    files = _chosen(wanted, listing.siblings)
    for file in files:
        _ = file.digest  # all can be checked, before the first is fetched
    snapshot = folder / "snapshots" / listing.sha
    _check_room(folder, files)
    for file in files:
        url = f"/{wanted.repository}/resolve/{listing.sha}/{file.name}"
        _fetch_file(hub, url, file, folder=folder, link=snapshot / file.name, say=say)
    if not _COMMIT.fullmatch(wanted.revision):
        _write(folder / "refs" / wanted.revision, listing.sha)
    return snapshot / files[0].name if _is_gguf(files[0]) else snapshot


def check_name(name: str) -> None:
    """Raises `InputError` for a file that may hold code, or whose name leads elsewhere."""
    if name.endswith(PICKLES):
        msg = f"{name} is a pickle: loading one runs whatever code is in it, so it is never loaded; take GGUF or safetensors"
        raise InputError(msg)
    parts = name.split("/")
    if not all(parts) or ".." in parts or "." in parts or not name.endswith(".gguf"):
        msg = f"{name!r} is no GGUF file; name one, or leave it out to take the repository's safetensors"
        raise InputError(msg)


# ---- what is kept


def _kept(folder: Path, wanted: HubId) -> Path | None:
    """What the cache has of it. Several GGUF files and none named: the hub is asked, to say which there are."""
    commit = wanted.revision
    if not _COMMIT.fullmatch(commit):
        with suppress(OSError):
            commit = (folder / "refs" / wanted.revision).read_text().strip()
    snapshot = folder / "snapshots" / commit
    if wanted.file is not None:
        return snapshot / wanted.file if (snapshot / wanted.file).is_file() else None
    ggufs = sorted(path for path in snapshot.glob("*.gguf") if path.is_file())
    if len(ggufs) == 1:
        return ggufs[0]
    return snapshot if not ggufs and _is_whole(snapshot) else None


def _is_whole(snapshot: Path) -> bool:
    """A configuration and every file of weights that the index names, or the only one."""
    index = snapshot / "model.safetensors.index.json"
    try:
        names = set(msgspec.json.decode(index.read_bytes())["weight_map"].values())
    except FileNotFoundError:
        names = {"model.safetensors"}
    except (OSError, msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return False
    return all((snapshot / str(name)).is_file() for name in ("config.json", *names))


# ---- what there is


def _chosen(wanted: HubId, files: list[HubFile]) -> list[HubFile]:
    """The file that is named, the only GGUF file, or the safetensors with all that belongs to them. Raises `InputError`."""
    by_name = {file.name: file for file in files}
    for file in files:
        if _is_gguf(file):
            check_name(file.name)  # the hub is not trusted with paths either
    if wanted.file is not None:
        if wanted.file not in by_name:
            near = ", ".join(nearest_names(wanted.file, by_name)) or "none"
            msg = f"{wanted.repository} has no {wanted.file}; nearest: {near}"
            raise InputError(msg)
        return [by_name[wanted.file]]
    ggufs = [file for file in files if _is_gguf(file)]
    if len(ggufs) > 1:
        names = ", ".join(f"{file.name} ({_size(file)})" for file in ggufs[:12])
        msg = f"{wanted.repository} has several GGUF files; name one, as {wanted.repository}:{ggufs[0].name}: {names}"
        raise InputError(msg)
    if ggufs:
        return ggufs
    if any(name.endswith(".safetensors") and "/" not in name for name in by_name):
        return [file for file in files if _BESIDE_SAFETENSORS.fullmatch(file.name)]
    pickles = [name for name in by_name if name.endswith(PICKLES)]
    instead = f", only {pickles[0]}: a pickle runs code when it is loaded, and is never loaded here" if pickles else ""  # fmt: skip
    msg = f"{wanted.repository} has neither GGUF nor safetensors{instead}; look for a conversion of it, as `...-GGUF`"
    raise InputError(msg)


def _is_gguf(file: HubFile) -> bool:
    return file.name.endswith(".gguf")


def _size(file: HubFile) -> str:
    return "?" if file.size is None else units.show(file.size, "bytes")


def _check_room(folder: Path, files: list[HubFile]) -> None:
    """Better now than after an hour. Raises `FileError`."""
    missing = [file for file in files if not (folder / "blobs" / file.digest).exists()]
    parts = [folder / "blobs" / f"{file.digest}.incomplete" for file in missing]
    need_bytes = sum(file.size or 0 for file in missing)
    need_bytes -= sum(part.stat().st_size for part in parts if part.exists())
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free_bytes = shutil.disk_usage(place).free
    if need_bytes > free_bytes:
        need, free = units.show(need_bytes, "bytes"), units.show(free_bytes, "bytes")
        problem = f"has {free} free, and {need} are to be fetched; free some, or set HF_HUB_CACHE to another disk"
        raise FileError(place, problem)


# ---- fetching


def _fetch_file(hub: Hub, url: str, file: HubFile, *, folder: Path, link: Path, say: Say) -> None:
    """Into a blob, going on where an earlier try stopped; then its name, as a link to it."""
    blob = folder / "blobs" / file.digest
    try:
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            part = blob.with_name(f"{blob.name}.incomplete")
            _download(hub, url, file, part, say)
            _verify(part, file)
            part.replace(blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError as error:
        problem = f"{error.strerror or error}; what is here of {file.name} is kept, and gone on with next time"
        raise FileError(error.filename or blob, problem) from error


def _download(hub: Hub, url: str, file: HubFile, part: Path, say: Say) -> None:
    told_s = time.monotonic()
    for _ in range(hub.tries):
        have_bytes = part.stat().st_size if part.exists() else 0
        if file.size is not None and have_bytes >= file.size > 0:
            return
        try:
            with hub.open(url, start=have_bytes) as body, part.open("ab" if body.start else "wb") as out:  # fmt: skip
                have_bytes = body.start
                while data := body.read():
                    out.write(data)
                    have_bytes += len(data)
                    if file.size is not None and have_bytes > file.size:
                        return  # more than was promised: no need to see it all
                    if time.monotonic() - told_s > _TELL_EVERY_S:
                        told_s = time.monotonic()
                        say(f"{file.name}: {units.show(have_bytes, 'bytes')} of {_size(file)}")
        except Stopped as error:
            say(f"{file.name}: {error}; trying again from where it stopped")
            time.sleep(hub.pause_s)
        else:
            return
    msg = f"{file.name}: broke off {hub.tries} times; what is here is kept, and gone on with when asked again"
    raise RunError(msg)


def _verify(part: Path, file: HubFile) -> None:
    """Raises `RunError`, and takes away what is wrong, so that it is not gone on with."""
    found = digest_of(part, file.digest)
    if found != file.digest:
        size = part.stat().st_size
        part.unlink()
        msg = f"{file.name}: {size:,} bytes with the hash {found} came, and the hub promises {_size(file)} with {file.digest}; fetch it again, and from another mirror if that repeats"
        raise RunError(msg)


def digest_of(path: Path, like: str) -> str:
    """Of a file, in the way the hub has it: sha256 of large ones, and git's own hash of small ones."""
    if _SHA256.fullmatch(like):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
