import json

from hypothesis import given
from hypothesis import strategies as st

from rushlight.bench import Repeats

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9)


def test_the_median_of_an_even_number_of_values_is_the_mean_of_the_middle_two():
    assert Repeats.of([1.0, 10.0, 2.0, 4.0]).median == 3.0


@given(TIMES)
def test_the_median_lies_between_the_extremes_and_half_lie_on_each_side(values):
    repeats = Repeats.of(values)
    assert repeats.min <= repeats.median <= repeats.max
    assert sum(value <= repeats.median for value in values) * 2 >= len(values)
    assert sum(value >= repeats.median for value in values) * 2 >= len(values)


def test_seconds_become_rates_and_the_slowest_time_the_minimum():
    rate = Repeats.of([0.5, 2.0, 1.0]).per(32)
    assert (rate.values, rate.median, rate.min, rate.max) == ((64.0, 16.0, 32.0), 32.0, 16.0, 64.0)


def test_json_has_every_value_in_order():
    assert json.loads(json.dumps(Repeats.of([3.0, 1.0, 2.0]).to_json())) == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "values": [3.0, 1.0, 2.0],
    }
