"""The benchmark of arithmetics: TF32 by rounding, and a table that says which is coarser."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # at the end: names of the tests' own files go first

import precision
from precision import RoundedProducts, rounded

LAST = 2.0**-10  # of TF32's digits at one


def test_numbers_are_rounded_to_ten_bits_and_ties_to_even():
    given = torch.tensor([1 + LAST / 2, 1 + 0.51 * LAST, 1 + 1.5 * LAST, -3.0, 0.0, torch.inf, -torch.inf])
    expected = torch.tensor([1.0, 1 + LAST, 1 + 2 * LAST, -3.0, 0.0, torch.inf, -torch.inf])
    assert torch.equal(rounded(given), expected)
    assert rounded(torch.tensor([torch.nan])).isnan().all()
    many = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert ((rounded(many) - many).abs() <= LAST / 2 * many.abs()).all()


@pytest.mark.parametrize("product", [torch.mm, torch.bmm, torch.addmm, torch.baddbmm])
def test_factors_of_products_are_rounded_and_nothing_else(product):
    one, other = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    sole = product in (torch.mm, torch.addmm)
    one, other = (one[0], other[0]) if sole else (one, other)
    more = (one,) if product in (torch.addmm, torch.baddbmm) else ()
    with RoundedProducts():
        found, sums = product(*more, one, other), one + other
    assert torch.equal(found, product(*more, rounded(one), rounded(other)))
    assert not torch.equal(found, product(*more, one, other)) and torch.equal(sums, one + other)
    doubles = [t.double() for t in (*more, one, other)]
    with RoundedProducts():
        exact = product(*doubles)
    assert torch.equal(exact, product(*doubles))


def test_the_table_has_the_coarser_arithmetic_farther_off(monkeypatch, capsys):
    monkeypatch.setattr(precision, "WARMUP", 60)
    monkeypatch.setattr(precision, "DRAWS", 4)
    precision.main(["--problems", "mlp1", "--steps", "4"])
    lines = capsys.readouterr().out.splitlines()
    errors = [float(line[15:].split()[0]) for line in lines[-3:]]
    assert errors[0] == 0 < errors[1] < 1e-4 and 10 * errors[1] < errors[2] < 1
    assert [line[:15].strip() for line in lines[-3:]] == ["float64", "float32", "TF32 products"]
    assert all(0.5 < float(line.split()[-1]) <= 1 for line in lines[-3:])
    assert max(map(len, lines)) <= 80
