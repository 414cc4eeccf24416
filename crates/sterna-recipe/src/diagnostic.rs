//! What is wrong with a recipe, all of it at once, shown with the lines it stands on.

use std::fmt;

use crate::source::{Origin, RecipeSource, Span};

/// Something worth saying that is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The key it is about, as `deepspeed.steps_per_print`.
    pub key_path: String,
    /// One sentence, without a final period.
    pub text: String,
}

/// The ways in which a recipe can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The text is not YAML.
    Syntax,
    /// The file cannot be read.
    Unreadable,
    /// A key that no recipe has.
    UnknownKey,
    /// A key that is given twice.
    DuplicateKey,
    /// A key that must be given and is not.
    MissingKey,
    /// A value of the wrong type or out of range.
    Value,
    /// Values that do not go together.
    Conflict,
    /// A value that the reference accepts and that cannot be done here.
    Unsupported,
}

impl Kind {
    /// A word for machine-readable output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Unreadable => "unreadable",
            Self::UnknownKey => "unknown_key",
            Self::DuplicateKey => "duplicate_key",
            Self::MissingKey => "missing_key",
            Self::Value => "value",
            Self::Conflict => "conflict",
            Self::Unsupported => "unsupported",
        }
    }
}

/// One error of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What sort of error.
    pub kind: Kind,
    /// The key it is about, as `data.sources[0].split`; empty when it is about the file.
    pub key_path: String,
    /// Where to look.
    pub span: Option<Span>,
    /// What is there, with values in backticks.
    pub found: String,
    /// What has to be there instead.
    pub required: String,
    /// What to do, when there is something to say beyond `required`.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error about the value of `key_path`.
    pub(crate) fn value(
        key_path: &str,
        span: Span,
        found: String,
        required: impl Into<String>,
    ) -> Self {
        Self {
            kind: Kind::Value,
            key_path: key_path.to_owned(),
            span: Some(span),
            found,
            required: required.into(),
            hint: None,
        }
    }

    /// The same with a hint.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The error as one sentence: what was found and what is required.
    pub fn message(&self) -> String {
        let Self { found, required, .. } = self;
        let key_path = if self.key_path.is_empty() {
            "the recipe".to_owned()
        } else {
            format!("`{}`", self.key_path)
        };
        match self.kind {
            Kind::Syntax => format!("not valid YAML: {found}"),
            Kind::Unreadable => found.clone(),
            Kind::UnknownKey => format!("unknown key {key_path}"),
            Kind::DuplicateKey => format!("key {key_path} is given twice, {found}"),
            Kind::MissingKey => format!("key {key_path} is missing, required: {required}"),
            Kind::Value => format!("{key_path} is {found}, required: {required}"),
            Kind::Conflict => format!("{found}, required: {required}"),
            Kind::Unsupported => format!("{key_path} {found} is not supported: {required}"),
        }
    }
}

/// Errors that are shown; more only hide the first.
const MAX_SHOWN: usize = 100;

/// All errors of one recipe, in the order of its lines. Displays as text with excerpts.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    /// The recipe they are about.
    pub source: RecipeSource,
    /// The errors; never empty.
    pub errors: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Sorts the errors by place: those without one first, then the file's, then the overrides'.
    pub fn new(source: RecipeSource, mut errors: Vec<Diagnostic>) -> Self {
        errors.sort_by_key(|error| error.span.map(|span| (span.origin, span.line, span.col)));
        Self { source, errors }
    }

    /// The errors as JSON objects with `kind`, `message`, `key`, `line`, `col`, `found`, `required`, `hint`.
    pub fn to_json(&self) -> serde_json::Value {
        self.errors
            .iter()
            .map(|error| {
                let in_file = error.span.filter(|span| span.origin == Origin::File);
                serde_json::json!({
                    "kind": error.kind.name(),
                    "message": error.message(),
                    "key": error.key_path,
                    "line": in_file.map(|span| span.line),
                    "col": in_file.map(|span| span.col),
                    "found": error.found,
                    "required": error.required,
                    "hint": error.hint,
                })
            })
            .collect()
    }

    /// Writes one error with the line it stands on.
    fn excerpt(&self, f: &mut fmt::Formatter<'_>, error: &Diagnostic) -> fmt::Result {
        writeln!(f, "error: {}", error.message())?;
        let path = self.source.path.display();
        let Some(span) = error.span else {
            writeln!(f, " --> {path}")?;
            return hint(f, 1, error);
        };
        let number = match span.origin {
            Origin::File => span.line.to_string(),
            Origin::Override(_) => String::new(),
        };
        let width = number.len().max(1);
        let line = self.source.line(span);
        match span.origin {
            Origin::File => writeln!(f, "{:width$}--> {path}:{}:{}", "", span.line, span.col)?,
            Origin::Override(_) => writeln!(f, "{:width$}--> --set", "")?,
        }
        writeln!(f, "{:width$} |", "")?;
        writeln!(f, "{number:width$} | {line}")?;
        // Tabs stay tabs, so that the caret stands under its character whatever the tab width.
        let lead: String =
            line.chars().take(span.col - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, "{:width$} | {lead}{}", "", "^".repeat(span.len))?;
        hint(f, width, error)
    }
}

fn hint(f: &mut fmt::Formatter<'_>, width: usize, error: &Diagnostic) -> fmt::Result {
    match &error.hint {
        Some(hint) => writeln!(f, "{:width$} = hint: {hint}", ""),
        None => Ok(()),
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in self.errors.iter().take(MAX_SHOWN) {
            self.excerpt(f, error)?;
            writeln!(f)?;
        }
        if self.errors.len() > MAX_SHOWN {
            writeln!(f, "{} more errors are not shown\n", self.errors.len() - MAX_SHOWN)?;
        }
        let plural = if self.errors.len() == 1 { "" } else { "s" };
        write!(f, "{} error{plural} in `{}`", self.errors.len(), self.source.path.display())
    }
}

impl std::error::Error for Diagnostics {}
