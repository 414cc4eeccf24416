//! The data as one page that needs nothing but itself.

use std::fmt::Write as _;

use super::preview::{Counts, Document, Part, Preview, Run, plural, with_pictures};

/// Inline, as everything: the page may be sent to people, and opened where there is no network. Colours are legible on both backgrounds.
const STYLE: &str = include_str!("page.css");

/// The page; `recipe` is what it is of.
pub(super) fn render(preview: &Preview, recipe: &str) -> String {
    let mut page = format!(
        "<!doctype html>\n\
         <html lang=\"en\">\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{recipe}</title>\n\
         <style>\n{STYLE}</style>\n\
         <h1>{recipe}: {title}</h1>\n",
        recipe = escaped(recipe),
        title = preview.title(),
    );
    page += "<div class=\"counts\">\n";
    for counts in &preview.counts {
        table(&mut page, counts);
    }
    page += "</div>\n<p class=\"legend\"><mark>trained on <b>special token</b></mark> not trained on <b>special token</b></p>\n";
    for (index, sequence) in preview.sequences.iter().enumerate() {
        let title = escaped(&preview.sequence_title(index));
        let _ = writeln!(page, "<details class=\"sequence\" open><summary>{title}</summary>");
        for (index, document) in sequence.documents.iter().enumerate() {
            match preview.document_title(index, document) {
                Some(title) => {
                    let _ = write!(page, "<details open><summary>{}</summary>", escaped(&title));
                    text(&mut page, document);
                    page += "</details>\n";
                }
                None => text(&mut page, document),
            }
        }
        page += "</details>\n";
    }
    page += "</html>\n";
    page
}

fn table(page: &mut String, counts: &Counts) {
    let _ = writeln!(page, "<table><caption>{}</caption>", escaped(&counts.title));
    for (name, value) in &counts.rows {
        let _ = writeln!(page, "<tr><th>{name}</th><td>{}</td></tr>", escaped(value));
    }
    *page += "</table>\n";
}

/// The line break after `<pre>` is dropped by a browser, which would else drop that of a document that begins with one. Its lines each have
/// the direction of their own text.
fn text(page: &mut String, document: &Document) {
    *page += "<pre dir=\"auto\">\n";
    let mut is_in_label = false;
    for part in &document.parts {
        let is_label = matches!(part, Part::Run(Run { is_label: true, .. }));
        match (is_in_label, is_label) {
            (false, true) => *page += "<mark>",
            (true, false) => *page += "</mark>",
            _ => {}
        }
        is_in_label = is_label;
        let _ = match part {
            Part::Run(run) if run.is_special => write!(page, "<b>{}</b>", escaped(&run.text)),
            Part::Run(run) => write!(page, "{}", escaped(&run.text)),
            Part::LeftOut { tokens, labels } => {
                let (tokens, labels) = (plural(*tokens, "token"), plural(*labels, "label"));
                write!(page, "<i>{tokens} with {labels} left out</i>")
            }
        };
    }
    if is_in_label {
        *page += "</mark>";
    }
    *page += "</pre>\n";
}

/// `text` without anything that HTML or a browser would take for more than text.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in with_pictures(text).chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}
