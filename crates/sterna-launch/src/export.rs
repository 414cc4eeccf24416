//! Which environment variables the ranks of other hosts are given, and which may be shown.

use std::collections::BTreeMap;

/// Name of the files of variables in the home folder and the working directory.
pub const ENV_FILE_NAME: &str = ".deepspeed_env";

/// DeepSpeed's prefixes, those of the Hugging Face libraries, and those of what runs in a rank.
const PREFIXES: [&str; 15] = [
    "AT_",
    "CUDA",
    "DEEPSPEED_",
    "GLOO_",
    "HF",
    "MLFLOW",
    "MV2",
    "NCCL",
    "OMP",
    "PYTHON",
    "PYTORCH",
    "STERNA_",
    "TORCH_",
    "UCX",
    "WANDB",
];

/// Have such a prefix, but say something about this host or this process.
const LOCAL: [&str; 3] = ["CUDA_VISIBLE_DEVICES", "STERNA_LAUNCHER_PID", "STERNA_FAILURE_DIR"];

/// Parts of the names of variables whose values are nobody's business.
const SECRET: [&str; 7] = ["TOKEN", "KEY", "SECRET", "PASS", "CREDENTIAL", "AUTH", "COOKIE"];

/// The variables that every rank is given: those of the launcher with one of the usual prefixes, then those of the
/// files, of which later ones win.
pub fn exported(
    environment: impl IntoIterator<Item = (String, String)>,
    files: impl IntoIterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let has_prefix = |name: &str| {
        PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !LOCAL.contains(&name)
    };
    let mut variables: BTreeMap<String, String> =
        environment.into_iter().filter(|(name, _)| has_prefix(name)).collect();
    variables.extend(files);
    variables
}

/// `value` of the variable `name` as it may be shown: `***` where the name says that it is secret or is none that we know, and for
/// a URL that may carry a password in front of its host.
pub fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    let upper = name.to_ascii_uppercase();
    let is_known = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let is_secret = SECRET.iter().any(|part| upper.contains(part))
        || value.contains("://") && value.contains('@');
    if is_known && !is_secret { value } else { "***" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(variables: &[(&str, &str)]) -> Vec<(String, String)> {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_usual_prefixes_and_the_files_are_exported() {
        let environment = pairs(&[
            ("PATH", "/bin"),
            ("HOME", "/root"),
            ("RANK", "0"),
            ("NCCL_DEBUG", "INFO"),
            ("HF_HOME", "/hf"),
            ("OMP_NUM_THREADS", "4"),
            ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
            ("DEEPSPEED_TIMEOUT", "1"),
            ("CUDA_VISIBLE_DEVICES", "3"),
            ("STERNA_LAUNCHER_PID", "7"),
        ]);
        let files = pairs(&[("NCCL_DEBUG", "WARN"), ("MY_OWN", "1"), ("NCCL_DEBUG", "TRACE")]);
        let expected = pairs(&[
            ("DEEPSPEED_TIMEOUT", "1"),
            ("HF_HOME", "/hf"),
            ("MY_OWN", "1"),
            ("NCCL_DEBUG", "TRACE"),
            ("OMP_NUM_THREADS", "4"),
            ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        ]);
        assert_eq!(exported(environment, files), expected.into_iter().collect());
    }

    #[test]
    fn secrets_are_not_shown() {
        for name in
            ["HF_TOKEN", "WANDB_API_KEY", "my_password", "AWS_SECRET_ACCESS", "X_CREDENTIALS"]
        {
            assert_eq!(shown(name, "hunter2"), "***", "{name}");
        }
        assert_eq!(shown("HF_HOME", "/hf"), "/hf");
        assert_eq!(shown("HF_ENDPOINT", "https://me:hunter2@mirror/a"), "***");
        assert_eq!(shown("HF_PROXY", "http://p1,http://me:hunter2@h2"), "***");
        assert_eq!(shown("HF_ENDPOINT", "https://mirror/a"), "https://mirror/a");
        // Only the user knows what is in it.
        assert_eq!(shown("GITHUB_PAT", "hunter2"), "***");
    }
}
