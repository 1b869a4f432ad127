//! Values of flags: URLs, durations, booleans and numbers, read as Go reads them.

use core::fmt;
use core::time::Duration;

use super::flags::{GATES, Kind};

/// Scheme of a listener or member URL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scheme {
    /// TCP.
    Http,
    /// TCP with TLS.
    Https,
    /// Unix socket.
    Unix,
    /// Unix socket with TLS.
    Unixs,
}

impl Scheme {
    const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Unix => "unix",
            Self::Unixs => "unixs",
        }
    }

    /// Whether connections are encrypted.
    #[must_use]
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Unixs)
    }

    /// Whether it is a unix socket.
    #[must_use]
    pub const fn is_unix(self) -> bool {
        matches!(self, Self::Unix | Self::Unixs)
    }
}

/// A listener or member URL: `scheme://address`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Url {
    /// Before `://`.
    pub scheme: Scheme,
    /// `host:port`, or a path for unix sockets.
    pub address: String,
}

impl Url {
    /// Reads one URL.
    ///
    /// # Errors
    /// etcd's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(scheme_error(text));
        };
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || scheme.contains('.') {
            let reason = "first path segment in URL cannot contain colon";
            return Err(format!("parse {text:?}: {reason}"));
        }
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(scheme_error(text)),
        };
        let address = rest.strip_prefix("//").unwrap_or(rest);
        if scheme.is_unix() {
            return Ok(Self {
                scheme,
                address: address.to_owned(),
            });
        }
        let (host_port, path) = address
            .find('/')
            .map_or((address, ""), |at| address.split_at(at));
        if split_host_port(host_port).is_none() {
            return Err(format!(
                r#"URL address does not have the form "host:port": {text}"#
            ));
        }
        if !path.is_empty() {
            return Err(format!("URL must not contain a path: {text}"));
        }
        Ok(Self {
            scheme,
            address: host_port.to_owned(),
        })
    }

    /// Reads a comma-separated list; sorted, without duplicates.
    ///
    /// # Errors
    /// etcd's text for the first that is none.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let mut urls = text
            .split(',')
            .map(Self::parse)
            .collect::<Result<Vec<_>, _>>()?;
        urls.sort_by_cached_key(Self::to_string);
        urls.dedup();
        Ok(urls)
    }

    /// Host without brackets, and port; `None` for unix sockets.
    #[must_use]
    pub fn host_port(&self) -> Option<(&str, &str)> {
        if self.scheme.is_unix() {
            None
        } else {
            split_host_port(&self.address)
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.address)
    }
}

fn scheme_error(text: &str) -> String {
    format!("URL scheme must be http, https, unix, or unixs: {text}")
}

fn split_host_port(address: &str) -> Option<(&str, &str)> {
    let (host, port) = address.rsplit_once(':')?;
    if let Some(bracketed) = host.strip_prefix('[') {
        return Some((bracketed.strip_suffix(']')?, port));
    }
    (!host.contains(':')).then_some((host, port))
}

/// Whether `value` is one of `kind`.
///
/// # Errors
/// The reason in the words of Go or etcd.
pub fn check(kind: Kind, value: &str) -> Result<(), String> {
    let parse_error = || "parse error".to_owned();
    match kind {
        Kind::Bool => parse_bool(value).map(drop).ok_or_else(parse_error),
        Kind::Int => check_number(value.parse::<i64>()),
        Kind::Uint | Kind::Uint64 => check_number(value.parse::<u64>()),
        Kind::Uint32 => value.parse::<u32>().map(drop).map_err(|error| {
            let reason = match error.kind() {
                core::num::IntErrorKind::PosOverflow => "value out of range",
                _ => "invalid syntax",
            };
            format!("strconv.ParseUint: parsing {value:?}: {reason}")
        }),
        Kind::Duration => parse_duration(value).map(drop).ok_or_else(parse_error),
        Kind::Text | Kind::List => Ok(()),
        Kind::Urls => Url::parse_list(value).map(drop),
        Kind::Choice(words) if words.contains(&value) => Ok(()),
        Kind::Choice(words) if words.contains(&"gone") => Err(format!("invalid value {value:?}")),
        Kind::Choice(_) => Err("invalid value".to_owned()),
        Kind::Gates => parse_gates(value).map(drop),
    }
}

fn check_number<T>(parsed: Result<T, core::num::ParseIntError>) -> Result<(), String> {
    match parsed.map_err(|error| *error.kind()) {
        Ok(_) => Ok(()),
        Err(core::num::IntErrorKind::PosOverflow | core::num::IntErrorKind::NegOverflow) => {
            Err("value out of range".to_owned())
        }
        Err(_) => Err("parse error".to_owned()),
    }
}

/// Go's `strconv.ParseBool`.
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `time.ParseDuration` for durations that are not negative: `1h30m`, `1.5s`, `300ms`, `0`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let (number, after) =
            rest.split_at(rest.find(|c: char| c.is_ascii_alphabetic() || c == 'µ')?);
        let unit_len = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        nanos = nanos.checked_add(parse_scaled(number, unit_nanos(unit)?)?)?;
        rest = after;
    }
    // Go's durations end at 2^63 ns, some 292 years.
    let nanos = i64::try_from(nanos).ok()?;
    Some(Duration::from_nanos(nanos.unsigned_abs()))
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// A decimal number times `unit`, rounded down.
fn parse_scaled(number: &str, unit: u64) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits_only = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits_only(whole) || !digits_only(fraction) {
        return None;
    }
    let unit = u128::from(unit);
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut scaled = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        scaled = scaled.checked_add(place * u128::from(digit - b'0'))?;
    }
    Some(scaled)
}

/// Reads `Name=bool` pairs over the defaults; every gate is in the result, by name.
///
/// # Errors
/// What etcd says of the first wrong one.
pub fn parse_gates(text: &str) -> Result<Vec<(&'static str, bool)>, String> {
    let mut gates = GATES.to_vec();
    for pair in text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("missing bool value for {pair}"))?;
        let (name, value) = (name.trim(), value.trim());
        let parsed = parse_bool(value).ok_or_else(|| {
            let reason = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
            format!("invalid value of {name}={value}, err: {reason}")
        })?;
        let gate = gates.iter_mut().find(|gate| gate.0 == name);
        gate.ok_or_else(|| format!("unrecognized feature gate: {name}"))?
            .1 = parsed;
    }
    Ok(gates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_refused_as_etcd_does() {
        let url = Url::parse(" http://127.0.0.1:2379").unwrap();
        assert_eq!(url.to_string(), "http://127.0.0.1:2379");
        assert_eq!(url.host_port(), Some(("127.0.0.1", "2379")));
        assert_eq!(
            Url::parse("https://[::1]:1").unwrap().host_port(),
            Some(("::1", "1"))
        );
        assert_eq!(
            Url::parse("unix:///tmp/a.sock").unwrap().address,
            "/tmp/a.sock"
        );
        assert_eq!(Url::parse("unixs://a.sock").unwrap().host_port(), None);
        let error = |text| Url::parse(text).unwrap_err();
        assert_eq!(
            error("foo"),
            "URL scheme must be http, https, unix, or unixs: foo"
        );
        assert_eq!(
            error("127.0.0.1:1"),
            r#"parse "127.0.0.1:1": first path segment in URL cannot contain colon"#
        );
        assert_eq!(
            error("http://host"),
            r#"URL address does not have the form "host:port": http://host"#
        );
        assert_eq!(
            error("http://h:1/x"),
            "URL must not contain a path: http://h:1/x"
        );
        let list = Url::parse_list("http://b:1,http://a:2,http://b:1").unwrap();
        assert_eq!(
            list.iter().map(Url::to_string).collect::<Vec<_>>(),
            ["http://a:2", "http://b:1"]
        );
    }

    #[test]
    fn durations_are_gos() {
        let cases = [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("300ms", Some(300_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            ("2h45m", Some(9_900_000_000_000)),
            (".5s", Some(500_000_000)),
            ("1us", Some(1_000)),
            ("1µs", Some(1_000)),
            ("5", None),
            ("", None),
            ("s", None),
            (".s", None),
            ("1x", None),
            ("-1s", None),
            ("9999999h", None),
        ];
        for (text, nanos) in cases {
            assert_eq!(
                parse_duration(text),
                nanos.map(Duration::from_nanos),
                "{text}"
            );
        }
    }

    #[test]
    fn gates_start_from_their_defaults() {
        let gates = parse_gates("LeaseCheckpoint=true,FastLeaseKeepAlive=false").unwrap();
        let get = |name| gates.iter().find(|gate| gate.0 == name).unwrap().1;
        assert!(get("LeaseCheckpoint") && !get("FastLeaseKeepAlive"));
        assert!(get("TxnModeWriteWithSharedBuffer") && !get("CompactHashCheck"));
        assert_eq!(
            parse_gates("Foo=true").unwrap_err(),
            "unrecognized feature gate: Foo"
        );
        assert_eq!(
            parse_gates("Foo").unwrap_err(),
            "missing bool value for Foo"
        );
    }
}
