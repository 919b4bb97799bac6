# Shared by run.sh and spiffe-crate.sh: one Mayfly of our own, in a directory of our own, and nothing
# left of either. Sourced after `here` is set.

root=$(cd "$here/../.." && pwd)
out=${INTEROP_OUT:-${CARGO_TARGET_DIR:-$root/target}/interop}
export INTEROP_OUT=$out

say() { echo "interop: $*" >&2; }
die() { say "$*"; exit 1; }
skip() { echo "interop: SKIPPED: $*"; exit 0; }
have() { command -v "$1" > /dev/null; }

# Functions to run at the end, last one first, however the script ends.
exit_steps=()
at_exit() { exit_steps=("$1" "${exit_steps[@]}"); }
finish() {
    local status=$? step
    trap - EXIT
    for step in "${exit_steps[@]}"; do "$step" || true; done
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Ends a process that this script started, by its id: asks first, insists after five seconds.
stop() {
    local pid=$1 i
    kill -TERM "$pid" 2> /dev/null || return 0
    for i in $(seq 50); do
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
}

# A private directory: $work for the scripts' own files, $data for Mayfly's.
make_workdir() {
    work=$(mktemp -d /tmp/mayfly-interop.XXXXXX)
    data=$work/data
    at_exit remove_workdir
}
remove_workdir() {
    if [ -n "${KEEP:-}" ]; then
        say "kept $work"
    else
        rm -rf "$work"
    fi
}

# A foreign trust domain's SPIFFE bundle with one X.509 authority and one JWT key.
make_federated_bundle() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/federated.key" \
        -days 1 -subj "/O=federated" -addext "subjectAltName=URI:spiffe://example-federated.org" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -outform DER -out "$work/federated.der" 2> /dev/null
    openssl pkey -in "$work/federated.key" -pubout -outform DER -out "$work/federated.pub" 2> /dev/null
    python3 - "$work" << 'PY'
import base64, json, pathlib, sys
work = pathlib.Path(sys.argv[1])
point = (work / "federated.pub").read_bytes()[-64:]  # An uncompressed P-256 point ends the SPKI.
url = lambda octets: base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
key = {"kty": "EC", "crv": "P-256", "x": url(point[:32]), "y": url(point[32:])}
authority = base64.b64encode((work / "federated.der").read_bytes()).decode()
bundle = {
    "spiffe_sequence": 1,
    "spiffe_refresh_hint": 300,
    "keys": [{**key, "use": "x509-svid", "x5c": [authority]}, {**key, "use": "jwt-svid", "kid": "federated-1"}],
}
(work / "federated.json").write_text(json.dumps(bundle))
PY
    rm -f "$work/federated.key"
}

# Starts Mayfly with a copy of the configuration $1 and waits until it says that it serves.
start_mayfly() {
    [ -x "${MAYFLY:-}" ] || die "set MAYFLY to the mayfly program"
    make_federated_bundle
    sed "s/@UID@/$(id -u)/" "$1" > "$work/mayfly.toml"
    mkdir -m 700 "$data"
    "$MAYFLY" up --data-dir "$data" --config "$work/mayfly.toml" > "$work/mayfly.out" 2> "$work/mayfly.err" &
    mayfly_pid=$!
    at_exit stop_mayfly
    local i
    for i in $(seq 300); do
        grep -q '^ready' "$work/mayfly.out" && return
        kill -0 "$mayfly_pid" 2> /dev/null || break
        sleep 0.1
    done
    cat "$work/mayfly.out" "$work/mayfly.err" >&2
    die "mayfly did not become ready"
}
stop_mayfly() { stop "$mayfly_pid"; }
