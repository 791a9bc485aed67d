"""The battery that every probe passes, for shipped vendors and for one that is being added."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from polypod.serve.devices import asking
from polypod.serve.devices.asking import run_process
from polypod.serve.devices.find import Finders
from tests.conformance import kit

STATUSES = {
    "ok",
    "partial",
    "no_devices",
    "driver_error",
    "permission_error",
    "tool_missing",
    "parse_error",
}

CUTS = [*(step / 16 for step in range(16)), 1, 2, 5, 12, 30]
"""Shares of an answer that come through, then whole answers less so many characters."""


def is_found_as_it_was(
    told: kit.Told, folder: Path, finders: Finders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through scripts that are really run: what is listed, in what state, and by exactly which commands."""
    if any(command.exit_code == -1 for command in told.case.commands):
        monkeypatch.setattr(asking, "TIMEOUT_S", 0.2)
    kit.lay_out(told, folder / "root")
    log = folder / "log"
    log.touch()
    kit.install_tools(told, folder / "bin", log)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")

    inventory = kit.look(told, folder / "root", run_process, folder / "bin", finders)

    wanted = told.case.expected
    more = sorted(
        {key for device in wanted.devices for key in device}
        - {*kit.TOLD, "is_memory_shared", "slices"}
    )
    assert kit.told_of(inventory, more) == wanted.devices
    statuses = wanted.status.split(", ") if wanted.status else []
    assert [report.status for report in inventory.reports] == statuses
    tried = [command for report in inventory.reports for command in report.tried]
    ran = [line.strip() for line in log.read_text().splitlines()]
    assert sorted(ran) == sorted(tried)  # vendors are asked at the same time
    assert ran == tried or len(inventory.reports) > 1
    unwell = [device for device in inventory.devices if device.health not in {"ok", "unknown"}]
    assert all(device.reason for device in unwell)


def may_be_cut_anywhere(told: kit.Told, folder: Path, finders: Finders) -> None:
    """A tool killed in the middle of a line: what is listed was there, and what is missing is said."""
    kit.lay_out(told, folder / "root")
    kit.make_empty_tools(told, folder / "bin")
    there = [_identity(device) for device in told.case.expected.devices]
    for share in CUTS:
        run = kit.answers(told, partial(_cut, share))
        inventory = kit.look(told, folder / "root", run, folder / "bin", finders)

        read = [one for one in inventory.devices if one.found_by != "pci"]
        for device in kit.told_of(kit.only(inventory, read), ()):
            assert any(_is_of(_identity(device), whole) for whole in there), (share, device)
        for report in inventory.reports:
            assert report.status in STATUSES
            assert report.status == "ok" or report.problem, share
        if len(read) < len(told.case.pci):
            assert {report.status for report in inventory.reports} != {"ok"}, share


def may_be_noisy(told: kit.Told, folder: Path, finders: Finders, seeds: int) -> None:
    """Characters changed at random: no crash, whatever is made of it."""
    kit.lay_out(told, folder / "root")
    kit.make_empty_tools(told, folder / "bin")
    for seed in range(seeds):
        run = kit.answers(told, partial(_noisy, random.Random(f"{told.id} {seed}")))
        inventory = kit.look(told, folder / "root", run, folder / "bin", finders)

        for report in inventory.reports:
            assert report.status in STATUSES
            assert report.status == "ok" or report.problem, seed


def _noisy(seeded: random.Random, text: str) -> str:
    letters = list(text)
    for _ in range(1 + len(letters) // 200 if letters else 0):
        letters[seeded.randrange(len(letters))] = seeded.choice('|+-0aX \n\t,:{}[]"<')
    return "".join(letters)


def _cut(share: float, text: str) -> str:
    return text[: int(len(text) * share)] if share < 1 else text[: len(text) - int(share)]


def _identity(device: dict[str, Any]) -> dict[str, Any]:
    return {key: device.get(key) for key in kit.TOLD if key not in {"health", "index"}}


def _is_of(read: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Whether everything that was read is true of a device that was there; less may be known of it."""
    name, true_name = read["name"] or "", whole["name"] or ""
    is_half_a_name = name != true_name and true_name.startswith(name) and name != ""
    others = {key: value for key, value in read.items() if key != "name"}  # the bus may name it
    return not is_half_a_name and all(value in {None, whole[key]} for key, value in others.items())
