"""The conformance kit: machines replayed from folders `VENDOR/CASE`, each with what a probe must make of it.

`case.toml` has the origin and the licence of the answers, the functions on the bus, device nodes and kernel files, the commands with what they print, and
the expected inventory. A command may end in "*": the answer to whatever is asked. `exit_code = -1` is a tool that hangs until it is killed.
"""

import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from polypod.serve.devices.asking import Answer, Run
from polypod.serve.devices.find import Finders, find_devices
from polypod.serve.devices.found import Device, Inventory
from polypod.serve.devices.machine import Machine
from polypod.serve.devices.vendor import shipped_vendors

HERE = Path(__file__).parent
UNKNOWN_OPTION = Answer(stdout="", stderr="unknown option", exit_code=2)


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Command(_Strict, frozen=True, kw_only=True):
    argv: list[str]
    stdout: str = ""  # a file of the case
    stderr: str = ""
    exit_code: int = 0
    writes: dict[str, str] = {}


class PciEntry(_Strict, frozen=True, kw_only=True, rename={"class_code": "class"}):
    address: str
    vendor: str
    device: str
    class_code: str


class KernelFile(_Strict, frozen=True, kw_only=True):
    path: str
    content: str


class FakeLibrary(_Strict, frozen=True, kw_only=True):
    interface: str
    path: str  # where the vendor's installer puts it
    answers: str  # a file of the case


class Expected(_Strict, frozen=True, kw_only=True):
    status: str
    devices: list[dict[str, Any]] = []


class Case(_Strict, frozen=True, kw_only=True):
    provenance: Literal["captured", "transcribed", "reconstructed"]
    origin: str
    licence: str
    expected: Expected
    chip: str | None = None
    driver: str | None = None
    traps: list[str] = []
    note: str | None = None
    platform: str = "linux"
    vendors: list[str] = []  # those expected; the folder's name where it says none
    nodes: list[str] = []
    commands: list[Command] = []
    pci: list[PciEntry] = []
    files: list[KernelFile] = []
    library: FakeLibrary | None = None


class Told(msgspec.Struct, kw_only=True):
    """A case, its folder, and what its commands print."""

    vendor: str
    name: str
    folder: Path
    case: Case

    @property
    def id(self) -> str:
        return f"{self.vendor}/{self.name}"

    def text(self, command: Command) -> str:
        return (self.folder / command.stdout).read_text() if command.stdout else ""


def cases(root: Path = HERE) -> Iterator[Told]:
    for path in sorted(root.glob("*/*/case.toml")):
        case = msgspec.convert(tomllib.loads(path.read_text()), Case)
        yield Told(vendor=path.parts[-3], name=path.parts[-2], folder=path.parent, case=case)


def lay_out(told: Told, root: Path) -> None:
    """The case's bus, nodes and kernel files below a folder."""
    for entry in told.case.pci:
        folder = root / "sys/bus/pci/devices" / entry.address
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{entry.vendor}\n")
        (folder / "device").write_text(f"{entry.device}\n")
        (folder / "class").write_text(f"{entry.class_code}\n")
    for node in told.case.nodes:
        _put(root / node.lstrip("/"), "")
    for file in told.case.files:
        _put(root / file.path.lstrip("/"), file.content)


def _put(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def answers(told: Told, change: Callable[[str], str] = str) -> Run:
    """Runs nothing: looks a command up, and answers as recorded, its output changed."""

    def run(argv: Sequence[str], _: float) -> Answer:
        for command in told.case.commands:
            if _is_asked(command.argv, [Path(argv[0]).name, *argv[1:]]):
                code = None if command.exit_code == -1 else command.exit_code
                return Answer(stdout=change(told.text(command)), stderr=command.stderr, exit_code=code)  # fmt: skip
        return UNKNOWN_OPTION

    return run


def _is_asked(recorded: list[str], argv: list[str]) -> bool:
    if recorded[-1] == "*":
        return argv[: len(recorded) - 1] == recorded[:-1]
    return argv == recorded


def install_tools(told: Told, folder: Path, log: Path) -> None:
    """Scripts that log how they were run and print what was recorded."""
    folder.mkdir(parents=True)
    for tool in {command.argv[0] for command in told.case.commands}:
        own = [command for command in told.case.commands if command.argv[0] == tool]
        lines = ["#!/bin/sh", f'echo "{tool} $*" >> {shlex.quote(str(log))}', 'case "$*" in']
        for command in own:
            lines.append(f"{_pattern(command.argv[1:])})")
            lines += [f"cat {shlex.quote(str(told.folder / command.stdout))}"] * bool(command.stdout)  # fmt: skip
            lines.append(f"printf %s {shlex.quote(command.stderr)} >&2")
            lines.append("exec sleep 60;;" if command.exit_code == -1 else f"exit {command.exit_code};;")  # fmt: skip
        lines += ["*) echo 'unknown option' >&2; exit 2;;", "esac"]
        path = folder / tool
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o755)


def _pattern(arguments: list[str]) -> str:
    return "*" if arguments == ["*"] else shlex.quote(" ".join(arguments))


def make_empty_tools(told: Told, folder: Path) -> None:
    """Tools that can be found and are never run."""
    folder.mkdir(parents=True)
    for command in told.case.commands:
        path = folder / command.argv[0]
        path.touch(0o755)


def shipped() -> Finders:
    """The vendors that come with Polypod, on a machine with no engine installed."""
    return Finders(vendors=shipped_vendors(), installed=lambda *_: False)


def look(told: Told, root: Path, run: Run, folder: Path, finders: Finders) -> Inventory:
    """The inventory of the replayed machine, as `polypod devices` would find it."""
    machine = Machine(root=root, folders=(folder,), platform=told.case.platform, run=run)
    return find_devices(machine, finders)


def only(inventory: Inventory, devices: list[Device]) -> Inventory:
    """An inventory with some of its devices."""
    return msgspec.structs.replace(inventory, devices=tuple(devices))


TOLD = ("index", "physical_id", "name", "uuid", "pci_address", "memory_total_bytes", "memory_used_bytes", "health")  # fmt: skip
SLICE = ("index", "name", "uuid", "instance", "memory_total_bytes", "memory_used_bytes")


def told_of(inventory: Inventory, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Devices as a case writes them: what was not told is left out."""
    found = []
    for device in inventory.devices:
        own = {key: getattr(device, key) for key in (*TOLD, *keys)}
        own["is_memory_shared"] = device.is_memory_shared or None  # said where it is so
        if device.slices:
            parts = ({key: getattr(part, key) for key in SLICE} for part in device.slices)
            own["slices"] = [_known(part) for part in parts]
        found.append(_known(own))
    return found


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
