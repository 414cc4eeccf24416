//! The environment variables that the command line reads or sets; the ranks' own are declared in `sterna-comm`.

/// Log level where the recipe has no `logger.level`: DEBUG, INFO, WARNING (the default), ERROR or CRITICAL.
pub(crate) const LOG_LEVEL: &str = "AT_LOG_LEVEL";

/// CPU threads of a rank. Set for the ranks that we start, unless the user has set it.
pub(crate) const OMP_NUM_THREADS: &str = "OMP_NUM_THREADS";
/// How threads wait for each other, by OpenMP.
pub(crate) const OMP_WAIT_POLICY: &str = "OMP_WAIT_POLICY";
/// The same by libgomp, which decides where both are set.
pub(crate) const GOMP_SPINCOUNT: &str = "GOMP_SPINCOUNT";

/// Set for the ranks that we start: the process id of the launcher, with which they end.
pub(crate) const LAUNCHER_PID: &str = "STERNA_LAUNCHER_PID";

/// Set for the ranks that we start: the folder where a failing rank says why, so that it is said once.
pub(crate) const FAILURE_DIR: &str = "STERNA_FAILURE_DIR";

/// Minutes that a collective waits for its slowest rank, as in DeepSpeed; 30 if unset.
pub(crate) const COLLECTIVE_TIMEOUT: &str = "DEEPSPEED_TIMEOUT";

/// What libtorch's C++ code says by itself. ERROR for the ranks that we start, unless the user has set it.
pub(crate) const TORCH_LOG_LEVEL: &str = "TORCH_CPP_LOG_LEVEL";

/// Which GPUs a process sees: by default a rank runs on each. Set for the ranks of a host whose slots were chosen by number.
pub(crate) const CUDA_VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";

/// Set by sshd: address and port of the client, then those by which it reached this host.
pub(crate) const SSH_CONNECTION: &str = "SSH_CONNECTION";

/// Name of the file with variables for the ranks of other hosts, where it is not `.deepspeed_env`.
pub(crate) const ENV_FILE: &str = "DS_ENV_FILE";

/// The user's home folder.
pub(crate) const HOME: &str = "HOME";

/// Number of this pod in a Kubernetes indexed job.
pub(crate) const JOB_COMPLETION_INDEX: &str = "JOB_COMPLETION_INDEX";

/// Set by those who want text without colours: <https://no-color.org>.
pub(crate) const NO_COLOR: &str = "NO_COLOR";
