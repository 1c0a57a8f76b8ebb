#!/usr/bin/env bash
# What is to be run where there is a GPU of 80 GB: does it fit as simulated, how fast are sampling and update at the sizes
# of the paper's 1.5B recipe, which attention kernels run, where does the time go. Then quickstart and GSM8K unchanged.
#
#   benchmarks/on_gpu.sh OUT [flags of the 1.5B recipe, e.g. --model.policy.path FOLDER --data.train.path train.jsonl]
#
# Needs a CUDA build of torch; without the extra `vllm` its part is left out loudly. Time by phase and peak memory are in the metrics.csv of every run (time/*, memory/*).
set -euo pipefail
out=$1
shift
mkdir -p "$out"
gpu=(--accelerator gpu --devices 1 --trainer.default_root_dir "$out")
recipe=recipes/deepscaler_1.5b/sppo.yaml
small=(--data.problems_per_epoch 128 --model.batch.minibatch_size 64 --max_epochs 2 --data.val '[{path: aime24, limit: 4}]'
  --trainer.num_sanity_val_steps 0 --model.evaluation.samples 1)

nvidia-smi
python - <<'PY'
import torch
from sppo_lit.utils.cuda import prepare_cuda

prepare_cuda()
print("torch", torch.__version__, torch.cuda.get_device_name(0))
for name in ("flash", "mem_efficient", "cudnn", "math"):
    print(f"attention by {name}:", getattr(torch.backends.cuda, f"{name}_sdp_enabled")())
q = torch.randn(1, 12, 8192, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
k = torch.randn(1, 2, 8192, 128, device="cuda", dtype=torch.bfloat16)
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
    torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True).sum().backward()
print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=6))
PY

# Simulated for this GPU, then measured: the table of the first, memory/rollout and memory/update of the second.
sppo doctor "$recipe" "${gpu[@]}" --no-load "$@" "${small[@]}" | tee "$out/simulated.txt" || true
lightning run "$recipe" "${gpu[@]}" "${small[@]}" --run_name 1.5b "$@"
lightning run "$recipe" "${gpu[@]}" "${small[@]}" --run_name 1.5b-fsdp --strategy fsdp "$@"
for run in 1.5b 1.5b-fsdp; do
  python - "$out/$run" <<'PY'
import csv
import sys
from pathlib import Path

row: dict[str, str] = {}
for line in csv.DictReader(max(Path(sys.argv[1]).rglob("metrics.csv"), key=lambda p: p.stat().st_mtime).open()):
    row |= {name: value for name, value in line.items() if value}
print(sys.argv[1])
for name, value in row.items():
    if name.startswith(("time/", "memory/", "rollout/tokens", "rollout/logprob_gap")):
        print(f"  {name:<32} {float(value):,.4g}")
PY
done
python benchmarks/bench_sampling.py --device cuda
python benchmarks/bench_update.py --device cuda --budget 16384

lightning run recipes/quickstart.yaml "${gpu[@]}" --precision bf16-mixed
lightning run recipes/gsm8k/warmup.yaml --accelerator gpu --devices 1 --precision bf16-mixed # where sppo.yaml looks for it
sppo doctor recipes/gsm8k/sppo.yaml "${gpu[@]}" --precision bf16-mixed || true # says what is red, and goes on
lightning run recipes/gsm8k/sppo.yaml "${gpu[@]}" --precision bf16-mixed --clock.max_seconds 600
if python -c 'import vllm' 2>/dev/null; then
  vllm=(--model.rollout.engine vllm --model.ppo.old_logprobs recompute --model.rollout.vllm.max_model_len 2048)
  sppo doctor recipes/gsm8k/sppo.yaml "${gpu[@]}" --precision bf16-mixed "${vllm[@]}" || true
  lightning run recipes/gsm8k/sppo.yaml "${gpu[@]}" --precision bf16-mixed "${vllm[@]}" --clock.max_seconds 600 \
    --run_name gsm8k-vllm
  python benchmarks/bench_engines.py --device cuda --dtype bfloat16 --rounds 3
else
  echo "VLLM IS LEFT OUT: pip install 'sppo-lit[vllm]'" >&2
fi
sppo study recipes/study/gsm8k.yaml --out "$out/study"
