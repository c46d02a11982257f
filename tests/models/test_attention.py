"""The tiled attention against the plain formula of the module's docstring, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from retilt.models import attention
from retilt.types import MICROSECONDS


def plain(q: Tensor, k: Tensor, v: Tensor, w_position: Tensor, w_time: Tensor, bucket: Tensor, maximum: int) -> Tensor:
    length = q.shape[2]
    at = torch.arange(length)
    bias = w_position[at[None, :] - at[:, None] + maximum - 1] + w_time[bucket.long()]
    a = torch.nn.functional.silu(q @ k.transpose(2, 3) + bias[:, None]) / maximum
    return a.tril() @ v


@pytest.mark.parametrize(("users", "heads", "length"), [(3, 1, 5), (2, 2, 70), (0, 1, 4), (2, 1, 0), (5, 3, 130)])
def test_equals_the_plain_form(users: int, heads: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SCORES", 9000)  # several tiles even here
    torch.manual_seed(0)
    maximum = 150
    q, k, v = (torch.randn(users, heads, length, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    w_position, w_time = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (2 * maximum - 1, 129))
    inputs = [q, k, v, w_position, w_time]
    bucket = torch.randint(0, 129, (users, length, length), dtype=torch.int32)
    upstream = torch.randn(users, heads, length, 4, dtype=torch.float64)
    found = attention.pointwise_attention(q, k, v, w_position, w_time, bucket, maximum)
    expected = plain(q, k, v, w_position, w_time, bucket, maximum)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad((expected * upstream).sum(), inputs)
    for mine, theirs in zip(torch.autograd.grad((found * upstream).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_time_buckets_by_hand() -> None:
    """floor(ln(gap) / .301): gaps of 0, 1, 2, 60 and 10^9 seconds fall in 0, 0, 2, 13 and 68."""
    gaps = [0, 1, 2, 60, 10**9]
    expected = [0, 0, 2, 13, 68]
    assert [math.floor(math.log(max(1, gap)) / 0.301) for gap in gaps] == expected
    event = torch.zeros(1, 5, dtype=torch.int64)
    request = torch.tensor([gaps]) * MICROSECONDS
    assert attention.time_buckets(request, event)[0, :, 0].tolist() == expected


def test_a_sub_second_gap_and_a_gap_back_in_time() -> None:
    request = torch.tensor([[MICROSECONDS // 2, 10 * MICROSECONDS]])
    event = torch.tensor([[0, 20 * MICROSECONDS]])
    assert attention.time_buckets(request, event)[0].tolist() == [[0, 9], [7, 7]]


def test_the_last_bucket_takes_everything_beyond() -> None:
    assert attention.time_buckets(torch.tensor([[2**62]]), torch.tensor([[0]])).max() <= 128


def test_the_buckets_of_a_batch_are_worked_out_once_and_not_kept_beyond_it() -> None:
    time_BT = torch.tensor([[0, 3, 700]]) * MICROSECONDS
    first = attention.batch_buckets(time_BT)
    assert attention.batch_buckets(time_BT) is first
    assert torch.equal(first, attention.time_buckets(time_BT[:, 1:], time_BT[:, :-1]))
    assert attention.batch_buckets(time_BT.clone()) is not first
    before = len(attention._BUCKETS)
    del time_BT
    assert len(attention._BUCKETS) == before - 1
