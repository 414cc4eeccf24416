//! Hostfiles, as the DeepSpeed launcher reads them.

use crate::error::LaunchError;

/// More would be a slip of the pen.
const MAX_SLOTS: usize = 1024;

/// A host and how many ranks it may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// What ssh is given: a name, an address, or `user@` in front of one.
    pub name: String,
    /// Ranks that it may run, at least 1.
    pub slots: usize,
}

/// Reads the text of a hostfile: `HOST slots=N` or `HOST: slots=N` a line, blank lines, and comments from `#` on.
///
/// # Errors
///
/// A line that is none of these, a host that stands there twice, and a file without a host. All name `path`.
pub fn parse_hostfile(text: &str, path: &str) -> Result<Vec<Host>, LaunchError> {
    let mut hosts: Vec<Host> = Vec::new();
    let mut lines: Vec<usize> = Vec::new();
    for (index, full) in text.lines().enumerate() {
        let line = full.split_once('#').map_or(full, |(before, _)| before).trim();
        if line.is_empty() {
            continue;
        }
        let host = parse_line(line).map_err(|(found, required)| LaunchError::HostfileLine {
            path: path.to_owned(),
            line: index + 1,
            found: found.to_owned(),
            required,
        })?;
        if let Some(first) = hosts.iter().position(|other| other.name == host.name) {
            return Err(LaunchError::DuplicateHost {
                path: path.to_owned(),
                line: index + 1,
                host: host.name,
                first: lines[first],
            });
        }
        hosts.push(host);
        lines.push(index + 1);
    }
    if hosts.is_empty() { Err(LaunchError::NoHosts { path: path.to_owned() }) } else { Ok(hosts) }
}

/// A host, or what is wrong and what is required instead.
fn parse_line(line: &str) -> Result<Host, (&str, &'static str)> {
    const LINE: &str = "a host and its slots, such as `node-1 slots=8`";
    let mut words = line.split_whitespace();
    let (Some(name), Some(slots), None) = (words.next(), words.next(), words.next()) else {
        return Err((line, LINE));
    };
    let slots = slots.strip_prefix("slots=").ok_or((line, LINE))?;
    let slots = slots
        .parse()
        .ok()
        .filter(|slots| (1..=MAX_SLOTS).contains(slots))
        .ok_or((slots, "a number of slots from 1 to 1024"))?;
    // The README of DeepSpeed writes `node-1: slots=8`; an IPv6 address has other colons.
    let name = match name.strip_suffix(':') {
        Some(plain) if !plain.contains(':') => plain,
        _ => name,
    };
    if !is_host_name(name) {
        return Err((name, "a name or an address that ssh knows"));
    }
    Ok(Host { name: name.to_owned(), slots })
}

/// Whether ssh takes `name` for a host: never for an option, and never as something for a shell.
fn is_host_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_:@%[]".contains(c);
    !name.is_empty() && !name.starts_with(['-', ':', '@']) && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Vec<(String, usize)>, String> {
        parse_hostfile(text, "hosts")
            .map(|hosts| hosts.into_iter().map(|host| (host.name, host.slots)).collect())
            .map_err(|err| err.to_string())
    }

    fn hosts(expected: &[(&str, usize)]) -> Vec<(String, usize)> {
        expected.iter().map(|(name, slots)| ((*name).to_owned(), *slots)).collect()
    }

    /// What DeepSpeed's tests of its own parser accept, by meaning.
    #[test]
    fn what_deepspeed_accepts_is_accepted() {
        for (text, expected) in [
            ("worker-1 slots=2\nworker-2 slots=2\n", hosts(&[("worker-1", 2), ("worker-2", 2)])),
            ("worker-1 slots=2", hosts(&[("worker-1", 2)])),
            (
                "# a comment\n\nworker-1 slots=2 # of 8\n#worker-2 slots=2\n",
                hosts(&[("worker-1", 2)]),
            ),
            (
                "  worker-1    slots=2  \r\n\tworker-2\tslots=1\r\n",
                hosts(&[("worker-1", 2), ("worker-2", 1)]),
            ),
            (
                "localhost slots=1\n192.168.0.7 slots=8\nme@node slots=4",
                hosts(&[("localhost", 1), ("192.168.0.7", 8), ("me@node", 4)]),
            ),
            (
                "nodename1: slots=8\nnodename2: slots=8",
                hosts(&[("nodename1", 8), ("nodename2", 8)]),
            ),
            ("fd00::7 slots=8", hosts(&[("fd00::7", 8)])),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_hostfile_is_refused_with_its_line() {
        const LINE: &str = "required: a host and its slots, such as `node-1 slots=8`";
        const SLOTS: &str = "required: a number of slots from 1 to 1024";
        const NAME: &str = "required: a name or an address that ssh knows";
        for (text, expected) in [
            ("", "`hosts` names no host".to_owned()),
            ("\n# nothing\n \n", "`hosts` names no host".to_owned()),
            ("a slots=1\nb", format!("hosts:2: found `b`, {LINE}")),
            (
                "a slots=1\nthis is no hostfile",
                format!("hosts:2: found `this is no hostfile`, {LINE}"),
            ),
            ("a slots=1 b slots=1", format!("hosts:1: found `a slots=1 b slots=1`, {LINE}")),
            ("slots=1", format!("hosts:1: found `slots=1`, {LINE}")),
            ("a slots = 1", format!("hosts:1: found `a slots = 1`, {LINE}")),
            ("a slots=one", format!("hosts:1: found `one`, {SLOTS}")),
            ("a slots=", format!("hosts:1: found ``, {SLOTS}")),
            ("a slots=0", format!("hosts:1: found `0`, {SLOTS}")),
            ("a slots=-1", format!("hosts:1: found `-1`, {SLOTS}")),
            ("a slots=1025", format!("hosts:1: found `1025`, {SLOTS}")),
            ("-oProxyCommand=x slots=1", format!("hosts:1: found `-oProxyCommand=x`, {NAME}")),
            ("a;b slots=1", format!("hosts:1: found `a;b`, {NAME}")),
            (
                "a slots=1\n\nb slots=1\na: slots=2",
                "hosts:4: `a` stands in line 1 already".to_owned(),
            ),
        ] {
            assert_eq!(parse(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn hosts_written_out_are_read_back(
            hosts in proptest::collection::btree_map("[a-z][a-z0-9.-]{0,20}", 1..=MAX_SLOTS, 1..20),
            gap in "[ \t]{1,3}",
            comment in "(#.*)?",
        ) {
            let text: String = hosts
                .iter()
                .map(|(name, slots)| format!("{gap}{name}{gap}slots={slots}{gap}{comment}\n\n"))
                .collect::<Vec<_>>()
                .concat();
            let read = parse(&text).map(|hosts| hosts.into_iter().collect());
            prop_assert_eq!(read, Ok(hosts));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(?s).*") {
            for host in parse_hostfile(&text, "hosts").unwrap_or_default() {
                prop_assert!((1..=MAX_SLOTS).contains(&host.slots) && is_host_name(&host.name));
            }
        }

        #[test]
        fn lines_of_nearly_the_right_form_are_read_or_refused(text in "([a-c]{1,2}:? slots=[0-9]{0,5}( #)?\n){0,6}") {
            for host in parse_hostfile(&text, "hosts").unwrap_or_default() {
                prop_assert!((1..=MAX_SLOTS).contains(&host.slots) && is_host_name(&host.name));
            }
        }
    }
}
