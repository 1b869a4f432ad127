//! `--help`, the usage after a wrong flag, and `--version`.

use core::fmt::Write;

use super::flags::{FLAGS, Flag, Group, Kind, Support};
use crate::http::ETCD_VERSION;

const USAGE: &str = "Usage:

  etcd [flags]
    Start a server.

  etcd --version
    Print the version.

  etcd -h | --help
    Print all flags.
";

/// Widest line of the help, columns.
const COLUMNS: usize = 100;
/// Indentation of a flag's text.
const INDENT: &str = "    ";

/// Prints the usage to stderr, after `error` if there is one.
pub fn print_usage(error: &str) {
    eprintln!("{error}\n{USAGE}");
}

/// Prints all flags to stdout.
pub fn print_help() {
    print!("{}", help_text());
}

/// What `--version` prints. The first line is etcd's, because scripts look for it.
#[must_use]
pub fn version_text() -> String {
    let commit = option_env!("RINGKV_COMMIT").unwrap_or("not recorded");
    format!(
        "etcd Version: {ETCD_VERSION}\nringkv Version: {}\nGit SHA: {commit}\nOS/Arch: {}/{}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}

fn help_text() -> String {
    let mut text = format!(
        "{USAGE}
Each flag has an environment variable: ETCD_ and its name in capitals, with _ for each dash
(--data-dir: ETCD_DATA_DIR). Flags win over variables. Times are written as 300ms, 1m30s, 2h.
"
    );
    for group in Group::ALL {
        writeln!(text, "\n{}:", group.title()).expect("a String takes everything");
        FLAGS
            .iter()
            .filter(|flag| flag.group == group)
            .for_each(|flag| describe(flag, &mut text));
    }
    text
}

fn describe(flag: &Flag, text: &mut String) {
    let default = match (flag.kind, flag.name) {
        (Kind::Bool, _) => flag.default.to_owned(),
        _ => format!("'{}'", flag.default),
    };
    writeln!(text, "  --{} {default}", flag.name).expect("a String takes everything");
    let note = match flag.support {
        Support::Supported => "",
        Support::Ignored => " [no effect]",
        Support::Refused => " [not supported yet]",
    };
    wrap(&format!("{}{note}", flag.help), text);
}

/// Breaks `line` between words so that no line is longer than [`COLUMNS`], where words allow it.
fn wrap(line: &str, text: &mut String) {
    let mut column = 0;
    for word in line.split(' ') {
        let width = word.chars().count();
        if column == 0 {
            text.push_str(INDENT);
            column = INDENT.len() + width;
        } else if column + 1 + width > COLUMNS {
            text.push('\n');
            text.push_str(INDENT);
            column = INDENT.len() + width;
        } else {
            text.push(' ');
            column += 1 + width;
        }
        text.push_str(word);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_flag_once_and_stays_within_its_columns() {
        let text = help_text();
        for flag in FLAGS {
            let heading = format!("\n  --{} ", flag.name);
            assert_eq!(text.matches(&heading).count(), 1, "{}", flag.name);
        }
        let long = text.lines().filter(|line| line.chars().count() > COLUMNS);
        // A default is never broken.
        assert!(
            long.clone()
                .all(|line| line.starts_with("  --log-rotation-config-json"))
        );
        assert_eq!(long.count(), 1);
    }

    #[test]
    fn the_first_line_of_the_version_is_etcds() {
        assert_eq!(version_text().lines().next(), Some("etcd Version: 3.7.1"));
    }
}
