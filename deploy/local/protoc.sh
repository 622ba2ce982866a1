#!/usr/bin/env bash
# protoc over every .proto of ours, with the imports that pip installed. Takes the output options. With --services as
# the first, only over those that define a service: the others have no gRPC code.
set -euo pipefail
cd "$(dirname "$0")/../.."
google=$(python -c 'import pathlib, google.rpc; print(pathlib.Path(google.rpc.__path__[0]).parent.parent)')
cd protos
pattern=.
[ "${1-}" != --services ] || { pattern='^service '; shift; }
grep -rlE --include='*.proto' "$pattern" reengage | sort | xargs python -m grpc_tools.protoc -I . -I "$google" "$@"
