//! The tree's files, and Rust text as far as the rules need it: code without comments and literals,
//! code without tests, items with their bodies, and the paths that a file names.
//!
//! No parser: a scanner of tokens that keeps every byte's place, so that lines stay lines. A macro
//! that makes items hides them from it.

use std::fs;
use std::path::{Path, PathBuf};

/// One file, by its path from the root of the tree.
pub struct File {
    pub path: String,
    pub text: String,
}

/// Root of the tree.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the package lies in the tree").into()
}

/// All text files but those that `.gitignore` names, sorted.
pub fn files() -> Vec<File> {
    let ignored = fs::read_to_string(root().join(".gitignore")).expect("the root has a .gitignore");
    let ignored: Vec<&str> = ignored.lines().map(|line| line.trim_matches('/')).collect();
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of the tree") {
            let path = entry.expect("an entry of the tree").path();
            let name = path.strip_prefix(root()).expect("below the root");
            let name = name.to_str().expect("names are text").to_owned();
            if name == ".git" || ignored.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                found.push(File { path: name, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 100, "the tree was found");
    found
}

/// The text of one file.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// Whether a Rust file holds nothing but tests, benches or examples.
pub fn is_test(path: &str) -> bool {
    path.split('/')
        .any(|part| matches!(part, "tests" | "benches" | "examples") || part == "tests.rs")
}

/// The text with comments and the insides of literals as spaces: same length, same lines.
pub fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = if let Some(end) = comment_end(bytes, at) {
            blank(&mut out[at..end]);
            end
        } else if let Some((start, end)) = literal(bytes, at) {
            blank(&mut out[start..end]);
            end + 1
        } else if is_word(bytes[at]) {
            word_end(bytes, at)
        } else {
            at + 1
        };
        at = end;
    }
    String::from_utf8(out).expect("only whole characters were blanked")
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn word_end(bytes: &[u8], at: usize) -> usize {
    let len = bytes[at..].iter().position(|&byte| !is_word(byte));
    len.map_or(bytes.len(), |len| at + len)
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    let found = bytes[from..].windows(what.len()).position(|w| w == what);
    found.map_or(bytes.len(), |at| from + at)
}

fn comment_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes[at..].starts_with(b"//") {
        return Some(find(bytes, at, b"\n"));
    }
    if !bytes[at..].starts_with(b"/*") {
        return None;
    }
    let mut depth = 1;
    let mut end = at + 2;
    while depth > 0 && end < bytes.len() {
        if bytes[end..].starts_with(b"/*") {
            depth += 1;
            end += 2;
        } else if bytes[end..].starts_with(b"*/") {
            depth -= 1;
            end += 2;
        } else {
            end += 1;
        }
    }
    Some(end)
}

/// The inside of the string or character that begins here.
fn literal(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let rest = &bytes[at..];
    let prefix = [&b"br"[..], b"cr", b"b", b"c", b"r", b""]
        .into_iter()
        .find(|prefix| {
            let after = rest.get(prefix.len()).copied();
            rest.starts_with(prefix)
                && (after == Some(b'"')
                    || after == Some(b'#') && prefix.ends_with(b"r")
                    || after == Some(b'\'') && matches!(*prefix, b"" | b"b"))
        })?;
    let mut start = at + prefix.len();
    if prefix.ends_with(b"r") {
        let hashes = bytes[start..].iter().take_while(|&&b| b == b'#').count();
        start += hashes;
        if bytes.get(start) != Some(&b'"') {
            return None; // r#word
        }
        let mut close = vec![b'"'];
        close.resize(1 + hashes, b'#');
        let end = find(bytes, start + 1, &close);
        return Some((start + 1, (end + hashes).min(bytes.len())));
    }
    let quote = bytes[start];
    start += 1;
    if quote == b'\'' && bytes[start] != b'\\' {
        // A lifetime has no closing quote after its first character.
        let text = std::str::from_utf8(&bytes[start..]).expect("a quote is no part of a character");
        let width = text.chars().next().map_or(1, char::len_utf8);
        return (bytes.get(start + width) == Some(&b'\'')).then_some((start, start + width));
    }
    let mut end = start;
    while end < bytes.len() && bytes[end] != quote {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    Some((start, end.min(bytes.len())))
}

/// Number of the line that holds a byte, from 1.
pub fn line(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at]
        .iter()
        .filter(|&&b| b == b'\n')
        .count()
}

/// Where each word `word` begins.
pub fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| {
            let bytes = code.as_bytes();
            let before = at
                .checked_sub(1)
                .is_some_and(|before| is_word(bytes[before]));
            let after = bytes.get(at + word.len()).is_some_and(|&b| is_word(b));
            !before && !after
        })
}

/// End of the item, field or statement that begins here: past its block or its `;`, or for a field
/// past its `,`.
fn item_end(code: &str, from: usize, field: bool) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' if depth == 0 => return at,
            b')' | b']' => depth -= 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b';' if depth == 0 => return at + 1,
            b',' if depth == 0 && field => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Code without what is compiled for tests only.
pub fn without_tests(mut code: String) -> String {
    const MARK: &str = "#[cfg(test)]";
    while let Some(at) = code.find(MARK) {
        let mut start = at + MARK.len();
        while let Some(more) = code[start..].trim_start().strip_prefix("#[") {
            start = code.len() - more.len() + more.find(']').expect("an attribute ends") + 1;
        }
        let end = item_end(&code, start, is_field(&code[start..]));
        let mut bytes = code.into_bytes();
        blank(&mut bytes[at..end]);
        code = String::from_utf8(bytes).expect("items are whole characters");
    }
    code
}

/// Whether a field, and not an item or a statement, begins here.
fn is_field(code: &str) -> bool {
    let code = code.trim_start();
    let code = match code.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => &rest[rest.find(')').expect("closed") + 1..],
        Some(rest) => rest,
        None => code,
    };
    let code = code.trim_start();
    let rest = &code[word_end(code.as_bytes(), 0)..];
    rest.starts_with(':') && !rest.starts_with("::")
}

/// Name, first line and number of lines of each function with a body.
pub fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for at in words(code, "fn") {
        let name = code[at + 2..].trim_start();
        let name = &name[..word_end(name.as_bytes(), 0)];
        let end = item_end(code, at, false);
        if name.is_empty() || !code[..end].ends_with('}') {
            continue; // a pointer's type, or a declaration
        }
        let first = line(code, at);
        found.push((name.to_owned(), first, line(code, end - 1) - first + 1));
    }
    found
}

/// Module files that a file declares: (name, `#[path]`), with inline modules before the name.
pub fn modules(text: &str, code: &str) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    let mut inline: Vec<(&str, usize)> = Vec::new();
    for at in words(code, "mod") {
        inline.retain(|&(_, end)| at < end);
        let rest = code[at + 3..].trim_start();
        let name = &rest[..word_end(rest.as_bytes(), 0)];
        match rest[name.len()..].trim_start().as_bytes().first() {
            Some(b'{') => inline.push((name, item_end(code, at, false))),
            Some(b';') => {
                let above = text[..at].trim_end();
                let above = above.strip_suffix("pub").unwrap_or(above).trim_end();
                let path = above.strip_suffix("\"]").and_then(|attribute| {
                    let start = attribute.rfind("#[path = \"")?;
                    Some(attribute[start + 10..].to_owned()).filter(|path| !path.contains('"'))
                });
                let outer = inline.iter().map(|(name, _)| format!("{name}/"));
                found.push((outer.collect::<String>() + name, path));
            }
            _ => {}
        }
    }
    found
}

/// Every path with `::` in the code, `use` groups spread out, with its line.
pub fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < code.len() {
        let here = code.as_bytes()[at];
        let in_path = code[..at].ends_with(['$', ':']);
        if !is_word(here) {
            at += 1;
            continue;
        }
        let end = word_end(code.as_bytes(), at);
        if !in_path && code[end..].starts_with("::") {
            let mut tails = Vec::new();
            at = tree(code, at, String::new(), &mut tails).max(end);
            found.extend(tails);
        } else {
            at = end;
        }
    }
    found
}

/// Reads one path or `use` tree, and is its end.
fn tree(code: &str, mut at: usize, mut path: String, out: &mut Vec<(usize, String)>) -> usize {
    loop {
        let end = word_end(code.as_bytes(), at);
        path.push_str(&code[at..end]);
        at = end;
        if !code[at..].starts_with("::") {
            out.push((line(code, at), path));
            return at;
        }
        at += 2;
        path.push_str("::");
        if !code[at..].starts_with('{') {
            if code[at..].starts_with(is_path) {
                continue;
            }
            out.push((line(code, at), path)); // a glob, or a turbofish
            return at;
        }
        at += 1;
        loop {
            at = code.len() - code[at..].trim_start_matches([' ', '\n', ',', '*']).len();
            if !code[at..].starts_with(is_path) {
                return code[at..]
                    .find('}')
                    .map_or(code.len(), |close| at + close + 1);
            }
            at = tree(code, at, path.clone(), out);
            if code[at..].starts_with(" as ") {
                at = code[at..]
                    .find([',', '}'])
                    .map_or(code.len(), |next| at + next);
            }
        }
    }
}

fn is_path(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
