#!/bin/bash
# Exit with 0 while HAProxy answers and at least one replica is ready. The image has no HTTP client; bash can open a socket.
exec 3<>/dev/tcp/127.0.0.1/8405 || exit 1
printf 'GET /healthy HTTP/1.0\r\n\r\n' >&3
read -r line <&3
echo "$line"
[[ $line == *" 200 "* ]]
