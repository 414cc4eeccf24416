//! The data as text: in colours on a terminal, with marks where there are none.

use std::fmt::Write as _;

use super::preview::{Part, Preview, Run, plural, with_pictures};

/// How text may look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// A terminal obeys control characters.
    pub(super) is_terminal: bool,
    /// Colours instead of marks.
    pub(super) has_colours: bool,
}

const RESET: &str = "\x1b[0m";
const HEADING: &str = "\x1b[1;36m";
const LABEL: &str = "\x1b[32m";
const SPECIAL: &str = "\x1b[2m";
const SPECIAL_LABEL: &str = "\x1b[2;32m";
const REMARK: &str = "\x1b[3;2m";

/// Everything, sequences first: the counts are what a person who has scrolled down reads.
pub(super) fn render(preview: &Preview, look: Look) -> String {
    let mut page = Page { look, text: String::new(), is_in_label: false };
    page.legend();
    for (index, sequence) in preview.sequences.iter().enumerate() {
        page.text.push('\n');
        page.heading("══", &preview.sequence_title(index));
        for (index, document) in sequence.documents.iter().enumerate() {
            if let Some(title) = preview.document_title(index, document) {
                page.heading("──", &title);
            }
            for part in &document.parts {
                match part {
                    Part::Run(run) => page.run(run),
                    Part::LeftOut { tokens, labels } => page.left_out(*tokens, *labels),
                }
            }
            page.end_label();
            page.end_line();
        }
    }
    for counts in &preview.counts {
        page.text.push('\n');
        page.heading("══", &counts.title);
        let width = counts.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in &counts.rows {
            let _ = writeln!(page.text, "{name:width$}  {value}");
        }
    }
    page.text
}

struct Page {
    look: Look,
    text: String,
    /// Whether a mark is open.
    is_in_label: bool,
}

impl Page {
    fn legend(&mut self) {
        if self.look.has_colours {
            let _ = writeln!(
                self.text,
                "{LABEL}trained on{RESET}, not trained on, {SPECIAL_LABEL}<special token>{RESET}, {SPECIAL}<special token>{RESET}"
            );
        } else {
            self.text += "⟦trained on⟧, not trained on, ⟨special token⟩\n";
        }
    }

    fn heading(&mut self, rule: &str, title: &str) {
        let title = self.safe(title);
        let _ = if self.look.has_colours {
            writeln!(self.text, "{HEADING}{rule} {title}{RESET}")
        } else {
            writeln!(self.text, "{rule} {title}")
        };
    }

    fn run(&mut self, run: &Run) {
        let text = self.safe(&run.text);
        if self.look.has_colours {
            let colour = match (run.is_label, run.is_special) {
                (false, false) => None,
                (true, false) => Some(LABEL),
                (false, true) => Some(SPECIAL),
                (true, true) => Some(SPECIAL_LABEL),
            };
            self.coloured(&text, colour);
            return;
        }
        if run.is_label && !self.is_in_label {
            self.text.push('⟦');
            self.is_in_label = true;
        } else if !run.is_label {
            self.end_label();
        }
        if run.is_special {
            let _ = write!(self.text, "⟨{text}⟩");
        } else {
            self.text += &text;
        }
    }

    /// Line by line, so that a pager which forgets colours at the end of a line shows them too.
    fn coloured(&mut self, text: &str, colour: Option<&str>) {
        let Some(colour) = colour else {
            self.text += text;
            return;
        };
        for line in text.split_inclusive('\n') {
            let content = line.strip_suffix('\n').unwrap_or(line);
            if !content.is_empty() {
                let _ = write!(self.text, "{colour}{content}{RESET}");
            }
            self.text += &line[content.len()..];
        }
    }

    fn left_out(&mut self, tokens: usize, labels: usize) {
        self.end_label();
        self.end_line();
        let (tokens, labels) = (plural(tokens, "token"), plural(labels, "label"));
        let remark = format!("[{tokens} with {labels} left out]");
        self.coloured(&remark, self.look.has_colours.then_some(REMARK));
        self.text.push('\n');
    }

    fn end_label(&mut self) {
        if self.is_in_label {
            self.text.push('⟧');
            self.is_in_label = false;
        }
    }

    fn end_line(&mut self) {
        if !self.text.ends_with('\n') {
            self.text.push('\n');
        }
    }

    fn safe(&self, text: &str) -> String {
        if self.look.is_terminal { with_pictures(text) } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::preview::{Counts, Document, Sequence};
    use super::*;

    fn preview() -> Preview {
        let run = |text: &str, is_label, is_special| {
            Part::Run(Run { text: text.to_owned(), tokens: 1, is_label, is_special })
        };
        let parts = vec![
            run("<s>", false, true),
            run("Red: \u{1b}[31m\n", false, false),
            Part::LeftOut { tokens: 2000, labels: 1 },
            run("two\n\nlines", true, false),
            run("</s>", true, true),
        ];
        let document = Document { source: None, tokens: 2004, labels: 3, parts };
        Preview {
            sequences: vec![Sequence { documents: vec![document], padding: 1, is_fused: false }],
            num_sequences: 1200,
            is_packed: false,
            counts: vec![Counts {
                title: "training data".to_owned(),
                rows: vec![("rows", "1".to_owned()), ("samples", "1".to_owned())],
            }],
        }
    }

    #[test]
    fn a_terminal_gets_colours_that_end_with_each_line_and_no_orders_of_the_text() {
        let text = render(&preview(), Look { is_terminal: true, has_colours: true });
        assert_snapshot!(text.replace('\x1b', "^"), @r"
        ^[32mtrained on^[0m, not trained on, ^[2;32m<special token>^[0m, ^[2m<special token>^[0m

        ^[1;36m══ sample 1 of 1,200: 2,004 tokens, 3 labels (0.1%), padded by 1 token^[0m
        ^[2m<s>^[0mRed: ␛[31m
        ^[3;2m[2,000 tokens with 1 label left out]^[0m
        ^[32mtwo^[0m

        ^[32mlines^[0m^[2;32m</s>^[0m

        ^[1;36m══ training data^[0m
        rows     1
        samples  1
        ");
    }

    #[test]
    fn a_file_gets_marks_and_the_text_as_it_is() {
        let text = render(&preview(), Look { is_terminal: false, has_colours: false });
        assert_snapshot!(text.replace('\x1b', "^"), @r"
        ⟦trained on⟧, not trained on, ⟨special token⟩

        ══ sample 1 of 1,200: 2,004 tokens, 3 labels (0.1%), padded by 1 token
        ⟨<s>⟩Red: ^[31m
        [2,000 tokens with 1 label left out]
        ⟦two

        lines⟨</s>⟩⟧

        ══ training data
        rows     1
        samples  1
        ");
    }

    #[test]
    fn a_terminal_without_colours_gets_marks_and_no_orders_of_the_text() {
        let text = render(&preview(), Look { is_terminal: true, has_colours: false });
        assert!(text.contains("Red: \u{241b}[31m\n") && text.contains("\u{27e6}two\n"));
        assert!(!text.contains('\x1b'));
    }
}
