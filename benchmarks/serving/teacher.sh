#!/usr/bin/env bash
# Packs the demo's fine-tuned MiniLM-L6 as a bundle, runs/minilm-l6/bundle: the larger of the two models that are served.
set -euo pipefail
cd "$(dirname "$0")/../.."
teacher=runs/movie-reviews/work/teacher
[ -d "$teacher/model" ] || { echo "no $teacher: run make demo first" >&2; exit 1; }
model=$(mktemp -d)
trap 'rm -rf "$model"' EXIT
cp "$teacher"/model/* "$teacher/tokenizer.json" "$model/"
.venv/bin/limbeck pack "$model" --data examples/movie-reviews/data/test.jsonl --max-length 128 \
  --set name=minilm-l6 --force --out runs/minilm-l6/bundle
