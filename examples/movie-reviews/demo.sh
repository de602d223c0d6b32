#!/usr/bin/env bash
# What `make demo` runs: compress the movie reviews, serve the bundle in the background, classify two sentences.
# A second run stops the server of the first, takes over every finished stage and serves again.
set -euo pipefail
cd "$(dirname "$0")/../.."

limbeck=.venv/bin/limbeck
out=runs/movie-reviews
port=${LIMBECK_PORT:-8000}
url=http://127.0.0.1:$port
pid_file=$out/server.pid
log=$out/server.log

stop_own_server() {
  local pid
  [ -f "$pid_file" ] || return 0
  pid=$(cat "$pid_file")
  # a process id is used again some day: only a limbeck of this folder is stopped
  if [ -r "/proc/$pid/cmdline" ] && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "limbeck serve $out/bundle"; then
    echo "Stopping the demo's earlier server (process $pid)"
    kill "$pid"
    for _ in $(seq 300); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
  fi
  rm -f "$pid_file"
}

# before the minutes of work, not after them
stop_own_server
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  echo "Port $port is taken by another program. Give another one: LIMBECK_PORT=8001 make demo" >&2
  exit 1
fi

$limbeck compress examples/movie-reviews/recipe.yaml --out "$out"

echo
echo "Serving $out/bundle on $url (log: $log)"
setsid nohup $limbeck serve "$out/bundle" --port "$port" >"$log" 2>&1 </dev/null &
echo $! >"$pid_file"
for _ in $(seq 600); do
  if curl -fs "$url/health/ready" >/dev/null 2>&1 && kill -0 "$(cat "$pid_file")" 2>/dev/null; then break; fi
  if ! kill -0 "$(cat "$pid_file")" 2>/dev/null; then
    echo "The server did not start:" >&2
    cat "$log" >&2
    rm -f "$pid_file"
    exit 1
  fi
  sleep 0.1
done
if ! curl -fs "$url/health/ready" >/dev/null; then
  echo "The server is not ready after a minute; see $log" >&2
  exit 1
fi

body='{"inputs": ["A moving, beautifully acted film.", "Two hours of my life I will never get back."]}'
echo
echo "\$ curl -s $url/v1/classify -H 'content-type: application/json' -d '$body'"
curl -fsS "$url/v1/classify" -H 'content-type: application/json' -d "$body" | .venv/bin/python -m json.tool
echo
.venv/bin/limbeck inspect "$out/bundle"
echo
echo "The service goes on at $url (try $url/docs). Stop it with: kill \$(cat $pid_file)"
