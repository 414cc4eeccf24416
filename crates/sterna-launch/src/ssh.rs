//! The command that starts an agent on another host.

use std::time::Duration;

/// How ssh is called. Nothing that a run is about is in its arguments: they can be read by every user of both hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SshOptions {
    /// Port of sshd where it is not what ssh's configuration says.
    pub port: Option<u16>,
}

impl SshOptions {
    /// How long a host may take to answer the first time.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
    /// A host that has not answered for this long counts as lost.
    pub const SILENCE: Duration = Duration::from_mins(1);
    /// How often ssh asks a silent host for an answer; it gives up when the next one would be due.
    const ASKS: u64 = 4;

    /// Arguments of `ssh` that run `command` in a shell on `host`.
    pub fn args(&self, host: &str, command: &str) -> Vec<String> {
        let option = |name: &str, value: u64| ["-o".to_owned(), format!("{name}={value}")];
        // No terminal and no questions: nobody could tell which host asks.
        let mut args = vec!["-T".to_owned(), "-o".to_owned(), "BatchMode=yes".to_owned()];
        args.extend(option("ConnectTimeout", Self::CONNECT_TIMEOUT.as_secs()));
        args.extend(option("ServerAliveInterval", Self::SILENCE.as_secs() / (Self::ASKS + 1)));
        args.extend(option("ServerAliveCountMax", Self::ASKS));
        if let Some(port) = self.port {
            args.extend(["-p".to_owned(), port.to_string()]);
        }
        args.extend(["--".to_owned(), host.to_owned(), command.to_owned()]);
        args
    }

    /// What a person types, with a command behind, to see what we see.
    pub fn by_hand(&self, host: &str) -> String {
        let port = self.port.map(|port| format!(" -p {port}")).unwrap_or_default();
        format!("ssh -o BatchMode=yes{port} {host}")
    }
}

/// `word` as a shell reads it as one word, whatever is in it.
pub fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use insta::assert_snapshot;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_command_of_ssh() {
        let options = SshOptions { port: Some(2222) };
        let args = options.args("node-1", "exec /opt/sterna agent");
        assert_snapshot!(args.join(" "), @r"-T -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=12 -o ServerAliveCountMax=4 -p 2222 -- node-1 exec /opt/sterna agent");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_shell_reads_a_quoted_word_back(word in "[^\0]*") {
            let script = format!("printf %s {}", quote(&word));
            let output = Command::new("sh").args(["-c", &script]).output().unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout), Ok(word));
        }
    }
}
