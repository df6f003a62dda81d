#!/usr/bin/env bash
# Records 50 demonstrations in simulation, trains ACT on them, scores 50 episodes it has not seen. No GPU needed.
set -euo pipefail
cd "$(dirname "$0")/.."
PY=${PY:-.venv/bin/python}
OUT=${OUT:-runs/demo}

if [ -e "$OUT/run.yaml" ]; then
  echo "$OUT holds an earlier demo; it is moved to $OUT.$(date +%Y%m%d-%H%M%S)"
  mv "$OUT" "$OUT.$(date +%Y%m%d-%H%M%S)"
fi

echo "== 1/3 recording demonstrations"
"$PY" prepare.py --task_name sim_transfer_cube_state --num_episodes 50
echo "== 2/3 training"
"$PY" train.py --training_config configs/training/act_state.yaml --output_dir "$OUT"
echo "== 3/3 scoring on unseen starts"
"$PY" eval.py --checkpoint "$OUT" --episodes 50 --seed 1000 --video --video_dir "$OUT/film" --json "$OUT/scores.json"
"$PY" report.py "$OUT"
