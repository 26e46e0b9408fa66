"""Conditions are known to have a row for each sample or to be shared, and keep it in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_models as sm
from sde_models._utils.conditions import Conditions, as_conditions, copied, stack_conditions

ROWS = {
    "tensor": torch.arange(6).reshape(3, 2),
    "array": np.arange(6, dtype=np.int64).reshape(3, 2),
    "list of numbers": [[0, 1], [2, 3], [4, 5]],
}
SHARED: dict[str, Any] = {
    "number": 2.5, "text": "a cat", "none": None, "switch": True, "scalar": torch.tensor(3.0),
    "one row": torch.ones(1, 4), "NumPy number": np.float32(2), "one word": ["a"],
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_taken_from_tensors_arrays_and_lists(name: str) -> None:
    found = as_conditions({"c": ROWS[name]}, 3)
    assert torch.equal(found["c"], ROWS["tensor"])
    part = found.take(torch.tensor([2, 2, 0, 1]))
    assert part["c"].tolist() == [[4, 5], [4, 5], [0, 1], [2, 3]]
    assert part.count == 4
    assert part.take(slice(1, 3))["c"].tolist() == [[4, 5], [0, 1]]


F16, F32, F64 = torch.float16, torch.float32, torch.float64
EACH: dict[str, Any] = {
    "list": ([[0.0, 10.0], [1.0, 11.0]], torch.tensor([[0.0, 10.0], [1.0, 11.0]], dtype=F64)),
    "tuple": ([(0, 10), (1, 11)], torch.tensor([[0, 10], [1, 11]])),
    "array": ([np.arange(2)[::-1], np.ones(2, np.int64)], torch.tensor([[1, 0], [1, 1]])),
    "tensor": ([torch.zeros(1, 2), torch.ones(1, 2)], torch.tensor([[[0.0] * 2], [[1.0] * 2]])),
    "number": ([0.1, np.float32(2)], torch.tensor([0.1, 2.0], dtype=F64)),
    "switch": ([True, False], torch.tensor([True, False])),
    "text": (["a", "b"], ["a", "b"]),
    "texts": ([["a", "b"], ["c", "d"]], [["a", "b"], ["c", "d"]]),
    "none": ([None, None], None),
    "some": (["a", None], ["a", None]),
}


@pytest.mark.parametrize("name", EACH)
def test_the_condition_of_each_sample_becomes_its_row(name: str) -> None:
    each, batch = EACH[name]
    floating = isinstance(batch, Tensor) and batch.is_floating_point()
    for dtype in (F16, F64):
        found = stack_conditions([{"in": {"c": c}} for c in each], dtype)["in"]["c"]
        expected = batch.to(dtype) if floating else batch
        assert type(found) is type(expected)
        if isinstance(found, Tensor):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        else:
            assert found == expected


@pytest.mark.parametrize(
    ("conds", "message"),
    [
        ([{"c": [1]}, {"c": [1, 2]}], r"cond\['c'\] of the samples .* shapes \(1,\) and \(2,\)"),
        ([{"c": 1}, {"c": None}], r"cond\['c'\] .* shapes \(\) and <class 'NoneType'>"),
        ([{"c": 1}, {}], "different conditions, 'c' and none"),
    ],
)
def test_samples_of_different_kinds_are_refused(conds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack_conditions(conds, F32)


def test_a_copy_has_the_dtype_asked_for_where_it_is_floating() -> None:
    given = {"w": torch.ones(2, dtype=F64), "in": [torch.ones(2, dtype=F64)], "k": torch.arange(2)}
    found = copied(given, F32)
    assert (found["w"].dtype, found["in"][0].dtype, found["k"].dtype) == (F32, F32, torch.int64)
    assert copied(given)["w"].dtype == F64


def test_rows_of_words_are_lists() -> None:
    found = as_conditions({"prompt": np.array(["a", "b", "c"]), "same": ["x", "y", "z"]}, 3)
    assert found.take(torch.tensor([2, 0])) == {"prompt": ["c", "a"], "same": ["z", "x"]}
    assert found.take(slice(0, 1)) == {"prompt": ["a"], "same": ["x"]}
    pairs = as_conditions({"pairs": [["a", "b"], ("c", "d")]}, 2)
    assert pairs.take(slice(1, 2)) == {"pairs": [("c", "d")]}


def test_what_is_shared_stays_as_it_is() -> None:
    found = as_conditions(SHARED, 3)
    assert not found.per_sample
    part = found.take(torch.tensor([1, 1]))
    for name, value in SHARED.items():
        assert part[name] is value or part[name] == value


def test_a_part_never_looks_at_a_length_again() -> None:
    """One row of two, a shared row, and parts as long as something else is."""
    found = as_conditions({"own": torch.arange(2), "shared": torch.tensor([7])}, 2)
    one = found.take(torch.tensor([1]))
    assert one["own"].tolist() == [1]
    assert one.take(torch.tensor([0, 0, 0]))["own"].tolist() == [1, 1, 1]
    assert one.take(torch.tensor([0, 0, 0]))["shared"].tolist() == [7]
    assert as_conditions(one, 1) is one


def test_mappings_are_looked_into() -> None:
    cond = {"added": {"embeds": torch.arange(3), "size": 8, "deep": {"ids": [5, 6, 7]}}}
    part = as_conditions(cond, 3).take(torch.tensor([2]))
    assert part["added"]["embeds"].tolist() == [2]
    assert part["added"]["size"] == 8
    assert part["added"]["deep"]["ids"].tolist() == [7]
    with pytest.raises(ValueError, match=r"cond\['added'\]\['embeds'\] has shape \(3,\)"):
        as_conditions(cond, 4)


@pytest.mark.parametrize("value", [torch.zeros(18), np.zeros((18, 2)), [0.5] * 18, ["a"] * 18])
def test_another_length_is_refused_with_both_remedies(value: Any) -> None:
    with pytest.raises(ValueError, match=r"for 64 samples: .*first dimension of 1.*bind\(w=\.\.\."):
        as_conditions({"w": value}, 64)
    with pytest.raises(ValueError, match="for 1 sample: "):
        as_conditions({"w": value}, 1)


REFUSED: list[tuple[Any, str]] = [
    ({"c": object()}, r"cond\['c'\] is a object.*model\.bind\(c=\.\.\.\)"),
    ({"c": {1, 2}}, "is a set"),
    ({"c": torch.nn.Linear(1, 1)}, "is a Linear"),
    ({3: 0.5}, "must have names as keys, got 3"),
    (torch.zeros(3), "cond must be a dictionary such as .* got Tensor"),
    ("w", "cond must be a dictionary such as .* got str"),
    (["w"], "got list"),
    ([], "got list"),
    (False, "got bool"),
]


@pytest.mark.parametrize(("cond", "message"), REFUSED)
def test_what_has_no_rows_is_refused(cond: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_conditions(cond, 3)
    model, x = sm.ScoreModel(torch.nn.Identity(), sm.VPSDE()), torch.zeros(3, 2)
    functions: list[Callable[[], Any]] = [
        lambda: sm.encode(model, x, cond=cond),
        lambda: sm.solve(sm.VPSDE(), x, (1e-5, 1.0), "sde:euler", steps=2, cond=cond),
        lambda: sm.sample(model, (3, 2), "sde:euler", steps=2, cond=cond),
        lambda: sm.ProbabilityFlow(model, cond=cond)(0.5, x),
    ]
    for call in functions[: None if not isinstance(cond, dict) else 1]:
        with pytest.raises(TypeError, match=message):
            call()


NO_TENSORS: dict[str, tuple[Any, str]] = {
    "ragged": ([[1], [1, 2], [3]], r"a list that begins with \[1\]"),
    "mixed": ((1, [2], 3), "a tuple that begins with 1"),
    "large": ([2**70] * 3, "a list that begins with 1180591620717411303"),
    "long numbers": (np.zeros(3, np.longdouble), f"an array of {np.dtype(np.longdouble)}"),
    "other order": (np.zeros(3, ">f4"), "an array of >f4"),
}


@pytest.mark.parametrize("name", NO_TENSORS)
def test_what_makes_no_tensor_is_refused(name: str) -> None:
    value, given = NO_TENSORS[name]
    message = rf"cond\['a'\]\['w'\] is .*{given}.*Expected are numbers in rows of equal length"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        as_conditions({"a": {"w": value}}, 3)


def test_lists_of_other_things_have_an_entry_for_each_sample() -> None:
    learned = torch.ones((), requires_grad=True)
    for value in ([["a", "b"], ["c"], []], [[None]] * 3, [[learned], [torch.ones(2)], [3]]):
        taken = as_conditions({"w": value}, 3).take(torch.tensor([2, 0]))
        assert taken["w"] == [value[2], value[0]]
    with pytest.raises(ValueError, match="length 2 for 3 samples"):
        as_conditions({"w": [["a"], ["b"]]}, 3)


def test_arrays_that_run_backwards_are_taken() -> None:
    for array in (np.arange(3)[::-1], np.ones((3, 1)).T[::-1].T):
        assert as_conditions({"w": array}, 3)["w"].tolist() == array.tolist()


@pytest.mark.parametrize("value", [torch.ones(2), {1}])
def test_what_is_bound_is_the_outer_name(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"cond\['w'\]\['u'\].*bind\(w=\.\.\."):
        as_conditions({"w": {"u": value}}, 3)


@pytest.mark.parametrize("name", ["self", "t", "x"])
def test_names_that_every_network_has_are_refused(name: str) -> None:
    model, x = sm.ScoreModel(torch.nn.Identity(), sm.VPSDE()), torch.zeros(3, 2)
    given = {name: 0.5}
    functions: list[Callable[[], Any]] = [
        lambda: as_conditions(given, 3),
        lambda: model.bind(**given),
        lambda: sm.encode(model, x, cond=given),
        lambda: sm.log_prob(model, x, cond=given),
        lambda: sm.losses.denoising_score_matching(model, x, cond=given),
    ]
    for call in functions:
        with pytest.raises(ValueError, match=f"a condition cannot be named '{name}', which every"):
            call()


def test_a_single_sample_says_not_whose_its_row_is() -> None:
    assert not as_conditions({"c": torch.zeros(1, 2)}, 1).repeatable
    assert as_conditions({"c": 3, "d": torch.tensor(2.0)}, 1).repeatable
    assert as_conditions({"c": torch.zeros(1, 2)}, 2).repeatable
    assert as_conditions({"c": torch.zeros(2, 2)}, 2).take(slice(0, 1)).repeatable
    assert isinstance(as_conditions(None, 4), Conditions)
