//! Expressions, with the operators that Python decides turned into calls.
//!
//! Minijinja fixes what `+`, `%`, `<` and the like do; of texts, numbers of unlike kinds and nothing at all, Python decides
//! otherwise. Likewise `x.items` is a method of a dictionary to Python, whatever keys it has, and so is `x['items']` without
//! such a key. So `a % b` becomes
//! `__py_fold(a, '%', b)`, and `x.items` becomes `__py_attr(x, 'items')`; `python::ops` has the functions. What is written stays
//! on its line. What does not parse stays as it is, for minijinja to say why.

use std::fmt::Write;

use crate::chat_template::python::is_method;

/// How deep an expression may nest. Minijinja refuses the 151st level.
const MAX_DEPTH: usize = 200;

/// Longest operand of a chain of comparisons that is written twice, in bytes.
const MAX_REPEATED: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Name,
    Number,
    Text,
    Sign,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

/// What stands between the delimiters of a tag or an expression.
pub(super) struct Inside<'a> {
    source: &'a str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    start: usize,
    /// Where the delimiter that ends it begins, with its `-` or `+`.
    pub(super) end: usize,
    /// Whether a macro's surplus arguments are named.
    pub(super) names_surplus: bool,
    /// Statements that give arguments their values in the body of a macro.
    late: Vec<String>,
}

impl<'a> Inside<'a> {
    /// Reads from `start` to the delimiter `close` that no bracket holds.
    pub(super) fn read(source: &'a str, start: usize, close: &str) -> Option<Inside<'a>> {
        let mut tokens: Vec<Token> = Vec::new();
        let mut open = 0_usize;
        let mut at = start;
        loop {
            at += source[at..].len() - source[at..].trim_start().len();
            let rest = &source[at..];
            let bare = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if open == 0 && (rest.starts_with(close) || bare.starts_with(close)) {
                let (names_surplus, late) = (false, Vec::new());
                return Some(Inside {
                    source,
                    tokens,
                    at: 0,
                    depth: 0,
                    start,
                    end: at,
                    names_surplus,
                    late,
                });
            }
            let after_dot = tokens.last().is_some_and(|last| &source[last.start..last.end] == ".");
            let (kind, len) = token(rest, after_dot)?;
            match &rest[..len] {
                "(" | "[" | "{" => open += 1,
                ")" | "]" | "}" => open = open.checked_sub(1)?,
                _ => {}
            }
            tokens.push(Token { kind, start: at, end: at + len });
            at += len;
        }
    }

    /// The whole of `{{ ... }}`.
    pub(super) fn output(&mut self) -> Option<String> {
        let text = self.tuple()?;
        self.finish(text)
    }

    /// A statement but its name, which is the first token.
    pub(super) fn statement(&mut self) -> Option<String> {
        let name = self.peek()?;
        let mut out = self.take()?;
        match name {
            "if" | "elif" => out += &self.tuple()?,
            "for" => {
                while self.peek()? != "in" {
                    out += &self.take()?;
                }
                out += &self.take()?;
                let mut items = self.or()?;
                if self.is(",") {
                    items = format!(" ({items}");
                    while self.is(",") {
                        items += &self.take()?;
                        if !self.at_end() && !self.is("if") && !self.is("recursive") {
                            items += &self.or()?;
                        }
                    }
                    items.push(')');
                }
                write!(out, " __py_iter({items})").ok()?;
                if self.is("if") {
                    out += &self.take()?;
                    out += &self.expression()?;
                }
                if self.is("recursive") {
                    out += &self.take()?;
                }
            }
            "set" => {
                while !self.at_end() && !self.is("=") && !self.is("|") {
                    out += &self.take()?;
                }
                if self.is("=") {
                    out += &self.take()?;
                    out += &self.tuple()?;
                }
                out += &self.filters(String::new())?;
            }
            "filter" => {
                out += &self.filter_call()?;
                out += &self.filters(String::new())?;
            }
            "with" => {
                while !self.at_end() {
                    while !self.is("=") {
                        out += &self.take()?;
                    }
                    out += &self.take()?;
                    out += &self.expression()?;
                    if self.is(",") {
                        out += &self.take()?;
                    }
                }
            }
            "macro" => {
                out += &self.take()?;
                out += &self.signature()?;
            }
            "call" => {
                if self.is("(") {
                    out += &self.signature()?;
                }
                out += &self.expression()?;
            }
            _ => return None,
        }
        self.finish(out)
    }

    /// The second token: what a macro is called.
    pub(super) fn second(&self) -> Option<&'a str> {
        self.tokens.get(1).map(|token| &self.source[token.start..token.end])
    }

    fn finish(&self, mut text: String) -> Option<String> {
        if !self.at_end() {
            return None;
        }
        for statement in &self.late {
            text.push_str(" %}{%");
            text.push_str(statement);
        }
        let from = self.tokens.last().map_or(self.start, |last| last.end);
        text.push_str(&self.source[from..self.end]);
        Some(text)
    }

    fn at_end(&self) -> bool {
        self.at == self.tokens.len()
    }

    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).map(|token| &self.source[token.start..token.end])
    }

    fn kind(&self) -> Option<Kind> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    fn is(&self, text: &str) -> bool {
        self.kind() != Some(Kind::Text) && self.peek() == Some(text)
    }

    /// The next token as it is written, with the space before it.
    fn take(&mut self) -> Option<String> {
        let token = *self.tokens.get(self.at)?;
        let from = if self.at == 0 { self.start } else { self.tokens[self.at - 1].end };
        self.at += 1;
        let space = &self.source[from..token.start];
        let text = &self.source[token.start..token.end];
        if token.kind == Kind::Text && text.contains('\\') {
            return Some(format!("{space}{}", literal(text)));
        }
        Some(format!("{space}{text}"))
    }

    /// The space before the next token, for one that is replaced.
    fn skip(&mut self) -> Option<&'a str> {
        let token = *self.tokens.get(self.at)?;
        let from = if self.at == 0 { self.start } else { self.tokens[self.at - 1].end };
        self.at += 1;
        Some(&self.source[from..token.start])
    }

    /// Expressions with commas between them are a tuple.
    fn tuple(&mut self) -> Option<String> {
        let first = self.expression()?;
        if !self.is(",") {
            return Some(first);
        }
        let mut out = format!(" ({first}");
        while self.is(",") {
            out += &self.take()?;
            if !self.at_end() {
                out += &self.expression()?;
            }
        }
        out.push(')');
        Some(out)
    }

    fn expression(&mut self) -> Option<String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut out = self.or()?;
        while self.is("if") {
            out += &self.take()?;
            out += &self.or()?;
            if self.is("else") {
                out += &self.take()?;
                out += &self.expression()?;
            }
        }
        self.depth -= 1;
        Some(out)
    }

    fn or(&mut self) -> Option<String> {
        let mut out = self.not()?;
        while self.is("or") || self.is("and") {
            out += &self.take()?;
            out += &self.not()?;
        }
        Some(out)
    }

    fn not(&mut self) -> Option<String> {
        let mut out = String::new();
        while self.is("not") {
            out += &self.take()?;
        }
        out += &self.comparison()?;
        Some(out)
    }

    fn comparison(&mut self) -> Option<String> {
        let first = self.sum()?;
        let mut others = Vec::new();
        while let Some(sign @ ("==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not")) = self.peek()
            && self.kind() != Some(Kind::Text)
        {
            let mut written = self.take()?;
            let mut name = sign;
            if sign == "not" {
                if !self.is("in") {
                    return None;
                }
                written += &self.take()?;
                name = "not in";
            }
            others.push((name, written, self.sum()?));
        }
        if others.iter().all(|(name, ..)| matches!(*name, "==" | "!=")) && others.len() < 2 {
            return Some(others.iter().fold(first, |out, (_, sign, next)| out + sign + next));
        }
        // A chain ends where it fails, so what stands in the middle is written twice, if that is short.
        if others.len() > 1 && others.iter().all(|(.., next)| next.len() < MAX_REPEATED) {
            let mut left = first;
            let mut pairs = Vec::new();
            for (name, _, next) in others {
                pairs.push(format!("__py_compare({left},'{name}',{next})"));
                left = next;
            }
            return Some(format!(" ({})", pairs.join(" and ")));
        }
        let mut out = format!(" __py_compare({first}");
        for (name, _, next) in &others {
            write!(out, ",'{name}',{next}").ok()?;
        }
        out.push(')');
        Some(out)
    }

    fn sum(&mut self) -> Option<String> {
        self.fold(&["+", "-"], Inside::joined)
    }

    fn joined(&mut self) -> Option<String> {
        let first = self.product()?;
        if !self.is("~") {
            return Some(first);
        }
        let mut out = format!(" __py_concat({first}");
        while self.is("~") {
            let space = self.skip()?;
            write!(out, "{space},{}", self.product()?).ok()?;
        }
        out.push(')');
        Some(out)
    }

    fn product(&mut self) -> Option<String> {
        self.fold(&["*", "/", "//", "%"], Inside::power)
    }

    fn power(&mut self) -> Option<String> {
        self.fold(&["**"], Inside::unary)
    }

    /// Operators of one rank, from left to right.
    fn fold(&mut self, signs: &[&str], next: fn(&mut Self) -> Option<String>) -> Option<String> {
        let first = next(self)?;
        let mut rest = String::new();
        while let Some(sign) = self.peek().filter(|sign| signs.contains(sign))
            && self.kind() == Some(Kind::Sign)
        {
            let space = self.skip()?;
            write!(rest, ",{space}'{sign}',{}", next(self)?).ok()?;
        }
        Some(if rest.is_empty() { first } else { format!(" __py_fold({first}{rest})") })
    }

    fn unary(&mut self) -> Option<String> {
        let operand = self.signed()?;
        self.filters(operand)
    }

    fn signed(&mut self) -> Option<String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let sign = self.peek().filter(|sign| matches!(*sign, "-" | "+"));
        let out = if let Some(sign) = sign.filter(|_| self.kind() == Some(Kind::Sign)) {
            let space = self.skip()?;
            let is_number = self.kind() == Some(Kind::Number);
            let operand = self.signed()?;
            if is_number && sign == "-" && !operand.ends_with(')') {
                format!("{space} -{}", operand.trim_start())
            } else {
                format!("{space} __py_sign('{sign}',{operand})")
            }
        } else {
            let primary = self.primary()?;
            self.postfix(primary)?
        };
        self.depth -= 1;
        Some(out)
    }

    fn primary(&mut self) -> Option<String> {
        match self.kind()? {
            Kind::Name | Kind::Number => {
                if matches!(self.peek()?, "varargs" | "kwargs") {
                    self.names_surplus = true;
                }
                self.take()
            }
            Kind::Text => {
                let mut out = self.take()?;
                while self.kind() == Some(Kind::Text) {
                    out += &self.take()?;
                }
                Some(out)
            }
            Kind::Sign => {
                let (close, is_map) = match self.peek()? {
                    "(" => (")", false),
                    "[" => ("]", false),
                    "{" => ("}", true),
                    _ => return None,
                };
                let mut out = self.take()?;
                while !self.is(close) {
                    out += &self.expression()?;
                    if is_map {
                        if !self.is(":") {
                            return None;
                        }
                        out += &self.take()?;
                        out += &self.expression()?;
                    }
                    if self.is(",") {
                        out += &self.take()?;
                    } else if !self.is(close) {
                        return None;
                    }
                }
                out += &self.take()?;
                Some(out)
            }
        }
    }

    fn postfix(&mut self, mut out: String) -> Option<String> {
        while self.kind() == Some(Kind::Sign) {
            match self.peek()? {
                "." => {
                    let dot = self.take()?;
                    let name = self.peek()?;
                    let written = self.take()?;
                    if is_method(name) && !self.is("(") {
                        out = format!(" __py_attr({out}, '{name}')");
                    } else {
                        out = out + &dot + &written;
                    }
                }
                "[" => out = self.subscript(&out)?,
                "(" => out += &self.arguments()?,
                _ => break,
            }
        }
        Some(out)
    }

    /// `of[key]` or `of[start:stop:step]`.
    fn subscript(&mut self, of: &str) -> Option<String> {
        let open = self.take()?;
        // An index or a name that no method has is looked up in one way.
        let first = self.peek()?;
        let is_plain = first.bytes().all(|b| b.is_ascii_digit())
            || self.kind() == Some(Kind::Text) && !is_method(first.trim_matches(['\'', '"']));
        let from = self.at;
        let mut parts = vec![String::new()];
        let mut is_slice = false;
        while !self.is("]") {
            if self.is(":") {
                is_slice = true;
                parts.push(self.skip()?.to_owned());
            } else {
                let part = self.expression()?;
                let last = parts.last_mut()?;
                last.push_str(&part);
                if !self.is(":") && !self.is("]") {
                    return None;
                }
            }
        }
        let is_plain = is_plain && self.at - from == 1;
        let close = self.take()?;
        if is_slice {
            parts.resize(3, String::new());
            let parts = parts.iter().map(|part| {
                if part.trim().is_empty() { format!("{part}none") } else { part.clone() }
            });
            return Some(format!(" __py_slice({of},{})", parts.collect::<Vec<_>>().join(",")));
        }
        let key = parts.concat();
        Some(if is_plain {
            format!("{of}{open}{key}{close}")
        } else {
            format!(" __py_item({of},{key})")
        })
    }

    fn arguments(&mut self) -> Option<String> {
        let mut out = self.take()?;
        while !self.is(")") {
            if self.is("*") || self.is("**") {
                out += &self.take()?;
            } else if self.kind() == Some(Kind::Name) {
                let next = self.tokens.get(self.at + 1)?;
                if &self.source[next.start..next.end] == "=" {
                    out += &self.take()?;
                    out += &self.take()?;
                }
            }
            out += &self.expression()?;
            if self.is(",") {
                out += &self.take()?;
            } else if !self.is(")") {
                return None;
            }
        }
        out += &self.take()?;
        Some(out)
    }

    /// The names of a macro's arguments, with what they are by default.
    fn signature(&mut self) -> Option<String> {
        if !self.is("(") {
            return None;
        }
        let mut out = self.take()?;
        let mut names = Vec::new();
        while !self.is(")") {
            let name = self.peek()?;
            out += &self.take()?;
            if self.is("=") {
                out += &self.take()?;
                let from = self.at;
                let default = self.expression()?;
                let mut read = self.tokens[from..self.at].iter();
                if read.any(|token| names.contains(&&self.source[token.start..token.end])) {
                    // Minijinja knows no argument before it knows all.
                    out += " __py_missing";
                    self.late.push(format!(
                        " set {name} = ({default}) if __py_is_missing({name}) else {name}"
                    ));
                } else {
                    out += &default;
                }
            }
            names.push(name);
            if self.is(",") {
                out += &self.take()?;
            }
        }
        out += &self.take()?;
        Some(out)
    }

    fn filters(&mut self, mut out: String) -> Option<String> {
        loop {
            if self.is("|") {
                out += &self.take()?;
                out += &self.filter_call()?;
            } else if self.is("is") {
                out += &self.take()?;
                if self.is("not") {
                    out += &self.take()?;
                }
                out += &self.dotted()?;
                if self.is("(") {
                    out += &self.arguments()?;
                } else if self.has_operand() {
                    let primary = self.primary()?;
                    out += &self.postfix(primary)?;
                }
            } else {
                return Some(out);
            }
        }
    }

    /// Whether a test's argument follows, without parentheses.
    fn has_operand(&self) -> bool {
        match self.kind() {
            Some(Kind::Name) => !matches!(self.peek(), Some("else" | "or" | "and" | "is")),
            Some(Kind::Number | Kind::Text) => true,
            Some(Kind::Sign) => self.is("[") || self.is("{"),
            None => false,
        }
    }

    fn filter_call(&mut self) -> Option<String> {
        let mut out = self.dotted()?;
        if self.is("(") {
            out += &self.arguments()?;
        }
        Some(out)
    }

    fn dotted(&mut self) -> Option<String> {
        let mut out = self.name()?;
        while self.is(".") {
            out += &self.take()?;
            out += &self.name()?;
        }
        Some(out)
    }

    fn name(&mut self) -> Option<String> {
        if self.kind()? == Kind::Name { self.take() } else { None }
    }
}

/// The kind and the length of the token that `rest` begins with.
fn token(rest: &str, after_dot: bool) -> Option<(Kind, usize)> {
    const SIGNS: [&str; 8] = ["**", "//", "==", "!=", "<=", ">=", "<", ">"];
    let first = rest.chars().next()?;
    if first == '"' || first == '\'' {
        let mut is_escaped = false;
        let close = rest[1..].find(|c| {
            let closes = !is_escaped && c == first;
            is_escaped = !is_escaped && c == '\\';
            closes
        })?;
        return Some((Kind::Text, close + 2));
    }
    if first.is_alphabetic() || first == '_' {
        let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        return Some((Kind::Name, len));
    }
    if first.is_ascii_digit() {
        return Some((Kind::Number, number_len(rest, after_dot)));
    }
    if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
        return Some((Kind::Sign, sign.len()));
    }
    "+-/*%~[](){}=.:|,".contains(first).then_some((Kind::Sign, 1))
}

/// Digits, and behind them a fraction and an exponent, if it is no index behind a dot.
fn number_len(rest: &str, after_dot: bool) -> usize {
    let bytes = rest.as_bytes();
    let digits = |from: usize| {
        from + bytes[from..].iter().take_while(|b| b.is_ascii_digit() || **b == b'_').count()
    };
    if bytes[0] == b'0' && matches!(bytes.get(1), Some(b'x' | b'X' | b'b' | b'B' | b'o' | b'O')) {
        return 2 + bytes[2..]
            .iter()
            .take_while(|b| b.is_ascii_alphanumeric() || **b == b'_')
            .count();
    }
    let mut end = digits(0);
    if after_dot {
        return end;
    }
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
            end = digits(end + 1 + sign);
        }
    }
    end
}

/// A string literal with the escapes that minijinja does not read as Python does written out: `\a`, `\v`, `\U0001f600`, a
/// newline behind a backslash, and a backslash that escapes nothing, which Python keeps.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('a') => out.push_str("\\x07"),
            Some('v') => out.push_str("\\x0b"),
            Some('/') => out.push_str("\\\\/"),
            Some('\n') => {}
            Some('U') => {
                let digits: String = chars.clone().take(8).collect();
                match u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32) {
                    Some(c) if digits.len() == 8 && !matches!(c, '\\' | '\'' | '"') => {
                        out.push(c);
                        chars.nth(7);
                    }
                    _ => out.push_str("\\U"),
                }
            }
            Some(c) => out.extend(['\\', c]),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(source: &str) -> Option<String> {
        Inside::read(source, 0, "}}").and_then(|mut inside| inside.output())
    }

    #[test]
    fn operators_of_one_rank_make_one_call() {
        assert_eq!(
            rewritten("a + b*2 - c }}").unwrap().trim(),
            "__py_fold(a, '+', __py_fold( b,'*',2), '-', c)"
        );
        assert_eq!(rewritten("a ~b ~ c}}").unwrap().trim(), "__py_concat(a ,b , c)");
    }

    #[test]
    fn a_delimiter_in_brackets_or_quotes_ends_nothing() {
        let inside = Inside::read("{'a': {'b': '}}'}}}}", 0, "}}").unwrap();
        assert_eq!(inside.end, 18);
    }

    #[test]
    fn what_does_not_parse_stays() {
        for source in ["a b }}", "( }}", "a + }}", "a ? b }}", "'open }}", "{'a' 1} }}", ")}}"] {
            assert_eq!(rewritten(source), None, "{source}");
        }
        assert_eq!(rewritten(&("(".repeat(300) + "a" + &")".repeat(300) + "}}")), None);
    }

    #[test]
    fn methods_that_are_not_called_are_looked_up() {
        assert_eq!(rewritten("a.items }}").unwrap().trim(), "__py_attr(a, 'items')");
        assert_eq!(rewritten("a.items() }}").unwrap().trim(), "a.items()");
        assert_eq!(rewritten("a.role.b }}").unwrap().trim(), "a.role.b");
    }
}
