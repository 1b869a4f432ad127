//! Tools for operators, beside the server; stock etcdctl is the client.
#![forbid(unsafe_code)]
