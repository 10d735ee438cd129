#!/bin/sh
# The SuperLink; it starts the server side, as a process of its own, when a run is given to it. Told to
# end, the server side saves what it has, before the container ends with the SuperLink.
set -eu
if [ -n "${CSG_CPUS:-}" ]; then # a limit may be a part of a processor
  threads=${CSG_CPUS%%.*}
  [ "${threads:-0}" -ge 1 ] || threads=1
  export OMP_NUM_THREADS="$threads"
fi
server_sides() {
  grep -l --null-data '[f]lwr-serverapp' /proc/[0-9]*/cmdline 2> /dev/null | cut -d / -f 3 || true
}
stop() {
  for process in $(server_sides); do kill "$process" 2> /dev/null || true; done
  left=80 # tenths of a second
  while [ -n "$(server_sides)" ] && [ $left -gt 0 ]; do
    sleep 0.1
    left=$((left - 1))
  done
  kill "$superlink"
  wait "$superlink" || true
  exit 143
}
flower-superlink --host 0.0.0.0 --port 8000 --database /state/superlink.db \
  --ssl-ca-certfile /keys/ca.crt --ssl-certfile /keys/tls.crt --ssl-keyfile /keys/tls.key \
  --enable-supernode-auth --health-server-address 127.0.0.1:8081 "$@" &
superlink=$!
trap stop TERM INT
wait "$superlink"
