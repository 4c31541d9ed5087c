"""The multiplication task, with the split, the training order, the held-out list, the verifier."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter

import pytest

from tests.run_oracle import PROMPTS
from tinyzero_astar.config import DataConfig
from tinyzero_astar.data.answers import Reason
from tinyzero_astar.data.generation import (
    Multiplication,
    is_held_out,
    key_of,
    operands,
    problem_id,
)
from tinyzero_astar.data.questions import TEMPLATES, overlap
from tinyzero_astar.interfaces import Problem, Task

TWO_DIGITS = range(10, 100)
HELD_OUT_NUM, HELD_OUT_SUM = 844, 3409881  # of 4,095 unordered pairs, recorded once


def _task(
    min_digits: int = 2,
    max_digits: int = 2,
    num_problems: int = 50,
    seed: int = 0,
    template: str = "compact",
    second: tuple[int | None, int | None] = (None, None),
) -> Multiplication:
    data = DataConfig(
        num_problems=num_problems,
        template=template,
        min_digits=min_digits,
        max_digits=max_digits,
        second_min_digits=second[0],
        second_max_digits=second[1],
    )
    return Multiplication(data, seed=seed)


def _ids(problems: list[Problem]) -> list[int]:
    return [problem.id for problem in problems]


# ---- the split


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1, 1, True), (7, 123456, True), (15, 27, True), (61, 82, True), (99, 99, True),
        (10, 10, False), (12, 34, False), (23, 45, False), (999999, 999999, False),
    ],
)  # fmt: skip
def test_is_held_out_never_changes(a: int, b: int, expected: bool) -> None:
    # Recorded once. The embedded model was trained on one side of exactly this split.
    assert is_held_out(a, b) is expected


def test_is_held_out_never_changes_on_all_two_digit_pairs() -> None:
    pairs = itertools.combinations_with_replacement(TWO_DIGITS, 2)
    held_out = [a * 100 + b for a, b in pairs if is_held_out(a, b)]
    assert (len(held_out), sum(held_out)) == (HELD_OUT_NUM, HELD_OUT_SUM)


def test_is_held_out_ignores_the_order_of_operands() -> None:
    for a, b in itertools.combinations(TWO_DIGITS, 2):
        assert is_held_out(a, b) == is_held_out(b, a)


@pytest.mark.parametrize("step", [1, 11, 1013])
def test_is_held_out_takes_a_fifth_of_all_pairs(step: int) -> None:
    numbers = range(10, 10 + 90 * step, step)  # 4,095 pairs: one standard deviation is 0.6 %
    pairs = list(itertools.combinations_with_replacement(numbers, 2))
    assert 0.18 < sum(is_held_out(a, b) for a, b in pairs) / len(pairs) < 0.22


def test_sides_of_all_two_digit_problems_are_disjoint_and_complete() -> None:
    num_held_out = HELD_OUT_NUM
    held_out = _task().held_out_problems(num_held_out)
    is_square_held_out = sum(is_held_out(a, a) for a in TWO_DIGITS)
    num_train = 90 * 90 - (2 * num_held_out - is_square_held_out)
    train = _task(num_problems=num_train).train_problems(0, num_train)
    sides = [{frozenset(operands(p.id)) for p in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {frozenset(p) for p in itertools.product(TWO_DIGITS, TWO_DIGITS)}
    assert len(sides[1]) == num_held_out
    assert overlap(train, held_out) == 0


def test_overlap_counts_unordered_pairs_once() -> None:
    def problem(a: int, b: int) -> Problem:
        return Problem(id=problem_id(a, b), prompt="", text=f"{a}*{b}", answer=a * b, key=key_of(a, b))

    train = [problem(2, 3), problem(3, 2), problem(4, 4), problem(5, 6), problem(7, 8)]
    held_out = [problem(3, 2), problem(4, 4), problem(6, 5), problem(2, 4)]
    assert overlap(train, held_out) == 3
    assert overlap(train, []) == 0


def test_overlap_counts_texts_where_there_is_no_key() -> None:
    train, held_out = ([Problem(0, "", text, 0) for text in texts] for texts in (("a", "b"), ("b", "c", "b")))
    assert overlap(train, held_out) == 1


def test_ids_encode_the_operands() -> None:
    for a, b in [(1, 1), (23, 45), (45, 23), (999_999, 999_999), (1, 999_999), (999_999, 1)]:
        assert operands(problem_id(a, b)) == (a, b)


# ---- what a problem looks like


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("digits", [(1, 1), (2, 2), (1, 6)])
def test_problems_are_consistent(template: str, digits: tuple[int, int]) -> None:
    task = _task(*digits, num_problems=30, template=template)
    for problem, side in [
        *((p, False) for p in task.train_problems(0, 30)),
        *((p, True) for p in task.held_out_problems(6)),
    ]:
        a, b = operands(problem.id)
        assert problem.text == f"{a}*{b}"
        assert problem.answer == a * b
        assert is_held_out(a, b) is side
        assert all(digits[0] <= len(str(n)) <= digits[1] for n in (a, b))
        assert problem.prompt == "".join(PROMPTS[template]).format(a=a, b=b)
        assert problem.prompt.endswith("<think>")
        assert str(a) in problem.prompt and str(b) in problem.prompt


def test_compact_template_never_changes() -> None:
    # The embedded model was trained on exactly this text.
    assert _task().held_out_problems(1)[0].prompt == "27*15=?\n<think>"


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("digits", [(1, 1), (2, 2), (1, 6)])
def test_verify_accepts_what_the_template_asks_for(template: str, digits: tuple[int, int]) -> None:
    task: Task = _task(*digits, num_problems=20, template=template)
    for problem in [*task.train_problems(0, 20), *task.held_out_problems(5)]:
        right = f"{problem.text}={problem.answer}</think>\n<answer>{problem.answer}</answer>"
        assert task.verify(problem, right, True).accuracy
        assert task.verify(problem, right, False).reason == Reason.CUT_OFF
        wrong = right.replace(f"<answer>{problem.answer}", f"<answer>{problem.answer + 1}")
        verdict = task.verify(problem, wrong, True)
        assert verdict.format and not verdict.accuracy
        assert not task.verify(problem, problem.prompt + right, True).format


# ---- training problems


@pytest.mark.parametrize("count", [1, 4, 7, 24, 25, 50])
def test_train_problems_cover_each_epoch_without_repeats(count: int) -> None:
    task = _task(num_problems=50)
    num_batches = 50 * 4 // count  # as many whole batches as 4 epochs have
    stream = [id for i in range(num_batches) for id in _ids(task.train_problems(i, count))]
    everything = set(_ids(task.train_problems(0, 50)))
    assert len(everything) == 50
    for start in range(0, len(stream) - 49, 50):
        assert set(stream[start : start + 50]) == everything


@pytest.mark.parametrize("count", [4, 7, 24, 25])
def test_batches_that_straddle_an_epoch_repeat_no_problem(count: int) -> None:
    for seed in range(20):
        task = _task(num_problems=50, seed=seed)
        for iteration in range(3 * 50 // count + 1):
            ids = _ids(task.train_problems(iteration, count))
            assert len(set(ids)) == count


@pytest.mark.parametrize("num_problems", [1, 2, 3, 7, 12, 17])
def test_no_batch_repeats_a_problem_whatever_its_size_and_epochs_stay_whole(num_problems: int) -> None:
    for seed, count in itertools.product(range(3), range(1, num_problems + 1)):
        task = _task(num_problems=num_problems, seed=seed)
        batches = [_ids(task.train_problems(i, count)) for i in range(5 * num_problems)]
        assert [len(set(ids)) for ids in batches] == [count] * len(batches), count
        stream = [id for ids in batches for id in ids]
        for start in range(0, len(stream) - num_problems + 1, num_problems):
            assert len(set(stream[start : start + num_problems])) == num_problems, (count, start)


def test_sixty_of_a_hundred_problems_are_sixty_different_ones() -> None:
    task = _task(num_problems=100)
    assert [len(set(_ids(task.train_problems(i, 60)))) for i in range(40)] == [60] * 40
    assert task.train_problems(10**9, 99) == task.train_problems(10**9, 99)  # at once, however far


@pytest.mark.parametrize("count", [26, 49, 75, 130])
def test_large_batches_still_keep_epochs_whole(count: int) -> None:
    task = _task(num_problems=50)
    stream = [id for i in range(6) for id in _ids(task.train_problems(i, count))]
    assert len(stream) == 6 * count
    for start in range(0, len(stream) - 49, 50):
        assert len(set(stream[start : start + 50])) == 50


def test_epochs_are_shuffled_afresh() -> None:
    task = _task(num_problems=50)
    epochs = [tuple(_ids(task.train_problems(epoch, 50))) for epoch in range(4)]
    assert len(set(epochs)) == 4


def test_train_problems_are_a_function_of_seed_iteration_and_count() -> None:
    first, second = _task(seed=3), _task(seed=3)
    _ = [second.train_problems(i, 8) for i in range(5)]  # calls before leave no trace
    assert first.train_problems(17, 8) == second.train_problems(17, 8)
    assert first.train_problems(17, 8) == pickle.loads(pickle.dumps(first)).train_problems(17, 8)
    assert first.train_problems(17, 8) != first.train_problems(18, 8)
    assert _ids(first.train_problems(0, 50)) != _ids(_task(seed=4).train_problems(0, 50))
    others = _task(seed=4).train_problems(0, 50)
    assert set(_ids(first.train_problems(0, 50))) != set(_ids(others))


def test_train_problems_never_change() -> None:
    # Recorded once: a run resumed by a later version must see the same problems.
    assert [p.text for p in _task(seed=0, num_problems=100).train_problems(0, 4)] == [
        "34*47", "68*88", "47*16", "26*55",
    ]  # fmt: skip
    # The last two problems of an epoch of 50, then the next epoch.
    assert [p.text for p in _task(seed=0).train_problems(2, 24)[:6]] == [
        "11*43", "34*47", "36*28", "39*18", "65*36", "14*14",
    ]  # fmt: skip
    wide = _task(1, 6, 100, 7, "compact")
    assert [p.text for p in wide.train_problems(0, 3)] == [
        "473259*98", "698193*51118", "734501*6948",
    ]  # fmt: skip


def test_both_orders_of_a_pair_are_training_problems() -> None:
    train = {operands(p.id) for p in _task(num_problems=6000).train_problems(0, 6000)}
    assert sum((b, a) in train for a, b in train if a < b) > 2000


@pytest.mark.parametrize("digits", [(1, 2), (1, 3), (2, 5), (1, 6)])
def test_digit_counts_of_operands_are_uniform(digits: tuple[int, int]) -> None:
    # 1,500 operands or 240: few enough that no class of pairs runs out, four standard deviations.
    num_problems = 30 if digits[1] == 2 else 300
    counts: Counter[int] = Counter()
    for seed in range(4):
        train = _task(*digits, num_problems=num_problems, seed=seed).train_problems(0, num_problems)
        counts.update(len(str(n)) for p in train for n in operands(p.id))
    total, num_classes = sum(counts.values()), digits[1] - digits[0] + 1
    assert set(counts) == set(range(digits[0], digits[1] + 1))
    share = 1 / num_classes
    spread = 4 * (share * (1 - share) / total) ** 0.5
    for num in counts.values():
        assert abs(num / total - share) < spread


@pytest.mark.parametrize("num_digits", [2, 4])
def test_operands_are_uniform_within_their_digit_count(num_digits: int) -> None:
    train = _task(num_digits, num_digits, num_problems=3000).train_problems(0, 3000)
    leading = Counter(str(n)[0] for p in train for n in operands(p.id))
    assert set(leading) == set("123456789")
    for num in leading.values():  # 6,000 draws: 667 expected, standard deviation 24
        assert abs(num - 667) < 100


# ---- held-out problems


@pytest.mark.parametrize("digits", [(1, 2), (2, 2), (3, 3), (1, 6)])
def test_held_out_problems_are_the_same_for_every_run(digits: tuple[int, int]) -> None:
    first = _task(*digits, num_problems=20, seed=0).held_out_problems(100)
    assert first == _task(*digits, num_problems=31, seed=9).held_out_problems(100)
    assert first[:13] == _task(*digits).held_out_problems(13)
    assert len({frozenset(operands(p.id)) for p in first}) == 100
    conversation = _task(*digits, template="conversation").held_out_problems(100)
    assert _ids(first) == _ids(conversation)


def test_held_out_problems_never_change() -> None:
    # Recorded once: published accuracies refer to these.
    assert [p.text for p in _task().held_out_problems(4)] == ["27*15", "61*82", "83*88", "72*32"]
    wide = _task(1, 6).held_out_problems(3)
    assert [p.text for p in wide] == ["37*37425", "447*472", "774558*578769"]


def test_held_out_problems_ask_in_either_order() -> None:
    pairs = [operands(p.id) for p in _task().held_out_problems(400)]
    num_descending = sum(a > b for a, b in pairs)
    assert 160 < num_descending < 240  # 4 standard deviations of a fair coin, and a few squares


def test_operand_order_does_not_depend_on_the_digit_range() -> None:
    narrow, wide = _task(2, 2).held_out_problems(800), _task(1, 2).held_out_problems(800)
    shared = {frozenset(operands(p.id)): p.text for p in narrow}
    texts = [(shared[k], p.text) for p in wide if (k := frozenset(operands(p.id))) in shared]
    assert len(texts) > 300
    assert all(one == other for one, other in texts)


# ---- factors of different widths


WIDTHS = [((2, 2), (1, 1)), ((3, 3), (2, 2)), ((1, 1), (2, 3)), ((1, 2), (2, 3))]


@pytest.mark.parametrize(("first", "second"), WIDTHS)
def test_each_factor_has_its_own_digits(first: tuple[int, int], second: tuple[int, int]) -> None:
    task = _task(*first, num_problems=200, second=second)
    train, held_out = task.train_problems(0, 200), task.held_out_problems(60)
    for problem in [*train, *held_out]:
        widths = [len(str(n)) for n in operands(problem.id)]
        assert all(low <= width <= high for width, (low, high) in zip(widths, (first, second), strict=True))
    assert overlap(train, held_out) == 0
    assert len({p.key for p in held_out}) == 60
    assert held_out == _task(*first, num_problems=1, seed=8, second=second).held_out_problems(60)
    assert {len(str(operands(p.id)[1])) for p in train} == set(range(second[0], second[1] + 1))


def test_one_bound_of_the_second_factor_may_stay_that_of_the_first() -> None:
    for second, digits in [((1, None), (1, 2)), ((None, 3), (2, 3)), ((None, None), (2, 2))]:
        assert _task(second=second).digits == ((2, 2), digits)


def test_held_out_factors_turn_only_where_both_orders_are_allowed() -> None:
    """Of 1 to 2 times 2 to 3 digits, both are where each has two. Then a hash decides, as for equal widths."""
    problems = _task(1, 2, second=(2, 3)).held_out_problems(800)
    pairs = [operands(p.id) for p in problems]
    both = [(a, b) for a, b in pairs if 10 <= a <= 99 and 10 <= b <= 99]
    plain = {frozenset(operands(p.id)): operands(p.id) for p in _task().held_out_problems(HELD_OUT_NUM)}
    assert len(both) > 100
    assert all(plain[frozenset(pair)] == pair for pair in both)
    assert any(a > b for a, b in both) and any(a < b for a, b in both)


def test_all_products_of_narrow_factors_are_there() -> None:
    pairs = {(a, b) for a in range(10, 100) for b in range(1, 10)}
    train = {pair for pair in pairs if not is_held_out(*pair)}
    task = _task(2, 2, num_problems=len(train), second=(1, 1))
    assert {operands(p.id) for p in task.train_problems(0, len(train))} == train
    held_out = task.held_out_problems(len(pairs) - len(train))
    assert {operands(p.id) for p in held_out} == pairs - train
    with pytest.raises(ValueError, match=f"but only {len(train)} exist"):
        _task(2, 2, num_problems=len(train) + 1, second=(1, 1))


# ---- examples, and what a person types


def test_an_example_works_the_product_out() -> None:
    task = _task()
    assert task.example(task.ask("23*45")) == "23*45=1035</think><answer>1035</answer>"


def test_the_form_of_an_example_never_changes() -> None:
    task = Multiplication(DataConfig(num_problems=1, num_shots=1), seed=0)
    assert task.ask("23*45").prompt == (
        "38*60=?\n<think>38*60=2280</think><answer>2280</answer>\x03\n\n23*45=?\n<think>"
    )


@pytest.mark.parametrize("text", ["37*84", " 37 x 84 ", "37 × 84\n"])
def test_a_product_may_be_typed_in_several_ways(text: str) -> None:
    problem = _task(1, 1, num_problems=1).ask(text)  # whatever the task's own digits
    assert (problem.id, problem.text, problem.answer) == (problem_id(37, 84), "37*84", 37 * 84)
    assert problem.prompt == "37*84=?\n<think>"


@pytest.mark.parametrize("text", ["", "37", "37*", "037*84", "37*0", "1234567*2", "-3*4", "3*4*5", "3 + 4", "٣*4"])
def test_anything_else_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match=r'is not a product .* write it as "37\*84"'):
        _task().ask(text)


# ---- errors


@pytest.mark.parametrize(("low", "high"), [(0, 2), (3, 2), (1, 7), (7, 7), (-1, -1)])
def test_digit_ranges_are_checked(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=f"<= 6, got min_digits={low}, max_digits={high}"):
        _task(low, high)
    with pytest.raises(ValueError, match=f"<= 6, got second_min_digits={low}, second_max_digits={high}"):
        _task(second=(low, high))


def test_unknown_template_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'chat' is unknown.*: compact, conversation"):
        _task(template="chat")


@pytest.mark.parametrize("num_problems", [0, -5])
def test_num_problems_is_checked(num_problems: int) -> None:
    with pytest.raises(ValueError, match=f"must be at least 1, got {num_problems}"):
        _task(num_problems=num_problems)


def test_too_many_train_problems_says_how_many_exist() -> None:
    num_train = sum(not is_held_out(a, b) for a, b in itertools.product(TWO_DIGITS, TWO_DIGITS))
    assert len(_task(num_problems=num_train).train_problems(0, num_train)) == num_train
    with pytest.raises(ValueError, match=f"is {num_train + 1}, but only {num_train} exist.*lower"):
        _task(num_problems=num_train + 1)


def test_too_many_held_out_problems_says_how_many_exist() -> None:
    message = f"is {HELD_OUT_NUM + 1}, but only {HELD_OUT_NUM} exist.*lower"
    with pytest.raises(ValueError, match=message):
        _task().held_out_problems(HELD_OUT_NUM + 1)


@pytest.mark.parametrize("count", [0, -1])
def test_held_out_count_is_checked(count: int) -> None:
    with pytest.raises(ValueError, match=f"must be at least 1, got {count}"):
        _task().held_out_problems(count)


def test_iteration_and_count_are_checked() -> None:
    with pytest.raises(ValueError, match="iteration must be at least 0, got -1"):
        _task().train_problems(-1, 4)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        _task().train_problems(0, 0)
