#!/usr/bin/env bash
# `make smoke`: the whole run with tiny settings, in a copy of this folder that is thrown away.
#
# First Snakemake drives and then has nothing left to do, and DVC agrees. Then DVC makes the recorded results again in a clone, where
# Snakemake never ran (`rtdmd reproduce`), and Snakemake agrees.
# KEEP=1 keeps the copies and names them.
set -euo pipefail

here=$(git rev-parse --show-toplevel)
copies=$(mktemp -d)
export GOMP_SPINCOUNT=30000 PATH="$here/.venv/bin:$PATH"
if [ -z "${KEEP:-}" ]; then trap 'rm -rf "$copies"' EXIT; else echo "copies: $copies"; fi

copy_to() { # the files that Git has or would take, committed in a repository of their own
  mkdir -p "$1"
  git -C "$here" ls-files -z --cached --others --exclude-standard |
    (cd "$here" && while IFS= read -r -d '' file; do [ -e "$file" ] || [ -L "$file" ] || continue; printf '%s\0' "$file"; done) |
    tar -C "$here" --null --files-from=- -c | tar -C "$1" -x
  enter "$1"
  rm -rf results dvc.lock
  rtdmd params smoke >params.yaml
  git init -q
  commit smoke
}

commit() {
  git add -A && git -c user.name=smoke -c user.email=smoke@localhost -c commit.gpgsign=false commit -q -m "$1"
}

enter() { # work in a copy, with the copy's own code
  cd "$1"
  export PYTHONPATH=$1
}

nothing_to_do() { # for both engines; Snakemake says so in ten seconds of processor time (the clock's would also count the neighbours)
  local TIMEFORMAT=%U took
  took=$({ time snakemake --cores 2 >.rtdmd/second.log 2>&1; } 2>&1)
  grep -q "Nothing to be done" .rtdmd/second.log || { cat .rtdmd/second.log; return 1; }
  [ "${took%.*}" -lt 10 ] || { echo "a second snakemake took $took s"; return 1; }
  dvc status >.rtdmd/status.log
  grep -q "up to date" .rtdmd/status.log || { cat .rtdmd/status.log; return 1; }
}

begin=$SECONDS
copy_to "$copies/snakemake"
snakemake --cores 2
nothing_to_do
[ -s results/report/index.html ]
commit results
echo "smoke: snakemake drove the whole run in $((SECONDS - begin)) s; a second run had nothing to do; dvc agrees"

begin=$SECONDS
rtdmd reproduce --into "$copies/dvc"
enter "$copies/dvc"
nothing_to_do
python - "$copies" <<'PY'
import sys, yaml
one, two = (yaml.safe_load(open(f"{sys.argv[1]}/{engine}/dvc.lock"))["stages"] for engine in ("snakemake", "dvc"))
different = [name for name in one if one[name] != two.get(name)]
sys.exit(f"the engines' dvc.lock differ in {', '.join(different)}" if different or set(one) != set(two) else 0)
PY
echo "smoke: dvc drove the whole run in $((SECONDS - begin)) s to the same bytes and dvc.lock; snakemake agrees"
