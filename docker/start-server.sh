#!/bin/sh
# The SuperLink; it starts the server side, as a process of its own, when a run is given to it.
set -eu
exec flower-superlink --host 0.0.0.0 --port 8000 --database /state/superlink.db \
  --ssl-ca-certfile /keys/ca.crt --ssl-certfile /keys/tls.crt --ssl-keyfile /keys/tls.key \
  --enable-supernode-auth --health-server-address 127.0.0.1:8081 "$@"
