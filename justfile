# The commands of a working day. Each is one that you could type.

# list the recipes
default:
    @just --list

# format and lint, as CI does
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# everything that needs nothing but Rust and a C compiler
test:
    cargo test --workspace

# the story of one simulated world, or many when no seed is given
sim seed="":
    {{ if seed == "" { "cargo test -p mayfly-sim --test sim" } else { "cargo run -p mayfly-sim -- " + seed } }}

# one fuzz target for so many seconds
fuzz target="authority_mend" seconds="60":
    tests/fuzz/run.sh {{target}} {{seconds}}

# what it costs: all benches or those that are named; writes docs/performance.md
bench *names:
    benches/run {{names}}

# instructions of the core paths against those that were committed; `just counts --bless` commits to today's
counts *words:
    cargo bench --quiet --workspace --profile dev --bench counts -- {{words}}

# who refuses an ended task, and when: writes docs/verifiers.md
verifiers:
    cargo bench -p mayfly --bench verifiers

# write the generated gRPC code anew
proto:
    MAYFLY_BLESS=1 cargo test -p mayfly-proto

# the whole story in ten seconds
demo:
    cargo run -- demo

# licences, advisories and arrows to third parties, where cargo-deny is installed
deny:
    cargo deny check

# everything
ci:
    .ci/run
