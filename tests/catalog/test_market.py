"""The market as shipped: everything that was gathered is there, dated and sourced, and what is broken is refused."""

from pathlib import Path

import msgspec
import pytest

from polypod.catalog import market
from polypod.catalog.load import load_accelerator
from polypod.catalog.market_schema import STATES, Cited, Stack
from polypod.errors import FileError, UnknownNameError

EVERYTHING = (
    market.stacks,
    market.events,
    market.prices,
    market.reliability,
    market.repair_times,
    market.grid_co2,
    market.cooling_pue,
    market.cooling_other,
    market.background,
    market.regimes,
    market.unreliable,
)


def cited() -> list[Cited]:
    """Every source of everything, as often as it is cited."""
    found: list[Cited] = []

    def walk(item: object) -> None:
        if isinstance(item, Cited):
            found.append(item)
        elif isinstance(item, msgspec.Struct):
            walk([getattr(item, name) for name in item.__struct_fields__])
        elif isinstance(item, dict):
            walk(list(item.values()))
        elif isinstance(item, list | tuple):
            for part in item:
                walk(part)

    walk([read() for read in EVERYTHING])
    walk([market.collectives(), market.handovers(), market.beyond(), market.no_price_found()])
    return found


def test_everything_gathered_is_there() -> None:
    """Counted where it was gathered, on 2026-11-24, before it was written down here."""
    stacks = market.stacks()
    counts = {
        "stacks": len(stacks),
        "engines on stacks": sum(len(stack.engines) for stack in stacks),
        "formats of stacks": sum(len(stack.dtypes) for stack in stacks),
        "abilities of stacks": sum(len(stack.abilities) for stack in stacks),
        "native collectives": len(market.collectives().native),
        "mixed collectives": len(market.collectives().cross_vendor),
        "hand-overs": len(market.handovers().pairs),
        "hand-overs of one vendor": len(market.handovers().same_vendor),
        "hand-over rules": len(market.handovers().rules),
        "events": len(market.events()),
        "chips of events": sum(len(event.chips) for event in market.events()),
        "background": len(market.background()),
        "regimes": len(market.regimes()),
        "disagreements": len(market.disagreements()),
        "without a price": len(market.no_price_found().targets),
        "fleets": len(market.reliability()),
        "causes of Llama 3's failures": len(market.reliability()[0].breakdown),
        "repairs": len(market.repair_times()),
        "grids": len(market.grid_co2()),
        "PUE": len(market.cooling_pue()),
        "cooling": len(market.cooling_other()),
        "unreliable": len(market.unreliable()),
        "beyond": [
            len(market.beyond().accelerators),
            len(market.beyond().makers),
            len(market.beyond().host_cpus),
        ],
    }
    assert counts == {
        "stacks": 17,
        "engines on stacks": 63,
        "formats of stacks": 105,
        "abilities of stacks": 75,
        "native collectives": 16,
        "mixed collectives": 9,
        "hand-overs": 23,
        "hand-overs of one vendor": 8,
        "hand-over rules": 10,
        "events": 106,
        "chips of events": 219,
        "background": 3,
        "regimes": 5,
        "disagreements": 21,
        "without a price": 21,
        "fleets": 15,
        "causes of Llama 3's failures": 18,
        "repairs": 8,
        "grids": 18,
        "PUE": 10,
        "cooling": 3,
        "unreliable": 5,
        "beyond": [4, 1, 5],
    }


def test_every_price_is_there() -> None:
    counts = {kind: len(market.prices_of_kind(kind)) for kind in market.PRICE_KINDS}
    assert counts == {"purchase": 26, "cloud-hourly": 17, "power": 7, "hosting": 6}
    assert len(market.prices()) == 56
    assert market.price_kind(market.prices()[-1]) == "hosting"


def test_events_are_in_the_order_they_happened_by_year() -> None:
    dates = [event.date for event in market.events()]
    assert dates == sorted(dates)
    years = {
        year: sum(date.startswith(year) for date in dates) for year in ("2022", "2025", "2026")
    }
    assert years == {"2022": 5, "2025": 46, "2026": 36}


def test_a_source_that_was_not_looked_up_says_so() -> None:
    for source in cited():
        assert (source.how == "memory") == source.title.startswith("from memory, not checked")
        assert source.how != "seen" or source.url or "searches" in source.title or source.title, (
            source
        )


def test_ids_are_unique() -> None:
    for read in (market.stacks, market.events, market.prices):
        ids = [entry.id for entry in read()]
        assert len(ids) == len(set(ids))


def test_no_chip_has_two_stacks_and_chips_of_a_stack_are_of_its_vendor() -> None:
    chips = [(stack, chip) for stack in market.stacks() for chip in stack.chips]
    assert len({chip for _, chip in chips}) == len(chips) == 60
    for stack, chip in chips:
        assert stack.vendor.casefold()[:5] in load_accelerator(chip).vendor.casefold(), chip


def test_a_state_of_a_chip_is_of_a_chip_of_that_stack() -> None:
    for stack in market.stacks():
        cells = [*stack.engines, *stack.dtypes.values(), *stack.abilities.values()]
        for cell in cells:
            assert set(cell.chips) <= set(stack.chips), stack.id
        assert set(stack.chip_limits) <= set(stack.chips)


def test_the_shares_of_llama_3_failures_add_up_to_the_unexpected_ones() -> None:
    """Referee: Meta's table adds its causes up to 419 of 466 interruptions."""
    fleet = market.reliability()[0]
    assert (
        sum(float(count) for count in fleet.breakdown.values())
        == fleet.interruptions["unexpected"]
        == 419
    )
    hours = 54 * 24
    assert fleet.derived["gpu_hours"] == 16384 * hours
    assert fleet.derived["job_mtbf_h"] == pytest.approx(hours / 419, rel=0.01)


def test_a_repair_is_in_seconds() -> None:
    rma = next(repair for repair in market.repair_times() if repair.id == "rep-rma")
    assert (rma.least_s, rma.most_s) == (168 * 3600, 1008 * 3600)


def test_states_are_ordered_best_first_and_unknown_is_above_no() -> None:
    assert STATES.index("supported") == 0
    assert STATES.index("unknown") < STATES.index("no native support") < STATES.index("impossible")


EVENT = """
[[events]]
id = "ev-mine"
date = "2026-10-01"
kind = "market"
what = "an event of one's own"
chips = ["nvidia-h20"]
region = "CN"
effect = "market share"
basis = "reported"
sources = ["mine"]
confidence = "low"

[cited]
mine = { title = "a letter", how = "seen", date = "2026-10" }
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "polypod" / "catalog" / "market" / "events"
    folder.mkdir(parents=True)
    return folder / "mine.toml"


def test_an_event_of_ones_own_takes_part(own: Path) -> None:
    own.write_text(EVENT, encoding="utf-8")
    assert len(market.events()) == 107
    assert market.find_entry("EV-MINE").sources[0].text == "a letter (2026-10)"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("2026-10-01", "2026-13-01", r"'2026-13-01' is no date"),
        ("nvidia-h20", "nvidia-h21", r"ev-mine is about 'nvidia-h21', which the catalog does not have"),
        ('sources = ["mine"]', 'sources = ["yours"]', r"cites 'yours', .* it has mine"),
        ('sources = ["mine"]', "sources = []", r"length >= 1 - at `\$.events\[0\].sources`"),
        ('"market share"', '"forbidden"', r"Invalid enum value 'forbidden'"),
        ("region", "where", r"unknown field `where`"),
        ('date = "2026-10" }', 'date = "2026-1" }', r"'2026-1' is no date"),
        ("[cited]", "[cited", r"cannot be read"),
    ],
)  # fmt: skip
def test_a_broken_event_is_refused_with_its_file(
    own: Path, old: str, new: str, problem: str
) -> None:
    own.write_text(EVENT.replace(old, new), encoding="utf-8")
    with pytest.raises(FileError, match=rf"mine.toml: .*{problem}"):
        market.events()


def test_a_price_upside_down_is_refused(own: Path) -> None:
    folder = own.parents[1] / "prices"
    folder.mkdir()
    (folder / "purchase.toml").write_text(
        '[[prices]]\nid = "buy-x"\ntarget = "nvidia-h20"\nleast = 3\nmost = 2\ncurrency = "USD"\n'
        'unit = "each"\nregion = "CN"\ndate = "2026"\nbasis = "reported"\nconfidence = "low"\n'
        'sources = ["a"]\n[cited]\na = { title = "a shop", how = "seen" }\n',
        encoding="utf-8",
    )
    with pytest.raises(FileError, match=r"buy-x: least = 3 is above most = 2"):
        market.prices()


def test_names_find_stacks_and_unknown_ones_name_the_nearest() -> None:
    found = market.find_entry("BirenSUPA")
    assert isinstance(found, Stack)
    assert found.id == "birensupa"
    with pytest.raises(
        UnknownNameError, match=r"no stack, event or price is called 'rocn'; nearest: rocm"
    ):
        market.find_entry("rocn")


HOW_TO = (Path(__file__).parents[2] / "docs/how-to/read-the-market.md").read_text(encoding="utf-8")


def test_the_price_of_the_how_to_can_be_put_in_ones_own_folder(own: Path) -> None:
    folder = own.parents[1] / "prices"
    folder.mkdir()
    example = HOW_TO.partition("```toml\n")[2].partition("```")[0]
    (folder / "purchase.toml").write_text(example, encoding="utf-8")
    assert len(market.prices()) == 57
    mine = market.find_entry("my-h20-quote")
    assert "4711" in mine.sources[0].title


def test_the_how_to_explains_every_state_in_their_order() -> None:
    rows = [line.split(" | ")[0].strip("| ") for line in HOW_TO.splitlines() if " | " in line]
    assert tuple(row for row in rows if row in STATES) == STATES


def test_the_how_to_counts_what_there_is() -> None:
    for count, of in (
        (len(market.stacks()), "software stacks"),
        (len(market.events()), "dated events"),
        (len(market.prices()), "prices"),
    ):
        assert f"{count} {of}" in " ".join(HOW_TO.split())
