"""What the field prints of its machines, held against the parts on record; every check carries its verdict.

A headline that the parts do not support stays in the catalog as a claim, with the reason in its note. Here the arithmetic is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from polypod.catalog.load import load_accelerator, load_link, load_pod
from polypod.catalog.schema import Fact


def value(fact: Fact | None) -> float:
    assert fact is not None
    return fact.value


def peak(chip: str, dtype: str) -> float:
    return value(load_accelerator(chip).peak(dtype))


def memory(chip: str) -> float:
    return value(load_accelerator(chip).memory_bytes)


def bandwidth(chip: str) -> float:
    return value(load_accelerator(chip).memory_bytes_per_s)


def one_way(chip: str) -> float:
    """Of all the scale-up links of an accelerator together."""
    scale_up = load_accelerator(chip).scale_up
    assert scale_up is not None
    return value(scale_up.bytes_per_s)


def size(pod: str) -> int:
    return load_pod(pod).accelerators


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A printed figure, what it comes to by the catalog, and whether the two agree within `within`."""

    name: str
    printed: float
    computed: Callable[[], float]
    within: float
    agrees: bool = True
    verdict: str


CHECKS = [
    Check(
        name="scaleX cluster, FLOPS per card",
        printed=5e18 / 10240,
        computed=lambda: peak("hygon-bw1000", "bf16"),
        within=0.02,
        verdict="488 TFLOPS a card fit the 16-bit peak of a BW1000; the precision of the 5 EFLOPS is not stated",
    ),
    Check(
        name="scaleX640 pair, FLOPS per card",
        printed=630e15 / 1280,
        computed=lambda: peak("hygon-bw1000", "bf16"),
        within=0.03,
        verdict="630 PFLOPS are of 1,280 cards",
    ),
    Check(
        name="scaleX640 rack, 630 PFLOPS",
        printed=630e15,
        computed=lambda: size("sugon-scalex640") * peak("hygon-bw1000", "bf16"),
        within=0.03,
        agrees=False,
        verdict="as a figure of one rack of 640 they are twice what the cards have",
    ),
    Check(
        name="sixteen times 630 PFLOPS",
        printed=16 * 630e15,
        computed=lambda: size("sugon-scalex-10k") * peak("hygon-bw1000", "bf16"),
        within=0.05,
        agrees=False,
        verdict="10.1 EFLOPS contradict the cluster's own 5; sixteen times 315 agree",
    ),
    Check(
        name="scaleX640 pair, HBM per card",
        printed=2304e12 / 1280,
        computed=lambda: bandwidth("hygon-bw1000"),
        within=0.05,
        agrees=False,
        verdict="1.8 TB/s a card against 1.6 in the card's table; may be of the BW1100",
    ),
    Check(
        name="scaleX640 pair, link per card",
        printed=573e12 / 1280,
        computed=lambda: 2 * value(load_pod("sugon-scalex640").tiers[0].bytes_per_s),
        within=0.001,
        verdict="448 GB/s, both ways; the article gives 573 TB/s to CloudMatrix384 too, which is wrong",
    ),
    Check(
        name="scaleX640 pair, power",
        printed=1.72e6,
        computed=lambda: 2 * value(load_pod("sugon-scalex640").power_w),
        within=0.001,
        verdict="the cooling unit of 1.72 MW is two racks of 860 kW",
    ),
    Check(
        name="scaleFabric switch",
        printed=64e12 / 8,
        computed=lambda: 80 * 2 * load_link("scalefabric").bytes_per_s["one port"].value,
        within=0.001,
        verdict="64 Tb/s are 80 ports of 400 Gb/s with both ways counted",
    ),
    Check(
        name="CloudMatrix384, FLOPS",
        printed=300e15,
        computed=lambda: size("huawei-cm384") * peak("huawei-ascend-910c", "bf16"),
        within=0.02,
        agrees=False,
        verdict="the vendor's paper gives 289 PFLOPS; 300 would need 781 TFLOPS a package",
    ),
    Check(
        name="CloudMatrix384, memory",
        printed=49.2e12,
        computed=lambda: size("huawei-cm384") * memory("huawei-ascend-910c"),
        within=0.002,
        verdict="384 x 128 GB, to the digit",
    ),
    Check(
        name="CloudMatrix384, memory bandwidth",
        printed=1229e12,
        computed=lambda: size("huawei-cm384") * bandwidth("huawei-ascend-910c"),
        within=0.001,
        verdict="384 x 3.2 TB/s, to the digit; 1.6 is of one die",
    ),
    Check(
        name="CloudMatrix384, network, of raw ports",
        printed=269e12,
        computed=lambda: 384 * 2 * load_link("ub1").bytes_per_s["Ascend 910C"].value,
        within=0.05,
        agrees=False,
        verdict="301 TB/s by the ports' 392 GB/s each way",
    ),
    Check(
        name="CloudMatrix384, network, of payload",
        printed=269e12,
        computed=lambda: 384 * 2 * 7 * 400e9 / 8,
        within=0.002,
        verdict="269 TB/s are 7 modules of 400 Gb/s a package, both ways",
    ),
    Check(
        name="910C, per package",
        printed=2 * 376e12,
        computed=lambda: peak("huawei-ascend-910c", "bf16"),
        within=0.001,
        verdict="two dies of 376 TFLOPS",
    ),
    Check(
        name="910C, UB port of a package",
        printed=14 * 28e9,
        computed=lambda: (
            load_accelerator("huawei-ascend-910c").ranks
            * value(load_pod("huawei-cm384").tiers[2].bytes_per_s)
        ),
        within=0.001,
        verdict="tiers are per die, 196 GB/s; the package has twice that",
    ),
    Check(
        name="Atlas 950, FLOPS",
        printed=8e18,
        computed=lambda: size("huawei-atlas950") * peak("huawei-ascend-950dt", "fp8"),
        within=0.03,
        verdict="8.2 EFLOPS of fp8",
    ),
    Check(
        name="Atlas 950 SuperCluster, FLOPS",
        printed=524e18,
        computed=lambda: size("huawei-atlas950-supercluster") * peak("huawei-ascend-950dt", "fp8"),
        within=0.001,
        verdict="64 SuperPoDs, to the digit",
    ),
    Check(
        name="Atlas 950, interconnect",
        printed=16.3e15,
        computed=lambda: size("huawei-atlas950") * 2 * one_way("huawei-ascend-950dt"),
        within=0.02,
        verdict="so the 2 TB/s of a chip count both ways",
    ),
    Check(
        name="Atlas 950, memory",
        printed=1152e12,
        computed=lambda: size("huawei-atlas950") * memory("huawei-ascend-950dt") * 1000 / 1024,
        within=0.001,
        verdict="8,192 x 144 GB, divided by 1,024 once",
    ),
    Check(
        name="Ascend 950, UB 2.0 ports",
        printed=18 * 4 * 112e9 / 8,
        computed=lambda: one_way("huawei-ascend-950dt"),
        within=0.001,
        verdict="1,008 GB/s each way",
    ),
    Check(
        name="Atlas 960, FLOPS",
        printed=30e18,
        computed=lambda: size("huawei-atlas960") * peak("huawei-ascend-960", "fp8"),
        within=0.04,
        verdict="31 EFLOPS, rounded down",
    ),
    Check(
        name="Atlas 960, interconnect",
        printed=34e15,
        computed=lambda: size("huawei-atlas960") * 2 * one_way("huawei-ascend-960"),
        within=0.01,
        verdict="2.2 TB/s a chip, both ways",
    ),
    Check(
        name="Zhenwu 810E, a fleet of China Unicom",
        printed=1945e15 / 16384,
        computed=lambda: peak("thead-zhenwu-810e", "fp16"),
        within=0.01,
        verdict="119 TFLOPS, below an H20",
    ),
    Check(
        name="MetaX C500, a fleet of China Unicom",
        printed=984e15 / 4096,
        computed=lambda: peak("metax-c500", "fp16"),
        within=0.01,
        verdict="240 TFLOPS; 128 and 80 are printed elsewhere",
    ),
    Check(
        name="Biren, a fleet of China Unicom",
        printed=450e15 / 1328,
        computed=lambda: peak("biren-br106", "fp16"),
        within=0.05,
        agrees=False,
        verdict="339 TFLOPS; the printed total is 100 PFLOPS short, and 350 would be 264: the estimate lies between",
    ),
    Check(
        name="the fleets of China Unicom in sum",
        printed=3479e15,
        computed=lambda: (1945 + 984 + 450 + 200) * 1e15,
        within=0.01,
        agrees=False,
        verdict="the addends are 3,579: one of them or the sum is misprinted",
    ),
    Check(
        name="TianGai 100, an export filing",
        printed=2352e12 / 16,
        computed=lambda: peak("iluvatar-bi-v100", "fp16"),
        within=0.001,
        verdict="147 TFLOPS, to the digit; 95 is printed elsewhere",
    ),
    Check(
        name="TianGai 150, an export filing",
        printed=3040e12 / 16,
        computed=lambda: peak("iluvatar-bi-v150", "fp16"),
        within=0.001,
        verdict="190 TFLOPS is where the entry comes from",
    ),
    Check(
        name="Panjiu AL128, interconnect",
        printed=1e15,
        computed=lambda: size("alibaba-al128") * 2 * one_way("thead-zhenwu-m890"),
        within=0.5,
        agrees=False,
        verdict="a tenth of a PB/s with the M890, 0.45 even at 28 Tb/s a GPU",
    ),
    Check(
        name="YuanNao SD200, memory",
        printed=4.096e12,
        computed=lambda: size("inspur-sd200") * 64e9,
        within=0.001,
        verdict="64 GB a chip: fits several cards, and the make is not said",
    ),
    Check(
        name="GB200 NVL72, bf16",
        printed=180e15,
        computed=lambda: size("nvidia-gb200-nvl72") * peak("nvidia-gb200", "bf16"),
        within=0.001,
        verdict="dense",
    ),
    Check(
        name="GB200 NVL72, 1.44 EFLOPS of fp4",
        printed=1.44e18,
        computed=lambda: size("nvidia-gb200-nvl72") * 2 * peak("nvidia-gb200", "fp4"),
        within=0.001,
        verdict="sparse: twice the dense peak",
    ),
    Check(
        name="GB300 NVL72, fp4",
        printed=1.1e18,
        computed=lambda: size("nvidia-gb300-nvl72") * peak("nvidia-b300", "fp4"),
        within=0.02,
        verdict="dense",
    ),
    Check(
        name="Vera Rubin NVL72, 3.6 EFLOPS of inference",
        printed=3.6e18,
        computed=lambda: size("nvidia-vr-nvl72") * peak("nvidia-rubin", "fp4"),
        within=0.05,
        agrees=False,
        verdict="counts adaptive compression; dense it is 2.5",
    ),
    Check(
        name="Vera Rubin NVL144, dies",
        printed=144,
        computed=lambda: 2 * size("nvidia-vr-nvl72"),
        within=0.001,
        verdict="the name of 2025 counted dies; packages are 72",
    ),
    Check(
        name="TPU7x pod, FLOPS",
        printed=42.5e18,
        computed=lambda: size("google-v7-pod") * peak("google-tpu-v7", "fp8"),
        within=0.001,
        verdict="9,216 x 4.614 PFLOPS",
    ),
    Check(
        name="Trn3 UltraServer, FLOPS",
        printed=362e15,
        computed=lambda: size("aws-trn3-ultra") * peak("aws-trainium3", "fp8"),
        within=0.002,
        verdict="144 x 2.517 PFLOPS",
    ),
    Check(
        name="Helios, FLOPS",
        printed=2.9e18,
        computed=lambda: size("amd-helios") * peak("amd-mi455x", "fp4"),
        within=0.001,
        verdict="72 x 40.26 PFLOPS",
    ),
    Check(
        name="Helios, scale-up",
        printed=260e12,
        computed=lambda: size("amd-helios") * 2 * one_way("amd-mi455x"),
        within=0.005,
        verdict="3.6 TB/s a package, both ways",
    ),
    Check(
        name="H200, total processing performance of the export rule",
        printed=15831,
        computed=lambda: 8 * peak("nvidia-h200-sxm", "fp8") / 1e12,
        within=0.001,
        verdict="8 bits times TFLOPS: under the rule's 21,000",
    ),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_printed_figure_against_the_parts(check: Check):
    apart = abs(check.computed() / check.printed - 1)

    assert (apart <= check.within) is check.agrees, f"{apart:.1%} apart; {check.verdict}"


def test_who_is_inside_the_export_rule_of_2026():
    # case by case below 21,000 (bits x TFLOPS); a B200 is past it, an H20 far below
    performance = {
        chip: 8 * peak(chip, "fp8") / 1e12
        for chip in ("nvidia-h20", "nvidia-h200-sxm", "nvidia-b200-hgx")
    }

    assert performance["nvidia-h20"] == 2368
    assert performance["nvidia-h200-sxm"] < 21_000 < performance["nvidia-b200-hgx"]


def test_the_switches_of_cloudmatrix384():
    # 48 nodes of 7 L1 chips are the 336 that are printed; 7 sub-planes of 16 L2 chips the 112
    nodes = size("huawei-cm384") // 8

    assert (nodes * 7, 7 * 16) == (336, 112)
