"""Traces as the simulator plays them; reading and drawing them is tested with `workload.traffic`."""

import numpy as np
import pytest

from polypod.errors import InputError
from polypod.simulate import Arrival, arrivals
from polypod.workload.traffic import Trace, poisson


def test_every_request_of_a_trace_arrives_when_and_as_it_says() -> None:
    trace = poisson(2.0, 50, 300, 40, seed=3)
    made = arrivals(trace, "m")

    assert [one.at_s for one in made] == trace.arrival_s.tolist()
    assert set(made[1:]) == {
        Arrival(at_s=at_s, model="m", input_tokens=300, output_tokens=40)
        for at_s in trace.arrival_s.tolist()[1:]
    }
    assert all(type(one.input_tokens) is int for one in made)


def test_what_a_trace_says_of_a_request_is_what_arrives() -> None:
    trace = Trace(
        name="two", arrival_s=np.array([0.0, 1.5]), input_tokens=np.array([1000, 10]), output_tokens=np.array([5, 6]),
        model=np.array([1, 0]), models=("", "big"), tenant=np.array([0, 1]), tenants=("acme", "zeta"),
        session=np.array([7, -1]), priority=np.array([3, -2]),
        block_hashes=np.array([11, 12]), block_starts=np.array([0, 2, 2]), block_tokens=512,
    )  # fmt: skip
    one, two = arrivals(trace, "small")

    assert one == Arrival(at_s=0.0, model="big", input_tokens=1000, output_tokens=5, priority=3, tenant="acme", session=7, prefix_hashes=(11, 12))  # fmt: skip
    assert two == Arrival(at_s=1.5, model="small", input_tokens=10, output_tokens=6, priority=-2, tenant="zeta")  # fmt: skip
    with pytest.raises(InputError, match=r"two does not say of which model its requests are"):
        arrivals(trace)


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    three = {"name": "t", "arrival_s": np.zeros(3), "input_tokens": np.ones(3, int), "output_tokens": np.ones(3, int)}  # fmt: skip

    with pytest.raises(InputError, match=r"a trace of 3 requests has 2 in tenant"):
        Trace(**three, tenant=np.zeros(2, int))
    with pytest.raises(InputError, match=r"a trace of 3 requests has 3 entries up to 2"):
        Trace(**three, block_hashes=np.zeros(2, int), block_starts=np.array([0, 1, 2]))
