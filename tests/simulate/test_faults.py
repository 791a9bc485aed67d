"""From files of faults to what a driver plays: by hand on a small pod."""

import json
from dataclasses import replace

import pytest

from polypod.cost.deployment import Deployment
from polypod.errors import FileError, InputError
from polypod.plan.place import island
from polypod.plan.spec import Layout, Plan, Pool, Precision, Service, Source, Traffic
from polypod.simulate.exchange_share import exchange_share, pool_share
from polypod.simulate.failure_rates import rates_of
from polypod.simulate.fault_files import read_faults
from polypod.simulate.faults import of_timeline, resolve
from polypod.simulate.seats import Recovery, seat
from polypod.simulate.timeline import draw

H = 3600.0
MODEL = "meta-llama/Llama-3.1-8B"


def plan(cards: int = 64, tp: int = 8, replicas: int = 8, traffic: bool = True, **over) -> Plan:
    known = {
        "role": "both", "on": "a", "layout": Layout(tp=tp), "replicas": replicas, "max_sequences": 64,
        "precision": Precision(weights="bf16", kv="bf16"), "state": "modelled", "name": "p",
    }  # fmt: skip
    load = Traffic(input=1000, output=100, rate="5 /s") if traffic else None
    service = Service(model=MODEL, pools=(Pool(**(known | over)),), traffic=load)
    return Plan(polypod=1, fleet={"a": Source(accelerator="nvidia-h100-sxm", count=cards)}, services=(service,))  # fmt: skip


INSTANT = Recovery(detect_s=600, failover_s=60, restart_s=0, storage_bytes_per_s=1e30)


def resolved(tmp_path, rows, *, recovery=INSTANT, share=0.5, **over):
    """A file's rows through the whole path, as (what, replica, at, factor), and the notes."""
    seated = seat(plan(**over), recovery)
    path = tmp_path / "faults.yaml"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    broken, played = read_faults(path, seated.placed)
    found = resolve(seated, broken, lambda part, pool, spot: share)
    told = [(one.what, one.replica, one.at_s, one.factor) for one in [*played, *found.faults]]
    return told, found.notes


def test_a_rack_takes_its_replicas_and_gives_them_back_when_repaired(tmp_path):
    told, (note,) = resolved(tmp_path, "- {at: 10min, what: crash, where: rack a/1, repair: 2h}")
    hit = ["p-4", "p-5", "p-6", "p-7"]

    assert told == [("down", name, 600.0, 1.0) for name in hit] + [("up", name, 600.0 + 2 * H, 1.0) for name in hit]  # fmt: skip
    assert (note.id, note.where, note.replicas) == (1, "rack a/1", tuple(hit))
    assert (note.noticed_s, note.repaired_s, note.back_s) == (600.0, 600.0 + 2 * H, 600.0 + 2 * H)


def test_weights_load_over_the_storage_s_bandwidth(tmp_path):
    slow = Recovery(restart_s=30, storage_bytes_per_s=1e9)
    told, _ = resolved(tmp_path, "- {at: 0s, what: crash, where: card a/3, repair: 1h}", recovery=slow)  # fmt: skip

    # 8.03e9 parameters of 2 bytes in 8 ranks at 1 GB/s; embedding and head are cut too
    assert told[1][2] == pytest.approx(H + 30 + 8.03e9 * 2 / 8 / 1e9, rel=0.01)


def test_a_hang_stops_at_once_and_is_heard_of_later(tmp_path):
    told, (note,) = resolved(tmp_path, "- {at: 1min, what: hang, where: card a/8, repair: 20min}")

    assert told == [("hang", "p-1", 60.0, 1.0), ("down", "p-1", 660.0, 1.0), ("up", "p-1", 1860.0, 1.0)]  # fmt: skip
    assert (note.noticed_s, note.repaired_s) == (660.0, 1860.0)


def test_without_repair_it_stays_away_and_with_a_spare_it_is_back(tmp_path):
    row = "- {at: 1h, what: crash, where: card a/8}"
    told, (note,) = resolved(tmp_path, row)
    assert told == [("down", "p-1", H, 1.0)]
    assert (note.repaired_s, note.back_s) == (None, None)

    spared = Recovery(failover_s=60, restart_s=0, storage_bytes_per_s=1e30, spares=1)
    told, (note,) = resolved(tmp_path, row, recovery=spared)
    assert told == [("down", "p-1", H, 1.0), ("up", "p-1", H + 60, 1.0)]
    assert (note.by_spare, note.back_s, note.repaired_s) == (1, H + 60, None)


def test_the_slowest_card_sets_the_pace_of_its_replica(tmp_path):
    rows = """
- {at: 0s, what: slow, where: card a/0, factor: 1.5, repair: 10s}
- {at: 2s, what: slow, where: card a/1, factor: 3, repair: 3s}
"""
    told, _ = resolved(tmp_path, rows)

    assert told == [("speed", "p-0", 0.0, 1.5), ("speed", "p-0", 2.0, 3.0), ("speed", "p-0", 5.0, 1.5), ("speed", "p-0", 10.0, 1.0)]  # fmt: skip


def test_a_replica_that_comes_back_slow_is_told_so_again(tmp_path):
    rows = """
- {at: 0s, what: slow, where: card a/0, factor: 2, repair: 1h}
- {at: 10s, what: crash, where: node a/0, repair: 10s}
"""
    told, _ = resolved(tmp_path, rows)

    assert told == [("speed", "p-0", 0.0, 2.0), ("down", "p-0", 10.0, 1.0), ("up", "p-0", 20.0, 1.0), ("speed", "p-0", 20.0, 2.0), ("speed", "p-0", H, 1.0)]  # fmt: skip


def test_one_failure_after_another_is_one_time_away(tmp_path):
    rows = """
- {at: 0s, what: crash, where: card a/0, repair: 10s}
- {at: 5s, what: crash, where: rack a/0, repair: 20s}
"""
    told, notes = resolved(tmp_path, rows)

    assert [(what, at_s) for what, name, at_s, _ in told if name == "p-0"] == [("down", 0.0), ("up", 25.0)]  # fmt: skip
    assert notes[1].replicas == ("p-0", "p-1", "p-2", "p-3")


def test_two_dies_of_a_card_load_one_after_another():
    def load_s(tp: int) -> float:
        dies = {"a": Source(accelerator="huawei-ascend-910c", count=8)}
        pools = plan(tp=tp, replicas=1).services
        asked = Plan(polypod=1, fleet=dies, services=pools)
        return float(seat(asked, Recovery(restart_s=0, storage_bytes_per_s=1e9)).seats.load_s_R[0])

    # a die's half of two ranks is what one rank alone holds; of four ranks a card holds half
    assert load_s(2) == pytest.approx(load_s(1), rel=1e-3)
    assert load_s(4) == pytest.approx(load_s(1) / 2, rel=1e-3)


def test_a_slow_link_slows_the_share_of_a_step_that_passes_over_it_and_all_transfers(tmp_path):
    row = "- {at: 5s, what: slow-link, where: link card a/0, factor: 4, repair: 10s}"
    told, (note,) = resolved(tmp_path, row, share=0.5)

    assert told == [("speed", "p-0", 5.0, 2.5), ("link", "p-0", 5.0, 4.0), ("speed", "p-0", 15.0, 1.0), ("link", "p-0", 15.0, 1.0)]  # fmt: skip
    assert (note.noticed_s, note.replicas) == (None, ("p-0",))


def test_a_link_that_a_replica_does_not_exchange_over_slows_its_transfers_alone(tmp_path):
    row = "- {at: 5s, what: slow-link, where: link node a/0, factor: 4, repair: 10s}"
    told, _ = resolved(tmp_path, row)

    assert told == [("link", "p-0", 5.0, 4.0), ("link", "p-0", 15.0, 1.0)]


def test_the_file_can_say_itself_what_a_slow_link_does_to_the_steps(tmp_path):
    row = "- {at: 5s, what: slow-link, where: link card a/0, factor: 4, speed: 1.2, repair: 10s}"

    assert resolved(tmp_path, row)[0][0] == ("speed", "p-0", 5.0, 1.2)


def test_a_link_that_flaps_is_slow_in_bursts_until_it_is_repaired(tmp_path):
    row = "- {at: 0s, what: flap, where: link node a/0, factor: 8, burst: 2s, every: 10s, repair: 21s}"  # fmt: skip
    told, _ = resolved(tmp_path, row)

    assert [(at_s, factor) for _, _, at_s, factor in told] == [(0, 8), (2, 1), (10, 8), (12, 1), (20, 8), (21, 1)]  # fmt: skip


def test_a_dead_uplink_stops_who_spans_it(tmp_path):
    row = "- {at: 0s, what: crash, where: link rack a/0, repair: 1h}"

    assert resolved(tmp_path, row)[0] == []
    wide, (note,) = resolved(tmp_path, row, tp=1, layout=Layout(tp=8, dp=8), replicas=1)
    assert wide == [("down", "p-0", 0.0, 1.0), ("up", "p-0", H, 1.0)]
    assert note.replicas == ("p-0",)


def test_one_replica_alone_can_be_named(tmp_path):
    told, _ = resolved(tmp_path, "- {at: 0s, what: crash, where: replica p-1, repair: 30s}", tp=4, replicas=16)  # fmt: skip

    assert told == [("down", "p-1", 0.0, 1.0), ("up", "p-1", 30.0, 1.0)]


def test_a_restart_is_promised_and_a_repair_is_not(tmp_path):
    def promises(rows: str, **recovery: float) -> list[float | None]:
        seated = seat(plan(), replace(INSTANT, **recovery))
        path = tmp_path / "faults.yaml"
        path.write_text(rows)
        broken, played = read_faults(path, seated.placed)
        found = resolve(seated, broken, lambda part, pool, spot: 0.5)
        return [one.back_in_s for one in [*played, *found.faults] if one.what == "down"]

    crash = "- {at: 10s, what: crash, where: replica p-1, repair: 30s}"
    assert promises(crash) == [30.0]
    assert promises(crash, restart_s=5) == [35.0]
    assert promises("- {at: 10s, what: hang, where: replica p-1, repair: 30s}", detect_s=20) == [30.0]  # fmt: skip
    assert promises("- {at: 10s, what: crash, where: replica p-1}") == [None]
    assert promises("- {at: 10s, what: crash, where: card a/8, repair: 30s}") == [None]
    assert promises("- {at: 10s, what: crash, where: card a/8, repair: 1h}", spares=1) == [None]
    assert promises(f"{crash}\n- {{at: 20s, what: crash, where: rack a/0, repair: 1h}}") == [None] * 4  # fmt: skip
    assert promises(f"{crash}\n- {{at: 50s, what: crash, where: rack a/0, repair: 1h}}") == [30.0] + [None] * 4  # fmt: skip
    assert promises("- {at_s: 1, replica: p-1, what: down, back_in_s: 7}") == [7.0]


def test_software_that_is_drawn_is_promised_and_cards_are_not():
    seated = seat(plan(cards=512, tp=8, replicas=64), INSTANT)
    rates = rates_of(["card=500h", "software=700h", "hang=900h"], [], [], [])
    drawn = draw(seated.placed, rates, 10 * 86400, seed=5)
    found = resolve(seated, of_timeline(drawn, seated), lambda part, pool, spot: 0.1)
    restarts = {(note.noticed_s, name) for note in found.notes for name in note.replicas if note.cause in ("software", "hang")}  # fmt: skip
    downs = [fault for fault in found.faults if fault.what == "down"]
    ups = {(fault.replica, fault.at_s) for fault in found.faults if fault.what == "up"}

    kept = [fault for fault in downs if fault.back_in_s is not None]
    assert 50 < len(kept) < len(downs) - 50
    assert {(fault.at_s, fault.replica) for fault in kept} <= restarts
    assert all(any(name == fault.replica and at_s == pytest.approx(fault.at_s + (fault.back_in_s or 0)) for name, at_s in ups) for fault in kept)  # fmt: skip


def test_the_format_of_before_is_still_read(tmp_path):
    rows = {"faults": [{"at_s": 60, "replica": "p-0", "what": "down"}, {"at_s": 90, "replica": "p-0", "what": "up"}]}  # fmt: skip
    told, notes = resolved(tmp_path, rows)

    assert told == [("down", "p-0", 60.0, 1.0), ("up", "p-0", 90.0, 1.0)]
    assert notes == ()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{at: 1s, what: crash, where: card a/99}", r"'card a/99': 'a' has 64 of these, numbered from 0; nearest: 'card a/63' - at `\$\[0\]`"),
        ("{at: 1s, what: crsh, where: card a/9}", "nothing breaks by 'crsh'; nearest: crash"),
        ("{at: 1, what: crash, where: card a/9}", "at: '1' has no unit"),
        ("{at: 1s, what: crash, where: card a/9, repare: 1h}", "unknown field `repare`"),
        ("{at: 1s, what: crash}", "missing required field `where`"),
        ("{at: 1s, what: slow, where: card a/9}", "what: slow needs a factor above 1"),
        ("{at: 1s, what: slow, where: card a/9, factor: 0.5}", "it is 0.5"),
        ("{at: 1s, what: crash, where: card a/9, factor: 2}", "stops what runs there and takes no factor"),
        ("{at: 1s, what: slow-link, where: card a/9, factor: 2}", "is no link, so it cannot be slow-link; write where: link card a/9"),
        ("{at: 1s, what: slow, where: link card a/9, factor: 2}", "is a link; it can crash"),
        ("{at: 1s, what: slow, where: card a/9, factor: 2, speed: 3}", "a slow card has its factor"),
        ("{at: 1s, what: flap, where: link card a/9, factor: 2}", "needs burst, every and repair"),
        ("{at: 1s, what: flap, where: link card a/9, factor: 2, burst: 3s, every: 2s, repair: 1h}", "needs bursts shorter"),
        ("{at: 1s, what: flap, where: link card a/9, factor: 2, burst: 1ms, every: 2ms, repair: 1h}", "more than 10,000 times"),
        ("{at: 1s, what: slow, where: card a/9, factor: 2, burst: 1s}", "burst and every are of a link that flaps"),
        ("{at_s: 1, what: down, replica: p-9}", "no replica of this plan is called 'p-9'; nearest: p-"),
        ("{at_s: 1, what: dwon, replica: p-1}", "Invalid enum value 'dwon'"),
        ("{at_s: -1, what: down, replica: p-1}", "'down' of 'p-1' is at -1 s"),
        ("{at_s: 1, what: speed, replica: p-1, factor: 0}", "has the factor 0"),
        ("{at_s: 1, what: up, replica: p-1, back_in_s: 2}", "only 'down' takes one"),
        ("{at_s: 1, what: down, replica: p-1, factor: 2}", "only 'speed', 'link' and 'way' take one"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_says_where_and_what_can(tmp_path, row, problem):
    with pytest.raises(FileError, match=problem):
        resolved(tmp_path, f"- {row}")


def test_a_file_that_is_no_list_is_told_what_one_looks_like(tmp_path):
    with pytest.raises(FileError, match=r"a file of faults is a list, as `- \{at: 10min"):
        resolved(tmp_path, "12")


def test_drawn_failures_are_played_as_written_ones():
    asked = plan(cards=512, tp=8, replicas=64)
    seated = seat(asked, INSTANT)
    drawn = draw(seated.placed, rates_of(["card=500h", "slow-card=900h"], [], [], ["slow-card=1.5"]), 30 * 86400, seed=5)  # fmt: skip
    found = resolve(seated, of_timeline(drawn, seated), lambda part, pool, spot: 0.1)
    stopped = [note for note in found.notes if note.what == "crash" and note.cause == "card"]

    assert len(found.notes) == len(drawn)
    assert [note.at_s for note in found.notes] == sorted(note.at_s for note in found.notes)
    assert sum(len(note.replicas) for note in stopped) <= len(stopped)  # a card takes one replica
    state = dict.fromkeys(seated.names, True)
    for fault in found.faults:
        if fault.what in ("down", "up"):
            assert state[fault.replica] == (fault.what == "down")
            state[fault.replica] = fault.what == "up"
        elif fault.what == "speed":
            assert state[fault.replica]
            assert fault.factor in (1.0, 1.5)


def deployment(tp: int) -> Deployment:
    from polypod.plan.predict import service_model

    (service,) = plan().services
    where = island("a", Source(accelerator="nvidia-h100-sxm", count=64))
    return Deployment(model=service_model(service), layout=Layout(tp=tp), precision=service.pools[0].precision, rank=where.rank)  # fmt: skip


def test_one_rank_exchanges_nothing_and_more_ranks_more():
    shares = [exchange_share(deployment(tp), 1, 64.0, 64_000.0) for tp in (1, 2, 8)]

    assert shares[0] == 0.0
    assert 0 < shares[1] < shares[2] < 0.5


def test_what_a_node_holds_does_not_leave_it():
    assert exchange_share(deployment(8), 8, 64.0, 64_000.0) == 0.0
    assert exchange_share(deployment(8), 7, 64.0, 64_000.0) > 0


def test_a_plan_s_pool_is_asked_at_its_own_traffic():
    asked = plan()
    part = seat(asked, INSTANT).placed.parts[0]

    assert pool_share(asked, part, 0, "link card") == exchange_share(deployment(8), 1, 64.0, 64 * 1050.0)  # fmt: skip
    with pytest.raises(InputError, match="has no traffic, so nothing says how much of a step of p is exchange"):  # fmt: skip
        pool_share(plan(traffic=False), part, 0, "link card")
