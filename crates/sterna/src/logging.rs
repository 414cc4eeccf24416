//! Log messages of the libraries, on the terminal and in files.
//!
//! As the reference: `logger.print_output_ranks` and `logger.file_output_ranks` are compared with the *local* rank, and a
//! file is `<output_dir>/logs/rank_<local_rank>.log`. The lines of a run (plan, metrics, exports) go to the files whatever
//! the level is.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::Mutex;

use sterna_recipe::{LogLevel, LoggerOptions};
use sterna_train::observe::timeline::{TIMELINE, TimelineLayer};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::env_vars;
use crate::render::Screen;
use crate::report::{Exit, Failure};

/// Target of the lines of a run, which the terminal gets from [`crate::render`].
pub(crate) const RUN: &str = "sterna::run";

/// Sets up logging for this process, and the timeline if the recipe asks for one.
///
/// # Errors
///
/// A level that is none, or a log file that cannot be opened.
pub(crate) fn init(
    logger: &LoggerOptions,
    local_rank: usize,
    screen: &Screen,
    timeline: Option<TimelineLayer>,
) -> Result<(), Failure> {
    let level = match logger.level {
        Some(level) => filter(level),
        None => level_from_env()?,
    };
    let terminal = logger.print_output_ranks.contains(local_rank).then(|| {
        fmt::layer()
            .without_time()
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .with_writer(screen.clone())
            .with_filter(targets(level).with_target(RUN, LevelFilter::OFF))
    });
    let file = match &logger.output_dir {
        Some(dir) if logger.file_output_ranks.contains(local_rank) => Some(open(dir, local_rank)?),
        _ => None,
    };
    let file = file.map(|file| {
        fmt::layer()
            .with_ansi(false)
            .with_writer(Mutex::new(file))
            .with_filter(targets(level).with_target(RUN, LevelFilter::INFO))
    });
    let timeline = timeline
        .map(|layer| layer.with_filter(Targets::new().with_target(TIMELINE, LevelFilter::TRACE)));
    let init = tracing_subscriber::registry().with(terminal).with(file).with(timeline).try_init();
    init.map_err(|err: TryInitError| Failure::from_error(Exit::Failed, &err))
}

/// Everything of `level`, but of the HTTP client only warnings: it tells the headers of requests, and with them tokens.
fn targets(level: LevelFilter) -> Targets {
    let targets = Targets::new().with_default(level);
    ["ureq", "ureq_proto", "rustls", "hf_hub"]
        .into_iter()
        .fold(targets, |targets, client| targets.with_target(client, level.min(LevelFilter::WARN)))
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Error | LogLevel::Critical => LevelFilter::ERROR,
    }
}

fn level_from_env() -> Result<LevelFilter, Failure> {
    let Some(name) = std::env::var_os(env_vars::LOG_LEVEL) else {
        return Ok(LevelFilter::WARN);
    };
    let name = name.to_string_lossy();
    let level = match name.to_ascii_uppercase().as_str() {
        "" | "WARNING" | "WARN" => LevelFilter::WARN,
        "DEBUG" => LevelFilter::DEBUG,
        "INFO" => LevelFilter::INFO,
        "ERROR" | "CRITICAL" => LevelFilter::ERROR,
        _ => {
            let message = format!(
                "{} is `{name}`, required is `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`",
                env_vars::LOG_LEVEL
            );
            return Err(Failure::new(Exit::Usage, message));
        }
    };
    Ok(level)
}

fn open(output_dir: &Path, local_rank: usize) -> Result<File, Failure> {
    let path = output_dir.join("logs").join(format!("rank_{local_rank}.log"));
    let opened = std::fs::create_dir_all(output_dir.join("logs"))
        .and_then(|()| OpenOptions::new().create(true).append(true).open(&path));
    opened.map_err(|err| {
        let message = format!("cannot write the log file `{}`: {err}", path.display());
        Failure::new(Exit::Failed, message).with_hint(
            "check `logger.output_dir` of the recipe and the rights to that folder".to_owned(),
        )
    })
}
