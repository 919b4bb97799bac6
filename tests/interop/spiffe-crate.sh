#!/usr/bin/env bash
# Runs the 60 ignored integration tests that ship inside the published `spiffe` crate against Mayfly.
#
# They expect the SPIRE of their own CI: one caller with two SVIDs, a federated trust domain, and for
# two of them a socket at a fixed path. The fixture is spiffe-crate.toml. The crate's sources are
# copied out of cargo's own cache, and nothing of them is kept in this repository.
#
#   MAYFLY=path/to/mayfly tests/interop/spiffe-crate.sh [filter]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/interop/lib.sh
. "$here/lib.sh"

fixed_socket=/tmp/spire-agent/public/api.sock
build=$out/spiffe-crate
expected=60

unpack() {
    cargo fetch --quiet --locked --manifest-path "$here/rust/Cargo.toml"
    local manifest source
    manifest=$(cargo metadata --quiet --locked --offline --format-version 1 --manifest-path "$here/rust/Cargo.toml" \
        | python3 -c 'import json, sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "spiffe"))')
    source=$(dirname "$manifest")
    [ -e "$build/unpacked" ] && [ "$(cat "$build/unpacked")" = "$source" ] && return
    rm -rf "$build"
    mkdir -p "$build"
    cp -R "$source/." "$build/"
    chmod -R u+w "$build"
    # A vendored OpenSSL is minutes of C for one unit test that is not ours to run.
    python3 - "$build/Cargo.toml" <<'PY'
import re, sys
path = sys.argv[1]
text = open(path).read()
text = re.sub(r'\[dev-dependencies\.openssl\]\n(?:[^\[\n].*\n|\n)*', '', text)
text = re.sub(r'\[\[test\]\]\nname = "jwt_authority_policy"\n.*\n\n', '', text)
open(path, 'w').write(text + '\n[workspace]\n')
PY
    # Our lock file, so that what the interop workload was built from is built once.
    cp "$here/rust/Cargo.lock" "$build/Cargo.lock"
    echo "$source" > "$build/unpacked"
}

tests() {
    cargo test --quiet --manifest-path "$build/Cargo.toml" --target-dir "$out/cargo" \
        --features workload-api,x509-source,jwt-source,jwt-verify-rust-crypto \
        --test workload_api_client --test x509_source --test jwt_source "$@"
}

# Some tests dial the fixed path whatever the environment says: a link leads from there to us. It is
# made only where nothing is, and taken away again.
link_fixed_socket() {
    if [ -e "$fixed_socket" ] || [ -L "$fixed_socket" ]; then
        die "$fixed_socket exists already: something else may be using it"
    fi
    mkdir -p "$(dirname "$fixed_socket")"
    ln -s "$data/workload.sock" "$fixed_socket"
    linked=1
}

unlink_fixed_socket() {
    [ "${linked:-0}" = 1 ] || return 0
    rm -f "$fixed_socket"
    rmdir --ignore-fail-on-non-empty "$(dirname "$fixed_socket")" /tmp/spire-agent 2>/dev/null || true
}
at_exit unlink_fixed_socket

have cargo || skip "no cargo"
have openssl || skip "no openssl to make the federated bundle with"
have python3 || skip "no python3 to read cargo's answers with"
unpack
say "building the crate's tests"
tests --no-run

make_workdir
start_mayfly "$here/spiffe-crate.toml"
link_fixed_socket

say "running them"
status=0
SPIFFE_ENDPOINT_SOCKET=unix://$data/workload.sock tests "$@" -- --ignored --test-threads=4 \
    > "$work/tests.log" 2>&1 || status=$?
passed=$(grep -o '[0-9]* passed' "$work/tests.log" | awk '{ n += $1 } END { print n + 0 }')
failed=$(grep -o '[0-9]* failed' "$work/tests.log" | awk '{ n += $1 } END { print n + 0 }')
if [ "$failed" -gt 0 ] || [ "$status" -ne 0 ]; then
    cat "$work/tests.log"
fi
echo "spiffe-crate: $passed passed, $failed failed, of $expected"
if [ $# -eq 0 ]; then
    [ "$passed" -eq "$expected" ] && [ "$failed" -eq 0 ]
else
    [ "$failed" -eq 0 ] && [ "$status" -eq 0 ]
fi
