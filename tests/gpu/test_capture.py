"""What both GPU backends upload in a step that claims to be captured. There is no graph here."""

import pytest
import torch

from fusedstep.gpu import tables
from fusedstep.plan.bucket import Member, make_buckets
from fusedstep.plan.layouts import Layouts


@pytest.fixture
def uploaded(monkeypatch):
    real, found = tables.upload, []
    monkeypatch.setattr(tables, "upload", lambda x, device: found.append(x) or real(x, device))
    return found


def a_bucket():
    params = [torch.zeros(3), torch.zeros(3)]
    layout = Layouts().of(params[0])
    members = []
    for group, param in enumerate(params):
        param.grad = torch.zeros(3)
        both = (param.data_ptr(), param.grad.data_ptr())
        members.append(Member(param, {}, group, "accumulate", (), (layout, layout), both))
    (bucket,) = make_buckets(members)
    return bucket


def test_a_capture_gets_a_table_of_its_own(uploaded):
    bucket = a_bucket()
    bucket.rows.by_member()
    own, rows = tables.Tables(bucket), torch.ones(2, 2, dtype=torch.float64)
    own.for_graph = torch.empty_like(bucket.table)
    before = own.current(bucket, rows, None, None)["table"]
    uploaded.clear()
    captured = own.current(bucket, rows, None, None, True)["table"]
    assert captured.data_ptr() != before.data_ptr() and torch.equal(captured, bucket.table)
    assert not [tensor for tensor in uploaded if tensor is not rows]


def test_rows_that_changed_since_the_warm_up_are_refused_in_a_capture(uploaded):
    bucket = a_bucket()
    bucket.rows.by_group(1.0)
    own, rows = tables.Tables(bucket), torch.ones(2, 2, dtype=torch.float64)
    own.for_graph = torch.empty_like(bucket.table)
    own.current(bucket, rows, None, None)
    bucket.rows.by_group_and_step([2.0, 1.0], b"\1\1")
    assert bucket.rows.scalar_row_of.tolist() == [0, 1]
    own.current(bucket, rows, None, None, True)
    bucket.rows.by_group_and_step([2.0, 1.0], b"\0\1")
    uploaded.clear()
    with pytest.raises(RuntimeError, match="Run one warm-up step before capture, with the same"):
        own.current(bucket, rows, None, None, True)
    assert not uploaded
    own.current(bucket, rows, None, None)
    assert uploaded
