#!/bin/sh
# Runs every fuzz target for so many minutes, one after the other, and fails on the first finding.
#
#   fuzz/run-all.sh MINUTES [TARGET...]
#
# Needs `cargo install cargo-fuzz` and a C++ compiler; the toolchain may be stable. A finding is left in fuzz/artifacts/<target>/;
# `cargo fuzz run <target> <file>` repeats it. What the fuzzer learns stays in fuzz/corpus (not committed) for the next run; the committed
# seeds are what honest peers say, written by `cargo run --example seeds` in fuzz/, and a few inputs that got far.
set -eu
minutes=${1:?usage: fuzz/run-all.sh MINUTES [TARGET...]}
shift
cd "$(dirname "$0")"
targets=${*:-wire bulk pages images owed archive messages runtime}

# Sanitizers are an unstable flag of the compiler.
export RUSTC_BOOTSTRAP=1

for target in $targets; do
    cargo fuzz build "$target"
done
for target in $targets; do
    mkdir -p "corpus/$target" "seeds/$target"
    echo "== $target: $minutes min"
    # A single allocation of more than 256 MB, more than 2 GB in all, or an input that takes 30 s is a finding. What all threads do in one
    # that takes 15 s is told before (src/watch.rs).
    cargo fuzz run "$target" "corpus/$target" "seeds/$target" -- \
        -max_total_time=$((minutes * 60)) -rss_limit_mb=2048 -malloc_limit_mb=256 -timeout=30 -print_final_stats=1
done
echo "no findings"
