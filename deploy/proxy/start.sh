#!/bin/sh
# Start HAProxy in the foreground, with TLS if a certificate is mounted. `docker compose kill -s USR2 proxy` reads a changed
# one without losing a connection.
set -eu
if [ -r /certificates/tls.pem ]; then export LIMBECK_TLS=1; fi
exec haproxy -W -db -f /etc/haproxy/haproxy.cfg
