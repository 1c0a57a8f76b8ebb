"""Tensors that wait in the host's memory come back as they were, and take no memory meanwhile."""

import pytest
import torch
from torch import nn

from sppo_lit.distributed.host_memory import on_host


def test_weights_moments_and_views_come_back_in_place() -> None:
    torch.manual_seed(0)
    network = nn.Linear(7, 5)
    network.register_buffer("scale", torch.randn(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 7)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values()]
    tensors = [*network.parameters(), *network.buffers(), *moments, torch.empty(0)]
    row = network.weight.detach()[2, 1:]  # of the same storage, not in the list
    before, seen = [t.clone() for t in tensors], row.clone()
    addresses = [id(t) for t in (*network.parameters(), *moments)]
    with on_host([*tensors, network.weight.detach()]):  # a storage that comes twice
        assert not sum(t.untyped_storage().nbytes() for t in tensors)
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True)) and torch.equal(row, seen)
    assert [id(t) for t in (*network.parameters(), *moments)] == addresses
    optimizer.step()
    assert not torch.equal(row, seen), "a view still shows the weights that are trained"


def test_weights_come_back_when_sampling_fails() -> None:
    weight = torch.arange(6.0)
    with pytest.raises(RuntimeError, match="sampling"), on_host([weight]):
        raise RuntimeError("sampling failed")
    assert weight.tolist() == [0, 1, 2, 3, 4, 5]
