"""A key/value cache of fixed slots, one sequence per slot, that `transformers` models use as their own.

Slot r holds its sequence from column 0 on, without padding, whatever the lengths of its neighbours. The slots in use
are always the first `active` ones, so that a model reads them as a view, and a sequence that ends frees its slot by one
copy of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_COLUMNS = 64  # the capacity grows in multiples of it
_VIEW = 8  # attention reads a multiple of as many columns: some kernels want aligned masks


class SlotCache(Cache):
    """Keys and values [slots, heads, capacity, head size] for each layer, and the attention mask that goes with them.

    Call `begin_prefill` or `begin_decode` before each forward pass of the model; pass `attention_mask` along.

    Args:
        slots: most sequences at a time.
        bound: most columns a sequence will ever need; memory is allocated as sequences grow.
        dtype: the model's dtype, which an additive mask must have.
        device: the model's device.
    """

    def __init__(self, slots: int, bound: int, dtype: torch.dtype, device: torch.device):
        super().__init__(layers=[])
        self.slots, self.bound, self.capacity = slots, bound, 0
        self.rows = torch.arange(slots, device=device)
        self.attention_mask: Tensor = torch.empty(0, dtype=dtype, device=device)
        self._mask = torch.empty((slots, 0), dtype=dtype, device=device)
        self._reads_slots = False
        self._start = self._stop = self._columns = 0
        self._source: Tensor | None = None
        self._active_rows = self._positions = self.rows

    def begin_prefill(self, start: int, source: Tensor, lengths: Tensor, columns: int) -> None:
        """The next forward pass reads right-padded prompts [U, columns]; slot start + i takes over row source[i].

        Args:
            start: first slot to fill.
            source: [M] int64, which of the U prompts goes into each of the M slots.
            lengths: [M] int64, tokens of each.
            columns: width of the prompts; 0 (single-token prompts) needs no forward pass at all.
        """
        self._reads_slots = False
        self._start, self._stop, self._columns = start, start + len(source), columns
        self._source = source
        self._reserve(columns)
        visible = torch.arange(self.capacity, device=self.rows.device) < lengths[:, None]
        self._mask[start : self._stop] = torch.zeros_like(visible, dtype=self._mask.dtype).masked_fill_(
            ~visible, -torch.inf
        )
        # Right padding comes after every real token, so the causal mask alone hides it.
        causal = torch.full((columns, columns), -torch.inf, dtype=self._mask.dtype, device=self._mask.device)
        self.attention_mask = causal.triu_(1)[None, None]

    def begin_decode(self, positions: Tensor, columns: int) -> None:
        """The next forward pass reads one token for each of the first N slots.

        Args:
            positions: [N] int64, the column that each token goes to.
            columns: at least max(positions) + 1.
        """
        self._reads_slots = True
        self._reserve(columns)
        self._stop = len(positions)
        self._columns = min(-(-columns // _VIEW) * _VIEW, self.capacity)
        self._active_rows, self._positions = self.rows[: self._stop], positions
        self._mask[self._active_rows, positions] = 0
        self.attention_mask = self._mask[: self._stop, None, None, : self._columns]

    def move(self, origins: Tensor, targets: Tensor) -> None:
        """Copy whole sequences: slot targets[i] becomes what slot origins[i] is ([M] int64 each, disjoint)."""
        self._mask[targets] = self._mask[origins]
        for layer in self.layers:
            assert isinstance(layer, SlotLayer) and layer.keys is not None and layer.values is not None
            for store in (layer.keys, layer.values):
                used = store[:, :, : self._columns]
                used[targets] = used[origins]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values ([rows, heads, tokens, head size]) and return those that attention reads."""
        while len(self.layers) <= layer_idx:
            self.layers.append(SlotLayer())
        layer = self.layers[layer_idx]
        assert isinstance(layer, SlotLayer)
        layer.reserve(self.slots, self.capacity, key_states, value_states)
        assert layer.keys is not None and layer.values is not None
        if self._reads_slots:
            layer.keys[self._active_rows, :, self._positions] = key_states[:, :, 0]
            layer.values[self._active_rows, :, self._positions] = value_states[:, :, 0]
            return layer.keys[: self._stop, :, : self._columns], layer.values[: self._stop, :, : self._columns]
        layer.keys[self._start : self._stop, :, : self._columns] = key_states[self._source]
        layer.values[self._start : self._stop, :, : self._columns] = value_states[self._source]
        return key_states, value_states

    def _reserve(self, columns: int) -> None:
        """Let the capacity grow by half at least, so that the copies of a long generation stay few."""
        if columns <= self.capacity:
            return
        wanted = max(columns, min(self.bound, self.capacity * 3 // 2))
        capacity = -(-wanted // _COLUMNS) * _COLUMNS
        hidden = self._mask.new_full((self.slots, capacity - self.capacity), -torch.inf)
        self._mask = torch.cat([self._mask, hidden], dim=1)
        self.capacity = capacity


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values. `SlotCache` writes and reads them; the rest answers what models may ask."""

    is_sliding = False

    def reserve(self, slots: int, capacity: int, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for `capacity` columns, in the shapes and dtypes that the model hands over."""
        if self.keys is None:
            self.keys = key_states.new_empty((slots, key_states.shape[1], 0, key_states.shape[3]))
            self.values = value_states.new_empty((slots, value_states.shape[1], 0, value_states.shape[3]))
            self.is_initialized = True
        assert self.keys is not None and self.values is not None
        if self.keys.shape[2] < capacity:
            self.keys = _widened(self.keys, capacity)
            self.values = _widened(self.values, capacity)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do before the first update."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("SlotCache.update writes the layers")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


def _widened(store: Tensor, capacity: int) -> Tensor:
    # Zeros, not uninitialised memory: a masked NaN would still poison attention.
    wide = store.new_zeros((*store.shape[:2], capacity, store.shape[3]))
    wide[:, :, : store.shape[2]] = store
    return wide
