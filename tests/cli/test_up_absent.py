"""A plan for what is not here is refused with what is missing and the nearest plan for what is; an engine that fails, with what would fit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from polypod.cli.up_absent import check_cards, check_cores
from polypod.cli.up_fit import fit_text
from polypod.cost.cpu import HostRates
from polypod.errors import EngineError, FileError, InputError
from polypod.plan.host import CoreGroup, LocalEngine, plan_host
from polypod.plan.spec import Plan, read_plan, write_plan
from polypod.serve.devices.cpu import find_cpu
from polypod.serve.devices.found import Inventory
from polypod.serve.local import local_model, prepare

ROOT = Path(__file__).parents[2]
MINE = min(os.sched_getaffinity(0))


def on_cores(*cores: int) -> Plan:
    rates = HostRates(cpu_class="x86-amx", cpu="c", cores=1, gemm_flops_per_s=1e11, read_bytes_per_s=1e10, measured_utc="2026-01-01")  # fmt: skip
    engine = LocalEngine(name="llama.cpp", version="1", kv_bytes_per_element=2.0, max_step_tokens=512)  # fmt: skip
    return plan_host(local_model(None), [CoreGroup(cores=cores, rates=rates)], [engine], free_memory_bytes=1e10)  # fmt: skip


def test_cards_that_are_not_here_are_named_with_the_ways_out() -> None:
    file = str(ROOT / "examples" / "three-chips.yaml")
    nothing = Inventory(devices=(), reports=())
    with pytest.raises(InputError) as caught:
        check_cards(read_plan(Path(file)), file, lambda: nothing)
    said = str(caught.value)
    assert "8 of 8 nvidia-h200-sxm (part a), 8 of 8 huawei-ascend-910c (part b)" in said
    assert f"`polypod devices --for {file}`" in said
    check_cards(on_cores(MINE), "host.yaml", lambda: nothing)


def test_cores_that_are_not_here_are_named_with_a_plan_for_those_that_are(tmp_path: Path) -> None:
    nearest = tmp_path / "nearest.yaml"
    with pytest.raises(InputError) as caught:
        check_cores(on_cores(4096, MINE), "p.yaml", nearest, lambda _: on_cores(MINE))
    said = str(caught.value)
    assert "p.yaml is for cores [4096] of 'cores0'" in said
    assert f"llama.cpp on core {MINE}: `polypod up --plan {nearest}`" in said
    assert prepare(read_plan(nearest), tmp_path).ups[0].replica == "llama.cpp-0"
    check_cores(on_cores(MINE), "p.yaml", nearest, lambda _: on_cores(MINE))


def test_where_nothing_fits_that_is_said_too(tmp_path: Path) -> None:
    def replan(_: Plan) -> Plan:
        raise FileError(Path("m.gguf"), "does not exist")

    with pytest.raises(
        InputError, match=r"no plan fits the cores that are here: m\.gguf: does not exist"
    ):
        check_cores(on_cores(4096), "p.yaml", tmp_path / "n.yaml", replan)


def test_a_person_is_led_to_the_nearest_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    write_plan(on_cores(4096), file)
    done = subprocess.run(
        [sys.executable, "-m", "polypod", "up", "--plan", str(file), "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    (nearest,) = re.findall(r"polypod up --plan (\S+)`", done.stderr)
    plan = read_plan(Path(nearest))
    assert plan.services[0].model == on_cores(MINE).services[0].model
    assert prepare(plan, tmp_path).ups


def test_what_would_fit_stands_below_an_engines_last_lines() -> None:
    plan = on_cores(MINE)
    error = EngineError("replica llama.cpp-0 (llama.cpp, m.gguf) ended with status 1", ["no room"])
    said = fit_text(error, plan, find_cpu()).splitlines()
    assert said[1] == "    no room"
    assert said[2] == "what would fit:"
    assert re.fullmatch(r"    llama.cpp takes about \S+ MB of memory, and \S+ GB are free: enough", said[3])  # fmt: skip
    assert re.fullmatch(r"    beside its weights there is room for [\d,]+ tokens in each of \d+ sequences .*", said[4])  # fmt: skip

    tight = msgspec.structs.replace(find_cpu(), memory_available_bytes=1000)
    assert "1 kB are free: too little" in fit_text(error, plan, tight)
    assert "room for 0 tokens" in fit_text(error, plan, tight)
    other = EngineError("replica far (a URL) does not answer")
    assert fit_text(other, plan, find_cpu()) == str(other)
