//! `.deepspeed_env`: environment variables for the ranks of a run over several hosts.

use crate::error::LaunchError;

/// Reads `NAME=VALUE` lines, in order. Blank lines and lines that start with `#` count for nothing, and `export ` may
/// stand in front of a name.
///
/// A line is split at its first `=`; blanks around name and value are dropped, and one pair of quotes around a value,
/// as a shell would. Nothing is expanded.
///
/// # Errors
///
/// The first line that is none of these, with `path` and its number but nothing of its text, which may be secret.
pub fn parse_env_file(text: &str, path: &str) -> Result<Vec<(String, String)>, LaunchError> {
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || LaunchError::EnvLine { path: path.to_owned(), line: index + 1 };
        let (name, value) = line.split_once('=').ok_or_else(wrong)?;
        let name = name.trim_end();
        let name = match name.split_once(char::is_whitespace) {
            Some(("export", name)) => name.trim_start(),
            _ => name,
        };
        if !is_name(name) || value.contains('\0') {
            return Err(wrong());
        }
        variables.push((name.to_owned(), unquoted(value.trim()).to_owned()));
    }
    Ok(variables)
}

/// Whether a shell could export a variable of this name.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn unquoted(value: &str) -> &str {
    let inside = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_variables() {
        let text = "# for the fabric\n\nNCCL_IB_HCA = mlx5_0,mlx5_1 \nexport HF_HOME=/data/hf\nA=b=c # d\nQUOTED=\"a b\"\nEMPTY=\n";
        let variables = parse_env_file(text, ".deepspeed_env").unwrap();
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            variables,
            [
                ("NCCL_IB_HCA", "mlx5_0,mlx5_1"),
                ("HF_HOME", "/data/hf"),
                // As DeepSpeed: a value goes to the end of its line.
                ("A", "b=c # d"),
                ("QUOTED", "a b"),
                ("EMPTY", ""),
            ]
        );
    }

    #[test]
    fn a_line_that_is_none_is_named_without_its_text() {
        for (text, line) in [
            ("A=1\nB", 2),
            ("MY_KEY secret", 1),
            ("=secret", 1),
            ("MY KEY=secret", 1),
            ("1A=secret", 1),
            // The second line of a key in quotes.
            ("KEY=\"-----BEGIN\nMIIEsecret\"", 2),
        ] {
            let err = parse_env_file(text, "env").unwrap_err().to_string();
            assert!(err.starts_with(&format!("env:{line}: this line is no NAME=VALUE")), "{err}");
            assert!(!err.contains("secret") && !err.contains("MY"), "{err}");
        }
    }

    proptest! {
        #[test]
        fn what_a_shell_could_export_is_read_back(
            variables in proptest::collection::vec(("[A-Z_][A-Z0-9_]{0,10}", "[^\\s\"'\0]([^\n\r\0]*[^\\s\"'\0])?"), 0..10),
        ) {
            let text: String =
                variables.iter().map(|(name, value)| format!("{name}={value}\n#\n")).collect::<Vec<_>>().concat();
            prop_assert_eq!(parse_env_file(&text, "env"), Ok(variables));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(?s).*") {
            for (name, value) in parse_env_file(&text, "env").unwrap_or_default() {
                prop_assert!(is_name(&name) && !value.contains('\0'));
            }
        }
    }
}
