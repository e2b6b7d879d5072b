//! The embedded registry: a server inside the binary that speaks etcd's v3 gRPC.
