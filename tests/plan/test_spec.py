"""The plan file: written and read back, and every slip of the pen found with its path."""

from pathlib import Path

import pytest

from polypod.errors import FileError
from polypod.plan.predict import policy_settings
from polypod.plan.spec import read_plan, to_yaml, write_plan

PLAN = """\
polypod: 1
fleet: {a: {pod: huawei-cm384, accelerators: 320}, b: {accelerator: nvidia-h20, count: 64}}
services:
  - model: deepseek-ai/DeepSeek-V3
    slo: {ttft: 2 s, tpot: 50 ms, percentile: 99}
    traffic: {rate: 20 /s, input: 4096, output: 1024}
    pools:
      - {role: prefill, on: a, layout: {tp: 1, dp: 32, ep: 32}, replicas: 4, precision: {weights: int8, kv: bf16}, state: modelled}
      - {role: decode,  on: b, layout: {tp: 8}, replicas: 8, precision: {weights: fp8, kv: bf16}, state: launchable}
policy: {router: predicted-finish}
"""


def broken(tmp_path: Path, old: str, new: str) -> Path:
    assert old in PLAN
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace(old, new), encoding="utf-8")
    return path


def test_a_plan_by_hand_is_read_with_its_quantities_in_si(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    plan = read_plan(path)
    service = plan.services[0]

    assert service.slo is not None
    assert (service.slo.ttft_s, service.slo.tpot_s) == (2.0, 0.05)
    assert service.traffic is not None
    assert service.traffic.rate_per_s == 20.0
    assert [pool.layout.world for pool in service.pools] == [32, 8]


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    plan = read_plan(path)
    write_plan(plan, tmp_path / "again.yaml")

    assert read_plan(tmp_path / "again.yaml") == plan
    assert "null" not in to_yaml(plan)


def test_waits_are_told_to_the_policy_where_they_are_said_and_written_only_there(
    tmp_path: Path,
) -> None:
    usual = read_plan(broken(tmp_path, "{router", "{router"))
    assert "wait" not in to_yaml(usual)
    settings = policy_settings(usual)
    assert (settings.queue_wait_s, settings.kv_wait_s) == (60.0, 60.0)

    plan = read_plan(broken(tmp_path, "{router", "{queue_wait: 2 min, kv_wait: 500 ms, router"))
    settings = policy_settings(plan)
    assert (settings.queue_wait_s, settings.kv_wait_s) == (120.0, 0.5)
    write_plan(plan, tmp_path / "again.yaml")
    assert read_plan(tmp_path / "again.yaml") == plan


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("polypod: 1", "polypod: 2", r"Invalid enum value 2 - at `\$\.polypod`"),
        ("replicas: 4", "replica: 4", r"unknown field `replica` - at `\$\.services\[0\]\.pools\[0\]`"),
        ("replicas: 4", "replicas: 0", r"`int` >= 1 - at `\$\.services\[0\]\.pools\[0\]\.replicas`"),
        ("ep: 32", "ep: 33", r"ep=33 does not divide .* at `\$\.services\[0\]\.pools\[0\]\.layout`"),
        ("on: b", "on: c", r"'c' is not in the fleet \(a, b\) - at `\$\.services\[0\]\.pools\[1\]\.on`"),
        ("ttft: 2 s", "ttft: 2 parsecs", r"unknown unit 'parsecs'.* at `\$\.services\[0\]\.slo\.ttft`"),
        ("ttft: 2 s", "ttft: 2", r"Expected `str \| null`, got `int` - at `\$\.services\[0\]\.slo\.ttft`"),
        ("rate: 20 /s", "rate: 20 /fortnight", r"unknown unit '/fortnight'"),
        ("percentile: 99", "percentile: 100", r"`float` < 100"),
        ("pod: huawei-cm384, ", "", r"names nothing; give one of pod, accelerator, host - at `\$\.fleet\.a`"),
        (", count: 64", "", r"'nvidia-h20' needs a count - at `\$\.fleet\.b`"),
        ("predicted-finish", "coin", r"Invalid enum value 'coin' - at `\$\.policy\.router`"),
        ("{router", "{queue_wait: 0s, router", r"0s is no time to wait; it has to be above 0 - at `\$\.policy\.queue_wait`"),
        ("{router", "{kv_wait: 2 parsecs, router", r"unknown unit 'parsecs'.* at `\$\.policy\.kv_wait`"),
        ("{router", "{router: [", r"is not YAML"),
        ("{role: ", "{name: x, role: ", r"a second pool is called 'x'.* at `\$\.services\[0\]\.pools\[1\]\.name`"),
    ],
)  # fmt: skip
def test_a_broken_plan_names_the_file_the_path_and_the_reason(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    path = broken(tmp_path, old, new)
    with pytest.raises(FileError, match=says) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_a_plan_that_is_not_there_is_an_error_message(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot be read: .*No such file"):
        read_plan(tmp_path / "nowhere.yaml")
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    plan = read_plan(path)
    with pytest.raises(FileError, match="cannot be written"):
        write_plan(plan, tmp_path / "no" / "where.yaml")


def test_a_write_that_fails_leaves_the_old_plan_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    plan = read_plan(path)
    path.with_name(".plan.yaml.part").mkdir()  # so that nothing can be written beside it
    with pytest.raises(FileError, match="cannot be written"):
        write_plan(plan, path)
    assert path.read_text(encoding="utf-8") == PLAN


CACHED = "replicas: 8, prefix_cache: {host: 512 GiB, host_bandwidth: 50 GB/s, remote: 10 TiB, remote_bandwidth: 100 Gb/s, remote_latency: 2 ms}"


def test_a_pool_says_where_blocks_are_kept_and_how_uneven_its_experts_are(tmp_path: Path) -> None:
    path = broken(tmp_path, "replicas: 8", f"{CACHED}, expert_imbalance_cv: 0.1")
    plan = read_plan(path)
    write_plan(plan, tmp_path / "again.yaml")
    pool = plan.services[0].pools[1]

    assert pool.prefix_cache is not None
    assert (pool.prefix_cache.host, pool.expert_imbalance_cv) == ("512 GiB", 0.1)
    assert read_plan(tmp_path / "again.yaml") == plan


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("{host: 512 GiB}", r"host is said and host_bandwidth is not; .* at `\$.services\[0\].pools\[1\].prefix_cache.host_bandwidth`"),
        ("{remote_bandwidth: 1 GB/s}", r"remote_bandwidth is said and remote is not"),
        ("{host: '512', host_bandwidth: 1 GB/s}", r"'512' has no unit; .* at `\$.services\[0\].pools\[1\].prefix_cache.host`"),
        ("{host: 1 GiB, host_bandwidth: 0 GB/s}", r"host_bandwidth is 0 GB/s, by which nothing is ever loaded"),
        ("{remote_latency: 2 ms}", r"remote_latency is said and remote is not"),
        ("{disk: 1 TB}", r"unknown field `disk`"),
    ],
)  # fmt: skip
def test_a_tier_that_cannot_be_is_named(tmp_path: Path, given: str, problem: str) -> None:
    with pytest.raises(FileError, match=problem):
        read_plan(broken(tmp_path, "replicas: 8", f"replicas: 8, prefix_cache: {given}"))


def test_experts_are_not_more_uneven_than_a_third(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"<= 0.33 - at `\$.services\[0\].pools\[1\].expert_imbalance_cv`"):  # fmt: skip
        read_plan(broken(tmp_path, "replicas: 8", "replicas: 8, expert_imbalance_cv: 0.5"))
