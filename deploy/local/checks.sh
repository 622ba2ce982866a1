#!/usr/bin/env bash
# `make check`: runs every check, one line each, with the output of those that fail; exits 1 if any did.
set -uo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export NO_COLOR=1
failed=0

check() { # NAME COMMAND...; one that exits with 77 was skipped, and its last line says why
    local name=$1 code=0
    shift
    "$@" >"$work/output" 2>&1 || code=$?
    if [ $code = 0 ]; then
        printf '%-16s ok\n' "$name"
    elif [ $code = 77 ]; then
        printf '%-16s %s\n' "$name" "$(tail -n 1 "$work/output")"
    else
        printf '%-16s FAILED\n' "$name"
        sed 's/^/    /' "$work/output"
        failed=1
    fi
}

image() { # FILE: the descriptors of all protos, for buf, which has no way to fetch what they import
    deploy/local/protoc.sh --include_imports --include_source_info --descriptor_set_out="$1"
}

protos_lint() {
    image "$work/now.binpb" && buf lint "$work/now.binpb" --config buf.yaml
}

# Clients have what was released, so that is what must not break: the last tag's protos. Until there is a tag, and where
# there is no history, the image that `make protos-image` wrote stands for them.
protos_breaking() {
    local released against=protos/released.binpb
    if released=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null); then
        against=$work/released.binpb
        mkdir "$work/released" && git archive "$released" protos deploy/local/protoc.sh | tar -x -C "$work/released"
        "$work/released/deploy/local/protoc.sh" --include_imports --descriptor_set_out="$against" || return
    fi
    image "$work/now.binpb" && buf breaking "$work/now.binpb" --against "$against" --config buf.yaml
}

generated_code() {
    mkdir "$work/generated" && make --silent protos OUT="$work/generated" || return
    diff -rq --exclude='*.proto' --exclude=released.binpb --exclude=__pycache__ protos "$work/generated" || {
        echo "run \`make protos\`"
        return 1
    }
}

# libs/migrations.py sets the timeouts, and opens the transaction except where the first line says otherwise. Small
# integers are chosen, not slipped in: an enum or a lane takes two bytes in every row.
migrations() {
    local file options
    for file in libs/schema.sql services/*/migrations/*.sql; do
        [ -e "$file" ] || continue
        options=(--pg-version 15 --exclude require-timeout-settings,prefer-bigint-over-int,prefer-bigint-over-smallint)
        [ "$(head -n 1 "$file")" = '-- no transaction' ] || options+=(--assume-in-transaction)
        squawk "${options[@]}" "$file" || return
    done
}

manifests() {
    find deploy/base deploy/overlays -name '*.yaml' ! -name 'kustomization.yaml' -print0 |
        xargs -0 -r kubernetes-validate --strict
}

configuration() {
    python -m deploy.local.configuration --check
}

container_image() {
    [ ! -e deploy/Dockerfile ] || hadolint deploy/Dockerfile
}

check "format" ruff format --check .
check "lint" ruff check .
check "types" mypy
check "imports" lint-imports
check "protos lint" protos_lint
check "protos breaking" protos_breaking
check "generated code" generated_code
check "migrations" migrations
check "manifests" manifests
check "container image" container_image
check "configuration" configuration
check "vulnerabilities" python -m deploy.local.audit
check "words and files" pytest -q tests/repository
exit $failed
