#!/bin/sh
# Makes the descriptor set anew from etcd-client's own proto files. Needs Debian's protobuf-compiler and libprotobuf-dev.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
version=0.21.1
proto=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/etcd-client-$version/proto)
cd "$proto"
exec protoc --include_imports -I . -o "${1:-$here/etcd-client-$version.binpb}" \
  etcd/api/authpb/auth.proto etcd/api/etcdserverpb/rpc.proto etcd/api/mvccpb/kv.proto \
  etcd/server/etcdserver/api/v3election/v3electionpb/v3election.proto \
  etcd/server/etcdserver/api/v3lock/v3lockpb/v3lock.proto
