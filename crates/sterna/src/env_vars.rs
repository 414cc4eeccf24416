//! The environment variables that the command line reads or sets; the ranks' own are declared in `sterna-comm`.

/// Log level where the recipe has no `logger.level`: DEBUG, INFO, WARNING (the default), ERROR or CRITICAL.
pub(crate) const LOG_LEVEL: &str = "AT_LOG_LEVEL";

/// CPU threads of a rank. Set for the ranks that we start, unless the user has set it.
pub(crate) const OMP_NUM_THREADS: &str = "OMP_NUM_THREADS";

/// Set for the ranks that we start: the process id of the launcher, with which they end.
pub(crate) const LAUNCHER_PID: &str = "STERNA_LAUNCHER_PID";

/// Set for the ranks that we start: the folder where a failing rank says why, so that it is said once.
pub(crate) const FAILURE_DIR: &str = "STERNA_FAILURE_DIR";

/// Minutes that a collective waits for its slowest rank, as in DeepSpeed; 30 if unset.
pub(crate) const COLLECTIVE_TIMEOUT: &str = "DEEPSPEED_TIMEOUT";
