//! Renders what `golden/check_chat_templates.py` rendered with transformers, and prints where the two differ.
//!
//! ```text
//! cargo run -p sterna-hf --example render_chats rendered.json
//! ```

use std::error::Error;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;
use sterna_hf::ChatTemplate;

/// Longest part of a text that is printed, in characters.
const MAX_SHOWN: usize = 160;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: render_chats FILE")?;
    let file: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let mut out = std::io::stdout().lock();
    let (mut num_cases, mut num_different, mut num_other_spans) = (0, 0, 0);
    for case in file["cases"].as_array().ok_or("the file has no cases")? {
        let (template, shape) = (text(&case["template"]), text(&case["shape"]));
        let context = file["shapes"][shape].as_object().ok_or("a shape is missing")?;
        let found = ChatTemplate::compile(text(&file["templates"][template]), Path::new(template))
            .and_then(|template| template.render_context(context))
            .map(|rendered| {
                let spans = rendered.generated.filter(|spans| !spans.is_empty());
                if let Some(spans) = spans
                    && case["generated"] != in_chars(&rendered.text, &spans)
                {
                    num_other_spans += 1;
                }
                rendered.text
            });
        num_cases += 1;
        let agrees = match (&found, case["text"].as_str()) {
            (Ok(found), Some(expected)) => found == expected,
            // What a template raises itself, it raises in the same words.
            (Err(sterna_hf::Error::TemplateRefused { message, .. }), None) => {
                text(&case["error"]) == format!("TemplateError: {message}")
            }
            (Err(_), None) => !text(&case["error"]).starts_with("TemplateError: "),
            _ => false,
        };
        if agrees {
            continue;
        }
        num_different += 1;
        writeln!(out, "{template}, {shape}:")?;
        let expected = case["text"].as_str().unwrap_or_default();
        match &found {
            Ok(found) if case["text"].is_string() => {
                let same = found.chars().zip(expected.chars()).take_while(|(a, b)| a == b).count();
                writeln!(out, "  transformers {:?}", shown(expected, same))?;
                writeln!(out, "  sterna       {:?}", shown(found, same))?;
            }
            Ok(found) => {
                writeln!(out, "  transformers raises {}", text(&case["error"]))?;
                writeln!(out, "  sterna       {:?}", shown(found, 0))?;
            }
            Err(error) => {
                let expected = case["text"].as_str().unwrap_or(text(&case["error"]));
                writeln!(out, "  transformers {:?}", shown(expected, 0))?;
                writeln!(out, "  sterna       {error}")?;
                if let Some(cause) = error.source() {
                    writeln!(out, "               {cause}")?;
                }
            }
        }
    }
    writeln!(out, "{num_different} of {num_cases} renderings differ")?;
    writeln!(out, "{num_other_spans} mark other parts as generated")?;
    Ok(if num_different + num_other_spans == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Spans of bytes as transformers has them, in characters.
fn in_chars(text: &str, spans: &[Range<usize>]) -> Value {
    let at = |byte: usize| text[..byte].chars().count();
    spans.iter().map(|span| serde_json::json!([at(span.start), at(span.end)])).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The part of a text around the character `from`.
fn shown(text: &str, from: usize) -> String {
    text.chars().skip(from.saturating_sub(MAX_SHOWN / 4)).take(MAX_SHOWN).collect()
}
