#!/usr/bin/env bash
# Real SPIFFE clients against Mayfly.
#
#   MAYFLY=path/to/mayfly tests/interop/run.sh all | python go helper java rust node
#                                             | nginx postgres envoy broker supervisor examples
#
# Each client runs twice: until it has seen its SVID rotate, and until it has seen its task end because
# an operator revoked it. check.py judges what it printed. A language without its toolchain is skipped,
# loudly. nginx and PostgreSQL are no clients but servers that read what `mayfly sidecar` writes: each has
# a Mayfly of its own and says in one line how long it believed a client whose task had ended. Envoy does the
# same with what it is told by SDS. The supervisor begins and ends a thousand tasks on processes of its own.
# `examples` are the programs of examples/, with a Mayfly of their own.
# KEEP=1 leaves the working directories behind.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/interop/lib.sh
. "$here/lib.sh"

languages=(python go helper java rust node)
servers=(nginx postgres envoy broker supervisor examples)
patience=60
passed=0 failed=0 skipped=0

# Why a language cannot be run here; empty when it can.
missing() {
    local tool
    local -A tools=([python]="python3" [go]="go" [helper]="go" [java]="java javac mvn" [rust]="cargo" [node]="node npm")
    for tool in ${tools[$1]}; do
        have "$tool" || { echo "\`$tool\` is not installed"; return; }
    done
    case $1 in
        python) python3 -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2> /dev/null \
            || echo "python3 is older than 3.10 or has no venv" ;;
        go | helper) at_least 1.25.3 "$(go env GOVERSION 2> /dev/null | tr -d go)" || echo "go is older than 1.25.3" ;;
        java) at_least 17 "$(javac -version 2>&1 | awk '{ print $2 }')" || echo "the JDK is older than 17" ;;
        node) at_least 20 "$(node --version | tr -d v)" || echo "node is older than 20" ;;
    esac
}
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# Runs the program until it has seen a rotation.
see_rotation() {
    local events=$work/$1.rotated
    SPIFFE_ENDPOINT_SOCKET=unix://$data/workload.sock timeout $((patience * 2)) \
        "$here/$1/run" --until-rotated --patience "$patience" > "$events" 2> "$events.err" || true
    python3 "$here/check.py" "$1" rotated "$events"
}

# Runs the program, revokes its task while it lives, and waits until it has said what it saw of that.
see_end() {
    local events=$work/$1.ended revoked=0
    SPIFFE_ENDPOINT_SOCKET=unix://$data/workload.sock \
        "$here/$1/run" --until-ended --patience "$patience" > "$events" 2> "$events.err" &
    client_pid=$!
    wait_for waiting "$events"
    if seen waiting "$events"; then
        revoke "$1" "$(python3 "$here/check.py" --task "$events")" || revoked=1
        wait_for exit "$events"
    fi
    stop "$client_pid"
    client_pid=
    python3 "$here/check.py" "$1" ended "$events" && return "$revoked"
}
client_pid=
stop_client() { [ -z "$client_pid" ] || stop "$client_pid"; }

# What an operator would type.
revoke() {
    if ! "$MAYFLY" task list --data-dir "$data" --output json > "$work/$1.tasks" 2>&1 \
        || ! python3 "$here/check.py" --lists "$2" < "$work/$1.tasks"; then
        echo "$1 ended: \`mayfly task list\` does not name the task $2:"
        cat "$work/$1.tasks"
        return 1
    fi
    if ! "$MAYFLY" revoke task "$2" --data-dir "$data" > "$work/$1.revoke" 2>&1; then
        echo "$1 ended: \`mayfly revoke task\` failed:"
        cat "$work/$1.revoke"
        return 1
    fi
}

seen() { python3 "$here/check.py" --has "$1" "$2"; }

# Returns when the event stands in the file, or the client is gone, or patience is over.
wait_for() {
    local i
    for i in $(seq $(((patience + 10) * 5))); do
        if seen "$1" "$2" || ! kill -0 "$client_pid" 2> /dev/null; then return; fi
        sleep 0.2
    done
}

language() {
    local reason started=$SECONDS
    reason=$(missing "$1")
    if [ -n "$reason" ]; then
        echo "interop: $1 SKIPPED: $reason"
        skipped=$((skipped + 1))
        return
    fi
    if ! "$here/$1/prepare" > "$work/$1.prepare" 2>&1; then
        cat "$work/$1.prepare"
        echo "interop: $1 FAILED: could not be built"
        failed=$((failed + 1))
        return
    fi
    local verdict=ok
    see_rotation "$1" || verdict=FAILED
    see_end "$1" || verdict=FAILED
    if [ $verdict = ok ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        tail -n 20 "$work/$1".rotated "$work/$1".ended "$work/$1".*.err
    fi
    echo "interop: $1 $verdict ($((SECONDS - started)) s)"
}

# A server that is no SPIFFE client. Its own script starts everything and judges; 77 says that it cannot be run.
server() {
    local started=$SECONDS status=0
    "$here/$1/run" > "$work/$1.said" 2>&1 || status=$?
    cat "$work/$1.said"
    case $status in
        0) passed=$((passed + 1)) && echo "interop: $1 ok ($((SECONDS - started)) s)" ;;
        77) skipped=$((skipped + 1)) && echo "interop: $1 SKIPPED" ;;
        *) failed=$((failed + 1)) && echo "interop: $1 FAILED with $status" ;;
    esac
}

[ $# -gt 0 ] || die "which of them? all, or some of: ${languages[*]} ${servers[*]}"
if [ "$*" = all ]; then
    set -- "${languages[@]}" "${servers[@]}"
fi
for name in "$@"; do
    [ -x "$here/$name/run" ] || die "there is no client for $name"
done
have python3 || skip "no python3 to judge the clients with"
have openssl || skip "no openssl to make the federated bundle with"

PYTHONDONTWRITEBYTECODE=1 python3 "$here/check_test.py" 2> /dev/null || die "check.py does not see its planted faults"

make_workdir
start_mayfly "$here/mayfly.toml"
at_exit stop_client
for name in "$@"; do
    case " ${servers[*]} " in
        *" $name "*) server "$name" ;;
        *) language "$name" ;;
    esac
done
if ! kill -0 "$mayfly_pid" 2> /dev/null; then
    echo "interop: mayfly itself is gone:"
    tail -n 20 "$work/mayfly.err"
    failed=$((failed + 1))
fi
echo "interop: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
