#!/usr/bin/env bash
# What is to be run where there is a GPU: quickstart and GSM8K unchanged, sharding, speed, and the comparison on GSM8K.
#
#   benchmarks/on_gpu.sh OUT [flags of the GSM8K recipe, e.g. --model.policy.path FILE.gguf --data.train.path train.jsonl]
#
# Needs a CUDA build of torch. Reward curves, time by phase and peak memory are in the metrics.csv of every run.
set -euo pipefail
out=$1
shift
gpu=(--accelerator gpu --devices 1 --trainer.default_root_dir "$out")

lightning run recipes/quickstart.yaml "${gpu[@]}" --precision bf16-mixed
sppo doctor recipes/gsm8k/sppo.yaml "${gpu[@]}" --precision bf16-mixed "$@" || true # says what is red, and goes on
lightning run recipes/gsm8k/sppo.yaml "${gpu[@]}" --precision bf16-mixed --clock.max_seconds 600 "$@"
lightning run recipes/gsm8k/sppo.yaml "${gpu[@]}" --precision bf16-mixed --strategy fsdp --clock.max_seconds 120 \
  --run_name gsm8k-fsdp "$@"
python benchmarks/bench_sampling.py --device cuda
python benchmarks/bench_update.py --device cuda --budget 16384
sppo study recipes/study/gsm8k.yaml --out "$out/study"
