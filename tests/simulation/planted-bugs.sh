#!/usr/bin/env bash
# Plants bugs, one after the other, and lets the simulator look for each: a checker that finds
# nothing proves something only if it would have found these.
#
#   planted-bugs.sh [bug…]     the patches of planted/ with these names, or all; brokers/… are looked for
#                              by the simulation of whole brokers
#
# SEEDS (default 300) is how many seeds a bug is looked for, SECONDS_MAX (default 240) how long.
# Works on a copy of the tree as it is; builds go to PLANTED_TARGET_DIR (default target/planted).
# Ends with 1 if a bug was not found.
set -euo pipefail
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
patches=$root/tests/simulation/planted
seeds=${SEEDS:-300}
export CARGO_TARGET_DIR=${PLANTED_TARGET_DIR:-$root/target/planted}

bugs=("$@")
if [ $# = 0 ]; then
  while read -r patch; do bugs+=("${patch%.patch}"); done < <(cd "$patches" && ls *.patch brokers/*.patch)
fi

copy=$(mktemp -d)
trap 'git -C "$root" worktree remove --force "$copy/tree"; rm -rf "$copy"' EXIT
# What is not committed yet belongs to the tree, too.
commit=$(git -C "$root" stash create)
git -C "$root" worktree add --quiet --detach "$copy/tree" "${commit:-HEAD}"
cd "$copy/tree"

missed=0
printf '%-42s %9s  %s\n' bug seeds 'what the simulator said'
for bug in "${bugs[@]}"; do
  git checkout --quiet .
  git apply "$patches/$bug.patch"
  target=simulation
  [ "${bug#brokers/}" = "$bug" ] || target=simulation-brokers
  if ! cargo test --quiet -p streamgauge-tests --test "$target" --no-run >"$copy/build" 2>&1; then
    cat "$copy/build" >&2
    exit 2
  fi
  code=0
  RUST_BACKTRACE=0 SIMULATION_SEEDS=$seeds timeout "${SECONDS_MAX:-240}" \
    cargo test --quiet -p streamgauge-tests --test "$target" -- --nocapture whatever_fails \
    >"$copy/run" 2>&1 || code=$?
  if seed=$(grep -o -m1 'SIMULATION_SEED=[0-9]*' "$copy/run"); then
    found=$((${seed#*=} + 1))
    said=$(grep -A3 -m1 'panicked at' "$copy/run" | sed -e 1d -e '/^note/d' -e '/simulation failed/d' |
      tr -s '\n ' ' ' | cut -c1-110)
  elif [ $code = 124 ]; then
    found='-' said='nothing before the time was up' missed=1
  else
    found='-' said="nothing in $seeds seeds" missed=1
  fi
  printf '%-42s %9s  %s\n' "$bug" "$found" "$said"
done
exit $missed
