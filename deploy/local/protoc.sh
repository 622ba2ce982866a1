#!/usr/bin/env bash
# protoc over every .proto of ours, with the imports that pip installed. Takes the output options.
set -euo pipefail
cd "$(dirname "$0")/../.."
google=$(python -c 'import pathlib, google.rpc; print(pathlib.Path(google.rpc.__path__[0]).parent.parent)')
cd protos && find reengage -name '*.proto' | sort | xargs python -m grpc_tools.protoc -I . -I "$google" "$@"
