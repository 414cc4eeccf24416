//! Finding the comments in Rust source.

/// The comments of `source`, each with its line number from 1; a block comment gives one entry a line.
///
/// Knows strings, raw strings and character literals, so that `"http://"` is no comment. A lifetime is not a literal.
pub(super) fn comments(source: &str) -> Vec<(usize, &str)> {
    let bytes = source.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        let len = if rest.starts_with("//") {
            let len = rest.find('\n').unwrap_or(rest.len());
            push(source, at, len, &mut found);
            len
        } else if rest.starts_with("/*") {
            let len = block_comment_len(rest);
            push(source, at, len, &mut found);
            len
        } else if let Some(len) = literal_len(source, at) {
            len
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
        at += len;
    }
    found
}

fn push<'a>(source: &'a str, at: usize, len: usize, found: &mut Vec<(usize, &'a str)>) {
    let first = source[..at].matches('\n').count() + 1;
    found.extend(source[at..at + len].lines().enumerate().map(|(i, line)| (first + i, line)));
}

/// Length in bytes of the block comment that `rest` starts with; they nest.
fn block_comment_len(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        let here = &rest.as_bytes()[at..];
        if here.is_empty() {
            return at;
        } else if here.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if here.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
}

/// Length in bytes of the string or character literal at `at`, if one starts there.
fn literal_len(source: &str, at: usize) -> Option<usize> {
    let rest = &source[at..];
    let bytes = rest.as_bytes();
    match bytes[0] {
        b'"' => Some(quoted_len(bytes, b'"')),
        b'r' if !source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            || source[..at].ends_with('b') =>
        {
            let hashes = rest[1..].bytes().take_while(|b| *b == b'#').count();
            let opening = 1 + hashes + 1;
            if bytes.get(1 + hashes) != Some(&b'"') {
                return None;
            }
            let closing = format!("\"{}", "#".repeat(hashes));
            Some(
                rest[opening..]
                    .find(&closing)
                    .map_or(rest.len(), |end| opening + end + closing.len()),
            )
        }
        b'\'' => {
            let mut chars = rest[1..].chars();
            match (chars.next()?, chars.next()) {
                ('\\', _) => Some(quoted_len(bytes, b'\'')),
                (c, Some('\'')) => Some(1 + c.len_utf8() + 1),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Length of a literal that starts with `quote` and ends at the next one without a backslash before it.
fn quoted_len(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_characters_are_not_comments() {
        let source = r##"let url = "http://x"; // one
let raw = r#"// " not"#; let c = '"'; let e = '\''; /* two */
fn f<'a>(x: &'a str) {} // three
let b = br"//"; let s = "\"//"; let for_r = 1; // four"##;
        assert_eq!(
            comments(source),
            [(1, "// one"), (2, "/* two */"), (3, "// three"), (4, "// four")]
        );
    }

    #[test]
    fn block_comments_nest_and_span_lines() {
        assert_eq!(comments("/* a /* b */\nc */ d"), [(1, "/* a /* b */"), (2, "c */")]);
    }
}
