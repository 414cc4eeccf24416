//! From Jinja's source text to minijinja's.
//!
//! - Jinja reads `\r\n` and `\r` as `\n`, everywhere.
//! - Of all tags, `{% raw %}` alone keeps the newline behind it whatever `trim_blocks` says; in
//!   minijinja it has to say so: `{% raw +%}`.
//! - `{% generation %}`: transformers' extension renders the body of the tag where it stands, in a
//!   scope of its own, and notes where it began and ended if asked to. minijinja has no custom
//!   tags, but `{% with %}` without variables renders its body in a scope of its own and takes part
//!   in whitespace control the same way. So the two tag names are exchanged and nothing else:
//!   delimiters, their `-` and `+`, and line numbers stay.

/// `source` with the same meaning for minijinja as it has for transformers.
pub(super) fn translate(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    let mut at = 0;
    while let Some(open) = find(&source, at, "{") {
        let rest = &source[open..];
        if rest.starts_with("{#") {
            let Some(close) = find(&source, open + 2, "#}") else { break };
            at = close + 2;
        } else if rest.starts_with("{{") {
            at = end_of_expression(&source, open + 2, "}}");
        } else if rest.starts_with("{%") {
            let name = tag_name(&source, open + 2);
            let end = end_of_expression(&source, name.end, "%}");
            let replacement = match &source[name.clone()] {
                "generation" => "with",
                "endgeneration" => "endwith",
                // Not if it ends with `-%}`, which takes the newline away.
                "raw" if source[name.end..end].trim() == "%}" => "raw +",
                other => other,
            };
            out.push_str(&source[copied..name.start]);
            out.push_str(replacement);
            copied = name.end;
            at = end;
            if &source[name.clone()] == "raw" {
                if replacement != "raw" {
                    copied = end - "%}".len();
                }
                at = end_of_raw(&source, end);
            }
        } else {
            at = open + 1;
        }
    }
    out.push_str(&source[copied..]);
    out
}

fn find(source: &str, from: usize, needle: &str) -> Option<usize> {
    source.get(from..)?.find(needle).map(|at| from + at)
}

/// The first word of a tag whose delimiter ends at `from`.
fn tag_name(source: &str, from: usize) -> std::ops::Range<usize> {
    let rest = &source[from..];
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).trim_start();
    let start = source.len() - rest.len();
    let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    start..start + len
}

/// Where the delimiter that ends an expression ends; string literals may contain it.
fn end_of_expression(source: &str, from: usize, close: &str) -> usize {
    let bytes = source.as_bytes();
    let mut at = from;
    let mut quote = None;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if bytes[at..].starts_with(close.as_bytes()) => return at + close.len(),
            _ => {}
        }
        at += 1;
    }
    source.len()
}

/// Where the `endraw` tag after `from` begins.
fn end_of_raw(source: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(open) = find(source, at, "{%") {
        if &source[tag_name(source, open + 2)] == "endraw" {
            return open;
        }
        at = open + 2;
    }
    source.len()
}

#[cfg(test)]
mod tests {
    use super::translate;

    #[test]
    fn tags_are_exchanged_with_their_whitespace_control() {
        let source = "{%- generation -%}a{% endgeneration %}{%generation%}b{%+ endgeneration -%}";
        let expected = "{%- with -%}a{% endwith %}{%with%}b{%+ endwith -%}";
        assert_eq!(translate(source), expected);
    }

    #[test]
    fn text_strings_comments_and_raw_blocks_stay() {
        for source in [
            "generation {generation}",
            "{# {% generation %} #}x",
            "{{ '{% generation %}' }}",
            "{{ \"it's {% generation %}\" }}",
            r"{{ 'it\'s {% generation %}' }}",
            "{% raw -%}{% generation %}{% endraw %}",
            "{% set generation = 1 %}{% if x == '%} {% generation %}' %}{% endif %}",
            "{% generations %}",
            "{# unclosed {% generation %}",
            "{% raw -%} unclosed {% generation %}",
            "{",
            "{%",
        ] {
            assert_eq!(translate(source), source);
        }
    }

    #[test]
    fn a_raw_block_keeps_its_first_newline() {
        let source = "{%- raw %}\n{{{% endraw %}{% generation %}\u{e9}{% endgeneration %}";
        assert_eq!(translate(source), "{%- raw +%}\n{{{% endraw %}{% with %}\u{e9}{% endwith %}");
    }

    #[test]
    fn lines_end_in_one_way() {
        assert_eq!(translate("a\r\nb\rc\n"), "a\nb\nc\n");
    }
}
