//! Hostfiles, environment files, selections of hosts, and the messages of an agent.

use sterna_launch::{Job, Selection, parse_env_file, parse_hostfile, quote};

use super::{Target, answer, text};

pub(super) const HOSTFILE: Target = Target {
    name: "hostfile",
    dictionary: &[
        "slots=",
        "slots=8",
        ":",
        "#",
        "@",
        "-oProxyCommand=x",
        "$(id)",
        "`id`",
        ";",
        "'",
        "\"",
        "\\",
        "worker-1",
        "worker-2",
        "localhost",
        "[::1]",
        "fd00::7",
        "---\n",
        "NCCL_DEBUG=INFO",
        "export A=b",
        "=",
        "0,2",
        "0-3",
        "@worker-1:0",
    ],
    memory: 3,
    seeds: || {
        [
            "# two\nworker-1 slots=8\nworker-2: slots=4 # half\n---\nNCCL_DEBUG=INFO\n\n# x\nA=b c\n---\nworker-1:0,2@worker-2",
            "me@192.168.0.7 slots=1\nfd00::7 slots=2\n---\n---\nfd00::7",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    },
    run: |input, _| {
        let text = text(input);
        let mut parts = text.split("---\n");
        let (hosts, variables, hosts_chosen) =
            (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let variables = match parse_env_file(variables, "env") {
            Ok(variables) => variables.iter().map(|(_, value)| quote(value).len()).sum::<usize>(),
            Err(err) => return answer(&err),
        };
        let hosts = match parse_hostfile(hosts, "hostfile") {
            Ok(hosts) => hosts,
            Err(err) => return answer(&err),
        };
        for host in &hosts {
            // What ssh is given is a host and never an option.
            assert!(
                !host.name.starts_with('-') && !host.name.contains(char::is_whitespace),
                "{host:?}"
            );
        }
        let jobs = [Selection::Include(hosts_chosen), Selection::Exclude(hosts_chosen)]
            .map(|selection| Job::of_selection(&hosts, selection).map(|job| job.world_size()));
        match &jobs[0] {
            Ok(world_size) => format!("{variables} bytes of variables, {world_size} ranks"),
            Err(err) => format!("hosts are read, the selection is not: {err}"),
        }
    },
};
