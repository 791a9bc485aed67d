"""Models by their id, from a hub on this machine that lists, sends on to another host, breaks off and lies as real ones might.

The answers' shape is the hub's own: `siblings` with `rfilename`, `size`, `blobId` and `lfs.sha256`, and `resolve` that sends large files on.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from polypod.errors import FileError, InputError, RunError
from polypod.serve import hub as hub_module
from polypod.serve import weights as weights_module
from polypod.serve.hub import HubId, cache_folder, fetch, hub_id
from polypod.serve.hub_net import Hub
from polypod.serve.weights import check_format, check_unchanged, find_weights

COMMIT = "c" * 40
BIG = bytes(range(256)) * 4000  # a megabyte
REPO = "org/name"


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class FakeHub:
    """What it has, how it fails, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    breaks_after: list[int] = field(
        default_factory=list
    )  # bytes, one for each answer of the other host
    statuses: list[int] = field(default_factory=list)  # to answer with first
    lies: bytes | None = None
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    elsewhere: str = ""
    endpoint: str = ""

    def listing(self) -> dict[str, Any]:
        return {
            "id": REPO,
            "sha": COMMIT,
            "siblings": [
                {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
                | ({"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}} if name in self.large else {})
                for name, data in self.files.items()
            ],
        }  # fmt: skip


def handler(fake: FakeHub, *, is_other: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            fake.asked.append(("other" if is_other else "hub", self.path, {name.lower(): value for name, value in self.headers.items()}))  # fmt: skip
            if not is_other and fake.statuses:
                self.send_error(fake.statuses.pop(0))
            elif self.path.startswith("/api/models/org/name/revision/"):
                self._send(json.dumps(fake.listing()).encode())
            elif self.path.startswith(f"/org/name/resolve/{COMMIT}/"):
                name = self.path.rpartition("/")[2]
                if name in fake.large and not is_other:
                    self.send_response(302)
                    self.send_header("location", fake.elsewhere + self.path)
                    self.send_header("x-linked-size", str(len(fake.files[name])))
                    self.send_header(
                        "x-linked-etag", f'"{hashlib.sha256(fake.files[name]).hexdigest()}"'
                    )
                    self.send_header("content-length", "0")
                    self.end_headers()
                else:
                    self._send(fake.files[name] if fake.lies is None else fake.lies)
            else:
                self.send_error(404)

        def _send(self, data: bytes) -> None:
            start = int(self.headers.get("range", "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("content-length", str(len(data) - start))
            self.end_headers()
            most = fake.breaks_after.pop(0) if is_other and fake.breaks_after else len(data)
            self.wfile.write(data[start : start + most])

    return Handler


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    fake = FakeHub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(fake, is_other=other)) for other in (False, True)]  # fmt: skip
    threads = [threading.Thread(target=one.serve_forever, args=(0.01,)) for one in servers]
    for thread in threads:
        thread.start()
    fake.endpoint, fake.elsewhere = (f"http://127.0.0.1:{one.server_address[1]}" for one in servers)
    yield fake
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def get(fake: FakeHub, cache: Path, text: str = REPO, **more: Any) -> Path:
    wanted = hub_id(text)
    assert wanted is not None
    said = more.pop("said", [])
    return fetch(wanted, hub=Hub(fake.endpoint, pause_s=0.0, **more), cache=cache, say=said.append)


# ---- what is meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", HubId(repository="org/name")),
        ("org/name:a/b.gguf", HubId(repository="org/name", file="a/b.gguf")),
        ("org/name@refs/pr/1:b.gguf", HubId(repository="org/name", revision="refs/pr/1", file="b.gguf")),
        ("models/a.gguf", None),
        ("/org/name", None),
        ("./org/name", None),
        ("a/b/c", None),
        ("name", None),
        ("org/name@../../x", None),
        ("org/name:../x.gguf", None),
    ],
)  # fmt: skip
def test_what_is_an_id_and_what_is_a_path(text: str, meant: HubId | None) -> None:
    assert hub_id(text) == meant


def test_what_exists_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_id("org/name") is None


# ---- fetching


def test_a_large_file_comes_from_the_other_host_without_the_token(fake, cache) -> None:
    fake.files, fake.large = {"m.gguf": BIG, "README.md": b"hi"}, {"m.gguf"}
    path = get(fake, cache, token="hf_secret")

    assert path.read_bytes() == BIG
    assert path == cache / "models--org--name" / "snapshots" / COMMIT / "m.gguf"
    assert path.resolve().name == hashlib.sha256(BIG).hexdigest()
    assert (cache / "models--org--name" / "refs" / "main").read_text() == COMMIT
    tokens = {where: headers.get("authorization") for where, _, headers in fake.asked}
    assert tokens == {"hub": "Bearer hf_secret", "other": None}


def test_what_the_cache_has_is_not_asked_for(fake, cache) -> None:
    fake.files, fake.large = {"m.gguf": BIG}, {"m.gguf"}
    first = get(fake, cache)
    fake.asked.clear()
    assert get(fake, cache) == get(fake, cache, f"{REPO}:m.gguf") == first
    assert get(fake, cache, f"{REPO}@{COMMIT}", is_offline=True) == first
    assert fake.asked == []


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(fake, cache) -> None:
    fake.files, fake.large = {"m.gguf": BIG}, {"m.gguf"}
    fake.breaks_after = [300_000, 300_000]
    said: list[str] = []
    assert get(fake, cache, said=said).read_bytes() == BIG
    ranges = [headers.get("range") for where, _, headers in fake.asked if where == "other"]
    assert ranges == [None, "bytes=300000-", "bytes=600000-"]
    assert sum("trying again from where it stopped" in one for one in said) == 2


def test_what_broke_off_for_good_is_gone_on_with_next_time(fake, cache) -> None:
    fake.files, fake.large = {"m.gguf": BIG}, {"m.gguf"}
    fake.breaks_after = [100_000, 100_000]
    with pytest.raises(RunError, match=r"m\.gguf: broke off 2 times; what is here is kept"):
        get(fake, cache, tries=2)
    fake.asked.clear()
    assert get(fake, cache).read_bytes() == BIG
    assert [headers.get("range") for where, _, headers in fake.asked if where == "other"] == ["bytes=200000-"]  # fmt: skip


def test_a_busy_hub_is_asked_again(fake, cache) -> None:
    fake.files = {"m.gguf": BIG}
    get(fake, cache)  # so that the listing is not what fails
    (cache / "models--org--name" / "refs" / "main").unlink()
    for blob in (cache / "models--org--name" / "blobs").iterdir():
        blob.unlink()
    fake.asked.clear()

    class Busy(Hub):
        def json(self, *args: Any, **more: Any) -> Any:
            found = super().json(*args, **more)
            fake.statuses = [503, 429]
            return found

    wanted = HubId(repository=REPO)
    path = fetch(wanted, hub=Busy(fake.endpoint, pause_s=0.0), cache=cache, say=lambda _: None)
    assert path.read_bytes() == BIG


@pytest.mark.parametrize("lie", [BIG[:-1] + b"x", BIG[:1000], BIG + b"more"])
def test_bytes_that_are_not_what_was_promised_are_thrown_away(fake, cache, lie: bytes) -> None:
    fake.files, fake.large, fake.lies = {"m.gguf": BIG}, {"m.gguf"}, lie
    with pytest.raises(RunError, match=r"and the hub promises 1\.02 MB with"):
        get(fake, cache)
    assert [one for one in cache.rglob("*") if one.is_file()] == []
    fake.lies = None
    assert get(fake, cache).read_bytes() == BIG


def test_safetensors_come_with_what_belongs_to_them_and_no_code(fake, cache) -> None:
    fake.files = {
        "config.json": b"{}",
        "model.safetensors": b"tensors",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ x }}",
        "modeling_name.py": b"import os",
        "pytorch_model.bin": b"\x80\x02",
        "onnx/model.onnx": b"x",
        ".gitattributes": b"x",
    }
    fake.large = {"model.safetensors"}
    folder = get(fake, cache)
    assert sorted(one.name for one in folder.iterdir()) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]  # fmt: skip
    assert (folder / "config.json").resolve().name == git_hash(b"{}")
    assert get(fake, cache, is_offline=True) == folder


def test_a_part_of_many_that_is_missing_is_fetched(fake, cache) -> None:
    index = json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).encode()
    fake.files = {"config.json": b"{}", "model.safetensors.index.json": index, "a.safetensors": b"a", "b.safetensors": b"b"}  # fmt: skip
    folder = get(fake, cache)
    (folder / "b.safetensors").unlink()
    assert (get(fake, cache) / "b.safetensors").read_bytes() == b"b"


def test_several_gguf_files_are_listed_and_none_is_guessed(fake, cache) -> None:
    fake.files = {"m-Q4.gguf": b"4", "m-Q8.gguf": b"88"}
    with pytest.raises(InputError, match=r"several GGUF files; name one, as org/name:m-Q4\.gguf: m-Q4\.gguf \(1 B\), m-Q8"):  # fmt: skip
        get(fake, cache)
    assert get(fake, cache, f"{REPO}:m-Q8.gguf").read_bytes() == b"88"
    with pytest.raises(InputError, match=r"has no m-Q5\.gguf; nearest: m-Q\d\.gguf"):
        get(fake, cache, f"{REPO}:m-Q5.gguf")


def test_a_pickle_is_refused_with_the_reason(fake, cache) -> None:
    fake.files = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(InputError, match=r"only pytorch_model\.bin: a pickle runs code when it is loaded"):  # fmt: skip
        get(fake, cache)
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        get(fake, cache, f"{REPO}:pytorch_model.bin")


def test_a_hub_that_names_files_outside_is_refused(fake, cache) -> None:
    fake.files = {"../../../evil.gguf": b"x"}
    with pytest.raises(InputError, match="is no GGUF file"):
        get(fake, cache)
    assert not list(cache.rglob("*"))


@pytest.mark.parametrize(
    ("status", "token", "says"),
    [
        (401, None, "set HF_TOKEN"),
        (403, "hf_x", "with an account whose token may read it"),
        (404, None, "look at the spelling"),
        (500, None, "did not answer as a hub does"),
    ],
)
def test_a_refusal_says_the_way_out(fake, cache, status: int, token: str | None, says: str) -> None:
    fake.statuses = [status]
    with pytest.raises(RunError, match=says):
        get(fake, cache, token=token)


def test_without_a_network_the_way_out_is_said(cache) -> None:
    hub = Hub("http://127.0.0.1:1")
    with pytest.raises(RunError, match=r"cannot be reached.*set HF_ENDPOINT to a mirror, or fetch the file elsewhere"):  # fmt: skip
        fetch(HubId(repository=REPO), hub=hub, cache=cache, say=lambda _: None)


def test_a_full_disk_is_said_before_anything_is_fetched(fake, cache, monkeypatch) -> None:
    fake.files, fake.large = {"m.gguf": BIG}, {"m.gguf"}
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        FileError, match=r"has 1 kB free, and 1\.02 MB are to be fetched.*HF_HUB_CACHE"
    ):
        get(fake, cache)
    assert [where for where, _, _ in fake.asked] == ["hub"]


def test_an_endpoint_without_tls_is_refused() -> None:
    with pytest.raises(InputError, match="has no TLS"):
        Hub("http://hub.example")


def test_the_environment_says_which_hub_and_where(monkeypatch, tmp_path: Path) -> None:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hub"
    assert Hub.from_environment().endpoint == "https://huggingface.co"
    monkeypatch.setenv("HF_HUB_CACHE", "/x")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert cache_folder() == Path("/x")
    assert Hub.from_environment().endpoint == "https://mirror.example"


# ---- what is served is still what it was


def test_a_pickle_by_its_path_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    for name, start in (("m.bin", b"x"), ("m.gguf", b"\x80\x04"), ("w.safetensors", b"PK\x03\x04")):
        path = tmp_path / name
        path.write_bytes(start + b"rest")
        with pytest.raises(FileError, match="is a pickle: loading one runs whatever code is in it"):
            check_format(path)
    good = tmp_path / "good.gguf"
    good.write_bytes(b"GGUF")
    check_format(good)


def test_a_file_that_rots_is_found_and_one_that_was_replaced_is_said(tmp_path: Path) -> None:
    path, state, said = tmp_path / "m.gguf", tmp_path / "state", []
    path.write_bytes(b"one")
    check_unchanged(path, state=state, say=said.append)
    check_unchanged(path, state=state, say=said.append)
    assert said == []

    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FileError, match="with the same size and time: the disk may be failing"):
        check_unchanged(path, state=state, say=said.append)

    path.write_bytes(b"three")
    check_unchanged(path, state=state, say=said.append)
    assert len(said) == 1
    assert hashlib.sha256(b"three").hexdigest() in said[0]
    check_unchanged(path, state=state, say=said.append)
    assert len(said) == 1


def test_a_large_file_is_read_whole_only_when_it_changed_or_that_is_asked_for(
    tmp_path: Path, monkeypatch
) -> None:
    path, state = tmp_path / "m.gguf", tmp_path / "state"
    path.write_bytes(b"one")
    monkeypatch.setattr(weights_module, "READ_WHOLE_BYTES", 2)
    read: list[Path] = []
    real = weights_module.digest_of
    monkeypatch.setattr(weights_module, "digest_of", lambda file, like: read.append(file) or real(file, like))  # fmt: skip
    for whole, times in ((False, 1), (False, 1), (True, 2)):
        check_unchanged(path, state=state, say=print, whole=whole)
        assert len(read) == times
    path.write_bytes(b"four")
    check_unchanged(path, state=state, say=lambda _: None)
    assert len(read) == 3


def test_a_file_of_the_hub_that_is_damaged_later_is_refused(fake, tmp_path, monkeypatch) -> None:
    fake.files, fake.large = {"m.gguf": BIG}, {"m.gguf"}
    monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found = find_weights(REPO, state=tmp_path / "state", say=print)
    assert found.path.read_bytes() == BIG
    blob = found.path.resolve()
    blob.write_bytes(BIG[:-1] + b"x")
    with pytest.raises(FileError, match="is damaged: the hub's file has the hash"):
        find_weights(REPO, state=tmp_path / "state", say=print)
    blob.unlink()
    assert find_weights(REPO, state=tmp_path / "state", say=lambda _: None).path.read_bytes() == BIG


def test_a_folder_of_the_hub_is_served_under_its_id(fake, tmp_path, monkeypatch) -> None:
    fake.files = {"config.json": b"{}", "model.safetensors": b"x"}
    monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_weights(REPO, state=tmp_path / "state", say=print).name == REPO


def test_no_engine_is_ever_told_to_trust_code_of_a_model() -> None:
    source = Path(weights_module.__file__).parents[1]
    flags = ("--trust-remote-code", "trust_remote_code=True", '"trust_remote_code": True')
    assert [str(path) for path in source.rglob("*.py") if any(flag in path.read_text() for flag in flags)] == []  # fmt: skip
