#!/bin/sh
# Starts this machine's part of a Ray cluster with token authentication, and stays until it is stopped:
#
#   start.sh head                    on one machine; its token is made at the first start, in ~/.ray/auth_token
#   start.sh worker HEAD_IP:6379     on the others, after ~/.ray/auth_token was copied there
#
# Jobs are submitted where the same file is: RAY_AUTH_MODE=token reelgpt submit --follow -- COMMAND...
# The dashboard listens on the head's loopback alone; from elsewhere: ssh -L 8265:127.0.0.1:8265 HEAD.
set -eu
export RAY_AUTH_MODE=token

case "${1:-}" in
head)
    [ -f "$HOME/.ray/auth_token" ] || ray get-auth-token --generate >/dev/null
    exec ray start --block --head --port=6379 --dashboard-host=127.0.0.1 --disable-usage-stats
    ;;
worker)
    exec ray start --block --address="${2:?give HEAD_IP:6379}" --disable-usage-stats
    ;;
*)
    echo "usage: start.sh head | start.sh worker HEAD_IP:6379" >&2
    exit 2
    ;;
esac
