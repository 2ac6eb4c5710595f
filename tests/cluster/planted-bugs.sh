#!/usr/bin/env bash
# Plants bugs, one after the other, in real brokers, and lets the checked histories look for each: a checker from outside that
# finds nothing proves something only if it would have found these.
#
#   planted-bugs.sh [bug…]     patches of tests/simulation/planted/ with these names, or those below, which outsiders can see
#
# The three histories take turns, with faults drawn for CLUSTER_SECONDS (default 90) each, at most RUNS (default 6) for a bug.
# Works on a copy of the tree as it is; brokers are built in PLANTED_TARGET_DIR (default target/planted) and kept there.
# BUILD_ONLY=1 stops there. Ends with 1 if a bug was not found.
set -euo pipefail
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
patches=$root/tests/simulation/planted
target=${PLANTED_TARGET_DIR:-$root/target/planted}
seconds=${CLUSTER_SECONDS:-90}
runs=${RUNS:-6}
histories=(
  a_history_through_kills_and_stops_is_true
  a_history_through_cut_links_is_true
  a_history_through_moves_of_replicas_is_true
)
# What needs a loss of power or a disk that lies stays invisible to kill -9, and has the simulator.
bugs=(answered-before-commit high-watermark-past-commit serves-before-first-commit deposed-leader-answers
  follower-does-not-truncate duplicates-appended followers-forget-producers)
[ $# = 0 ] || bugs=("$@")

cd "$root"
cargo test --quiet -p streamgauge-tests --test cluster --no-run
copy=$(mktemp -d)
trap 'git -C "$root" worktree remove --force "$copy/tree"; rm -rf "$copy"' EXIT
# What is not committed yet belongs to the tree, too.
commit=$(git stash create)
git worktree add --quiet --detach "$copy/tree" "${commit:-HEAD}"

missed=0
printf '%-34s %5s %8s  %s\n' bug runs seconds 'what the checker said'
for bug in "${bugs[@]}"; do
  broker=$target/streamgauge-$bug
  (
    cd "$copy/tree"
    git checkout --quiet .
    git apply "$patches/$bug.patch"
    if ! CARGO_TARGET_DIR=$target cargo build --quiet --workspace --bins >"$copy/build" 2>&1; then
      cat "$copy/build" >&2
      exit 2
    fi
    cp "$target/debug/streamgauge" "$broker"
  )
  [ -z "${BUILD_ONLY:-}" ] || continue
  begun=$SECONDS said=''
  for ((run = 1; run <= runs; run++)); do
    if ! STREAMGAUGE_BIN=$broker RUST_BACKTRACE=0 CLUSTER_SECONDS=$seconds CLUSTER_SEED=$run \
      timeout $((seconds + 600)) cargo test --quiet -p streamgauge-tests --test cluster -- \
      --exact "${histories[(run - 1) % ${#histories[@]}]}" --nocapture >"$copy/run" 2>&1; then
      cp "$copy/run" "$target/$bug.out"
      # The reason, and the anomalies in it.
      said=$(grep -A5 -m1 'panicked at' "$copy/run" | sed -e 1d -e '/^note/d' | tr -s '\n ' ' ' | cut -c1-150)
      said=${said:-the time was up}
      break
    fi
  done
  if [ -n "$said" ]; then
    printf '%-34s %5s %8s  %s\n' "$bug" "$run" $((SECONDS - begun)) "$said"
  else
    printf '%-34s %5s %8s  %s\n' "$bug" - $((SECONDS - begun)) 'nothing'
    missed=1
  fi
done
exit $missed
