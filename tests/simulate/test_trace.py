"""Traces as the simulator plays them; reading and drawing them is tested with `workload.traffic`."""

from polypod.simulate import Arrival, arrivals
from polypod.workload.traffic import poisson


def test_every_request_of_a_trace_arrives_when_and_as_it_says() -> None:
    trace = poisson(2.0, 50, 300, 40, seed=3)
    made = arrivals(trace, "m")

    assert [one.at_s for one in made] == trace.arrival_s.tolist()
    assert set(made[1:]) == {
        Arrival(at_s=at_s, model="m", input_tokens=300, output_tokens=40)
        for at_s in trace.arrival_s.tolist()[1:]
    }
    assert all(type(one.input_tokens) is int for one in made)
