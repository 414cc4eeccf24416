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
//! - A macro whose body names `varargs` or `kwargs` takes any arguments. Minijinja's takes those it names, so it gets these
//!   two, and behind it `__py_macro` wraps it in something that fills them.
//! - Operators follow Python's rules: `expression`.

mod expression;

use self::expression::Inside;

/// What stands for `generation`.
const GENERATION: &str = "with __generation = __py_generation()";
/// What stands for `endgeneration`.
const END_GENERATION: &str = "set __generation = __py_end_generation() %}{% endwith";

/// `source` with the same meaning for minijinja as it has for transformers.
///
/// Both ends of `{% generation %}` call functions that note how much is written, see [`super::generation`].
pub(super) fn translate(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut macros: Vec<Macro> = Vec::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(open) = find(&source, at, "{") {
        let rest = &source[open..];
        if rest.starts_with("{#") {
            let Some(close) = find(&source, open + 2, "#}") else { break };
            at = close + 2;
        } else if rest.starts_with("{{") {
            let start = after_sign(&source, open + 2);
            let Some(mut inside) = Inside::read(&source, start, "}}") else {
                at = end_of_expression(&source, open + 2, "}}");
                continue;
            };
            at = inside.end;
            if let Some(text) = inside.output() {
                out.push_str(&source[copied..start]);
                out.push_str(&text);
                copied = inside.end;
            }
            note_surplus(&mut macros, &inside);
        } else if rest.starts_with("{%") {
            let name = tag_name(&source, open + 2);
            let end = end_of_expression(&source, name.end, "%}");
            let tag = &source[name.clone()];
            out.push_str(&source[copied..name.start]);
            copied = name.start;
            at = end;
            match tag {
                "generation" | "endgeneration" => {
                    out.push_str(if tag == "generation" { GENERATION } else { END_GENERATION });
                    copied = name.end;
                }
                "raw" => {
                    // Not if it ends with `-%}`, which takes the newline away.
                    if source[name.end..end].trim() == "%}" {
                        out.push_str("raw +");
                        copied = end - "%}".len();
                    }
                    at = end_of_raw(&source, end);
                }
                "endmacro" => {
                    if let Some(ended) = macros.pop().filter(|ended| ended.names_surplus) {
                        // Before the others, where arguments without defaults belong.
                        if let Some(at) = ended.signature {
                            let is_alone = out[at..].trim_start().starts_with(')');
                            out.insert_str(at, if is_alone { SURPLUS } else { SURPLUS_AND });
                        }
                        let called = ended.name.as_str();
                        out.extend(["endmacro %}{% set ", called, " = __py_macro(", called, ")"]);
                        copied = name.end;
                    }
                }
                _ => {
                    let Some(mut inside) = Inside::read(&source, name.start, "%}") else {
                        continue;
                    };
                    at = inside.end;
                    let text = inside.statement();
                    note_surplus(&mut macros, &inside);
                    if let Some(text) = &text {
                        out.push_str(text);
                        copied = inside.end;
                    }
                    if tag == "macro" {
                        let start = out.len() - text.as_ref().map_or(0, String::len);
                        let open = text.as_ref().and_then(|text| text.find('('));
                        macros.push(Macro {
                            name: inside.second().unwrap_or_default().to_owned(),
                            // A macro that does not parse has none.
                            signature: open.map(|open| start + open + 1),
                            names_surplus: false,
                        });
                    }
                }
            }
        } else {
            at = open + 1;
        }
    }
    out.push_str(&source[copied..]);
    out
}

/// The arguments a macro gets that names them in its body.
const SURPLUS: &str = "varargs, kwargs";
const SURPLUS_AND: &str = "varargs, kwargs, ";

/// A macro whose end has not been read.
struct Macro {
    name: String,
    /// Where in the output its list of arguments begins.
    signature: Option<usize>,
    names_surplus: bool,
}

fn note_surplus(macros: &mut [Macro], inside: &Inside) {
    if let Some(innermost) = macros.last_mut() {
        innermost.names_surplus |= inside.names_surplus && innermost.signature.is_some();
    }
}

/// Behind the sign of whitespace control, if one is there.
fn after_sign(source: &str, from: usize) -> usize {
    from + usize::from(matches!(source.as_bytes().get(from), Some(b'-' | b'+')))
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
    use super::{END_GENERATION, GENERATION, translate};

    #[test]
    fn tags_are_exchanged_with_their_whitespace_control() {
        let source = "{%- generation -%}a{% endgeneration %}{%generation%}b{%+ endgeneration -%}";
        let expected = format!(
            "{{%- {GENERATION} -%}}a{{% {END_GENERATION} %}}{{%{GENERATION}%}}b{{%+ {END_GENERATION} -%}}"
        );
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
    fn what_a_macro_does_not_name_is_handed_over() {
        assert_eq!(
            translate("{% macro m(a=1) -%}{{ varargs }}{%- endmacro -%}"),
            "{% macro m(varargs, kwargs, a=1) -%}{{ varargs }}\
             {%- endmacro %}{% set m = __py_macro(m) -%}"
        );
        let unchanged = "{% macro m(a) %}{{ a }}{% endmacro %}{{ kwargs }}";
        assert_eq!(translate(unchanged), unchanged);
    }

    #[test]
    fn a_default_may_name_another_argument() {
        assert_eq!(
            translate("{% macro m(a, b=a, c=1) -%}"),
            "{% macro m(a, b= __py_missing, c=1) %}\
             {% set b = (a) if __py_is_missing(b) else b -%}"
        );
    }

    proptest::proptest! {
        /// Whatever a folder's template holds, it is translated, line for line.
        #[test]
        fn any_template_keeps_its_lines(
            pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..40)
        ) {
            let source = pieces.concat();
            let lines = |text: &str| text.matches('\n').count();
            proptest::prop_assert_eq!(lines(&translate(&source)), lines(&source));
        }
    }

    const PIECES: &[&str] = &[
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-",
        "+",
        "%",
        "~",
        "**",
        "//",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ".",
        ",",
        ":",
        "|",
        "=",
        "==",
        "<",
        "'",
        "\"",
        " ",
        "\n",
        "1",
        "0x",
        "1.5e",
        "a",
        "items",
        "if ",
        "else ",
        "for ",
        " in ",
        "not ",
        "is ",
        "and ",
        "set ",
        "macro ",
        "endmacro ",
        "varargs",
        "call ",
        "with ",
        "raw ",
        "endraw ",
        "generation ",
        "filter ",
        "\u{e9}",
        "\u{1f600}",
        "\u{2028}",
        "\u{a0}",
    ];

    #[test]
    fn a_raw_block_keeps_its_first_newline() {
        let source = "{%- raw %}\n{{{% endraw %}{% generation %}\u{e9}{% endgeneration %}";
        let expected = format!(
            "{{%- raw +%}}\n{{{{{{% endraw %}}{{% {GENERATION} %}}\u{e9}{{% {END_GENERATION} %}}"
        );
        assert_eq!(translate(source), expected);
    }

    #[test]
    fn lines_end_in_one_way() {
        assert_eq!(translate("a\r\nb\rc\n"), "a\nb\nc\n");
    }
}
