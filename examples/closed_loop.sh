#!/usr/bin/env bash
# From nothing to an improved policy bundle, on simulated engines, on this machine alone:
#   measure -> train -> evaluate -> route live load -> log -> compare-log -> improve -> hot swap
#
#   examples/closed_loop.sh                     3.5 minutes on 2 cores once the simulator is compiled, 5 before
#   LOAD_S=20 RATE=6 ... examples/closed_loop.sh      every number below can be set
#
# Real servers take the engines' place with their own URLs in router.yaml. It listens on 127.0.0.1 only, needs
# no network, and ends what it began. WORK must not exist: nothing is overwritten.
set -euo pipefail

WORK=${WORK:-closed-loop}                    # everything is written here
SPLITGYM=${SPLITGYM:-splitgym}               # the command; training needs a checkout with its [train] extra
PYTHON=${PYTHON:-python3}
PORT=${PORT:-8100}                           # PORT to PORT+3: engines; PORT+10, PORT+11: router and its admin
MODEL=${MODEL:-llama2-70b}
MACHINE=${MACHINE:-h100-80gb}
# As long and as many as the traffic has: beyond what was measured a profile guesses.
MEASURE=${MEASURE:---repeats 1 --max-prompt 8192 --max-batch 32 --max-requests 1500 --max-seconds 120}
YESTERDAY=${YESTERDAY:-poisson:azure-conv-synth@4}   # what the first policy learns from
TODAY=${TODAY:-poisson:azure-code-synth}             # what then comes
RATE=${RATE:-17}                             # requests/s of today's traffic ...
LOAD_S=${LOAD_S:-90}                         # ... for so many seconds
GENERATIONS=${GENERATIONS:-3}                # of the first training
IMPROVE_GENERATIONS=${IMPROVE_GENERATIONS:-30}
WINDOW_S=${WINDOW_S:-30}                     # of training and evaluation
SEED=${SEED:-0}

say() { printf '\n== %s (after %d s)\n' "$1" "$SECONDS"; }

pids=()
stop() {  # by id, and only what was begun here
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    pids=()
}
trap stop EXIT
trap 'exit 130' INT TERM

await() {  # URL: until it answers, 120 s at most
    local i
    for ((i = 0; i < 600; i++)); do
        "$PYTHON" - "$1" <<'PY' && return
import sys, urllib.request
try:
    sys.exit(urllib.request.urlopen(sys.argv[1], timeout=2).status != 200)
except OSError:
    sys.exit(1)
PY
        sleep 0.2
    done
    echo "$1 does not answer: see the logs in $WORK" >&2
    exit 1
}

[ ! -e "$WORK" ] || { echo "WORK=$WORK is there already: name another folder" >&2; exit 2; }
mkdir -p "$WORK/bundles"
cd "$WORK"
url() { echo "http://127.0.0.1:$((PORT + $1))"; }

say "four simulated engines"
$SPLITGYM engine --profile "$MODEL/$MACHINE" --cluster 4 --port "$PORT" --mean-output-tokens 0 >engines.txt 2>&1 &
pids+=($!)
for i in 0 1 2 3; do await "$(url "$i")/health"; done

say "measure: a profile of them"
# shellcheck disable=SC2086  # several options
$SPLITGYM profile measure --url "$(url 0)" --prompt-url "$(url 0)" --token-url "$(url 2)" \
    --model "$MODEL" --machine "$MACHINE" --gpus 8 --name engine --out profile.json $MEASURE

say "train: a first policy, on yesterday's traffic"
cat >cluster.yaml <<YAML
model: $MODEL
machines:
  - {machine: $PWD/profile.json, count: 2, pool: prompt}
  - {machine: $PWD/profile.json, count: 2, pool: token}
batching: {rule: vllm}
transfer: {mode: serial}
YAML
$SPLITGYM train --algo es --cluster-file cluster.yaml --steps "$GENERATIONS" --seed "$SEED" --run-dir run --quiet \
    --set evolution.clusters=own --set "evolution.workloads=['$YESTERDAY']" --set evolution.loads_judged='[1.0]' \
    --set evolution.scenarios=2 --set evolution.pairs=8 --set workload.warmup_s=5 --set "workload.episode_s=$WINDOW_S"
$SPLITGYM export run --out bundles/first

say "evaluate: the first policy beside heuristics"
$SPLITGYM evaluate --policies splitwise,index,bundles/first --cluster-file cluster.yaml \
    --workload "$YESTERDAY" --workload "$TODAY@$RATE" --duration "$WINDOW_S" --warmup 5 --seeds 2

say "route: live load through the router"
cat >router.yaml <<YAML
model: $MODEL
policy: {routing: $PWD/bundles/first, deadline_ms: 50}
servers:
$(for i in 0 1 2 3; do
    pool=$([ "$i" -lt 2 ] && echo prompt || echo token)
    echo "  - {name: engine$i, url: \"$(url "$i")\", pool: $pool, machine: $PWD/profile.json}"
done)
listen: {port: $((PORT + 10))}
admin: {port: $((PORT + 11)), bundles: $PWD/bundles}
log: {path: $PWD/decisions.jsonl}
YAML
$SPLITGYM route --config router.yaml >router.txt 2>&1 &
pids+=($!)
await "$(url 10)/health"
$SPLITGYM load "$(url 10)" --workload "$TODAY@$RATE" --duration "$LOAD_S" --part all --seed "$SEED"
sleep 2                                      # the log is flushed once a second
cp decisions.jsonl today.jsonl               # the router goes on writing its own

say "compare-log: may the simulator be trusted?"
$SPLITGYM compare-log today.jsonl --plot sim-to-real.png
$SPLITGYM compare-log today.jsonl --json >compare-log.json

say "improve: a better policy from the log, if there is one"
$SPLITGYM improve today.jsonl --bundle bundles/first --out bundles/second --run-dir improve \
    --generations "$IMPROVE_GENERATIONS" --seed "$SEED" --quiet
if [ ! -d bundles/second ]; then
    say "the first policy stays: nothing better was found"
    exit 0
fi

say "hot swap: the new policy, while requests go on"
$SPLITGYM load "$(url 10)" --workload "$TODAY@$(((RATE + 1) / 2))" --duration 6 --part all --seed 1 >after.txt &
loading=$!
pids+=("$loading")
sleep 2
"$PYTHON" - "$(url 11)" <<'PY'
import json, sys, urllib.request
ask = urllib.request.Request(
    sys.argv[1] + "/admin/policy",
    json.dumps({"routing": "second"}).encode(),
    {"Content-Type": "application/json"},
)
print("the router now decides with", json.load(urllib.request.urlopen(ask, timeout=120)))
PY
wait "$loading"
cat after.txt
say "done: $WORK/bundles/second decides; the report is $WORK/improve/report.html"
