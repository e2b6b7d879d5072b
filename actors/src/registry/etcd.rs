//! The backend that talks to etcd, or to anything that speaks its protocol.
