//! Which hosts and slots of a hostfile are used: `--include` and `--exclude`, as the DeepSpeed launcher reads them.

use std::collections::BTreeSet;

use crate::{error::LaunchError, hostfile::Host};

/// `--include` or `--exclude`. There is no way to say both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection<'a> {
    /// These and no others.
    Include(&'a str),
    /// All others.
    Exclude(&'a str),
}

/// A part of a selection: a host, and some of its slots or all.
type Part<'a> = (&'a str, Option<BTreeSet<usize>>);

impl<'a> Selection<'a> {
    fn option(self) -> &'static str {
        match self {
            Self::Include(_) => "--include",
            Self::Exclude(_) => "--exclude",
        }
    }

    fn text(self) -> &'a str {
        match self {
            Self::Include(text) | Self::Exclude(text) => text,
        }
    }

    /// Reads `HOST@HOST:SLOT,SLOT@...`.
    fn parts(self) -> Result<Vec<Part<'a>>, LaunchError> {
        self.text()
            .split('@')
            .map(|part| {
                let part = part.trim();
                let wrong = || LaunchError::SelectionSyntax {
                    option: self.option(),
                    found: part.to_owned(),
                };
                let Some((host, slots)) = part.rsplit_once(':') else {
                    return if part.is_empty() { Err(wrong()) } else { Ok((part, None)) };
                };
                let slots: Option<BTreeSet<usize>> =
                    slots.split(',').map(|slot| slot.trim().parse().ok()).collect();
                match slots {
                    Some(slots) if !host.is_empty() => Ok((host, Some(slots))),
                    _ => Err(wrong()),
                }
            })
            .collect()
    }

    /// The slots of each of `hosts` that are left, in the order of `hosts`; a host without any is left out.
    ///
    /// # Errors
    ///
    /// A selection that cannot be read, names a host or a slot that is not there, or leaves nothing.
    pub(crate) fn apply(self, hosts: &[Host]) -> Result<Vec<(&str, Vec<usize>)>, LaunchError> {
        let option = self.option();
        let mut named: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); hosts.len()];
        for (name, slots) in self.parts()? {
            let index = hosts.iter().position(|host| host.name == name).ok_or_else(|| {
                let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
                LaunchError::UnknownHost { option, host: name.to_owned(), hosts: names.join(", ") }
            })?;
            let num_slots = hosts[index].slots;
            let slots = slots.unwrap_or_else(|| (0..num_slots).collect());
            if let Some(&slot) = slots.iter().find(|&&slot| slot >= num_slots) {
                let host = name.to_owned();
                return Err(LaunchError::UnknownSlot { option, host, slot, last: num_slots - 1 });
            }
            named[index].extend(slots);
        }
        let keeps_named = matches!(self, Self::Include(_));
        let left: Vec<_> = hosts
            .iter()
            .zip(named)
            .map(|(host, named)| {
                let slots = (0..host.slots).filter(|slot| named.contains(slot) == keeps_named);
                (host.name.as_str(), slots.collect::<Vec<_>>())
            })
            .filter(|(_, slots)| !slots.is_empty())
            .collect();
        if left.is_empty() {
            return Err(LaunchError::NothingLeft { option, found: self.text().to_owned() });
        }
        Ok(left)
    }
}

/// The slots of this host that `--include localhost:0,2` chooses where there is no hostfile; none for `localhost`
/// without slots.
///
/// # Errors
///
/// A selection that cannot be read or names another host.
pub fn chosen_here(include: &str) -> Result<Option<Vec<usize>>, LaunchError> {
    let mut chosen: Option<BTreeSet<usize>> = None;
    for (host, slots) in Selection::Include(include).parts()? {
        if host != "localhost" {
            return Err(LaunchError::UnknownHost {
                option: "--include",
                host: host.to_owned(),
                hosts: "localhost (there is no hostfile)".to_owned(),
            });
        }
        if let Some(slots) = slots {
            chosen.get_or_insert_default().extend(slots);
        }
    }
    Ok(chosen.map(Vec::from_iter))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hosts() -> Vec<Host> {
        [("worker-0", 4), ("worker-1", 4), ("fd00::7", 2)]
            .map(|(name, slots)| Host { name: name.to_owned(), slots })
            .to_vec()
    }

    fn left(selection: Selection<'_>) -> Result<String, String> {
        let hosts = hosts();
        let left = selection.apply(&hosts).map_err(|err| err.to_string())?;
        let left: Vec<_> = left.iter().map(|(host, slots)| format!("{host} {slots:?}; ")).collect();
        Ok(left.concat())
    }

    /// What DeepSpeed's tests of its own filter expect, by meaning.
    #[test]
    fn hosts_and_slots_are_chosen_as_deepspeed_does() {
        for (include, expected) in [
            ("worker-0", "worker-0 [0, 1, 2, 3]; "),
            ("worker-0:2", "worker-0 [2]; "),
            ("worker-1@worker-0", "worker-0 [0, 1, 2, 3]; worker-1 [0, 1, 2, 3]; "),
            ("worker-1:3,0,3", "worker-1 [0, 3]; "),
            ("worker-0:0@worker-0:1", "worker-0 [0, 1]; "),
            ("worker-0@worker-1:0,2", "worker-0 [0, 1, 2, 3]; worker-1 [0, 2]; "),
            ("fd00::7:1", "fd00::7 [1]; "),
        ] {
            assert_eq!(left(Selection::Include(include)).as_deref(), Ok(expected), "{include}");
        }
        for (exclude, expected) in [
            ("fd00::7:0,1@worker-0", "worker-1 [0, 1, 2, 3]; "),
            ("worker-0:1@worker-1:0,1,2,3", "worker-0 [0, 2, 3]; fd00::7 [0, 1]; "),
        ] {
            assert_eq!(left(Selection::Exclude(exclude)).as_deref(), Ok(expected), "{exclude}");
        }
    }

    #[test]
    fn what_cannot_be_chosen_is_refused_by_name() {
        const SYNTAX: &str = "required: HOST or HOST:SLOT,SLOT,... with @ between hosts";
        for (include, expected) in [
            (
                "jeff",
                "`--include` names the host `jeff`, the hosts are: worker-0, worker-1, fd00::7"
                    .to_owned(),
            ),
            (
                "worker-1@5",
                "`--include` names the host `5`, the hosts are: worker-0, worker-1, fd00::7"
                    .to_owned(),
            ),
            (
                "worker-0:4",
                "`--include` names slot `4` of `worker-0`, which has slots 0 to 3".to_owned(),
            ),
            ("worker-0:-1,0", format!("`--include`: found `worker-0:-1,0`, {SYNTAX}")),
            ("worker-0:", format!("`--include`: found `worker-0:`, {SYNTAX}")),
            (":0", format!("`--include`: found `:0`, {SYNTAX}")),
            ("worker-0@", format!("`--include`: found ``, {SYNTAX}")),
            ("", format!("`--include`: found ``, {SYNTAX}")),
        ] {
            assert_eq!(left(Selection::Include(include)), Err(expected), "{include}");
        }
        assert_eq!(
            left(Selection::Exclude("worker-0@worker-1@fd00::7:0,1")),
            Err("`--exclude worker-0@worker-1@fd00::7:0,1` leaves no host to run on".to_owned())
        );
    }

    #[test]
    fn without_a_hostfile_there_is_this_host() {
        assert_eq!(chosen_here("localhost"), Ok(None));
        assert_eq!(chosen_here("localhost:2,0"), Ok(Some(vec![0, 2])));
        assert_eq!(
            chosen_here("worker-0:2").unwrap_err().to_string(),
            "`--include` names the host `worker-0`, the hosts are: localhost (there is no hostfile)"
        );
    }

    proptest! {
        #[test]
        fn what_is_included_and_what_is_excluded_are_the_whole(slots in proptest::collection::btree_set(0_usize..4, 1..4)) {
            let list: Vec<String> = slots.iter().map(ToString::to_string).collect();
            let text = format!("worker-0:{}", list.join(","));
            let hosts = hosts();
            let of_worker = |selection: Selection<'_>| -> BTreeSet<usize> {
                let left = selection.apply(&hosts).unwrap();
                left.into_iter().find(|(host, _)| *host == "worker-0").map(|(_, slots)| slots.into_iter().collect()).unwrap_or_default()
            };
            let included = of_worker(Selection::Include(&text));
            let rest = of_worker(Selection::Exclude(&text));
            prop_assert_eq!(&included, &slots);
            prop_assert!(included.is_disjoint(&rest));
            prop_assert_eq!(included.len() + rest.len(), 4);
        }

        #[test]
        fn any_text_is_followed_or_refused(text in ".*") {
            let hosts = hosts();
            for selection in [Selection::Include(&text), Selection::Exclude(&text)] {
                prop_assert!(selection.apply(&hosts).is_ok_and(|left| !left.is_empty()) || selection.apply(&hosts).is_err());
            }
        }
    }
}
