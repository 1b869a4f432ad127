//! The plain HTTP endpoints of the client port: /version, /health, /livez, /readyz, /metrics.
//!
//! Bodies, headers and codes are etcd's, down to what Go's `http.Error` adds, because probes and
//! scripts match them. Stateless: asks the [`Member`] of its shard. Checks run and are listed in
//! table order, where etcd's come in random order.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode, request};
use serde_json::json;

use crate::front::Body;
use crate::log;
use crate::pb::etcdserverpb::AlarmType;
use crate::service::Member;

mod access;

pub use access::Access;

/// The etcd version whose API this server speaks.
pub const ETCD_VERSION: &str = "3.7.1";

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const METRICS: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8; escaping=underscores");

/// One thing that /livez and /readyz look at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    const LIVEZ: &[Self] = &[Self::SerializableRead];
    const READYZ: &[Self] = &[
        Self::DataCorruption,
        Self::SerializableRead,
        Self::LinearizableRead,
        Self::NonLearner,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, member: &impl Member) -> Result<(), String> {
        let corrupt = AlarmType::Corrupt as i32;
        match self {
            Self::DataCorruption if member.alarms().iter().any(|a| a.alarm == corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            Self::NonLearner if member.is_learner() => Err("not supported for learner".to_owned()),
            Self::DataCorruption | Self::NonLearner => Ok(()),
            Self::SerializableRead => member.probe_read(true).await.map_err(|s| s.to_string()),
            Self::LinearizableRead => member.probe_read(false).await.map_err(|s| s.to_string()),
        }
    }
}

/// Answers a request that is not gRPC, if `access` lets it.
pub async fn serve(member: &impl Member, access: &Access, head: &request::Parts) -> Response<Body> {
    if let Some(host) = access.refused_host(head) {
        log::warn!("rejecting HTTP request to prevent DNS rebinding attacks", "host" => host);
        return go_error(
            StatusCode::MISDIRECTED_REQUEST,
            &access::rebinding_text(host),
        );
    }
    let mut response = match (&head.method, head.uri.path()) {
        (&Method::OPTIONS, _) => Response::new(Body::EMPTY),
        (_, "/version") => only_get(head, async { version(member) }).await,
        (_, _) => observe(member, head).await,
    };
    access.allow_origin(&head.headers, response.headers_mut());
    response
}

/// Answers a request on a port for metrics and health alone, which everybody may use.
pub async fn observe(member: &impl Member, head: &request::Parts) -> Response<Body> {
    let query = Query(head.uri.query().unwrap_or_default());
    let path = head.uri.path();
    let known = |checks: &'static [Check], prefix: &str| {
        let name = path.strip_prefix(prefix)?;
        if name.is_empty() {
            return Some(checks);
        }
        let name = name.strip_prefix('/')?;
        checks
            .iter()
            .position(|check| check.name() == name)
            .map(|at| &checks[at..=at])
    };
    if let Some(checks) = known(Check::LIVEZ, "/livez") {
        return only_get(head, checked(member, "livez", path, checks, &query)).await;
    }
    if let Some(checks) = known(Check::READYZ, "/readyz") {
        return only_get(head, checked(member, "readyz", path, checks, &query)).await;
    }
    match path {
        "/health" => only_get(head, health(member, &query)).await,
        "/metrics" => metrics(member),
        _ => go_error(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

async fn only_get(
    head: &request::Parts,
    answer: impl Future<Output = Response<Body>>,
) -> Response<Body> {
    if head.method == Method::GET {
        return answer.await;
    }
    let mut response = go_error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET"));
    response
}

fn version(member: &impl Member) -> Response<Body> {
    let cluster = member
        .cluster_version()
        .unwrap_or_else(|| "not_decided".to_owned());
    let storage = member
        .storage_version()
        .unwrap_or_else(|| "unknown".to_owned());
    let body = format!(
        r#"{{"etcdserver":{},"etcdcluster":{},"storage":{}}}"#,
        json!(ETCD_VERSION),
        json!(cluster),
        json!(storage)
    );
    respond(StatusCode::OK, JSON, body)
}

fn metrics(member: &impl Member) -> Response<Body> {
    let mut text = String::new();
    member.write_metrics(&mut text);
    respond(StatusCode::OK, METRICS, text)
}

async fn health(member: &impl Member, query: &Query<'_>) -> Response<Body> {
    let reason = unhealthy(member, query).await;
    member.health_checked("health", "", reason.is_none());
    let healthy = if reason.is_none() { "true" } else { "false" };
    let reason = reason.unwrap_or_default();
    let body = format!(r#"{{"health":"{healthy}","reason":{}}}"#, json!(reason));
    if reason.is_empty() {
        return respond(StatusCode::OK, TEXT, body);
    }
    log::warn!("/health error", "output" => body.as_str(), "status-code" => 503);
    go_error(StatusCode::SERVICE_UNAVAILABLE, &body)
}

/// Why the member is not healthy, if so.
async fn unhealthy(member: &impl Member, query: &Query<'_>) -> Option<String> {
    for raised in member.alarms() {
        let alarm = AlarmType::try_from(raised.alarm);
        let name = alarm.map_or("UNKNOWN", |alarm| alarm.as_str_name());
        if !query.has("exclude", name) {
            log::warn!("serving /health false due to an alarm", "alarm" => name);
            let known = matches!(alarm, Ok(AlarmType::Nospace | AlarmType::Corrupt));
            return Some(format!("ALARM {}", if known { name } else { "UNKNOWN" }));
        }
    }
    let serializable = query.first("serializable") == Some("true");
    if !serializable && !member.has_leader() {
        log::warn!("serving /health false; no leader");
        return Some("RAFT NO LEADER".to_owned());
    }
    let error = member.probe_read(serializable).await.err()?;
    log::warn!("serving /health false; Range fails", "error" => error.to_string());
    Some(format!("RANGE ERROR:{error}"))
}

async fn checked(
    member: &impl Member,
    kind: &'static str,
    path: &str,
    checks: &[Check],
    query: &Query<'_>,
) -> Response<Body> {
    let mut report = String::new();
    let mut failed = false;
    let whole = path.len() == kind.len() + 1;
    for &check in checks {
        if whole && query.has("exclude", check.name()) {
            continue;
        }
        let outcome = check.run(member).await;
        member.health_checked(kind, check.name(), outcome.is_ok());
        match outcome {
            Ok(()) => report.push_str(&format!("[+]{} ok\n", check.name())),
            Err(error) => {
                failed = true;
                report.push_str(&format!("[-]{} failed: {error}\n", check.name()));
            }
        }
    }
    if failed {
        log::error!(
            "Health check error",
            "path" => path,
            "reason" => report.as_str(),
            "status-code" => 503,
        );
        return go_error(StatusCode::SERVICE_UNAVAILABLE, &report);
    }
    let body = if query.first("verbose").is_some() {
        report + "ok\n"
    } else {
        "ok\n".to_owned()
    };
    let mut response = respond(StatusCode::OK, TEXT, body);
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn respond(code: StatusCode, content_type: HeaderValue, body: String) -> Response<Body> {
    let mut response = Response::new(Body::plain(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// What Go's `http.Error` sends.
fn go_error(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = respond(code, TEXT, format!("{text}\n"));
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A query string. Names and values in use need no percent-decoding: they are plain words.
struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    fn has(&self, name: &str, value: &str) -> bool {
        self.pairs().any(|pair| pair == (name, value))
    }

    fn first(&self, name: &str) -> Option<&'a str> {
        self.pairs().find(|pair| pair.0 == name).map(|pair| pair.1)
    }
}

#[cfg(test)]
mod tests {
    use core::cell::RefCell;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};

    use ringkv_engine::error::ApiError;

    use super::*;
    use crate::pb::etcdserverpb::AlarmMember;
    use crate::wire::Status;

    #[derive(Default)]
    struct Sick {
        alarms: Vec<AlarmType>,
        leaderless: bool,
        learner: bool,
        unreadable: bool,
        counted: RefCell<Vec<(&'static str, &'static str, bool)>>,
    }

    impl Member for Sick {
        fn cluster_version(&self) -> Option<String> {
            None
        }
        fn storage_version(&self) -> Option<String> {
            None
        }
        fn alarms(&self) -> Vec<AlarmMember> {
            let raised = self.alarms.iter();
            raised
                .map(|&alarm| AlarmMember {
                    member_id: 1,
                    alarm: alarm as i32,
                })
                .collect()
        }
        fn has_leader(&self) -> bool {
            !self.leaderless
        }
        fn is_learner(&self) -> bool {
            self.learner
        }
        async fn probe_read(&self, serializable: bool) -> Result<(), Status> {
            let fails = self.unreadable || (self.leaderless && !serializable);
            if fails {
                Err(ApiError::Timeout.into())
            } else {
                Ok(())
            }
        }
        fn health_checked(&self, kind: &'static str, check: &'static str, passed: bool) {
            self.counted.borrow_mut().push((kind, check, passed));
        }
        fn write_metrics(&self, _out: &mut String) {}
    }

    /// Code and body of a GET.
    fn get(member: &Sick, target: &str) -> (u16, String) {
        let (head, ()) = http::Request::get(target).body(()).unwrap().into_parts();
        let response = answer(member, &Access::default(), &head);
        let code = response.status().as_u16();
        let Body::Whole { bytes, .. } = response.into_body() else {
            panic!("a plain answer is one piece")
        };
        (
            code,
            String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap(),
        )
    }

    fn answer(member: &Sick, access: &Access, head: &request::Parts) -> Response<Body> {
        match pin!(serve(member, access, head)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) => response,
            Poll::Pending => panic!("nothing to wait for"),
        }
    }

    fn unhealthy(reason: &str) -> (u16, String) {
        (
            503,
            format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n"),
        )
    }

    fn healthy() -> (u16, String) {
        (200, r#"{"health":"true","reason":""}"#.to_owned())
    }

    #[test]
    fn alarms_make_a_member_unhealthy_unless_excluded() {
        let member = Sick {
            alarms: vec![AlarmType::Nospace],
            ..Sick::default()
        };
        assert_eq!(get(&member, "/health"), unhealthy("ALARM NOSPACE"));
        assert_eq!(
            get(&member, "/health?exclude=CORRUPT"),
            unhealthy("ALARM NOSPACE")
        );
        assert_eq!(
            get(&member, "/health?exclude=CORRUPT&exclude=NOSPACE"),
            healthy()
        );
        let alarms = vec![AlarmType::Nospace, AlarmType::Corrupt];
        let member = Sick {
            alarms,
            ..Sick::default()
        };
        assert_eq!(
            get(&member, "/health?exclude=NOSPACE"),
            unhealthy("ALARM CORRUPT")
        );
        let report = "[-]data_corruption failed: alarm activated: CORRUPT\n\n";
        assert_eq!(
            get(&member, "/readyz/data_corruption"),
            (503, report.to_owned())
        );
        assert_eq!(get(&member, "/livez"), (200, "ok\n".to_owned()));
    }

    #[test]
    fn without_a_leader_only_serializable_reads_are_healthy() {
        let member = Sick {
            leaderless: true,
            ..Sick::default()
        };
        assert_eq!(get(&member, "/health"), unhealthy("RAFT NO LEADER"));
        assert_eq!(get(&member, "/health?serializable=true"), healthy());
        let failed = "[-]linearizable_read failed: etcdserver: request timed out\n";
        let report = format!(
            "[+]data_corruption ok\n[+]serializable_read ok\n{failed}[+]non_learner ok\n\n"
        );
        assert_eq!(get(&member, "/readyz"), (503, report));
        assert_eq!(get(&member, "/readyz?exclude=linearizable_read").0, 200);
    }

    #[test]
    fn a_failed_read_is_named() {
        let member = Sick {
            unreadable: true,
            ..Sick::default()
        };
        let reason = "RANGE ERROR:etcdserver: request timed out";
        assert_eq!(get(&member, "/health"), unhealthy(reason));
        assert_eq!(get(&member, "/livez").0, 503);
        let counted = member.counted.borrow();
        assert_eq!(
            *counted,
            [("health", "", false), ("livez", "serializable_read", false)]
        );
    }

    #[test]
    fn a_learner_is_alive_but_not_ready() {
        let member = Sick {
            learner: true,
            ..Sick::default()
        };
        assert_eq!(get(&member, "/livez").0, 200);
        let report = "[-]non_learner failed: not supported for learner\n\n";
        assert_eq!(
            get(&member, "/readyz/non_learner"),
            (503, report.to_owned())
        );
    }

    #[test]
    fn versions_that_are_not_known_are_said_as_etcd_does() {
        let body = r#"{"etcdserver":"3.7.1","etcdcluster":"not_decided","storage":"unknown"}"#;
        assert_eq!(get(&Sick::default(), "/version"), (200, body.to_owned()));
    }

    #[test]
    fn browsers_are_told_which_origins_may_call() {
        let ask = |origins: &[&str], origin: &'static str| {
            let request = http::Request::builder().method("OPTIONS").uri("/health");
            let (head, ()) = request
                .header("origin", origin)
                .body(())
                .unwrap()
                .into_parts();
            let origins = origins.iter().map(ToString::to_string).collect();
            let access = Access {
                origins,
                ..Access::default()
            };
            let response = answer(&Sick::default(), &access, &head);
            assert_eq!(response.status(), 200);
            let allowed = response.headers().get("access-control-allow-origin");
            allowed.map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(ask(&[], "http://a").as_deref(), Some("*"));
        assert_eq!(ask(&["*"], "http://a").as_deref(), Some("*"));
        assert_eq!(ask(&["http://a"], "http://a").as_deref(), Some("http://a"));
        assert_eq!(ask(&["http://a"], "http://b"), None);
    }

    #[test]
    fn hosts_that_are_not_on_the_whitelist_are_refused() {
        let ask = |host: &'static str| {
            let request = http::Request::get("/version").header("host", host);
            let (head, ()) = request.body(()).unwrap().into_parts();
            let access = Access {
                hosts: vec!["a.test".to_owned()],
                ..Access::default()
            };
            answer(&Sick::default(), &access, &head).status().as_u16()
        };
        assert_eq!(ask("a.test:2379"), 200);
        assert_eq!(ask("a.test"), 200);
        assert_eq!(ask("b.test"), 421);
    }
}
