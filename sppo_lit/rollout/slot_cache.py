"""A key/value cache of fixed slots, one sequence per slot, that `transformers` models use as their own.

Slot r holds its sequence from column 0 on, without padding, regardless of the other slots. The slots in use
are always the first ones, so that a model reads them as a view; when a sequence ends, its slot is filled by copying one
row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_ALIGNMENT = 16  # of the number of columns: some kernels need aligned masks, and the store grows less often


class SlotCache(Cache):
    """Keys and values [slots, heads, columns, head size] for each layer, and the attention mask that goes with them.

    Call `begin_prefill` or `begin_decode` before each forward pass of the model, and pass `attention_mask` along.

    The number of columns follows the longest sequence closely: attention reads almost contiguous memory, which on a CPU
    saves far more than the copies cost, and memory grows only with the longest sequence so far.

    Args:
        bound: maximum number of columns of a sequence.
        dtype: the model's dtype, which an additive mask must have.
        device: the model's device.
    """

    def __init__(self, bound: int, dtype: torch.dtype, device: torch.device):
        super().__init__(layers=[])
        self.bound = bound
        self.mask = torch.empty((0, 0), dtype=dtype, device=device)
        self.attention_mask = self.mask
        self._rows = torch.empty(0, dtype=torch.int64, device=device)
        self._used = 0  # number of slots in use
        self._columns = 0
        self._targets = self._rows
        self._source: Tensor | None = None  # while prefilling
        self._positions = self._rows  # while decoding

    def begin_prefill(
        self, slots: int, used: int, targets: Tensor, source: Tensor, lengths: Tensor, columns: int
    ) -> None:
        """The next forward pass reads right-padded prompts [U, columns]; slot targets[i] takes over row source[i].

        Args:
            slots: number of slots needed.
            used: number of first slots whose contents must be kept if the cache grows.
            targets: [M] int64, the slots to fill.
            source: [M] int64, the prompt of each of them.
            lengths: [M] int64, tokens of each.
            columns: width of the prompts; with 0 there is nothing to store and no forward pass.
        """
        self._reserve(slots, columns, used)
        self._targets, self._source, self._columns = targets, source, columns
        hidden = torch.arange(self.mask.shape[1], device=self.mask.device) >= lengths[:, None]
        self.mask[targets] = self.mask.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        # Right padding comes after every real token, so the causal mask alone hides it.
        self.attention_mask = self.mask.new_full((columns, columns), -torch.inf).triu_(1)[None, None]
        if columns == 0:
            for layer in self.layers:
                assert isinstance(layer, SlotLayer)
                layer.reserve(slots, self.mask.shape[1], used)
                layer.clear(targets, 0)

    def begin_decode(self, slots: int, positions: Tensor, columns: int) -> None:
        """The next forward pass reads one token for each of the first N slots.

        Args:
            slots: number of slots needed, N or more.
            positions: [N] int64, the column that each token goes to.
            columns: at least max(positions) + 1.
        """
        self._reserve(slots, columns, len(positions))
        self._columns = -(-columns // _ALIGNMENT) * _ALIGNMENT
        self._targets, self._source, self._positions = self._rows[: len(positions)], None, positions
        self.mask[self._targets, positions] = 0
        self.attention_mask = self.mask[: len(positions), None, None, : self._columns]

    def move(self, origins: Tensor, targets: Tensor) -> None:
        """After decoding: copy slot origins[i] to slot targets[i] ([M] int64 each, disjoint)."""
        self.mask[targets] = self.mask[origins]
        for layer in self.layers:
            assert isinstance(layer, SlotLayer)
            for store in layer.stores():
                used = store[:, :, : self._columns]
                used[targets] = used[origins]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values ([rows, heads, tokens, head size]) and return those that attention reads."""
        while len(self.layers) <= layer_idx:
            self.layers.append(SlotLayer())
        layer = self.layers[layer_idx]
        assert isinstance(layer, SlotLayer)
        if not layer.is_initialized:
            layer.lazy_initialization(key_states, value_states)
        layer.reserve(self.mask.shape[0], self.mask.shape[1], self._used)
        keys, values = layer.stores()
        targets, columns = self._targets, self._columns
        if self._source is None:
            keys[targets, :, self._positions] = key_states[:, :, 0].to(keys.dtype)
            values[targets, :, self._positions] = value_states[:, :, 0]
            return keys[: len(targets), :, :columns], values[: len(targets), :, :columns]
        keys[targets, :, :columns] = key_states[self._source].to(keys.dtype)
        values[targets, :, :columns] = value_states[self._source]
        layer.clear(targets, columns)
        return key_states, value_states

    def _reserve(self, slots: int, columns: int, used: int) -> None:
        """Grow by at least an eighth, so that all copies of a long generation cost about eight decoding steps."""
        self._used = used
        room, wide = self.mask.shape
        if columns <= wide and slots <= room:
            return
        if columns > wide:
            wide = max(columns, min(self.bound, wide * 9 // 8))
            wide = -(-wide // _ALIGNMENT) * _ALIGNMENT
        mask = self.mask.new_full((slots, wide), -torch.inf)
        mask[:used, : self.mask.shape[1]] = self.mask[:used]
        self.mask = mask
        if len(self._rows) < slots:
            self._rows = torch.arange(slots, device=mask.device)


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values. `SlotCache` writes and reads them; the rest is the interface that models expect.

    All columns that attention reads are initialised: a masked NaN would still propagate.
    """

    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Set number of heads, head size, dtype and device from the first states.

        Under autocast, rotated keys are float32; they are stored in the values' dtype, as attention would round them.
        """
        self.keys = value_states.new_empty((0, key_states.shape[1], 0, key_states.shape[3]))
        self.values = value_states.new_empty((0, value_states.shape[1], 0, value_states.shape[3]))
        self.is_initialized = True

    def stores(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def reserve(self, slots: int, columns: int, used: int) -> None:
        """Resize to `slots` × `columns`, keeping the contents of the first `used` slots."""
        keys, values = self.stores()
        if (keys.shape[0], keys.shape[2]) != (slots, columns):
            self.keys, self.values = _resized(keys, slots, columns, used), _resized(values, slots, columns, used)

    def clear(self, slots: Tensor, column: int) -> None:
        """Zero these slots from `column` on."""
        for store in self.stores():
            store[slots, :, column:] = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Not used.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("SlotCache.update writes the layers")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask: the model's own mask covers the new tokens only."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Tokens in the cache for the model: none, since positions are passed explicitly."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No limit."""
        return -1


def _resized(store: Tensor, slots: int, columns: int, used: int) -> Tensor:
    resized = store.new_empty((slots, store.shape[1], columns, store.shape[3]))
    if store.shape[2]:
        resized[:used, :, : store.shape[2]] = store[:used]
    resized[:used, :, store.shape[2] :] = 0
    return resized
