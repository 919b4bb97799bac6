#!/bin/sh
# Fuzzes one target: ./run.sh TARGET SECONDS [libFuzzer options]
#
# Works on the pinned stable toolchain: coverage comes from LLVM's own pass, asked for with the
# flags below, so neither cargo-fuzz nor a nightly compiler is needed. What is found on the way is
# kept in target/corpus/TARGET; a crash is written to target/crashes/TARGET and should be copied to
# ../corpus/TARGET, where CI replays it for ever.
#
# `./run.sh minimise TARGET` adds to ../corpus/TARGET what reaches code that nothing there reaches.
set -eu
cd "$(dirname "$0")"

export CARGO_TARGET_DIR="$PWD/target"
# An explicit target keeps these flags away from build scripts and procedural macros.
triple=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"

build() {
    cargo build --quiet --locked --target "$triple" --bin "$1"
    found="target/corpus/$1" crashes="target/crashes/$1" binary="target/$triple/debug/$1"
    mkdir -p "$found" "$crashes" "../corpus/$1"
}

if [ "${1:?usage: run.sh TARGET SECONDS | run.sh minimise TARGET}" = minimise ]; then
    target=${2:?which target}
    build "$target"
    small="target/minimised/$target"
    rm -rf "$small" && mkdir -p "$small"
    # Without counters, or a thousand inputs would differ by how often they go around a loop.
    "$binary" -set_cover_merge=1 -use_counters=0 -max_len=600 "$small" "../corpus/$target" "$found"
    for input in "$small"/*; do
        known=$(find "../corpus/$target" -type f -exec cmp -s {} "$input" \; -print)
        [ -n "$known" ] || cp "$input" "../corpus/$target/"
    done
    ls "../corpus/$target" | wc -l
    exit
fi

target=$1 seconds=${2:?how many seconds}
shift 2
build "$target"
# The journal's target writes files, and what it looks for is not in the disk.
[ -w /dev/shm ] && export TMPDIR=/dev/shm
# Its thousand lines of progress would hide everything else: what was done is told at the end.
exec "$binary" -verbosity=0 -max_total_time="$seconds" -max_len=8192 -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="$crashes/" "$@" "$found" "../corpus/$target"
