"""Banks: what is added, and what stays apart, against rows added one by one."""

import torch

from resnet_paths_plugin.engine.banks import Bank, merged, pieces


def bank(*keys, seed=0, slopes=(), owned=False):
    rows = torch.randn(len(keys), 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Bank(tuple((key,) for key in keys), rows, slopes, owned=owned)


def by_key(banks):
    """Return the sum of the rows of each key, slopes worked in."""
    found = {}
    for one in banks:
        rows = one.rows
        for slope in one.slopes:
            rows = rows * slope
        for key, row in zip(one.keys, rows, strict=True):
            found[key] = found.get(key, 0) + row
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        torch.testing.assert_close(found[key], row, rtol=0, atol=1e-14)


def some():
    """Rows 0-1 alone, 2-3 twice, of which one part reaches to 4; 7 alone, with a slope."""
    slope = torch.full((2, 3), 0.5, dtype=torch.float64)
    return [bank(0, 1), bank(2, 3, seed=1), bank(7, seed=2, slopes=(slope,)), bank(3, 4, seed=3, slopes=(slope,))]


def test_banks_without_a_common_row_stay_where_they_are():
    given = some()
    found = pieces(given)
    assert sorted(one.keys for one in found) == [((0,), (1,)), ((2,), (3,), (4,)), ((7,),)]
    assert {one.rows.data_ptr() for one in found} >= {given[0].rows.data_ptr(), given[2].rows.data_ptr()}
    assert_same(by_key(found), by_key(some()))


def test_a_bank_that_joins_two_pieces_makes_one_of_them():
    given = [bank(0), bank(2, seed=1), bank(0, 1, 2, seed=2)]
    (found,) = pieces(given)
    assert found.keys == ((0,), (1,), (2,))
    assert_same(by_key([found]), by_key(given))


def test_merged_banks_are_one():
    assert_same(by_key([merged(some())]), by_key(some()))
    assert merged(some()).keys == tuple((key,) for key in (0, 1, 2, 3, 4, 7))
