//! How a command ends when it cannot do what was asked.
//!
//! One shape for every error, readable without colour:
//!
//! ```text
//! error: cannot read `recipe.yaml`
//!   caused by: No such file or directory (os error 2)
//!
//! hint: check the path
//! ```

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// Exit statuses other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    /// Training, or writing its results, failed.
    Failed,
    /// The recipe or the command line is wrong.
    Usage,
    /// Ended by SIGINT (130), SIGTERM (143) or another signal, as shells count: 128 + signal.
    Interrupted(u8),
}

impl Exit {
    fn status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Interrupted(signal) => 128 + signal,
        }
    }
}

/// The main part of a [`Failure`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum What {
    /// One message, without `error:`.
    Message(String),
    /// Text that says `error:` itself, such as all errors of a recipe with the lines they stand on.
    Text(String),
}

/// Why a command ended, ready to be shown. A rank that the launcher started hands this to it as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    what: What,
    causes: Vec<String>,
    hint: Option<Box<str>>,
    /// The rank that failed, when there are several.
    rank: Option<usize>,
    /// Where it ran, or what host failed, when there are several.
    host: Option<Box<str>>,
    /// Whether this rank only noticed that another one ended.
    pub(crate) is_about_peer: bool,
    /// Whether another attempt would end in the same way.
    pub(crate) recurs: bool,
}

impl Failure {
    /// A failure told by one message.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self::from_what(exit, What::Message(message.into()))
    }

    /// A failure told by a text that says `error:` itself.
    pub(crate) fn from_text(exit: Exit, text: impl Into<String>) -> Self {
        Self::from_what(exit, What::Text(text.into()))
    }

    fn from_what(exit: Exit, what: What) -> Self {
        Self {
            exit,
            what,
            causes: Vec::new(),
            hint: None,
            rank: None,
            host: None,
            is_about_peer: false,
            recurs: false,
        }
    }

    /// A failure told by an error and what caused it.
    pub(crate) fn from_error(exit: Exit, error: &dyn Error) -> Self {
        let mut failure = Self::new(exit, error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            failure.causes.push(cause.to_string());
            source = cause.source();
        }
        failure
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into().map(String::into_boxed_str);
        self
    }

    /// Names the rank that failed.
    pub(crate) fn of_rank(self, rank: usize) -> Self {
        Self { rank: Some(rank), ..self }
    }

    /// Names the host that failed, or on which the rank did, if that is worth saying.
    pub(crate) fn on_host(self, host: Option<&str>) -> Self {
        Self { host: host.map(Into::into).or(self.host), ..self }
    }

    /// Adds what was found out besides.
    pub(crate) fn with_causes(mut self, causes: Vec<String>) -> Self {
        self.causes.extend(causes);
        self
    }

    /// Adds the first lines of another failure as the cause.
    pub(crate) fn caused_by(self, cause: &Self) -> Self {
        let text = Self { hint: None, ..cause.clone() }.render();
        self.with_causes(vec![text.trim_end().to_owned()])
            .with_hint(cause.hint.as_deref().map(str::to_owned))
    }

    /// Adds the message and the hint of another failure, which says the same in more detail.
    pub(crate) fn explained_by(self, detail: &Self) -> Self {
        let hint = detail.hint.as_deref().map(str::to_owned);
        self.with_causes(vec![detail.message().to_owned()]).with_hint(hint)
    }

    /// All of `failures` as one, none if there are none.
    pub(crate) fn all(mut failures: Vec<Self>) -> Option<Self> {
        if failures.len() <= 1 {
            return failures.pop();
        }
        let exit = failures[0].exit;
        let texts: Vec<String> = failures.iter().map(Self::render).collect();
        Some(Self::from_text(exit, texts.join("\n")))
    }

    /// The message alone, for those who show it in their own way.
    pub(crate) fn message(&self) -> &str {
        match &self.what {
            What::Message(text) | What::Text(text) => text,
        }
    }

    /// The text for the terminal.
    pub(crate) fn render(&self) -> String {
        let prefix = match (self.rank, &self.host) {
            (Some(rank), Some(host)) => format!("[rank {rank} on {host}] "),
            (Some(rank), None) => format!("[rank {rank}] "),
            (None, Some(host)) => format!("[{host}] "),
            (None, None) => String::new(),
        };
        let mut text = match &self.what {
            What::Message(message) => format!("{prefix}error: {}\n", message.trim_end()),
            What::Text(text) => format!("{prefix}{}\n", text.trim_end()),
        };
        for cause in &self.causes {
            let _ = writeln!(text, "  caused by: {cause}");
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "\nhint: {hint}");
        }
        text
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.exit.status())
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn an_error_shows_its_causes_and_a_hint() {
        let error = anyhow::anyhow!("No such file or directory (os error 2)")
            .context("cannot read `recipe.yaml`");
        let failure = Failure::from_error(Exit::Usage, error.as_ref())
            .with_hint("check the path".to_owned())
            .of_rank(3);
        assert_snapshot!(failure.render(), @r"
        [rank 3] error: cannot read `recipe.yaml`
          caused by: No such file or directory (os error 2)

        hint: check the path
        ");
        assert_eq!(ExitCode::from(&failure), ExitCode::from(2));
    }

    #[test]
    fn exit_statuses_are_the_documented_ones() {
        let statuses = [Exit::Failed, Exit::Usage, Exit::Interrupted(2), Exit::Interrupted(15)]
            .map(Exit::status);
        assert_eq!(statuses, [1, 2, 130, 143]);
    }
}
