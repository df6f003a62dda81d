"""The values of a sweep's command line: lists, Hydra's sweep words, and what is drawn from them."""

import itertools
import math

import pytest

from loader.errors import ConfigError
from loader.sweep.space import Interval, Space, choices, option_of


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ["1"]),
        ("", [""]),
        ("1,2", ["1", "2"]),
        ("[1,2],3", ["[1,2]", "3"]),
        ("{a: 1, b: [2,3]},{a: 2}", ["{a: 1, b: [2,3]}", "{a: 2}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('"a,[b",c', ['"a,[b"', "c"]),
        ("it's,fine", ["it's,fine"]),
    ],
)
def test_values_are_split_at_commas(text, values):
    assert choices(text) == values


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("choice(a,b)", ("a", "b")),
        ("choice([1,2], 3)", ("[1,2]", "3")),
        ("range(1,10,2)", ("1", "3", "5", "7", "9")),
        ("range(3)", ("0", "1", "2")),
        ("range(10, 1, -3)", ("10", "7", "4")),
        ("range(0.1,0.4,0.1)", ("0.1", "0.2", "0.3")),
        ("interval(1e-5,1e-2)", Interval(1e-5, 1e-2)),
        ("tag(log, interval(1e-5, 1e-2))", Interval(1e-5, 1e-2, is_log=True)),
        ("int(interval(1,8))", Interval(1, 8, is_int=True)),
        ("tag(log, int(interval(1, 64)))", Interval(1, 64, is_int=True, is_log=True)),
        ("int(tag(log, interval(1, 64)))", Interval(1, 64, is_int=True, is_log=True)),
        ("f(1,2)", ("f(1,2)",)),
    ],
)
def test_sweep_words(text, option):
    assert option_of("key", text) == option


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("range(1,x)", "range(1,x)"),
        ("range(1,9,0)", "range(1,9,0)"),
        ("range(5,1)", "range(5,1)"),
        ("choice(a,,b)", "choice(a,,b)"),
        ("interval(1)", "interval(1)"),
        ("interval(2,1)", "interval(2,1)"),
        ("int(interval(0.5,2))", "int(interval(0.5,2))"),
        ("int(3)", "int(3)"),
        ("tag(log, interval(0,1))", "tag(log, interval(0,1))"),
        ("tag(lin, interval(1,2))", "tag(lin, interval(1,2))"),
        ("shuffle(1,2)", "shuffle"),
        ("1,range(2,4)", "range(2,4)"),
        ("range(2,4", "range("),
        ("range(inf)", "range(inf)"),
        ("1,,2", "empty"),
    ],
)
def test_what_cannot_be_read_is_named(text, named):
    with pytest.raises(ConfigError) as error:
        option_of("model.key", text)
    (line,) = error.value.problems
    assert f"`model.key={text}`" in line and named in line.replace(f"`model.key={text}`", "", 1)


def words_of(space, combinations):
    return [[*space.flags, *space.settings(chosen)] for chosen in combinations]


def test_the_grid_is_the_cartesian_product_with_the_last_key_fastest():
    space = Space.read(["a=1,2", "-m", "--set", "callbacks=a,b", "--seed", "3", "c=0", "b=range(7,10)"])
    runs = words_of(space, space.grid())
    assert [run[-3:] for run in runs] == [[f"a={a}", "c=0", f"b={b}"] for a in (1, 2) for b in (7, 8, 9)]
    assert all(run[:-3] == ["--set", "callbacks=a,b", "--seed", "3"] for run in runs)
    assert space.size == 6


def test_the_flags_of_the_sweep_do_not_reach_the_runs():
    words = ["--multirun", "--trials", "3", "--max_steps", "-1", "--sampler=random", "--sampler-seed", "4", "a=1,2"]
    assert Space.read(words).flags == ["--max_steps", "-1"]


def test_an_interval_has_no_grid():
    with pytest.raises(ConfigError, match="`lr`.*--sampler random"):
        list(Space.read(["lr=interval(0,1)"]).grid())


MIXED = ["lr=tag(log, interval(1e-5,1e-1))", "x=interval(-1,3)", "n=int(interval(1,4))", "k=choice(a,b,c)"]


def drawn(seed, count, words=MIXED):
    return list(itertools.islice(Space.read(words).random(seed), count))


def test_random_values_are_within_their_bounds_and_spread_over_them():
    rates, numbers, counts, names = zip(*drawn(0, 1000), strict=True)
    rates, numbers = [float(rate) for rate in rates], [float(number) for number in numbers]
    assert min(rates) >= 1e-5 and max(rates) <= 1e-1 and min(numbers) >= -1 and max(numbers) <= 3
    decades = [sum(10.0**power <= rate < 10.0 ** (power + 1) for rate in rates) for power in range(-5, -1)]
    assert all(200 <= count <= 300 for count in decades), decades  # each decade is as likely as another
    assert abs(sum(numbers) / 1000 - 1) < 0.1 and sum(number < 0 for number in numbers) == pytest.approx(250, abs=50)
    assert all(counts.count(str(n)) == pytest.approx(250, abs=50) for n in (1, 2, 3, 4)) and len(set(counts)) == 4
    assert all(names.count(name) == pytest.approx(333, abs=60) for name in "abc")


def test_a_logarithmic_interval_of_whole_numbers_reaches_both_ends():
    values = [int(value) for (value,) in drawn(0, 64, ["n=tag(log, int(interval(1,64)))"])]
    assert sorted(values) == list(range(1, 65))  # each once, since combinations do not repeat


def test_the_seed_decides_and_more_trials_begin_with_the_same_ones():
    assert drawn(3, 5) == drawn(3, 9)[:5] and drawn(3, 5) != drawn(4, 5)


def test_random_combinations_do_not_repeat():
    chosen = drawn(0, 100, ["a=1,2,3", "b=range(4)"])
    assert sorted(chosen) == sorted(itertools.product("123", "0123"))


@pytest.mark.parametrize(
    ("words", "count"),
    [(["n=int(interval(1,3))"], 3), (["a=1,1,2", "n=tag(log, int(interval(1,4)))"], 8), (["a=1,2", "a=3,4,5"], 3)],
)
def test_random_combinations_end_where_all_are_drawn(words, count):
    assert Space.read(words).size == count == len(set(drawn(0, count + 5, words)))


def test_of_a_repeated_key_the_last_word_counts():
    space = Space.read(["seed=1,2", "a=0", "seed=3"])
    assert words_of(space, space.grid()) == [["seed=3", "a=0"]]


def test_corners_hold_every_value_and_both_ends():
    columns = list(zip(*Space.read([*MIXED, "fixed=1"]).corners(), strict=True))
    assert [set(column) for column in columns] == [
        {"1e-05", "0.1"},
        {"-1.0", "3.0"},
        {"1", "4"},
        {"a", "b", "c"},
    ]
    assert math.isinf(Space.read(MIXED).size)
