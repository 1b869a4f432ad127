//! Who may ask over plain HTTP: CORS for browsers, and the host whitelist against DNS rebinding.
//!
//! Immutable, shared by all shards. gRPC does not pass through here.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, HOST,
    ORIGIN,
};
use http::{HeaderMap, HeaderValue, request};

/// `--cors` and `--host-whitelist`; an empty list or `*` allows all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// Origins that browsers may call from.
    pub origins: Vec<String>,
    /// Host names that clients without TLS may use.
    pub hosts: Vec<String>,
}

impl Access {
    /// Adds the headers that let a browser use the answer.
    pub fn allow_origin(&self, request: &HeaderMap, answer: &mut HeaderMap) {
        let origin = if allows_all(&self.origins) {
            HeaderValue::from_static("*")
        } else {
            let asked = request.get(ORIGIN);
            match asked.filter(|origin| self.origins.iter().any(|allowed| *origin == allowed)) {
                Some(origin) => origin.clone(),
                None => return,
            }
        };
        let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let headers = HeaderValue::from_static("accept, content-type, authorization");
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers);
    }

    /// The host name of a request, if it is not allowed.
    #[must_use]
    pub fn refused_host<'a>(&self, head: &'a request::Parts) -> Option<&'a str> {
        if allows_all(&self.hosts) {
            return None;
        }
        let authority = head.uri.authority().map(http::uri::Authority::as_str);
        let header = || head.headers.get(HOST).and_then(|value| value.to_str().ok());
        let authority = authority.or_else(header).unwrap_or_default();
        let host = match authority.rsplit_once(':') {
            Some((host, _)) => host.trim_start_matches('[').trim_end_matches(']'),
            None => authority,
        };
        (!self.hosts.iter().any(|allowed| allowed == host)).then_some(host)
    }
}

fn allows_all(list: &[String]) -> bool {
    list.is_empty() || list.iter().any(|entry| entry == "*")
}

/// What etcd tells a client whose host is not on the whitelist.
#[must_use]
pub fn rebinding_text(host: &str) -> String {
    format!(
        "
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist {host:?}

This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).
"
    )
}
