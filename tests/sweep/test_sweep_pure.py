"""Grid, statistics, recommendation, CSV, plot: without a machine."""

from __future__ import annotations

import random
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.ir.sweep import Gain, PointResult, Recommendation, Sample, Spread, SweepDocument, Workload
from launcher.sweep import (
    ROUNDS,
    batch_speeds,
    candidate,
    gain_of,
    grid,
    is_decided,
    is_swept,
    percentile,
    plot,
    read_rows,
    recommend,
    recommended,
    row_text,
    summarise,
    swept,
    verdict_of_all,
    with_expectation,
    with_multipliers,
)

SAMPLE = Sample(
    key="k",
    server="a",
    settings="slots=2",
    in_flight=1,
    phase="grid",
    batch=0,
    request=0,
    batch_s=2.0,
    latency_s=2.0,
    prompt_n=100,
    prompt_ms=500.0,
    predicted_n=32,
    predicted_ms=1400.0,
    draft_n=0,
    draft_accepted=0,
    memory_bytes=5,
    at="2026-11-29T12:00:00+00:00",
)


def of(**fields: object) -> Sample:
    """A sample with some fields changed."""
    return msgspec.structs.replace(SAMPLE, **fields)


def result(
    together: float, *, current: bool = False, in_flight: int = 1, p95: float = 1.0, **settings: str
) -> PointResult:
    """A measured point."""
    latency = Spread(p50=p95, p95=p95, p99=p95)
    return PointResult(
        server="a",
        settings=settings,
        in_flight=in_flight,
        current=current,
        together=together,
        latency=latency,
        first_token=latency,
    )


def test_what_is_swept_and_what_is_an_override() -> None:
    """A server's field is swept; a group with one value is an override, with several a field."""
    assert is_swept("slots=1,2")
    assert is_swept("draft.n_max=8,16")
    assert is_swept("slots=2")
    assert is_swept("quantization=q4_k_m,q8_0")
    assert not is_swept("engine=built")
    assert not is_swept("servers.a.slots=2")
    assert not is_swept("hardware=epyc")
    assert swept(["slots=1,2,2", "tensor_split=[1,2],[2,1]"]) == {
        "slots": ("1", "2"),
        "tensor_split": ("[1,2]", "[2,1]"),
    }
    for words in (["slots="], ["slots=1,,2"], ["slots=1", "slots=2"]):
        with pytest.raises(ValueError, match="slots"):
            swept(words)


def test_the_grid_begins_with_what_is() -> None:
    """What the server has now is measured although nobody asked for it; each setting alone and with full slots."""
    points = grid("a", {"slots": ("1", "4"), "n_ubatch": ("256",)}, {"slots": "2", "n_ubatch": "512"})
    assert [(dict(p.values), p.in_flight) for p in points] == [
        ({"slots": "2", "n_ubatch": "512"}, 1),
        ({"slots": "2", "n_ubatch": "512"}, 2),
        ({"slots": "1", "n_ubatch": "256"}, 1),
        ({"slots": "4", "n_ubatch": "256"}, 1),
        ({"slots": "4", "n_ubatch": "256"}, 4),
    ]
    assert [p.in_flight for p in grid("a", {}, {"slots": "4"}, (1, 3))] == [1, 3]


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_percentiles_lie_between_the_ends(values: list[float], share: float) -> None:
    """And the ends are the smallest and the largest."""
    assert min(values) <= percentile(values, share) <= max(values)
    assert (percentile(values, 0), percentile(values, 1)) == (min(values), max(values))


def test_together_is_by_the_clock_and_not_by_streams() -> None:
    """Two streams of 20 tokens/s, one after the other, are 20 together: the document's table had said 40."""
    queued = [of(in_flight=2, request=r, batch_s=3.2, latency_s=1.6 * (r + 1), predicted_ms=1600.0) for r in (0, 1)]
    assert batch_speeds(queued) == (20.0,)
    blank = PointResult(server="a", settings={}, in_flight=2, current=True)
    found = summarise(blank, queued)
    assert (found.together, found.generation, found.prompt) == (20.0, 20.0, 200.0)
    assert found.first_token is not None
    assert found.first_token.p99 == pytest.approx(1.6, rel=0.02)
    assert found.accepted is None
    assert summarise(blank, [of(draft_n=8, draft_accepted=6)]).accepted == 0.75
    assert summarise(blank, [of(prompt_n=0, prompt_ms=0.0)]).prompt == 0.0


def test_multipliers_are_against_one_request_and_the_fewest_slots() -> None:
    """Within the same other settings."""
    points = [
        result(10, slots="1", n_ubatch="256"),
        result(18, slots="2", n_ubatch="256", in_flight=2, p95=1.4),
        result(10, slots="2", n_ubatch="256", p95=9.0),
        result(18, slots="2", n_ubatch="512", in_flight=2, p95=1.4),
    ]
    assert [p.multiplier for p in with_multipliers(points)] == [1.0, 1.4, 9.0, None]


def test_the_rule_leaves_out_what_makes_requests_wait() -> None:
    """More together is not chosen where p95 is over the limit, or where it was refused."""
    points = with_multipliers(
        [
            result(10, current=True, slots="1"),
            result(18, slots="2", in_flight=2, p95=1.4),
            result(30, slots="4", in_flight=4, p95=1.6),
            msgspec.structs.replace(result(99, slots="8", in_flight=8), refused="no room"),
        ]
    )
    chosen = candidate(points, 1.5)
    assert chosen is not None
    assert [p.settings["slots"] for p in chosen] == ["1", "2"]
    loose = candidate(points, 2.0)
    assert loose is not None
    assert loose[1].settings == {"slots": "4"}
    assert candidate(points[:1], 1.5) is None


def test_more_slots_count_when_they_are_full() -> None:
    """Two slots with one request are not faster than one slot, whatever chance says; with two they may be."""
    one = result(10, current=True, slots="1")
    idle, full = result(12, slots="2"), result(15, slots="2", in_flight=2, p95=1.7)
    assert candidate(with_multipliers([one, idle, full]), 1.5) is None
    loose = candidate(with_multipliers([one, idle, full]), 1.8)
    assert loose is not None
    assert loose[1].in_flight == 2
    unswept = with_multipliers([result(10, current=True), result(12, n_ubatch="256"), full])
    chosen = candidate(unswept[:2], 1.5)
    assert chosen is not None
    assert chosen[1].settings == {"n_ubatch": "256"}
    fewer = candidate(with_multipliers([one, result(12, slots="4", in_flight=2, p95=1.4)]), 1.5)
    assert fewer is not None  # --in-flight 1,2: all that was measured of it


def pairs(ratio: float, noise: float, seed: int, count: int = 12) -> list[tuple[float, float]]:
    """Pairs of a machine on which batches scatter by `noise`, and both of a pair drift together threefold."""
    draw = random.Random(seed)  # noqa: S311 - a simulation
    drift = [draw.uniform(0.5, 1.5) for _ in range(count)]
    return [(d * draw.lognormvariate(0, noise), d * ratio * draw.lognormvariate(0, noise)) for d in drift]


def swept_once(ratio: float, noise: float, seed: int) -> Recommendation:
    """As the command goes about it: more pairs as long as it is open."""
    drawn = pairs(ratio, noise, seed, 12 * 2 ** (ROUNDS - 1))
    gains = [gain_of(drawn[: 12 * 2**look]) for look in range(ROUNDS)]
    return recommend("a", CHOSEN, next((g for g in gains if is_decided(g)), gains[-1]), 1.5)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_equal_settings_are_noise(noise: float) -> None:
    """Ten of ten."""
    assert [swept_once(1.0, noise, seed).verdict for seed in range(10)] == ["noise"] * 10


@pytest.mark.parametrize("noise", [0.05, 0.12])
def test_a_difference_of_a_fifth_is_found(noise: float) -> None:
    """What was slowed by 20 % is left for what was not, ten of ten, and the other way it is called worse."""
    found = [swept_once(1 / 0.8, noise, seed) for seed in range(10)]
    assert [f.verdict for f in found] == ["better"] * 10
    assert all(f.settings == {"slots": "2"} and f.gain and f.gain.low < 0.25 < f.gain.high * 1.2 for f in found)
    slower = [swept_once(0.8, noise, seed) for seed in range(10)]
    assert {f.verdict for f in slower} == {"worse"}
    assert not any(f.settings for f in slower)
    assert verdict_of_all([*found, *slower]) == "better"
    assert verdict_of_all(slower) == "worse"


def test_a_burst_of_another_program_is_no_gain() -> None:
    """One pair of twelve that is ten times apart changes nothing."""
    spoiled = [(1.0, 10.0), *pairs(1.0, 0.02, 3, 11)]
    assert recommend("a", CHOSEN, gain_of(spoiled), 1.5).verdict == "noise"
    assert recommend("a", None, None, 1.5).settings == {}


CHOSEN = (
    result(10, current=True, slots="1"),
    msgspec.structs.replace(result(18, slots="2", in_flight=2), multiplier=1.4),
)


@given(st.integers(0, 400))
def test_rows_survive_a_torn_end(cut: int) -> None:
    """Whatever is lost behind the header, what is read are whole batches, and they are what was written."""
    samples = tuple(of(batch=b, request=r, in_flight=2) for b in range(2) for r in range(2))
    text = row_text(samples, header=True)
    header = len(row_text((), header=True))
    found = read_rows(text[: max(header, len(text) - cut)])
    assert found == samples[: len(found)]
    assert len(found) % 2 == 0
    assert read_rows(text) == samples


def test_another_file_is_refused() -> None:
    """A CSV of somebody else is not written over."""
    with pytest.raises(ValueError, match="columns"):
        read_rows("a,b\n1,2\n")


def test_what_is_expected_stands_beside_what_was_measured() -> None:
    """Of several at once each is between as fast as alone and an n-th of it; without a known speed nothing is said."""
    alone = msgspec.structs.replace(result(10), generation=10.0)
    found = with_expectation(alone, (5.0, 20.0))
    assert (found.expected, found.ratio) == ((5.0, 20.0), pytest.approx(1.0))
    four = with_expectation(msgspec.structs.replace(alone, in_flight=4), (8.0, 8.0))
    assert (four.expected, four.ratio) == ((2.0, 8.0), pytest.approx(2.5))
    assert with_expectation(alone, None) == alone
    assert with_expectation(msgspec.structs.replace(alone, generation=0.0), (5.0, 20.0)).ratio is None


def test_the_documents_table_is_told_by_what_decided() -> None:
    """Role, port, what to set (was what), and why: a gain, a limit, noise, or that nothing could be measured."""

    def of_server(name: str, twice: PointResult) -> list[PointResult]:
        """One slot now, and two."""
        pair = (msgspec.structs.replace(result(10, current=True, slots="1"), multiplier=1.0), twice)
        return [msgspec.structs.replace(p, server=name) for p in pair]

    good, slow = (msgspec.structs.replace(result(22, slots="2", in_flight=2), multiplier=m) for m in (1.33, 1.98))
    gain = Gain(gain=1.21, low=1.1, high=1.3, confidence=1, pairs=12)
    none = Gain(gain=0.02, low=-0.1, high=0.1, confidence=0.6, pairs=12)
    down = msgspec.structs.replace(result(0, current=True, slots="4"), server="fast_worker", refused="port unavailable")
    points = {n: of_server(n, p) for n, p in (("frontdoor", good), ("coder", slow), ("worker", good))}
    told = [
        recommend("frontdoor", (points["frontdoor"][0], points["frontdoor"][1]), gain, 1.5),
        recommend("coder", None, None, 1.5),
        recommend("worker", (points["worker"][0], points["worker"][1]), none, 1.5),
        recommend("fast_worker", None, None, 1.5),
    ]
    told = [msgspec.structs.replace(r, model="m q4", port=8080) for r in told]
    document = SweepDocument(
        deployment="d",
        engine="e",
        workload=Workload(),
        points=(*(p for each in points.values() for p in each), down),
        recommendation=tuple(told),
        verdict="better",
        csv="",
    )
    header, rows = recommended(document)
    assert header == ("SERVER", "MODEL", "PORT", "RECOMMENDED slots", "WHY")
    assert rows == [
        ("frontdoor", "m q4", "8080", "2 (was 1)", "+121% tokens/s together (+110% to +130%), p95 multiplier 1.33"),
        ("coder", "m q4", "8080", "1 (keep)", "slots=2 rejected: p95 multiplier 1.98"),
        (
            *("worker", "m q4", "8080", "1 (keep)"),
            "slots=2 is no gain: +2% tokens/s together (-10% to +10%), p95 multiplier 1.33",
        ),
        ("fast_worker", "m q4", "8080", "-", "port unavailable"),
    ]
    two = tuple(msgspec.structs.replace(p, settings=p.settings | {"threads": "1"}) for p in document.points)
    assert recommended(msgspec.structs.replace(document, points=two))[0][3] == "RECOMMENDED"


def test_the_plot_is_xml_with_a_line_a_setting() -> None:
    """Names are escaped; refused points are left out; nothing at all is drawn as empty axes."""
    points = [result(10, slots="1"), result(18, slots="2", in_flight=2), result(18, slots="<2>", in_flight=4)]
    refused = msgspec.structs.replace(points[0], refused="no", settings={"slots": "9"})
    drawn = ET.fromstring(plot([*points, refused], "a & b"))  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f"{space}polyline")) == 3
    assert "a: slots=<2>" in [t.text for t in drawn.iter(f"{space}text")]
    assert ET.fromstring(plot([], "none")) is not None  # noqa: S314


def test_nothing_of_the_plot_is_cut_off() -> None:
    """A long legend and title make it wider, many lines higher."""
    points = [result(10, slots="1", n_ubatch=str(n), cache_type_k="q8_0") for n in range(40)]
    drawn = ET.fromstring(plot(points, "a title of " + "many words " * 12))  # noqa: S314 - our own text
    width, height = map(float, drawn.attrib["viewBox"].split()[2:])
    for text in drawn.iter("{http://www.w3.org/2000/svg}text"):
        assert (
            float(text.attrib.get("x", 0)) + 6 * len(text.text or "") * (text.attrib.get("text-anchor") is None) < width
        )
        assert float(text.attrib.get("y", 0)) < height


def test_slots_that_are_no_number_are_left_to_the_plan() -> None:
    """It refuses them by name; until then one request at a time."""
    points = grid("a", {"slots": ["abc", "0", "-1", "9" * 5000]}, {"slots": "2"})
    assert [point.in_flight for point in points] == [1, 2, 1, 1, 1, 1]
