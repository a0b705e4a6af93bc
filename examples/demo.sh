#!/usr/bin/env bash
# Raw log -> dataset -> model -> metrics -> predictions, on a generated log whose best AUC is known.
# Usage: examples/demo.sh FOLDER [ROWS]
set -euo pipefail
folder=${1:?usage: examples/demo.sh FOLDER [ROWS]}
rows=${2:-1500000}
rm -rf "$folder"
run() { printf '\n$ %s\n' "$*"; "$@"; }

run fastdlrm generate --rows "$rows" --files 4 --gzip --seed 7 --out "$folder/log"
run fastdlrm prepare --config criteo-generated --input "$folder/log/*.gz" --out "$folder/data" --memory 1GiB
run fastdlrm train --config criteo-generated --data "$folder/data" --out "$folder/run"
run fastdlrm eval --run "$folder/run" --data "$folder/data" --split test
run fastdlrm predict --run "$folder/run" --input "$folder/log/day_0.gz" --out "$folder/scores.parquet"

python - "$folder" <<'PYTHON'
import json, subprocess, sys
folder = sys.argv[1]
best = json.load(open(f"{folder}/log/teacher.json"))["auc"]
command = ["fastdlrm", "eval", "--run", f"{folder}/run", "--data", f"{folder}/data", "--json"]
auc = json.loads(subprocess.check_output(command))["auc"]
share = (auc - 0.5) / (best - 0.5)
print(f"\ntest AUC {auc:.4f}; the best any model can reach is {best:.4f}: {share:.1%} of the way from 0.5")
sys.exit(share < 0.97)
PYTHON
