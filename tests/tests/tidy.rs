//! Layering and style of the tree, held by reading it.
//!
//! What the compiler and clippy hold is not repeated here. An exception stands in a list below with
//! its reason; the lists of sizes are ratchets: what stands there may shrink, not grow.

#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;

use source::{File, code, files, functions, is_test, line, modules, paths, read, words};

/// Each package, and which of the others it may depend on.
const PACKAGES: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("raft", &["engine"]),
    ("net", &["engine", "raft"]),
    ("bench", &[]),
    ("tools", &["engine", "raft"]),
    ("tests", &["engine", "raft", "net"]),
];

/// Packages that are sync and sans-IO: what they may not depend on, and not name outside tests.
const PURE: &[&str] = &["engine", "raft"];
const IMPURE_DEPENDENCIES: &[&str] = &[
    "glommio",
    "tokio",
    "io-uring",
    "rustix",
    "hyper",
    "http",
    "prost",
    "rand",
    "futures-channel",
];
const IMPURE_PATHS: &[&str] = &[
    "std::time",
    "std::thread",
    "std::net",
    "std::fs",
    "std::env",
    "std::process",
    "rand",
];
const IMPURE_WORDS: &[&str] = &[
    "Instant",
    "SystemTime",
    "async",
    "await",
    "HashMap",
    "HashSet",
];

/// Modules that name one above their own: (package, module, the other, why).
const UPWARD: &[(&str, &str, &str, &str)] = &[
    (
        "net",
        "pb",
        "wire",
        "generated messages and their conversions name each other",
    ),
    ("net", "http", "front", "they share the body of responses"),
    (
        "net",
        "maintenance",
        "node",
        "the services are parts of Node",
    ),
    ("net", "kv", "node", "the services are parts of Node"),
    ("net", "lease", "node", "the services are parts of Node"),
    ("net", "watch", "node", "the services are parts of Node"),
    ("net", "cluster", "node", "the services are parts of Node"),
    ("net", "metrics", "node", "it prints what Node knows"),
];

/// Files with unsafe code; each says in its module doc which protocol makes it sound.
const UNSAFE: &[&str] = &[
    "engine/src/index/node.rs",
    "engine/src/index/reclaim.rs",
    "engine/src/revtable/chunk.rs",
    // Sync for a cell that loom watches.
    "engine/tests/loom.rs",
];

const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
/// Without tests.
const FILE_LINES_MAX: usize = 600;
/// With tests, and without exception but for the ratchet.
const FILE_LINES_HARD_MAX: usize = 1000;

/// Functions over the limit: (file, function, lines).
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[
    ("raft/src/boot.rs", "restart", 71),
    ("engine/src/apply.rs", "execute", 95),
    ("engine/src/lease/tests.rs", "step", 74),
    ("engine/src/revtable.rs", "prune_slice", 88),
    ("engine/src/watch.rs", "create", 74),
];
/// Files over a limit: (file, lines that count).
const LONG_FILES: &[(&str, usize)] = &[
    ("engine/src/wal.rs", 647),
    ("engine/src/wal/recover.rs", 634),
    ("engine/src/watch/tests.rs", 1026),
];

/// Dependencies that only generated code names.
const BY_GENERATED_CODE: &[&str] = &["tonic_prost"];

/// Hosts that the tree names.
const HOSTS: &[&str] = &["github.com", "www.apache.org", "a.sock"];

fn rust_files() -> Vec<File> {
    let mut files = files();
    files.retain(|file| file.path.ends_with(".rs"));
    files
}

fn pass(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

/// The lines of a manifest's section, as (line, key, rest).
fn section(manifest: &str, wanted: impl Fn(&str) -> bool) -> Vec<(usize, &str, &str)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (at, line) in manifest.lines().enumerate() {
        if let Some(name) = line.strip_prefix('[') {
            inside = wanted(name.trim_end_matches(']'));
        } else if inside && !line.starts_with('#') && !line.is_empty() {
            let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
            found.push((at, &line[..end], &line[end..]));
        }
    }
    found
}

fn dependencies(manifest: &str) -> Vec<&str> {
    let all = section(manifest, |name| name.ends_with("dependencies"));
    all.into_iter().map(|(_, name, _)| name).collect()
}

#[test]
fn packages_depend_one_way() {
    let mut wrong = Vec::new();
    for (package, below) in PACKAGES {
        let manifest = read(&format!("{package}/Cargo.toml"));
        for name in dependencies(&manifest) {
            if let Some(ours) = name.strip_prefix("ringkv-") {
                if !below.contains(&ours) {
                    wrong.push(format!("{package} depends on {name}"));
                }
            } else if PURE.contains(package) && IMPURE_DEPENDENCIES.contains(&name) {
                wrong.push(format!("{package} is sans-IO and depends on {name}"));
            }
        }
        if !manifest.contains("[lints]\nworkspace = true\n") {
            wrong.push(format!("{package} does not inherit the workspace's lints"));
        }
    }
    let root = read("Cargo.toml");
    for (package, _) in PACKAGES {
        assert!(
            root.contains(&format!("\"{package}\"")),
            "{package} is a member"
        );
    }
    let members = root.lines().find(|line| line.starts_with("members"));
    let members = members.expect("a line of members").matches('"').count() / 2;
    assert_eq!(members, PACKAGES.len(), "every member stands in PACKAGES");
    pass(&wrong);
}

#[test]
fn dependencies_are_explained_and_used() {
    let root = read("Cargo.toml");
    let lines: Vec<&str> = root.lines().collect();
    let manifests: Vec<String> = PACKAGES
        .iter()
        .map(|(package, _)| read(&format!("{package}/Cargo.toml")))
        .collect();
    let used: BTreeSet<&str> = manifests
        .iter()
        .flat_map(|manifest| dependencies(manifest))
        .collect();
    let mut wrong = Vec::new();
    for (at, name, rest) in section(&root, |name| name == "workspace.dependencies") {
        if rest.contains("path = ") {
            continue; // a package of the workspace
        }
        if !lines[at - 1].starts_with('#') {
            wrong.push(format!(
                "Cargo.toml:{}: {name} has no comment above it",
                at + 1
            ));
        }
        if !used.contains(name) {
            wrong.push(format!("Cargo.toml:{}: no package uses {name}", at + 1));
        }
    }
    let rust = rust_files();
    for (manifest, (package, _)) in manifests.iter().zip(PACKAGES) {
        for (at, name, rest) in section(manifest, |name| name.ends_with("dependencies")) {
            if !rest.contains("workspace = true") {
                wrong.push(format!(
                    "{package}/Cargo.toml:{}: {name} is not inherited",
                    at + 1
                ));
            }
            let name = name.replace('-', "_");
            let mut own = rust.iter().filter(|file| file.path.starts_with(package));
            let named = own.any(|file| words(&file.text, &name).next().is_some());
            if !named && !BY_GENERATED_CODE.contains(&&*name) {
                wrong.push(format!(
                    "{package}/Cargo.toml:{}: {name} is not used",
                    at + 1
                ));
            }
        }
    }
    pass(&wrong);
}

/// The order of the `mod` lines in `lib.rs` is the layer order.
#[test]
fn modules_use_only_what_is_below() {
    let mut wrong = Vec::new();
    let mut excused = BTreeSet::new();
    for package in ["engine", "raft", "net"] {
        let lib = read(&format!("{package}/src/lib.rs"));
        let order: Vec<String> = modules(&lib, &code(&lib))
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let rank = |name: &str| order.iter().position(|other| other == name);
        for file in rust_files() {
            let Some(inner) = file.path.strip_prefix(&format!("{package}/src/")) else {
                continue;
            };
            let module = inner.split(['/', '.']).next().expect("a name");
            let (Some(own), false) = (rank(module), is_test(&file.path)) else {
                continue;
            };
            for (line, path) in paths(&source::without_tests(code(&file.text))) {
                let Some(used) = path.strip_prefix("crate::") else {
                    continue;
                };
                let used = used.split("::").next().expect("a name");
                let exception = UPWARD
                    .iter()
                    .position(|&(p, m, o, _)| (p, m, o) == (package, module, used));
                if rank(used).is_none_or(|used| used <= own) {
                    continue;
                } else if let Some(exception) = exception {
                    excused.insert(exception);
                } else {
                    wrong.push(format!("{}:{line}: {module} is below {used}", file.path));
                }
            }
        }
    }
    for (at, exception) in UPWARD.iter().enumerate() {
        if !excused.contains(&at) {
            wrong.push(format!("UPWARD: {exception:?} is no exception any more"));
        }
    }
    pass(&wrong);
}

/// Neither clock nor random number, thread, socket, file or environment; no order by hash.
#[test]
fn engine_and_raft_are_deterministic() {
    let mut wrong = Vec::new();
    for file in rust_files() {
        let pure = PURE
            .iter()
            .any(|package| file.path.starts_with(&format!("{package}/src/")));
        if !pure || is_test(&file.path) {
            continue;
        }
        let code = source::without_tests(code(&file.text));
        for (line, path) in paths(&code) {
            for banned in IMPURE_PATHS {
                if path == *banned || path.starts_with(&format!("{banned}::")) {
                    wrong.push(format!("{}:{line}: {path}", file.path));
                }
            }
        }
        for word in IMPURE_WORDS {
            for at in words(&code, word) {
                wrong.push(format!("{}:{}: {word}", file.path, line(&code, at)));
            }
        }
    }
    pass(&wrong);
}

#[test]
fn unsafe_code_is_where_it_is_expected() {
    let mut wrong = Vec::new();
    let mut with = BTreeSet::new();
    for file in rust_files() {
        let code = code(&file.text);
        let lines: Vec<&str> = file.text.lines().collect();
        for at in words(&code, "unsafe") {
            with.insert(file.path.clone());
            let after = code[at + 6..].trim_start();
            let wanted = match after.starts_with("fn") {
                true => "# Safety",
                false => "SAFETY:",
            };
            if !explained(&lines, line(&code, at) - 1, wanted) {
                wrong.push(format!("{}:{}: no {wanted}", file.path, line(&code, at)));
            }
        }
    }
    let expected: BTreeSet<String> = UNSAFE.iter().map(|&path| path.to_owned()).collect();
    for path in with.symmetric_difference(&expected) {
        wrong.push(format!("{path}: unsafe code differs from UNSAFE"));
    }
    for (package, _) in PACKAGES {
        if UNSAFE
            .iter()
            .any(|path| path.starts_with(&format!("{package}/src/")))
        {
            continue;
        }
        for file in rust_files() {
            let inner = file.path.strip_prefix(&format!("{package}/src/"));
            let is_root = matches!(inner, Some("lib.rs" | "main.rs"));
            if is_root && !file.text.contains("#![forbid(unsafe_code)]") {
                wrong.push(format!("{} does not forbid unsafe code", file.path));
            }
        }
    }
    pass(&wrong);
}

/// Whether the comment above the statement with line `at` (from 0) says what is wanted.
fn explained(lines: &[&str], at: usize, wanted: &str) -> bool {
    let is_comment = |line: &&&str| line.trim_start().starts_with("//");
    let above = lines[..=at].iter().rev();
    let statement = above.clone().take_while(|line| !is_comment(line)).count();
    let mut comment = above.skip(statement).take_while(is_comment);
    statement <= 5 && comment.any(|line| line.contains(wanted))
}

#[test]
fn functions_and_files_are_short() {
    let mut wrong = Vec::new();
    let mut long_functions = Vec::new();
    let mut long_files = Vec::new();
    for file in rust_files() {
        let code = code(&file.text);
        let code = match is_test(&file.path) {
            true => code,
            false => source::without_tests(code),
        };
        for (name, _, lines) in functions(&code) {
            if lines > FUNCTION_LINES_MAX {
                long_functions.push((file.path.clone(), name, lines));
            }
        }
        let all = file.text.lines().count();
        let tests_at = file.text.find("\n#[cfg(test)]\nmod tests {");
        let product = tests_at.map_or(all, |at| line(&file.text, at));
        if !is_test(&file.path) && product > FILE_LINES_MAX {
            long_files.push((file.path, product));
        } else if all > FILE_LINES_HARD_MAX {
            long_files.push((file.path, all));
        }
    }
    for (path, name, lines) in &long_functions {
        let listed = LONG_FUNCTIONS
            .iter()
            .find(|&&(p, n, _)| (p, n) == (path, name));
        if listed.is_none_or(|&(_, _, max)| *lines > max) {
            wrong.push(format!(
                "    (\"{path}\", \"{name}\", {lines}), // fn, {listed:?}"
            ));
        }
    }
    for (path, lines) in &long_files {
        let listed = LONG_FILES.iter().find(|&&(p, _)| p == path);
        if listed.is_none_or(|&(_, max)| *lines > max) {
            wrong.push(format!("    (\"{path}\", {lines}), // file, {listed:?}"));
        }
    }
    for (path, name, _) in LONG_FUNCTIONS {
        if !long_functions
            .iter()
            .any(|(p, n, _)| (p.as_str(), n.as_str()) == (path, name))
        {
            wrong.push(format!(
                "LONG_FUNCTIONS: {path} {name} is short now: take it off"
            ));
        }
    }
    for (path, _) in LONG_FILES {
        if !long_files.iter().any(|(p, _)| p == path) {
            wrong.push(format!("LONG_FILES: {path} is short now: take it off"));
        }
    }
    pass(&wrong);
}

#[test]
fn lines_fit_and_hold_no_leftovers() {
    // In two parts, so that this file has none of them.
    let machine = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
    ];
    let unfinished = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
    ];
    let macros = [
        concat!("to", "do!"),
        concat!("unimple", "mented!"),
        concat!("db", "g!"),
    ];
    let mut wrong = Vec::new();
    for file in files() {
        let rust = file.path.ends_with(".rs");
        for (at, line) in file.text.lines().enumerate() {
            let mut fail = |what: &str| {
                wrong.push(format!("{}:{}: {what}: {}", file.path, at + 1, line.trim()));
            };
            if rust && columns(line) > COLUMNS_MAX {
                fail("too long");
            }
            if rust && macros.iter().any(|name| line.contains(name)) {
                fail("leftover macro");
            }
            if machine.iter().any(|path| line.contains(path)) {
                fail("a machine's path");
            }
            for word in unfinished {
                if words(line, word).any(|at| !line[at + word.len()..].starts_with("(#")) {
                    fail("unfinished, without the number of an issue");
                }
            }
            for (at, _) in line.match_indices("://") {
                let host = &line[at + 3..];
                let end = host.find(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c));
                let host = host[..end.unwrap_or(host.len())].trim_end_matches('.');
                let top = host.rsplit('.').next().expect("a part");
                let named = host.contains('.') && top.chars().all(|c| c.is_ascii_alphabetic());
                if named && !HOSTS.contains(&host) {
                    fail("a host that HOSTS does not list");
                }
            }
        }
    }
    pass(&wrong);
}

/// Columns of a line; texts, which are not broken, count as nothing.
fn columns(line: &str) -> usize {
    let mut parts = line.split('"').peekable();
    let mut count = 0;
    let mut outside = true;
    while let Some(part) = parts.next() {
        if outside || parts.peek().is_none() && !line.ends_with('\\') {
            count += part.chars().count();
        }
        outside = !outside;
    }
    count
}

/// Every Rust file is a crate's root or declared by one that is reachable.
#[test]
fn every_file_is_compiled() {
    let all: BTreeSet<String> = rust_files().into_iter().map(|file| file.path).collect();
    let mut reached = BTreeSet::new();
    let mut open: Vec<String> = all.iter().filter(|path| is_root(path)).cloned().collect();
    while let Some(path) = open.pop() {
        if !all.contains(&path) || !reached.insert(path.clone()) {
            continue;
        }
        let text = read(&path);
        let (dir, name) = path.rsplit_once('/').expect("packages are directories");
        let inner = match is_root(&path) {
            true => dir.to_owned(),
            false => format!("{dir}/{}", name.trim_end_matches(".rs")),
        };
        open.extend(
            modules(&text, &code(&text))
                .into_iter()
                .map(|(name, given)| match given {
                    Some(given) => format!("{dir}/{given}"),
                    None => format!("{inner}/{name}.rs"),
                }),
        );
    }
    let lost: Vec<String> = all.difference(&reached).cloned().collect();
    pass(&lost);
}

fn is_root(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    matches!(
        parts[..],
        [_, "build.rs"]
            | [_, "src", "lib.rs" | "main.rs"]
            | [_, "src", "bin", _]
            | [_, "tests" | "benches" | "examples", _]
    )
}

/// The scanner itself, on what it could get wrong.
mod scanner {
    use super::source::{code, functions, modules, paths, without_tests};

    #[test]
    fn literals_and_comments_are_blanked() {
        let text = "a /* b /* c */ d */ \"e\\\"f\" r#\"g\"h\"# 'i' '\\'' b'j' &'k l // m\nn";
        let words = code(text);
        assert_eq!(words.len(), text.len());
        let left: Vec<&str> = words.split(|c: char| !c.is_alphanumeric()).collect();
        let left: Vec<&str> = left.into_iter().filter(|word| !word.is_empty()).collect();
        assert_eq!(left, ["a", "r", "b", "k", "l", "n"]);
    }

    #[test]
    fn tests_are_left_out() {
        let text = "a; #[cfg(test)] #[x] mod tests { b; } c { #[cfg(test)] d: e, f }";
        let left = without_tests(text.to_owned());
        let left: Vec<&str> = left.split_whitespace().collect();
        assert_eq!(left, ["a;", "c", "{", "f", "}"]);
    }

    #[test]
    fn functions_have_their_lengths() {
        let text = "trait A { fn b(); }\nfn c<D, E>(f: fn(G))\nwhere D: H, E: I,\n{\n}\n";
        assert_eq!(functions(text), [("c".to_owned(), 2, 4)]);
    }

    #[test]
    fn modules_are_found() {
        let text = "mod a;\nmod b { mod c; }\n#[path = \"d/e.rs\"]\nmod f;\npub mod g;";
        let found = modules(text, &code(text));
        let found: Vec<(&str, Option<&str>)> = found
            .iter()
            .map(|(name, path)| (name.as_str(), path.as_deref()))
            .collect();
        let expected = [
            ("a", None),
            ("b/c", None),
            ("f", Some("d/e.rs")),
            ("g", None),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn paths_are_spread_out() {
        let text = "use a::{b::{self, c}, d::*, e as f};\ng(h::i::<j>(), $crate::k);";
        let found = paths(text);
        let found: Vec<(usize, &str)> = found.iter().map(|(l, p)| (*l, p.as_str())).collect();
        let expected = [
            (1, "a::b::self"),
            (1, "a::b::c"),
            (1, "a::d::"),
            (1, "a::e"),
            (2, "h::i::"),
        ];
        assert_eq!(found, expected);
    }
}
